// SPDX-License-Identifier: MIT OR Apache-2.0
//! What there is to run where guests cannot be run yet: the inventory goes on with the PCI functions, and ends.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use pasidon_arch::interrupts::{self, vector};
use pasidon_arch::platform::Platform;
use pasidon_arch::{firmware_tables, pcpu, serial, time};
use pasidon_kernel::addr::HostPhys;
use pasidon_kernel::config::{ConfigError, Parsed, resolve_parents};

use crate::pci::Pci;
use crate::tables::Tables;

/// The machine, and what it is to run.
pub struct Handover {
    /// `pasidon.toml`.
    pub parsed: Result<Parsed, Vec<ConfigError>>,
    /// Every kernel and initrd that a VM names, once each, by its path in the configuration; or why it cannot be
    /// had, in words.
    pub files: Vec<(String, Result<&'static [u8], String>)>,
    /// Size of the loaded image in bytes.
    pub image_bytes: u64,
    /// RAM that nobody uses, as start and length: whole pages, sorted.
    pub memory: Vec<(HostPhys, u64)>,
    /// PCI configuration space: segment, address of bus 0, first and last bus.
    pub ecams: Vec<(u16, u64, u8, u8)>,
    /// The machine around the processors, up.
    pub platform: Platform,
    /// What the firmware's tables say.
    pub tables: Tables,
}

/// Lists what is left to list, and waits for ever.
pub fn run(handover: Handover) -> ! {
    let (config, errors) = match handover.parsed {
        Ok(parsed) => (Some(parsed.config), parsed.errors),
        Err(errors) => (None, errors),
    };
    for error in errors {
        log::error!("{error}");
    }
    let pci = Pci::new(&handover.ecams);
    for function in &pci.functions {
        match pci.bridge(function.requester) {
            Some((first, last)) => log::info!("pci: {function}, bridge to buses {first:02x}-{last:02x}"),
            None => log::info!("pci: {function}"),
        }
    }
    let parents = config
        .as_ref()
        .map(|config| resolve_parents(config, &pci.devices()));
    for error in parents.iter().flat_map(|resolved| &resolved.errors) {
        log::error!("{error}");
    }
    for its in handover.platform.its() {
        log::info!("interrupts: ITS {} at {:#x}", its.id, its.base);
    }
    let smmus = handover.tables.get("IORT").map(firmware_tables::smmus);
    for base in smmus.unwrap_or_default() {
        log::warn!("iommu: SMMUv3 at {base:#x}: this build does not take it over; nothing confines a device");
    }
    for (path, bytes) in &handover.files {
        if let Err(why) = bytes {
            log::error!("{path}: {why}");
        }
    }
    check_interrupts();
    let mib = |bytes: u64| bytes >> 20;
    log::info!(
        "configuration: {} VMs with {} files, {} MiB for them",
        config.map_or(0, |config| config.vms.len()),
        handover.files.len(),
        mib(handover.memory.iter().map(|(_, length)| length).sum())
    );
    log::info!(
        "this build ({} KiB) lists the machine; guests on this architecture are not there yet",
        handover.image_bytes >> 10
    );
    echo()
}

/// A key was pressed, and not read yet.
static KEY: AtomicBool = AtomicBool::new(false);

/// Shows that keys come by interrupt, for ever.
fn echo() -> ! {
    let announced = serial::announce_keys(pcpu::current().mpidr, || KEY.store(true, Ordering::Release));
    if let Err(refusal) = announced {
        log::warn!("{refusal}; keys are not looked at");
    }
    loop {
        interrupts::wait();
        if KEY.swap(false, Ordering::AcqRel) {
            while let Some(key) = serial::read() {
                log::info!("key {key:#04x}");
            }
        }
    }
}

/// How many kicks were answered.
static ANSWERED: AtomicUsize = AtomicUsize::new(0);
/// When the timer's interrupt came; 0 while it has not.
static FIRED: AtomicU64 = AtomicU64::new(0);

/// Kicks every processor, and lets this one's timer run down: first looking whether it comes, then asleep.
fn check_interrupts() {
    const AHEAD_NS: u64 = 1_000_000;
    /// Much, since a simulated processor may have to wait for its turn.
    const DEADLINE_NS: u64 = 3_000_000_000;
    interrupts::install(vector::KICK, |_| {
        ANSWERED.fetch_add(1, Ordering::AcqRel);
    });
    interrupts::install(time::vector(), |_| {
        time::arm_timer(None);
        FIRED.store(time::now_ns(), Ordering::Release);
    });
    let count = pcpu::count();
    for pcpu in 0..count as u32 {
        interrupts::kick(pcpu);
    }
    let all_answered = || {
        interrupts::window();
        ANSWERED.load(Ordering::Acquire) == count
    };
    if !time::spin_until(DEADLINE_NS, all_answered) {
        let answered = ANSWERED.load(Ordering::Acquire);
        log::error!("interrupts: {answered} of {count} processors answer a kick; reset the machine");
        return;
    }
    let arm = || {
        FIRED.store(0, Ordering::Release);
        let due = time::now_ns() + AHEAD_NS;
        time::arm_timer(Some(due));
        due
    };
    let late = |due: u64| FIRED.load(Ordering::Acquire).saturating_sub(due) / 1000;
    let fired = || {
        interrupts::window();
        FIRED.load(Ordering::Acquire) != 0
    };
    let due = arm();
    if !time::spin_until(DEADLINE_NS, fired) {
        let vector = time::vector();
        log::error!("interrupts: the timer's, INTID {vector}, does not come; update the firmware");
        return;
    }
    let awake = late(due);
    let due = arm();
    while FIRED.load(Ordering::Acquire) == 0 {
        interrupts::wait();
    }
    log::info!(
        "interrupts: all {count} processors answer a kick; the timer comes {awake} us late, out of sleep {} us",
        late(due)
    );
}

/// What each other processor does from its start on.
pub fn processor() -> ! {
    loop {
        interrupts::wait();
    }
}
