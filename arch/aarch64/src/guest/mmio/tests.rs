// SPDX-License-Identifier: MIT OR Apache-2.0
use proptest::prelude::*;

use super::*;

#[derive(Clone, PartialEq, Debug)]
struct Guest {
    x: [u64; 31],
    sp: u64,
    v: [u128; 32],
}

impl Guest {
    fn new() -> Self {
        Self {
            x: core::array::from_fn(|i| 0x1111_1111_1111_1111 * (i as u64 % 16)),
            sp: 0x8000,
            v: core::array::from_fn(|i| ((i as u128 * 0x0101) << 64) | i as u128),
        }
    }
}

impl GuestRegisters for Guest {
    fn x(&self, number: u8) -> u64 {
        self.x[usize::from(number)]
    }
    fn set_x(&mut self, number: u8, value: u64) {
        self.x[usize::from(number)] = value;
    }
    fn sp(&self) -> u64 {
        self.sp
    }
    fn set_sp(&mut self, value: u64) {
        self.sp = value;
    }
    fn v(&self, number: u8) -> u128 {
        self.v[usize::from(number)]
    }
    fn set_v(&mut self, number: u8, value: u128) {
        self.v[usize::from(number)] = value;
    }
}

const DEVICE: u64 = 0x900_0000;
/// Translation fault, level 3.
const NOT_MAPPED: u32 = 7;
/// What the device answers, and more than it was asked for.
const ANSWER: u64 = 0x8081_8283_8485_8687;

fn abort(iss: u32, virtual_address: u64) -> DataAbort {
    DataAbort {
        iss: iss | NOT_MAPPED,
        address: virtual_address,
        guest_physical: DEVICE | virtual_address & 0xfff,
    }
}

/// Performs an access and returns the device's view of it.
fn run(guest: &mut Guest, abort: &DataAbort, instruction: Option<u32>) -> Result<Vec<Access>, Refused> {
    let mut seen = Vec::new();
    let result = perform(abort, guest, &mut || instruction, &mut |access| {
        seen.push(access);
        ANSWER
    });
    assert!(result.is_ok() || seen.is_empty(), "a refused access reached the device");
    result.map(|()| seen)
}

fn described_access(load: bool, sas: u32, sse: bool, sf: bool, srt: u32) -> u32 {
    iss::ISV
        | sas << iss::SAS_SHIFT
        | srt << iss::SRT_SHIFT
        | if sse { iss::SSE } else { 0 }
        | if sf { iss::SF } else { 0 }
        | if load { 0 } else { iss::WNR }
}

fn read(address: u64, size: u8) -> Access {
    Access { address, size, kind: AccessKind::Read }
}

fn write(address: u64, size: u8, value: u64) -> Access {
    Access { address, size, kind: AccessKind::Write(value) }
}

#[test]
fn a_described_load_fills_its_register_as_asked() {
    for (sas, sse, sf, expected) in [
        (0, false, false, 0x87),
        (0, true, false, 0xffff_ff87),
        (1, true, true, 0xffff_ffff_ffff_8687),
        (2, false, false, 0x8485_8687),
        (2, true, true, 0xffff_ffff_8485_8687),
        (3, false, true, ANSWER),
    ] {
        let mut guest = Guest::new();
        let iss = described_access(true, sas, sse, sf, 5);
        let seen = run(&mut guest, &abort(iss, 0x18), None);
        assert_eq!(seen, Ok(vec![read(DEVICE + 0x18, 1 << sas)]));
        assert_eq!(guest.x[5], expected);
    }
}

#[test]
fn a_described_store_writes_its_register_or_zero() {
    let mut guest = Guest::new();
    let store = |srt| abort(described_access(false, 2, false, false, srt), 0);
    assert_eq!(run(&mut guest, &store(3), None), Ok(vec![write(DEVICE, 4, 0x3333_3333)]));
    assert_eq!(run(&mut guest, &store(31), None), Ok(vec![write(DEVICE, 4, 0)]));
    let before = guest.clone();
    let load = abort(described_access(true, 3, false, true, 31), 0);
    run(&mut guest, &load, None).unwrap();
    assert_eq!(guest, before, "a load to XZR changes nothing");
}

