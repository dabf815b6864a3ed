// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PC as a whole: which device answers an exit, and how wired interrupts reach the processor.
//!
//! **Principle.** One value behind the VM's lock. An access goes in, a value comes out; what the devices
//! want done besides is given to the `actions` sink. Wired interrupts end here: the sink only ever sees
//! [`Action::Message`], which [`LocalApic::accept_message`] takes.
//! **Invariant.** No window holds RAM, so no BAR and no portal can be where RAM is.

use alloc::sync::Arc;
use core::fmt;

use pasidon_arch_common::hardware::Chipset;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use pasidon_kernel::dev::bus::{GuestBus, all_ones};
use pasidon_kernel::dev::i8254::{self, I8254};
use pasidon_kernel::dev::mc146818::{self, Mc146818};
use pasidon_kernel::dev::pci::PciBus;
use pasidon_kernel::dev::uart16550::{self, Uart16550};
use pasidon_kernel::irq::msi::{PostedInterrupts, Posting};
use pasidon_kernel::vm::exit::{Access, AccessKind, Action, Actions, Device, Exit};

use super::ioapic::IoApic;
use super::lapic::{ApicEvent, Ipi, LocalApic};
use super::layout;
use super::moment::Moment;
use super::power::Power;

/// Which device a window leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    LocalApic,
    IoApic,
    Ecam,
    /// A PCI window, with its start.
    Pci(u64),
    Uart,
    Power,
    PmTimer,
    Timer,
    SystemControl,
    Rtc,
}

/// The answer to an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// What a read returns, zero-extended; 0 for a write.
    pub value: u64,
    /// An inter-processor interrupt for other vCPUs.
    pub ipi: Option<Ipi>,
}

/// The devices of one VM.
pub struct PcChipset {
    bus: GuestBus<Target>,
    pci: PciBus,
    uart: Uart16550,
    ioapic: IoApic,
    power: Power,
    timer: I8254,
    rtc: Mc146818,
    /// Where devices' interrupts can be posted to the vCPU; `None` where they cannot.
    posted: Option<Arc<dyn PostedInterrupts>>,
}

impl fmt::Debug for PcChipset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PcChipset").field("unclaimed", &self.unclaimed()).finish_non_exhaustive()
    }
}

impl PcChipset {
    /// The machine after power-on, with so many slots, at that time since 1970.
    ///
    /// # Errors
    /// When two devices of the board claim the same addresses.
    pub fn new(unix_ns: u64, slots: u8) -> Result<Self, Refusal> {
        let mut bus = GuestBus::new();
        bus.claim_mmio(layout::LAPIC_BASE, layout::LAPIC_LEN, Target::LocalApic)?;
        bus.claim_mmio(layout::IOAPIC_BASE, layout::IOAPIC_LEN, Target::IoApic)?;
        bus.claim_mmio(layout::ECAM_BASE, layout::ECAM_LEN, Target::Ecam)?;
        bus.claim_io(layout::UART_PORT, uart16550::REGISTERS as u16, Target::Uart)?;
        for (port, ports) in [
            (layout::POWER_PORT, layout::POWER_PORTS),
            (layout::RESET_CONTROL_PORT, 1),
            (layout::KEYBOARD_COMMAND_PORT, 1),
        ] {
            bus.claim_io(port, ports, Target::Power)?;
        }
        bus.claim_io(layout::PM_TIMER_PORT, layout::PM_TIMER_PORTS, Target::PmTimer)?;
        bus.claim_io(layout::TIMER_PORT, i8254::PORTS, Target::Timer)?;
        bus.claim_io(layout::SYSTEM_CONTROL_PORT, 1, Target::SystemControl)?;
        bus.claim_io(layout::RTC_PORT, mc146818::PORTS, Target::Rtc)?;
        for window in layout::PCI_WINDOWS {
            bus.claim_mmio(window.start, window.len, Target::Pci(window.start))?;
        }
        let pci = PciBus::new(&layout::PCI_WINDOWS, slots);
        Ok(Self {
            bus,
            pci,
            uart: Uart16550::new(layout::UART_GSI),
            ioapic: IoApic::new(),
            power: Power::default(),
            timer: I8254::default(),
            rtc: Mc146818::new(unix_ns),
            posted: None,
        })
    }

    /// Has devices' interrupts posted there, where that can be.
    pub fn post_to(&mut self, posted: Arc<dyn PostedInterrupts>) {
        self.posted = Some(posted);
    }

