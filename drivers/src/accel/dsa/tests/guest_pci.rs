// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vdev behind the kernel's PCI function model, as a guest meets it.

use pasidon_kernel::base::addr::{GuestPhys, HostPhys};
use pasidon_kernel::dev::pci::{PciBus, PciWindow, Slot};
use pasidon_kernel::vdev::model::SharedModel;
use pasidon_kernel::vm::exit::Action;

use super::*;

const COMMAND: u64 = 0x04;
const MSIX_CONTROL: u64 = 0x80 + 2;

struct Function {
    bus: PciBus,
    slot: Slot,
    actions: Vec<Action>,
}

impl Function {
    fn new(vdev: &Arc<SharedModel>) -> Self {
        let mut bus = PciBus::new(&[PciWindow::prefetchable(0x20_0000_0000, 0x1_0000_0000)], 1);
        let slot = bus.add(vdev.guest_side(), &mut |_| {}).unwrap();
        // Its port passes on what is asked for.
        bus.ecam_write(u64::from(slot.port()) << 12 | COMMAND, 2, 6, &mut |_| {});
        Self { bus, slot, actions: Vec::new() }
    }

    fn config(&mut self, offset: u64, size: u8) -> u64 {
        self.bus.ecam_read(u64::from(self.slot.number()) << 20 | offset, size)
    }

    fn set_config(&mut self, offset: u64, size: u8, value: u64) {
        let at = u64::from(self.slot.number()) << 20 | offset;
        self.bus.ecam_write(at, size, value, &mut |action| self.actions.push(action));
    }

    fn bar(&mut self, index: u64) -> u64 {
        self.config(0x10 + index * 4, 8) & !0xf
    }

    fn write(&mut self, address: u64, value: u32) {
        self.bus.mmio_write(address, 4, value.into(), &mut |action| self.actions.push(action));
    }
}

#[test]
fn portals_commands_and_function_reset_through_the_bus() {
    let (model, parent) = parent(&[]);
    let mut vdev = create(&parent, "alpha", None).unwrap();
    vdev.attach(attached(9, &GuestBytes::new(), None)).unwrap();
    let vdev = SharedModel::new(vdev);
    let mut function = Function::new(&vdev);
    assert_eq!(function.config(0, 4), 0x0b25_8086);
    assert_eq!(function.config(0x08, 4), 0x0880_0000);

    function.set_config(COMMAND, 2, 6);
    let (registers, portals) = (function.bar(0), function.bar(2));
    let host = HostPhys(ConfigModel::BAR2 + 0x1000);
    let mapped: Vec<(GuestPhys, HostPhys, u64)> = function
        .actions
        .drain(..)
        .filter_map(|action| match action {
            Action::MapPortal { guest, host, len } => Some((guest, host, len)),
            _ => None,
        })
        .collect();
    assert_eq!(mapped, [(GuestPhys(portals), host, 0x1000), (GuestPhys(portals + 0x1000), host, 0x1000)]);

    function.set_config(MSIX_CONTROL, 2, 0x8000);
    for vector in 0..2u64 {
        let entry = registers + 0x2000 + vector * 16;
        for (at, value) in [(0, 0xfee0_0000), (4, 0), (8, 0x40 + vector as u32), (12, 0)] {
            function.write(entry + at, value);
        }
    }
    let enable = [(0xa0, 1 << 20), (0xa0, 1 << 31 | 6 << 20)];
    for (at, value) in CONFIGURATION.into_iter().chain(enable) {
        function.write(registers + at, value);
    }
    let message = MsiMessage { address: 0xfee0_0000, data: 0x40 };
    assert_eq!(function.actions, [Action::Message(message)], "the command's completion");
    assert!(model.state.lock().queue_enabled(0));

    // Initiate Function Level Reset.
    function.actions.clear();
    function.set_config(0x48, 2, 0x8000);
    assert!(function.actions.iter().any(|action| matches!(action, Action::UnmapPortal { .. })));
    assert!(!model.state.lock().queue_enabled(0));
    assert_eq!(model.state.lock().msixperm[1], 9 << 12 | 8, "the tag stays");
    assert!(function.bus.failed(function.slot).is_none());

    assert!(function.bus.end(function.slot, &mut |_| {}).is_some());
    vdev.with(|vdev| vdev.quiesce()).unwrap().unwrap();
    drop(vdev);
    assert_eq!(parent.available(TYPE_DWQ), 8);
}
