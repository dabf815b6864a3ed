// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the firmware's ACPI tables say, out of their bytes.
//!
//! **Principle.** Each function takes a whole table with its header, whose checksum somebody has verified,
//! and believes no length in it: whatever the bytes are, it returns. (The iterators of the `acpi` crate trust
//! the lengths of MADT entries and loop for ever on a zero; what is left to that crate is to find the tables.)
//!
//! Source: ACPI specification 6.5, 5.2; IA-PC HPET specification 1.0a.

use alloc::vec::Vec;

pub use pasidon_arch_common::firmware_tables::*;

/// How a device tree is read where the firmware has no ACPI tables: no PC has one.
pub const OF_DEVICE_TREE: Option<Translate> = None;

/// An I/O APIC of the MADT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// Its ID.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// The global system interrupt of its first input.
    pub gsi_base: u32,
}

/// What the MADT says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Madt {
    /// APIC IDs of the processors that are enabled, each once, in the table's order.
    pub processors: Vec<u32>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that are not the global system interrupt of the same number: both numbers.
    pub overrides: Vec<(u8, u32)>,
    /// The entries end in the middle of one: what follows was not read.
    pub damaged: bool,
}

impl Madt {
    /// The global system interrupt of an ISA interrupt.
    pub fn gsi_of_isa(&self, irq: u8) -> u32 {
        let found = self.overrides.iter().find(|(isa, _)| *isa == irq);
        found.map_or(u32::from(irq), |(_, gsi)| *gsi)
    }
}

/// Reads the MADT.
pub fn madt(table: &[u8]) -> Madt {
    /// Local APIC address and flags come between header and entries.
    const ENTRIES: usize = HEADER + 8;
    const LOCAL_APIC: u8 = 0;
    const IO_APIC: u8 = 1;
    const SOURCE_OVERRIDE: u8 = 2;
    const LOCAL_X2APIC: u8 = 9;
    const ENABLED: u32 = 1 << 0;
    let mut found = Madt::default();
    let mut rest = table.get(ENTRIES..).unwrap_or_default();
    found.damaged = table.len() < ENTRIES;
    while let [kind, length, ..] = *rest {
        let Some(entry) = rest.get(..usize::from(length)).filter(|entry| entry.len() >= 2) else {
            found.damaged = true;
            break;
        };
        rest = &rest[entry.len()..];
        let processor = match kind {
            LOCAL_APIC => entry.get(3).map(|id| u32::from(*id)).zip(u32_at(entry, 4)),
            LOCAL_X2APIC => u32_at(entry, 4).zip(u32_at(entry, 8)),
            IO_APIC => {
                if let (Some(&id), Some(address), Some(gsi_base)) =
                    (entry.get(2), u32_at(entry, 4), u32_at(entry, 8))
                {
                    found.io_apics.push(IoApic { id, address: u64::from(address), gsi_base });
                }
                None
            }
            SOURCE_OVERRIDE => {
                found.overrides.extend(entry.get(3).copied().zip(u32_at(entry, 4)));
                None
            }
            _ => None,
        };
        if let Some((id, flags)) = processor
            && flags & ENABLED != 0
            && !found.processors.contains(&id)
        {
            found.processors.push(id);
        }
    }
    found.damaged |= rest.len() == 1;
    found
}

/// A counter of known rate, to measure others by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReferenceClock {
    /// ACPI power-management timer.
    PmTimer {
        /// I/O port of its 32-bit register.
        port: u16,
        /// Bits that count.
        mask: u32,
    },
    /// High precision event timer.
    Hpet {
        /// Physical address of its registers.
        base: u64,
    },
}

