// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers of the Intel Data Streaming Accelerator, with the specification's names.
//!
//! Used from both sides: the driver reads them from the device, the vdev shows them to a guest.
//!
//! Source: Intel DSA Architecture Specification 341204-006, chapter on registers. Offsets are bytes from
//! the start of BAR0.

/// VERSION, 32 bits, read-only: 15:8 major, 7:0 minor.
pub const VERSION: usize = 0x00;
/// GENCAP, 64 bits, read-only.
pub const GENCAP: usize = 0x10;
/// WQCAP, 64 bits, read-only.
pub const WQCAP: usize = 0x20;
/// GRPCAP, 64 bits, read-only.
pub const GRPCAP: usize = 0x30;
/// ENGCAP, 64 bits, read-only.
pub const ENGCAP: usize = 0x38;
/// OPCAP, 256 bits, read-only: bit n is operation n.
pub const OPCAP: usize = 0x40;
/// Table offsets, 128 bits, read-only, in units of [`OFFSETS_UNIT`].
pub const OFFSETS: usize = 0x60;
/// GENCFG, 32 bits, writable while the device is disabled.
pub const GENCFG: usize = 0x80;
/// GENCTRL, 32 bits.
pub const GENCTRL: usize = 0x88;
/// GENSTS, 32 bits, read-only.
pub const GENSTS: usize = 0x90;
/// INTCAUSE, 32 bits, write 1 to clear.
pub const INTCAUSE: usize = 0x98;
/// CMD, 32 bits, write-only.
pub const CMD: usize = 0xa0;
/// CMDSTS, 32 bits, read-only.
pub const CMDSTS: usize = 0xa8;
/// CMDCAP, 32 bits, read-only: bit n is command n. Valid where GENCAP says so.
pub const CMDCAP: usize = 0xb0;
/// SWERR, 256 bits.
pub const SWERR: usize = 0xc0;
/// Number of 64-bit words in SWERR.
pub const SWERR_WORDS: usize = 4;

/// Unit of the table offsets, in bytes.
pub const OFFSETS_UNIT: usize = 0x100;
/// GENSTS.State and what device reset is needed.
pub mod gensts {
    /// Mask of the state.
    pub const STATE_MASK: u32 = 3;
    /// Disabled.
    pub const DISABLED: u32 = 0;
    /// Enabled.
    pub const ENABLED: u32 = 1;
    /// Drain in progress.
    pub const DRAIN: u32 = 2;
    /// Halt.
    pub const HALT: u32 = 3;
    /// Shift of the reset type that ends a halt.
    pub const RESET_TYPE_SHIFT: u32 = 2;
    /// Mask of the reset type, after the shift.
    pub const RESET_TYPE_MASK: u32 = 3;
    /// Reset type: the Reset Device command.
    pub const RESET_SOFTWARE: u32 = 0;
    /// Reset type: a cold reset.
    pub const RESET_COLD: u32 = 3;

    /// The reset that ends a halt, in words.
    pub fn reset_type(gensts: u32) -> &'static str {
        match gensts >> RESET_TYPE_SHIFT & RESET_TYPE_MASK {
            0 => "software reset",
            1 => "function-level reset",
            2 => "warm reset",
            _ => "cold reset",
        }
    }

    /// The state, in words.
    pub fn state(gensts: u32) -> &'static str {
        match gensts & STATE_MASK {
            DISABLED => "disabled",
            ENABLED => "enabled",
            DRAIN => "draining",
            _ => "halted",
        }
    }
}

/// GENCFG bits.
pub mod gencfg {
    /// Global read buffer limit.
    pub const GLOBAL_READ_BUFFER_LIMIT_MASK: u32 = 0xff;
    /// User-mode interrupts enable: descriptors of unprivileged queues may ask for an interrupt.
    pub const USER_INT_EN: u32 = 1 << 12;
}

/// GENCTRL bits.
pub mod genctrl {
    /// Interrupt on a software error.
    pub const SWERR_INT_EN: u32 = 1 << 0;
    /// Interrupt on halt.
    pub const HALT_INT_EN: u32 = 1 << 1;
}

