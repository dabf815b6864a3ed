// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes for the harness what machines are started from.

use crate::{apt, guests, platform, selftest, uefi};
use anyhow::Result;
use pasidon_harness::{Application, Arch, Linux, Workshop};
use std::path::PathBuf;

/// The workshop of this checkout, for machines of one architecture.
pub struct Shop(pub Arch);

impl Workshop for Shop {
    fn arch(&self) -> Arch {
        self.0
    }

    fn qemu(&self) -> Result<PathBuf> {
        apt::need(pasidon_harness::platform::packages(self.0))?;
        platform::qemu(self.0)
    }

    fn exit_counter(&self) -> Result<PathBuf> {
        platform::plugin(self.0, "exits")
    }

    fn application(&self, features: &[&str]) -> Result<Application> {
        let features: Vec<String> = features.iter().map(|feature| (*feature).to_owned()).collect();
        uefi::build(self.0, &features)
    }

    fn linux(&self) -> Result<Linux> {
        guests::linux(self.0)
    }

    fn self_test(&self) -> Result<PathBuf> {
        guests::self_test()
    }

    fn iommu_self_test(&self) -> Result<PathBuf> {
        selftest::smmu()
    }
}
