// SPDX-License-Identifier: MIT OR Apache-2.0
//! All processors: the first one made a pCPU, the others started.
//!
//! **Principle.** A processor is started by INIT and start-up interrupts, one after the other. It begins in
//! real mode in a page below 1 MiB, goes straight to long mode there, and calls `arrive` with its stack.
//! **Invariants.** The page it executes is never writable while it can execute; what the page reads lies in
//! the next one. A processor that does not come is put back into reset and left out, so that it cannot come
//! later, with what then belongs to another.
//!
//! Source: Intel SDM volume 3, 9.4.4 (start-up) and 10.8.5 (long mode); APM volume 2, 14.6 and 15.

use alloc::format;
use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use pasidon_arch_common::pcpus::Trampoline;
use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use spin::Once;

use crate::cpu::{self, Cr4, Features};
use crate::descriptors::{CODE_SELECTOR, Descriptors};
use crate::pcpu::{self, MAX_PCPUS, Pcpu};
use crate::stack::{self, STACK_BYTES, Stack};
use crate::{apic, interrupts, paging, time};

/// Pages that processors are started with: code, data, a copy of the top page table.
const TRAMPOLINE_PAGES: u64 = 3;
/// What real mode reaches.
const REAL_MODE_END: u64 = 1 << 20;
/// What processors are started with.
pub const TRAMPOLINE: Option<Trampoline> =
    Some(Trampoline { pages: TRAMPOLINE_PAGES as usize, below: REAL_MODE_END });
/// How long a processor rests between INIT and the start-up interrupt.
const INIT_NS: u64 = 10_000_000;
/// How long it may take before the second start-up interrupt.
const STARTUP_NS: u64 = 200_000;
/// How long it may take to arrive altogether: much, since a simulated one may have to wait for its turn.
const ARRIVAL_NS: u64 = 3_000_000_000;

// Real mode, CS = this page. Offsets from 0x1000 on are fields of `Data`. Protection, paging and (with
// EFER.LME) long mode come in one step, so that there is no 32-bit part; CR3 has only 32 bits here, hence
// the copy of the top table. Real-mode code assembles to no relocations: all addresses are offsets.
global_asm!(
    ".p2align 4",
    ".globl pasidon_trampoline, pasidon_trampoline_long, pasidon_trampoline_end",
    "pasidon_trampoline:",
    ".code16",
    "cli",
    "cld",
    "movw %cs, %ax",
    "movw %ax, %ds",
    "lgdtl 0x1000",
    "movl 0x1014, %eax",
    "movl %eax, %cr4",
    "movl 0x1010, %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx",
    "movl ${efer}, %eax",
    "xorl %edx, %edx",
    "wrmsr",
    "movl ${cr0}, %eax",
    "movl %eax, %cr0",
    "ljmpl *0x1008",
    ".code64",
    "pasidon_trampoline_long:",
    "xorl %eax, %eax",
    "movw %ax, %ds",
    "movw %ax, %es",
    "movw %ax, %ss",
    "leaq pasidon_trampoline(%rip), %rbx",
    "movq 0x1030(%rbx), %rax",
    "movq %rax, %cr3",
    "movq 0x1038(%rbx), %rsp",
    "movq 0x1040(%rbx), %rdi",
    "movq 0x1048(%rbx), %rax",
    "xorl %ebp, %ebp",
    "call *%rax",
    "ud2",
    "pasidon_trampoline_end:",
    efer = const cpu::EFER_BEFORE_PAGING.bits(),
    cr0 = const cpu::CR0.bits(),
    options(att_syntax)
);

unsafe extern "C" {
    #[link_name = "pasidon_trampoline"]
    static TRAMPOLINE_CODE: u8;
    #[link_name = "pasidon_trampoline_long"]
    static TRAMPOLINE_LONG: u8;
    #[link_name = "pasidon_trampoline_end"]
    static TRAMPOLINE_END: u8;
}

/// What the trampoline reads; the offsets are in its code.
#[repr(C)]
struct Data {
    gdt_limit: u16,
    gdt_base: [u16; 2],
    reserved: u16,
    long_mode: u32,
    long_mode_selector: u32,
    /// The copy of the top table.
    low_root: u32,
    cr4: u32,
    gdt: [u64; 3],
    root: u64,
    stack: u64,
    pcpu: u64,
    arrive: u64,
}

