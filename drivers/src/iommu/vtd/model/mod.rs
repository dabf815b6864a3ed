// SPDX-License-Identifier: MIT OR Apache-2.0
//! A model of one remapping unit, for host tests: registers, invalidation queue, caches, translation.
//!
//! It is written from the specification's side and shares no constant with the driver. It is strict: an
//! access of the wrong width, two commands in one GCMD write, a reserved bit, or a table freed while a
//! cache still leads to it end the test. Context entries, PASID entries, translations and interrupt
//! entries stay cached until they are invalidated.

mod queue;
mod translate;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use self::translate::Code;
use crate::registers::Registers;
use crate::testing::{ModelMemory, View, Watcher};

/// CAP of QEMU 10.0 with 16-bit domains, 4-level tables, 2 MiB and 1 GiB leaves, fault records at 0x220.
pub const CAP: u64 = 0x00d2_008c_222f_0606;
/// CAP.NFR for four fault records.
pub const CAP_FOUR_RECORDS: u64 = 3 << 40;
pub const CAP_RWBF: u64 = 1 << 4;
pub const CAP_PROTECTED_MEMORY: u64 = 0b11 << 5;
pub const CAP_CM: u64 = 1 << 7;
pub const CAP_PSI: u64 = 1 << 39;
pub const CAP_PI: u64 = 1 << 59;
/// ECAP of QEMU 10.0 with second stage and PASIDs, here 20 bits wide, and EIM.
pub const ECAP: u64 = 0x0000_4900_80f0_0f4a | 19 << 35 | 1 << 4;
pub const ECAP_C: u64 = 1 << 0;
pub const ECAP_DT: u64 = 1 << 2;
pub const ECAP_SC: u64 = 1 << 7;
pub const ECAP_SMPWCS: u64 = 1 << 48;

const WIDE: [usize; 8] = [0x08, 0x10, 0x20, 0x80, 0x88, 0x90, 0xb0, 0xb8];
const FAULT_RECORDS: usize = 0x220;

pub const FSTS_PFO: u32 = 1 << 0;
pub const FSTS_PPF: u32 = 1 << 1;
pub const FSTS_IQE: u32 = 1 << 4;
pub const FSTS_ICE: u32 = 1 << 5;
pub const FSTS_ITE: u32 = 1 << 6;
pub const FSTS_PRO: u32 = 1 << 7;

pub const GSTS_TES: u32 = 1 << 31;
pub const GSTS_QIES: u32 = 1 << 26;
pub const GSTS_IRES: u32 = 1 << 25;
const GSTS_RTPS: u32 = 1 << 30;
const GSTS_IRTPS: u32 = 1 << 24;

/// A translation in the IOTLB. `host` is `None` where absence is cached (caching mode).
#[derive(Clone, Debug)]
struct Translation {
    host: Option<u64>,
    writable: bool,
    readable: bool,
    /// Pages of the tables it was walked through.
    walked: Vec<u64>,
}

#[derive(Default)]
pub struct State {
    pub cap: u64,
    pub ecap: u64,
    pub gsts: u32,
    pub fsts: u32,
    pub fectl: u32,
    pub pmen: u32,
    event: [u32; 3],
    rtaddr: u64,
    iqa: u64,
    head: u64,
    tail: u64,
    irta: u64,
    root: u64,
    interrupt_table: u64,
    records: Vec<[u64; 2]>,
    next_record: usize,
    contexts: BTreeMap<u16, [u64; 4]>,
    pasids: BTreeMap<(u16, u32), [u64; 8]>,
    iotlb: BTreeMap<(u16, u32, u64), Translation>,
    interrupts: BTreeMap<u16, [u64; 2]>,
    /// Devices that hold translations of their own.
    pub device_tlbs: BTreeSet<(u16, u32)>,
    /// Order of everything that was forgotten, for tests of the order.
    pub log: Vec<&'static str>,
    /// Descriptors carried out.
    pub executed: usize,
    /// Fault-event messages sent: address, data.
    pub events: Vec<(u64, u32)>,
    /// The unit reads no more descriptors.
    pub stuck: bool,
    /// Descriptors of this type are refused, this often.
    pub refuse: Option<(u64, usize)>,
    /// After so many others the next is refused, whatever it is but a wait.
    pub refuse_nth: Option<usize>,
    /// So many device-TLB invalidations are not answered.
    pub silent_devices: usize,
    unanswered: bool,
    /// Devices that send all the time: after each write to memory and each descriptor. Routing ID, tag.
    pub noisy: Vec<(u16, u32)>,
    /// Where the noise arrived, by tag.
    pub reached: BTreeMap<u32, BTreeSet<u64>>,
    /// How often it arrived nowhere.
    pub missed: BTreeMap<u32, usize>,
    /// What the unit remembers is gone whenever noise comes: it may drop anything at any moment.
    pub forgetful: bool,
    /// Devices that send the same message all the time, likewise. Routing ID, address.
    pub noisy_messages: Vec<(u16, u64)>,
    /// What these raised.
    pub raised: Vec<Result<Raised, Code>>,
}

