// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device as a parent: its types, what is available, and refusals in words.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use pasidon_kernel::base::addr::Requester;
use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::vdev::parent::{
    DmaTag, Parent, ParentEvent, ParentUnreached, VdevModel, VdevRequest, VdevType,
};
use pasidon_kernel::vm::exit::MsiMessage;

use super::dedicated::QueueLease;
use super::device::Device;
use super::queue::Queue;
use super::registers::GENSTS;
use super::share::Member;
use super::shared::{NoShare, ShareLease};
use super::survey::{self, check_portals};
use super::vdev::DsaVdev;
use super::{Capabilities, Sending, Setup, TYPE_DWQ, TYPE_SWQ};
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// Entries of the guest's queue with a share, unless it asks for a number.
const SHARE_ENTRIES: u16 = 32;
/// MSI-X entry of the device's own events.
const EVENT_ENTRY: u16 = 0;

/// One physical accelerator.
pub struct DsaParent<R, C> {
    device: Arc<Device<R, C>>,
    types: [VdevType; 2],
    /// Whether the processor can submit to a shared queue.
    can_trap: bool,
}

impl<R: Registers, C: ConfigSpace> DsaParent<R, C> {
    /// Takes the device over: resets it, shares out its queues and enables it. Its requester must already
    /// be claimed from the IOMMU, so that whatever firmware left running reaches nothing.
    ///
    /// # Errors
    /// When the device lacks what Pasidon needs of it, or does not do in time what it is told.
    pub fn new(setup: Setup<R, C>) -> Result<Arc<Self>, Refusal> {
        let can_trap = match &setup.sending {
            Sending::Tagged(portals) => portals.is_some(),
            Sending::Untranslated(portals) => portals.is_some(),
        };
        let device = Arc::new(Device::bring_up(setup)?);
        let usable = device.queues.iter().filter(|queue| queue.is_offered()).count() as u16;
        let instances = if portals_allowed(&device) && !device.untranslated { usable } else { 0 };
        let dwq = VdevType {
            name: TYPE_DWQ,
            description: "a dedicated work queue, its portal mapped into the guest",
            direct_portal: true,
            needs_iommu: Some(VdevType::MAPS_A_PAGE),
            instances,
        };
        let swq = VdevType {
            name: TYPE_SWQ,
            description: "a share of a work queue, its portal trapped",
            direct_portal: false,
            needs_iommu: (!device.untranslated).then_some("sends with a PASID of each vdev"),
            instances: device.free_entries.lock().len() as u16,
        };
        Ok(Arc::new(Self { device, types: [dwq, swq], can_trap }))
    }

    #[cfg(test)]
    pub(super) fn device(&self) -> &Device<R, C> {
        &self.device
    }

    /// What the device can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.device.capabilities
    }

    /// Whether portals of silicon that is not safe for it are mapped into guests by explicit opt-in; then
    /// every status line should say so.
    pub fn unsafe_portals(&self) -> bool {
        !self.device.silicon.safe_portals() && self.device.options.allow_unsafe_portals
    }

    /// Whether a command is under way, or somebody is to hear of its end.
    fn commands_wait(&self) -> bool {
        self.device.busy.load(Ordering::Acquire) || self.device.attended.load(Ordering::Acquire) > 0
    }

    /// The free queue that suits best: with a size, the smallest that has it; without, one that the plan
    /// does not hold for someone else.
    fn best_fit(&self, entries: Option<u16>) -> Option<&Queue> {
        let free = self.device.queues.iter().filter(|queue| queue.is_free());
        match entries {
            Some(entries) => {
                free.filter(|queue| queue.size >= entries).min_by_key(|queue| (queue.size, queue.index))
            }
            None => free.min_by_key(|queue| (queue.planned, queue.size, queue.index)),
        }
    }

    fn take(&self, request: &VdevRequest<'_>) -> Option<QueueLease<R, C>> {
        // Another processor may take the queue between the choice and the lease; there are only so many.
        for _ in 0..self.device.queues.len() {
            let queue = self.best_fit(request.entries)?;
            let lease = QueueLease::take(&self.device, usize::from(queue.index), request.vm);
            if lease.is_some() {
                return lease;
            }
        }
        None
    }

    /// Why there is no queue for this request.
    fn refusal(&self, what: String, entries: Option<u16>) -> Refusal {
        let queues = &self.device.queues;
        let largest = queues.iter().filter(|queue| queue.is_free()).map(|queue| queue.size).max();
        match (entries, largest) {
            (Some(entries), Some(largest)) => Refusal::new(
                what,
                alloc::format!("entries {entries}: the largest free queue has {largest}"),
                alloc::format!(
                    "ask for at most {largest}, or plan the size in the configuration (the device has {} \
                     entries for all queues, shared out at start)",
                    self.device.capabilities.work_queues.total_size()
                ),
            ),
            _ => {
                let count = queues.iter().filter(|queue| queue.is_offered()).count();
                let retired = queues.iter().filter(|queue| queue.state.lock().retired.is_some()).count();
                let mut why = alloc::format!("{} of {count} work queues", ordinal(count + 1));
                if retired > 0 {
                    why.push_str(&alloc::format!(" ({retired} retired after a failed stop)"));
                }
                let remedy = match self.device.shared {
                    Some(_) => "use type dsa-swq, end a vdev on it, or use another parent",
                    None => "end a vdev on it, or use another parent",
                };
                Refusal::new(what, why, remedy)
            }
        }
    }
}

