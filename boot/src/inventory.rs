// SPDX-License-Identifier: MIT OR Apache-2.0
//! What there is to run where guests cannot be run yet: the inventory goes on with the PCI functions, and ends.

use alloc::string::String;
use alloc::vec::Vec;

use pasidon_arch::platform::Platform;
use pasidon_arch::{firmware_tables, interrupts};
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
    processor()
}

/// What each other processor does from its start on.
pub fn processor() -> ! {
    loop {
        interrupts::wait();
    }
}