/// What an interrupt message has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Raised {
    /// An interrupt.
    Vector { destination: u32, vector: u32 },
    /// A bit of a posted-interrupt descriptor, and the notification: destination and vector.
    Posted { descriptor: u64, vector: u32, notification: Option<(u32, u32)> },
}

/// One remapping unit.
pub struct UnitModel {
    memory: Arc<ModelMemory>,
    pub state: Mutex<State>,
}

impl UnitModel {
    pub fn new(memory: &Arc<ModelMemory>, cap: u64, ecap: u64) -> Arc<Self> {
        let records = (cap >> 40 & 0xff) as usize + 1;
        let unit = Arc::new(Self {
            memory: Arc::clone(memory),
            state: Mutex::new(State {
                cap,
                ecap,
                fectl: 1 << 31,
                records: vec![[0; 2]; records],
                ..State::default()
            }),
        });
        let watcher: Arc<dyn Watcher> = unit.clone();
        memory.watch(Arc::downgrade(&watcher));
        if cap & CAP_RWBF != 0 {
            memory.buffer_writes();
        }
        unit
    }

    fn noise_within(&self, state: &mut State) {
        if state.forgetful {
            state.pasids.clear();
            state.iotlb.clear();
        }
        for (rid, pasid) in state.noisy.clone() {
            match self.translate(state, rid, Some(pasid), 0, true) {
                Ok(host) => drop(state.reached.entry(pasid).or_default().insert(host)),
                Err(_) => *state.missed.entry(pasid).or_default() += 1,
            }
        }
        for (rid, address) in state.noisy_messages.clone() {
            let cached = self.remap(state, rid, address, 0);
            // What is cached may be replaced at any time.
            let kept = std::mem::take(&mut state.interrupts);
            let read = self.remap(state, rid, address, 0);
            state.interrupts = kept;
            state.raised.extend([cached, read].map(|result| result.map_err(|(code, _)| code)));
        }
    }

    /// Leaves entries in every cache, as firmware would that used the unit before.
    pub fn poison_caches(&self, rid: u16) {
        let mut state = self.state.lock().unwrap();
        state.contexts.insert(rid, [0xdead_b009, 0, 0, 0]);
        state.pasids.insert((rid, 1), [0xdead_b089, 1, 0, 0, 0, 0, 0, 0]);
        let translation =
            Translation { host: Some(0xdead_b000), writable: true, readable: true, walked: Vec::new() };
        state.iotlb.insert((1, 1, 0), translation);
        state.interrupts.insert(0, [0x99_0001, 0]);
    }

    /// Descriptors carried out since the last call.
    pub fn take_executed(&self) -> usize {
        std::mem::take(&mut self.state.lock().unwrap().executed)
    }

