// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shares of a work queue: what guests submit by way of the hypervisor, against a device that completes it when the test
//! says so.

use super::model::{HANDLE_BASE, IMS_HANDLE_BASE, MSIX, QUEUES};
use super::*;
use crate::accel::dsa::{Enqueue, TYPE_SWQ};
use crate::memory::DmaMemory;

mod descriptors;
mod fairness;
mod lives;
mod pausing;

/// The queue that is shared: the last one.
const SHARED: usize = QUEUES - 1;
const SHARED_ENTRIES: u16 = 8;
/// A memory move with completion record and interrupt.
const MOVE: u64 = 0x03 << 56 | 0x1c << 32;
const HANDLE: u64 = 1 << 32;
/// Portals that the guest uses.
const PORTAL: u64 = 0x1000;

/// A device with a shared queue, and what the hypervisor shares with it.
struct Machine {
    model: Arc<Model>,
    memory: Arc<ModelMemory>,
    parent: Arc<TestParent>,
}

/// The portals of the model.
struct Portals {
    model: Arc<Model>,
    /// Stores that the device refuses although it has room.
    refuse: Mutex<u32>,
}

impl Enqueue for Portals {
    fn enqueue(&self, offset: u64, descriptor: &Submission) -> bool {
        assert!(!self.model.config.is_silent(), "submitted while the device is reset");
        let mut state = self.model.locked();
        let (wq, page) = (offset as usize >> 14, offset & 0x3fff);
        assert!(matches!(page, 0 | 0x2000), "the unlimited portal of MSI-X or of the IMS: {page:#x}");
        assert!(!self.model.config.is_silent());
        let word = descriptor[0] as u32;
        assert_eq!(word >> 20, 0, "privileged, or reserved bits: {word:#x}");
        let handle = (descriptor[4] >> 32) as u16;
        assert_eq!(
            handle >= IMS_HANDLE_BASE,
            page == 0x2000,
            "the handle is of the portal's table: {handle:#x}"
        );
        assert!(state.handles.contains(&handle), "a handle that the device does not know: {handle:#x}");
        if *self.refuse.lock() > 0 {
            *self.refuse.lock() -= 1;
            return false;
        }
        let enabled = state.queue_enabled(wq) && state.mode(wq) & 1 == 0;
        let room = state.shared[wq].len() < state.wqcfg[wq][0] as usize;
        if enabled && room {
            state.shared[wq].push(*descriptor);
        }
        enabled && room
    }
}

impl Machine {
    fn new(ims: bool) -> Self {
        Self::with(ims, 0x11fb, SHARED_ENTRIES).0
    }

    fn with(ims: bool, device: u16, shared: u16) -> (Self, Arc<Portals>) {
        let model = Model::new(device);
        if ims {
            model.state.lock().gencap |= 1 << 25;
        }
        Self::on(model, shared)
    }

    fn on(model: Arc<Model>, shared: u16) -> (Self, Arc<Portals>) {
        // Delta records, too.
        model.state.lock().opcap[0] |= 3 << 7;
        let memory = Arc::new(ModelMemory::new());
        let portals = Arc::new(Portals { model: Arc::clone(&model), refuse: Mutex::new(0) });
        let function = Function::new(Arc::clone(&model.config), Requester::new(0, 0, 4, 0)).unwrap();
        let parent = DsaParent::new(Setup {
            name: "dsa0".into(),
            function,
            registers: Arc::clone(&model),
            host: TestHost::new(),
            partition: Partition { queues: Vec::new(), shared },
            sending: Sending::Tagged(Some(Arc::clone(&portals) as Arc<dyn Enqueue>)),
            memory: Arc::clone(&memory) as Arc<dyn DmaMemory>,
            options: Options::default(),
        })
        .unwrap();
        (Self { model, memory, parent }, portals)
    }

    fn share(&self, weight: Option<u8>, entries: Option<u16>) -> Result<Box<dyn VdevModel>, Refusal> {
        self.parent.create(&VdevRequest { vm: "alpha", type_name: TYPE_SWQ, entries, weight })
    }

    /// A guest with a share and a running queue.
    fn guest(&self, tag: u32) -> Sharer {
        self.guest_with(tag, None, None)
    }

    fn guest_with(&self, tag: u32, weight: Option<u8>, entries: Option<u16>) -> Sharer {
        let mut vdev = self.share(weight, entries).unwrap();
        let memory = GuestBytes::new();
        vdev.attach(attached(tag, &memory, vdev.window())).unwrap();
        let mut guest = Guest { vdev, raised: Vec::new() };
        guest.set_bus_master(true);
        let mut sharer = Sharer { guest, memory, tag };
        sharer.start(entries.unwrap_or(8));
        sharer
    }

    /// The tags of vdevs that are to be told something.
    fn look(&self) -> Vec<u32> {
        let mut concerned = Vec::new();
        self.parent.look(&mut |pasid| concerned.push(pasid.value()));
        concerned
    }

