// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a failed stop has cost, and how it is got back.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use crate::monitor::info::RetiredInfo;
use crate::vdev::parent::{DeviceQuiesced, QuiesceFailed, VdevModel};
use crate::vdev::retired::{Retired, Retirement, Retry};
use crate::vm::{Vm, VmHost};

use super::System;

/// What the end of something has cost. Empty where everything was confirmed and given back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndReport {
    /// What is not used again before its stop is confirmed, its parent is reset or the machine restarts.
    pub retired: Vec<RetiredInfo>,
}

/// What became of what was retired.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReclaimReport {
    /// In use again, or free to be.
    pub reclaimed: Vec<RetiredInfo>,
    /// Still not proven quiet.
    pub left: Vec<RetiredInfo>,
}

/// How a slice is asked for the proof of its stop.
type Stop<'a> = &'a mut dyn FnMut(&mut dyn VdevModel) -> Result<DeviceQuiesced, QuiesceFailed>;

impl System {
    pub(super) fn keep(&self, vm: &Vm, why: String, what: Retired, report: &mut EndReport) {
        let now = self.services.host.now_ns();
        self.retire(Retirement::new(vm.name().to_string(), why, what, now), report);
    }

    pub(super) fn retire(&self, retirement: Retirement, report: &mut EndReport) {
        let info = retirement.info();
        log::error!("{info}");
        report.retired.push(info);
        self.retired.lock().push(retirement);
        *self.retry.lock() = Retry::soon(self.services.host.now_ns());
    }

    /// When [`System::retry_retired`] is to be called, in nanoseconds of the host's clock; `None` while nothing is
    /// retired, and no VM held.
    pub fn next_retry(&self) -> Option<u64> {
        let any = !self.retired.lock().is_empty() || !self.held.lock().is_empty();
        any.then(|| self.retry.lock().due_ns)
    }

    /// Asks once more, where it is time, whether what was retired is quiet, and whether VMs that are held can end;
    /// takes back what can be. Waits for no device.
    pub fn retry_retired(&self, vm_host: &dyn VmHost) -> ReclaimReport {
        let now = self.services.host.now_ns();
        if self.next_retry().is_none_or(|due| due > now) {
            return ReclaimReport::default();
        }
        let over = self.retry_held(vm_host);
        let report = self.ask_again(vm_host, &mut |slice| slice.try_quiesce());
        // From when the work is done.
        let now = self.services.host.now_ns();
        if report.reclaimed.is_empty() && !over {
            self.retry.lock().later(now);
        } else {
            *self.retry.lock() = Retry::soon(now);
        }
        report
    }

    /// The same at once, and with the patience of an end.
    pub fn reclaim(&self, vm_host: &dyn VmHost) -> ReclaimReport {
        self.ask_again(vm_host, &mut |slice| slice.quiesce())
    }

    fn ask_again(&self, vm_host: &dyn VmHost, stop: Stop<'_>) -> ReclaimReport {
        let mut report = ReclaimReport::default();
        let mut left = Vec::new();
        let mut retired = core::mem::take(&mut *self.retired.lock());
        // What reaches something before what is reached.
        retired.sort_by_key(|retirement| match retirement.what {
            Retired::Space(_) => 1,
            Retired::Memory { .. } => 2,
            _ => 0,
        });
        for retirement in retired {
            let info = retirement.info();
            match self.reclaim_one(vm_host, retirement, stop) {
                None => report.reclaimed.push(info),
                Some(remains) => left.push(remains),
            }
        }
        self.revived.fetch_add(report.reclaimed.len() as u64, Ordering::Relaxed);
        report.left = left.iter().map(Retirement::info).collect();
        self.retired.lock().extend(left);
        report
    }

    /// What remains of it.
    fn reclaim_one(
        &self,
        vm_host: &dyn VmHost,
        retirement: Retirement,
        stop: Stop<'_>,
    ) -> Option<Retirement> {
        let Retirement { vm, why, what, since_ns, tries } = retirement;
        let still = |why: String, what: Retired| {
            Some(Retirement { vm, why, what, since_ns, tries: tries.saturating_add(1) })
        };
        match what {
            Retired::Attachment { parent, attachment, mut slice } => {
                // What has said so once is not asked again: it may be kept for its window's sake only.
                let stuck = slice.as_mut().filter(|_| !attachment.has_stopped());
                let stopped = stuck.map(|slice| stop(slice.0.as_mut())).transpose();
                let (stopped, failed) = match stopped {
                    Ok(stopped) => (stopped, None),
                    Err(failed) => (None, Some(failed.why)),
                };
                if stopped.is_some() && !attachment.has_window() {
                    // It can be sliced again, whatever the IOMMU says.
                    slice = None;
                }
                let (tag, vdev) = ((attachment.requester, attachment.pasid), attachment.vdev);
                let space = attachment.ioas().clone();
                match attachment.end(stopped) {
                    Ok(quiet) => {
                        self.services.pasids.lock().give_back(tag.0, quiet);
                        self.forget_tag(tag, vdev);
                        self.leave_space(&space);
                        None
                    }
                    Err(attachment) => still(
                        failed.unwrap_or_else(|| attachment.why.clone()),
                        Retired::Attachment { parent, attachment, slice },
                    ),
                }
            }
            Retired::Untranslated { parent, vdev, mut slice, ram } => {
                match slice.as_mut().map(|slice| stop(slice.0.as_mut())) {
                    Some(Ok(_)) => None,
                    other => {
                        let failed = other.and_then(Result::err).map(|failed| failed.why);
                        let what = Retired::Untranslated { parent, vdev, slice, ram };
                        still(failed.unwrap_or(why), what)
                    }
                }
            }
            Retired::Vector(lost) => match lost.end(&self.services) {
                Ok(()) => None,
                Err((lost, refusal)) => still(refusal.to_string(), Retired::Vector(lost)),
            },
            Retired::Space(space) => match space.destroy() {
                Ok(()) => None,
                Err(refusal) => still(refusal.to_string(), Retired::Space(space)),
            },
            Retired::Memory { ram, gone } => match ram.into_frames() {
                Ok(frames) => {
                    self.free(vm_host, frames, gone);
                    None
                }
                Err(ram) => still(why, Retired::Memory { ram, gone }),
            },
        }
    }
}
