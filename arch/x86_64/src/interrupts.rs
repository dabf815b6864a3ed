// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt descriptor table, and who handles which vector.
//!
//! **Principle.** One table for all pCPUs. The hypervisor runs with interrupts off; they are taken only in
//! [`window`] and [`wait`], where nobody holds a lock, so a handler may take any, and where one ended a guest of VMX
//! ([`deliver`]), where only the vCPU's own is held, which no handler takes. Exceptions go to
//! [`crate::fault`] and do not come back.
//! **Invariant.** Every interrupt but the spurious one is ended (EOI) after its handler, so each is taken
//! once.
//!
//! Source: APM volume 2, 8.2 (vectors and error codes) and 8.9 (64-bit interrupts).

use alloc::boxed::Box;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::port::Port;
use x86_64::instructions::tables::{lidt, sidt};
use x86_64::structures::DescriptorTablePointer;

use crate::descriptors::{CODE_SELECTOR, ist};
use crate::trap_frame::TrapFrame;
use crate::vector::{self, Vector};
use crate::{apic, fault, machine_check, pcpu};

const VECTORS: usize = 256;
/// Bytes from one entry stub to the next.
const STUB_BYTES: u64 = 16;

// One entry per vector, STUB_BYTES apart: a zero where the processor pushes no error code, the vector, and on
// to the common part. The processor aligns the stack to 16 before it pushes 5 words; with these 2 and 15
// registers it is aligned again for the call.
global_asm!(
    ".macro pasidon_push register",
    "pushq \\register",
    ".if {unwind}",
    ".seh_pushreg \\register",
    ".endif",
    ".endm",
    ".p2align 4",
    ".globl pasidon_vectors",
    "pasidon_vectors:",
    ".set pasidon_vector, 0",
    ".rept 256",
    ".p2align 4",
    ".if (pasidon_vector == 8) || (pasidon_vector >= 10 && pasidon_vector <= 14) || (pasidon_vector == 17) \
        || (pasidon_vector == 21) || (pasidon_vector == 29) || (pasidon_vector == 30)",
    ".else",
    "pushq $0",
    ".endif",
    "pushq $pasidon_vector",
    "jmp pasidon_trap",
    ".set pasidon_vector, pasidon_vector + 1",
    ".endr",
    ".p2align 4",
    "pasidon_trap:",
    // A backtrace goes through here by what the unwind codes say: the words that the processor pushed, the
    // vector, the registers. Only PE images have these directives.
    ".if {unwind}",
    ".seh_proc pasidon_trap",
    ".seh_pushframe @code",
    ".seh_stackalloc 8",
    ".endif",
    "cld",
    "pasidon_push %rax",
    "pasidon_push %rcx",
    "pasidon_push %rdx",
    "pasidon_push %rbx",
    "pasidon_push %rbp",
    "pasidon_push %rsi",
    "pasidon_push %rdi",
    "pasidon_push %r8",
    "pasidon_push %r9",
    "pasidon_push %r10",
    "pasidon_push %r11",
    "pasidon_push %r12",
    "pasidon_push %r13",
    "pasidon_push %r14",
    "pasidon_push %r15",
    ".if {unwind}",
    ".seh_endprologue",
    ".endif",
    "movq %rsp, %rdi",
    "call {trap}",
    "popq %r15",
    "popq %r14",
    "popq %r13",
    "popq %r12",
    "popq %r11",
    "popq %r10",
    "popq %r9",
    "popq %r8",
    "popq %rdi",
    "popq %rsi",
    "popq %rbp",
    "popq %rbx",
    "popq %rdx",
    "popq %rcx",
    "popq %rax",
    "addq $16, %rsp",
    "iretq",
    ".if {unwind}",
    ".seh_endproc",
    ".endif",
    ".purgem pasidon_push",
    trap = sym trap,
    unwind = const cfg!(target_os = "uefi") as u32,
    options(att_syntax)
);

unsafe extern "C" {
    /// The first entry stub; only its address is used.
    #[link_name = "pasidon_vectors"]
    static STUBS: u8;
}