const _: () = {
    assert!(core::mem::offset_of!(Data, long_mode) == 0x08);
    assert!(core::mem::offset_of!(Data, low_root) == 0x10);
    assert!(core::mem::offset_of!(Data, cr4) == 0x14);
    assert!(core::mem::offset_of!(Data, gdt) == 0x18);
    assert!(core::mem::offset_of!(Data, root) == 0x30);
    assert!(core::mem::offset_of!(Data, stack) == 0x38);
    assert!(core::mem::offset_of!(Data, pcpu) == 0x40);
    assert!(core::mem::offset_of!(Data, arrive) == 0x48);
};

/// A flat 64-bit code segment.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;

/// What [`start`] needs.
struct Plan {
    apic_ids: alloc::vec::Vec<u32>,
    trampoline: u64,
}

/// What the stacks of a pCPU take, in bytes.
pub(crate) const STACKS_BYTES: u64 = Stack::room(STACK_BYTES) + Descriptors::STACKS_BYTES;

static PLAN: Once<Plan> = Once::new();
/// Where the others go on.
static ENTRY: Once<fn() -> !> = Once::new();
/// How many processors have arrived, the first one included.
static ARRIVED: AtomicUsize = AtomicUsize::new(1);

/// Makes the processor that runs this the first pCPU: descriptors, interrupt table, local APIC. It must run
/// on `stack`. Once.
///
/// # Errors
/// When the heap is used up.
///
/// # Safety
/// After [`paging::install`] and [`cpu::set_up`], with interrupts off; the firmware's descriptor tables are
/// no longer used.
pub unsafe fn init(features: &Features, stack: Stack) -> Result<(), Refusal> {
    let descriptors = Descriptors::new()?;
    interrupts::init();
    interrupts::disable_legacy_controllers();
    // SAFETY: this is the only processor, and all that is loaded is its own.
    unsafe {
        descriptors.load();
        interrupts::load();
        apic::init(features);
        let pcpu = Pcpu::new(0, apic::id(), stack, descriptors);
        pcpu.make_current();
        pcpu.enlist();
    }
    Ok(())
}

/// Says which processors [`start`] is to start (that of this pCPU may be among them), and which
/// [`TRAMPOLINE_PAGES`] pages below 1 MiB it may use for that.
///
/// # Errors
/// When the pages are not where they must be.
///
/// # Safety
/// The pages must be RAM that belongs to the caller, and nobody's from here on.
unsafe fn prepare(apic_ids: &[u32], trampoline: HostPhys) -> Result<(), Refusal> {
    let end = trampoline.0.checked_add(TRAMPOLINE_PAGES * PAGE_SIZE);
    if trampoline.0 == 0 || !trampoline.is_aligned(PAGE_SIZE) || end.is_none_or(|end| end > REAL_MODE_END) {
        return Err(Refusal::new(
            "processors",
            format!("their start-up code cannot be at {trampoline}"),
            "it needs 3 pages below 1 MiB",
        ));
    }
    PLAN.call_once(|| Plan { apic_ids: apic_ids.to_vec(), trampoline: trampoline.0 });
    Ok(())
}

/// Starts the processors with these APIC IDs (that of this pCPU is among them); each calls `entry` as a pCPU,
/// on its own stack, with interrupts off. One that does not come in time costs a line in the log. Returns how
/// many pCPUs there are. Once, on the first.
///
/// # Errors
/// When the heap is used up, or the pages are not where they must be.
///
/// # Safety
/// `trampoline`: pages as [`TRAMPOLINE`] asks for them, which must be RAM that belongs to the
/// caller, and nobody's from here on.
pub unsafe fn start(
    apic_ids: &[u32],
    trampoline: Option<HostPhys>,
    entry: fn() -> !,
) -> Result<usize, Refusal> {
    match trampoline {
        _ if apic_ids.len() <= 1 => Ok(1),
        None => {
            log::warn!("processors: no memory below 1 MiB to start them with; only the first one is used");
            Ok(1)
        }
        Some(pages) => {
            // SAFETY: by the caller's promise.
            unsafe { prepare(apic_ids, pages)? };
            start_planned(entry)
        }
    }
}

