// SPDX-License-Identifier: MIT OR Apache-2.0
//! The firmware's tables: copies of its ACPI tables; or such tables made out of a device tree, where the firmware has no
//! others.
//!
//! **Principle.** Where they are is the firmware's word. How they are found is [`acpi`]'s matter, what a table says that
//! of `pasidon_arch::firmware_tables`, and both see nothing but bytes.

use alloc::string::String;
use alloc::vec::Vec;

use pasidon_arch::firmware_tables::OF_DEVICE_TREE;
use pasidon_arch_common::acpi::{self, DSDT};
use pasidon_arch_common::firmware_tables::Translated;
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

impl Tables {
    /// Finds and copies them. Before boot services end, while the firmware's map covers its tables. A device tree is
    /// looked at where there is no ACPI.
    pub fn find() -> Self {
        match configured(&[ConfigTableEntry::ACPI2_GUID, ConfigTableEntry::ACPI_GUID]) {
            Some(rsdp) => Self::new("ACPI", acpi::tables(&memory, rsdp)),
            None => Self::of_device_tree(),
        }
    }

    fn of_device_tree() -> Self {
        let tree = configured(&[DTB_GUID]).and_then(|address| {
            acpi::device_tree(&memory, address).inspect_err(|refusal| log::warn!("{refusal}")).ok()
        });
        let Some((translate, tree)) = OF_DEVICE_TREE.zip(tree) else {
            log::warn!("ACPI: the firmware has no tables; use a firmware with ACPI");
            return Self::default();
        };
        Self::new("device tree", translate(tree))
    }

    fn new(source: &'static str, found: Translated) -> Self {
        for refusal in &found.refused {
            log::warn!("{refusal}");
        }
        Self { source, tables: found.tables }
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

    /// The table of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self.tables.iter().find(|(known, _)| *known == name);
        found.map(|(_, table)| table.as_slice())
    }
}

/// Where the firmware says that the first of these is, which it has.
fn configured(guids: &[Guid]) -> Option<u64> {
    system::with_config_table(|entries| {
        let find = |guid: &Guid| entries.iter().find(|entry| entry.guid == *guid);
        let found = guids.iter().find_map(find);
        found.map(|entry| entry.address as u64).filter(|address| *address != 0)
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
