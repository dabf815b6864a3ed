// SPDX-License-Identifier: MIT OR Apache-2.0
//! An ELF `vmlinux` with a PVH entry: loaded where its program headers say, started in 32-bit mode with
//! the address of a start info in EBX. That makes a 32-bit file as good as a 64-bit one.
//!
//! Source: System V ABI, chapters 4 and 5; Xen `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`
//! (the interface, not the code).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::GuestMemory;

use super::{
    BootImage, CR0_PROTECTED, EntryMode, EntryState, damaged, more_memory, slice_at, u16_at, u32_at, u64_at,
    write, write_initrd, zero,
};
use crate::guest::layout::{self, boot};

/// How every ELF file starts.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

/// ELF header fields that both classes have at the same place.
mod header {
    pub const CLASS: usize = 4;
    pub const DATA: usize = 5;
    pub const MACHINE: u64 = 0x12;
    pub const CLASS_32: u8 = 1;
    pub const CLASS_64: u8 = 2;
    pub const DATA_LITTLE: u8 = 1;
    pub const MACHINE_386: u16 = 3;
    pub const MACHINE_X86_64: u16 = 62;
}

/// What program headers are for.
mod program {
    pub const TYPE: u64 = 0;
    pub const LOAD: u32 = 1;
    pub const NOTE: u32 = 4;
}

/// Where a class of ELF has its fields.
struct Class {
    /// Reads an address, offset or size.
    word: fn(&[u8], u64) -> Option<u64>,
    /// In the ELF header: e_phoff, e_phentsize, e_phnum.
    table: u64,
    entry_len: u64,
    entries: u64,
    /// In a program header: p_offset, p_paddr, p_filesz, p_memsz; and its length.
    offset: u64,
    address: u64,
    file_len: u64,
    memory_len: u64,
    len: u64,
}

const CLASS_32: Class = Class {
    word: |bytes, at| u32_at(bytes, at).map(u64::from),
    table: 0x1c,
    entry_len: 0x2a,
    entries: 0x2c,
    offset: 0x04,
    address: 0x0c,
    file_len: 0x10,
    memory_len: 0x14,
    len: 0x20,
};

const CLASS_64: Class = Class {
    word: u64_at,
    table: 0x20,
    entry_len: 0x36,
    entries: 0x38,
    offset: 0x08,
    address: 0x18,
    file_len: 0x20,
    memory_len: 0x28,
    len: 0x38,
};

/// Type of the note that holds the PVH entry (XEN_ELFNOTE_PHYS32_ENTRY), and its owner.
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_OWNER: &[u8] = b"Xen\0";

/// Magic and version of the start info; version 1 has a memory map.
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;

/// One program header.
struct Segment {
    kind: u32,
    offset: u64,
    file_len: u64,
    address: u64,
    memory_len: u64,
}

impl Segment {
    fn is_wanted(&self) -> bool {
        matches!(self.kind, program::LOAD | program::NOTE)
    }

    /// Its bytes in the file.
    fn file<'a>(&self, image: &'a [u8]) -> Result<&'a [u8], Refusal> {
        slice_at(image, self.offset, self.file_len).ok_or_else(beyond_end)
    }
}

fn beyond_end() -> Refusal {
    damaged("a program header lies, or points, beyond its end")
}

/// The program headers. A kernel with a 32-bit entry may be of either class.
fn segments(image: &[u8]) -> Result<Vec<Segment>, Refusal> {
    let truncated = || damaged("it ends inside of its ELF header");
    let machine = u16_at(image, header::MACHINE).ok_or_else(truncated)?;
    let class = match (image.get(header::CLASS), machine) {
        (Some(&header::CLASS_64), header::MACHINE_X86_64) => CLASS_64,
        (Some(&header::CLASS_32), header::MACHINE_386 | header::MACHINE_X86_64) => CLASS_32,
        _ => return Err(damaged("its ELF header is not for x86-64 or i386")),
    };
    if image.get(header::DATA) != Some(&header::DATA_LITTLE) {
        return Err(damaged("its ELF header is not for x86-64 or i386"));
    }
    let table = (class.word)(image, class.table).ok_or_else(truncated)?;
    let entry_len = u64::from(u16_at(image, class.entry_len).ok_or_else(truncated)?);
    let count = u64::from(u16_at(image, class.entries).ok_or_else(truncated)?);
    if entry_len < class.len {
        return Err(damaged("its ELF header gives a wrong size of program headers"));
    }
    (0..count)
        .map(|i| {
            let at = table.checked_add(i * entry_len)?;
            let entry = slice_at(image, at, class.len)?;
            let field = |at| (class.word)(entry, at);
            let file_len = field(class.file_len)?;
            Some(Segment {
                kind: u32_at(entry, program::TYPE)?,
                offset: field(class.offset)?,
                file_len,
                address: field(class.address)?,
                memory_len: field(class.memory_len)?.max(file_len),
            })
        })
        .collect::<Option<_>>()
        .ok_or_else(beyond_end)
}

