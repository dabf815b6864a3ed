// SPDX-License-Identifier: MIT OR Apache-2.0
//! x86-64 with SVM or VMX, for the loop that runs guests.

use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_arch_common::hardware::{BootImage, Core, Hardware};
use pasidon_kernel::base::id::VmId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::memory::ram::{GuestRam, RamRange};
use pasidon_kernel::vm::exit::MsiMessage;
use pasidon_kernel::vm::sched::PcpuId;
use pasidon_kernel::vm::stats::ExitKind;

use crate::backend::{Reason, stage2};
use crate::extension::{Extension, Pcpu, Stage2};
use crate::guest::boot::{self, EntryState};
use crate::guest::chipset::PcChipset;
use crate::guest::layout;
use crate::vcpu::Vm;
use crate::{apic, cpu, emulate, exit, extended, interrupts, machine_check, pcpu, posted, time, vcpu};

/// A PC, whose processors have SVM or VMX.
#[derive(Debug)]
pub enum Pc {}

impl Hardware for Pc {
    type Pcpu = Pcpu;
    type Core = vcpu::Core;
    type Chipset = PcChipset;
    type Stage2 = Stage2;
    type Entry = EntryState;

    fn enable(pcpu: u32, frames: &'static Frames) -> Result<Pcpu, Refusal> {
        // Its tables are made here, so that no exit allocates them.
        emulate::prepare();
        machine_check::forget();
        // SAFETY: processors without XSAVE are refused at start.
        unsafe { extended::enable() };
        Pcpu::enable(pcpu, frames)
    }

    fn stage2(frames: &'static Frames) -> Result<Stage2, Refusal> {
        Extension::here().stage2(frames)
    }

    fn ram(bytes: u64) -> Vec<RamRange> {
        layout::ram_ranges(bytes).into_iter().filter(|range| range.len > 0).collect()
    }

    fn load(memory: &dyn GuestMemory, image: &BootImage<'_>) -> Result<EntryState, Refusal> {
        boot::load(memory, image)
    }

    fn build(
        vm: &str,
        _ram_bytes: u64,
        slots: u8,
        entry: EntryState,
        stage2: &Stage2,
    ) -> Result<(vcpu::Core, PcChipset), Refusal> {
        let features = cpu::Features::read();
        let extension = Extension::of(&features);
        let physical_bits = features.physical_bits.min(stage2::PHYSICAL_BITS);
        let mut core = vcpu::Core::new(vm, extension, stage2.root(), physical_bits, cpu::arch_capabilities());
        core.hardware.start_at(&entry);
        Ok((core, PcChipset::new(time::unix_ns(), slots)?))
    }

    fn take_seat(core: &mut vcpu::Core, chipset: &mut PcChipset, vm: VmId, pcpu: PcpuId) {
        if Extension::here().posts()
            && let Some(posted) = posted::make(vm, pcpu).map(Arc::new)
        {
            core.post_to(Arc::clone(&posted));
            chipset.post_to(posted);
        }
    }

    fn release_ram(_ram: &GuestRam) {
        // Accesses that are not cached look into the caches, too, on processors that snoop themselves.
    }

    fn this_pcpu() -> u32 {
        pcpu::current().index
    }

    fn kick(pcpu: u32) {
        interrupts::kick(pcpu);
    }

    fn window() {
        interrupts::window();
    }

    fn wait() {
        interrupts::wait();
    }

    fn now_ns() -> u64 {
        time::now_ns()
    }

    fn arm_timer(deadline_ns: Option<u64>) {
        apic::arm_timer(deadline_ns);
    }
}

impl Core for vcpu::Core {
    type Pcpu = Pcpu;
    type Chipset = PcChipset;
    type Reason = Reason;

    fn was_paused(&mut self, vm: &Vm<'_>, _total_ns: u64) {
        self.msrs.was_paused(&self.clock, vm.memory);
    }

    fn load(&mut self, _vm: &Vm<'_>, pcpu: &mut Pcpu) {
        self.hardware.load(pcpu);
        // SAFETY: the pCPU was enabled after extended state; the last turn here saved its own.
        unsafe { self.extended.load() };
    }

    fn unload(&mut self, _vm: &Vm<'_>, pcpu: &mut Pcpu) {
        // SAFETY: loaded on this pCPU.
        unsafe { self.extended.save() };
        self.hardware.unload(pcpu);
    }

    fn accept(&mut self, message: MsiMessage) {
        self.lapic.accept_message(message);
    }

    fn tick(&mut self) {
        vcpu::Core::tick(self);
    }

    fn timer(&self) -> Option<u64> {
        vcpu::Core::timer(self)
    }

    fn deadline_ns(&self) -> Option<u64> {
        vcpu::Core::deadline_ns(self)
    }

    fn is_waiting(&mut self, _vm: &Vm<'_>) -> bool {
        if self.halted && self.wakes() {
            self.halted = false;
        }
        self.halted
    }

    fn prepare(&mut self, vm: &Vm<'_>) {
        self.prepare_event();
        if !self.delivers {
            self.msrs.eoi.offer(&self.lapic, vm.memory);
        }
    }

    fn cancel(&mut self, vm: &Vm<'_>) {
        self.msrs.eoi.settle(&mut self.lapic, vm.memory);
    }

    fn enter(&mut self, pcpu: &mut Pcpu, flush: bool) -> Reason {
        self.hardware.enter(pcpu, flush)
    }

    fn left(&mut self, vm: &Vm<'_>) {
        if self.delivers {
            self.lapic.used_by_processor();
        } else {
            self.lapic.set_cr8(self.hardware.cr8());
        }
        self.msrs.eoi.settle(&mut self.lapic, vm.memory);
    }

    fn last_exit(&self) -> [u64; 4] {
        self.hardware.last_exit()
    }

    fn kind(reason: &Reason) -> ExitKind {
        exit::kind(reason)
    }

    fn handle(&mut self, vm: &Vm<'_>, reason: Reason) -> bool {
        if reason == Reason::HostInterrupt {
            return false;
        }
        // An exit that comes again with each delivery of an event, or right behind it as a breakpoint on the frame of #DB
        // does, leaves the processor no moment for an interrupt.
        let delivering = self.hardware.has_event() || matches!(reason, Reason::Exception(_));
        exit::handle(self, vm, reason);
        !delivering
    }
}
