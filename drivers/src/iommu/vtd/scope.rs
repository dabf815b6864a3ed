// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which remapping unit serves a device, and what else the DMAR table says of devices.
//!
//! DMAR names devices by paths of device and function numbers; bus numbers behind bridges are whatever
//! the bridges were programmed with, so they are read from them once, through a function that the caller
//! gives. Source: Intel VT-d specification, "Device Scope Structure".

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use pasidon_kernel::base::addr::{HostPhys, Requester};
use pasidon_kernel::base::refusal::Refusal;

use super::dmar::{DeviceScope, Dmar, ScopeKind};
use crate::iommu::unit::{Place, Topology};
use crate::pci::BusRange;

/// Reads the bus range of a bridge; `None` where there is no such bridge.
pub type Bridges<'a> = &'a dyn Fn(Requester) -> Option<BusRange>;

/// A set of devices of one segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceSet {
    segment: u16,
    functions: Vec<Requester>,
    buses: Vec<BusRange>,
}

impl DeviceSet {
    /// Resolves scopes. A scope whose bridges do not answer is left out, with a line in the log.
    pub fn resolve(segment: u16, scopes: &[DeviceScope], bridges: Bridges<'_>) -> Self {
        let mut set = Self { segment, functions: Vec::new(), buses: Vec::new() };
        for scope in scopes {
            let Some(requester) = walk(scope, segment, bridges) else {
                log::warn!(
                    "dmar: a device scope from bus {:#04x} leads through a bridge that is not there; left out",
                    scope.start_bus
                );
                continue;
            };
            set.functions.push(requester);
            if scope.kind == ScopeKind::Bridge
                && let Some(range) = bridges(requester)
            {
                set.buses.push(range);
            }
        }
        set
    }

    /// Whether the device belongs to the set.
    pub fn contains(&self, requester: Requester) -> bool {
        requester.segment == self.segment
            && (self.functions.contains(&requester)
                || self
                    .buses
                    .iter()
                    .any(|range| (range.secondary..=range.subordinate).contains(&requester.bus())))
    }
}

impl fmt::Display for DeviceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, requester) in self.functions.iter().enumerate() {
            write!(f, "{}{requester}", if at == 0 { "" } else { ", " })?;
        }
        for range in &self.buses {
            write!(f, ", buses {:02x}-{:02x}", range.secondary, range.subordinate)?;
        }
        Ok(())
    }
}

/// The function at the end of a scope's path.
fn walk(scope: &DeviceScope, segment: u16, bridges: Bridges<'_>) -> Option<Requester> {
    let mut bus = scope.start_bus;
    let (&(device, function), way) = scope.path.split_last()?;
    for &(device, function) in way {
        bus = bridges(Requester::new(segment, bus, device, function))?.secondary;
    }
    Some(Requester::new(segment, bus, device, function))
}

/// A region that the firmware says a device uses on its behalf (RMRR).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReservedRegion {
    /// First byte.
    pub base: HostPhys,
    /// Last byte.
    pub limit: HostPhys,
    /// The devices that use it.
    pub devices: DeviceSet,
}

/// Which of several units serves which device, and which devices the firmware has something to say of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    named: Vec<DeviceSet>,
    /// Per unit: the segment for which it takes what no other unit names.
    include_all: Vec<Option<u16>>,
    /// Regions that the firmware says devices use on its behalf (RMRR). They are blocked like everything else from
    /// take-over on; a device that has one cannot be claimed.
    pub reserved: Vec<ReservedRegion>,
    /// Devices that the firmware says work only with ATS (SATC).
    ats_required: Vec<DeviceSet>,
}

impl Coverage {
    /// From the table, its units in their order.
    pub fn new(dmar: &Dmar, bridges: Bridges<'_>) -> Self {
        Self {
            named: dmar
                .units
                .iter()
                .map(|unit| DeviceSet::resolve(unit.segment, &unit.scopes, bridges))
                .collect(),
            include_all: dmar.units.iter().map(|unit| unit.include_all.then_some(unit.segment)).collect(),
            reserved: dmar
                .reserved
                .iter()
                .map(|region| ReservedRegion {
                    base: region.base,
                    limit: region.limit,
                    devices: DeviceSet::resolve(region.segment, &region.scopes, bridges),
                })
                .collect(),
            ats_required: dmar
                .ats_devices
                .iter()
                .filter(|list| list.ats_required)
                .map(|list| DeviceSet::resolve(list.segment, &list.scopes, bridges))
                .collect(),
        }
    }

