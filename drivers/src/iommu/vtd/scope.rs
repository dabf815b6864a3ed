// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which remapping unit serves a device, and which reserved regions it has.
//!
//! DMAR names devices by paths of device and function numbers; bus numbers behind bridges are whatever
//! the bridges were programmed with, so they are read from them once, through a function that the caller
//! gives. Source: Intel VT-d specification, "Device Scope Structure".

use alloc::vec::Vec;
use core::fmt;

use pasidon_kernel::addr::Requester;

use super::dmar::{DeviceScope, Drhd, ScopeKind};

/// The buses behind a bridge, from its configuration space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusRange {
    /// Secondary bus number: the first behind it.
    pub secondary: u8,
    /// Subordinate bus number: the last behind it.
    pub subordinate: u8,
}

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
        let mut set = Self {
            segment,
            functions: Vec::new(),
            buses: Vec::new(),
        };
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

/// Which of several units serves which device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    named: Vec<DeviceSet>,
    /// Per unit: the segment for which it takes what no other unit names.
    include_all: Vec<Option<u16>>,
}

impl Coverage {
    /// From the units in table order.
    pub fn new(units: &[Drhd], bridges: Bridges<'_>) -> Self {
        Self {
            named: units
                .iter()
                .map(|unit| DeviceSet::resolve(unit.segment, &unit.scopes, bridges))
                .collect(),
            include_all: units
                .iter()
                .map(|unit| unit.include_all.then_some(unit.segment))
                .collect(),
        }
    }

    /// Index of the unit that serves a device; `None` where none does.
    pub fn unit_of(&self, requester: Requester) -> Option<usize> {
        self.named
            .iter()
            .position(|set| set.contains(requester))
            .or_else(|| {
                self.include_all
                    .iter()
                    .position(|&segment| segment == Some(requester.segment))
            })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use pasidon_kernel::addr::HostPhys;

    fn scope(kind: ScopeKind, start_bus: u8, path: &[(u8, u8)]) -> DeviceScope {
        DeviceScope {
            kind,
            enumeration: 0,
            start_bus,
            path: path.to_vec(),
        }
    }

    fn unit(include_all: bool, scopes: Vec<DeviceScope>) -> Drhd {
        Drhd {
            registers: HostPhys(0xfed9_0000),
            registers_len: 0x1000,
            segment: 0,
            include_all,
            scopes,
        }
    }

    #[test]
    fn a_named_device_goes_before_include_all() {
        let units = [
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
            (bridge == Requester::new(0, 0, 3, 0)).then_some(BusRange {
                secondary: 5,
                subordinate: 7,
            })
        };
        let coverage = Coverage::new(&units, &bridges);
        assert_eq!(coverage.unit_of(Requester::new(0, 0x6a, 1, 0)), Some(1));
        assert_eq!(coverage.unit_of(Requester::new(0, 0x6a, 1, 1)), Some(0));
        assert_eq!(coverage.unit_of(Requester::new(0, 0, 3, 0)), Some(1));
        assert_eq!(coverage.unit_of(Requester::new(0, 7, 0, 0)), Some(1));
        assert_eq!(coverage.unit_of(Requester::new(0, 8, 0, 0)), Some(0));
        assert_eq!(coverage.unit_of(Requester::new(1, 0x6a, 1, 0)), None);
        // The path of two steps ends on the bridge's secondary bus.
        assert!(DeviceSet::resolve(0, &units[1].scopes[2..], &bridges).contains(Requester::new(0, 5, 2, 1)));
    }
}
