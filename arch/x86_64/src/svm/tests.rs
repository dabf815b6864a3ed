// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is SVM's alone. The rest is in [`crate::extension`]'s tests.

use pasidon_cpu::{Model, Processor};

use super::*;
use crate::backend::event::DEBUG_EXCEPTION;
use crate::backend::vcpu::{DR6_BS, DR7_GD, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF, Vcpu};
use crate::backend::{ControlRegister, Event};
use crate::cpu::{self, msr};
use crate::emulate::Exception;
use crate::extension::tests::guest::{Poke, frames};
use crate::guest::control::tests::policy;
use pasidon_arch_common::testing::TestMemory;

const CR0_PG: u64 = 1 << 31;

impl SvmVcpu {
    /// Changes what only code of the guest could.
    pub(crate) fn poke(&mut self, poke: Poke) {
        let save = &mut self.vmcb.save;
        match poke {
            Poke::Idt(base, limit) => (save.idtr.base, save.idtr.limit) = (base, limit.into()),
            Poke::Cr3(value) => save.cr3 = value,
            Poke::SystemCalls(_) => {}
            Poke::User => {
                save.cr0 |= 1 << 18;
                save.cpl = 3;
                for segment in [&mut save.cs, &mut save.ss] {
                    segment.selector |= 3;
                    segment.attributes |= 3 << 5;
                }
            }
        }
    }
}

impl SvmPcpu {
    /// Has it believe that the processor has so many ASIDs for guests.
    pub(crate) fn have_guest_asids(&mut self, count: u32) {
        self.asids = pcpu::Asids::new(count + 1);
    }
}

fn vcpu() -> Vcpu<SvmVcpu> {
    Vcpu::new(SvmVcpu::new(HostPhys(0x1000), 0), policy(true))
}

fn set_cr4(vcpu: &mut Vcpu<SvmVcpu>, value: u64) -> bool {
    vcpu.set_control(ControlRegister::Cr4, value, &TestMemory::new(0, 0x1000)).is_ok()
}
#[test]
fn a_guest_never_sees_svm_in_efer() {
    let mut vcpu = vcpu();
    assert!(!vcpu.set_efer(EFER_SVME), "reserved for it");
    let (lme, nxe) = (Efer::LME.bits(), Efer::NXE.bits());
    assert!(vcpu.set_efer(lme | nxe));
    assert_eq!(vcpu.efer(), lme | nxe);
    assert_ne!(vcpu.parts().0.vmcb.save.efer & EFER_SVME, 0, "VMRUN demands it");
    vcpu.parts().0.vmcb.save.cr0 = CR0_PG;
    assert!(!vcpu.set_efer(nxe), "LME is fixed while paging is on");
    assert!(vcpu.set_efer(lme | Efer::SCE.bits()));
}

#[test]
fn pat_types_that_do_not_exist_are_refused() {
    let mut vcpu = vcpu();
    assert!(!vcpu.set_pat(2) && !vcpu.set_pat(8 << 56));
    assert!(vcpu.set_pat(PAT_AFTER_RESET));
    assert_eq!(vcpu.pat(), PAT_AFTER_RESET);
}

#[test]
fn skipping_wraps_outside_of_long_mode_and_ends_the_shadow() {
    let mut vcpu = vcpu();
    let (block, context) = vcpu.parts();
    block.vmcb.control.interrupt_shadow = 1;
    (context.rip, context.rflags) = (0xffff_ffff, RFLAGS_IF | RFLAGS_FIXED);
    assert!(!vcpu.interruptible());
    vcpu.skip(2);
    assert_eq!(vcpu.rip(), 1);
    assert!(vcpu.interruptible());
    vcpu.inject(Event::Nmi);
    assert!(!vcpu.interruptible());
}

#[test]
fn what_a_guest_could_loop_in_for_ever_or_turn_on_for_itself_is_intercepted() {
    let mut vcpu = vcpu();
    let control = &vcpu.parts().0.vmcb.control;
    for (vector, name) in [(1, "#DB"), (17, "#AC"), (18, "#MC")] {
        assert_ne!(control.intercept_exceptions & 1 << vector, 0, "{name}");
    }
    assert_eq!(control.intercept_cr, 1 << 4 | 1 << 20, "CR4, read and written");
}

#[test]
fn machine_checks_are_the_hypervisors_whatever_the_guest_sees() {
    let mut vcpu = vcpu();
    let mce = Cr4::MCE.bits();
    vcpu.parts().0.put_cr4(0x20);
    for (written, seen) in [(0x20, 0x20), (0x20 | mce, 0x20 | mce), (0x620, 0x620)] {
        assert!(set_cr4(&mut vcpu, written));
        assert_eq!((vcpu.cr4(), vcpu.state().cr4), (seen, seen));
        assert_ne!(vcpu.parts().0.vmcb.save.cr4 & mce, 0, "while the guest runs");
    }
}

