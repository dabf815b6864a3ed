// SPDX-License-Identifier: MIT OR Apache-2.0
//! System registers whose access is trapped (exception class 0x18).
//!
//! **Principle.** Data tables say what each register does; this module only looks them up. A register that no
//! table knows is undefined for the guest, is counted, and is logged once per number.
//!
//! What brings an access here says each row of a table ([`crate::el2::traps::Trap`]). Not trapped, and switched with
//! the vCPU where it is state: CTR_EL0, CLIDR_EL1, CCSIDR_EL1, CSSELR_EL1, DCZID_EL0, DISR_EL1, and all of EL1's
//! translation and exception registers.
//!
//! Debug registers of the hardware are to be [`SystemRegisters::debug`] while the guest runs.
//!
//! Source: Arm DDI 0487 (Arm ARM), ESR_ELx, "ISS encoding for an exception from MSR, MRS, or System
//! instruction execution in AArch64 state".

pub mod debug;
pub mod id;
pub mod table;

use alloc::string::String;

use arrayvec::ArrayVec;

use super::gic::SgiGroup;
use crate::system_register::SystemRegister;
use debug::{Counts, Debug};
use table::Behaviour;

/// A trapped access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trap {
    /// What is accessed.
    pub register: SystemRegister,
    /// General register: 0 to 30, or 31 for XZR.
    pub rt: u8,
    /// MRS; otherwise MSR or a system instruction.
    pub read: bool,
}

impl Trap {
    /// From ESR_EL2.ISS of exception class 0x18.
    pub const fn from_iss(iss: u32) -> Self {
        Self {
            register: SystemRegister::new(
                field_of(iss, 20, 3),
                field_of(iss, 14, 7),
                field_of(iss, 10, 0xf),
                field_of(iss, 1, 0xf),
                field_of(iss, 17, 7),
            ),
            rt: field_of(iss, 5, 0x1f),
            read: iss & 1 != 0,
        }
    }
}

const fn field_of(iss: u32, shift: u32, mask: u32) -> u8 {
    (iss >> shift & mask) as u8
}

/// What the vCPU loop does about an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Put this into Rt, and go on behind the instruction.
    Read(u64),
    /// Go on behind the instruction.
    Written,
    /// [`super::gic::Gic::send_sgi`] with this value, and go on behind the instruction.
    Sgi(u64, SgiGroup),
    /// [`super::gic::Gic::deactivate`] of this INTID, and go on behind the instruction.
    Deactivate(u32),
    /// Undefined instruction exception ([`super::exception::Exception::Undefined`]).
    Undefined,
}

/// Numbers of unknown registers that are remembered as logged.
const LOGGED: usize = 32;

/// State and counters of these registers, one per vCPU.
#[derive(Clone, Debug)]
pub struct SystemRegisters {
    vm: String,
    debug: Debug,
    unknown: u64,
    logged: ArrayVec<SystemRegister, LOGGED>,
}

impl SystemRegisters {
    /// After reset. `vm` is the VM's name, for the log.
    pub fn new(vm: impl Into<String>) -> Self {
        Self { vm: vm.into(), debug: Debug::default(), unknown: 0, logged: ArrayVec::new() }
    }

    /// Breakpoints, watchpoints and MDSCR_EL1 for the hardware.
    pub fn debug(&mut self) -> &mut Debug {
        &mut self.debug
    }

    /// Accesses to registers that nobody knows.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Answers an access. `value` is Rt (0 for XZR) where it is a write; `hardware` is for [`id::read`].
    pub fn access(&mut self, trap: Trap, value: u64, hardware: &dyn Fn(SystemRegister) -> u64) -> Outcome {
        if let Some(shown) = id::read(trap.register, hardware) {
            // They are read-only: a write is undefined.
            return if trap.read { Outcome::Read(shown) } else { Outcome::Undefined };
        }
        let Some(entry) = table::find(trap.register) else {
            self.note_unknown(trap);
            return Outcome::Undefined;
        };
        match (entry.behaviour, trap.read) {
            (Behaviour::Reads(constant), true) => Outcome::Read(constant),
            (Behaviour::DebugControl, true) => Outcome::Read(self.debug.control()),
            (Behaviour::Reads(_), false) => Outcome::Written,
            (Behaviour::DebugControl, false) => {
                self.debug.set_control(value);
                Outcome::Written
            }
            (Behaviour::Point(part), read) => {
                let (number, counts) = (trap.register.crm(), Counts::new(hardware(id::DFR0)));
                let outcome = if read {
                    self.debug.read(part, number, counts).map(Outcome::Read)
                } else {
                    let written = self.debug.write(part, number, counts, value);
                    written.map(|()| Outcome::Written)
                };
                outcome.unwrap_or(Outcome::Undefined)
            }
            (Behaviour::Sgi(group), false) => Outcome::Sgi(value, group),
            (Behaviour::Deactivate, false) => {
                /// INTID field of ICC_DIR_EL1.
                const INTID: u64 = 0xff_ffff;
                Outcome::Deactivate((value & INTID) as u32)
            }
            (Behaviour::Sgi(_) | Behaviour::Deactivate, true) | (Behaviour::Undefined, _) => {
                Outcome::Undefined
            }
        }
    }

