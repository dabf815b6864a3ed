// SPDX-License-Identifier: MIT OR Apache-2.0
use fdt::Fdt;
use fdt::node::FdtNode;
use pasidon_arch_common::testing::TestMemory;
use pasidon_kernel::memory::BadGuestAddress;
use proptest::prelude::*;

use super::*;
use crate::guest::layout::intid;

const RAM: usize = 32 << 20;
const TEXT_OFFSET: u64 = 0x8_0000;
const IMAGE_SIZE: u64 = 0x20_0000;

/// An `Image` of 4 KiB that needs 2 MiB.
fn kernel() -> Vec<u8> {
    let mut image = vec![0xcc; 4096];
    image[8..16].copy_from_slice(&TEXT_OFFSET.to_le_bytes());
    image[16..24].copy_from_slice(&IMAGE_SIZE.to_le_bytes());
    image[24..32].copy_from_slice(&0xau64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

fn ram(size: usize) -> TestMemory {
    TestMemory::new(layout::RAM_BASE, size)
}

fn boot(memory: &TestMemory, kernel: &[u8], initrd: Option<&[u8]>) -> Result<EntryState, Refusal> {
    let image = BootImage { kernel, initrd, cmdline: "console=ttyAMA0", slots: 8, seed: None };
    load(memory, &image)
}

fn refusal(kernel: &[u8]) -> String {
    let error = boot(&ram(RAM), kernel, None).unwrap_err().to_string();
    assert!(!error.contains('\n'));
    error
}

/// The device tree that X0 points to.
fn tree(memory: &TestMemory, entry: &EntryState) -> Vec<u8> {
    assert!(entry.x0.is_multiple_of(8));
    let header = memory.bytes(entry.x0, 8);
    let len = u32::from_be_bytes(header[4..8].try_into().unwrap());
    memory.bytes(entry.x0, len as usize)
}

fn cells(node: &FdtNode<'_, '_>, property: &str) -> Vec<u32> {
    let value = node.property(property).unwrap_or_else(|| panic!("no {property}")).value;
    value.chunks(4).map(|c| u32::from_be_bytes(c.try_into().unwrap())).collect()
}

fn numbers(node: &FdtNode<'_, '_>, property: &str) -> Vec<u64> {
    let cells = cells(node, property);
    cells.chunks(2).map(|c| u64::from(c[0]) << 32 | u64::from(c[1])).collect()
}

#[test]
fn an_image_is_loaded_and_starts_as_linux_asks() {
    let memory = ram(RAM);
    let entry = boot(&memory, &kernel(), Some(b"initrd")).unwrap();
    assert_eq!(entry.pc, layout::RAM_BASE + TEXT_OFFSET);
    assert_eq!(memory.bytes(entry.pc, 4096), kernel());
    assert_eq!((entry.pstate, entry.sctlr), (0x3c5, 0x30d0_0800));
    let bytes = tree(&memory, &entry);
    let tree = Fdt::new(&bytes).unwrap();
    let chosen = tree.find_node("/chosen").unwrap();
    assert_eq!(tree.chosen().bootargs(), Some("console=ttyAMA0"));
    assert_eq!(tree.chosen().stdout().unwrap().name, "serial@9000000");
    let (start, end) = (numbers(&chosen, "linux,initrd-start")[0], numbers(&chosen, "linux,initrd-end")[0]);
    assert_eq!(memory.bytes(start, (end - start) as usize), b"initrd");
    assert!(start >= entry.pc + IMAGE_SIZE && end <= entry.x0);
    assert!(chosen.property("rng-seed").is_none() && chosen.property("kaslr-seed").is_none());
}

/// What a VM without files is told.
fn told(seed: Option<Seed>) -> BootImage<'static> {
    BootImage { kernel: &[], initrd: None, cmdline: "", slots: 8, seed }
}

#[test]
fn a_seed_is_split_into_addresses_and_numbers() {
    let seed: Seed = core::array::from_fn(|i| i as u8);
    let bytes = device_tree::build(1, 64 << 20, Initrd::default(), &told(Some(seed))).unwrap();
    let tree = Fdt::new(&bytes).unwrap();
    let chosen = tree.find_node("/chosen").unwrap();
    assert_eq!(chosen.property("kaslr-seed").unwrap().value, &seed[..8]);
    assert_eq!(chosen.property("rng-seed").unwrap().value, &seed[8..]);
}

/// RAM of any size, which forgets.
struct Large(u64);

impl GuestMemory for Large {
    fn read(&self, _: GuestPhys, _: &mut [u8]) -> Result<(), BadGuestAddress> {
        unreachable!("the loader reads nothing")
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), BadGuestAddress> {
        let (Self(size), len) = (self, bytes.len() as u64);
        let offset = address.0 - layout::RAM_BASE;
        if offset + len > *size {
            return Err(BadGuestAddress { address, len });
        }
        Ok(())
    }

    fn ram_size(&self) -> u64 {
        self.0
    }
}

#[test]
fn an_initrd_may_be_larger_than_a_gib() {
    let initrd = vec![0; 1126 << 20];
    let image = kernel();
    let image = BootImage { kernel: &image, initrd: Some(&initrd), cmdline: "", slots: 8, seed: None };
    for (size, top) in [(3 << 30, 3 << 30), (3074 << 20, 3074 << 20), (100 << 30, 32 << 30)] {
        let memory = Large(size);
        let entry = load(&memory, &image).unwrap();
        assert_eq!(entry.x0, layout::RAM_BASE + top - LARGE_PAGE_SIZE);
    }
    // The remedy helps: exactly as much is enough.
    let error = load(&Large(1 << 30), &image).unwrap_err();
    assert_eq!(error.what, "initrd");
    let words: Vec<u64> = error.remedy.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(load(&Large(words[0] << 20), &image).is_ok());
    assert!(load(&Large((words[0] - 2) << 20), &image).is_err());
}

#[test]
fn without_an_initrd_none_is_named() {
    let memory = ram(RAM);
    let entry = boot(&memory, &kernel(), None).unwrap();
    let bytes = tree(&memory, &entry);
    let tree = Fdt::new(&bytes).unwrap();
    let chosen = tree.find_node("/chosen").unwrap();
    assert!(chosen.property("linux,initrd-start").is_none());
}

#[test]
fn the_tree_describes_the_machine() {
    let bytes = device_tree::build(2, 64 << 20, Initrd::default(), &told(None)).unwrap();
    let tree = Fdt::new(&bytes).unwrap();
    let memory: Vec<_> = tree.memory().regions().map(|r| (r.starting_address as u64, r.size)).collect();
    assert_eq!(memory, [(layout::RAM_BASE, Some(64 << 20))]);
    assert_eq!(tree.cpus().map(|cpu| cpu.ids().first()).collect::<Vec<_>>(), [0, 1]);
    let psci = tree.find_node("/psci").unwrap();
    assert_eq!(psci.property("method").unwrap().as_str(), Some("hvc"));

    let gic = tree.find_compatible(&["arm,gic-v3"]).unwrap();
    let windows = [layout::GICD_BASE, layout::GICD_LEN, layout::GICR_BASE, 2 * layout::GICR_STRIDE];
    assert_eq!(numbers(&gic, "reg"), windows);
    assert_eq!(cells(&gic, "mbi-ranges"), [intid::MSI, intid::MSI_COUNT]);
    assert!(gic.property("msi-controller").is_some());

    let timer = tree.find_compatible(&["arm,armv8-timer"]).unwrap();
    let ppis: Vec<u32> = cells(&timer, "interrupts").chunks(3).map(|c| c[1] + 16).collect();
    assert_eq!(ppis, [29, 30, 27, 26], "secure, physical, virtual, EL2");

    let uart = tree.find_compatible(&["arm,pl011"]).unwrap();
    assert_eq!(cells(&uart, "interrupts"), [0, intid::UART - 32, 4]);
    assert_eq!(numbers(&uart, "reg"), [layout::UART_BASE, layout::UART_LEN]);

    let rtc = tree.find_compatible(&["arm,pl031"]).unwrap();
    assert_eq!(numbers(&rtc, "reg"), [layout::RTC_BASE, layout::RTC_LEN]);
    assert!(rtc.property("interrupts").is_none() && rtc.property("clocks").is_some());

    let pci = tree.find_compatible(&["pci-host-ecam-generic"]).unwrap();
    assert_eq!(numbers(&pci, "reg"), [layout::ECAM_BASE, layout::ECAM_LEN]);
    assert_eq!(cells(&pci, "bus-range"), [0, 8], "a bus for each slot");
    assert_eq!(cells(&pci, "msi-parent"), cells(&gic, "phandle"));
    assert!(pci.property("dma-coherent").is_some());
    let ranges = cells(&pci, "ranges");
    let range = |words: &[u32]| {
        let number = |at: usize| u64::from(words[at]) << 32 | u64::from(words[at + 1]);
        (words[0], number(1), number(3), number(5))
    };
    assert_eq!(
        ranges.chunks(7).map(range).collect::<Vec<_>>(),
        [
            (0x0200_0000, layout::PCI32_BASE, layout::PCI32_BASE, layout::PCI32_LEN),
            (0x4300_0000, layout::PCI64_BASE, layout::PCI64_BASE, layout::PCI64_LEN),
        ]
    );
}

#[test]
fn compressed_kernels_are_refused_with_the_way_out() {
    assert!(refusal(b"\x1f\x8b\x08\0").contains("gzip"));
    assert!(refusal(b"\x1f\x8b\x08\0").contains("zcat"));
    assert!(refusal(b"MZ\0\0zimg").contains("zboot"));
    assert!(refusal(b"\xfd7zXZ\0").contains("xzcat"));
}

#[test]
fn damaged_images_are_refused_in_one_line() {
    let broken = |at: usize, bytes: &[u8]| {
        let mut image = kernel();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(&image)
    };
    assert!(refusal(b"").contains("no arm64 Image"));
    assert!(refusal(&kernel()[..60]).contains("no arm64 Image"));
    assert!(broken(56, b"xx").contains("no arm64 Image"));
    assert!(broken(24, &[0xb]).contains("big-endian"));
    assert!(broken(16, &[0; 8]).contains("3.17"));
    assert!(broken(16, &100u64.to_le_bytes()).contains("the file has"));
    assert!(broken(16, &u64::MAX.to_le_bytes()).contains("more memory"));
    assert!(broken(8, &0x20_0000u64.to_le_bytes()).contains("below 2 MiB"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let large = vec![1; RAM - (4 << 20)];
    let error = boot(&ram(RAM), &kernel(), Some(&large)).unwrap_err();
    assert!(error.to_string().contains("initrd"));
    for size in [1 << 20, RAM + 4096] {
        assert!(boot(&ram(size), &kernel(), None).is_err());
    }
    let long = "x".repeat(CMDLINE_MAX + 1);
    for cmdline in [long.as_str(), "a\0b"] {
        let image = BootImage { kernel: &kernel(), initrd: None, cmdline, slots: 8, seed: None };
        let error = load(&ram(RAM), &image).unwrap_err();
        assert!(error.to_string().contains("command line"));
    }
}

proptest! {
    #[test]
    fn no_header_panics(header in proptest::collection::vec(any::<u8>(), 0..80), magic: bool) {
        let mut image = header;
        if magic && image.len() >= 60 {
            image[56..60].copy_from_slice(b"ARM\x64");
        }
        let memory = ram(layout::RAM_MIN as usize);
        if let Ok(entry) = boot(&memory, &image, None) {
            prop_assert!(entry.pc >= layout::RAM_BASE && entry.pc < entry.x0);
        }
    }
}
