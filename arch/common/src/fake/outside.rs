// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the first pCPU does besides: the hypervisor's housekeeping, and commands of the test, one in each round.
//!
//! The lower two bits of a command are the VM's number, the next ones modulo 10 what is to be done with it: start, type a
//! key, stop, restart, pause, resume, end a vdev, make one, remove it, define it again. From [`MASKS`] on it is about the
//! interrupts of a vdev: mask, unmask, automask on, off, trigger, and unmask again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use pasidon_kernel::base::id::VmId;
use pasidon_kernel::config::ConsoleMode;
use pasidon_kernel::console::Console;
use pasidon_kernel::console::log::Logger;
use pasidon_kernel::dev::Received;
use pasidon_kernel::housekeeping::{HostMachine, Housekeeping};
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::irq::vectors::{VectorControl, Vectors};
use pasidon_kernel::monitor::info::HypervisorMemory;
use pasidon_kernel::system::{Definitions, System};
use pasidon_kernel::vm::{Vm, VmEnd, VmHost};

use super::hardware::{Fake, Life};
use super::line::{Port, Switch, say};
use super::sim::{Sim, here};
use super::{VMS, spec, vdev};
use crate::hardware::Hardware;
use crate::run::World;
use crate::vms::Outside;

/// What a command may take: guests leave when they are told to.
const COMMAND_NS: u64 = 8_000_000;
/// Commands about interrupts.
pub const MASKS: u8 = 128;
/// Between two commands, in nanoseconds.
const PAUSE_NS: u64 = 300_000;

/// The first pCPU's other work.
pub struct Desk {
    sim: Arc<Sim>,
    world: OnceLock<&'static World<Fake>>,
    keeper: Housekeeping,
    logger: &'static Logger,
}

impl Desk {
    /// On a framed line, with the VMs at their places.
    pub fn new(sim: Arc<Sim>, system: &'static System, host: &'static dyn Host) -> Self {
        let logger: &'static Logger = Box::leak(Box::new(Logger::new()));
        let port: &'static Port = Box::leak(Box::new(Port(sim.clone())));
        let machine = HostMachine {
            host,
            port,
            logger,
            power: &Switch,
            memory: HypervisorMemory::default,
            tend: || (),
        };
        let console = Console::new(ConsoleMode::Framed, 0);
        let keeper = Housekeeping::new(system, machine, console, Vec::new(), Definitions::default());
        keeper.keys_interrupt();
        // The first look finds out that the next one need not come by itself.
        keeper.note_key();
        Self { sim, world: OnceLock::new(), keeper, logger }
    }

    /// What it was left and has not done.
    pub fn forgotten(&self) -> Vec<String> {
        let woken = self.keeper.is_woken().then(|| "the first pCPU sleeps although it was woken".to_string());
        let due = self.keeper.next_work().map(|due| format!("work was due at {due}"));
        woken.into_iter().chain(due).collect()
    }

    /// The interrupt of the line came.
    pub fn note_key(&self) {
        self.keeper.note_key();
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

    fn control_vectors(&self, world: &World<Fake>, vm: &Vm, what: u8) {
        let Some(vdev) = vm.vdevs().pop() else { return };
        let control = match what % 8 {
            0 => VectorControl::Mask,
            2 => VectorControl::Automask(true),
            3 => VectorControl::Automask(false),
            4 => VectorControl::Trigger,
            _ => VectorControl::Unmask,
        };
        if matches!(control, VectorControl::Mask | VectorControl::Automask(true)) {
            self.sim.lock().device.mask(vdev.model().identity().device);
        }
        let done = world.system.control_vectors(&world.vms, vm, vdev.id(), Vectors::All, control);
        if done.is_err() && vm.state().is_alive() {
            self.sim.lock().violations.push(format!("{}: {control:?}: {done:?}", vm.name()));
        }
    }

    fn command(&self, world: &World<Fake>, byte: u8) {
        let (system, vms) = (world.system, world.vms);
        let spec = spec(usize::from(byte) % VMS);
        let operation = byte / VMS as u8 % 10;
        // What cannot be done in the VM's state is refused.
        let Some(vm) = system.vm_named(&spec.name) else {
            if operation == 9 && byte < MASKS {
                let defined = system.define_vm(spec);
                assert!(defined.is_ok(), "{defined:?}");
            }
            return;
        };
        if let Some(what) = byte.checked_sub(MASKS) {
            self.control_vectors(world, &vm, what / VMS as u8);
            return;
        }
        let stopped = VmEnd::Stopped("told to".to_string());
        let _ = match operation {
            0 => system.start_vm(&vms, &vm),
            1 => {
                if let Some(instance) = world.vms.instance(vm.id()) {
                    instance.push_input(Received::Byte(byte));
                }
                Ok(())
            }
            2 => system.end_vm(&vms, &vm, &stopped).map(drop),
            3 => system.restart_vm(&vms, &vm, &stopped).map(drop),
            4 => system.pause_vm(&vms, &vm).map(|()| self.has_paused(vm.name())),
            5 => {
                let paused = self.sim.lock().paused.remove(vm.name());
                system.resume_vm(&vms, &vm).inspect_err(|_| {
                    if paused {
                        self.sim.lock().pause(vm.name());
                    }
                })
            }
            6 => match vm.vdevs().pop() {
                Some(vdev) => system.destroy_vdev(&vms, &vm, vdev.id()).map(|_| self.is_forgotten(vm.name())),
                None => Ok(()),
            },
            8 => system.remove_vm(&vm),
            9 => system.define_vm(spec).map(drop),
            _ => system.create_vdev(&vms, &vm, &vdev(), None).map(drop),
        };
    }
}

impl Outside for Desk {
    fn console(&self, vm: VmId, byte: u8) {
        let (sim, me) = here();
        sim.lock().note_printed(vm);
        say(self.logger);
        sim.step(me);
        self.keeper.show_log();
        self.keeper.guest_output(vm, byte);
    }

    fn wake(&self) {
        self.keeper.wake();
    }

    fn parent_event(&self, parent: u16) {
        self.keeper.note_parent(parent);
    }

    fn work(&self, vm_host: &dyn VmHost) {
        self.keeper.work(vm_host);
        let Some(world) = self.world.get() else { return };
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
        self.keeper.is_woken() || self.sim.lock().busy
    }

    fn next_work(&self) -> Option<u64> {
        let state = self.sim.lock();
        let command = (!state.commands.is_empty()).then(|| state.now + PAUSE_NS);
        drop(state);
        command.into_iter().chain(self.keeper.next_work()).min()
    }
}
