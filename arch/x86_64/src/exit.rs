// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers to what a guest did.
//!
//! **Principle.** Whatever a guest can do ends in one of four ways: an answer, an exception for the guest,
//! a message to another part, or the end of that VM with one line that says why.

use alloc::format;

use pasidon_kernel::vm::VmEnd;
use pasidon_kernel::vm::exit::{Access, AccessKind, Exit};
use pasidon_kernel::vm::stats::ExitKind;

use crate::backend::{ControlRegister, IoExit, Reason};
use crate::emulate::{self, CpuState, Exception, Failure, Fault, InstructionBytes};
use crate::guest::GeneralProtection;
use crate::guest::cpuid::CpuidState;
use crate::guest::lapic::{ApicEvent, LocalApic};
use crate::guest::moment::Moment;
use crate::machine_check::{self, Verdict};
use crate::time;
use crate::vcpu::{Core, Vm};

/// Exception vectors.
mod vector {
    pub const GENERAL_PROTECTION: u8 = 13;
}

/// General registers in hardware order.
mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
}

const EFER: u32 = 0xc000_0080;
const IA32_TSC: u32 = 0x10;
const IA32_PAT: u32 = 0x277;
const IA32_TSC_AUX: u32 = 0xc000_0103;
/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;
/// What KVM answers to a hypercall it does not know: -1000.
const NO_SUCH_HYPERCALL: u64 = (-1000i64).cast_unsigned();
const LOW: u64 = u32::MAX as u64;

const UNDEFINED: Exception = Exception::undefined();
const GENERAL_PROTECTION: Exception =
    Exception { vector: vector::GENERAL_PROTECTION, error_code: Some(0), cr2: None };

/// Instructions that exit, without prefixes (APM 3).
mod encoding {
    pub const CPUID: &[u8] = &[0x0f, 0xa2];
    pub const HLT: &[u8] = &[0xf4];
    pub const INVD: &[u8] = &[0x0f, 0x08];
    pub const RDMSR: &[u8] = &[0x0f, 0x32];
    pub const WRMSR: &[u8] = &[0x0f, 0x30];
    pub const VMMCALL: &[u8] = &[0x0f, 0x01, 0xd9];
    pub const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];
    /// Too many forms to name. For ports the processor always tells the length.
    pub const VARIOUS: &[u8] = &[];
}

/// The counter of a reason.
pub fn kind(reason: &Reason) -> ExitKind {
    match reason {
        Reason::HostInterrupt => ExitKind::Interrupt,
        Reason::Cpuid => ExitKind::Identification,
        Reason::Halt => ExitKind::Halt,
        Reason::Io(_) => ExitKind::Io,
        Reason::ReadMsr
        | Reason::WriteMsr
        | Reason::EndOfInterrupt(_)
        | Reason::Xsetbv
        | Reason::Control { .. } => ExitKind::SystemRegister,
        Reason::Stage2 { fetch: false, .. } => ExitKind::Mmio,
        Reason::Stage2 { fetch: true, .. } => ExitKind::Stage2Fault,
        Reason::Hypercall => ExitKind::Hypercall,
        Reason::InterruptWindow => ExitKind::InterruptWindow,
        Reason::Shutdown => ExitKind::Shutdown,
        Reason::MachineCheck
        | Reason::Exception(_)
        | Reason::Undefined
        | Reason::Forbidden
        | Reason::Ignored
        | Reason::TaskSwitch
        | Reason::Failed(_)
        | Reason::HostFault { .. } => ExitKind::Other,
    }
}

