// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the ACPI tables that Pasidon reads and takes copies of them; or makes such tables out of a device tree, where
//! the firmware has no others.
//!
//! **Principle.** The `acpi` crate finds tables and verifies checksums; it trusts the lengths in the list of
//! tables, so these are looked at first. What a table says is read from the copy, by
//! `pasidon_arch::firmware_tables`. A table that is absent or broken costs a line and what it would
//! have told.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;

use acpi::sdt::{SdtHeader, Signature};
use acpi::{AcpiError, AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};
use pasidon_arch::firmware_tables;
use pasidon_arch_common::firmware_tables::{TableHeader, check_list, device_tree_at, listed, table_at};
use pasidon_kernel::base::refusal::Refusal;
use uefi::table::cfg::ConfigTableEntry;
use uefi::{Guid, guid, system};

/// The firmware's device tree (EFI_DTB_TABLE_GUID).
const DTB_GUID: Guid = guid!("b1b621d5-f19c-41a5-830b-d9152c69aae0");

/// The tables, each whole and with a good checksum, by their names.
#[derive(Default)]
pub struct Tables {
    source: &'static str,
    tables: Vec<(&'static str, Vec<u8>)>,
}

/// A table of which only the header is of interest here.
macro_rules! table {
    ($name:ident, $signature:ident) => {
        #[repr(transparent)]
        struct $name(SdtHeader);

        // SAFETY: every table starts with the header.
        unsafe impl AcpiTable for $name {
            const SIGNATURE: Signature = Signature::$signature;

            fn header(&self) -> &SdtHeader {
                &self.0
            }
        }
    };
}

table!(Madt, MADT);
table!(Mcfg, MCFG);
table!(Fadt, FADT);
table!(Hpet, HPET);
table!(Dmar, DMAR);
table!(Gtdt, GTDT);
table!(Spcr, SPCR);
table!(Dbg2, DBG2);
table!(Iort, IORT);

/// Finds one kind of table in the firmware's list.
type Get = fn(&AcpiTables<Identity>) -> Result<&'static [u8], AcpiError>;

/// What is looked for, in the order in which it is listed.
const WANTED: [(&str, Get); 9] = [
    // Processors and interrupt controllers.
    ("MADT", bytes::<Madt>),
    // PCI configuration space.
    ("MCFG", bytes::<Mcfg>),
    // Fixed hardware.
    ("FADT", bytes::<Fadt>),
    // Event timer.
    ("HPET", bytes::<Hpet>),
    // DMA remapping (VT-d).
    ("DMAR", bytes::<Dmar>),
    // Generic timer.
    ("GTDT", bytes::<Gtdt>),
    // Serial console.
    ("SPCR", bytes::<Spcr>),
    // Debug ports.
    ("DBG2", bytes::<Dbg2>),
    // I/O remapping (SMMU).
    ("IORT", bytes::<Iort>),
];

impl Tables {
    /// Finds and copies them. Before boot services end, while the firmware's map covers its tables. A device tree is
    /// looked at where there is no ACPI.
    pub fn find() -> Self {
        match configured(&[ConfigTableEntry::ACPI2_GUID, ConfigTableEntry::ACPI_GUID]) {
            Some(rsdp) => Self::of_acpi(rsdp),
            None => Self::of_device_tree(),
        }
    }

    fn of_acpi(rsdp: usize) -> Self {
        let tables = match list(rsdp) {
            Ok(tables) => tables,
            Err(refusal) => {
                log::warn!("{refusal}");
                return Self::default();
            }
        };
        let mut found: Vec<(&str, Vec<u8>)> =
            WANTED.into_iter().filter_map(|(name, get)| Some((name, copy(&tables, name, get)?))).collect();
        let dsdt = found
            .iter()
            .find(|(name, _)| *name == "FADT")
            .and_then(|(_, fadt)| firmware_tables::dsdt_address(fadt))
            .and_then(|address| table_at(&memory, address).ok());
        // The firmware's bytecode, which no list names. Its checksum is not looked at: nothing in it is trusted.
        found.extend(dsdt.map(|table| (DSDT, table.to_vec())));
        Self { source: "ACPI", tables: found }
    }

