// SPDX-License-Identifier: MIT OR Apache-2.0
//! One physical interrupt of a device: vector, route, remapping entry and MSI-X entry, joined and parted in
//! that order.
//!
//! **Invariant.** The device can raise the vector only while the route stands. A vector goes back only
//! after the remapping entry is gone and what was under way has been handled.

use alloc::format;
use alloc::vec::Vec;

use spin::Mutex;

use super::Services;
use crate::base::allowance::Allowance;
use crate::base::refusal::Refusal;
use crate::irq::host::Host;
use crate::irq::msi::{Delivery, MsiController, Posting, RemappedInterrupt};
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
    /// It may be posted to the guest.
    for_guest: bool,
    /// How the guest would have it posted.
    wanted: Option<Posting>,
    /// It is not posted whatever the guest wants: the host masks it, or counts each.
    kept: bool,
    /// The guest's vector that it is posted as; `None` while it is the hypervisor's.
    pub(crate) posted_as: Option<u8>,
    /// The hardware did not confirm a change of that. It is not posted any more then, if that is confirmed.
    unconfirmed: bool,
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
    /// Connects one MSI-X entry, to the hypervisor. All or nothing.
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
            Route::ParentEvent(_) | Route::Posted(_) => None,
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
        // Without an IOMMU what remaps messages may not see the device's, where it is part of the IOMMU.
        let unremapped = if translated { None } else { services.host.unremapped_message(vector) };
        let message = match (unremapped, services.msi) {
            (Some(message), _) => Ok((message, None)),
            (None, Some(msi)) => msi
                .map_interrupt(parent.requester(), vector)
                .map(|remapped| (remapped.message, Some(remapped))),
            // Which interrupt it is comes below, as for what the machine refuses.
            (None, None) => Err(Refusal::new(
                "",
                "this machine cannot raise it without interrupt remapping",
                "use the parent with an IOMMU",
            )),
        };
        match message {
            Ok((message, remapped)) => {
                parent.set_interrupt(entry, Some(message));
                Ok(Self {
                    entry,
                    route: handle,
                    remapped,
                    for_guest: false,
                    wanted: None,
                    kept: false,
                    posted_as: None,
                    unconfirmed: false,
                })
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

    /// MSI-X vector of the vdev; `None` for a parent's own event.
    pub(crate) fn virtual_vector(&self) -> Option<u16> {
        match self.route.route() {
            Route::Vdev { vector, .. } => Some(vector),
            Route::ParentEvent(_) | Route::Posted(_) => None,
        }
    }

    /// Whether the hardware has confirmed that it goes there.
    fn is_certainly(&self, to: Option<&Posting>) -> bool {
        !self.unconfirmed && self.posted_as == to.map(|posting| posting.vector)
    }

    fn redirect(&mut self, msi: &dyn MsiController, to: Option<&Posting>) {
        let Some(remapped) = self.remapped else { return };
        let delivery = to.map_or(Delivery::Host(self.route.vector()), Delivery::Guest);
        match msi.redirect(remapped.handle, delivery) {
            Ok(()) => {
                self.posted_as = to.map(|posting| posting.vector);
                self.unconfirmed = false;
            }
            Err(refusal) => {
                if !core::mem::replace(&mut self.unconfirmed, true) {
                    log::warn!(
                        "interrupt {}: its way to the guest is not certain now: {refusal}",
                        self.entry
                    );
                }
            }
        }
    }
}

/// The connected interrupts of one vdev. The guest's side has them posted, the owner's takes them apart.
pub(crate) struct Interrupts {
    /// What posts them; `None` where nothing can.
    msi: Option<&'static dyn MsiController>,
    host: &'static dyn Host,
    connected: Mutex<Connected>,
}

struct Connected {
    interrupts: Vec<Interrupt>,
    /// How often the guest may still have one posted: each time costs an invalidation, for which others may wait. To be
    /// the hypervisor's is free, as it has to be posted before.
    posts: Allowance,
}

/// The guest's own interrupt behind that MSI-X vector of the vdev.
fn of_guest(interrupts: &mut [Interrupt], vector: u16) -> Option<&mut Interrupt> {
    interrupts.iter_mut().find(|each| each.for_guest && each.virtual_vector() == Some(vector))
}

impl Interrupts {
    /// None yet.
    pub(crate) fn new(services: &Services, parent: &dyn Parent) -> Self {
        let host = services.host;
        let posts = Allowance::new(host.now_ns());
        Self {
            msi: services.msi.filter(|msi| msi.can_post(parent.requester())),
            host,
            connected: Mutex::new(Connected { interrupts: Vec::new(), posts }),
        }
    }

    /// One more. `for_guest`: the guest may have it posted.
    pub(crate) fn add(&self, interrupt: Interrupt, for_guest: bool) {
        self.connected.lock().interrupts.push(Interrupt { for_guest, ..interrupt });
    }

    /// Takes them, to be taken apart; nothing is redirected after that.
    pub(crate) fn take(&self) -> Vec<Interrupt> {
        core::mem::take(&mut self.connected.lock().interrupts)
    }

    /// Has the interrupt behind that MSI-X vector of the vdev posted to the guest, or raised for the hypervisor. Where it
    /// cannot be posted, or that was done too often, it is the hypervisor's. One that is not for the guest stays so, and
    /// one that is kept until it is not.
    pub(crate) fn redirect(&self, vector: u16, to: Option<&Posting>) {
        let Some(msi) = self.msi else { return };
        let Connected { interrupts, posts } = &mut *self.connected.lock();
        let Some(interrupt) = of_guest(interrupts, vector) else { return };
        interrupt.wanted = to.cloned();
        let to = to.filter(|_| !interrupt.kept);
        if interrupt.is_certainly(to) {
            return;
        }
        let to = to.filter(|_| !interrupt.unconfirmed && posts.take(self.host.now_ns()).is_some());
        if !interrupt.is_certainly(to) {
            interrupt.redirect(msi, to);
        }
    }

    /// Keeps the interrupt behind that vector the hypervisor's, or lets it be posted as the guest wants it. When it
    /// returns, no message is posted past the hypervisor that is not in the guest's memory already.
    ///
    /// Refused, with nothing changed, where the hardware does not confirm that.
    pub(crate) fn keep(&self, vector: u16, keep: bool) -> Result<(), Refusal> {
        let Some(msi) = self.msi else { return Ok(()) };
        let mut connected = self.connected.lock();
        let Some(interrupt) = of_guest(&mut connected.interrupts, vector) else { return Ok(()) };
        interrupt.kept = keep;
        let to = interrupt.wanted.clone().filter(|_| !keep && !interrupt.unconfirmed);
        if !interrupt.is_certainly(to.as_ref()) {
            interrupt.redirect(msi, to.as_ref());
        }
        if keep && interrupt.unconfirmed {
            interrupt.kept = false;
            return Err(Refusal::new(
                "",
                "the hardware does not confirm that it is posted to the guest no more",
                "try again, or end the vdev",
            ));
        }
        Ok(())
    }

    /// Each of them, for the monitor; none while they are being changed.
    pub(crate) fn describe<T>(&self, what: impl FnMut(&Interrupt) -> T) -> Vec<T> {
        let connected = self.connected.try_lock();
        connected.map(|connected| connected.interrupts.iter().map(what).collect()).unwrap_or_default()
    }
}
