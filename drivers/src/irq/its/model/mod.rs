// SPDX-License-Identifier: MIT OR Apache-2.0
//! A model of ITSs and redistributors, for host tests: registers, tables, commands, what is under way.
//!
//! It is written from the specification's side and shares no constant with the driver. It is strict: an access
//! of the wrong width, a register written while it must not be, a table that is not aligned, not zero, too small
//! or not flushed, an event or LPI mapped twice, end the test. A command that is wrong stalls the queue. What a
//! command does to a redistributor happens at the SYNC that names that, not before; a redistributor reads an LPI's
//! configuration as soon as it is mapped and keeps it until told; messages of noisy devices, sent after each
//! write to memory and each command, are under way until a SYNC. Beyond the specification it insists that an LPI is
//! disabled in the redistributor's eyes when its event is mapped and when that is discarded.

mod commands;
mod redistributor;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub use self::redistributor::RedistributorModel;
use crate::registers::Registers;
use crate::testing::{ModelMemory, View, Watcher};

/// GITS_TYPER of QEMU's model: 12-byte entries, 16-bit EventIDs, DeviceIDs and collections.
pub const TYPER: u64 = 1 | 11 << 4 | 15 << 8 | 15 << 13 | 15 << 32 | 1 << 36;
pub const TYPER_PTA: u64 = 1 << 19;
/// GITS_BASER: entries of 8 bytes.
const ENTRY_8: u64 = 7 << 48;
/// GITS_BASER of a device table, a collection table, and one of virtual processors.
pub const DEVICES: u64 = 1 << 56 | ENTRY_8;
pub const COLLECTIONS: u64 = 4 << 56 | ENTRY_8;
pub const VIRTUAL: u64 = 2 << 56 | ENTRY_8;
const READ_ONLY: u64 = 7 << 56 | 0x1f << 48;
const INDIRECT: u64 = 1 << 62;
const VALID: u64 = 1 << 63;
/// Address of the first redistributor, and bytes per redistributor.
pub const REDISTRIBUTORS: u64 = 0x80a_0000;
pub const REDISTRIBUTOR: u64 = 0x2_0000;

/// A table as GITS_BASER describes it.
#[derive(Clone, Copy)]
struct TableModel {
    start: u64,
    page: u64,
    pages: u64,
    entry: u64,
    two_level: bool,
}

/// What an event is translated to: LPI and collection.
#[derive(Clone, Copy, Debug)]
struct Translation {
    intid: u32,
    collection: u16,
}

/// What a command does to a redistributor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    ReadAgain(u32),
    ReadAllAgain,
    NotPending(u32),
}

/// One ITS.
pub struct ItsModel {
    pub typer: u64,
    pub pidr2: u32,
    pub ctlr: u32,
    /// Reads of GITS_CTLR until it is quiet.
    pub busy: usize,
    pub baser: [u64; 8],
    /// The only Page_Size.
    pub fixed_page: Option<u64>,
    /// Device tables can have two levels.
    pub indirect: bool,
    /// GITS_BASER.Valid stays clear.
    pub forgetful: bool,
    cbaser: u64,
    writer: u64,
    reader: u64,
    pub stalled: bool,
    /// Why.
    pub complaint: &'static str,
    /// Tables of devices: address, bits.
    devices: BTreeMap<u32, (u64, u32)>,
    events: BTreeMap<(u32, u32), Translation>,
    collections: BTreeMap<u16, usize>,
    /// Messages that were translated and are on their way: redistributor, LPI.
    flying: Vec<(usize, u32)>,
    effects: Vec<(usize, Effect)>,
    /// It reads no more commands.
    pub stuck: bool,
    /// A command of this number stalls once, after so many others of it.
    pub refuse: Option<(u64, usize)>,
    /// It never takes a command of this number.
    pub refuse_always: Option<u64>,
    /// After so many commands it stops reading.
    pub stop_after: Option<usize>,
    /// Numbers of the commands carried out.
    pub log: Vec<u64>,
}

impl ItsModel {
    pub fn new() -> Self {
        Self {
            typer: TYPER,
            pidr2: 0x3b,
            ctlr: 0,
            busy: 0,
            baser: [DEVICES, COLLECTIONS, 0, 0, 0, 0, 0, 0],
            fixed_page: None,
            indirect: true,
            forgetful: false,
            cbaser: 0,
            writer: 0,
            reader: 0,
            stalled: false,
            complaint: "",
            devices: BTreeMap::new(),
            events: BTreeMap::new(),
            collections: BTreeMap::new(),
            flying: Vec::new(),
            effects: Vec::new(),
            stuck: false,
            refuse: None,
            refuse_always: None,
            stop_after: None,
            log: Vec::new(),
        }
    }

    const fn enabled(&self) -> bool {
        self.ctlr & 1 != 0
    }

    fn assert_off(&self, what: &str) {
        assert!(!self.enabled() && self.busy == 0, "{what} while the ITS is on");
    }

    fn table(&self, kind: u64) -> Option<TableModel> {
        let baser = self.baser.into_iter().find(|baser| baser >> 56 & 7 == kind && baser & VALID != 0)?;
        Some(table(baser))
    }

