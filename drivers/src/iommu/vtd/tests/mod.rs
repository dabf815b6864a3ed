// SPDX-License-Identifier: MIT OR Apache-2.0
//! The driver against the model of a unit.

mod bring_up;
mod errors;
mod isolation;
mod posted;
mod units;

use std::sync::Arc;

use pasidon_kernel::base::addr::{HostPhys, Iova, Requester};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::iommu::{Iommu, TableId};
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::irq::HostVector;

use super::Vtd;
use super::dmar::{Dmar, Drhd};
use super::model::{CAP, CAP_FOUR_RECORDS, ECAP, ModelRegisters, UnitModel};
use crate::iommu::suite::{self, Code, DEVICE, GIB, MIB, PAGE, Rig, look, tag};
use crate::testing::{ModelHost, ModelMemory};

/// A machine with one unit that serves every device.
struct VtdRig {
    vtd: Vtd<ModelRegisters, ModelMemory>,
    unit: Arc<UnitModel>,
    memory: Arc<ModelMemory>,
}

fn dmar() -> Dmar {
    Dmar {
        host_address_bits: 46,
        interrupt_remapping: true,
        units: vec![Drhd {
            registers: HostPhys(0xfed9_0000),
            registers_len: 0x1000,
            segment: 0,
            include_all: true,
            scopes: Vec::new(),
        }],
        ..Dmar::default()
    }
}

impl VtdRig {
    /// Found, not yet taken over.
    fn found(cap: u64, ecap: u64, dmar: &Dmar) -> Self {
        let memory = Arc::new(ModelMemory::new());
        let unit = UnitModel::new(&memory, cap, ecap);
        let host = Box::leak(Box::new(ModelHost::default()));
        let registers = Arc::clone(&unit);
        let vtd = Vtd::new(dmar, Arc::clone(&memory), host, true, &|_| None, &mut |_, _| {
            Ok(ModelRegisters(Arc::clone(&registers)))
        })
        .unwrap();
        Self { vtd, unit, memory }
    }

    /// Taken over, with the device claimed.
    fn with(cap: u64, ecap: u64) -> Self {
        let machine = Self::found(cap, ecap, &dmar());
        machine.vtd.take_over().unwrap();
        machine.vtd.claim(DEVICE).unwrap();
        machine
    }
}

impl Rig for VtdRig {
    const NOT_ATTACHED: Code = 0x59;
    const FAR_FROM_ATTACHED: Code = 0x51;
    const READ_ONLY: Code = 0x85;

    fn new() -> Self {
        Self::with(CAP | CAP_FOUR_RECORDS, ECAP)
    }

    fn iommu(&self) -> &dyn Iommu {
        &self.vtd
    }

    fn memory(&self) -> &ModelMemory {
        &self.memory
    }

    fn dma(&self, device: Requester, tag: Option<u32>, iova: u64, write: bool) -> Result<u64, Code> {
        self.unit.dma(device.rid, tag, iova, write)
    }

    fn reached(&self, tag: u32) -> Vec<u64> {
        let mut state = self.unit.state.lock().unwrap();
        Vec::from_iter(state.reached.remove(&tag).unwrap_or_default())
    }

    fn missed(&self, tag: u32) -> usize {
        self.unit.state.lock().unwrap().missed.remove(&tag).unwrap_or_default()
    }

    fn send(&self, tags: &[u32], forgetful: bool) {
        let mut state = self.unit.state.lock().unwrap();
        state.noisy = tags.iter().map(|tag| (DEVICE.rid, *tag)).collect();
        state.forgetful = forgetful;
    }

    fn refuse_nth(&self, nth: usize) {
        self.unit.state.lock().unwrap().refuse_nth = Some(nth);
    }

    fn is_taken(&self, tag: u32) -> bool {
        let inner = self.vtd.units()[0].inner.lock();
        inner.devices[&DEVICE.rid].attachments.check_free(suite::tag(tag)).is_err()
    }

    fn take_executed(&self) -> usize {
        self.unit.take_executed()
    }

    fn announce(&self) {
        self.vtd.set_fault_interrupt(HostVector { vector: 0x30, cpu: 0 });
    }

    fn announced(&self) -> usize {
        self.unit.state.lock().unwrap().events.len()
    }
}
