// SPDX-License-Identifier: MIT OR Apache-2.0
//! Software-generated interrupts: what a write to ICC_SGI0R_EL1, ICC_SGI1R_EL1 or ICC_ASGI1R_EL1 asks for.
//!
//! Source: Arm IHI 0069, section 12.2 (ICC_SGI1R_EL1) and table 2-6.

use super::Gic;

/// Which interrupts a register may generate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SgiGroup {
    /// ICC_SGI0R_EL1, and ICC_ASGI1R_EL1 where there is one Security state: those configured as group 0.
    Group0,
    /// ICC_SGI1R_EL1.
    Group1,
}

/// Fields of the value.
mod field {
    pub const TARGET_LIST: u64 = 0xffff;
    pub const AFF1: u32 = 16;
    pub const INTID: u32 = 24;
    pub const AFF2: u32 = 32;
    /// All vCPUs but the writer.
    pub const IRM: u64 = 1 << 40;
    pub const RANGE_SELECTOR: u32 = 44;
    pub const AFF3: u32 = 48;
}

impl Gic {
    /// `vcpu` wrote `value` to one of the three registers.
    pub fn send_sgi(&mut self, vcpu: u16, value: u64, group: SgiGroup) {
        let number = (value >> field::INTID) as u32 & 0xf;
        let byte = |shift: u32| value >> shift & 0xff;
        for target in 0..self.vcpus() {
            let meant = if value & field::IRM != 0 {
                target != vcpu
            } else {
                // The numbers of vCPUs are affinity 0 alone, and below 16: range 0.
                let affinity = byte(field::AFF1) | byte(field::AFF2) | byte(field::AFF3);
                let range = value >> field::RANGE_SELECTOR & 0xf;
                affinity == 0 && range == 0 && value & field::TARGET_LIST & 1 << target != 0
            };
            if meant {
                self.change(target, number, |irq| {
                    irq.latch |= group == SgiGroup::Group1 || !irq.group1;
                });
            }
        }
    }
}
