// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that a guest sees.
//!
//! **Principle.** Safe code without registers: values go in, values and actions come out.
#![forbid(unsafe_code)]

pub mod boot;
pub mod exception;
pub mod gic;
pub mod layout;
pub mod mmio;
pub mod psci;
pub mod smccc;
pub mod sysreg;

#[cfg(test)]
mod testing;
