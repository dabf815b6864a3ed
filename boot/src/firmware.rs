// SPDX-License-Identifier: MIT OR Apache-2.0
//! What only the firmware can give: where the image lies, memory to start processors with, the wall clock, the memory map.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

use pasidon_arch::cpu::{self, Features};
use pasidon_arch::paging::{self, Section};
use pasidon_arch::platform::Platform;
use pasidon_arch::{fault, smp, symbols, time};
use pasidon_arch_common::entropy::{self, KEY_LEN, Key};
use pasidon_kernel::base::addr::{HostPhys, LARGE_PAGE_SIZE, PAGE_SIZE};
use pasidon_kernel::base::calendar;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::ranges;
use uefi::boot::{self, AllocateType, MemoryType};
use uefi::mem::memory_map::{MemoryMap, MemoryMapOwned};
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::rng::Rng;
use uefi::runtime;

use crate::files::{BootDisk, Files};
use crate::tables::Tables;
use crate::{heap, output};

/// No guest gets memory below this address, which a PC keeps for old devices.
const LOW_MEMORY: u64 = 1 << 20;
/// Bytes of the image that hold its headers at most.
const IMAGE_HEADERS: usize = 4096;

/// What was asked of the firmware.
pub struct Prepared {
    /// What the processor has.
    pub features: Features,
    /// The files of the ESP.
    pub files: Files,
    /// The firmware's tables.
    pub tables: Tables,
    /// What they say about the machine around the processors.
    pub platform: Platform,
    /// Where the image lies, and its size.
    pub image: (u64, u64),
    /// Its sections.
    pub sections: Vec<Section>,
    /// Pages for starting processors, where the architecture needs some and there are some.
    pub trampoline: Option<HostPhys>,
}

/// The machine's memory.
pub struct Memory {
    /// All RAM.
    pub ram: Vec<(HostPhys, u64)>,
    /// What nobody uses, above 1 MiB, whole pages.
    pub free: Vec<(HostPhys, u64)>,
}

/// Asks for everything that can be had before boot services end.
///
/// # Errors
/// When something is missing that nothing works without.
pub fn prepare(features: Features, tables: Tables, disk: BootDisk) -> Result<Prepared, Refusal> {
    no_watchdog();
    let image = image()?;
    // SAFETY: the image is loaded there with its headers; it has at least a page of them.
    let headers = unsafe { core::slice::from_raw_parts(image.0 as *const u8, IMAGE_HEADERS) };
    let sections = paging::sections_of_image(image.0, image.1, headers)?;
    // SAFETY: the image stays where it is, and these are its sections.
    unsafe { fault::install(image.0, image.1, &sections) };
    match entropy::key_of(&[random(), cpu::random()]) {
        Some(key) => entropy::install(key),
        None => {
            log::info!("random numbers: neither the firmware nor the processor has any; guests get no seed")
        }
    }
    let files = Files::read(disk);
    if let Some(text) = files.symbols {
        symbols::install(text, image.0);
    }
    let platform = Platform::read(&|name| tables.get(name))?;
    let trampoline = smp::TRAMPOLINE.and_then(|wanted| {
        let highest = AllocateType::MaxAddress(wanted.below - 1);
        boot::allocate_pages(highest, MemoryType::LOADER_DATA, wanted.pages).ok()
    });
    Ok(Prepared {
        features,
        files,
        tables,
        platform,
        image,
        sections,
        trampoline: trampoline.map(|pages| HostPhys(pages.as_ptr() as u64)),
    })
}

/// Lets the application run longer than the firmware does by default: reading guests takes its time, and so do people.
pub fn no_watchdog() {
    // Without a watchdog there is nothing to switch off.
    let _ = boot::set_watchdog_timer(0, 0x1_0000, None);
}

/// Random numbers of the firmware's (UEFI 2.10, 37.5); `None` where it has none.
fn random() -> Option<Key> {
    let handle = boot::get_handle_for_protocol::<Rng>().ok()?;
    let mut generator = boot::open_protocol_exclusive::<Rng>(handle).ok()?;
    let mut key = [0; KEY_LEN];
    generator.get_rng(None, &mut key).ok()?;
    Some(key)
}

