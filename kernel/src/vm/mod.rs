// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs: definition, state, and what each life of one holds.
//!
//! **Principle.** The definition ([`VmSpec`]) stays until the VM is removed; memory, address spaces and vdevs belong to one life,
//! from start to stop. One operation at a time changes a VM, and none waits for another: a second one is
//! refused. A vCPU that meets the end of its VM therefore never waits for a processor that waits for it;
//! it leaves a request ([`Vm::request`]) that the main loop carries out.
//!
//! **Invariant.** The state changes along the arrows of [`VmState::may_become`] only.

pub mod exit;
pub mod sched;
pub mod stats;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use crate::base::addr::HostPhys;
use crate::base::id::{VdevId, VmId};
use crate::base::refusal::Refusal;
use crate::dev::Received;
use crate::dma::ioas::IoAddressSpace;
use crate::dma::pasid::PasidQuota;
use crate::irq::RouteTable;
use crate::irq::vectors::{VectorControl, Vectors};
use crate::memory::frames::GuestGone;
use crate::memory::ram::{GuestRam, RamRange};
use crate::monitor::info::{PcpuInfo, VectorInfo, VmInfo};
use crate::vdev::gate::Came;
use crate::vdev::{PortalsUnmapped, Vdev, VdevSpec};
use crate::vm::stats::VmStats;

/// A VM as it is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmSpec {
    /// Its name; no other VM has it.
    pub name: String,
    /// Where its RAM lies, in ascending ranges of whole 2 MiB pages.
    pub ram: Vec<RamRange>,
    /// Number of vCPUs.
    pub vcpus: u16,
    /// The most PASIDs it may have.
    pub pasid_quota: u32,
    /// Whether a reset by the guest starts it again; otherwise it stops.
    pub restart_on_reset: bool,
    /// What it boots.
    pub boots: BootSpec,
    /// Slots of its PCI bus.
    pub slots: u8,
    /// Vdevs it is started with.
    pub vdevs: Vec<VdevSpec>,
}

/// What a VM boots, of the files that were loaded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BootSpec {
    /// Path of its kernel on the ESP.
    pub kernel: String,
    /// Path of its initial RAM disk.
    pub initrd: Option<String>,
    /// Its kernel's command line.
    pub cmdline: String,
}

/// Where a VM is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmState {
    /// Defined, never started.
    Created,
    /// Being built.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
    /// Being taken apart.
    Stopping,
    /// Over, in order.
    Stopped,
    /// Over, by its own fault.
    Crashed,
    /// Ended, but without proof that none of its vCPUs runs: what it has stays its own until there is one.
    Held,
    /// Its definition is gone, and nothing follows.
    Removed,
}

impl VmState {
    /// Whether this state may be followed by that one.
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Created | Self::Stopped | Self::Crashed, Self::Starting | Self::Removed)
                | (Self::Starting, Self::Running | Self::Stopping)
                | (Self::Running, Self::Paused | Self::Stopping)
                | (Self::Paused, Self::Running | Self::Stopping)
                | (Self::Stopping, Self::Stopped | Self::Crashed | Self::Held)
                | (Self::Held, Self::Stopping)
        )
    }

    /// The word for people and for `--json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
            Self::Held => "held",
            Self::Removed => "removed",
        }
    }

    /// Whether the VM has vCPUs that run or could.
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// Why a VM ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VmEnd {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked to be started again.
    Reset,
    /// It could not go on in a way that a machine takes for a reset; what is known about it. Where it is not to be
    /// started again, it crashed.
    FaultReset(String),
    /// Somebody stopped it; who or why.
    Stopped(String),
    /// It could not go on; why.
    Crashed(String),
}

impl VmEnd {
    pub(crate) fn state(&self) -> VmState {
        match self {
            Self::Crashed(_) | Self::FaultReset(_) => VmState::Crashed,
            _ => VmState::Stopped,
        }
    }

    pub(crate) fn reason(&self) -> String {
        match self {
            Self::PowerOff => "powered off by the guest".to_string(),
            Self::Reset => "reset by the guest".to_string(),
            Self::Stopped(why) | Self::Crashed(why) | Self::FaultReset(why) => why.clone(),
        }
    }

    /// Whether the guest means to be started again.
    pub(crate) fn is_reset(&self) -> bool {
        matches!(self, Self::Reset | Self::FaultReset(_))
    }

