// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of a vCPU that only its pCPU touches: registers, list registers, virtual timer, and the answers to what
//! the guest did.
//!
//! **Principle.** Whatever a guest can do ends in one of four ways: an answer, an exception for the guest, a message
//! to another part, or the end of that VM with one line that says why.
//!
//! [`crate::guest`] says which exit is answered by what.

use alloc::format;
use alloc::string::String;

use pasidon_arch_common::view::VmView;
use pasidon_kernel::exit::{Access, Exit, MsiMessage};
use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::stats::ExitKind;
use pasidon_kernel::vm::VmEnd;

use crate::el2::context::Registers;
use crate::el2::exits::Reason;
use crate::el2::own_vmid::OwnVmid;
use crate::el2::{El2Pcpu, El2Vcpu, debug, identification};
use crate::guest::exception::{self, Exception};
use crate::guest::gic::{LIST_REGISTERS_MAX, VCpuInterface};
use crate::guest::layout::intid;
use crate::guest::machine::{AfterCall, ArmPlatform};
use crate::guest::mmio::{self, DataAbort};
use crate::guest::sysreg::{Outcome, SystemRegisters, Trap};
use crate::guest::timer::{self, Physical, VirtualTimer};
use crate::guest::walk;
use crate::{gic, power, time};

/// The number of the only vCPU.
const VCPU: u16 = 0;

/// The VM as a vCPU sees it.
pub type Vm<'a> = VmView<'a, ArmPlatform>;

/// One vCPU.
#[derive(Debug)]
pub struct Core {
    hardware: El2Vcpu,
    system_registers: SystemRegisters,
    timer: VirtualTimer,
    /// Given back when it is dropped.
    _vmid: OwnVmid,
    list_registers: [u64; LIST_REGISTERS_MAX],
    /// How many of them the processor has.
    count: usize,
    /// ICH_HCR_EL2 for the entry, and what it was at the exit.
    control: u64,
    waiting: bool,
    /// The processor has its breakpoints and watchpoints.
    points_loaded: bool,
    /// An exception that it takes at the next entry.
    exception: Option<Exception>,
    /// Accesses to devices that were refused.
    refused: u64,
}

impl Core {
    /// A vCPU before its first instruction.
    pub fn new(
        vm: &str,
        hardware: El2Vcpu,
        vmid: OwnVmid,
        platform: &mut ArmPlatform,
        timer_intid: u16,
    ) -> Self {
        Self {
            hardware,
            system_registers: SystemRegisters::new(String::from(vm)),
            timer: VirtualTimer::new(platform.gic(), VCPU, timer_intid),
            _vmid: vmid,
            list_registers: [0; LIST_REGISTERS_MAX],
            count: 1,
            control: 0,
            waiting: false,
            points_loaded: false,
            exception: None,
            refused: 0,
        }
    }

