// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask`: everything the Makefile offers.

fn main() {}
