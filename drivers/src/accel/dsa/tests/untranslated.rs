// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device that no IOMMU stands in front of, against one that does what it is told, at host addresses, and fails the test
//! where these are not the guest's.

use pasidon_kernel::vdev::parent::UntranslatedMemory;
use proptest::prelude::*;

use super::model::{MSIX, QUEUES};
use super::*;
use crate::accel::dsa::descriptor::{Descriptor, Record};
use crate::accel::dsa::pieces::{OPERATIONS, Work};
use crate::accel::dsa::{Store, TYPE_SWQ};
use crate::memory::DmaMemory;

/// The queue that is shared: the last one.
const SHARED: usize = QUEUES - 1;
const RECORD: HostPhys = HostPhys(0x55_0000);
const HANDLE: u16 = 9;
/// A memory move with completion record and interrupt.
const MOVE: u64 = 0x03 << 56 | 0x1c << 32;
const FILL: u64 = 0x04 << 56 | 0x1c << 32;
const INTERRUPT: u64 = 1 << 32;

/// Where a guest has memory: guest address, host address, length. In the host it lies among others'.
const SEGMENTS: [(u64, u64, u64); 4] =
    [(0, 0x900, 0x100), (0x100, 0x300, 0x80), (0x180, 0x600, 0x180), (0x400, 0x100, 0x100)];
const HOST_BYTES: usize = 0x1000;

/// Memory of the machine, of which a guest has some.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn new() -> Self {
        Self(Mutex::new((0..HOST_BYTES).map(|byte| (byte * 7 / 3) as u8).collect()))
    }

    fn host(address: u64) -> Option<(u64, u64)> {
        let (guest, host, len) = SEGMENTS
            .into_iter()
            .find(|(start, _, len)| address.checked_sub(*start).is_some_and(|offset| offset < *len))?;
        let offset = address - guest;
        Some((host + offset, len - offset))
    }

    fn read(&self, address: u64) -> Option<u8> {
        Self::host(address).map(|(host, _)| self.0.lock()[host as usize])
    }

    fn write(&self, address: u64, byte: u8) -> bool {
        let place = Self::host(address);
        place.into_iter().for_each(|(host, _)| self.0.lock()[host as usize] = byte);
        place.is_some()
    }
}

impl SliceMemory for Memory {
    fn write_u64(&self, iova: Iova, value: u64) -> bool {
        self.covers(iova, 8)
            && (iova.0..).zip(value.to_le_bytes()).all(|(address, byte)| self.write(address, byte))
    }

    fn covers(&self, iova: Iova, len: u64) -> bool {
        Self::host(iova.0).is_some_and(|(_, follow)| len <= follow)
    }

    fn limit(&self) -> Iova {
        Iova(u64::MAX)
    }
}

impl UntranslatedMemory for Memory {
    fn run(&self, address: Iova) -> Option<(HostPhys, u64)> {
        Self::host(address.0).map(|(host, follow)| (HostPhys(host), follow))
    }
}