    /// What the firmware left: an event of a device that raises an LPI.
    pub fn leave(&mut self, device: u32, event: u32, intid: u32) {
        self.ctlr = 0x151;
        self.devices.insert(device, (0xdead_0000, 16));
        let collection = 0;
        self.events.insert((device, event), Translation { intid, collection });
        self.collections.insert(0, 0);
    }

    fn write_table(&mut self, index: usize, value: u64, snoops: bool) {
        self.assert_off("GITS_BASER written");
        let before = self.baser[index];
        assert_ne!(before, 0, "GITS_BASER{index} is not there");
        let mut kept = value & !READ_ONLY;
        if before >> 56 & 7 != 1 || !self.indirect {
            kept &= !INDIRECT;
        }
        if let Some(code) = self.fixed_page {
            kept = kept & !(0b11 << 8) | code << 8;
        }
        if !snoops {
            kept &= !(0b11 << 10);
        }
        if self.forgetful {
            kept &= !VALID;
        }
        self.baser[index] = kept | before & READ_ONLY;
    }
}

fn table(baser: u64) -> TableModel {
    let code = baser >> 8 & 0b11;
    assert_ne!(code, 3, "reserved Page_Size");
    TableModel {
        start: baser & 0xffff_ffff_f000,
        page: 4096 << (2 * code),
        pages: (baser & 0xff) + 1,
        entry: (baser >> 48 & 0x1f) + 1,
        two_level: baser & INDIRECT != 0,
    }
}

pub struct State {
    pub units: Vec<ItsModel>,
    pub redistributors: Vec<RedistributorModel>,
    /// All of them read tables through the processors' caches.
    pub snoops: bool,
    /// Interrupts that processors took: affinity, LPI.
    arrived: Vec<(u32, u32)>,
    /// Devices that send all the time: ITS, DeviceID, EventID.
    pub noisy: Vec<(usize, u32, u32)>,
}

/// The interrupt controller of a model machine.
pub struct Gic {
    memory: Arc<ModelMemory>,
    pub state: Mutex<State>,
}

impl Gic {
    pub fn new(memory: &Arc<ModelMemory>, units: Vec<ItsModel>, processors: u32) -> Arc<Self> {
        let gic = Arc::new(Self {
            memory: Arc::clone(memory),
            state: Mutex::new(State {
                units,
                redistributors: (0..processors).map(RedistributorModel::new).collect(),
                snoops: true,
                arrived: Vec::new(),
                noisy: Vec::new(),
            }),
        });
        let watcher: Arc<dyn Watcher> = gic.clone();
        memory.watch(Arc::downgrade(&watcher));
        gic
    }

    fn read(&self, state: &State, address: u64) -> u64 {
        self.memory.device_read(address, View::tables(state.snoops))
    }

    fn assert_zero(&self, state: &State, start: u64, len: u64, what: &str) {
        for address in (start..start + len).step_by(8) {
            assert_eq!(self.read(state, address), 0, "{what} at {address:#x} is not seen as zero");
        }
    }

    /// A device writes to a doorbell.
    pub fn message(&self, unit: usize, device: u32, event: u32) {
        let mut state = self.state.lock().unwrap();
        self.send(&mut state, unit, device, event);
        self.land(&mut state, unit, None);
    }

    /// A device writes to a doorbell, and the message takes its time.
    pub fn slow_message(&self, unit: usize, device: u32, event: u32) {
        let mut state = self.state.lock().unwrap();
        self.send(&mut state, unit, device, event);
    }

    /// Everything under way arrives.
    pub fn settle(&self) {
        let mut state = self.state.lock().unwrap();
        for unit in 0..state.units.len() {
            self.land(&mut state, unit, None);
        }
    }

    /// The interrupts that processors took since the last call: affinity, LPI.
    pub fn arrived(&self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.state.lock().unwrap().arrived)
    }

    fn send(&self, state: &mut State, unit: usize, device: u32, event: u32) {
        let its = &mut state.units[unit];
        if !its.enabled() {
            return;
        }
        if let Some(translation) = its.events.get(&(device, event)) {
            let redistributor = its.collections[&translation.collection];
            its.flying.push((redistributor, translation.intid));
        }
    }

    /// What is on its way to a redistributor, or to all, arrives.
    fn land(&self, state: &mut State, unit: usize, at: Option<usize>) {
        let lands = |&(redistributor, _): &(usize, u32)| at.is_none_or(|at| at == redistributor);
        let flying = std::mem::take(&mut state.units[unit].flying);
        let (landing, flying) = flying.into_iter().partition(lands);
        state.units[unit].flying = flying;
        let landing: Vec<(usize, u32)> = landing;
        for (redistributor, intid) in landing {
            self.deliver(state, redistributor, intid);
        }
    }

    fn noise_within(&self, state: &mut State) {
        for (unit, device, event) in state.noisy.clone() {
            self.send(state, unit, device, event);
        }
    }

    /// GITS_CTLR.Enabled is set.
    fn turn_on(&self, state: &mut State, unit: usize) {
        let its = &state.units[unit];
        its.assert_off("GITS_CTLR.Enabled set");
        assert_eq!(its.ctlr & 0x100, 0, "unmapped messages raise an interrupt");
        assert!(
            state.redistributors.iter().all(RedistributorModel::takes_lpis),
            "on before the redistributors are"
        );
        let attributes = if state.snoops { 1 << 10 | 7 << 59 } else { 1 << 59 };
        let check = |register: u64, name: &str| {
            assert_ne!(register & VALID, 0, "{name} is not valid");
            assert_eq!(register & (0b11 << 10 | 7 << 59 | 7 << 53), attributes, "attributes of {name}");
        };
        check(its.cbaser, "GITS_CBASER");
        assert_eq!(its.writer, its.reader, "there are commands already");
        for baser in its.baser.into_iter().filter(|&baser| baser != 0) {
            check(baser, "GITS_BASER");
            let table = table(baser);
            assert_eq!(table.start % table.page, 0, "a table at {:#x} is not aligned", table.start);
            self.assert_zero(state, table.start, table.pages * table.page, "a table");
        }
        let its = &mut state.units[unit];
        its.ctlr |= 1;
        its.devices.clear();
        its.events.clear();
        its.collections.clear();
    }
}

