// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers to what a guest did.
//!
//! **Principle.** Whatever a guest can do ends in one of four ways: an answer, an exception for the guest, a message
//! to another part, or the end of that VM with one line that says why.
//!
//! [`crate::guest`] says which exit is answered by what.

use alloc::format;

use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::vm::VmEnd;
use pasidon_kernel::vm::exit::{Access, Exit};
use pasidon_kernel::vm::stats::ExitKind;

use crate::el2::context::ContextRegisters;
use crate::el2::exits::Reason;
use crate::el2::{El2Vcpu, identification};
use crate::guest::chipset::AfterCall;
use crate::guest::exception::{self, Exception};
use crate::guest::mmio::{self, DataAbort};
use crate::guest::sysreg::{Outcome, Trap};
use crate::guest::walk;
use crate::power;
use crate::vcpu::{Core, VCPU, Vm};

/// The counter of a reason.
pub fn kind(reason: &Reason) -> ExitKind {
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

/// Answers one exit of `vm`'s vCPU. [`Reason::HostInterrupt`] is the caller's.
pub fn handle(core: &mut Core, vm: &Vm<'_>, reason: Reason) {
    match reason {
        Reason::HostInterrupt => {}
        Reason::Wait { event } => {
            core.waiting = !event;
            core.hardware.context.skip();
        }
        Reason::Call { smc, immediate } => call(core, vm, smc, immediate),
        Reason::SystemRegister(iss) => system_register(core, vm, Trap::from_iss(iss)),
        Reason::DataAbort { iss, address, hpfar } => data_abort(
            core,
            vm,
            &DataAbort { iss, address, guest_physical: mmio::guest_physical(hpfar, address) },
        ),
        Reason::InstructionAbort { address, hpfar } => instruction_abort(core, vm, address, hpfar),
        Reason::Undefined => core.exception = Some(Exception::Undefined),
        Reason::SystemError(esr) => vm.end(VmEnd::Crashed(format!(
            "a system error came while it ran (ESR {esr:#x}, PC {:#x})",
            core.hardware.context.pc
        ))),
        Reason::Unknown(esr) => vm.end(VmEnd::Crashed(format!(
            "an exception that nobody knows (ESR {esr:#x}, PC {:#x})",
            core.hardware.context.pc
        ))),
    }
}

fn call(core: &mut Core, vm: &Vm<'_>, smc: bool, immediate: u16) {
    let context = &mut core.hardware.context;
    let registers = [0, 1, 2, 3].map(|number| context.x(number));
    let (x0, after) = {
        let mut board = vm.board.lock();
        board.chipset.call(VCPU, immediate, registers, &mut |action| vm.act(action))
    };
    context.set_x(0, x0);
    if smc {
        context.skip();
    }
    match after {
        // There is no other vCPU that could start, or be waited for.
        AfterCall::Continue | AfterCall::Stop | AfterCall::Start(_) => {}
        AfterCall::Wait => core.waiting = true,
        AfterCall::Workaround(workaround, argument) => power::call_workaround(workaround.id(), argument),
    }
}

fn system_register(core: &mut Core, vm: &Vm<'_>, trap: Trap) {
    let value = core.hardware.context.x(trap.rt);
    let outcome = core.system_registers.access(trap, value, &identification::read);
    match outcome {
        Outcome::Read(value) => core.hardware.context.set_x(trap.rt, value),
        Outcome::Written => {}
        Outcome::Sgi(value, group) => {
            let mut board = vm.board.lock();
            board.chipset.gic().send_sgi(VCPU, value, group);
        }
        Outcome::Deactivate(intid) => {
            let mut board = vm.board.lock();
            board.chipset.gic().deactivate(VCPU, intid);
        }
        Outcome::Undefined => {
            core.exception = Some(Exception::Undefined);
            return;
        }
    }
    core.hardware.context.skip();
}

/// A program that runs into a device's memory is told; only a kernel that does so ends its VM.
fn instruction_abort(core: &mut Core, vm: &Vm<'_>, address: u64, hpfar: u64) {
    if exception::is_user(core.hardware.context.pstate) {
        core.exception = Some(Exception::InstructionAbort { address });
    } else {
        vm.end(VmEnd::Crashed(format!(
            "it executed at guest-physical {:#x}, which is not RAM",
            mmio::guest_physical(hpfar, address)
        )));
    }
}

fn data_abort(core: &mut Core, vm: &Vm<'_>, abort: &DataAbort) {
    let at = core.hardware.context.pc;
    let vhe = core.hardware.has_vhe();
    let a64 = exception::is_a64(core.hardware.context.pstate);
    let mut fetch = || {
        let mut word = [0; 4];
        let place = a64.then(|| walk::instruction(&El2Vcpu::stage1(vhe), vm.memory, at))??;
        vm.memory.read(place, &mut word).ok()?;
        Some(u32::from_le_bytes(word))
    };
    let mut device = |access: Access| {
        let mut board = vm.board.lock();
        let answer = board.chipset.exit(VCPU, &Exit::Mmio(access), &mut |action| vm.act(action));
        answer.unwrap_or(0)
    };
    let before = core.hardware.sp_el1();
    let mut sp_el1 = before;
    let mut registers = ContextRegisters { context: &mut core.hardware.context, sp_el1: &mut sp_el1 };
    let result = mmio::perform(abort, &mut registers, &mut fetch, &mut device);
    if sp_el1 != before {
        core.hardware.set_sp_el1(sp_el1);
    }
    match result {
        Ok(()) => core.hardware.context.skip(),
        Err(refused) => {
            core.refused = core.refused.saturating_add(1);
            // The guest can do this for ever: lines at 1, 2, 4, 8, …
            if core.refused.is_power_of_two() {
                log::warn!(
                    "vm {}: an access at {at:#x} to guest-physical {:#x} was refused: {refused} ({} so far)",
                    vm.name,
                    abort.guest_physical,
                    core.refused
                );
            }
            core.exception = Some(Exception::DataAbort { address: abort.address });
        }
    }
}
