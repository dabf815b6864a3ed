// SPDX-License-Identifier: MIT OR Apache-2.0
//! The accesses of an x86-64 processor.

use std::arch::asm;

use super::{Access, Windows};

/// Two entries of an MSI-X table: a message that nobody gets, as both are masked.
const ENTRIES: [u32; 8] = [0xfee0_0000, 0, 0x51, 1, 0xfee0_1000, 0, 0x62, 1];

/// In this order.
pub const ACCESSES: &[Access] = &[
    Access { name: "sse", run: sse },
    Access { name: "avx", run: avx },
    Access { name: "parts", run: parts },
    Access { name: "popcnt", run: popcnt },
    Access { name: "x87", run: x87 },
    Access { name: "execute-registers", run: |windows| execute(windows.registers_as_code) },
    Access { name: "execute-portals", run: |windows| execute(windows.portals_as_code) },
];

/// What the table holds, read word by word.
fn plain(windows: &Windows) -> [u32; 8] {
    let table = windows.table.cast::<u32>();
    // SAFETY: both entries are mapped; a table's registers may be read at any time.
    core::array::from_fn(|i| unsafe { table.add(i).read_volatile() })
}

/// Sets the table word by word.
fn reset(windows: &Windows) {
    let table = windows.table.cast::<u32>();
    for i in 0..8 {
        // SAFETY: both entries are mapped, and stay masked.
        unsafe { table.add(i).write_volatile(if i % 4 == 3 { 1 } else { 0 }) };
    }
}

fn sse(windows: &Windows) -> bool {
    reset(windows);
    let mut found = [0u32; 8];
    // SAFETY: 32 bytes each of the table, which stays masked, and of both arrays.
    unsafe {
        asm!(
            "movdqu xmm1, [{from}]",
            "movups xmm2, [{from} + 16]",
            "movaps [{table}], xmm1",
            "movntdq [{table} + 16], xmm2",
            "pxor xmm1, xmm1",
            "pxor xmm2, xmm2",
            "movdqa xmm1, [{table}]",
            "movups xmm2, [{table} + 16]",
            "movdqu [{to}], xmm1",
            "movdqu [{to} + 16], xmm2",
            from = in(reg) ENTRIES.as_ptr(),
            table = in(reg) windows.table,
            to = in(reg) found.as_mut_ptr(),
            out("xmm1") _,
            out("xmm2") _,
        );
    }
    found == ENTRIES && plain(windows) == ENTRIES
}

fn avx(windows: &Windows) -> bool {
    if !std::arch::is_x86_feature_detected!("avx") {
        return false;
    }
    reset(windows);
    let mut found = [0u32; 8];
    // SAFETY: as in `sse`; the processor has AVX.
    unsafe {
        asm!(
            "vmovdqu ymm1, [{from}]",
            "vmovdqu [{table}], ymm1",
            "vpxor xmm1, xmm1, xmm1",
            "vmovups ymm1, [{table}]",
            "vmovdqu [{to}], ymm1",
            "vzeroupper",
            from = in(reg) ENTRIES.as_ptr(),
            table = in(reg) windows.table,
            to = in(reg) found.as_mut_ptr(),
            out("ymm1") _,
        );
    }
    found == ENTRIES && plain(windows) == ENTRIES
}

/// 4 and 8 bytes, beside which a register keeps what it has.
fn parts(windows: &Windows) -> bool {
    reset(windows);
    let mut found = [0u32; 4];
    // SAFETY: as in `sse`.
    unsafe {
        asm!(
            "movdqu xmm1, [{from}]",
            "movd [{table}], xmm1",
            "movhps [{table} + 8], xmm1",
            "movdqu xmm2, [{from} + 16]",
            "movlps xmm2, [{table}]",
            "movdqu [{to}], xmm2",
            from = in(reg) ENTRIES.as_ptr(),
            table = in(reg) windows.table,
            to = in(reg) found.as_mut_ptr(),
            out("xmm1") _,
            out("xmm2") _,
        );
    }
    found[..2] == ENTRIES[..2] && found[2..] == ENTRIES[6..] && plain(windows)[..4] == ENTRIES[..4]
}

fn popcnt(windows: &Windows) -> bool {
    let mut count: u64;
    // SAFETY: a read of a register.
    unsafe { asm!("popcnt {}, [{}]", out(reg) count, in(reg) windows.registers) };
    count <= 64
}

fn x87(windows: &Windows) -> bool {
    // SAFETY: a read of a register; the register stack is as before.
    unsafe { asm!("fld dword ptr [{}]", "fstp st(0)", in(reg) windows.registers) };
    true
}

/// Runs what lies there. A machine may do anything with that but go on.
fn execute(code: *mut u8) -> bool {
    // SAFETY: whatever comes of it comes of this process only, which does nothing else.
    unsafe { asm!("call {}", in(reg) code, clobber_abi("C")) };
    false
}
