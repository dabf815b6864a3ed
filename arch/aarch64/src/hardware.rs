// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arm with EL2, for the loop that runs guests.

use alloc::vec::Vec;

use pasidon_arch_common::hardware::{BootImage, Core, Hardware};
use pasidon_arch_common::memory;
use pasidon_kernel::base::addr::PAGE_SIZE;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::memory::ram::{GuestRam, RamRange};
use pasidon_kernel::vm::exit::MsiMessage;
use pasidon_kernel::vm::stats::ExitKind;

use crate::cpu::Features;
use crate::el2::exits::Reason;
use crate::el2::own_vmid::OwnVmid;
use crate::el2::stage2::{GEOMETRY, Stage2Tables};
use crate::el2::{El2Pcpu, El2Vcpu, debug};
use crate::guest::boot::{self, EntryState};
use crate::guest::chipset::ArmChipset;
use crate::guest::layout::{self, intid};
use crate::guest::smccc::Workarounds;
use crate::guest::timer::{self, Physical, VirtualCount};
use crate::vcpu::Vm;
use crate::{cache, exit, gic, interrupts, pcpu, time, vcpu};

/// Arm with EL2.
#[derive(Debug)]
pub enum El2 {}

impl Hardware for El2 {
    type Pcpu = El2Pcpu;
    type Core = vcpu::Core;
    type Chipset = ArmChipset;
    type Stage2 = Stage2Tables;
    type Entry = EntryState;

    fn enable(pcpu: u32, frames: &'static Frames) -> Result<El2Pcpu, Refusal> {
        let empty = frames.allocate_pages(1).ok_or_else(|| {
            Refusal::new(
                alloc::format!("pCPU {pcpu}"),
                "no memory for its empty table",
                "give VMs less memory",
            )
        })?;
        // SAFETY: the page was just taken for this pCPU, and RAM is mapped at its physical address.
        unsafe { memory::zero(empty, PAGE_SIZE) };
        gic::enable_private(time::virtual_timer());
        gic::enable_private(gic::maintenance());
        // SAFETY: the hypervisor's own HCR_EL2 has been set since the start of this processor, and no guest ran.
        Ok(unsafe { El2Pcpu::enable(&Features::read(), empty) })
    }

    fn stage2(frames: &'static Frames) -> Result<Stage2Tables, Refusal> {
        Stage2Tables::new(frames, GEOMETRY)
    }

    fn ram(bytes: u64) -> Vec<RamRange> {
        layout::ram_ranges(bytes).into()
    }

    fn load(memory: &dyn GuestMemory, image: &BootImage<'_>) -> Result<EntryState, Refusal> {
        boot::load(memory, image)
    }

    fn build(
        vm: &str,
        ram_bytes: u64,
        slots: u8,
        entry: EntryState,
        stage2: &Stage2Tables,
    ) -> Result<(vcpu::Core, ArmChipset), Refusal> {
        let mut chipset = ArmChipset::new(1, ram_bytes, slots, Workarounds::UNKNOWN, time::unix_seconds)?;
        let vmid = OwnVmid::take()?;
        let Some(number) = vmid.vmid() else {
            return Err(Refusal::new("VMID", "none was taken", ""));
        };
        let hardware = El2Vcpu::new(
            &entry,
            stage2.root(),
            number,
            layout::mpidr(0),
            VirtualCount::from_zero_at(time::count()),
            Features::read().vhe,
        );
        let core = vcpu::Core::new(vm, hardware, vmid, &mut chipset, time::virtual_timer() as u16);
        Ok((core, chipset))
    }

    fn release_ram(ram: &GuestRam) {
        // The guest starts with its caches off, and may use its RAM uncached at any time: without this it would read
        // what an earlier guest left in memory, under the zeros that are only in the caches.
        for segment in ram.segments() {
            // SAFETY: RAM is mapped at its physical address; the VM that it belongs to does not run yet.
            unsafe { cache::release(segment.host.0, segment.len) };
        }
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
        time::arm_timer(deadline_ns);
    }
}

/// Makes the virtual timer's physical interrupt active on this pCPU, or inactive.
fn apply(physical: Physical) {
    match physical {
        Physical::Nothing => {}
        Physical::Activate => gic::set_active(time::virtual_timer(), true),
        Physical::Deactivate => gic::set_active(time::virtual_timer(), false),
    }
}

