// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel's operations on VMs ask of the architecture: instances built, run, stopped and taken apart.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::allowance::Allowance;
use pasidon_kernel::base::id::VdevId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use pasidon_kernel::irq::vectors::{VectorControl, Vectors};
use pasidon_kernel::memory::frames::GuestGone;
use pasidon_kernel::memory::ram::GuestRam;
use pasidon_kernel::monitor::info::{PcpuInfo, VectorInfo};
use pasidon_kernel::vdev::{PortalsUnmapped, Vdev};
use pasidon_kernel::vm::sched::{PATIENCE_NS, VcpuId};
use pasidon_kernel::vm::{VcpusStopped, Vm, VmHost};
use spin::Mutex;

use super::{Instance, Vms, wait_for};
use crate::board::Board;
use crate::hardware::{Chipset, Hardware, Stage2};
use crate::memory::{self, RamView};
use crate::pauses::Pauses;
use crate::vcpu::Vcpu;
use crate::view::Sink;

impl<H: Hardware> Vms<H> {
    fn set_portals(&self, vm: &Vm, vdev: VdevId, withhold: bool) -> Result<(), Refusal> {
        let Some(instance) = self.instance(vm.id()) else {
            return Ok(());
        };
        instance.with_board(|board| {
            if let Some(slot) = board.slot(vdev) {
                board.chipset.with_pci(&mut |action| instance.act(action), |pci, actions| {
                    pci.withhold_portals(slot, withhold, actions);
                });
            }
        })?;
        instance.forget_translations()
    }
}

