// SPDX-License-Identifier: MIT OR Apache-2.0
//! Configuration space as an array, and the code above it run against that.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use pasidon_kernel::base::id::VmId;
use pasidon_kernel::irq::HostVector;
use spin::Mutex;

use super::*;

const PCIE: usize = 0x40;
/// Enable No Snoop of the device control register; on after every reset.
const NO_SNOOP: u32 = 1 << 11;
const MSIX: usize = 0x80;
const ATS: usize = 0x220;
const PASID: usize = 0x230;
const PRI: usize = 0x240;
const DEVICE_CONTROL: usize = PCIE + 8;

/// A clock that moves on by a millisecond whenever it is looked at.
pub struct TestHost(AtomicU64);

impl TestHost {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(0)))
    }
}

impl Host for TestHost {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(1_000_000, Ordering::Relaxed)
    }

    fn wake_first(&self) {}

    fn allocate_vector(&self, _vm: Option<VmId>) -> Option<HostVector> {
        None
    }

    fn free_vector(&self, _vector: HostVector) {}
}

/// One function shaped like a DSA: BAR0 and BAR2 64-bit, PCIe with FLR, MSI-X, ATS, PASID, PRI.
#[derive(Debug)]
pub struct ConfigModel {
    requester: Requester,
    words: Mutex<[u32; 1024]>,
    bar_masks: [u32; 6],
    /// Function-level resets so far.
    pub(crate) resets: AtomicUsize,
    /// Reads that answer all ones after a reset.
    silence: AtomicUsize,
}

impl ConfigModel {
    pub(crate) const BAR0: u64 = 0x80_0000_0000;
    pub(crate) const BAR2: u64 = 0x80_0010_0000;

    pub(crate) fn new(requester: Requester, device: u16, bar0: u64, bar2: u64, msix: u16) -> Arc<Self> {
        let mut words = [0u32; 1024];
        words[0] = u32::from(device) << 16 | 0x8086;
        words[1] = 1 << 20;
        words[2] = 0x0880_0000;
        words[4] = Self::BAR0 as u32 | 0xc;
        words[5] = (Self::BAR0 >> 32) as u32;
        words[6] = Self::BAR2 as u32 | 0xc;
        words[7] = (Self::BAR2 >> 32) as u32;
        words[0x34 / 4] = PCIE as u32;
        words[PCIE / 4] = 0x0092 << 16 | (MSIX as u32) << 8 | 0x10;
        words[PCIE / 4 + 1] = 1 << 28;
        words[DEVICE_CONTROL / 4] = NO_SNOOP;
        words[MSIX / 4] = u32::from(msix - 1) << 16 | 0x11;
        words[MSIX / 4 + 1] = 0x2000;
        words[MSIX / 4 + 2] = 0x3000;
        words[0x100 / 4] = (ATS as u32) << 20 | 1 << 16 | 0x01;
        words[ATS / 4] = (PASID as u32) << 20 | 1 << 16 | 0x0f;
        words[ATS / 4 + 1] = 1 << 31;
        words[PASID / 4] = (PRI as u32) << 20 | 1 << 16 | 0x1b;
        words[PASID / 4 + 1] = 20 << 8 | 4;
        words[PRI / 4] = 1 << 16 | 0x13;
        words[PRI / 4 + 1] = 1;
        let halves = |size: u64| (!(size - 1) as u32, (!(size - 1) >> 32) as u32);
        let ((low0, high0), (low2, high2)) = (halves(bar0), halves(bar2));
        Arc::new(Self {
            requester,
            words: Mutex::new(words),
            bar_masks: [low0, high0, low2, high2, 0, 0],
            resets: AtomicUsize::new(0),
            silence: AtomicUsize::new(0),
        })
    }

    fn word(&self, offset: usize) -> u32 {
        self.words.lock()[offset / 4]
    }

    pub(crate) fn bus_master(&self) -> bool {
        self.word(4) & COMMAND_BUS_MASTER != 0
    }

    /// Whether it may send requests that pass by the caches.
    pub(crate) fn no_snoop(&self) -> bool {
        self.word(DEVICE_CONTROL) & NO_SNOOP != 0
    }

    pub(crate) fn pasid_enabled(&self) -> bool {
        self.word(PASID + 4) & 1 << 16 != 0
    }

    /// As wide as that are the PASIDs that it can send.
    pub(crate) fn set_pasid_bits(&self, bits: u32) {
        self.words.lock()[PASID / 4 + 1] = bits << 8 | 4;
    }

    pub(crate) fn ats_enabled(&self) -> bool {
        self.word(ATS + 4) & 1 << 31 != 0
    }

