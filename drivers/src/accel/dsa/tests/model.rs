// SPDX-License-Identifier: MIT OR Apache-2.0
//! A DSA at register level: capabilities, configuration rules, commands with their errors, and a record of
//! every write. It moves no data.

use core::sync::atomic::Ordering;

use super::*;
use crate::pci::tests::ConfigModel;

pub const QUEUES: usize = 8;
pub const GROUPS: usize = 4;
pub const ENGINES: u8 = 4;
pub const TOTAL_SIZE: u16 = 128;
pub const MSIX: usize = 9;
pub const MSIXPERM: usize = 0x400;
pub const GRPCFG: usize = 0x600;
pub const WQCFG: usize = 0x800;
/// Without OPCFG.
pub const WQCFG_STRIDE: usize = 0x20;
pub const MSIX_TABLE: usize = 0x2000;
/// Where it is present (GENCAP).
pub const IMS_TABLE: usize = 0x8000;
pub const IMS: usize = 256;
const WINDOW: usize = 0x1_0000;
/// The model's interrupt handles are not the entries' indices, so that a mix-up shows.
pub const HANDLE_BASE: u16 = 0x100;
pub const IMS_HANDLE_BASE: u16 = 0x400;

pub struct State {
    pub gencfg: u32,
    pub genctrl: u32,
    pub gensts: u32,
    pub intcause: u32,
    pub cmdsts: u32,
    pub swerr: [u64; 4],
    pub wqcfg: [[u32; 8]; QUEUES],
    /// The second half of WQCFG, where WQCAP says that there is one.
    pub opcfg: [[u32; 8]; QUEUES],
    pub grpcfg: [[u64; 8]; GROUPS],
    pub msixperm: [u32; MSIX],
    pub msix: [[u32; 4]; MSIX],
    /// The interrupt message storage: address, data, control with the permission.
    pub ims: [[u32; 4]; IMS],
    /// Messages that wait behind the mask of their entry.
    pending: [bool; MSIX],
    /// Descriptors that each queue has, where it is shared.
    pub shared: [Vec<Submission>; QUEUES],
    /// Messages sent: address and data.
    pub sent: Vec<(u64, u32)>,
    resets: usize,
    /// Offset and value of every write.
    pub writes: Vec<(usize, u64)>,
    /// Commands that do not end by themselves, by code.
    pub hang: Vec<u32>,
    /// The one that is active.
    hanging: Option<u32>,
    /// Whether not even a function-level reset helps.
    pub stays_stuck: bool,
    /// Interrupt handles that were given out; a reset takes them away.
    pub handles: Vec<u16>,
    /// As many as there are.
    pub handles_max: usize,
    /// CMDCAP; without handles where bit 13 is clear.
    pub cmdcap: u32,
    pub wqcap: u64,
    pub gencap: u64,
    pub opcap: [u64; 4],
}

pub struct Model {
    pub config: Arc<ConfigModel>,
    pub state: Mutex<State>,
}

impl State {
    fn power_on(&mut self) {
        self.gencfg = 96;
        self.genctrl = 0;
        self.gensts = 0;
        self.intcause = 0;
        self.wqcfg = [[0; 8]; QUEUES];
        self.opcfg = [[0; 8]; QUEUES];
        self.grpcfg = [[0; 8]; GROUPS];
        for group in &mut self.grpcfg {
            group[5] = 96 << 20;
        }
        self.msixperm = [0; MSIX];
        self.ims = [[0, 0, 0, 1]; IMS];
        self.shared = Default::default();
        self.handles.clear();
    }

    pub fn queue_enabled(&self, wq: usize) -> bool {
        self.wqcfg[wq][6] >> 30 == 1
    }

    pub fn mode(&self, wq: usize) -> u32 {
        self.wqcfg[wq][2]
    }

    fn enable_device(&self, config: &ConfigModel) -> u32 {
        if self.gensts & 3 != 0 {
            return 0x10;
        }
        assert!(!config.no_snoop(), "enabled while its DMA may pass by the caches");
        if !config.bus_master() {
            return 0x12;
        }
        let total: u32 = self.wqcfg.iter().map(|wq| wq[0]).sum();
        if total > TOTAL_SIZE.into() {
            return 0x14;
        }
        for group in &self.grpcfg {
            if (group[0] == 0) != (group[4] == 0) {
                return 0x15;
            }
        }
        for wq in 0..QUEUES {
            let groups = self.grpcfg.iter().filter(|group| group[0] >> wq & 1 != 0).count();
            if groups != usize::from(self.wqcfg[wq][0] != 0) {
                return 0x16;
            }
        }
        for engine in 0..ENGINES {
            if self.grpcfg.iter().filter(|group| group[4] >> engine & 1 != 0).count() > 1 {
                return 0x17;
            }
        }
        0
    }

