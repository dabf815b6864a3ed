// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the parsers of the firmware's tables have in common.
//!
//! The bytes come from firmware: a field past their end is `None`, never a panic.
//! Source: ACPI specification, "System Description Table Header".

use alloc::format;

use pasidon_kernel::base::refusal::Refusal;

/// Offset of the table length.
const LENGTH: usize = 4;

/// The bytes of a table, checked: signature, a length of at least `least` bytes that lies within `bytes`,
/// checksum.
pub(crate) fn table<'a>(bytes: &'a [u8], signature: &str, least: usize) -> Result<Bytes<'a>, Refusal> {
    if !bytes.starts_with(signature.as_bytes()) {
        return Err(malformed(signature, format!("the signature is not {signature}")));
    }
    let len = Bytes(bytes).u32(LENGTH).unwrap_or(0) as usize;
    let Some(bytes) = bytes.get(..len).filter(|bytes| bytes.len() >= least) else {
        return Err(malformed(signature, format!("{len} bytes is no length for it")));
    };
    if bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) != 0 {
        return Err(malformed(signature, "its checksum is wrong"));
    }
    Ok(Bytes(bytes))
}

/// The refusal of a table that cannot be understood.
pub(crate) fn malformed(signature: &str, why: impl Into<alloc::string::String>) -> Refusal {
    Refusal::new(format!("ACPI table {signature}"), why, "update the firmware")
}

/// Little-endian fields of a byte slice, `None` past its end.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    /// `len` bytes from `at` on.
    pub(crate) fn part(self, at: usize, len: usize) -> Option<Bytes<'a>> {
        self.0.get(at..at.checked_add(len)?).map(Bytes)
    }

    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk::<N>().copied()
    }

    pub(crate) fn u8(self, at: usize) -> Option<u8> {
        self.array::<1>(at).map(|[byte]| byte)
    }

    pub(crate) fn u16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}
