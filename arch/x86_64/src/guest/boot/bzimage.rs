// SPDX-License-Identifier: MIT OR Apache-2.0
//! A `bzImage`: its protected-mode part loaded where it prefers to be, started at its 64-bit entry with
//! the address of the boot parameters in RSI.
//!
//! Source: Linux `Documentation/x86/boot.rst`, "The Linux/x86 Boot Protocol" and "64-bit Boot Protocol";
//! `Documentation/x86/zero-page.rst`.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::GuestMemory;

use super::{
    BootImage, CR0_PROTECTED, EntryMode, EntryState, bytes_at, damaged, more_memory, u16_at, u32_at, u64_at,
    write, write_initrd, zero,
};
use crate::guest::layout::{self, boot};

/// Offsets in the file, and alike in the boot parameters.
mod header {
    pub const SETUP_SECTS: u64 = 0x1f1;
    pub const BOOT_FLAG: u64 = 0x1fe;
    pub const JUMP_LEN: u64 = 0x201;
    pub const MAGIC: u64 = 0x202;
    pub const VERSION: u64 = 0x206;
    pub const TYPE_OF_LOADER: u64 = 0x210;
    pub const RAMDISK_IMAGE: u64 = 0x218;
    pub const RAMDISK_SIZE: u64 = 0x21c;
    pub const CMD_LINE_PTR: u64 = 0x228;
    pub const INITRD_ADDR_MAX: u64 = 0x22c;
    pub const KERNEL_ALIGNMENT: u64 = 0x230;
    pub const RELOCATABLE: u64 = 0x234;
    pub const XLOADFLAGS: u64 = 0x236;
    pub const CMDLINE_SIZE: u64 = 0x238;
    pub const PREF_ADDRESS: u64 = 0x258;
    pub const INIT_SIZE: u64 = 0x260;
    /// End of the last field used here.
    pub const MIN_END: u64 = 0x264;
    /// Where the boot parameters go on with something else.
    pub const MAX_END: u64 = 0x290;
}

/// Offsets in the boot parameters beside the header.
mod params {
    pub const ACPI_RSDP: usize = 0x70;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const E820_TABLE: usize = 0x2d0;
    pub const E820_ENTRY_LEN: usize = 20;
    pub const LEN: usize = 4096;
}

const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: [u8; 4] = *b"HdrS";
/// The first version with `xloadflags`.
const VERSION_MIN: u16 = 0x020c;
/// `xloadflags`: there is a 64-bit entry, 0x200 bytes behind the start.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// `setup_sects` of 0 stands for this many.
const SETUP_SECTS_DEFAULT: u64 = 4;
/// `type_of_loader`: one without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;

/// Descriptors that the protocol asks for, at these selectors: flat 64-bit code and flat data.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Whether the file says it is one.
pub(super) fn recognises(image: &[u8]) -> bool {
    bytes_at(image, header::MAGIC) == Some(MAGIC) && u16_at(image, header::BOOT_FLAG) == Some(BOOT_FLAG)
}

/// The fields of the setup header that a loader reads.
struct Header {
    /// Bytes before the protected-mode part.
    setup_len: u64,
    end: u64,
    version: u16,
    initrd_limit: u64,
    alignment: u64,
    relocatable: bool,
    xloadflags: u16,
    cmdline_size: u64,
    preferred: u64,
    init_size: u64,
}

fn parse(image: &[u8]) -> Option<Header> {
    let byte = |at| bytes_at::<1>(image, at).map(|[b]| u64::from(b));
    let sectors = match byte(header::SETUP_SECTS)? {
        0 => SETUP_SECTS_DEFAULT,
        n => n,
    };
    Some(Header {
        setup_len: (sectors + 1) * SECTOR,
        end: header::MAGIC + byte(header::JUMP_LEN)?,
        version: u16_at(image, header::VERSION)?,
        initrd_limit: u64::from(u32_at(image, header::INITRD_ADDR_MAX)?) + 1,
        alignment: u64::from(u32_at(image, header::KERNEL_ALIGNMENT)?),
        relocatable: byte(header::RELOCATABLE)? != 0,
        xloadflags: u16_at(image, header::XLOADFLAGS)?,
        cmdline_size: u64::from(u32_at(image, header::CMDLINE_SIZE)?),
        preferred: u64_at(image, header::PREF_ADDRESS)?,
        init_size: u64::from(u32_at(image, header::INIT_SIZE)?),
    })
}

/// Where the kernel goes: its preferred address, or the lowest if it can be anywhere.
fn place(header: &Header, need: u64, low_ram: u64) -> Option<u64> {
    let lowest = boot::KERNEL_MIN.checked_next_multiple_of(header.alignment);
    let fallback = lowest.filter(|_| header.relocatable);
    let fits = |at: &u64| *at >= boot::KERNEL_MIN && at.checked_add(need).is_some_and(|end| end <= low_ram);
    [Some(header.preferred), fallback].into_iter().flatten().find(fits)
}

/// The end of the kernel at the lowest of its places.
fn least_end(header: &Header, need: u64) -> Option<u64> {
    let lowest =
        if header.relocatable { boot::KERNEL_MIN.checked_next_multiple_of(header.alignment) } else { None };
    let preferred = Some(header.preferred).filter(|at| *at >= boot::KERNEL_MIN);
    [preferred, lowest].into_iter().flatten().min()?.checked_add(need)
}

