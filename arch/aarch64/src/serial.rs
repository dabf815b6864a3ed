// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's one serial line: a PL011, or the part of one that the SBSA asks for, where the firmware's tables
//! say it is.
//!
//! **Invariant.** Bytes of one [`write()`] stay together. [`panic_write`] takes no lock and never waits for long:
//! what it says may land in the middle of another line, but it comes.
//!
//! Source: Arm PrimeCell UART (PL011) reference manual (DDI 0183), 3.3; Arm Server Base System Architecture
//! (DEN 0029), appendix B (generic UART).

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pasidon_arch_common::firmware_tables::Find;
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use spin::{Mutex, Once};

use crate::firmware_tables;

/// Data register.
const UARTDR: u64 = 0x000;
/// Flag register.
const UARTFR: u64 = 0x018;
/// Interrupt mask set and clear: a bit that is set lets its interrupt through.
const UARTIMSC: u64 = 0x038;
/// Interrupt clear.
const UARTICR: u64 = 0x044;
/// UARTFR: nothing was received.
const FR_RXFE: u32 = 1 << 4;
/// UARTFR: the transmitter takes no byte.
const FR_TXFF: u32 = 1 << 5;
/// UARTIMSC: received; received and then nothing more for a while.
const IM_RX: u32 = 1 << 4;
const IM_RT: u32 = 1 << 6;
/// UARTICR: all.
const IC_ALL: u32 = 0x7ff;
/// UARTDR, in what is read: the character has a framing or a parity error, or is a BREAK, and characters before it
/// were lost.
const DR_FE: u32 = 1 << 8;
const DR_PE: u32 = 1 << 9;
const DR_BE: u32 = 1 << 10;
const DR_OE: u32 = 1 << 11;
/// What the registers take.
const LENGTH: u64 = 0x1000;
/// How often [`panic_write`] looks whether the line takes a byte before it gives that byte up. A byte takes 87 µs
/// at 115200 baud, and a look about 1 µs.
const PANIC_TRIES: u32 = 100_000;

/// Address of the registers; 0 where there are none.
static BASE: AtomicU64 = AtomicU64::new(0);
/// INTID of the interrupt; 0 where it is not known.
static INTERRUPT: AtomicU32 = AtomicU32::new(0);
/// Held while the registers are used. In it, a character that came with the news that others before it were lost.
static LOCK: Mutex<Option<Received>> = Mutex::new(None);
/// What is called when a byte came in.
static NOTE: Once<fn()> = Once::new();

fn read_register(base: u64, offset: u64) -> u32 {
    // SAFETY: the firmware's tables name the place, which is mapped: by the firmware, then by the hypervisor.
    unsafe { ((base + offset) as *const u32).read_volatile() }
}

fn write_register(base: u64, offset: u64, value: u32) {
    // SAFETY: as in `read_register`; the registers belong to this module alone once boot services have ended.
    unsafe { ((base + offset) as *mut u32).write_volatile(value) }
}

fn base() -> Option<u64> {
    Some(BASE.load(Ordering::Relaxed)).filter(|base| *base != 0)
}

/// Where the tables say that the line is: the SPCR, or else the DBG2.
fn find_uart(tables: Find<'_>) -> Result<firmware_tables::Uart, Refusal> {
    let found = tables("SPCR").and_then(firmware_tables::spcr);
    found.or_else(|| tables("DBG2").and_then(firmware_tables::dbg2)).ok_or_else(|| {
        Refusal::new(
            "serial line",
            "the firmware describes no PL011 (SPCR, DBG2, stdout-path)",
            "give the machine a serial port: the log and the monitor are there",
        )
    })
}

/// Whether the firmware describes a line. No register is touched.
///
/// # Errors
/// When there is none that there is a driver for.
pub fn find(tables: Find<'_>) -> Result<String, Refusal> {
    find_uart(tables).map(|uart| format!("PL011 or SBSA UART at {:#x}", uart.base))
}

/// Finds the line, as the firmware has set it up: by the SPCR, or else by the DBG2. Once, on the first processor,
/// while the firmware's map is in place. Without one, writes go nowhere.
///
/// # Errors
/// When there is none that there is a driver for.
pub fn init(tables: Find<'_>) -> Result<(), Refusal> {
    let uart = find_uart(tables)?;
    INTERRUPT.store(uart.interrupt.unwrap_or(0), Ordering::Relaxed);
    BASE.store(uart.base, Ordering::Relaxed);
    Ok(())
}

/// The registers, for the page tables: start and length.
pub(crate) fn registers() -> Option<(HostPhys, u64)> {
    base().map(|base| (HostPhys(base), LENGTH))
}

/// INTID of the line's interrupt, where the firmware states it.
pub fn interrupt() -> Option<u32> {
    Some(INTERRUPT.load(Ordering::Relaxed)).filter(|intid| *intid != 0)
}

/// Sends bytes, waiting until the line takes them.
pub fn write(bytes: &[u8]) {
    let Some(base) = base() else { return };
    let _guard = LOCK.lock();
    for &byte in bytes {
        while read_register(base, UARTFR) & FR_TXFF != 0 {
            core::hint::spin_loop();
        }
        write_register(base, UARTDR, byte.into());
    }
}

/// What a character of UARTDR stands for, but for an overrun.
fn received(data: u32) -> Received {
    if data & DR_BE != 0 {
        Received::Break
    } else if data & (DR_FE | DR_PE) != 0 {
        Received::Damaged
    } else {
        Received::Byte(data as u8)
    }
}

/// What came in next. Where there is nothing, [`announce_keys`] tells of the next byte again.
pub fn read() -> Option<Received> {
    let base = base()?;
    let mut behind = LOCK.lock();
    if let Some(received) = behind.take() {
        return Some(received);
    }
    if read_register(base, UARTFR) & FR_RXFE == 0 {
        let data = read_register(base, UARTDR);
        if data & DR_OE != 0 {
            *behind = Some(received(data));
            return Some(Received::Damaged);
        }
        return Some(received(data));
    }
    // What comes from here on raises the interrupt, what came just now as well: it is the FIFO's level that does.
    if NOTE.get().is_some() {
        write_register(base, UARTIMSC, IM_RX | IM_RT);
    }
    None
}

/// From now on the line raises its [`interrupt`] when a byte came in that nobody has read yet, and `note` is called by
/// [`interrupt_came`]. Once; it is called again only after [`read`] has found nothing.
pub fn announce_keys(note: fn()) {
    let Some(base) = base() else { return };
    NOTE.call_once(|| note);
    let _guard = LOCK.lock();
    write_register(base, UARTICR, IC_ALL);
    write_register(base, UARTIMSC, IM_RX | IM_RT);
}

/// The handler of the line's interrupt.
pub fn interrupt_came() {
    // The interrupt is a level, which stays until the bytes are read, and that is not done here.
    if let Some(base) = base() {
        write_register(base, UARTIMSC, 0);
    }
    if let Some(note) = NOTE.get() {
        note();
    }
}

/// Sends bytes without a lock, for a processor that will not run on. Gives bytes up that the line does not take.
pub fn panic_write(bytes: &[u8]) {
    let Some(base) = base() else { return };
    for &byte in bytes {
        if (0..PANIC_TRIES).any(|_| read_register(base, UARTFR) & FR_TXFF == 0) {
            write_register(base, UARTDR, byte.into());
        }
    }
}
