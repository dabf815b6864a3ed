// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the processor can do, out of its identification registers. Values only.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D19.2 (AArch64 system registers: ID_AA64*, MIDR_EL1).

use alloc::format;
use alloc::string::String;

use pasidon_kernel::base::refusal::Refusal;

use crate::guest::sysreg::id::REGISTERS;
use crate::system_register::SystemRegister;

/// The registers that are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IdRegisters {
    /// The exception level that the firmware started the program at.
    pub current_el: u8,
    /// ID_AA64PFR0_EL1.
    pub pfr0: u64,
    /// ID_AA64MMFR0_EL1.
    pub mmfr0: u64,
    /// ID_AA64MMFR1_EL1.
    pub mmfr1: u64,
}

/// What the processor has, as far as the host side asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// The firmware started the program at EL2.
    pub el2: bool,
    /// Translation tables with pages of 4 KiB.
    pub pages_4k: bool,
    /// System registers of a GICv3 or later.
    pub gic_registers: bool,
    /// Virtualization Host Extensions: EL2 can have a translation regime like EL1's.
    pub vhe: bool,
    /// VMIDs of 16 bits instead of 8.
    pub vmid_16: bool,
    /// Bits of a physical address.
    pub physical_bits: u8,
}

/// Four bits of an identification register.
fn field(register: u64, low: u32) -> u64 {
    register >> low & 0xf
}

/// Bits of a physical address that tables with 4 KiB pages reach without FEAT_LPA2.
const PHYSICAL_BITS_MAX: u8 = 48;

impl Features {
    /// What these registers say.
    pub fn from_registers(registers: IdRegisters) -> Self {
        const NOT_SUPPORTED: u64 = 0xf;
        let IdRegisters { current_el, pfr0, mmfr0, mmfr1 } = registers;
        let bits = match field(mmfr0, 0) {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            _ => PHYSICAL_BITS_MAX,
        };
        Self {
            el2: current_el == 2,
            pages_4k: field(mmfr0, 28) != NOT_SUPPORTED,
            gic_registers: field(pfr0, 24) != 0,
            vhe: field(mmfr1, 8) != 0,
            vmid_16: field(mmfr1, 4) == 2,
            physical_bits: bits,
        }
    }

    /// Whether Pasidon can run here.
    ///
    /// # Errors
    /// When something is missing. Without EL2 that is all that is said: what else there is cannot be told then.
    pub fn check(&self) -> Result<(), Refusal> {
        if !self.el2 {
            return Err(Refusal::new(
                "processor",
                "the firmware started Pasidon at EL1; a hypervisor runs at EL2",
                "switch virtualization on in the firmware set-up; with QEMU use -M virt,virtualization=on",
            ));
        }
        let wanted = [(self.pages_4k, "4 KiB pages"), (self.gic_registers, "GICv3 system registers")];
        let missing: alloc::vec::Vec<&str> =
            wanted.iter().filter(|(there, _)| !there).map(|(_, name)| *name).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Refusal::new(
            "processor",
            format!("it has no {}", missing.join(", ")),
            "use a processor that has; with QEMU use -M virt,gic-version=3 -cpu max",
        ))
    }

    /// The field PS of TCR_EL2 and IPS of TCR_EL1: how far physical addresses go.
    pub fn physical_size(&self) -> u64 {
        match self.physical_bits {
            ..36 => 0,
            36..40 => 1,
            40..42 => 2,
            42..44 => 3,
            44..48 => 4,
            48.. => 5,
        }
    }
}

/// How many registers are in a [`Likeness`].
const LIKENESS: usize = REGISTERS.len() + 1;

/// What must be the same on all processors: a guest reads it on one and relies on it on every other, and so does the
/// hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Likeness([u64; LIKENESS]);

