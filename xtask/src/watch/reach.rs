// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may reach what: from a VM by way of its vdev, the PASID that the device puts on the vdev's DMA, and the I/O
//! address space that the IOMMU finds under it, to memory.
//!
//! What must never be is looked for in each snapshot, and said.

use crate::watch::snapshot::Snapshot;
use pasidon_kernel::base::table::bytes;
use pasidon_kernel::monitor::info::{IoasInfo, VdevRow};

/// One way from a VM to memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Way {
    /// Name of the VM.
    pub vm: String,
    /// Name of the vdev, or what is left of it.
    pub vdev: String,
    /// Name of the device that it is a slice of.
    pub parent: String,
    /// What the vdev's DMA is tagged with.
    pub pasid: String,
    /// What the IOMMU translates it with.
    pub space: String,
    /// Where it ends.
    pub memory: String,
    /// Why it should not be.
    pub alarm: Option<String>,
}

/// A shared device.
#[derive(Clone, PartialEq, Debug)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Where it is and what confines it.
    pub about: String,
    /// Whether an IOMMU does.
    pub confined: bool,
}

/// The ways of all vdevs, and those that ended vdevs may still have.
pub fn ways(snapshot: &Snapshot) -> Vec<Way> {
    let live = snapshot.vdevs.iter().flatten().map(|vdev| way(snapshot, vdev));
    let retired = snapshot.pasids.iter().flatten().filter(|pasid| pasid.state == "retired").map(|pasid| {
        let (space, memory, foreign) = space(snapshot, &pasid.vm, pasid.ioas);
        let why = pasid.reason.as_deref().unwrap_or("its end was not confirmed");
        let foreign = foreign.map_or(String::new(), |why| format!("; {why}"));
        Way {
            vm: pasid.vm.clone(),
            vdev: format!("{} vdev {} (ended)", pasid.parent, pasid.vdev),
            parent: pasid.parent.clone(),
            pasid: format!("PASID {}", pasid.pasid),
            space,
            memory,
            alarm: Some(format!("retired: {why}{foreign}")),
        }
    });
    live.chain(retired).collect()
}

fn way(snapshot: &Snapshot, vdev: &VdevRow) -> Way {
    let info = &vdev.info;
    let free = info.pasid.is_none() && snapshot.parent(&info.parent).is_some_and(|parent| !parent.iommu);
    let (space, memory, foreign) = match free {
        // Where descriptors are trapped, the hypervisor itself stands in for the IOMMU.
        true if snapshot.is_direct(vdev) == Some(false) => {
            ("no IOMMU".to_owned(), format!("what Pasidon lets {} name", info.vm), None)
        }
        true => {
            let why = "nothing confines its DMA".to_owned();
            ("no IOMMU".to_owned(), "all memory".to_owned(), Some(why))
        }
        false => space(snapshot, &info.vm, info.ioas),
    };
    let wrong: Vec<String> = foreign.into_iter().chain(info.taints.iter().cloned()).collect();
    let alarm = (!wrong.is_empty()).then(|| wrong.join("; "));
    Way {
        vm: info.vm.clone(),
        vdev: vdev.name.clone(),
        parent: info.parent.clone(),
        pasid: info.pasid.map_or("no PASID".to_owned(), |pasid| format!("PASID {pasid}")),
        space,
        memory,
        alarm,
    }
}

/// A space, the memory behind it, and what is wrong with both.
fn space(snapshot: &Snapshot, vm: &str, id: Option<u32>) -> (String, String, Option<String>) {
    let Some(id) = id else { return ("no space".to_owned(), "nothing".to_owned(), None) };
    let iommu = snapshot.system.as_ref().and_then(|system| system.iommu.as_ref());
    let found = iommu.and_then(|iommu| iommu.spaces.iter().find(|space| space.id == id));
    let Some(IoasInfo { vm: owner, mapped_bytes, .. }) = found else {
        return (format!("space {id}"), "not in the answers".to_owned(), None);
    };
    let alarm = (owner != vm).then(|| format!("space {id} is {owner}'s, not {vm}'s"));
    (format!("space {id}"), format!("{} of {owner}", bytes(*mapped_bytes)), alarm)
}

/// The place of a VM among all, by name: its colour, wherever there are colours.
pub fn place(snapshot: &Snapshot, vm: &str) -> Option<usize> {
    let vms = snapshot.vms.as_ref()?;
    let known = vms.iter().any(|other| other.name == vm);
    known.then(|| vms.iter().filter(|other| *other.name < *vm).count())
}

/// VMs that no device works for, not even one that should have stopped.
pub fn without_vdev(snapshot: &Snapshot) -> Vec<&str> {
    if snapshot.vdevs.is_none() {
        return Vec::new();
    }
    let ways = ways(snapshot);
    let has = |vm: &str| ways.iter().any(|way| way.vm == vm);
    let names = snapshot.vms.iter().flatten().map(|vm| vm.name.as_str());
    names.filter(|vm| !has(vm)).collect()
}