#[test]
fn pairs_and_write_back_are_decoded() {
    let mut guest = Guest::new();
    guest.x[0] = 0x7010;
    // stp x1, x2, [x0]
    let seen = run(&mut guest, &abort(iss::WNR, 0x7010), Some(0xa900_0801));
    let at = DEVICE + 0x10;
    assert_eq!(seen, Ok(vec![write(at, 8, 0x1111_1111_1111_1111), write(at + 8, 8, 0x2222_2222_2222_2222)]));
    // ldp w3, w4, [sp, #-16]!
    let seen = run(&mut guest, &abort(0, 0x7ff0), Some(0x29fe_13e3));
    assert_eq!(seen, Ok(vec![read(DEVICE + 0xff0, 4), read(DEVICE + 0xff4, 4)]));
    assert_eq!((guest.x[3], guest.x[4], guest.sp), (0x8485_8687, 0x8485_8687, 0x7ff0));
    // ldr x1, [x2], #8
    guest.x[2] = 0x20;
    run(&mut guest, &abort(0, 0x20), Some(0xf840_8441)).unwrap();
    assert_eq!((guest.x[1], guest.x[2]), (ANSWER, 0x28));
}

#[test]
fn vectors_are_two_accesses_of_eight_bytes() {
    let mut guest = Guest::new();
    guest.x[6] = 0x100;
    // str q5, [x6, #16]
    let seen = run(&mut guest, &abort(iss::WNR, 0x110), Some(0x3d80_04c5));
    let at = DEVICE + 0x110;
    assert_eq!(seen, Ok(vec![write(at, 8, 5), write(at + 8, 8, 0x505)]));
    // ldr q5, [x6, #16]
    run(&mut guest, &abort(0, 0x110), Some(0x3dc0_04c5)).unwrap();
    assert_eq!(guest.v[5], u128::from(ANSWER) << 64 | u128::from(ANSWER));
}

#[test]
fn an_index_register_is_extended_and_shifted() {
    let mut guest = Guest::new();
    guest.x[10] = 0x1008;
    guest.x[11] = 0xffff_ffff;
    // ldr w9, [x10, w11, sxtw #2]
    assert!(run(&mut guest, &abort(0, 0x1004), Some(0xb86b_d949)).is_ok());
    // The same with uxtw.
    assert!(run(&mut guest, &abort(0, 0x4_0000_1004), Some(0xb86b_5949)).is_ok());
}

#[test]
fn what_is_refused_changes_nothing_and_says_why() {
    let mut guest = Guest::new();
    guest.x[0] = 0xff8;
    guest.x[2] = 0;
    let before = guest.clone();
    let isv = described_access(true, 2, false, false, 1);
    for (iss, address, instruction, why) in [
        (isv | iss::S1PTW, 0, None, Refused::TableWalk),
        // Permission fault, level 3.
        (isv | 0xf, 0, None, Refused::Fault(0xf)),
        (isv, 0xffe, None, Refused::Straddles),
        (0, 0, None, Refused::NoInstruction),
        // ldxr x1, [x2]
        (0, 0, Some(0xc85f_7c41), Refused::Instruction(0xc85f_7c41)),
        // A load where the processor saw a store.
        (iss::WNR, 0, Some(0xf840_8441), Refused::Instruction(0xf840_8441)),
        // stp x1, x2, [x0]: from the end of a page, and with its first half before the device.
        (iss::WNR, 0xff8, Some(0xa900_0801), Refused::Straddles),
        (iss::WNR, 0x1000, Some(0xa900_0801), Refused::Straddles),
    ] {
        assert_eq!(run(&mut guest, &abort(iss, address), instruction), Err(why));
        assert!(!why.to_string().contains('\n'));
    }
    assert_eq!(guest, before);
}

#[test]
fn cache_maintenance_is_done_without_the_device() {
    let mut guest = Guest::new();
    assert_eq!(run(&mut guest, &abort(iss::CM | iss::WNR, 0), None), Ok(vec![]));
}

#[test]
fn the_page_is_from_one_register_and_the_offset_from_the_other() {
    assert_eq!(guest_physical(0x9_0000 << 4 >> 4, 0xffff_0000_0000_0018), 0x900_0018);
    assert_eq!(guest_physical(u64::MAX, u64::MAX), 0xf_ffff_ffff_ffff);
}

proptest! {
    #[test]
    fn no_abort_panics_and_no_access_leaves_its_page(
        iss: u32,
        address: u64,
        page in 0u64..1 << 40,
        instruction: Option<u32>,
        base: u64,
        straight: bool,
    ) {
        let mut guest = Guest::new();
        guest.x = [base; 31];
        let abort = DataAbort {
            iss: iss & !iss::S1PTW & !0x38,
            address: if straight { base } else { address },
            guest_physical: (page * PAGE) | address & 0xfff,
        };
        if let Ok(seen) = run(&mut guest, &abort, instruction) {
            for access in seen {
                prop_assert!(matches!(access.size, 1 | 2 | 4 | 8));
                prop_assert_eq!(access.address / PAGE, page);
                prop_assert_eq!((access.address + u64::from(access.size) - 1) / PAGE, page);
                if let AccessKind::Write(value) = access.kind {
                    prop_assert_eq!(value & !mask(access.size), 0);
                }
            }
        }
    }
}
