// SPDX-License-Identifier: MIT OR Apache-2.0
//! The IORT: which SMMUs there are, and what a requester is called on its way through them.
//!
//! **Principle.** A requester starts at the root complex of its segment. The identifier mappings of that node
//! give its StreamID at an SMMU; the mappings of the SMMU give the DeviceID at an ITS group. A root complex
//! may also lead straight to an ITS, past every SMMU. The way has two steps at most, so no table can make
//! the parser walk in circles.
//!
//! The bytes come from firmware, so nothing here panics on any of them: a node that does not fit ends in a
//! refusal that names its offset, one of an unknown type is passed over.
//! Source: Arm I/O Remapping Table, platform design document (DEN0049).

use alloc::format;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE, Requester};
use pasidon_kernel::base::refusal::Refusal;

use crate::acpi::{self, Bytes};

/// ACPI signature.
const SIGNATURE: &str = "IORT";
/// Offset of the number of nodes.
const NODE_COUNT: usize = 36;
/// Offset of the offset of the first node.
const NODES: usize = 40;
/// Bytes before the first node.
const HEADER: usize = 48;
/// Bytes of a node before what its type defines.
const NODE_HEADER: usize = 16;
/// Bytes of an identifier mapping.
const MAPPING: usize = 20;
/// Mapping flag: one output identifier whatever comes in.
const MAPPING_SINGLE: u32 = 1 << 0;
/// SMMUv3 flag: table walks and queues are coherent, whatever IDR0.COHACC says.
const FLAG_COHACC_OVERRIDE: u32 = 1 << 0;
/// Root complex, ATS attribute: the root complex takes part in ATS.
const ATS_SUPPORTED: u32 = 1 << 0;
/// Bytes of a memory range of an RMR node.
const MEMORY_RANGE: usize = 20;

/// Node types.
mod kind {
    pub const ITS_GROUP: u8 = 0;
    pub const ROOT_COMPLEX: u8 = 2;
    pub const SMMU: u8 = 3;
    pub const SMMUV3: u8 = 4;
    pub const RESERVED_MEMORY: u8 = 6;
}

/// What the table says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Iort {
    /// The SMMUv3 units, in the order of the table.
    pub units: Vec<SmmuNode>,
    /// The groups of interrupt translation services.
    pub its_groups: Vec<ItsGroup>,
    /// The PCI root complexes.
    pub root_complexes: Vec<RootComplex>,
    /// Memory that devices may be using on behalf of the firmware (RMR).
    pub reserved: Vec<ReservedMemory>,
    /// How many SMMUs of the older architectures (1 and 2) there are, which this driver does not drive.
    pub older_units: usize,
}

/// An SMMUv3.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SmmuNode {
    /// Where its registers are: two windows of 64 KiB.
    pub registers: HostPhys,
    /// It snoops the processors' caches though IDR0.COHACC says that it does not.
    pub coherent_override: bool,
    /// Its interrupts.
    pub interrupts: Gsivs,
    mappings: Vec<Mapping>,
}

/// Global system interrupts of an SMMU; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gsivs {
    /// The event queue is no longer empty.
    pub event: u32,
    /// The page request queue is no longer empty.
    pub page_request: u32,
    /// Global errors.
    pub global_error: u32,
    /// A CMD_SYNC is done.
    pub sync: u32,
}

/// Interrupt translation services that a device may write to alike.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ItsGroup {
    /// Their identifiers, as the MADT has them.
    pub identifiers: Vec<u32>,
}

/// A PCI root complex.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RootComplex {
    /// PCI segment.
    pub segment: u16,
    /// It takes part in ATS.
    pub ats: bool,
    mappings: Vec<Mapping>,
}

/// Memory that streams may be using on behalf of the firmware.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReservedMemory {
    /// Base address and length in bytes of each range.
    pub ranges: Vec<(HostPhys, u64)>,
    mappings: Vec<Mapping>,
}

impl ReservedMemory {
    /// Whether a stream of a unit is one of those that use it.
    pub fn concerns(&self, stream: Stream) -> bool {
        self.mappings.iter().any(|mapping| {
            mapping.to == Target::Unit(stream.unit)
                && (mapping.output..=mapping.output.saturating_add(mapping.length_less_one()))
                    .contains(&stream.id)
        })
    }
}

/// What a device's requests are called at an SMMU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stream {
    /// Index in [`Iort::units`].
    pub unit: usize,
    /// StreamID.
    pub id: u32,
}

/// What a device's interrupt messages are called at an ITS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MessageSource {
    /// Index in [`Iort::its_groups`].
    pub group: usize,
    /// DeviceID.
    pub device: u32,
}

