// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts that the processor delivers by itself, and what is posted.

use alloc::sync::Arc;

use super::super::controls::{DELIVERY, Pin, Secondary};
use super::{pcpu, rig};
use crate::backend::vcpu::{RFLAGS_FIXED, RFLAGS_IF};
use crate::backend::{Event, Reason};
use crate::extension::tests::guest::{CODE, DATA, Guest, Rig, loaded};
use crate::posted::Posted;
use crate::posted::tests::posted;

/// The notification.
const NOTIFIED: u8 = 0x51;
const LATER: u64 = 100_000;
const HLT: u8 = 0xf4;
const STI: u8 = 0xfb;
const NOP: u8 = 0x90;
const IDLE: [u8; 3] = [NOP, NOP, HLT];
/// Counts in RAX, for ever: inc rax; jmp to it.
const COUNTER: [u8; 5] = [0x48, 0xff, 0xc0, 0xeb, 0xfb];
const WRMSR: [u8; 2] = [0x0f, 0x30];
const RDMSR: [u8; 2] = [0x0f, 0x32];

/// Begins or ends the delivery by the processor, and tells what has changed since, as the loop does before each entry.
fn tell(machine: &mut Rig, guest: &mut Guest) -> bool {
    let Guest { vcpu, lapic, .. } = guest;
    let pcpu = &mut machine.pcpu;
    let told = machine.processor.run(|| {
        loaded(vcpu, pcpu, |vcpu, _| {
            let delivers = vcpu.deliver(lapic.suits_processor());
            if let Some(interrupts) = lapic.take_changes().filter(|_| delivers) {
                vcpu.set_interrupts(&interrupts);
            }
            delivers
        })
    });
    told.unwrap()
}

/// A guest with interrupts on, whose interrupts the processor delivers.
fn served(code: &[u8]) -> (Rig, Guest) {
    let (mut machine, mut guest) = rig(code);
    guest.enable_apic();
    guest.set_rflags(RFLAGS_FIXED | RFLAGS_IF);
    assert!(tell(&mut machine, &mut guest));
    (machine, guest)
}

/// The same; they are posted, too.
fn with_posting(code: &[u8]) -> (Rig, Guest, Arc<Posted>) {
    let (mut machine, mut guest) = rig(code);
    let descriptor = Arc::new(posted(NOTIFIED.into(), 0));
    guest.vcpu.post_to(&descriptor);
    guest.enable_apic();
    guest.set_rflags(RFLAGS_FIXED | RFLAGS_IF);
    assert!(tell(&mut machine, &mut guest));
    (machine, guest, descriptor)
}

fn request(machine: &mut Rig, guest: &mut Guest, vector: u8, level: bool) {
    guest.lapic.accept(vector, level);
    tell(machine, guest);
}

#[test]
fn what_is_requested_is_delivered_without_an_exit() {
    let (mut machine, mut guest) = served(&IDLE);
    request(&mut machine, &mut guest, 0x41, false);
    assert_eq!(machine.delivered(&mut guest), Some(0x41));
    assert_eq!(guest.stack::<1>(), [CODE], "before its first instruction");
    guest.lapic.used_by_processor();
    assert_eq!(guest.lapic.highest_requested(), None, "it is in service");
    guest.lapic.accept(0x45, false);
    assert_eq!(guest.lapic.pending(), None, "and holds back its class");
}

#[test]
fn it_waits_for_interrupts_to_be_on_and_for_the_priority() {
    let (mut machine, mut guest) = served(&[NOP, STI, NOP, NOP, HLT]);
    guest.set_rflags(RFLAGS_FIXED);
    request(&mut machine, &mut guest, 0x41, false);
    assert_eq!(machine.delivered(&mut guest), Some(0x41));
    assert_eq!(guest.stack::<1>(), [CODE + 3]);

    // mov cr8, rax; nop; mov cr8, rcx; hlt
    let code = [0x44, 0x0f, 0x22, 0xc0, NOP, 0x44, 0x0f, 0x22, 0xc1, HLT];
    let (mut machine, mut guest) = (drop(machine), served(&code)).1;
    guest.vcpu.set_gpr(0, 4);
    guest.lapic.set_cr8(9);
    request(&mut machine, &mut guest, 0x41, false);
    assert_eq!(machine.delivered(&mut guest), Some(0x41));
    assert_eq!(guest.stack::<1>(), [CODE + 9]);
}

