// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts by their use: INTIDs.
//!
//! Source: Arm GIC Architecture Specification (IHI 0069), 2.2 (INTIDs).

use core::ops::Range;

/// What tells one interrupt from another: its INTID.
pub type Vector = u32;

/// Private to each pCPU: SGIs and PPIs.
pub const PRIVATE: u32 = 32;
/// Private peripheral interrupts.
pub const PPIS: Range<u32> = 16..PRIVATE;
/// Another pCPU wants something: an SGI.
pub const KICK: u32 = 0;
/// All is over, see `fault`: an SGI, of group 0 where that exists.
pub const STOP: u32 = 15;
/// Messages of devices: the LPIs in use.
pub const DEVICES: Range<u32> = 8192..8192 + 1024;
