// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the firmware's hand-over to running guests.
//!
//! **Order.** Devices are blocked by the IOMMU before any is touched; everything that the configuration asks
//! for is checked before the first VM is built; the console opens before the first guest prints.

mod devices;
mod guests;
mod host_machine;
mod iommu;
mod measure;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use pasidon_arch::host::{self, MachineHost};
use pasidon_arch::interrupts;
use pasidon_arch::platform::Platform;
use pasidon_arch::run::{self, World};
use pasidon_arch::vms::{Processor, Vms, kick};
use pasidon_arch::{fault, history, pcpu, time};
use pasidon_arch_common::guest_files::{Files, Images};
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::config::{
    Config, ConfigError, ConsoleMode, Parsed, PciDevice, check_memory, check_vdevs, resolve_parents,
};
use pasidon_kernel::console::Console;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::housekeeping::Housekeeping;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::system::{ParentOptions, System, SystemParts};
use pasidon_kernel::vdev::parent::Parent;
use pasidon_kernel::vm::Vm;
use pasidon_kernel::vm::sched::{SLICE_NS, Scheduler};
use spin::Once;

use crate::output;
use crate::pci::Pci;
use crate::provoke;
use crate::tables::Tables;
use iommu::MachineIommu;

/// The machine, and what it is to run.
pub struct Handover {
    /// `pasidon.toml`.
    pub parsed: Result<Parsed, Vec<ConfigError>>,
    /// Every kernel and initrd that a VM names.
    pub files: Files,
    /// Size of the loaded image in bytes.
    pub image_bytes: u64,
    /// RAM that nobody uses, as start and length: whole pages above 1 MiB, sorted.
    pub memory: Vec<(HostPhys, u64)>,
    /// PCI configuration space: segment, address of bus 0, first and last bus.
    pub ecams: Vec<(u16, u64, u8, u8)>,
    /// The machine around the processors, up.
    pub platform: Platform,
    /// What the firmware's tables say.
    pub tables: Tables,
}

static HOUSEKEEPING: Once<Housekeeping> = Once::new();
static SYSTEM: Once<System> = Once::new();
static VMS: Once<Vms> = Once::new();
/// The other processors may go to work.
static READY: AtomicBool = AtomicBool::new(false);

