// SPDX-License-Identifier: MIT OR Apache-2.0
//! A model of one SMMU, for host tests: registers, queues, caches, translation.
//!
//! It is written from the specification's side and shares no constant with the driver. It is strict: an access
//! of the wrong width, a register written while it must not be, a reserved bit, a field that is ILLEGAL, or
//! a table freed while a cache still leads to it end the test. Stream table entries and context descriptors
//! stay cached until they are invalidated, also those that are not valid; translations and the tables on the
//! way to them likewise, but never one that failed. Commands between two CMD_SYNC are carried out in reverse
//! order, as far as one may overtake another, with traffic between any two.

mod commands;
mod translate;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use crate::registers::Registers;
use crate::testing::{ModelMemory, View, Watcher};

/// IDR0 of QEMU's model (stages 1 and 2, coherent, two-level stream tables, 16-bit ASIDs, no stalling), here
/// with two-level tables of context descriptors.
pub const IDR0: u32 = 0x0d4c_101f;
pub const IDR0_COHACC: u32 = 1 << 4;
pub const IDR0_HYP: u32 = 1 << 9;
pub const IDR0_ATS: u32 = 1 << 10;
pub const IDR0_ASID16: u32 = 1 << 12;
pub const IDR0_MSI: u32 = 1 << 13;
pub const IDR0_CD2L: u32 = 1 << 19;
pub const IDR0_ST_LEVEL: u32 = 1 << 27;
/// IDR1: queues of 2^19, StreamIDs of 16 bits, SubstreamIDs of 20.
pub const IDR1: u32 = 19 << 21 | 19 << 16 | 20 << 6 | 16;
/// IDR5: 44-bit addresses, the 4 KiB granule.
pub const IDR5: u32 = 0x14;
/// The width that says.
pub const OUTPUT_BITS: u32 = 44;

const WIDE: [usize; 5] = [0x68, 0x80, 0x90, 0xa0, 0xb0];
pub const SMMUEN: u32 = 1 << 0;
pub const EVENTQEN: u32 = 1 << 2;
pub const CMDQEN: u32 = 1 << 3;
pub const GBPA_ABORT: u32 = 1 << 20;
const OVERFLOW: u32 = 1 << 31;

/// A cached translation.
#[derive(Clone, Debug)]
struct Translation {
    host: u64,
    writable: bool,
}

/// A cached structure; `None` where nothing leads to it.
type Cached = Option<[u64; 8]>;

#[derive(Default)]
pub struct State {
    pub idr0: u32,
    pub idr1: u32,
    pub cr0: u32,
    pub gbpa: u32,
    pub gerror: u32,
    gerrorn: u32,
    cr1: u32,
    cr2: u32,
    irq_ctrl: u32,
    strtab_base: u64,
    strtab_cfg: u32,
    cmdq_base: u64,
    prod: u32,
    cons: u32,
    error: u32,
    eventq_base: u64,
    event_prod: u32,
    event_cons: u32,
    stes: BTreeMap<u32, Cached>,
    cds: BTreeMap<(u32, u32), Cached>,
    tlb: BTreeMap<(u16, u64), Translation>,
    /// Tables on the way: ASID, level of the table, address bits above it.
    walks: BTreeMap<(u16, u32, u64), u64>,
    /// Commands that CMD_SYNC has not completed yet.
    pending: Vec<[u64; 2]>,
    /// Devices that hold translations of their own: StreamID, SubstreamID.
    pub device_tlbs: BTreeSet<(u32, u32)>,
    /// Everything that was commanded, for tests of the order.
    pub log: Vec<&'static str>,
    /// Commands carried out.
    pub executed: usize,
    /// Event interrupts raised.
    pub interrupts: usize,
    /// The unit reads no more commands.
    pub stuck: bool,
    /// CR0ACK stays as it is.
    pub deaf: bool,
    /// Commands of this opcode are refused, this often.
    pub refuse: Option<(u64, usize)>,
    /// After so many others the next is refused, whatever it is but a wait.
    pub refuse_nth: Option<usize>,
    /// So many ATC_INV are not answered.
    pub silent_devices: usize,
    unanswered: bool,
    /// Devices that send all the time: after each write to memory and each command. StreamID, tag.
    pub noisy: Vec<(u32, Option<u32>)>,
    /// Where the noise arrived, by tag.
    pub reached: BTreeMap<Option<u32>, BTreeSet<u64>>,
    /// How often it arrived nowhere.
    pub missed: BTreeMap<Option<u32>, usize>,
    /// What the unit remembers is gone whenever noise comes: it may drop anything at any moment.
    pub forgetful: bool,
    /// Words of context descriptors that a fetch which has not ended may have read, since the unit was told to forget
    /// them: it reads one after the other, and in any order.
    fetching: BTreeMap<(u32, u32), BTreeSet<[u64; 2]>>,
}

/// One SMMU.
pub struct UnitModel {
    memory: Arc<ModelMemory>,
    pub state: Mutex<State>,
}

