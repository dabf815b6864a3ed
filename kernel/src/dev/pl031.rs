// SPDX-License-Identifier: MIT OR Apache-2.0
//! A PL031 real-time clock: seconds since 1970, by the host's clock.
//!
//! **Principle.** RTCDR is the host's time plus an offset, which the guest sets by RTCLR; so a guest's clock goes on
//! while its VM is paused, and ends with the VM. RTCRIS is looked at when the guest looks: the interrupt is not
//! wired, and the machine's description names none.
//!
//! Source: PrimeCell Real Time Clock (PL031) Technical Reference Manual, revision r1p3, chapter 3.

use crate::dev::bus::all_ones;

/// Register offsets.
mod reg {
    pub const DR: u64 = 0x00;
    pub const MR: u64 = 0x04;
    pub const LR: u64 = 0x08;
    pub const CR: u64 = 0x0c;
    pub const IMSC: u64 = 0x10;
    pub const RIS: u64 = 0x14;
    pub const MIS: u64 = 0x18;
    pub const ICR: u64 = 0x1c;
    /// RTCPeriphID0..3, RTCPCellID0..3.
    pub const ID: u64 = 0xfe0;
    pub const ID_END: u64 = 0x1000;
}

/// Peripheral identification: part 031, designer Arm, revision r1p3; PrimeCell identification.
const ID: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
/// RTCCR: it counts, which nothing can stop.
const STARTED: u32 = 1;
/// Registers have 32 bits.
const WORD: u8 = 4;

/// A PL031.
#[derive(Clone, Copy, Debug)]
pub struct Pl031 {
    /// Seconds since 1970 of the host's clock.
    clock: fn() -> u64,
    /// Added to them, modulo 2^32.
    offset: u32,
    matches: u32,
    load: u32,
    mask: bool,
    raised: bool,
    /// RTCDR when it was last looked at.
    seen: u32,
}

impl Pl031 {
    /// After reset, with the host's time; `clock` says it in seconds since 1970.
    pub fn new(clock: fn() -> u64) -> Self {
        Self { clock, offset: 0, matches: 0, load: 0, mask: false, raised: false, seen: clock() as u32 }
    }

    /// RTCDR.
    fn now(&self) -> u32 {
        // Modulo 2^32, as the register counts: until 2106.
        ((self.clock)() as u32).wrapping_add(self.offset)
    }

    /// Sets RTCRIS where the count has met RTCMR since it was last looked at.
    fn look(&mut self) {
        let now = self.now();
        let (passed, ahead) = (now.wrapping_sub(self.seen), self.matches.wrapping_sub(self.seen));
        self.raised |= ahead != 0 && ahead <= passed;
        self.seen = now;
    }

    /// What a read of `size` bytes at `offset` gives.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        if size != WORD || !offset.is_multiple_of(WORD.into()) {
            return 0;
        }
        self.look();
        let value = match offset {
            reg::DR => self.seen,
            reg::MR => self.matches,
            reg::LR => self.load,
            reg::CR => STARTED,
            reg::IMSC => self.mask.into(),
            reg::RIS => self.raised.into(),
            reg::MIS => (self.raised && self.mask).into(),
            reg::ID..reg::ID_END => ID[((offset - reg::ID) / u64::from(WORD)) as usize].into(),
            _ => 0,
        };
        u64::from(value)
    }

    /// A write of `size` bytes.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        if size != WORD || !offset.is_multiple_of(WORD.into()) {
            return;
        }
        self.look();
        let value = (value & all_ones(WORD)) as u32;
        match offset {
            reg::MR => self.matches = value,
            reg::LR => {
                self.load = value;
                self.offset = value.wrapping_sub((self.clock)() as u32);
                self.seen = value;
            }
            reg::IMSC => self.mask = value & 1 != 0,
            reg::ICR => self.raised &= value & 1 == 0,
            // RTCCR can only be set, and is; the rest is read-only.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use proptest::prelude::*;

    std::thread_local! {
        static NOW: Cell<u64> = const { Cell::new(1_700_000_000) };
    }

    fn clock() -> Pl031 {
        Pl031::new(|| NOW.get())
    }

    #[test]
    fn linux_reads_the_time_and_sets_it() {
        let mut rtc = clock();
        let id: Vec<u64> = (0..8).map(|i| rtc.read(0xfe0 + 4 * i, 4)).collect();
        assert_eq!(id, [0x31, 0x10, 0x04, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        assert_eq!((rtc.read(0xc, 4), rtc.read(0, 4)), (1, 1_700_000_000));
        rtc.write(8, 4, 1_000);
        assert_eq!((rtc.read(0, 4), rtc.read(8, 4)), (1_000, 1_000));
        NOW.set(1_700_000_005);
        assert_eq!(rtc.read(0, 4), 1_005);
    }

    #[test]
    fn a_match_is_seen_once_it_has_come() {
        let mut rtc = clock();
        rtc.write(4, 4, 1_700_000_003);
        rtc.write(0x10, 4, 1);
        NOW.set(1_700_000_002);
        assert_eq!((rtc.read(0x14, 4), rtc.read(0x18, 4)), (0, 0));
        NOW.set(1_700_000_004);
        assert_eq!((rtc.read(0x14, 4), rtc.read(0x18, 4)), (1, 1));
        rtc.write(0x1c, 4, 1);
        assert_eq!(rtc.read(0x14, 4), 0);
    }

    proptest! {
        #[test]
        fn any_access_is_answered(steps in proptest::collection::vec(any::<(u16, u8, u64, bool)>(), 0..50)) {
            let mut rtc = clock();
            for (offset, size, value, write) in steps {
                let offset = u64::from(offset % 0x1000);
                if write {
                    rtc.write(offset, size % 9, value);
                } else {
                    prop_assert!(rtc.read(offset, size % 9) <= u64::from(u32::MAX));
                }
            }
        }
    }
}
