// SPDX-License-Identifier: MIT OR Apache-2.0

use pasidon_kernel::base::addr::{GuestPhys, HostPhys};
use pasidon_kernel::dev::Received;
use pasidon_kernel::vdev::parent::{Bar, PciIdentity, Portal, QuiesceFailed, Remains, VdevRegisters};
use pasidon_kernel::vm::exit::Access;
use proptest::prelude::*;

use super::*;
use crate::guest::gic::{Control, VCpuInterface};

const PORTAL_HOST: HostPhys = HostPhys(0xc000_5000);
const MSI: u32 = intid::MSI;
const NONE: [u32; 0] = [];
/// ICH_VMCR_EL2: group 1 enabled, no priority masked.
const OPEN: VCpuInterface = VCpuInterface { vmcr: 0xff << 24 | 1 << 1 };

/// A vdev with BAR 0 for MSI-X and BAR 2 with one portal page.
struct Model;

impl VdevRegisters for Model {
    fn identity(&self) -> PciIdentity {
        let bar = |index, size| Bar { index, size, prefetchable: true };
        PciIdentity {
            vendor: 0x8086,
            device: 0x0b25,
            subsystem: (0x8086, 0),
            revision: 0,
            class: 0x08_8000,
            bars: vec![bar(0, 0x1_0000), bar(2, 0x4000)],
            msix_vectors: 2,
            msix_bar: 0,
            msix_table: 0x2000,
            msix_pba: 0x3000,
        }
    }

    fn portals(&self) -> Vec<Portal> {
        vec![Portal { bar: 2, offset: 0, host: PORTAL_HOST, len: 0x1000 }]
    }

    fn read(&mut self, _: u8, _: u64, _: u8) -> u64 {
        0
    }

    fn write(&mut self, _: u8, _: u64, _: u8, value: u64, raise: &mut dyn FnMut(u16)) {
        raise(value as u16);
    }

    fn set_bus_master(&mut self, _: bool, _: &mut dyn FnMut(u16)) {}

    fn remains(&mut self, _: &mut dyn FnMut(u16)) -> Box<dyn Remains> {
        Box::new(Self)
    }

    fn reset(&mut self) -> Result<(), QuiesceFailed> {
        Ok(())
    }
}

impl Remains for Model {
    fn read(&mut self, _: u8, _: u64, _: u8) -> u64 {
        0x5555_5555
    }

    fn write(&mut self, _: u8, _: u64, _: u8, _: u64, _: &mut dyn FnMut(u16)) {}
}

struct Rig {
    chipset: ArmChipset,
    seen: Vec<Action>,
}

impl Rig {
    /// A machine whose kernel has set up the interrupt controller.
    fn new() -> Self {
        let chipset = ArmChipset::new(1, layout::RAM_MIN, 2, Workarounds::UNKNOWN, || 1_700_000_000).unwrap();
        let mut rig = Self { chipset, seen: Vec::new() };
        rig.write(layout::GICR_BASE + 0x14, 4, 0);
        rig.write(layout::GICD_BASE, 4, 0x12);
        for (bank, value) in [(0x80, u64::MAX), (0x100, u64::MAX)] {
            rig.write(layout::GICR_BASE + 0x1_0000 + bank, 4, value);
            rig.write(layout::GICD_BASE + bank + 4, 4, value);
            rig.write(layout::GICD_BASE + bank + 8, 4, value);
        }
        rig.write(layout::GICD_BASE + 0xc00 + u64::from(MSI / 4), 4, 0xaaaa_aaaa);
        rig.chipset.take_wakes();
        rig
    }

    fn access(&mut self, address: u64, size: u8, kind: AccessKind) -> u64 {
        let Self { chipset, seen } = self;
        let exit = Exit::Mmio(Access { address, size, kind });
        chipset.exit(0, &exit, &mut |action| seen.push(action)).unwrap()
    }

