// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single descriptors: what reaches the device of them, what is refused, and what the guest hears.

use super::*;

const SUCCESS: [u64; 4] = [1, 0, 0, 0];
const RECORD: u64 = 0x40;
/// Flags: completion record address valid, record requested, interrupt requested, block on fault.
const CRAV: u64 = 1 << 34;
const RCR: u64 = 1 << 35;
const RCI: u64 = 1 << 36;
const BOF: u64 = 1 << 33;

/// A machine and a guest whose queue runs.
fn one() -> (Machine, Sharer) {
    let machine = Machine::new(true);
    let guest = machine.guest(5);
    (machine, guest)
}

/// What the device gets is the guest's but for tag, privilege, record and interrupt.
#[test]
fn a_descriptor_gets_the_tag_of_its_vdev_and_completes_to_the_driver() {
    let (machine, mut guest) = one();
    let hostile = 1 << 31 | 0x7ff << 20 | 0xf_0123;
    guest.submit([MOVE | hostile, RECORD, 0x2000, 0x3000, HANDLE | 0x1000, 1, 2, 3]);
    let [descriptor] = machine.has()[..] else { panic!() };
    assert_eq!(descriptor[0], MOVE | 5);
    assert_eq!((descriptor[2], descriptor[3]), (0x2000, 0x3000));
    assert_eq!(descriptor[4] as u32, 0x1000);
    assert_ne!(descriptor[1], RECORD);
    assert_eq!([descriptor[5], descriptor[6], descriptor[7]], [1, 2, 3]);
    assert_eq!(guest.raised(), [0u16; 0]);

    machine.complete(0, [0x0000_1000_0000_0001, 0, 7, 8], &mut guest);
    assert_eq!(guest.record(RECORD as usize), [0x0000_1000_0000_0001, 0, 7, 8]);
    assert_eq!(guest.raised(), [1]);
    assert_eq!(guest.detail("submitted"), "1 (1 completed, 0 in flight, 0 wait)");
}

#[test]
fn the_guest_hears_what_it_asked_for_and_no_more() {
    let failed = [0x13, 0x77, 0, 0];
    for (flags, record, told, interrupt) in [
        (CRAV | RCR | RCI, SUCCESS, true, true),
        (CRAV | RCR, SUCCESS, true, false),
        // A record that was not requested is written where something went wrong.
        (CRAV | RCI, SUCCESS, false, true),
        (CRAV, failed, true, false),
        (RCI, SUCCESS, false, true),
        (0, SUCCESS, false, false),
    ] {
        let (machine, mut guest) = one();
        guest.submit([3 << 56 | flags, RECORD, 0x2000, 0x3000, HANDLE | 0x1000, 0, 0, 0]);
        machine.complete(0, record, &mut guest);
        let expected = if told { record } else { [0; 4] };
        assert_eq!(guest.record(RECORD as usize), expected, "{flags:#x}");
        assert_eq!(guest.raised().contains(&1), interrupt, "{flags:#x}");
        assert_eq!(guest.error()[0], 0, "{flags:#x}");
    }
    // Where there is no place for a record, an error goes into SWERR.
    let (machine, mut guest) = one();
    guest.submit([3 << 56, 0, 0x2000, 0x3000, 0x1000, 0, 0, 0]);
    machine.complete(0, [0x03, 0x2345, 0, 0], &mut guest);
    assert_eq!(guest.error(), [1 | 1 << 2 | 1 << 3 | 0x03 << 8 | 3 << 32, 0, 0x2345, 0]);
    assert_eq!(guest.raised(), [0]);
}

