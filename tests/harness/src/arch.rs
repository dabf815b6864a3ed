// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor architectures, and what a test has to say differently for each.

use anyhow::{Error, bail};
use std::fmt;
use std::str::FromStr;

/// A processor architecture that Pasidon is built for and tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    /// PCs with VT-d.
    X86_64,
    /// Arm with SMMUv3.
    Aarch64,
}

impl Arch {
    /// Every architecture.
    pub const ALL: &'static [Arch] = &[Arch::X86_64, Arch::Aarch64];

    /// Linux's name of the machine's serial line, for `console=`.
    pub fn console(self) -> &'static str {
        match self {
            Arch::X86_64 => "ttyS0",
            Arch::Aarch64 => "ttyAMA0",
        }
    }

    /// What Linux has to be told on an emulated machine that may be slow. On x86 it panics where too few ticks of the
    /// interval timer come in what it takes for 10 ms; under KVM it does not look either.
    pub fn slow(self) -> &'static str {
        match self {
            Arch::X86_64 => "no_timer_check",
            Arch::Aarch64 => "",
        }
    }

    /// A configuration as it is for x86_64, made one for this architecture: the guests' kernels know their serial line by
    /// another name.
    pub fn configuration(self, text: &str) -> String {
        let console = |arch: Arch| format!("console={}", arch.console());
        text.replace(&console(Arch::X86_64), &console(self))
    }

    /// What an IOMMU of these machines is called.
    pub fn iommu(self) -> &'static str {
        match self {
            Arch::X86_64 => "VT-d",
            Arch::Aarch64 => "SMMUv3",
        }
    }

    /// First address of a guest's memory.
    pub fn ram_start(self) -> u64 {
        match self {
            Arch::X86_64 => 0,
            Arch::Aarch64 => 0x4000_0000,
        }
    }

    /// Words for the command line of a guest's Linux that make it leave memory alone, at least 4 MiB from
    /// [`Arch::set_aside`] on.
    pub fn words_to_set_aside(self) -> &'static str {
        match self {
            Arch::X86_64 => "memmap=4M$0x8000000",
            // There is no memmap=; the rest of memory is left out.
            Arch::Aarch64 => "mem=128M",
        }
    }

    /// Where that memory starts.
    pub fn set_aside(self) -> u64 {
        self.ram_start() + (128 << 20)
    }

    /// Where these machines take messages that raise interrupts: what a device writes there chooses which.
    pub fn doorbell(self) -> u64 {
        match self {
            // The first address of the interrupt address range (Intel SDM 3A, 11.11.1): to local APIC 0.
            Arch::X86_64 => 0xfee0_0000,
            // GITS_TRANSLATER in the ITS of QEMU's virt machine.
            Arch::Aarch64 => 0x0809_0040,
        }
    }

    /// Words for the command line of a Linux that drives the accelerator on the machine itself, with the IOMMU as fast as
    /// that driver can do with.
    pub fn words_for_bare_accelerator(self) -> &'static str {
        match self {
            Arch::X86_64 => "intel_iommu=on,sm_on",
            // The driver in user space knows physical addresses only.
            Arch::Aarch64 => "iommu.passthrough=1",
        }
    }

    /// Debian's name of the architecture.
    pub fn debian(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        })
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(name: &str) -> Result<Arch, Error> {
        match Arch::ALL.iter().find(|arch| arch.to_string() == name) {
            Some(arch) => Ok(*arch),
            None => bail!("no such architecture; there are x86_64 and aarch64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_names_the_console_of_the_architecture() {
        let text = "cmdline = \"console=ttyS0 quiet\"";
        assert_eq!(Arch::X86_64.configuration(text), text);
        assert_eq!(Arch::Aarch64.configuration(text), "cmdline = \"console=ttyAMA0 quiet\"");
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for arch in Arch::ALL {
            assert_eq!(arch.to_string().parse::<Arch>().unwrap(), *arch);
        }
        assert!("arm64".parse::<Arch>().is_err());
    }
}
