// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the monitor shows: plain copies of the state at one moment.
//!
//! **Principle.** Whoever renders these holds no lock and can change nothing. Taking a snapshot never
//! waits for a device. Field names are the ones of `--json` and so part of the monitor's interface; programs
//! at the other end of the line read answers back into the same types, also recorded ones of before a field was there.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::config::VmConfig;

/// One of a few words: a constant here, text of its own where an answer is read back.
pub type Word = Cow<'static, str>;

/// A vdev's name: `dsa0/dsa-dwq#3`.
pub fn vdev_name(parent: &str, type_name: &str, id: u32) -> String {
    format!("{parent}/{type_name}#{id}")
}

/// Name and value of something worth knowing that only its driver understands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Detail {
    /// Name.
    pub name: String,
    /// Value, for people.
    pub value: String,
}

/// The hypervisor as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Time since boot in nanoseconds.
    pub uptime_ns: u64,
    /// Why isolation is weaker than it should be; shown as TAINTED wherever the state is shown. Empty is
    /// what one wants.
    pub taints: Vec<String>,
    /// The IOMMU, if there is one.
    pub iommu: Option<IommuInfo>,
    /// Physical memory.
    pub memory: MemoryInfo,
    /// PASIDs.
    pub pasids: PasidSpaceInfo,
    /// Number of VMs, whatever their state.
    pub vms: usize,
    /// Number of vdevs.
    pub vdevs: usize,
    /// Interrupts of physical devices that led to no vdev any more (late ones, dropped).
    pub stray_interrupts: u64,
    /// What a failed stop has cost; empty is what one wants.
    pub retired: Vec<RetiredInfo>,
    /// How many things that were retired have come back since boot.
    pub revived: u64,
}

/// The IOMMU.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IommuInfo {
    /// Its kind: `vtd`.
    pub name: String,
    /// Width of PASIDs, in bits.
    pub pasid_bits: u8,
    /// Width of I/O addresses, in bits.
    pub address_bits: u8,
    /// Largest leaf, in bytes.
    pub largest_page: u64,
    /// Whether interrupts are remapped.
    pub interrupt_remapping: bool,
    /// Invalidation commands issued since bring-up.
    pub commands_issued: u64,
    /// The I/O address spaces.
    pub spaces: Vec<IoasInfo>,
}

/// One I/O address space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IoasInfo {
    /// Its number.
    pub id: u32,
    /// Name of the VM that owns it.
    pub vm: String,
    /// The driver's number of its table.
    pub table: u32,
    /// Number of mapped ranges.
    pub mappings: usize,
    /// Bytes mapped.
    pub mapped_bytes: u64,
    /// PASIDs attached to it, retired ones included.
    pub pasids: Vec<u32>,
}

/// Physical memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MemoryInfo {
    /// All that was given to the hypervisor for guests and tables.
    pub total: u64,
    /// Not in use.
    pub free: u64,
    /// In use by guests.
    pub guests: u64,
    /// In use by tables.
    pub tables: u64,
    /// Held because a device that can still reach it would not stop.
    pub held: u64,
    /// What the hypervisor itself takes: its image and the first pieces of its heap lie beside the total, what the heap
    /// has grown by is of it.
    pub hypervisor: HypervisorMemory,
}

/// What the hypervisor itself takes, in bytes. Whoever loads it fills it in; 0 where that is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HypervisorMemory {
    /// Its loaded image.
    pub image: u64,
    /// Its heap.
    pub heap: u64,
    /// What of the heap is in use.
    pub heap_used: u64,
}

/// The PASID namespace, or all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PasidSpaceInfo {
    /// Smallest PASID that is leased.
    pub first: u32,
    /// Largest one.
    pub last: u32,
    /// Leased now.
    pub leased: u32,
    /// Not used again, because their end was not confirmed.
    pub retired: u32,
    /// Each device has a namespace of its own, and these are the sums.
    #[serde(default)]
    pub per_device: bool,
}

