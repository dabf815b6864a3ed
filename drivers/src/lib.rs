// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a device does it: IOMMUs, accelerators, PCI, interrupt controllers that devices write to.
//!
//! Drivers are generic over [`registers::Registers`] and [`memory::DmaMemory`], so that the same code
//! runs on the hardware and against register-level models in host tests.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod accel;
pub mod iommu;
pub mod iort;
pub mod irq;
pub mod memory;
pub mod pci;
pub mod registers;
pub mod sparse;

mod acpi;
mod features;
mod table_memory;
mod wait;

#[cfg(test)]
mod lives;
#[cfg(test)]
mod testing;
