// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor: guests whose instructions are bytes.
//!
//! | byte modulo 8 | what the guest does |
//! |---|---|
//! | 0 | computes for 100 µs |
//! | 1 | sets its timer |
//! | 2 | computes for 1 ms |
//! | 3 | waits for an interrupt |
//! | 4 | sets its timer, and waits |
//! | 5 | prints |
//! | 6 | moves a portal |
//! | 7 | restarts (from 248 on), switches off (from 240 on), waits |
//!
//! At the end of its program it waits for interrupts.

use std::boxed::Box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pasidon_kernel::base::addr::{GuestPhys, HostPhys, PAGE_SIZE};
use pasidon_kernel::base::id::VmId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use pasidon_kernel::dev::pci::{PciBus, PciWindow, Slot};
use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::memory::ram::{GuestRam, RamRange};
use pasidon_kernel::vdev::parent::{PciIdentity, VdevRegisters};
use pasidon_kernel::vm::exit::{Action, Actions, MsiMessage};
use pasidon_kernel::vm::sched::PcpuId;
use pasidon_kernel::vm::stats::ExitKind;

use super::sim::here;
use crate::hardware::{BootImage, Chipset, Core, Hardware, Stage2};
use crate::view::VmView;

/// What the guest's timer raises.
pub const TIMER: MsiMessage = MsiMessage { address: 0, data: u32::MAX };
/// How long a guest computes at once, in nanoseconds.
const COMPUTES_NS: u64 = 1_000_000;
/// What a key raises.
pub const KEY: MsiMessage = MsiMessage { address: 0, data: u32::MAX - 1 };
/// The longest initrd and command line.
const LOADED_MAX: usize = 16;
/// Where a vdev's messages go.
pub const MESSAGES: u64 = 0xfee0_0000;
/// Registers of PCI functions, and what a driver writes there.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u64 = 0b110;
const BAR: u64 = 0x10;
const MSIX_CONTROL: u64 = 0x82;
const MSIX_ENABLED: u64 = 1 << 15;

/// The processor.
#[derive(Debug)]
pub enum Fake {}

/// What one life of a VM has in the processor.
#[derive(Debug, Default)]
pub struct Life {
    /// A translation was taken away and may still be in the TLB.
    pub stale: AtomicBool,
    /// The vCPU is in the guest.
    pub inside: AtomicBool,
}

impl Hardware for Fake {
    type Pcpu = u32;
    type Core = FakeCore;
    type Chipset = FakeChipset;
    type Stage2 = FakeStage2;
    type Entry = ();

    fn enable(pcpu: u32, _frames: &'static Frames) -> Result<u32, Refusal> {
        Ok(pcpu)
    }

    fn stage2(_frames: &'static Frames) -> Result<FakeStage2, Refusal> {
        Ok(FakeStage2(Arc::default()))
    }

    fn ram(bytes: u64) -> Vec<RamRange> {
        vec![RamRange { start: GuestPhys(0), len: bytes }]
    }

    /// A kernel begins with the address where it goes; an empty one goes nowhere. The rest fits that is not long.
    fn load(memory: &dyn GuestMemory, image: &BootImage<'_>) -> Result<(), Refusal> {
        for (what, len) in
            [("command line", image.cmdline.len()), ("initrd", image.initrd.map_or(0, <[u8]>::len))]
        {
            if len > LOADED_MAX {
                return Err(Refusal::new(what, format!("it has {len} bytes"), "shorten it"));
            }
        }
        let Some(address) = image.kernel.first_chunk() else { return Ok(()) };
        let written = memory.write(GuestPhys(u64::from_le_bytes(*address)), image.kernel);
        written.map_err(|error| Refusal::new("kernel image", error.to_string(), "move it"))
    }

    fn build(
        vm: &str,
        _ram_bytes: u64,
        slots: u8,
        _entry: (),
        stage2: &FakeStage2,
    ) -> Result<(FakeCore, FakeChipset), Refusal> {
        here().0.lock().lives.insert(vm.to_string(), stage2.0.clone());
        let core = FakeCore {
            vm: vm.to_string(),
            life: stage2.0.clone(),
            waiting: Vec::new(),
            prepared: Vec::new(),
            halted: false,
            timer: None,
            loaded: false,
        };
        let bus = PciBus::new(&[PciWindow::prefetchable(1 << 40, 1 << 30)], slots);
        Ok((core, FakeChipset { vm: vm.to_string(), bus }))
    }

    fn take_seat(core: &mut FakeCore, _chipset: &mut FakeChipset, vm: VmId, pcpu: PcpuId) {
        here().0.begin_posting(&core.vm, vm, pcpu.0);
    }

    fn release_ram(_ram: &GuestRam) {}

