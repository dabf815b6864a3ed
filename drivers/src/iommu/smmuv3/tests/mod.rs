// SPDX-License-Identifier: MIT OR Apache-2.0
//! The driver against the model of a unit.

mod bring_up;
mod errors;
mod isolation;
mod units;

use std::sync::Arc;

use pasidon_kernel::base::addr::{HostPhys, Iova, Requester};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::iommu::Iommu;
use pasidon_kernel::dma::pasid::Pasid;

use super::Smmu;
use super::model::{IDR0, IDR1, ModelRegisters, UnitModel};
use crate::iommu::DeviceTlb;
use crate::iommu::suite::{self, Code, DEVICE, GIB, MIB, PAGE, Rig, look, tag};
use crate::iort::{self, Iort};
use crate::testing::{ModelHost, ModelMemory};

/// Its StreamID.
const STREAM: u32 = 0x6a08;
/// The page of GITS_TRANSLATER.
const DOORBELL: u64 = 0x0809_0000;

/// A device's own TLB.
const TLB: DeviceTlb = DeviceTlb { queue_depth: 32 };

/// A machine with one unit that serves every device.
struct SmmuRig {
    smmu: Smmu<ModelRegisters, ModelMemory>,
    unit: Arc<UnitModel>,
    memory: Arc<ModelMemory>,
}

/// One unit for all of segment 0, and a root complex that takes part in ATS.
fn iort() -> Iort {
    iort::tests::machine()
}

impl SmmuRig {
    fn try_found(idr0: u32, idr1: u32, iort: Iort) -> Result<Self, Refusal> {
        let memory = Arc::new(ModelMemory::new());
        let unit = UnitModel::new(&memory, idr0, idr1);
        let host = Box::leak(Box::new(ModelHost::default()));
        let registers = Arc::clone(&unit);
        let smmu = Smmu::new(iort, Arc::clone(&memory), host, &[HostPhys(DOORBELL)], &mut |_, len| {
            assert_eq!(len, 0x2_0000);
            Ok(ModelRegisters(Arc::clone(&registers)))
        })?;
        Ok(Self { smmu, unit, memory })
    }

    /// Found, not yet taken over.
    fn found(idr0: u32, idr1: u32) -> Self {
        Self::try_found(idr0, idr1, iort()).unwrap()
    }

    /// Taken over, with the device claimed.
    fn with(idr0: u32, idr1: u32) -> Self {
        let machine = Self::found(idr0, idr1);
        machine.smmu.take_over().unwrap();
        machine.smmu.claim(DEVICE).unwrap();
        machine
    }
}

impl Rig for SmmuRig {
    const NOT_ATTACHED: Code = 0x0a;
    const FAR_FROM_ATTACHED: Code = 0x08;
    const READ_ONLY: Code = 0x13;

    fn new() -> Self {
        Self::with(IDR0, IDR1)
    }

    fn iommu(&self) -> &dyn Iommu {
        &self.smmu
    }

    fn memory(&self) -> &ModelMemory {
        &self.memory
    }

    fn dma(&self, device: Requester, tag: Option<u32>, iova: u64, write: bool) -> Result<u64, Code> {
        self.unit.dma(device.rid.into(), tag, iova, write)
    }

    fn reached(&self, tag: u32) -> Vec<u64> {
        let mut state = self.unit.state.lock().unwrap();
        Vec::from_iter(state.reached.remove(&Some(tag)).unwrap_or_default())
    }

    fn missed(&self, tag: u32) -> usize {
        self.unit.state.lock().unwrap().missed.remove(&Some(tag)).unwrap_or_default()
    }

    fn send(&self, tags: &[u32], forgetful: bool) {
        let mut state = self.unit.state.lock().unwrap();
        state.noisy = tags.iter().map(|tag| (STREAM, Some(*tag))).collect();
        state.forgetful = forgetful;
    }

    fn refuse_nth(&self, nth: usize) {
        self.unit.state.lock().unwrap().refuse_nth = Some(nth);
    }

    fn is_taken(&self, tag: u32) -> bool {
        let inner = self.smmu.units()[0].inner.lock();
        inner.devices[&STREAM].attachments.check_free(suite::tag(tag)).is_err()
    }

    fn take_executed(&self) -> usize {
        self.unit.take_executed()
    }

    fn announce(&self) {
        self.smmu.enable_fault_interrupts().unwrap();
    }

    fn announced(&self) -> usize {
        self.unit.state.lock().unwrap().interrupts
    }
}
