// SPDX-License-Identifier: MIT OR Apache-2.0
//! NMIs of a guest's: blocked while their handler runs, whatever comes between.

use super::super::controls::Primary;
use super::super::{Field, interruptibility};
use super::{block, rig};
use crate::backend::{Event, Reason};
use crate::extension::tests::guest::{CODE, RAM, STACK};

#[test]
fn an_iret_that_faults_leaves_nmis_blocked() {
    let (mut machine, mut guest) = rig(&[0x90, 0xf4]);
    machine.on(&mut guest, |vcpu, _| vcpu.inject(Event::Nmi));
    assert_eq!(machine.delivered(&mut guest), Some(2));
    let stack = guest.vcpu.gpr(4);
    // Nothing is there.
    guest.map_linear(16, RAM);
    guest.vcpu.set_gpr(4, (16 << 21) + STACK);
    machine.on(&mut guest, |vcpu, _| vcpu.skip(1));
    let reason = machine.enter(&mut guest);
    assert!(matches!(reason, Reason::Stage2 { .. }), "{reason:?}");
    assert!(!guest.vcpu.has_event());
    assert!(!machine.on(&mut guest, |vcpu, _| vcpu.nmi_open()), "the IRET is still to come");
    guest.vcpu.set_gpr(4, stack);
    assert_eq!(machine.enter(&mut guest), Reason::Halt);
    assert_eq!(guest.vcpu.rip(), CODE + 1);
    assert!(machine.on(&mut guest, |vcpu, _| vcpu.nmi_open()));
}

#[test]
fn an_nmi_that_an_exit_cut_short_can_come_again() {
    let (mut machine, mut guest) = rig(&[0x90, 0xf4]);
    guest.map_linear(16, RAM);
    guest.vcpu.set_gpr(4, (16 << 21) + STACK);
    machine.on(&mut guest, |vcpu, _| vcpu.inject(Event::Nmi));
    let reason = machine.enter(&mut guest);
    assert!(matches!(reason, Reason::Stage2 { .. }), "{reason:?}");
    // Something else goes first.
    assert_eq!(guest.vcpu.take_event(), Some(Event::Nmi));
    assert!(machine.on(&mut guest, |vcpu, _| vcpu.nmi_open()));
}

#[test]
fn a_wish_for_a_window_ends_with_the_nmi() {
    // int 80h, whose handler halts.
    let (mut machine, mut guest) = rig(&[0xcd, 0x80, 0x90, 0xf4]);
    machine.on(&mut guest, |vcpu, _| vcpu.hasten_nmi());
    assert_eq!(machine.enter(&mut guest), Reason::InterruptWindow);
    machine.on(&mut guest, |vcpu, _| vcpu.inject(Event::Nmi));
    assert_eq!(machine.delivered(&mut guest), Some(2));
    machine.on(&mut guest, |vcpu, _| vcpu.skip(1));
    assert_eq!(machine.delivered(&mut guest), Some(0x80), "and no window behind the IRET");
}

#[test]
fn behind_sti_an_nmi_waits_for_the_window_of_interrupts() {
    let (mut machine, mut guest) = rig(&[0x90, 0xf4]);
    let controls = machine.on(&mut guest, |vcpu, _| {
        block(vcpu).vmcs.write(Field::Interruptibility, interruptibility::STI);
        vcpu.hasten_nmi();
        vcpu.request_window(None);
        let behind = block(vcpu).vmcs.read(Field::ProcessorControls) as u32;
        block(vcpu).vmcs.write(Field::Interruptibility, 0);
        vcpu.hasten_nmi();
        vcpu.request_window(None);
        [behind, block(vcpu).vmcs.read(Field::ProcessorControls) as u32]
    });
    let windows = Primary::INTERRUPT_WINDOW | Primary::NMI_WINDOW;
    let open = controls.map(|controls| Primary::from_bits_truncate(controls) & windows);
    assert_eq!(open, [Primary::INTERRUPT_WINDOW, Primary::NMI_WINDOW]);
}
