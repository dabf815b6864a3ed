// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end: an exception in the hypervisor, or a panic. Says what happened and where, stops all other pCPUs by
//! NMI, and halts. What is said, and in which order, is [`pasidon_arch_common::report`]'s.
//!
//! **Invariants.** Nothing here takes a lock or allocates. Memory is read only where it is known to be: the
//! image's read-only sections, and this pCPU's stacks.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::fmt::Write;
use core::panic::PanicInfo;

use pasidon_arch_common::backtrace::StackRanges;
use pasidon_arch_common::denial::Target;
use pasidon_arch_common::image::Parts;
use pasidon_arch_common::report::{Hooks, Report};
use spin::Once;

pub use pasidon_arch_common::report::Context;

use crate::cause::{self, Cause};
use crate::paging::Section;
use crate::pcpu::{self, Pcpu};
use crate::trap_frame::TrapFrame;
use crate::unwind::{GPR_NAMES, Image, RSP, Registers};
use crate::{apic, cpu, paging, serial, time};

/// The loaded image, and its sections' bounds.
struct Loaded {
    image: Image<'static>,
    /// The last one with an address in it counts: the first is the whole image.
    sections: arrayvec::ArrayVec<Section, SECTIONS>,
}

/// How many sections are looked at.
const SECTIONS: usize = 16;
/// How long the others get to stop. Simulated ones may have to wait for their turn.
const STOP_NS: u64 = 1_000_000_000;

static LOADED: Once<Loaded> = Once::new();
static REPORT: Report = Report::new(Hooks {
    write: serial::panic_write,
    pcpus: pcpu::count,
    stop_others: apic::nmi_all_others,
    wait_until: |done| {
        let _ = time::spin_until(STOP_NS, done);
    },
    halt: cpu::halt,
});

/// Where the image was loaded, how many bytes it has, and its sections, as
/// [`crate::paging::sections_of_image`] gives them; for backtraces. Once.
///
/// # Safety
/// The image must be there, for ever, and nothing written to those sections that say so.
pub unsafe fn install(base: u64, size: u64, sections: &[Section]) {
    LOADED.call_once(|| Loaded {
        // SAFETY: by the caller's promise.
        image: unsafe { Parts::of_image(base, size, sections) }.into(),
        sections: sections.iter().rev().take(SECTIONS).copied().collect(),
    });
}

/// Adds what `context` prints to the report. There is room for a few; says whether there was some left.
pub fn add_context(context: Context) -> bool {
    REPORT.add_context(context)
}

/// The pCPU that runs this, found without GS base, which may be a guest's.
fn me() -> Option<&'static Pcpu> {
    /// Extended topology: EDX is the x2APIC ID.
    const TOPOLOGY: u32 = 0xb;
    let apic_id = if __cpuid(0).eax >= TOPOLOGY && __cpuid_count(TOPOLOGY, 0).ebx != 0 {
        __cpuid_count(TOPOLOGY, 0).edx
    } else {
        __cpuid(1).ebx >> 24
    };
    (0..pcpu::count() as u32).filter_map(pcpu::get).find(|pcpu| pcpu.apic_id == apic_id)
}

/// Ends the hypervisor after an exception in it.
pub fn exception(frame: &TrapFrame) -> ! {
    let me = me();
    let index = me.map_or(0, |me| me.index);
    let vector = frame.vector as u8;
    REPORT.begin(index, frame.rip, format_args!("{}", cause::name(vector)));
    let control = Control::read();
    let stacks = me.into_iter().flat_map(Pcpu::stacks);
    let sections = LOADED.get().into_iter().flat_map(|loaded| &loaded.sections);
    let cause = Cause {
        vector,
        error_code: frame.error_code,
        address: control.cr2,
        target: Target::of(control.cr2, stacks, sections),
    };
    let mut line = REPORT.line();
    // The sink cannot fail, here and below.
    let _ = writeln!(line, "Pasidon stops on pCPU {index}: {cause}");
    let registers = registers_of(frame);
    print_registers(&registers, &control);
    let _ = writeln!(
        line,
        "  rflags {:#x}  cs {:#x}  ss {:#x}  vector {vector}  error code {:#x}",
        frame.rflags, frame.cs, frame.ss, frame.error_code
    );
    finish(me, &registers)
}

/// Ends the hypervisor after a panic.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    // SAFETY: from here on nothing but this runs on this pCPU.
    unsafe { asm!("cli", options(nomem, nostack)) };
    let registers = capture();
    let me = me();
    let index = me.map_or(0, |me| me.index);
    REPORT.begin(index, registers.rip, format_args!("panic ({})", info.message()));
    let mut line = REPORT.line();
    let _ = write!(line, "Pasidon stops on pCPU {index}: panic");
    if let Some(location) = info.location() {
        let _ = write!(line, " at {location}");
    }
    let _ = writeln!(line, ": {}", info.message());
    print_registers(&registers, &Control::read());
    finish(me, &registers)
}

fn print_registers(registers: &Registers, control: &Control) {
    REPORT.registers(&GPR_NAMES, &registers.gpr);
    let Control { cr0, cr2, cr3, cr4 } = control;
    let _ = writeln!(
        REPORT.line(),
        "  rip {:016x}  cr0 {cr0:x}  cr2 {cr2:x}  cr3 {cr3:x}  cr4 {cr4:x}",
        registers.rip
    );
}

/// Everything behind cause and registers.
fn finish(me: Option<&'static Pcpu>, registers: &Registers) -> ! {
    let image = LOADED.get().map(|loaded| &loaded.image);
    let stacks = match me {
        Some(me) => StackRanges::of(me.stacks()),
        // On the firmware's tables all RAM is mapped, and its stack ends far below the end of that.
        None => StackRanges::from(registers.gpr[RSP], |at| paging::root() == 0 || paging::is_mapped(at)),
    };
    REPORT.finish(me.map_or(0, |me| me.index), image, registers, &stacks)
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
