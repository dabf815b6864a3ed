// SPDX-License-Identifier: MIT OR Apache-2.0
//! Time: the TSC, measured once against a clock of known rate.
//!
//! **Principle.** All pCPUs' TSCs are taken to run at one rate from one start, as the machines in question
//! have them; nothing writes to a TSC.
//!
//! Source: ACPI 6.5, 4.8.3.3 (power-management timer); IA-PC HPET specification 1.0a, 2.3.

use core::arch::x86_64::_rdtsc;

use pasidon_arch_common::clock::{Clock, Counter};
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use x86_64::instructions::port::PortReadOnly;

use crate::firmware_tables::ReferenceClock;
use crate::paging;

/// Rate of the power-management timer.
const PM_TIMER_HZ: u64 = 3_579_545;
/// How long rates are measured.
const MEASURE_NS: u64 = 50_000_000;
/// Pairs of readings at each end of the measurement, of which the closest one counts.
const PAIRS: usize = 16;
/// How often a clock may be read without moving before it counts as standing still.
const STUCK: u32 = 1_000_000;
/// Rates that a TSC may have.
const SANE_HZ: core::ops::RangeInclusive<u64> = 10_000_000..=20_000_000_000;

static CLOCK: Clock<Tsc> = Clock::unknown();

/// The TSC.
pub fn tsc() -> u64 {
    // SAFETY: every processor with long mode has a TSC, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// [`tsc`], as the hypervisor's time.
enum Tsc {}

impl Counter for Tsc {
    fn count() -> u64 {
        tsc()
    }
}

/// Ticks of the TSC per second; 0 before [`init`].
pub fn tsc_hz() -> u64 {
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

/// The TSC at a time of [`now_ns`]; the maximum where that lies beyond it.
pub fn tsc_at(ns: u64) -> u64 {
    CLOCK.count_at(ns)
}

/// Says what the time is: the wall clock is `unix_ns` now. Before [`init`].
pub fn set_wall_clock(unix_ns: u64) {
    CLOCK.set_wall_clock(unix_ns);
}

/// A clock that the TSC is measured by.
struct Reference {
    kind: ReferenceClock,
    hz: u64,
}

impl Reference {
    fn open(kind: ReferenceClock) -> Result<Self, Refusal> {
        /// General capabilities; the counter's period in femtoseconds is in the upper half.
        const CAPABILITIES: usize = 0;
        const CONFIGURATION: usize = 0x10;
        const ENABLE_CNF: u32 = 1 << 0;
        const LENGTH: u64 = 0x400;
        const FS_PER_SECOND: u64 = 1_000_000_000_000_000;
        /// Slowest counter that the specification allows.
        const MAX_PERIOD_FS: u64 = 100_000_000;
        match kind {
            ReferenceClock::PmTimer { .. } => Ok(Self { kind, hz: PM_TIMER_HZ }),
            ReferenceClock::Hpet { base } => {
                let registers = paging::map_device(HostPhys(base), LENGTH)?;
                // SAFETY: just mapped, uncached, for this length; the registers are aligned, and counting on
                // has no other effect.
                let period = unsafe {
                    let configuration = registers.add(CONFIGURATION).cast::<u32>();
                    configuration.write_volatile(configuration.read_volatile() | ENABLE_CNF);
                    u64::from(registers.add(CAPABILITIES + 4).cast::<u32>().read_volatile())
                };
                if period == 0 || period > MAX_PERIOD_FS {
                    return Err(refusal("the HPET states no sensible period"));
                }
                Ok(Self { kind, hz: FS_PER_SECOND / period })
            }
        }
    }

    fn read(&self) -> u32 {
        const MAIN_COUNTER: u64 = 0xf0;
        match self.kind {
            // SAFETY: the FADT names this port for the timer; reading it has no effect.
            ReferenceClock::PmTimer { port, mask } => unsafe { PortReadOnly::<u32>::new(port).read() & mask },
            ReferenceClock::Hpet { base } => {
                // SAFETY: mapped by `open`, aligned; the lower half of the counter is enough.
                unsafe { ((base + MAIN_COUNTER) as *const u32).read_volatile() }
            }
        }
    }

    /// Ticks from one reading to a later one.
    fn between(&self, from: u32, to: u32) -> u64 {
        let mask = match self.kind {
            ReferenceClock::PmTimer { mask, .. } => mask,
            ReferenceClock::Hpet { .. } => u32::MAX,
        };
        u64::from(to.wrapping_sub(from) & mask)
    }

    /// A reading with the TSC and the counter `other` at that moment; the closest of several.
    fn pair(&self, other: &dyn Fn() -> u32) -> (u32, u64, u32) {
        let mut best = (u64::MAX, (0, 0, 0));
        for _ in 0..PAIRS {
            let before = tsc();
            let reading = self.read();
            let counted = other();
            let took = tsc().wrapping_sub(before);
            if took < best.0 {
                best = (took, (reading, before + took / 2, counted));
            }
        }
        best.1
    }
}

fn refusal(why: &str) -> Refusal {
    Refusal::new("clock", why, "use a firmware whose FADT has a PM timer or which describes an HPET")
}

/// Measures the TSC, and along with it a 32-bit counter that counts down (the local APIC timer's), whose
/// rate is returned. On the first processor, with interrupts off; it takes a twentieth of a second.
///
/// # Errors
/// When the clock to measure against stands still, or the result cannot be.
pub fn init(clock: ReferenceClock, countdown: &dyn Fn() -> u32) -> Result<u64, Refusal> {
    let clock = Reference::open(clock)?;
    let wanted = clock.hz * (MEASURE_NS / 1000) / 1_000_000;
    let (first, first_tsc, first_count) = clock.pair(countdown);
    let mut last = first;
    let mut unmoved = 0;
    while clock.between(first, last) < wanted {
        let reading = clock.read();
        unmoved = if reading == last { unmoved + 1 } else { 0 };
        if unmoved > STUCK {
            return Err(refusal("the clock to measure the TSC by stands still"));
        }
        last = reading;
    }
    let (last, last_tsc, last_count) = clock.pair(countdown);
    let ticks = clock.between(first, last).max(1);
    let rate = |counted: u64| {
        let hz = u128::from(counted) * u128::from(clock.hz) / u128::from(ticks);
        u64::try_from(hz).unwrap_or(u64::MAX)
    };
    let hz = rate(last_tsc.wrapping_sub(first_tsc));
    if !SANE_HZ.contains(&hz) {
        return Err(refusal("the TSC's rate cannot be measured"));
    }
    CLOCK.set_rate(hz, first_tsc);
    Ok(rate(u64::from(first_count.wrapping_sub(last_count))))
}

/// Waits, for steps of hardware that only take time.
pub fn spin_for(ns: u64) {
    CLOCK.spin_until(ns, || false);
}

/// Waits until `done`, at most so long; says whether it came.
pub fn spin_until(ns: u64, done: impl Fn() -> bool) -> bool {
    CLOCK.spin_until(ns, done)
}
