// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's ACPI tables: what there is besides RAM and the processor.
//!
//! **Principle.** Hardware-reduced ACPI: no timer interrupt, no 8259, no SCI, no ACPI mode to switch to. The
//! tables are bytes computed from [`layout`] and the number of slots alone, so they cannot disagree with it.
//!
//! Source: ACPI specification 6.5, chapters 5 and 6; PCI Firmware Specification 3.3, chapter 4 (MCFG, _OSC).

use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml, madt};

use pasidon_kernel::dev::mc146818;

use super::layout;

const OEM_ID: [u8; 6] = *b"PASIDN";
const OEM_TABLE_ID: [u8; 8] = *b"PASIDONP";
const OEM_REVISION: u32 = 1;

/// Sleep type of S5 in `_S5` and in SLEEP_CONTROL_REG.
pub const SLEEP_TYPE_S5: u8 = 5;
/// What software writes to RESET_REG.
pub const RESET_VALUE: u8 = 1;
/// Alignment of tables in memory.
const TABLE_ALIGN: usize = 16;

/// FADT IAPC_BOOT_ARCH bits.
mod boot_arch {
    pub const NO_VGA: u16 = 1 << 2;
    pub const NO_ASPM: u16 = 1 << 4;
    pub const NO_CMOS_RTC: u16 = 1 << 5;
}

/// The tables of a machine with so many slots as they lie in memory from [`layout::ACPI_BASE`]; RSDP is first.
pub fn tables(slots: u8) -> Vec<u8> {
    let mut image = vec![0; Rsdp::len()];
    let dsdt = place(&mut image, dsdt(slots).as_slice());
    let entries = [serialize(&fadt(dsdt)), serialize(&madt()), serialize(&mcfg(slots))];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in &entries {
        xsdt.add_entry(place(&mut image, table));
    }
    let xsdt = place(&mut image, &serialize(&xsdt));
    image[..Rsdp::len()].copy_from_slice(&serialize(&Rsdp::new(OEM_ID, xsdt)));
    image
}

fn serialize(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Appends a table and returns its guest-physical address.
fn place(image: &mut Vec<u8>, table: &[u8]) -> u64 {
    image.resize(image.len().next_multiple_of(TABLE_ALIGN), 0);
    let address = layout::ACPI_BASE + image.len() as u64;
    image.extend_from_slice(table);
    address
}

fn port_register(port: u16) -> GAS {
    const BITS: u8 = 8;
    GAS::new(GasSpace::SystemIo, BITS, 0, AccessSize::ByteAccess, u64::from(port))
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::TmrValExt)
        // Set: the buttons are control-method devices, of which there are none.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (boot_arch::NO_VGA | boot_arch::NO_ASPM | boot_arch::NO_CMOS_RTC).into();
    fadt.reset_reg = port_register(layout::POWER_PORT + layout::POWER_RESET);
    fadt.reset_value = RESET_VALUE;
    // Hardware-reduced systems do without a timer; kernels that have no better clock use it where it is named.
    fadt.pm_tmr_blk = u32::from(layout::PM_TIMER_PORT).into();
    fadt.pm_tmr_len = layout::PM_TIMER_PORTS as u8;
    fadt.x_pm_tmr_blk =
        GAS::new(GasSpace::SystemIo, 32, 0, AccessSize::DwordAccess, u64::from(layout::PM_TIMER_PORT));
    fadt.century = mc146818::CENTURY;
    fadt.sleep_control_reg = port_register(layout::POWER_PORT + layout::POWER_SLEEP_CONTROL);
    fadt.sleep_status_reg = port_register(layout::POWER_PORT + layout::POWER_SLEEP_STATUS);
    fadt.finalize()
}

fn madt() -> MADT {
    let local = LocalInterruptController::Address(layout::LAPIC_BASE as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local);
    madt.add_structure(ProcessorLocalApic::new(0, 0, EnabledStatus::Enabled));
    madt.add_structure(madt::IoApic::new(0, layout::IOAPIC_BASE as u32, 0));
    madt
}

/// Bus 0, and one for each slot.
fn mcfg(slots: u8) -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM_BASE, 0, 0, slots);
    mcfg
}

fn dsdt(slots: u8) -> Sdt {
    let window32 = aml::AddressSpace::new_memory(
        aml::AddressSpaceCacheable::NotCacheable,
        true,
        layout::PCI32_BASE as u32,
        (layout::PCI32_BASE + layout::PCI32_LEN - 1) as u32,
        None,
    );
    let window64 = aml::AddressSpace::new_memory(
        aml::AddressSpaceCacheable::PreFetchable,
        true,
        layout::PCI64_BASE,
        layout::PCI64_BASE + layout::PCI64_LEN - 1,
        None,
    );
    let pci = aml::Device::new(
        "PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_SEG".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new("_CBA".into(), &layout::ECAM_BASE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::AddressSpace::new_bus_number(0u16, u16::from(slots)),
                    &window32,
                    &window64,
                ]),
            ),
            &Raw(operating_system_capabilities()),
        ],
    )
    .bytes();
    let uart = aml::Device::new(
        "COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(layout::UART_PORT, layout::UART_PORT, 1, 8),
                    &aml::Interrupt::new(true, false, false, false, layout::UART_GSI),
                ]),
            ),
        ],
    )
    .bytes();
    // ECAM belongs to the chipset: operating systems look for it among the motherboard's resources.
    let board = aml::Device::new(
        "MBRD".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Memory32Fixed::new(
                    true,
                    layout::ECAM_BASE as u32,
                    layout::ECAM_LEN as u32,
                )]),
            ),
        ],
    )
    .bytes();
    let mut body = aml::Scope::raw("\\_SB_".into(), [pci, uart, board].concat());
    let s5 = aml::Package::new(vec![&SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    aml::Name::new("_S5_".into(), &s5).to_aml_bytes(&mut body);

    const HEADER_LEN: u32 = 36;
    const DSDT_REVISION: u8 = 2;
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_LEN, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&body);
    dsdt
}

