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
/// Status: an operand's page was not there, or not to be written. Bit 7 says which, the code is in the lower bits.
const FAULT: u8 = 0x03;
const STATUS_CODE: u8 = 0x3f;
const STATUS_WRITE: u8 = 1 << 7;
/// Bytes of a fill's pattern.
const PATTERN: u32 = 8;

/// 64 bytes for the device.
#[repr(C, align(64))]
#[derive(Clone, Default)]
pub struct Descriptor([u64; 8]);

/// What the operations here need. Addresses are the device's.
#[derive(Clone, Default, Debug, PartialEq)]
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

impl Fields {
    /// What is left to do after a fault: an operation of the same kind, whose end is the end of the whole. Nothing where this
    /// program does not know how to go on.
    ///
    /// - A copy between places that overlap is done from its end where that is what keeps the source intact. The record's
    ///   result says so (1), and the bytes completed are then the last ones, so that addresses stay as they are.
    /// - A fill begins its pattern anew, so the pattern is turned by what was written of its last repetition.
    /// - A CRC is begun again: what the record holds of one that stopped is nothing to rely on, and reading twice does no harm.
    pub fn rest(&self, record: &Record<'_>) -> Option<Self> {
        let done = record.bytes_completed();
        let size = self.size.checked_sub(done).filter(|size| *size > 0)?;
        let (from, to) = (self.source.wrapping_add(done.into()), self.destination.wrapping_add(done.into()));
        match self.operation {
            operation::MEMORY_MOVE if record.result() != 0 => Some(Self { size, ..self.clone() }),
            operation::MEMORY_MOVE | operation::COMPARE => {
                Some(Self { source: from, destination: to, size, ..self.clone() })
            }
            operation::FILL => {
                let pattern = self.source.rotate_right(done % PATTERN * u8::BITS);
                Some(Self { source: pattern, destination: to, size, ..self.clone() })
            }
            operation::CRC_GENERATION => Some(self.clone()),
            _ => None,
        }
    }
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

/// A page that the device could not use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// An address in it; some devices tell its first one.
    pub address: u64,
    /// Whether it was to be written.
    pub write: bool,
}

/// A completion record.
pub struct Record<'a>(pub &'a [u8]);

impl Record<'_> {
    /// Status, 1 for success.
    pub fn status(&self) -> u8 {
        self.0[0]
    }

    /// The page because of which an operand ended the operation early.
    pub fn fault(&self) -> Option<Fault> {
        let is = self.status() & STATUS_CODE == FAULT;
        is.then(|| Fault { address: self.fault_address(), write: self.status() & STATUS_WRITE != 0 })
    }

    /// Result of a comparison: 0 equal, 1 not. Of a copy that ended early: 1 if it was done from its end.
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

    /// A record with that status, result and number of bytes.
    fn record(status: u8, result: u8, bytes: u32) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        (record[0], record[1]) = (status, result);
        record[4..8].copy_from_slice(&bytes.to_le_bytes());
        record
    }

    fn rest(fields: &Fields, result: u8, bytes: u32) -> Option<Fields> {
        fields.rest(&Record(&record(0x83, result, bytes)))
    }

    #[test]
    fn a_users_descriptor_has_no_pasid_and_asks_for_no_interrupt() {
        let fields = Fields { operation: operation::FILL, record: 0x7f00_0000_1000, ..Fields::default() };
        let descriptor = Descriptor::new(&fields);
        // PASID and privilege in the lower half, flags and operation in the upper one.
        assert_eq!(descriptor.words()[0], 0x0400_000c_0000_0000);
        assert_eq!(descriptor.words()[1], 0x7f00_0000_1000);
    }

    #[test]
    fn faults_say_whether_a_write_is_missing() {
        let with = |status| {
            let mut record = record(status, 0, 0);
            record[8..16].copy_from_slice(&0x7f12_3456_7000u64.to_le_bytes());
            Record(&record).fault()
        };
        let address = 0x7f12_3456_7000;
        assert_eq!(with(0x03), Some(Fault { address, write: false }));
        assert_eq!(with(0x83), Some(Fault { address, write: true }));
        // Not complete, success, a page request that was refused, and a record that cannot be written.
        assert_eq!([0, SUCCESS, 0x04, 0x84, 0x1a].map(with), [None; 5]);
    }

    #[test]
    fn copies_go_on_where_they_stopped_in_either_direction() {
        let copy = Fields {
            operation: operation::MEMORY_MOVE,
            record: 0x1000,
            source: 0x2000,
            destination: 0x2800,
            size: 0x3000,
            ..Fields::default()
        };
        let forward = Fields { source: 0x3000, destination: 0x3800, size: 0x2000, ..copy.clone() };
        assert_eq!(rest(&copy, 0, 0x1000), Some(forward));
        let backward = Fields { size: 0x2000, ..copy.clone() };
        assert_eq!(rest(&copy, 1, 0x1000), Some(backward));
        assert_eq!(rest(&copy, 0, 0), Some(copy.clone()));
        // A device that has done all, or more, has nothing to fault at.
        assert_eq!([0x3000, 0x3001].map(|bytes| rest(&copy, 0, bytes)), [None, None]);
        let other = Fields { operation: 0x09, ..copy };
        assert_eq!(rest(&other, 0, 0x1000), None);
    }

    /// Copies bytes as the device does, `most` in each go, and gives up at a fault after them.
    fn copied(memory: &mut [u8], mut fields: Fields, most: u32) {
        loop {
            let backwards = fields.destination > fields.source;
            let done = most.min(fields.size);
            let skipped = if backwards { (fields.size - done) as usize } else { 0 };
            let from = fields.source as usize + skipped;
            memory.copy_within(from..from + done as usize, fields.destination as usize + skipped);
            match rest(&fields, backwards.into(), done) {
                Some(rest) => fields = rest,
                None => break,
            }
        }
    }

    #[test]
    fn an_overlapping_copy_in_pieces_is_the_copy_in_one() {
        for (source, destination) in [(10, 23), (23, 10), (10, 50)] {
            let start: Vec<u8> = (0..100).collect();
            let (mut whole, mut pieces) = (start.clone(), start);
            whole.copy_within(source..source + 40, destination);
            let fields = Fields {
                operation: operation::MEMORY_MOVE,
                source: source as u64,
                destination: destination as u64,
                size: 40,
                ..Fields::default()
            };
            copied(&mut pieces, fields, 7);
            assert_eq!(pieces, whole, "{source} to {destination}");
        }
    }

    #[test]
    fn what_is_no_copy_goes_on_too() {
        let pattern = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7]);
        let fill = Fields {
            operation: operation::FILL,
            source: pattern,
            destination: 0x2005,
            size: 0x2000,
            ..Fields::default()
        };
        let after = rest(&fill, 0, 0xffb).unwrap();
        assert_eq!((after.destination, after.size), (0x3000, 0x1005));
        // Byte 0xffb of the whole is the pattern's byte 3.
        assert_eq!(after.source.to_le_bytes(), [3, 4, 5, 6, 7, 0, 1, 2]);
        let compare = Fields { operation: operation::COMPARE, source: 0x2000, ..fill.clone() };
        let after = rest(&compare, 0, 0x10).unwrap();
        assert_eq!((after.source, after.destination, after.size), (0x2010, 0x2015, 0x1ff0));
        let crc = Fields { operation: operation::CRC_GENERATION, ..compare };
        assert_eq!(rest(&crc, 0, 0x10), Some(crc));
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
