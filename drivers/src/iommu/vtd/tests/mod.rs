// SPDX-License-Identifier: MIT OR Apache-2.0
//! The driver against the model of a unit.

mod bring_up;
mod errors;
mod isolation;
mod units;

use std::sync::Arc;

use pasidon_kernel::addr::{HostPhys, Iova, Requester};
use pasidon_kernel::iommu::{Iommu, TableId};
use pasidon_kernel::pasid::Pasid;
use pasidon_kernel::refusal::Refusal;

use super::Vtd;
use super::dmar::{Dmar, Drhd};
use super::model::{CAP, CAP_FOUR_RECORDS, ECAP, ModelRegisters, UnitModel};
use crate::testing::{ModelHost, ModelMemory};

/// The device under test, 6a:01.0.
const DEVICE: Requester = Requester::new(0, 0x6a, 1, 0);
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A machine with one unit that serves every device.
struct Machine {
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

impl Machine {
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

    fn new() -> Self {
        Self::with(CAP | CAP_FOUR_RECORDS, ECAP)
    }

    /// A table that maps `len` bytes at IOVA 0 to `host`.
    fn table(&self, host: u64, len: u64) -> TableId {
        let table = self.vtd.create_table().unwrap();
        self.vtd.map(table, Iova(0), HostPhys(host), len, true).unwrap();
        table
    }

    fn attach(&self, pasid: u32, table: TableId) {
        self.vtd.attach(DEVICE, tag(pasid), table).unwrap();
    }

    fn detach(&self, pasid: u32) {
        self.vtd.detach(DEVICE, tag(pasid)).unwrap();
    }

    fn read(&self, pasid: u32, iova: u64) -> Result<u64, u8> {
        self.unit.dma(DEVICE.rid, Some(pasid), iova, false)
    }

    fn write(&self, pasid: u32, iova: u64) -> Result<u64, u8> {
        self.unit.dma(DEVICE.rid, Some(pasid), iova, true)
    }
}

fn tag(pasid: u32) -> Pasid {
    Pasid::new(pasid).unwrap()
}