    /// What the device has, the oldest first.
    fn has(&self) -> Vec<Submission> {
        self.model.locked().shared[SHARED].clone()
    }

    /// Tags of what it has.
    fn tags(&self) -> Vec<u32> {
        self.has().iter().map(|descriptor| descriptor[0] as u32).collect()
    }

    /// The device completes what it has had for longest but `place`: record, then interrupt.
    fn complete(&self, place: usize, record: [u64; 4], guest: &mut Sharer) {
        let descriptor = self.model.locked().shared[SHARED].remove(place);
        self.finish(&descriptor, record, guest);
        guest.interrupt();
    }

    /// The same without the interrupt coming through.
    fn finish(&self, descriptor: &Submission, record: [u64; 4], guest: &Sharer) {
        let tag = descriptor[0] as u32;
        assert_eq!(tag, guest.tag, "it is another's");
        assert_eq!(descriptor[0] >> 32 & 0x1c, 0x1c, "it completes to the driver, with an interrupt");
        let window = WINDOWS + u64::from(tag) * PAGE_SIZE;
        let offset = descriptor[1].checked_sub(window).filter(|offset| *offset < PAGE_SIZE);
        let place = guest.guest.vdev.window().unwrap().0 + offset.expect("a record in its own window");
        for (word, value) in (0..4).zip(record) {
            self.memory.device_update(place + word * 8, |old: &mut [u64; 1]| old[0] = value);
        }
        self.assert_interrupt(descriptor);
    }

    /// What an interrupt entry lets through.
    fn permission(&self, entry: u16) -> u32 {
        let state = self.model.locked();
        match usize::from(entry).checked_sub(MSIX) {
            Some(index) => state.ims[index][3] & !1,
            None => state.msixperm[usize::from(entry)],
        }
    }

    /// The entry that a descriptor names lets its tag through.
    fn assert_interrupt(&self, descriptor: &Submission) {
        let (handle, tag) = ((descriptor[4] >> 32) as u16, descriptor[0] as u32);
        let entry = match handle.checked_sub(IMS_HANDLE_BASE) {
            Some(index) => MSIX as u16 + index,
            None => handle - HANDLE_BASE,
        };
        assert_eq!(self.permission(entry), tag << 12 | 8, "the interrupt of PASID {tag}");
    }
}

/// A guest with a share.
struct Sharer {
    guest: Guest,
    memory: Arc<GuestBytes>,
    tag: u32,
}

impl Sharer {
    /// Enables its queue, for so many descriptors.
    fn start(&mut self, entries: u16) {
        let guest = &mut self.guest;
        guest.w32(0xa0, 5 << 20);
        guest.w32(0x88, 3);
        guest.configure();
        guest.w32(0x800, entries.into());
        guest.w32(0xa0, 1 << 20);
        guest.w32(0xa0, 6 << 20);
        assert_eq!(guest.r32(0xa8), 0);
        guest.raised.clear();
    }

    fn submit(&mut self, descriptor: [u64; 8]) {
        self.store(PORTAL, descriptor);
    }

    fn store(&mut self, offset: u64, descriptor: [u64; 8]) {
        let mut bytes = [0; 64];
        for (word, value) in bytes.chunks_exact_mut(8).zip(descriptor) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        let raised = &mut self.guest.raised;
        self.guest.vdev.submit(2, offset, &bytes, &mut |vector| raised.push(vector));
    }

    /// A copy of a page with its completion record there.
    fn copy(&mut self, record: u64) {
        self.submit([MOVE, record, 0x2000, 0x3000, HANDLE | 0x1000, 0, 0, 0]);
    }

    fn interrupt(&mut self) {
        let raised = &mut self.guest.raised;
        self.guest.vdev.interrupt(1, &mut |vector| raised.push(vector));
    }

    /// A completion record in the guest's memory.
    fn record(&self, at: usize) -> [u64; 4] {
        let memory = self.memory.0.lock();
        core::array::from_fn(|word| {
            let start = at + word * 8;
            u64::from_le_bytes(memory[start..start + 8].try_into().unwrap())
        })
    }

    /// SWERR, where it is valid. It is acknowledged.
    fn error(&mut self) -> [u64; 4] {
        let words: [u64; 4] = core::array::from_fn(|word| self.guest.r64(0xc0 + word as u64 * 8));
        self.guest.w64(0xc0, 3);
        if words[0] & 1 != 0 { words } else { [0; 4] }
    }

    fn raised(&mut self) -> Vec<u16> {
        core::mem::take(&mut self.guest.raised)
    }

    fn detail(&self, name: &str) -> String {
        let details = self.guest.vdev.describe();
        details.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value).unwrap()
    }
}

#[test]
fn spare_entries_and_the_ims_are_shared_out() {
    // All entries of the MSI-X table but the device's own and those of the other queues.
    assert_eq!(Machine::new(false).parent.available(TYPE_SWQ), MSIX as u16 - 1 - SHARED as u16);
    assert_eq!(Machine::new(true).parent.available(TYPE_SWQ), MSIX as u16 - 1 - SHARED as u16 + 256);
}