    /// The guest has written to a device on the PCI bus: its interrupts are posted where the local APIC would take the
    /// message as it is.
    fn route_interrupts(&mut self, lapic: &LocalApic) {
        let Some(posted) = &self.posted else { return };
        self.pci.route_interrupts(&mut |message| {
            let vector = lapic.posts(message)?;
            Some(Posting { descriptor: Arc::clone(posted), vector })
        });
    }

    /// Answers [`Exit::Mmio`], [`Exit::Store64`] and [`Exit::Io`]; `None` for all others. `lapic` is that of the vCPU
    /// that exited, `now` tells the moment; few devices ask.
    pub fn exit(
        &mut self,
        exit: &Exit<'_>,
        lapic: &mut LocalApic,
        now: &dyn Fn() -> Moment,
        actions: Actions<'_>,
    ) -> Option<Answer> {
        let (access, found) = match exit {
            Exit::Mmio(access) => (access, self.bus.mmio(access.address, access.size)),
            Exit::Io(access) => (access, self.bus.io(access.address, access.size)),
            Exit::Store64 { address, bytes } => {
                self.store64(*address, bytes, actions);
                return Some(Answer::default());
            }
            _ => return None,
        };
        let nobody = match access.kind {
            AccessKind::Read => Answer { value: all_ones(access.size), ipi: None },
            AccessKind::Write(_) => Answer::default(),
        };
        let Some((target, offset)) = found else {
            return Some(nobody);
        };
        Some(match target {
            Target::LocalApic => self.local_apic(access, offset, lapic, now().tsc, actions).unwrap_or(nobody),
            Target::IoApic => value_of(match access.kind {
                AccessKind::Read => self.ioapic.read(offset, access.size),
                AccessKind::Write(value) => {
                    self.ioapic.write(offset, value, actions);
                    0
                }
            }),
            Target::Ecam => value_of(match access.kind {
                AccessKind::Read => self.pci.ecam_read(offset, access.size),
                AccessKind::Write(value) => {
                    self.pci.ecam_write(offset, access.size, value, actions);
                    self.route_interrupts(lapic);
                    0
                }
            }),
            Target::Pci(start) => value_of(match access.kind {
                AccessKind::Read => self.pci.mmio_read(start + offset, access.size),
                AccessKind::Write(value) => {
                    self.pci.mmio_write(start + offset, access.size, value, actions);
                    self.route_interrupts(lapic);
                    0
                }
            }),
            Target::Uart => {
                let Self { uart, ioapic, .. } = self;
                value_of(device(uart, ioapic, access, offset, actions))
            }
            Target::PmTimer => value_of(match access.kind {
                AccessKind::Read => u64::from(now().pm_timer()) >> (offset * 8) & all_ones(access.size),
                AccessKind::Write(_) => 0,
            }),
            Target::Power | Target::Timer | Target::SystemControl | Target::Rtc => {
                let (port, now) = (access.address as u16, &now());
                value_of(match access.kind {
                    AccessKind::Read => {
                        bytes_of(access.size, |byte| self.read_port(target, port.wrapping_add(byte), now))
                    }
                    AccessKind::Write(value) => {
                        for (byte, value) in (0..access.size.into()).zip(value.to_le_bytes()) {
                            self.write_port(target, port.wrapping_add(byte), value, now, actions);
                        }
                        0
                    }
                })
            }
        })
    }

    /// A store of 64 bytes. Nothing but a vdev takes one: the registers of the board's own devices, and of
    /// configuration space, are at most 8 bytes wide.
    fn store64(&mut self, address: u64, bytes: &[u8; 64], actions: Actions<'_>) {
        if let Some((Target::Pci(start), offset)) = self.bus.mmio(address, bytes.len() as u8) {
            self.pci.mmio_store64(start + offset, bytes, actions);
        }
    }

    /// Reads a port of the old devices, which are a byte wide.
    fn read_port(&mut self, target: Target, port: u16, now: &Moment) -> u8 {
        match target {
            Target::Timer => self.timer.read(port - layout::TIMER_PORT, now.ns),
            Target::SystemControl => self.timer.read_system(now.ns),
            Target::Rtc => self.rtc.read(port - layout::RTC_PORT, now.unix_ns),
            _ => self.power.read(port),
        }
    }

    /// Writes such a port.
    fn write_port(&mut self, target: Target, port: u16, value: u8, now: &Moment, actions: Actions<'_>) {
        match target {
            Target::Timer => self.timer.write(port - layout::TIMER_PORT, value, now.ns),
            Target::SystemControl => self.timer.write_system(value, now.ns),
            Target::Rtc => self.rtc.write(port - layout::RTC_PORT, value, now.unix_ns),
            _ => self.power.write(port, value, actions),
        }
    }

