// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end: an exception in the hypervisor, or a panic. Says what happened and where, stops all other pCPUs,
//! and halts.
//!
//! **Principle.** The first pCPU that comes here stops the others by NMI and reports alone: cause, registers,
//! backtrace, where the others were, and what others add ([`add_context`]).
//! **Invariants.** Nothing here takes a lock or allocates. Memory is read only where it is known to be: the
//! image's read-only sections, and this pCPU's stacks. A fault in here costs the rest of the report: one
//! line, and the processor halts.

mod backtrace;
mod cause;

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use pasidon_kernel::addr::PAGE_SIZE;
use pasidon_kernel::console::framing::SELECT_MONITOR;
use spin::Once;

use crate::interrupts::TrapFrame;
use crate::paging::{Kind, Section};
use crate::pcpu::{self, MAX_PCPUS, Pcpu};
use crate::symbols::Place;
use crate::unwind::{GPR_NAMES, Image, RSP, Registers};
use crate::{apic, cpu, serial, time};
use cause::{Cause, Target};

/// The loaded image, and its sections' bounds.
struct Loaded {
    image: Image<'static>,
    sections: arrayvec::ArrayVec<Section, SECTIONS>,
}

/// How many sections are looked at.
const SECTIONS: usize = 16;
/// How many functions can add to the report.
const CONTEXTS: usize = 8;
/// How long the others get to stop. Simulated ones may have to wait for their turn.
const STOP_NS: u64 = 1_000_000_000;
/// Where nothing is mapped, so that a null pointer faults.
const NULL_PAGE: core::ops::Range<u64> = 0..PAGE_SIZE;

static LOADED: Once<Loaded> = Once::new();
/// The pCPU that reports, its index plus one; 0 while all is well.
static REPORTER: AtomicU64 = AtomicU64::new(0);
/// How often the reporter faulted while reporting.
static NESTED: AtomicUsize = AtomicUsize::new(0);
/// Where each other pCPU was when it was stopped; 0 while it runs.
static STOPPED: [AtomicU64; MAX_PCPUS] = [const { AtomicU64::new(0) }; MAX_PCPUS];
static CONTEXT: [AtomicPtr<()>; CONTEXTS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; CONTEXTS];

/// Adds lines to the report, each ended by a newline. It must neither lock nor allocate, and may be called
/// at any time.
pub type Context = fn(&mut dyn Write);

/// Where the image was loaded, how many bytes it has, and its sections, as
/// [`crate::paging::sections_of_image`] gives them; for backtraces. Once.
///
/// # Safety
/// The image must be there, for ever, and nothing written to those sections that say so.
pub unsafe fn install(base: u64, size: u64, sections: &[Section]) {
    LOADED.call_once(|| {
        let parts = sections
            .iter()
            .filter(|section| section.kind != Kind::Data)
            .map(|section| {
                // The first one is the whole image, of which the others are parts: what is left are the headers.
                let next = sections
                    .iter()
                    .map(|other| other.start)
                    .filter(|start| *start > section.start)
                    .min();
                let end = next.map_or(section.end, |next| next.min(section.end));
                let length = (end.min(base + size) - section.start) as usize;
                // SAFETY: by the caller's promise.
                let bytes = unsafe { core::slice::from_raw_parts(section.start as *const u8, length) };
                ((section.start - base) as u32, bytes)
            });
        Loaded {
            image: Image::new(base, size, parts),
            // The last one with an address in it counts: the first is the whole image.
            sections: sections.iter().rev().take(SECTIONS).copied().collect(),
        }
    });
}

/// Adds what `context` prints to the report. There is room for a few; says whether there was some left.
pub fn add_context(context: Context) -> bool {
    CONTEXT.iter().any(|place| {
        let empty = core::ptr::null_mut();
        place
            .compare_exchange(empty, context as *mut (), Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    })
}

/// The serial line, without its lock.
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

/// The pCPU that runs this, found without GS base, which may be a guest's.
fn me() -> Option<&'static Pcpu> {
    /// Extended topology: EDX is the x2APIC ID.
    const TOPOLOGY: u32 = 0xb;
    let apic_id = if __cpuid(0).eax >= TOPOLOGY && __cpuid_count(TOPOLOGY, 0).ebx != 0 {
        __cpuid_count(TOPOLOGY, 0).edx
    } else {
        __cpuid(1).ebx >> 24
    };
    (0..pcpu::count() as u32)
        .filter_map(pcpu::get)
        .find(|pcpu| pcpu.apic_id == apic_id)
}

/// Comes back on the first pCPU to fail only, and only once: all others are stopped then.
fn begin(me: Option<&'static Pcpu>, rip: u64, what: fmt::Arguments<'_>) {
    let index = me.map_or(0, |pcpu| pcpu.index);
    let claim = REPORTER.compare_exchange(0, u64::from(index) + 1, Ordering::AcqRel, Ordering::Acquire);
    match claim {
        Ok(_) => {}
        Err(reporter) if reporter == u64::from(index) + 1 => {
            if NESTED.fetch_add(1, Ordering::Relaxed) == 0 {
                let place = Place {
                    address: rip,
                    behind_call: false,
                };
                // The sink cannot fail.
                let _ = writeln!(Line, "\nPasidon: {what} at {place} while reporting; halted");
            }
            cpu::halt()
        }
        Err(_) => {
            STOPPED[index as usize].store(rip.max(1), Ordering::Release);
            cpu::halt()
        }
    }
    if pcpu::count() > 1 {
        apic::nmi_all_others();
        let all_stopped = || others(index).all(|(_, rip)| rip != 0);
        // Who did not stop is named below.
        let _ = time::spin_until(STOP_NS, all_stopped);
    }
    serial::panic_write(b"\r\n");
    serial::panic_write(&SELECT_MONITOR);
}

