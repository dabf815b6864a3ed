// SPDX-License-Identifier: MIT OR Apache-2.0
//! One ITS: its tables, its queue, and the events that are mapped.
//!
//! **Order.** An event is mapped to an LPI that is disabled, which is then enabled. To end one the LPI is disabled,
//! then the event discarded, each seen by the redistributor; only then are the event and the LPI used again. Each
//! operation touches one event only, so that others of the same device, which may be another VM's, go on.
//!
//! **Errors.** What the ITS knows is written down as it reads the commands, not as they are handed over. So an
//! operation that was refused in the middle can be repeated, and does only what is left.
//! Source: IHI 0069, "The ITS" and "ITS commands".

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE, Requester};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::host::Host;

use super::ItsNode;
use super::commands::{Access, Command, Queue, Target};
use super::lpis::{Event, Lpis};
use super::registers::{Typer, gits};
use super::tables::{self, DeviceTable};
use crate::features;
use crate::memory::DmaMemory;
use crate::registers::{MapRegisters, Registers};
use crate::table_memory::TableMemory;
use crate::wait::{COMMAND_LIMIT_NS, wait_until};

/// Events of a device, as a power of two: as many as a PCI function can have MSI-X entries.
const EVENT_BITS: u32 = 11;
/// Architecture versions that are driven: GICv3 and GICv4.
const ARCHITECTURES: core::ops::RangeInclusive<u32> = 3..=4;
/// Bytes that registers of an ITS, and a redistributor that commands name by its address, are aligned to.
const FRAME: u64 = 0x1_0000;
/// End of the addresses that commands can name.
const ADDRESS_END: u64 = 1 << 52;
/// Place of RDbase, where it is a processor's number.
const PROCESSOR_SHIFT: u32 = 16;

/// An event that is taken.
#[derive(Clone, Copy, Debug)]
struct Taken {
    intid: u32,
    /// Number of the redistributor, and so of the collection.
    redistributor: usize,
    /// The ITS translates it.
    translated: bool,
}

/// A device that has a table.
#[derive(Debug)]
struct Device {
    /// The only one whose messages carry the DeviceID, as far as we were asked.
    requester: Requester,
    /// Its interrupt translation table, which belongs to the ITS.
    translations: HostPhys,
    /// The ITS knows the table.
    known: bool,
    events: Vec<Option<Taken>>,
    /// Where the search for a free event starts: they go round, so that a stale message meets an absent one for
    /// as long as possible.
    next: usize,
}

/// What an ITS needs around it.
pub(super) struct Surroundings<'a, M> {
    pub(super) memory: &'a TableMemory<M>,
    pub(super) host: &'a dyn Host,
}

impl<M> Clone for Surroundings<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Surroundings<'_, M> {}

/// One ITS. Callers hold the controller's lock.
#[derive(Debug)]
pub(super) struct Unit<R> {
    registers: R,
    node: ItsNode,
    typer: Typer,
    queue: Queue,
    /// Made at take-over, when the ITS is off and its registers may be tried.
    device_table: Option<DeviceTable>,
    event_bits: u32,
    devices: BTreeMap<u32, Device>,
    targets: Vec<Target>,
}

impl<R: Registers> Unit<R> {
    /// Finds out what it can do and makes its queue. Writes no register. `redistributors`: their addresses and
    /// the numbers of their processors; there is one at least.
    pub(super) fn new<M: DmaMemory>(
        node: ItsNode,
        redistributors: &[(HostPhys, u64)],
        memory: &TableMemory<M>,
        map_registers: MapRegisters<'_, R>,
    ) -> Result<Self, Refusal> {
        let refuse = |why: String, remedy: &str| Refusal::new(node.name(), why, remedy);
        let base = node.registers;
        if base.0 == 0 || !base.is_aligned(FRAME) || base.0 >= ADDRESS_END {
            return Err(refuse("its registers cannot be there (MADT)".into(), "update the firmware"));
        }
        let registers = map_registers(base, gits::CONTROL_FRAME)?;
        let architecture = gits::architecture(registers.read32(gits::PIDR2));
        if !ARCHITECTURES.contains(&architecture) {
            return Err(refuse(
                format!("architecture version {architecture} is unknown (GITS_PIDR2)"),
                "use a machine with a GICv3 or GICv4",
            ));
        }
        let typer = Typer(registers.read64(gits::TYPER));
        if !typer.physical() {
            return Err(refuse(
                "it has no physical LPIs (GITS_TYPER.Physical)".into(),
                "use a machine whose GIC has them",
            ));
        }
        if redistributors.len() as u64 > 1 << typer.collection_bits() {
            return Err(refuse(
                format!("{} processors are more than it has collections", redistributors.len()),
                "use fewer processors",
            ));
        }
        let target = |&(address, processor): &(HostPhys, u64)| {
            if !typer.targets_are_addresses() {
                return Ok(Target(processor << PROCESSOR_SHIFT));
            }
            if !address.is_aligned(FRAME) || address.0 >= ADDRESS_END {
                return Err(refuse(
                    format!("it cannot name the redistributor at {address} (MADT)"),
                    "update the firmware",
                ));
            }
            Ok(Target(address.0))
        };
        let targets = redistributors.iter().map(target).collect::<Result<Vec<_>, _>>()?;
        let first = targets.first().copied().unwrap_or(Target(0));
        Ok(Self {
            queue: Queue::new(memory, first).map_err(|refusal| refusal.within(node.name()))?,
            registers,
            node,
            typer,
            device_table: None,
            event_bits: EVENT_BITS.min(typer.event_bits()),
            devices: BTreeMap::new(),
            targets,
        })
    }

