// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tree like that of QEMU's `virt`, read back by those who read the tables; and what it may say otherwise.

mod properties;
mod sketch;

use super::*;
use crate::firmware_tables::{self, Conduit, Ecam, Its, Timers, Uart, mcfg};
use pasidon_drivers::iort::{self, Gsivs, Iort, MessageSource, Stream};
use pasidon_kernel::base::addr::{HostPhys, Requester};
use sketch::*;

fn requester(rid: u16) -> Requester {
    Requester { segment: 0, rid }
}

const UART: Uart = Uart { base: 0x900_0000, interrupt: Some(33) };

/// The values are those of the ACPI tables that the same machine has, where it has that bus: by those tables,
/// requesters of other buses go past the SMMU.
#[test]
fn the_tables_say_what_those_of_the_same_machine_say() {
    let tables = virt().tables();
    assert_eq!(tables.0.refused, []);
    assert_eq!(tables.names(), ["MADT", "MCFG", "FADT", "GTDT", "SPCR", "IORT"]);
    for (name, table) in &tables.0.tables {
        let length = u32::from_le_bytes(table[4..8].try_into().unwrap());
        assert_eq!(length as usize, table.len(), "{name}");
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "{name}");
    }

    let madt = tables.madt();
    let mpidrs: Vec<u64> = madt.processors.iter().map(|processor| processor.mpidr).collect();
    assert_eq!(mpidrs, [0, 1]);
    assert!(madt.processors.iter().all(|gicc| (gicc.maintenance, gicc.redistributor) == (25, 0)));
    assert_eq!(madt.distributor, Some((0x800_0000, 3)));
    assert_eq!(madt.redistributors, [(0x80a_0000, 0xf6_0000)]);
    let its = Its { id: 0, base: 0x808_0000 };
    assert_eq!(madt.its, [its]);
    assert!(!madt.damaged);

    let timers = Timers { virtual_el1: 27, physical_el1: 30, physical_el2: 26 };
    assert_eq!(firmware_tables::gtdt(tables.get("GTDT").unwrap()), Some(timers));
    assert_eq!(firmware_tables::spcr(tables.get("SPCR").unwrap()), Some(UART));
    assert_eq!(firmware_tables::psci(tables.get("FADT").unwrap()), Some(Conduit::Smc));
    let ecam = Ecam { segment: 0, base: 0x40_1000_0000, start: 0, end: 0xff };
    assert_eq!(mcfg(tables.get("MCFG").unwrap()), [ecam]);

    let iort = tables.iort();
    let [unit] = iort.units.as_slice() else { panic!("{iort:?}") };
    assert_eq!(unit.registers, HostPhys(0x905_0000));
    assert!(unit.coherent_override);
    let gsivs = Gsivs { event: 106, page_request: 107, global_error: 109, sync: 108 };
    assert_eq!(unit.interrupts, gsivs);
    assert_eq!(iort.its_groups.len(), 1);
    assert_eq!(iort.its_groups[0].identifiers, [0]);
    for rid in [0, 0x20, 0xffff] {
        let id = rid.into();
        assert_eq!(iort.stream(requester(rid)), Some(Stream { unit: 0, id }));
        let source = MessageSource { group: 0, device: id };
        assert_eq!(iort.message_source(requester(rid)), Some(source));
    }
    assert_eq!(iort.highest_stream(0), 0xffff);
    assert!(!iort.ats(0));
}

#[test]
fn nodes_that_are_not_enabled_are_not_there() {
    let cpu = virt().disabled("/cpus/cpu@1").tables().madt();
    assert_eq!(cpu.processors.len(), 1);
    let its = virt().disabled("/intc@8000000/its@8080000").tables();
    assert_eq!(its.madt().its, []);
    assert_eq!(its.iort().message_source(requester(0)), None);
    // What is within it is not there either.
    let gic = virt().disabled("/intc@8000000").tables().madt();
    assert_eq!((gic.distributor, gic.its.len()), (None, 0));
    let smmu = virt().disabled("/smmuv3@9050000").tables().iort();
    assert_eq!((smmu.units.len(), smmu.stream(requester(0))), (0, None));
    let uart = virt().disabled("/pl011@9000000").tables();
    assert_eq!(uart.names(), ["MADT", "MCFG", "FADT", "GTDT", "IORT"]);
    let host = virt().disabled("/pcie@10000000").tables();
    assert_eq!((host.get("MCFG"), host.iort().root_complexes), (None, vec![]));
    let okay = virt().set("/pl011@9000000", "status", text("okay")).tables();
    assert!(okay.get("SPCR").is_some());
}