    /// The xAPIC page; `None` where nobody answers (x2APIC mode).
    fn local_apic(
        &mut self,
        access: &Access,
        offset: u64,
        lapic: &mut LocalApic,
        now: u64,
        actions: Actions<'_>,
    ) -> Option<Answer> {
        match access.kind {
            AccessKind::Read => lapic.mmio_read(offset, access.size, now).map(value_of),
            AccessKind::Write(value) => {
                let ipi = match lapic.mmio_write(offset, access.size, value, now) {
                    Some(ApicEvent::EndOfInterrupt { vector }) => {
                        self.end_of_interrupt(vector, actions);
                        None
                    }
                    Some(ApicEvent::Ipi(ipi)) => Some(ipi),
                    None => None,
                };
                Some(Answer { value: 0, ipi })
            }
        }
    }

    /// A vCPU ended the level-triggered `vector` through an MSR ([`ApicEvent::EndOfInterrupt`]).
    pub fn end_of_interrupt(&mut self, vector: u8, actions: Actions<'_>) {
        self.ioapic.end_of_interrupt(vector, actions);
    }

    /// How many memory and port accesses no device answered.
    pub fn unclaimed(&self) -> (u64, u64) {
        let (memory, ports) = self.bus.unclaimed();
        (memory.saturating_add(self.pci.unclaimed()), ports)
    }
}

impl Chipset for PcChipset {
    fn push_input(&mut self, received: Received, actions: Actions<'_>) -> bool {
        let Self { uart, ioapic, .. } = self;
        uart.push_input(received, &mut |action| route(ioapic, action, actions))
    }

    fn pci(&mut self) -> &mut PciBus {
        &mut self.pci
    }

    fn with_pci<T>(&mut self, actions: Actions<'_>, act: impl FnOnce(&mut PciBus, Actions<'_>) -> T) -> T {
        act(&mut self.pci, actions)
    }
}

const fn value_of(value: u64) -> Answer {
    Answer { value, ipi: None }
}

/// Wired interrupts go to the I/O APIC, all else out.
fn route(ioapic: &mut IoApic, action: Action, actions: Actions<'_>) {
    match action {
        Action::Line { gsi, level } => ioapic.set_line(gsi, level, actions),
        other => actions(other),
    }
}

fn device(
    device: &mut dyn Device,
    ioapic: &mut IoApic,
    access: &Access,
    offset: u64,
    actions: Actions<'_>,
) -> u64 {
    let mut sink = |action| route(ioapic, action, actions);
    match access.kind {
        AccessKind::Read => device.read(offset, access.size, &mut sink),
        AccessKind::Write(value) => {
            device.write(offset, access.size, value, &mut sink);
            0
        }
    }
}