/// A gate of the table.
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    attributes: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

impl Gate {
    /// Present, privilege level 0, interrupt gate: interrupts stay off.
    const ATTRIBUTES: u8 = 0x8e;

    const fn new(address: u64, ist: u8) -> Self {
        Self {
            offset_low: address as u16,
            selector: CODE_SELECTOR,
            ist,
            attributes: Self::ATTRIBUTES,
            offset_middle: (address >> 16) as u16,
            offset_high: (address >> 32) as u32,
            reserved: 0,
        }
    }

    const fn address(self) -> u64 {
        (self.offset_high as u64) << 32 | (self.offset_middle as u64) << 16 | self.offset_low as u64
    }
}

static IDT: Once<&'static [Gate; VECTORS]> = Once::new();

/// What handles an interrupt; called with its vector, interrupts off, on the pCPU that took it.
pub type Handler = fn(Vector);

static HANDLERS: [AtomicPtr<()>; VECTORS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; VECTORS];
/// Interrupts that nobody handles.
static UNEXPECTED: AtomicU64 = AtomicU64::new(0);

/// Makes the table; once, before the first [`load`].
pub(crate) fn init() {
    IDT.call_once(|| {
        let first = (&raw const STUBS) as u64;
        let mut gates = Box::new([Gate::new(0, 0); VECTORS]);
        for (number, gate) in (0u64..).zip(gates.iter_mut()) {
            let ist = match number as u8 {
                vector::DOUBLE_FAULT => ist::DOUBLE_FAULT,
                vector::NMI => ist::NMI,
                vector::MACHINE_CHECK => ist::MACHINE_CHECK,
                _ => 0,
            };
            *gate = Gate::new(first + number * STUB_BYTES, ist);
        }
        Box::leak(gates)
    });
}

/// Makes this processor use the table.
///
/// # Safety
/// After [`init`], with the pCPU's descriptors loaded.
pub(crate) unsafe fn load() {
    if let Some(gates) = IDT.get() {
        let pointer = DescriptorTablePointer {
            limit: (size_of::<Gate>() * VECTORS - 1) as u16,
            base: VirtAddr::new(gates.as_ptr() as u64),
        };
        // SAFETY: the table lives for ever, and its gates lead to the stubs.
        unsafe { lidt(&pointer) };
    }
}

/// Masks the two 8259s for good, after moving them away from the exceptions' vectors: a masked one may still
/// raise a spurious interrupt.
pub(crate) fn disable_legacy_controllers() {
    const COMMAND: [u16; 2] = [0x20, 0xa0];
    /// ICW1: cascaded, with ICW4.
    const ICW1: u8 = 0x11;
    /// ICW3: the second one is at input 2 of the first.
    const ICW3: [u8; 2] = [1 << 2, 2];
    /// ICW4: 8086 mode.
    const ICW4: u8 = 0x01;
    const ALL_MASKED: u8 = 0xff;
    let bases = [*vector::LEGACY.start(), *vector::LEGACY.start() + 8];
    for ((command, base), cascade) in COMMAND.into_iter().zip(bases).zip(ICW3) {
        let (mut first, mut second) = (Port::<u8>::new(command), Port::<u8>::new(command + 1));
        // SAFETY: these ports are the 8259s' on every PC, or nobody's.
        unsafe {
            first.write(ICW1);
            second.write(base);
            second.write(cascade);
            second.write(ICW4);
            second.write(ALL_MASKED);
        }
    }
}

/// Names the handler of a vector, on all pCPUs. The common entry ends the interrupt after it returns.
/// A vector of an exception cannot be had.
pub fn install(vector: Vector, handler: Handler) {
    debug_assert!(vector >= vector::FIRST_INTERRUPT);
    HANDLERS[usize::from(vector)].store(handler as *mut (), Ordering::Release);
}

/// How many interrupts came that nobody handles.
pub fn unexpected() -> u64 {
    UNEXPECTED.load(Ordering::Relaxed)
}

