// SPDX-License-Identifier: MIT OR Apache-2.0
//! Breakpoints, watchpoints and the control of debug exceptions: what a vCPU set up in them.
//!
//! **Principle.** Accesses are trapped; what was written is kept here and put into the processor while the vCPU is on
//! it. So one guest's never fire in another, and a guest that uses none costs nothing.
//! **Invariant.** What goes into the processor matches at EL1 and EL0 only, and by nothing that is EL2's.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D2 (self-hosted debug), `DBGBCR<n>_EL1`, `DBGWCR<n>_EL1`,
//! MDSCR_EL1, ID_AA64DFR0_EL1.

/// The most of each kind that a processor has.
pub const POINTS_MAX: usize = 16;

/// MDSCR_EL1 bits that a guest may set: software step, EL0's access to the debugger's channel trapped, kernel
/// and monitor debug events. The rest is for external debuggers, which could stop the processor.
mod mdscr {
    pub const SS: u64 = 1;
    pub const TDCC: u64 = 1 << 12;
    pub const KDE: u64 = 1 << 13;
    pub const MDE: u64 = 1 << 15;
    pub const WRITABLE: u64 = SS | TDCC | KDE | MDE;
}

/// `DBGBCR<n>_EL1` and `DBGWCR<n>_EL1`.
mod control {
    pub const E: u64 = 1;
    /// E, PMC, BAS, LBN, BT; without HMC and SSC it is about EL1 and EL0.
    pub const BREAKPOINT: u64 = E | 0b11 << 1 | 0xf << 5 | 0xf << 16 | 0xf << 20;
    pub const BT_SHIFT: u32 = 20;
    /// Types above are about AArch32, VMIDs and EL2's context.
    pub const BT_LAST: u64 = 0b0011;
    /// E, PAC, LSC, BAS, LBN, WT, MASK.
    pub const WATCHPOINT: u64 = E | 0b11 << 1 | 0b11 << 3 | 0xff << 5 | 0xf << 16 | 1 << 20 | 0x1f << 24;
}

/// Which register of a breakpoint or watchpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// `DBGBVR<n>_EL1`.
    BreakpointValue,
    /// `DBGBCR<n>_EL1`.
    BreakpointControl,
    /// `DBGWVR<n>_EL1`.
    WatchpointValue,
    /// `DBGWCR<n>_EL1`.
    WatchpointControl,
}

/// A breakpoint or a watchpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Point {
    /// `DBGBVR<n>_EL1` or `DBGWVR<n>_EL1`.
    pub value: u64,
    /// `DBGBCR<n>_EL1` or `DBGWCR<n>_EL1`.
    pub control: u64,
}

/// How many there are of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Breakpoints.
    pub breakpoints: usize,
    /// Watchpoints.
    pub watchpoints: usize,
}

impl Counts {
    /// From ID_AA64DFR0_EL1.
    pub const fn new(dfr0: u64) -> Self {
        const FIELD: u64 = 0xf;
        const BRPS_SHIFT: u32 = 12;
        const WRPS_SHIFT: u32 = 20;
        Self {
            breakpoints: (dfr0 >> BRPS_SHIFT & FIELD) as usize + 1,
            watchpoints: (dfr0 >> WRPS_SHIFT & FIELD) as usize + 1,
        }
    }
}

/// All of a vCPU.
#[derive(Clone, Debug, Default)]
pub struct Debug {
    mdscr: u64,
    breakpoints: [Point; POINTS_MAX],
    watchpoints: [Point; POINTS_MAX],
    changed: bool,
}

impl Debug {
    /// MDSCR_EL1.
    pub fn control(&self) -> u64 {
        self.mdscr
    }

    /// Sets it.
    pub(super) fn set_control(&mut self, value: u64) {
        self.mdscr = value & mdscr::WRITABLE;
    }

    /// The breakpoints for the processor.
    pub fn breakpoints(&self, counts: Counts) -> &[Point] {
        &self.breakpoints[..counts.breakpoints.min(POINTS_MAX)]
    }

    /// The watchpoints for the processor.
    pub fn watchpoints(&self, counts: Counts) -> &[Point] {
        &self.watchpoints[..counts.watchpoints.min(POINTS_MAX)]
    }

