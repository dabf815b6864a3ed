// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model's translation of DMA and of interrupt messages.

use super::{CAP_PI, FSTS_PFO, GSTS_IRES, GSTS_TES, Raised, State, Translation, UnitModel, View};

/// Stands in the place of a PASID where translations are of the second stage.
const SECOND_STAGE: u32 = u32::MAX;

const PAGE: u64 = 4096;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A fault reason code.
pub type Code = u8;

impl UnitModel {
    /// A DMA access. Gives the host-physical address, or the fault code after recording the fault.
    pub fn dma(&self, rid: u16, pasid: Option<u32>, iova: u64, write: bool) -> Result<u64, Code> {
        let mut state = self.state.lock().unwrap();
        let result = self.translate(&mut state, rid, pasid, iova, write);
        if let Err(code) = result {
            let tag = pasid.map_or(0, |pasid| 1 << 31 | u64::from(pasid) << 40);
            let direction = if write { 0 } else { 1 << 62 };
            let upper = 1 << 63 | direction | tag | u64::from(code) << 32 | u64::from(rid);
            state.record(iova & !0xfff, upper);
        }
        result
    }

    /// An interrupt message. Gives what it has come to, or the fault code.
    pub fn message(&self, rid: u16, address: u64, data: u32) -> Result<Raised, Code> {
        let mut state = self.state.lock().unwrap();
        let result = self.remap(&mut state, rid, address, data);
        if let Err((code, index)) = result {
            state.record(index << 48, 1 << 63 | u64::from(code) << 32 | u64::from(rid));
        }
        result.map_err(|(code, _)| code)
    }

    pub(super) fn remap(
        &self,
        state: &mut State,
        rid: u16,
        address: u64,
        data: u32,
    ) -> Result<Raised, (Code, u64)> {
        assert_ne!(state.gsts & GSTS_IRES, 0, "interrupt remapping is off");
        assert_eq!(address >> 20, 0xfee, "an interrupt message");
        if address >> 4 & 1 == 0 {
            return Err((0x25, 0));
        }
        let mut index = address >> 5 & 0x7fff | (address >> 2 & 1) << 15;
        if address >> 3 & 1 != 0 {
            index += u64::from(data & 0xffff);
        }
        if index >= 1 << ((state.interrupt_table & 0xf) + 1) {
            return Err((0x21, index));
        }
        let view = View::tables(state.ecap & super::ECAP_C != 0);
        let base = (state.interrupt_table & !0xfff) + index * 16;
        let caches_absence = state.caching_mode();
        let entry = match state.interrupts.get(&(index as u16)) {
            Some(&entry) => entry,
            None => {
                let entry = [self.memory.device_read(base, view), self.memory.device_read(base + 8, view)];
                if entry[0] & 1 != 0 || caches_absence {
                    state.interrupts.insert(index as u16, entry);
                }
                entry
            }
        };
        if entry[0] & 1 == 0 {
            return Err((0x22, index));
        }
        let extended = state.interrupt_table >> 11 & 1 != 0;
        let posted = entry[0] >> 15 & 1 != 0;
        let reserved = match (posted, extended) {
            (true, _) => [0x3f_ff00_30fc, 0xfff0_0000],
            (false, true) => [0xff00_7000, !0xf_ffff],
            (false, false) => [0xffff_00ff_ff00_7000, !0xf_ffff],
        };
        if posted && state.cap & CAP_PI == 0 || entry[0] & reserved[0] | entry[1] & reserved[1] != 0 {
            return Err((0x24, index));
        }
        if entry[1] >> 18 & 3 == 1 && entry[1] as u16 != rid {
            return Err((0x26, index));
        }
        let destination = |field: u64| (if extended { field } else { field >> 8 & 0xff }) as u32;
        let vector = (entry[0] >> 16 & 0xff) as u32;
        if !posted {
            return Ok(Raised::Vector { destination: destination(entry[0] >> 32), vector });
        }
        let urgent = entry[0] >> 14 & 1 != 0;
        let descriptor = descriptor(entry);
        let notification = self.memory.device_update(descriptor, |words: &mut [u64; 8]| {
            // ON, SN, NV and NDST.
            let control = words[4];
            if control & 0xff00_fffc != 0 || words[5..] != [0; 3] {
                return Err((0x28, index));
            }
            words[vector as usize / 64] |= 1 << (vector % 64);
            let notify = control & 1 == 0 && (control >> 1 & 1 == 0 || urgent);
            words[4] |= u64::from(notify);
            Ok(notify.then_some((destination(control >> 32), (control >> 16 & 0xff) as u32)))
        })?;
        Ok(Raised::Posted { descriptor, vector, notification })
    }

