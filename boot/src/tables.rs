// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the ACPI tables that Pasidon reads and takes copies of them.
//!
//! **Principle.** The `acpi` crate finds tables and verifies checksums; it trusts the lengths in the list of
//! tables, so these are looked at first. What a table says is read from the copy, by
//! [`pasidon_arch_x86_64::firmware_tables`]. A table that is absent or broken costs a line and what it would
//! have told.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;

use acpi::sdt::{SdtHeader, Signature};
use acpi::{AcpiError, AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};
use pasidon_arch_x86_64::firmware_tables::{self, HEADER};
use uefi::system;
use uefi::table::cfg::ConfigTableEntry;

/// Longest table that is believed.
const MAX_LENGTH: u32 = 16 << 20;

/// Copies of the tables, each whole and with a good checksum.
#[derive(Default)]
pub struct Tables {
    /// Processors and interrupt controllers.
    pub madt: Option<Vec<u8>>,
    /// PCI configuration space.
    pub mcfg: Option<Vec<u8>>,
    /// Fixed hardware.
    pub fadt: Option<Vec<u8>>,
    /// Event timer.
    pub hpet: Option<Vec<u8>>,
    /// DMA remapping (VT-d).
    pub dmar: Option<Vec<u8>>,
    /// The firmware's bytecode, for the value that switches the machine off.
    pub dsdt: Option<Vec<u8>>,
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

impl Tables {
    /// Finds and copies them. Before boot services end, while the firmware's map covers its tables.
    pub fn find() -> Self {
        let Some(rsdp) = rsdp() else {
            log::warn!("ACPI: the firmware has no tables; use a firmware with ACPI");
            return Self::default();
        };
        if let Err(why) = check_root(rsdp) {
            log::warn!("ACPI: {why}; update the firmware");
            return Self::default();
        }
        // SAFETY: the firmware says that the root pointer is there; `check_root` has looked at the list.
        let tables = match unsafe { AcpiTables::from_rsdp(Identity, rsdp) } {
            Ok(tables) => tables,
            Err(error) => {
                log::warn!("ACPI: the list of tables is broken ({error:?}); update the firmware");
                return Self::default();
            }
        };
        let fadt = copy::<Fadt>(&tables);
        Self {
            dsdt: fadt
                .as_deref()
                .and_then(firmware_tables::dsdt_address)
                .and_then(copy_at),
            madt: copy::<Madt>(&tables),
            mcfg: copy::<Mcfg>(&tables),
            fadt,
            hpet: copy::<Hpet>(&tables),
            dmar: copy::<Dmar>(&tables),
        }
    }

    /// The names of those that were found.
    pub fn names(&self) -> String {
        let all = [
            ("MADT", &self.madt),
            ("MCFG", &self.mcfg),
            ("FADT", &self.fadt),
            ("HPET", &self.hpet),
            ("DMAR", &self.dmar),
        ];
        let there: Vec<&str> = all
            .iter()
            .filter(|(_, table)| table.is_some())
            .map(|(name, _)| *name)
            .collect();
        there.join(" ")
    }

    /// The clock to measure the TSC by.
    pub fn clock(&self) -> Option<firmware_tables::ReferenceClock> {
        let pm_timer = self.fadt.as_deref().and_then(firmware_tables::pm_timer);
        pm_timer.or_else(|| self.hpet.as_deref().and_then(firmware_tables::hpet))
    }
}

/// Where the firmware says the root pointer is.
fn rsdp() -> Option<usize> {
    system::with_config_table(|entries| {
        let find = |guid| entries.iter().find(|entry| entry.guid == guid);
        find(ConfigTableEntry::ACPI2_GUID)
            .or_else(|| find(ConfigTableEntry::ACPI_GUID))
            .map(|entry| entry.address as usize)
            .filter(|address| *address != 0)
    })
}

/// Looks at the lengths that the `acpi` crate does not look at: of the list, and of the tables in it.
fn check_root(rsdp: usize) -> Result<(), String> {
    const REVISION: usize = 15;
    const RSDT: usize = 16;
    const XSDT: usize = 24;
    // SAFETY: the firmware says that the root pointer is there; its fields are not aligned.
    let (root, width) = unsafe {
        let at = rsdp as *const u8;
        if at.add(REVISION).read() == 0 {
            (u64::from(at.add(RSDT).cast::<u32>().read_unaligned()), 4)
        } else {
            (at.add(XSDT).cast::<u64>().read_unaligned(), 8)
        }
    };
    let length = length_at(root)?;
    let entries = (length as usize - HEADER) / width;
    for entry in 0..entries {
        // SAFETY: within the list, which `length_at` found plausible.
        let address = unsafe {
            let at = (root as *const u8).add(HEADER + entry * width);
            match width {
                4 => u64::from(at.cast::<u32>().read_unaligned()),
                _ => at.cast::<u64>().read_unaligned(),
            }
        };
        length_at(address)?;
    }
    Ok(())
}

/// The length of the table at an address, if it can be one.
fn length_at(address: u64) -> Result<u32, String> {
    const LENGTH: u64 = 4;
    /// What the firmware's identity map covers at most.
    const END: u64 = 1 << 47;
    if address == 0 || address >= END {
        return Err(format!("a table cannot be at {address:#x}"));
    }
    // SAFETY: the firmware's tables lie in memory that its own map covers.
    let length = unsafe { ((address + LENGTH) as *const u32).read_unaligned() };
    if (HEADER as u32..=MAX_LENGTH).contains(&length) {
        Ok(length)
    } else {
        Err(format!("the table at {address:#x} has {length} bytes"))
    }
}

fn copy<T: AcpiTable>(tables: &AcpiTables<Identity>) -> Option<Vec<u8>> {
    match tables.find_table::<T>() {
        Ok(found) => {
            let start = found.virtual_start().as_ptr().cast::<u8>();
            // SAFETY: the crate has summed up all these bytes.
            Some(unsafe { core::slice::from_raw_parts(start, found.region_length()) }.to_vec())
        }
        // A broken one is not told from an absent one here; the crate has logged it.
        Err(AcpiError::TableMissing(_)) => None,
        Err(error) => {
            log::warn!("ACPI: {}: {error:?}; update the firmware", T::SIGNATURE);
            None
        }
    }
}

/// Copies a table that the list of tables does not name. Its checksum is not looked at: nothing in it is
/// trusted.
fn copy_at(address: u64) -> Option<Vec<u8>> {
    let length = length_at(address).ok()? as usize;
    // SAFETY: the firmware's tables lie in memory that its own map covers, and `length_at` found this one
    // plausible.
    Some(unsafe { core::slice::from_raw_parts(address as *const u8, length) }.to_vec())
}

/// Physical addresses are pointers.
#[derive(Clone)]
struct Identity;

impl AcpiHandler for Identity {
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        // `check_root` has refused null; a table of addresses can have no other.
        let start = NonNull::new(address as *mut T).unwrap_or(NonNull::dangling());
        // SAFETY: the firmware maps its tables, at their physical addresses.
        unsafe { PhysicalMapping::new(address, start, size, size, Identity) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}
