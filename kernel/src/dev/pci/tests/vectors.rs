// SPDX-License-Identifier: MIT OR Apache-2.0
//! Vectors that the host masks and triggers, on top of what the guest does.

use super::*;
use crate::irq::vectors::{VectorControl, Vectors};
use crate::monitor::info::VectorInfo;

impl Rig {
    fn vectors(&mut self, which: Vectors, control: VectorControl) -> Result<(), Refusal> {
        self.bus.control_vectors(self.slot, which, control, &mut |a| self.seen.push(a))
    }

    fn one(&mut self, control: VectorControl) {
        self.vectors(Vectors::One(1), control).unwrap();
    }

    fn interrupt(&mut self, vector: u16) {
        self.bus.interrupt(self.slot, vector, &mut |a| self.seen.push(a));
    }

    fn told(&self, vector: usize) -> VectorInfo {
        self.bus.vectors(self.slot)[vector].clone()
    }
}

fn counts(info: &VectorInfo) -> (u64, u64, u64) {
    (info.delivered, info.pended, info.triggered)
}

#[test]
fn what_the_host_masks_is_one_interrupt_when_it_lets_go() {
    let mut rig = Rig::new();
    let base = rig.start();
    rig.interrupt(1);
    assert_eq!(rig.take(), [message(0x41)]);
    rig.one(VectorControl::Mask);
    for _ in 0..3 {
        rig.interrupt(1);
    }
    rig.interrupt(0);
    assert_eq!(rig.take(), [message(0x40)], "the other vector is not masked");
    let info = rig.told(1);
    assert_eq!((counts(&info), info.masked, info.pending), ((1, 3, 0), true, true));
    assert_eq!(&*info.guest, "open");
    assert_eq!(rig.bus.mmio_read(base + PBA, 8), 0b10, "the guest sees that one is pending");
    // Neither way of the guest's takes the mask away.
    for value in [1, 0] {
        rig.write(base + TABLE + 16 + 12, 4, value);
    }
    for value in [0x8000 | 0x4000, 0x8000] {
        rig.set_config(0x82, 2, value);
    }
    assert_eq!(rig.take(), []);
    rig.one(VectorControl::Unmask);
    rig.one(VectorControl::Unmask);
    assert_eq!(rig.take(), [message(0x41)], "one, once");
    assert_eq!(counts(&rig.told(1)), (2, 3, 0));
    assert_eq!(rig.bus.mmio_read(base + PBA, 8), 0);
    rig.interrupt(1);
    assert_eq!(rig.take(), [message(0x41)]);
}

#[test]
fn both_masks_have_to_go() {
    let mut rig = Rig::new();
    let base = rig.start();
    rig.vectors(Vectors::All, VectorControl::Mask).unwrap();
    rig.write(base + TABLE + 16 + 12, 4, 1);
    assert_eq!(&*rig.told(1).guest, "masked");
    rig.interrupt(0);
    rig.interrupt(1);
    rig.vectors(Vectors::All, VectorControl::Unmask).unwrap();
    assert_eq!(rig.take(), [message(0x40)], "the guest masks the other one");
    rig.write(base + TABLE + 16 + 12, 4, 0);
    assert_eq!(rig.take(), [message(0x41)]);
}

#[test]
fn an_automask_lets_one_through_at_a_time() {
    let mut rig = Rig::new();
    rig.start();
    rig.one(VectorControl::Automask(true));
    for _ in 0..4 {
        rig.interrupt(1);
    }
    assert_eq!(rig.take(), [message(0x41)]);
    assert_eq!((rig.told(1).masked, rig.told(1).automask, counts(&rig.told(1))), (true, true, (1, 3, 0)));
    rig.one(VectorControl::Unmask);
    assert_eq!(rig.take(), [message(0x41)], "what came meanwhile");
    assert!(rig.told(1).masked, "and it was an interrupt, too");
    rig.one(VectorControl::Unmask);
    assert_eq!((rig.take(), rig.told(1).masked), (vec![], false));
    rig.one(VectorControl::Automask(false));
    rig.interrupt(1);
    rig.interrupt(1);
    assert_eq!(rig.take(), [message(0x41), message(0x41)]);
    // Off does not unmask.
    rig.one(VectorControl::Automask(true));
    rig.interrupt(1);
    rig.one(VectorControl::Automask(false));
    rig.interrupt(1);
    assert_eq!((rig.take(), rig.told(1).masked), (vec![message(0x41)], true));
}

#[test]
fn an_interrupt_of_the_hosts_is_as_the_devices() {
    let mut rig = Rig::new();
    let refused = |rig: &mut Rig, which| {
        rig.take();
        let refusal = rig.vectors(which, VectorControl::Trigger).unwrap_err().to_string();
        assert!(rig.take().is_empty() && !refusal.contains('\n'), "{refusal}");
        refusal
    };
    assert!(refused(&mut rig, Vectors::One(1)).contains("vector 1: the guest has MSI-X off"));
    assert_eq!(&*rig.told(1).guest, "off");
    rig.set_config(4, 2, 6);
    rig.set_config(0x82, 2, 0x8000);
    assert!(refused(&mut rig, Vectors::One(1)).contains("no message"));
    assert!(refused(&mut rig, Vectors::All).contains("no message"));
    assert_eq!(&*rig.told(1).guest, "unused");
    let base = rig.bar(0);
    rig.write(base + TABLE + 16, 8, 0xfee0_0000);
    rig.write(base + TABLE + 16 + 8, 4, 0x41);
    rig.take();
    rig.one(VectorControl::Trigger);
    assert_eq!(rig.take(), [], "the guest masks it");
    assert_eq!(rig.bus.mmio_read(base + PBA, 8), 0b10);
    rig.write(base + TABLE + 16 + 12, 4, 0);
    assert_eq!(rig.take(), [message(0x41)]);
    rig.vectors(Vectors::All, VectorControl::Trigger).unwrap();
    assert_eq!(rig.take(), [message(0x41)], "the one that is programmed");
    assert_eq!((counts(&rig.told(0)), counts(&rig.told(1))), ((0, 0, 0), (2, 1, 2)));
    let refusal = rig.vectors(Vectors::One(2), VectorControl::Mask).unwrap_err().to_string();
    assert!(refusal.contains("no such vector") && refusal.contains("0 to 1"), "{refusal}");
}

#[test]
fn a_mask_outlives_a_reset_and_nothing_else_of_the_vdev() {
    let mut rig = Rig::new();
    rig.start();
    let other = rig.add().unwrap();
    rig.take();
    rig.vectors(Vectors::All, VectorControl::Mask).unwrap();
    rig.one(VectorControl::Automask(true));
    assert!(rig.bus.vectors(other).iter().all(|info| !info.masked), "another's");
    rig.interrupt(1);
    // A function-level reset.
    let control = rig.config(0x48, 2);
    rig.set_config(0x48, 2, control | 0x8000);
    assert!(rig.told(1).masked && rig.told(1).automask && !rig.told(1).pending);
    rig.start();
    rig.interrupt(1);
    assert_eq!(rig.take(), []);
    // The end lets go of what was held back, and of what the model has to say then.
    rig.bus.end(rig.slot, &mut |a| rig.seen.push(a)).unwrap();
    let sent: Vec<Action> =
        rig.take().into_iter().filter(|action| matches!(action, Action::Message(_))).collect();
    assert_eq!(sent, [message(0x41), message(0x41)]);
    assert!(!rig.told(1).masked && !rig.told(1).automask);
}