/// Where a mapping leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Unit(usize),
    Its(usize),
    /// A node that says nothing here.
    Other,
}

/// A range of identifiers, given other numbers at another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mapping {
    first: u32,
    /// Last identifier that comes in.
    last: u32,
    output: u32,
    to: Target,
    single: bool,
}

impl Mapping {
    fn length_less_one(self) -> u32 {
        self.last - self.first
    }

    fn apply(&self, id: u32) -> Option<u32> {
        if self.single {
            return Some(self.output);
        }
        (self.first..=self.last).contains(&id).then(|| self.output.checked_add(id - self.first))?
    }
}

impl Iort {
    /// The StreamID of a requester, and at which unit; `None` where no SMMU is on its way, so that nothing
    /// could contain it.
    pub fn stream(&self, requester: Requester) -> Option<Stream> {
        self.step(requester).find_map(|(target, id)| match target {
            Target::Unit(unit) => Some(Stream { unit, id }),
            Target::Its(_) | Target::Other => None,
        })
    }

    /// The DeviceID of a requester, and at which ITS group; `None` where its messages reach none.
    pub fn message_source(&self, requester: Requester) -> Option<MessageSource> {
        if let Some(stream) = self.stream(requester) {
            // A single mapping of an SMMU is for the interrupts of the SMMU itself.
            let mappings = &self.units.get(stream.unit)?.mappings;
            let mapped =
                mappings.iter().filter(|mapping| !mapping.single).find_map(|mapping| match mapping.to {
                    Target::Its(group) => {
                        mapping.apply(stream.id).map(|device| MessageSource { group, device })
                    }
                    Target::Unit(_) | Target::Other => None,
                });
            if mapped.is_some() {
                return mapped;
            }
        }
        self.step(requester).find_map(|(target, device)| match target {
            Target::Its(group) => Some(MessageSource { group, device }),
            Target::Unit(_) | Target::Other => None,
        })
    }

    /// Who a stream is: the requester that has it. A PCI function has one StreamID, so the first found is
    /// the only one in a table that is right.
    pub fn requester(&self, stream: Stream) -> Option<Requester> {
        self.root_complexes.iter().find_map(|root| {
            root.mappings.iter().find_map(|mapping| {
                let offset = stream.id.checked_sub(mapping.output)?;
                if mapping.to != Target::Unit(stream.unit)
                    || mapping.single
                    || offset > mapping.length_less_one()
                {
                    return None;
                }
                Some(Requester { segment: root.segment, rid: u16::try_from(mapping.first + offset).ok()? })
            })
        })
    }

    /// The highest StreamID that a root complex can send to a unit.
    pub fn highest_stream(&self, unit: usize) -> u32 {
        self.root_complexes
            .iter()
            .flat_map(|root| &root.mappings)
            .filter(|mapping| mapping.to == Target::Unit(unit))
            .map(|mapping| mapping.output.saturating_add(mapping.length_less_one()))
            .max()
            .unwrap_or(0)
    }

    /// Whether the root complex of a segment takes part in ATS.
    pub fn ats(&self, segment: u16) -> bool {
        self.root_complexes.iter().any(|root| root.segment == segment && root.ats)
    }

    /// Where the mappings of the root complexes of a requester's segment lead it.
    fn step(&self, requester: Requester) -> impl Iterator<Item = (Target, u32)> {
        self.root_complexes
            .iter()
            .filter(move |root| root.segment == requester.segment)
            .flat_map(|root| &root.mappings)
            .filter_map(move |mapping| Some((mapping.to, mapping.apply(requester.rid.into())?)))
    }
}

/// Reads the table from its first byte (the ACPI header) on.
///
/// # Errors
/// When a length or a reference in it is wrong, or it is another table.
pub fn parse(bytes: &[u8]) -> Result<Iort, Refusal> {
    let table = acpi::table(bytes, SIGNATURE, HEADER)?;
    let nodes = nodes(table)?;
    let targets = targets(&nodes);
    let mut iort = Iort::default();
    for node in &nodes {
        iort.add(node, &targets).ok_or_else(|| broken(node.at))?;
    }
    Ok(iort)
}

/// A node, not yet read.
struct Node<'a> {
    at: usize,
    kind: u8,
    bytes: Bytes<'a>,
}

