// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole lives of VMs: the kernel's system over the real VT-d and DSA drivers, and those over the models
//! of a remapping unit and a DSA. Only the processor is missing.
//!
//! What is asked is always what the hardware would do: where a DMA with a tag lands, and where an
//! interrupt message arrives.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pasidon_kernel::base::addr::{GuestPhys, HostPhys, LARGE_PAGE_SIZE, Requester};
use pasidon_kernel::base::id::{VdevId, VmId};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use pasidon_kernel::dev::pci::{PciBus, PciWindow, Slot};
use pasidon_kernel::dma::address_space::AddressSpace;
use pasidon_kernel::dma::iommu::Iommu;
use pasidon_kernel::dma::pasid::NamespaceScope;
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::irq::msi::MsiController;
use pasidon_kernel::irq::vectors::{VectorControl, Vectors};
use pasidon_kernel::irq::{HostVector, Route};
use pasidon_kernel::memory::frames::{Frames, GuestGone};
use pasidon_kernel::memory::ram::{GuestRam, RamRange};
use pasidon_kernel::monitor::info::{PcpuInfo, VectorInfo};
use pasidon_kernel::system::{Dismissal, ParentOptions, System, SystemParts};
use pasidon_kernel::vdev::parent::{Parent, VdevRequest};
use pasidon_kernel::vdev::{PortalsUnmapped, Vdev, VdevSpec};
use pasidon_kernel::vm::exit::{Action, MsiMessage};
use pasidon_kernel::vm::{BootSpec, VcpusStopped, Vm, VmEnd, VmHost, VmSpec, VmState};

use crate::accel::dsa::tests::model::Model;
use crate::accel::dsa::{DsaParent, Options, Partition, Sending, Setup, TYPE_DWQ};
use crate::iommu::vtd::Vtd;
use crate::iommu::vtd::dmar::{Dmar, Drhd};
use crate::iommu::vtd::model::{CAP, CAP_FOUR_RECORDS, ECAP, ModelRegisters, Raised, UnitModel};
use crate::memory::DmaMemory;
use crate::pci::Function;
use crate::testing::{ModelMemory, Watcher};

mod creation;

const DEVICE: Requester = Requester::new(0, 0, 4, 0);
const CPU: u32 = 5;
/// Guest memory; far from the pages of the tables.
const MEMORY: u64 = 1 << 36;
/// Command registers of the first slot's port and of the function in it, and their memory and bus-master bits.
const COMMANDS: [u64; 2] = [1 << 15 | 4, 1 << 20 | 4];
const MEMORY_AND_MASTER: u64 = 0b110;
/// That port, and registers of it: MSI's, and the slot's with button and its interrupt enabled.
const PORT: u64 = 1 << 15;
const MSI_CONTROL: u64 = 0x82;
const SLOT_CONTROL: u64 = 0x58;
const LISTENING: u64 = 0x21;
const POWER_OFF: u64 = 1 << 10;
/// Reset WQ.
const RESET_WQ: u32 = 10;
const PCI_WINDOW: PciWindow = PciWindow::prefetchable(0x20_0000_0000, 1 << 30);

/// A clock that moves on when it is looked at, and vectors.
#[derive(Default)]
struct TestHost {
    now: AtomicU64,
    vectors: Mutex<Vec<u32>>,
    /// No message raises an interrupt without an interrupt remapper.
    mute: AtomicBool,
}

impl Host for TestHost {
    fn now_ns(&self) -> u64 {
        self.now.fetch_add(1_000_000, Ordering::Relaxed)
    }

    fn wake_first(&self) {}

    fn allocate_vector(&self, _vm: Option<VmId>) -> Option<HostVector> {
        let mut taken = self.vectors.lock().unwrap();
        let vector = (0x40..0x60).find(|vector| !taken.contains(vector))?;
        taken.push(vector);
        Some(HostVector { vector, cpu: CPU })
    }

