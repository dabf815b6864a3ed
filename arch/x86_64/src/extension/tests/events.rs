// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events on their way into a guest.

use super::guest::{CODE, CODE_SELECTOR, DATA_SELECTOR, Guest, RAM, Rig, STACK};
use crate::backend::vcpu::{RFLAGS_FIXED, RFLAGS_IF, RFLAGS_RF};
use crate::backend::{Event, Reason, Window};
use crate::emulate::Exception;
use crate::extension::Extension;

super::on_both! {
    what_is_injected_is_delivered_once_with_its_frame,
    what_an_exit_cut_short_is_delivered_at_the_next_entry,
    what_the_guest_raised_itself_and_an_exit_cut_short_comes_again,
    a_window_opens_behind_the_shadow_of_sti,
    without_a_request_there_is_no_window,
    a_window_for_a_class_opens_when_cr8_lets_it_through,
    a_second_nmi_waits_for_the_iret_of_the_first,
}

const NOP: u8 = 0x90;
const HLT: u8 = 0xf4;
const STI: u8 = 0xfb;

const fn exception(vector: u8, error_code: Option<u32>, cr2: Option<u64>) -> Event {
    Event::Exception(Exception { vector, error_code, cr2 })
}

const INTERRUPT: Event = Event::Interrupt(0x41);
const UNDEFINED: Event = exception(6, None, None);
const PROTECTION: Event = exception(13, Some(0x50), None);
const PAGE_FAULT: Event = exception(14, Some(6), Some(0x1234));

const fn vector(event: Event) -> u8 {
    match event {
        Event::Interrupt(vector) => vector,
        Event::Nmi => 2,
        Event::Exception(exception) => exception.vector,
    }
}

/// What the handler finds on the stack.
fn frame(event: Event, rflags: u64) -> alloc::vec::Vec<u64> {
    let code = match event {
        Event::Exception(Exception { error_code, .. }) => error_code,
        _ => None,
    };
    let rest = [CODE, CODE_SELECTOR.into(), rflags, STACK, DATA_SELECTOR.into()];
    code.map(u64::from).into_iter().chain(rest).collect()
}

fn what_is_injected_is_delivered_once_with_its_frame(extension: Extension) {
    let mut machine = Rig::new(extension);
    for event in [INTERRUPT, Event::Nmi, UNDEFINED, PROTECTION, PAGE_FAULT] {
        let mut guest = Guest::new(extension, &[NOP, HLT]);
        guest.set_rflags(RFLAGS_FIXED | RFLAGS_IF);
        machine.on(&mut guest, |vcpu, _| vcpu.inject(event));
        assert_eq!(machine.delivered(&mut guest), Some(vector(event)), "{event:?}");
        let fault = if matches!(event, Event::Exception(_)) { RFLAGS_RF } else { 0 };
        let wanted = frame(event, RFLAGS_FIXED | RFLAGS_IF | fault);
        assert_eq!(guest.stack::<6>()[..wanted.len()], wanted, "{event:?}");
        if event == PAGE_FAULT {
            assert_eq!(machine.on(&mut guest, |vcpu, _| vcpu.cr2()), 0x1234);
        }
        assert!(!guest.vcpu.has_event(), "{event:?} is gone");
        if wanted.len() == 5 {
            // On behind the HLT, to IRETQ and the code.
            machine.on(&mut guest, |vcpu, _| vcpu.skip(1));
            while machine.enter(&mut guest) == Reason::InterruptWindow {}
            assert_eq!(
                (guest.vcpu.rip(), guest.vcpu.gpr(4)),
                (CODE + 1, STACK),
                "{event:?} does not come again"
            );
        }
    }
}

/// A guest whose stack lies where there is no memory, until [`give_stack`].
fn without_stack(extension: Extension, code: &[u8]) -> Guest {
    let mut guest = Guest::new(extension, code);
    guest.map_linear(16, RAM);
    guest.vcpu.set_gpr(4, (16 << 21) + STACK);
    guest.set_rflags(RFLAGS_FIXED | RFLAGS_IF);
    guest
}

fn give_stack(guest: &Guest) {
    guest.map_linear(16, 0);
}

fn what_an_exit_cut_short_is_delivered_at_the_next_entry(extension: Extension) {
    let mut machine = Rig::new(extension);
    for event in [INTERRUPT, Event::Nmi, UNDEFINED, PROTECTION, PAGE_FAULT] {
        let mut guest = without_stack(extension, &[NOP, HLT]);
        machine.on(&mut guest, |vcpu, _| vcpu.inject(event));
        for attempt in 0..3 {
            let reason = machine.enter(&mut guest);
            assert!(matches!(reason, Reason::Stage2 { .. }), "{event:?}, {attempt}: {reason:?}");
            assert!(guest.vcpu.has_event(), "{event:?}, {attempt}");
            assert_eq!(guest.vcpu.rip(), CODE);
        }
        give_stack(&guest);
        assert_eq!(machine.delivered(&mut guest), Some(vector(event)), "{event:?}");
        let at = guest.vcpu.gpr(4) - (16 << 21);
        let found: alloc::vec::Vec<u64> =
            (0..frame(event, 0).len() as u64).map(|word| guest.read(at + 8 * word)).collect();
        let fault = if matches!(event, Event::Exception(_)) { RFLAGS_RF } else { 0 };
        let mut wanted = frame(event, RFLAGS_FIXED | RFLAGS_IF | fault);
        let words = wanted.len();
        wanted[words - 2] += 16 << 21;
        // VMX saves RF where the exit is one that a fault would have been, and so it is delivered.
        let rf = if extension == Extension::Vmx { RFLAGS_RF } else { 0 };
        let flags = words - 3;
        wanted[flags] |= found[flags] & rf;
        assert_eq!(found, wanted, "{event:?}");
        assert!(!guest.vcpu.has_event());
    }
}

