// SPDX-License-Identifier: MIT OR Apache-2.0
//! Time for the guest: the paravirtual clock that Linux knows as kvm-clock.
//!
//! **Principle.** The guest's TSC is the clock. The structures only tell its frequency and what it read
//! when; they are written once and stay true, because the TSC neither stops nor changes pace
//! (`TSC_STABLE`), unless the guest writes it: then they are written anew, and time goes on as it was. So Linux
//! needs no calibration loop and no exit to read the time. After a pause only a flag is written, so that the guest's
//! watchdogs do not take the time for a fault.
//!
//! Source: Linux `Documentation/virt/kvm/x86/msr.rst` and `pvclock-abi.h` (the interface, not the code).

use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::{BadGuestAddress, GuestMemory};

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;
/// `flags`: readings of different vCPUs agree.
const FLAG_TSC_STABLE: u8 = 1;
/// `flags`: the guest stood still; it clears this when it has seen it.
const FLAG_GUEST_STOPPED: u8 = 1 << 1;
/// Where `flags` is in the structure.
const FLAGS_OFFSET: u64 = 29;
/// An even version: the structure is not being written.
const FIRST_VERSION: u32 = 2;

/// Size of the system-time structure.
pub const SYSTEM_TIME_LEN: usize = 32;
/// Size of the wall-clock structure.
pub const WALL_CLOCK_LEN: usize = 12;

/// How the guest's TSC relates to time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestClock {
    tsc_hz: u64,
    /// Unix time, in nanoseconds, when the guest's time was zero.
    wall_at_zero_ns: u64,
    /// What the guest's TSC reads when its time is zero.
    tsc_at_zero: u64,
    /// Version of the structure that tells so.
    version: u32,
}

impl GuestClock {
    /// A clock whose TSC runs at `tsc_hz` (not zero; zero is taken for one) and reads `tsc` when Unix
    /// time is `wall_ns` nanoseconds.
    pub const fn new(tsc_hz: u64, wall_ns: u64, tsc: u64) -> Self {
        let tsc_hz = if tsc_hz == 0 { 1 } else { tsc_hz };
        let clock = Self { tsc_hz, wall_at_zero_ns: 0, tsc_at_zero: 0, version: FIRST_VERSION };
        Self { wall_at_zero_ns: wall_ns.saturating_sub(clock.nanoseconds(tsc)), ..clock }
    }

    /// Frequency of the guest's TSC.
    pub const fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// Nanoseconds that `ticks` of the TSC take.
    pub const fn nanoseconds(&self, ticks: u64) -> u64 {
        let ns = ticks as u128 * NANOSECONDS_PER_SECOND as u128 / self.tsc_hz as u128;
        if ns > u64::MAX as u128 { u64::MAX } else { ns as u64 }
    }

    /// The guest's TSC reads `delta` more than before, modulo 2⁶⁴; its time goes on as it was. The system-time structure
    /// has to be written again.
    pub fn tsc_moved(&mut self, delta: u64) {
        self.tsc_at_zero = self.tsc_at_zero.wrapping_add(delta);
        // A reader of the old one that goes on now sees that it must read again.
        self.version = self.version.wrapping_add(2);
    }

    /// Multiplier and shift of the interface: ns = (ticks shifted left by `shift`) × `multiplier` / 2³².
    fn scale(&self) -> (u32, i8) {
        // The multiplier keeps the most precision when its top bit is set: shift ticks until one second
        // of them lies in [1e9, 2e9).
        let mut shift = 0i8;
        let mut hz = u128::from(self.tsc_hz);
        let second = u128::from(NANOSECONDS_PER_SECOND);
        while hz >= 2 * second {
            hz >>= 1;
            shift -= 1;
        }
        while hz <= second {
            hz <<= 1;
            shift += 1;
        }
        // Exact: hz above lost low bits by shifting.
        let (numerator, denominator) = if shift < 0 {
            (second << (32 + u32::from(shift.unsigned_abs())), u128::from(self.tsc_hz))
        } else {
            (second << 32, hz)
        };
        (u32::try_from(numerator / denominator).unwrap_or(u32::MAX), shift)
    }

