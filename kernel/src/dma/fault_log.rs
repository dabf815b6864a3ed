// SPDX-License-Identifier: MIT OR Apache-2.0
//! The DMA faults of the past, in words.
//!
//! **Invariants.** Memory is bounded. Each vdev has a share of its own, of what is kept and of what is
//! printed: a guest that provokes faults without end neither pushes out another's records nor hides
//! another's lines. Every record is counted, kept or not, printed or not.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::base::allowance::Allowance;
use crate::dma::fault::{DmaFault, FaultAccess};
use crate::monitor::info::{Word, vdev_name};
use crate::system::VdevName;

/// Records kept per vdev.
const RECORDS: usize = 32;
/// Vdevs whose records are kept, past ones included; beyond it the one that has been quiet longest goes.
const OWNERS: usize = 64;

/// The attachment that a fault belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultOwner<'a> {
    /// Name of the VM.
    pub vm: &'a str,
    /// Name of the parent.
    pub parent: &'a str,
    /// Name of the type.
    pub type_name: &'a str,
    /// Number of the vdev.
    pub vdev: u32,
}

impl<'a> From<&'a VdevName> for FaultOwner<'a> {
    fn from(name: &'a VdevName) -> Self {
        Self { vm: &name.vm_name, parent: &name.parent, type_name: &name.type_name, vdev: name.vdev.0 }
    }
}

/// One fault.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultRecord {
    /// Its number, from 1, over all faults.
    pub number: u64,
    /// When it was read, in nanoseconds since boot.
    pub time_ns: u64,
    /// Name of the VM, where the tag belongs to one.
    pub vm: Option<String>,
    /// The vdev, likewise: `dsa0/dsa-dwq#3`.
    pub vdev: Option<String>,
    /// Who sent the request: `0000:00:04.0`.
    pub requester: String,
    /// Its tag.
    pub pasid: Option<u32>,
    /// `read`, `write` or `interrupt`.
    pub access: Word,
    /// The address on the bus; for interrupts the index.
    pub address: u64,
    /// Why it was refused.
    pub reason: Word,
    /// The hardware's number for that.
    pub code: u8,
}

impl core::fmt::Display for FaultRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("fault: ")?;
        match (&self.vm, &self.vdev) {
            (Some(vm), Some(vdev)) => write!(f, "vm {vm} vdev {vdev}")?,
            _ => write!(f, "device {}, no vdev", self.requester)?,
        }
        match self.pasid {
            Some(pasid) => write!(f, " pasid {pasid}: ")?,
            None => f.write_str(" without pasid: ")?,
        }
        let preposition = match &*self.access {
            "read" => "from",
            "write" => "to",
            _ => "index",
        };
        write!(
            f,
            "{} {preposition} {:#x} refused: {} (code {:#x})",
            self.access, self.address, self.reason, self.code
        )
    }
}

/// What the monitor shows.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FaultsInfo {
    /// Records since boot. Faults themselves are counted by nobody: a unit may merge those of one device that come
    /// while a record of it is unread (VT-d does), and drops those for which it has no room.
    pub records: u64,
    /// How often the hardware said that it had no room: each time, one fault or more has no record.
    pub overflows: u64,
    /// Records of requests that came from no PCI function; they are in `records` as well.
    pub strangers: u64,
    /// How many records each vdev has.
    pub vdevs: Vec<FaultCount>,
    /// The last ones of each vdev, oldest first.
    pub faults: Vec<FaultRecord>,
}

/// How many records one vdev has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultCount {
    /// The vdev: `dsa0/dsa-dwq#3`; `None` counts requests that belong to no vdev.
    pub vdev: Option<String>,
    /// How many since it was created.
    pub records: u64,
}

#[derive(Debug)]
struct Owner {
    /// `dsa0/dsa-dwq#3`.
    name: Option<String>,
    records_seen: u64,
    records: VecDeque<FaultRecord>,
    /// Lines it may print.
    allowance: Allowance,
}

/// The log. One for the machine.
#[derive(Debug)]
pub struct FaultLog {
    total: u64,
    overflows: u64,
    overflow_lines: Allowance,
    strangers: u64,
    stranger_lines: Allowance,
    /// By number of the vdev; `None` is what belongs to no vdev.
    owners: BTreeMap<Option<u32>, Owner>,
}

