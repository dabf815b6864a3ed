// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a device does it: IOMMUs, accelerators, PCI.
#![cfg_attr(not(test), no_std)]

extern crate alloc;