/// Answers one exit of `vm`'s vCPU. [`Reason::HostInterrupt`] is the caller's.
pub fn handle(core: &mut Core, vm: &Vm<'_>, reason: Reason) {
    match reason {
        Reason::HostInterrupt | Reason::InterruptWindow => {}
        Reason::Cpuid => {
            let hardware = &mut core.hardware;
            let state = CpuidState { osxsave: hardware.cr4() & CR4_OSXSAVE != 0, xcr0: core.extended.xcr0() };
            let (leaf, subleaf) = (hardware.gpr(gpr::RAX), hardware.gpr(gpr::RCX));
            let answer = core.cpuid.query(leaf as u32, subleaf as u32, &state);
            for (register, value) in [
                (gpr::RAX, answer.eax),
                (gpr::RBX, answer.ebx),
                (gpr::RCX, answer.ecx),
                (gpr::RDX, answer.edx),
            ] {
                hardware.set_gpr(register, value.into());
            }
            finish(core, vm, encoding::CPUID);
        }
        Reason::Halt => {
            core.halted = true;
            finish(core, vm, encoding::HLT);
        }
        Reason::Io(io) if io.string => string_io(core, vm),
        Reason::Io(io) => {
            port(core, vm, io);
            finish(core, vm, encoding::VARIOUS);
        }
        Reason::ReadMsr => read_msr(core, vm),
        Reason::WriteMsr => write_msr(core, vm),
        // The instruction is not what touched the device: a stack, or a descriptor table, is there.
        Reason::Stage2 { fault: Fault { address, .. }, .. } if core.hardware.has_event() => {
            vm.end(VmEnd::Crashed(format!(
                "it took an interrupt or exception through guest-physical {address:#x}, which is not RAM"
            )));
        }
        Reason::Stage2 { fault, fetch: false } => mmio(core, vm, fault),
        // A bus that nobody answers on reads as ones, and those are no instruction.
        Reason::Stage2 { fetch: true, .. } => refuse(core, vm, &InstructionBytes::new()),
        Reason::Hypercall => {
            core.hardware.set_gpr(gpr::RAX, NO_SUCH_HYPERCALL);
            finish(core, vm, encoding::VMMCALL);
        }
        Reason::Xsetbv => {
            let hardware = &core.hardware;
            let value = hardware.gpr(gpr::RDX) << 32 | hardware.gpr(gpr::RAX) & LOW;
            let allowed = hardware.gpr(gpr::RCX) & LOW == 0 && hardware.cpl() == 0;
            if hardware.cr4() & CR4_OSXSAVE == 0 {
                core.exception = Some(UNDEFINED);
            } else if allowed && core.extended.set_xcr0(value) {
                finish(core, vm, encoding::XSETBV);
            } else {
                core.exception = Some(GENERAL_PROTECTION);
            }
        }
        Reason::Control { register, write, gpr } => control(core, vm, register, write, gpr),
        Reason::Exception(exception) => core.reflect(exception),
        Reason::Shutdown if let Some(verdict) = machine_check::undelivered() => lost(vm, verdict),
        Reason::Shutdown => {
            let state = core.hardware.state();
            let (rip, rsp, cr3) = (state.rip, state.gpr[gpr::RSP], state.cr3);
            // A PC resets.
            vm.end(VmEnd::FaultReset(format!(
                "triple fault (RIP {rip:#x}, RSP {rsp:#x}, CR3 {cr3:#x}, last page fault at {:#x})",
                core.hardware.cr2()
            )));
        }
        Reason::EndOfInterrupt(vector) => {
            vm.board.lock().chipset.end_of_interrupt(vector, &mut |action| vm.act(action));
        }
        Reason::MachineCheck => {
            if let Some(verdict) = machine_check::take() {
                lost(vm, verdict);
            }
        }
        Reason::Undefined => core.exception = Some(UNDEFINED),
        Reason::Forbidden => core.exception = Some(GENERAL_PROTECTION),
        Reason::Ignored => finish(core, vm, encoding::INVD),
        Reason::TaskSwitch => vm.end(VmEnd::Crashed(format!(
            "it switched tasks by a task gate or selector (RIP {:#x}), which this processor does not do for guests",
            core.hardware.rip()
        ))),
        Reason::HostFault { what, code } => vm.end(VmEnd::Crashed(format!(
            "a fault of the hypervisor's, not of the guest's: {what} {code:#x} (RIP {:#x}); please report it",
            core.hardware.rip()
        ))),
        Reason::Failed(code) => vm.end(VmEnd::Crashed(format!(
            "the processor refused its state (exit code {code:#x}, RIP {:#x})",
            core.hardware.rip()
        ))),
    }
}

