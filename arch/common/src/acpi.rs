// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the firmware's ACPI tables, and its device tree.
//!
//! **Principle.** Only the firmware's word for where the list is gets believed. Memory is looked at where a table can be,
//! as far as a table can reach, and a table counts whose bytes sum up to zero. One that is absent or broken costs a line
//! and what it would have told.
//!
//! Source: ACPI specification 6.5, 5.2.5 (RSDP) to 5.2.8 (XSDT); Devicetree Specification 0.4, 5.2 (header).

use alloc::format;
use alloc::vec::Vec;

use pasidon_kernel::base::refusal::Refusal;

use crate::firmware_tables::{HEADER, MAX_DEVICE_TREE, Translated, dsdt_address, u32_at, u64_at};

/// So many bytes of physical memory from an address on; `None` where no table can be.
pub type Memory<'a, 'm> = &'a dyn Fn(u64, usize) -> Option<&'m [u8]>;

/// Longest table that is believed, in bytes.
const MAX_LENGTH: usize = 16 << 20;
/// The most tables that are looked at.
const MAX_TABLES: usize = 1024;
/// What is wanted: the name and the signature of each table.
const WANTED: [(&str, &[u8]); 9] = [
    // Processors and interrupt controllers.
    ("MADT", b"APIC"),
    // PCI configuration space.
    ("MCFG", b"MCFG"),
    // Fixed hardware.
    ("FADT", b"FACP"),
    // Event timer.
    ("HPET", b"HPET"),
    // DMA remapping (VT-d).
    ("DMAR", b"DMAR"),
    // Generic timer.
    ("GTDT", b"GTDT"),
    // Serial console.
    ("SPCR", b"SPCR"),
    // Debug ports.
    ("DBG2", b"DBG2"),
    // I/O remapping (SMMU).
    ("IORT", b"IORT"),
];
/// The name of the table with the firmware's bytecode, which no list names.
pub const DSDT: &str = "DSDT";

fn refuse(why: impl Into<alloc::string::String>) -> Refusal {
    Refusal::new("ACPI", why, "update the firmware")
}

/// Copies the tables that the root pointer (RSDP) at this address leads to, in the order in which they are wanted.
pub fn tables(memory: Memory<'_, '_>, rsdp: u64) -> Translated {
    let mut found = Translated::default();
    let listed = match addresses(memory, rsdp) {
        Ok(addresses) => addresses,
        Err(refusal) => {
            found.refused.push(refusal);
            return found;
        }
    };
    let mut tables: Vec<(usize, &[u8])> = Vec::new();
    for address in listed {
        match wanted(memory, address) {
            // The first of a kind counts.
            Ok(Some((place, _))) if tables.iter().any(|(known, _)| *known == place) => {}
            Ok(table) => tables.extend(table),
            Err(refusal) => found.refused.push(refusal),
        }
    }
    tables.sort_by_key(|(place, _)| *place);
    found.tables = tables.into_iter().map(|(place, table)| (WANTED[place].0, table.to_vec())).collect();
    let fadt = found.tables.iter().find(|(name, _)| *name == "FADT");
    // Its checksum is not looked at: nothing in it is trusted.
    let dsdt = fadt.and_then(|(_, fadt)| table_at(memory, dsdt_address(fadt)?).ok());
    found.tables.extend(dsdt.map(|table| (DSDT, table.to_vec())));
    found
}

/// The device tree at an address, as long as it says.
///
/// # Errors
/// When there is none.
pub fn device_tree<'m>(memory: Memory<'_, 'm>, address: u64) -> Result<&'m [u8], Refusal> {
    const MAGIC: u32 = 0xd00d_feed;
    /// Its magic number, and its length.
    const START: usize = 8;
    let start: Option<[u8; START]> = memory(address, START).and_then(|bytes| bytes.try_into().ok());
    let [m0, m1, m2, m3, l0, l1, l2, l3] = start.unwrap_or_default();
    let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    let is_one = u32::from_be_bytes([m0, m1, m2, m3]) == MAGIC && (START..=MAX_DEVICE_TREE).contains(&len);
    is_one.then(|| memory(address, len)).flatten().ok_or_else(|| {
        Refusal::new(
            "device tree",
            format!("what is at {address:#x} is none, or has {len} bytes"),
            "update the firmware",
        )
    })
}

