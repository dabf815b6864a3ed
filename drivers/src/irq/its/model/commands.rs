// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model's command queue.

use super::redistributor::FIRST_LPI;
use super::{Effect, Gic, ItsModel, REDISTRIBUTOR, REDISTRIBUTORS, State, TYPER_PTA, Translation, VALID};

const DEVICE: u64 = 0xffff_ffff_0000_00ff;
const EVENT: u64 = 0xffff_ffff;
const TARGET: u64 = 0x000f_ffff_ffff_0000;

/// The bits that mean something, by command number.
const FIELDS: [(u64, [u64; 4]); 7] = [
    (0x05, [0xff, 0, TARGET, 0]),
    (0x08, [DEVICE, 0x1f, VALID | 0x000f_ffff_ffff_ff00, 0]),
    (0x09, [0xff, 0, VALID | TARGET | 0xffff, 0]),
    (0x0a, [DEVICE, u64::MAX, 0xffff, 0]),
    (0x0c, [DEVICE, EVENT, 0, 0]),
    (0x0d, [0xff, 0, 0xffff, 0]),
    (0x0f, [DEVICE, EVENT, 0, 0]),
];

impl ItsModel {
    fn field(&self, at: u32, bits: u32) -> u64 {
        self.typer >> at & ((1 << bits) - 1)
    }

    /// Whether a command is one to stall at.
    fn refuses(&mut self, number: u64) -> bool {
        if self.refuse_always == Some(number) {
            return true;
        }
        match &mut self.refuse {
            Some((refused, left)) if *refused == number => match left.checked_sub(1) {
                Some(fewer) => {
                    *left = fewer;
                    false
                }
                None => {
                    self.refuse = None;
                    true
                }
            },
            _ => false,
        }
    }

    fn translation(&self, device: u32, event: u32) -> Result<Translation, &'static str> {
        let bits = self.devices.get(&device).ok_or("no such device")?.1;
        if u64::from(event) >> bits != 0 {
            return Err("no such event");
        }
        self.events.get(&(device, event)).copied().ok_or("the event is not mapped")
    }
}

impl Gic {
    /// Reads what is in the queue.
    pub(super) fn run(&self, state: &mut State, unit: usize) {
        loop {
            let its = &mut state.units[unit];
            if !its.enabled() || its.stuck || its.stalled || its.reader == its.writer {
                return;
            }
            if let Some(left) = &mut its.stop_after {
                let Some(fewer) = left.checked_sub(1) else {
                    its.stop_after = None;
                    its.stuck = true;
                    return;
                };
                *left = fewer;
            }
            let bytes = ((its.cbaser & 0xff) + 1) * 4096;
            assert!(its.writer < bytes, "GITS_CWRITER is outside of the queue");
            let at = (its.cbaser & 0x000f_ffff_ffff_0000) + its.reader;
            let words = [0, 8, 16, 24].map(|word| self.read(state, at + word));
            let number = words[0] & 0xff;
            let result = if state.units[unit].refuses(number) {
                Err("as it was told to")
            } else {
                self.execute(state, unit, number, words)
            };
            let its = &mut state.units[unit];
            match result {
                Ok(()) => {
                    its.reader = (its.reader + 32) % bytes;
                    its.log.push(number);
                }
                Err(why) => {
                    its.stalled = true;
                    its.complaint = why;
                }
            }
            self.noise_within(state);
        }
    }