impl Core for vcpu::Core {
    type Pcpu = El2Pcpu;
    type Chipset = ArmChipset;
    type Reason = Reason;

    fn was_paused(&mut self, _vm: &Vm<'_>, total_ns: u64) {
        self.hardware.stood_still(time::ticks(total_ns));
    }

    fn load(&mut self, vm: &Vm<'_>, pcpu: &mut El2Pcpu) {
        self.count = pcpu.list_registers();
        let physical = {
            let mut board = vm.board.lock();
            self.timer.load(board.chipset.gic())
        };
        apply(physical);
        // SAFETY: the loop unloads each vCPU before it loads another.
        unsafe { self.hardware.load(pcpu) };
        if self.system_registers.debug().in_use() {
            self.load_points();
        }
    }

    fn unload(&mut self, _vm: &Vm<'_>, pcpu: &mut El2Pcpu) {
        if core::mem::take(&mut self.points_loaded) {
            debug::clear();
        }
        // SAFETY: it was loaded.
        unsafe { self.hardware.unload(pcpu) };
        apply(self.timer.unload());
    }

    fn accept(&mut self, _message: MsiMessage) {
        // Messages end in the interrupt controller, which is the machine's.
    }

    fn tick(&mut self) {}

    fn timer(&self) -> Option<u64> {
        // The hardware's own interrupt ends the guest's run.
        None
    }

    fn deadline_ns(&self) -> Option<u64> {
        None
    }

    fn is_waiting(&mut self, vm: &Vm<'_>) -> bool {
        if self.waiting {
            let interface = self.interface();
            let mut board = vm.board.lock();
            let pending = board.chipset.gic().has_pending(vcpu::VCPU, interface);
            self.waiting =
                !pending && self.exception.is_none() && !timer::output(self.hardware.timer_control());
        }
        self.waiting
    }

    fn wake_ns(&self) -> Option<u64> {
        let hardware = &self.hardware;
        let (control, compare) = (hardware.timer_control(), hardware.timer_compare());
        timer::deadline(control, compare, hardware.virtual_count()).map(time::ns_at)
    }

    fn prepare(&mut self, vm: &Vm<'_>) {
        if let Some(exception) = self.exception.take() {
            self.hardware.take_exception(exception);
        }
        self.hardware.set_debug_control(self.system_registers.debug().control());
        if self.system_registers.debug().take_changed() {
            self.load_points();
        }
        let control = self.hardware.timer_control();
        let interface = self.interface();
        let mut board = vm.board.lock();
        let gic = board.chipset.gic();
        let physical = self.timer.check(gic, control);
        self.control = gic.fill(vcpu::VCPU, &mut self.list_registers[..self.count], interface);
        let _ = board.chipset.take_wakes();
        drop(board);
        apply(physical);
    }

    fn cancel(&mut self, vm: &Vm<'_>) {
        self.take_back(vm);
    }

    fn enter(&mut self, pcpu: &mut El2Pcpu, flush: bool) -> Reason {
        // SAFETY: the loop has loaded it here, with IRQs masked.
        let (reason, hcr) = unsafe {
            if flush {
                self.hardware.forget_translations();
            }
            self.hardware.enter(pcpu, &mut self.list_registers, self.control)
        };
        self.control.hcr = hcr;
        reason
    }

    fn left(&mut self, vm: &Vm<'_>) {
        self.take_back(vm);
        if timer::output(self.hardware.timer_control()) {
            let mut board = vm.board.lock();
            let gic = board.chipset.gic();
            let (pending, active) = gic.ppi_state(vcpu::VCPU, intid::VIRTUAL_TIMER);
            if !pending && !active {
                self.timer.taken(gic);
                drop(board);
                // Instead of acknowledging it: from here on it is the guest's to end.
                apply(Physical::Activate);
            }
        }
    }

    fn last_exit(&self) -> [u64; 4] {
        let context = &self.hardware.context;
        [context.esr, context.far, context.hpfar, context.pc]
    }

    fn kind(reason: &Reason) -> ExitKind {
        exit::kind(reason)
    }

    fn handle(&mut self, vm: &Vm<'_>, reason: Reason) -> bool {
        if reason == Reason::HostInterrupt {
            return false;
        }
        exit::handle(self, vm, reason);
        true
    }
}
