// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end: an exception in the hypervisor, or a panic. Says what happened and where, stops all other pCPUs by an
//! SGI, and halts. What is said, and in which order, is [`pasidon_arch_common::fault`]'s; here are the registers.
//!
//! **Invariant.** Nothing here takes a lock or allocates.

use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use aarch64_cpu::registers::{HCR_EL2, Readable, SCTLR_EL2, TCR_EL2, TTBR0_EL2};
use pasidon_arch_common::fault::{Exception, Faults, Processor};
use pasidon_arch_common::report::{Hooks, print_registers};

pub use pasidon_arch_common::report::Context;

use crate::cause::{self, Cause, Kind};
use crate::paging::Section;
use crate::pcpu::{self, Pcpu};
use crate::stack::Stack;
use crate::trap_frame::TrapFrame;
use crate::unwind::{FP, Image, LR, Registers, X_NAMES};
use crate::{cpu, gic, paging, serial, time};

static FAULTS: Faults<El2> = Faults::new();

/// What of a fault is this processor's.
struct El2;

impl Processor for El2 {
    type Image = Image<'static>;

    const HOOKS: Hooks = Hooks {
        write: serial::panic_write,
        pcpus: pcpu::count,
        stop_others: gic::stop_others,
        spin_until: |ns, done| time::spin_until(ns, done),
        halt: cpu::halt,
    };

    /// Found without TPIDR_EL2, which may be what is wrong.
    fn current() -> Option<(u32, impl Iterator<Item = Stack> + Clone)> {
        let mpidr = cpu::mpidr();
        pcpu::all().find(|pcpu| pcpu.mpidr == mpidr).map(|pcpu| (pcpu.index, Pcpu::stacks(pcpu)))
    }

    /// On the firmware's tables all RAM is mapped, and its stack ends far below the end of that.
    fn is_readable(address: u64) -> bool {
        paging::root() == 0 || paging::is_mapped(address)
    }

    fn print(registers: &Registers, out: &mut dyn Write) -> fmt::Result {
        print_registers(out, &X_NAMES, &registers.x)?;
        writeln!(out, "  sp  {:016x}  pc  {:016x}", registers.sp, registers.pc)?;
        writeln!(
            out,
            "  sctlr {:#x}  hcr {:#x}  tcr {:#x}  ttbr0 {:#x}",
            SCTLR_EL2.get(),
            HCR_EL2.get(),
            TCR_EL2.get(),
            TTBR0_EL2.get()
        )
    }
}

/// Where the image was loaded, how many bytes it has, and its sections, as
/// [`crate::paging::sections_of_image`] gives them; for backtraces. Once.
///
/// # Safety
/// The image must be there, for ever, and nothing written to those sections that say so.
pub unsafe fn install(base: u64, size: u64, sections: &[Section]) {
    // SAFETY: by the caller's promise.
    unsafe { FAULTS.install(base, size, sections) };
}

/// Adds what `context` prints to the report. There is room for a few; says whether there was some left.
pub fn add_context(context: Context) -> bool {
    FAULTS.add_context(context)
}

/// Another pCPU has failed, and this one was at `pc` when it was told to stop.
pub(crate) fn stop(pc: u64) -> ! {
    FAULTS.stop(pc)
}

/// Ends the hypervisor after an exception in it. `number`: the entry in its group of vectors.
pub(crate) fn exception(frame: &TrapFrame, number: u64, nested: bool, from_guest: bool) -> ! {
    let kind = Kind::from_number(number);
    if kind == Kind::Fiq {
        stop(frame.elr);
    }
    let TrapFrame { esr, far, spsr, .. } = *frame;
    let above = core::ptr::from_ref(frame) as u64 + size_of::<TrapFrame>() as u64;
    let registers = Registers {
        x: frame.x,
        // What comes on the exception stack a second time has not changed stacks.
        sp: if nested { above } else { frame.sp },
        pc: frame.elr,
    };
    let guest = if from_guest { "  from a guest" } else { "" };
    let exception = Exception {
        name: cause::name(kind, esr),
        registers: &registers,
        address: far,
        syndrome: format_args!("esr {esr:#x}  far {far:#x}  spsr {spsr:#x}{guest}"),
    };
    FAULTS.exception(&exception, |target| Cause { kind, esr, far, target })
}

/// Ends the hypervisor after a panic.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    // SAFETY: from here on nothing but this runs on this pCPU.
    unsafe { asm!("msr daifset, #0xf", options(nomem, nostack)) };
    FAULTS.panic(info, &capture())
}

/// The registers here: those of the function this becomes a part of.
#[inline(always)]
fn capture() -> Registers {
    let mut registers = Registers::default();
    // SAFETY: the pointer is to a `Registers`: 31 words, stack pointer and program counter behind them.
    unsafe {
        asm!(
            "stp x0, x1, [x0]",
            "stp x2, x3, [x0, #16]",
            "stp x4, x5, [x0, #32]",
            "stp x6, x7, [x0, #48]",
            "stp x8, x9, [x0, #64]",
            "stp x10, x11, [x0, #80]",
            "stp x12, x13, [x0, #96]",
            "stp x14, x15, [x0, #112]",
            "stp x16, x17, [x0, #128]",
            "stp x18, x19, [x0, #144]",
            "stp x20, x21, [x0, #160]",
            "stp x22, x23, [x0, #176]",
            "stp x24, x25, [x0, #192]",
            "stp x26, x27, [x0, #208]",
            "stp x28, x29, [x0, #224]",
            "mov x1, sp",
            "stp x30, x1, [x0, #240]",
            "adr x1, .",
            "str x1, [x0, #256]",
            in("x0") &raw mut registers,
            out("x1") _,
            options(nostack, preserves_flags)
        );
    }
    registers
}

const _: () = {
    assert!(core::mem::offset_of!(Registers, x) == 0);
    assert!(core::mem::offset_of!(Registers, sp) == 248);
    assert!(core::mem::offset_of!(Registers, pc) == 256);
    assert!(FP == 29 && LR == 30);
};
