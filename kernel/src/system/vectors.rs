// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's side of a vdev's MSI-X vectors: its masks, and interrupts that it has come.
//!
//! **Order.** An interrupt that the host is to mask is the hypervisor's before the mask stands, and is posted to the
//! guest again only when there is none: so none comes past it.

use alloc::format;
use alloc::string::ToString;

use crate::base::id::VdevId;
use crate::base::refusal::Refusal;
use crate::irq::vectors::{VectorControl, Vectors};
use crate::monitor::info::vdev_name;
use crate::vm::{Vm, VmHost};

use super::System;

impl System {
    /// Masks, unmasks or triggers vectors of a vdev, on top of what its guest does with them.
    ///
    /// # Errors
    /// When another operation changes the VM, it does not run, or has no such vdev; when the hardware does not confirm
    /// that an interrupt is posted to the guest no more; or as
    /// [`PciBus::control_vectors`](crate::dev::pci::PciBus::control_vectors).
    pub fn control_vectors(
        &self,
        vm_host: &dyn VmHost,
        vm: &Vm,
        vdev: VdevId,
        which: Vectors,
        control: VectorControl,
    ) -> Result<(), Refusal> {
        let _operation = vm.begin()?;
        self.check_alive(vm)?;
        let found = vm.vdev(vdev).ok_or_else(|| self.no_vdev(vm, vdev))?;
        let keep = matches!(control, VectorControl::Mask | VectorControl::Automask(true));
        let mut to_keep =
            (0..found.model().identity().msix_vectors).filter(|vector| keep && which.contain(*vector));
        let done = to_keep.try_for_each(|vector| found.keep_interrupt(vector, true));
        let done = done.and_then(|()| vm_host.control_vectors(vm, vdev, which, control));
        // Also where that was refused: those that nothing masks are posted as before.
        let all = vm_host.vectors(vm, vdev);
        let mut chosen = all.iter().filter(|info| which.contain(info.vector));
        let settled =
            chosen.try_for_each(|info| found.keep_interrupt(info.vector, info.masked || info.automask));
        done.and(settled).map_err(|refusal| {
            let name = vdev_name(found.parent(), found.type_name(), vdev.0);
            let what = if refusal.what.is_empty() { which.to_string() } else { refusal.what };
            Refusal { what, ..refusal }.within(format!("vdev {name}"))
        })
    }
}
