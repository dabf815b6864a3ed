// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local APIC's timer, in ticks of the guest's TSC.
//!
//! **Principle.** The timer has no clock: whoever calls says what the TSC reads. At a divide value of 1
//! one count is one tick of the TSC. A timer that fell behind catches up in one step.
//!
//! Source: Intel SDM volume 3A, section 11.5.4 "APIC Timer".

/// How the timer runs: LVT timer bits 18:17.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    pub(super) fn from_lvt(lvt: u32) -> Self {
        match (lvt >> 17) & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            // 3 is reserved; the register write refuses or masks it.
            _ => Self::TscDeadline,
        }
    }
}

/// Shortest period in ticks. Without it a guest could make its vCPU do nothing but exit; it would harm
/// itself only, but look like a hang.
pub(super) const MIN_PERIOD: u64 = 100_000;

#[derive(Clone, Debug)]
pub(super) struct Timer {
    mode: Mode,
    /// TSC value at which it expires; `None` while stopped.
    deadline: Option<u64>,
    initial_count: u32,
    divide_configuration: u32,
}

impl Timer {
    pub(super) const fn new() -> Self {
        Self { mode: Mode::OneShot, deadline: None, initial_count: 0, divide_configuration: 0 }
    }

    /// log2 of the divide value: DCR bits 3, 1, 0 count 2, 4, … 128, 1.
    fn shift(&self) -> u32 {
        let code = (self.divide_configuration & 3) | ((self.divide_configuration >> 1) & 4);
        (code + 1) & 7
    }

    fn period(&self) -> u64 {
        (u64::from(self.initial_count) << self.shift()).max(MIN_PERIOD)
    }

    pub(super) const fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    pub(super) const fn initial_count(&self) -> u32 {
        self.initial_count
    }

    pub(super) const fn divide_configuration(&self) -> u32 {
        self.divide_configuration
    }

    /// Entering or leaving TSC-deadline mode stops the timer.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if (mode == Mode::TscDeadline) != (self.mode == Mode::TscDeadline) {
            self.deadline = None;
            self.initial_count = 0;
        }
        self.mode = mode;
    }

    pub(super) fn set_initial_count(&mut self, count: u32, now: u64) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial_count = count;
        self.deadline = match (count, self.mode) {
            (0, _) => None,
            (_, Mode::Periodic) => Some(now.saturating_add(self.period())),
            _ => Some(now.saturating_add(u64::from(count) << self.shift())),
        };
    }

    pub(super) fn current_count(&self, now: u64) -> u32 {
        match self.deadline {
            Some(deadline) if self.mode != Mode::TscDeadline => {
                let count = deadline.saturating_sub(now) >> self.shift();
                u32::try_from(count).unwrap_or(u32::MAX)
            }
            _ => 0,
        }
    }

    /// A running count keeps its value and goes on at the new pace.
    pub(super) fn set_divide_configuration(&mut self, value: u32, now: u64) {
        let count = u64::from(self.current_count(now));
        self.divide_configuration = value & 0xb;
        if self.mode != Mode::TscDeadline && self.deadline.is_some() {
            self.deadline = Some(now.saturating_add(count << self.shift()));
        }
    }

    /// IA32_TSC_DEADLINE as it reads: 0 while not armed.
    pub(super) fn tsc_deadline(&self) -> u64 {
        match self.mode {
            Mode::TscDeadline => self.deadline.unwrap_or(0),
            _ => 0,
        }
    }

    /// A write of IA32_TSC_DEADLINE; ignored in the other modes.
    pub(super) fn set_tsc_deadline(&mut self, value: u64) {
        if self.mode == Mode::TscDeadline {
            self.deadline = (value != 0).then_some(value);
        }
    }

    /// The guest's TSC reads `delta` more than before, modulo 2⁶⁴. What counts down goes on as it was; a deadline is one
    /// of the TSC.
    pub(super) fn tsc_moved(&mut self, delta: u64) {
        if self.mode != Mode::TscDeadline {
            self.deadline = self.deadline.map(|deadline| deadline.wrapping_add(delta));
        }
    }

    /// Whether it has expired by `now`. A periodic timer is set to its next period after `now`.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        let Some(deadline) = self.deadline.filter(|d| *d <= now) else {
            return false;
        };
        self.deadline = match self.mode {
            Mode::Periodic => {
                let period = self.period();
                let late = (now - deadline) % period;
                Some(now.saturating_add(period - late))
            }
            _ => None,
        };
        true
    }
}
