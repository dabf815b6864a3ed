// SPDX-License-Identifier: MIT OR Apache-2.0
mod hotplug;
mod ports;
mod vectors;

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::irq::msi::PostedInterrupts;
use crate::vdev::parent::{Bar, PciIdentity, Portal, Remains};
use crate::vm::exit::MsiMessage;

const WINDOW32: PciWindow = PciWindow::fixed(0xe000_0000, 0x1000_0000);
const WINDOW64: PciWindow = PciWindow::prefetchable(0x20_0000_0000, 0x4_0000_0000);
const TABLE: u64 = 0x2000;
const PBA: u64 = 0x3000;
const PORTAL: u64 = 0x1000;
const PORTAL_HOST: HostPhys = HostPhys(0xc000_5000);
const SLOTS: u8 = 10;
/// The command register of either header type.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u64 = 6;

/// What a model was told.
#[derive(Default, Debug)]
struct Log {
    calls: Vec<String>,
    reset_fails: bool,
    /// Vector 1, when bus mastering goes.
    raises_when_suspended: bool,
    /// The physical interrupt 0 is the model's own: it waits for the device then, and raises vector 1.
    own_interrupt: bool,
    waiting: bool,
    /// How far its MSI-X structures are behind [`TABLE`] and [`PBA`].
    msix_shift: u64,
}

/// A vdev like a slice of DSA: BAR 0 with MSI-X, BAR 2 with one portal page. Writing `v` to offset 0 of
/// BAR 0 raises vector `v`, as does storing 64 bytes of which `v` is the first; offset 8 reads back its own address.
struct Model(Arc<Mutex<Log>>);

impl Model {
    fn note(&self, call: String) {
        self.0.lock().unwrap().calls.push(call);
    }
}

impl VdevRegisters for Model {
    fn identity(&self) -> PciIdentity {
        let bar = |index, size| Bar { index, size, prefetchable: true };
        let shift = self.0.lock().unwrap().msix_shift;
        PciIdentity {
            vendor: 0x8086,
            device: 0x0b25,
            subsystem: (0x8086, 0),
            revision: 0,
            class: 0x08_8000,
            bars: vec![bar(0, 0x1_0000), bar(2, 0x4000)],
            msix_vectors: 2,
            msix_bar: 0,
            msix_table: (TABLE + shift) as u32,
            msix_pba: (PBA + shift) as u32,
        }
    }

    fn portals(&self) -> Vec<Portal> {
        vec![Portal { bar: 2, offset: PORTAL, host: PORTAL_HOST, len: 0x1000 }]
    }

    fn read(&mut self, bar: u8, offset: u64, _: u8) -> u64 {
        assert!(offset < 0x1_0000);
        u64::from(bar) << 32 | offset
    }

    fn write(&mut self, bar: u8, offset: u64, size: u8, value: u64, raise: &mut dyn FnMut(u16)) {
        assert!(offset < 0x1_0000);
        self.note(format!("write {bar} {offset:#x} {size} {value:#x}"));
        if bar == 0 && offset == 0 {
            raise(value as u16);
        }
    }

    fn submit(&mut self, bar: u8, offset: u64, descriptor: &[u8; 64], raise: &mut dyn FnMut(u16)) {
        assert!(offset.is_multiple_of(64) && offset < 0x1_0000);
        self.note(format!("submit {bar} {offset:#x} {:x?}", &descriptor[..2]));
        raise(descriptor[0].into());
    }

    fn interrupt(&mut self, vector: u16, raise: &mut dyn FnMut(u16)) {
        let mut log = self.0.lock().unwrap();
        let own = log.own_interrupt && vector == 0;
        log.waiting |= own;
        raise(if own { 1 } else { vector });
    }

    fn is_waiting(&self) -> bool {
        self.0.lock().unwrap().waiting
    }

    /// What it raises here is its own: nothing of the device's.
    fn device_event(&mut self, raise: &mut dyn FnMut(u16)) {
        raise(0);
    }

    fn set_bus_master(&mut self, enabled: bool, raise: &mut dyn FnMut(u16)) {
        self.note(format!("master {enabled}"));
        if !enabled && self.0.lock().unwrap().raises_when_suspended {
            raise(1);
        }
    }

    fn route_interrupt(&mut self, vector: u16, to: Option<&Posting>) {
        self.note(format!("vector {vector} posted as {:x?}", to.map(|posting| posting.vector)));
    }

    fn remains(&mut self, raise: &mut dyn FnMut(u16)) -> Box<dyn Remains> {
        self.note("remains".into());
        raise(1);
        Box::new(Left(self.0.clone()))
    }

    fn reset(&mut self) -> Result<(), QuiesceFailed> {
        self.note("reset".into());
        match self.0.lock().unwrap().reset_fails {
            true => Err(QuiesceFailed { why: "busy".into() }),
            false => Ok(()),
        }
    }
}