    fn unremapped_message(&self, vector: HostVector) -> Option<MsiMessage> {
        let message = MsiMessage { address: 0xfee0_0000 | u64::from(vector.cpu) << 12, data: vector.vector };
        (!self.mute.load(Ordering::Relaxed)).then_some(message)
    }

    fn free_vector(&self, vector: HostVector) {
        self.vectors.lock().unwrap().retain(|taken| *taken != vector.vector);
    }
}

/// The guest's bus of one VM, and the portals that it mapped: guest page to host page.
struct Board {
    bus: PciBus,
    slots: BTreeMap<VdevId, Slot>,
    portals: BTreeMap<u64, u64>,
    messages: Vec<MsiMessage>,
}

impl Board {
    fn with<R>(&mut self, call: impl FnOnce(&mut PciBus, &mut dyn FnMut(Action)) -> R) -> R {
        let (portals, messages) = (&mut self.portals, &mut self.messages);
        call(&mut self.bus, &mut |action| match action {
            Action::MapPortal { guest, host, .. } => drop(portals.insert(guest.0, host.0)),
            Action::UnmapPortal { guest, .. } => drop(portals.remove(&guest.0)),
            Action::Message(message) => messages.push(message),
            Action::Attend => {}
            other => panic!("{other:?} from a PCI bus"),
        })
    }
}

#[derive(Default)]
struct Boards(Mutex<BTreeMap<VmId, Board>>);

impl Boards {
    fn on<R>(&self, vm: &Vm, call: impl FnOnce(&mut Board) -> R) -> R {
        call(self.0.lock().unwrap().get_mut(&vm.id()).expect("the VM is built"))
    }
}

impl Boards {
    fn set_portals(&self, vm: &Vm, vdev: VdevId, withhold: bool) {
        self.on(vm, |board| {
            let slot = board.slots[&vdev];
            board.with(|bus, actions| bus.withhold_portals(slot, withhold, actions));
        });
    }
}

impl VmHost for Boards {
    fn push_input(&self, _vm: &Vm, _received: Received) -> bool {
        true
    }

    fn portal_traps(&self, vm: &Vm, vdev: VdevId) -> u64 {
        self.on(vm, |board| board.bus.portal_traps(board.slots[&vdev]))
    }

    fn control_vectors(
        &self,
        vm: &Vm,
        vdev: VdevId,
        which: Vectors,
        control: VectorControl,
    ) -> Result<(), Refusal> {
        self.on(vm, |board| {
            let slot = board.slots[&vdev];
            board.with(|bus, actions| bus.control_vectors(slot, which, control, actions))
        })
    }

    fn vectors(&self, vm: &Vm, vdev: VdevId) -> Vec<VectorInfo> {
        self.on(vm, |board| board.bus.vectors(board.slots[&vdev]))
    }

    fn pcpus(&self) -> Vec<PcpuInfo> {
        Vec::new()
    }

    fn scrub(&self, _start: HostPhys, _len: u64) {}

    fn build(&self, vm: &Vm, _ram: &Arc<GuestRam>) -> Result<(), Refusal> {
        let board = Board {
            bus: PciBus::new(&[PCI_WINDOW], 1),
            slots: BTreeMap::new(),
            portals: BTreeMap::new(),
            messages: Vec::new(),
        };
        self.0.lock().unwrap().insert(vm.id(), board);
        Ok(())
    }

    fn plug(&self, vm: &Vm, vdev: &Vdev) -> Result<(), Refusal> {
        self.on(vm, |board| {
            let slot = board.with(|bus, actions| bus.add(vdev.guest_side(), actions))?;
            board.slots.insert(vdev.id(), slot);
            Ok(())
        })
    }

    fn ask_to_let_go(&self, vm: &Vm, vdev: VdevId) -> Result<bool, Refusal> {
        let asked = self.on(vm, |board| {
            let slot = board.slots.get(&vdev).copied()?;
            Some(board.with(|bus, actions| bus.ask(slot, actions)))
        });
        Ok(asked.unwrap_or(false))
    }