impl Likeness {
    /// Of a processor: what `id` reads from its ID registers, and its CTR_EL0.
    pub fn new(id: impl Fn(SystemRegister) -> u64, ctr: u64) -> Self {
        let mut values = [ctr; LIKENESS];
        for (value, register) in values.iter_mut().zip(&REGISTERS) {
            *value = id(register.register);
        }
        Self(values)
    }

    /// The place of the first register in which two processors differ.
    pub fn difference(&self, other: &Self) -> Option<usize> {
        self.0.iter().zip(&other.0).position(|(one, other)| one != other)
    }

    /// The name of the register at a place.
    pub fn name(place: usize) -> &'static str {
        REGISTERS.get(place).map_or("CTR_EL0", |register| register.name)
    }
}

/// The processor's name, by MIDR_EL1.
pub fn name(midr: u64) -> String {
    const ARM: u64 = 0x41;
    const QEMU: u64 = 0;
    let (implementer, part) = (midr >> 24 & 0xff, midr >> 4 & 0xfff);
    let known = match (implementer, part) {
        (ARM, 0xd03) => "Cortex-A53",
        (ARM, 0xd05) => "Cortex-A55",
        (ARM, 0xd07) => "Cortex-A57",
        (ARM, 0xd08) => "Cortex-A72",
        (ARM, 0xd0a) => "Cortex-A75",
        (ARM, 0xd0b) => "Cortex-A76",
        (ARM, 0xd0c) => "Neoverse-N1",
        (ARM, 0xd40) => "Neoverse-V1",
        (ARM, 0xd41) => "Cortex-A78",
        (ARM, 0xd47) => "Cortex-A710",
        (ARM, 0xd49) => "Neoverse-N2",
        (ARM, 0xd4f) => "Neoverse-V2",
        (QEMU, 0x051) => "QEMU max",
        _ => return format!("processor of implementer {implementer:#x}, part {part:#x}"),
    };
    String::from(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a Neoverse-N1 has them.
    const N1: IdRegisters =
        IdRegisters { current_el: 2, pfr0: 0x1100_0000_1111_1112, mmfr0: 0x0010_1125, mmfr1: 0x1021_2122 };

    #[test]
    fn what_an_n1_has() {
        let features = Features::from_registers(N1);
        assert_eq!(features.check(), Ok(()));
        assert!(features.vhe && features.vmid_16);
        assert_eq!((features.physical_bits, features.physical_size()), (48, 5));
        let larger = Features::from_registers(IdRegisters { mmfr0: 6, ..N1 });
        assert_eq!(larger.physical_bits, 48);
    }

    #[test]
    fn what_is_missing_is_said_with_a_remedy() {
        let at_el1 = Features::from_registers(IdRegisters { current_el: 1, ..N1 });
        let line = at_el1.check().unwrap_err().to_string();
        assert!(line.contains("EL2") && line.contains("virtualization=on"), "{line}");
        let poor = IdRegisters { pfr0: 0, mmfr0: 0xf000_0000, ..N1 };
        let line = Features::from_registers(poor).check().unwrap_err().to_string();
        assert!(line.contains("4 KiB pages, GICv3 system registers"), "{line}");
    }

    #[test]
    fn names() {
        assert_eq!(name(0x413f_d0c1), "Neoverse-N1");
        assert_eq!(name(0x000f_0510), "QEMU max");
        assert_eq!(name(0x610f_0220), "processor of implementer 0x61, part 0x22");
    }

    #[test]
    fn processors_are_alike_when_all_that_guests_rely_on_is() {
        let first = Likeness::new(|_| 7, 8);
        assert_eq!(first.difference(&first), None);
        for (place, register) in REGISTERS.iter().enumerate() {
            let other = Likeness::new(|read| if read == register.register { 6 } else { 7 }, 8);
            assert_eq!(first.difference(&other), Some(place));
            assert_eq!(Likeness::name(place), register.name);
        }
        let other = Likeness::new(|_| 7, 9);
        assert_eq!(first.difference(&other).map(Likeness::name), Some("CTR_EL0"));
    }
}