/// What the device does with a descriptor.
fn execute(words: &Submission, memory: &Memory) -> Record {
    assert_eq!(words[0] as u32, 0, "a PASID, privilege or reserved bits");
    assert_eq!(words[1], RECORD.0);
    assert_eq!(words[0] >> 32 & 0x1c, 0x1c, "it completes to the driver, with an interrupt");
    assert_eq!((words[4] >> 32, words[6], words[7]), (HANDLE.into(), 0, 0));
    let (code, size) = (words[0] >> 56, words[4] as u32 as usize);
    assert!(code == 0 || size > 0, "a size that is refused");
    let mut bytes = memory.0.lock();
    let own = |start: u64| {
        let end = start + size as u64;
        let inside = SEGMENTS.into_iter().any(|(_, host, len)| host <= start && end <= host + len);
        assert!(inside, "{start:#x}, {size:#x} bytes: not in one piece of the guest's");
        start as usize..end as usize
    };
    let unused = |word: usize| assert_eq!(words[word], 0, "word {word} of operation {code:#x}");
    let pattern = |word: usize| (0..size).map(move |at| (words[word] >> (at % 8 * 8)) as u8);
    let result = |differs: Option<usize>| {
        let expected = words[5];
        let checked = words[0] >> 39 & 1 != 0;
        let result = u64::from(differs.is_some());
        let code = if checked && expected != result { 2 } else { 1 };
        [code | result << 8 | (differs.unwrap_or(0) as u64) << 32, 0, 0, 0]
    };
    match code {
        0x00 => [2, 3, 5].into_iter().for_each(unused),
        0x03 => {
            unused(5);
            let (from, to) = (own(words[2]), own(words[3]));
            bytes.copy_within(from, to.start);
        }
        0x04 => {
            unused(5);
            own(words[3]).zip(pattern(2)).for_each(|(at, byte)| bytes[at] = byte);
        }
        0x05 => {
            let (one, two) = (own(words[2]), own(words[3]));
            return result(one.zip(two).position(|(one, two)| bytes[one] != bytes[two]));
        }
        0x06 => return result(own(words[2]).zip(pattern(3)).position(|(at, byte)| bytes[at] != byte)),
        0x09 => {
            let from = own(words[2]);
            for to in [own(words[3]), own(words[5])] {
                bytes.copy_within(from.clone(), to.start);
            }
        }
        0x20 => {
            [2, 5].into_iter().for_each(unused);
            own(words[3]);
        }
        other => panic!("operation {other:#x}"),
    }
    [1, 0, 0, 0]
}

/// Has the device do all pieces of a descriptor; what the guest finds, and in how many.
fn run(words: [u64; 8], memory: &Memory) -> (Record, usize) {
    let mut work = match Work::new(descriptor(words), memory) {
        Ok(work) => work,
        Err(refused) => return ([refused.code.into(), refused.address, refused.flags.into(), 0], 0),
    };
    for pieces in 1.. {
        let submission = work.next(memory, RECORD, HANDLE).expect("proven");
        let record = execute(&submission, memory);
        if !work.advance(&record) {
            return (work.finish(&record, memory), pieces);
        }
        assert!(pieces < 16, "it ends");
    }
    unreachable!()
}

fn descriptor(words: [u64; 8]) -> Descriptor {
    let mut bytes = [0; 64];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    Descriptor::new(&bytes)
}