    /// Fills the system-time structure at `address`.
    ///
    /// # Errors
    /// When the structure is not all in RAM.
    pub fn write_system_time(
        &self,
        memory: &dyn GuestMemory,
        address: GuestPhys,
    ) -> Result<(), BadGuestAddress> {
        let (multiplier, shift) = self.scale();
        let mut bytes = [0; SYSTEM_TIME_LEN];
        bytes[0..4].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tsc_at_zero.to_le_bytes());
        // system_time (16..24) is zero: that is what the TSC read at the start.
        bytes[24..28].copy_from_slice(&multiplier.to_le_bytes());
        bytes[28] = shift.cast_unsigned();
        bytes[FLAGS_OFFSET as usize] = FLAG_TSC_STABLE;
        memory.write(address, &bytes)
    }

    /// Says in the system-time structure at `address` that the guest stood still. The guest does not run meanwhile.
    ///
    /// # Errors
    /// When the structure is not all in RAM.
    pub fn tell_stopped(&self, memory: &dyn GuestMemory, address: GuestPhys) -> Result<(), BadGuestAddress> {
        let flags = GuestPhys(address.0.saturating_add(FLAGS_OFFSET));
        memory.write(flags, &[FLAG_TSC_STABLE | FLAG_GUEST_STOPPED])
    }

    /// Fills the wall-clock structure at `address`: Unix time when the guest's time was zero.
    ///
    /// # Errors
    /// When the structure is not all in RAM.
    pub fn write_wall_clock(
        &self,
        memory: &dyn GuestMemory,
        address: GuestPhys,
    ) -> Result<(), BadGuestAddress> {
        let seconds = (self.wall_at_zero_ns / NANOSECONDS_PER_SECOND) as u32;
        let nanoseconds = (self.wall_at_zero_ns % NANOSECONDS_PER_SECOND) as u32;
        let mut bytes = [0; WALL_CLOCK_LEN];
        bytes[0..4].copy_from_slice(&FIRST_VERSION.to_le_bytes());
        bytes[4..8].copy_from_slice(&seconds.to_le_bytes());
        bytes[8..12].copy_from_slice(&nanoseconds.to_le_bytes());
        memory.write(address, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_arch_common::testing::TestMemory;
    use proptest::prelude::*;

    /// What Linux computes from the structure.
    fn guest_ns(bytes: &[u8], tsc: u64) -> u64 {
        let u64_at = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().unwrap());
        let multiplier = u32::from_le_bytes(bytes[24..28].try_into().unwrap());
        let shift = bytes[28] as i8;
        let delta = tsc.wrapping_sub(u64_at(8));
        let delta = if shift < 0 { delta >> -shift } else { delta << shift };
        u64_at(16) + ((u128::from(delta) * u128::from(multiplier)) >> 32) as u64
    }

    #[test]
    fn wall_clock_is_the_time_when_the_tsc_was_zero() {
        let memory = TestMemory::new(0, 1 << 20);
        let clock = GuestClock::new(2_000_000_000, 1_700_000_005_500_000_000, 10_000_000_000);
        clock.write_wall_clock(&memory, GuestPhys(0x100)).unwrap();
        let mut bytes = [0; WALL_CLOCK_LEN];
        memory.read(GuestPhys(0x100), &mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes[0..4].try_into().unwrap()) % 2, 0);
        assert_eq!(u32::from_le_bytes(bytes[4..8].try_into().unwrap()), 1_700_000_000);
        assert_eq!(u32::from_le_bytes(bytes[8..12].try_into().unwrap()), 500_000_000);
    }

    #[test]
    fn time_goes_on_when_the_guest_writes_its_tsc() {
        const HZ: u64 = 1_000_000_000;
        let memory = TestMemory::new(0, 0x1000);
        let mut clock = GuestClock::new(HZ, 0, 0);
        let read = |clock: &GuestClock, tsc| {
            clock.write_system_time(&memory, GuestPhys(0)).unwrap();
            let bytes = memory.bytes(0, SYSTEM_TIME_LEN);
            (u32::from_le_bytes(bytes[..4].try_into().unwrap()), guest_ns(&bytes, tsc))
        };
        let (version, before) = read(&clock, 5 * HZ);
        for (old, new) in [(5 * HZ, 0), (0, u64::MAX - HZ), (u64::MAX - HZ, 7)] {
            clock.tsc_moved(new.wrapping_sub(old));
            let (next, after) = read(&clock, new);
            assert!(after.abs_diff(before) < 1000, "{after} {before}");
            assert!(next > version && next % 2 == 0, "a reader in the middle of it must see that");
        }
    }

    #[test]
    fn a_structure_outside_of_ram_is_refused() {
        let memory = TestMemory::new(0, 0x1000);
        let clock = GuestClock::new(0, 0, u64::MAX);
        assert!(clock.write_system_time(&memory, GuestPhys(0xff0)).is_err());
        assert!(clock.write_system_time(&memory, GuestPhys(u64::MAX)).is_err());
    }

    proptest! {
        #[test]
        fn the_guest_computes_the_right_time(hz in 1_000_000u64..20_000_000_000, seconds in 0u64..86_400) {
            let memory = TestMemory::new(0, 0x1000);
            GuestClock::new(hz, 0, 0).write_system_time(&memory, GuestPhys(0)).unwrap();
            let mut bytes = [0; SYSTEM_TIME_LEN];
            memory.read(GuestPhys(0), &mut bytes).unwrap();
            let ns = guest_ns(&bytes, hz * seconds);
            let expected = seconds * NANOSECONDS_PER_SECOND;
            // Within 1 in 1e8 (the interface's multiplier has 31 or 32 bits).
            prop_assert!(ns.abs_diff(expected) <= expected / 100_000_000 + 2_000, "{ns} {expected}");
        }
    }
}
