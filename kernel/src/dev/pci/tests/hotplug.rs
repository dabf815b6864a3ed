// SPDX-License-Identifier: MIT OR Apache-2.0
//! Vdevs that come and go, as pciehp of Linux and others would see it.

use super::*;

const LINK_STATUS: u64 = 0x52;
const SLOT_CAPABILITIES: u64 = 0x54;
const SLOT_CONTROL: u64 = 0x58;
const SLOT_STATUS: u64 = 0x5a;
const MSI: u64 = 0x80;

const BUTTON: u64 = 1;
const PRESENCE_CHANGED: u64 = 1 << 3;
const PRESENT: u64 = 1 << 6;
const LINK_CHANGED: u64 = 1 << 8;
/// What pciehp enables where there is a button: interrupts for it and for changes of the link.
const LISTENING: u64 = 1 << 12 | 1 << 5 | 1 << 4 | 1;
const LIGHT_ON: u64 = 1 << 8;
const BLINKING: u64 = 2 << 8;
const POWER_OFF: u64 = 1 << 10 | 3 << 8;
const NOBODY: u64 = 0xffff_ffff;

fn slot_message() -> Action {
    Action::Message(MsiMessage { address: 0x1_fee0_0000, data: 0x77 })
}

impl Rig {
    /// As pciehp sets a port up; empty slots lose their power.
    fn listen(&mut self, slot: Slot) {
        self.set_port(slot, COMMAND, 2, MEMORY_AND_MASTER);
        for (at, value) in [(4, 0xfee0_0000), (8, 1), (12, 0x77), (2, 1)] {
            self.set_port(slot, MSI + at, if at == 2 { 2 } else { 4 }, value);
        }
        let present = self.port(slot, SLOT_STATUS, 2) & PRESENT != 0;
        self.set_port(slot, SLOT_STATUS, 2, 0x11f);
        self.control(slot, if present { LIGHT_ON } else { POWER_OFF });
    }

    fn control(&mut self, slot: Slot, lights_and_power: u64) {
        self.set_port(slot, SLOT_CONTROL, 2, LISTENING | lights_and_power);
    }

    fn status(&mut self, slot: Slot) -> u64 {
        self.port(slot, SLOT_STATUS, 2)
    }

    /// Reads the events and acknowledges them.
    fn events(&mut self, slot: Slot) -> u64 {
        let events = self.status(slot) & 0x11f;
        self.set_port(slot, SLOT_STATUS, 2, events);
        events
    }

    fn has_link(&mut self, slot: Slot) -> bool {
        self.port(slot, LINK_STATUS, 2) & 1 << 13 != 0
    }
}

#[test]
fn a_slot_tells_what_it_can_and_what_is_in_it() {
    let mut rig = Rig::new();
    let (full, empty) = (rig.slot, Slot(1));
    let capabilities = rig.port(full, SLOT_CAPABILITIES, 4);
    assert_eq!(capabilities, 1 << 19 | 1 << 18 | 0x7b, "all but a latch and an interlock");
    assert_eq!((rig.status(full), rig.has_link(full)), (PRESENT, true), "no event is left of the start");
    assert_eq!((rig.status(empty), rig.has_link(empty)), (0, false));
    assert_eq!(rig.port(full, SLOT_CONTROL, 2), 0x1c0, "with power, its light on");
    assert_eq!(rig.port(empty, SLOT_CONTROL, 2), 0x3c0, "with power, its light off");
}

#[test]
fn a_vdev_comes_into_a_slot_without_power_with_a_press_of_the_button() {
    let mut rig = Rig::new();
    let slot = Slot(1);
    rig.listen(slot);
    rig.take();
    assert_eq!(rig.add().unwrap(), slot);
    assert_eq!(rig.take(), [slot_message()]);
    assert_eq!((rig.events(slot), rig.take()), (BUTTON | PRESENCE_CHANGED, vec![]));
    assert_eq!(rig.bus.ecam_read(function(slot), 4), NOBODY, "without power");
    rig.control(slot, BLINKING);
    assert_eq!(rig.take(), [slot_message()], "the link is up");
    assert_eq!(rig.events(slot), LINK_CHANGED);
    assert_eq!((rig.has_link(slot), rig.bus.ecam_read(function(slot), 4)), (true, 0x0b25_8086));
    rig.control(slot, LIGHT_ON);
    rig.slot = slot;
    let base = rig.start();
    rig.write(base, 4, 1);
    assert_eq!(rig.take(), [message(0x41)]);
}

