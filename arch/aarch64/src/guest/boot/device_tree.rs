// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device tree: what there is besides what the processor says of itself.
//!
//! **Principle.** Bytes computed from [`layout`] and the VM's size alone, so that they cannot disagree with it. The
//! seeds for the kernel's address randomisation and its random numbers are new at each start; where the machine has
//! no source of them there are none, as one that is the same at each start would be worse.
//!
//! Source: Devicetree Specification 0.4; Linux `Documentation/devicetree/bindings`: `arm/psci.yaml`,
//! `interrupt-controller/arm,gic-v3.yaml` (`mbi-ranges`), `timer/arm,arch_timer.yaml`, `serial/pl011.yaml`,
//! `rtc/arm,pl031.yaml`, `pci/host-generic-pci.yaml`; dt-schema's `chosen.yaml` for the seeds.

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::ram::RamRange;
use vm_fdt::{Error, FdtWriter};

use super::{BootImage, Initrd, Seed};
use crate::guest::layout::{self, intid};

/// Phandles.
mod phandle {
    pub const GIC: u32 = 1;
    pub const CLOCK: u32 = 2;
}

/// Interrupt specifiers of a GICv3.
mod interrupt {
    pub const SPI: u32 = 0;
    pub const PPI: u32 = 1;
    pub const LEVEL_HIGH: u32 = 4;
    /// Cells of a specifier.
    pub const CELLS: u32 = 3;
}

/// First cell of a PCI address: what a range is.
mod pci_space {
    pub const MEMORY_32: u32 = 0x0200_0000;
    pub const MEMORY_64_PREFETCHABLE: u32 = 0x4300_0000;
}

/// Bytes of `kaslr-seed`; the rest of a seed is `rng-seed`.
const KASLR_SEED: usize = 8;
/// Clock of the serial port in Hz; no divisor is ever used.
const UART_CLOCK: u32 = 24_000_000;

/// The device tree of a VM with so many bytes of RAM.
pub(super) fn build(
    vcpus: u16,
    ram_size: u64,
    initrd: Initrd,
    image: &BootImage<'_>,
) -> Result<Vec<u8>, Refusal> {
    write(vcpus, ram_size, initrd, image)
        .map_err(|error| Refusal::new("device tree", error.to_string(), "this is an error of the hypervisor"))
}

/// The two cells of a 64-bit number.
const fn cells(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}

fn ppi(number: u32) -> [u32; interrupt::CELLS as usize] {
    [interrupt::PPI, number - intid::PPI, interrupt::LEVEL_HIGH]
}

fn write(vcpus: u16, ram_size: u64, initrd: Initrd, image: &BootImage<'_>) -> Result<Vec<u8>, Error> {
    let BootImage { cmdline, slots, seed, .. } = *image;
    let mut tree = FdtWriter::new()?;
    let root = tree.begin_node("")?;
    tree.property_string("compatible", "pasidon,guest")?;
    tree.property_string("model", "Pasidon guest")?;
    tree.property_u32("#address-cells", 2)?;
    tree.property_u32("#size-cells", 2)?;
    tree.property_u32("interrupt-parent", phandle::GIC)?;
    chosen(&mut tree, cmdline, initrd, seed.as_ref())?;
    for RamRange { start, len } in layout::ram_ranges(ram_size) {
        let node = tree.begin_node(&format!("memory@{:x}", start.0))?;
        tree.property_string("device_type", "memory")?;
        tree.property_array_u64("reg", &[start.0, len])?;
        tree.end_node(node)?;
    }
    processors(&mut tree, vcpus)?;
    interrupt_controller(&mut tree, vcpus)?;
    timer(&mut tree)?;
    uart(&mut tree)?;
    rtc(&mut tree)?;
    pci(&mut tree, slots)?;
    tree.end_node(root)?;
    tree.finish()
}

fn uart_name() -> alloc::string::String {
    format!("serial@{:x}", layout::UART_BASE)
}

fn chosen(tree: &mut FdtWriter, cmdline: &str, initrd: Initrd, seed: Option<&Seed>) -> Result<(), Error> {
    let node = tree.begin_node("chosen")?;
    tree.property_string("bootargs", cmdline)?;
    tree.property_string("stdout-path", &format!("/{}", uart_name()))?;
    if initrd.len > 0 {
        tree.property_u64("linux,initrd-start", initrd.start)?;
        tree.property_u64("linux,initrd-end", initrd.start + initrd.len)?;
    }
    if let Some((addresses, numbers)) = seed.and_then(|seed| seed.split_first_chunk::<KASLR_SEED>()) {
        tree.property("kaslr-seed", addresses)?;
        tree.property("rng-seed", numbers)?;
    }
    tree.end_node(node)
}

