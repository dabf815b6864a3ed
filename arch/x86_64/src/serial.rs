// SPDX-License-Identifier: MIT OR Apache-2.0
//! COM1, the machine's one serial line.
//!
//! **Invariant.** Bytes of one [`write()`] stay together. [`panic_write`] takes no lock and never waits for
//! long: what it says may land in the middle of another line, but it comes.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, Ordering};

use pasidon_arch_common::firmware_tables::Find;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};
use x86_64::instructions::port::{PortReadOnly, PortWriteOnly};

/// First port of COM1.
const COM1: u16 = 0x3f8;
/// Its transmitter holding register.
const THR: u16 = COM1;
/// Its line status register.
const LINE_STATUS: u16 = COM1 + 5;
/// LSR: the transmitter takes bytes.
const LSR_THR_EMPTY: u8 = 1 << 5;
/// How often [`panic_write`] looks whether the line takes a byte before it gives that byte up. A byte takes
/// 87 µs at 115200 baud, and a look about 1 µs.
const PANIC_TRIES: u32 = 100_000;

static UART: Mutex<Uart16550<PioBackend>> = Mutex::new(com1());
static PRESENT: AtomicBool = AtomicBool::new(false);

const fn com1() -> Uart16550<PioBackend> {
    // SAFETY: COM1's ports belong to this module alone, and a read where nobody answers gives ones.
    match unsafe { Uart16550::new_port(COM1) } {
        Ok(uart) => uart,
        Err(_) => panic!("COM1 has a valid port"),
    }
}

/// Whether a UART answers. Nothing is written, and the register that is read is not changed by it.
///
/// # Errors
/// When there is none.
pub fn find(_tables: Find<'_>) -> Result<String, Refusal> {
    /// Its line control register.
    const LCR: u16 = COM1 + 3;
    /// What is read where nobody answers.
    const NOBODY: u8 = 0xff;
    // SAFETY: COM1's ports belong to this module alone, and reading this one has no side effect.
    if unsafe { PortReadOnly::<u8>::new(LCR).read() } == NOBODY {
        return Err(absent());
    }
    Ok(format!("a UART answers at port {COM1:#x} (COM1)"))
}

fn absent() -> Refusal {
    Refusal::new(
        "COM1",
        "there is no UART",
        "give the machine a serial port: the log and the monitor are there",
    )
}

/// Sets the line up: 115200 baud, 8 data bits, no parity, FIFO on, no interrupts. Once, on the first
/// processor. Where it is needs no table. Without a UART, writes go nowhere.
///
/// # Errors
/// When there is none.
pub fn init(tables: Find<'_>) -> Result<(), Refusal> {
    find(tables)?;
    let config = Config { baud_rate: BaudRate::Baud115200, interrupts: IER::empty(), ..Config::DEFAULT };
    let present = UART.lock().init(config).is_ok();
    PRESENT.store(present, Ordering::Relaxed);
    if present { Ok(()) } else { Err(absent()) }
}

/// Sends bytes, waiting until the line takes them.
pub fn write(bytes: &[u8]) {
    if PRESENT.load(Ordering::Relaxed) {
        UART.lock().send_bytes_exact(bytes);
    }
}

/// What came in next.
pub fn read() -> Option<Received> {
    if !PRESENT.load(Ordering::Relaxed) {
        return None;
    }
    let mut uart = UART.lock();
    // One read: the errors are those of the character at the head, and are forgotten with it.
    let status = uart.lsr();
    if status.contains(LSR::OVERRUN_ERROR) {
        // The character at the head is good, those behind the FIFO's end are gone. It comes with the next call.
        return Some(Received::Damaged);
    }
    if !status.contains(LSR::DATA_READY) {
        return None;
    }
    let byte = uart.try_receive_byte().ok()?;
    Some(if status.contains(LSR::BREAK_INTERRUPT) {
        Received::Break
    } else if status.intersects(LSR::PARITY_ERROR | LSR::FRAMING_ERROR) {
        Received::Damaged
    } else {
        Received::Byte(byte)
    })
}

/// From now on a byte that comes in raises the UART's interrupt.
pub fn enable_receive_interrupt() {
    if PRESENT.load(Ordering::Relaxed) {
        UART.lock().enable_interrupts(IER::DATA_READY);
    }
}

/// Sends bytes without a lock, for a processor that will not run on. Gives bytes up that the line does not
/// take.
pub fn panic_write(bytes: &[u8]) {
    if !PRESENT.load(Ordering::Relaxed) {
        return;
    }
    let mut status = PortReadOnly::<u8>::new(LINE_STATUS);
    let mut data = PortWriteOnly::<u8>::new(THR);
    for &byte in bytes {
        // SAFETY: the ports are a present UART's; another processor that writes at the same time at worst
        // mixes its bytes in.
        unsafe {
            let free = (0..PANIC_TRIES).any(|_| status.read() & LSR_THR_EMPTY != 0);
            if free {
                data.write(byte);
            }
        }
    }
}
