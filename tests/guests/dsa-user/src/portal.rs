// SPDX-License-Identifier: MIT OR Apache-2.0
//! Submission: a descriptor reaches the portal as one write of 64 bytes.
//!
//! **x86-64.** MOVDIR64B is that write, whatever the caches do.
//! **Arm.** Without FEAT_LS64, which user space rarely may use, it is left to the interconnect to merge eight stores
//! in a row to one line; where it does not, the device ignores them. On such a machine the driver belongs into the
//! kernel, or the device needs a doorbell.
//!
//! Source: Intel DSA Architecture Specification 341204-006, "Work submission"; Intel SDM, MOVDIR64B.

use crate::descriptor::Descriptor;
use core::arch::asm;

/// A portal page, mapped uncached.
pub struct Portal {
    page: *mut u8,
}

impl Portal {
    /// # Safety
    /// `page` is a portal of a work queue that is ours, mapped uncached for as long as the value lives.
    pub unsafe fn new(page: *mut u8) -> Self {
        Self { page }
    }

    /// Submits. What was written to memory before is there for the device to see.
    pub fn submit(&self, descriptor: &Descriptor) {
        let source = descriptor.words().as_ptr();
        #[cfg(target_arch = "x86_64")]
        // SAFETY: 64 readable bytes, and a portal by the contract of `new`, aligned to a page.
        unsafe {
            asm!(
                "sfence",
                "movdir64b {page}, [{source}]",
                page = in(reg) self.page,
                source = in(reg) source,
                options(nostack, preserves_flags)
            );
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above; nothing comes between the stores but an interrupt, after which they go on.
        unsafe {
            asm!(
                "dsb st",
                "ldp {a}, {b}, [{source}]",
                "ldp {c}, {d}, [{source}, #16]",
                "ldp {e}, {f}, [{source}, #32]",
                "ldp {g}, {h}, [{source}, #48]",
                "str {a}, [{page}]",
                "str {b}, [{page}, #8]",
                "str {c}, [{page}, #16]",
                "str {d}, [{page}, #24]",
                "str {e}, [{page}, #32]",
                "str {f}, [{page}, #40]",
                "str {g}, [{page}, #48]",
                "str {h}, [{page}, #56]",
                page = in(reg) self.page,
                source = in(reg) source,
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                e = out(reg) _, f = out(reg) _, g = out(reg) _, h = out(reg) _,
                options(nostack, preserves_flags)
            );
        }
    }
}
