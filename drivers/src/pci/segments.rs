// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's PCI functions: what there is, how each is reached, and what lies behind a bridge.
//!
//! Source: PCI firmware specification 3.3, section 4.1 (MCFG); PCI-to-PCI bridge architecture specification 1.2, section
//! 3.2.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use pasidon_kernel::base::addr::{HostPhys, Requester};

use super::{BusRange, ConfigSpace, Ecam, Function, HEADER_TYPE, HEADER_TYPE_MASK, Identity, enumerate};
use crate::registers::{MapRegisters, Registers};

/// Bus numbers of a bridge.
const BUS_NUMBERS: u16 = 0x18;
/// Header type of a PCI-to-PCI bridge, at its place in the register.
const HEADER_BRIDGE: u32 = 1 << 16;
/// Class and subclass of bridges between PCI buses.
const CLASS_BRIDGE: u32 = 0x0604;

/// Configuration space of all segments.
#[derive(Debug)]
pub struct Segments<R> {
    ecams: Vec<(u16, RangeInclusive<u8>, Arc<Ecam<R>>)>,
    /// Every function there is.
    pub functions: Vec<Identity>,
}

impl<R: Registers> Segments<R> {
    /// Maps the ECAMs (segment, address of bus 0, first and last bus) and looks at every function. One that cannot be
    /// mapped costs a line and what is in it.
    pub fn new(ecams: &[(u16, u64, u8, u8)], map: MapRegisters<'_, R>) -> Self {
        let mut segments = Self { ecams: Vec::new(), functions: Vec::new() };
        for &(segment, base, first, last) in ecams {
            let buses = first..=last;
            let len = Ecam::<R>::len(&buses);
            // MCFG names the place of bus 0; the window begins at its first bus.
            let start = base.saturating_add(u64::from(first) << 20);
            let window = match map(HostPhys(start), len as u64) {
                Ok(window) => window,
                Err(refusal) => {
                    log::warn!("pci: segment {segment:#06x}: {refusal}");
                    continue;
                }
            };
            let ecam = Arc::new(Ecam::new(segment, buses.clone(), window));
            segments.functions.extend(enumerate(&ecam, segment, buses.clone()));
            segments.ecams.push((segment, buses, ecam));
        }
        segments
    }

    /// The configuration space with that function in it.
    pub fn config_of(&self, requester: Requester) -> Option<Arc<Ecam<R>>> {
        self.ecams
            .iter()
            .find(|(segment, buses, _)| *segment == requester.segment && buses.contains(&requester.bus()))
            .map(|(_, _, ecam)| Arc::clone(ecam))
    }

    /// The buses behind a PCI-to-PCI bridge; `None` where the function is none, or nobody has given it any: the numbers
    /// are zero then, and bus 0 is not behind it.
    pub fn buses_behind(&self, requester: Requester) -> Option<BusRange> {
        let config = self.config_of(requester)?;
        let header = config.read32(requester, HEADER_TYPE) & HEADER_TYPE_MASK;
        if header != HEADER_BRIDGE {
            return None;
        }
        let numbers = config.read32(requester, BUS_NUMBERS);
        let range = BusRange { secondary: (numbers >> 8) as u8, subordinate: (numbers >> 16) as u8 };
        (requester.bus() < range.secondary && range.secondary <= range.subordinate).then_some(range)
    }