/// Nothing of these reaches the device; the guest finds what a device would tell it.
#[test]
fn what_is_refused_is_answered_as_a_device_would() {
    let far = WINDOWS - 0x1fff;
    let window = WINDOWS + 5 * PAGE_SIZE;
    let simple = [MOVE, RECORD, 0x2000, 0x3000, HANDLE | 0x1000, 0, 0, 0];
    let with = |change: &dyn Fn(&mut [u64; 8])| {
        let mut descriptor = simple;
        change(&mut descriptor);
        descriptor
    };
    for (what, descriptor, record) in [
        ("batch", with(&|d| d[0] = 1 << 56 | 0x1c << 32), [0x10, 0, 0, 0]),
        ("an operation of DSA 2.0", with(&|d| d[0] = 0x17 << 56 | 0x1c << 32), [0x10, 0, 0, 0]),
        ("operation 0xff", with(&|d| d[0] = 0xff << 56 | 0x1c << 32), [0x10, 0, 0, 0]),
        ("block on fault", with(&|d| d[0] |= BOF), [0x11, 0, 2, 0]),
        ("a compare without a record", with(&|d| d[0] = 5 << 56 | CRAV | RCI), [0x11, 0, 8, 0]),
        ("a drain that tells nobody", with(&|d| d[0] = 2 << 56 | CRAV), [0x11, 0, 8, 0]),
        ("more than its limit", with(&|d| d[4] = HANDLE | 0x20_0001), [0x13, 0, 0, 0]),
        ("a source that ends in a window", with(&|d| d[2] = far), [0x03, far, 0, 0]),
        ("its own window as destination", with(&|d| d[3] = window), [0x83, window, 0, 0]),
        ("addresses that wrap", with(&|d| d[2] = u64::MAX - 1), [0x03, u64::MAX - 1, 0, 0]),
        (
            "a fill of the window",
            with(&|d| (d[0], d[3]) = (4 << 56 | 0x1c << 32, window)),
            [0x83, window, 0, 0],
        ),
        (
            "a second destination",
            with(&|d| (d[0], d[5]) = (9 << 56 | 0x1c << 32, window)),
            [0x83, window, 0, 0],
        ),
        ("a delta record", with(&|d| (d[0], d[5]) = (7 << 56 | 0x1c << 32, window)), [0x83, window, 0, 0]),
        (
            "a CRC seed by address",
            with(&|d| (d[0], d[6]) = (0x10 << 56 | 1 << 48 | 0x1c << 32, window)),
            [0x03, window, 0, 0],
        ),
        (
            "a drain's readback",
            with(&|d| (d[0], d[2]) = (2 << 56 | 1 << 48 | 0x1c << 32, window)),
            [0x03, window, 0, 0],
        ),
    ] {
        let (machine, mut guest) = one();
        guest.submit(descriptor);
        assert_eq!(machine.has(), [[0; 8]; 0], "{what}");
        assert_eq!(guest.record(RECORD as usize), record, "{what}");
        let wants_interrupt = descriptor[0] & RCI != 0;
        assert_eq!(guest.raised(), if wants_interrupt { vec![1] } else { vec![] }, "{what}");
        assert_eq!(guest.error()[0], 0, "{what}");
    }
}

/// Where a record has no place, or hardware does not use it for that error.
#[test]
fn what_no_record_can_tell_is_told_in_swerr() {
    let valid = 1 | 1 << 2 | 1 << 3;
    for (what, descriptor, error) in [
        (
            "a record that is not aligned",
            [MOVE, 0x48, 0x2000, 0x3000, HANDLE | 0x1000, 0, 0, 0],
            [valid | 0x1b << 8 | 3 << 32, 0, 0, 0],
        ),
        (
            "a record in no memory",
            [MOVE, 0x1_0000, 0x2000, 0x3000, HANDLE | 0x1000, 0, 0, 0],
            [valid | 0x1a << 8 | 3 << 32, 0, 0x1_0000, 0],
        ),
        (
            "a record in its window",
            [MOVE, WINDOWS + 5 * PAGE_SIZE, 0x2000, 0x3000, HANDLE | 0x1000, 0, 0, 0],
            [valid | 0x1a << 8 | 3 << 32, 0, WINDOWS + 5 * PAGE_SIZE, 0],
        ),
        (
            "another interrupt",
            [MOVE, RECORD, 0x2000, 0x3000, 2 << 32 | 0x1000, 0, 0, 0],
            [valid | 0x19 << 8 | 3 << 32, 0, 0, 0],
        ),
        (
            "a record requested and no address",
            [3 << 56 | RCR, 0, 0x2000, 0x3000, 0x1000, 0, 0, 0],
            [valid | 0x11 << 8 | 3 << 32, 8 << 32, 0, 0],
        ),
    ] {
        let (machine, mut guest) = one();
        guest.submit(descriptor);
        assert_eq!(machine.has(), [[0; 8]; 0], "{what}");
        assert_eq!((guest.raised(), guest.error()), (vec![0], error), "{what}");
        assert!(guest.memory.0.lock().iter().all(|byte| *byte == 0), "{what}");
    }
}

