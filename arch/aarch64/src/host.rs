// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's services for the kernel and the drivers: time, and interrupts.
//!
//! **Principle.** An interrupt message of a device raises an LPI. The LPIs are the machine's, not a processor's: each is
//! raised on one pCPU at a time.

use alloc::sync::Arc;
use core::ops::Range;

use pasidon_arch_common::memory::RamView;
use pasidon_arch_common::notes::Notes;
use pasidon_arch_common::vectors::{Vectors, candidates};
use pasidon_kernel::base::id::VmId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::memory::SharedMemory;
use pasidon_kernel::memory::ram::GuestRam;
use spin::Mutex;

use crate::interrupts::{self, Handler};
use crate::{gic, pcpu, run, serial, time, vector, vms};

/// How many LPIs there are for devices.
const DEVICES: usize = (vector::DEVICES.end - vector::DEVICES.start) as usize;

static LPIS: Mutex<Vectors<DEVICES>> = Mutex::new(Vectors::new());

/// [`Host`] on this machine.
#[derive(Clone, Copy, Debug)]
pub struct MachineHost;

fn take(pcpu: u32) -> Option<HostVector> {
    let mut lpis = LPIS.lock();
    // As many as may wait there for the loop.
    if lpis.used_by(pcpu) >= Notes::ON_ONE_PCPU {
        return None;
    }
    let taken = lpis.take(pcpu, run::rounds);
    drop(lpis);
    let place = taken.map_err(|none| none.hurry(vms::kick)).ok()?;
    Some(HostVector { vector: vector::DEVICES.start + place as u32, cpu: cpu_of(pcpu)? })
}

impl Host for MachineHost {
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn wake_first(&self) {
        vms::kick(0);
    }

    fn allocate_vector(&self, vm: Option<VmId>) -> Option<HostVector> {
        let count = u32::try_from(pcpu::count()).ok()?;
        candidates(run::world(), vm, count, |pcpu| LPIS.lock().used_by(pcpu)).find_map(take)
    }

    fn guest_memory(&self, ram: &Arc<GuestRam>) -> Arc<SharedMemory> {
        Arc::new(RamView::new(ram))
    }

    fn free_vector(&self, vector: HostVector) {
        let place = vector.vector.wrapping_sub(vector::DEVICES.start) as usize;
        let raised_on = LPIS.lock().give_back(place, run::rounds);
        if let Some(pcpu) = raised_on {
            // One that sleeps goes round once more.
            vms::kick(pcpu);
        }
    }
}

/// The interrupt numbers that devices can be given: LPIs.
pub fn device_vectors() -> Range<u32> {
    vector::DEVICES
}

/// How interrupts name the pCPU of that number: by its affinity.
pub fn cpu_of(pcpu: u32) -> Option<u32> {
    pcpu::get(pcpu).map(|pcpu| gic::affinity(pcpu.mpidr))
}

/// Has a wired interrupt that is raised by its edge handled on the first pCPU.
///
/// # Errors
/// When the INTID is none of a shared peripheral.
pub fn connect_edge(intid: u32, handler: Handler) -> Result<(), Refusal> {
    let first = pcpu::get(0).ok_or_else(|| Refusal::new("interrupts", "there is no first pCPU yet", ""))?;
    interrupts::install(intid, handler);
    gic::route(intid, first.mpidr, true)
}

/// Has `note` called, as an interrupt handler on the first pCPU, when bytes came on the serial line.
///
/// # Errors
/// When it cannot be; the line is then to be looked at from time to time.
pub fn connect_serial(note: fn()) -> Result<(), Refusal> {
    let first = pcpu::get(0).map_or_else(|| pcpu::current().mpidr, |pcpu| pcpu.mpidr);
    let intid = serial::interrupt().ok_or_else(|| {
        Refusal::new("serial line", "the firmware does not state its interrupt (SPCR)", "update the firmware")
    })?;
    interrupts::install(intid, |_| serial::interrupt_came());
    gic::route(intid, first, false)?;
    serial::announce_keys(note);
    Ok(())
}
