// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model's redistributors: the part of them that is about LPIs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Effect, Gic, State};

/// Number of the first LPI.
pub const FIRST_LPI: u32 = 8192;

#[derive(Default)]
pub struct RedistributorModel {
    pub affinity: u32,
    pub number: u32,
    /// GICR_TYPER.PLPIS is clear.
    pub no_lpis: bool,
    pub ctlr: u32,
    /// EnableLPIs cannot be cleared.
    pub sticky: bool,
    /// Reads of GICR_CTLR for which RWP is set.
    waiting: usize,
    propbaser: u64,
    pendbaser: u64,
    /// What it holds of the configuration.
    configuration: BTreeMap<u32, u8>,
    pub pending: BTreeSet<u32>,
}

impl RedistributorModel {
    /// Of the processor with that number, whose affinity is something else.
    pub fn new(number: u32) -> Self {
        Self { affinity: 0x8100_0000 | number << 8, number, ..Self::default() }
    }

    pub const fn takes_lpis(&self) -> bool {
        self.ctlr & 1 != 0
    }

    pub fn read_control(&mut self) -> u32 {
        let waits = self.waiting != 0;
        self.waiting = self.waiting.saturating_sub(1);
        self.ctlr | if waits { 1 << 3 } else { 0 }
    }

    pub fn read(&self, offset: usize) -> u64 {
        match offset {
            0x08 => u64::from(self.affinity) << 32 | u64::from(self.number) << 8 | u64::from(!self.no_lpis),
            0x70 => self.propbaser,
            // PTZ is only ever written.
            0x78 => self.pendbaser & !(1 << 62),
            _ => panic!("read64 of a redistributor {offset:#x}"),
        }
    }

    pub fn write(&mut self, offset: usize, value: u64, snoops: bool) {
        assert!(
            !self.takes_lpis() && self.waiting == 0,
            "{offset:#x} of a redistributor written while it takes LPIs"
        );
        let attributes = 7 << 56 | 0b11 << 10 | 7 << 7;
        let kept = if snoops { value } else { value & !(0b11 << 10) };
        match offset {
            0x70 => {
                assert_eq!(value & !(attributes | 0x000f_ffff_ffff_f000 | 0x1f), 0, "{value:#x}");
                self.propbaser = kept;
            }
            0x78 => {
                assert_eq!(value & !(attributes | 0x000f_ffff_ffff_0000 | 1 << 62), 0, "{value:#x}");
                self.pendbaser = kept;
            }
            _ => panic!("write64 of a redistributor {offset:#x}"),
        }
    }

    /// Where the configuration of an LPI is; `None` where it is out of range.
    fn place(&self, intid: u32) -> Option<u64> {
        let end = 1u32 << ((self.propbaser & 0x1f) + 1);
        let index = u64::from(intid.checked_sub(FIRST_LPI)?);
        (intid < end).then_some((self.propbaser & 0x000f_ffff_ffff_f000) + index)
    }
}

impl Gic {
    pub(super) fn write_control(&self, state: &mut State, number: usize, value: u32) {
        let snoops = state.snoops;
        let redistributor = &mut state.redistributors[number];
        match (redistributor.takes_lpis(), value & 1 != 0) {
            (true, false) if redistributor.sticky => {}
            (true, false) => {
                redistributor.ctlr &= !1;
                redistributor.waiting = 3;
            }
            (false, true) => {
                assert_eq!(redistributor.waiting, 0, "GICR_CTLR.RWP");
                let attributes = if snoops { 1 << 10 | 7 << 7 } else { 1 << 7 };
                for register in [redistributor.propbaser, redistributor.pendbaser] {
                    assert_eq!(register & (7 << 56 | 0b11 << 10 | 7 << 7), attributes);
                }
                let bits = (redistributor.propbaser & 0x1f) + 1;
                assert!(bits >= 14, "all LPIs are out of range");
                assert_ne!(redistributor.pendbaser >> 62 & 1, 0, "PTZ");
                redistributor.ctlr |= 1;
                redistributor.configuration.clear();
                redistributor.pending.clear();
                let pending = redistributor.pendbaser & 0x000f_ffff_ffff_0000;
                for unit in &state.units {
                    unit.assert_off("EnableLPIs set");
                }
                self.assert_zero(state, pending, (1 << bits) / 8, "a pending table");
                for intid in FIRST_LPI..1 << bits {
                    assert!(!self.may_take(state, number, intid), "LPI {intid} is enabled");
                }
            }
            _ => {}
        }
    }

    /// The configuration of an LPI in memory, as a redistributor sees it.
    fn configured(&self, state: &State, number: usize, intid: u32) -> u8 {
        let Some(place) = state.redistributors[number].place(intid) else {
            return 0b10;
        };
        let configuration = self.read(state, place & !7).to_le_bytes()[(place & 7) as usize];
        assert_eq!(configuration & !1, 0xa2, "configuration of LPI {intid}");
        configuration
    }

    /// Whether a redistributor would give an LPI to its processor.
    pub(super) fn may_take(&self, state: &State, number: usize, intid: u32) -> bool {
        let held = state.redistributors[number].configuration.get(&intid).copied();
        held.unwrap_or_else(|| self.configured(state, number, intid)) & 1 != 0
    }

    /// Reads the configuration of an LPI, where that is not held.
    pub(super) fn look_up(&self, state: &mut State, number: usize, intid: u32) {
        let configuration = self.configured(state, number, intid);
        state.redistributors[number].configuration.entry(intid).or_insert(configuration);
    }

    pub(super) fn deliver(&self, state: &mut State, number: usize, intid: u32) {
        let redistributor = &mut state.redistributors[number];
        if !redistributor.takes_lpis() || redistributor.place(intid).is_none() {
            return;
        }
        redistributor.pending.insert(intid);
        self.look_up(state, number, intid);
        self.raise(state, number, intid);
    }

    fn raise(&self, state: &mut State, number: usize, intid: u32) {
        if self.may_take(state, number, intid) && state.redistributors[number].pending.remove(&intid) {
            let affinity = state.redistributors[number].affinity;
            state.arrived.push((affinity, intid));
        }
    }

    pub(super) fn apply(&self, state: &mut State, number: usize, effect: Effect) {
        let redistributor = &mut state.redistributors[number];
        match effect {
            Effect::NotPending(intid) => {
                redistributor.pending.remove(&intid);
            }
            Effect::ReadAgain(intid) => {
                redistributor.configuration.remove(&intid);
                self.raise(state, number, intid);
            }
            Effect::ReadAllAgain => {
                redistributor.configuration.clear();
                for intid in redistributor.pending.clone() {
                    self.raise(state, number, intid);
                }
            }
        }
    }
}