/// The same as [`run`], byte by byte at the guest's addresses.
fn expected(words: [u64; 8], memory: &Memory) -> Record {
    let (code, size) = (words[0] >> 56, u64::from(words[4] as u32));
    let checked = words[0] >> 39 & 1 != 0;
    let fault = |address: u64, written: u64, done: u64| [3 | written << 7 | done << 32, address, 0, 0];
    let pattern = |word: u64, at: u64| (word >> (at % 8 * 8)) as u8;
    let end = |result: u64, done: u64| {
        let code = if checked && words[5] & 0xff != result { 2 } else { 1 };
        [code | result << 8 | done << 32, 0, 0, 0]
    };
    let addresses: &[(usize, u64)] = match code {
        0x03 => &[(2, 0), (3, 1)],
        0x04 => &[(3, 1)],
        0x05 => &[(2, 0), (3, 0)],
        0x06 => &[(2, 0)],
        0x09 => &[(2, 0), (3, 1), (5, 1)],
        0x20 => &[(3, 0)],
        _ => &[],
    };
    // Nothing is written where not all of a byte's addresses are there.
    let hole = |at: u64| {
        let missing = |(word, _): &&(usize, u64)| Memory::host(words[*word].wrapping_add(at)).is_none();
        addresses.iter().find(missing).map(|(word, written)| (words[*word].wrapping_add(at), *written))
    };
    let read = |word: u64, at: u64| memory.read(word + at).expect("no hole");
    for at in 0..if addresses.is_empty() { 0 } else { size } {
        if let Some((address, written)) = hole(at) {
            return fault(address, written, at);
        }
        match code {
            0x03 => drop(memory.write(words[3] + at, read(words[2], at))),
            0x04 => drop(memory.write(words[3] + at, pattern(words[2], at))),
            0x05 if read(words[2], at) != read(words[3], at) => return end(1, at),
            0x06 if read(words[2], at) != pattern(words[3], at) => return end(1, at),
            0x09 => {
                memory.write(words[3] + at, read(words[2], at));
                memory.write(words[5] + at, read(words[2], at));
            }
            _ => {}
        }
    }
    match code {
        0x05 | 0x06 => end(0, 0),
        _ => [1, 0, 0, 0],
    }
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0u64..0x540, 1 => any::<u64>(), 1 => u64::MAX - 0x40..=u64::MAX]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a guest submits: the device reaches its memory only, and it finds what one descriptor would have done.
    #[test]
    fn pieces_are_the_guests_and_do_what_the_whole_would(
        code in prop_oneof![Just(0u64), 3u64..7, Just(9), Just(0x20)],
        flags in prop_oneof![Just(0u64), Just(1 << 7), Just(1 << 8), Just(3 << 13)],
        (one, two, three) in (address(), address(), address()),
        size in 1u64..0x300,
        result in 0u64..2,
        repeat in any::<bool>(),
    ) {
        // Of compared memory some is to be equal for long.
        let (one, two) = if repeat && code == 5 { (one, one) } else { (one, two) };
        let five = if code == 9 { three } else { result };
        let words = [code << 56 | (0x1c | flags) << 32, 0x40, one, two, INTERRUPT | size, five, 0, 0];
        let (memory, plain) = (Memory::new(), Memory::new());
        let (found, _) = run(words, &memory);
        // What overlaps is refused.
        prop_assume!(found[0] != 0x16);
        let wanted = expected(words, &plain);
        prop_assert_eq!(found, wanted);
        prop_assert!(*memory.0.lock() == *plain.0.lock(), "memory differs");
    }

    /// Descriptors of any bytes reach no memory but the guest's.
    #[test]
    fn any_descriptor_stays_in_the_guests_memory(words in any::<[u64; 8]>(), code in 0u64..64, size in 0u64..0x400) {
        let words = [words[0] & !(0xff << 56) | code << 56, words[1], words[2] % 0x600, words[3] % 0x600, size,
            words[5] % 0x600, words[6], words[7]];
        let memory = Memory::new();
        let before = memory.0.lock().clone();
        let (record, pieces) = run(words, &memory);
        prop_assert!(pieces == 0 || OPERATIONS >> code & 1 != 0);
        prop_assert!(pieces > 0 || record[0] > 1);
        let others = (0..HOST_BYTES as u64).filter(|at| {
            !SEGMENTS.into_iter().any(|(_, host, len)| (host..host + len).contains(at))
        });
        for at in others {
            prop_assert_eq!(memory.0.lock()[at as usize], before[at as usize]);
        }
    }
}

#[test]
fn what_cannot_be_proven_is_refused() {
    let memory = Memory::new();
    let code = |words: [u64; 8]| run(words, &memory).0[0];
    // Batch, drain, delta records, CRC with or without an address, DIF.
    for operation in [0x01, 0x02, 0x07, 0x08, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x21, 0x3f, 0x40, 0xff] {
        assert_eq!(code([operation << 56 | 0x1c << 32, 0x40, 0, 0x80, 8, 0, 0, 0]), 0x10, "{operation:#x}");
    }
    // Flags that change what other words say; block on fault; the fence of batches.
    for flag in (0..24).filter(|flag| ![2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14].contains(flag)) {
        assert_eq!(code([MOVE | 1 << (32 + flag), 0x40, 0, 0x80, 8, 0, 0, 0]), 0x11, "flag {flag}");
    }
    assert_eq!(code([MOVE, 0x40, 0, 0x80, 0, 0, 0, 0]), 0x13, "no byte");
    assert_eq!(code([MOVE, 0x40, 0, 0x10, 0x20, 0, 0, 0]), 0x16, "an overlap");
}

