// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MSR bitmap: which MSRs a guest touches without an exit.
//!
//! **Principle.** Everything leaves the guest but the MSRs whose guest value the VMCS holds, and those that are exchanged
//! when a vCPU comes and goes: these cost no exit and leak nothing. Where the processor serves registers of the local APIC,
//! those pass besides that it serves as hardware would: without that control they would be the machine's own.
//!
//! Source: Intel SDM volume 3, 25.6.9 "MSR-Bitmap Address".

use spin::Once;

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
/// Registers of the local APIC that are read from the virtual-APIC page: TPR, PPR, and ISR, TMR and IRR.
const APIC_READ: [core::ops::RangeInclusive<u32>; 3] = [0x808..=0x808, 0x80a..=0x80a, 0x810..=0x827];
/// Those that are written there: TPR and EOI.
const APIC_WRITTEN: [u32; 2] = [0x808, 0x80b];
/// Where bits for writes begin, in bytes; those for reads begin at 0.
const WRITES: usize = 0x800;
/// Where bits for MSRs from 0xc000_0000 on begin within each.
const HIGH: usize = 0x400;

/// Bits for all MSRs: a set one has the access leave the guest. All vCPUs share them.
#[derive(Debug)]
pub struct Bitmaps {
    /// Where nothing of the local APIC passes.
    pub closed: Page,
    /// For use with the controls that have the processor serve it.
    pub apic: Page,
}

/// The bitmaps.
pub fn bitmaps() -> &'static Bitmaps {
    static BITMAPS: Once<Bitmaps> = Once::new();
    BITMAPS.call_once(|| {
        let mut closed = Page([0xff; 4096]);
        for msr in IN_VMCS.into_iter().chain(SWITCHED) {
            closed.pass(0, msr);
            closed.pass(WRITES, msr);
        }
        let mut apic = Page(closed.0);
        APIC_READ.into_iter().flatten().for_each(|msr| apic.pass(0, msr));
        APIC_WRITTEN.into_iter().for_each(|msr| apic.pass(WRITES, msr));
        Bitmaps { closed, apic }
    })
}

impl Page {
    /// Lets accesses to an MSR pass whose bits begin at `start`.
    fn pass(&mut self, start: usize, msr: u32) {
        let (range, index) = match msr {
            0..0x2000 => (0, msr),
            0xc000_0000..0xc000_2000 => (HIGH, msr - 0xc000_0000),
            _ => return,
        };
        self.0[start + range + index as usize / 8] &= !(1 << (index % 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exchanged_passes_and_nothing_else() {
        let Bitmaps { closed: page, apic } = bitmaps();
        let clear = |page: &Page| page.0.iter().map(|byte| byte.count_zeros() as usize).sum::<usize>();
        assert_eq!(clear(page), 2 * (IN_VMCS.len() + SWITCHED.len()));
        assert_eq!(clear(apic), clear(page) + 26 + 2);
        for (msr, read, write) in [(0x174usize, 0x2e, 0x82e), (0x100, 0x420, 0xc20)] {
            assert_eq!(page.0[read] >> (msr % 8) & 1, 0, "{msr:#x}");
            assert_eq!(page.0[write] >> (msr % 8) & 1, 0, "{msr:#x}");
        }
    }
}
