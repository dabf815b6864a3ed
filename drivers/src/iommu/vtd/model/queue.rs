// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model's invalidation queue.

use super::{FSTS_IQE, FSTS_ITE, GSTS_QIES, State, UnitModel, View};

const DESCRIPTOR: u64 = 32;
/// Type of a wait descriptor.
const WAIT: u64 = 5;
const PAGE: u64 = 4096;

impl UnitModel {
    /// Carries out descriptors from head to tail, or to the first error.
    pub(super) fn run(&self, state: &mut State) {
        if state.gsts & GSTS_QIES == 0 || state.stuck {
            return;
        }
        let bytes = DESCRIPTOR << ((state.iqa & 7) + 7);
        assert!(state.tail < bytes && state.tail.is_multiple_of(DESCRIPTOR), "IQT {:#x}", state.tail);
        while state.head != state.tail && state.fsts & (FSTS_IQE | FSTS_ITE) == 0 {
            let start = (state.iqa & !0xfff) + state.head;
            let words: [u64; 4] =
                core::array::from_fn(|at| self.memory.device_read(start + at as u64 * 8, View::Immediate));
            assert_eq!(words[2..], [0, 0], "the upper half of a descriptor is reserved");
            if let Some((kind, times)) = state.refuse
                && kind == words[0] & 0xf
            {
                state.refuse = (times > 1).then_some((kind, times - 1));
                state.set_error(FSTS_IQE);
                return;
            }
            if words[0] & 0xf != WAIT {
                let left = state.refuse_nth.take();
                state.refuse_nth = left.and_then(|left| left.checked_sub(1));
                if left == Some(0) {
                    state.set_error(FSTS_IQE);
                    return;
                }
            }
            self.carry_out(state, words[0], words[1]);
            state.executed += 1;
            self.noise_within(state);
            state.head = (state.head + DESCRIPTOR) % bytes;
        }
    }

    fn carry_out(&self, state: &mut State, low: u64, high: u64) {
        let granularity = low >> 4 & 3;
        let did = (low >> 16) as u16;
        let pasid = (low >> 32) as u32 & 0xf_ffff;
        match low & 0xf {
            1 => {
                state.log.push("context cache");
                match granularity {
                    1 => state.contexts.clear(),
                    3 => {
                        state.contexts.remove(&((low >> 32) as u16));
                    }
                    other => panic!("context-cache granularity {other}"),
                }
            }
            2 => {
                state.log.push("IOTLB");
                match granularity {
                    1 => state.iotlb.clear(),
                    2 => state.iotlb.retain(|key, _| key.0 != did),
                    3 => {
                        let mask = high & 0x3f;
                        assert_ne!(state.cap >> 39 & 1, 0, "page-selective without CAP.PSI");
                        assert!(mask <= state.cap >> 48 & 0x3f, "mask {mask} beyond CAP.MAMV");
                        let (start, len) = (high & !0xfff, PAGE << mask);
                        assert!(start.is_multiple_of(len), "{start:#x} is not aligned to {len:#x}");
                        state.iotlb.retain(|key, _| key.0 != did || !(start..start + len).contains(&key.2));
                    }
                    other => panic!("IOTLB granularity {other}"),
                }
            }
            4 => {
                state.log.push("interrupt entry cache");
                if low >> 4 & 1 == 0 {
                    state.interrupts.clear();
                } else {
                    assert_eq!(low >> 27 & 0x1f, 0);
                    state.interrupts.remove(&((low >> 32) as u16));
                }
            }
            5 => {
                assert_eq!(low & 0xffff_ff80, 0, "reserved bits of a wait descriptor");
                assert_ne!(low >> 5 & 1, 0, "a wait that says nothing");
                if state.unanswered {
                    // The waits that were pending are dropped.
                    state.unanswered = false;
                    state.set_error(FSTS_ITE);
                } else {
                    self.memory.device_write32(high & !3, (low >> 32) as u32);
                    if low >> 6 & 1 != 0 {
                        state.log.push("fence");
                    }
                }
            }
            6 => {
                state.log.push("PASID IOTLB");
                assert_eq!(granularity, 2);
                state.iotlb.retain(|key, _| (key.0, key.1) != (did, pasid));
            }
            7 => {
                state.log.push("PASID cache");
                match granularity {
                    0 => state.pasids.retain(|_, entry| entry[1] as u16 != did),
                    1 => state
                        .pasids
                        .retain(|key, entry| key.1 != pasid || (entry[0] & 1 != 0 && entry[1] as u16 != did)),
                    3 => state.pasids.clear(),
                    other => panic!("PASID-cache granularity {other}"),
                }
            }
            8 => {
                state.log.push("device TLB");
                assert_eq!(high, 0x7fff_ffff_ffff_f800, "everything of the PASID");
                let rid = (low >> 16) as u16;
                if state.silent_devices > 0 {
                    state.silent_devices -= 1;
                    state.unanswered = true;
                } else {
                    state.device_tlbs.remove(&(rid, pasid));
                }
            }
            other => panic!("descriptor type {other}"),
        }
    }
}