fn portals_allowed<R, C>(device: &Device<R, C>) -> bool {
    check_portals(device.silicon, device.options.allow_unsafe_portals).is_ok()
}

/// 1st, 2nd, 3rd, 4th, 11th, …
fn ordinal(number: usize) -> String {
    let suffix = match (number % 10, number % 100) {
        (1, tens) if tens != 11 => "st",
        (2, tens) if tens != 12 => "nd",
        (3, tens) if tens != 13 => "rd",
        _ => "th",
    };
    alloc::format!("{number}{suffix}")
}

impl<R: Registers + 'static, C: ConfigSpace + 'static> DsaParent<R, C> {
    fn create_share(&self, what: String, request: &VdevRequest<'_>) -> Result<Box<dyn VdevModel>, Refusal> {
        let device = &self.device;
        if device.shared.is_none() {
            let (why, remedy) = if device.untranslated && !self.can_trap {
                (
                    "the processor has no 64-byte store (MOVDIR64B), by which descriptors get to a queue",
                    "use a machine whose processor has it",
                )
            } else if !device.untranslated && !device.capabilities.can_share() {
                (
                    "the device has no shared work queues, or no Abort PASID (WQCAP, CMDCAP)",
                    "use another parent",
                )
            } else if !self.can_trap {
                (
                    "the processor has no deferrable store (ENQCMD), by which descriptors get to a shared queue",
                    "use type dsa-dwq, or a machine whose processor has it",
                )
            } else {
                ("no queue of the device is shared", "write shared_entries = 16 into its section")
            };
            return Err(Refusal::new(what, why, remedy));
        }
        let most = device.capabilities.work_queues.total_size().min(Member::MAX_ENTRIES);
        let entries = request.entries.unwrap_or(SHARE_ENTRIES.min(most));
        if entries > most {
            return Err(Refusal::new(
                what,
                alloc::format!("entries {entries}: more than the {most} that queues of the device have"),
                alloc::format!("ask for at most {most}"),
            ));
        }
        match ShareLease::take(device, request.weight.unwrap_or(1), entries) {
            Ok(lease) => Ok(Box::new(DsaVdev::new(lease, None))),
            Err(NoShare::Memory) => Err(Refusal::new(
                what,
                "no page of memory left for its completion records",
                "give the guests less memory",
            )),
            Err(NoShare::Taken) => {
                let [_, swq] = &self.types;
                Err(Refusal::new(
                    what,
                    alloc::format!("{} of {} shares", ordinal(usize::from(swq.instances) + 1), swq.instances),
                    "end a vdev on it, or use another parent",
                ))
            }
        }
    }
}

impl<R: Registers + 'static, C: ConfigSpace + 'static> Parent for DsaParent<R, C> {
    fn name(&self) -> &str {
        &self.device.name
    }

    fn requester(&self) -> Requester {
        self.device.requester()
    }

    fn dma_tag(&self) -> DmaTag {
        DmaTag::Pasid { bits: self.device.pasid_bits() }
    }

    fn types(&self) -> &[VdevType] {
        &self.types
    }

    fn available(&self, type_name: &str) -> u16 {
        match type_name {
            _ if self.device.is_down.load(Ordering::Acquire) => 0,
            TYPE_DWQ if portals_allowed(&self.device) && !self.device.untranslated => {
                self.device.queues.iter().filter(|queue| queue.is_free()).count() as u16
            }
            TYPE_SWQ => self.device.free_entries.lock().len() as u16,
            _ => 0,
        }
    }

