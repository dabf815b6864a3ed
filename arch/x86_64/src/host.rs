// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's services for the kernel and the drivers: time, and interrupt vectors.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::Range;

use pasidon_arch_common::memory::RamView;
use pasidon_arch_common::vectors::{Vectors, candidates};
use pasidon_kernel::base::id::VmId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::irq::{HostVector, Route, RouteHandle};
use pasidon_kernel::memory::SharedMemory;
use pasidon_kernel::memory::ram::GuestRam;
use pasidon_kernel::vm::exit::MsiMessage;
use pasidon_kernel::vm::sched::PcpuId;
use spin::{Mutex, Once};

use crate::interrupts::{self, Handler};
use crate::pcpu::{self, MAX_PCPUS};
use crate::posted::{self, Posted};
use crate::{ioapic, run, serial, time, vector, vms};

/// Largest APIC ID that an interrupt message holds without remapping.
const MESSAGE_APIC_ID_MAX: u32 = 0xff;
/// Where interrupt messages are written (SDM 3A, 11.11).
const MESSAGE_BASE: u64 = 0xfee0_0000;
const MESSAGE_DESTINATION_SHIFT: u32 = 12;

/// The vectors for devices, of each pCPU.
static PCPUS: [Mutex<Vectors<DEVICES>>; MAX_PCPUS] = [const { Mutex::new(Vectors::new()) }; MAX_PCPUS];
/// How many these are.
const DEVICES: usize = (*vector::DEVICES.end() - *vector::DEVICES.start()) as usize + 1;

/// What is called when a byte came in.
static KEYS: Once<fn()> = Once::new();

/// [`Host`] on this machine.
#[derive(Clone, Copy, Debug)]
pub struct MachineHost;

/// The vectors that devices can be given on each pCPU.
pub fn device_vectors() -> Range<u32> {
    u32::from(*vector::DEVICES.start())..u32::from(*vector::DEVICES.end()) + 1
}

/// How interrupts name the pCPU of that number.
pub fn cpu_of(pcpu: u32) -> Option<u32> {
    pcpu::apic_id_of(pcpu)
}

/// Has the IOMMU's faults handled on the first pCPU; the answer is where they are to be sent. `None` where that is
/// not known.
pub fn fault_interrupt(handler: Handler) -> Option<HostVector> {
    interrupts::install(vector::IOMMU_FAULT, handler);
    Some(HostVector { vector: vector::IOMMU_FAULT.into(), cpu: pcpu::apic_id_of(0)? })
}

/// Has `note` called, as an interrupt handler on the first pCPU, when bytes came on the serial line, by the interrupt
/// that the platform named. `remap` allows the I/O APIC to raise it, where there is an IOMMU in charge.
///
/// # Errors
/// When it cannot be; the line is then to be looked at from time to time.
pub fn connect_serial(
    gsi: u32,
    remap: Option<&dyn Fn(HostVector) -> Result<MsiMessage, Refusal>>,
    note: fn(),
) -> Result<(), Refusal> {
    let refuse = |why: &str| Refusal::new("COM1", why, "update the firmware");
    let cpu = pcpu::apic_id_of(0).ok_or_else(|| refuse("the first processor is not known"))?;
    let target = HostVector { vector: vector::SERIAL.into(), cpu };
    let message = match remap {
        Some(remap) => remap(target)?,
        None => MachineHost
            .unremapped_message(target)
            .ok_or_else(|| refuse("its interrupt cannot name the first processor"))?,
    };
    KEYS.call_once(|| note);
    interrupts::install(vector::SERIAL, |_| {
        if let Some(note) = KEYS.get() {
            note();
        }
    });
    ioapic::route(gsi, message.address, vector::SERIAL)?;
    serial::enable_receive_interrupt();
    Ok(())
}

/// How many vectors of a pCPU are given out.
fn used(pcpu: u32) -> usize {
    PCPUS.get(pcpu as usize).map_or(usize::MAX, |vectors| vectors.lock().used_by(pcpu))
}

fn take(pcpu: u32) -> Option<HostVector> {
    let taken = PCPUS.get(pcpu as usize)?.lock().take(pcpu, run::rounds);
    let place = taken.map_err(|none| none.hurry(vms::kick)).ok()?;
    Some(HostVector { vector: device_vectors().start + place as u32, cpu: pcpu::apic_id_of(pcpu)? })
}

/// Has VMs get interrupts posted, where there is an IOMMU that may post them, and the processor takes those.
pub fn connect_posted() {
    posted::install(|vm, pcpu| {
        let notification = Notification::new(vm, pcpu)?;
        Some(Posted::new(notification.target, Box::new(notification)))
    });
}

/// A vector of a pCPU that tells that a VM was posted an interrupt while its vCPU did not run.
#[derive(Debug)]
struct Notification {
    target: HostVector,
    /// Until it ends.
    route: Option<RouteHandle>,
}

impl Notification {
    /// Takes a vector of that pCPU for that VM; `None` where it has no more.
    fn new(vm: VmId, pcpu: PcpuId) -> Option<Self> {
        let world = run::world()?;
        let mut taken = Self { target: take(pcpu.0)?, route: None };
        taken.route = Some(world.system.routes().register(taken.target, Route::Posted(vm)).ok()?);
        Some(taken)
    }
}

impl Drop for Notification {
    fn drop(&mut self) {
        if let (Some(world), Some(route)) = (run::world(), self.route.take()) {
            world.system.routes().unregister(route);
        }
        MachineHost.free_vector(self.target);
    }
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
        candidates(run::world(), vm, count, used).find_map(take)
    }

    fn unremapped_message(&self, vector: HostVector) -> Option<MsiMessage> {
        (vector.cpu <= MESSAGE_APIC_ID_MAX).then(|| MsiMessage {
            address: MESSAGE_BASE | u64::from(vector.cpu) << MESSAGE_DESTINATION_SHIFT,
            data: vector.vector,
        })
    }

    fn guest_memory(&self, ram: &Arc<GuestRam>) -> Arc<SharedMemory> {
        Arc::new(RamView::new(ram))
    }

    fn free_vector(&self, vector: HostVector) {
        let count = u32::try_from(pcpu::count()).unwrap_or(u32::MAX);
        let Some(pcpu) = (0..count).find(|pcpu| pcpu::apic_id_of(*pcpu) == Some(vector.cpu)) else {
            return;
        };
        if let Some(vectors) = PCPUS.get(pcpu as usize) {
            let place = vector.vector.wrapping_sub(device_vectors().start) as usize;
            vectors.lock().give_back(place, run::rounds);
        }
        // One that sleeps goes round once more.
        vms::kick(pcpu);
    }
}
