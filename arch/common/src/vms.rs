// SPDX-License-Identifier: MIT OR Apache-2.0
//! What there is of VMs while they live ([`Instance`]). How one is built and taken apart is in `vms/vm_host.rs`.
//!
//! **Locks.** The table of instances; each one's board (its devices) and stage 2. A vCPU takes the board
//! for one device access. Nobody waits for a pCPU while it holds one of them.
//!
//! **Lost pCPUs.** Whoever waits for another pCPU waits for [`PATIENCE_NS`] at most. One that does not come back by
//! then is lost, and the VMs that are seated there end, or are held where it may still be in their guest. The rest goes
//! on; should it come back, what was held is taken apart.

mod vm_host;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::base::allowance::{Allowance, Withheld};
use pasidon_kernel::base::id::{VdevId, VmId};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use pasidon_kernel::housekeeping::Housekeeping;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::monitor::info::VectorInfo;
use pasidon_kernel::system::System;
use pasidon_kernel::vm::exit::Action;
use pasidon_kernel::vm::sched::{PATIENCE_NS, PcpuId, Scheduler};
use pasidon_kernel::vm::{Vm, VmEnd, VmHost};
use spin::{Mutex, MutexGuard, RwLock};

use crate::board::Board;
use crate::guest_files::Files;
use crate::hardware::{Chipset, Hardware, Stage2};
use crate::memory::RamView;
use crate::pauses::Pauses;
use crate::vcpu::Vcpu;
use crate::view::{Sink, VmView};

/// What the vCPUs need from the rest of the hypervisor.
pub trait Outside: Send + Sync {
    /// A byte that a guest printed on its console.
    fn console(&self, vm: VmId, byte: u8);

    /// There is something for [`Outside::work`]; to be called from any pCPU, also from interrupt handlers.
    fn wake(&self);

    /// The event interrupt of a parent came, by its number in [`Route::ParentEvent`](pasidon_kernel::irq::Route); else
    /// as [`Outside::wake`].
    fn parent_event(&self, parent: u16);

    /// What the first pCPU does besides running guests: called between turns, with no lock held.
    fn work(&self, vm_host: &dyn VmHost);

    /// Whether [`Outside::wake`] was called, or a key pressed, since [`Outside::work`] last looked.
    fn is_woken(&self) -> bool;

    /// When [`Outside::work`] wants to be called at the latest, in nanoseconds of the host's clock.
    fn next_work(&self) -> Option<u64>;
}

impl Outside for Housekeeping {
    fn console(&self, vm: VmId, byte: u8) {
        self.guest_output(vm, byte);
    }

    fn wake(&self) {
        Housekeeping::wake(self);
    }

    fn parent_event(&self, parent: u16) {
        self.note_parent(parent);
    }

    fn work(&self, vm_host: &dyn VmHost) {
        Housekeeping::work(self, vm_host);
    }

    fn is_woken(&self) -> bool {
        Housekeeping::is_woken(self)
    }

    fn next_work(&self) -> Option<u64> {
        Housekeeping::next_work(self)
    }
}

/// A VM for one life of it: its RAM, devices, stage 2 and vCPU.
pub struct Instance<H: Hardware> {
    /// Number of the VM.
    pub id: VmId,
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its RAM.
    pub memory: RamView,
    /// Its devices.
    pub board: Mutex<Board<H::Chipset>>,
    stage2: Mutex<H::Stage2>,
    /// Its vCPU.
    pub vcpu: Vcpu<H::Core>,
    /// How long it was paused.
    pub pauses: Pauses,
    /// Lines that its acts may still cause.
    lines: Mutex<Allowance>,
    vms: &'static Vms<H>,
}

impl<H: Hardware> core::fmt::Debug for Instance<H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Instance").field("id", &self.id).finish_non_exhaustive()
    }
}

/// All instances, and who runs when.
pub struct Vms<H: Hardware> {
    frames: &'static Frames,
    /// Who runs when.
    pub scheduler: Scheduler,
    outside: &'static dyn Outside,
    /// By place of the VM.
    instances: RwLock<Vec<Option<Arc<Instance<H>>>>>,
    system: &'static System,
    files: Files,
}

impl<H: Hardware> core::fmt::Debug for Vms<H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vms").finish_non_exhaustive()
    }
}