#[test]
fn a_piece_ends_where_the_memory_behind_any_address_does() {
    let memory = Memory::new();
    // From 0x80 on 0x80 bytes follow in one piece; from 0x480 on, too; from 0x1c0 on 0x140.
    let (record, pieces) = run([MOVE, 0x40, 0x80, 0x1c0, INTERRUPT | 0x120, 0, 0, 0], &memory);
    assert_eq!((record, pieces), ([1, 0, 0, 0], 3));
    // Memory ends at 0x300 and begins again at 0x400.
    let (record, pieces) = run([FILL, 0x40, 0, 0x2c0, INTERRUPT | 0x200, 0, 0, 0], &memory);
    assert_eq!((record, pieces), ([0x83 | 0x40 << 32, 0x300, 0, 0], 1));
    let (record, pieces) = run([FILL, 0x40, 0, 0x3c0, INTERRUPT | 0x80, 0, 0, 0], &memory);
    assert_eq!((record, pieces), ([0x83, 0x3c0, 0, 0], 0));
}

/// The device fails in the second piece, at a host address.
#[test]
fn a_fault_of_the_device_is_told_in_the_guests_terms() {
    let memory = Memory::new();
    let words = [MOVE, 0x40, 0x80, 0x180, INTERRUPT | 0x100, 0, 0, 0];
    let mut work = Work::new(descriptor(words), &memory).unwrap();
    let first = work.next(&memory, RECORD, HANDLE).unwrap();
    assert_eq!((first[2], first[3], first[4] as u32), (0x980, 0x600, 0x80));
    assert!(work.advance(&[1, 0, 0, 0]));
    let second = work.next(&memory, RECORD, HANDLE).unwrap();
    assert_eq!((second[2], second[3], second[4] as u32), (0x300, 0x680, 0x80));
    let failed = [0x83 | 0x10 << 32, 0x690, 0, 0];
    assert!(!work.advance(&failed));
    assert_eq!(work.finish(&failed, &memory), [0x83 | 0x90 << 32, 0x210, 0, 0]);
    // What is not in the piece is not told.
    assert_eq!(work.finish(&[0x20, 0x900, 0, 0], &memory)[1], 0);
}

/// The portals of the device, which has room for what it gets.
struct Portals(Arc<Model>);

impl Store for Portals {
    fn store(&self, offset: u64, descriptor: &Submission) {
        assert!(!self.0.config.is_silent(), "submitted while the device is reset");
        let mut state = self.0.locked();
        let (wq, page) = (offset as usize >> 14, offset & 0x3fff);
        assert_eq!((wq, page), (SHARED, 0));
        assert!(state.queue_enabled(wq) && state.mode(wq) & 1 == 1, "a dedicated queue that is enabled");
        assert!(state.shared[wq].len() < state.wqcfg[wq][0] as usize, "the device has no room");
        state.shared[wq].push(*descriptor);
    }
}

struct Machine {
    model: Arc<Model>,
    memory: Arc<ModelMemory>,
    parent: Arc<TestParent>,
}

struct Sharer {
    guest: Guest,
    memory: Arc<Memory>,
}

impl Machine {
    fn new() -> Self {
        let model = Model::new(0x0b25);
        let memory = Arc::new(ModelMemory::new());
        let parent = DsaParent::new(Setup {
            name: "dsa0".into(),
            function: Function::new(Arc::clone(&model.config), Requester::new(0, 0, 4, 0)).unwrap(),
            registers: Arc::clone(&model),
            host: TestHost::new(),
            partition: Partition { queues: Vec::new(), shared: 8 },
            sending: Sending::Untranslated(Some(Arc::new(Portals(Arc::clone(&model))))),
            memory: Arc::clone(&memory) as Arc<dyn DmaMemory>,
            options: Options::default(),
        })
        .unwrap();
        Self { model, memory, parent }
    }

