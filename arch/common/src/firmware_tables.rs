// SPDX-License-Identifier: MIT OR Apache-2.0
//! What those of the firmware's ACPI tables say that are the same on all architectures, out of their bytes.
//!
//! **Principle.** Each function takes a whole table with its header, whose checksum somebody has verified,
//! and believes no length in it: whatever the bytes are, it returns.
//!
//! Source: ACPI specification 6.5, 5.2; PCI firmware specification 3.3 (MCFG); Devicetree Specification 0.4, 5.2 (header).

use alloc::format;
use alloc::string::String;
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

/// So many bytes of physical memory from an address on; `None` where no table can be.
pub type Memory<'a, 'm> = &'a dyn Fn(u64, usize) -> Option<&'m [u8]>;

/// Longest table that is believed, in bytes.
const MAX_TABLE: usize = 16 << 20;

fn refuse(why: String) -> Refusal {
    Refusal::new("ACPI", why, "update the firmware")
}

fn nowhere(address: u64) -> Refusal {
    refuse(format!("a table cannot be at {address:#x}"))
}

/// Looks at every length in the list of tables that the root pointer (RSDP) at this address leads to: of the list, and of
/// the tables in it. For whoever follows that list and believes them.
///
/// # Errors
/// When no table can be at a place that is named there, or be so long.
pub fn check_list(memory: Memory<'_, '_>, rsdp: u64) -> Result<(), Refusal> {
    listed(memory, rsdp).map(drop)
}

/// The tables that the list names which the root pointer (RSDP) at this address leads to, in its order.
///
/// # Errors
/// When no table can be at a place that is named there, or be so long.
pub fn listed<'m>(memory: Memory<'_, 'm>, rsdp: u64) -> Result<Vec<&'m [u8]>, Refusal> {
    const REVISION: usize = 15;
    const RSDT: usize = 16;
    const XSDT: usize = 24;
    let bytes = |len| memory(rsdp, len).ok_or_else(|| nowhere(rsdp));
    let (list, width) = match bytes(RSDT)?.get(REVISION) {
        Some(0) => (u32_at(bytes(RSDT + 4)?, RSDT).map(u64::from), 4),
        _ => (u64_at(bytes(XSDT + 8)?, XSDT), 8),
    };
    let list = table_at(memory, list.unwrap_or(0))?;
    let entries = list.get(HEADER..).unwrap_or_default().chunks_exact(width);
    let address = |entry| u64_at(entry, 0).or_else(|| u32_at(entry, 0).map(u64::from));
    entries.map(|entry| table_at(memory, address(entry).unwrap_or(0))).collect()
}

/// What the header of a table says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableHeader {
    /// Four characters.
    pub signature: String,
    /// Bytes.
    pub length: usize,
    /// Of the table's form.
    pub revision: u8,
    /// Who made it, and what he calls it.
    pub oem: String,
    /// Its bytes sum up to nothing, as they have to.
    pub sound: bool,
}

impl TableHeader {
    /// Of a whole table.
    pub fn of(table: &[u8]) -> Self {
        let text = |at: usize, len: usize| {
            let bytes = table.get(at..at + len).unwrap_or_default();
            let shown =
                bytes.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { ' ' });
            String::from(shown.collect::<String>().trim())
        };
        Self {
            signature: text(0, 4),
            length: table.len(),
            revision: table.get(8).copied().unwrap_or(0),
            oem: format!("{} {}", text(10, 6), text(16, 8)),
            sound: table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0,
        }
    }
}

/// Where the serial console of the SPCR is, of whatever kind: its interface type, and its address in memory or, where
/// the flag says so, as an I/O port.
pub fn serial_console(spcr: &[u8]) -> Option<(u8, u64, bool)> {
    const INTERFACE: usize = HEADER;
    const SPACE: usize = 40;
    const ADDRESS: usize = 44;
    const SYSTEM_IO: u8 = 1;
    Some((*spcr.get(INTERFACE)?, u64_at(spcr, ADDRESS)?, *spcr.get(SPACE)? == SYSTEM_IO))
}

/// The bytes at an address, as many as a table there says that it has.
///
/// # Errors
/// When no table can be there, or be so long.
pub fn table_at<'m>(memory: Memory<'_, 'm>, address: u64) -> Result<&'m [u8], Refusal> {
    const LENGTH: usize = 4;
    let header = memory(address, HEADER).ok_or_else(|| nowhere(address))?;
    let length = u32_at(header, LENGTH).map_or(0, |length| length as usize);
    if !(HEADER..=MAX_TABLE).contains(&length) {
        return Err(refuse(format!("the table at {address:#x} has {length} bytes")));
    }
    memory(address, length).ok_or_else(|| nowhere(address))
}