/// Waits for something that another pCPU does, and serves this pCPU's interrupts meanwhile; no longer than that many
/// nanoseconds. The caller holds no lock that an interrupt handler takes, or that a vCPU's exit path waits for. What the
/// handlers leave is seen when the caller is back in [`crate::run::run`]'s loop.
fn wait_for<H: Hardware, T>(patience_ns: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = H::now_ns().saturating_add(patience_ns);
    loop {
        let seen = look();
        if seen.is_some() || H::now_ns() >= deadline {
            return seen;
        }
        H::window();
    }
}

impl<H: Hardware> Sink for Instance<H> {
    fn act(&self, action: Action) {
        match action {
            Action::Message(message) => {
                self.vcpu.post(message);
                self.notify();
            }
            Action::MapPortal { guest, host, len } => {
                let mapped = self.stage2.lock().map_portal(guest, host, len);
                if let Err(refusal) = mapped
                    && let Some(withheld) = self.lines.lock().take(H::now_ns())
                {
                    log::error!("vm {}: {refusal}{}", self.vm.name(), Withheld(withheld));
                }
            }
            Action::UnmapPortal { guest, len } => {
                self.stage2.lock().unmap_portal(guest, len);
                self.vcpu.request_flush();
                if self.vcpu.is_in_guest() {
                    self.kick();
                }
            }
            Action::Console(byte) => self.vms.outside.console(self.id, byte),
            Action::Attend => self.vms.outside.wake(),
            Action::PowerOff => self.end(VmEnd::PowerOff),
            Action::Reset => self.end(VmEnd::Reset),
            // The chipset keeps wired interrupts to itself.
            Action::Line { .. } => {}
        }
    }

    fn end(&self, end: VmEnd) {
        self.vm.request(end);
        self.vcpu.end();
        self.vms.outside.wake();
    }
}

impl<H: Hardware> Instance<H> {
    /// The VM as its vCPU sees it.
    pub fn view(&self) -> VmView<'_, H::Chipset> {
        VmView { name: self.vm.name(), memory: &self.memory, board: &self.board, sink: self }
    }

    /// Makes the vCPU look at what it was sent.
    pub(crate) fn notify(&self) {
        let kick = self.vms.scheduler.wake(self.vcpu.seat);
        if kick || self.vcpu.is_in_guest() {
            self.kick();
        }
    }

    /// Interrupts the vCPU's pCPU, unless that is this one.
    fn kick(&self) {
        kick::<H>(self.vcpu.seat.pcpu.0);
    }

    /// Waits until the vCPU's pCPU has done something, unless that is this one, which has by now. Called from the main
    /// loop. Refused where it does not come back; it is lost then.
    fn expect<T>(&self, look: impl FnMut() -> Option<T>) -> Result<T, Refusal> {
        let pcpu = self.vcpu.seat.pcpu;
        let lost = self.vms.scheduler.is_lost(pcpu);
        wait_for::<H, T>(if lost { 0 } else { PATIENCE_NS }, look).ok_or_else(|| {
            self.vms.lose(pcpu);
            self.lost()
        })
    }

    fn lost(&self) -> Refusal {
        Refusal::new(
            format!("vm {}", self.vm.name()),
            format!("pCPU {} does not come back from running it", self.vcpu.seat.pcpu.0),
            "what is held is freed if it comes back; else restart the instance",
        )
    }

    /// Waits until the guest uses no translation from before.
    fn forget_translations(&self) -> Result<(), Refusal> {
        self.expect(|| (!self.vcpu.uses_old_translations()).then_some(()))
    }

    /// Waits until the vCPU does not run.
    fn wait_stopped(&self) -> Result<(), Refusal> {
        let seat = self.vcpu.seat;
        let scheduler = &self.vms.scheduler;
        if seat.pcpu.0 == H::this_pcpu() {
            // The scheduler still takes it for the current one; it is asked again before anything runs.
            scheduler.next(seat.pcpu, H::now_ns());
        }
        self.expect(|| (!scheduler.is_running(seat)).then_some(()))
    }

    /// A byte typed on its console, or a BREAK; false where the guest has no room for it.
    pub fn push_input(&self, received: Received) -> bool {
        let taken =
            self.with_board(|board| board.chipset.push_input(received, &mut |action| self.act(action)));
        taken.unwrap_or(false)
    }

    /// Submissions to a vdev's portal that were trapped instead of reaching the device directly.
    pub fn portal_traps(&self, vdev: VdevId) -> Option<u64> {
        let mut board = self.lock_board().ok()?;
        let slot = board.slot(vdev)?;
        Some(board.chipset.pci().portal_traps(slot))
    }

    /// The MSI-X vectors of a vdev.
    pub fn vectors(&self, vdev: VdevId) -> Option<Vec<VectorInfo>> {
        let mut board = self.lock_board().ok()?;
        let slot = board.slot(vdev)?;
        Some(board.chipset.pci().vectors(slot))
    }

    /// The physical device raised an interrupt of a vdev. False, with nothing done, where the devices are in use.
    #[must_use]
    pub fn interrupt(&self, vdev: VdevId, vector: u16) -> bool {
        let done = self.try_with_board(|board| {
            if let Some(slot) = board.slot(vdev) {
                board.chipset.vdev_interrupt(slot, vector, &mut |action| self.act(action));
            }
        });
        done.is_some()
    }

    /// Does something with the devices from outside of the vCPU, and makes the vCPU look where that changed what it
    /// is interrupted by.
    fn with_board<T>(&self, act: impl FnOnce(&mut Board<H::Chipset>) -> T) -> Result<T, Refusal> {
        Ok(self.use_board(self.lock_board()?, act))
    }

    /// Takes the devices, which the vCPU may be using.
    fn lock_board(&self) -> Result<MutexGuard<'_, Board<H::Chipset>>, Refusal> {
        self.expect(|| self.board.try_lock())
    }

    /// The same where nobody else uses the devices at this moment.
    fn try_with_board<T>(&self, act: impl FnOnce(&mut Board<H::Chipset>) -> T) -> Option<T> {
        self.board.try_lock().map(|board| self.use_board(board, act))
    }

    fn use_board<T>(
        &self,
        mut board: MutexGuard<'_, Board<H::Chipset>>,
        act: impl FnOnce(&mut Board<H::Chipset>) -> T,
    ) -> T {
        let result = act(&mut board);
        let wake = board.chipset.take_wake();
        drop(board);
        if wake {
            self.vcpu.nudge();
            self.notify();
        }
        result
    }

    /// Bytes taken by stage-2 tables.
    pub fn table_bytes(&self) -> u64 {
        self.stage2.lock().bytes()
    }
}

