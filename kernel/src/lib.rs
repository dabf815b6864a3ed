// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a hypervisor with shared devices *is*: VMs, memory, I/O address spaces, PASIDs, vdevs,
//! interrupts, scheduling, configuration, monitor.
//!
//! **Principle.** This crate is a state machine. Exits and device events go in as plain values
//! ([`exit::Exit`]), actions come out ([`exit::Action`]). It knows no register, no instruction set and
//! no IOMMU model: those sit behind the traits [`iommu::Iommu`], [`parent::Parent`],
//! [`parent::VdevModel`] and [`host::Host`]. Whatever a guest can provoke is therefore a function call
//! in a host test.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
mod generated;

pub mod addr;
pub mod allowance;
pub mod attachment;
pub mod calendar;
pub mod config;
pub mod console;
pub mod dev;
pub mod drained;
pub mod exit;
pub mod fault;
pub mod fault_log;
pub mod frames;
pub mod host;
pub mod id;
pub mod info;
pub mod ioas;
pub mod iommu;
pub mod irq;
pub mod log;
pub mod memory;
pub mod monitor;
pub mod msi;
pub mod nearest;
pub mod page_table;
pub mod parent;
pub mod pasid;
pub mod ram;
pub mod refusal;
pub mod retired;
pub mod sched;
pub mod stats;
pub mod system;
pub mod table;
pub mod vdev;
pub mod vm;

#[cfg(test)]
mod testing;
