// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers of distributor and redistributor: offsets, and which INTIDs an offset is about.
//!
//! Source: Arm IHI 0069 (GICv3 and GICv4), chapter 12: sections 12.8 to 12.11, and 12.1.3 for access sizes.

/// Distributor register offsets.
pub(super) mod gicd {
    pub const CTLR: u64 = 0x0;
    pub const TYPER: u64 = 0x4;
    pub const IIDR: u64 = 0x8;
    /// Makes an SPI pending: the doorbell of message-signalled interrupts.
    pub const SETSPI_NSR: u64 = 0x40;
    pub const CLRSPI_NSR: u64 = 0x48;
    pub const IROUTER: u64 = 0x6000;
    pub const IROUTER_END: u64 = 0x7fd8 + 8;
}

/// Redistributor register offsets: RD_base.
pub(super) mod gicr {
    pub const CTLR: u64 = 0x0;
    pub const IIDR: u64 = 0x4;
    pub const TYPER: u64 = 0x8;
    pub const TYPER_HIGH: u64 = 0xc;
    pub const WAKER: u64 = 0x14;
    /// Where SGI_base starts.
    pub const SGI_BASE: u64 = 0x1_0000;
}

/// Peripheral ID2, alike in both: GICv3, with the JEDEC bit and the top of Arm's JEP106 code.
pub(super) const PIDR2: u64 = 0xffe8;
pub(super) const PIDR2_GICV3: u32 = 0x3b;
/// IIDR: product "P", implementer Arm (whose architecture it is); no kernel has a quirk for it.
pub(super) const IIDR_VALUE: u32 = 0x5000_043b;

/// GICD_CTLR, in a system with one Security state.
pub(super) mod ctlr {
    pub const ENABLE_GROUP0: u32 = 1;
    pub const ENABLE_GROUP1: u32 = 1 << 1;
    /// Affinity routing: always on.
    pub const ARE: u32 = 1 << 4;
    /// One Security state: always.
    pub const DS: u32 = 1 << 6;
    pub const WRITABLE: u32 = ENABLE_GROUP0 | ENABLE_GROUP1;
}

/// GICD_TYPER.
pub(super) mod typer {
    /// Message-based SPIs: GICD_SETSPI_NSR and GICD_CLRSPI_NSR work.
    pub const MBIS: u32 = 1 << 16;
    pub const ID_BITS_SHIFT: u32 = 19;
    /// 1-of-N routing is not supported.
    pub const NO_1_OF_N: u32 = 1 << 25;
}

/// GICR_TYPER: the last redistributor of a contiguous region.
pub(super) const GICR_TYPER_LAST: u64 = 1 << 4;

/// GICR_WAKER.
pub(super) mod waker {
    pub const PROCESSOR_SLEEP: u32 = 1 << 1;
    pub const CHILDREN_ASLEEP: u32 = 1 << 2;
}

/// A register array with a field per INTID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bank {
    /// IGROUPR: 1 bit.
    Group,
    /// ISENABLER: 1 bit.
    SetEnable,
    /// ICENABLER: 1 bit.
    ClearEnable,
    /// ISPENDR: 1 bit.
    SetPending,
    /// ICPENDR: 1 bit.
    ClearPending,
    /// ISACTIVER: 1 bit.
    SetActive,
    /// ICACTIVER: 1 bit.
    ClearActive,
    /// IPRIORITYR: 8 bits.
    Priority,
    /// ICFGR: 2 bits.
    Config,
}

impl Bank {
    /// Bits of one INTID.
    pub const fn width(self) -> u32 {
        match self {
            Self::Priority => 8,
            Self::Config => 2,
            _ => 1,
        }
    }
}

/// Offset of each bank in the distributor and, for INTIDs 0 to 31, in SGI_base.
const BANKS: [(u64, Bank); 9] = [
    (0x080, Bank::Group),
    (0x100, Bank::SetEnable),
    (0x180, Bank::ClearEnable),
    (0x200, Bank::SetPending),
    (0x280, Bank::ClearPending),
    (0x300, Bank::SetActive),
    (0x380, Bank::ClearActive),
    (0x400, Bank::Priority),
    (0xc00, Bank::Config),
];

/// INTIDs that a bank has fields for.
const BANK_INTIDS: u64 = 1024;

/// INTIDs that an access of `size` bytes at `offset` is about: the bank, the first, and how many. `None` where
/// there is no such register, or it takes no access of that size.
pub(super) fn decode(offset: u64, size: u8) -> Option<(Bank, u32, u32)> {
    let (start, bank) = *BANKS.iter().rev().find(|(start, _)| *start <= offset)?;
    let width = u64::from(bank.width());
    let inside = offset - start;
    let fits = inside < BANK_INTIDS * width / 8
        && match size {
            4 => inside.is_multiple_of(4),
            1 => bank == Bank::Priority,
            _ => false,
        };
    // Everything is below 1024.
    fits.then(|| (bank, (inside * 8 / width) as u32, (u64::from(size) * 8 / width) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_lead_to_intids() {
        assert_eq!(decode(0x080, 4), Some((Bank::Group, 0, 32)));
        assert_eq!(decode(0x104, 4), Some((Bank::SetEnable, 32, 32)));
        assert_eq!(decode(0x3fc, 4), Some((Bank::ClearActive, 992, 32)));
        assert_eq!(decode(0x421, 1), Some((Bank::Priority, 33, 1)));
        assert_eq!(decode(0x420, 4), Some((Bank::Priority, 32, 4)));
        assert_eq!(decode(0xc08, 4), Some((Bank::Config, 32, 16)));
    }

    #[test]
    fn other_sizes_and_holes_are_nothing() {
        for (offset, size) in
            [(0x100, 1), (0x102, 4), (0x100, 8), (0x420, 2), (0x800, 4), (0xd00, 4), (0x4, 4)]
        {
            assert_eq!(decode(offset, size), None, "{offset:#x} {size}");
        }
    }
}