    /// The same, for a guest that has had itself started again too often.
    pub(crate) fn without_restart(self, vm: &str) -> Self {
        let why = format!("again and again within seconds; `vm {vm} start` starts it");
        match self {
            Self::FaultReset(what) => Self::Crashed(format!("{what}, {why}")),
            _ => Self::Stopped(format!("it had itself restarted {why}")),
        }
    }
}

/// Proof that no vCPU of a VM runs or will run again in this life. Made by architecture code only.
#[derive(Debug)]
pub struct VcpusStopped(VmId);

impl VcpusStopped {
    /// The architecture's word.
    pub fn confirmed_by_arch(vm: VmId) -> Self {
        Self(vm)
    }

    /// The VM it is about.
    pub fn vm(&self) -> VmId {
        self.0
    }
}

/// What the architecture does for a VM's life. Called by [`crate::system::System`] with one operation per
/// VM at a time ([`VmHost::device_event`] apart), from any processor but never from an interrupt handler, and never while a lock is held
/// that a vCPU's exit path takes.
///
/// [`VmHost::stop`], [`VmHost::unplug`] and [`VmHost::tear_down`] are also called for VMs and vdevs that
/// were not built or plugged completely, or at all; there is then nothing to do but to say so.
pub trait VmHost: Send + Sync {
    /// Fills host memory with zeroes.
    fn scrub(&self, start: HostPhys, len: u64);

    /// Makes the machine around `ram`: stage 2, devices, kernel image loaded, vCPUs that do not run yet.
    /// May keep a reference to `ram` until [`VmHost::tear_down`].
    ///
    /// # Errors
    /// When the image was not loaded or is no kernel for the VM, or there is no memory for tables.
    fn build(&self, vm: &Vm, ram: &Arc<GuestRam>) -> Result<(), Refusal>;

    /// Puts a vdev ([`Vdev::guest_side`]) on the VM's bus. Its interrupts arrive as
    /// [`crate::irq::Route::Vdev`].
    ///
    /// # Errors
    /// When the bus has no room for it.
    fn plug(&self, vm: &Vm, vdev: &Vdev) -> Result<(), Refusal>;

    /// Asks the guest to let go of a plugged vdev, as whoever presses the attention button of its slot does. Whether it
    /// will hear; one that has no driver for slots, or has none at work, does not.
    ///
    /// # Errors
    /// When a pCPU does not come back from the guest.
    fn ask_to_let_go(&self, vm: &Vm, vdev: VdevId) -> Result<bool, Refusal>;

    /// Whether the guest has let go of a vdev after [`VmHost::ask_to_let_go`].
    fn has_let_go(&self, vm: &Vm, vdev: VdevId) -> bool;

    /// Takes a vdev off the bus; from then on no vCPU can reach its portals.
    ///
    /// # Errors
    /// When a pCPU does not come back from the guest, which may then reach them; to be called again.
    fn unplug(&self, vm: &Vm, vdev: VdevId) -> Result<PortalsUnmapped, Refusal>;

    /// Takes a plugged vdev's portals out of stage 2, wherever the guest puts its BARs, until
    /// [`VmHost::return_portals`]. No vCPU can reach them from then on.
    ///
    /// # Errors
    /// As [`VmHost::unplug`].
    fn withhold_portals(&self, vm: &Vm, vdev: VdevId) -> Result<PortalsUnmapped, Refusal>;

    /// The end of [`VmHost::withhold_portals`].
    fn return_portals(&self, vm: &Vm, vdev: VdevId);

    /// Has the model of a plugged vdev take up what its parent found
    /// ([`VdevRegisters::device_event`](crate::vdev::parent::VdevRegisters::device_event)), and delivers what it raises.
    /// May come while an operation on the VM is under way; a vdev that is not plugged any more is left alone.
    /// False, with nothing done, where the VM's devices are in use: nobody waits for them here.
    fn device_event(&self, vm: &Vm, vdev: VdevId) -> bool;

    /// Something typed on the VM's console. False where the guest has no room for it; where there is no guest, it is
    /// taken and goes nowhere.
    fn push_input(&self, vm: &Vm, received: Received) -> bool;

    /// How many exits accesses to a vdev's portals have caused; 0 where there is no such vdev.
    fn portal_traps(&self, vm: &Vm, vdev: VdevId) -> u64;

