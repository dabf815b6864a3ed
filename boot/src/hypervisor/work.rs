// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the first pCPU does besides running guests: the line, the monitor, faults, device events, and the
//! ends of VMs.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pasidon_arch::guest::boot::BootImage;
use pasidon_arch::vms::{Outside, Vms, kick};
use pasidon_arch::{pcpu, run, serial, time};
use pasidon_arch_common::entropy;
use pasidon_kernel::base::allowance::{Allowance, Withheld};
use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::base::id::VmId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::config::ConsoleMode;
use pasidon_kernel::console::{Input, Typed, TypedInfo};
use pasidon_kernel::dev::Received;
use pasidon_kernel::dma::fault::Noted;
use pasidon_kernel::dma::fault_log::{FaultLog, FaultOwner};
use pasidon_kernel::dma::iommu::Iommu;
use pasidon_kernel::monitor::info::{RetiredInfo, VmInfo};
use pasidon_kernel::monitor::{HostPower, Monitor, MonitorHost};
use pasidon_kernel::system::{ParentReport, System};
use pasidon_kernel::vm::VmEnd;
use spin::{Mutex, Once};

use super::line;
use super::power;

/// How often the line is looked at while nothing else happens, in nanoseconds.
const LOOK_INTERVAL_NS: u64 = 10_000_000;

/// How much is read from the line before other work has its turn.
const LOOK_MAX: usize = 4096;

/// How often at most devices' faults and events are looked at, in nanoseconds. A guest can have its queue report
/// errors as fast as it submits; until one is read, the units raise no further interrupt.
const EVENT_INTERVAL_NS: u64 = 10_000_000;

/// How soon what is under way on a device is looked at again, in nanoseconds: at first, and at the latest. In
/// between, a quarter of the time that it has taken so far.
const ATTEND_NS: (u64, u64) = (1_000_000, 20_000_000);

/// What a VM boots, as named by the configuration.
pub struct Image {
    /// The VM's name.
    pub vm: String,
    /// Its place among the configuration's VMs: its console.
    pub console: usize,
    /// What it boots.
    pub boot: BootImage<'static>,
}

/// Everything the work is done with.
struct Parts {
    system: &'static System,
    vms: &'static Vms,
    iommu: Option<&'static dyn Iommu>,
    host: &'static Host,
}

/// What the monitor's commands act on.
pub type Host = Mutex<dyn MonitorHost + Send>;

/// The desk at which the first pCPU does its work.
pub struct Desk {
    parts: Once<Parts>,
    images: Vec<Image>,
    /// VMs of the configuration that could not be made.
    refused: Vec<VmInfo>,
    /// Place of a VM in the configuration, by its number.
    consoles: Once<BTreeMap<VmId, usize>>,
    /// DMA faults.
    pub faults: Mutex<FaultLog>,
    monitor: Mutex<Monitor>,
    /// What was typed for guests. Taken after the monitor's lock, and before a board's.
    typed: Mutex<Typed>,
    /// Something happened.
    woken: AtomicBool,
    /// The IOMMU recorded faults.
    faulted: AtomicBool,
    /// A key was pressed.
    key: AtomicBool,
    /// Messages of the log wait to be shown.
    log_waits: AtomicBool,
    /// Faults are recorded without an interrupt to announce them.
    faults_unannounced: AtomicBool,
    /// Keys are announced by an interrupt.
    keys_interrupt: AtomicBool,
    /// Something must be looked at soon although nothing announces it: keys, faults, a live display, or a guest
    /// that had no room for what was typed.
    looking: AtomicBool,
    /// When the line was last looked at.
    looked: AtomicU64,
    /// Before that time, faults and events of devices wait.
    events_due: AtomicU64,
    /// Since when something has been under way on a device; 0 while nothing is.
    attending: AtomicU64,
    /// When it is looked at again.
    attend_due: AtomicU64,
    /// Lines about events, by the name of the VM that caused them.
    event_lines: Mutex<BTreeMap<Option<String>, Allowance>>,
    power: Mutex<Option<HostPower>>,
}