fn what_the_guest_raised_itself_and_an_exit_cut_short_comes_again(extension: Extension) {
    let mut machine = Rig::new(extension);
    for (name, code, vector, pushed) in [
        ("int 80h", &[0xcd_u8, 0x80] as &[u8], 0x80, CODE + 2),
        ("int3", &[0xcc], 3, CODE + 1),
        ("ud2", &[0x0f, 0x0b], 6, CODE),
        ("mov ss, ecx with a wrong selector", &[0x8e, 0xd1], 13, CODE),
    ] {
        let mut guest = without_stack(extension, code);
        guest.vcpu.set_gpr(1, 0x5550);
        let reason = machine.enter(&mut guest);
        assert!(matches!(reason, Reason::Stage2 { .. }), "{name}: {reason:?}");
        give_stack(&guest);
        assert_eq!(machine.delivered(&mut guest), Some(vector), "{name}");
        let at = guest.vcpu.gpr(4) - (16 << 21) + if vector == 13 { 8 } else { 0 };
        assert_eq!(guest.read(at), pushed, "{name}");
    }
}

fn a_window_opens_behind_the_shadow_of_sti(extension: Extension) {
    let mut machine = Rig::new(extension);
    let mut guest = Guest::new(extension, &[NOP, STI, NOP, NOP, HLT]);
    machine.on(&mut guest, |vcpu, _| vcpu.request_window(Some(Window::Enabled)));
    assert!(!machine.on(&mut guest, |vcpu, _| vcpu.interruptible()));
    assert_eq!(machine.enter(&mut guest), Reason::InterruptWindow);
    assert_eq!(guest.vcpu.rip(), CODE + 3);
    assert!(machine.on(&mut guest, |vcpu, _| vcpu.interruptible()));
    machine.on(&mut guest, |vcpu, _| vcpu.request_window(None));
    machine.on(&mut guest, |vcpu, _| vcpu.inject(INTERRUPT));
    assert_eq!(machine.delivered(&mut guest), Some(0x41));
    assert_eq!(guest.stack::<1>(), [CODE + 3]);
}

fn without_a_request_there_is_no_window(extension: Extension) {
    let mut machine = Rig::new(extension);
    let mut guest = Guest::new(extension, &[STI, NOP, NOP, HLT]);
    machine.on(&mut guest, |vcpu, _| vcpu.request_window(Some(Window::Enabled)));
    machine.on(&mut guest, |vcpu, _| vcpu.request_window(None));
    assert_eq!(machine.enter(&mut guest), Reason::Halt);
    assert_eq!(guest.vcpu.rip(), CODE + 3);
}

fn a_window_for_a_class_opens_when_cr8_lets_it_through(extension: Extension) {
    // mov cr8, rax; nop; mov cr8, rcx; nop; nop; hlt
    let code = [0x44, 0x0f, 0x22, 0xc0, NOP, 0x44, 0x0f, 0x22, 0xc1, NOP, NOP, HLT];
    let mut machine = Rig::new(extension);
    let mut guest = Guest::new(extension, &code);
    guest.set_rflags(RFLAGS_FIXED | RFLAGS_IF);
    machine.on(&mut guest, |vcpu, _| vcpu.set_cr8(9));
    guest.vcpu.set_gpr(0, 4);
    guest.vcpu.set_gpr(1, 3);
    machine.on(&mut guest, |vcpu, _| vcpu.request_window(Some(Window::Class(4))));
    assert_eq!(machine.enter(&mut guest), Reason::InterruptWindow);
    assert_eq!((guest.vcpu.rip(), machine.on(&mut guest, |vcpu, _| vcpu.cr8())), (CODE + 9, 3));
}

fn a_second_nmi_waits_for_the_iret_of_the_first(extension: Extension) {
    let mut machine = Rig::new(extension);
    let mut guest = Guest::new(extension, &[NOP, HLT]);
    machine.on(&mut guest, |vcpu, _| vcpu.inject(Event::Nmi));
    assert_eq!(machine.delivered(&mut guest), Some(2));
    assert!(!machine.on(&mut guest, |vcpu, _| vcpu.nmi_open()));
    machine.on(&mut guest, |vcpu, _| vcpu.skip(1));
    // SVM tells when the handler comes to its IRET, VMX when it is done.
    let stepped = machine.on(&mut guest, |vcpu, _| vcpu.hasten_nmi());
    assert!(!stepped);
    assert_eq!(machine.enter(&mut guest), Reason::InterruptWindow);
    if extension == Extension::Svm {
        assert!(machine.on(&mut guest, |vcpu, _| !vcpu.nmi_open() && vcpu.hasten_nmi()), "at the IRET");
        assert_eq!(machine.enter(&mut guest), Reason::InterruptWindow, "behind it");
    }
    assert!(machine.on(&mut guest, |vcpu, _| vcpu.nmi_open()));
    assert_eq!((guest.vcpu.rip(), guest.rflags()), (CODE, RFLAGS_FIXED), "no trace of it");
    machine.on(&mut guest, |vcpu, _| vcpu.inject(Event::Nmi));
    assert_eq!(machine.delivered(&mut guest), Some(2));
}
