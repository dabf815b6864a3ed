// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the firmware's hand-over to running guests.
//!
//! **Order.** Devices are blocked by the IOMMU before any is touched; everything that the configuration asks
//! for is checked before the first VM is built; the console opens before the first guest prints.

pub(crate) mod devices;
mod host_machine;
pub(crate) mod iommu;
mod measure;

use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use pasidon_arch::host::{self, MachineHost};
use pasidon_arch::interrupts;
use pasidon_arch::platform::Platform;
use pasidon_arch::run::{self, World};
use pasidon_arch::vms::{Vms, kick};
use pasidon_arch::{fault, history, pcpu, time};
use pasidon_arch_common::guest_files::Files;
use pasidon_kernel::config::{ConfigError, Definition, Parsed};
use pasidon_kernel::console::Console;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::housekeeping::Housekeeping;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::system::startup::Wanted;
use pasidon_kernel::system::{System, SystemParts};
use pasidon_kernel::vm::sched::{SLICE_NS, Scheduler};
use spin::Once;

use crate::output;
use crate::provoke;
use crate::registers::{self, Pci};
use crate::tables::Tables;
use devices::Supply;
use iommu::MachineIommu;

/// The machine, and what it is to run.
pub struct Handover {
    /// `pasidon.toml`.
    pub parsed: Result<Parsed, Vec<ConfigError>>,
    /// The files of VMs that may be defined later.
    pub definitions: Vec<Definition>,
    /// Every kernel and initrd that a VM names.
    pub files: Files,
    /// Size of the loaded image in bytes.
    pub image_bytes: u64,
    /// The RAM that nobody uses.
    pub frames: &'static Frames,
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
    let Some(wanted) = Wanted::new(handover.parsed, handover.definitions) else { nothing_started() };
    let mode = wanted.host().console.value;
    let (last_pasid, pasid_scope) = (wanted.host().last_pasid, wanted.host().pasid_namespace.value);
    log::set_max_level(wanted.host().log.value);

    let frames = handover.frames;
    let pci = Pci::new(&handover.ecams, &mut registers::map);
    for function in &pci.functions {
        log::info!("pci: {function}");
    }
    let iommu = iommu::take(&handover.tables, &handover.platform, &pci, frames);

    let count = pcpu::count();
    let cpus: Vec<u32> = (0..count as u32).filter_map(host::cpu_of).collect();
    let parts = SystemParts {
        host: &MachineHost,
        iommu: iommu.as_ref().and_then(MachineIommu::iommu),
        msi: iommu.as_ref().and_then(MachineIommu::msi),
        frames,
        cpus,
        vectors: host::device_vectors(),
        last_pasid: last_pasid.and_then(|last| Pasid::new(last.value.into())),
        pasid_scope,
    };
    let mut system = match System::new(parts) {
        Ok(system) => system,
        Err(refusal) => {
            log::error!("{refusal}");
            nothing_started();
        }
    };
    let supply = Supply { pci: &pci, files: &handover.files, frames };
    let checked = wanted.check(&mut system, &supply);
    if measure::ON {
        let device = checked.parents().next().map(|parent| parent.requester());
        measure::attachments(iommu.as_ref().and_then(MachineIommu::iommu), device, frames);
    }
    let system: &'static System = SYSTEM.call_once(|| system);
    let defined = checked.define(system, &supply);
    let housekeeping = HOUSEKEEPING.call_once(|| {
        let machine = host_machine::host_machine(handover.image_bytes);
        let console = Console::new(mode, mark());
        Housekeeping::new(system, machine, console, defined.refused().to_vec(), defined.definitions().clone())
    });
    let scheduler = Scheduler::new(count, SLICE_NS);
    let vms = VMS.call_once(|| Vms::new(frames, scheduler, housekeeping, system, handover.files));
    run::install(World { system, vms, notes: &run::NOTES });
    provoke::lose_pcpu(system);
    connect_interrupts(iommu.as_ref(), &handover.platform, housekeeping);

    output::CONSOLE.call_once(|| show_log);
    show_log();
    defined.start(system, &vms);
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
