// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual timer of a vCPU, mapped: the hardware's timer with its own physical interrupt, which the guest's
//! end of the virtual one deactivates.
//!
//! **Principle.** While a vCPU is on a processor, the physical interrupt is active there exactly while the
//! virtual one is pending or active, so that the hardware raises it again when the guest has ended it and not
//! before. A tick of the guest costs one exit. The timer's registers (CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVOFF_EL2)
//! are switched with the vCPU by the loop.
//! **Invariant.** A processor that no vCPU is on has the physical interrupt inactive, for the next vCPU's timer.
//!
//! Source: Arm DDI 0487 (Arm ARM), section D11.2 (timers) and CNTV_CTL_EL0; Arm IHI 0069, section 6.3 (the HW bit
//! of list registers).

use super::gic::Gic;
use super::layout::intid;

/// CNTV_CTL_EL0.
mod ctl {
    pub const ENABLE: u64 = 1;
    pub const IMASK: u64 = 1 << 1;
    pub const ISTATUS: u64 = 1 << 2;
}

/// What the loop does to the physical interrupt, on the processor that calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Physical {
    /// Nothing.
    Nothing,
    /// Make it active (GICR_ISACTIVER0).
    Activate,
    /// Make it inactive (GICR_ICACTIVER0); it may be so already.
    Deactivate,
}

/// Whether the timer asks for its interrupt: `control` is CNTV_CTL_EL0 as it was read.
pub const fn output(control: u64) -> bool {
    control & (ctl::ENABLE | ctl::IMASK | ctl::ISTATUS) == ctl::ENABLE | ctl::ISTATUS
}

/// The virtual count of a VM: the physical one from its start on, without the time for which it was paused. One for all
/// its vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtualCount {
    /// The physical count at which it was zero.
    start: u64,
    /// For how many counts it stood still since.
    still: u64,
}

impl VirtualCount {
    /// Zero at that physical count.
    pub const fn from_zero_at(start: u64) -> Self {
        Self { start, still: 0 }
    }

    /// Says for how many counts it has stood still since the start, rounded down: then it never goes back.
    pub const fn stood_still(&mut self, counts: u64) {
        self.still = counts;
    }

    /// CNTVOFF_EL2: what it is behind the physical count.
    pub const fn offset(self) -> u64 {
        self.start.wrapping_add(self.still)
    }
}

/// When a timer will ask for its interrupt, in counts of the physical counter: from CNTV_CTL_EL0, CNTV_CVAL_EL0 and
/// the VM's virtual count. `None`: never, as it is. A time that has passed: now.
pub const fn deadline(control: u64, compare: u64, count: VirtualCount) -> Option<u64> {
    if control & (ctl::ENABLE | ctl::IMASK) == ctl::ENABLE {
        // The comparison is of the virtual count; one that far away that the sum wraps never comes.
        compare.checked_add(count.offset())
    } else {
        None
    }
}

/// The virtual timer of one vCPU.
#[derive(Clone, Debug)]
pub struct VirtualTimer {
    vcpu: u16,
    /// The physical interrupt is active on the processor that the vCPU is on, for this timer.
    active: bool,
}

impl VirtualTimer {
    /// The timer of `vcpu`, whose physical interrupt is `physical`.
    pub fn new(gic: &mut Gic, vcpu: u16, physical: u16) -> Self {
        gic.map_physical(vcpu, intid::VIRTUAL_TIMER, Some(physical));
        Self { vcpu, active: false }
    }

    /// The vCPU comes to a processor, before its timer's registers are loaded.
    pub fn load(&mut self, gic: &Gic) -> Physical {
        let (pending, active) = gic.ppi_state(self.vcpu, intid::VIRTUAL_TIMER);
        self.active = pending || active;
        if self.active { Physical::Activate } else { Physical::Nothing }
    }

    /// The physical interrupt was acknowledged while the vCPU is on this processor, and its priority dropped;
    /// it is still active. After [`Gic::sync`].
    pub fn taken(&mut self, gic: &mut Gic) {
        self.active = true;
        gic.set_ppi_line(self.vcpu, intid::VIRTUAL_TIMER, true);
    }

    /// After each exit was answered, before [`Gic::fill`]: `control` is CNTV_CTL_EL0.
    pub fn check(&mut self, gic: &mut Gic, control: u64) -> Physical {
        let (pending, active) = gic.ppi_state(self.vcpu, intid::VIRTUAL_TIMER);
        if !self.active || active {
            return Physical::Nothing;
        }
        if pending && output(control) {
            return Physical::Nothing;
        }
        // Not asked for any more, or ended: by the hardware, or by a register, which the hardware did not see.
        gic.set_ppi_line(self.vcpu, intid::VIRTUAL_TIMER, false);
        self.active = false;
        Physical::Deactivate
    }