    /// Takes the right to do DMA from every device that the IOMMU does not stand in front of, and says so. Bridges keep
    /// it: what they pass on is the matter of the devices behind them.
    pub fn silence(&self, serves: &dyn Fn(Requester) -> bool) {
        let outside = self
            .functions
            .iter()
            .filter(|function| function.class >> 8 != CLASS_BRIDGE && !serves(function.requester));
        for function in outside {
            let silent = self
                .config_of(function.requester)
                .and_then(|config| Function::new(config, function.requester).ok())
                .map(|function| function.forbid_dma());
            match silent {
                Some(()) => log::warn!("{function}: not behind the IOMMU; its DMA is switched off"),
                None => log::error!("{function}: not behind the IOMMU, and its DMA cannot be switched off"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;

    use pasidon_kernel::base::refusal::Refusal;
    use spin::Mutex;

    use super::*;
    use crate::pci::{ABSENT, COMMAND_BUS_MASTER, COMMAND_STATUS};

    const DEVICE: u32 = 0x0880_0000;
    const BRIDGE: u32 = 0x0604_0000;
    /// Where bus 0 of the two segments is.
    const BASES: [u64; 2] = [0xb000_0000, 0x80_0000_0000];
    /// The segment whose registers cannot be mapped.
    const BROKEN: u64 = 0xc000_0000;

    /// Physical memory with configuration space in it: words by their addresses.
    type Words = Arc<Mutex<BTreeMap<u64, u32>>>;

    struct Window {
        words: Words,
        start: u64,
    }

    impl Registers for Window {
        fn read32(&self, offset: usize) -> u32 {
            self.words.lock().get(&(self.start + offset as u64)).copied().unwrap_or(ABSENT)
        }

        fn write32(&self, offset: usize, value: u32) {
            self.words.lock().insert(self.start + offset as u64, value);
        }

        fn read64(&self, _offset: usize) -> u64 {
            unreachable!("configuration space is read in words of 32 bits")
        }

        fn write64(&self, _offset: usize, _value: u64) {
            unreachable!("configuration space is written in words of 32 bits")
        }
    }

    fn address(requester: Requester, offset: u16) -> u64 {
        BASES[usize::from(requester.segment)] + (u64::from(requester.rid) << 12) + u64::from(offset)
    }

    /// Puts a function there that masters the bus.
    fn put(words: &Words, requester: Requester, class: u32, more: &[(u16, u32)]) {
        let own = [(0, 0x11fb_8086), (COMMAND_STATUS, COMMAND_BUS_MASTER), (8, class), (HEADER_TYPE, 0)];
        let all = own.iter().chain(more).map(|(offset, value)| (address(requester, *offset), *value));
        words.lock().extend(all);
    }

    const ON_BUS_0: Requester = Requester::new(0, 0, 4, 0);
    const BRIDGE_0: Requester = Requester::new(0, 0, 5, 0);
    const BEHIND: Requester = Requester::new(0, 0x41, 0, 0);
    const OTHER: Requester = Requester::new(1, 0x40, 2, 0);

    /// Two segments, the second from bus 0x40 on, and one that cannot be mapped.
    fn machine() -> (Words, Segments<Window>) {
        let words = Words::default();
        put(&words, ON_BUS_0, DEVICE, &[]);
        put(&words, BRIDGE_0, BRIDGE, &[(HEADER_TYPE, 0x81 << 16), (BUS_NUMBERS, 0x0042_4100)]);
        put(&words, BEHIND, DEVICE, &[]);
        put(&words, OTHER, DEVICE, &[]);
        let mut mapped = Vec::new();
        let segments = Segments::new(
            &[(0, BASES[0], 0, 0x42), (2, BROKEN, 0, 0), (1, BASES[1], 0x40, 0x40)],
            &mut |start, len| {
                mapped.push((start.0, len));
                match start.0 {
                    BROKEN => Err(Refusal::new("registers", "not there", "none")),
                    start => Ok(Window { words: words.clone(), start }),
                }
            },
        );
        assert_eq!(mapped, [(BASES[0], 0x43 << 20), (BROKEN, 1 << 20), (BASES[1] + (0x40 << 20), 1 << 20)]);
        (words, segments)
    }

    #[test]
    fn every_function_of_every_segment_is_found_and_reached() {
        let (_, segments) = machine();
        let found: Vec<Requester> = segments.functions.iter().map(|function| function.requester).collect();
        assert_eq!(found, [ON_BUS_0, BRIDGE_0, BEHIND, OTHER]);
        for requester in found {
            let config = segments.config_of(requester).unwrap();
            assert_eq!(config.read32(requester, 0), 0x11fb_8086);
        }
        let beside = [(1, 0x3f), (1, 0x41), (0, 0x43), (2, 0)];
        for (segment, bus) in beside {
            assert!(segments.config_of(Requester::new(segment, bus, 0, 0)).is_none(), "{segment} {bus:#x}");
        }
    }

    #[test]
    fn only_a_bridge_has_buses_behind_it() {
        let (_, segments) = machine();
        let buses = segments.buses_behind(BRIDGE_0);
        assert_eq!(buses, Some(BusRange { secondary: 0x41, subordinate: 0x42 }));
        for none in [ON_BUS_0, Requester::new(0, 0, 6, 0), Requester::new(2, 0, 0, 0)] {
            assert_eq!(segments.buses_behind(none), None);
        }
    }

    #[test]
    fn a_bridge_that_nobody_gave_buses_has_none() {
        let (words, segments) = machine();
        for numbers in [0, 0x0042_0000, 0x0041_4200] {
            words.lock().insert(address(BRIDGE_0, BUS_NUMBERS), numbers);
            assert_eq!(segments.buses_behind(BRIDGE_0), None, "{numbers:#x}");
        }
    }

    #[test]
    fn devices_outside_of_the_iommu_lose_their_dma_and_bridges_keep_it() {
        let (words, segments) = machine();
        segments.silence(&|requester| requester == BEHIND);
        let masters = |requester| {
            let command = words.lock()[&address(requester, COMMAND_STATUS)];
            command & COMMAND_BUS_MASTER != 0
        };
        assert_eq!([ON_BUS_0, BRIDGE_0, BEHIND, OTHER].map(masters), [false, true, true, false]);
        segments.silence(&|_| false);
        assert_eq!([BRIDGE_0, BEHIND].map(masters), [true, false]);
    }
}