pub(super) fn load(memory: &dyn GuestMemory, image: &BootImage<'_>) -> Result<EntryState, Refusal> {
    let truncated = || damaged("it ends inside of its setup header or code");
    let header = parse(image.kernel).ok_or_else(truncated)?;
    if header.version < VERSION_MIN || header.end < header::MIN_END || header.xloadflags & XLF_KERNEL_64 == 0
    {
        return Err(damaged(format!(
            "boot protocol {}.{:02} without a 64-bit entry",
            header.version >> 8,
            header.version & 0xff
        )));
    }
    if !header.alignment.is_power_of_two() {
        return Err(damaged(format!("its alignment {:#x} is no power of two", header.alignment)));
    }
    if image.cmdline.len() as u64 > header.cmdline_size {
        return Err(Refusal::new(
            "command line",
            format!("{} bytes; the kernel takes {}", image.cmdline.len(), header.cmdline_size),
            "shorten it",
        ));
    }
    let start = usize::try_from(header.setup_len).ok();
    let code = start.and_then(|s| image.kernel.get(s..)).filter(|c| c.len() as u64 > ENTRY_64);
    let code = code.ok_or_else(truncated)?;
    let need = header.init_size.max(code.len() as u64);
    let low_ram = layout::ram_split(memory.ram_size()).0;
    let address = place(&header, need, low_ram).ok_or_else(|| {
        // Where it would be with all the memory that there can be.
        let remedy = place(&header, need, layout::LOW_RAM_MAX)
            .and_then(|_| least_end(&header, need))
            .and_then(more_memory);
        Refusal::new(
            "kernel image",
            format!("it needs {} MiB from {:#x}", need.div_ceil(1 << 20), header.preferred),
            remedy.unwrap_or_else(|| String::from("use a kernel that runs below 3 GiB")),
        )
    })?;
    write(memory, "kernel image", address, code)?;
    let loaded = code.len() as u64;
    zero(memory, "kernel image", address + loaded, need - loaded)?;
    let initrd = write_initrd(memory, image.initrd, address + need, header.initrd_limit)?;
    write(memory, "boot parameters", boot::START_INFO, &parameters(memory, image, &header, initrd)?)?;
    write_gdt_and_page_tables(memory)?;
    Ok(EntryState {
        mode: EntryMode::Long64,
        rip: address + ENTRY_64,
        rbx: 0,
        rsi: boot::START_INFO,
        cr0: CR0_PROTECTED | CR0_PAGING,
        cr3: boot::PAGE_TABLES,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        gdt: Some((boot::GDT, (size_of_val(&GDT) - 1) as u16)),
        cs: BOOT_CS,
        ds: BOOT_DS,
    })
}

fn parameters(
    memory: &dyn GuestMemory,
    image: &BootImage<'_>,
    header: &Header,
    (initrd, initrd_len): (u64, u64),
) -> Result<Vec<u8>, Refusal> {
    let mut page = vec![0; params::LEN];
    let range = header::SETUP_SECTS as usize..header.end.min(header::MAX_END) as usize;
    let copied = image.kernel.get(range.clone()).ok_or_else(|| damaged("it ends inside of its header"))?;
    page[range].copy_from_slice(copied);
    let mut set = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    set(header::TYPE_OF_LOADER as usize, &[LOADER_UNDEFINED]);
    // All of these lie below 4 GiB: they are in low RAM.
    set(header::RAMDISK_IMAGE as usize, &(initrd as u32).to_le_bytes());
    set(header::RAMDISK_SIZE as usize, &(initrd_len as u32).to_le_bytes());
    set(header::CMD_LINE_PTR as usize, &(boot::CMDLINE as u32).to_le_bytes());
    set(params::ACPI_RSDP, &layout::ACPI_BASE.to_le_bytes());
    let map = layout::memory_map(memory.ram_size());
    let mut count = 0;
    for entry in map.iter().filter(|e| e.len > 0) {
        let at = params::E820_TABLE + usize::from(count) * params::E820_ENTRY_LEN;
        set(at, &entry.start.to_le_bytes());
        set(at + 8, &entry.len.to_le_bytes());
        set(at + 16, &(entry.kind as u32).to_le_bytes());
        count += 1;
    }
    set(params::E820_ENTRIES, &[count]);
    Ok(page)
}

/// Identity map of the first 4 GiB in 2 MiB pages.
fn write_gdt_and_page_tables(memory: &dyn GuestMemory) -> Result<(), Refusal> {
    const TABLE_LEN: u64 = 4096;
    const ENTRIES: u64 = 512;
    const DIRECTORIES: u64 = 4;
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const LARGE_PAGE: u64 = pasidon_kernel::base::addr::LARGE_PAGE_SIZE;
    let pdpt = boot::PAGE_TABLES + TABLE_LEN;
    let directories = pdpt + TABLE_LEN;
    let table = |entries: &mut dyn Iterator<Item = u64>| {
        let mut bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        bytes.resize((bytes.len() as u64).next_multiple_of(TABLE_LEN) as usize, 0);
        bytes
    };
    let pml4 = table(&mut [pdpt | PRESENT_WRITABLE].into_iter());
    write(memory, "page tables", boot::PAGE_TABLES, &pml4)?;
    let upper = table(&mut (0..DIRECTORIES).map(|i| (directories + i * TABLE_LEN) | PRESENT_WRITABLE));
    write(memory, "page tables", pdpt, &upper)?;
    let lower = table(&mut (0..DIRECTORIES * ENTRIES).map(|i| (i * LARGE_PAGE) | PRESENT_WRITABLE | LARGE));
    write(memory, "page tables", directories, &lower)?;
    let gdt: Vec<u8> = GDT.iter().flat_map(|d| d.to_le_bytes()).collect();
    write(memory, "descriptor table", boot::GDT, &gdt)
}