    fn has_let_go(&self, vm: &Vm, vdev: VdevId) -> bool {
        self.on(vm, |board| board.slots.get(&vdev).is_some_and(|slot| board.bus.has_let_go(*slot)))
    }

    fn unplug(&self, vm: &Vm, vdev: VdevId) -> Result<PortalsUnmapped, Refusal> {
        self.on(vm, |board| {
            if let Some(slot) = board.slots.remove(&vdev) {
                board.with(|bus, actions| drop(bus.end(slot, actions)));
            }
        });
        Ok(PortalsUnmapped::confirmed_by_arch(vdev))
    }

    fn withhold_portals(&self, vm: &Vm, vdev: VdevId) -> Result<PortalsUnmapped, Refusal> {
        self.set_portals(vm, vdev, true);
        Ok(PortalsUnmapped::confirmed_by_arch(vdev))
    }

    fn return_portals(&self, vm: &Vm, vdev: VdevId) {
        self.set_portals(vm, vdev, false);
    }

    fn device_event(&self, vm: &Vm, vdev: VdevId) -> bool {
        self.on(vm, |board| {
            let mut raised = Vec::new();
            let slot = board.slots[&vdev];
            if let Some(model) = board.bus.model(slot) {
                model.device_event(&mut |vector| raised.push(vector));
            }
            for vector in raised {
                board.with(|bus, actions| bus.interrupt(slot, vector, actions));
            }
        });
        true
    }

    fn run(&self, _vm: &Vm) -> Result<(), Refusal> {
        Ok(())
    }

    fn pause(&self, _vm: &Vm) -> Result<(), Refusal> {
        Ok(())
    }

    fn stop(&self, vm: &Vm) -> Result<VcpusStopped, Refusal> {
        Ok(VcpusStopped::confirmed_by_arch(vm.id()))
    }

    fn tear_down(&self, vm: &Vm, _stopped: VcpusStopped) -> Result<GuestGone, Refusal> {
        self.0.lock().unwrap().remove(&vm.id());
        Ok(GuestGone::confirmed_by_arch())
    }
}

