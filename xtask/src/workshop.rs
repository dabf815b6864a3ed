// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes for the harness what machines are started from.

use crate::uefi::{self, Arch};
use crate::{apt, guests, platform};
use anyhow::Result;
use pasidon_harness::{Application, Linux, Workshop};
use std::path::PathBuf;

/// The workshop of this checkout.
pub struct Shop;

impl Workshop for Shop {
    fn qemu(&self) -> Result<PathBuf> {
        apt::need(&pasidon_harness::platform::PACKAGES)?;
        platform::qemu(Arch::X86_64)
    }

    fn exit_counter(&self) -> Result<PathBuf> {
        platform::plugin(Arch::X86_64, "exits")
    }

    fn application(&self, features: &[&str]) -> Result<Application> {
        let features: Vec<String> = features.iter().map(|feature| (*feature).to_owned()).collect();
        uefi::build(Arch::X86_64, &features)
    }

    fn linux(&self) -> Result<Linux> {
        guests::linux()
    }

    fn self_test(&self) -> Result<PathBuf> {
        guests::self_test()
    }
}