/// How much of a file is loaded: up to the end of the last segment, without the sections behind it (symbols, debug
/// information). `None` where the first bytes, `head`, do not tell.
pub(super) fn loaded_len(head: &[u8]) -> Option<u64> {
    let segments = segments(head).ok()?;
    let ends = segments.iter().filter(|segment| segment.is_wanted());
    ends.map(|segment| segment.offset.checked_add(segment.file_len))
        .try_fold(head.len() as u64, |longest, end| Some(longest.max(end?)))
}

/// The PVH entry in a note segment, if it is there.
fn pvh_entry(notes: &[u8]) -> Option<u32> {
    const HEADER_LEN: u64 = 12;
    let mut at = 0u64;
    loop {
        let name_len = u64::from(u32_at(notes, at)?);
        let value_len = u64::from(u32_at(notes, at.checked_add(4)?)?);
        let kind = u32_at(notes, at.checked_add(8)?)?;
        let name = at.checked_add(HEADER_LEN)?;
        let value = name.checked_add(name_len.next_multiple_of(4))?;
        if kind == NOTE_PHYS32_ENTRY && slice_at(notes, name, name_len)? == NOTE_OWNER {
            return u32_at(notes, value);
        }
        at = value.checked_add(value_len.next_multiple_of(4))?;
    }
}

pub(super) fn load(memory: &dyn GuestMemory, image: &BootImage<'_>) -> Result<EntryState, Refusal> {
    let segments = segments(image.kernel)?;
    // All that is wanted is there, before anything is done.
    for segment in segments.iter().filter(|segment| segment.is_wanted()) {
        segment.file(image.kernel)?;
    }
    let notes = segments.iter().filter(|s| s.kind == program::NOTE);
    let entry = notes
        .filter_map(|s| pvh_entry(s.file(image.kernel).ok()?))
        .next()
        .ok_or_else(|| damaged("it has no PVH entry (CONFIG_PVH)"))?;

    let low_ram = layout::ram_split(memory.ram_size()).0;
    let mut kernel_end = boot::KERNEL_MIN;
    for segment in segments.iter().filter(|s| s.kind == program::LOAD && s.memory_len > 0) {
        let end = segment.address.checked_add(segment.memory_len);
        let end = end.filter(|e| segment.address >= boot::KERNEL_MIN && *e <= low_ram).ok_or_else(|| {
            let remedy = match end {
                Some(end) if segment.address >= boot::KERNEL_MIN => more_memory(end),
                _ => None,
            };
            Refusal::new(
                "kernel image",
                format!(
                    "{} bytes at {:#x} are not between 1 MiB and the end of low RAM",
                    segment.memory_len, segment.address
                ),
                remedy.unwrap_or_else(|| String::from("use a kernel that is loaded between 1 MiB and 3 GiB")),
            )
        })?;
        let file = segment.file(image.kernel)?;
        write(memory, "kernel image", segment.address, file)?;
        let loaded = file.len() as u64;
        zero(memory, "kernel image", segment.address.saturating_add(loaded), segment.memory_len - loaded)?;
        kernel_end = kernel_end.max(end);
    }
    if !(boot::KERNEL_MIN..kernel_end).contains(&u64::from(entry)) {
        return Err(damaged(format!("its PVH entry {entry:#x} is outside of what it loads")));
    }
    let initrd = write_initrd(memory, image.initrd, kernel_end, u64::MAX)?;
    write_start_info(memory, initrd)?;
    Ok(EntryState {
        mode: EntryMode::Protected32,
        rip: u64::from(entry),
        rbx: boot::START_INFO,
        rsi: 0,
        cr0: CR0_PROTECTED,
        cr3: 0,
        cr4: 0,
        efer: 0,
        gdt: None,
        cs: 0,
        ds: 0,
    })
}

fn write_start_info(memory: &dyn GuestMemory, (initrd, initrd_len): (u64, u64)) -> Result<(), Refusal> {
    let mut map = Vec::new();
    let entries = layout::memory_map(memory.ram_size()).into_iter().filter(|e| e.len > 0);
    let mut count = 0u32;
    for entry in entries {
        map.extend_from_slice(&entry.start.to_le_bytes());
        map.extend_from_slice(&entry.len.to_le_bytes());
        map.extend_from_slice(&(entry.kind as u32).to_le_bytes());
        map.extend_from_slice(&0u32.to_le_bytes());
        count += 1;
    }
    write(memory, "memory map", boot::MEMORY_MAP, &map)?;

    let modules = u32::from(initrd_len > 0);
    let mut module = Vec::new();
    for field in [initrd, initrd_len, 0, 0] {
        module.extend_from_slice(&field.to_le_bytes());
    }
    write(memory, "module list", boot::MODULES, &module)?;

    let mut info = Vec::new();
    for field in [START_INFO_MAGIC, START_INFO_VERSION, 0, modules] {
        info.extend_from_slice(&field.to_le_bytes());
    }
    for field in [boot::MODULES, boot::CMDLINE, layout::ACPI_BASE, boot::MEMORY_MAP] {
        info.extend_from_slice(&field.to_le_bytes());
    }
    info.extend_from_slice(&count.to_le_bytes());
    info.extend_from_slice(&0u32.to_le_bytes());
    write(memory, "start info", boot::START_INFO, &info)
}