impl Watcher for Gic {
    fn noise(&self) {
        if let Ok(mut state) = self.state.try_lock() {
            self.noise_within(&mut state);
        }
    }

    fn assert_forgotten(&self, start: u64, _len: u64) {
        panic!("{start:#x} is freed, and no ITS ever gives a table back");
    }
}

/// The registers of an ITS or of a redistributor, as the driver gets them.
pub enum ModelRegisters {
    Its(Arc<Gic>, usize),
    Redistributor(Arc<Gic>, usize),
}

impl Registers for ModelRegisters {
    fn read32(&self, offset: usize) -> u32 {
        match self {
            Self::Its(gic, unit) => {
                let its = &mut gic.state.lock().unwrap().units[*unit];
                match offset {
                    0 => {
                        if !its.enabled() {
                            its.busy = its.busy.saturating_sub(1);
                        }
                        let quiet = !its.enabled() && its.busy == 0;
                        its.ctlr | if quiet { 1 << 31 } else { 0 }
                    }
                    0xffe8 => its.pidr2,
                    _ => panic!("read32 of an ITS {offset:#x}"),
                }
            }
            Self::Redistributor(gic, number) => {
                let redistributor = &mut gic.state.lock().unwrap().redistributors[*number];
                assert_eq!(offset, 0, "read32 of a redistributor");
                redistributor.read_control()
            }
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        assert_eq!(offset, 0, "write32");
        match self {
            Self::Its(gic, unit) => {
                let mut state = gic.state.lock().unwrap();
                let its = &mut state.units[*unit];
                match (its.enabled(), value & 1 != 0) {
                    (false, true) => gic.turn_on(&mut state, *unit),
                    (true, false) => {
                        its.ctlr = value & 0x1f0;
                        its.busy = its.busy.max(3);
                        gic.land(&mut state, *unit, None);
                    }
                    (false, false) => its.ctlr = value & 0x1f0,
                    (true, true) => panic!("GITS_CTLR written while the ITS is on"),
                }
            }
            Self::Redistributor(gic, number) => {
                gic.write_control(&mut gic.state.lock().unwrap(), *number, value);
            }
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        match self {
            Self::Its(gic, unit) => {
                let mut state = gic.state.lock().unwrap();
                if offset == 0x90 {
                    gic.run(&mut state, *unit);
                }
                let its = &state.units[*unit];
                match offset {
                    0x08 => its.typer,
                    0x80 => its.cbaser,
                    0x90 => its.reader | u64::from(its.stalled),
                    0x100..0x140 => its.baser[(offset - 0x100) / 8],
                    _ => panic!("read64 of an ITS {offset:#x}"),
                }
            }
            Self::Redistributor(gic, number) => {
                gic.state.lock().unwrap().redistributors[*number].read(offset)
            }
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        match self {
            Self::Its(gic, unit) => {
                let mut state = gic.state.lock().unwrap();
                let snoops = state.snoops;
                let its = &mut state.units[*unit];
                match offset {
                    0x80 => {
                        its.assert_off("GITS_CBASER written");
                        assert_eq!(value & 0xf300, 0, "the queue is not aligned to 64 KiB");
                        its.cbaser = if snoops { value } else { value & !(0b11 << 10) };
                        // The writer is not changed: it is whatever it was.
                        its.reader = 0;
                        its.stalled = false;
                    }
                    0x88 => {
                        its.writer = value & 0xf_ffe0;
                        its.stalled &= value & 1 == 0;
                        gic.run(&mut state, *unit);
                    }
                    0x100..0x140 => its.write_table((offset - 0x100) / 8, value, snoops),
                    _ => panic!("write64 of an ITS {offset:#x}"),
                }
            }
            Self::Redistributor(gic, number) => {
                let mut state = gic.state.lock().unwrap();
                let snoops = state.snoops;
                state.redistributors[*number].write(offset, value, snoops);
            }
        }
    }
}
