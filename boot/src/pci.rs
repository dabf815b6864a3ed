// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's PCI functions.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use pasidon_drivers::pci::{Ecam, Identity, enumerate};
use pasidon_drivers::registers::Mmio;
use pasidon_kernel::base::addr::{HostPhys, Requester};
use pasidon_kernel::config::PciDevice;

use crate::registers;

/// Configuration space of all segments.
pub struct Pci {
    ecams: Vec<(u16, RangeInclusive<u8>, Arc<Ecam<Mmio>>)>,
    /// Every function there is.
    pub functions: Vec<Identity>,
}

impl Pci {
    /// Maps the ECAMs (segment, base, first and last bus) and looks at every function.
    pub fn new(ecams: &[(u16, u64, u8, u8)]) -> Self {
        let mut pci = Self { ecams: Vec::new(), functions: Vec::new() };
        for &(segment, base, first, last) in ecams {
            let buses = first..=last;
            let len = Ecam::<Mmio>::len(&buses);
            // MCFG names the place of bus 0; the window begins at its first bus.
            let start = base.saturating_add(u64::from(first) << 20);
            let window = match registers::map(HostPhys(start), len as u64) {
                Ok(window) => window,
                Err(refusal) => {
                    log::warn!("pci: segment {segment:#06x}: {refusal}");
                    continue;
                }
            };
            let ecam = Arc::new(Ecam::new(segment, buses.clone(), window));
            pci.functions.extend(enumerate(&ecam, segment, buses.clone()));
            pci.ecams.push((segment, buses, ecam));
        }
        pci
    }

    /// The configuration space with that function in it.
    pub fn config_of(&self, requester: Requester) -> Option<Arc<Ecam<Mmio>>> {
        self.ecams
            .iter()
            .find(|(segment, buses, _)| *segment == requester.segment && buses.contains(&requester.bus()))
            .map(|(_, _, ecam)| Arc::clone(ecam))
    }

    /// What the configuration is checked against.
    pub fn devices(&self) -> Vec<PciDevice> {
        let device = |identity: &Identity| PciDevice {
            requester: identity.requester,
            vendor: identity.vendor,
            device: identity.device,
        };
        self.functions.iter().map(device).collect()
    }
}
