// SPDX-License-Identifier: MIT OR Apache-2.0
//! The driver against the model of a unit.

mod bring_up;
mod errors;
mod isolation;

use std::sync::Arc;

use pasidon_kernel::addr::{HostPhys, Iova, Requester};
use pasidon_kernel::iommu::{Iommu, TableId};
use pasidon_kernel::pasid::Pasid;
use pasidon_kernel::refusal::Refusal;

use super::Smmu;
use super::model::{IDR0, IDR1, ModelRegisters, UnitModel};
use crate::iort::{self, Iort};
use crate::testing::{ModelHost, ModelMemory};

/// The device under test, 6a:01.0.
const DEVICE: Requester = Requester::new(0, 0x6a, 1, 0);
/// Its StreamID.
const STREAM: u32 = 0x6a08;
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The page of GITS_TRANSLATER.
const DOORBELL: u64 = 0x0809_0000;

/// A machine with one unit that serves every device.
struct Machine {
    smmu: Smmu<ModelRegisters, ModelMemory>,
    unit: Arc<UnitModel>,
    memory: Arc<ModelMemory>,
}

/// One unit for all of segment 0, and a root complex that takes part in ATS.
fn iort() -> Iort {
    iort::tests::machine()
}

impl Machine {
    fn try_found(idr0: u32, idr1: u32, iort: Iort) -> Result<Self, Refusal> {
        let memory = Arc::new(ModelMemory::new());
        let unit = UnitModel::new(&memory, idr0, idr1);
        let host = Box::leak(Box::new(ModelHost::default()));
        let registers = Arc::clone(&unit);
        let smmu = Smmu::new(
            iort,
            Arc::clone(&memory),
            host,
            &[HostPhys(DOORBELL)],
            &mut |_, len| {
                assert_eq!(len, 0x2_0000);
                Ok(ModelRegisters(Arc::clone(&registers)))
            },
        )?;
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

    fn new() -> Self {
        Self::with(IDR0, IDR1)
    }

    /// A table that maps `len` bytes at IOVA 0 to `host`.
    fn table(&self, host: u64, len: u64) -> TableId {
        let table = self.smmu.create_table().unwrap();
        self.smmu.map(table, Iova(0), HostPhys(host), len, true).unwrap();
        table
    }

    fn attach(&self, pasid: u32, table: TableId) {
        self.smmu.attach(DEVICE, tag(pasid), table).unwrap();
    }

    fn detach(&self, pasid: u32) {
        self.smmu.detach(DEVICE, tag(pasid)).unwrap();
    }

    fn read(&self, pasid: u32, iova: u64) -> Result<u64, u8> {
        self.unit.dma(STREAM, Some(pasid), iova, false)
    }

    fn write(&self, pasid: u32, iova: u64) -> Result<u64, u8> {
        self.unit.dma(STREAM, Some(pasid), iova, true)
    }
}

fn tag(pasid: u32) -> Pasid {
    Pasid::new(pasid).unwrap()
}