impl Desk {
    /// A desk for these VMs; `refused` are those of the configuration that could not be made.
    pub fn new(mode: ConsoleMode, images: Vec<Image>, refused: Vec<VmInfo>) -> Self {
        Self {
            parts: Once::new(),
            images,
            refused,
            consoles: Once::new(),
            faults: Mutex::new(FaultLog::default()),
            monitor: Mutex::new(Monitor::new(mode)),
            typed: Mutex::new(Typed::default()),
            woken: AtomicBool::new(false),
            faulted: AtomicBool::new(false),
            key: AtomicBool::new(false),
            log_waits: AtomicBool::new(false),
            faults_unannounced: AtomicBool::new(false),
            keys_interrupt: AtomicBool::new(false),
            looking: AtomicBool::new(true),
            looked: AtomicU64::new(0),
            events_due: AtomicU64::new(0),
            attending: AtomicU64::new(0),
            attend_due: AtomicU64::new(0),
            event_lines: Mutex::new(BTreeMap::new()),
            power: Mutex::new(None),
        }
    }

    /// Names what the work is done with, once all of it is there.
    pub fn equip(
        &self,
        system: &'static System,
        vms: &'static Vms,
        iommu: Option<&'static dyn Iommu>,
        host: &'static Host,
    ) {
        let consoles = system.vms().into_iter().filter_map(|vm| {
            let image = self.images.iter().find(|image| image.vm == vm.name())?;
            Some((vm.id(), image.console))
        });
        self.consoles.call_once(|| consoles.collect());
        self.parts.call_once(|| Parts { system, vms, iommu, host });
    }

    /// The VMs of the configuration that could not be made.
    pub fn refused(&self) -> &[VmInfo] {
        &self.refused
    }

    /// A VM's place in the configuration.
    pub fn console_of(&self, vm: VmId) -> Option<usize> {
        self.consoles.get()?.get(&vm).copied()
    }

    fn vm_of(&self, console: usize) -> Option<VmId> {
        let consoles = self.consoles.get()?;
        consoles.iter().find(|(_, place)| **place == console).map(|(vm, _)| *vm)
    }