    pub(super) fn translate(
        &self,
        state: &mut State,
        rid: u16,
        pasid: Option<u32>,
        iova: u64,
        write: bool,
    ) -> Result<u64, Code> {
        assert_ne!(state.gsts & GSTS_TES, 0, "translation is off: nothing is protected");
        let view = View::tables(state.ecap & super::ECAP_C != 0);
        let context = self.context(state, rid, view)?;
        if pasid.is_some() && context[0] >> 3 & 1 == 0 {
            return Err(0x45);
        }
        let pasid = pasid.unwrap_or(context[1] as u32 & 0xf_ffff);
        let entry = self.pasid_entry(state, rid, pasid, context, view)?;
        if entry[0] & 1 == 0 {
            return Err(0x59);
        }
        if entry[0] >> 6 & 7 != 2 {
            return Err(0x5b);
        }
        let walk_snoops = entry[1] >> 23 & 1 != 0;
        if entry[0] & 0xe22 != 0
            || entry[2..] != [0; 6]
            || walk_snoops && state.ecap & super::ECAP_SMPWCS == 0
        {
            return Err(0x5a);
        }
        // Translations of the second stage are a domain's, whoever has it.
        let key = (entry[1] as u16, SECOND_STAGE, iova & !0xfff);
        if iova >> 20 == 0xfee {
            return Err(0x87);
        }
        let translation = match state.iotlb.get(&key) {
            Some(translation) => translation.clone(),
            None => {
                let walk_view = View::tables(walk_snoops);
                let translation = self.walk(state, entry, iova, walk_view)?;
                if translation.host.is_some() || state.caching_mode() {
                    state.iotlb.insert(key, translation.clone());
                }
                translation
            }
        };
        let allowed = if write { translation.writable } else { translation.readable };
        match translation.host {
            Some(host) if allowed => Ok(host + iova % PAGE),
            _ if write => Err(0x85),
            _ => Err(0x86),
        }
    }

    fn context(&self, state: &mut State, rid: u16, view: View) -> Result<[u64; 4], Code> {
        let caches_absence = state.caching_mode();
        let entry = match state.contexts.get(&rid) {
            Some(&entry) => entry,
            None => {
                let root = self.memory.device_read(state.root + u64::from(rid >> 7) * 8, view);
                if root & 1 == 0 {
                    if caches_absence {
                        state.contexts.insert(rid, [0; 4]);
                    }
                    return Err(0x39);
                }
                let base = (root & !0xfff) + u64::from(rid & 0x7f) * 32;
                let entry = core::array::from_fn(|at| self.memory.device_read(base + at as u64 * 8, view));
                if entry[0] & 1 != 0 || caches_absence {
                    state.contexts.insert(rid, entry);
                }
                entry
            }
        };
        if entry[0] & 1 == 0 {
            return Err(0x41);
        }
        if entry[0] & 0x1f0 != 0 || entry[2..] != [0, 0] {
            return Err(0x42);
        }
        Ok(entry)
    }

    fn pasid_entry(
        &self,
        state: &mut State,
        rid: u16,
        pasid: u32,
        context: [u64; 4],
        view: View,
    ) -> Result<[u64; 8], Code> {
        if let Some(&entry) = state.pasids.get(&(rid, pasid)) {
            return Ok(entry);
        }
        let slots = 1 << ((context[0] >> 9 & 7) + 7);
        if pasid >> 6 >= slots {
            return Err(0x46);
        }
        let directory = (context[0] & !0xfff) + u64::from(pasid >> 6) * 8;
        let table = self.memory.device_read(directory, view);
        if table & 1 == 0 {
            return Err(0x51);
        }
        let base = (table & !0xfff) + u64::from(pasid & 0x3f) * 64;
        let entry: [u64; 8] = core::array::from_fn(|at| self.memory.device_read(base + at as u64 * 8, view));
        if entry[0] & 1 != 0 || state.caching_mode() {
            state.pasids.insert((rid, pasid), entry);
        }
        Ok(entry)
    }

    /// Walks a second-stage table.
    fn walk(&self, state: &State, entry: [u64; 8], iova: u64, view: View) -> Result<Translation, Code> {
        let levels = (entry[0] >> 2 & 7) + 2;
        assert_ne!(state.cap >> (8 + levels - 2) & 1, 0, "AW of a depth that CAP.SAGAW does not offer");
        if iova >> (12 + 9 * levels) != 0 {
            return Err(0x84);
        }
        let mut translation = Translation { host: None, writable: true, readable: true, walked: Vec::new() };
        let mut table = entry[0] & !0xfff;
        for level in (1..=levels).rev() {
            translation.walked.push(table);
            let shift = 12 + 9 * (level - 1);
            let word = self.memory.device_read(table + (iova >> shift & 0x1ff) * 8, view);
            translation.readable &= word & 1 != 0;
            translation.writable &= word & 2 != 0;
            if word & 3 == 0 {
                return Ok(translation);
            }
            let leaf = level == 1 || word >> 7 & 1 != 0;
            let snoop_control = leaf && state.ecap & super::ECAP_SC != 0;
            if word >> 11 & 1 != 0 && !snoop_control {
                return Err(0x7a);
            }
            if leaf {
                let supported = level == 1 || level <= 3 && state.cap >> (34 + level - 2) & 1 != 0;
                let offset_bits = (1 << shift) - 1;
                if !supported || word & ADDRESS & offset_bits != 0 {
                    return Err(0x7a);
                }
                translation.host = Some((word & ADDRESS) | iova & offset_bits & !0xfff);
                return Ok(translation);
            }
            table = word & ADDRESS;
        }
        unreachable!("level 1 is always a leaf")
    }
}

/// Where a posted entry leads.
pub(super) fn descriptor(entry: [u64; 2]) -> u64 {
    entry[0] >> 38 << 6 | entry[1] & 0xffff_ffff_0000_0000
}

impl State {
    fn record(&mut self, lower: u64, upper: u64) {
        if self.fsts & FSTS_PFO != 0 {
            return;
        }
        let slot = self.next_record;
        if self.records[slot][1] >> 63 != 0 {
            self.set_error(FSTS_PFO);
            return;
        }
        self.raise_fault_event();
        self.records[slot] = [lower, upper];
        self.next_record = (slot + 1) % self.records.len();
    }
}