#[test]
fn the_guest_ends_it_by_itself_and_gets_the_next_one() {
    let (mut machine, mut guest) = served(&WRMSR);
    guest.lapic.accept(0x41, false);
    request(&mut machine, &mut guest, 0x61, false);
    assert_eq!(machine.delivered(&mut guest), Some(0x61));
    // The handler ends it instead of halting: the lower one is delivered there.
    guest.vcpu.set_gpr(1, 0x80b);
    guest.jump(CODE);
    guest.set_rflags(RFLAGS_FIXED | RFLAGS_IF);
    assert_eq!(machine.delivered(&mut guest), Some(0x41));
    assert_eq!(guest.stack::<1>(), [CODE + 2]);
}

#[test]
fn the_end_of_a_level_triggered_one_is_told() {
    let (mut machine, mut guest) = served(&WRMSR);
    request(&mut machine, &mut guest, 0x61, true);
    assert_eq!(machine.delivered(&mut guest), Some(0x61));
    guest.vcpu.set_gpr(1, 0x80b);
    guest.jump(CODE);
    assert_eq!(machine.enter(&mut guest), Reason::EndOfInterrupt(0x61));
    assert_eq!(guest.vcpu.rip(), CODE + 2, "behind the write");
    guest.lapic.used_by_processor();
    guest.lapic.accept(0x62, false);
    assert_eq!(guest.lapic.pending(), Some(0x62), "nothing is in service");
}

/// Takes one of the controls away that have the processor deliver; what is then, in place of what should be.
#[test]
fn each_of_the_controls_is_needed() {
    let reads = |msr: u32, without: u32| {
        let (mut machine, mut guest) = rig(&[RDMSR[0], RDMSR[1], HLT]);
        pcpu(&mut machine).controls.delivery &= !without;
        guest.enable_apic();
        guest.lapic.set_cr8(7);
        guest.lapic.accept(0x41, false);
        tell(&mut machine, &mut guest);
        guest.vcpu.set_gpr(1, msr.into());
        let entered = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| machine.enter(&mut guest)));
        entered.is_ok_and(|reason| reason == Reason::Halt)
            && Ok(guest.vcpu.gpr(0)) == guest.lapic.read_msr(msr, 0)
    };
    for (control, msr) in [(Secondary::X2APIC, 0x808), (Secondary::APIC_REGISTERS, 0x822)] {
        assert!(reads(msr, 0));
        assert!(!reads(msr, control.bits()), "{control:?} is taken away, and nobody notices");
    }
    let delivered = |without: u32| {
        let (mut machine, mut guest) = rig(&IDLE);
        pcpu(&mut machine).controls.delivery &= !without;
        guest.enable_apic();
        guest.set_rflags(RFLAGS_FIXED | RFLAGS_IF);
        request(&mut machine, &mut guest, 0x41, false);
        machine.delivered(&mut guest)
    };
    assert_eq!(delivered(0), Some(0x41));
    assert_eq!(delivered(Secondary::INTERRUPT_DELIVERY.bits()), None);
}

