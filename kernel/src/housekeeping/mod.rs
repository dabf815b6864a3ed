// SPDX-License-Identifier: MIT OR Apache-2.0
//! What there is to do once per machine: the line, the monitor, faults, events of devices, and the ends of VMs.
//!
//! **Principle.** Whoever notices something leaves a note and wakes the first processor. That one acts on the notes
//! between turns of guests, with no lock held ([`Housekeeping::work`]). Work that a guest can cause without end is done
//! so often in a time at most, however much of it there is, and a guest has its turn in between.
//!
//! **Invariant.** A note is taken before what it is about is looked at, and the first processor sleeps only after it has
//! seen that none is left ([`Housekeeping::is_woken`]), or until the time at which one is due
//! ([`Housekeeping::next_work`]).

mod controls;
mod events;
mod pace;

#[cfg(test)]
mod tests;

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

use crate::base::id::VmId;
use crate::base::refusal::Refusal;
use crate::console::line::{Line, SerialPort};
use crate::console::log::Logger;
use crate::console::{Console, Input, Typed, TypedInfo};
use crate::dev::Received;
use crate::irq::host::Host;
use crate::monitor::info::{HypervisorMemory, RetiredInfo, VmInfo, vdev_name};
use crate::monitor::{HostPower, Monitor};
use crate::system::{Definitions, Departed, PATIENCE_NS, System, VdevName};
use crate::vm::{Vm, VmEnd, VmHost};

use controls::Controls;
use events::Events;
use pace::Pace;

/// How often the line is looked at while nothing announces what comes, in nanoseconds.
const LOOK_INTERVAL_NS: u64 = 10_000_000;

/// How much is read from the line before other work has its turn.
const LOOK_MAX: usize = 4096;

/// What switches the machine off; implemented by `arch`.
pub trait Power: Send + Sync {
    /// Whether the machine can.
    ///
    /// # Errors
    /// When the firmware does not say how.
    fn check(&self, power: HostPower) -> Result<(), Refusal>;

    /// Does it, where [`Power::check`] said that the machine can. Comes back where it does not obey.
    fn carry_out(&self, power: HostPower);
}

/// What the housekeeping needs of the machine.
#[derive(Clone, Copy)]
pub struct HostMachine {
    /// Its clock, and how its first processor is woken.
    pub host: &'static dyn Host,
    /// The port of the serial line.
    pub port: &'static dyn SerialPort,
    /// What was logged.
    pub logger: &'static Logger,
    /// What switches the machine off.
    pub power: &'static dyn Power,
    /// What the hypervisor itself takes.
    pub memory: fn() -> HypervisorMemory,
    /// Gives memory back that the hypervisor no longer needs. Called with no lock held, after something happened.
    pub tend: fn(),
}

/// The work of the first processor. One, for ever.
pub struct Housekeeping {
    system: &'static System,
    machine: HostMachine,
    line: Line,
    /// VMs of the configuration that could not be made, unless one of that name was defined since.
    refused: Mutex<Vec<VmInfo>>,
    definitions: Definitions,
    monitor: Mutex<Monitor>,
    /// What was typed for guests. Taken after the monitor's lock, and before a board's.
    typed: Mutex<Typed>,
    events: Events,
    /// What is under way on devices.
    attention: Mutex<Pace>,
    /// Something happened.
    woken: AtomicBool,
    /// A key was pressed.
    key: AtomicBool,
    /// Keys are announced by an interrupt.
    keys_interrupt: AtomicBool,
    /// The line must be looked at soon although nothing announces it: keys, faults, a live display, or a guest
    /// that had no room for what was typed.
    looking: AtomicBool,
    /// When the line was last looked at.
    looked: AtomicU64,
    /// To be switched off or reset.
    wanted_power: Mutex<Option<HostPower>>,
}

