// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model's command queue.

use super::{CMDQEN, IDR0_ATS, IDR0_HYP, State, UnitModel};

const PAGE: u64 = 4096;

impl UnitModel {
    /// Carries out commands from CONS to PROD, or to the first error.
    pub(super) fn run(&self, state: &mut State) {
        if state.cr0 & CMDQEN == 0 || state.stuck {
            return;
        }
        let log2 = State::queue_log2(state.cmdq_base);
        let mask = (2 << log2) - 1;
        assert_eq!(state.prod & !mask, 0, "CMDQ_PROD {:#x}", state.prod);
        while state.cons != state.prod && !state.command_error() {
            let slot = u64::from(state.cons & (mask >> 1));
            let at = (state.cmdq_base & 0x000f_ffff_ffff_ffe0) + slot * 16;
            let command = [self.read(at), self.read(at + 8)];
            let opcode = command[0] & 0xff;
            if let Some((refused, times)) = state.refuse
                && refused == opcode
            {
                state.refuse = (times > 1).then_some((refused, times - 1));
                state.error = 1;
                state.raise_error(1);
                return;
            }
            if opcode != 0x46 {
                let left = state.refuse_nth.take();
                state.refuse_nth = left.and_then(|left| left.checked_sub(1));
                if left == Some(0) {
                    state.error = 1;
                    state.raise_error(1);
                    return;
                }
            }
            if opcode == 0x46 {
                assert_eq!(command, [0x46, 0], "CMD_SYNC with a signal nobody asked for");
                state.log.push("sync");
                // What lies between two CMD_SYNC may be carried out in any order.
                while let Some(pending) = state.pending.pop() {
                    self.carry_out(state, pending);
                    self.noise_within(state);
                }
                if std::mem::take(&mut state.unanswered) {
                    state.error = 3;
                    state.raise_error(1);
                    return;
                }
            } else {
                self.check(state, command);
                state.pending.push(command);
            }
            self.noise_within(state);
            state.executed += 1;
            state.cons = (state.cons + 1) & mask;
        }
    }

    /// What of a command must be zero is, and the unit knows it.
    fn check(&self, state: &mut State, [low, high]: [u64; 2]) {
        let (name, reserved_low, reserved_high) = match low & 0xff {
            0x03 => ("STE", 0xffff_ff00u64, !1),
            0x04 => ("STE range", 0xffff_ff00, !0x1f),
            0x05 => ("CD", 0xf00, !1),
            0x11 => ("ASID", 0xffff_ffff_ff00, u64::MAX),
            0x12 => ("VA", 0xffff_ffff_ff00, 0xfff),
            0x20 => ("EL2", !0x20, u64::MAX),
            0x30 => ("all", !0x30, u64::MAX),
            0x40 => ("device TLB", 0x700, 0xfc0),
            other => panic!("command {other:#x}"),
        };
        assert_eq!((low & reserved_low, high & reserved_high), (0, 0), "{name} {low:#x} {high:#x}");
        assert!(low & 0xff != 0x20 || state.idr0 & IDR0_HYP != 0, "TLBI_EL2_ALL without EL2");
        assert!(low & 0xff != 0x40 || state.idr0 & IDR0_ATS != 0, "ATC_INV without ATS");
        state.log.push(name);
    }

    fn carry_out(&self, state: &mut State, [low, high]: [u64; 2]) {
        let stream = (low >> 32) as u32;
        let tag = (low >> 12) as u32 & 0xf_ffff;
        let asid = (low >> 48) as u16;
        match low & 0xff {
            0x03 => {
                assert_eq!(high & 1, 0, "the first-level descriptor may be cached too");
                state.stes.remove(&stream);
                state.cds.retain(|key, _| key.0 != stream);
            }
            0x04 => {
                assert_eq!(high & 0x1f, 31, "all streams");
                state.stes.clear();
                state.cds.clear();
            }
            0x05 => {
                assert_eq!(high & 1, 0, "the first-level descriptor may be cached too");
                state.cds.remove(&(stream, tag));
                state.fetching.remove(&(stream, tag));
            }
            0x11 => {
                state.tlb.retain(|key, _| key.0 != asid);
                state.walks.retain(|key, _| key.0 != asid);
            }
            0x12 => {
                let address = high & !(PAGE - 1);
                state.tlb.remove(&(asid, address));
                state.walks.retain(|key, _| key.0 != asid || key.2 != Self::above(address, key.1));
            }
            0x20 => {}
            0x30 => {
                state.tlb.clear();
                state.walks.clear();
            }
            0x40 => {
                assert_eq!((low >> 11 & 1, high & 0x3f), (1, 52), "one tag, all addresses");
                if state.silent_devices > 0 {
                    state.silent_devices -= 1;
                    state.unanswered = true;
                } else {
                    state.device_tlbs.remove(&(stream, tag));
                }
            }
            other => panic!("command {other:#x}"),
        }
    }

    /// The address bits that select a table of a level.
    pub(super) fn above(address: u64, level: u32) -> u64 {
        address >> (12 + 9 * level)
    }
}
