// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page walk: formats, rights, error codes, accessed and dirty flags.

use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::{BadGuestAddress, GuestMemory};
use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};
use x86_64::registers::rflags::RFlags;

use pasidon_arch_common::testing::TestMemory;

use super::{DEVICE, Rig, long_state, memory, protected_state};
use crate::emulate::{AccessType, CpuState, Exception, Failure, Fault, fetch, translate};

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;
pub(super) const ALL: u64 = P | RW | US;

/// Tables of the tests, one page each, from the root down.
pub(super) const TABLE: [u64; 5] = [0x4000, 0x5000, 0x6000, 0x7000, 0x8000];
const PAGE: u64 = 0x9000;
const LINEAR: u64 = 0x0000_0123_4567_8abc;

/// Bits of the error code.
const PRESENT: u32 = 1;
const WRITE: u32 = 2;
const USER: u32 = 4;
const RESERVED: u32 = 8;
const FETCH: u32 = 16;

fn paged(mut state: CpuState) -> CpuState {
    state.cr0 |= Cr0Flags::PAGING.bits() | Cr0Flags::WRITE_PROTECT.bits();
    state.cr3 = TABLE[0];
    state
}

pub(super) fn four_levels() -> CpuState {
    let mut state = paged(long_state());
    state.cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
    state.efer |= EferFlags::NO_EXECUTE_ENABLE.bits();
    state
}

/// Where the entry of `linear` lies at `level` in a table of 64-bit entries.
fn slot(table: u64, linear: u64, level: u32) -> u64 {
    table + ((linear >> (12 + 9 * (level - 1))) & 511) * 8
}

/// Maps `LINEAR` by four levels; the last entry has `flags`.
fn mapped(flags: u64) -> TestMemory {
    let ram = memory();
    for i in 0..3 {
        ram.put_u64(slot(TABLE[i], LINEAR, 4 - i as u32), TABLE[i + 1] | ALL);
    }
    ram.put_u64(slot(TABLE[3], LINEAR, 1), PAGE | flags);
    ram
}

pub(super) fn page_fault(code: u32, linear: u64) -> Result<GuestPhys, Exception> {
    Err(Exception { vector: 14, error_code: Some(code), cr2: Some(linear) })
}

const MAPPED: Result<GuestPhys, Exception> = Ok(GuestPhys(PAGE + 0xabc));

#[test]
fn without_paging_an_address_is_itself() {
    let ram = memory();
    let address = translate(&protected_state(), &ram, 0xfee0_0123, AccessType::Write);
    assert_eq!(address, Ok(GuestPhys(0xfee0_0123)));
}

#[test]
fn four_levels_set_accessed_and_dirty() {
    let (state, ram) = (four_levels(), mapped(ALL));
    assert_eq!(translate(&state, &ram, LINEAR, AccessType::Read), MAPPED);
    for (table, level) in TABLE.into_iter().zip([4, 3, 2, 1]) {
        let entry = ram.u64(slot(table, LINEAR, level));
        assert_eq!(entry & (A | D), A, "level {level}");
    }
    assert_eq!(translate(&state, &ram, LINEAR, AccessType::Write), MAPPED);
    assert_eq!(ram.u64(slot(TABLE[3], LINEAR, 1)), PAGE | ALL | A | D);
    assert_eq!(ram.u64(slot(TABLE[2], LINEAR, 2)) & D, 0);
}

/// RAM whose single bytes are zero: the entry was taken away since it was read.
struct TakenAway(TestMemory);

impl GuestMemory for TakenAway {
    fn read(&self, address: GuestPhys, buffer: &mut [u8]) -> Result<(), BadGuestAddress> {
        self.0.read(address, buffer)?;
        if buffer.len() == 1 {
            buffer.fill(0);
        }
        Ok(())
    }

    fn write(&self, _: GuestPhys, _: &[u8]) -> Result<(), BadGuestAddress> {
        panic!("a flag in what is no entry")
    }

    fn ram_size(&self) -> u64 {
        self.0.ram_size()
    }
}

#[test]
fn an_entry_that_was_taken_away_meanwhile_gets_no_flags() {
    let memory = TakenAway(mapped(ALL));
    assert_eq!(translate(&four_levels(), &memory, LINEAR, AccessType::Write), MAPPED);
}

#[test]
fn a_refused_access_leaves_no_flags() {
    let (state, ram) = (four_levels(), mapped(P | US));
    assert_eq!(translate(&state, &ram, LINEAR, AccessType::Write), page_fault(PRESENT | WRITE, LINEAR));
    assert_eq!(ram.u64(slot(TABLE[3], LINEAR, 1)), PAGE | P | US);
}

