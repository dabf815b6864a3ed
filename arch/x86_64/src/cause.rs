// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an exception means, in words. Values only.
//!
//! Source: APM volume 2, 8.2 (vectors), 8.4 (error codes).

use core::fmt;

use bitflags::bitflags;
use pasidon_arch_common::denial::{Access, Target, not_allowed, not_mapped};

use crate::vector;

/// #TS.
const INVALID_TSS: u8 = 10;
/// #NP.
const NOT_PRESENT: u8 = 11;
/// #SS.
const STACK: u8 = 12;
/// #GP.
const GENERAL_PROTECTION: u8 = 13;
/// #PF.
const PAGE_FAULT: u8 = 14;

bitflags! {
    /// Error code of a page fault.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct PageFault: u64 {
        /// The page is mapped, but not for this.
        const P = 1 << 0;
        /// A write.
        const RW = 1 << 1;
        /// From user mode.
        const US = 1 << 2;
        /// A reserved bit is set in a page table.
        const RSV = 1 << 3;
        /// An instruction fetch.
        const ID = 1 << 4;
    }
}

/// An exception with a selector pushes this (8.4.1).
mod selector {
    /// The cause lies outside of the program.
    pub const EXT: u64 = 1 << 0;
    /// The selector is of the IDT.
    pub const IDT: u64 = 1 << 1;
    /// Of the LDT, otherwise of the GDT.
    pub const TI: u64 = 1 << 2;
    /// Bits below the index.
    pub const SHIFT: u32 = 3;
}

/// An exception.
pub struct Cause {
    /// Vector.
    pub vector: u8,
    /// Error code; 0 where there is none.
    pub error_code: u64,
    /// CR2, the address of the last page fault.
    pub address: u64,
    /// What lies there.
    pub target: Target,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        write!(f, "{}", name(self.vector))?;
        // Without stack the page fault cannot be delivered either and becomes a double fault.
        if matches!(self.vector, PAGE_FAULT | vector::DOUBLE_FAULT) && self.target == Target::Guard {
            return write!(f, ": stack overflow: {address:#x} is in the guard page below the stack");
        }
        match self.vector {
            PAGE_FAULT => self.page_fault(f),
            INVALID_TSS | NOT_PRESENT | STACK | GENERAL_PROTECTION if self.error_code != 0 => {
                let code = self.error_code;
                let table = match code {
                    code if code & selector::IDT != 0 => "IDT",
                    code if code & selector::TI != 0 => "LDT",
                    _ => "GDT",
                };
                write!(f, ": selector {:#x} of the {table}", code >> selector::SHIFT)?;
                if code & selector::EXT != 0 {
                    f.write_str(", by an external event")?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Cause {
    fn page_fault(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, code) = (self.address, PageFault::from_bits_retain(self.error_code));
        let access = if code.contains(PageFault::ID) {
            Access::Execute
        } else if code.contains(PageFault::RW) {
            Access::Write
        } else {
            Access::Read
        };
        let user = if code.contains(PageFault::US) { " from user mode" } else { "" };
        write!(f, ": {} of {address:#x}{user}, ", access.name())?;
        f.write_str(if code.contains(PageFault::RSV) {
            "whose page table entry has a reserved bit set"
        } else if code.contains(PageFault::P) {
            not_allowed(access, self.target)
        } else {
            not_mapped(self.target)
        })
    }
}

/// An exception by its mnemonic and name.
pub fn name(vector: u8) -> &'static str {
    match vector {
        0 => "#DE divide error",
        1 => "#DB debug",
        vector::NMI => "NMI",
        3 => "#BP breakpoint",
        4 => "#OF overflow",
        5 => "#BR bound range",
        6 => "#UD invalid opcode",
        7 => "#NM device not available",
        vector::DOUBLE_FAULT => "#DF double fault",
        INVALID_TSS => "#TS invalid TSS",
        NOT_PRESENT => "#NP segment not present",
        STACK => "#SS stack",
        GENERAL_PROTECTION => "#GP general protection",
        PAGE_FAULT => "#PF page fault",
        16 => "#MF floating point",
        17 => "#AC alignment check",
        vector::MACHINE_CHECK => "#MC machine check",
        19 => "#XF SIMD floating point",
        21 => "#CP control protection",
        28 => "#HV hypervisor injection",
        29 => "#VC VMM communication",
        30 => "#SX security",
        _ => "unknown exception",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(vector: u8, error_code: u64, address: u64, target: Target) -> String {
        let cause = Cause { vector, error_code, address, target };
        cause.to_string()
    }

    #[test]
    fn page_faults_say_what_was_done_to_what() {
        let fault = |code, address, target| text(PAGE_FAULT, code, address, target);
        assert_eq!(fault(0, 8, Target::Null), "#PF page fault: read of 0x8, a null pointer");
        assert_eq!(fault(2, 0x5000, Target::Other), "#PF page fault: write of 0x5000, which is not mapped");
        assert!(fault(3, 0x5000, Target::Code).ends_with("which is code: W^X violation"));
        assert!(fault(3, 0x5000, Target::Constants).ends_with("which is constant: W^X violation"));
        assert!(fault(0x11, 0x5000, Target::Other).contains("execution of 0x5000, which is not code: W^X"));
        assert!(fault(9, 0x5000, Target::Other).contains("reserved bit"));
        assert!(fault(4, 0x5000, Target::Other).contains("from user mode"));
    }

    #[test]
    fn a_stack_overflow_is_called_one_by_both_its_exceptions() {
        for vector in [PAGE_FAULT, vector::DOUBLE_FAULT] {
            assert!(text(vector, 2, 0x5ff8, Target::Guard).contains("stack overflow: 0x5ff8"));
        }
        // CR2 is an old address then.
        assert_eq!(text(6, 0, 0x5ff8, Target::Guard), "#UD invalid opcode");
        assert_eq!(text(vector::DOUBLE_FAULT, 0, 0, Target::Null), "#DF double fault");
    }

    #[test]
    fn selectors_are_named_by_their_table() {
        let fault = |code| text(GENERAL_PROTECTION, code, 0, Target::Null);
        assert_eq!(fault(0), "#GP general protection");
        assert_eq!(fault(0x10), "#GP general protection: selector 0x2 of the GDT");
        assert_eq!(fault(0x83), "#GP general protection: selector 0x10 of the IDT, by an external event");
        assert!(fault(0x0c).ends_with("selector 0x1 of the LDT"));
    }
}