#[test]
fn registers_that_change_by_themselves_are_the_processors_and_the_rest_leaves_the_guest() {
    for (msr, served_here) in
        [(0x808, true), (0x80a, true), (0x812, true), (0x822, true), (0x802, false), (0x839, false)]
    {
        let (mut machine, mut guest) = served(&[RDMSR[0], RDMSR[1], HLT]);
        guest.set_rflags(RFLAGS_FIXED);
        guest.lapic.set_cr8(7);
        guest.lapic.accept(0x41, false);
        tell(&mut machine, &mut guest);
        guest.vcpu.set_gpr(1, msr);
        let reason = machine.enter(&mut guest);
        assert_eq!(reason, if served_here { Reason::Halt } else { Reason::ReadMsr }, "{msr:#x}");
        if served_here {
            let now = guest.lapic.read_msr(msr as u32, 0).unwrap();
            assert_eq!(guest.vcpu.gpr(0), now, "{msr:#x}");
        }
    }
    let (mut machine, mut guest) = served(&WRMSR);
    guest.vcpu.set_gpr(1, 0x83f);
    assert_eq!(machine.enter(&mut guest), Reason::WriteMsr, "SELF IPI");
}

#[test]
fn an_apic_that_is_off_is_the_hypervisors_and_its_msrs_do_not_reach_the_machines() {
    let (mut machine, mut guest) = served(&WRMSR);
    guest.lapic.write_msr(0x80f, 0xff, 0).unwrap();
    assert!(!tell(&mut machine, &mut guest));
    guest.vcpu.set_gpr(1, 0x80b);
    assert_eq!(machine.enter(&mut guest), Reason::WriteMsr);
    guest.lapic.write_msr(0x80f, 0x1ff, 0).unwrap();
    guest.lapic.accept(0x41, false);
    assert!(tell(&mut machine, &mut guest));
    assert_eq!(machine.delivered(&mut guest), Some(0x41), "on again");
}

#[test]
fn a_processor_without_it_and_one_that_comes_back_to_it_lose_nothing() {
    let (mut machine, mut guest) = served(&IDLE);
    guest.set_rflags(RFLAGS_FIXED);
    request(&mut machine, &mut guest, 0x41, false);
    assert_eq!(machine.enter(&mut guest), Reason::Halt);
    guest.lapic.used_by_processor();
    pcpu(&mut machine).index = 1;
    pcpu(&mut machine).controls.delivery = 0;
    assert!(!tell(&mut machine, &mut guest));
    assert_eq!(guest.lapic.pending(), Some(0x41));
    guest.jump(CODE);
    guest.set_rflags(RFLAGS_FIXED | RFLAGS_IF);
    assert_eq!(machine.enter(&mut guest), Reason::Halt);
    assert_eq!(guest.handling(), None, "here the hypervisor would have to inject it");
    pcpu(&mut machine).index = 0;
    pcpu(&mut machine).controls.delivery = DELIVERY.bits();
    assert!(tell(&mut machine, &mut guest));
    guest.jump(CODE);
    assert_eq!(machine.delivered(&mut guest), Some(0x41));
}

#[test]
fn one_whose_delivery_faults_is_delivered_again_and_counts_once() {
    let (mut machine, mut guest) = served(&IDLE);
    guest.vcpu.set_gpr(4, 1 << 29);
    request(&mut machine, &mut guest, 0x41, false);
    assert!(matches!(machine.enter(&mut guest), Reason::Stage2 { .. }));
    guest.vcpu.set_gpr(4, DATA + 0x100);
    guest.lapic.used_by_processor();
    assert_eq!(guest.vcpu.take_event(), Some(Event::Interrupt(0x41)));
    guest.vcpu.inject(Event::Interrupt(0x41));
    assert_eq!(machine.delivered(&mut guest), Some(0x41));
    guest.lapic.used_by_processor();
    assert_eq!(guest.lapic.highest_requested(), None);
}

#[test]
fn an_exception_comes_before_it_and_an_nmi_does() {
    for (event, vector) in [(Event::Nmi, 2), (Event::Exception(crate::emulate::Exception::undefined()), 6)] {
        let (mut machine, mut guest) = served(&IDLE);
        request(&mut machine, &mut guest, 0x41, false);
        machine.on(&mut guest, |vcpu, _| vcpu.inject(event));
        assert_eq!(machine.delivered(&mut guest), Some(vector));
        // Its gate has turned interrupts off.
        guest.jump(CODE);
        guest.set_rflags(RFLAGS_FIXED | RFLAGS_IF);
        assert_eq!(machine.delivered(&mut guest), Some(0x41));
    }
}

