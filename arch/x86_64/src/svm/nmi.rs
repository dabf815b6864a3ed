// SPDX-License-Identifier: MIT OR Apache-2.0
//! NMIs one after the other: none while the handler of the last one runs.
//!
//! **Principle.** A processor blocks NMIs from the delivery of one until an IRET is complete. SVM does not do that for
//! injected ones, but stops the guest *before* its IRET. Whether that IRET is complete then shows in RIP and RSP at
//! the next exit. Where an NMI waits, the IRET is carried out as a single step, whose #DB is that exit.
//! **Limit.** An IRET that faults during that step leaves TF in the flags that its handler finds on the stack.
//!
//! Source: AMD APM volume 2, 8.2.3 "NMI", 15.9 (IRET intercept), 13.1.1 (DR6).

use super::RSP;
use super::vmcb::{Vmcb, exit_code, intercept};
use crate::backend::Context;
use crate::backend::vcpu::{DR6_BS, RFLAGS_TF};

/// Whether an NMI can be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NmiGate {
    /// Yes.
    #[default]
    Open,
    /// The handler of the last one runs.
    Closed,
    /// It has come to its IRET.
    Returning {
        /// RIP of the IRET.
        rip: u64,
        /// RSP at the IRET.
        rsp: u64,
        /// DR6 of before the step that carries it out; `None` where there is no step, or it is the guest's own.
        step: Option<u64>,
    },
}

impl NmiGate {
    /// An NMI is delivered at the next entry.
    pub fn close(&mut self, vmcb: &mut Vmcb) {
        *self = Self::Closed;
        vmcb.control.intercept_misc1 |= intercept::IRET;
    }

    /// It is not delivered after all.
    pub fn reopen(&mut self, vmcb: &mut Vmcb) {
        *self = Self::Open;
        vmcb.control.intercept_misc1 &= !intercept::IRET;
    }

    /// An NMI waits: has the guest stop as soon as it can be delivered. Returns whether that is after the next
    /// instruction, before which nothing else must be delivered.
    pub fn hasten(&mut self, vmcb: &mut Vmcb, context: &mut Context) -> bool {
        let Self::Returning { step, .. } = self else {
            return false;
        };
        let save = &mut vmcb.save;
        if context.rflags & RFLAGS_TF == 0 {
            *step = Some(save.dr6);
            save.dr6 &= !DR6_BS;
            context.rflags |= RFLAGS_TF;
        }
        true
    }

    /// The guest stopped. Returns whether that was for this gate only, and means nothing else.
    pub fn left(&mut self, vmcb: &mut Vmcb, context: &Context) -> bool {
        let save = &mut vmcb.save;
        let code = vmcb.control.exit_code;
        let now = (context.rip, context.gpr[RSP]);
        match *self {
            Self::Closed if code == exit_code::IRET => {
                vmcb.control.intercept_misc1 &= !intercept::IRET;
                *self = Self::Returning { rip: now.0, rsp: now.1, step: None };
                true
            }
            Self::Returning { rip, rsp, step } if (rip, rsp) != now => {
                *self = Self::Open;
                let Some(before) = step else { return false };
                let stepped = code == exit_code::EXCEPTION_DB && save.dr6 & DR6_BS != 0;
                // The step was not the guest's; what else happened in it is.
                let others = save.dr6 & !DR6_BS;
                save.dr6 = others | before & DR6_BS;
                stepped && others == before & !DR6_BS
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIP: u64 = 0x1000;
    const DR6: u64 = 0xffff_0ff0;

    /// A guest at the IRET of its handler.
    fn at_iret() -> (alloc::boxed::Box<Vmcb>, Context, NmiGate) {
        let (mut vmcb, mut context) = (Vmcb::zeroed(), Context::default());
        let mut gate = NmiGate::default();
        gate.close(&mut vmcb);
        assert_ne!(vmcb.control.intercept_misc1 & intercept::IRET, 0);
        assert!(!gate.hasten(&mut vmcb, &mut context), "the handler has to come to its IRET first");
        context.rip = RIP;
        vmcb.save.dr6 = DR6;
        vmcb.control.exit_code = exit_code::CPUID;
        assert!(!gate.left(&mut vmcb, &context));
        assert_eq!(gate, NmiGate::Closed);
        vmcb.control.exit_code = exit_code::IRET;
        assert!(gate.left(&mut vmcb, &context));
        assert_eq!(vmcb.control.intercept_misc1 & intercept::IRET, 0, "or it came for ever");
        (vmcb, context, gate)
    }

    #[test]
    fn the_gate_opens_behind_the_iret_and_not_before() {
        let (mut vmcb, mut context, mut gate) = at_iret();
        vmcb.control.exit_code = exit_code::INTR;
        assert!(!gate.left(&mut vmcb, &context));
        assert_ne!(gate, NmiGate::Open, "the IRET has not been carried out yet");
        context.gpr[RSP] += 40;
        assert!(!gate.left(&mut vmcb, &context));
        assert_eq!(gate, NmiGate::Open);
    }

    #[test]
    fn a_waiting_nmi_steps_over_the_iret_and_the_guest_does_not_notice() {
        let (mut vmcb, mut context, mut gate) = at_iret();
        assert!(gate.hasten(&mut vmcb, &mut context) && gate.hasten(&mut vmcb, &mut context));
        assert_ne!(context.rflags & RFLAGS_TF, 0);
        // IRET loads the flags from the stack.
        context.rflags = 2;
        (context.rip, vmcb.save.dr6) = (0x2000, DR6 | DR6_BS);
        vmcb.control.exit_code = exit_code::EXCEPTION_DB;
        assert!(gate.left(&mut vmcb, &context));
        assert_eq!((gate, vmcb.save.dr6), (NmiGate::Open, DR6));
    }

    #[test]
    fn a_breakpoint_in_that_step_is_the_guests() {
        let (mut vmcb, mut context, mut gate) = at_iret();
        assert!(gate.hasten(&mut vmcb, &mut context));
        (context.rip, vmcb.save.dr6) = (0x2000, DR6 | DR6_BS | 1);
        vmcb.control.exit_code = exit_code::EXCEPTION_DB;
        assert!(!gate.left(&mut vmcb, &context));
        assert_eq!(vmcb.save.dr6, DR6 | 1);

        let (mut vmcb, mut context, mut gate) = at_iret();
        context.rflags = RFLAGS_TF;
        assert!(gate.hasten(&mut vmcb, &mut context));
        (context.rip, vmcb.save.dr6) = (0x2000, DR6 | DR6_BS);
        vmcb.control.exit_code = exit_code::EXCEPTION_DB;
        assert!(!gate.left(&mut vmcb, &context), "the guest steps itself");
        assert_eq!(vmcb.save.dr6, DR6 | DR6_BS);
    }
}
