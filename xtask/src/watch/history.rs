// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rates: differences of counters over the times that the machine itself gave with them.
//!
//! Invariants. A counter that goes back gives no rate. A clock that goes back is another boot, and everything before it
//! is forgotten. Memory is bounded.

use crate::watch::snapshot::Snapshot;
use pasidon_kernel::monitor::info::VdevRow;
use std::collections::{BTreeMap, VecDeque};

/// Samples that are kept of each counter.
pub const SAMPLES: usize = 600;
/// Nanoseconds in a second.
const SECOND: f64 = 1e9;

/// What is counted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Counter {
    /// Exits of a VM of all kinds.
    Exits,
    /// Exits of a VM of one kind.
    Kind(String),
    /// Time that a VM's vCPUs ran, in nanoseconds.
    RunTime,
    /// Interrupts that the hypervisor delivered.
    Interrupts,
    /// Records of refused DMA.
    Faults,
    /// Accesses to a vdev's portal that came to the hypervisor.
    SubmissionExits,
    /// Descriptors that the hypervisor saw come back.
    Descriptors,
}

/// Of whom.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// The VM of that name.
    Vm(String),
    /// A vdev, by its VM's name and its own.
    Vdev(String, String),
}

type Key = (Subject, Counter);

/// The counters of the last snapshots.
#[derive(Default)]
pub struct History {
    times: VecDeque<u64>,
    counters: BTreeMap<Key, VecDeque<(u64, u64)>>,
    /// The number of each VM: another one of the same name has another.
    vms: BTreeMap<String, u32>,
}

/// A rate at a time in seconds since boot; `None` where the counter told none.
pub type Point = (f64, Option<f64>);

impl History {
    /// The history of these, which are in order.
    pub fn of<'a>(snapshots: impl IntoIterator<Item = &'a Snapshot>) -> History {
        let mut history = History::default();
        snapshots.into_iter().for_each(|snapshot| history.add(snapshot));
        history
    }

    /// Adds the counters of a snapshot. One without a time has no place, and is left out.
    pub fn add(&mut self, snapshot: &Snapshot) {
        let Some(time) = snapshot.time_ns else { return };
        match self.times.back() {
            Some(last) if time == *last => return,
            Some(last) if time < *last => *self = History::default(),
            _ => {}
        }
        self.times.push_back(time);
        if self.times.len() > SAMPLES {
            self.times.pop_front();
        }
        for vm in snapshot.vms.iter().flatten() {
            let before = self.vms.insert(vm.name.clone(), vm.id);
            if before.is_some_and(|id| id != vm.id) {
                let gone = Subject::Vm(vm.name.clone());
                self.counters.retain(|(subject, _), _| *subject != gone);
            }
        }
        for (key, count) in counters(snapshot) {
            self.counters.entry(key).or_default().push_back((time, count));
        }
        let oldest = self.times.front().copied().unwrap_or(0);
        self.counters.retain(|_, samples| {
            while samples.front().is_some_and(|(time, _)| *time < oldest) {
                samples.pop_front();
            }
            !samples.is_empty()
        });
    }

    /// What was counted per second between the last snapshot and the one before that has this counter.
    pub fn rate(&self, subject: &Subject, counter: Counter) -> Option<f64> {
        let samples = self.counters.get(&(subject.clone(), counter))?;
        let now = samples.back().filter(|(time, _)| Some(time) == self.times.back())?;
        rate(*samples.get(samples.len().checked_sub(2)?)?, *now)
    }

    /// Its rates over time.
    pub fn points(&self, subject: &Subject, counter: Counter) -> Vec<Point> {
        let samples = self.counters.get(&(subject.clone(), counter));
        let pairs = samples.iter().flat_map(|samples| samples.iter().zip(samples.iter().skip(1)));
        pairs.map(|(before, now)| (now.0 as f64 / SECOND, rate(*before, *now))).collect()
    }

    /// Everybody who has that counter.
    pub fn subjects(&self, counter: &Counter) -> Vec<&Subject> {
        let with = self.counters.keys().filter(|(_, other)| other == counter);
        with.map(|(subject, _)| subject).collect()
    }

    /// The times of the first and the last snapshot, in seconds since boot.
    pub fn span(&self) -> Option<(f64, f64)> {
        Some((*self.times.front()? as f64 / SECOND, *self.times.back()? as f64 / SECOND))
    }

    /// How many snapshots it has.
    pub fn len(&self) -> usize {
        self.times.len()
    }
}