#[test]
fn only_an_enabled_queue_takes_stores_and_only_on_its_own_portals() {
    let (machine, mut guest) = one();
    guest.store(0x2000, [MOVE, RECORD, 0, 0, HANDLE | 0x1000, 0, 0, 0]);
    guest.store(0x3fc0, [MOVE, RECORD, 0, 0, HANDLE | 0x1000, 0, 0, 0]);
    assert_eq!(machine.has().len(), 0, "the portals of an IMS that it does not have");
    guest.store(0x0fc0, [MOVE, RECORD, 0, 0, HANDLE | 0x1000, 0, 0, 0]);
    assert_eq!(machine.has().len(), 1);
    let mut bytes = [0; 64];
    bytes[7] = 3;
    guest.guest.vdev.submit(0, 0xa0, &bytes, &mut |_| panic!("registers take no such stores"));
    for size in [1, 2, 4, 8] {
        guest.guest.vdev.write(2, PORTAL, size, u64::MAX, &mut |_| panic!("portals take no others"));
    }
    assert_eq!(guest.guest.vdev.read(2, PORTAL, 8), 0);
    machine.complete(0, SUCCESS, &mut guest);
    guest.guest.w32(0xa0, 7 << 20 | 1);
    assert_eq!(guest.guest.r32(0xa8), 0, "disabled, as nothing is in flight");
    guest.copy(RECORD);
    assert_eq!(machine.has().len(), 0);
    assert_eq!(
        (guest.raised(), guest.error()[0]),
        (vec![1], 0),
        "what is stored to a disabled queue is ignored"
    );
}

#[test]
fn a_queue_that_is_full_loses_what_comes_and_says_so() {
    let machine = Machine::new(true);
    let mut guest = machine.guest_with(5, None, Some(8));
    for record in 0..8 {
        guest.copy(record * 32);
    }
    assert_eq!(machine.has().len(), 6, "its part of the shared queue");
    assert_eq!(guest.raised(), [0u16; 0]);
    guest.copy(8 * 32);
    assert_eq!(guest.error()[0] >> 8 & 0xff, 0x53);
    assert_eq!(guest.raised(), [0]);
    // What was completed keeps its place until the guest was told.
    let descriptor = machine.model.locked().shared[SHARED].remove(0);
    machine.finish(&descriptor, SUCCESS, &guest);
    guest.copy(9 * 32);
    assert_eq!(guest.error()[0] >> 8 & 0xff, 0x53);
    guest.interrupt();
    guest.copy(9 * 32);
    assert_eq!(guest.error()[0], 0);
    assert_eq!(machine.has().len(), 6);
}

/// A drain that the device has completed is told after what it waited for.
#[test]
fn ends_are_told_in_the_order_of_submission() {
    let (machine, mut guest) = one();
    guest.copy(0x40);
    guest.submit([2 << 56 | 0x1c << 32, 0x60, 0, 0, HANDLE, 0, 0, 0]);
    let has = machine.has();
    // Both complete between two looks, whichever is looked at first.
    machine.finish(&has[0], [1, 0, 0, 0], &guest);
    machine.finish(&has[1], [1, 0, 0, 1], &guest);
    guest.interrupt();
    assert_eq!((guest.record(0x40)[0], guest.record(0x60)), (1, [1, 0, 0, 1]));
    assert_eq!(guest.raised(), [1], "one interrupt for all that was there");
}

