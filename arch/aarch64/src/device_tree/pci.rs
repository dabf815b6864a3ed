// SPDX-License-Identifier: MIT OR Apache-2.0
//! PCI hosts and what is between their devices and memory: MCFG and IORT.
//!
//! **Principle.** A tree gives a requester two numbers, by two maps from its requester ID: what it is called at an SMMU,
//! and what at an ITS. An IORT says the second by the first: the root complex leads to the SMMU, and the SMMU on to the
//! ITS. Where both maps have a requester, the SMMU gets the one step that makes the two the same; where there is no
//! SMMU on the way, the root complex leads to the ITS itself.
//!
//! Source: Linux `Documentation/devicetree/bindings/pci`: `pci-iommu`, `pci-msi`, `host-generic-pci`; Arm I/O Remapping
//! Table (DEN0049), issue D.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use acpi_tables::mcfg::MCFG;
use pasidon_kernel::base::refusal::Refusal;

use super::tree::{Cells, Tree};
use super::{ITS, MOST, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Written, few, halves, serialize, table, words};
use pasidon_arch_common::firmware_tables::HEADER;

/// PCI hosts with configuration space as MCFG describes it.
const ECAM: &[&str] = &["pci-host-ecam-generic"];
const SMMU_V3: &[&str] = &["arm,smmu-v3"];
/// Requester IDs of a segment.
const REQUESTERS: u32 = 0x1_0000;

/// A PCI host.
struct Host {
    node: usize,
    segment: u16,
    /// To SMMUs.
    iommu: Vec<Entry>,
    /// To interrupt translation services.
    msi: Vec<Entry>,
}

/// An entry of a map: requester IDs, and the numbers from `output` on that they are called.
#[derive(Clone, Copy)]
struct Entry {
    first: u32,
    end: u32,
    /// Index among the units of that kind.
    target: usize,
    output: u32,
}

impl Entry {
    /// What the requester is called.
    fn of(&self, requester: u32) -> u32 {
        self.output + (requester - self.first)
    }
}

/// The hosts, and their segments: those that they state, or else their numbers.
fn hosts(tree: &Tree<'_>) -> Result<Vec<(usize, u16)>, Refusal> {
    let nodes = few(tree, ECAM)?;
    let hosts = nodes.into_iter().enumerate().map(|(number, node)| {
        let stated = tree.cell(node, "linux,pci-domain");
        let segment = u16::try_from(stated.unwrap_or(number as u32));
        let segment = segment.map_err(|_| tree.refuse(node, "its linux,pci-domain is no PCI segment"))?;
        Ok((node, segment))
    });
    hosts.collect()
}

/// Configuration space.
pub(super) fn mcfg(tree: &Tree<'_>) -> Written {
    const BUS_SHIFT: u32 = 20;
    let hosts = hosts(tree)?;
    if hosts.is_empty() {
        return Ok(None);
    }
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for (node, segment) in hosts {
        let Some((start, length)) = tree.reg(node, 0)? else {
            continue;
        };
        let mut buses = Cells(tree.property(node, "bus-range").unwrap_or(&[0, 0, 0, 0, 0, 0, 0, 0xff]));
        let bounds = (buses.take(1), buses.take(1), length >> BUS_SHIFT);
        let (Some(first @ 0..=0xff), Some(last), 1..) = bounds else {
            return Err(tree.refuse(node, "its bus-range and the length of its reg are no range of buses"));
        };
        let reach = first.saturating_add(length >> BUS_SHIFT) - 1;
        // The tree names the place of the first bus, the table that of bus 0.
        let base = start.checked_sub(first << BUS_SHIFT);
        let base = base.ok_or_else(|| tree.refuse(node, "bus 0 would lie before address 0"))?;
        mcfg.add_ecam(base, segment, first as u8, last.min(reach).min(0xff) as u8);
    }
    Ok(Some(serialize(&mcfg)))
}

