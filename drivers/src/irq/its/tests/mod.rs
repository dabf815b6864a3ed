// SPDX-License-Identifier: MIT OR Apache-2.0
//! The driver against the model.

mod bring_up;
mod errors;
mod messages;
mod properties;

use std::sync::Arc;

use pasidon_kernel::base::addr::{HostPhys, Requester};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::msi::{MsiController, RemappedInterrupt};

use super::model::{Gic, ItsModel, ModelRegisters, REDISTRIBUTOR, REDISTRIBUTORS};
use super::{Its, ItsNode, Redistributor};
use crate::iort::Iort;
use crate::iort::tests::machine as iort;
use crate::testing::{ModelHost, ModelMemory};

/// The device under test, 6a:01.0.
const DEVICE: Requester = Requester::new(0, 0x6a, 1, 0);
/// Its DeviceID.
const ID: u32 = 0x6a08;
/// Another device.
const OTHER: Requester = Requester::new(0, 0, 4, 0);
const OTHER_ID: u32 = 0x20;
/// Registers of the first ITS.
const ITS: u64 = 0x808_0000;
const PROCESSORS: u32 = 4;

/// A machine with some ITSs and [`PROCESSORS`] processors.
struct Rig {
    its: Its<ModelRegisters, ModelMemory>,
    gic: Arc<Gic>,
    memory: Arc<ModelMemory>,
}

/// Affinity of a processor, as the model has it.
fn affinity(processor: u32) -> u32 {
    0x8100_0000 | processor << 8
}

fn vector(lpi: u32, processor: u32) -> HostVector {
    HostVector { vector: 8192 + lpi, cpu: affinity(processor) }
}

impl Rig {
    /// Found, not yet taken over. `nodes`: identifier of each ITS. `change`: what is not as usual.
    fn try_found(iort: Iort, identifiers: &[u32], change: impl FnOnce(&Gic)) -> Result<Self, Refusal> {
        let memory = Arc::new(ModelMemory::new());
        let nodes: Vec<_> = identifiers
            .iter()
            .enumerate()
            .map(|(at, &identifier)| ItsNode { identifier, registers: HostPhys(ITS + at as u64 * 0x10_0000) })
            .collect();
        let units = nodes.iter().map(|_| ItsModel::new()).collect();
        let gic = Gic::new(&memory, units, PROCESSORS);
        change(&gic);
        let redistributors = (0..PROCESSORS)
            .map(|number| Redistributor {
                registers: ModelRegisters::Redistributor(Arc::clone(&gic), number as usize),
                base: HostPhys(REDISTRIBUTORS + u64::from(number) * REDISTRIBUTOR),
            })
            .collect();
        let host = Box::leak(Box::new(ModelHost::default()));
        let its = Its::new(&nodes, iort, redistributors, Arc::clone(&memory), host, &mut |address, len| {
            assert_eq!(len, 0x1_0000);
            let unit = nodes.iter().position(|node| node.registers == address);
            Ok(ModelRegisters::Its(Arc::clone(&gic), unit.unwrap()))
        })?;
        Ok(Self { its, gic, memory })
    }

    fn try_changed(change: impl FnOnce(&Gic)) -> Result<Self, Refusal> {
        let machine = Self::try_found(iort(), &[9], change)?;
        machine.its.take_over()?;
        Ok(machine)
    }

    /// One ITS, which serves every device; with something not as usual; taken over.
    fn changed(change: impl FnOnce(&Gic)) -> Self {
        Self::try_changed(change).unwrap()
    }

    fn new() -> Self {
        Self::changed(|_| {})
    }

    /// Changes the first ITS.
    fn unit(&self, change: impl FnOnce(&mut ItsModel)) {
        change(&mut self.gic.state.lock().unwrap().units[0]);
    }

    fn map(&self, requester: Requester, lpi: u32, processor: u32) -> RemappedInterrupt {
        self.its.map_interrupt(requester, vector(lpi, processor)).unwrap()
    }

    fn unmap(&self, interrupt: RemappedInterrupt) {
        self.its.unmap_interrupt(interrupt.handle).unwrap();
    }

    /// What arrives when a device writes an EventID: processor and LPI.
    fn message(&self, device: u32, event: u32) -> Vec<(u32, u32)> {
        self.gic.message(0, device, event);
        self.arrived()
    }

    /// What arrived since the last call: processor and LPI.
    fn arrived(&self) -> Vec<(u32, u32)> {
        self.gic.arrived().into_iter().map(|(cpu, intid)| ((cpu & 0xffff) >> 8, intid - 8192)).collect()
    }

    /// Numbers of the commands of the first ITS since the last call.
    fn log(&self) -> Vec<u64> {
        std::mem::take(&mut self.gic.state.lock().unwrap().units[0].log)
    }
}
