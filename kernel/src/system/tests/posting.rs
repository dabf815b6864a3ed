// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts that the hardware posts to guests, and the host's masks, which nothing is posted past.

use alloc::sync::Arc;

use super::*;
use crate::base::addr::HostPhys;
use crate::base::allowance::BURST;
use crate::irq::host::Host;
use crate::irq::msi::{PostedInterrupts, Posting};
use crate::irq::vectors::{VectorControl, Vectors};

/// Memory of a VM's for them.
#[derive(Debug)]
struct Descriptor;

impl PostedInterrupts for Descriptor {
    fn address(&self) -> HostPhys {
        HostPhys(0x4_0040)
    }
}

fn as_vector(descriptor: &Arc<Descriptor>, vector: u8) -> Posting {
    Posting { descriptor: descriptor.clone(), vector }
}

/// A machine with a VM that has a vdev.
fn machine() -> (TestMachine, Arc<crate::vm::Vm>) {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    (machine, alpha)
}

/// What the monitor says of each of the vdev's interrupts.
fn told(machine: &TestMachine) -> Vec<Option<u8>> {
    machine.system.vdev_infos()[0].interrupts.iter().map(|line| line.posted_as).collect()
}

#[test]
fn an_interrupt_is_posted_while_the_guest_wants_it_and_the_hypervisors_otherwise() {
    let (machine, alpha) = machine();
    let descriptor = Arc::new(Descriptor);
    let mut side = alpha.vdevs()[0].guest_side();
    let ways = || machine.truth.lock().posted.values().copied().collect::<Vec<_>>();
    assert_eq!(told(&machine), [None, None]);
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x41)));
    assert_eq!((ways(), told(&machine)), (vec![(HostPhys(0x4_0040), 0x41)], vec![None, Some(0x41)]));
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x41)));
    assert_eq!(machine.truth.lock().redirects, 1, "it is so already");
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x52)));
    assert_eq!(ways(), [(HostPhys(0x4_0040), 0x52)]);
    side.route_interrupt(1, None);
    assert_eq!((ways(), told(&machine)), (vec![], vec![None, None]));
    side.route_interrupt(1, None);
    side.route_interrupt(77, Some(&as_vector(&descriptor, 0x41)));
    assert_eq!(machine.truth.lock().redirects, 3, "nothing to do");
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x41)));
    assert_eq!(machine.truth.lock().redirects, 3, "after the end");
    machine.assert_as_at_start();
}

#[test]
fn a_way_that_is_not_confirmed_is_taken_back_until_that_is() {
    let (machine, alpha) = machine();
    let descriptor = Arc::new(Descriptor);
    let mut side = alpha.vdevs()[0].guest_side();
    machine.truth.fail(Fail::Redirect);
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x41)));
    let ways = || machine.truth.lock().posted.len();
    assert_eq!(ways(), 1, "it may be posted");
    machine.truth.fail(Fail::Redirect);
    side.route_interrupt(1, None);
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x52)));
    assert_eq!(ways(), 0);
    assert_eq!(machine.truth.lock().redirects, 3);
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x52)));
    assert_eq!(told(&machine), [None, Some(0x52)], "after a confirmation all is as before");
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn a_guest_that_masks_and_unmasks_for_ever_is_not_posted_to_each_time() {
    let (machine, alpha) = machine();
    let descriptor = Arc::new(Descriptor);
    let mut side = alpha.vdevs()[0].guest_side();
    for vector in 0..100 {
        side.route_interrupt(1, Some(&as_vector(&descriptor, 0x20 + vector)));
        side.route_interrupt(1, None);
    }
    let redirects = machine.truth.lock().redirects as u64;
    assert_eq!(redirects, 2 * BURST);
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x41)));
    assert_eq!(told(&machine), [None, None], "the hypervisor delivers it meanwhile");
    machine.truth.set_clock(machine.truth.now_ns() + 2_000_000_000);
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x41)));
    assert_eq!(told(&machine), [None, Some(0x41)]);
}

#[test]
fn one_that_is_not_the_guests_own_is_never_posted() {
    let machine = TestMachine::new();
    machine.truth.lock().keeps_interrupts = true;
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let descriptor = Arc::new(Descriptor);
    let mut side = alpha.vdevs()[0].guest_side();
    for vector in [0, 1] {
        side.route_interrupt(vector, Some(&as_vector(&descriptor, 0x41)));
        side.route_interrupt(vector, None);
    }
    assert_eq!(told(&machine), [None, None]);
    assert_eq!(machine.truth.lock().redirects, 0);
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

/// Whatever order they come in: while the host masks or counts it, an interrupt is the hypervisor's (the test's bus
/// looks); what the guest wanted last comes back with the end of that.
#[test]
fn nothing_is_posted_past_a_mask_of_the_hosts() {
    use VectorControl::{Automask, Mask, Trigger, Unmask};
    let (machine, alpha) = machine();
    let descriptor = Arc::new(Descriptor);
    let vdev = alpha.vdevs()[0].id();
    let mut side = alpha.vdevs()[0].guest_side();
    let control = |which, control| {
        machine.system.control_vectors(machine.truth, &alpha, vdev, which, control).unwrap();
        told(&machine)
    };
    for vector in [0, 1] {
        side.route_interrupt(vector, Some(&as_vector(&descriptor, 0x40 + vector as u8)));
    }
    assert_eq!(control(Vectors::One(1), Mask), [Some(0x40), None]);
    assert_eq!(control(Vectors::One(1), Mask), [Some(0x40), None], "again");
    assert_eq!(control(Vectors::All, Trigger), [Some(0x40), None]);
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x52)));
    assert_eq!(told(&machine), [Some(0x40), None], "the guest cannot have it back");
    assert_eq!(control(Vectors::All, Automask(true)), [None, None]);
    assert_eq!(control(Vectors::All, Unmask), [None, None], "each is to be counted");
    assert_eq!(control(Vectors::One(1), Automask(false)), [None, Some(0x52)], "as the guest wanted it last");
    side.route_interrupt(0, None);
    assert_eq!(control(Vectors::All, Automask(false)), [None, Some(0x52)], "it does not want it now");

    // What does not work leaves it as it was.
    let refused = |control| {
        let refused = machine.system.control_vectors(machine.truth, &alpha, vdev, Vectors::All, control);
        let refusal = refused.unwrap_err().to_string();
        assert!(refusal.contains("vdev") && !refusal.contains('\n'), "{refusal}");
        told(&machine)
    };
    machine.truth.fail(Fail::Vectors);
    assert_eq!(refused(Mask), [None, Some(0x52)]);
    machine.truth.fail(Fail::Redirect);
    refused(Mask);
    assert!(machine.truth.lock().masked.is_empty(), "nothing is masked that may be posted");
    side.route_interrupt(1, None);
    side.route_interrupt(1, Some(&as_vector(&descriptor, 0x52)));
    assert_eq!(told(&machine), [None, Some(0x52)]);

    // Its end is its masks' end.
    control(Vectors::All, Mask);
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    assert!(machine.system.control_vectors(machine.truth, &alpha, vdev, Vectors::All, Mask).is_err());
    machine.assert_as_at_start();
}