/// What is left of such a model: its complement, and writes that raise as before.
struct Left(Arc<Mutex<Log>>);

impl Remains for Left {
    fn read(&mut self, bar: u8, offset: u64, _: u8) -> u64 {
        !(u64::from(bar) << 32 | offset)
    }

    fn write(&mut self, _: u8, _: u64, _: u8, value: u64, raise: &mut dyn FnMut(u16)) {
        self.0.lock().unwrap().calls.push("write to remains".into());
        raise(value as u16);
    }
}

/// Where the configuration space of a slot's function is at the start.
fn function(slot: Slot) -> u64 {
    u64::from(slot.number()) << 20
}

/// A bus with one vdev behind a port that is turned on, and what came out of it.
struct Rig {
    bus: PciBus,
    slot: Slot,
    seen: Vec<Action>,
    log: Arc<Mutex<Log>>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Log::default())
    }

    fn with(log: Log) -> Self {
        let log = Arc::new(Mutex::new(log));
        let mut bus = PciBus::new(&[WINDOW32, WINDOW64], SLOTS);
        let slot = bus.add(Box::new(Model(log.clone())), &mut |a| panic!("{a:?}")).unwrap();
        let mut rig = Self { bus, slot, seen: Vec::new(), log };
        rig.set_port(slot, COMMAND, 2, MEMORY_AND_MASTER);
        rig
    }

    /// Another vdev, in the next slot.
    fn add(&mut self) -> Result<Slot, Refusal> {
        self.bus.add(Box::new(Model(self.log.clone())), &mut |a| self.seen.push(a))
    }

    fn config(&mut self, offset: u64, size: u8) -> u64 {
        self.bus.ecam_read(function(self.slot) + offset, size)
    }

    fn set_config(&mut self, offset: u64, size: u8, value: u64) {
        self.bus.ecam_write(function(self.slot) + offset, size, value, &mut |a| self.seen.push(a));
    }

    /// A register of a slot's port.
    fn port(&mut self, slot: Slot, offset: u64, size: u8) -> u64 {
        self.bus.ecam_read((u64::from(slot.port()) << 12) + offset, size)
    }

    fn set_port(&mut self, slot: Slot, offset: u64, size: u8, value: u64) {
        let at = (u64::from(slot.port()) << 12) + offset;
        self.bus.ecam_write(at, size, value, &mut |a| self.seen.push(a));
    }

    fn set_bar(&mut self, index: u64, address: u64) {
        self.set_config(0x10 + 4 * index, 4, address & 0xffff_ffff);
        self.set_config(0x14 + 4 * index, 4, address >> 32);
    }

    fn bar(&mut self, index: u64) -> u64 {
        self.config(0x10 + 4 * index, 8) & !0xf
    }

    fn write(&mut self, address: u64, size: u8, value: u64) {
        self.bus.mmio_write(address, size, value, &mut |a| self.seen.push(a));
    }

    fn store64(&mut self, address: u64, first: u8) {
        let mut bytes = [0x5a; 64];
        bytes[0] = first;
        self.bus.mmio_store64(address, &bytes, &mut |a| self.seen.push(a));
    }

    /// Memory decoding and bus mastering on, MSI-X on with both vectors programmed and unmasked.
    fn start(&mut self) -> u64 {
        self.set_config(4, 2, 6);
        self.set_config(0x82, 2, 0x8000);
        let base = self.bar(0);
        for vector in 0..2 {
            self.write(base + TABLE + 16 * vector, 8, 0xfee0_0000);
            self.write(base + TABLE + 16 * vector + 8, 4, 0x40 + vector);
            self.write(base + TABLE + 16 * vector + 12, 4, 0);
        }
        self.seen.clear();
        base
    }

    fn take(&mut self) -> Vec<Action> {
        core::mem::take(&mut self.seen)
    }

    /// Has the interrupts routed that changed; what the model was told of them since the last call.
    fn routed(&mut self) -> Vec<String> {
        self.bus.route_interrupts(&mut |message| {
            let descriptor = Arc::new(Descriptor);
            (message.data != 0x666).then(|| Posting { descriptor, vector: message.data as u8 })
        });
        self.calls().into_iter().filter(|call| call.contains("posted as")).collect()
    }

    fn calls(&self) -> Vec<String> {
        core::mem::take(&mut self.log.lock().unwrap().calls)
    }
}

fn message(data: u32) -> Action {
    Action::Message(MsiMessage { address: 0xfee0_0000, data })
}

