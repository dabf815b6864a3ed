// SPDX-License-Identifier: MIT OR Apache-2.0
//! What runs the instructions of a machine's processors: QEMU's translator, or a processor of Bochs's in its place.

use crate::arch::Arch;
use anyhow::{Error, bail, ensure};
use std::fmt;
use std::str::FromStr;

/// Whose processors a machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cpu {
    /// QEMU's: `max` of its translator, TCG, or the one that machines of the architecture have.
    #[default]
    Tcg,
    /// Bochs's, AMD's with SVM.
    Svm,
    /// Bochs's, Intel's with VMX.
    Vmx,
}

impl Cpu {
    /// All of them.
    pub const ALL: &'static [Cpu] = &[Cpu::Tcg, Cpu::Svm, Cpu::Vmx];

    /// Bochs's name of the processor, where it is one of Bochs's.
    pub fn bochs_model(self) -> Option<&'static str> {
        match self {
            Cpu::Tcg => None,
            Cpu::Svm => Some("ryzen"),
            Cpu::Vmx => Some("sapphire_rapids"),
        }
    }

    /// Checks that there are such processors of that architecture.
    ///
    /// # Errors
    /// When there are none.
    pub fn check(self, arch: Arch) -> Result<(), Error> {
        let there = arch == Arch::X86_64 || self.bochs_model().is_none();
        ensure!(there, "no processors {self} on {arch}; there are on {}", Arch::X86_64);
        Ok(())
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Cpu::Tcg => "tcg",
            Cpu::Svm => "svm",
            Cpu::Vmx => "vmx",
        })
    }
}

impl FromStr for Cpu {
    type Err = Error;

    fn from_str(name: &str) -> Result<Cpu, Error> {
        match Cpu::ALL.iter().find(|cpu| cpu.to_string() == name) {
            Some(cpu) => Ok(*cpu),
            None => {
                let names: Vec<String> = Cpu::ALL.iter().map(Cpu::to_string).collect();
                bail!("no such processors; there are {}", names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for cpu in Cpu::ALL {
            assert_eq!(cpu.to_string().parse::<Cpu>().unwrap(), *cpu);
        }
        assert!("bochs".parse::<Cpu>().is_err());
    }

    #[test]
    fn processors_of_another_architecture_are_refused() {
        assert!(Cpu::Tcg.check(Arch::Aarch64).is_ok());
        assert!(Cpu::Svm.check(Arch::X86_64).is_ok());
        assert!(Cpu::Svm.check(Arch::Aarch64).is_err());
    }
}
