// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trees that can be changed before they are written, and what became of them.

use super::*;
use vm_fdt::FdtWriter;

pub(super) const GIC: u32 = 0x8003;
pub(super) const ITS_PHANDLE: u32 = 0x8004;
pub(super) const SMMU: u32 = 0x8005;
pub(super) const SPI: u32 = 0;
pub(super) const PPI: u32 = 1;
pub(super) const EDGE: u32 = 1;
pub(super) const LEVEL: u32 = 4;

/// A node that can be changed before it is written.
#[derive(Clone)]
pub(super) struct Sketch {
    pub(super) name: &'static str,
    pub(super) properties: Vec<(&'static str, Vec<u8>)>,
    pub(super) nodes: Vec<Sketch>,
}

pub(super) fn node<const N: usize>(
    name: &'static str,
    properties: [(&'static str, Vec<u8>); N],
    nodes: Vec<Sketch>,
) -> Sketch {
    Sketch { name, properties: properties.to_vec(), nodes }
}

pub(super) fn cells(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

pub(super) fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// Addresses and lengths, two cells each.
pub(super) fn places(places: &[u64]) -> Vec<u8> {
    places.iter().flat_map(|place| place.to_be_bytes()).collect()
}

impl Sketch {
    pub(super) fn at(&mut self, path: &str) -> &mut Sketch {
        path.split('/').filter(|name| !name.is_empty()).fold(self, |node, name| {
            let found = node.nodes.iter_mut().find(|child| child.name == name);
            found.unwrap_or_else(|| panic!("no {name}"))
        })
    }

    /// Gives a node at a path that property instead of what it had.
    pub(super) fn set(mut self, path: &str, name: &'static str, value: Vec<u8>) -> Self {
        let node = self.at(path);
        node.properties.retain(|(known, _)| *known != name);
        node.properties.push((name, value));
        self
    }

    pub(super) fn without_property(mut self, path: &str, name: &str) -> Self {
        self.at(path).properties.retain(|(known, _)| *known != name);
        self
    }

    /// Leaves out a node of the root's.
    pub(super) fn without(mut self, name: &str) -> Self {
        let before = self.nodes.len();
        self.nodes.retain(|node| node.name != name);
        assert!(self.nodes.len() < before, "no {name}");
        self
    }

    pub(super) fn disabled(self, path: &str) -> Self {
        self.set(path, "status", text("disabled"))
    }

    fn write(&self, to: &mut FdtWriter) {
        let open = to.begin_node(self.name).unwrap();
        for (name, value) in &self.properties {
            to.property(name, value).unwrap();
        }
        self.nodes.iter().for_each(|node| node.write(to));
        to.end_node(open).unwrap();
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut writer = FdtWriter::new().unwrap();
        self.write(&mut writer);
        writer.finish().unwrap()
    }

    pub(super) fn tables(&self) -> Tables {
        Tables(tables(&self.bytes()))
    }
}

pub(super) struct Tables(pub(super) Translated);

impl Tables {
    pub(super) fn get(&self, wanted: &str) -> Option<&[u8]> {
        let found = self.0.tables.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, table)| table.as_slice())
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.0.tables.iter().map(|(name, _)| *name).collect()
    }

    /// The only refusal, in words, with the table that it costs missing.
    pub(super) fn refusal(&self, table: &str) -> String {
        assert_eq!(self.get(table), None);
        let [refusal] = self.0.refused.as_slice() else {
            panic!("{:?}", self.0.refused);
        };
        refusal.to_string()
    }

    pub(super) fn iort(&self) -> Iort {
        iort::parse(self.get("IORT").unwrap()).unwrap()
    }

    pub(super) fn madt(&self) -> firmware_tables::Madt {
        firmware_tables::madt(self.get("MADT").unwrap())
    }
}

/// What QEMU says of `virt,virtualization=on,gic-version=3,iommu=smmuv3` with two processors.
pub(super) fn virt() -> Sketch {
    let cpu = |name, number| {
        node(
            name,
            [("device_type", text("cpu")), ("enable-method", text("psci")), ("reg", cells(&[number]))],
            vec![],
        )
    };
    let its = node(
        "its@8080000",
        [
            ("phandle", cells(&[ITS_PHANDLE])),
            ("reg", places(&[0x808_0000, 0x2_0000])),
            ("#msi-cells", cells(&[1])),
            ("compatible", text("arm,gic-v3-its")),
        ],
        vec![],
    );
    let nodes = vec![
        node(
            "psci",
            [("method", text("smc")), ("compatible", text("arm,psci-1.0\0arm,psci-0.2\0arm,psci"))],
            vec![],
        ),
        node(
            "smmuv3@9050000",
            [
                ("phandle", cells(&[SMMU])),
                ("#iommu-cells", cells(&[1])),
                ("dma-coherent", vec![]),
                ("interrupt-names", text("eventq\0priq\0cmdq-sync\0gerror")),
                ("interrupts", cells(&[SPI, 0x4a, EDGE, SPI, 0x4b, EDGE, SPI, 0x4c, EDGE, SPI, 0x4d, EDGE])),
                ("reg", places(&[0x905_0000, 0x2_0000])),
                ("compatible", text("arm,smmu-v3")),
            ],
            vec![],
        ),
        node(
            "pcie@10000000",
            [
                ("iommu-map", cells(&[0, SMMU, 0, 0x1_0000])),
                ("msi-map", cells(&[0, ITS_PHANDLE, 0, 0x1_0000])),
                ("reg", places(&[0x40_1000_0000, 0x1000_0000])),
                ("dma-coherent", vec![]),
                ("bus-range", cells(&[0, 0xff])),
                ("linux,pci-domain", cells(&[0])),
                ("#size-cells", cells(&[2])),
                ("#address-cells", cells(&[3])),
                ("compatible", text("pci-host-ecam-generic")),
            ],
            vec![],
        ),
        node(
            "pl011@9000000",
            [
                ("interrupts", cells(&[SPI, 1, LEVEL])),
                ("reg", places(&[0x900_0000, 0x1000])),
                ("compatible", text("arm,pl011\0arm,primecell")),
            ],
            vec![],
        ),
        node(
            "intc@8000000",
            [
                ("phandle", cells(&[GIC])),
                ("interrupts", cells(&[PPI, 9, LEVEL])),
                ("reg", places(&[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000])),
                ("#redistributor-regions", cells(&[1])),
                ("compatible", text("arm,gic-v3")),
                ("ranges", vec![]),
                ("#size-cells", cells(&[2])),
                ("#address-cells", cells(&[2])),
                ("#interrupt-cells", cells(&[3])),
            ],
            vec![its],
        ),
        node(
            "cpus",
            [("#size-cells", cells(&[0])), ("#address-cells", cells(&[1]))],
            vec![cpu("cpu@0", 0), cpu("cpu@1", 1)],
        ),
        node(
            "timer",
            [
                (
                    "interrupts",
                    cells(&[PPI, 13, LEVEL, PPI, 14, LEVEL, PPI, 11, LEVEL, PPI, 10, LEVEL, PPI, 12, LEVEL]),
                ),
                ("always-on", vec![]),
                ("compatible", text("arm,armv8-timer\0arm,armv7-timer")),
            ],
            vec![],
        ),
        node("aliases", [("serial0", text("/pl011@9000000"))], vec![]),
        node("chosen", [("stdout-path", text("/pl011@9000000"))], vec![]),
    ];
    node(
        "",
        [
            ("interrupt-parent", cells(&[GIC])),
            ("#size-cells", cells(&[2])),
            ("#address-cells", cells(&[2])),
            ("compatible", text("linux,dummy-virt")),
        ],
        nodes,
    )
}
