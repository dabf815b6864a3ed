// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the monitor needs from the rest of the hypervisor.

use alloc::string::String;
use alloc::vec::Vec;

use log::LevelFilter;

use crate::base::refusal::Refusal;
use crate::console::TypedInfo;
use crate::dma::fault_log::FaultsInfo;
use crate::irq::vectors::{VectorControl, Vectors};
use crate::monitor::info::{DefinitionInfo, ParentInfo, PasidInfo, PcpuInfo, SystemInfo, VectorInfo, VmInfo};
use crate::system::Dismissal;

/// What can be done to a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmControl {
    /// Builds it and lets it run. Refused unless it is stopped.
    Start,
    /// Ends it in order; its vdevs are quiesced, its memory is freed.
    Stop,
    /// Ends it and starts it anew from its kernel.
    Restart,
    /// Stops its vCPUs where they are, and waits a while for what its vdevs have under way: their states tell.
    Pause,
    /// Lets its vCPUs go on.
    Resume,
    /// Has its serial port receive a BREAK, after what was typed. Refused unless it runs.
    Break,
    /// Takes its definition away. Refused unless it is stopped, and nothing of it is kept back.
    Remove,
}

/// What can be done to the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostPower {
    /// Ends all VMs in order and switches the machine off.
    Off,
    /// Ends all VMs in order and resets the machine.
    Reset,
}

/// A vdev to be created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewVdev<'a> {
    /// Name of the VM that will own it.
    pub vm: &'a str,
    /// Name of the parent.
    pub parent: &'a str,
    /// Name of the type.
    pub type_name: &'a str,
    /// Queue entries; `None` leaves it to the driver.
    pub entries: Option<u16>,
    /// Its part of what it shares with others; `None` leaves it to the driver.
    pub weight: Option<u8>,
    /// The I/O address space it is created on; `None`: the VM's own, or that of the vdev that moves.
    pub ioas: Option<u32>,
}

/// The hypervisor as the monitor sees and controls it. The monitor holds no lock while it calls.
///
/// The getters take snapshots and never wait for a device; the operations may take as long as a device's
/// deadline, and are complete when they return.
pub trait MonitorHost {
    /// Time since boot, in nanoseconds.
    fn now_ns(&self) -> u64;

    /// The hypervisor as a whole.
    fn system(&self) -> SystemInfo;

    /// Every VM, in the order of the configuration, with its vdevs.
    fn vms(&self) -> Vec<VmInfo>;

    /// Every parent, in the order of the configuration.
    fn parents(&self) -> Vec<ParentInfo>;

    /// Every PASID in use or retired.
    fn pasids(&self) -> Vec<PasidInfo>;

    /// Every pCPU.
    fn pcpus(&self) -> Vec<PcpuInfo>;

    /// The fault log.
    fn faults(&self) -> FaultsInfo;

    /// How many exits accesses to the portals of a vdev have caused since it was created. 0 is what one
    /// wants.
    fn submission_exits(&self, vdev: u32) -> u64;

    /// The MSI-X vectors of a vdev; none where there is no such vdev.
    fn vectors(&self, vdev: u32) -> Vec<VectorInfo>;

    /// The VM's place ([`VmId::place`](crate::base::id::VmId::place)); `None` where it was refused, and so is nowhere.
    fn console_of(&self, vm: &str) -> Option<usize>;

    /// What was typed for a VM and has not been taken; `None` where it has no console.
    fn typed(&self, vm: &str) -> Option<TypedInfo>;

    /// The least severe messages that are printed.
    fn log_level(&self) -> LevelFilter;

    /// Changes it.
    fn set_log_level(&mut self, level: LevelFilter);

    /// The files whose VMs can be defined.
    fn definitions(&self) -> Vec<DefinitionInfo>;

    /// Defines the VMs of a file, all or none, and starts none of them. Returns their names.
    ///
    /// # Errors
    /// When there is no such file, it was refused at boot, or one of its VMs cannot be defined now.
    fn define(&mut self, file: &str) -> Result<Vec<String>, Refusal>;

    /// Starts, stops, pauses, removes a VM.
    ///
    /// # Errors
    /// When there is no such VM, or its state does not allow it.
    fn control(&mut self, vm: &str, control: VmControl) -> Result<(), Refusal>;

    /// Creates a vdev, attaches it and plugs it into its VM. Returns its number.
    ///
    /// # Errors
    /// When there is no such VM, parent or type, a quota or the parent has nothing left, or a step fails.
    fn create_vdev(&mut self, vdev: NewVdev<'_>) -> Result<u32, Refusal>;

    /// Creates a vdev as [`MonitorHost::create_vdev`] does, for the VM of another, and takes that one away. Returns the
    /// number of the new one, and what became of the other.
    ///
    /// # Errors
    /// As there, or when there is no such vdev; then everything is as it was.
    fn move_vdev(&mut self, vdev: u32, to: NewVdev<'_>) -> Result<(u32, Dismissal), Refusal>;

    /// Takes a vdev away: asks its guest first, or, `now`, ends it at once.
    ///
    /// # Errors
    /// When there is no such vdev, or its portals may still be in reach.
    fn destroy_vdev(&mut self, vdev: u32, now: bool) -> Result<Dismissal, Refusal>;

    /// Masks, unmasks or triggers vectors of a vdev, on top of what its guest does with them.
    ///
    /// # Errors
    /// When there is no such vdev or vector; when one is to be triggered that the guest has not set up; or when the
    /// hardware does not confirm a mask.
    fn control_vectors(&mut self, vdev: u32, which: Vectors, control: VectorControl) -> Result<(), Refusal>;

    /// Makes an empty I/O address space for a VM. Returns its number.
    ///
    /// # Errors
    /// When there is no such VM, it does not run, or the IOMMU has no table for it.
    fn create_space(&mut self, vm: &str) -> Result<u32, Refusal>;

    /// Maps memory of its VM in an I/O address space.
    ///
    /// # Errors
    /// When there is no such address space, or it is not whole pages of the VM's memory that nothing is mapped at.
    fn map_space(&mut self, ioas: u32, guest: u64, iova: u64, len: u64) -> Result<(), Refusal>;

    /// Takes a mapping out of it.
    ///
    /// # Errors
    /// When there is no such address space or mapping, or the IOMMU does not confirm.
    fn unmap_space(&mut self, ioas: u32, iova: u64, len: u64) -> Result<(), Refusal>;

    /// Puts it behind a vdev, in the place of the one that it has.
    ///
    /// # Errors
    /// When there is no such address space or vdev, they are of different VMs, or the IOMMU does not confirm.
    fn attach_space(&mut self, ioas: u32, vdev: u32) -> Result<(), Refusal>;

    /// Destroys it.
    ///
    /// # Errors
    /// When there is no such address space, it is the VM's own, or a vdev has it.
    fn destroy_space(&mut self, ioas: u32) -> Result<(), Refusal>;

    /// Resets a parent as a whole. Returns how many things are still not proven quiet.
    ///
    /// # Errors
    /// When there is no such parent, guests may still reach it, or it does not come back.
    fn reset_parent(&mut self, parent: &str) -> Result<usize, Refusal>;

    /// Begins to switch the machine off. The answer is still shown.
    ///
    /// # Errors
    /// When the machine has no way to do it.
    fn power(&mut self, power: HostPower) -> Result<(), Refusal>;
}
