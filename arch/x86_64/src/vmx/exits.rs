// SPDX-License-Identifier: MIT OR Apache-2.0
//! From exit reasons to reasons (SDM 3, appendix C; 28.2.1 for qualifications).

use super::vmcs::{Field, Vmcs};
use crate::backend::event::{ALIGNMENT_CHECK, DEBUG_EXCEPTION};
use crate::backend::{ControlRegister, IoExit, Reason};
use crate::emulate::Fault;

/// Basic exit reasons.
pub mod code {
    /// An exception, or an NMI.
    pub const EXCEPTION: u16 = 0;
    /// An external interrupt.
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    /// A triple fault.
    pub const TRIPLE_FAULT: u16 = 2;
    /// INIT, SIPI, two kinds of SMI.
    pub const INIT: u16 = 3;
    pub const OTHER_SMI: u16 = 6;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const TASK_SWITCH: u16 = 9;
    pub const CPUID: u16 = 10;
    pub const GETSEC: u16 = 11;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const RDPMC: u16 = 15;
    pub const VMCALL: u16 = 18;
    /// VMCLEAR, the first of the instructions of VMX.
    pub const VMCLEAR: u16 = 19;
    /// VMXON, the last of them.
    pub const VMXON: u16 = 27;
    pub const CONTROL_REGISTER: u16 = 28;
    pub const IO: u16 = 30;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const INVALID_GUEST_STATE: u16 = 33;
    pub const MWAIT: u16 = 36;
    pub const MONITOR: u16 = 39;
    pub const MACHINE_CHECK_AT_ENTRY: u16 = 41;
    pub const TPR_BELOW_THRESHOLD: u16 = 43;
    /// The guest has ended an interrupt that others must hear of.
    pub const VIRTUALIZED_EOI: u16 = 45;
    pub const EPT_VIOLATION: u16 = 48;
    pub const EPT_MISCONFIGURATION: u16 = 49;
    pub const INVEPT: u16 = 50;
    pub const INVVPID: u16 = 53;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
    pub const VMFUNC: u16 = 59;
    pub const ENCLS: u16 = 60;
}

/// Exit reason: the entry failed.
pub const ENTRY_FAILED: u32 = 1 << 31;

/// Exit interruption information.
pub mod interruption {
    /// An NMI.
    pub const NMI: u64 = 2 << 8;
    /// INT1.
    pub const INT1: u64 = 5 << 8;
    /// Mask of the type.
    pub const TYPE: u64 = 7 << 8;
    /// Mask of the vector.
    pub const VECTOR: u64 = 0xff;
    /// An IRET had unblocked NMIs when it faulted. In the qualification of an EPT violation, too.
    pub const NMI_UNBLOCKED: u64 = 1 << 12;
}

/// Qualification of an EPT violation.
mod violation {
    pub const WRITE: u64 = 1 << 1;
    pub const FETCH: u64 = 1 << 2;
    /// There is a linear address.
    pub const LINEAR: u64 = 1 << 7;
    /// The address is the final one, not that of a guest's page table.
    pub const FINAL: u64 = 1 << 8;
}

/// Qualification of a port access.
mod io {
    pub const SIZE: u64 = 7;
    pub const INPUT: u64 = 1 << 3;
    pub const STRING: u64 = 1 << 4;
    pub const PORT_SHIFT: u32 = 16;
}

/// Qualification of a control-register access.
mod control {
    pub const NUMBER: u64 = 0xf;
    pub const KIND_SHIFT: u32 = 4;
    pub const KIND: u64 = 3;
    pub const MOVE_TO: u64 = 0;
    pub const GPR_SHIFT: u32 = 8;
}

/// Vectors of exceptions that leave the guest.
const DEBUG: u64 = 1;
const ALIGNMENT: u64 = 17;
const MACHINE_CHECK: u64 = 18;

/// An exit, as far as several ask for it. Each field is read once.
#[derive(Clone, Copy, Default, Debug)]
pub struct Exit {
    /// Reason, with its flags.
    pub reason: u32,
    /// Qualification.
    pub qualification: u64,
    /// Guest-physical address, where EPT is why.
    pub address: u64,
}

impl Exit {
    /// The last one of the guest whose VMCS it is.
    pub fn read(vmcs: &Vmcs) -> Self {
        let reason = vmcs.read(Field::ExitReason) as u32;
        let address = match reason as u16 {
            code::EPT_VIOLATION | code::EPT_MISCONFIGURATION => vmcs.read(Field::GuestPhysicalAddress),
            _ => 0,
        };
        Self { reason, qualification: vmcs.read(Field::Qualification), address }
    }
}