    fn enable_queue(&self, wq: usize, config: &ConfigModel) -> u32 {
        let cfg = &self.wqcfg[wq];
        let (mode, batch, transfer) = (cfg[2], cfg[3] >> 5 & 0xf, cfg[3] & 0x1f);
        if self.gensts & 3 != 1 {
            0x20
        } else if self.queue_enabled(wq) {
            0x21
        } else if cfg[0] == 0 {
            0x22
        } else if mode >> 4 & 0xf == 0 && self.wqcap >> 51 & 1 != 0 {
            0x23
        } else if mode & 2 != 0 {
            0x25
        } else if mode & 1 << 28 != 0 && !config.pasid_enabled() {
            0x26
        } else if batch == 0 || batch > 10 {
            0x27
        } else if transfer > 31 {
            0x28
        } else if mode & 1 << 29 != 0 && mode & 1 << 28 != 0 {
            0x2a
        } else if mode & 1 == 0 && (self.wqcap >> 48 & 1 == 0 || mode & 1 << 28 == 0) {
            0x24
        } else {
            0
        }
    }

    /// The word of a queue's configuration at an offset of BAR0, with the queue and its number there.
    fn queue_word(&self, offset: usize) -> Option<(usize, usize)> {
        let stride = WQCFG_STRIDE << (self.wqcap >> 24 & 0xf);
        let at = offset.checked_sub(WQCFG)?;
        (at < QUEUES * stride).then_some((at / stride, at % stride / 4))
    }

    fn command(&mut self, value: u32, config: &ConfigModel) {
        if self.cmdsts >> 31 != 0 {
            self.swerr[0] = 1 | 0x52 << 8;
            self.intcause |= 1;
            return;
        }
        let (code, operand) = (value >> 20 & 0x1f, value & 0xf_ffff);
        if self.hang.contains(&code) {
            self.cmdsts = 1 << 31;
            self.hanging = Some(value);
            // What it disables takes nothing more in.
            if matches!(code, 7 | 10) {
                for wq in (0..QUEUES).filter(|wq| operand >> wq & 1 != 0) {
                    if self.queue_enabled(wq) {
                        self.wqcfg[wq][6] ^= 3 << 30;
                    }
                }
            }
            return;
        }
        let bitmap: Vec<usize> = (0..16)
            .filter(|bit| operand >> bit & 1 != 0)
            .map(|bit| bit + (operand >> 16) as usize * 16)
            .collect();
        let mut result = 0;
        let error = match code {
            _ if self.gensts & 3 == 3 && code != 5 => 5,
            1 => match self.enable_device(config) {
                0 => {
                    self.gensts = 1;
                    0
                }
                error => error,
            },
            5 => {
                self.power_on();
                0
            }
            6 if operand as usize >= QUEUES => 2,
            6 => match self.enable_queue(operand as usize, config) {
                0 => {
                    self.wqcfg[operand as usize][6] = 1 << 30;
                    0
                }
                error => error,
            },
            7..=10 if bitmap.iter().any(|&wq| wq >= QUEUES) => 2,
            7..=9 if bitmap.iter().any(|&wq| !self.queue_enabled(wq)) => 0x32,
            7 => {
                for wq in bitmap {
                    self.wqcfg[wq][6] = 0;
                }
                0
            }
            8 | 9 => 0,
            12 => {
                for queue in &mut self.shared {
                    queue.retain(|descriptor| descriptor[0] as u32 & 0xf_ffff != operand);
                }
                0
            }
            10 => {
                for wq in bitmap {
                    let size = self.wqcfg[wq][0];
                    self.wqcfg[wq] = [size, 0, 0, 0, 0, 0, 0, 0];
                    self.shared[wq].clear();
                }
                0
            }
            13 if self.cmdcap >> 13 & 1 != 0 && operand >> 16 == 1 => {
                if (operand & 0xffff) as usize >= self.ims_entries() {
                    0x41
                } else {
                    self.give_handle((operand & 0xffff) as u16 + IMS_HANDLE_BASE, &mut result)
                }
            }
            13 if self.cmdcap >> 13 & 1 != 0 => {
                if operand as usize >= MSIX {
                    0x41
                } else {
                    self.give_handle(operand as u16 + HANDLE_BASE, &mut result)
                }
            }
            _ => 1,
        };
        self.cmdsts = result << 8 | error;
    }

