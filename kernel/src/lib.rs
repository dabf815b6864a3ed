// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a hypervisor with shared devices *is*: VMs, memory, I/O address spaces, PASIDs, vdevs,
//! interrupts, scheduling, configuration, monitor. No architecture, no registers, no `unsafe`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;
