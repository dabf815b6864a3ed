// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model's translation of DMA.

use super::{
    Cached, GBPA_ABORT, IDR0_ATS, IDR0_CD2L, IDR0_ST_LEVEL, OUTPUT_BITS, SMMUEN, State, Translation,
    UnitModel,
};

const PAGE: u64 = 4096;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// An event type; 0 where the access ends without a record.
pub type Code = u8;

impl UnitModel {
    /// A DMA access. Gives the host-physical address, or the event type after recording the event.
    pub fn dma(&self, stream: u32, tag: Option<u32>, iova: u64, write: bool) -> Result<u64, Code> {
        let mut state = self.state.lock().unwrap();
        let result = self.translate(&mut state, stream, tag, iova, write);
        if let Err(code @ 1..) = result {
            let substream = tag.map_or(0, |tag| 1 << 11 | u64::from(tag) << 12);
            let low = u64::from(code) | substream | u64::from(stream) << 32;
            // Configuration errors carry no address and no direction.
            let (direction, address) = if code >= 0x10 { (u64::from(!write) << 35, iova) } else { (0, 0) };
            state.record(&self.memory, [low, direction, address, 0]);
        }
        result
    }

    pub(super) fn translate(
        &self,
        state: &mut State,
        stream: u32,
        tag: Option<u32>,
        iova: u64,
        write: bool,
    ) -> Result<u64, Code> {
        if state.cr0 & SMMUEN == 0 {
            return if state.gbpa & GBPA_ABORT == 0 { Ok(iova) } else { Err(0) };
        }
        let ste = self.stream_entry(state, stream)?;
        let contexts = (ste[0] >> 59) as u32;
        let index = match tag {
            None => 0,
            Some(0) => return Err(0x06),
            Some(tag) if u64::from(tag) >= 1 << contexts => return Err(0x08),
            Some(tag) => tag,
        };
        let cd = self.context(state, stream, index, ste[0])?;
        if iova >> 48 != 0 {
            return Err(0x10);
        }
        let asid = (cd[0] >> 48) as u16;
        let page = iova & !(PAGE - 1);
        let found = match state.tlb.get(&(asid, page)) {
            Some(found) => found.clone(),
            None => {
                let found = self.walk(state, asid, cd[1], page)?;
                state.tlb.insert((asid, page), found.clone());
                found
            }
        };
        if write && !found.writable {
            return Err(0x13);
        }
        Ok(found.host + iova % PAGE)
    }

    fn stream_entry(&self, state: &mut State, stream: u32) -> Result<[u64; 8], Code> {
        if !state.stes.contains_key(&stream) {
            let fetched = self.fetch_stream(state, stream);
            state.stes.insert(stream, fetched);
        }
        let ste = state.stes[&stream].ok_or(0x02)?;
        if ste[0] & 1 == 0 {
            return Err(0x04);
        }
        let format = ste[0] >> 4 & 3;
        let contexts = ste[0] >> 59;
        assert_eq!(ste[0] >> 1 & 7, 5, "stage 1 only");
        assert!(format == 0 || format == 1 && state.idr0 & IDR0_CD2L != 0);
        assert!(contexts as u32 <= state.idr1 >> 6 & 0x1f && contexts > 0, "S1CDMax");
        assert_eq!(ste[0] & 0x07f0_0000_0000_0000, 0, "reserved, or an address too wide");
        assert_eq!(ste[1] & 3, 2, "S1DSS");
        assert_eq!(ste[1] >> 44 & 3, 1, "shareability as it comes");
        assert!(ste[1] >> 28 & 3 == 0 || state.idr0 & IDR0_ATS != 0, "EATS");
        assert_eq!(ste[1] & !(0xff | 3 << 28 | 3 << 44), 0, "STRW, S1STALLD and the rest");
        assert_eq!(ste[2..], [0; 6], "nothing of stage 2");
        Ok(ste)
    }

    fn fetch_stream(&self, state: &State, stream: u32) -> Cached {
        let bits = state.strtab_cfg & 0x3f;
        if u64::from(stream) >= 1 << bits {
            return None;
        }
        let base = state.strtab_base & 0x000f_ffff_ffff_ffc0;
        let at = match state.strtab_cfg >> 16 & 3 {
            0 => {
                assert_eq!(base & ((64 << bits) - 1), 0, "a table is aligned to its size");
                base + u64::from(stream) * 64
            }
            1 => {
                assert_ne!(state.idr0 & IDR0_ST_LEVEL, 0, "two levels");
                let split = state.strtab_cfg >> 6 & 0x1f;
                assert!([6, 8, 10].contains(&split), "SPLIT {split}");
                let descriptor = self.read(base + u64::from(stream >> split) * 8);
                let span = (descriptor & 0x1f) as u32;
                let below = u64::from(stream & ((1 << split) - 1));
                if span == 0 || below >= 1 << (span - 1) {
                    return None;
                }
                assert!(span <= split + 1, "Span {span}");
                let leaf = descriptor & 0x000f_ffff_ffff_ffc0;
                assert_eq!(leaf & ((64 << (span - 1)) - 1), 0, "a table is aligned to its size");
                leaf + below * 64
            }
            other => panic!("STRTAB_BASE_CFG.FMT {other}"),
        };
        Some(self.words(at))
    }

