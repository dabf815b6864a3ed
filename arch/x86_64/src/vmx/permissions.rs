// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MSR bitmap: which MSRs a guest touches without an exit.
//!
//! **Principle.** Everything leaves the guest but the MSRs whose guest value the VMCS holds, and those that are exchanged
//! when a vCPU comes and goes: these cost no exit and leak nothing.
//!
//! Source: Intel SDM volume 3, 25.6.9 "MSR-Bitmap Address".

use alloc::boxed::Box;

use super::switched::SWITCHED;
use super::vmcs::Page;

/// MSRs in the VMCS that the guest may have as it likes.
const IN_VMCS: [u32; 5] = [
    0x0000_0174, // SYSENTER_CS
    0x0000_0175, // SYSENTER_ESP
    0x0000_0176, // SYSENTER_EIP
    0xc000_0100, // FS.Base
    0xc000_0101, // GS.Base
];
/// Where bits for writes begin, in bytes; those for reads begin at 0.
const WRITES: usize = 0x800;
/// Where bits for MSRs from 0xc000_0000 on begin within each.
const HIGH: usize = 0x400;

/// Bits for all MSRs: a set one has the access leave the guest.
pub fn bitmap() -> Box<Page> {
    let mut page = Page::zeroed();
    page.0.fill(0xff);
    for msr in IN_VMCS.into_iter().chain(SWITCHED) {
        let (range, index) = match msr {
            0..0x2000 => (0, msr),
            0xc000_0000..0xc000_2000 => (HIGH, msr - 0xc000_0000),
            _ => continue,
        };
        for start in [range, WRITES + range] {
            page.0[start + index as usize / 8] &= !(1 << (index % 8));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exchanged_passes_and_nothing_else() {
        let page = bitmap();
        let clear: usize = page.0.iter().map(|byte| byte.count_zeros() as usize).sum();
        assert_eq!(clear, 2 * (IN_VMCS.len() + SWITCHED.len()));
        for (msr, read, write) in [(0x174usize, 0x2e, 0x82e), (0x100, 0x420, 0xc20)] {
            assert_eq!(page.0[read] >> (msr % 8) & 1, 0, "{msr:#x}");
            assert_eq!(page.0[write] >> (msr % 8) & 1, 0, "{msr:#x}");
        }
    }
}