    /// Whether it does not answer yet after a reset.
    pub(crate) fn is_silent(&self) -> bool {
        self.silence.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn msix_enabled(&self) -> bool {
        self.word(MSIX) & 3 << 30 == 2 << 30
    }

    fn function_level_reset(&self, words: &mut [u32; 1024]) {
        words[1] = 1 << 20;
        for index in 0..6 {
            words[4 + index] &= if index % 2 == 0 { 0xf } else { 0 };
        }
        words[DEVICE_CONTROL / 4] = NO_SNOOP;
        words[MSIX / 4] &= !(1 << 31);
        words[ATS / 4 + 1] &= !(1 << 31);
        words[PASID / 4 + 1] &= 0xffff;
        words[PRI / 4 + 1] = 0;
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.silence.store(3, Ordering::SeqCst);
    }
}

impl ConfigSpace for ConfigModel {
    fn read32(&self, function: Requester, offset: u16) -> u32 {
        assert!(offset < 4096 && offset.is_multiple_of(4));
        let silent =
            self.silence.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if function != self.requester || silent {
            return u32::MAX;
        }
        self.word(offset.into())
    }

    fn write32(&self, function: Requester, offset: u16, value: u32) {
        assert!(offset < 4096 && offset.is_multiple_of(4));
        if function != self.requester {
            return;
        }
        let mut words = self.words.lock();
        let decoding = words[1] & COMMAND_MEMORY != 0;
        match usize::from(offset) {
            4 => words[1] = value & COMMAND_MASK | words[1] & !COMMAND_MASK,
            at @ 0x10..0x28 => {
                let index = (at - 0x10) / 4;
                assert!(!decoding || value == words[at / 4], "BAR changed while it decodes");
                let flags = if index % 2 == 0 { words[at / 4] & 0xf } else { 0 };
                words[at / 4] = value & self.bar_masks[index] | flags;
            }
            at if at == DEVICE_CONTROL && value & 1 << 15 != 0 => self.function_level_reset(&mut words),
            // The status half holds nothing that a write of zero changes.
            DEVICE_CONTROL => words[DEVICE_CONTROL / 4] = value & 0xffff,
            at if at == MSIX => words[at / 4] = value & 3 << 30 | words[at / 4] & 0x3fff_ffff,
            at if at == ATS + 4 => words[at / 4] = value & 1 << 31,
            at if at == PASID + 4 => words[at / 4] = value & 7 << 16 | words[at / 4] & 0xffff,
            at if at == PRI + 4 => words[at / 4] = value & 1,
            _ => {}
        }
    }
}

const HERE: Requester = Requester::new(0, 3, 4, 0);

fn function() -> (Arc<ConfigModel>, Function<Arc<ConfigModel>>) {
    let model = ConfigModel::new(HERE, 0x11fb, 0x1_0000, 0x2_0000, 9);
    let function = Function::new(Arc::clone(&model), HERE).unwrap();
    (model, function)
}

#[test]
fn enumeration_finds_the_function_and_nothing_else() {
    let (model, _) = function();
    let found = enumerate(&model, 0, 0..=255);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].to_string(), "0000:03:04.0 8086:11fb class 088000");
    assert!(enumerate(&model, 0, 0..=2).is_empty());
    let refusal = Function::new(model, Requester::new(0, 0, 1, 0)).unwrap_err();
    assert!(refusal.to_string().starts_with("pci 0000:00:01.0: no function answers there;"));
}

#[test]
fn bars_are_decoded_and_left_as_they_were() {
    let (model, function) = function();
    function.enable_memory();
    let before = *model.words.lock();
    let bars = function.memory_bars();
    assert_eq!(*model.words.lock(), before);
    let expected = [(0, ConfigModel::BAR0, 0x1_0000), (2, ConfigModel::BAR2, 0x2_0000)];
    assert_eq!(bars.len(), 2);
    for (bar, (index, address, size)) in bars.into_iter().zip(expected) {
        assert_eq!((bar.index, bar.address.0, bar.size), (index, address, size));
        assert!(bar.prefetchable);
    }
    assert!(function.memory_bar(1).is_err());
}

#[test]
fn a_bar_without_address_is_refused() {
    let (model, function) = function();
    model.words.lock()[4] = 0xc;
    model.words.lock()[5] = 0;
    let refusal = function.memory_bar(0).unwrap_err();
    assert_eq!(refusal.why, "BAR0 has no address");
}

#[test]
fn capabilities_are_found_and_switched() {
    let (model, function) = function();
    let msix = function.msix().unwrap();
    assert_eq!((msix.entries, msix.table_bar, msix.table, msix.pba_bar, msix.pba), (9, 0, 0x2000, 0, 0x3000));
    function.enable_msix(&msix);
    assert!(model.msix_enabled());
    let pasid = function.pasid().unwrap();
    assert_eq!(pasid.bits, 20);
    function.enable_pasid(&pasid);
    assert!(model.pasid_enabled());
    assert!(model.ats_enabled());
    function.disable_ats_and_pri();
    assert!(!model.ats_enabled());
    assert_eq!(model.word(PRI + 4), 0);
}

