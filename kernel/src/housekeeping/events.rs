// SPDX-License-Identifier: MIT OR Apache-2.0
//! Faults that the IOMMU recorded, and events of parents.
//!
//! **Principle.** A guest can have its queue report errors as fast as it submits, and have the IOMMU refuse as much. So
//! both are looked at once in [`INTERVAL_NS`] at most, counted from when the last look was done: a guest has its turn in
//! between, however long that took. Until they are looked at, the units raise no further interrupt. Of what is said
//! about them each VM has its own allowance.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

use crate::base::allowance::{Allowance, Withheld};
use crate::base::drained::Drained;
use crate::dma::fault::Noted;
use crate::dma::fault_log::{FaultLog, FaultOwner, FaultsInfo};
use crate::irq::Route;
use crate::irq::host::Host;
use crate::system::{ParentReport, System};
use crate::vm::VmHost;

/// How often at most faults and events are looked at, in nanoseconds.
pub const INTERVAL_NS: u64 = 10_000_000;

const _: () = assert!(Route::PARENTS as u32 == u64::BITS);

/// What there is to look at, and what was seen.
#[derive(Debug, Default)]
pub struct Events {
    faults: Mutex<FaultLog>,
    /// Lines about events, by the name of the VM that caused them.
    pub(super) lines: Mutex<BTreeMap<Option<String>, Allowance>>,
    /// The IOMMU recorded faults.
    faulted: AtomicBool,
    /// Faults are recorded without an interrupt to announce them.
    looked_for: AtomicBool,
    /// Parents whose event interrupt came, a bit each.
    parents: AtomicU64,
    /// Before that time nothing is looked at.
    due: AtomicU64,
}

impl Events {
    /// The IOMMU recorded faults.
    pub fn note_fault(&self) {
        self.faulted.store(true, Ordering::SeqCst);
    }

    /// A parent may have events.
    pub fn note_parent(&self, parent: u16) {
        self.parents.fetch_or(1 << (parent % Route::PARENTS), Ordering::SeqCst);
    }

    /// Nothing announces faults.
    pub fn look_for_faults(&self) {
        self.looked_for.store(true, Ordering::SeqCst);
    }

    /// Whether [`Events::look_for_faults`] was called.
    pub fn are_looked_for(&self) -> bool {
        self.looked_for.load(Ordering::SeqCst)
    }

    /// When they are to be looked at, where there are any.
    pub fn due(&self) -> Option<u64> {
        let wait = self.faulted.load(Ordering::SeqCst) || self.parents.load(Ordering::SeqCst) != 0;
        wait.then(|| self.due.load(Ordering::Relaxed))
    }

    /// All faults so far.
    pub fn faults(&self) -> FaultsInfo {
        self.faults.lock().snapshot()
    }

    /// The VM of that name is gone.
    pub fn forget(&self, vm: &str) {
        self.lines.lock().retain(|name, _| name.as_deref() != Some(vm));
    }

    /// Looks at them where it is time.
    pub fn work(&self, system: &System, host: &dyn Host, vm_host: &dyn VmHost) {
        if self.due().is_none_or(|due| due > host.now_ns()) {
            return;
        }
        if self.faulted.swap(false, Ordering::SeqCst) {
            self.record_faults(system, host);
        }
        let parents = self.parents.swap(0, Ordering::SeqCst);
        for parent in (0..Route::PARENTS).filter(|bit| parents & 1 << bit != 0) {
            if system.parent_event(vm_host, parent, &mut |report| self.tell(&report, host)) == Drained::Again
            {
                self.note_parent(parent);
            }
        }
        self.due.store(host.now_ns().saturating_add(INTERVAL_NS), Ordering::Relaxed);
    }

    fn record_faults(&self, system: &System, host: &dyn Host) {
        let mut found = Vec::new();
        if system.drain_faults(&mut |noted| found.push(noted)) == Drained::Again {
            self.note_fault();
        }
        for noted in found {
            let now = host.now_ns();
            let told = match &noted {
                Noted::Fault(fault) => {
                    let name = system.record_fault(fault);
                    self.faults.lock().record(now, name.as_ref().map(FaultOwner::from), fault)
                }
                Noted::Stranger(number) => self.faults.lock().stranger(now, *number),
                Noted::Lost => self.faults.lock().overflow(now),
            };
            if let Some(told) = told {
                log::warn!("{told}");
            }
        }
    }

    /// One line, unless the VM that caused it has had enough of them.
    fn tell(&self, report: &ParentReport, host: &dyn Host) {
        let now = host.now_ns();
        let vm = report.vdev.as_ref().map(|vdev| vdev.vm_name.clone());
        let mut lines = self.lines.lock();
        if let Some(withheld) = lines.entry(vm).or_insert(Allowance::new(now)).take(now) {
            log::warn!("{report}{}", Withheld(withheld));
        }
    }
}
