// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts of the host's while a guest runs, and at every instruction on the way in and out.

use super::guest::{CODE, Guest, Rig, loaded};
use crate::backend::Reason;
use crate::backend::vcpu::{RFLAGS_FIXED, RFLAGS_IF};
use crate::extension::Extension;
use crate::time;

super::on_both! {
    an_interrupt_ends_the_guest_whether_it_has_them_on_or_off,
    one_that_waits_already_lets_no_instruction_of_the_guest_pass,
    an_nmi_ends_the_guest_and_is_taken_before_the_exit_is_looked_at,
    an_interrupt_is_taken_once_wherever_it_comes,
    an_nmi_is_taken_once_wherever_it_comes,
}

const VECTOR: u8 = 0x51;
const NMI: u8 = 2;
/// More instructions than it takes to the guest's first one.
const LATER: u64 = 100_000;

/// Counts in RAX, for ever: inc rax; jmp to it.
const COUNTER: [u8; 5] = [0x48, 0xff, 0xc0, 0xeb, 0xfb];
/// cpuid; jmp to it
const CALLER: [u8; 4] = [0x0f, 0xa2, 0xeb, 0xfc];

fn an_interrupt_ends_the_guest_whether_it_has_them_on_or_off(extension: Extension) {
    let mut machine = Rig::new(extension);
    for rflags in [RFLAGS_FIXED, RFLAGS_FIXED | RFLAGS_IF] {
        let mut guest = Guest::new(extension, &COUNTER);
        guest.set_rflags(rflags);
        let before = machine.processor.taken(VECTOR);
        machine.processor.interrupt(VECTOR, LATER);
        assert_eq!(machine.enter(&mut guest), Reason::HostInterrupt);
        assert!(guest.vcpu.gpr(0) > 1000, "it ran until then");
        // VMX has it taken at the exit, SVM leaves it.
        let taken = u64::from(extension == Extension::Vmx);
        let now = (machine.processor.taken(VECTOR), machine.processor.waiting().0);
        assert_eq!(now, (before + taken, taken == 0));
        machine.processor.run(crate::interrupts::window).unwrap();
        assert_eq!((machine.processor.taken(VECTOR), machine.processor.waiting().0), (before + 1, false));
    }
}

fn one_that_waits_already_lets_no_instruction_of_the_guest_pass(extension: Extension) {
    let mut machine = Rig::new(extension);
    let mut guest = Guest::new(extension, &COUNTER);
    machine.processor.interrupt(VECTOR, 0);
    assert_eq!(machine.enter(&mut guest), Reason::HostInterrupt);
    assert_eq!((guest.vcpu.rip(), guest.vcpu.gpr(0)), (CODE, 0));
}

fn an_nmi_ends_the_guest_and_is_taken_before_the_exit_is_looked_at(extension: Extension) {
    let mut machine = Rig::new(extension);
    let mut guest = Guest::new(extension, &COUNTER);
    machine.processor.nmi(LATER);
    assert_eq!(machine.enter(&mut guest), Reason::HostInterrupt);
    assert_eq!(machine.processor.taken(NMI), 1);
}

/// Enters a guest again and again while `request` asks for something after each number of instructions.
fn at_every_instruction(extension: Extension, vector: u8, request: impl Fn(&mut Rig, u64)) {
    let mut machine = Rig::new(extension);
    let mut guest = Guest::new(extension, &CALLER);
    // More instructions than two rounds take. The TSC counts them.
    for after in 1..1000 {
        request(&mut machine, after);
        let (vcpu, pcpu) = (&mut guest.vcpu, &mut machine.pcpu);
        let rounds = machine.processor.run(|| {
            let (begin, mut calls) = (time::tsc(), 0);
            while calls < 3 || time::tsc() - begin <= after {
                loaded(vcpu, pcpu, |vcpu, pcpu| match vcpu.enter(pcpu, false) {
                    Reason::Cpuid => {
                        calls += 1;
                        vcpu.skip(2);
                    }
                    Reason::HostInterrupt => {}
                    other => panic!("{other:x?} after {after} instructions"),
                });
                crate::interrupts::window();
            }
        });
        rounds.unwrap();
        assert_eq!(machine.processor.taken(vector), after, "each is taken once");
        assert_eq!(machine.processor.waiting(), (false, false));
        assert_eq!(guest.rflags(), RFLAGS_FIXED);
    }
}

fn an_interrupt_is_taken_once_wherever_it_comes(extension: Extension) {
    at_every_instruction(extension, VECTOR, |machine, after| machine.processor.interrupt(VECTOR, after));
}

fn an_nmi_is_taken_once_wherever_it_comes(extension: Extension) {
    at_every_instruction(extension, NMI, |machine, after| machine.processor.nmi(after));
}