impl Default for FaultLog {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultLog {
    /// An empty log.
    pub const fn new() -> Self {
        Self {
            total: 0,
            overflows: 0,
            overflow_lines: Allowance::new(0),
            strangers: 0,
            stranger_lines: Allowance::new(0),
            owners: BTreeMap::new(),
        }
    }

    /// Takes a fault. Returns the line to print, unless its vdev has printed enough for now.
    pub fn record(&mut self, now_ns: u64, owner: Option<FaultOwner<'_>>, fault: &DmaFault) -> Option<String> {
        self.total = self.total.saturating_add(1);
        let key = owner.map(|owner| owner.vdev);
        if !self.owners.contains_key(&key) && self.owners.len() == OWNERS {
            self.forget_quietest();
        }
        let name = owner.map(|owner| vdev_name(owner.parent, owner.type_name, owner.vdev));
        let record = FaultRecord {
            number: self.total,
            time_ns: now_ns,
            vm: owner.map(|owner| owner.vm.to_string()),
            vdev: name.clone(),
            requester: fault.requester.to_string(),
            pasid: fault.pasid.map(|pasid| pasid.value()),
            access: Word::Borrowed(match fault.access {
                FaultAccess::Read => "read",
                FaultAccess::Write => "write",
                FaultAccess::Interrupt => "interrupt",
            }),
            address: fault.address,
            reason: fault.reason.into(),
            code: fault.code,
        };
        let owner = self.owners.entry(key).or_insert_with(|| Owner {
            name,
            records_seen: 0,
            records: VecDeque::new(),
            allowance: Allowance::new(now_ns),
        });
        let line = owner.line(now_ns, &record);
        owner.records_seen = owner.records_seen.saturating_add(1);
        if owner.records.len() == RECORDS {
            owner.records.pop_front();
        }
        owner.records.push_back(record);
        line
    }

    /// The hardware dropped records. Returns the line to print, unless that was said often enough.
    pub fn overflow(&mut self, now_ns: u64) -> Option<String> {
        self.overflows = self.overflows.saturating_add(1);
        self.overflow_lines.take(now_ns)?;
        Some(String::from("fault: the IOMMU had no room to record all of them; some are lost"))
    }

    /// A record of this number on the bus of its IOMMU, which is no PCI function's. Returns the line to print,
    /// unless that was said often enough.
    pub fn stranger(&mut self, now_ns: u64, number: u32) -> Option<String> {
        self.total = self.total.saturating_add(1);
        self.strangers = self.strangers.saturating_add(1);
        self.stranger_lines.take(now_ns)?;
        Some(format!("fault: stream {number:#x}, no PCI function: refused"))
    }

    /// What there is to show.
    pub fn snapshot(&self) -> FaultsInfo {
        let mut faults: Vec<FaultRecord> =
            self.owners.values().flat_map(|owner| owner.records.iter().cloned()).collect();
        faults.sort_unstable_by_key(|record| record.number);
        let count = |owner: &Owner| FaultCount { vdev: owner.name.clone(), records: owner.records_seen };
        FaultsInfo {
            records: self.total,
            overflows: self.overflows,
            strangers: self.strangers,
            vdevs: self.owners.values().map(count).collect(),
            faults,
        }
    }