/// Once its driver sees that a drain, or a reset, has ended, nothing is written for it any more: it frees the records.
#[test]
fn nothing_is_told_after_the_guest_saw_the_end() {
    for (command, told) in [(7, true), (10, false), (2, true), (5, false)] {
        let machine = Machine::new(true);
        let (mut alpha, mut beta) = (machine.guest(5), machine.guest(6));
        (0..6).for_each(|record| alpha.copy(0x40 + record * 32));
        (0..6).for_each(|_| beta.copy(0x40));
        // The device completes them; the interrupt has not come yet, but somebody who waits for room looks.
        for descriptor in machine.has().iter().filter(|descriptor| descriptor[0] as u32 == 5) {
            machine.finish(descriptor, SUCCESS, &alpha);
        }
        machine.model.locked().shared[SHARED].retain(|descriptor| descriptor[0] as u32 != 5);
        machine.look();
        let operand = u32::from(matches!(command, 7 | 10));
        alpha.guest.w32(0xa0, command << 20 | operand);
        if alpha.guest.r32(0xa8) >> 31 != 0 {
            alpha.interrupt();
        }
        assert_eq!(alpha.guest.r32(0xa8) >> 31, 0, "command {command}");
        let records: Vec<u64> = (0..6).map(|record| alpha.record(0x40 + record * 32)[0]).collect();
        assert_eq!(records, [u64::from(told); 6], "command {command}");
        alpha.memory.0.lock().fill(0xee);
        alpha.interrupt();
        alpha.guest.event();
        assert!(alpha.memory.0.lock().iter().all(|byte| *byte == 0xee), "command {command}");
    }
}

#[test]
fn a_reset_of_the_function_ends_what_the_guest_hears() {
    let (machine, mut guest) = one();
    (0..3).for_each(|_| guest.copy(RECORD));
    machine.model.state.lock().hang = vec![12];
    guest.guest.vdev.reset().unwrap();
    let has = machine.has();
    machine.finish(&has[0], SUCCESS, &guest);
    guest.memory.0.lock().fill(0xee);
    guest.interrupt();
    guest.guest.event();
    assert!(guest.memory.0.lock().iter().all(|byte| *byte == 0xee));
}

proptest::proptest! {
    /// Whatever a guest stores, the device gets nothing but unprivileged descriptors with its tag, its window and its
    /// interrupt, and no address that is not the guest's to name.
    #[test]
    fn no_bytes_reach_beyond_the_own(
        stores in proptest::collection::vec((proptest::array::uniform8(proptest::prelude::any::<u64>()), 0u64..0x40, 0u8..8), 1..40),
    ) {
        let (machine, mut guest) = one();
        let mut other = machine.guest(6);
        for (mut words, operation, near) in stores {
            // Mostly what is nearly right.
            if near > 0 {
                words[0] = words[0] & !(0xff << 56 | BOF) | operation << 56;
                words[1] &= 0xffe0;
                words[4] = HANDLE | words[4] & 0x1f_ffff;
                for word in [2, 3, 5, 6] {
                    words[word] >>= u32::from(near) * 7;
                }
            }
            guest.submit(words);
            for descriptor in machine.has() {
                proptest::prop_assert_eq!(descriptor[0] as u32, 5);
                let record = descriptor[1] - WINDOWS;
                proptest::prop_assert!((5 * PAGE_SIZE..6 * PAGE_SIZE).contains(&record));
                machine.assert_interrupt(&descriptor);
                let operation = descriptor[0] >> 56;
                proptest::prop_assert!(operation != 1 && [0x1_003f_03ff_u64].iter().all(|known| known >> operation & 1 != 0));
            }
            while !machine.has().is_empty() {
                machine.complete(0, SUCCESS, &mut guest);
            }
        }
        proptest::prop_assert_eq!((other.raised(), other.error()[0]), (vec![], 0));
    }
}