    fn guest(&self) -> Sharer {
        let request = VdevRequest { vm: "alpha", type_name: TYPE_SWQ, entries: Some(8), weight: None };
        let mut vdev = self.parent.create(&request).unwrap();
        let memory = Arc::new(Memory::new());
        vdev.attach_untranslated(memory.clone()).unwrap();
        let mut guest = Guest { vdev, raised: Vec::new() };
        guest.set_bus_master(true);
        guest.w32(0xa0, 5 << 20);
        guest.w32(0x88, 3);
        guest.configure();
        guest.w32(0x800, 8);
        guest.w32(0xa0, 1 << 20);
        guest.w32(0xa0, 6 << 20);
        assert_eq!(guest.r32(0xa8), 0);
        guest.raised.clear();
        Sharer { guest, memory }
    }

    fn has(&self) -> Vec<Submission> {
        self.model.locked().shared[SHARED].clone()
    }

    /// The device completes the oldest of what it has.
    fn complete(&self, record: Record) {
        let descriptor = self.model.locked().shared[SHARED].remove(0);
        for (word, value) in (0..4).zip(record) {
            self.memory.device_update(descriptor[1] + word * 8, |old: &mut [u64; 1]| old[0] = value);
        }
    }
}

impl Sharer {
    fn submit(&mut self, words: [u64; 8]) {
        let mut bytes = [0; 64];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let raised = &mut self.guest.raised;
        self.guest.vdev.submit(2, 0x1000, &bytes, &mut |vector| raised.push(vector));
    }

    fn interrupt(&mut self) {
        let raised = &mut self.guest.raised;
        self.guest.vdev.interrupt(1, &mut |vector| raised.push(vector));
    }

    fn record(&self, at: u64) -> Record {
        let byte = |address: u64| u64::from(self.memory.read(address).unwrap());
        core::array::from_fn(|word| {
            (0..8).map(|place| byte(at + word as u64 * 8 + place) << (place * 8)).sum()
        })
    }
}

#[test]
fn the_queue_has_no_pasid_and_so_has_nothing_else() {
    let machine = Machine::new();
    let state = machine.model.locked();
    assert_eq!(state.mode(SHARED) >> 28 & 3, 0, "neither PASID nor privilege");
    assert_eq!(state.mode(SHARED) & 1, 1, "dedicated");
    assert!((0..SHARED).all(|wq| state.wqcfg[wq][0] == 0), "nobody can have another");
    assert!(state.msixperm.iter().all(|permission| *permission == 0));
    drop(state);
    assert!(!machine.model.config.pasid_enabled(), "a switch may not know what a PASID is");
    let [dwq, swq] = machine.parent.types() else { panic!("two types") };
    assert!(dwq.needs_iommu.is_some() && dwq.instances == 0);
    assert!(swq.needs_iommu.is_none() && usize::from(swq.instances) == MSIX - 1);
    let request = VdevRequest { vm: "alpha", type_name: TYPE_DWQ, entries: None, weight: None };
    assert!(machine.parent.create(&request).is_err());
}

#[test]
fn a_guest_is_offered_what_can_be_proven() {
    let machine = Machine::new();
    let mut guest = machine.guest();
    assert_eq!(guest.guest.r64(0x40), OPERATIONS & 0x1_003f_03ff, "OPCAP");
    assert_eq!(guest.guest.r64(0x10) & 2, 0, "no overlapping copies");
    let mut vdev = machine
        .parent
        .create(&VdevRequest { vm: "beta", type_name: TYPE_SWQ, entries: None, weight: None })
        .unwrap();
    let tagged = attached(3, &GuestBytes::new(), vdev.window());
    assert!(vdev.attach(tagged).is_err(), "a PASID, which the queue would not send");
}