/// Why the guest stopped. What few exits tell is read from the VMCS.
pub fn reason(vmcs: &Vmcs, exit: &Exit) -> Reason {
    let Exit { reason, qualification, address } = *exit;
    let code = reason as u16;
    if reason & ENTRY_FAILED != 0 {
        return match code {
            code::MACHINE_CHECK_AT_ENTRY => Reason::MachineCheck,
            code::INVALID_GUEST_STATE => Reason::Failed(reason.into()),
            _ => Reason::HostFault { what: "a VM entry failed, exit reason", code: reason.into() },
        };
    }
    match code {
        code::EXCEPTION => {
            let information = vmcs.read(Field::ExitInterruption);
            match information & interruption::VECTOR {
                _ if information & interruption::TYPE == interruption::NMI => Reason::HostInterrupt,
                DEBUG => Reason::Exception(DEBUG_EXCEPTION),
                ALIGNMENT => Reason::Exception(ALIGNMENT_CHECK),
                MACHINE_CHECK => Reason::MachineCheck,
                vector => Reason::HostFault { what: "an exception left the guest, vector", code: vector },
            }
        }
        code::EXTERNAL_INTERRUPT | code::INIT..=code::OTHER_SMI => Reason::HostInterrupt,
        code::TRIPLE_FAULT => Reason::Shutdown,
        code::INTERRUPT_WINDOW | code::NMI_WINDOW | code::TPR_BELOW_THRESHOLD => Reason::InterruptWindow,
        code::TASK_SWITCH => Reason::TaskSwitch,
        code::CPUID => Reason::Cpuid,
        code::HLT => Reason::Halt,
        // All that a guest reaches is coherent with the caches.
        code::INVD | code::WBINVD => Reason::Ignored,
        code::RDPMC => Reason::Forbidden,
        code::VMCALL => Reason::Hypercall,
        code::CONTROL_REGISTER => control_register(qualification),
        code::IO => Reason::Io(port(qualification)),
        code::RDMSR => Reason::ReadMsr,
        code::WRMSR => Reason::WriteMsr,
        code::MACHINE_CHECK_AT_ENTRY => Reason::MachineCheck,
        code::VIRTUALIZED_EOI => Reason::EndOfInterrupt(qualification as u8),
        code::EPT_VIOLATION => violation(qualification, address),
        code::EPT_MISCONFIGURATION => {
            Reason::HostFault { what: "EPT has an entry that cannot be, for guest-physical", code: address }
        }
        code::XSETBV => Reason::Xsetbv,
        code::GETSEC
        | code::VMCLEAR..=code::VMXON
        | code::MWAIT
        | code::MONITOR
        | code::INVEPT
        | code::INVVPID
        | code::VMFUNC
        | code::ENCLS => Reason::Undefined,
        _ => Reason::Failed(reason.into()),
    }
}

/// Whether the exit is an instruction's, so that its length is known.
pub fn is_instruction(reason: u32) -> bool {
    matches!(
        reason as u16,
        code::TASK_SWITCH..=code::IO
            | code::RDMSR
            | code::WRMSR
            | code::MWAIT
            | code::MONITOR
            | code::INVEPT
            | code::INVVPID..=code::XSETBV
            | code::VMFUNC..=code::ENCLS
    )
}

fn violation(qualification: u64, address: u64) -> Reason {
    // Where there is no linear address, the processor reads its own tables: of the guest, nobody's instruction.
    let translated =
        qualification & (violation::LINEAR | violation::FINAL) == violation::LINEAR | violation::FINAL;
    let fault = Fault { address, write: qualification & violation::WRITE != 0, translated };
    Reason::Stage2 { fault, fetch: qualification & violation::FETCH != 0 }
}

fn port(qualification: u64) -> IoExit {
    IoExit {
        port: (qualification >> io::PORT_SHIFT) as u16,
        size: (qualification & io::SIZE) as u8 + 1,
        input: qualification & io::INPUT != 0,
        string: qualification & io::STRING != 0,
    }
}

fn control_register(qualification: u64) -> Reason {
    let register = match qualification & control::NUMBER {
        0 => ControlRegister::Cr0,
        4 => ControlRegister::Cr4,
        number => return Reason::HostFault { what: "an access left the guest, to CR", code: number },
    };
    // CLTS and LMSW change no bit that the guest does not have; reads are served from the shadow.
    if qualification >> control::KIND_SHIFT & control::KIND != control::MOVE_TO {
        return Reason::HostFault { what: "a control register was used, qualification", code: qualification };
    }
    let gpr = Some((qualification >> control::GPR_SHIFT & 0xf) as u8);
    Reason::Control { register, write: true, gpr }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualifications_are_decoded() {
        let out = IoExit { port: 0x3f8, size: 1, input: false, string: false };
        assert_eq!(port(0x3f8 << 16), out);
        let ins = IoExit { port: 0xcfc, size: 4, input: true, string: true };
        assert_eq!(port(0xcfc << 16 | 3 | 1 << 3 | 1 << 4), ins);
        let moved = |register, gpr| Reason::Control { register, write: true, gpr: Some(gpr) };
        assert_eq!(control_register(9 << 8), moved(ControlRegister::Cr0, 9));
        assert_eq!(control_register(4 | 15 << 8), moved(ControlRegister::Cr4, 15));
        assert!(matches!(control_register(3), Reason::HostFault { code: 3, .. }));
        let walked = Fault { address: 0x5000, write: true, translated: false };
        assert_eq!(violation(0x82, 0x5000), Reason::Stage2 { fault: walked, fetch: false });
        let fetched = Fault { address: 0x5000, write: false, translated: true };
        assert_eq!(violation(0x184, 0x5000), Reason::Stage2 { fault: fetched, fetch: true });
    }
}