/// INTCAUSE bits.
pub mod intcause {
    /// Software error.
    pub const SWERR: u32 = 1 << 0;
    /// Command completion.
    pub const CMD: u32 = 1 << 1;
    /// Halt state.
    pub const HALT: u32 = 1 << 4;
    /// Interrupt handles revoked.
    pub const HANDLES_REVOKED: u32 = 1 << 31;
}

/// CMD and CMDSTS fields.
pub mod cmd {
    /// CMD: operand.
    pub const OPERAND_MASK: u32 = 0xf_ffff;
    /// CMD: shift of the command code.
    pub const CODE_SHIFT: u32 = 20;
    /// CMD: mask of the command code, after the shift.
    pub const CODE_MASK: u32 = 0x1f;
    /// CMD: bits that must be zero.
    pub const RESERVED: u32 = 0x3f << 25;
    /// CMD: interrupt on completion.
    pub const REQUEST_INTERRUPT: u32 = 1 << 31;
    /// CMDSTS: error code.
    pub const ERROR_MASK: u32 = 0xff;
    /// CMDSTS: shift of the 16-bit result.
    pub const RESULT_SHIFT: u32 = 8;
    /// CMDSTS: a command is being executed.
    pub const ACTIVE: u32 = 1 << 31;
}

/// SWERR, first word.
pub mod swerr {
    /// The record is valid; write 1 to clear.
    pub const VALID: u64 = 1 << 0;
    /// Further errors were lost; write 1 to clear.
    pub const OVERFLOW: u64 = 1 << 1;
    /// The record is about a descriptor.
    pub const DESCRIPTOR_VALID: u64 = 1 << 2;
    /// WQ index is valid.
    pub const WQ_VALID: u64 = 1 << 3;
    /// Shift of the 8-bit error code.
    pub const CODE_SHIFT: u32 = 8;
    /// Shift of the 8-bit work queue index.
    pub const WQ_SHIFT: u32 = 16;
    /// Shift of the 8-bit operation.
    pub const OPERATION_SHIFT: u32 = 32;
    /// Shift of the 20-bit PASID.
    pub const PASID_SHIFT: u32 = 40;
    /// Mask of the PASID, after the shift.
    pub const PASID_MASK: u64 = 0xf_ffff;
    /// Error code: PCI configuration changed while the device was not disabled.
    pub const CODE_PCI_CONFIG: u64 = 0x51;
    /// Error code: CMD was written while a command was active.
    pub const CODE_COMMAND_BUSY: u64 = 0x52;
}

/// One entry of the group configuration table.
pub mod grpcfg {
    /// Distance of two entries, in bytes.
    pub const STRIDE: usize = 64;
    /// Work queues of the group, a bitmap of 256.
    pub const WQS: usize = 0;
    /// Engines of the group, a bitmap of 64.
    pub const ENGINES: usize = 32;
    /// GRPFLAGS.
    pub const FLAGS: usize = 40;
    /// Traffic class A and B both 1 (class 1 is the one for memory; Linux uses the same).
    pub const TRAFFIC_CLASS_1: u64 = 1 | 1 << 3;
    /// Mask of both traffic classes.
    pub const TRAFFIC_CLASS_MASK: u64 = 0x3f;
    /// Shift of the 8-bit number of read buffers reserved for the group.
    pub const RESERVED_SHIFT: u32 = 8;
    /// Shift of the 8-bit number of read buffers allowed to the group.
    pub const ALLOWED_SHIFT: u32 = 20;
    /// Least number of read buffers allowed per engine of the group.
    pub const ALLOWED_PER_ENGINE: u32 = 4;
}