#[test]
fn five_levels() {
    let mut state = four_levels();
    state.cr4 |= Cr4Flags::L5_PAGING.bits();
    let linear = 0x00ab_0123_4567_8abc;
    let ram = memory();
    for i in 0..4 {
        ram.put_u64(slot(TABLE[i], linear, 5 - i as u32), TABLE[i + 1] | ALL);
    }
    ram.put_u64(slot(TABLE[4], linear, 1), PAGE | ALL);
    assert_eq!(translate(&state, &ram, linear, AccessType::Read), MAPPED);
    // The same address is not canonical with four levels.
    let exception = translate(&four_levels(), &ram, linear, AccessType::Read).unwrap_err();
    assert_eq!((exception.vector, exception.error_code, exception.cr2), (13, Some(0), None));
}

#[test]
fn large_pages_of_long_mode() {
    let state = four_levels();
    for (level, page) in [(2u32, 0x4020_0000u64), (3, 0x8000_0000)] {
        let ram = mapped(ALL);
        let entry = slot(TABLE[4 - level as usize], LINEAR, level);
        ram.put_u64(entry, page | ALL | PS);
        let offset = LINEAR & ((1 << (12 + 9 * (level - 1))) - 1);
        let address = translate(&state, &ram, LINEAR, AccessType::Write);
        assert_eq!(address, Ok(GuestPhys(page + offset)));
        assert_eq!(ram.u64(entry) & (A | D), A | D);
        ram.put_u64(entry, page | ALL | PS | 1 << 13);
        assert_eq!(translate(&state, &ram, LINEAR, AccessType::Read), page_fault(PRESENT | RESERVED, LINEAR));
    }
    // No page is that large.
    let ram = mapped(ALL);
    ram.put_u64(slot(TABLE[0], LINEAR, 4), TABLE[1] | ALL | PS);
    assert_eq!(translate(&state, &ram, LINEAR, AccessType::Read), page_fault(PRESENT | RESERVED, LINEAR));
}

#[test]
fn rights() {
    struct Case {
        name: &'static str,
        flags: u64,
        access: AccessType,
        change: fn(&mut CpuState),
        /// Error code, where the access is refused.
        refused: Option<u32>,
    }
    let user: fn(&mut CpuState) = |s| s.cpl = 3;
    let none: fn(&mut CpuState) = |_| {};
    let no_wp: fn(&mut CpuState) = |s| s.cr0 &= !Cr0Flags::WRITE_PROTECT.bits();
    let smap: fn(&mut CpuState) = |s| s.cr4 |= Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION.bits();
    let smap_ac: fn(&mut CpuState) = |s| {
        s.cr4 |= Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION.bits();
        s.rflags |= RFlags::ALIGNMENT_CHECK.bits();
    };
    let smep: fn(&mut CpuState) = |s| s.cr4 |= Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION.bits();
    let no_nxe: fn(&mut CpuState) = |s| s.efer &= !EferFlags::NO_EXECUTE_ENABLE.bits();
    let both: fn(&mut CpuState) = |s| {
        s.cpl = 3;
        s.cr0 &= !Cr0Flags::WRITE_PROTECT.bits();
    };
    use AccessType::{Execute, Read, Write};
    #[rustfmt::skip]
    let cases = [
        Case { name: "not present", flags: 0, access: Read, change: none, refused: Some(0) },
        Case { name: "not present, user write", flags: 0, access: Write, change: user, refused: Some(WRITE | USER) },
        Case { name: "user on supervisor page", flags: P | RW, access: Read, change: user, refused: Some(PRESENT | USER) },
        Case { name: "user on user page", flags: ALL, access: Write, change: user, refused: None },
        Case { name: "user writes read-only", flags: P | US, access: Write, change: user, refused: Some(PRESENT | WRITE | USER) },
        Case { name: "WP does not help users", flags: P | US, access: Write, change: both, refused: Some(PRESENT | WRITE | USER) },
        Case { name: "supervisor writes read-only", flags: P, access: Write, change: none, refused: Some(PRESENT | WRITE) },
        Case { name: "without WP", flags: P, access: Write, change: no_wp, refused: None },
        Case { name: "no execute", flags: ALL | NX, access: Execute, change: none, refused: Some(PRESENT | FETCH) },
        Case { name: "no execute can be read", flags: ALL | NX, access: Read, change: none, refused: None },
        Case { name: "NX without NXE", flags: ALL | NX, access: Read, change: no_nxe, refused: Some(PRESENT | RESERVED) },
        Case { name: "fetch without NXE", flags: 0, access: Execute, change: no_nxe, refused: Some(0) },
        Case { name: "SMEP", flags: ALL, access: Execute, change: smep, refused: Some(PRESENT | FETCH) },
        Case { name: "SMEP, supervisor page", flags: P, access: Execute, change: smep, refused: None },
        Case { name: "SMAP", flags: ALL, access: Read, change: smap, refused: Some(PRESENT) },
        Case { name: "SMAP with AC", flags: ALL, access: Write, change: smap_ac, refused: None },
        Case { name: "SMAP, supervisor page", flags: P | RW, access: Write, change: smap, refused: None },
    ];
    for case in cases {
        let mut state = four_levels();
        (case.change)(&mut state);
        let expected = case.refused.map_or(MAPPED, |code| page_fault(code, LINEAR));
        let result = translate(&state, &mapped(case.flags), LINEAR, case.access);
        assert_eq!(result, expected, "{}", case.name);
    }
}