/// One VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmInfo {
    /// Its number: its place from 0, and 32 more for each VM that had that place before, up to 65535. In framed mode its
    /// console is channel `id % 32 + 1`.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// `created`, `starting`, `running`, `paused`, `stopping`, `held`, `stopped` or `crashed`; `refused` where it could not be
    /// made at boot.
    pub state: Word,
    /// Why it stopped, crashed or could not start.
    pub reason: Option<String>,
    /// Number of vCPUs.
    pub vcpus: u16,
    /// Memory of its definition, in bytes.
    pub memory: u64,
    /// Memory it has now, in bytes: 0 while it is stopped.
    pub memory_in_use: u64,
    /// Quota of PASIDs.
    pub pasid_quota: u32,
    /// PASIDs leased to it.
    pub pasids_leased: u32,
    /// PASIDs of it whose end was not confirmed.
    pub pasids_retired: u32,
    /// How often it was started.
    pub starts: u64,
    /// Time its vCPUs ran, in nanoseconds, since it was defined.
    pub run_ns: u64,
    /// Exits by kind since it was defined, all kinds in a fixed order.
    pub exits: Vec<ExitCount>,
    /// Interrupts of physical devices that came to the hypervisor for its vdevs.
    pub interrupts: u64,
    /// Interrupts that came in turns of other VMs, in all lives and with those of vdevs that have ended.
    pub away: AwayInfo,
    /// Records of DMA faults of its vdevs; see [`crate::dma::fault_log::FaultsInfo::records`].
    pub fault_records: u64,
    /// Its vdevs.
    pub vdevs: Vec<VdevInfo>,
}

impl VmInfo {
    /// What is known of a VM of the configuration that could not be made, and why.
    pub fn refused(config: &VmConfig, why: String) -> Self {
        /// Beyond the numbers of VMs that were made.
        const FIRST_ID: u32 = 1 << 16;
        Self {
            id: FIRST_ID + config.index as u32,
            name: config.name.value.clone(),
            state: "refused".into(),
            reason: Some(why),
            vcpus: config.vcpus.value,
            memory: config.memory.value,
            memory_in_use: 0,
            pasid_quota: config.pasids.value.into(),
            pasids_leased: 0,
            pasids_retired: 0,
            starts: 0,
            run_ns: 0,
            exits: Vec::new(),
            interrupts: 0,
            away: AwayInfo::default(),
            fault_records: 0,
            vdevs: Vec::new(),
        }
    }
}

/// A file of VMs that can be defined.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DefinitionInfo {
    /// Its path on the ESP.
    pub file: String,
    /// The names of its VMs, whether they are defined or not; none where it was refused.
    pub vms: Vec<String>,
    /// Why it was refused at boot.
    pub refused: Option<String>,
}

/// Interrupts of devices that came in turns of other VMs on the same pCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AwayInfo {
    /// How many.
    pub interrupts: u64,
    /// Time that they took the hypervisor, in nanoseconds. It is in nobody's run time.
    pub time_ns: u64,
    /// How often they were too many, and were masked at the device until the owner's turn.
    pub masked: u64,
}

/// How often a VM exited for one reason.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExitCount {
    /// The reason: `mmio`, `io`, `halt`, …
    pub kind: Word,
    /// How often.
    pub count: u64,
}

/// One vdev.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VdevInfo {
    /// Its number; never used for another.
    pub id: u32,
    /// Name of the VM that owns it.
    pub vm: String,
    /// Name of its parent.
    pub parent: String,
    /// Name of its type.
    pub type_name: String,
    /// Why its isolation is weaker than it should be. Anything here is TAINTED.
    #[serde(default)]
    pub taints: Vec<String>,
    /// `attached`, or `leaving` where its guest was asked to let go of it and has not yet.
    #[serde(default)]
    pub state: Word,
    /// `running`; while its VM is paused `draining` (the device may have some of it), `drained` (nothing is under way) or
    /// `held` (the device has nothing of it, and what waits stays). `running` stays where its driver can do neither.
    #[serde(default = "running")]
    pub work: Word,
    /// Its PASID; `None` where its parent is used without an IOMMU.
    pub pasid: Option<u32>,
    /// The I/O address space it is attached to.
    pub ioas: Option<u32>,
    /// Its physical interrupts.
    pub interrupts: Vec<InterruptInfo>,
    /// Interrupts that came in turns of other VMs.
    pub away: AwayInfo,
    /// Records of DMA faults with its PASID, likewise.
    pub fault_records: u64,
    /// What its driver says (queue, state, submissions). Empty while the model is busy.
    pub details: Vec<Detail>,
}

/// What answers mean that were recorded before this was told.
fn running() -> Word {
    "running".into()
}

/// A vdev as the monitor lists it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VdevRow {
    /// `dsa0/dsa-dwq#3`.
    pub name: String,
    /// Exits that accesses to its portals caused.
    pub submission_exits: u64,
    /// The rest.
    #[serde(flatten)]
    pub info: VdevInfo,
}

impl VdevRow {
    /// How many interrupts of it came to the hypervisor.
    pub fn interrupts(&self) -> u64 {
        self.info.interrupts.iter().map(|line| line.came).fold(0, u64::saturating_add)
    }

