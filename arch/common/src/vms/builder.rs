// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel's operations on VMs ask of the architecture: machines built, run, stopped and taken apart.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::allowance::Allowance;
use pasidon_kernel::base::id::VdevId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use pasidon_kernel::memory::frames::GuestGone;
use pasidon_kernel::memory::ram::GuestRam;
use pasidon_kernel::monitor::info::PcpuInfo;
use pasidon_kernel::vdev::{PortalsUnmapped, Vdev};
use pasidon_kernel::vm::sched::{PATIENCE_NS, VcpuId};
use pasidon_kernel::vm::{VcpusStopped, Vm, VmHost};
use spin::Mutex;

use super::{Machine, Vms, wait_for};
use crate::board::Board;
use crate::hardware::{Hardware, Platform, Stage2};
use crate::memory::{self, RamView};
use crate::pauses::Pauses;
use crate::vcpu::Vcpu;
use crate::view::Sink;

/// Vms, as the kernel's operations see it.
#[derive(Debug)]
pub struct Builder<H: Hardware>(pub(super) &'static Vms<H>);

impl<H: Hardware> Clone for Builder<H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H: Hardware> Copy for Builder<H> {}

impl<H: Hardware> Builder<H> {
    fn set_portals(&self, vm: &Vm, vdev: VdevId, withhold: bool) -> Result<(), Refusal> {
        let Some(machine) = self.0.machine(vm.id()) else {
            return Ok(());
        };
        machine.with_board(|board| {
            if let Some(slot) = board.slot(vdev) {
                let pci = board.platform.pci();
                pci.withhold_portals(slot, withhold, &mut |action| machine.act(action));
            }
        })?;
        machine.forget_translations()
    }
}

impl<H: Hardware> VmHost for Builder<H> {
    fn scrub(&self, start: HostPhys, len: u64) {
        // SAFETY: the frames are RAM, mapped at their physical address, and nobody's at this moment.
        unsafe { memory::zero(start, len) }
    }

    fn build(&self, vm: &Vm, ram: &Arc<GuestRam>) -> Result<(), Refusal> {
        let vms = self.0;
        let id = vm.id();
        let shared = vms.system.vm(id).ok_or_else(|| Refusal::new("vm", "not defined", "define it first"))?;
        let image = vms.images.of(vm.name())?;
        let memory = RamView::new(ram);
        let mut stage2 = H::stage2(vms.frames)?;
        stage2.map_ram(ram)?;
        let entry = H::load(&memory, &image)?;
        let (core, platform) = H::build(vm.name(), ram.bytes(), entry, &stage2)?;
        H::release_ram(ram);
        let board = Board::new(platform);
        let seat = vms.scheduler.assign(VcpuId { vm: id, index: 0 })?;
        let machine = Machine {
            id,
            vm: shared,
            memory,
            board: Mutex::new(board),
            stage2: Mutex::new(stage2),
            vcpu: Vcpu::new(seat, core),
            pauses: Pauses::new(),
            lines: Mutex::new(Allowance::new(H::now_ns())),
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
        let mut board = machine.lock_board()?;
        let slot = board.platform.add_vdev(vdev.guest_side())?;
        board.plug(vdev.id(), slot);
        Ok(())
    }

    fn unplug(&self, vm: &Vm, vdev: VdevId) -> Result<PortalsUnmapped, Refusal> {
        if let Some(machine) = self.0.machine(vm.id()) {
            machine.with_board(|board| {
                if let Some(slot) = board.slot(vdev) {
                    board.platform.end_vdev(slot, &mut |action| machine.act(action));
                    board.unplug(vdev);
                }
            })?;
            machine.forget_translations()?;
        }
        Ok(PortalsUnmapped::confirmed_by_arch(vdev))
    }

    fn withhold_portals(&self, vm: &Vm, vdev: VdevId) -> Result<PortalsUnmapped, Refusal> {
        self.set_portals(vm, vdev, true)?;
        Ok(PortalsUnmapped::confirmed_by_arch(vdev))
    }

    fn return_portals(&self, vm: &Vm, vdev: VdevId) {
        if let Err(refusal) = self.set_portals(vm, vdev, false) {
            log::error!("{refusal}");
        }
    }

    fn device_event(&self, vm: &Vm, vdev: VdevId) -> bool {
        let Some(machine) = self.0.machine(vm.id()) else {
            return true;
        };
        let done = machine.try_with_board(|board| {
            let mut raised = Vec::new();
            let Some(slot) = board.slot(vdev) else { return };
            if let Some(model) = board.platform.pci().model(slot) {
                model.device_event(&mut |vector| raised.push(vector));
            }
            for vector in raised {
                board.platform.vdev_interrupt(slot, vector, &mut |action| machine.act(action));
            }
        });
        done.is_some()
    }

    fn push_input(&self, vm: &Vm, received: Received) -> bool {
        self.0.machine(vm.id()).is_none_or(|machine| machine.push_input(received))
    }

    fn portal_traps(&self, vm: &Vm, vdev: VdevId) -> u64 {
        self.0.machine(vm.id()).and_then(|machine| machine.portal_traps(vdev)).unwrap_or(0)
    }

    fn pcpus(&self) -> Vec<PcpuInfo> {
        self.0.scheduler.infos(&|id| self.0.name_of(id))
    }

    fn run(&self, vm: &Vm) -> Result<(), Refusal> {
        let Some(machine) = self.0.machine(vm.id()) else {
            return Err(Refusal::new(format!("vm {}", vm.name()), "it has no machine", "start it first"));
        };
        machine.pauses.end(H::now_ns());
        let seat = machine.vcpu.seat;
        let resumed = self.0.scheduler.resume(seat);
        if self.0.scheduler.wake(seat) || resumed {
            machine.kick();
        }
        Ok(())
    }

    fn pause(&self, vm: &Vm) -> Result<(), Refusal> {
        let Some(machine) = self.0.machine(vm.id()) else {
            return Ok(());
        };
        if self.0.scheduler.suspend(machine.vcpu.seat) {
            machine.kick();
        }
        machine.wait_stopped()?;
        machine.pauses.begin(H::now_ns());
        Ok(())
    }

    fn stop(&self, vm: &Vm) -> Result<VcpusStopped, Refusal> {
        if let Some(machine) = self.0.machine(vm.id()) {
            machine.vcpu.end();
            if self.0.scheduler.remove(machine.vcpu.seat) {
                machine.kick();
                machine.wait_stopped()?;
            }
        }
        Ok(VcpusStopped::confirmed_by_arch(vm.id()))
    }

    fn tear_down(&self, vm: &Vm, _stopped: VcpusStopped) -> Result<GuestGone, Refusal> {
        let take = || {
            let mut machines = self.0.machines.write();
            machines.get_mut(usize::from(vm.id().0)).and_then(Option::take)
        };
        let mut shared = take();
        if shared.is_none() {
            return Ok(GuestGone::confirmed_by_arch());
        }
        // Another pCPU may hold it for the moment that it takes to leave a turn or to deliver a message.
        let alone = wait_for::<H, _>(PATIENCE_NS, || {
            Arc::try_unwrap(shared.take()?).map_err(|still| shared = Some(still)).ok()
        });
        match (alone, shared) {
            (None, Some(still)) => {
                let refusal = still.lost();
                if let Some(place) = self.0.machines.write().get_mut(usize::from(vm.id().0)) {
                    *place = Some(still);
                }
                Err(refusal)
            }
            (alone, _) => {
                drop(alone);
                Ok(GuestGone::confirmed_by_arch())
            }
        }
    }
}