/// What a machine check costs.
fn lost(vm: &Vm<'_>, verdict: Verdict) {
    match verdict {
        Verdict::GuestLost(text) => vm.end(VmEnd::Crashed(text)),
        Verdict::HostLost(text) => panic!("{text}"),
    }
}

/// A move from or to a control register, whose general register the processor may have told.
fn control(core: &mut Core, vm: &Vm<'_>, register: ControlRegister, write: bool, told: Option<u8>) {
    let state = core.hardware.state();
    let number = match register {
        ControlRegister::Cr0 => 0,
        ControlRegister::Cr4 => 4,
    };
    let gpr = match told {
        Some(gpr) => gpr,
        None => match emulate::control_move(&state, vm.memory) {
            Ok(Some(found)) if (found.control, found.write) == (number, write) => found.gpr,
            // Another instruction by now: the processor tries again.
            Ok(_) => return,
            Err(failure) => return fail(core, vm, &failure),
        },
    };
    let mask = if state.is_64bit() { u64::MAX } else { LOW };
    let hardware = &mut core.hardware;
    if !write {
        hardware.set_gpr(gpr.into(), hardware.control(register) & mask);
    } else {
        let value = hardware.gpr(gpr.into()) & mask;
        if let Err(GeneralProtection) = hardware.set_control(register, value, vm.memory) {
            core.exception = Some(GENERAL_PROTECTION);
            return;
        }
    }
    finish(core, vm, encoding::VARIOUS);
}

/// Goes on behind the current instruction, which is `encoding` unless it has prefixes.
fn finish(core: &mut Core, vm: &Vm<'_>, encoding: &[u8]) {
    let length = match core.hardware.known_length() {
        Some(length) => Ok(length),
        None => measure(&core.hardware.state(), vm, encoding),
    };
    match length {
        Ok(length) => core.hardware.skip(length),
        Err(failure) => fail(core, vm, &failure),
    }
}

/// Length of the current instruction, for processors that do not tell. Decoding is for those with prefixes.
fn measure(state: &CpuState, vm: &Vm<'_>, encoding: &[u8]) -> Result<u8, Failure> {
    if !encoding.is_empty() && emulate::fetch(state, vm.memory)?.starts_with(encoding) {
        return Ok(encoding.len() as u8);
    }
    emulate::instruction_length(state, vm.memory)
}

fn fail(core: &mut Core, vm: &Vm<'_>, failure: &Failure) {
    match failure {
        Failure::Exception(exception) => core.exception = Some(*exception),
        Failure::Unsupported(bytes) => refuse(core, vm, bytes),
    }
}

/// The guest's software used device memory as the machine cannot: that is an undefined instruction, for which a kernel
/// ends the program that did it, or itself.
fn refuse(core: &mut Core, vm: &Vm<'_>, bytes: &InstructionBytes) {
    if !core::mem::replace(&mut core.refused_instruction, true) {
        let (name, rip, cpl) = (vm.name, core.hardware.rip(), core.hardware.cpl());
        if bytes.is_empty() {
            log::info!(
                "vm {name}: executed at {rip:#x} (privilege level {cpl}), which is not RAM, and got #UD (said once)"
            );
        } else {
            log::info!(
                "vm {name}: an instruction at {rip:#x} (privilege level {cpl}) that device memory does not take got #UD: \
                 {bytes:02x?} (said once)"
            );
        }
    }
    core.exception = Some(UNDEFINED);
}

fn port(core: &mut Core, vm: &Vm<'_>, io: IoExit) {
    let rax = core.hardware.gpr(gpr::RAX);
    let mask = match io.size {
        1 => 0xff,
        2 => 0xffff,
        _ => LOW,
    };
    let kind = if io.input { AccessKind::Read } else { AccessKind::Write(rax & mask) };
    let access = Access { address: io.port.into(), size: io.size, kind };
    let value = access_device(&mut core.lapic, core.tsc_offset, vm, &Exit::Io(access));
    if io.input {
        let keep = if io.size == 4 { 0 } else { rax & !mask };
        core.hardware.set_gpr(gpr::RAX, keep | value & mask);
    }
}