#[test]
fn rights_of_upper_levels_count() {
    let ram = mapped(ALL);
    ram.put_u64(slot(TABLE[1], LINEAR, 3), TABLE[2] | P | RW);
    let mut state = four_levels();
    state.cpl = 3;
    assert_eq!(translate(&state, &ram, LINEAR, AccessType::Read), page_fault(PRESENT | USER, LINEAR));
    ram.put_u64(slot(TABLE[1], LINEAR, 3), TABLE[2] | ALL | NX);
    assert_eq!(
        translate(&state, &ram, LINEAR, AccessType::Execute),
        page_fault(PRESENT | USER | FETCH, LINEAR)
    );
}

#[test]
fn tables_outside_ram_are_not_present() {
    let ram = mapped(ALL);
    ram.put_u64(slot(TABLE[1], LINEAR, 3), DEVICE | ALL);
    assert_eq!(translate(&four_levels(), &ram, LINEAR, AccessType::Read), page_fault(0, LINEAR));
}

#[test]
fn two_levels_and_four_mebibytes() {
    let mut state = paged(protected_state());
    let linear: u64 = 0x0040_3abc;
    let ram = memory();
    ram.put(TABLE[0] + 4, &((TABLE[1] | ALL) as u32).to_le_bytes());
    ram.put(TABLE[1] + 3 * 4, &((PAGE | ALL) as u32).to_le_bytes());
    assert_eq!(translate(&state, &ram, linear, AccessType::Write), MAPPED);
    // With PSE the directory entry can map 4 MiB, above 4 GiB too; without, the bit has no meaning.
    ram.put(TABLE[0] + 4, &(TABLE[1] as u32 | (ALL | PS) as u32).to_le_bytes());
    assert_eq!(translate(&state, &ram, linear, AccessType::Read), MAPPED);
    state.cr4 |= Cr4Flags::PAGE_SIZE_EXTENSION.bits();
    ram.put(TABLE[0] + 4, &(0x0080_0000 | 5 << 13 | (ALL | PS) as u32).to_le_bytes());
    assert_eq!(translate(&state, &ram, linear, AccessType::Read), Ok(GuestPhys(0x5_0080_3abc)));
    ram.put(TABLE[0] + 4, &(0x00a0_0000 | (ALL | PS) as u32).to_le_bytes());
    assert_eq!(translate(&state, &ram, linear, AccessType::Read), page_fault(PRESENT | RESERVED, linear));
}

#[test]
fn pae() {
    let mut state = paged(protected_state());
    state.cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
    state.cr3 = TABLE[0] + 0x20;
    let linear: u64 = 0xc020_1abc;
    let ram = memory();
    let pointer = TABLE[0] + 0x20 + 3 * 8;
    ram.put_u64(pointer, TABLE[1] | P);
    ram.put_u64(TABLE[1] + 8, TABLE[2] | ALL);
    ram.put_u64(TABLE[2] + 8, PAGE | ALL);
    state.cpl = 3;
    assert_eq!(translate(&state, &ram, linear, AccessType::Write), MAPPED);
    assert_eq!(ram.u64(pointer), TABLE[1] | P);
    ram.put_u64(pointer, TABLE[1] | P | RW);
    assert_eq!(
        translate(&state, &ram, linear, AccessType::Read),
        page_fault(PRESENT | USER | RESERVED, linear)
    );
    ram.put_u64(pointer, TABLE[1] | P);
    ram.put_u64(TABLE[1] + 8, 0x60_0000 | ALL | PS);
    assert_eq!(translate(&state, &ram, linear, AccessType::Read), Ok(GuestPhys(0x60_1abc)));
}

