// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual CPU interface of the GICv3: list registers, and what the guest set up in it.
//!
//! **Principle.** What the list registers say is decided in [`crate::guest::gic`]; here it gets into the
//! processor and out of it.
//!
//! Source: Arm GIC Architecture Specification (IHI 0069), 6 (virtual interrupt handling), 12.4 (ICH registers).

use core::arch::asm;

use crate::guest::gic::{Control, LIST_REGISTERS_MAX};

macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading it changes nothing, and EL2 may.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

macro_rules! write {
    ($name:literal, $value:expr) => {
        // SAFETY: it says what the guest is interrupted by, and nothing about the hypervisor.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) $value, options(nostack, preserves_flags)) }
    };
}

macro_rules! list_registers {
    ($($number:literal $name:literal)*) => {
        /// `ICH_LR<n>_EL2`.
        fn list_register(number: usize) -> u64 {
            match number {
                $($number => read!($name),)*
                _ => 0,
            }
        }

        /// Sets it.
        fn set_list_register(number: usize, value: u64) {
            match number {
                $($number => write!($name, value),)*
                _ => {}
            }
        }
    };
}

list_registers!(
    0 "ich_lr0_el2" 1 "ich_lr1_el2" 2 "ich_lr2_el2" 3 "ich_lr3_el2"
    4 "ich_lr4_el2" 5 "ich_lr5_el2" 6 "ich_lr6_el2" 7 "ich_lr7_el2"
    8 "ich_lr8_el2" 9 "ich_lr9_el2" 10 "ich_lr10_el2" 11 "ich_lr11_el2"
    12 "ich_lr12_el2" 13 "ich_lr13_el2" 14 "ich_lr14_el2" 15 "ich_lr15_el2"
);

/// What the processor's virtual CPU interface has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// List registers, 1 to 16.
    pub list_registers: usize,
    /// Active-priority registers of each group: 1, 2 or 4.
    pub active_priorities: usize,
}

impl Capabilities {
    /// From ICH_VTR_EL2.
    pub const fn from_vtr(vtr: u64) -> Self {
        const LIST_REGISTERS: u64 = 0x1f;
        const PREEMPTION_SHIFT: u32 = 26;
        const PREEMPTION: u64 = 7;
        let list_registers = (vtr & LIST_REGISTERS) as usize + 1;
        Self {
            list_registers: if list_registers > LIST_REGISTERS_MAX {
                LIST_REGISTERS_MAX
            } else {
                list_registers
            },
            active_priorities: match (vtr >> PREEMPTION_SHIFT & PREEMPTION) + 1 {
                0..=5 => 1,
                6 => 2,
                _ => 4,
            },
        }
    }

    /// This processor's.
    pub fn read() -> Self {
        Self::from_vtr(read!("ich_vtr_el2"))
    }
}

/// What of a guest's interface stays between two turns, but for the list registers.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// ICH_VMCR_EL2.
    pub vmcr: u64,
    ap0r: [u64; 4],
    ap1r: [u64; 4],
    /// How many of the processor's list registers, from the first, may hold something.
    filled: usize,
}

macro_rules! active_priorities {
    ($self:ident, $count:expr, $with:ident) => {
        $with!($self, $count, 0, ap0r, 0 "ich_ap0r0_el2");
        $with!($self, $count, 0, ap1r, 0 "ich_ap1r0_el2");
        $with!($self, $count, 1, ap0r, 1 "ich_ap0r1_el2");
        $with!($self, $count, 1, ap1r, 1 "ich_ap1r1_el2");
        $with!($self, $count, 2, ap0r, 2 "ich_ap0r2_el2");
        $with!($self, $count, 2, ap1r, 2 "ich_ap1r2_el2");
        $with!($self, $count, 2, ap0r, 3 "ich_ap0r3_el2");
        $with!($self, $count, 2, ap1r, 3 "ich_ap1r3_el2");
    };
}

macro_rules! load_priority {
    ($self:ident, $count:expr, $least:literal, $field:ident, $index:literal $name:literal) => {
        if $count > $least {
            write!($name, $self.$field[$index]);
        }
    };
}

macro_rules! save_priority {
    ($self:ident, $count:expr, $least:literal, $field:ident, $index:literal $name:literal) => {
        if $count > $least {
            $self.$field[$index] = read!($name);
        }
    };
}

impl Interface {
    /// Puts it into the processor, at the start of a turn.
    ///
    /// # Safety
    /// At EL2, on a processor with a GICv3 whose system registers are enabled.
    pub unsafe fn load(&mut self, capabilities: Capabilities) {
        /// Where Enable of ICC_SRE_EL2 cannot be cleared, an earlier guest may have changed it; and fields of
        /// ICH_VMCR_EL2 depend on it.
        const SYSTEM_REGISTERS: u64 = 0b111;
        write!("icc_sre_el1", SYSTEM_REGISTERS);
        // SAFETY: what comes next sees it.
        unsafe { asm!("isb", options(nostack, preserves_flags)) };
        write!("ich_vmcr_el2", self.vmcr);
        // An earlier guest's.
        self.filled = capabilities.list_registers;
        active_priorities!(self, capabilities.active_priorities, load_priority);
    }

    /// Takes it out, at the end of a turn.
    ///
    /// # Safety
    /// As for [`Interface::load`].
    pub unsafe fn save(&mut self, capabilities: Capabilities) {
        self.vmcr = read!("ich_vmcr_el2");
        active_priorities!(self, capabilities.active_priorities, save_priority);
    }

    /// Before an entry: the list registers, all that the processor has, and ICH_HCR_EL2. Those that are empty and were
    /// before are not written: an access costs many times what one to memory does.
    ///
    /// # Safety
    /// As for [`Interface::load`], which was the last that touched them, or [`Interface::take_back`].
    pub unsafe fn lend(&mut self, registers: &[u64], control: Control) {
        for (index, value) in registers.iter().enumerate().take(self.filled.max(control.used)) {
            set_list_register(index, *value);
        }
        self.filled = control.used;
        write!("ich_hcr_el2", control.hcr);
    }

    /// After an exit: the list registers in use as the guest left them, and what ICH_HCR_EL2 was. The interface is off
    /// then.
    ///
    /// # Safety
    /// As for [`Interface::load`].
    pub unsafe fn take_back(&mut self, registers: &mut [u64]) -> u64 {
        for (index, value) in registers.iter_mut().enumerate().take(self.filled) {
            *value = list_register(index);
        }
        self.vmcr = read!("ich_vmcr_el2");
        let hcr = read!("ich_hcr_el2");
        write!("ich_hcr_el2", 0_u64);
        hcr
    }
}