fn rate(before: (u64, u64), now: (u64, u64)) -> Option<f64> {
    let (time, grown) = (now.0.checked_sub(before.0)?, now.1.checked_sub(before.1)?);
    (time > 0).then(|| grown as f64 * SECOND / time as f64)
}

/// All counters of a snapshot.
fn counters(snapshot: &Snapshot) -> Vec<(Key, u64)> {
    let mut all = Vec::new();
    for vm in snapshot.vms.iter().flatten() {
        let subject = Subject::Vm(vm.name.clone());
        let mut add = |counter, count| all.push(((subject.clone(), counter), count));
        add(Counter::Exits, vm.exits.iter().map(|exit| exit.count).fold(0, u64::saturating_add));
        add(Counter::RunTime, vm.run_ns);
        add(Counter::Interrupts, vm.interrupts);
        add(Counter::Faults, vm.fault_records);
        for exit in vm.exits.iter().filter(|exit| exit.count > 0) {
            add(Counter::Kind(exit.kind.to_string()), exit.count);
        }
    }
    for vdev in snapshot.vdevs.iter().flatten() {
        let subject = Subject::Vdev(vdev.info.vm.clone(), vdev.name.clone());
        let mut add = |counter, count| all.push(((subject.clone(), counter), count));
        add(Counter::Interrupts, vdev.interrupts());
        add(Counter::Faults, vdev.info.fault_records);
        add(Counter::SubmissionExits, vdev.submission_exits);
        if let Some(done) = descriptors(vdev) {
            add(Counter::Descriptors, done);
        }
    }
    all
}

