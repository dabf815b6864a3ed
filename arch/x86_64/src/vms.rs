// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machines around VMs: how x86-64 builds one, lets it run and takes it apart.
//!
//! **Locks.** The table of machines; each machine's board (its devices) and stage 2. A vCPU takes the board
//! for one device access. Nobody waits for a pCPU while it holds one of them, except for a vCPU to leave the
//! guest, which needs no lock.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::addr::HostPhys;
use pasidon_kernel::dev::pci::Slot;
use pasidon_kernel::exit::Action;
use pasidon_kernel::frames::{Frames, GuestGone};
use pasidon_kernel::id::{VdevId, VmId};
use pasidon_kernel::ram::GuestRam;
use pasidon_kernel::refusal::Refusal;
use pasidon_kernel::sched::{Scheduler, VcpuId};
use pasidon_kernel::vdev::{PortalsUnmapped, Vdev};
use pasidon_kernel::vm::{VcpusStopped, Vm, VmEnd, VmHost};
use spin::{Mutex, MutexGuard, RwLock};

use crate::backend::Backend;
use crate::guest::boot::{self, BootImage};
use crate::guest::machine::PcPlatform;
use crate::interrupts;
use crate::memory::{self, RamView};
use crate::svm::npt::NestedTable;
use crate::vcpu::{Core, Vcpu};
use crate::{pcpu, time};

/// What the vCPUs need from the rest of the hypervisor.
pub trait Outside: Send + Sync {
    /// A byte that a guest printed on its console.
    fn console(&self, vm: VmId, byte: u8);

    /// There is something for [`Outside::work`]; to be called from any pCPU, also from interrupt handlers.
    fn wake(&self);

    /// What the first pCPU does besides running guests: called between turns, with no lock held.
    fn work(&self);

    /// Whether [`Outside::wake`] was called, or a key pressed, since [`Outside::work`] last looked.
    fn is_woken(&self) -> bool;

    /// When [`Outside::work`] wants to be called at the latest, in nanoseconds of the host's clock.
    fn next_work(&self) -> Option<u64>;

    /// What a VM boots.
    fn image(&self, vm: &str) -> Result<BootImage<'static>, Refusal>;
}

/// The devices of one VM.
#[derive(Debug)]
pub struct Board {
    /// The PC.
    pub platform: PcPlatform,
    slots: Vec<(VdevId, Slot)>,
}

impl Board {
    /// Where a vdev is plugged.
    pub fn slot(&self, vdev: VdevId) -> Option<Slot> {
        self.slots
            .iter()
            .find(|(id, _)| *id == vdev)
            .map(|(_, slot)| *slot)
    }
}

/// The machine around one VM, for one life of it.
#[derive(Debug)]
pub struct Machine {
    /// Number of the VM.
    pub id: VmId,
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its RAM.
    pub memory: RamView,
    /// Its devices.
    pub board: Mutex<Board>,
    stage2: Mutex<NestedTable>,
    /// Its vCPU.
    pub vcpu: Vcpu,
    vms: &'static Vms,
}

/// All machines, and who runs when.
pub struct Vms {
    frames: &'static Frames,
    /// Who runs when.
    pub scheduler: Scheduler,
    outside: &'static dyn Outside,
    /// By number of the VM.
    machines: RwLock<Vec<Option<Arc<Machine>>>>,
    /// Finds a VM by number.
    find: &'static (dyn Fn(VmId) -> Option<Arc<Vm>> + Send + Sync),
    physical_bits: u8,
}

impl core::fmt::Debug for Vms {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vms").finish_non_exhaustive()
    }
}

/// Takes a lock that a pCPU may hold for long, and serves this pCPU's interrupts while it waits. The caller
/// holds no other lock that an interrupt handler takes, or that a vCPU's exit path waits for. What the handlers
/// leave is seen when the caller is back in [`crate::run::run`]'s loop.
pub fn lock_patiently<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    loop {
        match mutex.try_lock() {
            Some(guard) => return guard,
            None => interrupts::window(),
        }
    }
}

impl Machine {
    /// Carries out what a device model asks for. May be called with the board locked.
    pub fn act(&self, action: Action) {
        match action {
            Action::Message(message) => {
                self.vcpu.post(message);
                self.notify();
            }
            Action::MapPortal { guest, host, len } => {
                if let Err(refusal) = self.stage2.lock().map_portal(guest, host, len) {
                    log::error!("vm {}: {refusal}", self.vm.name());
                }
            }
            Action::UnmapPortal { guest, len } => {
                self.stage2.lock().unmap_portal(guest, len);
                self.forget_translations();
            }
            Action::Console(byte) => self.vms.outside.console(self.id, byte),
            Action::PowerOff => self.end(VmEnd::PowerOff),
            Action::Reset => self.end(VmEnd::Reset),
            // The platform keeps wired interrupts to itself.
            Action::Line { .. } => {}
        }
    }

