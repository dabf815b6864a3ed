// SPDX-License-Identifier: MIT OR Apache-2.0
//! Here: values. Below: guests, on a processor that others have written.

mod events;
mod guest;
mod instructions;
mod interrupts;
mod translations;

use super::*;
use crate::emulate::Exception;
use crate::guest::control::tests::policy;

const CR0_PG: u64 = 1 << 31;

fn vcpu() -> SvmVcpu {
    SvmVcpu::new(HostPhys(0x1000), 0, policy(true))
}

#[test]
fn a_guest_never_sees_svm_in_efer() {
    let mut vcpu = vcpu();
    assert!(!vcpu.set_efer(EFER_SVME), "reserved for it");
    let (lme, nxe) = (Efer::LME.bits(), Efer::NXE.bits());
    assert!(vcpu.set_efer(lme | nxe));
    assert_eq!(vcpu.efer(), lme | nxe);
    assert_ne!(vcpu.vmcb.save.efer & EFER_SVME, 0, "VMRUN demands it");
    vcpu.vmcb.save.cr0 = CR0_PG;
    assert!(!vcpu.set_efer(nxe), "LME is fixed while paging is on");
    assert!(vcpu.set_efer(lme | Efer::SCE.bits()));
}

#[test]
fn pat_types_that_do_not_exist_are_refused() {
    let mut vcpu = vcpu();
    assert!(!vcpu.set_pat(2) && !vcpu.set_pat(8 << 56));
    assert!(vcpu.set_pat(PAT_RESET));
    assert_eq!(vcpu.pat(), PAT_RESET);
}

#[test]
fn skipping_wraps_outside_of_long_mode_and_ends_the_shadow() {
    let mut vcpu = vcpu();
    vcpu.vmcb.save.rip = 0xffff_ffff;
    vcpu.vmcb.control.interrupt_shadow = 1;
    vcpu.vmcb.save.rflags = RFLAGS_IF | RFLAGS_FIXED;
    assert!(!vcpu.interruptible());
    vcpu.skip(2);
    assert_eq!(vcpu.vmcb.save.rip, 1);
    assert!(vcpu.interruptible());
    vcpu.inject(Event::Nmi);
    assert!(!vcpu.interruptible());
}

#[test]
fn what_a_guest_could_loop_in_for_ever_or_turn_on_for_itself_is_intercepted() {
    let vcpu = vcpu();
    let control = &vcpu.vmcb.control;
    for (vector, name) in [(1, "#DB"), (17, "#AC"), (18, "#MC")] {
        assert_ne!(control.intercept_exceptions & 1 << vector, 0, "{name}");
    }
    assert_eq!(control.intercept_cr, 1 << 4 | 1 << 20, "CR4, read and written");
}

#[test]
fn machine_checks_are_the_hypervisors_whatever_the_guest_sees() {
    let mut vcpu = vcpu();
    let mce = Cr4::MCE.bits();
    vcpu.put_cr4(0x20);
    for (written, seen) in [(0x20, 0x20), (0x20 | mce, 0x20 | mce), (0x620, 0x620)] {
        assert!(vcpu.set_cr4(written));
        assert_eq!((vcpu.cr4(), vcpu.state().cr4), (seen, seen));
        assert_ne!(vcpu.vmcb.save.cr4 & mce, 0, "while the guest runs");
    }
}

#[test]
fn a_change_of_paging_drops_translations() {
    let mut vcpu = vcpu();
    vcpu.put_cr4(0xa0);
    assert!(vcpu.set_cr4(0x6a0));
    assert!(!vcpu.flush, "SSE has nothing to do with it");
    assert!(vcpu.set_cr4(0x620), "PGE");
    assert!(vcpu.flush);
}

#[test]
fn an_instruction_that_is_refused_changes_nothing() {
    let mut vcpu = vcpu();
    vcpu.put_cr4(0x20);
    const PKE: u64 = 1 << 22;
    assert!(!vcpu.set_cr4(0x20 | PKE));
    assert_eq!(vcpu.cr4(), 0x20);
}

#[test]
fn a_step_over_what_the_hypervisor_does_ends_behind_it() {
    let mut vcpu = vcpu();
    vcpu.vmcb.save.rflags = RFLAGS_TF | RFLAGS_RF | RFLAGS_FIXED;
    vcpu.vmcb.save.dr7 = DR7_RESET | DR7_GD;
    vcpu.vmcb.save.dr6 = DR6_RESET;
    vcpu.skip(2);
    let save = &vcpu.vmcb.save;
    assert_eq!((save.rip, save.rflags & RFLAGS_RF), (2, 0));
    assert_eq!((save.dr6, save.dr7), (DR6_RESET | DR6_BS, DR7_RESET));
    assert_eq!(vcpu.take_event(), Some(Event::Exception(event::DEBUG_EXCEPTION)));

    vcpu.vmcb.save.rflags = RFLAGS_FIXED;
    vcpu.skip(2);
    assert!(!vcpu.has_event(), "it does not step");
}

#[test]
fn a_fault_comes_back_to_its_instruction_without_its_breakpoint() {
    let mut vcpu = vcpu();
    let plain = |vector| Exception { vector, error_code: None, cr2: None };
    vcpu.inject(Event::Exception(event::DEBUG_EXCEPTION));
    assert_eq!(vcpu.vmcb.save.rflags & RFLAGS_RF, 0);
    vcpu.inject(Event::Exception(plain(6)));
    assert_ne!(vcpu.vmcb.save.rflags & RFLAGS_RF, 0);
}

#[test]
fn an_nmi_that_was_taken_back_can_come_again() {
    let mut vcpu = vcpu();
    vcpu.inject(Event::Nmi);
    assert!(!vcpu.nmi_open());
    assert_eq!(vcpu.take_event(), Some(Event::Nmi));
    assert!(vcpu.nmi_open() && !vcpu.has_event());
}
