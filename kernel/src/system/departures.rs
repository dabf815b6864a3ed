// SPDX-License-Identifier: MIT OR Apache-2.0
//! Vdevs that are taken away from a guest that runs: in order where it answers, and in the hypervisor's own time.
//!
//! **Principle.** The guest is asked first, so that its driver can finish while the vdev still works; what it does, or
//! does not do, decides only when the vdev ends, within [`PATIENCE_NS`], and never whether.

use core::cmp::min;

use alloc::format;
use alloc::vec::Vec;

use crate::base::id::{IoasId, VdevId, VmId};
use crate::base::refusal::Refusal;
use crate::vdev::VdevSpec;
use crate::vm::{Vm, VmHost};

use super::{System, VdevName};

/// How long the guest has to let go, in nanoseconds. Linux waits for 5 s whether somebody changes his mind, before it
/// begins.
pub const PATIENCE_NS: u64 = 20_000_000_000;
/// When an end that was refused is tried again, in nanoseconds.
const RETRY_NS: u64 = 1_000_000_000;

/// A vdev that its guest was asked to let go of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    vm: VmId,
    vdev: VdevId,
    deadline_ns: u64,
}

/// What [`System::dismiss_vdev`] has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dismissal {
    /// The guest was asked; [`System::serve_departures`] ends the vdev.
    Asked,
    /// The vdev has ended.
    Ended,
}

/// A vdev that has gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Departed {
    /// Which one.
    pub vdev: VdevName,
    /// Whether its guest let go of it before.
    pub let_go: bool,
}

impl System {
    /// Takes a vdev of a running or paused VM away: asks the guest to let go of it, or ends it at once where that would
    /// not hear.
    ///
    /// # Errors
    /// As [`System::destroy_vdev`].
    pub fn dismiss_vdev(&self, vm_host: &dyn VmHost, vm: &Vm, vdev: VdevId) -> Result<Dismissal, Refusal> {
        let operation = vm.begin()?;
        let found = vm.vdev(vdev).ok_or_else(|| self.no_vdev(vm, vdev))?;
        if found.is_leaving() {
            return Ok(Dismissal::Asked);
        }
        if vm_host.ask_to_let_go(vm, vdev)? {
            found.leave();
            let deadline_ns = self.services.host.now_ns().saturating_add(PATIENCE_NS);
            self.leaving.lock().push(Leaving { vm: vm.id(), vdev, deadline_ns });
            return Ok(Dismissal::Asked);
        }
        drop(operation);
        self.destroy_vdev(vm_host, vm, vdev).map(|_| Dismissal::Ended)
    }

    /// Moves a vdev of a running or paused VM to another queue, type or parent: one that is made as `spec` says comes to the
    /// guest, on the same I/O address space or the one of that number, and then this one is taken away as by
    /// [`System::dismiss_vdev`]. Both are there until the guest has let go, so it can go over. Returns the number of the new
    /// one.
    ///
    /// # Errors
    /// As [`System::create_vdev`] and [`System::destroy_vdev`], when it is leaving already; then everything is as it was.
    pub fn move_vdev(
        &self,
        vm_host: &dyn VmHost,
        vm: &Vm,
        vdev: VdevId,
        spec: &VdevSpec,
        space: Option<IoasId>,
    ) -> Result<(VdevId, Dismissal), Refusal> {
        let found = vm.vdev(vdev).ok_or_else(|| self.no_vdev(vm, vdev))?;
        if found.is_leaving() {
            return Err(vm.refuse(
                format!("vdev {vdev} is leaving already"),
                "move one that stays, or create another",
            ));
        }
        let next = self.create_vdev(vm_host, vm, spec, space.or(found.ioas()))?;
        match self.dismiss_vdev(vm_host, vm, vdev) {
            Ok(dismissal) => Ok((next, dismissal)),
            Err(refusal) => {
                if let Err(stuck) = self.destroy_vdev(vm_host, vm, next) {
                    log::error!("{stuck}");
                }
                Err(refusal)
            }
        }
    }

    /// When [`System::serve_departures`] is to be called at the latest, in nanoseconds of the host's clock; `None` while
    /// no vdev is leaving.
    pub fn next_departure(&self) -> Option<u64> {
        self.leaving.lock().iter().map(|leaving| leaving.deadline_ns).reduce(min)
    }

    /// Ends the vdevs that their guests have let go of, and those whose time is over. To be called also whenever a guest
    /// asks for attention ([`Action::Attend`](crate::vm::exit::Action::Attend)).
    pub fn serve_departures(&self, vm_host: &dyn VmHost) -> Vec<Departed> {
        let leaving = core::mem::take(&mut *self.leaving.lock());
        let mut departed = Vec::new();
        for leaving in leaving {
            // One that ended with its VM, or by hand, is done.
            let Some(vm) = self.vm(leaving.vm) else { continue };
            let Some(vdev) = vm.vdev(leaving.vdev) else { continue };
            let let_go = vm_host.has_let_go(&vm, leaving.vdev);
            let now = self.services.host.now_ns();
            if !let_go && now < leaving.deadline_ns {
                self.leaving.lock().push(leaving);
                continue;
            }
            match self.destroy_vdev(vm_host, &vm, leaving.vdev) {
                Ok(_) => departed.extend(self.name_of(&vdev).map(|vdev| Departed { vdev, let_go })),
                Err(refusal) => {
                    log::warn!("{refusal}");
                    let deadline_ns = now.saturating_add(RETRY_NS);
                    self.leaving.lock().push(Leaving { deadline_ns, ..leaving });
                }
            }
        }
        departed
    }
}