/// What the driver of a trapped type says came back: `12 (10 completed, 2 in flight, 0 wait)`. Who submits directly is
/// counted by nobody.
fn descriptors(vdev: &VdevRow) -> Option<u64> {
    let (_, counts) = vdev.detail("submitted")?.split_once('(')?;
    counts.split_once(" completed")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn snapshot(seconds: u64, mmio: Option<u64>, submitted: &str) -> Snapshot {
        let mut snapshot = Snapshot { time_ns: Some(seconds * 1_000_000_000), ..Snapshot::default() };
        let away = json!({ "interrupts": 0, "time_ns": 0, "masked": 0 });
        if let Some(mmio) = mmio {
            let vm = json!({
                "id": 0, "name": "alpha", "state": "running", "reason": null, "vcpus": 1, "memory": 0,
                "memory_in_use": 0, "pasid_quota": 1, "pasids_leased": 1, "pasids_retired": 0, "starts": 1,
                "run_ns": seconds * 500_000_000, "exits": [{ "kind": "mmio", "count": mmio }, { "kind": "io", "count": 0 }],
                "interrupts": 0, "away": away, "fault_records": 0, "vdevs": [],
            });
            snapshot.take("vms", json!([vm]));
        }
        let details = if submitted.is_empty() {
            json!([])
        } else {
            json!([{ "name": "submitted", "value": submitted }])
        };
        let vdev = json!({
            "name": "dsa0/dsa-swq#1", "submission_exits": 0, "id": 1, "vm": "alpha", "parent": "dsa0",
            "type_name": "dsa-swq", "pasid": 1, "ioas": 1, "interrupts": [], "away": away, "fault_records": 0,
            "details": details,
        });
        snapshot.take("top", json!({ "uptime_ns": 0, "pcpus": [], "vdevs": [vdev] }));
        assert!(snapshot.notes.is_empty(), "{:?}", snapshot.notes);
        snapshot
    }

    fn alpha() -> Subject {
        Subject::Vm("alpha".to_owned())
    }

    fn vdev() -> Subject {
        Subject::Vdev("alpha".to_owned(), "dsa0/dsa-swq#1".to_owned())
    }

    #[test]
    fn rates_are_over_the_machines_own_time() {
        let history = History::of(&[snapshot(10, Some(100), ""), snapshot(14, Some(300), "")]);
        assert_eq!(history.rate(&alpha(), Counter::Exits), Some(50.0));
        assert_eq!(history.rate(&alpha(), Counter::Kind("mmio".to_owned())), Some(50.0));
        assert_eq!(history.rate(&alpha(), Counter::Kind("io".to_owned())), None);
        assert_eq!(history.rate(&alpha(), Counter::RunTime), Some(5e8));
        assert_eq!(history.rate(&vdev(), Counter::Descriptors), None);
        assert_eq!(history.points(&alpha(), Counter::Exits), [(14.0, Some(50.0))]);
        assert_eq!(history.span(), Some((10.0, 14.0)));
    }

    #[test]
    fn a_counter_that_goes_back_gives_no_rate() {
        let counts = [100, 300, 20, 30].into_iter().zip(10..);
        let snapshots: Vec<Snapshot> = counts.map(|(count, time)| snapshot(time, Some(count), "")).collect();
        assert_eq!(History::of(&snapshots[..3]).rate(&alpha(), Counter::Exits), None);
        let points = History::of(&snapshots).points(&alpha(), Counter::Exits);
        assert_eq!(points, [(11.0, Some(200.0)), (12.0, None), (13.0, Some(10.0))]);
    }

    #[test]
    fn another_vm_of_the_same_name_begins_anew() {
        let mut history = History::of(&[snapshot(10, Some(100), ""), snapshot(11, Some(300), "")]);
        let mut other = snapshot(12, Some(400), "");
        other.vms.iter_mut().flatten().for_each(|vm| vm.id = 32);
        history.add(&other);
        assert_eq!(history.rate(&alpha(), Counter::Exits), None);
        assert_eq!(history.points(&alpha(), Counter::Exits), []);
    }

    #[test]
    fn another_boot_begins_anew_and_the_same_moment_counts_once() {
        let mut history = History::of(&[snapshot(10, Some(100), ""), snapshot(14, Some(300), "")]);
        history.add(&snapshot(14, Some(900), ""));
        assert_eq!(history.rate(&alpha(), Counter::Exits), Some(50.0));
        history.add(&snapshot(3, Some(400), ""));
        assert_eq!((history.len(), history.rate(&alpha(), Counter::Exits)), (1, None));
        history.add(&Snapshot::default());
        assert_eq!(history.len(), 1);
    }

    #[test]
    fn what_was_missing_for_a_moment_goes_on_over_the_gap() {
        let mut history = History::of(&[
            snapshot(10, Some(100), "12 (10 completed, 2 in flight, 0 wait)"),
            snapshot(11, None, ""),
        ]);
        assert_eq!(history.rate(&alpha(), Counter::Exits), None);
        assert_eq!(history.rate(&vdev(), Counter::Descriptors), None);
        history.add(&snapshot(12, Some(104), "34 (30 completed, 4 in flight, 0 wait)"));
        assert_eq!(history.rate(&alpha(), Counter::Exits), Some(2.0));
        assert_eq!(history.rate(&vdev(), Counter::Descriptors), Some(10.0));
    }

    #[test]
    fn memory_is_bounded_and_what_is_gone_is_forgotten() {
        let mut history = History::of(&[snapshot(1, Some(1), "")]);
        for time in 2..2 + SAMPLES as u64 {
            history.add(&snapshot(time, None, ""));
        }
        assert_eq!(history.len(), SAMPLES);
        assert!(history.subjects(&Counter::Exits).is_empty());
        assert_eq!(history.points(&vdev(), Counter::Interrupts).len(), SAMPLES - 1);
    }
}