/// Linux leaves the light blinking for a second after it has switched a slot off.
#[test]
fn a_slot_that_has_just_been_emptied_takes_the_next_vdev() {
    let mut rig = Rig::new();
    let slot = rig.slot;
    rig.listen(slot);
    assert!(rig.bus.ask(slot, &mut |_| {}));
    rig.control(slot, BLINKING | 1 << 10);
    assert!(rig.bus.end(slot, &mut |_| {}).is_some());
    rig.events(slot);
    rig.take();
    assert_eq!(rig.add().unwrap(), slot);
    assert_eq!((rig.take(), rig.events(slot)), (vec![slot_message()], BUTTON | PRESENCE_CHANGED));
}

#[test]
fn whom_nobody_listens_to_finds_a_vdev_when_it_looks() {
    let mut rig = Rig::new();
    let slot = rig.add().unwrap();
    assert_eq!(rig.take(), []);
    assert_eq!(rig.bus.ecam_read(function(slot), 4), 0x0b25_8086);
    // It has turned the port on meanwhile: the next slot's events are kept for it.
    rig.set_port(Slot(2), COMMAND, 2, MEMORY_AND_MASTER);
    let slot = rig.add().unwrap();
    assert_eq!((rig.take(), rig.status(slot)), (vec![], PRESENT | PRESENCE_CHANGED | LINK_CHANGED));
}

#[test]
fn a_vdev_goes_when_the_guest_has_switched_its_slot_off() {
    let mut rig = Rig::new();
    let slot = rig.slot;
    rig.start();
    rig.listen(slot);
    rig.take();
    rig.calls();
    assert!(rig.bus.ask(slot, &mut |a| rig.seen.push(a)));
    assert_eq!((rig.take(), rig.events(slot)), (vec![slot_message()], BUTTON));
    rig.control(slot, BLINKING);
    // A second press would be taken for second thoughts.
    assert!(rig.bus.ask(slot, &mut |a| rig.seen.push(a)));
    assert_eq!((rig.take(), rig.status(slot)), (vec![], PRESENT));
    assert_eq!((rig.bus.has_let_go(slot), rig.calls()), (false, vec![]), "until then it works as ever");
    rig.control(slot, BLINKING | 1 << 10);
    let [Action::UnmapPortal { .. }, Action::Attend, said] = rig.take()[..] else { panic!() };
    assert_eq!((said, rig.calls()), (slot_message(), vec!["reset".to_string(), "master false".to_string()]));
    assert!(rig.bus.has_let_go(slot));
    rig.control(slot, LIGHT_ON);
    assert!(rig.bus.has_let_go(slot), "it is gone for the guest, whatever it does now");
    rig.control(slot, POWER_OFF);
    rig.events(slot);
    rig.take();
    assert!(rig.bus.end(slot, &mut |a| rig.seen.push(a)).is_some());
    assert_eq!((rig.events(slot), rig.take(), rig.bus.slots().count()), (PRESENCE_CHANGED, vec![], 0));
    assert!(!rig.bus.has_let_go(slot));
    assert_eq!(rig.add().unwrap(), slot, "the slot is free");
}

#[test]
fn what_is_left_of_an_ended_vdev_goes_when_the_guest_lets_go() {
    let mut rig = Rig::new();
    let (base, slot) = (rig.start(), rig.slot);
    rig.listen(slot);
    rig.take();
    assert!(rig.bus.end(slot, &mut |a| rig.seen.push(a)).is_some());
    assert!(!rig.take().contains(&slot_message()), "it is not told by the slot");
    assert_eq!((rig.events(slot), rig.status(slot)), (0, PRESENT));
    assert_eq!(rig.bus.mmio_read(base + 8, 4), 0xffff_fff7);
    rig.control(slot, POWER_OFF);
    assert_eq!((rig.status(slot), rig.config(0, 4)), (PRESENCE_CHANGED | LINK_CHANGED, NOBODY));
    assert_eq!(rig.take(), [slot_message()], "the link's change is one that it listens to");
    rig.control(slot, LIGHT_ON);
    assert_eq!((rig.has_link(slot), rig.bus.has_let_go(slot)), (false, false));
}

