// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands of the device: their codes, and what their errors mean in words.
//!
//! Source: Intel DSA Architecture Specification 341204-006, descriptions of CMD and CMDSTS.

use core::fmt;

use super::registers::cmd;

/// Command codes, as in CMD.
pub mod code {
    /// Enable Device.
    pub const ENABLE_DEVICE: u32 = 1;
    /// Disable Device.
    pub const DISABLE_DEVICE: u32 = 2;
    /// Drain All.
    pub const DRAIN_ALL: u32 = 3;
    /// Abort All.
    pub const ABORT_ALL: u32 = 4;
    /// Reset Device.
    pub const RESET_DEVICE: u32 = 5;
    /// Enable WQ.
    pub const ENABLE_WQ: u32 = 6;
    /// Disable WQ.
    pub const DISABLE_WQ: u32 = 7;
    /// Drain WQ.
    pub const DRAIN_WQ: u32 = 8;
    /// Abort WQ.
    pub const ABORT_WQ: u32 = 9;
    /// Reset WQ.
    pub const RESET_WQ: u32 = 10;
    /// Drain PASID.
    pub const DRAIN_PASID: u32 = 11;
    /// Abort PASID.
    pub const ABORT_PASID: u32 = 12;
    /// Request Interrupt Handle.
    pub const REQUEST_HANDLE: u32 = 13;
    /// Release Interrupt Handle.
    pub const RELEASE_HANDLE: u32 = 14;
}

/// Error codes of CMDSTS that the vdev gives to its guest.
pub mod error {
    /// No error.
    pub const NONE: u8 = 0x00;
    /// The command is not supported.
    pub const UNSUPPORTED: u8 = 0x01;
    /// The work queue does not exist.
    pub const BAD_WQ: u8 = 0x02;
    /// The hardware failed.
    pub const HARDWARE: u8 = 0x03;
    /// A reserved bit was set.
    pub const RESERVED_BIT: u8 = 0x04;
    /// The device is halted.
    pub const HALTED: u8 = 0x05;
    /// Enable Device: it is not disabled.
    pub const DEVICE_NOT_DISABLED: u8 = 0x10;
    /// Enable Device: bus mastering is off.
    pub const BUS_MASTER_OFF: u8 = 0x12;
    /// Enable Device: the sizes of the work queues exceed the total.
    pub const TOTAL_SIZE: u8 = 0x14;
    /// Enable Device: a group lacks a work queue or an engine.
    pub const GROUP_INCOMPLETE: u8 = 0x15;
    /// Enable Device: a work queue is in no group or in two, or has no entries and is in one.
    pub const WQ_GROUP: u8 = 0x16;
    /// Enable Device: the read buffers of a group, or their global limit, cannot be.
    pub const READ_BUFFERS: u8 = 0x18;
    /// Enable WQ: the device is not enabled.
    pub const DEVICE_NOT_ENABLED: u8 = 0x20;
    /// Enable WQ: it is not disabled.
    pub const WQ_NOT_DISABLED: u8 = 0x21;
    /// Enable WQ: it has no entries.
    pub const WQ_SIZE_ZERO: u8 = 0x22;
    /// Enable WQ: the mode is not supported.
    pub const WQ_MODE: u8 = 0x24;
    /// Enable WQ: block on fault is not supported.
    pub const WQ_BLOCK_ON_FAULT: u8 = 0x25;
    /// Enable WQ: the PASID setting does not fit.
    pub const WQ_PASID_EN: u8 = 0x26;
    /// Enable WQ: the batch limit is 0 or too large.
    pub const WQ_MAX_BATCH: u8 = 0x27;
    /// Enable WQ: the transfer limit is too large.
    pub const WQ_MAX_TRANSFER: u8 = 0x28;
    /// Disable Device.
    pub const DISABLE_NOT_ENABLED: u8 = 0x31;
    /// Disable, Drain, Abort WQ: it is not enabled.
    pub const WQ_NOT_ENABLED: u8 = 0x32;
    /// Request or Release Interrupt Handle: bad index.
    pub const HANDLE_INDEX: u8 = 0x41;
}

/// A command the driver gives to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Enable Device.
    EnableDevice,
    /// Reset Device: everything stops, configuration back to its start.
    ResetDevice,
    /// Enable WQ.
    EnableWq(u8),
    /// Disable WQ: queued work is completed first.
    DisableWq(u8),
    /// Drain WQ: ends when nothing of the queue is in flight. What is submitted meanwhile is undefined.
    DrainWq(u8),
    /// Reset WQ: aborts, disables, clears the configuration but the size.
    ResetWq(u8),
    /// Abort PASID: what is in flight with that PASID is dropped, and nothing of it comes any more.
    AbortPasid(u32),
    /// Request Interrupt Handle for an MSI-X entry.
    RequestHandle(u16),
    /// Request Interrupt Handle for an entry of the IMS.
    RequestImsHandle(u16),
}

impl Command {
    /// The value of CMD, without a request for an interrupt.
    pub fn encode(self) -> u32 {
        let (code, operand) = match self {
            Self::EnableDevice => (code::ENABLE_DEVICE, 0),
            Self::ResetDevice => (code::RESET_DEVICE, 0),
            Self::EnableWq(wq) => (code::ENABLE_WQ, u32::from(wq)),
            Self::DisableWq(wq) => (code::DISABLE_WQ, wq_bitmap(wq)),
            Self::DrainWq(wq) => (code::DRAIN_WQ, wq_bitmap(wq)),
            Self::ResetWq(wq) => (code::RESET_WQ, wq_bitmap(wq)),
            Self::AbortPasid(pasid) => (code::ABORT_PASID, pasid & cmd::OPERAND_MASK),
            Self::RequestHandle(index) => (code::REQUEST_HANDLE, u32::from(index)),
            Self::RequestImsHandle(index) => (code::REQUEST_HANDLE, u32::from(index) | HANDLE_OF_IMS),
        };
        code << cmd::CODE_SHIFT | operand
    }
}

