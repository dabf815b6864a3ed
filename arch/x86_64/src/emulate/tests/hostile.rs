// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever a guest puts into its registers, tables and code: no panic, bounded work, sane accesses.

use proptest::prelude::*;
use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};

use pasidon_arch_common::testing::TestMemory;
use pasidon_kernel::vm::exit::Exit;

use super::{DEVICE, Vectors, memory};
use crate::emulate::access::MAX_OPERAND;
use crate::emulate::string::MAX_ITERATIONS;
use crate::emulate::walk::WalkCache;
use crate::emulate::{
    AccessType, CpuState, Fault, Known, SegmentState, fetch, instruction_length, mmio, string_io, translate,
};

/// Most accesses of one call: both operands of each iteration byte by byte.
const MAX_ACCESSES: usize = MAX_ITERATIONS * 2 * 8 + 2 * MAX_OPERAND;

/// Numbers near what matters, and any.
fn number() -> BoxedStrategy<u64> {
    // Boxed: as a value, the strategy of a whole state would not fit on a test's stack.
    prop_oneof![
        4 => 0..DEVICE + 0x1000,
        8 => (DEVICE - 80)..(DEVICE + 80),
        1 => any::<u64>(),
        1 => (0u64..200).prop_map(|n| n.wrapping_sub(100)),
        1 => (0u64..200).prop_map(|n| 0x0000_8000_0000_0000 - 100 + n),
        1 => (0u64..200).prop_map(|n| 0xffff_ff50 + n),
    ]
    .boxed()
}

prop_compose! {
    fn segment()(base in number(), limit in prop_oneof![Just(u32::MAX), Just(0xffff), any::<u32>()],
        long in any::<bool>(), big in any::<bool>()) -> SegmentState {
        SegmentState { base, limit, long, big }
    }
}

prop_compose! {
    fn state()(gpr in proptest::array::uniform16(number()), rip in 0x800u64..0x1100, far in number(),
        is_far in proptest::bool::weighted(0.1), rflags in any::<u64>(),
        paging in proptest::bool::weighted(0.2), cr0 in any::<u64>(), cr3 in prop_oneof![0..DEVICE, any::<u64>()],
        cr4 in any::<u64>(), efer in any::<u64>(), cpl in 0u8..4,
        segments in proptest::array::uniform6(segment()), flat in proptest::bool::weighted(0.7)) -> CpuState {
        let paging_bit = Cr0Flags::PAGING.bits();
        let [mut cs, ss, mut ds, mut es, fs, gs] = segments;
        if flat {
            for segment in [&mut cs, &mut ds, &mut es] {
                segment.base = 0;
                segment.limit = u32::MAX;
            }
        }
        CpuState {
            gpr, rip: if is_far { far } else { rip }, rflags,
            cr0: if paging { cr0 | paging_bit } else { cr0 & !paging_bit },
            cr3, cr4, efer, cpl, cs, ss, ds, es, fs, gs,
        }
    }
}

