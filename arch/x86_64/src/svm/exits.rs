// SPDX-License-Identifier: MIT OR Apache-2.0
//! From exit codes to reasons (APM 2, appendix C).

use super::vmcb::{Vmcb, exit_code};
use crate::backend::event::{ALIGNMENT_CHECK, DEBUG_EXCEPTION};
use crate::backend::{ControlRegister, IoExit, Reason};
use crate::emulate::Fault;

/// EXITINFO1 of a port access (APM 2, 15.10.2).
mod ioio {
    pub const INPUT: u64 = 1 << 0;
    pub const STRING: u64 = 1 << 2;
    pub const SIZE16: u64 = 1 << 5;
    pub const SIZE32: u64 = 1 << 6;
    pub const PORT_SHIFT: u32 = 16;
}

/// EXITINFO1 of a nested page fault (APM 2, 15.25.6).
mod npf {
    pub const WRITE: u64 = 1 << 1;
    pub const FETCH: u64 = 1 << 4;
    /// The address is the final one, not that of a guest's page table.
    pub const FINAL: u64 = 1 << 32;
}
/// EXITINFO1 of an MSR exit: a write.
const MSR_WRITE: u64 = 1;

/// EXITINFO1 of a control-register exit, with decode assists: it was a MOV, and its general register.
mod control {
    pub const MOV: u64 = 1 << 63;
    pub const GPR: u64 = 0xf;
}

/// Why the guest stopped. `decode_assists`: whether the processor tells operands.
pub fn reason(vmcb: &Vmcb, decode_assists: bool) -> Reason {
    let control = &vmcb.control;
    match control.exit_code {
        exit_code::INTR | exit_code::NMI | exit_code::SMI | exit_code::INIT => Reason::HostInterrupt,
        exit_code::CR4_READ | exit_code::CR4_WRITE => Reason::Control {
            register: ControlRegister::Cr4,
            write: control.exit_code == exit_code::CR4_WRITE,
            gpr: (decode_assists && control.exit_info1 & control::MOV != 0)
                .then_some((control.exit_info1 & control::GPR) as u8),
        },
        exit_code::EXCEPTION_DB => Reason::Exception(DEBUG_EXCEPTION),
        exit_code::EXCEPTION_AC => Reason::Exception(ALIGNMENT_CHECK),
        exit_code::EXCEPTION_MC => Reason::MachineCheck,
        exit_code::VINTR => Reason::InterruptWindow,
        exit_code::CPUID => Reason::Cpuid,
        exit_code::HLT => Reason::Halt,
        exit_code::IOIO => Reason::Io(io(control.exit_info1)),
        exit_code::MSR if control.exit_info1 & MSR_WRITE != 0 => Reason::WriteMsr,
        exit_code::MSR => Reason::ReadMsr,
        exit_code::NPF => {
            let (address, info) = (control.exit_info2, control.exit_info1);
            let fault = Fault { address, write: info & npf::WRITE != 0, translated: info & npf::FINAL != 0 };
            Reason::Stage2 { fault, fetch: info & npf::FETCH != 0 }
        }
        exit_code::VMMCALL => Reason::Hypercall,
        exit_code::XSETBV => Reason::Xsetbv,
        exit_code::SHUTDOWN => Reason::Shutdown,
        exit_code::RDPMC => Reason::Forbidden,
        // All that a guest reaches is coherent with the caches.
        exit_code::INVD | exit_code::WBINVD => Reason::Ignored,
        exit_code::VMRUN
        | exit_code::VMLOAD
        | exit_code::VMSAVE
        | exit_code::STGI
        | exit_code::CLGI
        | exit_code::SKINIT
        | exit_code::INVLPGA
        | exit_code::MONITOR
        | exit_code::MWAIT
        | exit_code::MWAIT_ARMED
        | exit_code::RDPRU => Reason::Undefined,
        code => Reason::Failed(code),
    }
}

fn io(info: u64) -> IoExit {
    IoExit {
        port: (info >> ioio::PORT_SHIFT) as u16,
        size: if info & ioio::SIZE32 != 0 {
            4
        } else if info & ioio::SIZE16 != 0 {
            2
        } else {
            1
        },
        input: info & ioio::INPUT != 0,
        string: info & ioio::STRING != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_accesses_are_decoded() {
        let out = io(0x3f8 << ioio::PORT_SHIFT | 1 << 4);
        assert_eq!(out, IoExit { port: 0x3f8, size: 1, input: false, string: false });
        let ins = io(0xcfc << ioio::PORT_SHIFT | ioio::SIZE32 | ioio::INPUT | ioio::STRING);
        assert_eq!(ins, IoExit { port: 0xcfc, size: 4, input: true, string: true });
    }

    #[test]
    fn an_unknown_code_is_reported_as_it_is() {
        let mut vmcb = Vmcb::zeroed();
        for code in [u64::MAX, 0x3000] {
            vmcb.control.exit_code = code;
            assert_eq!(reason(&vmcb, true), Reason::Failed(code));
        }
    }

    #[test]
    fn operands_are_believed_only_where_the_processor_tells_them() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.control.exit_code = exit_code::CR4_WRITE;
        vmcb.control.exit_info1 = control::MOV | 11;
        let told = |gpr| Reason::Control { register: ControlRegister::Cr4, write: true, gpr };
        assert_eq!(reason(&vmcb, true), told(Some(11)));
        assert_eq!(reason(&vmcb, false), told(None));
        vmcb.control.exit_info1 = 0;
        assert_eq!(reason(&vmcb, true), told(None), "not by a MOV");
    }
}
