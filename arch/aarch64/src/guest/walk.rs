// SPDX-License-Identifier: MIT OR Apache-2.0
//! The walk of the guest's stage 1, as the processor does it to fetch an instruction.
//!
//! **Principle.** The guest's tables are input. Each descriptor is read once, through [`GuestMemory`], which knows
//! RAM only; so no device is read for a translation, and what hardware would answer with an external abort is no
//! translation here. (AT, which would have the processor do it, could take that abort at EL2.)
//! **Invariant.** A walk reads at most [`LEVELS_MAX`] descriptors.
//!
//! Permissions, access flags and attributes are not looked at: the processor fetched the instruction before.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D8.2 (address size and level of the walk), D8.3 (descriptor
//! formats), TCR_EL1, TTBR0_EL1.

use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::GuestMemory;

/// Levels -1 to 3.
pub const LEVELS_MAX: u32 = 5;

/// The registers that a walk starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage1 {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
}

/// SCTLR_EL1 bits.
mod sctlr {
    /// Translation is on.
    pub const M: u64 = 1 << 0;
    /// Tables are big-endian.
    pub const EE: u64 = 1 << 25;
}

/// TCR_EL1 fields.
mod tcr {
    pub const SIZE: u64 = 0x3f;
    pub const T1SZ_SHIFT: u32 = 16;
    /// No walks by TTBR0_EL1, by TTBR1_EL1.
    pub const EPD0: u64 = 1 << 7;
    pub const EPD1: u64 = 1 << 23;
    pub const TG0_SHIFT: u32 = 14;
    pub const TG1_SHIFT: u32 = 30;
    pub const IPS_SHIFT: u32 = 32;
    /// 52-bit addresses with pages of 4 and 16 KiB.
    pub const DS: u64 = 1 << 59;
}

/// Descriptor bits.
mod descriptor {
    pub const VALID: u64 = 1 << 0;
    /// A table, or in the last level a page; otherwise a block.
    pub const TABLE_OR_PAGE: u64 = 1 << 1;
}

/// Bytes of a descriptor, as a power of two.
const DESCRIPTOR_SHIFT: u32 = 3;
/// The bit of a virtual address that says whose half it is in.
const UPPER_HALF: u64 = 1 << 55;

/// `width` bits from `low`.
const fn field(value: u64, low: u32, width: u32) -> u64 {
    value >> low & ((1 << width) - 1)
}

/// How one half of the address space is translated.
struct Half {
    ttbr: u64,
    /// Bits of a virtual address.
    input: u32,
    /// Bits of the offset in a page: 12, 14 or 16.
    page: u32,
    /// Addresses have the bits that 52-bit formats keep elsewhere.
    long: bool,
}

impl Half {
    /// The half that `address` is in; `None` where nothing is translated.
    fn of(stage1: &Stage1, address: u64) -> Option<Self> {
        const LARGEST_PAGE: u32 = 16;
        const PHYSICAL_52_BITS: u64 = 6;
        let Stage1 { tcr, ttbr0, ttbr1, .. } = *stage1;
        let upper = address & UPPER_HALF != 0;
        let (ttbr, off, size, granule) = if upper {
            (
                ttbr1,
                tcr::EPD1,
                tcr >> tcr::T1SZ_SHIFT,
                [None, Some(14), Some(12), Some(16)][field(tcr, tcr::TG1_SHIFT, 2) as usize],
            )
        } else {
            (
                ttbr0,
                tcr::EPD0,
                tcr,
                [Some(12), Some(16), Some(14), None][field(tcr, tcr::TG0_SHIFT, 2) as usize],
            )
        };
        let page = granule?;
        let input = u64::BITS - (size & tcr::SIZE) as u32;
        let wide = tcr & tcr::DS != 0;
        let largest = if wide || page == LARGEST_PAGE { 52 } else { 48 };
        // Sizes that no processor has are no translation, which is one of the answers that are allowed.
        let sane = input > page && input <= largest && tcr & off == 0;
        // What is above the size is all zeros or all ones.
        let sign = address.cast_signed() >> input.min(u64::BITS - 1);
        let canonical = sign == if upper { -1 } else { 0 };
        (sane && canonical).then_some(Self {
            ttbr,
            input,
            page,
            long: if page == LARGEST_PAGE { field(tcr, tcr::IPS_SHIFT, 3) == PHYSICAL_52_BITS } else { wide },
        })
    }

    /// Bits that one level translates.
    const fn stride(&self) -> u32 {
        self.page - DESCRIPTOR_SHIFT
    }

    /// The address in a descriptor, from bit `low` on.
    const fn address(&self, descriptor: u64, low: u32) -> u64 {
        const TOP: u32 = 48;
        const TOP_LONG: u32 = 50;
        const LARGEST_PAGE: u32 = 16;
        let (top, rest) = match (self.long, self.page) {
            (false, _) => (TOP, 0),
            (true, LARGEST_PAGE) => (TOP, field(descriptor, 12, 4) << TOP),
            (true, _) => (TOP_LONG, field(descriptor, 8, 2) << TOP_LONG),
        };
        field(descriptor, low, top - low) << low | rest
    }