/// A value of `size` bytes, each by its number, the lowest first.
fn bytes_of(size: u8, mut read: impl FnMut(u16) -> u8) -> u64 {
    (0..u16::from(size.min(8))).fold(0, |value, byte| value | u64::from(read(byte)) << (8 * byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_kernel::vm::exit::MsiMessage;
    use proptest::prelude::*;

    fn io(address: u64, size: u8, kind: AccessKind) -> Exit<'static> {
        Exit::Io(Access { address, size, kind })
    }

    fn mmio(address: u64, size: u8, kind: AccessKind) -> Exit<'static> {
        Exit::Mmio(Access { address, size, kind })
    }

    struct Rig {
        chipset: PcChipset,
        lapic: LocalApic,
        now: Moment,
        seen: Vec<Action>,
    }

    impl Rig {
        fn new() -> Self {
            let mut rig = Self {
                chipset: PcChipset::new(0, 2).unwrap(),
                lapic: LocalApic::new(0),
                now: Moment::default(),
                seen: Vec::new(),
            };
            rig.run(&mmio(layout::LAPIC_BASE + 0xf0, 4, AccessKind::Write(0x1ff)));
            rig
        }

        fn run(&mut self, exit: &Exit<'_>) -> u64 {
            let Self { chipset, lapic, now, seen } = self;
            chipset.exit(exit, lapic, &|| *now, &mut |a| seen.push(a)).unwrap().value
        }

        /// Hands the messages to the local APIC, as the vCPU loop does.
        fn deliver(&mut self) {
            for action in self.seen.drain(..) {
                if let Action::Message(message) = action {
                    self.lapic.accept_message(message);
                }
            }
        }
    }

    #[test]
    fn the_chipset_may_move_between_processors() {
        fn is_send<T: Send>() {}
        is_send::<PcChipset>();
        is_send::<LocalApic>();
    }

    #[test]
    fn power_off_and_reset() {
        let mut rig = Rig::new();
        for (port, value) in [(0x600, 0x34), (0x602, 1), (0xcf9, 0x02), (0xcf9, 0x06), (0x64, 0xfe)] {
            rig.run(&io(port, 1, AccessKind::Write(value)));
        }
        assert_eq!(rig.seen, [Action::PowerOff, Action::Reset, Action::Reset, Action::Reset]);
    }

    #[test]
    fn the_old_clocks_answer() {
        let mut rig = Rig::new();
        rig.now.ns = 1_000_000_000;
        assert_eq!(rig.run(&io(0x608, 4, AccessKind::Read)), 3_579_545);
        assert_eq!(rig.run(&io(0x609, 1, AccessKind::Read)), 3_579_545 >> 8 & 0xff);
        rig.now.unix_ns = 1_709_214_359_500_000_000;
        rig.run(&io(0x70, 1, AccessKind::Write(9)));
        assert_eq!(rig.run(&io(0x71, 1, AccessKind::Read)), 0x24, "the year");
        // The third counter of the interval timer runs by its gate.
        rig.run(&io(0x61, 1, AccessKind::Write(1)));
        rig.run(&io(0x43, 1, AccessKind::Write(0xb0)));
        rig.run(&io(0x42, 1, AccessKind::Write(0xff)));
        rig.run(&io(0x42, 1, AccessKind::Write(0xff)));
        assert_eq!(rig.run(&io(0x61, 1, AccessKind::Read)) & 0x20, 0);
        rig.now.ns += 100_000_000;
        assert_eq!(rig.run(&io(0x61, 1, AccessKind::Read)) & 0x20, 0x20);
    }

    #[test]
    fn typing_reaches_the_processor_as_a_level_interrupt() {
        let mut rig = Rig::new();
        rig.run(&mmio(layout::IOAPIC_BASE, 4, AccessKind::Write(0x18)));
        rig.run(&mmio(layout::IOAPIC_BASE + 0x10, 4, AccessKind::Write(0x8031)));
        rig.run(&io(0x3f9, 1, AccessKind::Write(1)));
        assert!(rig.chipset.push_input(Received::Byte(b'a'), &mut |a| rig.seen.push(a)));
        assert_eq!(rig.seen, [Action::Message(MsiMessage { address: 0xfee0_0000, data: 0xc031 })]);
        rig.deliver();
        assert_eq!(rig.lapic.pending(), Some(0x31));
        rig.lapic.acknowledge(0x31);
        // Ended without reading the byte: it comes again. Ended after reading it: quiet.
        for (read, again) in [(false, true), (true, false)] {
            if read {
                assert_eq!(rig.run(&io(0x3f8, 1, AccessKind::Read)), u64::from(b'a'));
            }
            rig.run(&mmio(layout::LAPIC_BASE + 0xb0, 4, AccessKind::Write(0)));
            rig.deliver();
            assert_eq!(rig.lapic.pending().is_some(), again);
            rig.lapic.acknowledge(0x31);
        }
    }

    /// As Linux does it: the crash kernel finds the interrupt in service, and nobody will end it.
    #[test]
    fn a_kernel_that_crashed_in_the_serial_ports_interrupt_leaves_it_to_the_next() {
        const PIN: u64 = 0x18;
        let mut rig = Rig::new();
        let entry = |rig: &mut Rig, value| {
            rig.run(&mmio(layout::IOAPIC_BASE, 4, AccessKind::Write(PIN)));
            rig.run(&mmio(layout::IOAPIC_BASE + 0x10, 4, AccessKind::Write(value)));
        };
        let lapic = |rig: &mut Rig, offset, kind| rig.run(&mmio(layout::LAPIC_BASE + offset, 4, kind));
        entry(&mut rig, 0x8031);
        rig.run(&io(0x3f9, 1, AccessKind::Write(1)));
        assert!(rig.chipset.push_input(Received::Byte(b'c'), &mut |a| rig.seen.push(a)));
        rig.deliver();
        rig.lapic.acknowledge(0x31);
        // The one that crashes: the pin masked, its remote IRR cleared by way of an edge, the local APIC disabled.
        for value in [0x1_8031, 0x1_0031, 0x1_8031, 0x1_0000] {
            entry(&mut rig, value);
        }
        lapic(&mut rig, 0xf0, AccessKind::Write(0xff));
        // Somebody goes on typing.
        assert!(rig.chipset.push_input(Received::Byte(b'x'), &mut |a| rig.seen.push(a)));
        rig.deliver();
        assert_eq!(lapic(&mut rig, 0x110, AccessKind::Read), 1 << (0x31 - 0x20), "ISR: still in service");
        // The next one: local APIC, then the port with its interrupt off, the pin, and the interrupt on.
        lapic(&mut rig, 0xf0, AccessKind::Write(0x1ff));
        lapic(&mut rig, 0xb0, AccessKind::Write(0));
        assert_eq!(lapic(&mut rig, 0x110, AccessKind::Read), 0);
        rig.deliver();
        assert_eq!(rig.lapic.highest_requested(), None, "the pin is masked");
        rig.run(&io(0x3f9, 1, AccessKind::Write(0)));
        entry(&mut rig, 0x8021);
        rig.deliver();
        assert_eq!(rig.lapic.highest_requested(), None);
        rig.run(&io(0x3f9, 1, AccessKind::Write(1)));
        rig.deliver();
        assert_eq!(rig.lapic.pending(), Some(0x21));
        for byte in [b'c', b'x'] {
            assert_eq!(rig.run(&io(0x3f8, 1, AccessKind::Read)), u64::from(byte), "nothing is lost");
        }
    }

    #[test]
    fn what_nobody_answers_reads_as_ones_and_is_counted() {
        let mut rig = Rig::new();
        assert_eq!(rig.run(&io(0xcf8, 4, AccessKind::Read)), 0xffff_ffff);
        assert_eq!(rig.run(&mmio(0xfed0_0000, 8, AccessKind::Read)), u64::MAX);
        rig.run(&io(0x80, 1, AccessKind::Write(0)));
        assert_eq!(rig.run(&mmio(layout::PCI64_BASE, 4, AccessKind::Read)), 0xffff_ffff);
        assert_eq!(rig.chipset.unclaimed(), (2, 2));
        assert_eq!(rig.run(&mmio(layout::ECAM_BASE, 4, AccessKind::Read)), 0x0008_1b36);
        assert_eq!(rig.chipset.exit(&Exit::Halt, &mut rig.lapic, &Moment::default, &mut |_| {}), None);
    }

    #[test]
    fn only_functions_take_a_store_of_64_bytes() {
        let mut rig = Rig::new();
        let store = |address| Exit::Store64 { address, bytes: &[0xff; 64] };
        let ioapic = rig.run(&mmio(layout::IOAPIC_BASE + 0x10, 4, AccessKind::Read));
        for address in [layout::IOAPIC_BASE, layout::LAPIC_BASE + 0xc0, layout::ECAM_BASE] {
            rig.run(&store(address));
        }
        assert_eq!(rig.run(&mmio(layout::IOAPIC_BASE + 0x10, 4, AccessKind::Read)), ioapic);
        assert_eq!((rig.seen.len(), rig.chipset.unclaimed()), (0, (0, 0)));
        for address in [0xfed0_0000, layout::PCI64_BASE, !0x3f] {
            rig.run(&store(address));
        }
        assert_eq!(rig.chipset.unclaimed(), (3, 0));
    }

    proptest! {
        #[test]
        fn no_access_panics(
            ops in proptest::collection::vec((0u8..7, any::<u64>(), any::<u64>(), 0u8..9, any::<bool>()), 0..300),
        ) {
            const BASES: [u64; 6] =
                [layout::IOAPIC_BASE, layout::LAPIC_BASE, layout::ECAM_BASE, layout::PCI32_BASE, layout::PCI64_BASE, 0];
            let mut rig = Rig::new();
            for (base, offset, value, size, write) in ops {
                let kind = if write { AccessKind::Write(value) } else { AccessKind::Read };
                let exit = match BASES.get(usize::from(base)) {
                    Some(base) if size == 0 => {
                        Exit::Store64 { address: base.wrapping_add(offset & 0x1fc0), bytes: &[0x55; 64] }
                    }
                    Some(base) => mmio(base.wrapping_add(offset & 0x1fff), size, kind),
                    None if offset & 1 == 0 => io(0x3f0 + offset % 0x220, size, kind),
                    None => io(0x40 + offset % 0x40, size, kind),
                };
                rig.now = Moment { tsc: value, ns: value, unix_ns: value };
                let read = rig.run(&exit);
                prop_assert_eq!(read & !all_ones(size), 0, "a value wider than the access");
                rig.chipset.push_input(Received::Byte(value as u8), &mut |_| {});
                rig.deliver();
            }
        }
    }
}
