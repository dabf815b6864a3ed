// SPDX-License-Identifier: MIT OR Apache-2.0
//! The loaded image: its sections, how each is mapped, and what of it may be read.
//!
//! **Invariant.** No section is both writable and executable: there is no [`Kind`] for it.
//!
//! Source: Microsoft, PE format (COFF file header, section table).

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use pasidon_kernel::base::addr::PAGE_SIZE;
use pasidon_kernel::base::refusal::Refusal;

/// How memory is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Read and written, not executed.
    Data,
    /// Only read.
    Constants,
    /// Read and executed.
    Code,
    /// Registers: read and written, uncached, not executed.
    Device,
}

/// A part of the image, page aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// How it is mapped.
    pub kind: Kind,
}

/// How many parts of an image are kept.
const PARTS: usize = 16;

/// What of a loaded image nobody writes to.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    base: u64,
    size: u64,
    /// Address relative to `base`, and what is there.
    parts: ArrayVec<(u32, &'a [u8]), PARTS>,
}

impl Parts<'static> {
    /// Those of the image at `base` with `size` bytes: its headers, and the sections that say so.
    ///
    /// # Safety
    /// The image must be there, for ever, and nothing written to those sections.
    pub unsafe fn of_image(base: u64, size: u64, sections: &[Section]) -> Self {
        let read_only = sections.iter().filter(|section| section.kind != Kind::Data);
        let parts = read_only.map(|section| {
            // The first one is the whole image, of which the others are parts: what is left are the headers.
            let next = sections.iter().map(|other| other.start).filter(|start| *start > section.start).min();
            let end = next.map_or(section.end, |next| next.min(section.end));
            let length = (end.min(base + size) - section.start) as usize;
            // SAFETY: by the caller's promise.
            let bytes = unsafe { core::slice::from_raw_parts(section.start as *const u8, length) };
            ((section.start - base) as u32, bytes)
        });
        Self::new(base, size, parts)
    }
}

impl<'a> Parts<'a> {
    /// Those given, with their places relative to `base`, of the image there with `size` bytes.
    pub fn new(base: u64, size: u64, parts: impl IntoIterator<Item = (u32, &'a [u8])>) -> Self {
        Self { base, size, parts: parts.into_iter().take(PARTS).collect() }
    }

    /// Where the image lies.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// An address relative to the image, if it is in there.
    pub fn offset_of(&self, address: u64) -> Option<u32> {
        let offset = address.checked_sub(self.base).filter(|offset| *offset < self.size)?;
        u32::try_from(offset).ok()
    }

    /// The bytes at an address relative to the image, if they are in one of its parts.
    pub fn bytes(&self, at: u32, length: usize) -> Option<&'a [u8]> {
        self.parts.iter().find_map(|(start, part)| {
            let from = at.checked_sub(*start)? as usize;
            part.get(from..from.checked_add(length)?)
        })
    }
}

