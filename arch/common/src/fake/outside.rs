// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the first pCPU does besides: requests of guests, and commands, one in each round.
//!
//! The lower two bits of a command are the VM's number, the others modulo 8 what is to be done with it: start, type a
//! key, stop, restart, pause, resume, end a vdev, make one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use pasidon_kernel::base::id::VmId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use pasidon_kernel::vm::{VmEnd, VmHost};

use super::hardware::{Fake, Life};
use super::sim::{Sim, here};
use super::{VMS, vdev};
use crate::hardware::{BootImage, Hardware};
use crate::run::World;
use crate::vms::{Outside, kick};

/// What a command may take: guests leave when they are told to.
const COMMAND_NS: u64 = 8_000_000;
/// Between two commands, in nanoseconds.
const PAUSE_NS: u64 = 300_000;

/// The first pCPU's other work.
pub struct Desk {
    sim: Arc<Sim>,
    world: OnceLock<&'static World<Fake>>,
    woken: AtomicBool,
}

impl Desk {
    pub fn new(sim: Arc<Sim>) -> Self {
        Self { sim, world: OnceLock::new(), woken: AtomicBool::new(false) }
    }

    pub fn meet(&self, world: &'static World<Fake>) {
        assert!(self.world.set(world).is_ok(), "once");
    }

    /// After a vdev's end nobody uses the translations that led to it.
    fn is_forgotten(&self, vm: &str) {
        let mut state = self.sim.lock();
        let used = |life: &Arc<Life>| life.inside.load(Ordering::SeqCst) && life.stale.load(Ordering::SeqCst);
        if state.lives.get(vm).is_some_and(used) {
            state.violations.push(format!("{vm} runs with translations of a vdev that has ended"));
        }
    }

    /// A VM that is paused does not run.
    fn has_paused(&self, vm: &str) {
        let mut state = self.sim.lock();
        state.pause(vm);
        if state.lives.get(vm).is_some_and(|life| life.inside.load(Ordering::SeqCst)) {
            state.violations.push(format!("{vm} runs when its pause is said to be done"));
        }
    }

    fn command(&self, world: &World<Fake>, byte: u8) {
        let (system, builder) = (world.system, world.vms.builder());
        let Some(vm) = system.vm(VmId(u16::from(byte) % VMS as u16)) else { return };
        let stopped = VmEnd::Stopped("told to".to_string());
        // What cannot be done in the VM's state is refused.
        let _ = match byte / VMS as u8 % 8 {
            0 => system.start_vm(&builder, &vm),
            1 => {
                if let Some(machine) = world.vms.machine(vm.id()) {
                    machine.push_input(Received::Byte(byte));
                }
                Ok(())
            }
            2 => system.end_vm(&builder, &vm, &stopped).map(drop),
            3 => system.restart_vm(&builder, &vm, &stopped).map(drop),
            4 => system.pause_vm(&builder, &vm).map(|()| self.has_paused(vm.name())),
            5 => {
                let paused = self.sim.lock().paused.remove(vm.name());
                system.resume_vm(&builder, &vm).inspect_err(|_| {
                    if paused {
                        self.sim.lock().pause(vm.name());
                    }
                })
            }
            6 => match vm.vdevs().pop() {
                Some(vdev) => {
                    system.destroy_vdev(&builder, &vm, vdev.id()).map(|_| self.is_forgotten(vm.name()))
                }
                None => Ok(()),
            },
            _ => system.create_vdev(&builder, &vm, &vdev(), None).map(drop),
        };
    }
}

impl Outside for Desk {
    fn console(&self, _vm: VmId, _byte: u8) {}

    fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
        if here().1 != 0 {
            kick::<Fake>(0);
        }
    }

    fn parent_event(&self, _parent: u16) {
        self.wake();
    }

    fn work(&self, _vm_host: &dyn VmHost) {
        self.woken.store(false, Ordering::SeqCst);
        let Some(world) = self.world.get() else { return };
        let builder = world.vms.builder();
        for served in world.system.serve_requests(&builder) {
            if let Err(refusal) = served.result {
                self.sim.lock().violations.push(format!("{:?}: {refusal}", served.request));
            }
        }
        world.system.retry_retired(&builder);
        let command = self.sim.lock().commands.pop_front();
        if let Some(byte) = command {
            let began = Fake::now_ns();
            self.command(world, byte);
            let took = Fake::now_ns() - began;
            if took > COMMAND_NS {
                self.sim.lock().violations.push(format!("command {byte} took {took} ns"));
            }
        }
    }

    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst) || self.sim.lock().busy
    }

    fn next_work(&self) -> Option<u64> {
        let state = self.sim.lock();
        (!state.commands.is_empty()).then(|| state.now + PAUSE_NS)
    }
}

/// What VMs boot: nothing.
pub fn image(_vm: &str) -> Result<BootImage<'static>, Refusal> {
    Ok(BootImage { kernel: &[], initrd: None, cmdline: "", seed: None })
}