/// Code that often decodes: prefixes, an opcode that is emulated or any, a ModRM byte, the rest.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let prefix = proptest::sample::select(vec![0x66u8, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x65, 0x48, 0x4d]);
    let opcodes: Vec<Vec<u8>> = [
        (0x00..=0x3f).collect::<Vec<u8>>(),
        (0x80..=0x8f).collect(),
        (0xa0..=0xaf).collect(),
        vec![0x63, 0x6c, 0x6d, 0x6e, 0x6f, 0xc6, 0xc7, 0xf6, 0xf7, 0xfe, 0xff],
    ]
    .concat()
    .into_iter()
    .map(|opcode| vec![opcode])
    .chain(
        [
            0x01..=0x01,
            0x10..=0x17,
            0x28..=0x2b,
            0x40..=0x4f,
            0x6e..=0x6f,
            0x7e..=0x7f,
            0x90..=0x9f,
            0xd6..=0xd6,
            0xe7..=0xe7,
            0xf0..=0xf0,
            0xa3..=0xa3,
            0xab..=0xab,
            0xb0..=0xbf,
            0xc0..=0xc7,
        ]
        .into_iter()
        .flatten()
        .map(|second| vec![0x0f, second]),
    )
    .chain([0xf0, 0xf1, 0xf8, 0xf9].map(|third| vec![0x0f, 0x38, third]))
    .collect();
    // Two-byte VEX, and EVEX without what is reserved in it.
    let vex = (
        any::<[u8; 4]>(),
        proptest::sample::select(vec![
            0x10u8, 0x11, 0x12, 0x16, 0x28, 0x29, 0x6e, 0x6f, 0x7e, 0x7f, 0xd6, 0xe7,
        ]),
        proptest::collection::vec(any::<u8>(), 8),
        any::<bool>(),
    )
        .prop_map(|([a, b, c, _], opcode, rest, evex)| {
            let prefix = if evex { vec![0x62, a & 0xf0 | 1, b | 4, c] } else { vec![0xc5, a] };
            [prefix, vec![opcode], rest].concat()
        });
    prop_oneof![
        1 => vex,
        4 => (
            proptest::collection::vec(prefix, 0..4),
            proptest::sample::select(opcodes),
            proptest::collection::vec(any::<u8>(), 12),
        ).prop_map(|(prefixes, opcode, rest)| [prefixes, opcode, rest].concat()),
        1 => proptest::collection::vec(any::<u8>(), 16),
    ]
}

/// Fills RAM above the code with entries that mostly point back there or to the device.
fn tables(ram: &TestMemory, seed: u64) {
    let mut x = seed | 1;
    for address in (0x2000..0x1_2000).step_by(8) {
        // xorshift64
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let entry = match x >> 60 {
            0 => x,
            1..4 => x & 0x001f_ff87 | 1,
            _ => x & 0x0010_f000 | 0x67,
        };
        ram.put_u64(address, entry);
    }
}

