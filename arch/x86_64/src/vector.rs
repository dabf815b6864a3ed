// SPDX-License-Identifier: MIT OR Apache-2.0
//! Vectors of the interrupt descriptor table, by their use.

use core::ops::RangeInclusive;

/// What tells one interrupt from another.
pub type Vector = u8;

/// Non-maskable interrupt.
pub const NMI: u8 = 2;
/// #DF.
pub const DOUBLE_FAULT: u8 = 8;
/// #MC.
pub const MACHINE_CHECK: u8 = 18;
/// First that is no exception's.
pub const FIRST_INTERRUPT: u8 = 0x20;
/// What the firmware's 8259s would use, which are masked.
pub const LEGACY: RangeInclusive<u8> = 0x20..=0x2f;
/// For devices.
pub const DEVICES: RangeInclusive<u8> = 0x30..=0xef;
/// Faults that the IOMMU reports.
pub const IOMMU_FAULT: u8 = 0xfb;
/// The serial line.
pub const SERIAL: u8 = 0xfc;
/// Another pCPU wants something.
pub const KICK: u8 = 0xfd;
/// The local APIC's timer.
pub const TIMER: u8 = 0xfe;
/// The local APIC's spurious interrupt, which is not ended.
pub const SPURIOUS: u8 = 0xff;