    /// Masks, unmasks or triggers vectors of a plugged vdev
    /// ([`PciBus::control_vectors`](crate::dev::pci::PciBus::control_vectors)).
    ///
    /// # Errors
    /// As there; when there is no such vdev, or a pCPU does not come back from the guest.
    fn control_vectors(
        &self,
        vm: &Vm,
        vdev: VdevId,
        which: Vectors,
        control: VectorControl,
    ) -> Result<(), Refusal>;

    /// The MSI-X vectors of a vdev; none where there is no such vdev.
    fn vectors(&self, vm: &Vm, vdev: VdevId) -> Vec<VectorInfo>;

    /// Every pCPU, for the monitor.
    fn pcpus(&self) -> Vec<PcpuInfo>;

    /// Lets the vCPUs run, for the first time or after a pause.
    ///
    /// # Errors
    /// When no pCPU can take them.
    fn run(&self, vm: &Vm) -> Result<(), Refusal>;

    /// Makes the vCPUs stand still; none runs from then on.
    ///
    /// # Errors
    /// When a pCPU does not come back from the guest; they are then to be let [`run`](VmHost::run) again.
    fn pause(&self, vm: &Vm) -> Result<(), Refusal>;

    /// Stops the vCPUs for good; none runs from then on.
    ///
    /// # Errors
    /// When a pCPU does not come back from the guest; to be called again.
    fn stop(&self, vm: &Vm) -> Result<VcpusStopped, Refusal>;

    /// Takes the machine apart: stage 2 is gone from every processor, and every reference to the RAM is
    /// dropped.
    ///
    /// # Errors
    /// When a pCPU keeps one; [`VmHost::stop`] comes first again.
    fn tear_down(&self, vm: &Vm, stopped: VcpusStopped) -> Result<GuestGone, Refusal>;
}

/// A life that ends sooner, in nanoseconds, does not count as one.
const SHORT_LIFE_NS: u64 = 10_000_000_000;
/// So many short lives in a row may end by a restart.
const SHORT_LIVES: u32 = 5;

/// How often a guest has had itself started again in a row. A restart scrubs its memory and loads its kernel
/// on the main loop's time, so one that does nothing else would take that from the others.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    began_ns: u64,
    short: u32,
}

impl Restarts {
    /// A life begins; `by_itself` where the guest asked for it.
    pub(crate) fn begin(&mut self, now_ns: u64, by_itself: bool) {
        self.began_ns = now_ns;
        if !by_itself {
            self.short = 0;
        }
    }

    /// Whether the life that ends now may be followed by another at the guest's own wish.
    pub(crate) fn allow(&mut self, now_ns: u64) -> bool {
        let short = now_ns.saturating_sub(self.began_ns) < SHORT_LIFE_NS;
        self.short = if short { self.short.saturating_add(1) } else { 0 };
        self.short <= SHORT_LIVES
    }
}

/// What one life of a VM holds.
#[derive(Debug, Default)]
pub(crate) struct Life {
    pub(crate) ram: Option<Arc<GuestRam>>,
    /// The first is the default one.
    pub(crate) spaces: Vec<Arc<IoAddressSpace>>,
    pub(crate) vdevs: Vec<Arc<Vdev>>,
}

#[derive(Debug)]
struct Status {
    state: VmState,
    reason: Option<String>,
}

/// One VM. Its exit path needs nothing but [`Vm::stats`].
#[derive(Debug)]
pub struct Vm {
    id: VmId,
    spec: VmSpec,
    quota: PasidQuota,
    stats: VmStats,
    status: Mutex<Status>,
    busy: AtomicBool,
    request: Mutex<Option<VmEnd>>,
    /// Interrupts of a vdev are held back.
    held: AtomicBool,
    pub(crate) restarts: Mutex<Restarts>,
    pub(crate) life: Mutex<Life>,
}