    /// The vCPU leaves the processor, after its timer's registers were saved and the timer switched off. After
    /// [`Gic::sync`].
    pub fn unload(&mut self) -> Physical {
        if core::mem::take(&mut self.active) { Physical::Deactivate } else { Physical::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::gic::tests::cpu::Cpu;
    use crate::guest::gic::tests::ready;
    use pasidon_arch_common::clock::{Clock, Counter};
    use pasidon_arch_common::pauses::Pauses;
    use proptest::prelude::*;

    const TIMER: u32 = intid::VIRTUAL_TIMER;
    const PHYSICAL: u16 = 27;

    #[test]
    fn the_output_needs_all_three_bits() {
        assert!(output(0b101));
        for quiet in [0b000, 0b001, 0b100, 0b111, 0b110] {
            assert!(!output(quiet));
        }
        let count = VirtualCount::from_zero_at(20);
        assert_eq!(deadline(1, 100, count), Some(120));
        assert_eq!((deadline(0, 100, count), deadline(3, 100, count)), (None, None));
        assert_eq!(deadline(1, u64::MAX, count), None);
    }

    #[test]
    fn a_pause_moves_the_wake_of_a_timer_by_its_length() {
        let mut count = VirtualCount::from_zero_at(1000);
        // Due 40 counts on; a pause from 1010 to 1510 leaves 30 of them.
        assert_eq!(deadline(1, 40, count), Some(1040));
        count.stood_still(500);
        assert_eq!((count.offset(), deadline(1, 40, count)), (1500, Some(1510 + 30)));
        // The account is of all pauses, not of the last one.
        count.stood_still(700);
        assert_eq!(count.offset(), 1700);
    }

    /// A counter that is not looked at.
    struct Stopped;

    impl Counter for Stopped {
        fn count() -> u64 {
            0
        }
    }

    proptest! {
        #[test]
        fn virtual_time_is_what_the_guest_could_run_for_whatever_the_rate(
            hz in 1_000_000u64..=1_000_000_000,
            start in 0u64..1 << 50,
            // Counts that it runs, of which the last ones are the way out of the guest; counts of the pause.
            lives in proptest::collection::vec((100u64..1 << 40, 0u64..1 << 40), 1..20),
        ) {
            let clock = Clock::<Stopped>::unknown();
            clock.set_rate(hz, 0);
            let pauses = Pauses::new();
            let mut count = VirtualCount::from_zero_at(start);
            let (mut physical, mut ran) = (start, 0);
            for (n, (run, pause)) in lives.into_iter().enumerate() {
                let before = physical.wrapping_sub(count.offset());
                physical += run;
                ran += run;
                pauses.begin(clock.ns_at(physical));
                physical += pause;
                pauses.end(clock.ns_at(physical));
                count.stood_still(clock.ticks(pauses.total_ns()));
                let now = physical.wrapping_sub(count.offset());
                prop_assert!(now > before);
                // Nanoseconds are rounded down, and so are counts; the clock's rate is right to 2^-32 of a nanosecond
                // for each count.
                let drift = (physical - start) >> 32;
                prop_assert!(now.abs_diff(ran) <= 2 * (n as u64 + 1) + drift, "{} and {}", now, ran);
            }
        }
    }

    /// A processor with the physical interrupt of its timer, and a guest with its own.
    struct Rig {
        gic: Gic,
        cpu: Cpu,
        timer: VirtualTimer,
        /// The guest's registers: enabled, masked, and the compared value.
        enabled: bool,
        masked: bool,
        compare: u64,
        now: u64,
        physical_active: bool,
        loaded: bool,
        /// The guest is in its handler.
        handling: bool,
    }

    impl Rig {
        fn new() -> Self {
            let mut gic = ready(1, &[TIMER]);
            let timer = VirtualTimer::new(&mut gic, 0, PHYSICAL);
            let mut cpu = Cpu::new(0, 4);
            cpu.enter(&mut gic);
            Self {
                gic,
                cpu,
                timer,
                enabled: false,
                masked: false,
                compare: 0,
                now: 0,
                physical_active: false,
                loaded: true,
                handling: false,
            }
        }

        fn control(&self) -> u64 {
            let bit = |set: bool, bit: u64| if set { bit } else { 0 };
            bit(self.enabled, ctl::ENABLE)
                | bit(self.masked, ctl::IMASK)
                | bit(self.enabled && self.now >= self.compare, ctl::ISTATUS)
        }

        fn physical(&mut self, what: Physical) {
            match what {
                Physical::Nothing => {}
                Physical::Activate => self.physical_active = true,
                Physical::Deactivate => self.physical_active = false,
            }
        }

        /// One exit, whatever its cause, and the entry after it.
        fn turn(&mut self, taken: bool) {
            self.cpu.exit(&mut self.gic);
            if taken {
                self.physical_active = true;
                self.timer.taken(&mut self.gic);
            }
            let control = self.control();
            let what = self.timer.check(&mut self.gic, control);
            self.physical(what);
            let (pending, active) = self.gic.ppi_state(0, TIMER);
            assert_eq!(self.physical_active, pending || active, "active exactly while it is needed");
            self.cpu.enter(&mut self.gic);
        }

        /// The guest ends what it handles; the hardware deactivates the physical interrupt with it.
        fn end(&mut self) {
            self.cpu.end(TIMER);
            self.handling = false;
            if !self.cpu.deactivated.is_empty() {
                self.cpu.deactivated.clear();
                self.physical_active = false;
            }
        }

        /// What the hardware does while the guest runs: raises the physical interrupt.
        fn settle(&mut self) {
            while self.loaded && output(self.control()) && !self.physical_active {
                self.turn(true);
            }
        }

        fn run(&mut self, op: u8, value: u8) {
            if !self.loaded {
                self.now += u64::from(value);
                if op > 5 {
                    let what = self.timer.load(&self.gic);
                    self.physical(what);
                    self.loaded = true;
                    self.cpu.enter(&mut self.gic);
                }
                return self.settle();
            }
            match op {
                0 => self.enabled = value > 32,
                1 => self.masked = value > 192,
                2 => self.compare = self.now + u64::from(value),
                3 => self.now += u64::from(value),
                4 if !self.handling => self.handling = self.cpu.acknowledge() == Some(TIMER),
                5 if self.handling => self.end(),
                6 => self.turn(false),
                7 => {
                    self.cpu.exit(&mut self.gic);
                    let what = self.timer.unload();
                    self.physical(what);
                    assert!(!self.physical_active, "free for the next vCPU");
                    self.loaded = false;
                }
                // The guest pokes at the state of the interrupt.
                8 if !self.handling => {
                    self.cpu.exit(&mut self.gic);
                    let bank = if value & 1 == 0 { 0x280 } else { 0x380 };
                    crate::guest::gic::tests::set(&mut self.gic, bank, TIMER, 1 << TIMER);
                    let control = self.control();
                    let what = self.timer.check(&mut self.gic, control);
                    self.physical(what);
                    self.cpu.enter(&mut self.gic);
                }
                _ => {}
            }
            self.settle();
        }
    }

    #[test]
    fn a_tick_costs_one_exit() {
        let mut rig = Rig::new();
        rig.enabled = true;
        for tick in 1..5 {
            rig.compare = tick * 10;
            rig.now = tick * 10;
            rig.settle();
            assert_eq!(rig.cpu.acknowledge(), Some(TIMER));
            rig.compare = u64::MAX;
            rig.end();
            assert!(!rig.cpu.maintenance() && !rig.physical_active);
        }
    }

    #[test]
    fn ending_it_by_register_lets_it_come_again() {
        let mut rig = Rig::new();
        rig.enabled = true;
        rig.settle();
        assert_eq!(rig.cpu.acknowledge(), Some(TIMER));
        rig.cpu.exit(&mut rig.gic);
        crate::guest::gic::tests::set(&mut rig.gic, 0x380, TIMER, 1 << TIMER);
        let control = rig.control();
        assert_eq!(rig.timer.check(&mut rig.gic, control), Physical::Deactivate);
    }

    proptest! {
        #[test]
        fn no_tick_is_lost_and_the_processor_is_left_clean(
            ops in proptest::collection::vec((0u8..9, any::<u8>()), 0..200),
        ) {
            let mut rig = Rig::new();
            for (op, value) in ops {
                rig.run(op, value);
            }
            // Whatever happened, a timer that asks now is heard.
            if !rig.loaded {
                rig.run(6, 0);
            }
            if rig.handling {
                rig.end();
            }
            (rig.enabled, rig.masked, rig.compare) = (true, false, 0);
            rig.settle();
            prop_assert_eq!(rig.cpu.acknowledge(), Some(TIMER));
            // And one that does not is quiet, after what was already told.
            rig.enabled = false;
            rig.end();
            rig.turn(false);
            prop_assert_eq!(rig.cpu.acknowledge(), None);
            prop_assert!(!rig.physical_active);
        }
    }
}