/// The power-management timer of the FADT, if it is at an I/O port.
pub fn pm_timer(fadt: &[u8]) -> Option<ReferenceClock> {
    const PM_TMR_BLK: usize = 76;
    const PM_TMR_LEN: usize = 91;
    const FLAGS: usize = 112;
    const TMR_VAL_EXT: u32 = 1 << 8;
    const X_PM_TMR_BLK: usize = 208;
    const SYSTEM_IO: u8 = 1;
    if *fadt.get(PM_TMR_LEN)? != 4 {
        return None;
    }
    // A generic address: space, width, offset, access size, address. It is newer, so it comes first.
    let extended = match (fadt.get(X_PM_TMR_BLK), u64_at(fadt, X_PM_TMR_BLK + 4)) {
        (Some(&SYSTEM_IO), Some(address)) => u16::try_from(address).ok().filter(|port| *port != 0),
        _ => None,
    };
    let short = || u16::try_from(u32_at(fadt, PM_TMR_BLK)?).ok().filter(|port| *port != 0);
    let all_bits = u32_at(fadt, FLAGS)? & TMR_VAL_EXT != 0;
    Some(ReferenceClock::PmTimer {
        port: extended.or_else(short)?,
        mask: if all_bits { u32::MAX } else { 0xff_ffff },
    })
}

/// The event timer block of the HPET table, if it is in memory.
pub fn hpet(table: &[u8]) -> Option<ReferenceClock> {
    const BASE: usize = HEADER + 4;
    const SYSTEM_MEMORY: u8 = 0;
    let base = u64_at(table, BASE + 4)?;
    let usable = *table.get(BASE)? == SYSTEM_MEMORY && base != 0 && base.is_multiple_of(8);
    usable.then_some(ReferenceClock::Hpet { base })
}

/// How the machine is reset, from the FADT: an I/O port and the value to write there.
pub fn reset_register(fadt: &[u8]) -> Option<(u16, u8)> {
    const FLAGS: usize = 112;
    const RESET_REG_SUP: u32 = 1 << 10;
    const RESET_REG: usize = 116;
    const RESET_VALUE: usize = 128;
    const SYSTEM_IO: u8 = 1;
    let supported = u32_at(fadt, FLAGS)? & RESET_REG_SUP != 0 && *fadt.get(RESET_REG)? == SYSTEM_IO;
    let port = u16::try_from(u64_at(fadt, RESET_REG + 4)?).ok()?;
    supported.then_some((port, *fadt.get(RESET_VALUE)?))
}

/// How the machine is switched off: power-management control registers (the second may be absent), and
/// the sleep types to write to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SoftOff {
    /// PM1a_CNT: port and SLP_TYP.
    pub first: (u16, u8),
    /// PM1b_CNT: port and SLP_TYP.
    pub second: Option<(u16, u8)>,
}

impl SoftOff {
    /// The value for a control register: SLP_EN and SLP_TYP (ACPI 4.8.3.2.1).
    pub const fn value(sleep_type: u8) -> u16 {
        const SLP_EN: u16 = 1 << 13;
        const SLP_TYP_SHIFT: u32 = 10;
        SLP_EN | (sleep_type as u16 & 7) << SLP_TYP_SHIFT
    }
}

/// How the machine is switched off. The sleep types are those of the object `_S5_` in the DSDT, a package
/// that every firmware writes as constants, so that it can be read without interpreting anything.
pub fn soft_off(fadt: &[u8], dsdt: &[u8]) -> Option<SoftOff> {
    const PM1A_CNT: usize = 64;
    const PM1B_CNT: usize = 68;
    let port = |offset| u16::try_from(u32_at(fadt, offset)?).ok().filter(|port| *port != 0);
    let (first, second) = s5(dsdt)?;
    Some(SoftOff { first: (port(PM1A_CNT)?, first), second: port(PM1B_CNT).map(|port| (port, second)) })
}