/// Interrupts a pCPU, unless it is this one, which looks by itself.
pub fn kick<H: Hardware>(index: u32) {
    if index != H::this_pcpu() {
        H::kick(index);
    }
}

impl<H: Hardware> Vms<H> {
    /// No instances yet. Memory for tables comes from `frames`, what VMs boot from `files`.
    pub fn new(
        frames: &'static Frames,
        scheduler: Scheduler,
        outside: &'static dyn Outside,
        system: &'static System,
        files: Files,
    ) -> Self {
        Self { frames, scheduler, outside, instances: RwLock::new(Vec::new()), system, files }
    }

    /// The rest of the hypervisor.
    pub fn outside(&self) -> &'static dyn Outside {
        self.outside
    }

    /// Names a VM for the scheduler's list.
    pub fn name_of(&self, id: VmId) -> String {
        self.system.vm(id).map_or_else(|| id.to_string(), |vm| vm.name().to_string())
    }

    /// Memory for tables.
    pub fn frames(&self) -> &'static Frames {
        self.frames
    }

    /// The instance of a VM, while it has one. Whoever holds on to it delays the end of the VM.
    pub fn instance(&self, vm: VmId) -> Option<Arc<Instance<H>>> {
        let instances = self.instances.read();
        instances.get(vm.place())?.as_ref().filter(|instance| instance.id == vm).cloned()
    }

    /// Gives up the pCPUs on which somebody has waited for a turn for too long.
    pub fn watch(&self) {
        for pcpu in self.scheduler.overdue(H::now_ns()) {
            self.lose(pcpu);
        }
    }

    /// A pCPU does not come back: ends the VMs that are seated there.
    fn lose(&self, pcpu: PcpuId) {
        // This one is here.
        if pcpu.0 == H::this_pcpu() {
            return;
        }
        let seated = self.scheduler.lose(pcpu);
        if seated.is_empty() {
            return;
        }
        let names: Vec<String> = seated.iter().map(|vcpu| self.name_of(vcpu.vm)).collect();
        log::error!(
            "pCPU {} is lost: it has not come back for {} s; {} end, or are held until it does",
            pcpu.0,
            PATIENCE_NS / 1_000_000_000,
            names.join(", ")
        );
        for (vcpu, name) in seated.iter().zip(names) {
            if let Some(instance) = self.instance(vcpu.vm) {
                let why =
                    format!("pCPU {}, which ran it, is lost; `vm {name} start` starts it on another", pcpu.0);
                instance.end(VmEnd::Crashed(why));
            }
        }
    }
}