/// The shared devices.
pub fn devices(snapshot: &Snapshot) -> Vec<Device> {
    let iommu = snapshot.system.as_ref().and_then(|system| system.iommu.as_ref());
    let kind = iommu.map_or("an IOMMU", |iommu| &iommu.name);
    let device = |parent: &pasidon_kernel::monitor::info::ParentInfo| {
        let behind = if parent.iommu { format!("behind {kind}") } else { "without an IOMMU".to_owned() };
        let unusable = parent.unusable.as_ref().map_or(String::new(), |why| format!(", unusable: {why}"));
        Device {
            name: parent.name.clone(),
            about: format!("{} at {}, {behind}{unusable}", parent.name, parent.requester),
            confined: parent.iommu,
        }
    };
    snapshot.parents.iter().flatten().map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::tests::recorded;
    use serde_json::{Value, json};

    fn vdev(id: u32, vm: &str, pasid: Value, ioas: Value) -> Value {
        json!({
            "name": format!("dsa0/dsa-dwq#{id}"), "submission_exits": 0, "id": id, "vm": vm, "parent": "dsa0",
            "type_name": "dsa-dwq", "pasid": pasid, "ioas": ioas, "interrupts": [], "fault_records": 0,
            "away": { "interrupts": 0, "time_ns": 0, "masked": 0 }, "details": [],
        })
    }

    fn snapshot(vdevs: Value, iommu: bool) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let space = |id: u32, vm: &str| json!({ "id": id, "vm": vm, "table": 0, "mappings": 1, "mapped_bytes": 268_435_456, "pasids": [] });
        let system = json!({
            "uptime_ns": 1, "taints": [], "vms": 2, "vdevs": 2, "stray_interrupts": 0, "retired": [], "revived": 0,
            "pasids": { "first": 1, "last": 9, "leased": 2, "retired": 0 },
            "memory": { "total": 0, "free": 0, "guests": 0, "tables": 0, "held": 0,
                "hypervisor": { "image": 0, "heap": 0, "heap_used": 0 } },
            "iommu": { "name": "vtd", "pasid_bits": 20, "address_bits": 48, "largest_page": 2_097_152,
                "interrupt_remapping": true, "commands_issued": 0, "spaces": [space(1, "alpha"), space(2, "beta")] },
        });
        snapshot.take("version", system);
        snapshot.take("top", json!({ "uptime_ns": 1, "pcpus": [], "vdevs": vdevs }));
        snapshot.take(
            "parents",
            json!([{ "name": "dsa0", "requester": "0000:00:04.0", "iommu": iommu,
            "unusable": null, "types": [], "events": 0, "details": [] }]),
        );
        assert!(snapshot.notes.is_empty(), "{:?}", snapshot.notes);
        snapshot
    }

    #[test]
    fn a_vdev_leads_to_its_vms_memory() {
        let snapshot = snapshot(json!([vdev(1, "alpha", json!(1), json!(1))]), true);
        let ways = ways(&snapshot);
        assert_eq!(ways.len(), 1);
        assert_eq!((ways[0].pasid.as_str(), ways[0].space.as_str()), ("PASID 1", "space 1"));
        assert_eq!((ways[0].memory.as_str(), &ways[0].alarm), ("256M of alpha", &None));
        assert_eq!(devices(&snapshot)[0].about, "dsa0 at 0000:00:04.0, behind vtd");
    }

    #[test]
    fn what_must_not_be_is_said() {
        let foreign = ways(&snapshot(json!([vdev(1, "alpha", json!(1), json!(2))]), true));
        assert_eq!(foreign[0].alarm.as_deref(), Some("space 2 is beta's, not alpha's"));
        let mut tainted = vdev(1, "alpha", json!(1), json!(1));
        tainted["taints"] = json!(["its portal is unsafe"]);
        assert_eq!(ways(&snapshot(json!([tainted]), true))[0].alarm.as_deref(), Some("its portal is unsafe"));
        let mut free = snapshot(json!([vdev(1, "alpha", Value::Null, Value::Null)]), false);
        let trapped = json!([{ "name": "dsa-dwq", "description": "", "direct_portal": false, "instances": 1, "available": 0 }]);
        let mut parents = json!([{ "name": "dsa0", "requester": "0000:00:04.0", "iommu": false, "unusable": null,
            "types": trapped, "events": 0, "details": [] }]);
        free.take("parents", parents.clone());
        assert_eq!(ways(&free)[0].memory, "what Pasidon lets alpha name");
        parents[0]["types"] = json!([]);
        free.take("parents", parents);
        let free = ways(&free);
        assert_eq!((free[0].memory.as_str(), free[0].alarm.is_some()), ("all memory", true));
    }

    #[test]
    fn what_is_not_known_is_no_alarm() {
        let mut snapshot = snapshot(json!([vdev(1, "alpha", json!(1), json!(9))]), true);
        assert_eq!(
            (ways(&snapshot)[0].memory.as_str(), &ways(&snapshot)[0].alarm),
            ("not in the answers", &None)
        );
        (snapshot.system, snapshot.parents) = (None, None);
        assert_eq!(ways(&snapshot)[0].alarm, None);
        assert!(devices(&snapshot).is_empty() && without_vdev(&snapshot).is_empty());
    }

    #[test]
    fn a_retired_pasid_still_leads_somewhere() {
        let mut snapshot = snapshot(json!([]), true);
        snapshot.take(
            "pasids",
            json!([{ "pasid": 7, "state": "retired", "since_ns": 0, "used_before": 0,
            "vm": "alpha", "parent": "dsa0", "vdev": 3, "ioas": 1, "reason": "the queue did not drain" }]),
        );
        // Two VMs, none of which has a vdev.
        snapshot.vms.clone_from(&recorded()[0].vms);
        assert_eq!(without_vdev(&snapshot), ["beta"]);
        assert_eq!([place(&snapshot, "beta"), place(&snapshot, "gamma")], [Some(1), None]);
        let ways = ways(&snapshot);
        assert_eq!(
            (ways[0].vdev.as_str(), ways[0].memory.as_str()),
            ("dsa0 vdev 3 (ended)", "256M of alpha")
        );
        assert_eq!(ways[0].alarm.as_deref(), Some("retired: the queue did not drain"));
    }
}
