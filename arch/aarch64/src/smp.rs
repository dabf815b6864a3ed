// SPDX-License-Identifier: MIT OR Apache-2.0
//! All processors: the first one made a pCPU, the others started.
//!
//! **Principle.** A processor is started by PSCI CPU_ON, one after the other. It begins at EL2 with the MMU off in
//! the image's own code, gets the registers that all have, and calls `arrive` with its stacks.
//! **Invariant.** A processor that does not come in time is left out, and switches itself off should it come later:
//! who is first, it or the one that waits for it, decides by one atomic exchange.
//!
//! Source: Arm Power State Coordination Interface (DEN 0022), 5.6 (CPU_ON), 6.4 (initial state).

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use pasidon_arch_common::pcpus::Trampoline;
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use spin::Once;

use crate::cpu::{self, Control, Features, Likeness};
use crate::firmware_tables::Madt;
use crate::pcpu::{self, MAX_PCPUS, Pcpu};
use crate::stack::{self, EXCEPTION_STACK_BYTES, STACK_BYTES, Stack};
use crate::{cache, gic, interrupts, paging, power, time};

/// What processors are started with: no memory of the firmware's, the code is in the image.
pub const TRAMPOLINE: Option<Trampoline> = None;
/// How long it may take a processor to arrive: much, since a simulated one may have to wait for its turn.
const ARRIVAL_NS: u64 = 3_000_000_000;

/// States of [`Pcpu::arrival`].
mod arrival {
    /// It is waited for.
    pub const AWAITED: u8 = 0;
    /// It has come.
    pub const ARRIVED: u8 = 1;
    /// Nobody waits any more.
    pub const GIVEN_UP: u8 = 2;
    /// It has come, but is another kind of processor than the first. What is above this says where they differ.
    pub const DIFFERENT: u8 = 3;
}