/// A map from requester IDs, by the nodes that it may lead to. Entries that lead elsewhere are left out.
fn map(tree: &Tree<'_>, host: usize, name: &str, targets: &[usize]) -> Result<Vec<Entry>, Refusal> {
    let mask = tree.cell(host, &format!("{name}-mask")).unwrap_or(u32::MAX);
    if mask % REQUESTERS != REQUESTERS - 1 {
        return Err(tree.refuse(
            host,
            format!("its {name}-mask {mask:#x} makes functions alike, which an IORT cannot say"),
        ));
    }
    let mut cells = Cells(tree.property(host, name).unwrap_or_default());
    let mut entries = Vec::new();
    while !cells.0.is_empty() {
        let wrong = || tree.refuse(host, format!("its {name} is no list of at most {MOST} ranges"));
        let mut next = || cells.take(1).map(|cell| cell as u32).ok_or_else(wrong);
        let (first, phandle, output, length) = (next()?, next()?, next()?, next()?);
        let end = first.saturating_add(length).min(REQUESTERS);
        let node = tree.by_phandle(phandle);
        let target = targets.iter().position(|target| Some(*target) == node);
        let (Some(target), true) = (target, first < end) else {
            continue;
        };
        if entries.len() == MOST || output.checked_add(end - first).is_none() {
            return Err(wrong());
        }
        entries.push(Entry { first, end, target, output });
    }
    Ok(entries)
}

/// Where a host's interrupt messages go.
fn messages(tree: &Tree<'_>, host: usize, services: &[usize]) -> Result<Vec<Entry>, Refusal> {
    let entries = map(tree, host, "msi-map", services)?;
    if tree.property(host, "msi-map").is_some() {
        return Ok(entries);
    }
    // Without a map a requester keeps its number.
    let parent = tree.property(host, "msi-parent").and_then(|parent| Cells(parent).take(1));
    let parent = parent.and_then(|phandle| tree.by_phandle(phandle as u32));
    let target = services.iter().position(|service| Some(*service) == parent);
    Ok(target.map_or(entries, |target| vec![Entry { first: 0, end: REQUESTERS, target, output: 0 }]))
}

/// The parts of a range that none of the entries has.
fn without(range: Range<u32>, entries: &[Entry]) -> Vec<Range<u32>> {
    entries.iter().fold(vec![range], |parts, entry| {
        let cut = |part: Range<u32>| {
            let before = part.start..part.end.min(entry.first);
            let after = part.start.max(entry.end)..part.end;
            [before, after]
        };
        parts.into_iter().flat_map(cut).filter(|part| !part.is_empty()).collect()
    })
}

/// Node types.
mod kind {
    pub const ITS_GROUP: u8 = 0;
    pub const ROOT_COMPLEX: u8 = 2;
    pub const SMMUV3: u8 = 4;
}

/// Bytes before the first node.
const NODES: usize = HEADER + 12;
/// Bytes of a node before what its type defines.
const NODE_HEADER: usize = 16;

/// A table under construction: its nodes so far.
#[derive(Default)]
struct Nodes {
    bytes: Vec<u8>,
    count: u32,
}

/// An identifier mapping: the first number in, how many, the first number out, and at which node that is.
type Mapping = [u32; 4];

impl Nodes {
    /// Adds a node: what its type defines, and its mappings. Returns where it is.
    fn add(&mut self, kind: u8, revision: u8, body: &[u32], mappings: &[Mapping]) -> Option<u32> {
        let at = NODES + self.bytes.len();
        let reference = NODE_HEADER + 4 * body.len();
        let mut mapped = Vec::new();
        for [first, count, output, node] in mappings {
            mapped.extend([*first, count - 1, *output, *node, 0]);
        }
        let length = u16::try_from(reference + 4 * mapped.len()).ok()?;
        let head = u32::from(kind) | u32::from(length) << 8 | u32::from(revision) << 24;
        let reference = if mappings.is_empty() { 0 } else { reference as u32 };
        let header = [head, self.count, mappings.len() as u32, reference];
        self.bytes.extend(words(&[&header, body, &mapped].concat()));
        self.count += 1;
        u32::try_from(at).ok()
    }
}