/// Where the program lies, and its size in bytes.
///
/// # Errors
/// When the firmware does not say so.
pub fn image() -> Result<(u64, u64), Refusal> {
    let loaded = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle());
    let info = loaded.as_ref().ok().map(|loaded| loaded.info());
    match info.map(|(base, size)| (base as u64, size)) {
        Some((base, size)) if base != 0 && base.is_multiple_of(PAGE_SIZE) && size >= PAGE_SIZE => {
            Ok((base, size))
        }
        _ => Err(Refusal::new(
            "image",
            "the firmware does not say where it loaded it",
            "start Pasidon from the firmware's boot menu",
        )),
    }
}

/// Reads the wall clock, which may take a second, ends boot services and returns the machine's memory. Interrupts are off afterwards.
///
/// # Safety
/// No protocol of the firmware's may be open, and nothing of it be used afterwards.
pub unsafe fn leave() -> Memory {
    time::set_wall_clock(wall_clock().unwrap_or(0));
    if !heap::leave_firmware(lists_of_memory()) {
        log::warn!("memory: the firmware has little left; give the machine more");
    }
    // SAFETY: by the caller's promise.
    let map = unsafe { boot::exit_boot_services(Some(MemoryType::LOADER_DATA)) };
    output::leave_firmware();
    memory(&map)
}

/// What the lists of memory take, between the end of boot services and the first use of free memory, in bytes.
fn lists_of_memory() -> usize {
    let Ok(map) = boot::memory_map(MemoryType::LOADER_DATA) else { return 0 };
    let unused = map.entries().filter(|entry| is_unused(entry.ty));
    let frames = unused.map(|entry| entry.page_count / (LARGE_PAGE_SIZE / PAGE_SIZE)).sum::<u64>();
    // A byte for each frame, and a few dozen for each range, some of them twice.
    frames as usize + map.len() * 256
}

/// Whether that is memory that nobody uses when boot services are over.
fn is_unused(type_: MemoryType) -> bool {
    matches!(
        type_,
        MemoryType::CONVENTIONAL | MemoryType::BOOT_SERVICES_CODE | MemoryType::BOOT_SERVICES_DATA
    )
}

/// Nanoseconds since 1970, as far as the firmware knows them: where that is whole seconds, at the beginning of one.
fn wall_clock() -> Option<u64> {
    const STEP: Duration = Duration::from_millis(1);
    /// A second, and half of one for what a step takes besides.
    const STEPS: u32 = 1500;
    calendar::read_to_the_edge(firmware_time, || boot::stall(STEP), STEPS)
}

/// Nanoseconds since 1970, as the firmware tells them at this moment.
fn firmware_time() -> Option<u64> {
    let now = runtime::get_time().ok()?;
    let local =
        calendar::unix_ns_of(now.year(), now.month(), now.day(), now.hour(), now.minute(), now.second())?;
    // Minutes that the clock is behind UTC; a clock without a zone is taken to be UTC.
    let behind = i64::from(now.time_zone().unwrap_or(0));
    local.checked_add_signed(behind * 60_000_000_000)?.checked_add(now.nanosecond().into())
}

/// What of the machine's memory is RAM, and what nobody uses when boot services are over.
pub fn memory(map: &MemoryMapOwned) -> Memory {
    let mut memory = Memory { ram: Vec::new(), free: Vec::new() };
    for entry in map.entries() {
        let start = HostPhys(entry.phys_start);
        let Some(length) =
            entry.page_count.checked_mul(PAGE_SIZE).filter(|length| start.checked_add(*length).is_some())
        else {
            let type_ = entry.ty.0.to_string();
            log::warn!("memory map: an entry of type {type_} at {start} has no end; it is left out");
            continue;
        };
        let unused = is_unused(entry.ty);
        let used = matches!(
            entry.ty,
            MemoryType::LOADER_CODE
                | MemoryType::LOADER_DATA
                | MemoryType::RUNTIME_SERVICES_CODE
                | MemoryType::RUNTIME_SERVICES_DATA
                | MemoryType::ACPI_RECLAIM
                | MemoryType::ACPI_NON_VOLATILE
        );
        if unused || used {
            memory.ram.push((start, length));
        }
        if unused && start.0 + length > LOW_MEMORY {
            let above = HostPhys(start.0.max(LOW_MEMORY));
            memory.free.push((above, start.0 + length - above.0));
        }
    }
    memory.free = ranges::merged(&memory.free);
    memory
}
