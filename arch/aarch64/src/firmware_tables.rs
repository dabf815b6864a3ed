// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the firmware's ACPI tables say about an Arm machine, out of their bytes.
//!
//! **Principle.** Each function takes a whole table with its header, whose checksum somebody has verified, and
//! believes no length in it: whatever the bytes are, it returns. Where firmware offers a device tree only, the
//! tables come from [`crate::device_tree`].
//!
//! Source: ACPI specification 6.5, 5.2.9 (FADT), 5.2.12 (MADT), 5.2.25 (GTDT); Microsoft, Serial Port Console
//! Redirection table and Debug Port Table 2.

use alloc::vec::Vec;

pub use pasidon_arch_common::firmware_tables::*;

/// How a device tree is read where the firmware has no ACPI tables.
pub const OF_DEVICE_TREE: Option<Translate> = Some(crate::device_tree::tables);

/// A processor of the MADT (GICC).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gicc {
    /// Affinity fields of MPIDR_EL1.
    pub mpidr: u64,
    /// Physical address of its redistributor, where the table names one for each processor; 0 otherwise.
    pub redistributor: u64,
    /// INTID of the virtual CPU interface's maintenance interrupt; 0 where there is none.
    pub maintenance: u32,
}

/// An interrupt translation service of the MADT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Its {
    /// Its ID, to which the IORT refers.
    pub id: u32,
    /// Physical address of its registers.
    pub base: u64,
}

/// What the MADT says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Madt {
    /// The processors that are enabled, each once, in the table's order.
    pub processors: Vec<Gicc>,
    /// Physical address of the distributor's registers, and the version that is stated: 0 where it is not.
    pub distributor: Option<(u64, u8)>,
    /// Where redistributors lie: start and length.
    pub redistributors: Vec<(u64, u32)>,
    /// The interrupt translation services.
    pub its: Vec<Its>,
    /// The entries end in the middle of one: what follows was not read.
    pub damaged: bool,
}

/// Reads the MADT.
pub fn madt(table: &[u8]) -> Madt {
    /// Local interrupt controller address and flags come between header and entries.
    const ENTRIES: usize = HEADER + 8;
    const GICC: u8 = 0x0b;
    const GICD: u8 = 0x0c;
    const GICR: u8 = 0x0e;
    const GIC_ITS: u8 = 0x0f;
    let mut found = Madt::default();
    let mut rest = table.get(ENTRIES..).unwrap_or_default();
    found.damaged = table.len() < ENTRIES;
    while let [kind, length, ..] = *rest {
        let Some(entry) = rest.get(..usize::from(length)).filter(|entry| entry.len() >= 2) else {
            found.damaged = true;
            break;
        };
        rest = &rest[entry.len()..];
        match kind {
            GICC => {
                if let Some(processor) = gicc(entry)
                    && !found.processors.iter().any(|known| known.mpidr == processor.mpidr)
                {
                    found.processors.push(processor);
                }
            }
            GICD => {
                let version = entry.get(20).copied().unwrap_or(0);
                found.distributor =
                    found.distributor.or_else(|| address(entry, 8).map(|base| (base, version)));
            }
            GICR => found
                .redistributors
                .extend(address(entry, 4).zip(u32_at(entry, 12).filter(|length| *length > 0))),
            GIC_ITS => {
                found.its.extend(u32_at(entry, 4).zip(address(entry, 8)).map(|(id, base)| Its { id, base }))
            }
            _ => {}
        }
    }
    found.damaged |= rest.len() == 1;
    found
}

/// An address that is not null.
fn address(entry: &[u8], at: usize) -> Option<u64> {
    u64_at(entry, at).filter(|address| *address != 0)
}

fn gicc(entry: &[u8]) -> Option<Gicc> {
    const FLAGS: usize = 12;
    const MAINTENANCE: usize = 56;
    const GICR_BASE: usize = 60;
    const MPIDR: usize = 68;
    const ENABLED: u32 = 1 << 0;
    if u32_at(entry, FLAGS)? & ENABLED == 0 {
        return None;
    }
    Some(Gicc {
        mpidr: u64_at(entry, MPIDR)?,
        redistributor: u64_at(entry, GICR_BASE)?,
        maintenance: u32_at(entry, MAINTENANCE)?,
    })
}

/// The timers of each processor, by their INTIDs; 0 where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timers {
    /// EL1 virtual.
    pub virtual_el1: u32,
    /// EL1 physical.
    pub physical_el1: u32,
    /// EL2 physical.
    pub physical_el2: u32,
}