#[test]
fn what_the_tree_lacks_the_tables_lack() {
    let gic = virt().without("intc@8000000").tables();
    let madt = gic.madt();
    assert_eq!((madt.distributor, madt.processors.len()), (None, 2));
    assert_eq!(madt.processors[0].maintenance, 0);
    let none = Timers { virtual_el1: 0, physical_el1: 0, physical_el2: 0 };
    // Nobody knows what these interrupts are.
    assert_eq!(firmware_tables::gtdt(gic.get("GTDT").unwrap()), Some(none));
    assert_eq!(virt().without("timer").tables().get("GTDT"), None);
    assert_eq!(virt().without("chosen").tables().get("SPCR"), None);
    let psci = |tree: Sketch| firmware_tables::psci(tree.tables().get("FADT").unwrap());
    assert_eq!(psci(virt().without("psci")), None);
    assert_eq!(psci(virt().set("/psci", "method", text("hvc"))), Some(Conduit::Hvc));
    // Function identifiers of its own.
    assert_eq!(psci(virt().set("/psci", "compatible", text("arm,psci"))), None);
    let v2 = virt().set("/intc@8000000", "compatible", text("arm,gic-400")).tables();
    assert_eq!(v2.madt().distributor, Some((0x800_0000, 2)));
    assert_eq!(v2.madt().redistributors, []);
    let other = virt().set("/pl011@9000000", "compatible", text("ns16550a")).tables();
    assert_eq!(other.get("SPCR"), None);
    let empty = node("", [], vec![]).tables();
    assert_eq!((empty.names(), empty.0.refused.len()), (vec!["FADT"], 0));
}

#[test]
fn interrupts_by_name_and_with_their_controllers() {
    let named = virt()
        .set("/timer", "interrupt-names", text("virt\0hyp-phys"))
        .set("/timer", "interrupts", cells(&[PPI, 1, EDGE, PPI, 2, LEVEL]))
        .tables();
    let timers = Timers { virtual_el1: 17, physical_el1: 0, physical_el2: 18 };
    assert_eq!(firmware_tables::gtdt(named.get("GTDT").unwrap()), Some(timers));

    let smmu = "/smmuv3@9050000";
    let list = [
        &[7, 1, 2, 3, 4][..],
        &[GIC, SPI, 5, EDGE],
        // Beyond what there can be.
        &[GIC, SPI, 988, EDGE, GIC, PPI, 16, EDGE],
    ];
    let mut extended = virt().set(smmu, "interrupts-extended", cells(&list.concat())).set(
        smmu,
        "interrupt-names",
        text("priq\0gerror\0eventq\0cmdq-sync"),
    );
    let other = node("other", [("phandle", cells(&[7])), ("#interrupt-cells", cells(&[4]))], vec![]);
    extended.nodes.push(other);
    let gsivs = Gsivs { event: 0, page_request: 0, global_error: 37, sync: 0 };
    assert_eq!(extended.tables().iort().units[0].interrupts, gsivs);

    let combined = virt().set(smmu, "interrupt-names", text("combined")).set(
        smmu,
        "interrupts",
        cells(&[SPI, 9, LEVEL]),
    );
    let interrupts = combined.tables().iort().units[0].interrupts;
    assert_eq!((interrupts.event, interrupts.global_error), (41, 41));
}

#[test]
fn addresses_are_those_that_processors_use() {
    let soc = |ranges: Option<Vec<u8>>| {
        let mut tree = virt();
        let at = tree.nodes.iter().position(|node| node.name == "pl011@9000000").unwrap();
        let uart = tree.nodes.remove(at);
        let mut soc =
            node("soc", [("#address-cells", cells(&[1])), ("#size-cells", cells(&[1]))], vec![uart]);
        soc.properties.extend(ranges.map(|ranges| ("ranges", ranges)));
        tree.nodes.push(soc);
        tree.set("/soc/pl011@9000000", "reg", cells(&[0x900_0000, 0x1000]))
            .set("/chosen", "stdout-path", text("serial0:115200n8"))
            .set("/aliases", "serial0", text("/soc/pl011"))
            .tables()
    };
    let uart = |ranges| firmware_tables::spcr(soc(ranges).get("SPCR").unwrap()).unwrap().base;
    assert_eq!(uart(Some(vec![])), 0x900_0000);
    // Each entry: its own address, the parent's in two cells, a length.
    let entries = [[0, 0, 0x1000, 0x800_0000], [0x800_0000, 8, 0, 0x200_0000]];
    assert_eq!(uart(Some(cells(entries.as_flattened()))), 0x8_0100_0000);
    let refusal = soc(None).refusal("SPCR");
    assert_eq!(refusal, "device tree: /soc: it has no ranges, but devices in memory; update the firmware");
    let elsewhere = soc(Some(cells(&entries[0]))).refusal("SPCR");
    assert_eq!(
        elsewhere,
        "device tree: /soc: its ranges do not have 0x9000000, where a device is; update the firmware"
    );
}