/// The addresses in the list of tables.
fn addresses(memory: Memory<'_, '_>, rsdp: u64) -> Result<Vec<u64>, Refusal> {
    const REVISION: usize = 15;
    const RSDT: usize = 16;
    const XSDT: usize = 24;
    /// Bytes of the first revision, and of all later ones.
    const LENGTHS: [usize; 2] = [20, 36];
    let none = || refuse(format!("what is at {rsdp:#x} is no root pointer"));
    let first = memory(rsdp, LENGTHS[0]).filter(|first| first.starts_with(b"RSD PTR ") && sums_up(first));
    let is_first = first.ok_or_else(none)?[REVISION] == 0;
    let root = memory(rsdp, LENGTHS[usize::from(!is_first)]).filter(|root| sums_up(root)).ok_or_else(none)?;
    let (list, width) = match is_first {
        true => (u32_at(root, RSDT).map(u64::from), 4),
        false => (u64_at(root, XSDT), 8),
    };
    let list = list.ok_or_else(none)?;
    let table = table_at(memory, list)?;
    if !sums_up(table) {
        return Err(refuse(format!("the list of tables at {list:#x} is damaged")));
    }
    let entries = table[HEADER..].chunks_exact(width).take(MAX_TABLES);
    Ok(entries.filter_map(|entry| u64_at(entry, 0).or_else(|| u32_at(entry, 0).map(u64::from))).collect())
}

/// The table at an address and its place in [`WANTED`], if it is wanted.
fn wanted<'m>(memory: Memory<'_, 'm>, address: u64) -> Result<Option<(usize, &'m [u8])>, Refusal> {
    let table = table_at(memory, address)?;
    let Some(place) = WANTED.iter().position(|(_, signature)| table.starts_with(signature)) else {
        return Ok(None);
    };
    match sums_up(table) {
        true => Ok(Some((place, table))),
        false => Err(refuse(format!("the {} at {address:#x} is damaged", WANTED[place].0))),
    }
}

/// The bytes at an address, as many as a table there says that it has.
fn table_at<'m>(memory: Memory<'_, 'm>, address: u64) -> Result<&'m [u8], Refusal> {
    const LENGTH: usize = 4;
    let nowhere = || refuse(format!("a table cannot be at {address:#x}"));
    let header = memory(address, HEADER).ok_or_else(nowhere)?;
    let length = u32_at(header, LENGTH).map_or(0, |length| length as usize);
    if !(HEADER..=MAX_LENGTH).contains(&length) {
        return Err(refuse(format!("the table at {address:#x} has {length} bytes")));
    }
    memory(address, length).ok_or_else(nowhere)
}