/// One entry of the work queue configuration table.
pub mod wqcfg {
    /// Size, in entries: bits 15:0.
    pub const SIZE: usize = 0x00;
    /// Mask of the size.
    pub const SIZE_MASK: u32 = 0xffff;
    /// Threshold: bits 15:0.
    pub const THRESHOLD: usize = 0x04;
    /// Mode, PASID and priority.
    pub const MODE: usize = 0x08;
    /// MODE: dedicated.
    pub const MODE_DEDICATED: u32 = 1 << 0;
    /// MODE: block on fault enable.
    pub const BLOCK_ON_FAULT: u32 = 1 << 1;
    /// MODE: address translation service disable.
    pub const ATS_DISABLE: u32 = 1 << 2;
    /// MODE: shift of the 4-bit priority.
    pub const PRIORITY_SHIFT: u32 = 4;
    /// MODE: mask of the priority, after the shift.
    pub const PRIORITY_MASK: u32 = 0xf;
    /// MODE: shift of the 20-bit PASID.
    pub const PASID_SHIFT: u32 = 8;
    /// MODE: PASID enable.
    pub const PASID_EN: u32 = 1 << 28;
    /// MODE: privileged mode.
    pub const PRIV: u32 = 1 << 29;
    /// Transfer and batch limits.
    pub const LIMITS: usize = 0x0c;
    /// LIMITS: log2 of the largest transfer.
    pub const MAX_TRANSFER_MASK: u32 = 0x1f;
    /// LIMITS: shift of the log2 of the largest batch.
    pub const MAX_BATCH_SHIFT: u32 = 5;
    /// LIMITS: mask of the log2 of the largest batch, after the shift.
    pub const MAX_BATCH_MASK: u32 = 0xf;
    /// Occupancy interrupt handle.
    pub const OCCUPANCY_HANDLE: usize = 0x10;
    /// Occupancy limit and interrupt enable.
    pub const OCCUPANCY_LIMIT: usize = 0x14;
    /// Occupancy and state, read-only.
    pub const STATE: usize = 0x18;
    /// STATE: mask of the descriptors that are queued; valid where WQCAP says so.
    pub const OCCUPANCY_MASK: u32 = 0xffff;
    /// STATE: shift of the 2-bit state: 0 disabled, 1 enabled, 2 busy.
    pub const STATE_SHIFT: u32 = 30;
    /// Operations allowed, 256 bits; present where WQCAP says so.
    pub const OPCFG: usize = 0x20;
}

/// One entry of the MSI-X permission table.
pub mod msixperm {
    /// Distance of two entries, in bytes.
    pub const STRIDE: usize = 8;
    /// The entry checks the PASID.
    pub const PASID_EN: u32 = 1 << 3;
    /// Shift of the 20-bit PASID.
    pub const PASID_SHIFT: u32 = 12;
    /// The bits that can be written.
    pub const WRITABLE: u32 = 0xf_ffff << PASID_SHIFT | PASID_EN | 1 << 2;
}

/// BAR2: submission portals.
pub mod portal {
    /// Distance of two work queues' portals, in bytes.
    pub const STRIDE: u64 = 0x4000;
    /// The limited portal whose descriptors name MSI-X entries.
    pub const LIMITED_MSIX: u64 = 0x1000;
    /// The unlimited portal whose descriptors name MSI-X entries.
    pub const UNLIMITED_MSIX: u64 = 0x0000;
    /// The unlimited portal whose descriptors name entries of the IMS.
    pub const UNLIMITED_IMS: u64 = 0x2000;
}

/// One MSI-X table entry (PCI Express Base Specification 6.0, section 7.7.2).
pub mod msix_entry {
    /// Distance of two entries, in bytes.
    pub const STRIDE: usize = 16;
    /// Lower half of the message address.
    pub const ADDRESS_LOW: usize = 0;
    /// Upper half of the message address.
    pub const ADDRESS_HIGH: usize = 4;
    /// Message data.
    pub const DATA: usize = 8;
    /// Vector control.
    pub const CONTROL: usize = 12;
    /// CONTROL: masked.
    pub const MASKED: u32 = 1;
}

/// One entry of the interrupt message storage (IMS): as of the MSI-X table, with the permission in the control word.
pub mod ims_entry {
    /// CONTROL: the entry checks the PASID.
    pub const PASID_EN: u32 = 1 << 3;
    /// CONTROL: shift of the 20-bit PASID.
    pub const PASID_SHIFT: u32 = 12;
}

/// General capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GenCap(pub u64);