    fn context(&self, state: &mut State, stream: u32, tag: u32, stream_entry: u64) -> Result<[u64; 8], Code> {
        let key = (stream, tag);
        let cached = match state.cds.get(&key) {
            Some(cached) => *cached,
            None => {
                let fetched = self.fetch_context(stream_entry, tag);
                if let Some([first, second, ..]) = fetched.filter(|_| state.forgetful) {
                    state.fetching.entry(key).or_default().insert([first, second]);
                }
                state.cds.insert(key, fetched);
                fetched
            }
        };
        let cd = cached.ok_or(0x08)?;
        if cd[0] >> 31 & 1 == 0 {
            return Err(0x0a);
        }
        assert_eq!(cd[0] & 0x3f, 16, "T0SZ for 48 bits");
        assert_eq!(cd[0] >> 6 & 3, 0, "TG0 of 4 KiB");
        assert_eq!(cd[0] >> 14 & 1, 0, "EPD0");
        assert_eq!(cd[0] >> 15 & 1, 0, "little-endian");
        assert_eq!(cd[0] >> 30 & 1, 1, "EPD1: TTB1 is nothing");
        assert_eq!(cd[0] >> 32 & 7, 4, "IPS is OAS");
        assert_eq!(cd[0] >> 41 & 1, 1, "AA64");
        assert_eq!(cd[0] >> 42 & 7, 0, "HD, HA, S");
        assert_eq!(cd[0] >> 45 & 3, 3, "R and A");
        assert_eq!(cd[1] & !ADDRESS, 0, "TTB0");
        assert_eq!(cd[2], 0, "TTB1");
        assert_eq!(cd[3] & 0xff, 0xff, "MAIR: normal write-back");
        assert_eq!(cd[4..], [0; 4]);
        Ok(cd)
    }

    fn fetch_context(&self, ste: u64, tag: u32) -> Cached {
        let base = ste & 0x000f_ffff_ffff_ffc0;
        if ste >> 4 & 3 == 0 {
            assert_eq!(base & ((64 << (ste >> 59)) - 1), 0, "a table is aligned to its size");
            return Some(self.words(base + u64::from(tag) * 64));
        }
        let descriptor = self.read(base + u64::from(tag >> 6) * 8);
        assert_eq!(descriptor & 0xffe, 0, "a first-level descriptor");
        (descriptor & 1 != 0).then(|| self.words((descriptor & ADDRESS) + u64::from(tag & 63) * 64))
    }

    fn words(&self, at: u64) -> [u64; 8] {
        core::array::from_fn(|word| self.read(at + word as u64 * 8))
    }

    /// Walks from the lowest table that is cached. Only what translates is cached.
    fn walk(&self, state: &mut State, asid: u16, root: u64, page: u64) -> Result<Translation, Code> {
        let cached = (1..4).find_map(|level| {
            let table = state.walks.get(&(asid, level, Self::above(page, level)))?;
            Some((level, *table))
        });
        let (mut level, mut table) = cached.unwrap_or((4, root));
        loop {
            if level < 4 {
                state.walks.insert((asid, level, Self::above(page, level)), table);
            }
            let shift = 12 + 9 * (level - 1);
            let entry = self.read(table + (page >> shift & 0x1ff) * 8);
            if entry & 1 == 0 {
                return Err(0x10);
            }
            if level > 1 && entry & 2 != 0 {
                assert_eq!(entry & !(ADDRESS | 3), 0, "a table entry");
                table = entry & ADDRESS;
                level -= 1;
                continue;
            }
            assert!(level < 4 && (level > 1 || entry & 2 != 0), "a leaf of level {level}");
            let span = (1 << shift) - 1;
            let host = entry & ADDRESS;
            assert_eq!(host & span, 0, "a leaf is aligned to its size");
            assert_eq!(host >> OUTPUT_BITS, 0, "within the output size");
            assert_eq!(entry >> 10 & 3, 3, "AF and nG");
            assert_eq!(entry >> 6 & 1, 1, "unprivileged");
            assert_eq!(entry >> 8 & 3, 3, "inner shareable");
            assert_eq!(entry >> 53 & 3, 3, "not executable");
            return Ok(Translation { host: host | page & span, writable: entry >> 7 & 1 == 0 });
        }
    }
}