fn sums_up(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: u64 = 0x1_7fe0_0000;
    const RSDP: u64 = BASE;
    const LIST: u64 = BASE + 0x40;
    const SIZE: usize = 0x1000;

    /// Firmware's memory; nothing else may be looked at.
    #[derive(Clone)]
    struct Firmware {
        bytes: Vec<u8>,
        /// Where the next table goes.
        next: u64,
        /// Addresses in the list.
        listed: Vec<u64>,
        /// The revision of its root pointer.
        revision: u8,
    }

    /// Makes a byte of a table such that all sum up to zero.
    fn seal(table: &mut [u8], at: usize) {
        table[at] = 0;
        table[at] = table.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    }

    fn table(signature: &[u8], body: &[u8]) -> Vec<u8> {
        let mut table =
            [signature, &((HEADER + body.len()) as u32).to_le_bytes(), &[0; HEADER - 8], body].concat();
        seal(&mut table, 9);
        table
    }

    impl Firmware {
        fn new(revision: u8) -> Self {
            Self { bytes: vec![0; SIZE], next: BASE + 0x200, listed: Vec::new(), revision }
        }

        fn put(&mut self, address: u64, bytes: &[u8]) {
            let at = (address - BASE) as usize;
            self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        }

        /// Puts a table there, on no list.
        fn hide(&mut self, table: &[u8]) -> u64 {
            let address = self.next;
            self.put(address, table);
            self.next += table.len() as u64;
            address
        }

        fn add(&mut self, table: &[u8]) -> u64 {
            let address = self.hide(table);
            self.listed.push(address);
            address
        }

        /// Writes the list and the root pointer.
        fn finish(&mut self) {
            let width = if self.revision == 0 { 4 } else { 8 };
            let list: Vec<u8> =
                self.listed.iter().flat_map(|address| address.to_le_bytes()[..width].to_vec()).collect();
            let list = table(if width == 4 { b"RSDT" } else { b"XSDT" }, &list);
            let mut root = [0; 36];
            root[..8].copy_from_slice(b"RSD PTR ");
            root[15] = self.revision;
            // The other list is not there.
            let at = if width == 4 { 16 } else { 24 };
            root[at..at + width].copy_from_slice(&LIST.to_le_bytes()[..width]);
            root[20] = if width == 4 { 7 } else { 36 };
            seal(&mut root[..20], 8);
            if width == 8 {
                seal(&mut root, 32);
            }
            self.put(LIST, &list);
            self.put(RSDP, &root);
        }

        fn memory<'m>(&'m self) -> impl Fn(u64, usize) -> Option<&'m [u8]> {
            |address, len| {
                // The old list names the lower 4 GiB only, so there it is as if memory were there.
                let address = if self.revision == 0 { address | 1 << 32 } else { address };
                let at = usize::try_from(address.checked_sub(BASE)?).ok()?;
                self.bytes.get(at..at.checked_add(len)?)
            }
        }

        fn tables(&self) -> Translated {
            tables(&self.memory(), RSDP)
        }

        fn names(&self) -> Vec<&'static str> {
            self.tables().tables.into_iter().map(|(name, _)| name).collect()
        }

        fn refused(&self) -> Vec<String> {
            self.tables().refused.iter().map(Refusal::to_string).collect()
        }
    }

    /// Tables in another order than they are wanted in, one of them with a DSDT, and one that nobody wants.
    fn firmware(revision: u8) -> Firmware {
        let mut firmware = Firmware::new(revision);
        let dsdt = firmware.hide(&[b"DSDT\x28\0\0\0", &[7; 32][..]].concat());
        let mut body = [0; 240];
        body[140 - HEADER..148 - HEADER].copy_from_slice(&dsdt.to_le_bytes());
        firmware.add(&table(b"FACP", &body));
        firmware.add(&table(b"SSDT", b"bytecode"));
        firmware.add(&table(b"MCFG", b"ecam"));
        firmware.add(&table(b"APIC", b"first"));
        firmware.add(&table(b"APIC", b"second"));
        firmware.finish();
        firmware
    }

    #[test]
    fn tables_are_found_by_both_lists() {
        for revision in [0, 2, 3] {
            let firmware = firmware(revision);
            assert_eq!(firmware.refused(), [""; 0]);
            assert_eq!(firmware.names(), ["MADT", "MCFG", "FADT", "DSDT"]);
            let found = firmware.tables().tables;
            assert_eq!(found[0].1, table(b"APIC", b"first"), "the first of a kind counts");
            assert_eq!(found[1].1, table(b"MCFG", b"ecam"));
            assert_eq!(found[3].1.len(), 40);
        }
    }

    #[test]
    fn what_is_broken_costs_a_line_and_what_it_would_have_told() {
        let mut firmware = firmware(2);
        let mut damaged = table(b"HPET", b"timer");
        damaged[HEADER] ^= 1;
        let damaged = firmware.add(&damaged);
        let lengths = [35, MAX_LENGTH as u32 + 1].map(|length| {
            let mut bytes = table(b"DMAR", b"");
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            firmware.add(&bytes)
        });
        firmware.listed.push(0);
        // It reaches beyond memory.
        let mut long = table(b"GTDT", b"");
        long[4..8].copy_from_slice(&(SIZE as u32).to_le_bytes());
        let long = firmware.add(&long);
        firmware.add(&table(b"SPCR", b"serial line"));
        firmware.finish();
        assert_eq!(firmware.names(), ["MADT", "MCFG", "FADT", "SPCR", "DSDT"]);
        assert_eq!(
            firmware.refused(),
            [
                format!("ACPI: the HPET at {damaged:#x} is damaged; update the firmware"),
                format!("ACPI: the table at {:#x} has 35 bytes; update the firmware", lengths[0]),
                format!("ACPI: the table at {:#x} has 16777217 bytes; update the firmware", lengths[1]),
                "ACPI: a table cannot be at 0x0; update the firmware".to_string(),
                format!("ACPI: a table cannot be at {long:#x}; update the firmware"),
            ]
        );
    }

    /// Whatever is damaged of the root pointer or the list is one line, and there are no tables.
    #[test]
    fn without_a_list_there_are_no_tables() {
        for (revision, end) in [(0, 20), (2, 36)] {
            for at in 0..end {
                let mut firmware = firmware(revision);
                firmware.bytes[at] ^= 0x40;
                let refused = firmware.refused();
                assert_eq!(
                    refused,
                    [format!("ACPI: what is at {RSDP:#x} is no root pointer; update the firmware")]
                );
                assert_eq!(firmware.names(), [""; 0]);
            }
        }
        let mut firmware = firmware(2);
        firmware.bytes[(LIST - BASE) as usize + HEADER] ^= 1;
        assert_eq!(
            firmware.refused(),
            [format!("ACPI: the list of tables at {LIST:#x} is damaged; update the firmware")]
        );
        let none = tables(&firmware.memory(), 0).refused;
        assert_eq!(none[0].to_string(), "ACPI: what is at 0x0 is no root pointer; update the firmware");
    }

    #[test]
    fn a_list_without_end_has_one() {
        let mut firmware = Firmware::new(2);
        firmware.bytes.resize(SIZE + 16 * MAX_TABLES, 0);
        firmware.next = BASE + 0x100 + 8 * (MAX_TABLES as u64 + 2);
        firmware.listed = vec![1; MAX_TABLES];
        firmware.add(&table(b"MCFG", b""));
        firmware.finish();
        assert_eq!((firmware.refused().len(), firmware.names().len()), (MAX_TABLES, 0));
    }

    #[test]
    fn a_device_tree_is_as_long_as_it_says() {
        let mut firmware = Firmware::new(2);
        let mut tree = |magic: u32, len: u32| {
            firmware.put(BASE, &magic.to_be_bytes());
            firmware.put(BASE + 4, &len.to_be_bytes());
            device_tree(&firmware.memory(), BASE).map(<[u8]>::len).map_err(|refusal| refusal.to_string())
        };
        let none = |len: u32| {
            Err(format!("device tree: what is at {BASE:#x} is none, or has {len} bytes; update the firmware"))
        };
        assert_eq!(tree(0xd00d_feed, 40), Ok(40));
        assert_eq!(tree(0xd00d_feed, 7), none(7));
        assert_eq!(tree(0xd00d_feed, SIZE as u32 + 1), none(SIZE as u32 + 1));
        assert_eq!(tree(0xd00d_feed, MAX_DEVICE_TREE as u32 + 1), none(MAX_DEVICE_TREE as u32 + 1));
        assert_eq!(tree(0xedfe_0dd0, 40), none(40));
        assert!(device_tree(&firmware.memory(), 0).is_err());
    }

    proptest! {
        /// Any bytes changed, and all sums made right again, or not.
        #[test]
        fn no_bytes_are_too_bad(
            changes in prop::collection::vec((0..SIZE, any::<u8>()), 0..40),
            sealed: bool,
        ) {
            let mut firmware = firmware(2);
            for (at, byte) in changes {
                firmware.bytes[at] = byte;
            }
            if sealed {
                firmware.put(RSDP, b"RSD PTR ");
                seal(&mut firmware.bytes[..20], 8);
                seal(&mut firmware.bytes[..36], 32);
            }
            let found = firmware.tables();
            prop_assert!(found.tables.len() <= WANTED.len() + 1);
            let _ = device_tree(&firmware.memory(), BASE);
        }
    }
}