/// Operand of Request Interrupt Handle: the index is that of an entry of the IMS.
const HANDLE_OF_IMS: u32 = 1 << 16;

/// Operand of the commands that take a bitmap: 16 queues, and which 16.
fn wq_bitmap(wq: u8) -> u32 {
    u32::from(wq / 16) << 16 | 1 << (wq % 16)
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EnableDevice => f.write_str("Enable Device"),
            Self::ResetDevice => f.write_str("Reset Device"),
            Self::EnableWq(wq) => write!(f, "Enable WQ {wq}"),
            Self::DisableWq(wq) => write!(f, "Disable WQ {wq}"),
            Self::DrainWq(wq) => write!(f, "Drain WQ {wq}"),
            Self::ResetWq(wq) => write!(f, "Reset WQ {wq}"),
            Self::AbortPasid(pasid) => write!(f, "Abort PASID {pasid}"),
            Self::RequestHandle(index) => write!(f, "Request Interrupt Handle {index}"),
            Self::RequestImsHandle(index) => write!(f, "Request Interrupt Handle {index} of the IMS"),
        }
    }
}

/// Why a command did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandFailure {
    /// The device refused it with this error code.
    Refused(Command, u8),
    /// The device did not finish it in time; it may still be executing it.
    Unfinished(Command, u64),
    /// Its turn did not come: the device executed another command for all that time. It has not failed.
    Busy(Command, u64),
    /// The device was reset under it.
    Lost(Command),
}

const NS_PER_MS: u64 = 1_000_000;

impl fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(command, code) => {
                write!(f, "{command}: {} (CMDSTS error {code:#04x})", describe(*code))
            }
            Self::Unfinished(command, ns) => {
                write!(f, "{command}: not finished after {} ms", ns / NS_PER_MS)
            }
            Self::Busy(command, ns) => {
                write!(f, "{command}: the device was busy with an earlier command for {} ms", ns / NS_PER_MS)
            }
            Self::Lost(command) => write!(f, "{command}: the device is being reset"),
        }
    }
}

/// An error code of CMDSTS in words.
pub fn describe(code: u8) -> &'static str {
    match code {
        error::NONE => "no error",
        error::UNSUPPORTED => "command not supported",
        error::BAD_WQ => "no such work queue",
        error::HARDWARE => "hardware error",
        error::RESERVED_BIT => "reserved bit set",
        error::HALTED => "device is halted",
        error::DEVICE_NOT_DISABLED => "device is not disabled",
        0x11 => "invalid device configuration",
        error::BUS_MASTER_OFF => "bus mastering is off",
        0x13 => "page request allocation is invalid",
        error::TOTAL_SIZE => "work queue sizes exceed the total",
        error::GROUP_INCOMPLETE => "a group lacks a work queue or an engine",
        error::WQ_GROUP => "a work queue is in no group or in two, or an empty one is in a group",
        0x17 => "an engine is in more than one group",
        error::READ_BUFFERS => "read buffer configuration is invalid",
        0x19 => "event log configuration is invalid",
        0x1a => "address translation service setting is invalid",
        0x1b => "PASID setting is invalid",
        error::DEVICE_NOT_ENABLED => "device is not enabled",
        error::WQ_NOT_DISABLED => "work queue is not disabled",
        error::WQ_SIZE_ZERO => "work queue has no entries",
        0x23 => "work queue priority is 0",
        error::WQ_MODE => "work queue mode is not supported",
        error::WQ_BLOCK_ON_FAULT => "block on fault is not supported",
        error::WQ_PASID_EN => "PASID enable is invalid",
        error::WQ_MAX_BATCH => "batch limit is invalid",
        error::WQ_MAX_TRANSFER => "transfer limit is invalid",
        0x2a => "privileged mode is not allowed",
        0x2b => "occupancy interrupt setting is invalid",
        0x2c => "address translation service disable is not supported",
        0x2d => "allowed operations exceed the device's",
        0x2e => "page request disable is not supported",
        error::DISABLE_NOT_ENABLED => "device is not enabled",
        error::WQ_NOT_ENABLED => "work queue is not enabled",
        error::HANDLE_INDEX => "interrupt index is invalid",
        0x42 => "no interrupt handle is left",
        _ => "unknown error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_match_the_specification() {
        assert_eq!(Command::ResetDevice.encode(), 0x0050_0000);
        assert_eq!(Command::EnableWq(3).encode(), 0x0060_0003);
        assert_eq!(Command::DisableWq(3).encode(), 0x0070_0008);
        assert_eq!(Command::DrainWq(3).encode(), 0x0080_0008);
        assert_eq!(Command::ResetWq(17).encode(), 0x00a1_0002);
        assert_eq!(Command::RequestHandle(8).encode(), 0x00d0_0008);
        assert_eq!(Command::RequestImsHandle(0x123).encode(), 0x00d1_0123);
        assert_eq!(Command::AbortPasid(0xf_1234).encode(), 0x00cf_1234);
    }

    #[test]
    fn failures_say_what_and_why() {
        assert_eq!(
            CommandFailure::Refused(Command::EnableWq(2), 0x26).to_string(),
            "Enable WQ 2: PASID enable is invalid (CMDSTS error 0x26)"
        );
        assert_eq!(
            CommandFailure::Unfinished(Command::ResetWq(2), 1_500_000_000).to_string(),
            "Reset WQ 2: not finished after 1500 ms"
        );
    }
}