/// One access of the vCPU to its VM's devices.
fn access_device(lapic: &mut LocalApic, tsc_offset: u64, vm: &Vm<'_>, exit: &Exit<'_>) -> u64 {
    let now =
        || Moment { tsc: time::tsc().wrapping_add(tsc_offset), ns: time::now_ns(), unix_ns: time::unix_ns() };
    let mut board = vm.board.lock();
    let answer = board.chipset.exit(exit, lapic, &now, &mut |action| vm.act(action));
    // There is no other vCPU that an inter-processor interrupt could go to.
    answer.map_or(0, |answer| answer.value)
}

fn mmio(core: &mut Core, vm: &Vm<'_>, fault: Fault) {
    let mut state = core.hardware.state();
    let tsc_offset = core.tsc_offset;
    // SAFETY: this is the pCPU that the vCPU runs on, between two entries: its state was loaded before the first.
    let mut vectors = unsafe { core.extended.vectors() };
    let result = emulate::mmio(&mut state, &mut vectors, vm.memory, &mut core.known, fault, &mut |exit| {
        access_device(&mut core.lapic, tsc_offset, vm, exit)
    });
    match result {
        Ok(done) => emulated(core, &state, done),
        Err(failure) => fail(core, vm, &failure),
    }
}

/// Takes over what an emulated instruction left; `done`: it, or an iteration of it, was carried out.
fn emulated(core: &mut Core, state: &CpuState, done: bool) {
    core.hardware.set_state(state);
    if done {
        core.hardware.retire();
    }
}

fn string_io(core: &mut Core, vm: &Vm<'_>) {
    let mut state = core.hardware.state();
    let result = emulate::string_io(&mut state, vm.memory, &mut core.known, &mut |exit| {
        access_device(&mut core.lapic, core.tsc_offset, vm, exit)
    });
    match result {
        Ok(done) => emulated(core, &state, done),
        Err(failure) => fail(core, vm, &failure),
    }
}

fn read_msr(core: &mut Core, vm: &Vm<'_>) {
    let msr = core.hardware.gpr(gpr::RCX) as u32;
    let value = match msr {
        EFER => Ok(core.hardware.efer()),
        IA32_PAT => Ok(core.hardware.pat()),
        IA32_TSC_AUX => core.extended.tsc_aux().ok_or(GeneralProtection),
        _ => core.msrs.read(msr, &core.lapic, core.guest_tsc()),
    };
    match value {
        Ok(value) => {
            core.hardware.set_gpr(gpr::RAX, value & LOW);
            core.hardware.set_gpr(gpr::RDX, value >> 32);
            finish(core, vm, encoding::RDMSR);
        }
        Err(GeneralProtection) => core.exception = Some(GENERAL_PROTECTION),
    }
}

fn write_msr(core: &mut Core, vm: &Vm<'_>) {
    let msr = core.hardware.gpr(gpr::RCX) as u32;
    let value = core.hardware.gpr(gpr::RDX) << 32 | core.hardware.gpr(gpr::RAX) & LOW;
    let now = core.guest_tsc();
    let done = match msr {
        EFER => core.hardware.set_efer(value),
        IA32_PAT => core.hardware.set_pat(value),
        IA32_TSC_AUX => core.extended.set_tsc_aux(value),
        IA32_TSC => {
            core.set_tsc(value, vm.memory);
            true
        }
        _ => {
            let event = core.msrs.write(msr, value, &mut core.lapic, &core.clock, vm.memory, now);
            if let Ok(Some(ApicEvent::EndOfInterrupt { vector })) = event {
                let mut board = vm.board.lock();
                board.chipset.end_of_interrupt(vector, &mut |action| vm.act(action));
            }
            event.is_ok()
        }
    };
    if done {
        finish(core, vm, encoding::WRMSR);
    } else {
        core.exception = Some(GENERAL_PROTECTION);
    }
}

#[cfg(test)]
mod tests;