/// Reads the GTDT.
pub fn gtdt(table: &[u8]) -> Option<Timers> {
    const NON_SECURE_EL1: usize = 56;
    const VIRTUAL_EL1: usize = 64;
    const EL2: usize = 72;
    Some(Timers {
        physical_el1: u32_at(table, NON_SECURE_EL1)?,
        virtual_el1: u32_at(table, VIRTUAL_EL1)?,
        physical_el2: u32_at(table, EL2)?,
    })
}

/// How PSCI is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// By SMC.
    Smc,
    /// By HVC, which from EL2 leads nowhere.
    Hvc,
}

/// How the FADT says that PSCI is called, if there is PSCI.
pub fn psci(fadt: &[u8]) -> Option<Conduit> {
    const ARM_BOOT_ARCH: usize = 129;
    const PSCI_COMPLIANT: u16 = 1 << 0;
    const PSCI_USE_HVC: u16 = 1 << 1;
    let flags = u16_at(fadt, ARM_BOOT_ARCH)?;
    if flags & PSCI_COMPLIANT == 0 {
        return None;
    }
    Some(if flags & PSCI_USE_HVC == 0 { Conduit::Smc } else { Conduit::Hvc })
}

/// A serial port with the registers of a PL011, or the part of them that the SBSA asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uart {
    /// Physical address of its registers.
    pub base: u64,
    /// INTID of its interrupt, if the table says so.
    pub interrupt: Option<u32>,
}

/// Interface types of the Debug Port Table, which the SPCR uses as well.
mod interface {
    pub const PL011: u16 = 0x03;
    pub const SBSA_32_BIT: u16 = 0x0d;
    pub const SBSA: u16 = 0x0e;

    /// Whether its registers are those of [`super::Uart`].
    pub fn is_pl011(kind: u16) -> bool {
        matches!(kind, PL011 | SBSA_32_BIT | SBSA)
    }
}

/// A generic address in memory.
fn generic_address(table: &[u8], at: usize) -> Option<u64> {
    const SYSTEM_MEMORY: u8 = 0;
    const ADDRESS: usize = 4;
    let space = *table.get(at)?;
    let address = u64_at(table, at.checked_add(ADDRESS)?)?;
    (space == SYSTEM_MEMORY && address != 0 && address.is_multiple_of(4)).then_some(address)
}

/// The serial console of the SPCR, if it is one that there is a driver for.
pub fn spcr(table: &[u8]) -> Option<Uart> {
    const INTERFACE: usize = HEADER;
    const BASE: usize = 40;
    const INTERRUPT_TYPE: usize = 52;
    const GSI: usize = 54;
    /// The interrupt is the one of a GIC.
    const ARM_GIC: u8 = 1 << 3;
    if !interface::is_pl011(u16::from(*table.get(INTERFACE)?)) {
        return None;
    }
    let by_gic = *table.get(INTERRUPT_TYPE)? & ARM_GIC != 0;
    Some(Uart { base: generic_address(table, BASE)?, interrupt: u32_at(table, GSI).filter(|_| by_gic) })
}

