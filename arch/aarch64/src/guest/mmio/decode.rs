// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads and stores that the processor does not describe in the syndrome: pairs, forms with write-back, and
//! SIMD registers.
//!
//! **Principle.** Only instructions whose effect is one contiguous transfer are decoded. Exclusives, atomics,
//! tags, and the multiple-structure forms are none: software has no business using them on devices.
//!
//! Source: Arm DDI 0487 (Arm ARM), section C4.1.94 ("Loads and Stores"; C4.1.66 in earlier issues) and the
//! pages of LDP, STP, LDPSW, LDR, STR, LDUR, STUR, LDTR and STTR.

/// How a loaded value fills its register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extension {
    /// The rest of the register becomes zero.
    Zero,
    /// Sign-extended to 32 bits, the rest zero.
    Sign32,
    /// Sign-extended to 64 bits.
    Sign64,
}

/// What is added to the base register for the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offset {
    /// A constant in bytes.
    Immediate(i64),
    /// A register, extended as `option` (bits 15:13) says, shifted left.
    Register {
        /// Its number, 31 for XZR.
        register: u8,
        /// Extension: 2 UXTW, 3 LSL, 6 SXTW, 7 SXTX.
        option: u8,
        /// Bits.
        shift: u8,
    },
}

/// A load or store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Whether it is a load.
    pub load: bool,
    /// Whether its registers are SIMD and floating-point registers.
    pub simd: bool,
    /// Bytes of each register: 1, 2, 4, 8 or, for SIMD, 16.
    pub size: u8,
    /// Extension of what is loaded.
    pub extension: Extension,
    /// The first register; 31 is XZR where it is a general one.
    pub first: u8,
    /// The second register of a pair.
    pub second: Option<u8>,
    /// Base register; 31 is the stack pointer.
    pub base: u8,
    /// Added to the base for the address.
    pub offset: Offset,
    /// Added to the base register afterwards.
    pub write_back: Option<i64>,
}

/// `width` bits from `lowest`.
const fn field(instruction: u32, lowest: u32, width: u32) -> u32 {
    instruction >> lowest & ((1 << width) - 1)
}

/// `width` bits from `lowest` as a signed number.
const fn signed(instruction: u32, lowest: u32, width: u32) -> i64 {
    let shift = u32::BITS - width;
    ((field(instruction, lowest, width) << shift) as i32 >> shift) as i64
}

/// The transfer that an A64 instruction is; `None`: it is none, or none of those that are decoded.
pub fn decode(instruction: u32) -> Option<Transfer> {
    match field(instruction, 27, 3) {
        0b101 => pair(instruction),
        0b111 => single(instruction),
        _ => None,
    }
}

fn pair(instruction: u32) -> Option<Transfer> {
    let (opc, simd, load) =
        (field(instruction, 30, 2), field(instruction, 26, 1) != 0, field(instruction, 22, 1) != 0);
    let mode = field(instruction, 23, 3);
    let (size, extension) = match (simd, opc) {
        (true, 0..=2) => (4 << opc, Extension::Zero),
        (false, 0) => (4, Extension::Zero),
        // LDPSW; as a store it is STGP, and without allocation it does not exist.
        (false, 1) if load && mode != 0 => (4, Extension::Sign64),
        (false, 2) => (8, Extension::Zero),
        _ => return None,
    };
    let immediate = signed(instruction, 15, 7) * i64::from(size);
    let (offset, write_back) = match mode {
        // Without allocation, and signed offset.
        0b000 | 0b010 => (immediate, None),
        0b001 => (0, Some(immediate)),
        0b011 => (immediate, Some(immediate)),
        _ => return None,
    };
    Some(Transfer {
        load,
        simd,
        size,
        extension,
        first: field(instruction, 0, 5) as u8,
        second: Some(field(instruction, 10, 5) as u8),
        base: field(instruction, 5, 5) as u8,
        offset: Offset::Immediate(offset),
        write_back,
    })
}