    /// Index of the unit that serves a device; `None` where none does.
    pub fn unit_of(&self, requester: Requester) -> Option<usize> {
        self.named
            .iter()
            .position(|set| set.contains(requester))
            .or_else(|| self.include_all.iter().position(|&segment| segment == Some(requester.segment)))
    }
}

impl Topology for Coverage {
    fn place(&self, requester: Requester) -> Result<Place, Refusal> {
        let unit = self.unit_of(requester).ok_or_else(|| {
            Refusal::new(
                format!("{requester}"),
                "no remapping unit of the DMAR table serves it",
                "update the firmware, or share another device",
            )
        })?;
        let device = requester.rid.into();
        Ok(Place { unit, device })
    }

    fn claimable(&self, requester: Requester, device_tlb: bool) -> Result<Place, Refusal> {
        if let Some(region) = self.reserved.iter().find(|region| region.devices.contains(requester)) {
            return Err(Refusal::new(
                format!("{requester}"),
                format!("the firmware uses it with memory {}..={} (RMRR)", region.base, region.limit),
                "turn off the firmware function that uses the device, or share another one",
            ));
        }
        if !device_tlb && self.ats_required.iter().any(|set| set.contains(requester)) {
            log::warn!(
                "{requester}: the firmware says that it works only with ATS (SATC, ATC_REQUIRED); it is used without"
            );
        }
        self.place(requester)
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let reserved = self.reserved.iter().map(|region| {
            let devices = region.devices.to_string();
            ("reserved", format!("{}..={} by {devices}", region.base, region.limit))
        });
        let required = self.ats_required.iter();
        reserved.chain(required.map(|devices| ("ATS required", devices.to_string()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::super::dmar::Drhd;
    use super::*;

    fn scope(kind: ScopeKind, start_bus: u8, path: &[(u8, u8)]) -> DeviceScope {
        DeviceScope { kind, enumeration: 0, start_bus, path: path.to_vec() }
    }

    fn unit(include_all: bool, scopes: Vec<DeviceScope>) -> Drhd {
        Drhd { registers: HostPhys(0xfed9_0000), registers_len: 0x1000, segment: 0, include_all, scopes }
    }

    #[test]
    fn a_named_device_goes_before_include_all() {
        let units = vec![
            unit(true, vec![]),
            unit(
                false,
                vec![
                    scope(ScopeKind::Endpoint, 0x6a, &[(1, 0)]),
                    scope(ScopeKind::Bridge, 0, &[(3, 0)]),
                    scope(ScopeKind::Endpoint, 0, &[(3, 0), (2, 1)]),
                ],
            ),
        ];
        let bridges = |bridge: Requester| {
            (bridge == Requester::new(0, 0, 3, 0)).then_some(BusRange { secondary: 5, subordinate: 7 })
        };
        let dmar = Dmar { units, ..Dmar::default() };
        let coverage = Coverage::new(&dmar, &bridges);
        assert_eq!(coverage.unit_of(Requester::new(0, 0x6a, 1, 0)), Some(1));
        assert_eq!(coverage.unit_of(Requester::new(0, 0x6a, 1, 1)), Some(0));
        assert_eq!(coverage.unit_of(Requester::new(0, 0, 3, 0)), Some(1));
        assert_eq!(coverage.unit_of(Requester::new(0, 7, 0, 0)), Some(1));
        assert_eq!(coverage.unit_of(Requester::new(0, 8, 0, 0)), Some(0));
        assert_eq!(coverage.unit_of(Requester::new(1, 0x6a, 1, 0)), None);
        // The path of two steps ends on the bridge's secondary bus.
        assert!(
            DeviceSet::resolve(0, &dmar.units[1].scopes[2..], &bridges).contains(Requester::new(0, 5, 2, 1))
        );
    }
}
