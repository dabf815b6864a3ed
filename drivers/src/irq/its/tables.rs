// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables that GITS_BASER leads to: devices, collections, and what else an ITS wants.
//!
//! **Principle.** What is in a table is the business of the ITS; the driver only provides the memory, zeroed, and
//! never looks at it. The exception is the first level of a device table with two levels, which the driver fills.
//! Two levels are used where one would be more than a page and the ITS has them: then a device costs memory only
//! once it is known. An ITS with a table that it was not given memory for drops all messages, so each gets some.
//! Source: IHI 0069, GITS_BASER and "The ITS tables".

use alloc::format;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;

use super::registers::{ITS, TableKind, Typer, gits, table};
use crate::memory::DmaMemory;
use crate::registers::Registers;
use crate::table_memory::TableMemory;

/// V of an entry of the first level.
const VALID: u64 = 1 << 63;
/// Bytes of an entry of the first level.
const FIRST_LEVEL_ENTRY: u64 = 8;
/// Values of GITS_BASER.Page_Size and what they mean in bytes.
const PAGE_SIZES: [(u64, u64); 3] = [(0, 4 << 10), (1, 16 << 10), (2, 64 << 10)];
/// Where memory must end that GITS_BASER can lead to with every size of page.
const ADDRESS_END: u64 = 1 << 48;

/// The device table of one ITS.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceTable {
    start: HostPhys,
    /// Bytes of a page of the second level, and the entries in it, where there are two levels.
    two_level: Option<(u64, u64)>,
    /// Devices that there is place for.
    devices: u64,
}

impl DeviceTable {
    /// Makes sure that the ITS has memory for a device. `unit`: its name.
    pub(super) fn provide<M: DmaMemory>(
        &self,
        memory: &TableMemory<M>,
        device: u32,
        unit: &str,
    ) -> Result<(), Refusal> {
        let device = u64::from(device);
        if device >= self.devices {
            return Err(Refusal::new(
                format!("DeviceID {device:#x}"),
                format!("{unit} has place for {:#x} devices", self.devices),
                "share a device with a lower DeviceID",
            ));
        }
        let Some((page, entries)) = self.two_level else {
            return Ok(());
        };
        let index = (device / entries) as usize;
        if memory.read(self.start, index) & VALID == 0 {
            let second = memory.alloc((page / PAGE_SIZE) as usize, "ITS device table")?;
            memory.write(self.start, index, VALID | second.0);
        }
        Ok(())
    }

    /// In words.
    pub(super) const fn levels(&self) -> &'static str {
        match self.two_level {
            None => "one-level device table",
            Some(_) => "two-level device table",
        }
    }
}

/// Size and form of a table.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// GITS_BASER.Page_Size.
    code: u64,
    /// The same in bytes.
    page: u64,
    /// Number of pages: of the first level, where there are two.
    pages: u64,
    two_level: bool,
    /// Entries that there is place for.
    entries: u64,
}

/// Gives an ITS that is off and quiet the memory for all its tables. Returns the device table.
pub(super) fn install<R: Registers, M: DmaMemory>(
    registers: &R,
    memory: &TableMemory<M>,
    typer: Typer,
    collections: u64,
) -> Result<DeviceTable, Refusal> {
    let mut devices = None;
    let mut collections_held = typer.held_collections();
    for index in 0..gits::BASERS {
        let offset = gits::BASER + index * size_of::<u64>();
        let (kind, entry) = table(registers.read64(offset));
        let (wanted, what) = match kind {
            TableKind::Absent => continue,
            TableKind::Devices => (1 << typer.device_bits(), "ITS device table"),
            TableKind::Collections => (collections, "ITS collection table"),
            TableKind::Other => (1, "ITS table"),
        };
        let two_level = matches!(kind, TableKind::Devices);
        let form = form(registers, offset, wanted, entry, two_level).ok_or_else(|| {
            Refusal::new(
                what,
                format!("GITS_BASER{index} takes no size of page"),
                "report this with the name of the machine",
            )
        })?;
        let start = memory.alloc((form.pages * form.page / PAGE_SIZE) as usize, what)?;
        give(registers, offset, form, start)
            .map_err(|why| Refusal::new(what, why, "report this with the name of the machine"))?;
        match kind {
            TableKind::Devices => {
                devices = Some(DeviceTable {
                    start,
                    two_level: form.two_level.then_some((form.page, form.page / entry)),
                    devices: form.entries,
                });
            }
            TableKind::Collections => collections_held = collections_held.max(form.entries),
            TableKind::Absent | TableKind::Other => {}
        }
    }
    let devices = devices.filter(|_| collections_held >= collections);
    devices.ok_or_else(|| {
        Refusal::new(
            "ITS tables",
            format!("no device table, or place for {collections_held} of {collections} processors"),
            "use a machine whose ITS says what tables it needs (GITS_BASER)",
        )
    })
}

/// The form with the smallest page that the register takes and that so many entries fit into; with the largest
/// where none does. Each bit that may be fixed is tried.
fn form<R: Registers>(
    registers: &R,
    offset: usize,
    wanted: u64,
    entry: u64,
    may_have_levels: bool,
) -> Option<Form> {
    let mut best = None;
    for (code, page) in PAGE_SIZES {
        let levels = may_have_levels && wanted * entry > page;
        let indirect = if levels { gits::INDIRECT } else { 0 };
        registers.write64(offset, indirect | code << gits::PAGE_SIZE_SHIFT);
        let kept = registers.read64(offset);
        if (kept & gits::PAGE_SIZE) >> gits::PAGE_SIZE_SHIFT != code {
            continue;
        }
        let two_level = kept & gits::INDIRECT != 0;
        let (unit, per_unit) = if two_level { (FIRST_LEVEL_ENTRY, page / entry) } else { (entry, 1) };
        let needed = (wanted.div_ceil(per_unit) * unit).div_ceil(page);
        let pages = needed.min(gits::PAGES_MAX);
        best =
            Some(Form { code, page, pages, two_level, entries: wanted.min(pages * page / unit * per_unit) });
        if needed <= gits::PAGES_MAX {
            break;
        }
    }
    best
}

/// Writes a table's register. On an error says why the ITS does not have it.
fn give<R: Registers>(registers: &R, offset: usize, form: Form, start: HostPhys) -> Result<(), &'static str> {
    let end = start.checked_add(form.pages * form.page);
    if end.is_none_or(|end| end.0 > ADDRESS_END) {
        return Err("its memory lies above 256 TiB");
    }
    let indirect = if form.two_level { gits::INDIRECT } else { 0 };
    let value = gits::VALID | indirect | form.code << gits::PAGE_SIZE_SHIFT | (form.pages - 1) | start.0;
    ITS.write(registers, offset, value);
    let told = gits::VALID | gits::INDIRECT | gits::PAGE_SIZE | gits::SIZE | gits::ADDRESS;
    if registers.read64(offset) & told != value {
        return Err("GITS_BASER does not keep what is written to it");
    }
    Ok(())
}