/// As [`start`], with what [`prepare`] was told.
fn start_planned(entry: fn() -> !) -> Result<usize, Refusal> {
    let Some(plan) = PLAN.get() else {
        return Err(Refusal::new(
            "processors",
            "nobody said where their start-up code may be",
            "call smp::prepare first",
        ));
    };
    ENTRY.call_once(|| entry);
    let features = Features::read();
    let data = (plan.trampoline + PAGE_SIZE) as *mut Data;
    let low_root = plan.trampoline + 2 * PAGE_SIZE;
    let code_length = (&raw const TRAMPOLINE_END as usize) - (&raw const TRAMPOLINE_CODE as usize);
    let long_mode = (&raw const TRAMPOLINE_LONG as u64) - (&raw const TRAMPOLINE_CODE as u64);
    // SAFETY: `prepare` was promised the pages; the code fits in one, as do `Data` and the table.
    unsafe {
        core::ptr::copy_nonoverlapping(&raw const TRAMPOLINE_CODE, plan.trampoline as *mut u8, code_length);
        core::ptr::copy_nonoverlapping(paging::root() as *const u8, low_root as *mut u8, PAGE_SIZE as usize);
        paging::make_code(plan.trampoline)?;
    }
    let mut cr4 = Cr4::PAE;
    cr4.set(Cr4::LA57, cpu::five_levels());
    let gdt = data as u64 + core::mem::offset_of!(Data, gdt) as u64;
    let me = apic::id();
    for &apic_id in plan.apic_ids.iter().filter(|id| **id != me) {
        let count = pcpu::count();
        if count == MAX_PCPUS {
            log::warn!("processors: there are more than {MAX_PCPUS}; the others stay off");
            break;
        }
        let (stack, descriptors) = (stack::new(STACK_BYTES)?, Descriptors::new()?);
        let pcpu = Pcpu::new(count as u32, apic_id, stack, descriptors);
        pcpu.enlist();
        let values = Data {
            gdt_limit: (size_of::<[u64; 3]>() - 1) as u16,
            gdt_base: [gdt as u16, (gdt >> 16) as u16],
            reserved: 0,
            long_mode: (plan.trampoline + long_mode) as u32,
            long_mode_selector: u32::from(CODE_SELECTOR),
            low_root: low_root as u32,
            cr4: cr4.bits() as u32,
            gdt: [0, CODE_64, 0],
            root: paging::root(),
            stack: stack.top,
            pcpu: core::ptr::from_ref(pcpu) as u64,
            arrive: arrive as *const () as u64,
        };
        // SAFETY: the page is ours, and no processor reads it now: the last one has arrived or is in reset.
        unsafe { data.write_volatile(values) };
        if !wake(apic_id, (plan.trampoline / PAGE_SIZE) as u8, count + 1) {
            apic::send_init(apic_id);
            pcpu.strike();
            // It may have come just before the reset.
            ARRIVED.store(count, Ordering::Release);
            log::warn!(
                "processor with APIC ID {apic_id}: it does not start; switch it off in the firmware set-up, or reset"
            );
        }
    }
    debug_assert!(features.x2apic);
    Ok(pcpu::count())
}

/// Starts one processor; says whether it arrived as the `number`th.
fn wake(apic_id: u32, page: u8, number: usize) -> bool {
    let arrived = || ARRIVED.load(Ordering::Acquire) == number;
    apic::send_init(apic_id);
    time::spin_for(INIT_NS);
    apic::send_startup(apic_id, page);
    if time::spin_until(STARTUP_NS, arrived) {
        return true;
    }
    apic::send_startup(apic_id, page);
    time::spin_until(ARRIVAL_NS, arrived)
}

/// Where a processor's Rust code begins.
extern "sysv64" fn arrive(pcpu: &'static Pcpu) -> ! {
    let features = Features::read();
    // SAFETY: the trampoline has put this processor on its own stack and on the hypervisor's page tables;
    // `pcpu` was made for it. The firmware's first processor has the same features.
    unsafe {
        cpu::set_up(&features);
        pcpu.descriptors.load();
        pcpu.make_current();
        interrupts::load();
        apic::init(&features);
    }
    ARRIVED.fetch_add(1, Ordering::AcqRel);
    match ENTRY.get() {
        Some(entry) => entry(),
        None => cpu::halt(),
    }
}