    fn note_unknown(&mut self, trap: Trap) {
        self.unknown = self.unknown.saturating_add(1);
        let register = trap.register;
        if !self.logged.contains(&register) && self.logged.try_push(register).is_ok() {
            let what = if trap.read { "read of" } else { "write to" };
            log::warn!("vm {}: {what} unknown system register {register}", self.vm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// ISS of MRS or MSR of a register with X3.
    fn iss(op: [u32; 5], read: bool) -> u32 {
        let [op0, op1, crn, crm, op2] = op;
        op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | 3 << 5 | crm << 1 | u32::from(read)
    }

    struct Rig(SystemRegisters);

    impl Rig {
        fn new() -> Self {
            Self(SystemRegisters::new("alpha"))
        }

        fn read(&mut self, op: [u32; 5]) -> Outcome {
            self.0.access(Trap::from_iss(iss(op, true)), 0, &|_| u64::MAX)
        }

        fn write(&mut self, op: [u32; 5], value: u64) -> Outcome {
            self.0.access(Trap::from_iss(iss(op, false)), value, &|_| u64::MAX)
        }
    }

    #[test]
    fn a_syndrome_names_its_register() {
        let trap = Trap::from_iss(iss([3, 3, 14, 2, 1], true));
        let expected = Trap { register: SystemRegister::new(3, 3, 14, 2, 1), rt: 3, read: true };
        assert_eq!((trap, trap.register.to_string().as_str()), (expected, "S3_3_C14_C2_1"));
    }

    #[test]
    fn what_linux_touches_at_start_is_answered() {
        let mut rig = Rig::new();
        // OS locks.
        assert_eq!(rig.write([2, 0, 1, 3, 4], 0), Outcome::Written);
        assert_eq!(rig.write([2, 0, 1, 0, 4], 0), Outcome::Written);
        assert_eq!(rig.read([2, 0, 1, 1, 4]), Outcome::Read(8));
        // Breakpoints and watchpoints, each of those that ID_AA64DFR0_EL1 names.
        for crm in 0..16 {
            for op2 in 4..8 {
                assert_eq!(rig.write([2, 0, 0, crm, op2], 0x1e5), Outcome::Written);
                assert_eq!(rig.read([2, 0, 0, crm, op2]), Outcome::Read(0x1e5));
            }
        }
        assert!(rig.0.debug().in_use());
        assert_eq!(rig.read([3, 0, 12, 12, 5]), Outcome::Read(7));
        assert_eq!(rig.read([3, 0, 0, 1, 4]), Outcome::Read(0), "ID_MMFR0_EL1");
        assert_eq!(rig.read([3, 0, 0, 0, 6]), Outcome::Read(0), "REVIDR_EL1");
        assert_eq!(rig.0.unknown(), 0);
    }

    #[test]
    fn debug_control_is_kept_without_what_stops_the_processor() {
        let mut rig = Rig::new();
        assert_eq!(rig.write([2, 0, 0, 2, 2], u64::MAX), Outcome::Written);
        assert_eq!(rig.read([2, 0, 0, 2, 2]), Outcome::Read(0xb001));
        assert_eq!(rig.0.debug().control(), 0xb001);
    }

    #[test]
    fn interrupts_are_sent_and_deactivated_by_writes_only() {
        let mut rig = Rig::new();
        assert_eq!(rig.write([3, 0, 12, 11, 5], 0x100_0001), Outcome::Sgi(0x100_0001, SgiGroup::Group1));
        assert_eq!(rig.write([3, 0, 12, 11, 7], 1), Outcome::Sgi(1, SgiGroup::Group0));
        assert_eq!(rig.write([3, 0, 12, 11, 1], 0xff00_001b), Outcome::Deactivate(27));
        assert_eq!(rig.read([3, 0, 12, 11, 5]), Outcome::Undefined);
        assert_eq!(rig.read([3, 0, 12, 11, 1]), Outcome::Undefined);
    }

    #[test]
    fn what_is_not_offered_is_undefined_without_a_word() {
        let mut rig = Rig::new();
        for op in [[3, 3, 9, 12, 0], [3, 0, 2, 1, 0], [3, 0, 1, 2, 0], [3, 3, 14, 2, 1]] {
            assert_eq!(rig.read(op), Outcome::Undefined);
            assert_eq!(rig.write(op, 0), Outcome::Undefined);
        }
        assert_eq!(rig.write([3, 0, 0, 4, 0], 0), Outcome::Undefined, "ID registers are read-only");
        assert_eq!(rig.0.unknown(), 0);
    }

    proptest! {
        #[test]
        fn any_access_is_answered_and_what_nobody_knows_is_counted(iss: u32, value: u64) {
            let mut registers = SystemRegisters::new("alpha");
            let trap = Trap::from_iss(iss);
            let outcome = registers.access(trap, value, &|_| value);
            if registers.unknown() == 1 {
                prop_assert_eq!(outcome, Outcome::Undefined);
            }
            prop_assert!(trap.read || !matches!(outcome, Outcome::Read(_)));
            prop_assert!(!trap.read || !matches!(outcome, Outcome::Written));
        }
    }
}