    /// Whether one of them is on.
    pub fn in_use(&self) -> bool {
        let mut all = self.breakpoints.iter().chain(&self.watchpoints);
        all.any(|point| point.control & control::E != 0)
    }

    /// Whether one of them was written since the last call.
    pub fn take_changed(&mut self) -> bool {
        core::mem::take(&mut self.changed)
    }

    /// A register of number `number`; `None` where there is none.
    fn register(&mut self, part: Part, number: usize, counts: Counts) -> Option<&mut u64> {
        let point = match part {
            Part::BreakpointValue | Part::BreakpointControl => {
                self.breakpoints.get_mut(..counts.breakpoints)?.get_mut(number)?
            }
            Part::WatchpointValue | Part::WatchpointControl => {
                self.watchpoints.get_mut(..counts.watchpoints)?.get_mut(number)?
            }
        };
        Some(match part {
            Part::BreakpointValue | Part::WatchpointValue => &mut point.value,
            Part::BreakpointControl | Part::WatchpointControl => &mut point.control,
        })
    }

    /// Reads one.
    pub(super) fn read(&mut self, part: Part, number: usize, counts: Counts) -> Option<u64> {
        self.register(part, number, counts).copied()
    }

    /// Writes one.
    pub(super) fn write(&mut self, part: Part, number: usize, counts: Counts, value: u64) -> Option<()> {
        *self.register(part, number, counts)? = match part {
            Part::BreakpointValue | Part::WatchpointValue => value,
            Part::BreakpointControl => {
                let reserved = value >> control::BT_SHIFT & 0xf > control::BT_LAST;
                // A reserved type behaves as disabled.
                let on = if reserved { 0 } else { control::E };
                value & (control::BREAKPOINT & !control::E | on)
            }
            Part::WatchpointControl => value & control::WATCHPOINT,
        };
        self.changed = true;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARTS: [Part; 4] =
        [Part::BreakpointValue, Part::BreakpointControl, Part::WatchpointValue, Part::WatchpointControl];

    #[test]
    fn there_are_as_many_as_the_processor_has() {
        let counts = Counts::new(0x0030_5006);
        assert_eq!((counts.breakpoints, counts.watchpoints), (6, 4));
        let mut debug = Debug::default();
        for part in PARTS {
            let count = match part {
                Part::BreakpointValue | Part::BreakpointControl => 6,
                _ => 4,
            };
            assert_eq!(debug.write(part, count - 1, counts, 0), Some(()));
            assert_eq!(debug.write(part, count, counts, 0), None);
            assert_eq!(debug.read(part, count, counts), None);
        }
        assert_eq!(Counts::new(u64::MAX).breakpoints, POINTS_MAX);
    }

    #[test]
    fn a_watchpoint_goes_into_the_processor_as_it_was_written() {
        let counts = Counts::new(0x0010_1006);
        let mut debug = Debug::default();
        // Linux: 8 bytes, writes, at EL0.
        let (address, control) = (0xffff_8000_0800_0000, 0xff << 5 | 0b10 << 3 | 0b10 << 1 | 1);
        debug.write(Part::WatchpointValue, 1, counts, address);
        assert!(debug.take_changed() && !debug.in_use());
        debug.write(Part::WatchpointControl, 1, counts, control);
        assert!(debug.take_changed() && debug.in_use() && !debug.take_changed());
        let expected = Point { value: address, control };
        assert_eq!(debug.watchpoints(counts), [Point::default(), expected]);
        assert_eq!(debug.breakpoints(counts), [Point::default(); 2]);
    }

    proptest! {
        #[test]
        fn nothing_matches_at_el2(number in 0..POINTS_MAX, value: u64) {
            const HMC_SSC: u64 = 0b111 << 13;
            let counts = Counts::new(u64::MAX);
            let mut debug = Debug::default();
            for part in PARTS {
                debug.write(part, number, counts, value);
            }
            let (breakpoint, watchpoint) = (debug.breakpoints[number], debug.watchpoints[number]);
            prop_assert_eq!((breakpoint.control | watchpoint.control) & HMC_SSC, 0);
            let kind = breakpoint.control >> 20 & 0xf;
            prop_assert!(kind <= 3 || breakpoint.control & 1 == 0);
        }
    }
}