    fn of_device_tree() -> Self {
        let tree = configured(&[DTB_GUID]).and_then(|address| {
            device_tree_at(&memory, address as u64).inspect_err(|refusal| log::warn!("{refusal}")).ok()
        });
        let Some((translate, tree)) = firmware_tables::OF_DEVICE_TREE.zip(tree) else {
            log::warn!("ACPI: the firmware has no tables; use a firmware with ACPI");
            return Self::default();
        };
        let translated = translate(tree);
        for refusal in &translated.refused {
            log::warn!("{refusal}");
        }
        Self { source: "device tree", tables: translated.tables }
    }

    /// The header of every table in the firmware's list, whether or not it is one that is read.
    pub fn headers() -> Vec<TableHeader> {
        let rsdp = configured(&[ConfigTableEntry::ACPI2_GUID, ConfigTableEntry::ACPI_GUID]);
        // What is wrong with the list was said when the tables were looked for.
        let tables = rsdp.and_then(|rsdp| listed(&memory, rsdp as u64).ok()).unwrap_or_default();
        tables.into_iter().map(TableHeader::of).collect()
    }

    /// What the firmware says it in.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// The names of those that the firmware lists, or that its device tree gives.
    pub fn names(&self) -> String {
        let names = self.tables.iter().map(|(name, _)| *name);
        let listed: Vec<&str> = names.filter(|name| *name != DSDT).collect();
        listed.join(" ")
    }

    /// Whether one with that signature is among them.
    pub fn names_signature(&self, signature: &str) -> bool {
        self.tables.iter().any(|(_, table)| table.starts_with(signature.as_bytes()))
    }

    /// The table of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self.tables.iter().find(|(known, _)| *known == name);
        found.map(|(_, table)| table.as_slice())
    }
}

/// The name of the table with the firmware's bytecode.
const DSDT: &str = "DSDT";

/// The firmware's list of tables.
fn list(rsdp: usize) -> Result<AcpiTables<Identity>, Refusal> {
    check_list(&memory, rsdp as u64)?;
    // SAFETY: the firmware says that the root pointer is there; `check_list` has looked at the list.
    unsafe { AcpiTables::from_rsdp(Identity, rsdp) }.map_err(|error| {
        Refusal::new("ACPI", format!("the list of tables is broken ({error:?})"), "update the firmware")
    })
}

/// Where the firmware says that the first of these is, which it has.
fn configured(guids: &[Guid]) -> Option<usize> {
    system::with_config_table(|entries| {
        let find = |guid: &Guid| entries.iter().find(|entry| entry.guid == *guid);
        let found = guids.iter().find_map(find);
        found.map(|entry| entry.address as usize).filter(|address| *address != 0)
    })
}

/// The firmware's memory, where a table can be.
fn memory(address: u64, len: usize) -> Option<&'static [u8]> {
    /// What the firmware's identity map covers at most.
    const END: u64 = 1 << 47;
    let end = address.checked_add(len as u64)?;
    // SAFETY: the firmware, or a table of its, says that a table is there; its tables lie in memory that its own map
    // covers, and stay where they are until boot services end, which is as long as anybody looks at them there.
    (address != 0 && end <= END).then(|| unsafe { core::slice::from_raw_parts(address as *const u8, len) })
}

/// The bytes of a table, where the firmware has it.
fn bytes<T: AcpiTable>(tables: &AcpiTables<Identity>) -> Result<&'static [u8], AcpiError> {
    let found = tables.find_table::<T>()?;
    let start = found.virtual_start().as_ptr().cast::<u8>();
    // SAFETY: the crate has summed up all these bytes, and the firmware's tables stay where they are until
    // boot services end, which is as long as anybody looks at them there.
    Ok(unsafe { core::slice::from_raw_parts(start, found.region_length()) })
}

fn copy(tables: &AcpiTables<Identity>, name: &str, get: Get) -> Option<Vec<u8>> {
    match get(tables) {
        Ok(table) => Some(table.to_vec()),
        // A broken one is not told from an absent one here; the crate has logged it.
        Err(AcpiError::TableMissing(_)) => None,
        Err(error) => {
            log::warn!("ACPI: {name}: {error:?}; update the firmware");
            None
        }
    }
}

/// Physical addresses are pointers.
#[derive(Clone)]
struct Identity;

impl AcpiHandler for Identity {
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        // `check_list` has refused null; a table of addresses can have no other.
        let start = NonNull::new(address as *mut T).unwrap_or(NonNull::dangling());
        // SAFETY: the firmware maps its tables, at their physical addresses.
        unsafe { PhysicalMapping::new(address, start, size, size, Identity) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}