    fn interface(&self) -> VCpuInterface {
        VCpuInterface { vmcr: self.hardware.vmcr() }
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

impl pasidon_arch_common::hardware::Core for Core {
    type Pcpu = El2Pcpu;
    type Platform = ArmPlatform;
    type Reason = Reason;

    fn was_paused(&mut self, _vm: &Vm<'_>, total_ns: u64) {
        self.hardware.stood_still(time::ticks(total_ns));
    }

    fn load(&mut self, vm: &Vm<'_>, pcpu: &mut El2Pcpu) {
        self.count = pcpu.list_registers();
        let physical = {
            let mut board = vm.board.lock();
            self.timer.load(board.platform.gic())
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
            let pending = board.platform.gic().has_pending(VCPU, interface);
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
        let gic = board.platform.gic();
        let physical = self.timer.check(gic, control);
        self.control = gic.fill(VCPU, &mut self.list_registers[..self.count], interface).0;
        let _ = board.platform.take_wakes();
        drop(board);
        apply(physical);
    }

    fn cancel(&mut self, vm: &Vm<'_>) {
        self.take_back(vm);
    }

    fn enter(&mut self, pcpu: &mut El2Pcpu, flush: bool) -> Reason {
        // SAFETY: the loop has loaded it here, with IRQs masked.
        let (reason, control) = unsafe {
            if flush {
                self.hardware.forget_translations();
            }
            self.hardware.enter(pcpu, &mut self.list_registers, self.control)
        };
        self.control = control;
        reason
    }

    fn left(&mut self, vm: &Vm<'_>) {
        self.take_back(vm);
        if timer::output(self.hardware.timer_control()) {
            let mut board = vm.board.lock();
            let gic = board.platform.gic();
            let (pending, active) = gic.ppi_state(VCPU, intid::VIRTUAL_TIMER);
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
        match reason {
            Reason::HostInterrupt => ExitKind::Interrupt,
            Reason::Wait { .. } => ExitKind::Halt,
            Reason::Call { .. } => ExitKind::Hypercall,
            Reason::SystemRegister(_) => ExitKind::SystemRegister,
            Reason::DataAbort { .. } => ExitKind::Mmio,
            Reason::InstructionAbort { .. } => ExitKind::Stage2Fault,
            Reason::Undefined | Reason::SystemError(_) | Reason::Unknown(_) => ExitKind::Other,
        }
    }

    fn handle(&mut self, vm: &Vm<'_>, reason: Reason) -> bool {
        match reason {
            Reason::HostInterrupt => return false,
            Reason::Wait { event } => {
                self.waiting = !event;
                self.hardware.context.skip();
            }
            Reason::Call { smc, immediate } => self.call(vm, smc, immediate),
            Reason::SystemRegister(iss) => self.system_register(vm, Trap::from_iss(iss)),
            Reason::DataAbort { iss, address, hpfar } => self.data_abort(
                vm,
                &DataAbort { iss, address, guest_physical: mmio::guest_physical(hpfar, address) },
            ),
            Reason::InstructionAbort { address, hpfar } => self.instruction_abort(vm, address, hpfar),
            Reason::Undefined => self.exception = Some(Exception::Undefined),
            Reason::SystemError(esr) => vm.end(VmEnd::Crashed(format!(
                "a system error came while it ran (ESR {esr:#x}, PC {:#x})",
                self.hardware.context.pc
            ))),
            Reason::Unknown(esr) => vm.end(VmEnd::Crashed(format!(
                "an exception that nobody knows (ESR {esr:#x}, PC {:#x})",
                self.hardware.context.pc
            ))),
        }
        true
    }
}

impl Core {
    /// Its breakpoints and watchpoints go into the processor, until it leaves that.
    fn load_points(&mut self) {
        self.points_loaded = true;
        debug::load(self.system_registers.debug());
    }

    /// The list registers go back to the interrupt controller.
    fn take_back(&mut self, vm: &Vm<'_>) {
        let mut board = vm.board.lock();
        board.platform.gic().sync(VCPU, &self.list_registers[..self.count], self.control);
        let _ = board.platform.take_wakes();
    }

    fn call(&mut self, vm: &Vm<'_>, smc: bool, immediate: u16) {
        let context = &mut self.hardware.context;
        let registers = [0, 1, 2, 3].map(|number| context.x(number));
        let (x0, after) = {
            let mut board = vm.board.lock();
            board.platform.call(VCPU, immediate, registers, &mut |action| vm.act(action))
        };
        context.set_x(0, x0);
        if smc {
            context.skip();
        }
        match after {
            // There is no other vCPU that could start, or be waited for.
            AfterCall::Continue | AfterCall::Stop | AfterCall::Start(_) => {}
            AfterCall::Wait => self.waiting = true,
            AfterCall::Workaround(workaround, argument) => power::call_workaround(workaround.id(), argument),
        }
    }

    fn system_register(&mut self, vm: &Vm<'_>, trap: Trap) {
        let value = self.hardware.context.x(trap.rt);
        let outcome = self.system_registers.access(trap, value, &identification::read);
        match outcome {
            Outcome::Read(value) => self.hardware.context.set_x(trap.rt, value),
            Outcome::Written => {}
            Outcome::Sgi(value, group) => {
                let mut board = vm.board.lock();
                board.platform.gic().send_sgi(VCPU, value, group);
            }
            Outcome::Deactivate(intid) => {
                let mut board = vm.board.lock();
                board.platform.gic().deactivate(VCPU, intid);
            }
            Outcome::Undefined => {
                self.exception = Some(Exception::Undefined);
                return;
            }
        }
        self.hardware.context.skip();
    }

    /// A program that runs into a device's memory is told; only a kernel that does so ends its VM.
    fn instruction_abort(&mut self, vm: &Vm<'_>, address: u64, hpfar: u64) {
        if exception::is_user(self.hardware.context.pstate) {
            self.exception = Some(Exception::InstructionAbort { address });
        } else {
            vm.end(VmEnd::Crashed(format!(
                "it executed at guest-physical {:#x}, which is not RAM",
                mmio::guest_physical(hpfar, address)
            )));
        }
    }

    fn data_abort(&mut self, vm: &Vm<'_>, abort: &DataAbort) {
        let at = self.hardware.context.pc;
        let vhe = self.hardware.has_vhe();
        let a64 = exception::is_a64(self.hardware.context.pstate);
        let mut fetch = || {
            let mut word = [0; 4];
            let place = a64.then(|| walk::instruction(&El2Vcpu::stage1(vhe), vm.memory, at))??;
            vm.memory.read(place, &mut word).ok()?;
            Some(u32::from_le_bytes(word))
        };
        let mut device = |access: Access| {
            let mut board = vm.board.lock();
            let answer = board.platform.exit(VCPU, &Exit::Mmio(access), &mut |action| vm.act(action));
            answer.unwrap_or(0)
        };
        let before = self.hardware.sp_el1();
        let mut sp_el1 = before;
        let mut registers = Registers { context: &mut self.hardware.context, sp_el1: &mut sp_el1 };
        let result = mmio::perform(abort, &mut registers, &mut fetch, &mut device);
        if sp_el1 != before {
            self.hardware.set_sp_el1(sp_el1);
        }
        match result {
            Ok(()) => self.hardware.context.skip(),
            Err(refused) => {
                self.refused = self.refused.saturating_add(1);
                // The guest can do this for ever: lines at 1, 2, 4, 8, …
                if self.refused.is_power_of_two() {
                    log::warn!(
                        "vm {}: an access at {at:#x} to guest-physical {:#x} was refused: {refused} ({} so far)",
                        vm.name,
                        abort.guest_physical,
                        self.refused
                    );
                }
                self.exception = Some(Exception::DataAbort { address: abort.address });
            }
        }
    }
}