/// SMMUs, root complexes, and the groups of interrupt translation services, one each.
pub(super) fn iort(tree: &Tree<'_>) -> Written {
    const REVISION: u8 = 0;
    let services = few(tree, ITS)?;
    let units = few(tree, SMMU_V3)?;
    let mut hosts_with_maps = Vec::new();
    for (node, segment) in hosts(tree)? {
        hosts_with_maps.push(Host {
            node,
            segment,
            iommu: map(tree, node, "iommu-map", &units)?,
            msi: messages(tree, node, &services)?,
        });
    }
    let hosts = hosts_with_maps;
    if hosts.is_empty() && units.is_empty() {
        return Ok(None);
    }
    let mut nodes = Nodes::default();
    let long = |node| tree.refuse(node, "it has more mappings than a node of an IORT can have");
    let mut groups = Vec::new();
    for (id, node) in (0..).zip(&services) {
        let added = nodes.add(kind::ITS_GROUP, 0, &[1, id], &[]);
        groups.push(added.ok_or_else(|| long(*node))?);
    }
    let mut smmus = Vec::new();
    for (unit, node) in units.iter().enumerate() {
        let mappings = onward(unit, &hosts, &groups);
        let added = nodes.add(kind::SMMUV3, 1, &smmu(tree, *node)?, &mappings);
        smmus.push(added.ok_or_else(|| long(*node))?);
    }
    for host in &hosts {
        let added =
            nodes.add(kind::ROOT_COMPLEX, 1, &root_complex(tree, host), &out_of(host, &smmus, &groups));
        added.ok_or_else(|| long(host.node))?;
    }
    let header = words(&[nodes.count, NODES as u32, 0]);
    Ok(Some(table(*b"IORT", REVISION, &[header, nodes.bytes].concat())))
}

/// The mappings of an SMMU: the DeviceIDs of its StreamIDs.
fn onward(unit: usize, hosts: &[Host], groups: &[u32]) -> Vec<Mapping> {
    let mut mappings = Vec::new();
    for host in hosts {
        for stream in host.iommu.iter().filter(|entry| entry.target == unit) {
            for device in &host.msi {
                let (first, end) = (stream.first.max(device.first), stream.end.min(device.end));
                if first < end {
                    mappings.push([stream.of(first), end - first, device.of(first), groups[device.target]]);
                }
            }
        }
    }
    mappings
}

/// The mappings of a root complex: to SMMUs, and what goes past them.
fn out_of(host: &Host, smmus: &[u32], groups: &[u32]) -> Vec<Mapping> {
    let to_smmus = host
        .iommu
        .iter()
        .map(|entry| [entry.first, entry.end - entry.first, entry.output, smmus[entry.target]]);
    let past = host.msi.iter().flat_map(|entry| {
        let parts = without(entry.first..entry.end, &host.iommu);
        parts
            .into_iter()
            .map(|part| [part.start, part.end - part.start, entry.of(part.start), groups[entry.target]])
    });
    to_smmus.chain(past).collect()
}

/// What an SMMU's node says of itself.
fn smmu(tree: &Tree<'_>, node: usize) -> Result<Vec<u32>, Refusal> {
    const COHACC_OVERRIDE: u32 = 1 << 0;
    /// The generic model.
    const MODEL: u32 = 0;
    let Some((base, _)) = tree.reg(node, 0)? else {
        return Err(tree.refuse(node, "it does not say where its registers are"));
    };
    if tree.cell(node, "#iommu-cells") != Some(1) {
        return Err(tree.refuse(node, "its #iommu-cells are not 1"));
    }
    let interrupts = tree.interrupts(node);
    let gsiv = |name: &str| {
        let mut names = tree.strings(node, "interrupt-names");
        let number = names.position(|known| known == name.as_bytes() || known == b"combined");
        let interrupt = number.and_then(|number| interrupts.get(number).copied().flatten());
        interrupt.map_or(0, |interrupt| interrupt.intid)
    };
    let flags = if tree.is_coherent(node) { COHACC_OVERRIDE } else { 0 };
    let body = [
        &halves(base)[..],
        &[flags, 0],
        // No VATOS page.
        &[0, 0],
        &[MODEL, gsiv("eventq"), gsiv("priq"), gsiv("gerror"), gsiv("cmdq-sync")],
        // Neither a proximity domain nor a DeviceID of its own.
        &[0, 0],
    ];
    Ok(body.concat())
}

/// What a root complex's node says of itself.
fn root_complex(tree: &Tree<'_>, host: &Host) -> [u32; 5] {
    const COHERENT: u32 = 1;
    /// Coherent path to memory, and devices' attributes are cacheable and shareable.
    const COHERENT_PATH: u32 = 0b11 << 24;
    const ATS_SUPPORTED: u32 = 1 << 0;
    const ADDRESS_BITS: u32 = 64;
    let [coherent, path] = match tree.is_coherent(host.node) {
        true => [COHERENT, COHERENT_PATH],
        false => [0, 0],
    };
    let ats = tree.property(host.node, "ats-supported").map_or(0, |_| ATS_SUPPORTED);
    [coherent, path, ats, host.segment.into(), ADDRESS_BITS]
}