    fn read(&mut self, address: u64, size: u8) -> u64 {
        self.access(address, size, AccessKind::Read)
    }

    fn write(&mut self, address: u64, size: u8, value: u64) {
        self.access(address, size, AccessKind::Write(value & all_ones(size)));
    }

    /// The interrupts that the vCPU would enter the guest with.
    fn pending(&mut self) -> Vec<u32> {
        let mut registers = [0; 4];
        let gic = self.chipset.gic();
        let Control { hcr, used } = gic.fill(0, &mut registers, OPEN);
        gic.sync(0, &registers[..used], hcr);
        registers.iter().filter(|r| **r != 0).map(|r| *r as u32).collect()
    }
}

#[test]
fn the_machine_may_move_between_processors() {
    fn is_send<T: Send>() {}
    is_send::<ArmChipset>();
}

#[test]
fn typing_reaches_the_processor_as_a_level_interrupt() {
    let mut rig = Rig::new();
    rig.write(layout::UART_BASE + 0x38, 2, 0x50);
    assert_eq!(rig.pending(), NONE);
    assert!(rig.chipset.push_input(Received::Byte(b'a'), &mut |_| {}));
    assert!(rig.chipset.take_wakes().contains(0));
    assert_eq!(rig.pending(), [intid::UART]);
    assert_eq!(rig.read(layout::UART_BASE, 4), u64::from(b'a'));
    assert_eq!(rig.pending(), NONE);
    rig.write(layout::UART_BASE, 1, u64::from(b'b'));
    assert_eq!(rig.seen, [Action::Console(b'b')]);
}

#[test]
fn a_vdev_interrupts_by_message_and_its_portal_is_mapped() {
    let mut rig = Rig::new();
    let slot = rig.chipset.add_vdev(Box::new(Model), &mut |_| {}).unwrap();
    rig.write(layout::ECAM_BASE + (u64::from(slot.port()) << 12) + 4, 2, 6);
    let config = layout::ECAM_BASE + (u64::from(slot.number()) << 20);
    assert_eq!(rig.read(config, 4), 0x0b25_8086);
    let bar = |rig: &mut Rig, at| rig.read(config + at, 8) & !0xf;
    let (registers, portal) = (bar(&mut rig, 0x10), bar(&mut rig, 0x18));
    assert!((layout::PCI64_BASE..layout::PCI64_BASE + layout::PCI64_LEN).contains(&registers));
    rig.write(config + 4, 2, 6);
    assert_eq!(rig.seen, [Action::MapPortal { guest: GuestPhys(portal), host: PORTAL_HOST, len: 0x1000 }]);
    // Find MSI-X, program vector 1 as Linux does, and enable it.
    let mut capability = rig.read(config + 0x34, 1);
    while rig.read(config + capability, 1) != 0x11 {
        capability = rig.read(config + capability + 1, 1);
    }
    let entry = registers + 0x2000 + 16;
    for (offset, value) in [(0, layout::MSI_DOORBELL), (4, 0), (8, u64::from(MSI + 3)), (12, 0)] {
        rig.write(entry + offset, 4, value);
    }
    rig.write(config + capability + 2, 2, 1 << 15);
    rig.chipset.take_wakes();
    rig.chipset.vdev_interrupt(slot, 1, &mut |action| panic!("{action:?}"));
    assert!(rig.chipset.take_wakes().contains(0));
    assert_eq!((rig.pending(), rig.chipset.lost_messages()), (vec![MSI + 3], 0));
    // A message to somewhere else is nobody's.
    rig.write(entry, 4, layout::RAM_BASE);
    rig.chipset.vdev_interrupt(slot, 1, &mut |action| panic!("{action:?}"));
    assert_eq!(rig.chipset.lost_messages(), 1);

    rig.seen.clear();
    let Rig { chipset, seen } = &mut rig;
    assert!(chipset.end_vdev(slot, &mut |action| seen.push(action)).is_some());
    assert_eq!(rig.seen, [Action::UnmapPortal { guest: GuestPhys(portal), len: 0x1000 }]);
    assert!(rig.chipset.end_vdev(slot, &mut |_| {}).is_none());
    assert_eq!(rig.read(config, 4), 0x0b25_8086);
    assert_eq!(rig.read(portal, 4), 0x5555_5555);
}