/// What a processor starts with, read with the MMU off; the offsets are in its code.
#[repr(C)]
struct StartUp {
    control: Control,
    pcpu: *const Pcpu,
    arrive: extern "C" fn(&'static Pcpu) -> !,
    exception_top: u64,
    stack_top: u64,
}

// X0: the `StartUp`.
global_asm!(
    ".p2align 6",
    ".globl pasidon_start, pasidon_start_end",
    "pasidon_start:",
    "msr daifset, #0xf",
    "msr spsel, #1",
    "mov x19, x0",
    "bl pasidon_switch",
    "ldr x0, [x19, #{pcpu}]",
    "ldr x1, [x19, #{arrive}]",
    "ldr x2, [x19, #{exception_top}]",
    "ldr x3, [x19, #{stack_top}]",
    "mov sp, x2",
    "msr spsel, #0",
    "mov sp, x3",
    "msr tpidr_el2, x0",
    "mov x29, xzr",
    "mov x30, xzr",
    "blr x1",
    "brk #1",
    "pasidon_start_end:",
    pcpu = const offset_of!(StartUp, pcpu),
    arrive = const offset_of!(StartUp, arrive),
    exception_top = const offset_of!(StartUp, exception_top),
    stack_top = const offset_of!(StartUp, stack_top),
);

unsafe extern "C" {
    /// Only its address is used, and that of its end.
    #[link_name = "pasidon_start"]
    static START: u8;
    #[link_name = "pasidon_start_end"]
    static START_END: u8;
}

/// What the stacks of a pCPU take, in bytes.
pub(crate) const STACKS_BYTES: u64 = Stack::room(STACK_BYTES) + Stack::room(EXCEPTION_STACK_BYTES);

/// Where the others go on.
static ENTRY: Once<fn() -> !> = Once::new();
/// The kind of processor that the first one is.
static FIRST: Once<Likeness> = Once::new();

/// Makes the processor that runs this the first pCPU: exception stack, interrupt controller. It must run on
/// `stack`. Once.
///
/// # Errors
/// When the heap is used up, or there is no interrupt controller.
///
/// # Safety
/// After [`paging::install`] and [`time::init`], with everything masked.
pub unsafe fn init(madt: &Madt, stack: Stack) -> Result<(), Refusal> {
    let exception_stack = stack::new(EXCEPTION_STACK_BYTES)?;
    let redistributor = gic::redistributor_of(madt, cpu::mpidr())?;
    let pcpu = Pcpu::new(0, cpu::mpidr(), redistributor, [stack, exception_stack]);
    pcpu.arrival.store(arrival::ARRIVED, Ordering::Relaxed);
    // SAFETY: this is the only processor, and all that is set up is its own.
    unsafe {
        stack::exceptions_on(exception_stack);
        pcpu.make_current();
        pcpu.enlist();
        gic::init_pcpu(redistributor)?;
        interrupts::unmask_stop();
    }
    Ok(())
}

/// Starts the other processors of the MADT; each calls `entry` as a pCPU, on its own stack, with interrupts off.
/// One that does not come in time, or is not like the first, costs a line in the log. Returns how many pCPUs there
/// are. Once, on the first.
///
/// # Errors
/// When the heap is used up.
///
/// # Safety
/// After [`init`].
pub unsafe fn start(madt: &Madt, _trampoline: Option<HostPhys>, entry: fn() -> !) -> Result<usize, Refusal> {
    ENTRY.call_once(|| entry);
    FIRST.call_once(Likeness::read);
    let me = cpu::mpidr();
    let others: Vec<u64> =
        madt.processors.iter().map(|processor| processor.mpidr).filter(|mpidr| *mpidr != me).collect();
    if others.is_empty() {
        return Ok(pcpu::count());
    }
    if let Err(refusal) = power::check_psci("processors") {
        log::warn!("{refusal}; only the first one is used");
        return Ok(pcpu::count());
    }
    let control = Control::new(&Features::read(), paging::root());
    let code = (&raw const START) as u64;
    let length = (&raw const START_END) as u64 - code;
    // SAFETY: the image's own code, which is fetched without the MMU.
    unsafe { cache::clean(code, length as usize) };
    for mpidr in others {
        let count = pcpu::count();
        if count == MAX_PCPUS {
            log::warn!("processors: there are more than {MAX_PCPUS}; the others stay off");
            break;
        }
        let redistributor = match gic::redistributor_of(madt, mpidr) {
            Ok(redistributor) => redistributor,
            Err(refusal) => {
                log::warn!("{refusal}; it stays off");
                continue;
            }
        };
        let (stack, exception_stack) = (stack::new(STACK_BYTES)?, stack::new(EXCEPTION_STACK_BYTES)?);
        let pcpu = Pcpu::new(count as u32, mpidr, redistributor, [stack, exception_stack]);
        pcpu.enlist();
        let start_up: &'static StartUp = Box::leak(Box::new(StartUp {
            control,
            pcpu,
            arrive,
            exception_top: exception_stack.top,
            stack_top: stack.top,
        }));
        let context = core::ptr::from_ref(start_up) as u64;
        // SAFETY: `start_up` is read without caches, and is never freed. The code is made for being started.
        let started = unsafe {
            cache::clean(context, size_of::<StartUp>());
            power::start_processor(mpidr, code, context)
        };
        let decided = || pcpu.arrival.load(Ordering::Acquire) != arrival::AWAITED;
        let why = match started {
            Ok(()) => {
                time::spin_until(ARRIVAL_NS, decided);
                // Nobody waits from here on; it may have decided just before.
                decide(pcpu, arrival::GIVEN_UP);
                match pcpu.arrival.load(Ordering::Acquire) {
                    arrival::ARRIVED => continue,
                    arrival::GIVEN_UP => {
                        "it does not arrive; switch it off in the firmware set-up, or reset".into()
                    }
                    different => format!(
                        "its {} is not that of the first processor; guests run on processors of one kind only",
                        Likeness::name((different - arrival::DIFFERENT).into())
                    ),
                }
            }
            Err(error) => format!("PSCI: {error}; switch it off in the firmware set-up, or reset"),
        };
        pcpu.strike();
        log::warn!("processor with MPIDR {mpidr:#x} stays off: {why}");
    }
    Ok(pcpu::count())
}

/// Ends the wait for a processor in that state; says whether nothing else had ended it before.
fn decide(pcpu: &Pcpu, state: u8) -> bool {
    pcpu.arrival.compare_exchange(arrival::AWAITED, state, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

/// Where a processor's Rust code begins.
extern "C" fn arrive(pcpu: &'static Pcpu) -> ! {
    let difference = FIRST.get().and_then(|first| first.difference(&Likeness::read()));
    if let Some(place) = difference {
        // The places are few; and where nobody waits any more, it leaves all the same.
        decide(pcpu, arrival::DIFFERENT.saturating_add(place as u8));
        power::leave();
    }
    // SAFETY: the start-up code has put this processor on its own stacks and on the hypervisor's page tables;
    // `pcpu` was made for it.
    let ready = unsafe { gic::init_pcpu(pcpu.redistributor) };
    if ready.is_err() || !decide(pcpu, arrival::ARRIVED) {
        power::leave();
    }
    // SAFETY: as above.
    unsafe { interrupts::unmask_stop() };
    match ENTRY.get() {
        Some(entry) => entry(),
        None => cpu::halt(),
    }
}
