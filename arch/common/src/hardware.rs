// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an architecture brings, so that guests can run: one trait for the processor ([`Hardware`]), one for a vCPU
//! ([`Core`]), one for a VM's devices ([`Chipset`]), one for its memory ([`Stage2`]).
//!
//! **Principle.** Who runs when, how interrupts find their guest, and in which order things begin and end is the
//! same everywhere and stands in [`crate::run`] and [`crate::vms`], once. An architecture only answers questions.

use alloc::boxed::Box;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::{GuestPhys, HostPhys};
use pasidon_kernel::base::id::VmId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use pasidon_kernel::dev::pci::{PciBus, Slot};
use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::memory::ram::{GuestRam, RamRange};
use pasidon_kernel::vdev::parent::VdevRegisters;
use pasidon_kernel::vm::exit::{Actions, MsiMessage};
use pasidon_kernel::vm::sched::PcpuId;
use pasidon_kernel::vm::stats::ExitKind;

use crate::entropy::Seed;
use crate::view::VmView;

/// What a VM boots.
#[derive(Clone, Copy, Debug)]
pub struct BootImage<'a> {
    /// The kernel, in a form that the architecture's loader knows.
    pub kernel: &'a [u8],
    /// Initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// Command line, without a terminating zero.
    pub cmdline: &'a str,
    /// Slots of its PCI bus, of which the firmware tells it.
    pub slots: u8,
    /// What its random numbers begin with, another one at each start; `None` where the machine has no source.
    pub seed: Option<Seed>,
}