/// Maps the two pages of linear 0 and 0x1000 to the given frames (0: not present).
pub(super) fn two_pages(machine: &Rig, frames: [u64; 2]) {
    for i in 0..3 {
        machine.ram.put_u64(TABLE[i], TABLE[i + 1] | ALL);
    }
    for (i, frame) in frames.into_iter().enumerate() {
        let flags = if frame == 0 { 0 } else { ALL };
        machine.ram.put_u64(TABLE[3] + i as u64 * 8, frame | flags);
    }
}

#[test]
fn fetch_crosses_a_page() {
    let mut machine = Rig::new(four_levels(), &[]);
    two_pages(&machine, [0xa000, 0xc000]);
    machine.ram.put(0xaffe, &[0x8b, 0x05]);
    machine.ram.put(0xc000, &[1, 2, 3, 4]);
    machine.state.rip = 0xffe;
    assert_eq!(fetch(&machine.state, &machine.ram).map(|bytes| bytes.len()), Ok(15));
    assert_eq!(fetch(&machine.state, &machine.ram).unwrap()[..6], [0x8b, 0x05, 1, 2, 3, 4]);
    // Without the second page there are two bytes, and what needs more faults there.
    two_pages(&machine, [0xa000, 0]);
    assert_eq!(fetch(&machine.state, &machine.ram).map(|bytes| bytes.len()), Ok(2));
    let expected = page_fault(FETCH, 0x1000).unwrap_err();
    assert_eq!(machine.mmio(), Err(Failure::Exception(expected)));
}

#[test]
fn an_access_across_pages_is_split_and_precise() {
    // mov [rbx], rax: three bytes to a device, five to RAM
    let mut machine = Rig::new(four_levels(), &[]);
    two_pages(&machine, [DEVICE, 0xc000]);
    let code = 0xd000;
    machine.ram.put(code, &[0x48, 0x89, 0x03]);
    machine.ram.put_u64(TABLE[3] + 0x10, code | ALL);
    machine.state.rip = 0x2000;
    machine.state.gpr[0] = 0x8877_6655_4433_2211;
    machine.state.gpr[3] = 0xffd;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.seen, [(DEVICE + 0xffd, 1, Some(0x11)), (DEVICE + 0xffe, 2, Some(0x3322))]);
    assert_eq!(machine.ram.u64(0xc000), 0x88_7766_5544);
    // The second page faults: nothing reaches the device.
    machine.ram.put_u64(TABLE[3] + 8, 0xc000 | P);
    machine.seen.clear();
    machine.state.rip = 0x2000;
    let before = machine.state.clone();
    let expected = page_fault(PRESENT | WRITE, 0x1000).unwrap_err();
    assert_eq!(machine.mmio(), Err(Failure::Exception(expected)));
    assert_eq!((machine.seen.len(), &machine.state), (0, &before));
}

/// What the processor has translated is not translated again, and leads nowhere else.
#[test]
fn a_move_at_the_fault_is_spared_its_walk() {
    /// In a page that is not there by now.
    const OPERAND: u64 = 0x1010;
    const RBX: usize = 3;
    let machine = |code: &[u8]| {
        let mut machine = Rig::new(four_levels(), &[]);
        two_pages(&machine, [0xa000, 0]);
        machine.ram.put(0xa000, code);
        (machine.state.rip, machine.state.gpr[RBX]) = (0, OPERAND);
        machine
    };
    let fault = |write| Fault { address: DEVICE + 0x10, write, translated: true };
    // mov eax, [rbx]
    let mut read = machine(&[0x8b, 0x03]);
    assert_eq!(read.mmio(), Err(Failure::Exception(page_fault(0, OPERAND).unwrap_err())));
    read.fault = fault(false);
    assert_eq!(read.mmio(), Ok(()));
    assert_eq!(read.seen, [(DEVICE + 0x10, 4, None)]);
    // Another offset; across a page's end; an entry of the page tables.
    for (linear, fault) in [
        (OPERAND + 4, fault(false)),
        (OPERAND | 0xffe, Fault { address: DEVICE + 0xffe, ..fault(false) }),
        (OPERAND, Fault { translated: false, ..fault(false) }),
    ] {
        (read.state.rip, read.state.gpr[RBX], read.fault) = (0, linear, fault);
        assert!(read.mmio().is_err(), "{linear:#x}");
    }
    // mov [rbx], eax: the right to read is not one to write. add [rbx], eax: no move.
    for (code, write, done) in [(0x89, false, false), (0x89, true, true), (0x01, true, false)] {
        let mut machine = machine(&[code, 0x03]);
        machine.fault = fault(write);
        assert_eq!(machine.mmio().is_ok(), done, "{code:#x}");
    }
}