#[test]
fn a_scan_finds_the_bridge_the_ports_and_the_vdev_and_nothing_else() {
    let mut rig = Rig::new();
    let mut found = Vec::new();
    for place in 0..1u64 << 16 {
        let id = rig.bus.ecam_read(place << 12, 4);
        if id != 0xffff_ffff {
            let class = rig.bus.ecam_read((place << 12) + 8, 4) >> 8;
            found.push((place, id, class, rig.bus.ecam_read((place << 12) + 0xe, 1)));
        }
    }
    let port = |place, header| (place, 0x000c_1b36, 0x06_0400, header);
    let mut wanted = vec![(0, 0x0008_1b36, 0x06_0000, 0)];
    wanted.extend((8..18).map(|place| port(place, 0x81)));
    wanted.push((1 << 8, 0x0b25_8086, 0x08_8000, 0));
    assert_eq!(found, wanted);
    assert_eq!(rig.bus.slots().collect::<Vec<_>>(), [rig.slot]);
    // A device of one function does not say that it has several.
    let mut bus = PciBus::new(&[WINDOW32, WINDOW64], 9);
    assert_eq!([8u64, 15, 16].map(|place| bus.ecam_read(place << 12 | 0xe, 1)), [0x81, 0x81, 1]);
}

#[test]
fn capabilities_are_chained_and_say_endpoint_with_reset_and_msix() {
    let mut rig = Rig::new();
    assert_ne!(rig.config(6, 2) & 0x10, 0);
    let express = rig.config(0x34, 1);
    assert_eq!((rig.config(express, 1), rig.config(express + 2, 2)), (0x10, 2));
    assert_ne!(rig.config(express + 4, 4) & 1 << 28, 0);
    let msix = rig.config(express + 1, 1);
    assert_eq!((rig.config(msix, 1), rig.config(msix + 1, 1)), (0x11, 0));
    assert_eq!(rig.config(msix + 2, 2), 1, "two vectors, disabled");
    assert_eq!((rig.config(msix + 4, 4), rig.config(msix + 8, 4)), (TABLE, PBA));
    assert_eq!(rig.config(0x100, 4), 0, "no extended capabilities");
}

#[test]
fn bars_are_sized_as_linux_does_and_keep_their_address() {
    let mut rig = Rig::new();
    for (index, size) in [(0, 0x1_0000u64), (2, 0x4000)] {
        let at = 0x10 + 4 * index;
        let (low, high) = (rig.config(at, 4), rig.config(at + 4, 4));
        assert_eq!(low & 0xf, 0xc, "64-bit prefetchable");
        rig.set_config(at, 4, 0xffff_ffff);
        let sized = rig.config(at, 4);
        rig.set_config(at, 4, low);
        rig.set_config(at + 4, 4, 0xffff_ffff);
        let sized = (rig.config(at + 4, 4) << 32 | sized) & !0xf;
        rig.set_config(at + 4, 4, high);
        assert_eq!((!sized).wrapping_add(1), size);
        let home = rig.bar(index);
        assert!(home >= WINDOW64.start && home.is_multiple_of(size));
    }
    assert_eq!(rig.take(), [], "decoding is off");
}

