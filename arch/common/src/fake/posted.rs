// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts that the device posts to guests, as hardware does.
//!
//! A VM's descriptor is on its vCPU's pCPU. What is posted waits there until the processor that runs the guest takes its
//! notification, or the hypervisor looks.

use std::collections::BTreeSet;

use pasidon_kernel::base::id::VmId;
use pasidon_kernel::irq::{HostVector, Route, RouteHandle, RouteTable};

use super::device::VECTORS;

/// The descriptor of one life of a VM.
pub struct Descriptor {
    route: RouteHandle,
    outstanding: bool,
    /// Numbers of vdevs.
    requests: BTreeSet<u16>,
}

impl Descriptor {
    /// With nothing posted. Each VM has a vector of its own for its notification, behind those of devices.
    pub fn new(routes: &RouteTable, vm: VmId, pcpu: u32) -> Self {
        let target = HostVector { vector: VECTORS.end + u32::from(vm.0), cpu: pcpu };
        let route = routes.register(target, Route::Posted(vm)).expect("a vector of its own");
        Self { route, outstanding: false, requests: BTreeSet::new() }
    }

    /// The life is over.
    pub fn end(self, routes: &RouteTable) {
        routes.unregister(self.route);
    }

    /// What is raised where nothing waits yet.
    pub fn notification(&self) -> HostVector {
        self.route.vector()
    }

    /// An interrupt is posted; what the device raises with it.
    pub fn post(&mut self, id: u16) -> Option<HostVector> {
        self.requests.insert(id);
        (!core::mem::replace(&mut self.outstanding, true)).then(|| self.notification())
    }

    /// Whoever looks gets all of it.
    pub fn take(&mut self) -> BTreeSet<u16> {
        self.outstanding = false;
        core::mem::take(&mut self.requests)
    }
}