impl UnitModel {
    pub fn new(memory: &Arc<ModelMemory>, idr0: u32, idr1: u32) -> Arc<Self> {
        let unit = Arc::new(Self {
            memory: Arc::clone(memory),
            state: Mutex::new(State { idr0, idr1, ..State::default() }),
        });
        let watcher: Arc<dyn Watcher> = unit.clone();
        memory.watch(Arc::downgrade(&watcher));
        unit
    }

    fn read(&self, address: u64) -> u64 {
        self.memory.device_read(address, View::Snooped)
    }

    fn noise_within(&self, state: &mut State) {
        if state.forgetful {
            state.cds.clear();
            state.tlb.clear();
            state.walks.clear();
        }
        for (stream, tag) in state.noisy.clone() {
            self.torn_fetches(state, stream, tag);
            match self.translate(state, stream, tag, 0, true) {
                Ok(host) => drop(state.reached.entry(tag).or_default().insert(host)),
                Err(_) => *state.missed.entry(tag).or_default() += 1,
            }
        }
    }

    /// The device sends by every descriptor that words read at different times make.
    fn torn_fetches(&self, state: &mut State, stream: u32, tag: Option<u32>) {
        let key = (stream, tag.unwrap_or(0));
        let Some(seen) = state.fetching.get(&key).filter(|_| state.forgetful).cloned() else { return };
        let Some(Some(whole)) = state.cds.remove(&key).or_else(|| {
            let _ = self.translate(state, stream, tag, 0, true);
            state.cds.remove(&key)
        }) else {
            return;
        };
        for [first, _] in &seen {
            for [_, second] in &seen {
                let mut torn = whole;
                (torn[0], torn[1]) = (*first, *second);
                state.cds.insert(key, Some(torn));
                state.tlb.clear();
                state.walks.clear();
                // What it leaves in the caches others meet.
                for (stream, tag) in core::iter::once((stream, tag)).chain(state.noisy.clone()) {
                    if let Ok(host) = self.translate(state, stream, tag, 0, true) {
                        state.reached.entry(tag).or_default().insert(host);
                    }
                }
            }
        }
        state.cds.remove(&key);
    }

    /// Leaves entries in every cache, as firmware would that used the unit before.
    pub fn poison_caches(&self, stream: u32) {
        let mut state = self.state.lock().unwrap();
        state.stes.insert(stream, Some([0xdead_b00b, 2, 0, 0, 0, 0, 0, 0]));
        state.cds.insert((stream, 1), Some([1 << 31, 0xdead_b000, 0, 0, 0, 0, 0, 0]));
        let translation = Translation { host: 0xdead_b000, writable: true };
        state.tlb.insert((1, 0), translation);
        state.walks.insert((1, 1, 0), 0xdead_b000);
    }

    /// Commands carried out since the last call.
    pub fn take_executed(&self) -> usize {
        std::mem::take(&mut self.state.lock().unwrap().executed)
    }