/// What the operating system may do by itself with PCI Express: hot-plug, and the structures that come with it. Nothing
/// else is there to be given away.
fn operating_system_capabilities() -> Vec<u8> {
    const PCI_HOST_BRIDGE: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
    const REVISION: u8 = 1;
    const NATIVE_HOT_PLUG: u8 = 1 << 0;
    const CAPABILITY_STRUCTURES: u8 = 1 << 4;
    /// Where the controls are among the capabilities.
    const CONTROLS_AT: u8 = 8;
    let [errors, controls] = ["CDW1", "CDW3"].map(aml::Path::new);
    let (buffer, granted) = (aml::Arg(3), aml::Local(0));
    // Bits of the first word.
    let unknown_uuid = aml::Or::new(&errors, &errors, &4u8);
    let unknown_revision = aml::Or::new(&errors, &errors, &8u8);
    let masked = aml::Or::new(&errors, &errors, &16u8);
    aml::Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &aml::CreateDWordField::new(&errors, &buffer, &aml::ZERO),
            &aml::If::new(
                &aml::Equal::new(&aml::Arg(0), &aml::Uuid::new(PCI_HOST_BRIDGE)),
                vec![
                    &aml::CreateDWordField::new(&controls, &buffer, &CONTROLS_AT),
                    &aml::If::new(&aml::NotEqual::new(&aml::Arg(1), &REVISION), vec![&unknown_revision]),
                    &aml::And::new(&granted, &controls, &(NATIVE_HOT_PLUG | CAPABILITY_STRUCTURES)),
                    &aml::If::new(&aml::NotEqual::new(&granted, &controls), vec![&masked]),
                    &aml::Store::new(&controls, &granted),
                ],
            ),
            &aml::Else::new(vec![&unknown_uuid]),
            &aml::Return::new(&buffer),
        ],
    )
    .bytes()
}

/// AML that is there already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// An AML object as its bytes.
trait Bytes {
    fn bytes(&self) -> Vec<u8>;
}

impl<T: Aml> Bytes for T {
    fn bytes(&self) -> Vec<u8> {
        serialize(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at a guest-physical address, its length and checksum verified.
    fn table(image: &[u8], address: u64) -> &[u8] {
        let start = (address - layout::ACPI_BASE) as usize;
        let len = u32::from_le_bytes(image[start + 4..start + 8].try_into().unwrap()) as usize;
        let table = &image[start..start + len];
        assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        table
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_reached_from_rsdp_and_sums_to_zero() {
        let image = tables(248);
        assert!(image.len() as u64 <= layout::ACPI_LEN);
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
        let xsdt = table(&image, u64_at(&image, 24));
        let found: Vec<&[u8]> = xsdt[36..].chunks(8).map(|a| table(&image, u64_at(a, 0))).collect();
        let names: Vec<&[u8]> = found.iter().map(|t| &t[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
        assert_eq!(&table(&image, u64_at(found[0], 140))[..4], b"DSDT");
    }

    /// What Linux makes of it shows in the scenario `hot-plug`.
    #[test]
    fn the_tables_tell_of_a_bus_for_each_slot_and_give_hot_plug_away() {
        for slots in [0, 8, 248] {
            let mcfg = serialize(&mcfg(slots));
            assert_eq!((u64_at(&mcfg, 44), mcfg[54], mcfg[55]), (layout::ECAM_BASE, 0, slots));
        }
        let method = operating_system_capabilities();
        let has = |bytes: &[u8]| method.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(&[0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40]), "the UUID of PCI host bridges");
        assert!(has(b"\x7bCDW3\x0a\x11\x60"), "and of the controls into a local, with the two bits");
    }

    #[test]
    fn fadt_says_hardware_reduced_with_reset_and_sleep_ports() {
        let fadt = serialize(&fadt(0));
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        assert_eq!((fadt[116], u64_at(&fadt, 120), fadt[128]), (1, 0x602, RESET_VALUE));
        assert_eq!(u32::from_le_bytes(fadt[76..80].try_into().unwrap()), 0x608);
        assert_eq!((fadt[91], flags >> 8 & 1), (4, 1), "a timer of 32 bits");
        assert_eq!((fadt[208], fadt[209], u64_at(&fadt, 212)), (1, 32, 0x608));
        assert_eq!((fadt[244], u64_at(&fadt, 248)), (1, 0x600));
        assert_eq!((fadt[256], u64_at(&fadt, 260)), (1, 0x601));
    }
}
