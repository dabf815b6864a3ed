// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine of two pCPUs for tests, in which the test says who goes on when.
//!
//! **Principle.** Each pCPU is a thread, and one of them runs at a time. At every call of [`Hardware`] that others can
//! come between ([`Sim::step`]) the next byte of the schedule says which one goes on, or has a device interrupt come.
//! When all sleep, the clock goes on to the next timer; when there is none, the machine is at rest, and
//! [`Rig::check`] says what must be true then.
//!
//! [`Hardware`]: crate::hardware::Hardware

mod device;
mod hardware;
mod line;
mod outside;
mod posted;
mod sim;

use std::collections::BTreeSet;
use std::sync::Arc;

use pasidon_kernel::base::addr::{GuestPhys, HostPhys, LARGE_PAGE_SIZE};
use pasidon_kernel::config::parse;
use pasidon_kernel::dma::address_space::AddressSpace;
use pasidon_kernel::dma::pasid::NamespaceScope;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::memory::ram::RamRange;
use pasidon_kernel::system::{ParentOptions, System, SystemParts};
use pasidon_kernel::vdev::{Vdev, VdevSpec};
use pasidon_kernel::vm::sched::{PcpuId, SLICE_NS, Scheduler};
use pasidon_kernel::vm::{BootSpec, Vm, VmHost, VmSpec, VmState};

use self::device::{FakeHost, FakeParent};
use self::outside::Desk;
use self::sim::Sim;
use crate::guest_files::Files;
use crate::notes::Notes;
use crate::run::{World, tests::Loop};
use crate::vms::Vms;

pub use self::hardware::Fake;
pub use self::outside::MASKS;
pub use self::sim::{PCPUS, settle};

/// VMs of the machine: `vm0`, `vm1`, ….
pub const VMS: usize = 4;
/// What they boot.
const KERNEL: &str = "none";

std::thread_local! {
    /// RAM for the guests of the machines that this thread makes, one after the other.
    static RAM: &'static [u8] = Vec::leak(vec![0; (VMS + 2) * LARGE_PAGE_SIZE as usize]);
}

/// The machine.
pub struct Rig {
    pub sim: Arc<Sim>,
    pub world: &'static World<Fake>,
    frames: &'static Frames,
    host: &'static FakeHost,
    desk: &'static Desk,
}

/// What the test decides.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Who goes on, and when a device raises an interrupt: see [`Sim::step`].
    pub schedule: Vec<u8>,
    /// What the monitor is told to do: see [`Desk`].
    pub commands: Vec<u8>,
    /// What each guest does: see [`Fake`].
    pub guests: Vec<Vec<u8>>,
    /// The first pCPU's other work never ends.
    pub busy: bool,
    /// How many VMs run on each pCPU at most: it says how late an interrupt may come.
    pub share: u64,
    /// Interrupts of vdevs are posted to their guests.
    pub posts: bool,
}

impl Rig {
    /// A machine with [`VMS`] VMs that have a vdev each, none of them started.
    pub fn new(script: Script) -> Self {
        line::watch_errors();
        let sim = Arc::new(Sim::new(script));
        settle(&sim, 0);
        let start = RAM.with(|ram| (ram.as_ptr() as u64).next_multiple_of(LARGE_PAGE_SIZE));
        let bytes = VMS as u64 * LARGE_PAGE_SIZE;
        let frames: &'static Frames = Box::leak(Box::new(Frames::new([(HostPhys(start), bytes)])));
        let host: &'static FakeHost = Box::leak(Box::new(FakeHost::new(sim.clone())));
        let parent: &'static FakeParent = Box::leak(Box::new(FakeParent(sim.clone())));
        let mut system = System::new(SystemParts {
            host,
            iommu: None,
            msi: None,
            frames,
            cpus: (0..PCPUS).collect(),
            vectors: device::VECTORS.start..device::VECTORS.end + VMS as u32,
            last_pasid: None,
            pasid_scope: NamespaceScope::Host,
        })
        .expect("a system");
        let options = ParentOptions { iommu: false, unsafe_portals: false };
        system.add_parent(parent, options).expect("a parent");
        for number in 0..VMS {
            system.define_vm(spec(number)).expect("a VM");
        }
        let system: &'static System = Box::leak(Box::new(system));
        let desk: &'static Desk = Box::leak(Box::new(Desk::new(sim.clone(), system, host)));
        let scheduler = Scheduler::new(PCPUS as usize, SLICE_NS);
        let vms: &'static Vms<Fake> = Box::leak(Box::new(Vms::new(frames, scheduler, desk, system, files())));
        let notes: &'static Notes = Box::leak(Box::default());
        let world: &'static World<Fake> = Box::leak(Box::new(World { system, vms, notes }));
        host.meet(world);
        desk.meet(world);
        sim.meet(world, desk);
        Self { sim, world, frames, host, desk }
    }