#[test]
fn calls_end_the_vm_and_wait() {
    let mut rig = Rig::new();
    let mut call = |immediate, registers| {
        let Rig { chipset, seen } = &mut rig;
        chipset.call(0, immediate, registers, &mut |action| seen.push(action))
    };
    assert_eq!(call(0, [0x8400_0000, 0, 0, 0]), (0x1_0001, AfterCall::Continue));
    assert_eq!(call(0, [0xc400_0001, 0, 0, 0]), (0, AfterCall::Wait));
    assert_eq!(call(0, [0xdead, 0, 0, 0]), (u64::MAX, AfterCall::Continue));
    assert_eq!(call(0, [0x8400_0008, 0, 0, 0]).1, AfterCall::Stop);
    assert_eq!(call(0, [0x8400_0009, 0, 0, 0]).1, AfterCall::Stop);
    assert_eq!(rig.seen, [Action::PowerOff, Action::Reset]);
    assert_eq!(rig.chipset.refused().count, 1);
}

#[test]
fn what_nobody_answers_reads_as_ones_and_is_counted() {
    let mut rig = Rig::new();
    for nobody in [
        0,
        0x0800_0000 - 8,
        layout::GICR_BASE + layout::GICR_STRIDE,
        layout::RTC_BASE + layout::RTC_LEN,
        layout::PCI32_BASE,
    ] {
        assert_eq!(rig.read(nobody, 8), u64::MAX, "{nobody:#x}");
    }
    rig.write(layout::PCI64_BASE, 4, 1);
    assert_eq!(rig.chipset.unclaimed(), 6);
    assert_eq!(rig.read(layout::ECAM_BASE, 4), 0x0008_1b36, "the host bridge");
    assert_eq!(rig.read(layout::RTC_BASE, 4), 1_700_000_000, "the clock");
    assert_eq!(rig.chipset.exit(0, &Exit::Halt, &mut |_| {}), None);
}

proptest! {
    #[test]
    fn no_access_panics_and_no_interrupt_leaves_the_machine(
        ops in proptest::collection::vec((0usize..10, any::<u64>(), any::<u64>(), 0u8..9, any::<bool>()), 0..300),
    ) {
        const BASES: [u64; 10] = [
            layout::GICD_BASE,
            layout::GICR_BASE,
            layout::UART_BASE,
            layout::RTC_BASE,
            layout::ECAM_BASE,
            layout::ECAM_BASE + (1 << 15),
            layout::ECAM_BASE + (1 << 20),
            layout::PCI32_BASE,
            layout::PCI64_BASE,
            0,
        ];
        let mut rig = Rig::new();
        let slot = rig.chipset.add_vdev(Box::new(Model), &mut |_| {}).unwrap();
        rig.write(layout::ECAM_BASE + (1 << 15) + 4, 2, 6);
        for (base, offset, value, size, write) in ops {
            let kind = if write { AccessKind::Write(value & all_ones(size)) } else { AccessKind::Read };
            let read = rig.access(BASES[base].wrapping_add(offset & 0x1_1fff), size, kind);
            prop_assert_eq!(read & !all_ones(size), 0, "a value wider than the access");
            rig.chipset.push_input(Received::Byte(value as u8), &mut |_| {});
            rig.chipset.vdev_interrupt(slot, value as u16, &mut |_| {});
            rig.pending();
        }
        for action in &rig.seen {
            let interrupt = matches!(action, Action::Line { .. } | Action::Message(_));
            prop_assert!(!interrupt);
        }
    }
}