    /// No command hangs any more, and the one that does ends.
    pub fn finish(&mut self, config: &ConfigModel) {
        self.hang.clear();
        if let Some(value) = self.hanging.take() {
            self.cmdsts = 0;
            for wq in &mut self.wqcfg {
                if wq[6] >> 30 == 2 {
                    wq[6] ^= 3 << 30;
                }
            }
            self.command(value, config);
        }
    }

    /// An interrupt by that entry: sent, or kept where the entry is masked (PCI Express 6.1.4.3).
    pub fn raise(&mut self, entry: usize) {
        let [low, high, data, control] = self.msix[entry];
        if control & 1 != 0 {
            self.pending[entry] = true;
        } else {
            self.sent.push((u64::from(high) << 32 | u64::from(low), data));
        }
    }

    /// The error of a request for that handle.
    fn give_handle(&mut self, handle: u16, result: &mut u32) -> u32 {
        if self.handles.len() == self.handles_max {
            return 0x42;
        }
        self.handles.push(handle);
        *result = handle.into();
        0
    }

    fn ims_entries(&self) -> usize {
        (self.gencap >> 25 & 0x3f) as usize * 256
    }

    /// Descriptors in a queue.
    pub fn fill(&mut self, wq: usize, count: u32) {
        self.wqcfg[wq][6] = self.wqcfg[wq][6] & !0xffff | count;
    }

    fn write(&mut self, offset: usize, value: u32, config: &ConfigModel) {
        let disabled = self.gensts & 3 == 0;
        match offset {
            0x80 if disabled => self.gencfg = value,
            0x88 => self.genctrl = value,
            0x98 => self.intcause &= !value,
            0xa0 => self.command(value, config),
            0xc0 => self.swerr[0] &= !u64::from(value & 3),
            MSIXPERM..0x448 => self.msixperm[(offset - MSIXPERM) / 8] = value,
            GRPCFG..0x700 if disabled => {
                let word = (offset - GRPCFG) / 8 % 8;
                let half = (offset % 8) * 8;
                let group = &mut self.grpcfg[(offset - GRPCFG) / 64][word];
                *group = *group & !(0xffff_ffff << half) | u64::from(value) << half;
            }
            MSIX_TABLE..0x2090 => {
                let entry = (offset - MSIX_TABLE) / 16;
                self.msix[entry][(offset - MSIX_TABLE) % 16 / 4] = value;
                if self.msix[entry][3] & 1 == 0 && core::mem::take(&mut self.pending[entry]) {
                    self.raise(entry);
                }
            }
            IMS_TABLE..0x9000 if self.ims_entries() > 0 => {
                self.ims[(offset - IMS_TABLE) / 16][(offset - IMS_TABLE) % 16 / 4] = value;
            }
            _ => {
                if let Some((wq, word)) = self.queue_word(offset) {
                    let writable = match word {
                        0 => disabled,
                        6 => false,
                        _ => !self.queue_enabled(wq),
                    };
                    match word {
                        _ if !writable => {}
                        8.. => self.opcfg[wq][word - 8] = value,
                        _ => self.wqcfg[wq][word] = value,
                    }
                }
            }
        }
    }

    fn read(&self, offset: usize) -> u32 {
        let half = |word: u64| (word >> (offset % 8 * 8)) as u32;
        match offset & !7 {
            0x00 => half(0x100),
            0x10 => half(self.gencap),
            0x20 => half(self.wqcap),
            0x30 => half(GROUPS as u64 | 96 << 8),
            0x38 => half(ENGINES.into()),
            at @ 0x40..0x60 => half(self.opcap[(at - 0x40) / 8]),
            0x60 => half(0x6 | 0x8 << 16 | 0x4 << 32 | 0x80 << 48),
            0x80 => half(self.gencfg.into()),
            0x88 => half(self.genctrl.into()),
            0x90 => half(self.gensts.into()),
            0x98 => half(self.intcause.into()),
            0xa8 => half(self.cmdsts.into()),
            0xb0 => half(self.cmdcap.into()),
            at @ 0xc0..0xe0 => half(self.swerr[(at - 0xc0) / 8]),
            at @ MSIXPERM..0x448 if offset == at => self.msixperm[(at - MSIXPERM) / 8],
            at @ GRPCFG..0x700 => half(self.grpcfg[(at - GRPCFG) / 64][(at - GRPCFG) / 8 % 8]),
            MSIX_TABLE..0x2090 => self.msix[(offset - MSIX_TABLE) / 16][(offset - MSIX_TABLE) % 16 / 4],
            IMS_TABLE..0x9000 if self.ims_entries() > 0 => {
                self.ims[(offset - IMS_TABLE) / 16][(offset - IMS_TABLE) % 16 / 4]
            }
            _ => match self.queue_word(offset) {
                Some((wq, word @ 8..)) => self.opcfg[wq][word - 8],
                Some((wq, word)) => self.wqcfg[wq][word],
                None => 0,
            },
        }
    }
}