    fn execute(
        &self,
        state: &mut State,
        unit: usize,
        number: u64,
        words: [u64; 4],
    ) -> Result<(), &'static str> {
        let fields = FIELDS.iter().find(|(of, _)| *of == number).ok_or("unknown")?.1;
        if words.iter().zip(fields).any(|(word, fields)| word & !fields != 0) {
            return Err("reserved bits");
        }
        let (device, event) = ((words[0] >> 32) as u32, words[1] as u32);
        let its = &state.units[unit];
        match number {
            0x05 => {
                let redistributor = target(state, unit, words[2])?;
                // What was sent before is there before the SYNC is done.
                self.land(state, unit, Some(redistributor));
                let effects = std::mem::take(&mut state.units[unit].effects);
                let (now, later): (Vec<_>, _) = effects.into_iter().partition(|&(at, _)| at == redistributor);
                state.units[unit].effects = later;
                for (at, effect) in now {
                    self.apply(state, at, effect);
                }
            }
            0x08 => self.map_device(state, unit, device, words)?,
            0x09 => self.map_collection(state, unit, words[2])?,
            0x0a => {
                let translation = Translation { intid: (words[1] >> 32) as u32, collection: words[2] as u16 };
                self.map_event(state, unit, (device, event), translation)?;
            }
            0x0c => {
                let translation = its.translation(device, event)?;
                let at = its.collections[&translation.collection];
                state.units[unit].effects.push((at, Effect::ReadAgain(translation.intid)));
            }
            0x0d => {
                let collection = words[2] as u16;
                let at = *its.collections.get(&collection).ok_or("no such collection")?;
                state.units[unit].effects.push((at, Effect::ReadAllAgain));
            }
            _ => {
                let translation = its.translation(device, event)?;
                let at = its.collections[&translation.collection];
                assert!(
                    !self.may_take(state, at, translation.intid),
                    "discarded while LPI {} may be taken",
                    translation.intid
                );
                let its = &mut state.units[unit];
                its.events.remove(&(device, event));
                its.effects.push((at, Effect::NotPending(translation.intid)));
            }
        }
        Ok(())
    }

    fn map_device(
        &self,
        state: &mut State,
        unit: usize,
        device: u32,
        words: [u64; 4],
    ) -> Result<(), &'static str> {
        let its = &state.units[unit];
        let bits = words[1] as u32 + 1;
        if words[2] & VALID == 0 || u64::from(bits) > its.field(8, 5) + 1 {
            return Err("MAPD of nothing, or of too many events");
        }
        if u64::from(device) >> (its.field(13, 5) + 1) != 0 {
            return Err("too large a DeviceID");
        }
        let table = its.table(1).ok_or("no device table")?;
        let (start, index) = if table.two_level {
            let entries = table.page / table.entry;
            let first = u64::from(device) / entries * 8;
            if first >= table.pages * table.page {
                return Err("DeviceID beyond the first level");
            }
            let first = self.read(state, table.start + first);
            if first & VALID == 0 {
                return Err("no second level for the device");
            }
            let second = first & 0x000f_ffff_ffff_f000;
            assert_eq!(first & !VALID, second, "reserved bits of the first level");
            assert_eq!(second % table.page, 0, "a second level is not aligned");
            if !its.devices.keys().any(|other| u64::from(*other) / entries == u64::from(device) / entries) {
                self.assert_zero(state, second, table.page, "a second level");
            }
            (second, u64::from(device) % entries)
        } else {
            if (u64::from(device) + 1) * table.entry > table.pages * table.page {
                return Err("DeviceID beyond the table");
            }
            (table.start, u64::from(device))
        };
        self.memory.device_write32(start + index * table.entry, device | 1 << 31);
        let translations = words[2] & !VALID;
        assert!(!its.events.keys().any(|&(other, _)| other == device), "MAPD of a device with events");
        let len = (its.field(4, 4) + 1) << bits;
        self.assert_zero(state, translations, len, "a translation table");
        state.units[unit].devices.insert(device, (translations, bits));
        Ok(())
    }

    fn map_collection(&self, state: &mut State, unit: usize, word: u64) -> Result<(), &'static str> {
        let redistributor = target(state, unit, word & TARGET)?;
        let its = &state.units[unit];
        let collection = word as u16;
        let bits = if its.field(36, 1) != 0 { its.field(32, 4) + 1 } else { 16 };
        if word & VALID == 0 || u64::from(collection) >> bits != 0 {
            return Err("MAPC of nothing, or of too large a collection");
        }
        if u64::from(collection) >= its.field(24, 8) {
            let table = its.table(4).ok_or("no collection table")?;
            if (u64::from(collection) + 1) * table.entry > table.pages * table.page {
                return Err("collection beyond the table");
            }
            let place = table.start + u64::from(collection) * table.entry;
            self.memory.device_write32(place, u32::from(collection) | 1 << 30);
        }
        state.units[unit].collections.insert(collection, redistributor);
        Ok(())
    }

    fn map_event(
        &self,
        state: &mut State,
        unit: usize,
        (device, event): (u32, u32),
        translation: Translation,
    ) -> Result<(), &'static str> {
        let its = &state.units[unit];
        match its.translation(device, event) {
            Ok(_) => panic!("event {event} of device {device:#x} is mapped already"),
            Err("the event is not mapped") => {}
            Err(why) => return Err(why),
        }
        let Translation { intid, collection } = translation;
        let redistributor = *its.collections.get(&collection).ok_or("no such collection")?;
        if !(FIRST_LPI..1 << 16).contains(&intid) {
            return Err("no LPI");
        }
        assert!(
            !state.units.iter().flat_map(|unit| unit.events.values()).any(|other| other.intid == intid),
            "LPI {intid} is mapped already"
        );
        for number in 0..state.redistributors.len() {
            assert!(!self.may_take(state, number, intid), "mapped while LPI {intid} may be taken");
        }
        let its = &state.units[unit];
        let (translations, _) = its.devices[&device];
        let place = translations + u64::from(event) * (its.field(4, 4) + 1);
        self.memory.device_write32(place & !3, intid);
        state.units[unit].events.insert((device, event), translation);
        self.look_up(state, redistributor, intid);
        Ok(())
    }
}

/// The redistributor that a command names.
fn target(state: &State, unit: usize, word: u64) -> Result<usize, &'static str> {
    let by_address = state.units[unit].typer & TYPER_PTA != 0;
    let named = |number: usize| {
        if by_address {
            word == REDISTRIBUTORS + number as u64 * REDISTRIBUTOR
        } else {
            word >> 16 == u64::from(state.redistributors[number].number)
        }
    };
    (0..state.redistributors.len()).find(|&number| named(number)).ok_or("no such redistributor")
}
