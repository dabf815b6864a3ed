// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device tree, said in ACPI tables: for firmware that offers no others.
//!
//! **Principle.** There is one way to learn about the machine, the tables; here a tree becomes such tables, as bytes,
//! and nobody who reads them can tell. What the tree does not say, its tables do not say, so that the one who misses
//! it refuses in the same words. A table that cannot be written is refused alone.
//! **Invariant.** The bytes come from firmware: nothing panics on any of them. Nodes that are not enabled are not there.
//!
//! Source: Devicetree Specification 0.4; Linux `Documentation/devicetree/bindings`: `interrupt-controller/arm,gic-v3`,
//! `timer/arm,arch_timer`, `arm/psci`, `arm/cpus`, `serial/pl011`, `pci/host-generic-pci`, `pci/pci-iommu`,
//! `pci/pci-msi`, `iommu/arm,smmu-v3`. Of the tables: see [`crate::firmware_tables`].

mod pci;
mod tree;

use alloc::format;
use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{
    EnabledStatus, GicIts, GicVersion, Gicc, Gicd, Gicr, LocalInterruptController, MADT, Trigger,
};
use acpi_tables::sdt::Sdt;
use pasidon_kernel::base::refusal::Refusal;

use pasidon_arch_common::firmware_tables::{HEADER, Translated};
use tree::{Cells, GIC_V2, GIC_V3, Interrupt, Tree};

const OEM_ID: [u8; 6] = *b"PASIDN";
const OEM_TABLE_ID: [u8; 8] = *b"DEVTREE ";
const OEM_REVISION: u32 = 1;
/// How many there can be of a thing, processors aside: no machine has more, and what is made of the tree stays small.
const MOST: usize = 64;
/// Interrupt translation services; the index of each is its ID.
const ITS: &[&str] = &["arm,gic-v3-its"];

