// SPDX-License-Identifier: MIT OR Apache-2.0
//! The EFI application.
#![no_std]
#![no_main]