impl GenCap {
    /// Bit of block on fault.
    pub const BLOCK_ON_FAULT: u64 = 1 << 0;
    /// Bit of overlapping copy.
    pub const OVERLAPPING_COPY: u64 = 1 << 1;
    /// Bit that makes CMDCAP valid.
    pub const COMMAND_CAPABILITIES: u64 = 1 << 4;
    /// Shift of the log2 of the largest transfer.
    pub const MAX_TRANSFER_SHIFT: u32 = 16;
    /// Shift of the log2 of the largest batch.
    pub const MAX_BATCH_SHIFT: u32 = 21;
    /// Shift of the number of entries of the IMS, in units of [`GenCap::IMS_UNIT`].
    pub const IMS_SHIFT: u32 = 25;
    /// Unit of the number of entries of the IMS.
    pub const IMS_UNIT: u16 = 256;
    /// Bit of configurability.
    pub const CONFIG_EN: u64 = 1 << 31;

    /// Whether CMDCAP is valid.
    pub const fn command_capabilities(self) -> bool {
        self.0 & Self::COMMAND_CAPABILITIES != 0
    }

    /// Log2 of the largest transfer in bytes.
    pub const fn max_transfer_log2(self) -> u8 {
        (self.0 >> Self::MAX_TRANSFER_SHIFT & 0x1f) as u8
    }

    /// Log2 of the largest batch in descriptors.
    pub const fn max_batch_log2(self) -> u8 {
        (self.0 >> Self::MAX_BATCH_SHIFT & 0xf) as u8
    }

    /// Entries of the interrupt message storage.
    pub const fn ims_entries(self) -> u16 {
        (self.0 >> Self::IMS_SHIFT & 0x3f) as u16 * Self::IMS_UNIT
    }

    /// Whether groups and queues can be configured by software.
    pub const fn configurable(self) -> bool {
        self.0 & Self::CONFIG_EN != 0
    }
}

/// Work queue capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WqCap(pub u64);

impl WqCap {
    /// Shift of the 8-bit number of queues.
    pub const QUEUES_SHIFT: u32 = 16;
    /// Bit of shared mode.
    pub const SHARED: u64 = 1 << 48;
    /// Bit of dedicated mode.
    pub const DEDICATED: u64 = 1 << 49;
    /// Bit of control over ATS per queue.
    pub const ATS_CONTROL: u64 = 1 << 50;

    /// Entries to share among all queues.
    pub const fn total_size(self) -> u16 {
        self.0 as u16
    }

    /// Number of work queues.
    pub const fn queues(self) -> u8 {
        (self.0 >> Self::QUEUES_SHIFT) as u8
    }

    /// Distance of two WQCFG entries, in bytes.
    pub const fn wqcfg_stride(self) -> usize {
        1 << ((self.0 >> 24 & 0xf) + 5)
    }

    /// Whether queues can be shared.
    pub const fn shared(self) -> bool {
        self.0 & Self::SHARED != 0
    }

    /// Whether queues can be dedicated.
    pub const fn dedicated(self) -> bool {
        self.0 & Self::DEDICATED != 0
    }

    /// Whether queues have a priority (0 is then refused).
    pub const fn priority(self) -> bool {
        self.0 >> 51 & 1 != 0
    }

    /// Whether WQCFG tells how many descriptors are queued.
    pub const fn occupancy(self) -> bool {
        self.0 >> 52 & 1 != 0
    }

    /// Whether each queue has its own set of allowed operations.
    pub const fn operation_config(self) -> bool {
        self.0 >> 54 & 1 != 0
    }
}

/// Group capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrpCap(pub u64);

impl GrpCap {
    /// Shift of the 8-bit number of read buffers.
    pub const READ_BUFFERS_SHIFT: u32 = 8;
    /// Bit of read buffers reserved for and allowed to a group.
    pub const READ_BUFFER_CONTROL: u64 = 1 << 16;
    /// Bit of the global read buffer limit.
    pub const READ_BUFFER_LIMIT: u64 = 1 << 17;

    /// Number of groups.
    pub const fn groups(self) -> u8 {
        self.0 as u8
    }

    /// Read buffers shared by all groups.
    pub const fn read_buffers(self) -> u8 {
        (self.0 >> Self::READ_BUFFERS_SHIFT) as u8
    }
}
