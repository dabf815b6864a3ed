// SPDX-License-Identifier: MIT OR Apache-2.0
//! What those of the firmware's ACPI tables say that are the same on all architectures, out of their bytes.
//!
//! **Principle.** Each function takes a whole table with its header, whose checksum somebody has verified,
//! and believes no length in it: whatever the bytes are, it returns.
//!
//! Source: ACPI specification 6.5, 5.2; PCI firmware specification 3.3 (MCFG).

use alloc::vec::Vec;

use pasidon_kernel::base::refusal::Refusal;

/// Gives the whole table of that name ("MADT", not its signature "APIC"), if the firmware has it.
pub type Find<'a> = &'a dyn Fn(&str) -> Option<&'a [u8]>;

/// Tables made out of what the firmware says in another form.
#[derive(Default, Debug)]
pub struct Translated {
    /// Each whole and with a good checksum, by its name as [`Find`] takes it.
    pub tables: Vec<(&'static str, Vec<u8>)>,
    /// Why there are no others.
    pub refused: Vec<Refusal>,
}

/// The longest device tree that is believed, in bytes: the longest that Linux takes on Arm.
pub const MAX_DEVICE_TREE: usize = 2 << 20;

/// Makes tables out of a whole flattened device tree.
pub type Translate = fn(&[u8]) -> Translated;

/// Bytes of the header that all tables start with.
pub const HEADER: usize = 36;

/// Two bytes of a table, little-endian.
pub fn u16_at(table: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(table.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Four bytes of a table, little-endian.
pub fn u32_at(table: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(table.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Eight bytes of a table, little-endian.
pub fn u64_at(table: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(table.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// A region of PCI Express configuration space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ecam {
    /// PCI segment group.
    pub segment: u16,
    /// Physical address of bus 0, whether or not it is among the buses.
    pub base: u64,
    /// First bus.
    pub start: u8,
    /// Last bus.
    pub end: u8,
}

/// Reads the MCFG. Regions that cannot be are left out.
pub fn mcfg(table: &[u8]) -> Vec<Ecam> {
    const ENTRIES: usize = HEADER + 8;
    const ENTRY: usize = 16;
    let entries = table.get(ENTRIES..).unwrap_or_default().chunks_exact(ENTRY);
    let ecam = |entry: &[u8]| {
        Some(Ecam {
            base: u64_at(entry, 0)?,
            segment: u16_at(entry, 8)?,
            start: *entry.get(10)?,
            end: *entry.get(11)?,
        })
    };
    entries.filter_map(ecam).filter(|ecam| ecam.base != 0 && ecam.start <= ecam.end).collect()
}

/// Where the FADT says the DSDT is.
pub fn dsdt_address(fadt: &[u8]) -> Option<u64> {
    const DSDT: usize = 40;
    const X_DSDT: usize = 140;
    u64_at(fadt, X_DSDT)
        .filter(|address| *address != 0)
        .or_else(|| u32_at(fadt, DSDT).map(u64::from))
        .filter(|address| *address != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(body: &[u8]) -> Vec<u8> {
        [&[0; HEADER], body].concat()
    }

    #[test]
    fn ecams() {
        let mut body = vec![0; 8];
        body.extend(0xb000_0000u64.to_le_bytes());
        body.extend([1, 0, 0, 0xff, 0, 0, 0, 0]);
        body.extend([0; 16]);
        let ecam = Ecam { segment: 1, base: 0xb000_0000, start: 0, end: 0xff };
        assert_eq!(mcfg(&table(&body)), [ecam]);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_bad(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            mcfg(&bytes);
            dsdt_address(&bytes);
        }
    }
}