    /// The IOMMU's fault interrupt came.
    pub fn note_fault(&self) {
        self.faulted.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Faults are not announced by [`Desk::note_fault`]: they are looked for.
    pub fn look_for_faults(&self) {
        self.faults_unannounced.store(true, Ordering::SeqCst);
    }

    /// Keys are announced by [`Desk::note_key`] from now on.
    pub fn keys_interrupt(&self) {
        self.keys_interrupt.store(true, Ordering::SeqCst);
    }

    /// A key was pressed.
    pub fn note_key(&self) {
        self.key.store(true, Ordering::SeqCst);
    }

    /// Messages came while others were shown.
    pub fn note_log(&self) {
        self.log_waits.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// What was typed for a VM, by its place in the configuration.
    pub fn typed_for(&self, console: usize) -> TypedInfo {
        self.typed.lock().info(console)
    }

    /// Sends a BREAK to a VM's console, behind what was typed. False where there is no room for it.
    pub fn send_break(&self, console: usize) -> bool {
        let mut typed = self.typed.lock();
        let room = typed.info(console).room > 0;
        if room {
            typed.push(console, Received::Break, time::now_ns());
            self.note_key();
        }
        room
    }

    /// To be switched off or reset as soon as the answer has been shown.
    pub fn request_power(&self, power: HostPower) {
        *self.power.lock() = Some(power);
        self.wake();
    }

    /// Whether what comes next on a plain line is for a guest that reads and has no room for it yet.
    fn holds_line(&self) -> bool {
        let focus = line::with(|console, _| console.focus()).flatten();
        focus.is_some_and(|vm| self.typed.lock().hold(vm, time::now_ns()))
    }

    /// What is typed for guests goes on to those that have room.
    fn hand_out(&self, parts: &Parts) {
        self.typed.lock().hand_out(&mut |console, received| {
            match self.vm_of(console).and_then(|vm| parts.vms.machine(vm)) {
                Some(machine) => machine.push_input(received),
                // Nobody is there to read it.
                None => true,
            }
        });
    }

    fn look_at_line(&self, parts: &Parts) {
        self.hand_out(parts);
        let mut looks = 0;
        while !self.holds_line() {
            let Some(received) = serial::read() else {
                line::with(|console, sink| console.quiet(time::now_ns(), sink));
                break;
            };
            let inputs = line::with(|console, sink| console.input(received, time::now_ns(), sink));
            for input in inputs.into_iter().flatten() {
                self.take_input(parts, input);
            }
            looks += 1;
            // Whoever sends without end does not keep the first pCPU.
            if looks == LOOK_MAX {
                self.note_key();
                break;
            }
        }
        self.hand_out(parts);
        let mut news = Vec::new();
        self.typed.lock().take_news(time::now_ns(), &mut |console, lost| news.push((console, lost)));
        for (console, lost) in news {
            let name = self.images.iter().find(|image| image.console == console);
            let name = name.map_or("", |image| image.vm.as_str());
            log::warn!(
                "vm {name}: {lost} bytes for its console are lost so far: it does not read them, or they came damaged"
            );
        }
        let mut monitor = self.monitor.lock();
        if let Some(picture) = monitor.tick(&*parts.host.lock()) {
            line::with(|console, sink| console.live(&picture, sink));
        }
        let unannounced = self.faults_unannounced.load(Ordering::SeqCst);
        if unannounced {
            self.faulted.store(true, Ordering::SeqCst);
        }
        let looking = unannounced
            || !self.keys_interrupt.load(Ordering::SeqCst)
            || !self.typed.lock().is_idle()
            || monitor.is_live()
            || line::with(|console, _| console.is_leaving()).unwrap_or(false);
        self.looking.store(looking, Ordering::SeqCst);
    }

    fn take_input(&self, parts: &Parts, input: Input) {
        match input {
            Input::Guest { vm, received } => self.typed.lock().push(vm, received, time::now_ns()),
            Input::Line(text) => {
                let reply = self.monitor.lock().command(&text, &mut *parts.host.lock());
                line::with(|console, sink| reply.show(console, sink));
            }
            Input::Refused(bad) => {
                let reply = self.monitor.lock().refuse(&bad);
                line::with(|console, sink| reply.show(console, sink));
            }
            Input::Cancel => {
                self.monitor.lock().cancel();
                line::with(|console, sink| console.answer("", sink));
            }
        }
    }

    fn record_faults(&self, parts: &Parts) {
        let Some(iommu) = parts.iommu else { return };
        let mut found = Vec::new();
        if iommu.drain_faults(&mut |noted| found.push(noted)) == Drained::Again {
            self.faulted.store(true, Ordering::SeqCst);
        }
        for noted in found {
            let now = time::now_ns();
            let told = match &noted {
                Noted::Fault(fault) => {
                    let name = parts.system.record_fault(fault);
                    let owner = name.as_ref().map(FaultOwner::from);
                    self.faults.lock().record(now, owner, fault)
                }
                Noted::Stranger(number) => self.faults.lock().stranger(now, *number),
                Noted::Lost => self.faults.lock().overflow(now),
            };
            if let Some(told) = told {
                log::warn!("{told}");
            }
        }
    }

    fn take_events(&self, parts: &Parts) {
        for parent in run::NOTES.take_parents() {
            let builder = parts.vms.builder();
            let tell = &mut |report| self.tell_event(&report);
            if parts.system.parent_event(&builder, parent, tell) == Drained::Again {
                run::NOTES.leave_parent(parent);
            }
        }
    }

    /// One line, unless the VM that caused it has had enough of them.
    fn tell_event(&self, report: &ParentReport) {
        let now = time::now_ns();
        let vm = report.vdev.as_ref().map(|vdev| vdev.vm_name.clone());
        let mut lines = self.event_lines.lock();
        if let Some(withheld) = lines.entry(vm).or_insert(Allowance::new(now)).take(now) {
            log::warn!("{report}{}", Withheld(withheld));
        }
    }

    /// Looks after what is under way on devices.
    fn attend(&self, parts: &Parts) {
        if !parts.system.needs_attention() {
            self.attending.store(0, Ordering::Relaxed);
            return;
        }
        let now = time::now_ns();
        let since = match self.attending.load(Ordering::Relaxed) {
            0 => now,
            since => since,
        };
        if since != now && now < self.attend_due.load(Ordering::Relaxed) {
            return;
        }
        self.attending.store(since, Ordering::Relaxed);
        parts.system.attend(&parts.vms.builder());
        let now = time::now_ns();
        let pause = (now.saturating_sub(since) / 4).clamp(ATTEND_NS.0, ATTEND_NS.1);
        self.attend_due.store(now.saturating_add(pause), Ordering::Relaxed);
    }

    /// Asks again whether what was retired has stopped.
    fn retry_retired(&self, parts: &Parts) {
        for RetiredInfo { what, vm, value, .. } in parts.system.retry_retired(&parts.vms.builder()).reclaimed
        {
            log::info!("vm {vm}: {what} {value} has stopped and is free again");
        }
    }

    /// When what is under way on devices is to be looked at.
    fn next_attend(&self) -> Option<u64> {
        let parts = self.parts.get()?;
        let due = match self.attending.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.attend_due.load(Ordering::Relaxed),
        };
        parts.system.needs_attention().then_some(due)
    }

    /// Whether faults or events of devices wait to be looked at.
    fn events_wait(&self) -> bool {
        self.faulted.load(Ordering::SeqCst) || run::NOTES.has_parents()
    }

    /// When the line is to be looked at although nobody pressed a key.
    fn next_look(&self) -> Option<u64> {
        let looked = self.looked.load(Ordering::Relaxed);
        self.looking.load(Ordering::SeqCst).then(|| looked.saturating_add(LOOK_INTERVAL_NS))
    }

    fn serve(&self, parts: &Parts) {
        let builder = parts.vms.builder();
        for served in parts.system.serve_requests(&builder) {
            let name = parts.system.vm(served.vm).map_or_else(String::new, |vm| vm.name().to_string());
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
}

impl Outside for Desk {
    fn console(&self, vm: VmId, byte: u8) {
        if let Some(console) = self.console_of(vm) {
            line::with(|line, sink| line.guest_output(console, &[byte], sink));
        }
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
        // From another pCPU; the first looks by itself.
        if pcpu::current().index != 0 {
            kick(0);
        }
    }

    fn work(&self) {
        let Some(parts) = self.parts.get() else { return };
        if self.log_waits.swap(false, Ordering::SeqCst) {
            line::show_log();
        }
        let now = time::now_ns();
        let due = self.next_look().is_some_and(|next| next <= now);
        if self.key.swap(false, Ordering::SeqCst) || due {
            self.look_at_line(parts);
            self.looked.store(time::now_ns(), Ordering::Relaxed);
        }
        self.attend(parts);
        self.retry_retired(parts);
        let woken = self.woken.swap(false, Ordering::SeqCst);
        if self.events_wait() && self.events_due.load(Ordering::Relaxed) <= now {
            if self.faulted.swap(false, Ordering::SeqCst) {
                self.record_faults(parts);
            }
            self.take_events(parts);
            // From when the work is done: a guest has its turn in between, however long that took.
            let due = time::now_ns().saturating_add(EVENT_INTERVAL_NS);
            self.events_due.store(due, Ordering::Relaxed);
        }
        if !woken {
            return;
        }
        self.serve(parts);
        let power = self.power.lock().take();
        if let Some(power) = power {
            power::carry_out(power, parts.system, &parts.vms.builder());
        }
    }

    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst) || self.key.load(Ordering::SeqCst)
    }

    fn next_work(&self) -> Option<u64> {
        let events = self.events_wait().then(|| self.events_due.load(Ordering::Relaxed));
        let retry = self.parts.get().and_then(|parts| parts.system.next_retry());
        [self.next_look(), events, self.next_attend(), retry].into_iter().flatten().min()
    }

    fn image(&self, vm: &str) -> Result<BootImage<'static>, Refusal> {
        self.images
            .iter()
            .find(|image| image.vm == vm)
            .map(|image| BootImage { seed: entropy::seed(), ..image.boot })
            .ok_or_else(|| Refusal::new("kernel", "the configuration names none", "correct pasidon.toml"))
    }
}