    fn forget_quietest(&mut self) {
        let last = |owner: &Owner| owner.records.back().map_or(0, |record| record.number);
        let quietest = self.owners.iter().min_by_key(|(_, owner)| last(owner));
        if let Some(key) = quietest.map(|(key, _)| *key) {
            self.owners.remove(&key);
        }
    }
}

impl Owner {
    /// The line for a record, if the allowance has one left.
    fn line(&mut self, now_ns: u64, record: &FaultRecord) -> Option<String> {
        Some(match self.allowance.take(now_ns)? {
            0 => record.to_string(),
            more => format!("{record}; {more} more before it, see faults"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::addr::Requester;
    use crate::base::allowance::BURST;
    use crate::dma::pasid::Pasid;

    const SECOND: u64 = 1_000_000_000;

    fn fault(address: u64) -> DmaFault {
        DmaFault {
            requester: Requester::new(0, 0, 4, 0),
            pasid: Pasid::new(17),
            address,
            access: FaultAccess::Write,
            reason: "no mapping",
            code: 0x59,
        }
    }

    fn owner(vdev: u32) -> Option<FaultOwner<'static>> {
        Some(FaultOwner { vm: "alpha", parent: "dsa0", type_name: "dsa-dwq", vdev })
    }

    #[test]
    fn a_fault_reads_as_a_sentence() {
        let mut log = FaultLog::new();
        assert_eq!(
            log.record(0, owner(1), &fault(0xdead_f000)).unwrap(),
            "fault: vm alpha vdev dsa0/dsa-dwq#1 pasid 17: write to 0xdeadf000 refused: no mapping (code 0x59)"
        );
        let untagged = DmaFault {
            pasid: None,
            access: FaultAccess::Interrupt,
            reason: "entry not present",
            code: 0x22,
            ..fault(5)
        };
        assert_eq!(
            log.record(0, None, &untagged).unwrap(),
            "fault: device 0000:00:04.0, no vdev without pasid: interrupt index 0x5 refused: \
             entry not present (code 0x22)"
        );
    }

    #[test]
    fn a_flood_is_counted_kept_in_part_and_printed_in_part() {
        let mut log = FaultLog::new();
        let printed = (0..1000).filter(|n| log.record(*n, owner(1), &fault(*n)).is_some()).count();
        assert_eq!(printed as u64, BURST);
        let later = log.record(SECOND + 1000, owner(1), &fault(7)).unwrap();
        assert!(later.ends_with("; 992 more before it, see faults"), "{later}");
        assert!(log.record(SECOND + 1000, owner(1), &fault(7)).is_none());

        let shown = log.snapshot();
        assert_eq!((shown.records, shown.faults.len()), (1002, RECORDS));
        assert_eq!(shown.vdevs[0].records, 1002);
        assert_eq!(shown.faults.last().unwrap().number, 1002);
    }

    #[test]
    fn a_flood_hides_nobody_else() {
        let mut log = FaultLog::new();
        assert!(log.record(0, owner(2), &fault(0x2000)).is_some());
        for n in 0..1000 {
            log.record(n, owner(1), &fault(n));
        }
        assert!(log.record(1000, owner(2), &fault(0x3000)).is_some());
        let shown = log.snapshot();
        let of_two: Vec<u64> = shown
            .faults
            .iter()
            .filter(|record| record.vdev.as_deref() == Some("dsa0/dsa-dwq#2"))
            .map(|record| record.address)
            .collect();
        assert_eq!(of_two, [0x2000, 0x3000]);
    }

    #[test]
    fn memory_stays_bounded_over_many_vdevs() {
        let mut log = FaultLog::new();
        for vdev in 0..10_000 {
            log.record(u64::from(vdev), owner(vdev), &fault(0));
        }
        let shown = log.snapshot();
        assert_eq!((shown.records, shown.faults.len()), (10_000, OWNERS));
        assert_eq!(shown.faults[0].number, 10_000 - OWNERS as u64 + 1);
    }

    #[test]
    fn requests_of_nobody_are_counted_and_said() {
        let mut log = FaultLog::new();
        assert!(log.stranger(0, 0x1_2345).unwrap().contains("stream 0x12345"));
        let printed = (0..1000).filter(|now| log.stranger(*now, 1).is_some()).count() as u64;
        assert_eq!(printed, BURST - 1);
        assert!(log.record(0, owner(1), &fault(0)).is_some(), "others are heard");
        let shown = log.snapshot();
        assert_eq!((shown.strangers, shown.records), (1001, 1002));
    }

    #[test]
    fn lost_records_are_said() {
        let mut log = FaultLog::new();
        assert!(log.overflow(0).unwrap().contains("some are lost"));
        let printed = (0..1000).filter(|now| log.overflow(*now).is_some()).count() as u64;
        assert_eq!(printed, BURST - 1);
        assert_eq!(log.snapshot().overflows, 1001);
    }
}