fn processors(tree: &mut FdtWriter, vcpus: u16) -> Result<(), Error> {
    let node = tree.begin_node("psci")?;
    tree.property_string_list("compatible", vec!["arm,psci-1.0".to_string(), "arm,psci-0.2".to_string()])?;
    tree.property_string("method", "hvc")?;
    tree.end_node(node)?;

    let node = tree.begin_node("cpus")?;
    tree.property_u32("#address-cells", 1)?;
    tree.property_u32("#size-cells", 0)?;
    for vcpu in 0..u32::from(vcpus) {
        let cpu = tree.begin_node(&format!("cpu@{vcpu:x}"))?;
        tree.property_string("device_type", "cpu")?;
        tree.property_string("compatible", "arm,armv8")?;
        tree.property_string("enable-method", "psci")?;
        // The affinity of MPIDR_EL1.
        tree.property_u32("reg", vcpu)?;
        tree.end_node(cpu)?;
    }
    tree.end_node(node)
}

fn interrupt_controller(tree: &mut FdtWriter, vcpus: u16) -> Result<(), Error> {
    let node = tree.begin_node(&format!("interrupt-controller@{:x}", layout::GICD_BASE))?;
    tree.property_string("compatible", "arm,gic-v3")?;
    tree.property_null("interrupt-controller")?;
    tree.property_u32("#interrupt-cells", interrupt::CELLS)?;
    tree.property_u32("#address-cells", 2)?;
    tree.property_u32("#size-cells", 2)?;
    tree.property_null("ranges")?;
    tree.property_array_u64(
        "reg",
        &[layout::GICD_BASE, layout::GICD_LEN, layout::GICR_BASE, layout::GICR_STRIDE * u64::from(vcpus)],
    )?;
    tree.property_null("msi-controller")?;
    tree.property_array_u32("mbi-ranges", &[intid::MSI, intid::MSI_COUNT])?;
    tree.property_phandle(phandle::GIC)?;
    tree.end_node(node)
}

fn timer(tree: &mut FdtWriter) -> Result<(), Error> {
    let node = tree.begin_node("timer")?;
    tree.property_string("compatible", "arm,armv8-timer")?;
    // In the order that the binding asks for. Only the virtual one is there.
    let interrupts = [intid::SECURE_TIMER, intid::PHYSICAL_TIMER, intid::VIRTUAL_TIMER, intid::HYP_TIMER];
    tree.property_array_u32("interrupts", interrupts.map(ppi).as_flattened())?;
    tree.property_null("always-on")?;
    tree.end_node(node)
}

fn uart(tree: &mut FdtWriter) -> Result<(), Error> {
    let node = tree.begin_node("clock")?;
    tree.property_string("compatible", "fixed-clock")?;
    tree.property_u32("#clock-cells", 0)?;
    tree.property_u32("clock-frequency", UART_CLOCK)?;
    tree.property_phandle(phandle::CLOCK)?;
    tree.end_node(node)?;

    let node = tree.begin_node(&uart_name())?;
    tree.property_string_list("compatible", vec!["arm,pl011".to_string(), "arm,primecell".to_string()])?;
    tree.property_array_u64("reg", &[layout::UART_BASE, layout::UART_LEN])?;
    tree.property_array_u32(
        "interrupts",
        &[interrupt::SPI, intid::UART - intid::SPI, interrupt::LEVEL_HIGH],
    )?;
    tree.property_array_u32("clocks", &[phandle::CLOCK, phandle::CLOCK])?;
    tree.property_string_list("clock-names", vec!["uartclk".to_string(), "apb_pclk".to_string()])?;
    tree.end_node(node)
}

fn rtc(tree: &mut FdtWriter) -> Result<(), Error> {
    let node = tree.begin_node(&format!("rtc@{:x}", layout::RTC_BASE))?;
    tree.property_string_list("compatible", vec!["arm,pl031".to_string(), "arm,primecell".to_string()])?;
    tree.property_array_u64("reg", &[layout::RTC_BASE, layout::RTC_LEN])?;
    tree.property_u32("clocks", phandle::CLOCK)?;
    tree.property_string("clock-names", "apb_pclk")?;
    tree.end_node(node)
}

fn pci(tree: &mut FdtWriter, slots: u8) -> Result<(), Error> {
    let node = tree.begin_node(&format!("pcie@{:x}", layout::ECAM_BASE))?;
    tree.property_string("compatible", "pci-host-ecam-generic")?;
    tree.property_string("device_type", "pci")?;
    tree.property_u32("#address-cells", 3)?;
    tree.property_u32("#size-cells", 2)?;
    tree.property_array_u64("reg", &[layout::ECAM_BASE, layout::ECAM_LEN])?;
    // Bus 0, and one for each slot.
    tree.property_array_u32("bus-range", &[0, slots.into()])?;
    let windows = [
        (pci_space::MEMORY_32, layout::PCI32_BASE, layout::PCI32_LEN),
        (pci_space::MEMORY_64_PREFETCHABLE, layout::PCI64_BASE, layout::PCI64_LEN),
    ];
    // Space, address on the bus, address in memory (the same), length.
    let ranges: Vec<u32> = windows
        .iter()
        .flat_map(|(space, start, len)| {
            let numbers = [cells(*start), cells(*start), cells(*len)];
            core::iter::once(*space).chain(numbers.into_iter().flatten())
        })
        .collect();
    tree.property_array_u32("ranges", &ranges)?;
    tree.property_u32("msi-parent", phandle::GIC)?;
    tree.property_null("dma-coherent")?;
    tree.property_u32("linux,pci-domain", 0)?;
    tree.end_node(node)
}