#[test]
fn a_capability_list_that_loops_ends() {
    let (model, function) = function();
    // MSI-X points back at PCIe, PRI back at ATS.
    model.words.lock()[MSIX / 4] |= (PCIE as u32) << 8;
    model.words.lock()[PRI / 4] |= (ATS as u32) << 20;
    assert_eq!(function.capability(0x05), None);
    assert_eq!(function.extended_capability(0x10), None);
}

#[test]
fn a_function_level_reset_keeps_the_bars() {
    let (model, function) = function();
    function.enable_memory();
    function.allow_dma().unwrap();
    function.function_level_reset(&*TestHost::new()).unwrap();
    assert_eq!(model.resets.load(Ordering::SeqCst), 1);
    assert!(!model.bus_master());
    assert_eq!(function.memory_bar(0).unwrap().address.0, ConfigModel::BAR0);
    assert_eq!(function.memory_bar(2).unwrap().address.0, ConfigModel::BAR2);
}

/// A reset switches No Snoop on again; nobody does DMA with it.
#[test]
fn no_snoop_is_off_before_dma_is_allowed() {
    let (model, function) = function();
    function.enable_memory();
    for _ in 0..2 {
        assert!(model.no_snoop() && !model.bus_master());
        function.allow_dma().unwrap();
        assert!(!model.no_snoop() && model.bus_master());
        function.function_level_reset(&*TestHost::new()).unwrap();
    }
    // One that cannot be told gets no DMA.
    struct Stuck(Arc<ConfigModel>);
    impl ConfigSpace for Stuck {
        fn read32(&self, function: Requester, offset: u16) -> u32 {
            self.0.read32(function, offset)
        }
        fn write32(&self, function: Requester, offset: u16, value: u32) {
            let kept = if usize::from(offset) == DEVICE_CONTROL { NO_SNOOP } else { 0 };
            self.0.write32(function, offset, value | kept);
        }
    }
    let function = Function::new(Stuck(Arc::clone(&model)), HERE).unwrap();
    let refusal = function.allow_dma().unwrap_err();
    assert!(refusal.why.contains("No Snoop"), "{refusal}");
    assert!(!model.bus_master());
}

#[test]
fn a_function_that_stays_silent_is_given_up() {
    let (model, function) = function();
    function.enable_memory();
    let stuck = ConfigModel {
        requester: HERE,
        words: Mutex::new(*model.words.lock()),
        bar_masks: model.bar_masks,
        resets: AtomicUsize::new(0),
        silence: AtomicUsize::new(0),
    };
    struct Silent(ConfigModel);
    impl ConfigSpace for Silent {
        fn read32(&self, function: Requester, offset: u16) -> u32 {
            if self.0.resets.load(Ordering::SeqCst) > 0 {
                return u32::MAX;
            }
            self.0.read32(function, offset)
        }
        fn write32(&self, function: Requester, offset: u16, value: u32) {
            self.0.write32(function, offset, value);
        }
    }
    let function = Function::new(Arc::new(Silent(stuck)), HERE).unwrap();
    let refusal = function.function_level_reset(&*TestHost::new()).unwrap_err();
    assert!(refusal.why.contains("does not answer"));
}

/// Registers of an ECAM window that remembers where it was touched.
struct Window(Arc<Mutex<Vec<usize>>>);

impl crate::registers::Registers for Window {
    fn read32(&self, offset: usize) -> u32 {
        self.0.lock().push(offset);
        7
    }
    fn write32(&self, offset: usize, _value: u32) {
        self.0.lock().push(offset);
    }
    fn read64(&self, _offset: usize) -> u64 {
        unreachable!("configuration space is read in words of 32 bits")
    }
    fn write64(&self, _offset: usize, _value: u64) {
        unreachable!("configuration space is written in words of 32 bits")
    }
}

#[test]
fn ecam_addresses_count_from_its_first_bus() {
    let touched = Arc::new(Mutex::new(Vec::new()));
    let ecam = Ecam::new(1, 0x40..=0x4f, Window(Arc::clone(&touched)));
    assert_eq!(Ecam::<Window>::len(&(0x40..=0x4f)), 16 << 20);
    assert_eq!(ecam.read32(Requester::new(1, 0x41, 2, 3), 0x10), 7);
    ecam.write32(Requester::new(1, 0x4f, 31, 7), 0xffc, 0);
    assert_eq!(ecam.read32(Requester::new(0, 0x41, 2, 3), 0x10), u32::MAX);
    assert_eq!(ecam.read32(Requester::new(1, 0x50, 0, 0), 0), u32::MAX);
    assert_eq!(*touched.lock(), [1 << 20 | 2 << 15 | 3 << 12 | 0x10, 15 << 20 | 31 << 15 | 7 << 12 | 0xffc]);
}