    fn create(&self, request: &VdevRequest<'_>) -> Result<Box<dyn VdevModel>, Refusal> {
        let what = alloc::format!("vm {}: vdev {}/{}", request.vm, self.device.name, request.type_name);
        if ![TYPE_DWQ, TYPE_SWQ].contains(&request.type_name) {
            return Err(Refusal::new(
                what,
                alloc::format!("unknown type {}", request.type_name),
                alloc::format!("{} offers {TYPE_DWQ} and {TYPE_SWQ}", self.device.name),
            ));
        }
        if self.device.is_down.load(Ordering::Acquire) {
            return Err(Refusal::new(
                what,
                "the device did not come back from its last reset",
                alloc::format!("try `parent {} reset` again", self.device.name),
            ));
        }
        if request.entries == Some(0) {
            return Err(Refusal::new(
                what,
                "entries 0: a queue needs at least one",
                "leave the key out for a default size",
            ));
        }
        if request.type_name == TYPE_SWQ {
            return self.create_share(what, request);
        }
        if request.weight.is_some() {
            return Err(Refusal::new(
                what,
                "weight: it has a queue of its own, and shares none",
                alloc::format!("leave the key out, or use type {TYPE_SWQ}"),
            ));
        }
        check_portals(self.device.silicon, self.device.options.allow_unsafe_portals)
            .map_err(|refusal| Refusal { what: what.clone(), ..refusal })?;
        match self.take(request) {
            Some(lease) => Ok(Box::new(DsaVdev::new(lease, request.entries))),
            None => Err(self.refusal(what, request.entries)),
        }
    }

    fn set_interrupt(&self, entry: u16, message: Option<MsiMessage>) {
        self.device.set_interrupt(entry, message);
    }

    fn hold_interrupt(&self, entry: u16, hold: bool) -> bool {
        self.device.hold_interrupt(entry, hold)
    }

    fn event_interrupt(&self) -> Option<u16> {
        Some(EVENT_ENTRY)
    }

    fn interrupt(&self, sink: &mut dyn FnMut(ParentEvent)) -> Drained {
        self.device.handle_event(sink)
    }

    fn is_waiting(&self) -> bool {
        let waits = self.device.shared.as_ref().is_some_and(|shared| shared.is_asked());
        waits || self.commands_wait()
    }

    fn look(&self, concerned: &mut dyn FnMut(Pasid)) -> bool {
        let waited = self.commands_wait();
        self.device.look();
        let nameless = self.device.shared.as_ref().is_some_and(|shared| shared.look(concerned));
        waited || nameless
    }

    fn recover(&self, unreached: &ParentUnreached) -> Result<(), Refusal> {
        self.device.recover(unreached)
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let device = &self.device;
        let caps = &device.capabilities;
        let status = device.gate.open().map(|access| access.registers.read32(GENSTS));
        let mut lines = Vec::from([("device", device.function.identity().to_string())]);
        lines.extend(survey::describe(caps, status));
        for queue in &device.queues {
            let state = queue.state.lock().clone();
            if queue.shared {
                let shares = self.types[1].instances - self.available(TYPE_SWQ);
                let entries = queue.size;
                lines.push((
                    "queue",
                    alloc::format!("{}: {entries} entries, shared by {shares} vdevs", queue.index),
                ));
                continue;
            }
            let state = match (state.retired, state.owner, queue.pasid()) {
                (Some(why), ..) => alloc::format!("retired: {why}"),
                (None, Some(vm), Some(pasid)) => alloc::format!("vm {vm}, PASID {pasid}"),
                (None, Some(vm), None) => alloc::format!("vm {vm}, no PASID yet"),
                (None, None, _) => "free".to_string(),
            };
            lines.push(("queue", alloc::format!("{}: {} entries, {state}", queue.index, queue.size)));
        }
        if self.unsafe_portals() {
            lines.push(("portals", "UNSAFE by allow_unsafe_portals (INTEL-SA-01084)".to_string()));
        } else if !device.silicon.safe_portals() {
            lines.push((
                "portals",
                "not offered: this silicon is not safe for that (INTEL-SA-01084); dsa-swq needs none"
                    .to_string(),
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::ordinal;

    #[test]
    fn ordinals_read_as_people_say_them() {
        let words: Vec<String> = [1, 2, 3, 4, 9, 11, 12, 21].into_iter().map(ordinal).collect();
        assert_eq!(words, ["1st", "2nd", "3rd", "4th", "9th", "11th", "12th", "21st"]);
    }
}