    /// Makes the vCPU look at what it was sent.
    fn notify(&self) {
        let kick = self.vms.scheduler.wake(self.vcpu.seat);
        if kick || self.vcpu.is_in_guest() {
            self.kick();
        }
    }

    /// Interrupts the vCPU's pCPU, unless that is this one.
    fn kick(&self) {
        kick(self.vcpu.seat.pcpu.0);
    }

    /// When this returns, the guest uses no translation from before.
    fn forget_translations(&self) {
        self.vcpu.request_flush();
        if self.vcpu.seat.pcpu.0 == pcpu::current().index {
            return;
        }
        if self.vcpu.is_in_guest() {
            self.kick();
        }
        while self.vcpu.uses_old_translations() {
            core::hint::spin_loop();
        }
    }

    /// The VM's life is over; the main loop does the rest.
    pub fn end(&self, end: VmEnd) {
        self.vm.request(end);
        self.vcpu.end();
        self.vms.outside.wake();
    }

    /// A byte typed on its console; false where the guest has no room for it.
    pub fn type_byte(&self, byte: u8) -> bool {
        lock_patiently(&self.board)
            .platform
            .push_input(byte, &mut |action| self.act(action))
    }

    /// How many typed bytes it takes now.
    pub fn input_space(&self) -> usize {
        lock_patiently(&self.board).platform.input_space()
    }

    /// Submissions to a vdev's portal that were trapped instead of reaching the device directly.
    pub fn portal_traps(&self, vdev: VdevId) -> Option<u64> {
        let mut board = lock_patiently(&self.board);
        let slot = board.slot(vdev)?;
        Some(board.platform.pci().portal_traps(slot))
    }

    /// The physical device raised an interrupt of a vdev.
    pub fn interrupt(&self, vdev: VdevId, vector: u16) {
        let mut board = lock_patiently(&self.board);
        if let Some(slot) = board.slot(vdev) {
            board
                .platform
                .vdev_interrupt(slot, vector, &mut |action| self.act(action));
        }
    }

    /// Bytes taken by stage-2 tables.
    pub fn table_bytes(&self) -> u64 {
        self.stage2.lock().bytes()
    }
}

/// Interrupts a pCPU, unless it is this one, which looks by itself.
pub fn kick(index: u32) {
    if index != pcpu::current().index {
        interrupts::kick(index);
    }
}

impl Vms {
    /// No machines yet. Memory for tables comes from `frames`; `physical_bits` is what nested tables reach.
    pub fn new(
        frames: &'static Frames,
        scheduler: Scheduler,
        outside: &'static dyn Outside,
        find: &'static (dyn Fn(VmId) -> Option<Arc<Vm>> + Send + Sync),
        physical_bits: u8,
    ) -> Self {
        Self {
            frames,
            scheduler,
            outside,
            machines: RwLock::new(Vec::new()),
            find,
            physical_bits,
        }
    }

    /// The rest of the hypervisor.
    pub fn outside(&self) -> &'static dyn Outside {
        self.outside
    }

    /// Memory for tables.
    pub fn frames(&self) -> &'static Frames {
        self.frames
    }

    /// The machine of a VM, while it has one. Whoever holds on to it delays the end of the VM.
    pub fn machine(&self, vm: VmId) -> Option<Arc<Machine>> {
        self.machines.read().get(usize::from(vm.0))?.clone()
    }

    /// Waits until the machine's vCPU does not run. Called from the main loop, so it is not running on this
    /// pCPU.
    fn wait_stopped(&self, machine: &Machine) {
        let seat = machine.vcpu.seat;
        if seat.pcpu.0 == pcpu::current().index {
            // The scheduler still takes it for the current one; it is asked again before anything runs.
            self.scheduler.next(seat.pcpu, time::now_ns());
            return;
        }
        while self.scheduler.is_running(seat) {
            interrupts::window();
        }
    }
}