    /// What the MADT says of it.
    pub(super) const fn node(&self) -> ItsNode {
        self.node
    }

    /// Makes it translate nothing, and waits until nothing is under way. Unmapped messages are not reported, which
    /// would let every device raise an interrupt.
    pub(super) fn turn_off(&self, host: &dyn Host) -> Result<(), Refusal> {
        let registers = &self.registers;
        let control = registers.read32(gits::CTLR);
        let off = control & !(gits::CTLR_ENABLED | gits::CTLR_UNMAPPED_INTERRUPT);
        registers.write32(gits::CTLR, off);
        let quiet = || registers.read32(gits::CTLR) & gits::CTLR_QUIESCENT != 0;
        if wait_until(host, COMMAND_LIMIT_NS, quiet) {
            return Ok(());
        }
        Err(Refusal::new(
            self.node.name(),
            "it does not go quiet (GITS_CTLR.Quiescent)",
            "restart the machine",
        ))
    }

    /// Gives it tables and a queue, and turns it on with no device mapped. It is off, and the redistributors take
    /// LPIs.
    pub(super) fn turn_on<M: DmaMemory>(&mut self, around: Surroundings<'_, M>) -> Result<(), Refusal> {
        let collections = self.targets.len() as u64;
        let table = tables::install(&self.registers, around.memory, self.typer, collections)
            .map_err(|refusal| refusal.within(self.node.name()))?;
        self.device_table = Some(table);
        self.devices.clear();
        self.queue.install(&self.registers);
        let control = self.registers.read32(gits::CTLR);
        self.registers.write32(gits::CTLR, control | gits::CTLR_ENABLED);
        for number in 0..self.targets.len() {
            let (collection, target) = (number as u16, self.targets[number]);
            self.execute(
                around,
                &[
                    Command::MapCollection { collection, target },
                    Command::InvalidateAll { collection },
                    Command::Sync { target },
                ],
            )?;
        }
        Ok(())
    }

    /// Takes a free event of a device for an LPI on a redistributor, by number. Nothing is mapped yet.
    pub(super) fn take<M: DmaMemory>(
        &mut self,
        around: Surroundings<'_, M>,
        device: u32,
        requester: Requester,
        intid: u32,
        redistributor: usize,
    ) -> Result<Event, Refusal> {
        self.settle(around)?;
        self.introduce(around, device, requester)?;
        let full = || {
            Refusal::new(
                format!("DeviceID {device:#x}"),
                format!("all {} events are taken", 1u32 << self.event_bits),
                "end a vdev first",
            )
        };
        let known = self.devices.get_mut(&device).ok_or_else(full)?;
        let count = known.events.len();
        let number = (0..count)
            .map(|at| (known.next + at) % count)
            .find(|&event| known.events[event].is_none())
            .ok_or_else(full)?;
        known.next = (number + 1) % count;
        known.events[number] = Some(Taken { intid, redistributor, translated: false });
        Ok(Event { device, number: number as u32 })
    }

    /// Maps an event that was taken, and enables its LPI.
    pub(super) fn map<M: DmaMemory>(
        &mut self,
        around: Surroundings<'_, M>,
        lpis: &Lpis,
        event: Event,
    ) -> Result<(), Refusal> {
        let Taken { intid, redistributor, .. } = self.taken(event)?;
        let Event { device, number } = event;
        let sync = Command::Sync { target: self.targets[redistributor] };
        let map = Command::MapEvent { device, event: number, intid, collection: redistributor as u16 };
        self.execute(around, &[map, sync])?;
        lpis.configure(around.memory, intid, true);
        let invalidate = Command::Invalidate { device, event: number };
        self.execute(around, &[invalidate, sync])
    }