#[test]
fn both_numbers_of_a_requester_are_those_of_its_maps() {
    let host = "/pcie@10000000";
    let tables = virt()
        .set(host, "iommu-map", cells(&[0x100, SMMU, 0x9000, 0x100, 0x300, 99, 0, 0x100]))
        .set(host, "msi-map", cells(&[0, ITS_PHANDLE, 0x5_0000, 0x180, 0x180, ITS_PHANDLE, 0x7_0000, 0x200]))
        .tables();
    let iort = tables.iort();
    let seen = |rid| {
        let stream = iort.stream(requester(rid)).map(|stream| stream.id);
        (stream, iort.message_source(requester(rid)).map(|source| source.device))
    };
    assert_eq!(seen(0), (None, Some(0x5_0000)));
    assert_eq!(seen(0xff), (None, Some(0x5_00ff)));
    assert_eq!(seen(0x100), (Some(0x9000), Some(0x5_0100)));
    assert_eq!(seen(0x17f), (Some(0x907f), Some(0x5_017f)));
    assert_eq!(seen(0x180), (Some(0x9080), Some(0x7_0000)));
    assert_eq!(seen(0x1ff), (Some(0x90ff), Some(0x7_007f)));
    assert_eq!(seen(0x200), (None, Some(0x7_0080)));
    // By what is no SMMUv3 that there is.
    assert_eq!(seen(0x300), (None, Some(0x7_0180)));
    assert_eq!(seen(0x380), (None, None));

    let past = virt().without("smmuv3@9050000").tables().iort();
    let device = past.message_source(requester(7)).map(|source| source.device);
    assert_eq!((past.units.len(), device), (0, Some(7)));
    let parent =
        virt().without_property(host, "msi-map").set(host, "msi-parent", cells(&[ITS_PHANDLE])).tables();
    let device = parent.iort().message_source(requester(7)).map(|source| source.device);
    assert_eq!(device, Some(7));
}

#[test]
fn hosts_state_their_segments_buses_and_ats() {
    let host = "/pcie@10000000";
    let tables = virt()
        .set(host, "linux,pci-domain", cells(&[3]))
        .set(host, "bus-range", cells(&[0x10, 0xff]))
        .set(host, "reg", places(&[0x40_1000_0000, 0x0200_0000]))
        .set(host, "ats-supported", vec![])
        .tables();
    let ecam = Ecam { segment: 3, base: 0x40_0f00_0000, start: 0x10, end: 0x2f };
    assert_eq!(mcfg(tables.get("MCFG").unwrap()), [ecam]);
    assert!(tables.iort().ats(3));
    let coherent = |tree: Sketch| tree.tables().iort().units[0].coherent_override;
    let bare = virt().without_property("/smmuv3@9050000", "dma-coherent");
    assert!(!coherent(bare.clone()));
    assert!(coherent(bare.clone().set("/", "dma-coherent", vec![])));
    assert!(!coherent(bare.set("/", "dma-coherent", vec![]).set(
        "/smmuv3@9050000",
        "dma-noncoherent",
        vec![]
    )));
}

#[test]
fn what_no_table_can_say_is_refused_alone() {
    let host = "/pcie@10000000";
    let long = cells(&[0, ITS_PHANDLE, 0, 1].repeat(65));
    for (tree, table, why) in [
        (
            virt().set(host, "iommu-map-mask", cells(&[0xfff8])),
            "IORT",
            "device tree: /pcie@10000000: its iommu-map-mask 0xfff8 makes functions alike",
        ),
        (
            virt().set(host, "msi-map", long),
            "IORT",
            "device tree: /pcie@10000000: its msi-map is no list of at most 64 ranges",
        ),
        (
            virt().set(host, "msi-map", cells(&[0, ITS_PHANDLE, 0])),
            "IORT",
            "device tree: /pcie@10000000: its msi-map is no list",
        ),
        (
            virt().set("/smmuv3@9050000", "#iommu-cells", cells(&[2])),
            "IORT",
            "device tree: /smmuv3@9050000: its #iommu-cells are not 1",
        ),
        (
            virt().without_property("/smmuv3@9050000", "reg"),
            "IORT",
            "device tree: /smmuv3@9050000: it does not say where its registers are",
        ),
        (
            virt().set(host, "bus-range", cells(&[0x100, 0x1ff])),
            "MCFG",
            "device tree: /pcie@10000000: its bus-range",
        ),
        (
            virt().set("/intc@8000000", "redistributor-stride", places(&[0x4_0000])),
            "MADT",
            "device tree: /intc@8000000: redistributors that are 0x40000 bytes apart",
        ),
    ] {
        let tables = tree.tables();
        let refusal = tables.refusal(table);
        assert!(refusal.starts_with(why), "{refusal}");
        assert_eq!(tables.names().len(), 5, "{table} alone");
    }
}

#[test]
fn a_tree_that_is_none_is_refused_in_one_line() {
    let refused = |bytes: &[u8]| {
        let translated = tables(bytes);
        assert_eq!(translated.tables, []);
        let [refusal] = translated.refused.as_slice() else {
            panic!("{:?}", translated.refused);
        };
        refusal.to_string()
    };
    let whole = virt().bytes();
    for bytes in [&[][..], &whole[..40], &whole[1..], &whole[..whole.len() - 4]] {
        assert!(refused(bytes).starts_with("device tree: "));
    }
    let mut deep = virt();
    for _ in 0..40 {
        deep = node("", [], vec![Sketch { name: "within", ..deep }]);
    }
    assert!(refused(&deep.bytes()).starts_with("device tree: it is deeper than 32 nodes"));
    let long = virt().set("/", "padding", vec![0; firmware_tables::MAX_DEVICE_TREE]);
    assert!(refused(&long.bytes()).contains("bytes, more than"));
}