/// Vms, as the kernel's operations see it.
#[derive(Clone, Copy, Debug)]
pub struct Builder(pub &'static Vms);

impl VmHost for Builder {
    fn scrub(&self, start: HostPhys, len: u64) {
        // SAFETY: the frames are RAM, mapped at their physical address, and nobody's at this moment.
        unsafe { memory::zero(start, len) }
    }

    fn build(&self, vm: &Vm, ram: &Arc<GuestRam>) -> Result<(), Refusal> {
        let vms = self.0;
        let id = vm.id();
        let shared = (vms.find)(id).ok_or_else(|| Refusal::new("vm", "not defined", "define it first"))?;
        let image = vms.outside.image(vm.name())?;
        let memory = RamView::new(ram);
        let entry = boot::load(&memory, &image)?;
        let mut stage2 = NestedTable::new(vms.frames)?;
        stage2.map_ram(ram)?;
        let mut core = Core::new(vm.name(), stage2.root(), vms.physical_bits);
        core.hardware.start_at(&entry);
        let board = Board {
            platform: PcPlatform::new()?,
            slots: Vec::new(),
        };
        let seat = vms.scheduler.assign(VcpuId { vm: id, index: 0 })?;
        let machine = Machine {
            id,
            vm: shared,
            memory,
            board: Mutex::new(board),
            stage2: Mutex::new(stage2),
            vcpu: Vcpu::new(seat, core),
            vms,
        };
        let mut machines = vms.machines.write();
        let index = usize::from(id.0);
        if machines.len() <= index {
            machines.resize_with(index + 1, || None);
        }
        machines[index] = Some(Arc::new(machine));
        Ok(())
    }

    fn plug(&self, vm: &Vm, vdev: &Vdev) -> Result<(), Refusal> {
        let machine = self.0.machine(vm.id()).ok_or_else(|| {
            Refusal::new(format!("vm {}", vm.name()), "it has no machine", "start it first")
        })?;
        let mut board = lock_patiently(&machine.board);
        let slot = board.platform.add_vdev(vdev.guest_side())?;
        board.slots.push((vdev.id(), slot));
        Ok(())
    }

    fn unplug(&self, vm: &Vm, vdev: VdevId) -> PortalsUnmapped {
        if let Some(machine) = self.0.machine(vm.id()) {
            let mut board = lock_patiently(&machine.board);
            if let Some(slot) = board.slot(vdev) {
                board
                    .platform
                    .remove_vdev(slot, &mut |action| machine.act(action));
                board.slots.retain(|(id, _)| *id != vdev);
            }
        }
        PortalsUnmapped::confirmed_by_arch(vdev)
    }

    fn device_event(&self, vm: &Vm, vdev: VdevId) {
        let Some(machine) = self.0.machine(vm.id()) else {
            return;
        };
        let mut raised = Vec::new();
        let mut board = lock_patiently(&machine.board);
        let Some(slot) = board.slot(vdev) else { return };
        if let Some(model) = board.platform.pci().model(slot) {
            model.device_event(&mut |vector| raised.push(vector));
        }
        for vector in raised {
            board
                .platform
                .vdev_interrupt(slot, vector, &mut |action| machine.act(action));
        }
    }

    fn run(&self, vm: &Vm) -> Result<(), Refusal> {
        let Some(machine) = self.0.machine(vm.id()) else {
            return Err(Refusal::new(
                format!("vm {}", vm.name()),
                "it has no machine",
                "start it first",
            ));
        };
        let seat = machine.vcpu.seat;
        let resumed = self.0.scheduler.resume(seat);
        if self.0.scheduler.wake(seat) || resumed {
            machine.kick();
        }
        Ok(())
    }

    fn pause(&self, vm: &Vm) {
        let Some(machine) = self.0.machine(vm.id()) else {
            return;
        };
        if self.0.scheduler.suspend(machine.vcpu.seat) {
            machine.kick();
        }
        self.0.wait_stopped(&machine);
    }

    fn stop(&self, vm: &Vm) -> VcpusStopped {
        if let Some(machine) = self.0.machine(vm.id()) {
            machine.vcpu.end();
            if self.0.scheduler.remove(machine.vcpu.seat) {
                machine.kick();
                self.0.wait_stopped(&machine);
            }
        }
        VcpusStopped::confirmed_by_arch(vm.id())
    }

    fn tear_down(&self, vm: &Vm, _stopped: VcpusStopped) -> GuestGone {
        let machine = {
            let mut machines = self.0.machines.write();
            machines.get_mut(usize::from(vm.id().0)).and_then(Option::take)
        };
        if let Some(mut machine) = machine {
            // Another pCPU may hold it for the moment that it takes to leave a turn or to deliver a message.
            loop {
                match Arc::try_unwrap(machine) {
                    Ok(alone) => break drop(alone),
                    Err(shared) => machine = shared,
                }
                interrupts::window();
            }
        }
        GuestGone::confirmed_by_arch()
    }
}

/// Names a VM for the scheduler's list.
pub fn name_of(vms: &Vms, id: VmId) -> String {
    (vms.find)(id).map_or_else(|| id.to_string(), |vm| vm.name().to_string())
}
