// SPDX-License-Identifier: MIT OR Apache-2.0
//! Descriptors and completion records.
//!
//! Source: Intel DSA Architecture Specification 341204-006, chapter on descriptors.

/// Operation codes.
pub mod operation {
    pub const MEMORY_MOVE: u8 = 0x03;
    pub const FILL: u8 = 0x04;
    pub const COMPARE: u8 = 0x05;
    pub const CRC_GENERATION: u8 = 0x10;
}

/// Flags.
mod flags {
    /// The completion record address is valid.
    pub const COMPLETION_VALID: u32 = 1 << 2;
    /// Write a completion record.
    pub const COMPLETION_REQUEST: u32 = 1 << 3;
    /// Interrupt after that.
    pub const INTERRUPT_REQUEST: u32 = 1 << 4;
}

/// Bytes of a completion record, which is also its alignment.
pub const RECORD: usize = 32;
/// Status of a completion record, at its start: success. 0 means not complete yet.
pub const SUCCESS: u8 = 1;

/// 64 bytes for the device.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Descriptor([u64; 8]);

/// What the operations here need. Addresses are the device's.
#[derive(Default)]
pub struct Fields {
    /// Operation code.
    pub operation: u8,
    /// Where the completion record goes.
    pub record: u64,
    /// Source, or the pattern of a fill.
    pub source: u64,
    /// Destination, or the second source of a comparison.
    pub destination: u64,
    /// Bytes to work on.
    pub size: u32,
    /// Where a CRC starts.
    pub seed: u32,
    /// Flags beside those of the completion, as the specification numbers them.
    pub flags: u32,
    /// The queue's interrupt handle, where one is wanted.
    pub interrupt: Option<u16>,
}

impl Descriptor {
    /// Puts the fields in their places. The PASID field stays 0: a dedicated queue has its own.
    pub fn new(fields: &Fields) -> Self {
        let interrupt = if fields.interrupt.is_some() { flags::INTERRUPT_REQUEST } else { 0 };
        let flags = fields.flags | flags::COMPLETION_VALID | flags::COMPLETION_REQUEST | interrupt;
        Self([
            u64::from(fields.operation) << 56 | u64::from(flags) << 32,
            fields.record,
            fields.source,
            fields.destination,
            u64::from(fields.size) | u64::from(fields.interrupt.unwrap_or(0)) << 32,
            fields.seed.into(),
            0,
            0,
        ])
    }

    /// Puts a word, by its number, to be what it is said to be.
    pub fn set(&mut self, word: usize, value: u64) {
        self.0[word] = value;
    }

    /// As the device takes it.
    pub fn words(&self) -> &[u64; 8] {
        &self.0
    }
}

/// A completion record.
pub struct Record<'a>(pub &'a [u8]);

impl Record<'_> {
    /// Status, 1 for success.
    pub fn status(&self) -> u8 {
        self.0[0]
    }

    /// Result of a comparison: 0 equal, 1 not.
    pub fn result(&self) -> u8 {
        self.0[1]
    }

    /// Bytes completed; for a comparison, the offset of the first difference.
    pub fn bytes_completed(&self) -> u32 {
        self.word(4)
    }

    /// Where it faulted.
    pub fn fault_address(&self) -> u64 {
        u64::from(self.word(8)) | u64::from(self.word(12)) << 32
    }

    /// The CRC.
    pub fn crc(&self) -> u32 {
        self.word(16)
    }

    fn word(&self, offset: usize) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|byte| self.0[offset + byte]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_device_looks() {
        let descriptor = Descriptor::new(&Fields {
            operation: operation::MEMORY_MOVE,
            record: 0x1000,
            source: 0x2000,
            destination: 0x3000,
            size: 0x400,
            seed: 0x5eed,
            flags: 1 << 7,
            interrupt: Some(0x12),
        });
        let words = descriptor.words();
        assert_eq!(words[0], 0x0300_009c_0000_0000);
        assert_eq!(words[1..4], [0x1000, 0x2000, 0x3000]);
        assert_eq!(words[4..6], [0x12_0000_0400, 0x5eed]);
        assert_eq!(size_of::<Descriptor>(), 64);
    }

    #[test]
    fn records_are_read_in_the_devices_order() {
        let mut bytes = [0; RECORD];
        bytes[0] = 3;
        bytes[4] = 0x10;
        bytes[8..16].copy_from_slice(&0x1234_5678_9abcu64.to_le_bytes());
        let record = Record(&bytes);
        assert_eq!(
            (record.status(), record.bytes_completed(), record.fault_address()),
            (3, 0x10, 0x1234_5678_9abc)
        );
    }
}
