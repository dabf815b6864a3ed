// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VMIDs of this machine, and who has which.

use pasidon_kernel::base::refusal::Refusal;
use spin::Mutex;

use super::vcpu::forget;
use super::vmid::{Vmid, Vmids};
use crate::cpu::Features;

static VMIDS: Mutex<Option<Vmids>> = Mutex::new(None);

/// A VMID that goes back when its VM is gone.
#[derive(Debug)]
pub struct OwnVmid(Option<Vmid>);

impl OwnVmid {
    /// Takes a free one.
    ///
    /// # Errors
    /// When every one is taken.
    pub(crate) fn take() -> Result<Self, Refusal> {
        let mut vmids = VMIDS.lock();
        let vmids = vmids.get_or_insert_with(|| Vmids::new(if Features::read().vmid_16 { 16 } else { 8 }));
        Ok(Self(Some(vmids.take()?)))
    }

    /// The VMID.
    pub(crate) fn vmid(&self) -> Option<&Vmid> {
        self.0.as_ref()
    }
}

impl Drop for OwnVmid {
    fn drop(&mut self) {
        let mut vmids = VMIDS.lock();
        let (Some(vmid), Some(vmids)) = (self.0.take(), vmids.as_mut()) else {
            return;
        };
        // SAFETY: at EL2; a machine is taken apart between turns, when no guest is loaded.
        let forgotten = unsafe { forget(&vmid) };
        vmids.give_back(vmid, &forgotten);
    }
}