    /// A value only its driver knows.
    pub fn detail(&self, name: &str) -> Option<&str> {
        let detail = self.info.details.iter().find(|detail| detail.name == name);
        detail.map(|detail| detail.value.as_str())
    }
}

/// One physical interrupt that leads to a vdev.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InterruptInfo {
    /// MSI-X entry of the parent.
    pub entry: u16,
    /// MSI-X vector of the vdev.
    pub virtual_vector: u16,
    /// Vector on the processor that takes it.
    pub host_vector: u32,
    /// That processor's hardware identifier.
    pub cpu: u32,
    /// Vector of the guest that the hardware posts it as, without the hypervisor; `None` where the hypervisor delivers it.
    pub posted_as: Option<u8>,
    /// How often it came to the hypervisor.
    #[serde(alias = "delivered")]
    pub came: u64,
}

/// One MSI-X vector of a vdev.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VectorInfo {
    /// Its number.
    pub vector: u16,
    /// What the guest has made of it: `off` (MSI-X is off), `unused` (no message programmed), `masked` (the vector, the
    /// function, or no bus master) or `open`.
    pub guest: Word,
    /// The host masks it.
    pub masked: bool,
    /// Each interrupt that is sent has the host mask it.
    pub automask: bool,
    /// An interrupt waits for the last mask to go.
    pub pending: bool,
    /// Interrupts that the hypervisor sent to the guest.
    pub delivered: u64,
    /// Interrupts that came while something masked it. Those of one time are one interrupt when they are sent.
    pub pended: u64,
    /// Interrupts that the monitor had come.
    pub triggered: u64,
}

/// One PASID in use or retired.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PasidInfo {
    /// The number.
    pub pasid: u32,
    /// `attached` or `retired`.
    pub state: Word,
    /// Since when it is in that state, in nanoseconds since boot.
    pub since_ns: u64,
    /// How many attachments had it before.
    pub used_before: u32,
    /// Name of the VM that has or had it.
    pub vm: String,
    /// Name of the parent.
    pub parent: String,
    /// The vdev it belongs or belonged to.
    pub vdev: u32,
    /// The I/O address space.
    pub ioas: Option<u32>,
    /// Why it was retired.
    pub reason: Option<String>,
}

/// One parent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ParentInfo {
    /// Its name.
    pub name: String,
    /// Where it is: `0000:00:04.0`.
    pub requester: String,
    /// Whether an IOMMU confines it. False is TAINTED.
    pub iommu: bool,
    /// Why isolation on it is weaker than it should be. Anything here is TAINTED.
    #[serde(default)]
    pub taints: Vec<String>,
    /// Why it cannot be used at all.
    pub unusable: Option<String>,
    /// Its types.
    pub types: Vec<TypeInfo>,
    /// Events its driver reported (errors, halts).
    pub events: u64,
    /// What its driver says (queues, state, firmware).
    pub details: Vec<Detail>,
}

/// One type of a parent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TypeInfo {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Whether the guest reaches the device without an exit.
    pub direct_portal: bool,
    /// Instances an unused parent offers.
    pub instances: u16,
    /// Instances that could be created now.
    pub available: u16,
}

/// Something that a device or IOMMU that did not stop has cost, until its stop is confirmed, its parent is reset or
/// the machine restarts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RetiredInfo {
    /// `pasid`, `vdev`, `interrupt`, `ioas` or `memory`.
    pub what: Word,
    /// Name of the VM it belonged to.
    pub vm: String,
    /// Which one: the number of the PASID, vdev, vector or address space, or the number of bytes.
    pub value: u64,
    /// Why.
    pub why: String,
    /// Since when, in nanoseconds since boot.
    pub since_ns: u64,
    /// How often it was asked again since whether it has stopped.
    pub tries: u32,
}

impl core::fmt::Display for RetiredInfo {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { what, vm, value, why, .. } = self;
        write!(
            f,
            "vm {vm}: {what} {value} is kept back: {why}; it is asked again, and a reset of its parent helps"
        )
    }
}

/// One pCPU, for `top`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PcpuInfo {
    /// Its number, from 0.
    pub index: u32,
    /// The vCPU that runs there now, as `NAME/INDEX`.
    pub running: Option<String>,
    /// vCPUs that are ready and wait.
    pub waiting: usize,
    /// vCPUs assigned to it, halted ones included.
    pub assigned: usize,
    /// It does not come back from what it does.
    pub lost: bool,
}
