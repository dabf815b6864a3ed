// SPDX-License-Identifier: MIT OR Apache-2.0
//! `exits-on-kvm FILE`: runs the guest `exits` (`tests/guests/exits`) under KVM, and prints what it says.
//!
//! Principle: KVM does all that it can do in the kernel, as virtual machines in earnest have it: interrupt controllers
//! and interval timer are its own, and the guest's memory is there before it starts. Only the serial port, which KVM
//! lacks, is here.
//!
//! Source: Linux, `Documentation/virt/kvm/api.rst`.

#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    let result = match std::env::args_os().nth(1) {
        Some(file) => x86_64::run(file.as_ref()),
        None => Err(anyhow::anyhow!("which file?")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("exits-on-kvm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    eprintln!("exits-on-kvm: the guest is for x86-64 only");
    ExitCode::FAILURE
}