/// The right to change a VM. Only one exists at a time.
#[derive(Debug)]
pub(crate) struct Operation<'a>(&'a Vm);

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Vm {
    pub(crate) fn new(id: VmId, spec: VmSpec) -> Self {
        Self {
            id,
            quota: PasidQuota::new(id, spec.pasid_quota),
            spec,
            stats: VmStats::default(),
            status: Mutex::new(Status { state: VmState::Created, reason: None }),
            busy: AtomicBool::new(false),
            request: Mutex::new(None),
            held: AtomicBool::new(false),
            restarts: Mutex::default(),
            life: Mutex::new(Life::default()),
        }
    }

    /// Its number.
    pub fn id(&self) -> VmId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its definition.
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Its counters.
    pub fn stats(&self) -> &VmStats {
        &self.stats
    }

    /// Its PASIDs, by number.
    pub fn quota(&self) -> &PasidQuota {
        &self.quota
    }

    /// Where it is in its life.
    pub fn state(&self) -> VmState {
        self.status.lock().state
    }

    /// Why it is stopped or crashed.
    pub fn reason(&self) -> Option<String> {
        self.status.lock().reason.clone()
    }

    /// Its RAM in this life. Memory that somebody still refers to when the VM ends is held, and free only
    /// after [`crate::system::System::reclaim`]: keep the reference no longer than [`VmHost::tear_down`].
    pub fn ram(&self) -> Option<Arc<GuestRam>> {
        self.life.lock().ram.clone()
    }

    /// Its vdevs in this life.
    pub fn vdevs(&self) -> Vec<Arc<Vdev>> {
        self.life.lock().vdevs.clone()
    }

    /// Its vdev of that number.
    pub fn vdev(&self, id: VdevId) -> Option<Arc<Vdev>> {
        self.life.lock().vdevs.iter().find(|vdev| vdev.id() == id).cloned()
    }

    /// An interrupt of a vdev came in turn `turn` of another VM and took `time_ns`: accounts it, and holds further
    /// ones back where there were too many. Whether they are held back now; [`Vm::open_interrupts`] must follow.
    pub fn came_away(&self, vdev: VdevId, turn: u64, time_ns: u64) -> bool {
        let Some(vdev) = self.vdev(vdev) else { return false };
        let came = vdev.came_away(turn, time_ns);
        self.stats.away.count(time_ns, came == Came::Closed);
        if came == Came::Closed {
            self.held.store(true, Ordering::SeqCst);
        }
        came == Came::Closed
    }

    /// Lets all interrupts of its vdevs come, before it runs. False where some cannot be let through now: to be tried
    /// again, soon.
    pub fn open_interrupts(&self) -> bool {
        if !self.held.load(Ordering::Relaxed) {
            return true;
        }
        self.held.store(false, Ordering::SeqCst);
        let open = self.vdevs().iter().fold(true, |all, vdev| all & vdev.open_interrupts());
        if !open {
            self.held.store(true, Ordering::SeqCst);
        }
        open
    }

    /// Asks for its end, from a vCPU's exit path: waits for nothing. The first reason stands until it is
    /// served by [`crate::system::System::serve_requests`]. The vCPU must not run again.
    pub fn request(&self, end: VmEnd) {
        self.request.lock().get_or_insert(end);
    }

    /// Whether [`Vm::request`] was called, and what it asked for has not been done.
    pub fn has_request(&self) -> bool {
        self.request.lock().is_some()
    }

    pub(crate) fn requested(&self) -> Option<VmEnd> {
        self.request.lock().clone()
    }

    pub(crate) fn clear_request(&self) {
        *self.request.lock() = None;
    }

    /// Starts an operation on the VM, unless one is under way.
    pub(crate) fn begin(&self) -> Result<Operation<'_>, Refusal> {
        self.busy
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .map(|_| Operation(self))
            .map_err(|_| self.refuse("another operation on it is under way", "try again"))
    }

    pub(crate) fn refuse(&self, why: impl Into<String>, remedy: &str) -> Refusal {
        Refusal::new(format!("vm {}", self.name()), why, remedy)
    }

    pub(crate) fn become_state(
        &self,
        _operation: &Operation<'_>,
        next: VmState,
        reason: Option<String>,
    ) -> Result<(), Refusal> {
        let mut status = self.status.lock();
        if !status.state.may_become(next) {
            let state = status.state.name();
            let (why, remedy) = match next {
                _ if status.state == VmState::Removed => (format!("it is {state}"), "define it again"),
                VmState::Removed if status.state == VmState::Held => (
                    format!("it is {state}: its end is not proven"),
                    "`vms` shows why, and when it has ended",
                ),
                VmState::Starting | VmState::Removed => (format!("it is {state}"), "stop it first"),
                VmState::Paused | VmState::Running => {
                    (format!("it is {state}"), "`vms` shows which are running or paused")
                }
                _ => (format!("it is {state}"), "start it first"),
            };
            return Err(self.refuse(why, remedy));
        }
        *status = Status { state: next, reason };
        Ok(())
    }

    /// For the monitor. Waits for no device.
    pub(crate) fn info(&self, routes: &RouteTable, now: u64) -> VmInfo {
        let (vdevs, memory_in_use) = {
            let life = self.life.lock();
            (life.vdevs.clone(), life.ram.as_ref().map_or(0, |ram| ram.bytes()))
        };
        let vdevs: Vec<_> = vdevs.iter().map(|vdev| vdev.info(routes)).collect();
        let status = self.status.lock();
        VmInfo {
            id: self.id.0.into(),
            name: self.name().to_string(),
            state: status.state.name().into(),
            reason: status.reason.clone(),
            vcpus: self.spec.vcpus,
            memory: self.spec.ram.iter().map(|range| range.len).sum(),
            memory_in_use,
            pasid_quota: self.quota.limit(),
            pasids_leased: self.quota.leased(),
            pasids_retired: self.quota.retired(),
            starts: self.stats.starts(),
            run_ns: self.stats.run_ns(now),
            exits: self.stats.all_exits(),
            interrupts: vdevs.iter().flat_map(|vdev| &vdev.interrupts).map(|interrupt| interrupt.came).sum(),
            away: self.stats.away.info(),
            fault_records: self.stats.faults(),
            vdevs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [VmState; 9] = [
        VmState::Created,
        VmState::Starting,
        VmState::Running,
        VmState::Paused,
        VmState::Stopping,
        VmState::Stopped,
        VmState::Crashed,
        VmState::Held,
        VmState::Removed,
    ];

    fn vm() -> Vm {
        Vm::new(
            VmId(0),
            VmSpec {
                name: "alpha".to_string(),
                ram: Vec::new(),
                vcpus: 1,
                pasid_quota: 1,
                restart_on_reset: true,
                boots: BootSpec::default(),
                slots: 8,
                vdevs: Vec::new(),
            },
        )
    }

    #[test]
    fn short_lives_end_at_some_time() {
        let mut restarts = Restarts::default();
        restarts.begin(7, false);
        for _ in 0..SHORT_LIVES {
            assert!(restarts.allow(8));
            restarts.begin(8, true);
        }
        assert!(!restarts.allow(9));
        assert!(restarts.allow(8 + SHORT_LIFE_NS), "a long one makes good");
        assert!(restarts.allow(9 + SHORT_LIFE_NS));
    }

    #[test]
    fn a_life_has_one_beginning_and_one_end() {
        for state in STATES {
            // What holds resources is left through Stopping only, and entered through Starting only.
            if state.is_alive() {
                assert!(state.may_become(VmState::Stopping));
                assert!(!state.may_become(VmState::Stopped) && !state.may_become(VmState::Crashed));
            }
            if state.may_become(VmState::Held) || state == VmState::Held {
                assert!(!state.may_become(VmState::Starting), "what it has is not free");
            }
            assert_eq!(
                state.may_become(VmState::Starting),
                matches!(state, VmState::Created | VmState::Stopped | VmState::Crashed)
            );
            // And only one that could start is removed, which is the end.
            assert_eq!(state.may_become(VmState::Removed), state.may_become(VmState::Starting));
            assert!(!VmState::Removed.may_become(state));
            assert!(!state.may_become(VmState::Created) && !state.may_become(state));
        }
    }

    #[test]
    fn operations_exclude_each_other_without_waiting() {
        let vm = vm();
        let operation = vm.begin().unwrap();
        assert_eq!(
            vm.begin().unwrap_err().to_string(),
            "vm alpha: another operation on it is under way; try again"
        );
        assert_eq!(
            vm.become_state(&operation, VmState::Stopping, None).unwrap_err().to_string(),
            "vm alpha: it is created; start it first"
        );
        drop(operation);
        assert!(vm.begin().is_ok());
    }

    #[test]
    fn the_first_reason_to_end_stands() {
        let vm = vm();
        vm.request(VmEnd::Crashed("triple fault".to_string()));
        vm.request(VmEnd::PowerOff);
        assert_eq!(vm.requested().map(|end| end.reason()).as_deref(), Some("triple fault"));
        vm.clear_request();
        assert_eq!(vm.requested(), None);
    }
}