#[test]
fn a_change_of_paging_drops_translations() {
    let mut vcpu = vcpu();
    vcpu.parts().0.put_cr4(0xa0);
    assert!(set_cr4(&mut vcpu, 0x6a0));
    assert!(!vcpu.parts().0.flush, "SSE has nothing to do with it");
    assert!(set_cr4(&mut vcpu, 0x620), "PGE");
    assert!(vcpu.parts().0.flush);
}

#[test]
fn an_instruction_that_is_refused_changes_nothing() {
    let mut vcpu = vcpu();
    vcpu.parts().0.put_cr4(0x20);
    const PKE: u64 = 1 << 22;
    assert!(!set_cr4(&mut vcpu, 0x20 | PKE));
    assert_eq!(vcpu.cr4(), 0x20);
}

#[test]
fn a_step_over_what_the_hypervisor_does_ends_behind_it() {
    let mut vcpu = vcpu();
    let (block, context) = vcpu.parts();
    context.rflags = RFLAGS_TF | RFLAGS_RF | RFLAGS_FIXED;
    (block.vmcb.save.dr6, block.vmcb.save.dr7) = (DR6_RESET, DR7_RESET | DR7_GD);
    vcpu.skip(2);
    let (block, context) = vcpu.parts();
    assert_eq!((context.rip, context.rflags & RFLAGS_RF), (2, 0));
    assert_eq!((block.vmcb.save.dr6, block.vmcb.save.dr7), (DR6_RESET | DR6_BS, DR7_RESET));
    assert_eq!(vcpu.take_event(), Some(Event::Exception(DEBUG_EXCEPTION)));

    vcpu.parts().1.rflags = RFLAGS_FIXED;
    vcpu.skip(2);
    assert!(!vcpu.has_event(), "it does not step");
}

#[test]
fn a_fault_comes_back_to_its_instruction_without_its_breakpoint() {
    let mut vcpu = vcpu();
    let plain = |vector| Exception { vector, error_code: None, cr2: None };
    vcpu.inject(Event::Exception(DEBUG_EXCEPTION));
    assert_eq!(vcpu.parts().1.rflags & RFLAGS_RF, 0);
    vcpu.inject(Event::Exception(plain(6)));
    assert_ne!(vcpu.parts().1.rflags & RFLAGS_RF, 0);
}

#[test]
fn an_nmi_that_was_taken_back_can_come_again() {
    let mut vcpu = vcpu();
    vcpu.inject(Event::Nmi);
    assert!(!vcpu.nmi_open());
    assert_eq!(vcpu.take_event(), Some(Event::Nmi));
    assert!(vcpu.nmi_open() && !vcpu.has_event());
}

#[test]
fn a_control_block_that_is_refused_costs_a_flush_and_says_so() {
    let mut processor = Processor::new(Model::Ryzen);
    let mut pcpu = processor.run(|| SvmPcpu::enable(0, frames())).unwrap().unwrap();
    pcpu.take_tlb_control(false);
    let mut vcpu = vcpu();
    vcpu.parts().0.vmcb.save.dr7 = 1 << 32;
    let reason = processor.run(|| {
        vcpu.load(&mut pcpu);
        vcpu.enter(&mut pcpu, true)
    });
    assert_eq!(reason.unwrap(), Reason::Failed(u64::MAX));
    assert!(processor.refusal().is_some());
    assert_eq!(pcpu.take_tlb_control(false), 1, "everything");
}

#[test]
fn svm_that_the_firmware_has_locked_off_is_refused() {
    let mut processor = Processor::new(Model::Ryzen);
    let refusal = processor.run(|| {
        // SAFETY: VM_CR exists here; SVM is off.
        unsafe { cpu::write_msr(msr::VM_CR, 1 << 4) };
        SvmPcpu::enable(0, frames()).map(drop)
    });
    assert!(refusal.unwrap().unwrap_err().why.contains("locked off"));
}

#[test]
fn svm_is_turned_on_and_nothing_else_changes() {
    let mut processor = Processor::new(Model::Ryzen);
    // SAFETY: EFER exists on every 64-bit processor.
    let efer = || unsafe { cpu::read_msr(msr::EFER) };
    let before = processor.run(efer).unwrap();
    let pcpu = processor.run(|| SvmPcpu::enable(3, frames())).unwrap().unwrap();
    assert_eq!(processor.run(efer).unwrap(), before | 1 << 12);
    assert!(pcpu.assists.next_rip && !pcpu.assists.decode && pcpu.flush_by_asid, "as this model has it");
}
