// SPDX-License-Identifier: MIT OR Apache-2.0
//! How an Arm processor with EL2 does it.
//!
//! Two halves, as in the crate for x86-64 and with the same file names: what runs on the machine's own
//! processors, and what a guest sees ([`guest`]). Everything that is a matter of values only builds anywhere and
//! is tested on any host; what touches the processor builds for Arm only.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub use pasidon_arch_common::{history, memory, symbols};

pub mod cause;
pub mod device_tree;
pub mod el2;
pub mod features;
pub mod firmware_tables;
pub mod guest;
pub mod stage1;
pub mod system_register;
pub mod unwind;

#[cfg(target_arch = "aarch64")]
pub mod cache;
#[cfg(target_arch = "aarch64")]
pub mod cpu;
#[cfg(target_arch = "aarch64")]
pub mod exit;
#[cfg(target_arch = "aarch64")]
pub mod fault;
#[cfg(target_arch = "aarch64")]
pub mod gic;
#[cfg(target_arch = "aarch64")]
pub mod hardware;
#[cfg(target_arch = "aarch64")]
pub mod host;
#[cfg(target_arch = "aarch64")]
pub mod interrupts;
#[cfg(target_arch = "aarch64")]
pub mod inventory;
#[cfg(target_arch = "aarch64")]
pub mod marker;
#[cfg(target_arch = "aarch64")]
pub mod paging;
#[cfg(target_arch = "aarch64")]
pub mod pcpu;
#[cfg(target_arch = "aarch64")]
pub mod platform;
#[cfg(target_arch = "aarch64")]
pub mod portal;
#[cfg(target_arch = "aarch64")]
pub mod power;
#[cfg(target_arch = "aarch64")]
pub mod run;
#[cfg(target_arch = "aarch64")]
pub mod serial;
#[cfg(target_arch = "aarch64")]
pub mod smp;
#[cfg(target_arch = "aarch64")]
pub mod stack;
#[cfg(target_arch = "aarch64")]
pub mod time;
pub mod trap_frame;
#[cfg(target_arch = "aarch64")]
pub mod vcpu;
pub mod vector;
#[cfg(target_arch = "aarch64")]
pub mod vms;