/// The first two elements of the package `_S5_` (ACPI 20.2: DefName, DefPackage).
fn s5(aml: &[u8]) -> Option<(u8, u8)> {
    const NAME: &[u8] = b"_S5_";
    const PACKAGE_OP: u8 = 0x12;
    let mut at = aml.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    if *aml.get(at)? != PACKAGE_OP {
        return None;
    }
    // PkgLength: its first byte says how many more there are. Then NumElements.
    at += 2 + usize::from(aml.get(at + 1)? >> 6) + 1;
    let mut constant = || {
        const ZERO: u8 = 0x00;
        const ONE: u8 = 0x01;
        const BYTE_PREFIX: u8 = 0x0a;
        let value = match *aml.get(at)? {
            value @ (ZERO | ONE) => value,
            BYTE_PREFIX => {
                at += 1;
                *aml.get(at)?
            }
            _ => return None,
        };
        at += 1;
        Some(value)
    };
    Some((constant()?, constant()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(body: &[u8]) -> Vec<u8> {
        [&[0; HEADER], body].concat()
    }

    #[test]
    fn processors_are_those_that_are_enabled_each_once() {
        let body = [
            &[0u8; 8][..],
            &[0, 8, 0, 0, 1, 0, 0, 0],
            &[0, 8, 1, 1, 0, 0, 0, 0],
            &[1, 12, 7, 0, 0, 0, 0xc0, 0xfe, 24, 0, 0, 0],
            &[9, 16, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0],
            &[9, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0],
            &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
            &[4, 6, 0xff, 0, 0, 1],
        ]
        .concat();
        let io_apic = IoApic { id: 7, address: 0xfec0_0000, gsi_base: 24 };
        let wanted = Madt {
            processors: vec![0, 300],
            io_apics: vec![io_apic],
            overrides: vec![(0, 2)],
            damaged: false,
        };
        assert_eq!(madt(&table(&body)), wanted);
        assert_eq!((wanted.gsi_of_isa(0), wanted.gsi_of_isa(4)), (2, 4));
        assert!(madt(&table(&[&body[..], &[0]].concat())).damaged);
        assert!(madt(&table(&[&body[..], &[0, 0]].concat())).damaged);
        assert!(madt(&[]).damaged);
    }

    #[test]
    fn the_off_switch_is_found_in_the_bytecode() {
        let mut fadt = vec![0; 244];
        fadt[64..66].copy_from_slice(&0x604u16.to_le_bytes());
        let aml = |package: &[u8]| [b"\x5b\x80junk\x08_S5_", package].concat();
        let q35 = aml(&[0x12, 0x06, 0x04, 0, 0, 0, 0]);
        let off = soft_off(&fadt, &q35).unwrap();
        assert_eq!((off.first, off.second), ((0x604, 0), None));
        assert_eq!(SoftOff::value(5), 0x3400);
        fadt[68] = 8;
        let other = aml(&[0x12, 0x47, 0x01, 0x04, 0x0a, 7, 0x0a, 6, 0, 0]);
        let off = soft_off(&fadt, &other).unwrap();
        assert_eq!((off.first, off.second), ((0x604, 7), Some((8, 6))));
        for broken in [&b"_S5"[..], b"_S5_", b"_S5_\x12", b"_S5_\x12\xff\x01", b"_S5_\x12\x06\x04\x0b\x01"] {
            assert_eq!(soft_off(&fadt, broken), None);
        }
        assert_eq!(soft_off(&[], &q35), None);
    }

    #[test]
    fn timers() {
        let mut fadt = vec![0; 244];
        assert_eq!(pm_timer(&fadt), None);
        fadt[76..80].copy_from_slice(&0x608u32.to_le_bytes());
        fadt[91] = 4;
        assert_eq!(pm_timer(&fadt), Some(ReferenceClock::PmTimer { port: 0x608, mask: 0xff_ffff }));
        fadt[113] = 1;
        fadt[208] = 1;
        fadt[212..214].copy_from_slice(&0xb008u16.to_le_bytes());
        assert_eq!(pm_timer(&fadt), Some(ReferenceClock::PmTimer { port: 0xb008, mask: u32::MAX }));
        assert_eq!(pm_timer(&fadt[..100]), None);
        let mut body = vec![0; 20];
        body[8..16].copy_from_slice(&0xfed0_0000u64.to_le_bytes());
        assert_eq!(hpet(&table(&body)), Some(ReferenceClock::Hpet { base: 0xfed0_0000 }));
        body[4] = 1;
        assert_eq!(hpet(&table(&body)), None);
        assert_eq!(reset_register(&fadt), None);
        fadt[113] |= 4;
        fadt[116] = 1;
        fadt[120..122].copy_from_slice(&0xcf9u16.to_le_bytes());
        fadt[128] = 0xf;
        assert_eq!(reset_register(&fadt), Some((0xcf9, 0xf)));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_bad(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let madt = madt(&bytes);
            prop_assert!(madt.processors.len() <= bytes.len() / 8);
            pm_timer(&bytes);
            hpet(&bytes);
            reset_register(&bytes);
        }
    }
}
