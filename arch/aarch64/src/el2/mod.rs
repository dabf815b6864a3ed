// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests at EL1, with stage 2.
//!
//! **Principle.** A guest has EL1 and EL0 to itself: its translation, exceptions, timer and the acknowledgement of
//! its interrupts cost no exit. What leaves the VM (device memory, firmware calls, ID and debug registers, WFI)
//! does.
//! **Invariant.** HCR_EL2 and its like are the same in the hypervisor and in guests, so there is no moment with
//! the wrong ones.
//!
//! | file | duty |
//! |---|---|
//! | `traps` | control registers: what is trapped, how stage 2 is walked |
//! | `control` | these, written |
//! | `context` | what a guest has in the processor |
//! | `debug` | a guest's breakpoints and watchpoints |
//! | `enter` | into the guest and back |
//! | `exits` | why it came back |
//! | `interface` | its virtual CPU interface: list registers |
//! | `stage2` | what its memory looks like |
//! | `identification` | what the processor says of itself |
//! | `vmid`, `own_vmid` | whose translations are whose |
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D1.2, D8.2 (stage 2), D19.2.

pub mod exits;
pub mod stage2;
pub mod traps;
pub mod vmid;

#[cfg(target_arch = "aarch64")]
pub mod context;
#[cfg(target_arch = "aarch64")]
mod control;
#[cfg(target_arch = "aarch64")]
pub mod debug;
#[cfg(target_arch = "aarch64")]
mod enter;
#[cfg(target_arch = "aarch64")]
pub mod identification;
#[cfg(target_arch = "aarch64")]
pub mod interface;
#[cfg(target_arch = "aarch64")]
pub mod own_vmid;
#[cfg(target_arch = "aarch64")]
mod vcpu;

#[cfg(target_arch = "aarch64")]
pub use vcpu::{El2Pcpu, El2Vcpu};
