// SPDX-License-Identifier: MIT OR Apache-2.0
//! Root ports as bridges: bus numbers, windows, and what they let through.

use super::*;

const SECONDARY: u64 = 0x19;
const BRIDGE_CONTROL: u64 = 0x3e;
const LINK_CONTROL: u64 = 0x50;
const ID: u64 = 0x0b25_8086;
const NOBODY: u64 = 0xffff_ffff;

fn map(base: u64) -> Action {
    Action::MapPortal { guest: GuestPhys(base + PORTAL), host: PORTAL_HOST, len: 0x1000 }
}

fn unmap(base: u64) -> Action {
    Action::UnmapPortal { guest: GuestPhys(base + PORTAL), len: 0x1000 }
}

#[test]
fn a_port_says_what_it_is() {
    let mut rig = Rig::new();
    let slot = rig.slot;
    let express = rig.port(slot, 0x34, 1);
    assert_eq!(
        (rig.port(slot, express, 1), rig.port(slot, express + 2, 2)),
        (0x10, 0x142),
        "root port, slot"
    );
    let msi = rig.port(slot, express + 1, 1);
    assert_eq!((rig.port(slot, msi, 4), rig.port(slot, 0x3d, 1)), (0x80_0005, 0), "MSI only");
    assert_eq!(rig.port(slot, 0x18, 4), 0x0001_0100);
    assert_eq!(rig.port(slot, 0x1c, 2), 0, "no I/O window");
    assert_eq!((rig.port(slot, 0x10, 8), rig.port(slot, 0x100, 4)), (0, 0), "no BARs, nothing extended");
}

#[test]
fn requests_to_configuration_space_go_by_bus_number() {
    let mut rig = Rig::new();
    let (first, second) = (rig.slot, rig.add().unwrap());
    let id = |rig: &mut Rig, bus: u64| rig.bus.ecam_read(bus << 20, 4);
    assert_eq!([1, 2, 3].map(|bus| id(&mut rig, bus)), [ID, ID, NOBODY]);
    // Device 0 only, function 0 only.
    assert_eq!([1u64 << 12, 1 << 15].map(|at| rig.bus.ecam_read(1 << 20 | at, 4)), [NOBODY; 2]);
    rig.set_port(first, SECONDARY, 2, 0x2020);
    assert_eq!([1, 2, 0x20].map(|bus| id(&mut rig, bus)), [NOBODY, ID, ID]);
    // Over the other's: the first port's it is, and behind its own bus there is nothing.
    rig.set_port(first, SECONDARY, 2, 0xff01);
    assert_eq!([1, 2, 0xff].map(|bus| id(&mut rig, bus)), [ID, NOBODY, NOBODY]);
    // It ends before it begins, or is bus 0.
    for numbers in [0x0102, 0x0100, 0x0001, 0] {
        rig.set_port(first, SECONDARY, 2, numbers);
        assert_eq!([0, 2].map(|bus| id(&mut rig, bus)), [0x0008_1b36, ID], "{numbers:#x}");
    }
    assert_eq!(rig.port(second, SECONDARY, 2), 0x0202);
}

#[test]
fn windows_are_sized_as_linux_does() {
    let mut rig = Rig::new();
    let slot = rig.slot;
    assert_eq!(rig.port(slot, 0x20, 4), 0xe010_e010, "1 MiB");
    assert_eq!(rig.port(slot, 0x24, 4), 0x07f1_0401, "64 MiB, 64-bit");
    assert_eq!((rig.port(slot, 0x28, 4), rig.port(slot, 0x2c, 4)), (0x20, 0x20));
    rig.set_port(slot, 0x28, 4, 0xffff_ffff);
    rig.set_port(slot, 0x24, 4, 0xffff_ffff);
    assert_eq!((rig.port(slot, 0x28, 4), rig.port(slot, 0x24, 4)), (0xffff_ffff, 0xfff1_fff1));
    rig.set_port(slot, 0x1c, 4, 0xffff_ffff);
    assert_eq!(rig.port(slot, 0x1c, 4), 0);
    let before = rig.port(slot, 0, 8);
    rig.set_port(slot, 0, 8, u64::MAX);
    assert_eq!(rig.port(slot, 0, 8), before & !0xffff_0000_0000 | 0x0546_0000_0000, "IDs stay");
}