impl Model {
    pub fn new(device: u16) -> Arc<Self> {
        let mut state = State {
            gencfg: 0,
            genctrl: 0,
            gensts: 1,
            intcause: 0,
            cmdsts: 0,
            swerr: [0; 4],
            wqcfg: [[0; 8]; QUEUES],
            opcfg: [[0; 8]; QUEUES],
            grpcfg: [[0; 8]; GROUPS],
            msixperm: [0; MSIX],
            msix: [[0; 4]; MSIX],
            ims: [[0; 4]; IMS],
            shared: Default::default(),
            pending: [false; MSIX],
            sent: Vec::new(),
            resets: 0,
            writes: Vec::new(),
            hang: Vec::new(),
            hanging: None,
            stays_stuck: false,
            handles: Vec::new(),
            handles_max: usize::MAX,
            cmdcap: 0x7ffe,
            wqcap: 3 << 48 | 3 << 51 | (QUEUES as u64) << 16 | u64::from(TOTAL_SIZE),
            gencap: 1 << 31 | 10 << 21 | 31 << 16 | 1 << 4 | 1 << 1,
            opcap: [0x1_003f_027f, 0, 0, 0],
        };
        // As firmware may leave it: enabled, with a queue that runs.
        state.power_on();
        state.gensts = 1;
        state.wqcfg[2] = [16, 0, 1, 0, 0, 0, 1 << 30, 0];
        let config = ConfigModel::new(
            Requester::new(0, 0, 4, 0),
            device,
            WINDOW as u64,
            (QUEUES as u64) << 14,
            MSIX as u16,
        );
        Arc::new(Self { config, state: Mutex::new(state) })
    }

    pub fn locked(&self) -> spin::MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let resets = self.config.resets.load(Ordering::SeqCst);
        if state.resets != resets {
            state.resets = resets;
            state.cmdsts = 0;
            state.hanging = None;
            if !state.stays_stuck {
                state.hang.clear();
            }
            state.swerr = [0; 4];
            state.msix = [[0, 0, 0, 1]; MSIX];
            state.pending = [false; MSIX];
            state.power_on();
        }
        state
    }

    /// The command that hangs ends, and no other hangs any more.
    pub fn finish(&self) {
        self.state.lock().finish(&self.config);
    }

    /// The device reports an error of a queue.
    pub fn raise_error(&self, wq: u64, code: u64, pasid: u64, address: u64) {
        let mut state = self.state.lock();
        state.swerr = [1 | 1 << 3 | code << 8 | wq << 16 | 3 << 32 | pasid << 40, 0, address, 0];
        state.intcause |= 1;
    }
}

impl Registers for Arc<Model> {
    fn read32(&self, offset: usize) -> u32 {
        assert!(!self.config.is_silent(), "{offset:#x} read while the device is reset");
        assert!(offset.is_multiple_of(4) && offset + 4 <= WINDOW);
        self.locked().read(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        assert!(!self.config.is_silent(), "{offset:#x} written while the device is reset");
        assert!(offset.is_multiple_of(4) && offset + 4 <= WINDOW);
        let mut state = self.locked();
        state.writes.push((offset, value.into()));
        state.write(offset, value, &self.config);
    }

    fn read64(&self, offset: usize) -> u64 {
        assert!(!self.config.is_silent(), "{offset:#x} read while the device is reset");
        assert!(offset.is_multiple_of(8) && offset + 8 <= WINDOW);
        let state = self.locked();
        u64::from(state.read(offset)) | u64::from(state.read(offset + 4)) << 32
    }

    fn write64(&self, offset: usize, value: u64) {
        assert!(!self.config.is_silent(), "{offset:#x} written while the device is reset");
        assert!(offset.is_multiple_of(8) && offset + 8 <= WINDOW);
        let mut state = self.locked();
        state.writes.push((offset, value));
        state.write(offset, value as u32, &self.config);
        state.write(offset + 4, (value >> 32) as u32, &self.config);
    }
}