extern "sysv64" fn trap(frame: &TrapFrame) {
    let vector = frame.vector as u8;
    if vector < vector::FIRST_INTERRUPT {
        if vector == vector::MACHINE_CHECK && machine_check::passes_by() {
            return;
        }
        fault::exception(frame);
    }
    let handler = HANDLERS[usize::from(vector)].load(Ordering::Acquire);
    if !handler.is_null() {
        // SAFETY: only `install` stores here, and only a `Handler`.
        let handler: Handler = unsafe { core::mem::transmute::<*mut (), Handler>(handler) };
        handler(vector);
    } else if vector != vector::SPURIOUS && !vector::LEGACY.contains(&vector) {
        let before = UNEXPECTED.fetch_add(1, Ordering::Relaxed);
        // A device that floods must not flood the log: lines at 1, 2, 4, 8, …
        if (before + 1).is_power_of_two() {
            log::warn!("vector {vector:#x}: nobody handles it; {} such interrupts so far", before + 1);
        }
    }
    if vector != vector::SPURIOUS && !vector::LEGACY.contains(&vector) {
        apic::end_of_interrupt();
    }
}

/// Does what the processor does when it takes an interrupt of that vector: its gate is gone through.
///
/// # Safety
/// The interrupt was taken from the local APIC, and nobody has handled it.
pub unsafe fn deliver(vector: Vector) {
    let table = sidt().base.as_u64() as *const Gate;
    // SAFETY: a table with a gate for each vector is loaded, here and in tests. The gate's handler returns with IRETQ to
    // what is pushed for it, keeps all registers, and finds interrupts off as it would.
    unsafe {
        let gate = table.add(vector.into()).read();
        asm!(
            "mov {stack}, rsp",
            "and rsp, -16",
            "mov {segment:e}, ss",
            "push {segment}",
            "push {stack}",
            "pushfq",
            "mov {segment:e}, cs",
            "push {segment}",
            "call {handler}",
            stack = out(reg) _,
            segment = out(reg) _,
            handler = in(reg) gate.address(),
        );
    }
}

/// Takes no interrupts from here on, outside of [`window`] and [`wait`].
pub fn disable() {
    // SAFETY: interrupts that come later wait.
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Raises [`vector::KICK`] on a pCPU, which may be this one. Writes to memory before it are seen by the handler.
pub fn kick(pcpu: u32) {
    if let Some(apic_id) = pcpu::apic_id_of(pcpu) {
        apic::send(apic_id, vector::KICK);
    }
}

/// Takes the interrupts that wait. No lock may be held.
pub fn window() {
    // SAFETY: handlers keep all registers; the instruction after STI is still shielded, hence NOP.
    unsafe { asm!("sti", "nop", "cli") };
}

/// Waits for an interrupt and takes those that wait. No lock may be held. What is to end the wait must be an
/// interrupt: one that came since interrupts were last taken is not lost.
pub fn wait() {
    // SAFETY: as in `window`; STI shields HLT, so that nothing comes between them.
    unsafe { asm!("sti", "hlt", "cli") };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_push_their_own_vector() {
        const ERROR_CODE: [usize; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];
        for number in 0..VECTORS {
            // SAFETY: the stubs are 256 times 16 bytes of code, which may be read.
            let stub = unsafe {
                core::slice::from_raw_parts((&raw const STUBS).add(number * STUB_BYTES as usize), 16)
            };
            let rest = match (ERROR_CODE.contains(&number), stub) {
                (true, rest) | (false, [0x6a, 0, rest @ ..]) => rest,
                _ => panic!("{number}: {stub:x?}"),
            };
            let pushed = match rest {
                [0x6a, byte, 0xe9 | 0xeb, ..] => usize::from(*byte),
                [0x68, a, b, c, d, 0xe9 | 0xeb, ..] => u32::from_le_bytes([*a, *b, *c, *d]) as usize,
                _ => panic!("{number}: {stub:x?}"),
            };
            assert_eq!(pushed, number);
        }
    }
}