/// A table, where the tree has what it would say.
type Written = Result<Option<Vec<u8>>, Refusal>;
/// Writes one.
type Write = fn(&Tree<'_>) -> Written;

/// The tables that say what the tree says. `bytes` are the whole tree, as long as its header says.
pub fn tables(bytes: &[u8]) -> Translated {
    const WRITERS: [(&str, Write); 6] = [
        ("MADT", madt),
        ("MCFG", pci::mcfg),
        ("FADT", fadt),
        ("GTDT", gtdt),
        ("SPCR", spcr),
        ("IORT", pci::iort),
    ];
    let mut translated = Translated::default();
    let tree = match Tree::read(bytes) {
        Ok(tree) => tree,
        Err(refusal) => {
            translated.refused.push(refusal);
            return translated;
        }
    };
    for (name, write) in WRITERS {
        match write(&tree) {
            Ok(table) => translated.tables.extend(table.map(|table| (name, table))),
            Err(refusal) => translated.refused.push(refusal),
        }
    }
    translated
}

/// A whole table: the header, and what follows it.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, HEADER as u32, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

fn serialize(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Fields of four bytes.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The two halves of a field of eight bytes, the lower one first.
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// The enabled nodes of a kind, unless there are too many.
fn few(tree: &Tree<'_>, compatible: &[&str]) -> Result<Vec<usize>, Refusal> {
    let nodes: Vec<usize> = tree.all(compatible).take(MOST + 1).collect();
    match nodes.get(MOST) {
        Some(node) => Err(tree.refuse(*node, format!("there are more than {MOST} of its kind"))),
        None => Ok(nodes),
    }
}

/// Processors and interrupt controllers.
fn madt(tree: &Tree<'_>) -> Written {
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(0));
    let v3 = tree.all(GIC_V3).next();
    let gic = v3.or_else(|| tree.all(GIC_V2).next());
    if let Some(gic) = gic
        && let Some((base, _)) = tree.reg(gic, 0)?
    {
        let version = if v3.is_some() { GicVersion::GICv3 } else { GicVersion::GICv2 };
        madt.add_structure(Gicd::new(0, base, version));
    }
    let maintenance = gic.and_then(|gic| tree.interrupts(gic).first().copied().flatten());
    let processors = processors(tree);
    if gic.is_none() && processors.is_empty() {
        return Ok(None);
    }
    for (number, mpidr) in (0..).zip(processors) {
        let gicc = Gicc::new(EnabledStatus::Enabled)
            .cpu_interface_number(number)
            .acpi_processor_uid(number)
            .mpidr(mpidr);
        madt.add_structure(match maintenance {
            Some(Interrupt { intid, edge: true }) => gicc.maintenance_interrupt(intid, Trigger::Edge),
            Some(Interrupt { intid, edge: false }) => gicc.maintenance_interrupt(intid, Trigger::Level),
            None => gicc,
        });
    }
    if let Some(gic) = v3 {
        for (base, length) in redistributors(tree, gic)? {
            madt.add_structure(Gicr::new(base, u32::try_from(length).unwrap_or(u32::MAX)));
        }
    }
    for (id, its) in (0..).zip(few(tree, ITS)?) {
        if let Some((base, _)) = tree.reg(its, 0)? {
            madt.add_structure(GicIts::new(id, base));
        }
    }
    Ok(Some(serialize(&madt)))
}

/// Affinity fields of the processors that are enabled.
fn processors(tree: &Tree<'_>) -> Vec<u64> {
    /// Affinity fields of MPIDR_EL1.
    const AFFINITY: u64 = 0xff_00ff_ffff;
    let Some(cpus) = tree.by_path("/cpus") else {
        return Vec::new();
    };
    let (cells, _) = tree.cells(cpus);
    tree.children(cpus)
        .filter(|cpu| tree.is_enabled(*cpu) && tree.property(*cpu, "device_type") == Some(b"cpu\0"))
        .filter_map(|cpu| Cells(tree.property(cpu, "reg")?).take(cells))
        .map(|mpidr| mpidr & AFFINITY)
        .collect()
}

/// Where redistributors lie: start and length.
fn redistributors(tree: &Tree<'_>, gic: usize) -> Result<Vec<(u64, u64)>, Refusal> {
    /// Two frames.
    const USUAL_STRIDE: u64 = 0x2_0000;
    let stride = tree.property(gic, "redistributor-stride");
    let stride = stride.and_then(|cells| Cells(cells).take(cells.len() / 4));
    if let Some(stride) = stride.filter(|stride| ![0, USUAL_STRIDE].contains(stride)) {
        return Err(tree.refuse(
            gic,
            format!("redistributors that are {stride:#x} bytes apart are nothing that a MADT can say"),
        ));
    }
    let regions = tree.cell(gic, "#redistributor-regions").unwrap_or(1) as usize;
    if regions > MOST {
        return Err(tree.refuse(gic, format!("there are more than {MOST} redistributor regions")));
    }
    let mut found = Vec::new();
    // The first entry of `reg` is the distributor's.
    for number in 1..=regions {
        let Some(region) = tree.reg(gic, number)? else {
            break;
        };
        found.push(region);
    }
    Ok(found)
}

/// The generic timer.
fn gtdt(tree: &Tree<'_>) -> Written {
    const REVISION: u8 = 3;
    /// Where a table would have the address of a frame in memory.
    const NO_FRAME: u64 = u64::MAX;
    /// By these names, or in this order.
    const TIMERS: [&str; 5] = ["sec-phys", "phys", "virt", "hyp-phys", "hyp-virt"];
    const EDGE: u32 = 1 << 0;
    const ALWAYS_ON: u32 = 1 << 2;
    let Some(timer) = tree.all(&["arm,armv8-timer"]).next() else {
        return Ok(None);
    };
    let interrupts = tree.interrupts(timer);
    let names: Vec<&[u8]> = tree.strings(timer, "interrupt-names").collect();
    let always_on = if tree.property(timer, "always-on").is_some() { ALWAYS_ON } else { 0 };
    let mut place = TIMERS.iter().enumerate().map(|(order, name)| {
        let named = names.iter().position(|known| *known == name.as_bytes());
        let number = if names.is_empty() { Some(order) } else { named };
        match number.and_then(|number| interrupts.get(number).copied().flatten()) {
            Some(Interrupt { intid, edge }) => [intid, always_on | if edge { EDGE } else { 0 }],
            None => [0, 0],
        }
    });
    let mut next = || place.next().unwrap_or_default();
    let [secure, physical, virtual_, el2, el2_virtual] = [next(), next(), next(), next(), next()];
    let body = [
        &halves(NO_FRAME)[..],
        &[0],
        &secure,
        &physical,
        &virtual_,
        &el2,
        &halves(NO_FRAME),
        // No timers in memory.
        &[0, 0],
        &el2_virtual,
    ]
    .concat();
    Ok(Some(table(*b"GTDT", REVISION, &words(&body))))
}

/// PSCI, with the function identifiers that it has had since 0.2.
fn fadt(tree: &Tree<'_>) -> Written {
    const PSCI_COMPLIANT: u16 = 1 << 0;
    const PSCI_USE_HVC: u16 = 1 << 1;
    let psci = tree.all(&["arm,psci-1.0", "arm,psci-0.2"]).next();
    let flags = match psci.and_then(|psci| tree.property(psci, "method")) {
        Some(b"smc\0") => PSCI_COMPLIANT,
        Some(b"hvc\0") => PSCI_COMPLIANT | PSCI_USE_HVC,
        _ => 0,
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION).flag(Flags::HwReducedAcpi);
    fadt.arm_boot_arch = flags.into();
    Ok(Some(serialize(&fadt.finalize())))
}

/// The serial line that the firmware writes to, `stdout-path`.
fn spcr(tree: &Tree<'_>) -> Written {
    const REVISION: u8 = 2;
    const PL011: u8 = 0x03;
    const SBSA: u8 = 0x0e;
    const ARM_GIC: u8 = 1 << 3;
    /// The registers' space, their bits, their first bit, and how they are accessed: four bytes in memory.
    const REGISTERS: [u8; 4] = [0, 32, 0, 3];
    /// The baud rate stays as it is, no parity, one stop bit, no flow control, a terminal that knows colours.
    const LINE: [u8; 6] = [0, 0, 1, 0, 3, 0];
    /// No PCI device.
    const NO_IDS: [u8; 4] = [0xff; 4];
    /// Its place and flags; the clock's frequency, which is not stated.
    const REST: [u8; 12] = [0; 12];
    let Some(uart) = stdout(tree) else { return Ok(None) };
    let kind = match () {
        () if tree.is(uart, &["arm,pl011"]) => PL011,
        () if tree.is(uart, &["arm,sbsa-uart"]) => SBSA,
        () => return Ok(None),
    };
    let Some((base, _)) = tree.reg(uart, 0)? else {
        return Ok(None);
    };
    let interrupt = tree.interrupts(uart).first().copied().flatten();
    let by = if interrupt.is_some() { ARM_GIC } else { 0 };
    let body = [
        &[kind, 0, 0, 0][..],
        &REGISTERS,
        &base.to_le_bytes(),
        &[by, 0],
        &interrupt.map_or(0, |interrupt| interrupt.intid).to_le_bytes(),
        &LINE,
        &NO_IDS,
        &REST,
    ]
    .concat();
    Ok(Some(table(*b"SPCR", REVISION, &body)))
}

/// The node of the firmware's console.
fn stdout(tree: &Tree<'_>) -> Option<usize> {
    let text = |node, name| core::str::from_utf8(tree.strings(node, name).next()?).ok();
    let path = text(tree.by_path("/chosen")?, "stdout-path")?;
    // What follows a colon is about the line's speed.
    let name = path.split(':').next()?;
    let node = match name.starts_with('/') {
        true => tree.by_path(name),
        false => tree.by_path(text(tree.by_path("/aliases")?, name)?),
    };
    node.filter(|node| tree.is_enabled(*node))
}

#[cfg(test)]
mod tests;
