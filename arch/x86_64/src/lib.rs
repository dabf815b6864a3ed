// SPDX-License-Identifier: MIT OR Apache-2.0
//! How an x86-64 processor does it.
//!
//! Two halves: what runs on the machine's own processors (`cpu`, `paging`, `interrupts`, …), and what a
//! guest sees ([`guest`]). Everything that is a matter of values only is tested on the host.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub use pasidon_arch_common::{history, memory, symbols};

pub mod apic;
pub mod backend;
pub mod cache;
pub mod cause;
pub mod cpu;
pub mod descriptors;
pub mod emulate;
pub mod exit;
pub mod extended;
pub mod extension;
pub mod fault;
pub mod firmware_tables;
pub mod guest;
pub mod hardware;
pub mod host;
pub mod interrupts;
pub mod inventory;
pub mod ioapic;
pub mod machine_check;
pub mod marker;
pub mod paging;
pub mod pcpu;
pub mod platform;
pub mod portal;
pub mod posted;
pub mod power;
pub mod run;
pub mod serial;
pub mod smp;
pub mod stack;
pub mod svm;
pub mod time;
pub mod trap_frame;
pub mod unwind;
pub mod vcpu;
pub mod vector;
pub mod vms;
pub mod vmx;