struct Rig {
    system: System,
    boards: Boards,
    unit: Arc<UnitModel>,
    tables: Arc<ModelMemory>,
    device: Arc<Model>,
    host: &'static TestHost,
    parent: &'static dyn Parent,
    /// Pages that the accelerator's driver has.
    pages: Arc<ModelMemory>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Model::new(0x11fb), Sending::Tagged(None), 0)
    }

    /// `shared`: entries of the queue that is shared.
    fn with(device: Arc<Model>, sending: Sending, shared: u16) -> Self {
        let translated = matches!(sending, Sending::Tagged(_));
        let host: &'static TestHost = Box::leak(Box::default());
        let tables = Arc::new(ModelMemory::new());
        let unit = UnitModel::new(&tables, CAP | CAP_FOUR_RECORDS, ECAP);
        let dmar = Dmar {
            host_address_bits: 46,
            interrupt_remapping: true,
            units: vec![Drhd {
                registers: HostPhys(0xfed9_0000),
                registers_len: 0x1000,
                segment: 0,
                include_all: true,
                scopes: Vec::new(),
            }],
            ..Dmar::default()
        };
        let registers = Arc::clone(&unit);
        let vtd = Vtd::new(&dmar, Arc::clone(&tables), host, true, &|_| None, &mut |_, _| {
            Ok(ModelRegisters(Arc::clone(&registers)))
        })
        .unwrap();
        vtd.take_over().unwrap();
        let vtd: &'static Vtd<_, _> = Box::leak(Box::new(vtd));
        let frames = Frames::new([(HostPhys(MEMORY), 64 * LARGE_PAGE_SIZE)]);
        let mut system = System::new(SystemParts {
            host,
            iommu: translated.then_some(vtd as &dyn Iommu),
            msi: translated.then_some(vtd as &dyn MsiController),
            frames: Box::leak(Box::new(frames)),
            cpus: vec![CPU],
            vectors: 0x40..0x60,
            last_pasid: None,
            pasid_scope: NamespaceScope::Host,
        })
        .unwrap();
        let pages = Arc::new(ModelMemory::new());
        let parent = DsaParent::new(Setup {
            name: "dsa0".into(),
            function: Function::new(Arc::clone(&device.config), DEVICE).unwrap(),
            registers: Arc::clone(&device),
            host: Arc::new(TestHost::default()),
            partition: Partition { queues: Vec::new(), shared },
            sending,
            memory: Arc::clone(&pages) as Arc<dyn DmaMemory>,
            options: Options::default(),
        })
        .unwrap();
        let options = ParentOptions { iommu: translated, unsafe_portals: false };
        let parent: &'static dyn Parent = &**Box::leak(Box::new(parent));
        system.add_parent(parent, options).unwrap();
        Self { system, boards: Boards::default(), unit, tables, device, host, parent, pages }
    }

    /// A running VM with 8 MiB and one queue, whose driver has turned memory and bus mastering on.
    fn vm(&self, name: &str) -> Arc<Vm> {
        let queue = VdevSpec {
            parent: "dsa0".to_string(),
            type_name: TYPE_DWQ.to_string(),
            entries: None,
            weight: None,
            space: AddressSpace::Vm,
        };
        self.vm_with(name, vec![queue])
    }

    /// The same without a vdev.
    fn bare_vm(&self, name: &str) -> Arc<Vm> {
        self.vm_with(name, Vec::new())
    }

    fn vm_with(&self, name: &str, vdevs: Vec<VdevSpec>) -> Arc<Vm> {
        let vm = self
            .system
            .define_vm(VmSpec {
                name: name.to_string(),
                ram: vec![RamRange { start: GuestPhys(0), len: 4 * LARGE_PAGE_SIZE }],
                vcpus: 1,
                pasid_quota: 1,
                restart_on_reset: true,
                boots: BootSpec::default(),
                slots: 8,
                vdevs,
            })
            .unwrap();
        self.start(&vm);
        vm
    }

    fn destroy(&self, vm: &Vm, vdev: VdevId) {
        let report = self.system.destroy_vdev(&self.boards, vm, vdev).unwrap();
        assert_eq!(report.retired, []);
    }

    fn start(&self, vm: &Vm) {
        self.system.start_vm(&self.boards, vm).unwrap();
        self.boards.on(vm, |board| {
            for command in COMMANDS {
                board.with(|bus, actions| bus.ecam_write(command, 2, MEMORY_AND_MASTER, actions));
            }
        });
    }

    /// Where a DMA with the VM's tag lands, as an offset in that VM's memory; `Err` where it faults.
    fn dma(&self, vm: &Vm, address: u64) -> Result<u64, u8> {
        let pasid = vm.vdevs()[0].pasid().unwrap().value();
        let landed = self.unit.dma(DEVICE.rid, Some(pasid), address, true)?;
        let ram = vm.ram().unwrap();
        let mine = ram.segments().iter().find_map(|segment| {
            let offset = landed.checked_sub(segment.host.0)?;
            (offset < segment.len).then_some(segment.guest.0 + offset)
        });
        Ok(mine.expect("the DMA landed in the VM's own memory"))
    }

    /// Who gets the interrupt of an MSI-X entry of the device.
    fn interrupt(&self, entry: u16) -> Option<Route> {
        let [low, high, data, control] = self.device.state.lock().msix[usize::from(entry)];
        assert_eq!(control & 1, 0, "masked");
        let address = u64::from(high) << 32 | u64::from(low);
        let Ok(Raised::Vector { destination: cpu, vector }) = self.unit.message(DEVICE.rid, address, data)
        else {
            return None;
        };
        self.system.routes().deliver(HostVector { vector, cpu })
    }

    fn end(&self, vm: &Vm) -> usize {
        let end = VmEnd::Crashed("killed".to_string());
        self.system.end_vm(&self.boards, vm, &end).unwrap().retired.len()
    }
}