impl Housekeeping {
    /// For the VMs that there are; `refused` are those of the configuration that could not be made, `definitions` what
    /// others can be made of. No guest has the line.
    pub fn new(
        system: &'static System,
        machine: HostMachine,
        mut console: Console,
        refused: Vec<VmInfo>,
        definitions: Definitions,
    ) -> Self {
        let mode = console.mode();
        system.vms().iter().for_each(|vm| console.add(vm.id().place(), vm.name()));
        Self {
            system,
            machine,
            line: Line::new(console, machine.port, machine.logger, machine.host),
            refused: Mutex::new(refused),
            definitions,
            monitor: Mutex::new(Monitor::new(mode)),
            typed: Mutex::new(Typed::default()),
            events: Events::default(),
            attention: Mutex::new(Pace::default()),
            woken: AtomicBool::new(false),
            key: AtomicBool::new(false),
            keys_interrupt: AtomicBool::new(false),
            looking: AtomicBool::new(true),
            looked: AtomicU64::new(0),
            wanted_power: Mutex::new(None),
        }
    }

    /// Something happened. From any processor, also from interrupt handlers, as all of the `note_` methods.
    pub fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
        self.machine.host.wake_first();
    }

    /// The IOMMU's fault interrupt came.
    pub fn note_fault(&self) {
        self.events.note_fault();
        self.wake();
    }

    /// The event interrupt of a parent came, by its place in [`System::parents`].
    pub fn note_parent(&self, parent: u16) {
        self.events.note_parent(parent);
        self.wake();
    }

    /// A key was pressed. On the first processor.
    pub fn note_key(&self) {
        self.key.store(true, Ordering::SeqCst);
    }

    /// Faults are not announced by [`Housekeeping::note_fault`]: they are looked for.
    pub fn look_for_faults(&self) {
        self.events.look_for_faults();
    }

    /// Keys are announced by [`Housekeeping::note_key`] from now on.
    pub fn keys_interrupt(&self) {
        self.keys_interrupt.store(true, Ordering::SeqCst);
    }

    /// Messages of the log wait. From anywhere.
    pub fn show_log(&self) {
        self.line.show_log();
    }

    /// Shows the monitor's prompt. Once, when all that is said at the start has been said.
    pub fn prompt(&self) {
        self.line.with(|console, sink| console.answer("", sink));
    }

    /// A byte that a guest printed on its console.
    pub fn guest_output(&self, vm: VmId, byte: u8) {
        self.line.with(|line, sink| line.guest_output(vm.place(), &[byte], sink));
    }

    /// Whether there is something to do at once.
    pub fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst) || self.key.load(Ordering::SeqCst) || self.line.has_left()
    }

    /// When [`Housekeeping::work`] wants to be called at the latest, in nanoseconds of the host's clock.
    pub fn next_work(&self) -> Option<u64> {
        let attend = self.system.needs_attention().then(|| self.attention.lock().due());
        let retry = self.system.next_retry();
        let departure = self.system.next_departure();
        [self.next_look(), self.events.due(), attend, retry, departure].into_iter().flatten().min()
    }

    /// Does what there is to do. On the first processor, between turns, with no lock held.
    pub fn work(&self, vm_host: &dyn VmHost) {
        if self.line.take_left() {
            self.line.show_log();
        }
        let due = self.next_look().is_some_and(|due| due <= self.now_ns());
        let looked = self.key.swap(false, Ordering::SeqCst) || due;
        if looked {
            self.look_at_line(vm_host);
            self.looked.store(self.now_ns(), Ordering::Relaxed);
        }
        self.attend(vm_host);
        self.retry_retired(vm_host);
        let woken = self.woken.swap(false, Ordering::SeqCst);
        self.events.work(self.system, self.machine.host, vm_host);
        if self.system.next_departure().is_some_and(|due| woken || due <= self.now_ns()) {
            self.serve_departures(vm_host);
        }
        if woken {
            self.serve(vm_host);
            let power = self.wanted_power.lock().take();
            if let Some(power) = power {
                self.switch(power, vm_host);
            }
        }
        if woken || looked {
            (self.machine.tend)();
        }
    }

    fn now_ns(&self) -> u64 {
        self.machine.host.now_ns()
    }

    fn controls<'a>(&'a self, vm_host: &'a dyn VmHost) -> Controls<'a> {
        Controls { keeper: self, vm_host }
    }

    /// Defines the VMs of a file.
    fn define(&self, file: &str) -> Result<Vec<Arc<Vm>>, Refusal> {
        let defined = self.system.define_vms(self.definitions.vms_of(file)?)?;
        for vm in &defined {
            self.line.with(|console, _| console.add(vm.id().place(), vm.name()));
        }
        self.refused.lock().retain(|refused| defined.iter().all(|vm| vm.name() != refused.name));
        Ok(defined)
    }

    /// Removes a VM, and all that is kept for it here.
    fn remove(&self, vm: &Vm) -> Result<(), Refusal> {
        self.system.remove_vm(vm)?;
        let place = vm.id().place();
        self.line.with(|console, _| console.remove(place));
        self.typed.lock().forget(place, self.now_ns());
        self.events.forget(vm.name());
        Ok(())
    }

    /// What was typed for the VM at a place.
    fn typed_for(&self, place: usize) -> TypedInfo {
        self.typed.lock().info(place)
    }

    /// Sends a BREAK to a VM's console, behind what was typed. False where there is no room for it.
    fn send_break(&self, console: usize) -> bool {
        let mut typed = self.typed.lock();
        let room = typed.info(console).room > 0;
        if room {
            typed.push(console, Received::Break, self.now_ns());
            self.note_key();
        }
        room
    }

    /// When the line is to be looked at although nobody pressed a key.
    fn next_look(&self) -> Option<u64> {
        let looked = self.looked.load(Ordering::Relaxed);
        self.looking.load(Ordering::SeqCst).then(|| looked.saturating_add(LOOK_INTERVAL_NS))
    }

    /// Whether what comes next on a plain line is for a guest that reads and has no room for it yet.
    fn holds_line(&self) -> bool {
        let focus = self.line.with(|console, _| console.focus());
        focus.is_some_and(|vm| self.typed.lock().hold(vm, self.now_ns()))
    }

    /// What is typed for guests goes on to those that have room.
    fn hand_out(&self, vm_host: &dyn VmHost) {
        self.typed.lock().hand_out(&mut |console, received| {
            // Where nobody is there to read it, it is taken all the same.
            self.system.vm_at(console).is_none_or(|vm| vm_host.push_input(&vm, received))
        });
    }

    fn look_at_line(&self, vm_host: &dyn VmHost) {
        self.hand_out(vm_host);
        let mut looks = 0;
        while !self.holds_line() {
            let Some(inputs) = self.line.input(self.now_ns()) else {
                self.line.with(|console, sink| console.quiet(self.now_ns(), sink));
                break;
            };
            for input in inputs {
                self.take_input(vm_host, input);
            }
            looks += 1;
            // Whoever sends without end does not keep the first processor.
            if looks == LOOK_MAX {
                self.note_key();
                break;
            }
        }
        self.hand_out(vm_host);
        self.tell_losses();
        let mut monitor = self.monitor.lock();
        if let Some(picture) = monitor.tick(&self.controls(vm_host)) {
            self.line.with(|console, sink| console.live(&picture, sink));
        }
        let looked_for = self.events.are_looked_for();
        if looked_for {
            self.events.note_fault();
        }
        let looking = looked_for
            || !self.keys_interrupt.load(Ordering::SeqCst)
            || !self.typed.lock().is_idle()
            || monitor.is_live()
            || self.line.with(|console, _| console.is_leaving());
        self.looking.store(looking, Ordering::SeqCst);
    }

    /// Says what was typed for guests and is lost.
    fn tell_losses(&self) {
        let mut news = Vec::new();
        self.typed.lock().take_news(self.now_ns(), &mut |console, lost| news.push((console, lost)));
        for (console, lost) in news {
            let vm = self.system.vm_at(console);
            log::warn!(
                "vm {}: {lost} bytes for its console are lost so far: it does not read them, or they came damaged",
                vm.as_ref().map_or("", |vm| vm.name())
            );
        }
    }

    fn take_input(&self, vm_host: &dyn VmHost, input: Input) {
        let reply = match input {
            Input::Guest { vm, received } => {
                return self.typed.lock().push(vm, received, self.now_ns());
            }
            Input::Cancel => {
                self.monitor.lock().cancel();
                return self.line.with(|console, sink| console.answer("", sink));
            }
            Input::Line(text) => self.monitor.lock().command(&text, &mut self.controls(vm_host)),
            Input::Refused(bad) => self.monitor.lock().refuse(&bad),
        };
        self.line.with(|console, sink| reply.show(console, sink));
    }

    /// Looks after what is under way on devices.
    fn attend(&self, vm_host: &dyn VmHost) {
        if !self.system.needs_attention() {
            self.attention.lock().rest();
        } else if self.attention.lock().begin(self.now_ns()) {
            self.system.attend(vm_host);
            self.attention.lock().done(self.now_ns());
        }
    }

    /// Asks again whether what was retired has stopped.
    fn retry_retired(&self, vm_host: &dyn VmHost) {
        for RetiredInfo { what, vm, value, .. } in self.system.retry_retired(vm_host).reclaimed {
            log::info!("vm {vm}: {what} {value} has stopped and is free again");
        }
    }

    /// Ends the vdevs whose guests have let go of them, or have had their time.
    fn serve_departures(&self, vm_host: &dyn VmHost) {
        for Departed { vdev, let_go } in self.system.serve_departures(vm_host) {
            let VdevName { vm_name, vdev, parent, type_name, .. } = &vdev;
            let name = vdev_name(parent, type_name, vdev.0);
            match let_go {
                true => log::info!("vm {vm_name}: vdev {name}: the guest has let go of it"),
                false => log::warn!(
                    "vm {vm_name}: vdev {name}: the guest has not let go of it within {} s: it has ended",
                    PATIENCE_NS / 1_000_000_000
                ),
            }
        }
    }

    /// Carries out what guests asked for.
    fn serve(&self, vm_host: &dyn VmHost) {
        for served in self.system.serve_requests(vm_host) {
            let vm = self.system.vm(served.vm);
            let name = vm.as_ref().map_or("", |vm| vm.name());
            match &served.request {
                VmEnd::PowerOff => log::info!("vm {name}: switched itself off"),
                VmEnd::Reset if served.restart => log::info!("vm {name}: started again at its own request"),
                VmEnd::Reset => log::info!("vm {name}: stopped at its own request to restart"),
                VmEnd::FaultReset(why) if served.restart => {
                    log::warn!("vm {name}: {why}: started again, as a machine would be")
                }
                VmEnd::Stopped(why) => log::info!("vm {name}: stopped: {why}"),
                VmEnd::Crashed(why) | VmEnd::FaultReset(why) => log::error!("vm {name}: crashed: {why}"),
            }
            if let Err(refusal) = &served.result {
                log::error!("{refusal}");
            }
        }
    }

    /// To be switched off or reset as soon as the answer has been shown.
    fn request_power(&self, power: HostPower) {
        *self.wanted_power.lock() = Some(power);
        self.wake();
    }

    /// Ends all VMs in order, then switches the machine off or resets it.
    fn switch(&self, power: HostPower, vm_host: &dyn VmHost) {
        let end = VmEnd::Stopped("the machine is switched off".to_string());
        for vm in self.system.vms() {
            if vm.state().is_alive()
                && let Err(refusal) = self.system.end_vm(vm_host, &vm, &end)
            {
                log::error!("{refusal}");
            }
        }
        let word = match power {
            HostPower::Reset => "reset",
            HostPower::Off => "switched off",
        };
        log::info!("the machine is {word}");
        self.machine.power.carry_out(power);
    }
}