    /// Where the first table is, which has `entries` (a power of two) descriptors.
    const fn root(&self, entries: u32) -> u64 {
        const BADDR_TOP: u32 = 48;
        /// Tables are aligned to their size, and to this where an address has 52 bits.
        const LEAST_LONG: u32 = 6;
        let size = entries + DESCRIPTOR_SHIFT;
        if self.long {
            let low = if size > LEAST_LONG { size } else { LEAST_LONG };
            field(self.ttbr, low, BADDR_TOP - low) << low | field(self.ttbr, 2, 4) << BADDR_TOP
        } else {
            field(self.ttbr, size, BADDR_TOP - size) << size
        }
    }

    /// Whether a descriptor of this many levels above the last may be a block.
    const fn has_blocks(&self, above: u32) -> bool {
        match (self.page, above) {
            (_, 1) => true,
            (12, 2) => true,
            (_, 2) => self.long,
            (12, 3) => self.long,
            _ => false,
        }
    }
}

/// Where the instruction at this virtual address is in guest-physical memory; `None` where there is no translation.
/// What comes out need not be RAM.
pub fn instruction(stage1: &Stage1, memory: &dyn GuestMemory, address: u64) -> Option<GuestPhys> {
    if stage1.sctlr & sctlr::M == 0 {
        return Some(GuestPhys(address));
    }
    let half = Half::of(stage1, address)?;
    let stride = half.stride();
    let levels = (half.input - half.page).div_ceil(stride);
    let first = half.input - half.page - (levels - 1) * stride;
    let mut table = half.root(first);
    let mut bits = first;
    for above in (0..levels).rev() {
        let low = half.page + above * stride;
        let index = field(address, low, bits);
        let mut bytes = [0; 1 << DESCRIPTOR_SHIFT];
        memory.read(GuestPhys(table + (index << DESCRIPTOR_SHIFT)), &mut bytes).ok()?;
        let descriptor =
            if stage1.sctlr & sctlr::EE == 0 { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) };
        if descriptor & descriptor::VALID == 0 {
            return None;
        }
        let table_or_page = descriptor & descriptor::TABLE_OR_PAGE != 0;
        if above == 0 || !table_or_page {
            let maps = if above == 0 { table_or_page } else { half.has_blocks(above) };
            let offset = field(address, 0, low);
            return maps.then(|| GuestPhys(half.address(descriptor, low) | offset));
        }
        table = half.address(descriptor, half.page);
        bits = stride;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_arch_common::testing::TestMemory;
    use proptest::prelude::*;

    const BASE: u64 = 0x4000_0000;
    const ON: u64 = sctlr::M;

    /// 48-bit halves with pages of 4 KiB, both by the table at the start of RAM.
    fn stage1() -> Stage1 {
        Stage1 { sctlr: ON, tcr: 16 | 16 << 16 | 0b10 << 30, ttbr0: BASE | 1, ttbr1: BASE | 7 << 48 }
    }

    fn tables() -> TestMemory {
        let memory = TestMemory::new(BASE, 0x1_0000);
        for (at, descriptor) in [
            (0x0000, BASE + 0x1000),
            (0x0ff8, BASE + 0x1000),
            (0x1000, BASE + 0x2000),
            (0x2000, BASE + 0x3000),
            // A page, with upper and lower attributes.
            (0x3008, 0x0060_0000_4567_8000 | 0xf44),
        ] {
            memory.put_u64(BASE + at, descriptor | 3);
        }
        // A block of 2 MiB, one of 1 GiB, and what looks like one of 512 GiB.
        memory.put_u64(BASE + 0x2008, 0x4020_0000 | 0x701);
        memory.put_u64(BASE + 0x1008, 0x8000_0000 | 0x701);
        memory.put_u64(BASE + 8, 0x701);
        memory
    }

    #[test]
    fn four_levels_lead_to_pages_and_blocks() {
        let (stage1, memory) = (stage1(), tables());
        let at = |address| instruction(&stage1, &memory, address).map(|at| at.0);
        assert_eq!(at(0x1234), Some(0x4567_8234));
        assert_eq!(at(0x21_2345), Some(0x4021_2345));
        assert_eq!(at(0x4000_0044), Some(0x8000_0044));
        assert_eq!(at(0xffff_ff80_0000_1234), Some(0x4567_8234), "TTBR1_EL1");
        for nothing in [0x2000, 0x40_0000, 0x8000_0000, 1 << 39, 1 << 48, 0xfffe_ffff_ffff_f000] {
            assert_eq!(at(nothing), None, "{nothing:#x}");
        }
        let off = Stage1 { sctlr: 0, ..stage1 };
        assert_eq!(instruction(&off, &memory, 0x1234), Some(GuestPhys(0x1234)));
        for closed in [tcr::EPD0, 0b11 << 14, 50] {
            let stage1 = Stage1 { tcr: stage1.tcr | closed, ..stage1 };
            assert_eq!(instruction(&stage1, &memory, 0x1234), None);
        }
    }

    #[test]
    fn small_spaces_start_further_down() {
        let memory = tables();
        // 39 bits: the first table is of level 1. 25 bits: of level 2, with 16 descriptors.
        for (bits, table) in [(39, 0x1000), (30, 0x2000), (25, 0x2000)] {
            let stage1 = Stage1 { tcr: 64 - bits, ttbr0: BASE + table, ..stage1() };
            assert_eq!(instruction(&stage1, &memory, 0x1238), Some(GuestPhys(0x4567_8238)));
            assert_eq!(instruction(&stage1, &memory, 1 << bits), None);
        }
    }

    #[test]
    fn larger_pages_and_longer_addresses() {
        let memory = TestMemory::new(BASE, 0x4_0000);
        // 64 KiB, 42 bits: levels 2 and 3.
        memory.put_u64(BASE + 8, BASE + 0x1_0003);
        memory.put_u64(BASE + 0x1_0010, 0x4567_0003);
        let large = Stage1 { sctlr: ON, tcr: 22 | 0b01 << 14, ttbr0: BASE, ttbr1: 0 };
        assert_eq!(instruction(&large, &memory, 0x2002_1234), Some(GuestPhys(0x4567_1234)));
        // The same with 52-bit addresses: 51:48 are where the offset would be.
        memory.put_u64(BASE + 0x1_0018, 0x4567_a003);
        let long = Stage1 { tcr: large.tcr | 6 << 32, ..large };
        assert_eq!(instruction(&long, &memory, 0x2003_1234), Some(GuestPhys(0xa_0000_4567_1234)));
        // 16 KiB, 36 bits: levels 2 and 3, two descriptors at the top... 25 + 11 bits.
        memory.put_u64(BASE + 0x8000, BASE + 0xc003);
        memory.put_u64(BASE + 0xc008, 0x4567_8003);
        let medium = Stage1 { tcr: 28 | 0b10 << 14, ttbr0: BASE + 0x8000, ..large };
        assert_eq!(instruction(&medium, &memory, 0x5678), Some(GuestPhys(0x4567_9678)));
        // LPA2: five levels, and bits 51:50 of an address in 9:8.
        for (at, descriptor) in
            [(0x2_0000, 0x2_1000), (0x2_1000, 0x2_2000), (0x2_2000, 0x2_3000), (0x2_3000, 0x2_4000)]
        {
            memory.put_u64(BASE + at, (BASE + descriptor) | 3);
        }
        memory.put_u64(BASE + 0x2_4000, 0x4567_8103);
        let lpa2 = Stage1 { tcr: 12 | tcr::DS, ttbr0: BASE + 0x2_0000, ..large };
        assert_eq!(instruction(&lpa2, &memory, 0x678), Some(GuestPhys(1 << 50 | 0x4567_8678)));
    }

    #[test]
    fn tables_outside_of_ram_are_none() {
        let memory = tables();
        let elsewhere = Stage1 { ttbr0: 0x1000_0000, ..stage1() };
        assert_eq!(instruction(&elsewhere, &memory, 0x1234), None);
        memory.put_u64(BASE + 0x1000, 0x0900_0003);
        assert_eq!(instruction(&stage1(), &memory, 0x1234), None);
    }

    #[test]
    fn big_endian_tables_are_read_as_such() {
        let memory = TestMemory::new(BASE, 0x1000);
        memory.put(BASE, &(0x4020_0001_u64).to_be_bytes());
        let stage1 = Stage1 { sctlr: ON | sctlr::EE, tcr: 34, ttbr0: BASE, ttbr1: 0 };
        assert_eq!(instruction(&stage1, &memory, 0x1234), Some(GuestPhys(0x4020_1234)));
    }

    proptest! {
        #[test]
        fn a_walk_ends_and_reads_few_descriptors(
            sctlr: u64, tcr: u64, ttbr: u64, address: u64, words in proptest::collection::vec(any::<u64>(), 64),
        ) {
            struct Random(Vec<u64>, core::cell::Cell<u32>);
            impl GuestMemory for Random {
                fn read(
                    &self, at: GuestPhys, buffer: &mut [u8],
                ) -> Result<(), pasidon_kernel::memory::BadGuestAddress> {
                    let Self(words, reads) = self;
                    reads.set(reads.get() + 1);
                    buffer.copy_from_slice(&(words[(at.0 >> 3) as usize % words.len()] | 1).to_le_bytes());
                    Ok(())
                }
                fn write(&self, _: GuestPhys, _: &[u8]) -> Result<(), pasidon_kernel::memory::BadGuestAddress> {
                    unreachable!("a walk changes nothing")
                }
                fn ram_size(&self) -> u64 {
                    u64::MAX
                }
            }
            let stage1 = Stage1 { sctlr, tcr, ttbr0: ttbr, ttbr1: ttbr.rotate_left(7) };
            let memory = Random(words, core::cell::Cell::new(0));
            for address in [address, address >> 16, !(address >> 16)] {
                memory.1.set(0);
                let _ = instruction(&stage1, &memory, address);
                prop_assert!(memory.1.get() <= LEVELS_MAX);
            }
        }
    }
}
