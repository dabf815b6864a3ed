// SPDX-License-Identifier: MIT OR Apache-2.0
//! A flattened device tree as nodes with their parents: addresses as the processors see them, interrupts as the
//! GIC numbers them.
//!
//! **Principle.** `dtoolkit` checks the whole tree before the first node is read; what a property says is checked
//! here. What cannot be understood is `None`, an address that does not lead to the root a refusal.
//! **Invariant.** Reading takes time in proportion to the tree's size, whatever is in it: it has no more than
//! [`MAX_DEVICE_TREE`] bytes, is no deeper than [`MAX_DEPTH`], and of what is looked up by something else no more than
//! [`MOST`] are.
//!
//! Source: Devicetree Specification 0.4, 2.2 to 2.4 (properties, interrupts), 5 (format).

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node as _, Property as _};
use pasidon_kernel::base::refusal::Refusal;

use super::MOST;
use pasidon_arch_common::firmware_tables::MAX_DEVICE_TREE;

/// Nodes within nodes.
const MAX_DEPTH: usize = 32;
/// Bytes of a cell.
const CELL: usize = 4;

/// A GICv3 or GICv4.
pub(super) const GIC_V3: &[&str] = &["arm,gic-v3"];
/// A GICv2.
pub(super) const GIC_V2: &[&str] = &["arm,gic-400", "arm,cortex-a15-gic"];

/// The whole tree. Nodes are named by their index, the root's is 0.
pub(super) struct Tree<'a> {
    nodes: Vec<Node<'a>>,
    /// Sorted.
    phandles: Vec<(u32, usize)>,
}

struct Node<'a> {
    node: FdtNode<'a>,
    parent: Option<usize>,
    /// Neither it nor a node above it has another status than "okay".
    enabled: bool,
}

/// An interrupt of the GIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Interrupt {
    pub intid: u32,
    /// An edge raises it, not a level.
    pub edge: bool,
}

impl Interrupt {
    /// By the specifier of a GIC's binding.
    fn new(mut specifier: Cells<'_>) -> Option<Self> {
        const SPI: u64 = 0;
        const PPI: u64 = 1;
        const EDGES: u64 = 0b0011;
        let first = match specifier.take(1)? {
            SPI => 32..1020,
            PPI => 16..32,
            _ => return None,
        };
        let number = u32::try_from(specifier.take(1)?).ok()?;
        let intid = number.checked_add(first.start)?;
        let edge = specifier.take(1)? & EDGES != 0;
        first.contains(&intid).then_some(Self { intid, edge })
    }
}

/// Cells of a property, taken from the front.
#[derive(Clone, Copy, Default)]
pub(super) struct Cells<'a>(pub &'a [u8]);

impl<'a> Cells<'a> {
    fn part(&mut self, cells: usize) -> Option<Self> {
        let (part, rest) = self.0.split_at_checked(cells.checked_mul(CELL)?)?;
        self.0 = rest;
        Some(Self(part))
    }

    /// A number of that many cells; `None` where there are fewer, or the number has more than 64 bits.
    pub fn take(&mut self, cells: usize) -> Option<u64> {
        let bytes = self.part(cells)?.0;
        let (high, low) = bytes.split_at(bytes.len().saturating_sub(2 * CELL));
        let number = low.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        high.iter().all(|byte| *byte == 0).then_some(number)
    }
}

impl<'a> Tree<'a> {
    /// Reads all nodes.
    ///
    /// # Errors
    /// When the bytes are no device tree that keeps to the specification.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let broken = |why: String| Refusal::new("device tree", why, "update the firmware");
        if bytes.len() > MAX_DEVICE_TREE {
            return Err(broken(format!("it has {} bytes, more than {MAX_DEVICE_TREE}", bytes.len())));
        }
        let root = Fdt::new(bytes).map_err(|error| broken(format!("{error}")))?.root();
        let mut nodes = vec![Node { node: root, parent: None, enabled: true }];
        let mut open = vec![(0, root.children())];
        while let Some((parent, children)) = open.last_mut() {
            let parent = *parent;
            let Some(node) = children.next() else {
                open.pop();
                continue;
            };
            if open.len() == MAX_DEPTH {
                return Err(broken(format!("it is deeper than {MAX_DEPTH} nodes")));
            }
            let status = value(&node, "status");
            let okay = status.is_none_or(|status| matches!(status, b"okay\0" | b"ok\0"));
            let enabled = okay && nodes[parent].enabled;
            open.push((nodes.len(), node.children()));
            nodes.push(Node { node, parent: Some(parent), enabled });
        }
        let phandle =
            |(at, node): (usize, &Node<'_>)| Some((Cells(value(&node.node, "phandle")?).take(1)? as u32, at));
        let mut phandles: Vec<_> = nodes.iter().enumerate().filter_map(phandle).collect();
        phandles.sort_unstable();
        Ok(Self { nodes, phandles })
    }

