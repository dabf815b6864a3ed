// SPDX-License-Identifier: MIT OR Apache-2.0
//! The enhanced configuration access mechanism (PCI Express Base Specification 6.0, section 7.2.2; its
//! place in memory comes from ACPI's MCFG table).

use core::ops::RangeInclusive;

use pasidon_kernel::base::addr::Requester;

use super::{ABSENT, ConfigSpace};
use crate::registers::Registers;

const BUS_SHIFT: u32 = 20;
const FUNCTION_SHIFT: u32 = 12;
const OFFSET_MASK: u16 = 0xffc;

/// Configuration space of one segment as a window of registers, one page per function.
#[derive(Debug)]
pub struct Ecam<R> {
    segment: u16,
    buses: RangeInclusive<u8>,
    window: R,
}

impl<R: Registers> Ecam<R> {
    /// `window` starts at the page of the first bus's device 0 and is [`Ecam::<R>::len`] bytes long,
    /// mapped uncached.
    pub const fn new(segment: u16, buses: RangeInclusive<u8>, window: R) -> Self {
        Self { segment, buses, window }
    }

    fn offset(&self, function: Requester, offset: u16) -> Option<usize> {
        if function.segment != self.segment || !self.buses.contains(&function.bus()) {
            return None;
        }
        let bus = usize::from(function.bus() - self.buses.start());
        let page = usize::from(function.rid & 0xff);
        Some(bus << BUS_SHIFT | page << FUNCTION_SHIFT | usize::from(offset & OFFSET_MASK))
    }
}

impl<R> Ecam<R> {
    /// Length of the window for these buses, in bytes.
    pub fn len(buses: &RangeInclusive<u8>) -> usize {
        buses.clone().count() << BUS_SHIFT
    }
}

impl<R: Registers> ConfigSpace for Ecam<R> {
    fn read32(&self, function: Requester, offset: u16) -> u32 {
        self.offset(function, offset).map_or(ABSENT, |at| self.window.read32(at))
    }

    fn write32(&self, function: Requester, offset: u16, value: u32) {
        if let Some(at) = self.offset(function, offset) {
            self.window.write32(at, value);
        }
    }
}