/// The first serial debug port of the DBG2 that there is a driver for. It names no interrupt.
pub fn dbg2(table: &[u8]) -> Option<Uart> {
    const OFFSET: usize = HEADER;
    const COUNT: usize = 40;
    /// Fields of a debug device information.
    const LENGTH: usize = 1;
    const ADDRESSES: usize = 3;
    const PORT_TYPE: usize = 12;
    const PORT_SUBTYPE: usize = 14;
    const BASE_OFFSET: usize = 18;
    const SERIAL: u16 = 0x8000;
    let mut at = u32_at(table, OFFSET)? as usize;
    // Each is longer than a byte, so that there cannot be more of them than bytes.
    for _ in 0..u32_at(table, COUNT)?.min(table.len() as u32) {
        let device = table.get(at..)?;
        let length = usize::from(u16_at(device, LENGTH)?);
        let device = device.get(..length).filter(|device| !device.is_empty())?;
        if u16_at(device, PORT_TYPE)? == SERIAL
            && interface::is_pl011(u16_at(device, PORT_SUBTYPE)?)
            && *device.get(ADDRESSES)? > 0
            && let Some(base) = generic_address(device, usize::from(u16_at(device, BASE_OFFSET)?))
        {
            return Some(Uart { base, interrupt: None });
        }
        at += length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(body: &[u8]) -> Vec<u8> {
        [&[0; HEADER], body].concat()
    }

    fn gicc_entry(flags: u32, mpidr: u64, redistributor: u64) -> Vec<u8> {
        let mut entry = vec![0; 80];
        entry[..2].copy_from_slice(&[0x0b, 80]);
        entry[12..16].copy_from_slice(&flags.to_le_bytes());
        entry[56..60].copy_from_slice(&25u32.to_le_bytes());
        entry[60..68].copy_from_slice(&redistributor.to_le_bytes());
        entry[68..76].copy_from_slice(&mpidr.to_le_bytes());
        entry
    }

    #[test]
    fn processors_and_the_parts_of_the_gic() {
        let mut gicd = vec![0; 24];
        gicd[..2].copy_from_slice(&[0x0c, 24]);
        gicd[8..16].copy_from_slice(&0x800_0000u64.to_le_bytes());
        gicd[20] = 3;
        let mut gicr = vec![0; 16];
        gicr[..2].copy_from_slice(&[0x0e, 16]);
        gicr[4..12].copy_from_slice(&0x80a_0000u64.to_le_bytes());
        gicr[12..16].copy_from_slice(&0xf6_0000u32.to_le_bytes());
        let mut its = vec![0; 20];
        its[..2].copy_from_slice(&[0x0f, 20]);
        its[4..8].copy_from_slice(&7u32.to_le_bytes());
        its[8..16].copy_from_slice(&0x808_0000u64.to_le_bytes());
        let body = [
            vec![0; 8],
            gicd,
            gicc_entry(1, 0, 0),
            gicc_entry(1, 0x100, 0x900_0000),
            gicc_entry(1, 0x100, 0),
            gicc_entry(0, 0x200, 0),
            gicr,
            its,
        ]
        .concat();
        let processor = |mpidr, redistributor| Gicc { mpidr, redistributor, maintenance: 25 };
        let wanted = Madt {
            processors: vec![processor(0, 0), processor(0x100, 0x900_0000)],
            distributor: Some((0x800_0000, 3)),
            redistributors: vec![(0x80a_0000, 0xf6_0000)],
            its: vec![Its { id: 7, base: 0x808_0000 }],
            damaged: false,
        };
        assert_eq!(madt(&table(&body)), wanted);
        assert!(madt(&table(&[&body[..], &[0x0b]].concat())).damaged);
        assert!(madt(&table(&[&body[..], &[0x0b, 80]].concat())).damaged);
        assert!(madt(&[]).damaged);
    }

    #[test]
    fn timers_and_psci() {
        let mut bytes = vec![0; 104];
        for (at, intid) in [(56, 30u32), (64, 27), (72, 26)] {
            bytes[at..at + 4].copy_from_slice(&intid.to_le_bytes());
        }
        let wanted = Timers { virtual_el1: 27, physical_el1: 30, physical_el2: 26 };
        assert_eq!(gtdt(&bytes), Some(wanted));
        assert_eq!(gtdt(&bytes[..75]), None);
        let mut fadt = vec![0; 276];
        assert_eq!(psci(&fadt), None);
        fadt[129] = 1;
        assert_eq!(psci(&fadt), Some(Conduit::Smc));
        fadt[129] = 3;
        assert_eq!(psci(&fadt), Some(Conduit::Hvc));
        assert_eq!(psci(&fadt[..130]), None);
    }

    #[test]
    fn serial_ports() {
        let mut bytes = vec![0; 80];
        bytes[36] = 3;
        bytes[44..52].copy_from_slice(&0x900_0000u64.to_le_bytes());
        bytes[52] = 8;
        bytes[54] = 33;
        let uart = |interrupt| Uart { base: 0x900_0000, interrupt };
        assert_eq!(spcr(&bytes), Some(uart(Some(33))));
        bytes[52] = 1;
        assert_eq!(spcr(&bytes), Some(uart(None)));
        bytes[36] = 0;
        assert_eq!(spcr(&bytes), None, "a 16550");

        let mut bytes = vec![0; 120];
        bytes[36] = 44;
        bytes[40] = 1;
        bytes[45] = 40;
        bytes[47] = 1;
        bytes[56..60].copy_from_slice(&[0, 0x80, 3, 0]);
        bytes[62] = 22;
        bytes[44 + 22 + 4..44 + 22 + 12].copy_from_slice(&0x900_0000u64.to_le_bytes());
        assert_eq!(dbg2(&bytes), Some(uart(None)));
        bytes[58] = 0;
        assert_eq!(dbg2(&bytes), None, "a 16550");
        bytes[58] = 3;
        bytes[44 + 22] = 1;
        assert_eq!(dbg2(&bytes), None, "not in memory");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_bad(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let madt = madt(&bytes);
            prop_assert!(madt.processors.len() <= bytes.len() / 76);
            gtdt(&bytes);
            psci(&bytes);
            spcr(&bytes);
            dbg2(&bytes);
        }
    }
}
