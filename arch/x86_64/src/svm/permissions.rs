// SPDX-License-Identifier: MIT OR Apache-2.0
//! The permission maps: which ports and MSRs a guest touches without an exit.
//!
//! **Principle.** Everything is intercepted but the MSRs whose guest value lives in the VMCB itself
//! (APM 2, 15.10 and 15.11): those cost no exit and leak nothing.

use alloc::boxed::Box;

/// I/O permission map: one bit per port, 12 KiB; a set bit intercepts.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct IoPermissionMap([u8; 3 * 4096]);

/// MSR permission map: two bits per MSR (read, write), three ranges of 2 KiB, 8 KiB in all.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct MsrPermissionMap([u8; 2 * 4096]);

/// MSRs that VMRUN, VMLOAD and VMSAVE switch, or that are read and written only by their guest.
const SWITCHED_BY_HARDWARE: [u32; 10] = [
    0x0000_0174, // SYSENTER_CS
    0x0000_0175, // SYSENTER_ESP
    0x0000_0176, // SYSENTER_EIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0100, // FS.Base
    0xc000_0101, // GS.Base
    0xc000_0102, // KernelGSBase
];

impl IoPermissionMap {
    /// Intercepts every port.
    pub fn all() -> Box<Self> {
        Box::new(Self([0xff; 3 * 4096]))
    }
}

impl MsrPermissionMap {
    /// Intercepts every MSR but those the hardware switches.
    pub fn switched_only() -> Box<Self> {
        let mut map = Box::new(Self([0xff; 2 * 4096]));
        for msr in SWITCHED_BY_HARDWARE {
            map.pass(msr);
        }
        map
    }

    fn pass(&mut self, msr: u32) {
        let Some(bit) = Self::bit(msr) else { return };
        self.0[bit / 8] &= !(0b11 << (bit % 8));
    }

    /// Bit number of the read bit of `msr`; the write bit follows it.
    fn bit(msr: u32) -> Option<usize> {
        let (range, index) = match msr {
            0..0x2000 => (0, msr),
            0xc000_0000..0xc000_2000 => (1, msr - 0xc000_0000),
            0xc001_0000..0xc001_2000 => (2, msr - 0xc001_0000),
            _ => return None,
        };
        Some(range * 0x800 * 8 + index as usize * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_switched_msrs_pass() {
        let map = MsrPermissionMap::switched_only();
        let clear: usize = map.0.iter().map(|byte| byte.count_zeros() as usize).sum();
        assert_eq!(clear, 2 * SWITCHED_BY_HARDWARE.len());
        let star = 0x800 + 0x81 * 2 / 8;
        assert_eq!(map.0[star] >> (0x81 * 2 % 8) & 0b11, 0);
        assert_eq!(MsrPermissionMap::bit(0x4000_0000), None);
    }
}
