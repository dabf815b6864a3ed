// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PC that a guest sees: chipset devices, firmware tables and loaders.
//!
//! **Principle.** Safe code without registers: everything here is a value that the vCPU loop calls with
//! what the guest did, and that answers with values and
//! [`Action`](pasidon_kernel::vm::exit::Action)s. What belongs to one vCPU ([`lapic`], [`msr`]) needs no
//! lock; what belongs to the VM ([`chipset`]) lives behind the VM's. `docs/src/guest.md` describes the
//! machine on one page.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod boot;
pub mod chipset;
pub mod control;
pub mod cpuid;
pub mod ioapic;
pub mod lapic;
pub mod layout;
pub mod moment;
pub mod msr;
pub mod power;
pub mod pv_eoi;
pub mod pvclock;

/// The access is to be answered with a general-protection fault in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;