    /// Disables an event's LPI and takes the event back. On a refusal the ITS may still translate it: event and LPI
    /// stay taken, and the call may be repeated.
    pub(super) fn end<M: DmaMemory>(
        &mut self,
        around: Surroundings<'_, M>,
        lpis: &Lpis,
        event: Event,
    ) -> Result<(), Refusal> {
        let Taken { intid, redistributor, .. } = self.taken(event)?;
        lpis.configure(around.memory, intid, false);
        // What an earlier call left under way may be what maps or discards it.
        self.settle(around)?;
        let Event { device, number } = event;
        let sync = Command::Sync { target: self.targets[redistributor] };
        if self.taken(event)?.translated {
            let (invalidate, discard) =
                (Command::Invalidate { device, event: number }, Command::Discard { device, event: number });
            self.execute(around, &[invalidate, sync, discard, sync])?;
        } else {
            self.execute(around, &[sync])?;
        }
        if let Some(known) = self.devices.get_mut(&device) {
            known.events[number as usize] = None;
        }
        Ok(())
    }

    /// Whether it has read all commands, as far as is known.
    pub(super) const fn is_settled(&self) -> bool {
        self.queue.is_settled()
    }

    fn taken(&self, event: Event) -> Result<Taken, Refusal> {
        let device = self.devices.get(&event.device);
        let taken = device.and_then(|device| *device.events.get(event.number as usize)?);
        taken.ok_or_else(|| {
            Refusal::new(format!("event {} of DeviceID {:#x}", event.number, event.device), "not mapped", "")
        })
    }

    /// Makes sure that a device has a table, and that the ITS knows it. It keeps it.
    fn introduce<M: DmaMemory>(
        &mut self,
        around: Surroundings<'_, M>,
        device: u32,
        requester: Requester,
    ) -> Result<(), Refusal> {
        if !self.devices.contains_key(&device) {
            let table = self
                .device_table
                .ok_or_else(|| Refusal::new(self.node.name(), "not taken over yet", "take it over first"))?;
            table.provide(around.memory, device, &self.node.name())?;
            let bytes = self.typer.translation_entry() << self.event_bits;
            let translations =
                around.memory.alloc(bytes.div_ceil(PAGE_SIZE) as usize, "ITS interrupt translation table")?;
            let new = Device {
                requester,
                translations,
                known: false,
                events: vec![None; 1 << self.event_bits],
                next: 0,
            };
            self.devices.insert(device, new);
        }
        let Some(known) = self.devices.get(&device) else {
            return Ok(());
        };
        if known.requester != requester {
            return Err(Refusal::new(
                format!("DeviceID {device:#x}"),
                format!("the ITS cannot tell its messages from those of {}", known.requester),
                "share one device of them only",
            ));
        }
        if known.known {
            return Ok(());
        }
        let map = Command::MapDevice { device, table: known.translations, event_bits: self.event_bits };
        self.execute(around, &[map])
    }

    fn settle<M: DmaMemory>(&mut self, around: Surroundings<'_, M>) -> Result<(), Refusal> {
        self.execute(around, &[])
    }

    fn execute<M: DmaMemory>(
        &mut self,
        around: Surroundings<'_, M>,
        commands: &[Command],
    ) -> Result<(), Refusal> {
        let Self { registers, queue, devices, .. } = self;
        let access = Access {
            registers,
            memory: around.memory,
            host: around.host,
            done: &mut |command| note(devices, command),
        };
        queue.execute(access, commands).map_err(|refusal| refusal.within(self.node.name()))
    }

    /// What the monitor shows of it.
    pub(super) fn describe(&self) -> Vec<(&'static str, String)> {
        let typer = self.typer;
        let mut features = features::present([
            (typer.targets_are_addresses(), "redistributors by address"),
            (typer.held_collections() != 0, "collections in hardware"),
        ]);
        features.extend(self.device_table.iter().map(DeviceTable::levels));
        let mut lines = vec![
            ("unit", self.node.name()),
            (
                "widths",
                format!(
                    "device {}, event {}, collection {} bits",
                    typer.device_bits(),
                    typer.event_bits(),
                    typer.collection_bits()
                ),
            ),
            ("features", features.join(", ")),
            ("commands", format!("{}", self.queue.issued())),
        ];
        for (id, device) in &self.devices {
            let taken = device.events.iter().flatten().count();
            lines.push((
                "device",
                format!(
                    "{} (DeviceID {id:#x}): {taken} of {} events mapped",
                    device.requester,
                    device.events.len()
                ),
            ));
        }
        lines
    }
}

/// Writes down what an ITS knows once it has read a command.
fn note(devices: &mut BTreeMap<u32, Device>, command: Command) {
    let mut set = |device: u32, event: u32, translated: bool| {
        let events = devices.get_mut(&device).map(|device| &mut device.events);
        if let Some(Some(taken)) = events.and_then(|events| events.get_mut(event as usize)) {
            taken.translated = translated;
        }
    };
    match command {
        Command::MapEvent { device, event, .. } => set(device, event, true),
        Command::Discard { device, event } => set(device, event, false),
        Command::MapDevice { device, .. } => {
            if let Some(device) = devices.get_mut(&device) {
                device.known = true;
            }
        }
        Command::MapCollection { .. }
        | Command::Invalidate { .. }
        | Command::InvalidateAll { .. }
        | Command::Sync { .. } => {}
    }
}