    /// Lets the pCPUs run until the machine is at rest; false where it is not after `limit` steps.
    pub fn run(&self, limit: usize) -> bool {
        self.sim.begin(limit);
        std::thread::scope(|scope| {
            for pcpu in 0..PCPUS {
                let (sim, world) = (self.sim.clone(), self.world);
                scope.spawn(move || {
                    settle(&sim, pcpu);
                    sim.start(pcpu);
                    let _ends = sim.ends_on_panic();
                    let mut local = Loop::new(world);
                    while !sim.is_over() {
                        local.round(world);
                    }
                });
            }
        });
        self.sim.is_at_rest()
    }

    /// What is not as it must be while nothing happens any more.
    pub fn check(&self) -> Vec<String> {
        let mut wrong = self.sim.violations();
        wrong.extend(self.sim.lock().line_wrong());
        wrong.extend(self.desk.forgotten());
        for pcpu in 0..PCPUS {
            if self.world.vms.scheduler.is_lost(PcpuId(pcpu)) {
                wrong.push(format!("pCPU {pcpu} is taken for lost"));
            }
        }
        for vm in self.world.system.vms() {
            if vm.state().is_alive() && vm.has_request() {
                wrong.push(format!("{} asked for its end, and nobody came", vm.name()));
            }
            match vm.state() {
                VmState::Running => wrong.extend(self.sim.owed_to(vm.name(), &self.pending(&vm))),
                VmState::Paused | VmState::Created | VmState::Stopped | VmState::Crashed => {}
                other => wrong.push(format!("{} is {} for ever", vm.name(), other.name())),
            }
        }
        wrong
    }

    /// Numbers of a VM's vdevs whose interrupts the host masks and keeps.
    fn pending(&self, vm: &Vm) -> BTreeSet<u16> {
        let kept = |vdev: &Arc<Vdev>| {
            let vectors = self.world.vms.vectors(vm, vdev.id());
            vectors.iter().any(|info| info.masked && info.pending)
        };
        let vdevs = vm.vdevs();
        vdevs.iter().filter(|vdev| kept(vdev)).map(|vdev| vdev.model().identity().device).collect()
    }

    /// Ends what is left, and says what does not come back.
    pub fn end(&self) -> Vec<String> {
        self.sim.begin(usize::MAX);
        settle(&self.sim, 0);
        let vms = self.world.vms;
        let mut wrong = Vec::new();
        for vm in self.world.system.vms() {
            if vm.state().is_alive() {
                let end = pasidon_kernel::vm::VmEnd::Stopped("the test is over".to_string());
                wrong.extend(
                    self.world.system.end_vm(&vms, &vm, &end).err().map(|refusal| refusal.to_string()),
                );
            }
        }
        let counts = self.frames.counts();
        if counts.free != counts.total {
            wrong.push(format!("{} of {} bytes are free", counts.free, counts.total));
        }
        wrong.extend(self.host.taken().map(|vector| format!("{vector:?} was not given back")));
        wrong.extend(self.sim.violations());
        wrong
    }
}

/// What the VMs boot: files with nothing in them.
fn files() -> Files {
    let text = format!("[[vm]]\nname = \"vm\"\nmemory = \"16M\"\nkernel = \"{KERNEL}\"\n");
    let vms = parse(text.as_bytes()).expect("a configuration").config.vms;
    Files::read(vms.iter(), &mut |_, _| Ok(&[]))
}

fn spec(number: usize) -> VmSpec {
    VmSpec {
        name: format!("vm{number}"),
        ram: vec![RamRange { start: GuestPhys(0), len: LARGE_PAGE_SIZE }],
        vcpus: 1,
        pasid_quota: 0,
        restart_on_reset: true,
        boots: BootSpec { kernel: KERNEL.to_string(), ..BootSpec::default() },
        slots: 8,
        vdevs: vec![vdev()],
    }
}

/// A vdev as the configuration asks for it.
fn vdev() -> VdevSpec {
    VdevSpec {
        parent: device::PARENT.to_string(),
        type_name: device::TYPE.to_string(),
        entries: None,
        weight: None,
        space: AddressSpace::Vm,
    }
}
