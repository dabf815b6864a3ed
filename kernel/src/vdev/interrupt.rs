// SPDX-License-Identifier: MIT OR Apache-2.0
//! One physical interrupt of a device: vector, route, remapping entry and MSI-X entry, joined and parted in
//! that order.
//!
//! **Invariant.** The device can raise the vector only while the route stands. A vector goes back only
//! after the remapping entry is gone and what was under way has been handled.

use alloc::format;

use super::Services;
use crate::base::refusal::Refusal;
use crate::irq::msi::RemappedInterrupt;
use crate::irq::{HostVector, Route, RouteHandle};
use crate::vdev::parent::Parent;

/// A connected interrupt.
#[derive(Debug)]
pub(crate) struct Interrupt {
    /// MSI-X entry of the physical device.
    pub(crate) entry: u16,
    pub(crate) route: RouteHandle,
    /// `None` where the parent is used without an IOMMU.
    remapped: Option<RemappedInterrupt>,
}

/// A vector that a message may still raise, because the hardware did not confirm that its entry is gone.
#[derive(Debug)]
pub struct LostVector {
    vector: HostVector,
    handle: u32,
}

impl LostVector {
    /// The vector.
    pub fn vector(&self) -> HostVector {
        self.vector
    }

    /// Tries once more to remove the entry, and gives the vector back.
    pub(crate) fn end(self, services: &Services) -> Result<(), (Self, Refusal)> {
        if let Some(msi) = services.msi
            && let Err(refusal) = msi.unmap_interrupt(self.handle)
        {
            return Err((self, refusal));
        }
        services.host.settle_vector(self.vector);
        services.host.free_vector(self.vector);
        Ok(())
    }
}

impl Interrupt {
    /// Connects one MSI-X entry. All or nothing.
    pub(crate) fn connect(
        services: &Services,
        parent: &dyn Parent,
        translated: bool,
        entry: u16,
        route: Route,
    ) -> Result<Self, Refusal> {
        let what = || format!("interrupt {entry} of {}", parent.name());
        let owner = match route {
            Route::Vdev { vm, .. } => Some(vm),
            Route::ParentEvent(_) => None,
        };
        let vector = services.host.allocate_vector(owner).ok_or_else(|| {
            Refusal::new(
                what(),
                "no free interrupt vector on any processor",
                "destroy a vdev, or use more processors",
            )
        })?;
        let handle = services.routes.register(vector, route).inspect_err(|_| {
            services.host.free_vector(vector);
        })?;
        let message = if let Some(msi) = services.msi.filter(|_| translated) {
            msi.map_interrupt(parent.requester(), vector).map(|remapped| (remapped.message, Some(remapped)))
        } else {
            let message = services.host.unremapped_message(vector);
            message.map(|message| (message, None)).ok_or_else(|| {
                // Which interrupt it is comes below, as for what the machine refuses.
                Refusal::new(
                    "",
                    "this machine cannot raise it without interrupt remapping",
                    "use the parent with an IOMMU",
                )
            })
        };
        match message {
            Ok((message, remapped)) => {
                parent.set_interrupt(entry, Some(message));
                Ok(Self { entry, route: handle, remapped })
            }
            Err(refusal) => {
                services.routes.unregister(handle);
                services.host.free_vector(vector);
                Err(refusal.within(what()))
            }
        }
    }

    /// Masks and disconnects it. The vector is lost where the hardware does not confirm.
    pub(crate) fn disconnect(
        self,
        services: &Services,
        parent: &dyn Parent,
    ) -> Result<(), (LostVector, Refusal)> {
        let vector = self.route.vector();
        parent.set_interrupt(self.entry, None);
        services.routes.unregister(self.route);
        if let Some(remapped) = self.remapped {
            let handle = remapped.handle;
            return LostVector { vector, handle }.end(services);
        }
        services.host.settle_vector(vector);
        services.host.free_vector(vector);
        Ok(())
    }
}