#[test]
fn the_same_addresses_in_two_guests_are_different_memory() {
    let machine = Rig::new();
    let (alpha, beta) = (machine.vm("alpha"), machine.vm("beta"));
    for address in [0, 0x1234, 4 * LARGE_PAGE_SIZE - 1] {
        assert_eq!(machine.dma(&alpha, address), Ok(address));
        assert_eq!(machine.dma(&beta, address), Ok(address));
    }
    assert!(machine.dma(&alpha, 4 * LARGE_PAGE_SIZE).is_err(), "beyond its memory");
    assert!(machine.unit.dma(DEVICE.rid, None, 0, false).is_err(), "untagged");
    for vm in [&alpha, &beta] {
        let vdev = vm.vdevs().remove(0);
        for binding in vdev.model().interrupts() {
            let route = Route::Vdev { vm: vm.id(), vdev: vdev.id(), vector: binding.virtual_vector };
            assert_eq!(machine.interrupt(binding.physical), Some(route));
        }
        let portals = machine.boards.on(vm, |board| board.portals.clone());
        let own: Vec<u64> = vdev.model().portals().iter().map(|portal| portal.host.0).collect();
        assert_eq!(portals.into_values().collect::<Vec<_>>(), own);
    }
    assert_eq!(machine.interrupt(0), Some(Route::ParentEvent(0)));
}

#[test]
fn twenty_lives_leave_everything_as_it_was() {
    let machine = Rig::new();
    let beta = machine.vm("beta");
    let alpha = machine.vm("alpha");
    machine.end(&alpha);
    let books = |machine: &Rig| {
        let info = machine.system.info();
        (
            machine.tables.used(),
            machine.host.vectors.lock().unwrap().len(),
            (info.memory, info.pasids, info.vdevs, info.retired),
            machine.system.parent_infos()[0].types.clone(),
        )
    };
    let before = books(&machine);
    for _ in 0..20 {
        machine.start(&alpha);
        assert_eq!(machine.dma(&alpha, 0x5000), Ok(0x5000));
        let pasid = alpha.vdevs()[0].pasid().unwrap();
        let ram = alpha.ram().unwrap().segments()[0];
        assert_eq!(machine.end(&alpha), 0);
        // The unit would have to remember it for this to work.
        assert!(machine.unit.dma(DEVICE.rid, Some(pasid.value()), 0x5000, true).is_err());
        machine.unit.assert_forgotten(ram.host.0, ram.len);
        assert_eq!(machine.dma(&beta, 0x5000), Ok(0x5000));
        assert_eq!(books(&machine), before);
    }
    assert_eq!((alpha.state(), beta.state()), (VmState::Crashed, VmState::Running));
}

#[test]
fn a_queue_that_hangs_keeps_its_memory_until_the_device_is_reset() {
    let machine = Rig::new();
    let (alpha, beta) = (machine.vm("alpha"), machine.vm("beta"));
    let total = machine.system.info().memory.total;
    let vdev = alpha.vdevs().remove(0);
    let held = alpha.ram().unwrap().segments()[0];
    machine.device.state.lock().hang = vec![RESET_WQ];
    assert_eq!(machine.end(&alpha), 3, "PASID, address space, memory");
    // What the device still sends reaches the memory that nobody else gets.
    let landed = machine.unit.dma(DEVICE.rid, Some(vdev.pasid().unwrap().value()), 0, true);
    assert_eq!(landed, Ok(held.host.0));
    assert_eq!(machine.dma(&beta, 0), Ok(0));
    let gamma = machine.vm("gamma");
    assert_ne!(gamma.vdevs()[0].pasid(), vdev.pasid());
    assert!(gamma.ram().unwrap().segments().iter().all(|segment| segment.host != held.host));
    assert_eq!(machine.end(&gamma), 3, "the device takes no command any more");

    let report = machine.system.recover_parent(&machine.boards, "dsa0").unwrap();
    assert_eq!((report.reclaimed.len(), report.left.len()), (6, 0));
    machine.unit.assert_forgotten(held.host.0, held.len);
    machine.end(&beta);
    let info = machine.system.info();
    assert_eq!((info.memory.free, info.pasids.leased, info.pasids.retired), (total, 0, 0));
    assert_eq!(machine.system.parent_infos()[0].types[0].available, 8);
}

