// SPDX-License-Identifier: MIT OR Apache-2.0
//! One vector register among the guest's, for instructions that are carried out for it.
//!
//! **Principle.** The compiler has no vector registers here, so they are reached as the processor itself moves them:
//! all of them into the vCPU's XSAVE area, one changed there, and back.
//! **Invariant.** Only the components that hold vector registers are loaded again: the x87 state, whose pointers some
//! processors restore in part only, stays where it is.
//!
//! Source: Intel SDM volume 1, 13.4 "XSAVE Area" and 13.5 "XSAVE-Managed State".

use core::arch::x86_64::__cpuid_count;
use core::ops::Range;

use super::{CPUID_XSAVE, Extended};
use crate::emulate::{VECTOR_LEN, Vector, VectorRegisters};

/// Components of XCR0 with vector registers: SSE, AVX, the upper halves of ZMM0 to ZMM15, and ZMM16 to ZMM31.
const SSE: u32 = 1;
const AVX: u32 = 2;
const ZMM_HI256: u32 = 6;
const HI16_ZMM: u32 = 7;
const VECTORS: u64 = 1 << SSE | 1 << AVX | 1 << ZMM_HI256 | 1 << HI16_ZMM;
/// XMM0 in the legacy region.
const XMM_OFFSET: usize = 160;
/// XSTATE_BV in the header: components that are not as after reset.
const XSTATE_BV: usize = 512;
/// Registers whose parts lie in several components.
const LOW_REGISTERS: usize = 16;

/// The part of each of some registers that one component has.
struct Part {
    component: u32,
    /// Where the part of the component's first register lies in the area.
    start: usize,
    /// Bytes of the register.
    bytes: Range<usize>,
}

/// Where vector registers lie in a standard XSAVE area.
struct Layout {
    low: [Part; 3],
    high: Part,
}

impl Layout {
    /// `offset` tells where a component starts.
    fn new(offset: impl Fn(u32) -> usize) -> Self {
        let part = |component, bytes| Part { component, start: offset(component), bytes };
        Self {
            low: [
                Part { component: SSE, start: XMM_OFFSET, bytes: 0..16 },
                part(AVX, 16..32),
                part(ZMM_HI256, 32..VECTOR_LEN),
            ],
            high: part(HI16_ZMM, 0..VECTOR_LEN),
        }
    }

    fn of_processor() -> Self {
        Self::new(|component| __cpuid_count(CPUID_XSAVE, component).ebx as usize)
    }

    /// The parts of register `index`, 0 to 31, each with its place in the area.
    fn parts(&self, index: usize) -> impl Iterator<Item = (&Part, Range<usize>)> {
        let (parts, nth) = if index < LOW_REGISTERS {
            (self.low.as_slice(), index)
        } else {
            (core::slice::from_ref(&self.high), index % LOW_REGISTERS)
        };
        parts.iter().map(move |part| {
            let start = part.start + nth * part.bytes.len();
            (part, start..start + part.bytes.len())
        })
    }

    fn read(&self, area: &[u8], index: usize) -> Vector {
        let mut value = [0; VECTOR_LEN];
        for (part, place) in self.parts(index) {
            if in_use(area) & 1 << part.component != 0
                && let Some(bytes) = area.get(place)
            {
                value[part.bytes.clone()].copy_from_slice(bytes);
            }
        }
        value
    }

    /// `present`: the components that the processor has.
    fn write(&self, area: &mut [u8], present: u64, index: usize, value: &Vector) {
        for (part, place) in self.parts(index) {
            let bit = 1 << part.component;
            if present & bit == 0 {
                continue;
            }
            if in_use(area) & bit == 0 {
                // What lies there is not the state, which is all zeros.
                let all = part.start..part.start + LOW_REGISTERS * part.bytes.len();
                if let Some(all) = area.get_mut(all) {
                    all.fill(0);
                }
                let used = in_use(area) | bit;
                if let Some(header) = area.get_mut(XSTATE_BV..XSTATE_BV + 8) {
                    header.copy_from_slice(&used.to_le_bytes());
                }
            }
            if let Some(bytes) = area.get_mut(place) {
                bytes.copy_from_slice(&value[part.bytes.clone()]);
            }
        }
    }
}