#[test]
fn the_portal_is_mapped_while_the_bar_is_decoded_and_follows_it() {
    let mut rig = Rig::new();
    let home = rig.bar(2);
    let map = |base| Action::MapPortal { guest: GuestPhys(base + PORTAL), host: PORTAL_HOST, len: 0x1000 };
    let unmap = |base| Action::UnmapPortal { guest: GuestPhys(base + PORTAL), len: 0x1000 };
    rig.set_config(4, 2, 2);
    assert_eq!(rig.take(), [map(home)]);
    rig.set_config(4, 2, 0x406);
    assert_eq!(rig.take(), [], "still decoded");
    // To the port's other window, in two halves: in between it lies nowhere.
    let moved = WINDOW32.start + 0x10_0000;
    rig.set_bar(2, moved);
    assert_eq!(rig.take(), [unmap(home), map(moved)]);
    rig.set_bar(2, moved + 0x10_0000);
    assert_eq!(rig.take(), [unmap(moved)], "the next port's window");
    for bad in [0, 0x10_0000, 0xfee0_0000, WINDOW32.start - 0x4000, WINDOW64.start + WINDOW64.len, !0x3fff] {
        rig.set_bar(2, bad);
        let mut mapped = 0i32;
        for action in rig.take() {
            match action {
                Action::MapPortal { guest, .. } => {
                    assert!(guest.0 >= WINDOW32.start, "{guest}");
                    mapped += 1;
                }
                Action::UnmapPortal { .. } => mapped -= 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(mapped <= 0, "mapped at {bad:#x}");
    }
    rig.set_bar(2, home);
    rig.take();
    rig.set_config(4, 2, 0);
    assert_eq!(rig.take(), [unmap(home)]);
}

#[test]
fn a_bar_over_another_is_not_decoded() {
    let mut rig = Rig::new();
    rig.set_config(4, 2, 2);
    let (first, second) = (rig.bar(0), rig.bar(2));
    rig.take();
    rig.set_bar(2, first + 0x4000);
    assert_eq!(rig.take(), [Action::UnmapPortal { guest: GuestPhys(second + PORTAL), len: 0x1000 }]);
    assert_eq!(rig.bus.mmio_read(first + 0x4008, 4), 0x4008, "BAR 0 answers");
}

/// A model that makes something else of a physical interrupt does not get its own back as one.
#[test]
fn what_a_model_raises_is_sent_as_it_is() {
    let mut rig = Rig::new();
    rig.start();
    let slot = rig.slot;
    rig.log.lock().unwrap().own_interrupt = true;
    rig.bus.interrupt(slot, 0, &mut |a| rig.seen.push(a));
    assert!(rig.take().contains(&message(0x41)));
    rig.bus.device_event(slot, &mut |a| rig.seen.push(a));
    assert_eq!(rig.take(), [message(0x40)]);
    assert!(rig.bus.end(slot, &mut |_| {}).is_some());
    rig.bus.device_event(slot, &mut |a| panic!("{a:?} of one that has ended"));
}

#[test]
fn interrupts_are_sent_kept_and_sent_once() {
    let mut rig = Rig::new();
    let base = rig.start();
    let slot = rig.slot;
    rig.write(base, 4, 1);
    assert_eq!(rig.take(), [message(0x41)]);
    rig.bus.interrupt(slot, 0, &mut |a| rig.seen.push(a));
    assert_eq!(rig.take(), [message(0x40)]);

    rig.write(base + TABLE + 16 + 12, 4, 1); // mask the vector
    rig.write(base, 4, 1);
    rig.write(base, 4, 1);
    assert_eq!(rig.take(), []);
    assert_eq!(rig.bus.mmio_read(base + PBA, 8), 2);
    rig.write(base + PBA, 8, 0);
    assert_eq!(rig.bus.mmio_read(base + PBA, 4), 2, "read-only");
    rig.write(base + TABLE + 16 + 12, 4, 0);
    assert_eq!(rig.take(), [message(0x41)]);
    assert_eq!(rig.bus.mmio_read(base + PBA, 8), 0);

    for (mask, unmask) in [((0x82, 0xc000), (0x82, 0x8000)), ((4, 2), (4, 6))] {
        rig.set_config(mask.0, 2, mask.1); // function mask, then no bus master
        rig.write(base, 4, 0);
        assert_eq!(rig.take(), []);
        rig.set_config(unmask.0, 2, unmask.1);
        assert_eq!(rig.take(), [message(0x40)]);
    }
    rig.set_config(0x82, 2, 0);
    rig.write(base, 4, 0);
    rig.set_config(0x82, 2, 0x8000);
    assert_eq!(rig.take(), [], "MSI-X was off: nothing was kept");
    rig.write(base, 4, 77);
    assert_eq!(rig.take(), [], "no such vector");
}

#[test]
fn an_interrupt_of_the_models_own_is_what_it_makes_of_it() {
    let mut rig = Rig::new();
    rig.start();
    rig.log.lock().unwrap().own_interrupt = true;
    rig.bus.interrupt(rig.slot, 1, &mut |a| rig.seen.push(a));
    assert_eq!(rig.take(), [message(0x41)]);
    rig.bus.interrupt(rig.slot, 0, &mut |a| rig.seen.push(a));
    assert_eq!(rig.take(), [message(0x41), Action::Attend], "it began something on the device");
}

#[test]
fn a_store_of_64_bytes_reaches_the_model_as_one() {
    let mut rig = Rig::new();
    let (base, portals) = (rig.start(), rig.bar(2));
    for address in [base, base + 0xffc0, portals, portals + 0x3fc0] {
        rig.store64(address, 1);
        assert_eq!(rig.take(), [message(0x41)]);
    }
    assert_eq!(
        rig.calls().split_off(1),
        [
            "submit 0 0x0 [1, 5a]",
            "submit 0 0xffc0 [1, 5a]",
            "submit 2 0x0 [1, 5a]",
            "submit 2 0x3fc0 [1, 5a]"
        ]
    );
    rig.log.lock().unwrap().waiting = true;
    rig.store64(portals, 77);
    assert_eq!(rig.take(), [Action::Attend], "no such vector");
}

#[test]
fn what_is_no_register_takes_no_store_of_64_bytes() {
    let mut rig = Rig::new();
    let (base, portals) = (rig.start(), rig.bar(2));
    rig.calls();
    for address in [base + TABLE, base + PBA, portals + PORTAL, portals + PORTAL + 0xfc0, portals + 8] {
        rig.store64(address, 0);
    }
    assert_eq!(rig.bus.mmio_read(base + TABLE, 8), 0xfee0_0000, "MSI-X as it was");
    assert_eq!(rig.bus.portal_traps(rig.slot), 2);
    // No BAR answers: behind one, across its end, at the end of the address space.
    let before = rig.bus.unclaimed();
    for address in [portals + 0x4000, WINDOW64.start + WINDOW64.len, !0x3f] {
        rig.store64(address, 0);
    }
    assert_eq!(rig.bus.unclaimed(), before + 3);
    rig.store64(portals + 0x4000 - 32, 0);
    // Nor where decoding is off, or the slice gone.
    rig.set_config(4, 2, 4);
    rig.store64(base, 0);
    rig.set_config(4, 2, 6);
    assert!(rig.bus.end(rig.slot, &mut |_| {}).is_some());
    rig.calls();
    rig.take();
    rig.store64(base, 0);
    assert_eq!((rig.take(), rig.calls()), (vec![], vec![]));
}

#[test]
fn what_shares_64_bytes_with_a_structure_is_not_stored_to() {
    // The table of 32 bytes lies across a multiple of 64, the array of 8 bytes before one.
    let mut rig = Rig::with(Log { msix_shift: 56, ..Log::default() });
    rig.set_config(4, 2, 6);
    let base = rig.bar(0);
    rig.calls();
    for (offset, calls) in [
        (TABLE - 64, 1),
        (TABLE, 0),
        (TABLE + 64, 0),
        (TABLE + 128, 1),
        (PBA - 64, 1),
        (PBA, 0),
        (PBA + 64, 1),
    ] {
        rig.store64(base + offset, 77);
        assert_eq!(rig.calls().len(), calls, "{offset:#x}");
    }
}

#[derive(Debug)]
struct Descriptor;

impl PostedInterrupts for Descriptor {
    fn address(&self) -> HostPhys {
        HostPhys(0x1000)
    }
}

#[test]
fn what_vectors_send_is_told_when_it_changes_and_only_then() {
    let mut rig = Rig::new();
    let nothing: [&str; 0] = [];
    assert_eq!(rig.routed(), nothing);
    let base = rig.start();
    let both = ["vector 0 posted as Some(40)", "vector 1 posted as Some(41)"];
    assert_eq!(rig.routed(), both);
    assert_eq!(rig.routed(), nothing);
    rig.write(base + TABLE + 12, 4, 0);
    rig.write(base, 4, 1);
    assert_eq!(rig.routed(), nothing, "it is as it was");
    for (mask, unmask) in [((0x82, 0xc000), (0x82, 0x8000)), ((0x82, 0), (0x82, 0x8000)), ((4, 2), (4, 6))] {
        rig.set_config(mask.0, 2, mask.1);
        assert_eq!(rig.routed(), ["vector 0 posted as None", "vector 1 posted as None"]);
        rig.set_config(unmask.0, 2, unmask.1);
        assert_eq!(rig.routed(), both);
    }
    rig.write(base + TABLE + 12, 4, 1);
    rig.write(base + TABLE + 8, 4, 0x55);
    assert_eq!(rig.routed(), ["vector 0 posted as None"]);
    rig.write(base + TABLE + 12, 4, 0);
    assert_eq!(rig.routed(), ["vector 0 posted as Some(55)"]);
    rig.write(base + TABLE + 8, 4, 0x666);
    assert_eq!(rig.routed(), ["vector 0 posted as None"], "where there is no way for it");
    rig.set_config(0x48, 2, 0x8000);
    assert_eq!(rig.routed(), ["vector 0 posted as None", "vector 1 posted as None"]);
}

#[test]
fn of_a_slice_that_did_not_stop_nothing_is_posted() {
    let mut rig = Rig::new();
    rig.start();
    assert_eq!(rig.routed().len(), 2);
    rig.log.lock().unwrap().reset_fails = true;
    rig.set_config(0x48, 2, 0x8000);
    let nothing = ["vector 0 posted as None", "vector 1 posted as None"];
    assert_eq!(
        rig.calls(),
        [&nothing[..], &["reset", "remains"]].concat(),
        "before what the slice raises at its end"
    );
    rig.start();
    assert_eq!(rig.routed(), [""; 0], "it has no slice");
}

#[test]
fn nothing_is_posted_behind_the_back_of_a_guest_that_gives_its_function_up() {
    let nothing = ["vector 0 posted as None", "vector 1 posted as None"];
    let started = || {
        let mut rig = Rig::new();
        rig.start();
        assert_eq!(rig.routed().len(), 2);
        rig
    };
    let mut rig = started();
    rig.set_config(4, 2, 2);
    assert_eq!(rig.calls(), [&nothing[..], &["master false"]].concat());
    let (mut rig, slot) = (started(), rig.slot);
    assert!(rig.bus.end(slot, &mut |_| {}).is_some());
    assert_eq!(rig.routed(), nothing, "before the vdev ends");
}

#[test]
fn table_entries_read_back_and_start_masked() {
    let mut rig = Rig::new();
    rig.set_config(4, 2, 6);
    let base = rig.bar(0);
    assert_eq!(rig.bus.mmio_read(base + TABLE + 12, 4), 1);
    rig.write(base + TABLE, 4, 0xfee0_1003);
    rig.write(base + TABLE + 4, 4, 5);
    rig.write(base + TABLE + 8, 8, 0x1_0000_0055);
    assert_eq!(rig.bus.mmio_read(base + TABLE, 8), 0x5_fee0_1000);
    assert_eq!(rig.bus.mmio_read(base + TABLE + 8, 8), 0x1_0000_0055);
    rig.write(base + TABLE + 8, 2, 0);
    assert_eq!(rig.bus.mmio_read(base + TABLE + 8, 4), 0x55, "narrow writes are not defined");
}

#[test]
fn function_level_reset_unmaps_first_and_starts_over() {
    let mut rig = Rig::new();
    let base = rig.start();
    rig.calls();
    rig.set_config(0x48, 2, 0x8000 | 0x2810);
    assert!(matches!(rig.take()[..], [Action::UnmapPortal { .. }]));
    assert_eq!(rig.calls(), ["reset", "master false"]);
    assert_eq!((rig.config(4, 2), rig.config(0x82, 2), rig.bar(0)), (0, 1, base));
    assert_eq!(rig.config(0x48, 2), 0x2810, "the reset bit reads as zero");
    rig.start();
    rig.write(base, 4, 0);
    assert_eq!(rig.take(), [message(0x40)]);
}

#[test]
fn a_slice_that_does_not_stop_is_cut_off() {
    let mut rig = Rig::new();
    let base = rig.start();
    rig.log.lock().unwrap().reset_fails = true;
    rig.set_config(0x48, 2, 0x8000);
    assert!(matches!(rig.take()[..], [Action::UnmapPortal { .. }]));
    assert_eq!(rig.bus.failed(rig.slot).map(|f| f.why.as_str()), Some("busy"));
    rig.calls();
    assert_eq!(rig.start(), base);
    assert_eq!(
        (rig.config(0, 4), rig.bus.mmio_read(base + 8, 4)),
        (0x0b25_8086, 0xffff_fff7),
        "it is there, with what remains"
    );
    let portal = rig.bar(2) + PORTAL;
    rig.write(portal, 8, 0);
    rig.bus.interrupt(rig.slot, 0, &mut |a| rig.seen.push(a));
    assert_eq!(rig.take(), [message(0x40)], "from the remains only");
    assert_eq!(rig.calls(), ["write to remains"], "nothing reaches the slice");
    // A reset that helps brings it back.
    rig.log.lock().unwrap().reset_fails = false;
    rig.set_config(0x48, 2, 0x8000);
    assert!(rig.bus.failed(rig.slot).is_none());
    rig.take();
    rig.set_config(4, 2, 6);
    assert!(matches!(rig.take()[..], [Action::MapPortal { .. }]));
    assert_eq!(rig.bus.mmio_read(base + 8, 4), 8);
}

#[test]
fn of_an_ended_vdev_the_guest_keeps_a_function_that_lets_its_driver_finish() {
    let mut rig = Rig::new();
    let base = rig.start();
    let slot = rig.slot;
    assert!(rig.bus.end(slot, &mut |a| rig.seen.push(a)).is_some());
    assert!(
        matches!(rig.take()[..], [Action::Message(_), Action::UnmapPortal { .. }]),
        "whoever waits hears of it"
    );
    assert!(rig.bus.end(slot, &mut |_| {}).is_none());
    assert_eq!(rig.bus.slots().count(), 0);
    rig.calls();
    assert_eq!((rig.config(0, 4), rig.bus.mmio_read(base + 8, 4)), (0x0b25_8086, 0xffff_fff7));
    rig.bus.interrupt(slot, 0, &mut |a| rig.seen.push(a));
    assert_eq!(rig.take(), [], "its slice is another's now");
    rig.write(base, 4, 0);
    assert_eq!(rig.take(), [message(0x40)]);
    // Neither bus mastering nor a reset brings anything back.
    rig.set_config(4, 2, 0);
    rig.set_config(4, 2, 6);
    rig.set_config(0x48, 2, 0x8000);
    assert_eq!(rig.start(), base);
    assert_eq!(rig.bus.mmio_read(base + 8, 4), 0xffff_fff7);
    assert_eq!((rig.take(), rig.calls()), (vec![], vec!["write to remains".to_string()]));
}

#[test]
fn slots_of_ended_vdevs_are_used_again_when_there_are_no_others() {
    let mut rig = Rig::new();
    let base = rig.start();
    assert!(rig.bus.end(rig.slot, &mut |_| {}).is_some());
    for number in 2..=SLOTS {
        assert_eq!(rig.add().unwrap().number(), number);
    }
    assert_eq!(rig.add().unwrap(), rig.slot);
    assert_eq!(rig.bar(0), base, "its addresses are used again");
    assert_eq!(rig.bus.mmio_read(base + 8, 4), 0xffff_ffff, "decoding is off");
    rig.set_config(4, 2, 6);
    assert_eq!(rig.bus.mmio_read(base + 8, 4), 8);
    let refusal = rig.add().unwrap_err();
    assert!(refusal.why.contains("all 10 slots"), "{refusal}");
}

#[test]
fn there_may_be_as_many_slots_as_ports_fit_a_bus() {
    let log = Arc::new(Mutex::new(Log::default()));
    let mut bus = PciBus::new(&[WINDOW32, WINDOW64], u8::MAX);
    let add = |bus: &mut PciBus| bus.add(Box::new(Model(log.clone())), &mut |_| {});
    let last = (0..248).map(|_| add(&mut bus).unwrap()).last().unwrap();
    assert_eq!((last.number(), last.port()), (248, 0xff));
    assert!(add(&mut bus).is_err());
    assert_eq!(bus.ecam_read(248 << 20, 4), 0x0b25_8086);
}

#[test]
fn an_interrupt_raised_when_bus_mastering_goes_is_sent_when_it_is_back() {
    let mut rig = Rig::new();
    rig.start();
    rig.calls();
    rig.log.lock().unwrap().raises_when_suspended = true;
    rig.set_config(4, 2, 2);
    assert_eq!((rig.take(), rig.calls()), (vec![], vec!["master false".to_string()]));
    rig.set_config(4, 2, 6);
    assert_eq!((rig.take(), rig.calls()), (vec![message(0x41)], vec!["master true".to_string()]));
}

#[test]
fn an_access_to_an_unmapped_portal_goes_nowhere() {
    let mut rig = Rig::new();
    rig.start();
    rig.calls();
    let portal = rig.bar(2) + PORTAL;
    rig.write(portal, 8, 1);
    assert_eq!(rig.bus.mmio_read(portal + 8, 8), u64::MAX);
    assert_eq!(rig.bus.mmio_read(portal - 4, 8), u64::MAX, "reaches into it");
    assert_eq!((rig.calls(), rig.bus.portal_traps(rig.slot)), (vec![], 3));
}

#[test]
fn vdevs_lie_apart() {
    let mut rig = Rig::new();
    for _ in 1..SLOTS {
        rig.add().unwrap();
    }
    for slot in (0..SLOTS).map(Slot) {
        rig.set_port(slot, COMMAND, 2, MEMORY_AND_MASTER);
        rig.bus.ecam_write(function(slot) + COMMAND, 2, 2, &mut |a| rig.seen.push(a));
    }
    let mut pages: Vec<u64> = rig
        .take()
        .iter()
        .filter_map(|a| if let Action::MapPortal { guest, .. } = a { Some(guest.0) } else { None })
        .collect();
    pages.sort();
    pages.dedup();
    assert_eq!((pages.len(), pages[0] >= WINDOW64.start), (SLOTS.into(), true));
}

/// A model whose identity and portals are given.
struct Shaped(PciIdentity, Vec<Portal>);

impl VdevRegisters for Shaped {
    fn identity(&self) -> PciIdentity {
        self.0.clone()
    }
    fn portals(&self) -> Vec<Portal> {
        self.1.clone()
    }
    fn read(&mut self, _: u8, _: u64, _: u8) -> u64 {
        0
    }
    fn write(&mut self, _: u8, _: u64, _: u8, _: u64, _: &mut dyn FnMut(u16)) {}
    fn set_bus_master(&mut self, _: bool, _: &mut dyn FnMut(u16)) {}
    fn remains(&mut self, _: &mut dyn FnMut(u16)) -> Box<dyn Remains> {
        Box::new(Left(Arc::default()))
    }
    fn reset(&mut self) -> Result<(), QuiesceFailed> {
        Ok(())
    }
}

#[test]
fn models_that_cannot_be_are_refused() {
    let good = Model(Arc::default()).identity();
    let portal = Portal { bar: 2, offset: PORTAL, host: PORTAL_HOST, len: 0x1000 };
    type Change<'a> = &'a dyn Fn(&mut PciIdentity, &mut Portal);
    let shapes: [(&str, Change<'_>); 9] = [
        ("odd size", &|i, _| i.bars[0].size = 0x1_0001),
        ("below a page", &|i, _| i.bars[1].size = 0x800),
        ("odd index", &|i, _| i.bars[1].index = 1),
        ("twice", &|i, _| i.bars[1].index = 0),
        ("table over PBA", &|i, _| i.msix_pba = i.msix_table + 8),
        ("table beyond the BAR", &|i, _| i.msix_table = 0xfff8),
        ("no such MSI-X BAR", &|i, _| i.msix_bar = 4),
        ("portal beyond the BAR", &|_, p| p.offset = 0x4000),
        ("portal over the MSI-X table", &|_, p| *p = Portal { bar: 0, offset: TABLE, ..*p }),
    ];
    for (name, change) in shapes {
        let (mut identity, mut portal) = (good.clone(), portal);
        change(&mut identity, &mut portal);
        let mut bus = PciBus::new(&[WINDOW32, WINDOW64], 1);
        assert!(bus.add(Box::new(Shaped(identity, vec![portal])), &mut |_| {}).is_err(), "{name}");
    }
    let mut huge = good;
    huge.bars[0].size = 1 << 39;
    let mut bus = PciBus::new(&[WINDOW32, WINDOW64], 1);
    let refusal = bus.add(Box::new(Shaped(huge, vec![])), &mut |_| {}).unwrap_err();
    assert!(refusal.why.contains("no room"));
}

proptest! {
    #[test]
    fn portals_stay_in_the_windows_whatever_the_guest_does(
        ops in proptest::collection::vec((0u8..14, 0u8..3, any::<u64>(), any::<u64>(), 0u8..10), 0..200),
    ) {
        let log = Arc::new(Mutex::new(Log::default()));
        let mut bus = PciBus::new(&[WINDOW32, WINDOW64], 3);
        for slot in 0..3 {
            bus.add(Box::new(Model(log.clone())), &mut |_| {}).unwrap();
            bus.ecam_write(u64::from(Slot(slot).port()) << 12 | COMMAND, 2, MEMORY_AND_MASTER, &mut |_| {});
        }
        let mut mapped: Vec<(u64, u64)> = Vec::new();
        for (op, slot, select, value, size) in ops {
            let mut sink = |action| match action {
                Action::MapPortal { guest, len, .. } => {
                    let inside = [WINDOW32, WINDOW64].iter().any(|w| w.contains(guest.0, len));
                    assert!(inside, "{guest} is in no window");
                    assert!(mapped.iter().all(|(g, l)| guest.0 + len <= *g || g + l <= guest.0), "overlap");
                    mapped.push((guest.0, len));
                }
                Action::UnmapPortal { guest, len } => {
                    let before = mapped.len();
                    mapped.retain(|m| *m != (guest.0, len));
                    assert_eq!(mapped.len() + 1, before, "unmapped what was not mapped");
                }
                _ => {}
            };
            // The bus that it is on at the start, or any.
            let slot = Slot(slot);
            let function = if select & 0x300 == 0 { (value & 0xff) << 20 } else { function(slot) };
            let port = u64::from(slot.port()) << 12;
            // Interesting addresses: in the windows, at their ends, in RAM, anywhere.
            let target = match select % 5 {
                0 => WINDOW32.start + value % WINDOW32.len,
                1 => WINDOW64.start + (value % 0x40) * 0x4000,
                2 => WINDOW64.start + WINDOW64.len - (value & 0xffff),
                3 => value & 0xffff_ffff,
                _ => value,
            };
            match op {
                0 => bus.ecam_write(function + 4, 2, value, &mut sink),
                1 => {
                    let bar = 0x10 + 8 * (select >> 8 & 1);
                    bus.ecam_write(function + bar, 8, target, &mut sink);
                }
                2 => bus.ecam_write(function + (select & 0xfff), size, value, &mut sink),
                3 => { bus.ecam_read(select, size); }
                4 => bus.mmio_write(target, size, value, &mut sink),
                5 => { bus.mmio_read(target, size); }
                6 => bus.mmio_store64(target, &[value as u8; 64], &mut sink),
                7 => bus.ecam_write(port + (select & 0xfff), size, value, &mut sink),
                8 => bus.ecam_write(port + 0x18 + (select & 0x18), 4, target >> 16, &mut sink),
                9 => bus.ecam_write(port + [0x3e, 0x50, 0x58, 0x5a][select as usize & 3], 2, value, &mut sink),
                10 => drop(bus.ask(slot, &mut sink)),
                11 => drop(bus.end(slot, &mut sink)),
                12 => drop(bus.add(Box::new(Model(log.clone())), &mut sink)),
                _ => bus.interrupt(Slot(select as u8), value as u16, &mut sink),
            }
        }
        for slot in bus.slots().collect::<Vec<_>>() {
            bus.end(slot, &mut |a| if let Action::UnmapPortal { guest, len } = a {
                mapped.retain(|m| *m != (guest.0, len));
            });
        }
        prop_assert!(mapped.is_empty());
    }
}