/// Asked by the button of its slot, the guest switches that off: queue, PASID and interrupts are free then, not before.
#[test]
fn a_guest_that_lets_go_of_a_vdev_gives_everything_back() {
    let machine = Rig::new();
    let alpha = machine.vm("alpha");
    let vdev = alpha.vdevs().remove(0);
    let write = |at: u64, value: u64| {
        machine.boards.on(&alpha, |board| {
            board.with(|bus, actions| bus.ecam_write(PORT + at, 2, value, actions));
        });
    };
    write(MSI_CONTROL, 1);
    write(SLOT_CONTROL, LISTENING);
    assert_eq!(machine.system.dismiss_vdev(&machine.boards, &alpha, vdev.id()), Ok(Dismissal::Asked));
    assert_eq!(machine.boards.on(&alpha, |board| board.messages.len()), 1);
    assert_eq!(machine.system.serve_departures(&machine.boards), []);
    assert_eq!(machine.dma(&alpha, 0x5000), Ok(0x5000), "it works as ever");
    write(SLOT_CONTROL, LISTENING | POWER_OFF);
    let gone = machine.system.serve_departures(&machine.boards);
    assert!(gone.len() == 1 && gone[0].let_go, "{gone:?}");
    let pasid = vdev.pasid().unwrap().value();
    assert!(machine.unit.dma(DEVICE.rid, Some(pasid), 0x5000, true).is_err());
    let info = machine.system.info();
    assert_eq!((info.vdevs, info.pasids.leased, info.retired.len()), (0, 0, 0));
    assert_eq!(machine.system.parent_infos()[0].types[0].available, 8);
    machine.boards.on(&alpha, |board| {
        assert!(board.portals.is_empty());
        assert_eq!(board.bus.ecam_read(COMMANDS[1] & !0xfff, 4), 0xffff_ffff, "the slot is empty");
    });
}

/// What the device keeps for an interrupt that is held back belongs to its owner only.
#[test]
fn an_interrupt_that_is_held_back_does_not_reach_the_next_owner() {
    let machine = Rig::new();
    let alpha = machine.vm("alpha");
    let vdev = alpha.vdevs().remove(0);
    let entry = vdev.model().interrupts()[0].physical;
    while !alpha.came_away(vdev.id(), 7, 0) {}
    machine.device.state.lock().raise(entry.into());
    assert!(machine.device.state.lock().sent.is_empty(), "held back");
    drop(vdev);
    assert_eq!(machine.end(&alpha), 0);
    let gamma = machine.vm("gamma");
    assert_eq!(gamma.vdevs()[0].model().interrupts()[0].physical, entry);
    let sent = machine.device.state.lock().sent.clone();
    assert_eq!(sent.len(), 1, "at the end of its owner");
    for (address, data) in sent {
        if let Ok(Raised::Vector { destination: cpu, vector }) =
            machine.unit.message(DEVICE.rid, address, data)
        {
            let route = machine.system.routes().deliver(HostVector { vector, cpu });
            assert!(!matches!(route, Some(Route::Vdev { vm, .. }) if vm == gamma.id()), "{route:?}");
        }
    }
}