    pub fn take_log(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

impl Watcher for UnitModel {
    fn noise(&self) {
        // Where the unit itself is at work, it does so between two descriptors.
        if let Ok(mut state) = self.state.try_lock() {
            self.noise_within(&mut state);
        }
    }

    fn assert_forgotten(&self, start: u64, len: u64) {
        let state = self.state.lock().unwrap();
        let freed = start..start + len;
        let tables = state.iotlb.values().flat_map(|entry| &entry.walked).copied();
        let roots = state.pasids.values().filter(|entry| entry[0] & 1 != 0).map(|entry| entry[0] & !0xfff);
        let directories = state.contexts.values().map(|entry| entry[0] & !0xfff);
        let posted = state.interrupts.values().filter(|entry| entry[0] & 0x8001 == 0x8001);
        let descriptors = posted.map(|entry| translate::descriptor(*entry) & !0xfff);
        for page in tables.chain(roots).chain(directories).chain(descriptors) {
            assert!(!freed.contains(&page), "{page:#x} is freed while the unit still leads to it");
        }
    }
}

impl State {
    fn caching_mode(&self) -> bool {
        self.cap & CAP_CM != 0
    }

    fn command(&mut self, value: u32) {
        const ONE_SHOT: u32 = GSTS_RTPS | GSTS_IRTPS | 1 << 27;
        let levels = self.gsts & !ONE_SHOT;
        let changed = (value & !ONE_SHOT) ^ levels;
        let commands = changed.count_ones() + (value & ONE_SHOT).count_ones();
        assert_eq!(commands, 1, "GCMD {value:#x} with GSTS {:#x}: one command at a time", self.gsts);
        if value & GSTS_RTPS != 0 {
            assert_eq!(self.rtaddr >> 10 & 3, 1, "RTADDR.TTM is scalable mode");
            self.root = self.rtaddr & !0xfff;
            self.gsts |= GSTS_RTPS;
        }
        if value & GSTS_IRTPS != 0 {
            self.interrupt_table = self.irta;
            self.gsts |= GSTS_IRTPS;
        }
        if changed & GSTS_QIES != 0 {
            if value & GSTS_QIES != 0 {
                assert_eq!(self.tail, 0, "IQT is 0 when the queue goes on");
                assert_eq!(self.iqa >> 11 & 1, 1, "256-bit descriptors in scalable mode");
            }
            self.head = 0;
        }
        if changed & GSTS_TES != 0 && value & GSTS_TES != 0 {
            assert_ne!(self.gsts & GSTS_RTPS, 0, "translation on without a root table");
        }
        self.gsts ^= changed;
    }

    /// Sets an error of FSTS, and announces it where nothing is pending.
    pub fn set_error(&mut self, error: u32) {
        self.raise_fault_event();
        self.fsts |= error;
    }

    /// FSTS with the fields that follow from the records.
    fn fault_status(&self) -> u32 {
        let count = self.records.len();
        let pending = |record: &[u64; 2]| record[1] >> 63 != 0;
        let first =
            (0..count).map(|at| (self.next_record + at) % count).find(|&at| pending(&self.records[at]));
        match first {
            Some(first) => self.fsts | FSTS_PPF | (first as u32) << 8,
            None => self.fsts,
        }
    }

    /// Sends the event for a condition that is about to be set, unless one is set already.
    fn raise_fault_event(&mut self) {
        if self.fault_status() & 0xff == 0 && self.fectl >> 31 == 0 {
            let address = u64::from(self.event[1]) | u64::from(self.event[2]) << 32;
            self.events.push((address, self.event[0]));
        }
    }
}

/// The registers of a unit, as the driver gets them.
pub struct ModelRegisters(pub Arc<UnitModel>);

impl Registers for ModelRegisters {
    fn read32(&self, offset: usize) -> u32 {
        assert!(!WIDE.contains(&offset), "32-bit read of a 64-bit register {offset:#x}");
        let state = self.0.state.lock().unwrap();
        match offset {
            0x1c => state.gsts,
            0x34 => state.fault_status(),
            0x38 => state.fectl,
            0x64 => state.pmen,
            _ => panic!("read32 {offset:#x}"),
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        assert!(!WIDE.contains(&offset), "32-bit write of a 64-bit register {offset:#x}");
        let mut state = self.0.state.lock().unwrap();
        match offset {
            0x18 => {
                if value >> 27 & 1 != 0 {
                    self.0.memory.push_out();
                }
                state.command(value);
            }
            0x34 => {
                // Fetching goes on by itself after a time-out, but not after a refused descriptor.
                let resumed = state.fsts & value & FSTS_ITE != 0;
                state.fsts &= !(value & !FSTS_PPF);
                if resumed {
                    self.0.run(&mut state);
                }
            }
            0x38 => state.fectl = value,
            0x3c => state.event[0] = value,
            0x40 => state.event[1] = value,
            0x44 => state.event[2] = value,
            // Protected memory: the status follows the enable bit.
            0x64 => state.pmen = value & 1 << 31 | value >> 31,
            0xa0 => {}
            _ => {
                let at = offset - FAULT_RECORDS;
                assert_eq!((at % 16, value), (12, 1 << 31), "only F of a fault record is written");
                state.records[at / 16][1] &= !(1 << 63);
            }
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        let state = self.0.state.lock().unwrap();
        match offset {
            0x08 => state.cap,
            0x10 => state.ecap,
            0x20 => state.rtaddr,
            0x80 => state.head,
            0x88 => state.tail,
            0x90 => state.iqa,
            0xb0 => 0,
            0xb8 => state.irta,
            _ => {
                let at = offset.checked_sub(FAULT_RECORDS).expect("a 64-bit register");
                state.records[at / 16][at % 16 / 8]
            }
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        assert!(WIDE.contains(&offset), "64-bit write of a 32-bit register {offset:#x}");
        let mut state = self.0.state.lock().unwrap();
        match offset {
            0x20 => state.rtaddr = value,
            0x88 => {
                state.tail = value;
                self.0.run(&mut state);
            }
            0x90 => {
                assert_eq!(state.gsts & GSTS_QIES, 0, "IQA while the queue is on");
                state.iqa = value;
            }
            0xb8 => state.irta = value,
            _ => panic!("write64 {offset:#x}"),
        }
    }
}