#[test]
fn a_copy_goes_by_host_addresses_piece_by_piece() {
    let machine = Machine::new();
    let mut guest = machine.guest();
    let before = guest.record(0x480);
    guest.submit([MOVE, 0x480, 0x80, 0x180, INTERRUPT | 0x100, 0, 0, 0]);
    let page = guest.guest.vdev.window().unwrap();
    let first = machine.has()[0];
    assert_eq!((first[2], first[3], first[4] as u32), (0x980, 0x600, 0x80));
    assert!((page.0..page.0 + PAGE_SIZE).contains(&first[1]), "it completes to the driver");
    machine.complete([1, 0, 0, 0]);
    guest.interrupt();
    assert!(guest.guest.raised.is_empty(), "half of it is done");
    assert_eq!(guest.record(0x480), before, "and not told");
    let second = machine.has()[0];
    assert_eq!((second[2], second[3], second[4] as u32), (0x300, 0x680, 0x80));
    machine.complete([1, 0, 0, 0]);
    guest.interrupt();
    assert_eq!(guest.guest.raised, [1]);
    assert_eq!(guest.record(0x480), [1, 0, 0, 0]);
}

#[test]
fn what_reaches_beyond_the_guest_reaches_no_device() {
    let machine = Machine::new();
    let mut guest = machine.guest();
    // Host addresses of another's; beyond the end; a record that is no memory.
    for (words, code) in [
        ([MOVE, 0x480, 0x700, 0x180, INTERRUPT | 8, 0, 0, 0], 0x03),
        ([MOVE, 0x480, 0x80, 0xa00, INTERRUPT | 8, 0, 0, 0], 0x83),
        ([MOVE, 0x480, u64::MAX - 3, 0x180, INTERRUPT | 8, 0, 0, 0], 0x03),
        ([0x01 << 56 | 0x1c << 32, 0x480, 0, 0, INTERRUPT | 2, 0, 0, 0], 0x10),
        ([0x02 << 56 | 0x1c << 32, 0x480, 0, 0, INTERRUPT, 0, 0, 0], 0x10),
    ] {
        guest.submit(words);
        assert_eq!(guest.record(0x480)[0], code, "{words:x?}");
        assert_eq!(core::mem::take(&mut guest.guest.raised), [1], "as hardware does");
    }
    guest.submit([MOVE, 0x3e0, 0x80, 0x180, INTERRUPT | 8, 0, 0, 0]);
    assert_eq!(guest.guest.r64(0xc0) >> 8 & 0xff, 0x1a, "a completion record that faults");
    assert!(machine.has().is_empty());
}

/// No command ends what is one vdev's.
#[test]
fn an_end_waits_for_what_is_in_flight() {
    let machine = Machine::new();
    let free = machine.parent.available(TYPE_SWQ);
    let (mut alpha, mut beta) = (machine.guest(), machine.guest());
    alpha.submit([MOVE, 0x480, 0x80, 0x180, INTERRUPT | 0x100, 0, 0, 0]);
    beta.submit([FILL, 0x480, 7, 0x180, INTERRUPT | 8, 0, 0, 0]);
    let failed = alpha.guest.vdev.try_quiesce().unwrap_err();
    assert_eq!(failed.why, "1 descriptors of it have not ended");
    assert!(alpha.guest.vdev.quiesce().is_err(), "however long it waits");
    // The device still writes to its page.
    assert_eq!((machine.memory.used(), machine.parent.available(TYPE_SWQ)), (2, free - 2));
    // What the device has done is the end: the other piece is not sent any more.
    machine.complete([1, 0, 0, 0]);
    alpha.guest.vdev.try_quiesce().unwrap();
    assert_eq!(machine.has().len(), 1);
    drop(alpha);
    assert_eq!((machine.memory.used(), machine.parent.available(TYPE_SWQ)), (1, free - 1));
    machine.complete([1, 0, 0, 0]);
    beta.interrupt();
    assert_eq!(beta.record(0x480), [1, 0, 0, 0], "the bystander's went on");
}