    pub fn take_log(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

impl Watcher for UnitModel {
    /// The noisy devices send once each, to address 0.
    fn noise(&self) {
        // Where the unit itself is at work, it does so between two commands.
        if let Ok(mut state) = self.state.try_lock() {
            self.noise_within(&mut state);
        }
    }

    fn assert_forgotten(&self, start: u64, len: u64) {
        let state = self.state.lock().unwrap();
        let freed = start..start + len;
        let tables = state.walks.values().copied();
        let valid = |cached: &Cached, bit: u32| cached.filter(|words| words[0] >> bit & 1 != 0);
        let roots = state.cds.values().filter_map(|cached| Some(valid(cached, 31)?[1]));
        let contexts =
            state.stes.values().filter_map(|cached| Some(valid(cached, 0)?[0] & 0x000f_ffff_ffff_ffc0));
        for page in tables.chain(roots).chain(contexts) {
            assert!(!freed.contains(&page), "{page:#x} is freed while the unit still leads to it");
        }
    }
}

impl State {
    fn queue_log2(base: u64) -> u32 {
        (base & 0x1f) as u32
    }

    /// Makes a global error active that is not, and announces it.
    pub fn raise_error(&mut self, error: u32) {
        if (self.gerror ^ self.gerrorn) & error == 0 {
            self.gerror ^= error;
            self.interrupts += usize::from(self.irq_ctrl & 1 != 0);
        }
    }

    pub fn command_error(&self) -> bool {
        (self.gerror ^ self.gerrorn) & 1 != 0
    }

    /// Writes an event, or notes that it is lost.
    fn record(&mut self, memory: &ModelMemory, words: [u64; 4]) {
        if self.cr0 & EVENTQEN == 0 {
            return;
        }
        let log2 = Self::queue_log2(self.eventq_base);
        let mask = (2 << log2) - 1;
        let (prod, cons) = (self.event_prod & mask, self.event_cons & mask);
        if prod ^ cons == 1 << log2 {
            if (self.event_prod ^ self.event_cons) & OVERFLOW == 0 {
                self.event_prod ^= OVERFLOW;
            }
            return;
        }
        let slot = u64::from(prod & (mask >> 1));
        let base = (self.eventq_base & 0x000f_ffff_ffff_ffe0) + slot * 32;
        for (word, value) in words.into_iter().enumerate() {
            let at = base + word as u64 * 8;
            memory.device_write32(at, value as u32);
            memory.device_write32(at + 4, (value >> 32) as u32);
        }
        self.event_prod = (prod + 1) & mask | self.event_prod & OVERFLOW;
        if prod == cons && self.irq_ctrl & 1 << 2 != 0 {
            self.interrupts += 1;
        }
    }

    fn control(&mut self, value: u32) {
        assert_eq!(value & !0x1d, 0, "CR0 {value:#x}: reserved, or a queue nobody made");
        if value & !self.cr0 & SMMUEN != 0 {
            assert_ne!(self.cr0 & CMDQEN, 0, "translation on before the command queue");
            assert_ne!(self.cr1, 0, "translation on with uncached table walks");
            assert!(
                self.stes.is_empty() && self.cds.is_empty() && self.tlb.is_empty() && self.walks.is_empty(),
                "translation on while something is left from before"
            );
        }
        if value & SMMUEN == 0 && self.cr0 & SMMUEN != 0 {
            assert_ne!(self.gbpa & GBPA_ABORT, 0, "off, and everything passes");
        }
        self.cr0 = value;
    }
}

/// The registers of a unit, as the driver gets them.
pub struct ModelRegisters(pub Arc<UnitModel>);

impl Registers for ModelRegisters {
    fn read32(&self, offset: usize) -> u32 {
        assert!(!WIDE.contains(&offset), "32-bit read of a 64-bit register {offset:#x}");
        let state = self.0.state.lock().unwrap();
        match offset {
            0x00 => state.idr0,
            0x04 => state.idr1,
            0x14 => IDR5,
            0x20 | 0x24 => state.cr0,
            0x44 => state.gbpa,
            0x50 | 0x54 => state.irq_ctrl,
            0x60 => state.gerror,
            0x64 => state.gerrorn,
            0x98 => state.prod,
            0x9c => state.cons | state.error << 24,
            0x100a8 => state.event_prod,
            0x100ac => state.event_cons,
            _ => panic!("read32 {offset:#x}"),
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        assert!(!WIDE.contains(&offset), "32-bit write of a 64-bit register {offset:#x}");
        let mut state = self.0.state.lock().unwrap();
        let off = |state: &State, bit: u32| {
            assert_eq!(state.cr0 & bit, 0, "write of {offset:#x} while what it is for is on");
        };
        match offset {
            0x20 if state.deaf => {}
            0x20 => state.control(value),
            0x28 => {
                off(&state, SMMUEN | EVENTQEN | CMDQEN);
                state.cr1 = value;
            }
            0x2c => {
                off(&state, SMMUEN | EVENTQEN | CMDQEN);
                assert_eq!(value & !0b111, 0, "CR2 {value:#x}");
                state.cr2 = value;
            }
            0x44 => {
                assert_ne!(value >> 31, 0, "GBPA without UPDATE");
                state.gbpa = value & !(1 << 31);
            }
            0x50 => state.irq_ctrl = value,
            0x64 => {
                state.gerrorn = value;
                if !state.command_error() {
                    self.0.run(&mut state);
                }
            }
            0x88 => {
                off(&state, SMMUEN);
                state.strtab_cfg = value;
            }
            0x98 => {
                state.prod = value;
                self.0.run(&mut state);
            }
            0x9c => {
                off(&state, CMDQEN);
                state.cons = value;
            }
            0x100a8 => {
                off(&state, EVENTQEN);
                state.event_prod = value;
            }
            0x100ac => state.event_cons = value,
            _ => panic!("write32 {offset:#x}"),
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        panic!("read64 {offset:#x}")
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.0.state.lock().unwrap();
        let size = |value: u64, unit: u64| {
            let bytes = unit << (value & 0x1f);
            assert_eq!(value & !0x1f & (bytes - 1), 0, "queue {value:#x} is not aligned");
        };
        match offset {
            0x68 | 0xb0 => {
                assert_ne!(state.idr0 & IDR0_MSI, 0, "{offset:#x} without messages");
                assert_eq!(value, 0);
            }
            0x80 => {
                assert_eq!(state.cr0 & SMMUEN, 0);
                state.strtab_base = value;
            }
            0x90 => {
                assert_eq!(state.cr0 & CMDQEN, 0);
                size(value, 16);
                state.cmdq_base = value;
            }
            0xa0 => {
                assert_eq!(state.cr0 & EVENTQEN, 0);
                size(value, 32);
                state.eventq_base = value;
            }
            _ => panic!("write64 {offset:#x}"),
        }
    }
}