fn single(instruction: u32) -> Option<Transfer> {
    let (scale, simd, opc) =
        (field(instruction, 30, 2), field(instruction, 26, 1) != 0, field(instruction, 22, 2));
    let (log_size, load, extension) = match (simd, opc) {
        (_, 0b00) => (scale, false, Extension::Zero),
        (_, 0b01) => (scale, true, Extension::Zero),
        // 16 bytes.
        (true, _) if scale == 0 => (4, opc & 1 != 0, Extension::Zero),
        // With a scale of 3 it is a prefetch.
        (false, 0b10) if scale < 3 => (scale, true, Extension::Sign64),
        (false, 0b11) if scale < 2 => (scale, true, Extension::Sign32),
        _ => return None,
    };
    let unscaled = signed(instruction, 12, 9);
    let register_form = field(instruction, 21, 1) != 0;
    let (offset, write_back) = match (field(instruction, 24, 2), register_form, field(instruction, 10, 2)) {
        (0b01, _, _) => (Offset::Immediate(i64::from(field(instruction, 10, 12)) << log_size), None),
        // Unscaled, and unprivileged (of which there are no SIMD forms).
        (0b00, false, 0b00) => (Offset::Immediate(unscaled), None),
        (0b00, false, 0b10) if !simd => (Offset::Immediate(unscaled), None),
        (0b00, false, 0b01) => (Offset::Immediate(0), Some(unscaled)),
        (0b00, false, 0b11) => (Offset::Immediate(unscaled), Some(unscaled)),
        (0b00, true, 0b10) => {
            let option = field(instruction, 13, 3) as u8;
            // Bit 1 of the option is always set.
            if option & 2 == 0 {
                return None;
            }
            let shift = if field(instruction, 12, 1) != 0 { log_size } else { 0 };
            let register =
                Offset::Register { register: field(instruction, 16, 5) as u8, option, shift: shift as u8 };
            (register, None)
        }
        // Atomics, and what is not allocated.
        _ => return None,
    };
    Some(Transfer {
        load,
        simd,
        size: 1 << log_size,
        extension,
        first: field(instruction, 0, 5) as u8,
        second: None,
        base: field(instruction, 5, 5) as u8,
        offset,
        write_back,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(load: bool, size: u8, first: u8, base: u8, offset: i64) -> Transfer {
        Transfer {
            load,
            simd: false,
            size,
            extension: Extension::Zero,
            first,
            second: None,
            base,
            offset: Offset::Immediate(offset),
            write_back: None,
        }
    }

    #[test]
    fn pairs() {
        // stp x1, x2, [x0]
        let stp = Transfer { second: Some(2), ..plain(false, 8, 1, 0, 0) };
        assert_eq!(decode(0xa900_0801), Some(stp));
        // ldp w3, w4, [sp, #-16]!
        let ldp = Transfer { second: Some(4), write_back: Some(-16), ..plain(true, 4, 3, 31, -16) };
        assert_eq!(decode(0x29fe_13e3), Some(ldp));
        // ldpsw x5, x6, [x7], #8
        let ldpsw = Transfer {
            extension: Extension::Sign64,
            second: Some(6),
            write_back: Some(8),
            ..plain(true, 4, 5, 7, 0)
        };
        assert_eq!(decode(0x68c1_18e5), Some(ldpsw));
        // stnp q0, q1, [x2, #32]
        let stnp = Transfer { simd: true, second: Some(1), ..plain(false, 16, 0, 2, 32) };
        assert_eq!(decode(0xac01_0440), Some(stnp));
    }

    #[test]
    fn singles() {
        // ldr x1, [x2], #8
        let post = Transfer { write_back: Some(8), ..plain(true, 8, 1, 2, 0) };
        assert_eq!(decode(0xf840_8441), Some(post));
        // strb w3, [x4, #-1]!
        let pre = Transfer { write_back: Some(-1), ..plain(false, 1, 3, 4, -1) };
        assert_eq!(decode(0x381f_fc83), Some(pre));
        // str q5, [x6, #16]
        let vector = Transfer { simd: true, ..plain(false, 16, 5, 6, 16) };
        assert_eq!(decode(0x3d80_04c5), Some(vector));
        // ldrsh w7, [x8, #6]
        let sign = Transfer { extension: Extension::Sign32, ..plain(true, 2, 7, 8, 6) };
        assert_eq!(decode(0x79c0_0d07), Some(sign));
        // ldr w9, [x10, w11, sxtw #2]
        let register = Transfer {
            offset: Offset::Register { register: 11, option: 6, shift: 2 },
            ..plain(true, 4, 9, 10, 0)
        };
        assert_eq!(decode(0xb86b_d949), Some(register));
    }

    #[test]
    fn what_is_no_plain_transfer_is_not_decoded() {
        for (instruction, what) in [
            (0xc85f_7c41, "ldxr x1, [x2]"),
            (0xc8df_fc41, "ldar x1, [x2]"),
            (0xf821_0043, "ldadd x1, x3, [x2]"),
            (0xd50b_7421, "dc zva, x1"),
            (0x4c40_7041, "ld1 {v1.16b}, [x2]"),
            (0xf980_0040, "prfm pldl1keep, [x2]"),
            (0x6900_0841, "stgp x1, x2, [x2]"),
            (0xd503_201f, "nop"),
            (0, "udf #0"),
        ] {
            assert_eq!(decode(instruction), None, "{what}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_decoded_is_a_transfer_of_a_size_that_exists(instruction: u32) {
            if let Some(transfer) = decode(instruction) {
                prop_assert!(matches!(transfer.size, 1 | 2 | 4 | 8) || transfer.simd && transfer.size == 16);
                prop_assert!(transfer.first < 32 && transfer.base < 32);
            }
        }
    }
}