#[test]
fn a_reset_queue_tells_of_nothing_that_it_had() {
    let machine = Machine::new();
    let mut guest = machine.guest();
    guest.submit([MOVE, 0x480, 0x80, 0x180, INTERRUPT | 0x100, 0, 0, 0]);
    // Reset WQ ends when the device has done what it has.
    guest.guest.w32(0xa0, 9 << 20 | 1);
    assert_eq!(guest.guest.r32(0xa8) >> 31, 1, "active");
    machine.complete([1, 0, 0, 0]);
    guest.interrupt();
    assert_eq!(guest.guest.r32(0xa8), 0);
    assert!(machine.has().is_empty() && !guest.guest.raised.contains(&1));
}

#[test]
fn a_reset_of_the_device_ends_what_did_not_end() {
    let machine = Machine::new();
    let mut guest = machine.guest();
    guest.submit([MOVE, 0x480, 0x80, 0x180, INTERRUPT | 0x100, 0, 0, 0]);
    assert!(guest.guest.vdev.try_quiesce().is_err());
    recover(&machine.parent).unwrap();
    guest.guest.vdev.try_quiesce().unwrap();
    drop(guest);
    assert_eq!(machine.memory.used(), 0);
}

/// More than the device has room for waits, and nothing is lost.
#[test]
fn a_dedicated_queue_is_never_overrun() {
    let machine = Machine::new();
    let mut guests: Vec<Sharer> = (0..3).map(|_| machine.guest()).collect();
    for _ in 0..6 {
        for guest in &mut guests {
            guest.submit([FILL, 0x480, 7, 0x180, INTERRUPT | 8, 0, 0, 0]);
        }
    }
    for done in 0..18 {
        let has = machine.has();
        assert_eq!(has.len(), (18 - done).min(8));
        let owner = guests.iter().position(|guest| {
            let page = guest.guest.vdev.window().unwrap().0;
            (page..page + PAGE_SIZE).contains(&has[0][1])
        });
        machine.complete([1, 0, 0, 0]);
        guests[owner.unwrap()].interrupt();
    }
    assert!(guests.iter().all(|guest| guest.guest.raised.len() == 6));
}

#[test]
fn half_a_copy_is_not_told_as_done_while_the_device_is_reset() {
    let machine = Machine::new();
    let mut guest = machine.guest();
    guest.submit([MOVE, 0x480, 0x80, 0x180, INTERRUPT | 0x100, 0, 0, 0]);
    machine.complete([1, 0, 0, 0]);
    let shared = machine.parent.device().shared.clone().unwrap();
    shared.suspend();
    guest.interrupt();
    assert!(guest.guest.raised.is_empty(), "told with half of it done");
    assert_ne!(guest.record(0x480), [1, 0, 0, 0]);
    shared.resume();
    guest.interrupt();
    assert!(guest.guest.raised.is_empty() && machine.has().is_empty(), "it is lost");
    guest.guest.vdev.try_quiesce().unwrap();
}

#[test]
fn after_a_reset_that_failed_nobody_gets_a_part_of_the_device() {
    let machine = Machine::new();
    machine.model.state.lock().stays_stuck = true;
    machine.model.state.lock().hang = Vec::from([1, 10]);
    recover(&machine.parent).unwrap_err();
    let request = VdevRequest { vm: "alpha", type_name: TYPE_SWQ, entries: None, weight: None };
    let refusal = machine.parent.create(&request).map(drop).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "vm alpha: vdev dsa0/dsa-swq: the device did not come back from its last reset; try `parent dsa0 reset` again"
    );
    assert_eq!(machine.parent.available(TYPE_SWQ), 0);
    machine.model.state.lock().stays_stuck = false;
    machine.model.state.lock().hang.clear();
    machine.model.finish();
    recover(&machine.parent).unwrap();
    machine.guest().submit([FILL, 0x480, 7, 0x180, INTERRUPT | 8, 0, 0, 0]);
    assert_eq!(machine.has().len(), 1);
}
