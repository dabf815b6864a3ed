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
    fn names_are_read_as_they_are_written() {
        for arch in Arch::ALL {
            assert_eq!(arch.to_string().parse::<Arch>().unwrap(), *arch);
        }
        assert!("arm64".parse::<Arch>().is_err());
    }
}