#[test]
fn what_is_posted_reaches_a_guest_that_runs_without_an_exit() {
    let (mut machine, mut guest, descriptor) = with_posting(&COUNTER);
    assert!(descriptor.post(0x41));
    machine.processor.interrupt(NOTIFIED, LATER);
    assert_eq!(machine.delivered(&mut guest), Some(0x41));
    assert!(guest.vcpu.gpr(0) > 1000, "it ran until then");
    assert_eq!((machine.processor.taken(NOTIFIED), machine.processor.waiting().0), (0, false));
    assert!(descriptor.post(0x42), "the notification was taken");
}

#[test]
fn what_is_posted_before_the_entry_is_taken_at_its_notification() {
    let (mut machine, mut guest, descriptor) = with_posting(&COUNTER);
    descriptor.post(0x41);
    machine.processor.interrupt(NOTIFIED, 0);
    assert_eq!(machine.delivered(&mut guest), Some(0x41));
    assert!(guest.vcpu.gpr(0) <= 1, "at once");
}

#[test]
fn a_notification_of_what_the_hypervisor_has_taken_is_nothing() {
    // The guest goes on, and is ended by another interrupt.
    let (mut machine, mut guest, descriptor) = with_posting(&COUNTER);
    descriptor.post(0x41);
    descriptor.take(|_| {});
    machine.processor.interrupt(NOTIFIED, LATER);
    let (vcpu, pcpu) = (&mut guest.vcpu, &mut machine.pcpu);
    let entered =
        machine.processor.run_for(2 * LATER, || loaded(vcpu, pcpu, |vcpu, pcpu| vcpu.enter(pcpu, false)));
    assert!(entered.is_err(), "it runs: {entered:?}");
}

#[test]
fn another_vms_notification_ends_the_guest() {
    let (mut machine, mut guest, _) = with_posting(&COUNTER);
    machine.processor.interrupt(NOTIFIED + 1, LATER);
    assert_eq!(machine.enter(&mut guest), Reason::HostInterrupt);
    assert_eq!(machine.processor.taken(NOTIFIED + 1), 1);
}

#[test]
fn a_notification_for_a_guest_with_interrupts_off_does_not_end_it() {
    // sti, after long enough
    let code = [0x48, 0xff, 0xc8, 0x75, 0xfb, STI, NOP, HLT];
    let (mut machine, mut guest, descriptor) = with_posting(&code);
    guest.set_rflags(RFLAGS_FIXED);
    guest.vcpu.set_gpr(0, 200_000);
    descriptor.post(0x41);
    machine.processor.interrupt(NOTIFIED, LATER);
    assert_eq!(machine.delivered(&mut guest), Some(0x41));
    assert_eq!(guest.stack::<1>(), [CODE + 7], "behind the shadow of STI");
}

#[test]
fn a_hosts_interrupt_ends_a_guest_whose_own_one_waits_for_if() {
    let (mut machine, mut guest, _) = with_posting(&COUNTER);
    guest.set_rflags(RFLAGS_FIXED);
    request(&mut machine, &mut guest, 0x41, false);
    machine.processor.interrupt(NOTIFIED + 1, LATER);
    assert_eq!(machine.enter(&mut guest), Reason::HostInterrupt);
    assert_eq!(guest.handling(), None);
}

#[test]
fn without_the_control_a_notification_is_an_interrupt_like_others() {
    let (mut machine, mut guest) = rig(&COUNTER);
    guest.vcpu.post_to(&Arc::new(posted(NOTIFIED.into(), 0)));
    guest.enable_apic();
    pcpu(&mut machine).controls.posting &= !Pin::POSTED_INTERRUPTS.bits();
    assert!(tell(&mut machine, &mut guest));
    machine.processor.interrupt(NOTIFIED, LATER);
    assert_eq!(machine.enter(&mut guest), Reason::HostInterrupt);
    assert_eq!(machine.processor.taken(NOTIFIED), 1);
}
