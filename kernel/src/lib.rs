// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a hypervisor with shared devices *is*: VMs, memory, I/O address spaces, PASIDs, vdevs,
//! interrupts, scheduling, configuration, monitor.
//!
//! **Principle.** This crate is a state machine. Exits and device events go in as plain values
//! ([`vm::exit::Exit`]), actions come out ([`vm::exit::Action`]). It knows no register, no instruction set
//! and no IOMMU model: those sit behind the traits [`dma::iommu::Iommu`], [`vdev::parent::Parent`],
//! [`vdev::parent::VdevModel`] and [`irq::host::Host`]. Whatever a guest can provoke is therefore a
//! function call in a host test.
//!
//! | Wing | What is there |
//! |---|---|
//! | [`base`] | addresses, numbers of things, refusals, tables for people |
//! | [`memory`] | guest memory, frames, a VM's RAM, page tables of every form |
//! | [`dma`] | PASIDs, I/O address spaces, what an IOMMU must do, faults |
//! | [`irq`] | where an interrupt goes, what isolates messages, vectors of the machine |
//! | [`dev`] | models of devices every guest has |
//! | [`vdev`] | slices of a shared device, and the device itself |
//! | [`vm`] | VMs, their exits, turns and counters |
//! | [`system`] | operations that need several of these |
//! | [`config`] | `pasidon.toml` |
//! | [`console`] | the serial line, the log |
//! | [`monitor`] | commands, and what they show |
//! | [`housekeeping`] | what the first processor does besides running guests |
//! | [`inventory`] | what a machine has, and what would be refused there |
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
mod generated;

pub mod base;
pub mod config;
pub mod console;
pub mod dev;
pub mod dma;
pub mod housekeeping;
pub mod inventory;
pub mod irq;
pub mod memory;
pub mod monitor;
pub mod system;
pub mod vdev;
pub mod vm;

#[cfg(test)]
mod testing;