/// The sections of a loaded PE32+ image at `base`, from its headers: the headers themselves are constants.
///
/// # Errors
/// When the headers are none, or a section would be both writable and executable.
pub fn sections_of_image(base: u64, size: u64, headers: &[u8]) -> Result<Vec<Section>, Refusal> {
    const E_LFANEW: usize = 0x3c;
    const SIGNATURE: &[u8] = b"PE\0\0";
    const NUMBER_OF_SECTIONS: usize = 6;
    const SIZE_OF_OPTIONAL_HEADER: usize = 20;
    const FILE_HEADER: usize = 24;
    const SECTION_HEADER: usize = 40;
    const VIRTUAL_SIZE: usize = 8;
    const VIRTUAL_ADDRESS: usize = 12;
    const CHARACTERISTICS: usize = 36;
    const SCN_MEM_EXECUTE: u32 = 0x2000_0000;
    const SCN_MEM_WRITE: u32 = 0x8000_0000;
    let broken = |why: &str| Refusal::new("image", why, "build Pasidon again with cargo xtask build");
    let u16_at = |at: usize| Some(u16::from_le_bytes(headers.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(headers.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let pe = u32_at(E_LFANEW)
        .and_then(|at| usize::try_from(at).ok())
        .filter(|at| headers.get(*at..).is_some_and(|rest| rest.starts_with(SIGNATURE)))
        .ok_or_else(|| broken("it has no PE header"))?;
    let header = |at| u16_at(pe + at).ok_or_else(|| broken("its PE header is cut off"));
    let first = pe + FILE_HEADER + usize::from(header(SIZE_OF_OPTIONAL_HEADER)?);
    let end = base.saturating_add(size).next_multiple_of(PAGE_SIZE);
    let mut sections = alloc::vec![Section { start: base, end, kind: Kind::Constants }];
    for number in 0..usize::from(header(NUMBER_OF_SECTIONS)?) {
        let at = first + number * SECTION_HEADER;
        let field = |offset| u32_at(at + offset).ok_or_else(|| broken("its section table is cut off"));
        let characteristics = field(CHARACTERISTICS)?;
        let kind = match (characteristics & SCN_MEM_WRITE != 0, characteristics & SCN_MEM_EXECUTE != 0) {
            (true, true) => return Err(broken("a section is both writable and executable")),
            (true, false) => Kind::Data,
            (false, true) => Kind::Code,
            (false, false) => Kind::Constants,
        };
        let start = base + u64::from(field(VIRTUAL_ADDRESS)?);
        let section = Section {
            start,
            end: (start + u64::from(field(VIRTUAL_SIZE)?)).next_multiple_of(PAGE_SIZE),
            kind,
        };
        if !start.is_multiple_of(PAGE_SIZE) || section.end > end {
            return Err(broken("a section is not on page boundaries within it"));
        }
        sections.push(section);
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(characteristics: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 0x80];
        bytes[0x3c] = 0x40;
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        bytes[0x46] = characteristics.len() as u8;
        bytes[0x54] = 8;
        bytes.truncate(0x60);
        for (number, bits) in (1u32..).zip(characteristics) {
            let mut section = [0; 40];
            section[8..12].copy_from_slice(&0x123u32.to_le_bytes());
            section[12..16].copy_from_slice(&(number * 0x1000).to_le_bytes());
            section[36..].copy_from_slice(&bits.to_le_bytes());
            bytes.extend(section);
        }
        bytes
    }

    #[test]
    fn sections_get_what_they_ask_for_and_no_more() {
        let headers = image(&[0x6000_0020, 0x4000_0040, 0xc000_0040]);
        let sections = sections_of_image(0x10_0000, 0x4000, &headers).unwrap();
        let kinds: Vec<_> = sections.iter().map(|s| (s.start, s.end, s.kind)).collect();
        assert_eq!(
            kinds,
            [
                (0x10_0000, 0x10_4000, Kind::Constants),
                (0x10_1000, 0x10_2000, Kind::Code),
                (0x10_2000, 0x10_3000, Kind::Constants),
                (0x10_3000, 0x10_4000, Kind::Data),
            ]
        );
        let refusal = sections_of_image(0x10_0000, 0x4000, &image(&[0xe000_0020])).unwrap_err();
        assert!(refusal.why.contains("both writable and executable"));
        assert!(sections_of_image(0x10_0000, 0x1000, &headers).is_err());
    }

    #[test]
    fn what_is_written_to_is_no_part() {
        let size = 0x4000;
        let memory = vec![0x1234_5678_u32; size];
        let base = (memory.as_ptr() as u64).next_multiple_of(PAGE_SIZE);
        let headers = image(&[0x6000_0020, 0xc000_0040, 0x4000_0040]);
        let sections = sections_of_image(base, size as u64, &headers).unwrap();
        // SAFETY: the memory is there until the end of this, and nobody writes to it.
        let parts = unsafe { Parts::of_image(base, size as u64, &sections) };
        let readable = |at: u32, length: usize| parts.bytes(at, length).is_some();
        assert!(readable(0, 0x1000) && readable(0x1000, 0x1000) && readable(0x3000, 0x1000));
        assert!(
            !readable(0x2000, 1) && !readable(0x1fff, 2) && !readable(0x4000, 1) && !readable(u32::MAX, 1)
        );
        assert_eq!(parts.offset_of(base + 0x2000), Some(0x2000));
        assert_eq!((parts.offset_of(base - 1), parts.offset_of(base + size as u64)), (None, None));
    }

    proptest! {
        #[test]
        fn broken_headers_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = sections_of_image(0x10_0000, 0x4000, &bytes);
        }
    }
}