    fn this_pcpu() -> u32 {
        here().1
    }

    fn kick(pcpu: u32) {
        let (sim, me) = here();
        sim.kick(pcpu);
        sim.step(me);
    }

    fn window() {
        let (sim, me) = here();
        sim.step(me);
        sim.take_interrupts(me);
    }

    fn wait() {
        let (sim, me) = here();
        sim.sleep(me);
        sim.take_interrupts(me);
    }

    fn now_ns() -> u64 {
        here().0.lock().now
    }

    fn arm_timer(deadline_ns: Option<u64>) {
        let (sim, me) = here();
        sim.arm(me, deadline_ns);
        sim.step(me);
    }
}

/// Why the guest was left.
#[derive(Clone, Copy, Debug)]
pub enum Reason {
    HostInterrupt,
    Halt,
    /// It is set, and the guest waits or goes on.
    Timer(u64, bool),
    Act(Action),
}

/// A vCPU.
#[derive(Debug)]
pub struct FakeCore {
    vm: String,
    life: Arc<Life>,
    waiting: Vec<MsiMessage>,
    prepared: Vec<MsiMessage>,
    halted: bool,
    timer: Option<u64>,
    loaded: bool,
}

impl Drop for FakeCore {
    fn drop(&mut self) {
        let (sim, _) = here();
        sim.end_posting(&self.vm);
        let mut state = sim.lock();
        state.forget(&self.vm);
        if self.loaded {
            state.violations.push(format!("{} was taken apart while it was loaded", self.vm));
        }
    }
}

impl Core for FakeCore {
    type Pcpu = u32;
    type Chipset = FakeChipset;
    type Reason = Reason;