fn in_use(area: &[u8]) -> u64 {
    area.get(XSTATE_BV..)
        .and_then(|header| header.first_chunk())
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The vector registers of a vCPU whose state is loaded.
pub struct LiveVectors<'a> {
    extended: &'a mut Extended,
    /// The area holds what the registers hold.
    taken: bool,
}

impl core::fmt::Debug for LiveVectors<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LiveVectors").finish_non_exhaustive()
    }
}

impl<'a> LiveVectors<'a> {
    /// # Safety
    /// The state was loaded on this pCPU, and stays so while this lives.
    pub(super) unsafe fn new(extended: &'a mut Extended) -> Self {
        Self { extended, taken: false }
    }
}

impl VectorRegisters for LiveVectors<'_> {
    fn xcr0(&self) -> u64 {
        self.extended.xcr0()
    }

    fn read(&mut self, index: usize) -> Vector {
        let components = self.extended.features.xcr0 & VECTORS;
        if !self.taken {
            // SAFETY: by the contract of `new`.
            unsafe { self.extended.take_components(components) };
            self.taken = true;
        }
        Layout::of_processor().read(self.extended.area.bytes(), index)
    }

    fn write(&mut self, index: usize, value: &Vector) {
        let components = self.extended.features.xcr0 & VECTORS;
        if !self.taken {
            // SAFETY: as in `read`.
            unsafe { self.extended.take_components(components) };
            self.taken = true;
        }
        Layout::of_processor().write(self.extended.area.bytes_mut(), components, index, value);
        // SAFETY: as in `read`; the area holds what was taken out of the registers, but for one of them.
        unsafe { self.extended.put_components(components) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: u64 = 0xe7;
    const LEN: usize = 2688;

    fn layout() -> Layout {
        Layout::new(|component| match component {
            AVX => 576,
            ZMM_HI256 => 1152,
            _ => 1664,
        })
    }

    #[test]
    fn registers_lie_where_the_manual_says() {
        let mut area = vec![0xee; LEN];
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&ALL.to_le_bytes());
        for (index, at) in [(0, 160), (15, 400)] {
            area[at..at + 16].fill(index as u8 + 1);
            assert_eq!(layout().read(&area, index)[..16], [index as u8 + 1; 16]);
        }
        area[576 + 3 * 16..576 + 4 * 16].fill(7);
        area[1152 + 3 * 32..1152 + 4 * 32].fill(8);
        let third = layout().read(&area, 3);
        assert_eq!((&third[16..32], &third[32..]), (&[7; 16][..], &[8; 32][..]));
        area[1664 + 15 * 64..1664 + 16 * 64].fill(9);
        assert_eq!(layout().read(&area, 31), [9; 64]);
    }

    #[test]
    fn what_is_as_after_reset_is_zero_whatever_lies_there() {
        let mut area = vec![0xee; LEN];
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&(1u64 << SSE).to_le_bytes());
        assert_eq!(layout().read(&area, 2)[16..], [0; 48]);
        layout().write(&mut area, ALL, 2, &[5; 64]);
        assert_eq!(in_use(&area), 1 << SSE | 1 << AVX | 1 << ZMM_HI256);
        assert_eq!(layout().read(&area, 2), [5; 64]);
        assert_eq!(layout().read(&area, 3)[16..], [0; 48], "the neighbour was zero");
        assert_eq!(layout().read(&area, 3)[..16], [0xee; 16], "and keeps what it had");
    }

    proptest! {
        #[test]
        fn a_register_changes_alone(index in 0usize..32, other in 0usize..32, present in 0u64..256, byte in any::<u8>()) {
            let mut area = vec![0xee; LEN];
            area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&(present & ALL).to_le_bytes());
            let before = layout().read(&area, other);
            layout().write(&mut area, present, index, &[byte; 64]);
            if other != index {
                prop_assert_eq!(layout().read(&area, other), before);
            }
            prop_assert_eq!(in_use(&area) & !present, 0, "a component that is not there");
        }
    }
}
