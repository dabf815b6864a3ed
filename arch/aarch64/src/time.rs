// SPDX-License-Identifier: MIT OR Apache-2.0
//! Time: the physical count of the generic timer, whose rate the firmware states, and the timer of EL2.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D12 (generic timer).

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, Readable};
use pasidon_arch_common::clock::{Clock, Counter};
use pasidon_kernel::base::refusal::Refusal;

use crate::vector::{PPIS, Vector};

/// Rates that a count may have.
const SANE_HZ: core::ops::RangeInclusive<u64> = 1_000_000..=20_000_000_000;

static CLOCK: Clock<PhysicalCount> = Clock::unknown();
/// INTID of the timer's interrupt.
static VECTOR: AtomicU32 = AtomicU32::new(0);
/// INTID of the timer that guests have.
static VIRTUAL: AtomicU32 = AtomicU32::new(27);

/// The physical count, CNTPCT_EL0, not read before what comes before is done.
pub fn count() -> u64 {
    let count: u64;
    // SAFETY: reading it changes nothing, and EL2 may always.
    unsafe { asm!("isb", "mrs {}, cntpct_el0", out(reg) count, options(nostack, preserves_flags)) };
    count
}

/// [`count`], as the hypervisor's time.
enum PhysicalCount {}

impl Counter for PhysicalCount {
    fn count() -> u64 {
        count()
    }
}

/// Counts per second; 0 before [`init`].
pub fn hz() -> u64 {
    CLOCK.hz()
}

/// Nanoseconds since the hypervisor's start; 0 before [`init`].
pub fn now_ns() -> u64 {
    CLOCK.now_ns()
}

/// The wall clock, see [`Clock::unix_ns`].
pub fn unix_ns() -> u64 {
    CLOCK.unix_ns()
}

/// The same in whole seconds.
pub fn unix_seconds() -> u64 {
    const NS: u64 = 1_000_000_000;
    unix_ns() / NS
}

/// Says what the time is: the wall clock is `unix_ns` now. Before [`init`].
pub fn set_wall_clock(unix_ns: u64) {
    CLOCK.set_wall_clock(unix_ns);
}

/// The interrupt of [`arm_timer`]: private to each pCPU, and enabled there.
pub fn vector() -> Vector {
    VECTOR.load(Ordering::Relaxed)
}

/// The interrupt of the guests' timer: private to each pCPU.
pub fn virtual_timer() -> Vector {
    VIRTUAL.load(Ordering::Relaxed)
}

/// Says which that is. On the first processor.
pub(crate) fn set_virtual_timer(vector: Vector) {
    VIRTUAL.store(vector, Ordering::Relaxed);
}

/// The time of [`now_ns`] at which the count is, or was, this.
pub fn ns_at(count: u64) -> u64 {
    CLOCK.ns_at(count)
}

/// The whole counts of so many nanoseconds.
pub fn ticks(ns: u64) -> u64 {
    CLOCK.ticks(ns)
}

/// Takes the rate that the firmware states, and the INTID of EL2's timer. On the first processor.
///
/// # Errors
/// When they are none that can be.
pub fn init(vector: Vector) -> Result<(), Refusal> {
    if !PPIS.contains(&vector) {
        return Err(Refusal::new(
            "clock",
            alloc::format!(
                "the GTDT states INTID {vector} for the timer of EL2, which is none of a processor's own"
            ),
            "update the firmware",
        ));
    }
    VECTOR.store(vector, Ordering::Relaxed);
    let hz = CNTFRQ_EL0.get();
    if !SANE_HZ.contains(&hz) {
        return Err(Refusal::new(
            "clock",
            alloc::format!("the firmware states a rate of {hz} Hz for the generic timer (CNTFRQ_EL0)"),
            "update the firmware",
        ));
    }
    CLOCK.set_rate(hz, count());
    Ok(())
}

/// Arms this pCPU's timer, that of EL2, for a time of [`now_ns`], or disarms it. A deadline in the past fires at
/// once. The interrupt stays pending until the timer is armed for later or disarmed, so its handler has to do one of
/// these.
pub fn arm_timer(deadline_ns: Option<u64>) {
    const ENABLE: u64 = 1 << 0;
    match deadline_ns {
        // SAFETY: the timer is the hypervisor's alone.
        Some(ns) => unsafe {
            asm!(
                "msr cnthp_cval_el2, {}", "msr cnthp_ctl_el2, {}", "isb",
                in(reg) CLOCK.count_at(ns), in(reg) ENABLE, options(nostack, preserves_flags)
            );
        },
        // SAFETY: as above.
        None => unsafe { asm!("msr cnthp_ctl_el2, xzr", "isb", options(nostack, preserves_flags)) },
    }
}

/// Waits, for steps of hardware that only take time.
pub fn spin_for(ns: u64) {
    CLOCK.spin_until(ns, || false);
}

/// Waits until `done`, at most so long; says whether it came.
pub fn spin_until(ns: u64, done: impl Fn() -> bool) -> bool {
    CLOCK.spin_until(ns, done)
}