#[test]
fn another_vdev_in_the_place_of_remains_is_a_card_that_was_swapped() {
    let mut rig = Rig::new();
    rig.bus = PciBus::new(&[WINDOW32, WINDOW64], 1);
    let slot = rig.add().unwrap();
    rig.listen(slot);
    assert!(rig.bus.end(slot, &mut |_| {}).is_some());
    rig.events(slot);
    rig.take();
    assert_eq!(rig.add().unwrap(), slot);
    assert_eq!(rig.take(), [slot_message()]);
    assert_eq!((rig.events(slot), rig.status(slot)), (PRESENCE_CHANGED | LINK_CHANGED, PRESENT));
}

#[test]
fn power_is_the_guests_and_a_vdev_without_it_stays() {
    let mut rig = Rig::new();
    let slot = rig.slot;
    rig.start();
    rig.calls();
    rig.control(slot, POWER_OFF);
    assert_eq!((rig.config(0, 4), rig.has_link(slot)), (NOBODY, false));
    assert_eq!(rig.calls(), ["reset", "master false"]);
    assert!(!rig.take().contains(&Action::Attend), "nobody wants it to go");
    assert_eq!(rig.bus.slots().count(), 1);
    rig.control(slot, LIGHT_ON);
    assert_eq!((rig.config(0, 4), rig.config(COMMAND, 2)), (0x0b25_8086, 0));
    // One that has switched it off by itself need not be asked.
    rig.listen(slot);
    rig.control(slot, POWER_OFF);
    assert!(!rig.bus.ask(slot, &mut |_| {}));
    assert!(rig.bus.end(slot, &mut |_| {}).is_some());
    assert_eq!(rig.status(slot) & PRESENT, 0);
}

#[test]
fn who_does_not_listen_is_not_asked() {
    let mut rig = Rig::new();
    let slot = rig.slot;
    rig.listen(slot);
    for (at, off, on) in [
        (SLOT_CONTROL, LISTENING & !1, LISTENING),
        (SLOT_CONTROL, LISTENING & !0x20, LISTENING),
        (MSI + 2, 0, 1),
    ] {
        rig.set_port(slot, at, 2, off);
        assert!(!rig.bus.ask(slot, &mut |_| {}), "{at:#x} {off:#x}");
        assert_eq!(rig.status(slot), PRESENT);
        rig.set_port(slot, at, 2, on);
    }
    assert!(rig.bus.ask(slot, &mut |_| {}));
    assert!(!rig.bus.ask(Slot(77), &mut |_| {}));
}

/// 6.7.3.4: a message at each time that all of it comes together.
#[test]
fn a_message_is_sent_when_what_it_needs_comes_together_and_not_again() {
    let mut rig = Rig::new();
    let slot = rig.slot;
    rig.listen(slot);
    rig.control(slot, LIGHT_ON);
    let press = |rig: &mut Rig| rig.bus.ask(slot, &mut |a| rig.seen.push(a));
    assert!(press(&mut rig));
    assert_eq!(rig.take(), [slot_message()]);
    press(&mut rig);
    // A second event while the first one is there sends nothing, nor does clearing one of two.
    rig.set_port(slot, 0x50, 2, 0x10);
    rig.set_port(slot, SLOT_STATUS, 2, BUTTON);
    assert_eq!((rig.take(), rig.status(slot) & 0x11f), (vec![], LINK_CHANGED));
    // A storm of writes that change nothing of that.
    for _ in 0..100 {
        rig.control(slot, LIGHT_ON);
        rig.control(slot, BLINKING);
        rig.set_port(slot, SLOT_STATUS, 2, 0);
    }
    assert_eq!(rig.take(), []);
    for (at, off, on) in [
        (SLOT_CONTROL, 0x20 | 1, LISTENING),
        (SLOT_CONTROL, LISTENING & !0x20, LISTENING),
        (COMMAND, 2, 6),
        (MSI + 2, 0, 1),
    ] {
        rig.set_port(slot, at, 2, off);
        assert_eq!(rig.take(), []);
        rig.set_port(slot, at, 2, on);
        assert_eq!(rig.take(), [slot_message()], "{at:#x}");
    }
    assert_eq!(rig.events(slot), LINK_CHANGED);
    rig.set_port(slot, SLOT_STATUS, 2, 0x11f);
    assert_eq!(
        (rig.take(), rig.status(slot)),
        (vec![], PRESENT),
        "what it says is not for the guest to change"
    );
}
