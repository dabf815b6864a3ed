// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor proper: what runs once the machine is set up.

use alloc::string::String;
use alloc::vec::Vec;

use pasidon_arch_x86_64::{interrupts, pcpu};
use pasidon_kernel::addr::HostPhys;
use pasidon_kernel::config::{ConfigError, Parsed};

use crate::output;

/// The machine, and what it is to run.
pub struct Handover {
    /// `pasidon.toml`.
    pub parsed: Result<Parsed, Vec<ConfigError>>,
    /// Every kernel and initrd that a VM names, once each, by its path in the configuration; or why it
    /// cannot be had, in words.
    pub files: Vec<(String, Result<&'static [u8], String>)>,
    /// `pasidon.sym`.
    pub symbols: Option<&'static [u8]>,
    /// RAM that nobody uses, as start and length: whole pages above 1 MiB, sorted.
    pub memory: Vec<(HostPhys, u64)>,
    /// Bits of a physical address.
    pub physical_bits: u8,
    /// PCI configuration space: segment, address of bus 0, first and last bus.
    pub ecams: Vec<(u16, u64, u8, u8)>,
    /// Global system interrupt of COM1, for `ioapic::route`. All inputs are masked.
    pub com1_gsi: u32,
    /// How the machine is reset: I/O port and value.
    pub reset: Option<(u16, u8)>,
    /// The DMAR table with its header, checksum verified.
    pub dmar: Option<Vec<u8>>,
    /// How many pCPUs there are. All but the first are in [`processor`].
    pub processors: usize,
    /// Wall clock, in nanoseconds since 1970; 0 where unknown.
    pub unix_ns: u64,
    /// Where the image lies, and its size.
    pub image: (u64, u64),
}

/// Runs the machine, on the first pCPU.
pub fn run(handover: Handover) -> ! {
    output::redirect(output::flush);
    let kib = |bytes: &[u8]| bytes.len() >> 10;
    for (path, file) in &handover.files {
        match file {
            Ok(bytes) => log::info!("file {path}: {} KiB", kib(bytes)),
            Err(why) => log::warn!("file {path}: {why}"),
        }
    }
    match &handover.parsed {
        Ok(parsed) => {
            for error in &parsed.errors {
                log::error!("{error}");
            }
            log::info!("configuration: {} VMs", parsed.config.vms.len());
        }
        Err(errors) => {
            for error in errors {
                log::error!("{error}");
            }
            log::error!("nothing was started");
        }
    }
    log::info!(
        "firmware: COM1 at interrupt {}, {} ECAMs, DMAR {} bytes, symbols {} KiB, reset {:x?}, {} pieces of memory below {} bits, image at {:#x}, clock {} s, {} pCPUs",
        handover.com1_gsi,
        handover.ecams.len(),
        handover.dmar.as_ref().map_or(0, Vec::len),
        handover.symbols.map_or(0, kib),
        handover.reset,
        handover.memory.len(),
        handover.physical_bits,
        handover.image.0,
        handover.unix_ns / 1_000_000_000,
        handover.processors
    );
    idle()
}

/// Where every other pCPU goes on, as soon as it has been started.
pub fn processor() -> ! {
    log::info!(
        "pCPU {}: APIC ID {}",
        pcpu::current().index,
        pcpu::current().apic_id
    );
    idle()
}

fn idle() -> ! {
    loop {
        interrupts::wait();
    }
}
