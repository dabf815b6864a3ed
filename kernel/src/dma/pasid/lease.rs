// SPDX-License-Identifier: MIT OR Apache-2.0
//! The right to use one PASID, and on whose quota it is.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use super::Pasid;
use crate::base::id::VmId;

/// How many numbers are leased, and how many will not be used again; of one VM, or of a namespace.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) leased: AtomicU32,
    pub(super) retired: AtomicU32,
}

#[derive(Debug)]
struct QuotaInner {
    vm: VmId,
    limit: u32,
    counters: Counters,
}

/// How many PASIDs one VM may have. Retired ones count: a VM whose device would not stop cannot use up
/// the namespace of the others.
#[derive(Clone, Debug)]
pub struct PasidQuota(Arc<QuotaInner>);

impl PasidQuota {
    /// A quota of `limit` PASIDs for `vm`.
    pub fn new(vm: VmId, limit: u32) -> Self {
        Self(Arc::new(QuotaInner { vm, limit, counters: Counters::default() }))
    }

    /// Whose it is.
    pub fn owner(&self) -> VmId {
        self.0.vm
    }

    /// The most it may have.
    pub fn limit(&self) -> u32 {
        self.0.limit
    }

    /// Whether it has none left.
    pub(super) fn is_used_up(&self) -> bool {
        self.leased() + self.retired() >= self.limit()
    }

    /// How many it has now.
    pub fn leased(&self) -> u32 {
        self.0.counters.leased.load(Ordering::Relaxed)
    }

    /// How many of it are not used again, because their end was not confirmed.
    pub fn retired(&self) -> u32 {
        self.0.counters.retired.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LeaseState {
    Leased,
    Retired,
    Returned,
}

/// What is told of a lease, which may have ended since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseRecord {
    /// The number.
    pub pasid: Pasid,
    /// When it was leased, in nanoseconds since boot.
    pub since_ns: u64,
    /// How many leases of the number have come back before; the largest number stands for more, too.
    pub used_before: u32,
}

/// The right to use one PASID for one attachment.
///
/// Not `Clone`. Dropping it retires the number; only [`PasidSpace::give_back`](super::PasidSpace::give_back)
/// returns it.
#[derive(Debug)]
pub struct PasidLease {
    record: LeaseRecord,
    quota: PasidQuota,
    space: Arc<Counters>,
    state: LeaseState,
}

impl PasidLease {
    /// That number, counted on the quota and in its namespace from here on.
    pub(super) fn new(record: LeaseRecord, quota: &PasidQuota, space: &Arc<Counters>) -> Self {
        for counters in [&quota.0.counters, &**space] {
            counters.leased.fetch_add(1, Ordering::Relaxed);
        }
        Self { record, quota: quota.clone(), space: space.clone(), state: LeaseState::Leased }
    }

    /// Ends it, where it is of that namespace; what is told of its number, which may be leased again. A lease of another one is retired
    /// there.
    pub(super) fn end(mut self, space: &Arc<Counters>) -> Option<LeaseRecord> {
        Arc::ptr_eq(&self.space, space).then(|| {
            self.change(LeaseState::Returned);
            self.record
        })
    }

    /// The number.
    pub fn pasid(&self) -> Pasid {
        self.record.pasid
    }

    /// Its number, with since when it is leased and how often it was before.
    pub fn record(&self) -> LeaseRecord {
        self.record
    }

    /// The VM on whose quota it is.
    pub fn owner(&self) -> VmId {
        self.quota.owner()
    }

    /// Counts it as retired, while somebody keeps it for the case that its end can be confirmed later.
    pub(crate) fn retire(&mut self) {
        self.change(LeaseState::Retired);
    }

    fn change(&mut self, next: LeaseState) {
        for counters in [&self.quota.0.counters, &*self.space] {
            for (state, step) in [(self.state, u32::MAX), (next, 1)] {
                let counter = match state {
                    LeaseState::Leased => &counters.leased,
                    LeaseState::Retired => &counters.retired,
                    LeaseState::Returned => continue,
                };
                // Wraps: adding the largest number takes one away.
                counter.fetch_add(step, Ordering::Relaxed);
            }
        }
        self.state = next;
    }
}

impl Drop for PasidLease {
    fn drop(&mut self) {
        if self.state == LeaseState::Leased {
            self.retire();
        }
    }
}
