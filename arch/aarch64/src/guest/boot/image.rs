// SPDX-License-Identifier: MIT OR Apache-2.0
//! An arm64 `Image`: loaded at the bottom of RAM, started at its first instruction.
//!
//! Source: Linux `Documentation/arm64/booting.rst`, section 4.

use alloc::format;
use alloc::string::String;

use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::GuestMemory;

use super::write;
use crate::guest::layout;

/// Offsets in the file.
mod header {
    pub const TEXT_OFFSET: usize = 8;
    pub const IMAGE_SIZE: usize = 16;
    pub const FLAGS: usize = 24;
    pub const MAGIC: usize = 56;
    pub const LEN: usize = 64;
}

const MAGIC: [u8; 4] = *b"ARM\x64";
const FLAG_BIG_ENDIAN: u64 = 1;
/// Kernels of which a 2 MiB aligned base may be followed by this much at most: text_offset is below.
const TEXT_OFFSET_MAX: u64 = pasidon_kernel::base::addr::LARGE_PAGE_SIZE;

/// Compressed kernels and how to unpack them: where the magic is, the magic, what it is, and the remedy.
const PACKED: [(usize, &[u8], &str, &str); 6] = [
    (0, b"\x1f\x8b", "gzip", "unpack it first: zcat vmlinuz > Image"),
    (4, b"zimg", "an EFI zboot image", "use the Image that is packed in it"),
    (0, b"\xfd7zXZ", "xz", "unpack it first: xzcat vmlinuz > Image"),
    (0, b"\x28\xb5\x2f\xfd", "zstd", "unpack it first: zstdcat vmlinuz > Image"),
    (0, b"\x02\x21\x4c\x18", "lz4", "unpack it first: lz4cat vmlinuz > Image"),
    (0, b"\x04\x22\x4d\x18", "lz4", "unpack it first: lz4cat vmlinuz > Image"),
];

/// A kernel in guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Loaded {
    /// First instruction.
    pub entry: u64,
    /// First byte behind what it needs.
    pub end: u64,
}

fn refuse(why: impl Into<String>, remedy: &str) -> Refusal {
    Refusal::new("kernel image", why, remedy)
}

fn damaged(why: impl Into<String>) -> Refusal {
    refuse(why, "use an unmodified, uncompressed Image for arm64")
}

fn u64_at(image: &[u8], offset: usize) -> Option<u64> {
    let bytes = image.get(offset..offset + 8)?;
    bytes.try_into().ok().map(u64::from_le_bytes)
}

/// Loads the kernel below `limit`.
pub(super) fn load(memory: &dyn GuestMemory, image: &[u8], limit: u64) -> Result<Loaded, Refusal> {
    let starts_with = |at: usize, magic: &[u8]| image.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((_, _, what, remedy)) = PACKED.iter().find(|(at, magic, ..)| starts_with(*at, magic)) {
        return Err(refuse(format!("it is compressed ({what})"), remedy));
    }
    if !starts_with(header::MAGIC, &MAGIC) || image.len() < header::LEN {
        return Err(damaged("it is no arm64 Image"));
    }
    let word = |at| u64_at(image, at).unwrap_or(0);
    let (text_offset, size, flags) =
        (word(header::TEXT_OFFSET), word(header::IMAGE_SIZE), word(header::FLAGS));
    if flags & FLAG_BIG_ENDIAN != 0 {
        return Err(damaged("it is big-endian"));
    }
    if size == 0 {
        return Err(damaged("its header does not say how much memory it needs (a kernel before 3.17)"));
    }
    if size < image.len() as u64 {
        return Err(damaged(format!("its header says {size:#x} bytes, the file has {:#x}", image.len())));
    }
    if text_offset >= TEXT_OFFSET_MAX {
        return Err(damaged(format!("its offset {text_offset:#x} is not below 2 MiB")));
    }
    let entry = layout::RAM_BASE + text_offset;
    let end = entry.checked_add(size).filter(|end| *end <= limit).ok_or_else(|| {
        refuse(format!("it needs {} MiB", size.div_ceil(1 << 20)), "give the VM more memory")
    })?;
    // What is behind the file is the kernel's own to clear.
    write(memory, "kernel image", entry, image)?;
    Ok(Loaded { entry, end })
}