/// Runs what the configuration asks for, for ever.
pub fn run(handover: Handover) -> ! {
    if !fault::add_context(print_history) {
        log::warn!("a fault report will not show the last exits: too many want to add to it");
    }
    let (mut config, errors) = match handover.parsed {
        Ok(parsed) => (parsed.config, parsed.errors),
        Err(errors) => {
            tell(&errors);
            nothing_started();
        }
    };
    tell(&errors);
    log::set_max_level(config.host.log.value);

    let frames: &'static Frames = Box::leak(Box::new(Frames::new(handover.memory)));
    let pci = Pci::new(&handover.ecams);
    for function in &pci.functions {
        log::info!("pci: {function}");
    }
    let iommu = iommu::take(&handover.tables, &handover.platform, &pci, frames);

    let wanted = config.vms.clone();
    let mut refused = Vec::new();
    let available = frames.counts().free;
    note(&mut config, &mut refused, |config| check_memory(config, available));
    note(&mut config, &mut refused, |config| handover.files.check::<Processor>(config));
    let resolved = resolve_parents(&config, &pci.devices());
    config.remove_refused(&resolved.errors);
    refused.extend(resolved.errors);

    let count = pcpu::count();
    let cpus: Vec<u32> = (0..count as u32).filter_map(host::cpu_of).collect();
    let parts = SystemParts {
        host: &MachineHost,
        iommu: iommu.as_ref().map(MachineIommu::iommu),
        msi: iommu.as_ref().and_then(MachineIommu::msi),
        frames,
        cpus,
        vectors: host::device_vectors(),
        last_pasid: config.host.last_pasid.and_then(|last| Pasid::new(last.value.into())),
    };
    let mut system = match System::new(parts) {
        Ok(system) => system,
        Err(refusal) => {
            log::error!("{refusal}");
            nothing_started();
        }
    };
    let parents = bring_up_parents(&config, &resolved.parents, &pci, &mut system);
    if measure::ON {
        let device = parents.values().flatten().next().map(|parent| parent.requester());
        measure::attachments(iommu.as_ref().map(MachineIommu::iommu), device, frames);
    }
    note(&mut config, &mut refused, |config: &Config| {
        check_vdevs(config, &|name| match parents.get(name) {
            Some(Ok(parent)) => Ok(*parent),
            Some(Err(refusal)) => Err(refusal.clone()),
            None => Err(Refusal::new(
                alloc::format!("parent {name}"),
                "it was refused",
                "see the line about it above",
            )),
        })
    });
    tell(&refused);
    for taint in system.taints() {
        log::warn!("TAINTED: {taint}");
    }

    let system: &'static System = SYSTEM.call_once(|| system);
    let images = Images::new(&config.vms, &handover.files);
    let places = config.vms.iter().map(|vm| vm.index + 1).max().unwrap_or(0);
    let mut names = vec![String::from("(refused)"); places];
    for vm in &config.vms {
        names[vm.index] = vm.name.value.clone();
    }
    let defined: Vec<_> = config
        .vms
        .iter()
        .filter_map(|vm| match system.define_vm(guests::spec(vm)) {
            Ok(defined) => Some((vm, defined)),
            Err(refusal) => {
                tell(&[vm.refused(vm.name.at, &refusal)]);
                None
            }
        })
        .collect();
    let mode = config.host.console.value;
    let consoles = defined.iter().map(|(config, vm)| (vm.id(), config.index)).collect();
    let known_refused = guests::refused(&wanted, &refused);
    let housekeeping = HOUSEKEEPING.call_once(|| {
        let machine = host_machine::host_machine(handover.image_bytes);
        Housekeeping::new(system, machine, Console::new(mode, names, mark()), consoles, known_refused)
    });
    let scheduler = Scheduler::new(count, SLICE_NS);
    let vms = VMS.call_once(|| Vms::new(frames, scheduler, housekeeping, system, images));
    run::install(World { system, vms, notes: &run::NOTES });
    provoke::lose_pcpu(system);
    connect_interrupts(iommu.as_ref(), &handover.platform, housekeeping);

    output::CONSOLE.call_once(|| show_log);
    show_log();
    let builder = vms.builder();
    let (mut running, mut waiting) = (0, 0);
    for (config, vm) in &defined {
        if !config.autostart.value {
            log::info!("vm {}: defined, not started (autostart = false)", vm.name());
            waiting += 1;
            continue;
        }
        match system.start_vm(&builder, vm) {
            Ok(()) => {
                running += 1;
                tell_started(vm);
            }
            Err(refusal) => tell(&[config.refused(config.name.at, &refusal)]),
        }
    }
    if running == 0 && waiting == wanted.len() {
        log::info!("no VM starts with the machine; `vm NAME start` starts one");
    } else if running == 0 {
        log::error!("nothing was started: no VM is left to run; `vms` and `help` still work");
    }
    if mode == ConsoleMode::Plain {
        log::info!("`console NAME` goes to a guest, Ctrl-] comes back; `help` lists the commands");
    }
    housekeeping.prompt();
    READY.store(true, Ordering::Release);
    for pcpu in 1..count as u32 {
        kick(pcpu);
    }
    run_forever()
}

fn show_log() {
    if let Some(housekeeping) = HOUSEKEEPING.get() {
        housekeeping.show_log();
    }
}

/// A number that no guest knows: made of the clocks, which did not run for any guest yet.
fn mark() -> u16 {
    /// Mixes all bits into the upper ones (Fibonacci hashing).
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let count = time::now_ns() ^ time::unix_ns().rotate_left(32);
    (count.wrapping_mul(FACTOR) >> 48) as u16
}

/// Adds the last exits to a fault report.
fn print_history(out: &mut dyn Write) {
    // Where it cannot be printed, nobody can be told either.
    let _ = history::print(out, pcpu::current().index);
}

/// What each other processor does from its start on.
pub fn processor() -> ! {
    while !READY.load(Ordering::Acquire) {
        interrupts::wait();
    }
    run_forever()
}

