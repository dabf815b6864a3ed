// SPDX-License-Identifier: MIT OR Apache-2.0
//! An ELF `vmlinux` with a PVH entry: loaded where its program headers say, started in 32-bit mode with
//! the address of a start info in EBX. That makes a 32-bit file as good as a 64-bit one.
//!
//! Source: System V ABI, chapters 4 and 5; Xen `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`
//! (the interface, not the code).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::note::{Note, NoteIterator};
use elf::parse::ParseAt;
use elf::segment::{ProgramHeader, SegmentTable};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::GuestMemory;

use super::{
    BootImage, CR0_PROTECTED, EntryMode, EntryState, damaged, more_memory, slice_at, u32_at, write,
    write_initrd, zero,
};
use crate::guest::layout::{self, boot};

/// How every ELF file starts.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

/// Type of the note that holds the PVH entry (XEN_ELFNOTE_PHYS32_ENTRY), and its owner.
const NOTE_PHYS32_ENTRY: u64 = 18;
const NOTE_OWNER: &[u8] = b"Xen\0";

/// Magic and version of the start info; version 1 has a memory map.
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;

/// Whether it is loaded, or may hold the note.
fn is_wanted(segment: &ProgramHeader) -> bool {
    matches!(segment.p_type, abi::PT_LOAD | abi::PT_NOTE)
}

/// Its bytes in the file.
fn file<'a>(segment: &ProgramHeader, image: &'a [u8]) -> Result<&'a [u8], Refusal> {
    slice_at(image, segment.p_offset, segment.p_filesz).ok_or_else(beyond_end)
}

fn beyond_end() -> Refusal {
    damaged("a program header lies, or points, beyond its end")
}

/// The program headers. A kernel with a 32-bit entry may be of either class.
fn segments(image: &[u8]) -> Result<Vec<ProgramHeader>, Refusal> {
    let truncated = || damaged("it ends inside of its ELF header");
    let foreign = || damaged("its ELF header is not for x86-64 or i386");
    let (ident, tail) = image.split_at_checked(abi::EI_NIDENT).ok_or_else(truncated)?;
    let ident = parse_ident::<LittleEndian>(ident).map_err(|_| foreign())?;
    let header = FileHeader::parse_tail(ident, tail).map_err(|_| truncated())?;
    if !matches!(
        (header.class, header.e_machine),
        (Class::ELF64, abi::EM_X86_64) | (Class::ELF32, abi::EM_386 | abi::EM_X86_64)
    ) {
        return Err(foreign());
    }
    let entry_len = ProgramHeader::validate_entsize(header.class, header.e_phentsize.into())
        .map_err(|_| damaged("its ELF header gives a wrong size of program headers"))?;
    let len = entry_len as u64 * u64::from(header.e_phnum);
    let table = slice_at(image, header.e_phoff, len).ok_or_else(beyond_end)?;
    let segments = SegmentTable::new(LittleEndian, header.class, table).iter();
    // What is in the file is in memory, whatever the header says.
    Ok(segments
        .map(|segment| ProgramHeader { p_memsz: segment.p_memsz.max(segment.p_filesz), ..segment })
        .collect())
}

/// How much of a file is loaded: up to the end of the last segment, without the sections behind it (symbols, debug
/// information). `None` where the first bytes, `head`, do not tell.
pub(super) fn loaded_len(head: &[u8]) -> Option<u64> {
    let segments = segments(head).ok()?;
    let ends = segments.iter().filter(|segment| is_wanted(segment));
    ends.map(|segment| segment.p_offset.checked_add(segment.p_filesz))
        .try_fold(head.len() as u64, |longest, end| Some(longest.max(end?)))
}

/// The PVH entry in a note segment, if it is there. Notes are words of 4 bytes in files of both classes.
fn pvh_entry(notes: &[u8]) -> Option<u32> {
    NoteIterator::new(LittleEndian, Class::ELF32, 4, notes).find_map(|note| match note {
        Note::Unknown(note) if note.n_type == NOTE_PHYS32_ENTRY && note.name == NOTE_OWNER => {
            u32_at(note.desc, 0)
        }
        _ => None,
    })
}

pub(super) fn load(memory: &dyn GuestMemory, image: &BootImage<'_>) -> Result<EntryState, Refusal> {
    let segments = segments(image.kernel)?;
    // All that is wanted is there, before anything is done.
    for segment in segments.iter().filter(|segment| is_wanted(segment)) {
        file(segment, image.kernel)?;
    }
    let notes = segments.iter().filter(|s| s.p_type == abi::PT_NOTE);
    let entry = notes
        .filter_map(|s| pvh_entry(file(s, image.kernel).ok()?))
        .next()
        .ok_or_else(|| damaged("it has no PVH entry (CONFIG_PVH)"))?;

    let low_ram = layout::ram_split(memory.ram_size()).0;
    let mut kernel_end = boot::KERNEL_MIN;
    for segment in segments.iter().filter(|s| s.p_type == abi::PT_LOAD && s.p_memsz > 0) {
        let end = segment.p_paddr.checked_add(segment.p_memsz);
        let end = end.filter(|e| segment.p_paddr >= boot::KERNEL_MIN && *e <= low_ram).ok_or_else(|| {
            let remedy = match end {
                Some(end) if segment.p_paddr >= boot::KERNEL_MIN => more_memory(end),
                _ => None,
            };
            Refusal::new(
                "kernel image",
                format!(
                    "{} bytes at {:#x} are not between 1 MiB and the end of low RAM",
                    segment.p_memsz, segment.p_paddr
                ),
                remedy.unwrap_or_else(|| String::from("use a kernel that is loaded between 1 MiB and 3 GiB")),
            )
        })?;
        let bytes = file(segment, image.kernel)?;
        write(memory, "kernel image", segment.p_paddr, bytes)?;
        let loaded = bytes.len() as u64;
        zero(memory, "kernel image", segment.p_paddr.saturating_add(loaded), segment.p_memsz - loaded)?;
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