#[test]
fn a_bar_answers_in_a_window_of_its_port_only() {
    let mut rig = Rig::new();
    let slot = rig.slot;
    rig.set_config(COMMAND, 2, 2);
    let home = rig.bar(2);
    assert_eq!(rig.take(), [map(home)]);
    // The window ends in the middle, is closed, is elsewhere.
    for (at, value) in [(0x2c, 0x1fu64), (0x28, 0x21), (0x24, 0x0401_0401 + 0x10), (4, 4)] {
        let before = rig.port(slot, at, 4);
        rig.set_port(slot, at, 4, value);
        assert_eq!(rig.take(), [unmap(home)], "{at:#x}");
        assert_eq!(rig.bus.mmio_read(home, 4), NOBODY);
        rig.set_port(slot, at, 4, before);
        assert_eq!(rig.take(), [map(home)], "{at:#x}");
    }
    // Over RAM and all that there is: the BAR is still in no PCI window there.
    for (at, value) in [(0x20, 0xfff0_0000), (0x28, 0), (0x2c, 0xffff_ffff), (0x24, 0xfff1_0001)] {
        rig.set_port(slot, at, 4, value);
    }
    rig.set_config(0x1c, 4, 0);
    rig.set_config(0x18, 4, 0x10_0000);
    assert_eq!(rig.take(), [unmap(home)]);
    rig.set_config(0x18, 4, home);
    rig.set_config(0x1c, 4, home >> 32);
    assert_eq!(rig.take(), [map(home)]);
}

#[test]
fn what_is_not_let_through_is_neither_sent_nor_lost() {
    let mut rig = Rig::new();
    let (base, slot) = (rig.start(), rig.slot);
    rig.calls();
    rig.set_port(slot, COMMAND, 2, 2);
    assert_eq!(rig.calls(), ["vector 0 posted as None", "vector 1 posted as None", "master false"][2..]);
    rig.write(base, 4, 1);
    assert_eq!(rig.take(), []);
    rig.set_port(slot, COMMAND, 2, MEMORY_AND_MASTER);
    assert_eq!(
        (rig.take(), rig.calls().split_off(1)),
        (vec![message(0x41)], vec!["master true".to_string()])
    );
}

#[test]
fn a_reset_of_the_bus_and_a_disabled_link_reset_what_is_behind() {
    for (at, bit) in [(BRIDGE_CONTROL, 0x40), (LINK_CONTROL, 0x10)] {
        let mut rig = Rig::new();
        let (base, slot) = (rig.start(), rig.slot);
        rig.calls();
        rig.set_port(slot, at, 2, bit);
        assert!(matches!(rig.take()[..], [Action::UnmapPortal { .. }]));
        assert_eq!(rig.calls(), ["reset", "master false"]);
        assert_eq!((rig.config(0, 4), rig.bus.mmio_read(base, 4)), (NOBODY, NOBODY));
        rig.set_config(COMMAND, 2, 6);
        rig.bus.interrupt(slot, 0, &mut |a| rig.seen.push(a));
        assert_eq!((rig.take(), rig.calls()), (vec![], vec![]), "nothing goes either way");
        rig.set_port(slot, at, 2, 0);
        assert_eq!((rig.config(0, 4), rig.config(COMMAND, 2), rig.bar(0)), (ID, 0, base));
        rig.start();
        rig.write(base, 4, 0);
        assert_eq!(rig.take(), [message(0x40)]);
        // Again and again, with a slice that does not stop: the remains answer, as after a reset by itself.
        rig.log.lock().unwrap().reset_fails = true;
        for _ in 0..3 {
            rig.set_port(slot, at, 2, bit);
            rig.set_port(slot, at, 2, 0);
        }
        assert_eq!(rig.bus.failed(slot).map(|failed| failed.why.as_str()), Some("busy"));
    }
}