impl<H: Hardware> VmHost for &'static Vms<H> {
    fn scrub(&self, start: HostPhys, len: u64) {
        // SAFETY: the frames are RAM, mapped at their physical address, and nobody's at this moment.
        unsafe { memory::zero(start, len) }
    }

    fn build(&self, vm: &Vm, ram: &Arc<GuestRam>) -> Result<(), Refusal> {
        let vms = *self;
        let id = vm.id();
        let shared = vms.system.vm(id).ok_or_else(|| Refusal::new("vm", "not defined", "define it first"))?;
        let image = vms.files.image(vm.spec())?;
        let memory = RamView::new(ram);
        let mut stage2 = H::stage2(vms.frames)?;
        stage2.map_ram(ram)?;
        let entry = H::load(&memory, &image)?;
        let (mut core, mut chipset) = H::build(vm.name(), ram.bytes(), image.slots, entry, &stage2)?;
        H::release_ram(ram);
        let seat = vms.scheduler.assign(VcpuId { vm: id, index: 0 })?;
        H::take_seat(&mut core, &mut chipset, id, seat.pcpu);
        let board = Board::new(chipset);
        let instance = Instance {
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
        let mut instances = vms.instances.write();
        let index = id.place();
        if instances.len() <= index {
            instances.resize_with(index + 1, || None);
        }
        instances[index] = Some(Arc::new(instance));
        Ok(())
    }

    fn plug(&self, vm: &Vm, vdev: &Vdev) -> Result<(), Refusal> {
        let instance = self.instance(vm.id()).ok_or_else(|| {
            Refusal::new(format!("vm {}", vm.name()), "it has no instance", "start it first")
        })?;
        instance.with_board(|board| {
            let slot = board.chipset.add_vdev(vdev.guest_side(), &mut |action| instance.act(action))?;
            board.plug(vdev.id(), slot);
            Ok(())
        })?
    }

    fn ask_to_let_go(&self, vm: &Vm, vdev: VdevId) -> Result<bool, Refusal> {
        let Some(instance) = self.instance(vm.id()) else {
            return Ok(false);
        };
        instance.with_board(|board| {
            let slot = board.slot(vdev);
            slot.is_some_and(|slot| {
                board
                    .chipset
                    .with_pci(&mut |action| instance.act(action), |pci, actions| pci.ask(slot, actions))
            })
        })
    }

    fn has_let_go(&self, vm: &Vm, vdev: VdevId) -> bool {
        let look = |board: &mut Board<H::Chipset>| {
            board.slot(vdev).is_some_and(|slot| board.chipset.pci().has_let_go(slot))
        };
        self.instance(vm.id()).is_some_and(|instance| instance.with_board(look).unwrap_or(false))
    }

    fn unplug(&self, vm: &Vm, vdev: VdevId) -> Result<PortalsUnmapped, Refusal> {
        if let Some(instance) = self.instance(vm.id()) {
            instance.with_board(|board| {
                if let Some(slot) = board.slot(vdev) {
                    board.chipset.end_vdev(slot, &mut |action| instance.act(action));
                    board.unplug(vdev);
                }
            })?;
            instance.forget_translations()?;
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
        let Some(instance) = self.instance(vm.id()) else {
            return true;
        };
        let done = instance.try_with_board(|board| {
            if let Some(slot) = board.slot(vdev) {
                board.chipset.with_pci(&mut |action| instance.act(action), |pci, actions| {
                    pci.device_event(slot, actions);
                });
            }
        });
        done.is_some()
    }

    fn push_input(&self, vm: &Vm, received: Received) -> bool {
        self.instance(vm.id()).is_none_or(|instance| instance.push_input(received))
    }

    fn portal_traps(&self, vm: &Vm, vdev: VdevId) -> u64 {
        self.instance(vm.id()).and_then(|instance| instance.portal_traps(vdev)).unwrap_or(0)
    }

    fn control_vectors(
        &self,
        vm: &Vm,
        vdev: VdevId,
        which: Vectors,
        control: VectorControl,
    ) -> Result<(), Refusal> {
        let missing = || Refusal::new(format!("vdev #{}", vdev.0), "it is not plugged", "see `vdevs`");
        let instance = self.instance(vm.id()).ok_or_else(missing)?;
        instance.with_board(|board| {
            let slot = board.slot(vdev).ok_or_else(missing)?;
            board.chipset.with_pci(&mut |action| instance.act(action), |pci, actions| {
                pci.control_vectors(slot, which, control, actions)
            })
        })?
    }

    fn vectors(&self, vm: &Vm, vdev: VdevId) -> Vec<VectorInfo> {
        self.instance(vm.id()).and_then(|instance| instance.vectors(vdev)).unwrap_or_default()
    }

    fn pcpus(&self) -> Vec<PcpuInfo> {
        self.scheduler.infos(&|id| self.name_of(id))
    }

    fn run(&self, vm: &Vm) -> Result<(), Refusal> {
        let Some(instance) = self.instance(vm.id()) else {
            return Err(Refusal::new(format!("vm {}", vm.name()), "it has no instance", "start it first"));
        };
        instance.pauses.end(H::now_ns());
        let seat = instance.vcpu.seat;
        let resumed = self.scheduler.resume(seat);
        if self.scheduler.wake(seat) || resumed {
            instance.kick();
        }
        Ok(())
    }

    fn pause(&self, vm: &Vm) -> Result<(), Refusal> {
        let Some(instance) = self.instance(vm.id()) else {
            return Ok(());
        };
        if self.scheduler.suspend(instance.vcpu.seat) {
            instance.kick();
        }
        instance.wait_stopped()?;
        instance.pauses.begin(H::now_ns());
        Ok(())
    }

    fn stop(&self, vm: &Vm) -> Result<VcpusStopped, Refusal> {
        if let Some(instance) = self.instance(vm.id()) {
            instance.vcpu.end();
            if self.scheduler.remove(instance.vcpu.seat) {
                instance.kick();
                instance.wait_stopped()?;
            }
        }
        Ok(VcpusStopped::confirmed_by_arch(vm.id()))
    }

    fn tear_down(&self, vm: &Vm, _stopped: VcpusStopped) -> Result<GuestGone, Refusal> {
        let take = || {
            let mut instances = self.instances.write();
            instances.get_mut(vm.id().place()).and_then(Option::take)
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
                if let Some(place) = self.instances.write().get_mut(vm.id().place()) {
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
