// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end: an exception in the hypervisor, or a panic. Says what happened and where, stops all other pCPUs by
//! NMI, and halts. What is said, and in which order, is [`pasidon_arch_common::fault`]'s; here are the registers.
//!
//! **Invariant.** Nothing here takes a lock or allocates.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use pasidon_arch_common::fault::{Exception, Faults, Processor};
use pasidon_arch_common::report::{Hooks, print_registers};

pub use pasidon_arch_common::report::Context;

use crate::cause::{self, Cause};
use crate::paging::Section;
use crate::pcpu::{self, Pcpu};
use crate::stack::Stack;
use crate::trap_frame::TrapFrame;
use crate::unwind::{GPR_NAMES, Image, Registers};
use crate::{apic, cpu, paging, serial, time};

static FAULTS: Faults<X86_64> = Faults::new();

/// What of a fault is this processor's.
struct X86_64;

impl Processor for X86_64 {
    type Image = Image<'static>;

    const HOOKS: Hooks = Hooks {
        write: serial::panic_write,
        pcpus: pcpu::count,
        stop_others: apic::nmi_all_others,
        spin_until: |ns, done| time::spin_until(ns, done),
        halt: cpu::halt,
    };

    /// Found without GS base, which may be a guest's.
    fn current() -> Option<(u32, impl Iterator<Item = Stack> + Clone)> {
        /// Extended topology: EDX is the x2APIC ID.
        const TOPOLOGY: u32 = 0xb;
        let apic_id = if __cpuid(0).eax >= TOPOLOGY && __cpuid_count(TOPOLOGY, 0).ebx != 0 {
            __cpuid_count(TOPOLOGY, 0).edx
        } else {
            __cpuid(1).ebx >> 24
        };
        let mut all = (0..pcpu::count() as u32).filter_map(pcpu::get);
        all.find(|pcpu| pcpu.apic_id == apic_id).map(|pcpu| (pcpu.index, Pcpu::stacks(pcpu)))
    }

    /// On the firmware's tables all RAM is mapped, and its stack ends far below the end of that.
    fn is_readable(address: u64) -> bool {
        paging::root() == 0 || paging::is_mapped(address)
    }

    fn print(registers: &Registers, out: &mut dyn Write) -> fmt::Result {
        print_registers(out, &GPR_NAMES, &registers.gpr)?;
        let Control { cr0, cr2, cr3, cr4 } = Control::read();
        writeln!(out, "  rip {:016x}  cr0 {cr0:x}  cr2 {cr2:x}  cr3 {cr3:x}  cr4 {cr4:x}", registers.rip)
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

/// Ends the hypervisor after an exception in it.
pub fn exception(frame: &TrapFrame) -> ! {
    let vector = frame.vector as u8;
    let address = Control::read().cr2;
    let exception = Exception {
        name: cause::name(vector),
        registers: &registers_of(frame),
        address,
        syndrome: format_args!(
            "rflags {:#x}  cs {:#x}  ss {:#x}  vector {vector}  error code {:#x}",
            frame.rflags, frame.cs, frame.ss, frame.error_code
        ),
    };
    FAULTS.exception(&exception, |target| Cause { vector, error_code: frame.error_code, address, target })
}

/// Ends the hypervisor after a panic.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    // SAFETY: from here on nothing but this runs on this pCPU.
    unsafe { asm!("cli", options(nomem, nostack)) };
    FAULTS.panic(info, &capture())
}

/// The control registers that matter after a fault.
struct Control {
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
}

impl Control {
    fn read() -> Self {
        let (cr0, cr2, cr3, cr4): (u64, u64, u64, u64);
        // SAFETY: reading them changes nothing.
        unsafe {
            asm!(
                "mov {}, cr0", "mov {}, cr2", "mov {}, cr3", "mov {}, cr4",
                out(reg) cr0, out(reg) cr2, out(reg) cr3, out(reg) cr4,
                options(nomem, nostack, preserves_flags)
            );
        }
        Self { cr0, cr2, cr3, cr4 }
    }
}

/// The registers of an interrupted frame, in the order of their encoding.
fn registers_of(frame: &TrapFrame) -> Registers {
    let [r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax] = frame.gpr;
    Registers {
        gpr: [rax, rcx, rdx, rbx, frame.rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15],
        rip: frame.rip,
    }
}

/// The registers here: RIP and RSP of the function this becomes a part of.
#[inline(always)]
fn capture() -> Registers {
    let mut registers = Registers::default();
    // SAFETY: the pointer is to a `Registers`: 16 words, and RIP behind them. RAX holds that pointer.
    unsafe {
        asm!(
            "mov [rax + 0x08], rcx",
            "mov [rax + 0x10], rdx",
            "mov [rax + 0x18], rbx",
            "mov [rax + 0x20], rsp",
            "mov [rax + 0x28], rbp",
            "mov [rax + 0x30], rsi",
            "mov [rax + 0x38], rdi",
            "mov [rax + 0x40], r8",
            "mov [rax + 0x48], r9",
            "mov [rax + 0x50], r10",
            "mov [rax + 0x58], r11",
            "mov [rax + 0x60], r12",
            "mov [rax + 0x68], r13",
            "mov [rax + 0x70], r14",
            "mov [rax + 0x78], r15",
            "lea rcx, [rip]",
            "mov [rax + 0x80], rcx",
            in("rax") &raw mut registers,
            out("rcx") _,
            options(nostack, preserves_flags)
        );
    }
    registers
}

const _: () = {
    assert!(core::mem::offset_of!(Registers, gpr) == 0);
    assert!(core::mem::offset_of!(Registers, rip) == 0x80);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::RSP;

    #[test]
    fn registers_are_captured_and_taken_from_a_frame_in_the_order_of_their_encoding() {
        let here = capture();
        let marker = 0u64;
        assert!(here.gpr[RSP].abs_diff(&raw const marker as u64) < 0x1_0000);
        assert!(here.rip.abs_diff(registers_of as *const () as u64) < 1 << 30);
        let mut frame = TrapFrame {
            gpr: core::array::from_fn(|index| index as u64),
            vector: 0,
            error_code: 0,
            rip: 100,
            cs: 0,
            rflags: 0,
            rsp: 101,
            ss: 0,
        };
        frame.gpr[crate::trap_frame::GPR_RBP] = 102;
        let registers = registers_of(&frame);
        for (name, value) in crate::trap_frame::GPR_NAMES.iter().zip(frame.gpr) {
            let index = GPR_NAMES.iter().position(|known| known == name).unwrap();
            assert_eq!(registers.gpr[index], value, "{name}");
        }
        assert_eq!((registers.gpr[RSP], registers.rip), (101, 100));
    }
}
