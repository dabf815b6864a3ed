// SPDX-License-Identifier: MIT OR Apache-2.0
//! How an Arm processor with EL2 does it.
//!
//! Two halves, as in the crate for x86-64 and with the same file names: what runs on the machine's own
//! processors, which builds for Arm only, and what a guest sees ([`guest`]), which is safe code and tested on
//! any host.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod guest;