/// A processor architecture with a way to run guests.
pub trait Hardware: Sized + 'static {
    /// What running guests needs once per pCPU.
    type Pcpu;
    /// The part of a vCPU that only its pCPU touches.
    type Core: Core<Pcpu = Self::Pcpu, Chipset = Self::Chipset>;
    /// The devices of a VM.
    type Chipset: Chipset;
    /// The guest-physical memory of a VM.
    type Stage2: Stage2;
    /// How a vCPU starts what was loaded.
    type Entry;

    /// Makes the pCPU that calls ready for guests. Once on each.
    ///
    /// # Errors
    /// When it lacks what guests need, or there is no memory for it.
    fn enable(pcpu: u32, frames: &'static Frames) -> Result<Self::Pcpu, Refusal>;

    /// An empty stage 2, its tables from `frames`.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn stage2(frames: &'static Frames) -> Result<Self::Stage2, Refusal>;

    /// Where a VM with so many bytes of RAM has them; no range is empty.
    fn ram(bytes: u64) -> Vec<RamRange>;

    /// Loads the image into a VM's RAM.
    ///
    /// # Errors
    /// When the image is no kernel for the VM, or does not fit its RAM.
    fn load(memory: &dyn GuestMemory, image: &BootImage<'_>) -> Result<Self::Entry, Refusal>;

    /// Makes the devices and the vCPU of a VM with so many bytes of RAM and slots, before its first instruction.
    ///
    /// # Errors
    /// When there is no memory for them.
    fn build(
        vm: &str,
        ram_bytes: u64,
        slots: u8,
        entry: Self::Entry,
        stage2: &Self::Stage2,
    ) -> Result<(Self::Core, Self::Chipset), Refusal>;

    /// Tells where a VM's vCPU has its seat, before its first turn.
    fn take_seat(_core: &mut Self::Core, _chipset: &mut Self::Chipset, _vm: VmId, _pcpu: PcpuId) {}

    /// The hypervisor has written to a VM's RAM for the last time before its vCPU runs. Where a guest can look past the
    /// caches, it must find there what was written, not what others left in memory.
    fn release_ram(ram: &GuestRam);

    /// Number of the pCPU that calls.
    fn this_pcpu() -> u32;

    /// Interrupts that pCPU, which may be this one.
    fn kick(pcpu: u32);

    /// Takes the interrupts that wait. No lock may be held that a handler takes.
    fn window();

    /// Waits for an interrupt and takes those that wait.
    fn wait();

    /// Nanoseconds of the host's clock.
    fn now_ns() -> u64;

    /// Sets this pCPU's timer, or switches it off.
    fn arm_timer(deadline_ns: Option<u64>);
}

/// The part of a vCPU that only its pCPU touches. All calls come from the pCPU that runs it, in this order:
/// `was_paused`, where that is so; `load`; any number of turns of `tick`, `is_waiting`, `prepare`, then either `cancel`,
/// or `enter` and `left`, and `handle`; then `unload`.
pub trait Core: Send {
    /// What its processor needs once per pCPU.
    type Pcpu;
    /// The devices of its VM.
    type Chipset;
    /// Why the guest stopped running.
    type Reason;

    /// The VM was paused since the last turn; `total_ns` is what all pauses of this life took, in nanoseconds, each
    /// rounded in no other way than the host's clock is. A guest whose time can stand still meanwhile has it so; one
    /// that has a way to learn of the pause is told. Else it would take the time for a fault of its own.
    fn was_paused(&mut self, vm: &VmView<'_, Self::Chipset>, total_ns: u64);

    /// Puts the guest's state on the pCPU. Whoever ran there before has been unloaded.
    fn load(&mut self, vm: &VmView<'_, Self::Chipset>, pcpu: &mut Self::Pcpu);

    /// Takes it off again.
    fn unload(&mut self, vm: &VmView<'_, Self::Chipset>, pcpu: &mut Self::Pcpu);

    /// An interrupt message came, where these come to vCPUs.
    fn accept(&mut self, message: MsiMessage);

    /// Time has passed: looks at the guest's timers.
    fn tick(&mut self);

    /// Something that changes when the guest sets its timer, and with it [`Core::deadline_ns`].
    fn timer(&self) -> Option<u64>;

    /// When the guest's timer wants to be looked at, in nanoseconds of the host's clock; `None` where it does not,
    /// or where the hardware does it by itself.
    fn deadline_ns(&self) -> Option<u64>;

    /// Whether it waits for an interrupt, and none is there.
    fn is_waiting(&mut self, vm: &VmView<'_, Self::Chipset>) -> bool;

    /// When something that no one will kick for ends the wait, in nanoseconds of the host's clock.
    fn wake_ns(&self) -> Option<u64> {
        self.deadline_ns()
    }

    /// Chooses what the guest is interrupted by at the next entry.
    fn prepare(&mut self, vm: &VmView<'_, Self::Chipset>);

    /// The entry that was prepared does not come.
    fn cancel(&mut self, _vm: &VmView<'_, Self::Chipset>) {}

    /// Runs the guest until something happens. `flush` drops its translations first.
    fn enter(&mut self, pcpu: &mut Self::Pcpu, flush: bool) -> Self::Reason;

    /// Takes back what `prepare` gave, before anything else looks at it.
    fn left(&mut self, vm: &VmView<'_, Self::Chipset>);

    /// What the last exit was, for the exit history: code, two words about it, program counter.
    fn last_exit(&self) -> [u64; 4];

    /// The counter of a reason.
    fn kind(reason: &Self::Reason) -> ExitKind;

    /// Answers what the guest did. False where the host has something to do first: an interrupt of its own.
    fn handle(&mut self, vm: &VmView<'_, Self::Chipset>, reason: Self::Reason) -> bool;
}

/// The devices of a VM.
pub trait Chipset: Send {
    /// A byte typed for the guest, or a BREAK; false where its queue is full and it was not taken.
    fn push_input(&mut self, received: Received, actions: Actions<'_>) -> bool;

    /// The PCI bus, for what the monitor shows of its vdevs.
    fn pci(&mut self) -> &mut PciBus;

    /// The PCI bus, for what may have it interrupt the guest. Of what it asks for, `actions` gets what is not the
    /// business of the devices themselves.
    fn with_pci<T>(&mut self, actions: Actions<'_>, act: impl FnOnce(&mut PciBus, Actions<'_>) -> T) -> T;

    /// Puts a vdev on the bus.
    ///
    /// # Errors
    /// When no slot is free, or a BAR finds no room.
    fn add_vdev(&mut self, model: Box<dyn VdevRegisters>, actions: Actions<'_>) -> Result<Slot, Refusal> {
        self.with_pci(actions, |pci, actions| pci.add(model, actions))
    }

    /// Ends a vdev on the bus, its portals unmapped; the model comes back for its end.
    fn end_vdev(&mut self, slot: Slot, actions: Actions<'_>) -> Option<Box<dyn VdevRegisters>> {
        self.with_pci(actions, |pci, actions| pci.end(slot, actions))
    }

    /// The physical device raised interrupt `vector` of the vdev in `slot`.
    fn vdev_interrupt(&mut self, slot: Slot, vector: u16, actions: Actions<'_>) {
        self.with_pci(actions, |pci, actions| pci.interrupt(slot, vector, actions));
    }

    /// Whether the vCPU's next entry would be different from the present one, since the last call; where interrupts
    /// go to the vCPU as messages, never.
    fn take_wake(&mut self) -> bool {
        false
    }
}

/// The guest-physical memory of a VM.
pub trait Stage2: Send {
    /// Maps a VM's RAM, writable and executable.
    ///
    /// # Errors
    /// When there is no memory for tables, or something is mapped there.
    fn map_ram(&mut self, ram: &GuestRam) -> Result<(), Refusal>;

    /// Maps a window of a device: uncached, not executable.
    ///
    /// # Errors
    /// When there is no memory for tables, or something is mapped there.
    fn map_portal(&mut self, guest: GuestPhys, host: HostPhys, len: u64) -> Result<(), Refusal>;

    /// Removes a window of a device. The caller has the translations dropped.
    fn unmap_portal(&mut self, guest: GuestPhys, len: u64);

    /// Bytes taken by tables.
    fn bytes(&self) -> u64;
}
