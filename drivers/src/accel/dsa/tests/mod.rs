// SPDX-License-Identifier: MIT OR Apache-2.0
//! The driver and the vdev against a register-level model of the device.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::{HostPhys, Iova, PAGE_SIZE, Requester};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::dma::window::Window;
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::vdev::parent::{
    Attached, Parent, ParentEvent, ParentUnreached, SliceMemory, VdevModel, VdevRequest,
};
use pasidon_kernel::vm::exit::MsiMessage;
use spin::Mutex;

use self::model::Model;
use super::{DsaParent, Options, Partition, Sending, Setup, Submission, TYPE_DWQ};
use crate::pci::Function;
use crate::pci::tests::{ConfigModel, TestHost};
use crate::registers::Registers;
use crate::testing::ModelMemory;

mod guest_pci;
mod isolation;
mod lines;
mod linux;
pub(crate) mod model;
mod parent;
mod pausing;
mod share;
mod slot;
mod untranslated;

/// What a driver writes of a queue's configuration: offset and value.
const CONFIGURATION: [(u64, u32); 5] = [(0x800, 8), (0x600, 1), (0x620, 1), (0x808, 1), (0x80c, 21 | 5 << 5)];

type TestParent = DsaParent<Arc<Model>, Arc<ConfigModel>>;

fn try_parent(
    model: &Arc<Model>,
    plan: &[Option<u16>],
    options: Options,
) -> Result<Arc<TestParent>, Refusal> {
    parent_on(model, plan, options, TestHost::new())
}

fn parent_on(
    model: &Arc<Model>,
    plan: &[Option<u16>],
    options: Options,
    host: Arc<dyn Host>,
) -> Result<Arc<TestParent>, Refusal> {
    let function = Function::new(Arc::clone(&model.config), Requester::new(0, 0, 4, 0))?;
    DsaParent::new(Setup {
        name: "dsa0".into(),
        function,
        registers: Arc::clone(model),
        host,
        partition: Partition { queues: plan.to_vec(), shared: 0 },
        sending: Sending::Tagged(None),
        memory: Arc::new(ModelMemory::new()),
        options,
    })
}

fn parent(plan: &[Option<u16>]) -> (Arc<Model>, Arc<TestParent>) {
    let model = Model::new(0x11fb);
    let parent = try_parent(&model, plan, Options::default()).unwrap();
    (model, parent)
}

fn create(parent: &TestParent, vm: &str, entries: Option<u16>) -> Result<Box<dyn VdevModel>, Refusal> {
    parent.create(&VdevRequest { vm, type_name: TYPE_DWQ, entries, weight: None })
}

/// The parent is reset; no vdev of these tests has a portal mapped.
fn recover(parent: &TestParent) -> Result<(), Refusal> {
    parent.recover(&ParentUnreached::confirmed_by_system("dsa0"))
}

/// What a vdev gets with that tag, with some memory that its guest has.
fn attached(tag: u32, memory: &Arc<GuestBytes>, page: Option<HostPhys>) -> Attached {
    let window = page.map(|page| Window { iova: Iova(WINDOWS + u64::from(tag) * PAGE_SIZE), page });
    Attached { pasid: pasid(tag), memory: Arc::clone(memory) as Arc<dyn SliceMemory>, window }
}

/// Where windows are in the tests.
const WINDOWS: u64 = 1 << 38;

/// Memory of a guest from address 0 on.
struct GuestBytes(Mutex<Vec<u8>>);

impl GuestBytes {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![0; 0x1_0000])))
    }
}

impl SliceMemory for GuestBytes {
    fn write_u64(&self, iova: Iova, value: u64) -> bool {
        assert!(iova.is_aligned(8));
        let mut memory = self.0.lock();
        let start = iova.0 as usize;
        let place = start.checked_add(8).and_then(|end| memory.get_mut(start..end));
        place.is_some_and(|place| {
            place.copy_from_slice(&value.to_le_bytes());
            true
        })
    }

    fn covers(&self, iova: Iova, len: u64) -> bool {
        iova.0.checked_add(len).is_some_and(|end| end <= self.0.lock().len() as u64)
    }

    fn limit(&self) -> Iova {
        Iova(WINDOWS)
    }
}

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).unwrap()
}

/// The guest's side of a vdev: accesses as its driver makes them, and the vectors it got.
struct Guest {
    vdev: Box<dyn VdevModel>,
    raised: Vec<u16>,
}

impl Guest {
    fn new(parent: &TestParent, vm: &str, entries: Option<u16>, tag: u32) -> Self {
        let mut vdev = create(parent, vm, entries).unwrap();
        vdev.attach(attached(tag, &GuestBytes::new(), None)).unwrap();
        let mut guest = Self { vdev, raised: Vec::new() };
        guest.set_bus_master(true);
        guest
    }

    fn set_bus_master(&mut self, on: bool) {
        let raised = &mut self.raised;
        self.vdev.set_bus_master(on, &mut |vector| raised.push(vector));
    }

    fn r32(&mut self, offset: u64) -> u32 {
        self.vdev.read(0, offset, 4) as u32
    }

    fn r64(&mut self, offset: u64) -> u64 {
        self.vdev.read(0, offset, 8)
    }

    fn w32(&mut self, offset: u64, value: u32) {
        let raised = &mut self.raised;
        self.vdev.write(0, offset, 4, value.into(), &mut |vector| raised.push(vector));
    }

    fn w64(&mut self, offset: u64, value: u64) {
        let raised = &mut self.raised;
        self.vdev.write(0, offset, 8, value, &mut |vector| raised.push(vector));
    }

    /// Configures the queue as a driver does, before it is enabled.
    fn configure(&mut self) {
        for (at, value) in CONFIGURATION {
            self.w32(at, value);
        }
    }

    /// Enables the queue as a driver does, interrupts on errors and halts included.
    fn start(&mut self) {
        self.w32(0xa0, 5 << 20);
        self.w32(0x88, 3);
        self.configure();
        self.w32(0xa0, 1 << 20);
        self.w32(0xa0, 6 << 20);
        assert_eq!(self.r32(0xa8), 0);
    }

    fn event(&mut self) {
        let raised = &mut self.raised;
        self.vdev.device_event(&mut |vector| raised.push(vector));
    }
}
