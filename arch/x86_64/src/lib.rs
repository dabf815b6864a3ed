// SPDX-License-Identifier: MIT OR Apache-2.0
//! How an x86-64 processor does it.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod guest;