/// All pCPUs but `index`, with where they stopped.
fn others(index: u32) -> impl Iterator<Item = (u32, u64)> {
    (0..pcpu::count() as u32)
        .filter(move |other| *other != index)
        .map(|other| (other, STOPPED[other as usize].load(Ordering::Acquire)))
}

/// Ends the hypervisor after an exception in it.
pub fn exception(frame: &TrapFrame) -> ! {
    let me = me();
    let vector = frame.vector as u8;
    begin(me, frame.rip, format_args!("{}", cause::name(vector)));
    let control = Control::read();
    let cause = Cause {
        vector,
        error_code: frame.error_code,
        address: control.cr2,
        target: target_of(me, control.cr2),
    };
    let mut line = Line;
    // The sink cannot fail, here and below.
    let _ = writeln!(
        line,
        "Pasidon stops on pCPU {}: {cause}",
        me.map_or(0, |me| me.index)
    );
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
    begin(me, registers.rip, format_args!("panic ({})", info.message()));
    let mut line = Line;
    let _ = write!(
        line,
        "Pasidon stops on pCPU {}: panic",
        me.map_or(0, |me| me.index)
    );
    if let Some(location) = info.location() {
        let _ = write!(line, " at {location}");
    }
    let _ = writeln!(line, ": {}", info.message());
    print_registers(&registers, &Control::read());
    finish(me, &registers)
}

fn print_registers(registers: &Registers, control: &Control) {
    const PER_LINE: usize = 4;
    let mut line = Line;
    for (names, values) in GPR_NAMES.chunks(PER_LINE).zip(registers.gpr.chunks(PER_LINE)) {
        for (name, value) in names.iter().zip(values) {
            let _ = write!(line, "  {name:3} {value:016x}");
        }
        let _ = writeln!(line);
    }
    let Control { cr0, cr2, cr3, cr4 } = control;
    let _ = writeln!(
        line,
        "  rip {:016x}  cr0 {cr0:x}  cr2 {cr2:x}  cr3 {cr3:x}  cr4 {cr4:x}",
        registers.rip
    );
}

/// Everything behind cause and registers.
fn finish(me: Option<&'static Pcpu>, registers: &Registers) -> ! {
    let mut line = Line;
    match LOADED.get() {
        Some(Loaded { image, .. }) => {
            let _ = writeln!(line, "backtrace, image at {:#x}:", image.base());
            let stack = backtrace::StackRanges::of(me, registers.gpr[RSP]);
            let _ = backtrace::print(&mut line, image, registers, &stack);
        }
        None => {
            let _ = writeln!(line, "no backtrace: nobody said where the image is");
        }
    }
    for (other, rip) in others(me.map_or(0, |me| me.index)) {
        let place = Place {
            address: rip,
            behind_call: false,
        };
        let _ = match rip {
            0 => writeln!(line, "pCPU {other} does not stop"),
            _ => writeln!(line, "pCPU {other} stopped at {place}"),
        };
    }
    for context in &CONTEXT {
        let context = context.load(Ordering::Acquire);
        if !context.is_null() {
            // SAFETY: only `add_context` stores here, and only a `Context`.
            let context: Context = unsafe { core::mem::transmute::<*mut (), Context>(context) };
            context(&mut line);
        }
    }
    let _ = writeln!(line, "Pasidon stands still until the machine is reset");
    cpu::halt()
}

/// What lies at an address, as far as it explains a fault.
fn target_of(me: Option<&'static Pcpu>, address: u64) -> Target {
    let is_guard = |bottom: u64| (bottom - PAGE_SIZE..bottom).contains(&address);
    if me.is_some_and(|me| me.stacks().any(|stack| is_guard(stack.bottom))) {
        return Target::Guard;
    }
    if NULL_PAGE.contains(&address) {
        return Target::Null;
    }
    let mut sections = LOADED.get().into_iter().flat_map(|loaded| &loaded.sections);
    match sections
        .find(|section| (section.start..section.end).contains(&address))
        .map(|found| found.kind)
    {
        Some(Kind::Code) => Target::Code,
        Some(Kind::Constants) => Target::Constants,
        _ => Target::Other,
    }
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
    let [
        r15,
        r14,
        r13,
        r12,
        r11,
        r10,
        r9,
        r8,
        rdi,
        rsi,
        rbp,
        rbx,
        rdx,
        rcx,
        rax,
    ] = frame.gpr;
    Registers {
        gpr: [
            rax, rcx, rdx, rbx, frame.rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
        ],
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
        frame.gpr[crate::interrupts::GPR_RBP] = 102;
        let registers = registers_of(&frame);
        for (name, value) in crate::interrupts::GPR_NAMES.iter().zip(frame.gpr) {
            let index = GPR_NAMES.iter().position(|known| known == name).unwrap();
            assert_eq!(registers.gpr[index], value, "{name}");
        }
        assert_eq!((registers.gpr[RSP], registers.rip), (101, 100));
    }

    #[test]
    fn there_is_room_for_some_contexts() {
        fn context(out: &mut dyn Write) {
            let _ = out.write_str("x");
        }
        for _ in 0..CONTEXTS {
            assert!(add_context(context));
        }
        assert!(!add_context(context));
    }
}
