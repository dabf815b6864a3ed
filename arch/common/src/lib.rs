// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the crates for the processors have in common: the hypervisor's own page tables, stacks, the loaded image,
//! backtraces, the report of a fault, access to physical memory; and above that, VMs while they live and the loop that
//! runs their vCPUs ([`vms`], [`run`]).
//!
//! **Principle.** A physical address is a pointer, on every architecture. What differs is passed in: the bits
//! of a page-table entry ([`Format`](pasidon_kernel::memory::page_table::Format)), how a frame is unwound
//! ([`backtrace::Unwind`]), what its registers are and how the other processors are stopped ([`fault::Processor`]). No instruction and no register of any processor is in here.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod backtrace;
pub mod board;
pub mod clock;
pub mod denial;
pub mod entropy;
#[cfg(test)]
mod fake;
pub mod fault;
pub mod firmware_map;
pub mod firmware_tables;
pub mod guest_files;
pub mod hardware;
pub mod heap;
pub mod history;
pub mod image;
pub mod memory;
pub mod notes;
pub mod paging;
pub mod pauses;
pub mod pcpus;
pub mod report;
pub mod run;
pub mod stack;
pub mod stage2;
pub mod symbols;
#[cfg(feature = "testing")]
pub mod testing;
pub mod vcpu;
pub mod vectors;
pub mod view;
pub mod vms;
