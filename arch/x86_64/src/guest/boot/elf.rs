// SPDX-License-Identifier: MIT OR Apache-2.0
//! An ELF `vmlinux` with a PVH entry: loaded where its program headers say, started in 32-bit mode with
//! the address of a start info in EBX.
//!
//! Source: System V ABI, chapters 4 and 5; Xen `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`
//! (the interface, not the code).

use alloc::format;
use alloc::vec::Vec;

use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::refusal::Refusal;

use super::{
    BootImage, CR0_PROTECTED, EntryMode, EntryState, damaged, slice_at, u16_at, u32_at, u64_at, write,
    write_initrd, zero,
};
use crate::guest::layout::{self, boot};

/// How every ELF file starts.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

/// ELF header fields.
mod header {
    pub const CLASS: usize = 4;
    pub const DATA: usize = 5;
    pub const MACHINE: u64 = 0x12;
    pub const PHOFF: u64 = 0x20;
    pub const PHENTSIZE: u64 = 0x36;
    pub const PHNUM: u64 = 0x38;
    pub const CLASS_64: u8 = 2;
    pub const DATA_LITTLE: u8 = 1;
    pub const MACHINE_X86_64: u16 = 62;
}

/// Program header fields.
mod program {
    pub const TYPE: u64 = 0;
    pub const OFFSET: u64 = 0x08;
    pub const PADDR: u64 = 0x18;
    pub const FILESZ: u64 = 0x20;
    pub const MEMSZ: u64 = 0x28;
    pub const LEN: u64 = 0x38;
    pub const LOAD: u32 = 1;
    pub const NOTE: u32 = 4;
}

/// Type of the note that holds the PVH entry (XEN_ELFNOTE_PHYS32_ENTRY), and its owner.
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_OWNER: &[u8] = b"Xen\0";

/// Magic and version of the start info; version 1 has a memory map.
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;

struct Segment<'a> {
    kind: u32,
    file: &'a [u8],
    address: u64,
    memory_len: u64,
}

/// The program headers, their file ranges checked.
fn segments(image: &[u8]) -> Result<Vec<Segment<'_>>, Refusal> {
    let truncated = || damaged("it ends inside of its ELF header");
    let (class, data) = (image.get(header::CLASS), image.get(header::DATA));
    let machine = u16_at(image, header::MACHINE).ok_or_else(truncated)?;
    if class != Some(&header::CLASS_64)
        || data != Some(&header::DATA_LITTLE)
        || machine != header::MACHINE_X86_64
    {
        return Err(damaged("its ELF header is not for x86-64"));
    }
    let table = u64_at(image, header::PHOFF).ok_or_else(truncated)?;
    let entry_len = u64::from(u16_at(image, header::PHENTSIZE).ok_or_else(truncated)?);
    let count = u64::from(u16_at(image, header::PHNUM).ok_or_else(truncated)?);
    if entry_len < program::LEN {
        return Err(damaged("its ELF header gives a wrong size of program headers"));
    }
    (0..count)
        .map(|i| {
            let at = table.checked_add(i * entry_len)?;
            let entry = slice_at(image, at, program::LEN)?;
            let file_len = u64_at(entry, program::FILESZ)?;
            Some(Segment {
                kind: u32_at(entry, program::TYPE)?,
                file: slice_at(image, u64_at(entry, program::OFFSET)?, file_len)?,
                address: u64_at(entry, program::PADDR)?,
                memory_len: u64_at(entry, program::MEMSZ)?.max(file_len),
            })
        })
        .collect::<Option<_>>()
        .ok_or_else(|| damaged("a program header lies, or points, beyond its end"))
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
    let notes = segments.iter().filter(|s| s.kind == program::NOTE);
    let entry = notes
        .filter_map(|s| pvh_entry(s.file))
        .next()
        .ok_or_else(|| damaged("it has no PVH entry (CONFIG_PVH)"))?;

    let low_ram = layout::ram_split(memory.ram_size()).0;
    let mut kernel_end = boot::KERNEL_MIN;
    for segment in segments
        .iter()
        .filter(|s| s.kind == program::LOAD && s.memory_len > 0)
    {
        let end = segment.address.checked_add(segment.memory_len);
        let end = end
            .filter(|e| segment.address >= boot::KERNEL_MIN && *e <= low_ram)
            .ok_or_else(|| {
                Refusal::new(
                    "kernel image",
                    format!(
                        "{} bytes at {:#x} are not between 1 MiB and the end of low RAM",
                        segment.memory_len, segment.address
                    ),
                    "give the VM more memory",
                )
            })?;
        write(memory, "kernel image", segment.address, segment.file)?;
        let loaded = segment.file.len() as u64;
        zero(
            memory,
            "kernel image",
            segment.address.saturating_add(loaded),
            segment.memory_len - loaded,
        )?;
        kernel_end = kernel_end.max(end);
    }
    if !(boot::KERNEL_MIN..kernel_end).contains(&u64::from(entry)) {
        return Err(damaged(format!(
            "its PVH entry {entry:#x} is outside of what it loads"
        )));
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
    let entries = layout::memory_map(memory.ram_size())
        .into_iter()
        .filter(|e| e.len > 0);
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
