// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end: an exception in the hypervisor, or a panic. Says what happened, stops all other pCPUs, and halts.
//!
//! **Invariant.** Nothing here takes a lock or allocates, and a fault in here only halts.

use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering};

use pasidon_kernel::console::framing::SELECT_MONITOR;

use crate::interrupts::{GPR_NAMES, TrapFrame, vector};
use crate::{apic, cpu, pcpu, serial};

/// Where the image lies, to say which part of it faulted.
static IMAGE: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
/// The pCPU that stops the machine, its index plus one; 0 while all is well.
static STOPPING: AtomicU64 = AtomicU64::new(0);

/// Where the image was loaded and how many bytes it has. Before the first exception can be told.
pub fn install(image: u64, size: u64) {
    IMAGE[0].store(image, Ordering::Relaxed);
    IMAGE[1].store(size, Ordering::Relaxed);
}

struct Line;

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                serial::panic_write(b"\r");
            }
            serial::panic_write(&[byte]);
        }
        Ok(())
    }
}

/// Only the first pCPU comes back from here, and only once.
fn stop_others() {
    let me = u64::from(pcpu::try_current().map_or(0, |pcpu| pcpu.index)) + 1;
    if STOPPING
        .compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire)
        .is_err()
    {
        cpu::halt();
    }
    if pcpu::count() > 1 {
        apic::nmi_all_others();
    }
    serial::panic_write(b"\r\n");
    serial::panic_write(&SELECT_MONITOR);
}

/// Ends the hypervisor after an exception in it.
pub fn exception(frame: &TrapFrame) -> ! {
    let vector = frame.vector as u8;
    if vector == vector::NMI && STOPPING.load(Ordering::Acquire) != 0 {
        cpu::halt();
    }
    stop_others();
    let cr2: u64;
    // SAFETY: reading CR2 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) };
    let [base, size] = [&IMAGE[0], &IMAGE[1]].map(|value| value.load(Ordering::Relaxed));
    let mut line = Line;
    // The sink cannot fail.
    let _ = writeln!(
        line,
        "Pasidon: {} (vector {vector}) on pCPU {}, error code {:#x}, CR2 {cr2:#x}",
        name(vector),
        pcpu::try_current().map_or(0, |pcpu| pcpu.index),
        frame.error_code,
    );
    let _ = match frame.rip.checked_sub(base).filter(|offset| *offset < size) {
        Some(offset) => writeln!(line, "  rip {:#x}, image offset {offset:#x}", frame.rip),
        None => writeln!(line, "  rip {:#x}, outside of the image", frame.rip),
    };
    let _ = writeln!(
        line,
        "  rsp {:#x} rflags {:#x} cs {:#x} ss {:#x}",
        frame.rsp, frame.rflags, frame.cs, frame.ss
    );
    for (names, values) in GPR_NAMES.chunks(4).zip(frame.gpr.chunks(4)) {
        for (name, value) in names.iter().zip(values) {
            let _ = write!(line, "  {name:3} {value:016x}");
        }
        let _ = writeln!(line);
    }
    cpu::halt()
}

/// Ends the hypervisor after a panic.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    // SAFETY: from here on nothing but this runs on this pCPU.
    unsafe { asm!("cli", options(nomem, nostack)) };
    stop_others();
    let mut line = Line;
    // The sink cannot fail.
    let _ = writeln!(line, "Pasidon: {info}");
    cpu::halt()
}

/// An exception by its mnemonic and name (APM 2, 8.2).
fn name(vector: u8) -> &'static str {
    match vector {
        0 => "#DE divide error",
        1 => "#DB debug",
        2 => "NMI",
        3 => "#BP breakpoint",
        6 => "#UD invalid opcode",
        7 => "#NM device not available",
        8 => "#DF double fault",
        10 => "#TS invalid TSS",
        11 => "#NP segment not present",
        12 => "#SS stack",
        13 => "#GP general protection",
        14 => "#PF page fault",
        16 => "#MF floating point",
        17 => "#AC alignment check",
        18 => "#MC machine check",
        19 => "#XF SIMD floating point",
        21 => "#CP control protection",
        _ => "exception",
    }
}