fn run_forever() -> ! {
    match run::run() {
        Ok(never) => match never {},
        Err(refusal) => {
            log::error!("pCPU {}: it runs no guests: {refusal}", pcpu::current().index);
            loop {
                interrupts::wait();
            }
        }
    }
}

/// Faults and keys reach the first pCPU by interrupt. Where that is not possible, they are looked for.
fn connect_interrupts(iommu: Option<&MachineIommu>, platform: &Platform, housekeeping: &Housekeeping) {
    const INSTEAD: &str = "looked for a hundred times a second instead";
    if let Some(iommu) = iommu {
        let connected = iommu.connect_faults(|_| {
            if let Some(housekeeping) = HOUSEKEEPING.get() {
                housekeeping.note_fault();
            }
        });
        if let Err(refusal) = connected {
            log::warn!("{refusal}; DMA faults are {INSTEAD}");
            housekeeping.look_for_faults();
        }
        // What was recorded before the interrupt was connected is announced by none.
        housekeeping.note_fault();
    }
    let connected = iommu::connect_keys(iommu, platform, || {
        if let Some(housekeeping) = HOUSEKEEPING.get() {
            housekeeping.note_key();
        }
    });
    match connected {
        Ok(()) => housekeeping.keys_interrupt(),
        Err(refusal) => log::warn!("{refusal}; keys are {INSTEAD}"),
    }
}

/// Nothing can be run: the messages above say why.
fn nothing_started() -> ! {
    log::error!("nothing was started; correct pasidon.toml and boot again");
    loop {
        interrupts::wait();
    }
}

fn tell(errors: &[ConfigError]) {
    for error in errors {
        log::error!("{error}");
    }
}

fn tell_started(vm: &Vm) {
    let vdevs: Vec<String> = vm
        .vdevs()
        .iter()
        .map(|vdev| match vdev.pasid() {
            Some(pasid) => {
                alloc::format!("{}/{} with PASID {}", vdev.parent(), vdev.type_name(), pasid.value())
            }
            None => alloc::format!("{}/{}", vdev.parent(), vdev.type_name()),
        })
        .collect();
    let memory: u64 = vm.spec().ram.iter().map(|range| range.len).sum();
    log::info!(
        "vm {}: started, {} MiB{}{}",
        vm.name(),
        memory >> 20,
        if vdevs.is_empty() { "" } else { ", " },
        vdevs.join(", ")
    );
}

/// Runs a check and takes out what it refuses.
fn note(
    config: &mut Config,
    refused: &mut Vec<ConfigError>,
    check: impl FnOnce(&Config) -> Vec<ConfigError>,
) {
    let errors = check(config);
    config.remove_refused(&errors);
    refused.extend(errors);
}

/// One line about a parent. What there is of each queue is for the monitor to show.
fn description(parent: &dyn Parent) -> String {
    let details: Vec<String> = parent
        .describe()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("queue "))
        .map(|(name, value)| alloc::format!("{name} {value}"))
        .collect();
    details.join(", ")
}

type Parents = BTreeMap<String, Result<&'static dyn Parent, Refusal>>;

fn bring_up_parents(
    config: &Config,
    devices: &[(usize, PciDevice)],
    pci: &Pci,
    system: &mut System,
) -> Parents {
    let mut parents = Parents::new();
    for parent in &config.parents {
        let Some((_, device)) = devices.iter().find(|(index, _)| *index == parent.index) else {
            continue;
        };
        let name = &parent.name.value;
        let queues = devices::wanted_queues(config, name);
        let result = devices::bring_up_parent(parent, device, pci, queues).and_then(|driver| {
            let options = ParentOptions {
                iommu: parent.iommu.value,
                unsafe_portals: parent.allow_unsafe_portals.value,
            };
            system.add_parent(driver, options).map(|()| driver)
        });
        match &result {
            Ok(driver) => log::info!("parent {name}: {} at {}", description(*driver), device.requester),
            Err(refusal) => tell(&[parent.refused(parent.selector.at, refusal)]),
        }
        parents.insert(name.clone(), result);
    }
    parents
}