    fn was_paused(&mut self, _vm: &VmView<'_, FakeChipset>, _total_ns: u64) {}

    fn load(&mut self, _vm: &VmView<'_, FakeChipset>, pcpu: &mut u32) {
        let (sim, me) = here();
        let mut state = sim.lock();
        assert_eq!((*pcpu, self.loaded), (me, false));
        let before = state.loaded[me as usize].replace(self.vm.clone());
        if before.is_some() || state.loaded.iter().flatten().filter(|vm| **vm == self.vm).count() > 1 {
            let wrong = format!("{} came to pCPU {me}, where {before:?} is", self.vm);
            state.violations.push(wrong);
        }
        *state.turns.entry(self.vm.clone()).or_default() += 1;
        self.loaded = true;
        drop(state);
        sim.step(me);
    }

    fn unload(&mut self, _vm: &VmView<'_, FakeChipset>, _pcpu: &mut u32) {
        let (sim, me) = here();
        sim.step(me);
        sim.lock().loaded[me as usize] = None;
        self.loaded = false;
    }

    fn accept(&mut self, message: MsiMessage) {
        if !self.waiting.contains(&message) {
            self.waiting.push(message);
        }
    }

    fn tick(&mut self) {
        let (sim, me) = here();
        sim.step(me);
        let posted = sim.lock().descriptors.get_mut(&self.vm).map(|descriptor| descriptor.take());
        for id in posted.into_iter().flatten() {
            self.accept(MsiMessage { address: MESSAGES, data: id.into() });
        }
        if self.timer.is_some_and(|due| due <= Fake::now_ns()) {
            self.timer = None;
            self.accept(TIMER);
        }
    }

    fn timer(&self) -> Option<u64> {
        self.timer
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.timer
    }

    fn is_waiting(&mut self, _vm: &VmView<'_, FakeChipset>) -> bool {
        self.halted &= self.waiting.is_empty();
        let (sim, me) = here();
        sim.step(me);
        self.halted
    }

    fn prepare(&mut self, _vm: &VmView<'_, FakeChipset>) {
        self.prepared = core::mem::take(&mut self.waiting);
        let (sim, me) = here();
        sim.step(me);
    }

    fn cancel(&mut self, _vm: &VmView<'_, FakeChipset>) {
        self.waiting.append(&mut self.prepared);
    }

    fn enter(&mut self, pcpu: &mut u32, flush: bool) -> Reason {
        let (sim, me) = here();
        assert_eq!((*pcpu, self.loaded, self.halted), (me, true, false));
        if flush {
            self.life.stale.store(false, Ordering::SeqCst);
        }
        self.life.inside.store(true, Ordering::SeqCst);
        if sim.lock().paused.contains(&self.vm) {
            sim.lock().violations.push(format!("{} runs while it is paused", self.vm));
        }
        for message in core::mem::take(&mut self.prepared) {
            sim.lock().delivered(&self.vm, message);
        }
        let reason = loop {
            sim.step(me);
            let mut state = sim.lock();
            state.take_notification(&self.vm);
            if state.is_interrupted(me) {
                break Reason::HostInterrupt;
            }
            let Some(byte) = state.guests.get_mut(&self.vm).and_then(|program| program.pop_front()) else {
                break Reason::Halt;
            };
            match byte % 8 {
                0 | 2 => {
                    drop(state);
                    sim.compute(me, if byte % 8 == 0 { COMPUTES_NS / 10 } else { COMPUTES_NS });
                }
                1 => break Reason::Timer(state.now + u64::from(byte) * 50_000, false),
                4 => break Reason::Timer(state.now + u64::from(byte) * 50_000, true),
                5 => break Reason::Act(Action::Console(byte)),
                6 => break Reason::Act(Action::UnmapPortal { guest: GuestPhys(1 << 40), len: PAGE_SIZE }),
                7 if byte >= 248 => break Reason::Act(Action::Reset),
                7 if byte >= 240 => break Reason::Act(Action::PowerOff),
                _ => break Reason::Halt,
            }
        };
        self.life.inside.store(false, Ordering::SeqCst);
        reason
    }

    fn left(&mut self, _vm: &VmView<'_, FakeChipset>) {}

    fn last_exit(&self) -> [u64; 4] {
        [0; 4]
    }

    fn kind(_reason: &Reason) -> ExitKind {
        ExitKind::Other
    }

    fn handle(&mut self, vm: &VmView<'_, FakeChipset>, reason: Reason) -> bool {
        match reason {
            Reason::HostInterrupt => return false,
            Reason::Halt => self.halted = true,
            Reason::Timer(due, waits) => {
                here().0.lock().set_timer(&self.vm, due);
                (self.timer, self.halted) = (Some(due), waits);
            }
            Reason::Act(action) => {
                let (sim, me) = here();
                // Whoever spins lets the others go on.
                let board = loop {
                    match vm.board.try_lock() {
                        Some(board) => break board,
                        None => sim.step(me),
                    }
                };
                (0..3).for_each(|_| sim.step(me));
                vm.act(action);
                drop(board);
            }
        }
        true
    }
}

/// The devices: a PCI bus.
pub struct FakeChipset {
    vm: String,
    bus: PciBus,
}

impl Chipset for FakeChipset {
    fn push_input(&mut self, _received: Received, actions: Actions<'_>) -> bool {
        here().0.lock().note_key(self.vm.clone());
        actions(Action::Message(KEY));
        true
    }

    fn pci(&mut self) -> &mut PciBus {
        &mut self.bus
    }

    fn with_pci<T>(&mut self, actions: Actions<'_>, act: impl FnOnce(&mut PciBus, Actions<'_>) -> T) -> T {
        act(&mut self.bus, actions)
    }

    fn end_vdev(&mut self, slot: Slot, actions: Actions<'_>) -> Option<Box<dyn VdevRegisters>> {
        // As where its portal was mapped.
        actions(Action::UnmapPortal { guest: GuestPhys(1 << 40), len: PAGE_SIZE });
        self.bus.end(slot, actions)
    }

    /// As its guest's driver has set it up: what it sends tells which one it is.
    fn add_vdev(&mut self, model: Box<dyn VdevRegisters>, actions: Actions<'_>) -> Result<Slot, Refusal> {
        let PciIdentity { device, msix_table, .. } = model.identity();
        let slot = self.bus.add(model, actions)?;
        let function = u64::from(slot.number()) << 20;
        let mut set = |at, value| self.bus.ecam_write(at, 2, value, &mut *actions);
        set((u64::from(slot.port()) << 12) + COMMAND, MEMORY_AND_MASTER);
        set(function + COMMAND, MEMORY_AND_MASTER);
        set(function + MSIX_CONTROL, MSIX_ENABLED);
        let entry = (self.bus.ecam_read(function + BAR, 8) & !0xf) + u64::from(msix_table);
        self.bus.mmio_write(entry, 8, MESSAGES, &mut *actions);
        self.bus.mmio_write(entry + 8, 8, device.into(), actions);
        Ok(slot)
    }
}

/// The memory of a VM.
#[derive(Debug)]
pub struct FakeStage2(pub Arc<Life>);

impl Stage2 for FakeStage2 {
    fn map_ram(&mut self, _ram: &GuestRam) -> Result<(), Refusal> {
        Ok(())
    }

    fn map_portal(&mut self, _guest: GuestPhys, _host: HostPhys, _len: u64) -> Result<(), Refusal> {
        Ok(())
    }

    fn unmap_portal(&mut self, _guest: GuestPhys, _len: u64) {
        self.0.stale.store(true, Ordering::SeqCst);
    }

    fn bytes(&self) -> u64 {
        0
    }
}