/// All nodes. There are no more than fit into the table, whatever the header says.
fn nodes(table: Bytes<'_>) -> Result<Vec<Node<'_>>, Refusal> {
    let count = table.u32(NODE_COUNT).unwrap_or(0);
    let mut at = table.u32(NODES).unwrap_or(0) as usize;
    let mut nodes = Vec::new();
    for _ in 0..count {
        let node = node(table, at).ok_or_else(|| broken(at))?;
        at += node.bytes.0.len();
        nodes.push(node);
    }
    Ok(nodes)
}

fn node(table: Bytes<'_>, at: usize) -> Option<Node<'_>> {
    let kind = table.u8(at)?;
    let len = usize::from(table.u16(at + 1)?);
    let bytes = table.part(at, len)?;
    (at >= HEADER && len >= NODE_HEADER).then_some(Node { at, kind, bytes })
}

/// What each node offset stands for, by ascending offset.
fn targets(nodes: &[Node<'_>]) -> Vec<(usize, Target)> {
    let (mut units, mut groups) = (0, 0);
    let next = |counter: &mut usize| {
        *counter += 1;
        *counter - 1
    };
    nodes
        .iter()
        .map(|node| {
            let target = match node.kind {
                kind::SMMUV3 => Target::Unit(next(&mut units)),
                kind::ITS_GROUP => Target::Its(next(&mut groups)),
                _ => Target::Other,
            };
            (node.at, target)
        })
        .collect()
}

impl Iort {
    /// Adds one node; `None` where it is too short for what it says.
    fn add(&mut self, node: &Node<'_>, targets: &[(usize, Target)]) -> Option<()> {
        let bytes = node.bytes;
        match node.kind {
            kind::ITS_GROUP => {
                let count = bytes.u32(16)? as usize;
                let list = bytes.part(20, count.checked_mul(4)?)?;
                let identifiers = (0..count).map(|at| list.u32(at * 4));
                self.its_groups.push(ItsGroup { identifiers: identifiers.collect::<Option<_>>()? });
            }
            kind::ROOT_COMPLEX => self.root_complexes.push(RootComplex {
                segment: u16::try_from(bytes.u32(28)?).ok()?,
                ats: bytes.u32(24)? & ATS_SUPPORTED != 0,
                mappings: mappings(bytes, targets)?,
            }),
            kind::SMMU => self.older_units += 1,
            kind::SMMUV3 => {
                let registers = HostPhys(bytes.u64(16)?);
                if registers.0 == 0 || !registers.is_aligned(PAGE_SIZE) {
                    return None;
                }
                self.units.push(SmmuNode {
                    registers,
                    coherent_override: bytes.u32(24)? & FLAG_COHACC_OVERRIDE != 0,
                    interrupts: Gsivs {
                        event: bytes.u32(44)?,
                        page_request: bytes.u32(48)?,
                        global_error: bytes.u32(52)?,
                        sync: bytes.u32(56)?,
                    },
                    mappings: mappings(bytes, targets)?,
                });
            }
            kind::RESERVED_MEMORY => {
                let count = bytes.u32(20)? as usize;
                let list = bytes.part(bytes.u32(24)? as usize, count.checked_mul(MEMORY_RANGE)?)?;
                let ranges = (0..count).map(|at| {
                    let at = at * MEMORY_RANGE;
                    Some((HostPhys(list.u64(at)?), list.u64(at + 8)?))
                });
                self.reserved.push(ReservedMemory {
                    ranges: ranges.collect::<Option<_>>()?,
                    mappings: mappings(bytes, targets)?,
                });
            }
            // Named components, performance counters and what is newer say nothing about PCI devices.
            _ => {}
        }
        Some(())
    }
}

/// The identifier mappings of a node.
fn mappings(node: Bytes<'_>, targets: &[(usize, Target)]) -> Option<Vec<Mapping>> {
    let count = node.u32(8)? as usize;
    if count == 0 {
        return Some(Vec::new());
    }
    let list = node.part(node.u32(12)? as usize, count.checked_mul(MAPPING)?)?;
    (0..count)
        .map(|at| {
            let mapping = list.part(at * MAPPING, MAPPING)?;
            let first = mapping.u32(0)?;
            let reference = mapping.u32(12)? as usize;
            // A reference to the middle of a node is as wrong as one past the table.
            let found = targets.binary_search_by_key(&reference, |&(at, _)| at).ok()?;
            Some(Mapping {
                first,
                last: first.checked_add(mapping.u32(4)?)?,
                output: mapping.u32(8)?,
                to: targets.get(found)?.1,
                single: mapping.u32(16)? & MAPPING_SINGLE != 0,
            })
        })
        .collect()
}

fn broken(at: usize) -> Refusal {
    acpi::malformed(SIGNATURE, format!("the node at offset {at} does not fit"))
}

#[cfg(test)]
pub(crate) mod tests;