/// The device tree at an address, as long as it says.
///
/// # Errors
/// When there is none.
pub fn device_tree_at<'m>(memory: Memory<'_, 'm>, address: u64) -> Result<&'m [u8], Refusal> {
    const MAGIC: u32 = 0xd00d_feed;
    /// Its magic number, and its length.
    const START: usize = 8;
    let start: Option<[u8; START]> = memory(address, START).and_then(|bytes| bytes.try_into().ok());
    let [m0, m1, m2, m3, l0, l1, l2, l3] = start.unwrap_or_default();
    let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    let is_one = u32::from_be_bytes([m0, m1, m2, m3]) == MAGIC && (START..=MAX_DEVICE_TREE).contains(&len);
    is_one.then(|| memory(address, len)).flatten().ok_or_else(|| {
        let why = format!("what is at {address:#x} is none, or has {len} bytes");
        Refusal::new("device tree", why, "update the firmware")
    })
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

    const BASE: u64 = 0x1_7fe0_0000;
    const LIST: u64 = BASE + 0x40;
    const TABLES: u64 = BASE + 0x100;
    const SIZE: usize = 0x400;

    /// The firmware's memory, and what may be looked at of it. The old list names the lower 4 GiB only: for that, the same
    /// memory is there.
    fn memory<'m>(bytes: &'m [u8]) -> impl Fn(u64, usize) -> Option<&'m [u8]> {
        |address, len| {
            let at = usize::try_from((address | 1 << 32).checked_sub(BASE)?).ok()?;
            bytes.get(at..at.checked_add(len)?)
        }
    }

    fn put(bytes: &mut [u8], address: u64, what: &[u8]) {
        let at = (address - BASE) as usize;
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    /// Memory with a list of tables that are so long, one every 64 bytes, and with nothing in the other list.
    fn listed(revision: u8, lengths: &[u32]) -> Vec<u8> {
        let (width, field) = if revision == 0 { (4, 16) } else { (8, 24) };
        let mut bytes = vec![0; SIZE];
        bytes[15] = revision;
        put(&mut bytes, BASE + field, &LIST.to_le_bytes()[..width]);
        put(&mut bytes, LIST + 4, &((HEADER + lengths.len() * width) as u32).to_le_bytes());
        for (place, length) in lengths.iter().enumerate() {
            let address = TABLES + 64 * place as u64;
            put(&mut bytes, LIST + (HEADER + place * width) as u64, &address.to_le_bytes()[..width]);
            put(&mut bytes, address + 4, &length.to_le_bytes());
        }
        bytes
    }

    fn checked(bytes: &[u8]) -> Result<(), String> {
        check_list(&memory(bytes), BASE).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn every_length_in_the_list_is_looked_at() {
        for revision in [0, 2] {
            let low = if revision == 0 { TABLES & u64::from(u32::MAX) } else { TABLES };
            assert_eq!(checked(&listed(revision, &[36, 60, 64])), Ok(()));
            for place in 0..3 {
                let of = |length| {
                    let mut lengths = [40; 3];
                    lengths[place] = length;
                    checked(&listed(revision, &lengths))
                };
                let address = low + 64 * place as u64;
                let long = format!("ACPI: the table at {address:#x} has");
                assert_eq!(of(35), Err(format!("{long} 35 bytes; update the firmware")));
                assert_eq!(of((16 << 20) + 1), Err(format!("{long} 16777217 bytes; update the firmware")));
                let beyond = format!("ACPI: a table cannot be at {address:#x}; update the firmware");
                assert_eq!(of(SIZE as u32), Err(beyond));
            }
        }
        let mut without = listed(2, &[40]);
        put(&mut without, LIST + HEADER as u64, &[0; 8]);
        assert_eq!(checked(&without), Err("ACPI: a table cannot be at 0x0; update the firmware".to_string()));
        put(&mut without, BASE + 24, &[0; 8]);
        assert_eq!(checked(&without), Err("ACPI: a table cannot be at 0x0; update the firmware".to_string()));
        assert!(check_list(&memory(&without), 0).is_err());
    }

    #[test]
    fn a_device_tree_is_as_long_as_it_says() {
        let tree = |magic: u32, len: u32| {
            let mut bytes = vec![0; SIZE];
            put(&mut bytes, BASE, &magic.to_be_bytes());
            put(&mut bytes, BASE + 4, &len.to_be_bytes());
            device_tree_at(&memory(&bytes), BASE).map(<[u8]>::len).map_err(|refusal| refusal.to_string())
        };
        let none = |len: u32| {
            Err(format!("device tree: what is at {BASE:#x} is none, or has {len} bytes; update the firmware"))
        };
        assert_eq!(tree(0xd00d_feed, 40), Ok(40));
        for len in [7, SIZE as u32 + 1, MAX_DEVICE_TREE as u32 + 1] {
            assert_eq!(tree(0xd00d_feed, len), none(len));
        }
        assert_eq!(tree(0xedfe_0dd0, 40), none(40));
        assert!(device_tree_at(&memory(&[]), BASE).is_err());
    }

    #[test]
    fn a_header_says_whose_table_it_is_and_whether_it_is_sound() {
        let mut bytes = table(&[7]);
        bytes[..4].copy_from_slice(b"SPCR");
        bytes[8] = 2;
        bytes[10..24].copy_from_slice(b"BOCHS BXPC\0\0\0\0");
        bytes[9] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        let wanted = TableHeader {
            signature: "SPCR".to_string(),
            length: 37,
            revision: 2,
            oem: "BOCHS BXPC".to_string(),
            sound: true,
        };
        assert_eq!(TableHeader::of(&bytes), wanted);
        bytes[36] = 8;
        assert!(!TableHeader::of(&bytes).sound);
        let mut console = table(&[0; 44]);
        console[40] = 1;
        console[44..46].copy_from_slice(&0x3f8u16.to_le_bytes());
        assert_eq!(serial_console(&console), Some((0, 0x3f8, true)));
        assert_eq!(serial_console(&[]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_bad(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            mcfg(&bytes);
            dsdt_address(&bytes);
            TableHeader::of(&bytes);
            serial_console(&bytes);
            let _ = (checked(&bytes), device_tree_at(&memory(&bytes), BASE));
        }
    }
}