    /// The value of a property.
    pub fn property(&self, node: usize, name: &str) -> Option<&'a [u8]> {
        value(&self.nodes[node].node, name)
    }

    /// The value of a property that is one cell.
    pub fn cell(&self, node: usize, name: &str) -> Option<u32> {
        let value = self.property(node, name)?;
        value.try_into().ok().map(u32::from_be_bytes)
    }

    /// The strings of a property.
    pub fn strings(&self, node: usize, name: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let list = self.property(node, name).unwrap_or_default();
        list.strip_suffix(b"\0").into_iter().flat_map(|list| list.split(|byte| *byte == 0))
    }

    /// Whether the node is one of those, by its property `compatible`.
    pub fn is(&self, node: usize, compatible: &[&str]) -> bool {
        self.strings(node, "compatible")
            .any(|string| compatible.iter().any(|wanted| wanted.as_bytes() == string))
    }

    /// The enabled nodes that are one of those, in the tree's order.
    pub fn all(&self, compatible: &[&str]) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].enabled && self.is(*node, compatible))
    }

    /// Whether the node is in use.
    pub fn is_enabled(&self, node: usize) -> bool {
        self.nodes[node].enabled
    }

    /// The nodes within a node, in use or not.
    pub fn children(&self, node: usize) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(move |child| self.nodes[*child].parent == Some(node))
    }

    /// The node and those that it is in, up to the root.
    fn line(&self, node: usize) -> impl Iterator<Item = usize> {
        core::iter::successors(Some(node), |node| self.nodes[*node].parent)
    }

    /// The node that a phandle refers to.
    pub fn by_phandle(&self, phandle: u32) -> Option<usize> {
        let found = self.phandles.partition_point(|(known, _)| *known < phandle);
        let (known, node) = *self.phandles.get(found)?;
        (known == phandle).then_some(node)
    }

    /// The node at a path from the root on. Unit addresses may be left out.
    pub fn by_path(&self, path: &str) -> Option<usize> {
        let names = path.strip_prefix('/')?.split('/').filter(|name| !name.is_empty());
        let mut node = 0;
        for wanted in names {
            node = self.children(node).find(|child| {
                let name = self.nodes[*child].node.name();
                name == wanted || name.split('@').next() == Some(wanted)
            })?;
        }
        Some(node)
    }

    /// A refusal of what a node says.
    pub fn refuse(&self, node: usize, why: impl Into<String>) -> Refusal {
        let names: Vec<&str> = self.line(node).map(|node| self.nodes[node].node.name()).collect();
        let path: Vec<&str> = names.into_iter().rev().collect();
        Refusal::new(format!("device tree: {}", path.join("/")), why, "update the firmware")
    }

    /// Cells of an address and of a size in the properties `reg` of a node's children.
    pub fn cells(&self, node: usize) -> (usize, usize) {
        let cells = |name, default| self.cell(node, name).unwrap_or(default) as usize;
        (cells("#address-cells", 2), cells("#size-cells", 1))
    }

    /// The entry of the property `reg` with that number: a physical address and a length. `None` where there are
    /// fewer.
    ///
    /// # Errors
    /// When no path of ranges leads from it to the root.
    pub fn reg(&self, node: usize, number: usize) -> Result<Option<(u64, u64)>, Refusal> {
        let entry = || {
            let bus = self.nodes[node].parent?;
            let (address_cells, size_cells) = self.cells(bus);
            let mut cells = Cells(self.property(node, "reg")?);
            // Without an address the entries would have no length to skip.
            let before = number.checked_mul(address_cells.checked_add(size_cells)?)?;
            cells.part(before).filter(|_| address_cells > 0)?;
            Some((bus, cells.take(address_cells)?, cells.take(size_cells)?))
        };
        let Some((bus, address, length)) = entry() else {
            return Ok(None);
        };
        Ok(Some((self.to_root(bus, address, length)?, length)))
    }

    /// Where the children's addresses on a bus lie in memory.
    fn to_root(&self, bus: usize, address: u64, length: u64) -> Result<u64, Refusal> {
        let mut address = address;
        for bus in self.line(bus) {
            let Some(above) = self.nodes[bus].parent else {
                break;
            };
            let ranges = self.property(bus, "ranges");
            let ranges = ranges.ok_or_else(|| self.refuse(bus, "it has no ranges, but devices in memory"))?;
            if !ranges.is_empty() {
                let cells = [self.cells(bus).0, self.cells(above).0, self.cells(bus).1];
                let through = translate(Cells(ranges), cells, address, length);
                address = through.ok_or_else(|| {
                    self.refuse(bus, format!("its ranges do not have {address:#x}, where a device is"))
                })?;
            }
        }
        Ok(address)
    }

    /// The interrupts of a node, in its order, no more than [`MOST`]; `None` for one that is not the GIC's.
    pub fn interrupts(&self, node: usize) -> Vec<Option<Interrupt>> {
        let extended = self.property(node, "interrupts-extended");
        let plain = self.property(node, "interrupts");
        let inherited = self.interrupt_parent(node);
        let mut cells = Cells(extended.or(plain).unwrap_or_default());
        let mut found = Vec::new();
        while !cells.0.is_empty() && found.len() < MOST {
            let controller = if extended.is_some() {
                cells.take(1).and_then(|phandle| self.by_phandle(phandle as u32))
            } else {
                inherited
            };
            let specifier = controller.and_then(|controller| {
                let count = self.cell(controller, "#interrupt-cells")? as usize;
                Some((controller, cells.part(count).filter(|_| count > 0)?))
            });
            // What follows cannot be told apart any more.
            let Some((controller, specifier)) = specifier else {
                break;
            };
            let gic = self.is(controller, GIC_V3) || self.is(controller, GIC_V2);
            found.push(gic.then(|| Interrupt::new(specifier)).flatten());
        }
        found
    }

    /// The controller that a node's interrupts go to where it names none for each.
    fn interrupt_parent(&self, node: usize) -> Option<usize> {
        self.line(node).find_map(|at| match self.cell(at, "interrupt-parent") {
            Some(phandle) => Some(self.by_phandle(phandle)?),
            None => self.nodes[at].parent.filter(|above| self.cell(*above, "#interrupt-cells").is_some()),
        })
    }

    /// Whether what a device reads and writes is what the processors have in their caches.
    pub fn is_coherent(&self, node: usize) -> bool {
        let said = self.line(node).find_map(|at| {
            let has = |name| self.property(at, name).is_some();
            (has("dma-coherent") || has("dma-noncoherent")).then(|| has("dma-coherent"))
        });
        said.unwrap_or(false)
    }
}

fn value<'a>(node: &FdtNode<'a>, name: &str) -> Option<&'a [u8]> {
    node.property(name)?.value_as::<&'a [u8]>().ok()
}

/// Where an address lies one bus further up, by the ranges of its own: cells of a child address, a parent address and
/// a length.
fn translate(
    mut ranges: Cells<'_>,
    [child, parent, size]: [usize; 3],
    address: u64,
    length: u64,
) -> Option<u64> {
    while !ranges.0.is_empty() && child > 0 {
        let (from, to, reach) = (ranges.take(child)?, ranges.take(parent)?, ranges.take(size)?);
        let Some(offset) = address.checked_sub(from) else {
            continue;
        };
        if offset.checked_add(length).is_some_and(|end| end <= reach) {
            return to.checked_add(offset);
        }
    }
    None
}