/// What a kernel does: linear addresses below 2 MiB map to themselves, by four levels. A few pages are
/// missing, read-only or not for users.
fn ordinary_paging(ram: &TestMemory, state: &mut CpuState, seed: u64) {
    const ROOT: u64 = 0x2000;
    const LEAVES: u64 = 0x5000;
    state.cr0 |= Cr0Flags::PAGING.bits() | Cr0Flags::PROTECTED_MODE_ENABLE.bits();
    state.cr3 = ROOT;
    state.cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
    state.efer = (EferFlags::LONG_MODE_ACTIVE | EferFlags::NO_EXECUTE_ENABLE).bits();
    for table in (ROOT..LEAVES).step_by(0x1000) {
        ram.put_u64(table, (table + 0x1000) | 7);
    }
    for page in 0..512u64 {
        let flags = match seed.rotate_left(page as u32 % 64).wrapping_mul(page | 1) % 16 {
            0 => 0,
            1 => 5,
            2 => 3,
            _ => 7,
        };
        ram.put_u64(LEAVES + page * 8, page << 12 | flags);
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    (0..0x1000u64, any::<bool>(), any::<bool>()).prop_map(|(offset, write, translated)| Fault {
        address: DEVICE + offset,
        write,
        translated,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn emulation_is_bounded_and_never_panics(mut state in state(), code in code(), seed in any::<u64>(),
        answer in any::<u64>(), ordinary in proptest::bool::weighted(0.4), fault in fault()) {
        let ram = memory();
        if ordinary {
            ordinary_paging(&ram, &mut state, seed);
        } else if state.cr0 & Cr0Flags::PAGING.bits() != 0 {
            tables(&ram, seed);
        }
        // Twice: at the usual place, and where the first page ends.
        for address in (0x800..0x1100u64).step_by(16) {
            ram.put(address, &code[..code.len().min(16)]);
        }
        state.rip &= if state.rip < 0x1100 { !15 } else { u64::MAX };
        let mut accesses = 0;
        let mut bus = |exit: &Exit<'_>| {
            accesses += 1;
            let access = match exit {
                Exit::Mmio(access) => access,
                Exit::Store64 { address, .. } => {
                    assert!(address.is_multiple_of(64) && *address >= DEVICE);
                    return answer;
                }
                _ => panic!("{exit:?}"),
            };
            assert!(matches!(access.size, 1 | 2 | 4 | 8));
            assert!(access.address.is_multiple_of(access.size.into()));
            assert!(access.address >= DEVICE, "RAM on the bus");
            answer
        };
        let before = state.clone();
        let mut known = Known::new();
        let result = mmio(&mut state, &mut Vectors::zero(), &ram, &mut known, fault, &mut bus);
        if result.is_err() && state.gpr == before.gpr {
            prop_assert_eq!(&state.rip, &before.rip);
        }
        prop_assert!(accesses <= MAX_ACCESSES);
        let mut ports = 0;
        let _ = string_io(&mut state, &ram, &mut known, &mut |exit| {
            let Exit::Io(access) = exit else { panic!("{exit:?}") };
            ports += 1;
            assert!(access.address <= 0xffff && matches!(access.size, 1 | 2 | 4));
            answer
        });
        prop_assert!(ports <= MAX_ITERATIONS);
        let _ = fetch(&state, &ram);
        if let Ok(len) = instruction_length(&state, &ram) {
            prop_assert!((1..=15).contains(&len));
        }
    }

    /// Whatever the guest changes between two accesses, and with the same flags set.
    #[test]
    fn a_walk_done_before_says_what_a_new_one_would(mut state in state(), seed in any::<u64>(),
        changes in proptest::collection::vec((0u8..12, any::<u64>()), 1..80)) {
        let (ram, other) = (memory(), memory());
        for ram in [&ram, &other] {
            ordinary_paging(ram, &mut state, seed);
        }
        let mut walks = WalkCache::new();
        for (what, value) in changes {
            match what {
                // An entry that leads to the few pages which are asked for, or of one of them.
                0 => {
                    let table = 0x2000 + (value & 3) * 0x1000;
                    let index = if value & 3 == 3 { value >> 2 & 3 } else { 0 };
                    let target = if value & 3 == 3 { value >> 8 & 0x10_f000 } else { table + 0x1000 };
                    for ram in [&ram, &other] {
                        ram.put_u64(table + 8 * index, target | value >> 32 & 0x67 | (value & 1 << 63));
                    }
                }
                1 => state.cpl = value as u8 & 3,
                2 => state.rflags = value,
                3 => state.cr0 ^= Cr0Flags::WRITE_PROTECT.bits(),
                4 => state.cr4 ^= value & (Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION
                    | Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION
                    | Cr4Flags::PHYSICAL_ADDRESS_EXTENSION).bits(),
                5 => state.efer ^= EferFlags::NO_EXECUTE_ENABLE.bits(),
                6 => state.efer ^= EferFlags::LONG_MODE_ACTIVE.bits(),
                7 => state.cr3 ^= 0x1000,
                _ => {}
            }
            let linear = value >> 16 & 0x3fff;
            let access = [AccessType::Read, AccessType::Write, AccessType::Execute][value as usize % 3];
            prop_assert_eq!(
                walks.translate(&state, &ram, linear, access),
                translate(&state, &other, linear, access)
            );
            prop_assert_eq!(ram.bytes(0x2000, 0x5000), other.bytes(0x2000, 0x5000));
        }
    }

    #[test]
    fn walks_never_panic(state in state(), linear in number(), seed in any::<u64>()) {
        let ram = memory();
        tables(&ram, seed);
        for access in [AccessType::Read, AccessType::Write, AccessType::Execute] {
            if let Ok(address) = translate(&state, &ram, linear, access) {
                prop_assert!(address.0 < 1 << 52);
                prop_assert_eq!(address.0 & 0xfff, linear & 0xfff);
            }
        }
    }
}
