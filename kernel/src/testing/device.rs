// SPDX-License-Identifier: MIT OR Apache-2.0
//! A parent with a few queues, and the models of its slices.

use std::sync::Arc;

use super::truth::{Fail, Queue, SharedTruth, Step, WINDOWS};
use crate::base::addr::{HostPhys, Requester};
use crate::base::drained::Drained;
use crate::base::refusal::Refusal;
use crate::dma::pasid::Pasid;
use crate::vdev::parent::{
    Attached, Bar, DeviceQuiesced, DmaTag, InterruptBinding, Parent, ParentEvent, ParentUnreached, Paused,
    PciIdentity, Portal, QuiesceFailed, Remains, UntranslatedMemory, VdevModel, VdevRegisters, VdevRequest,
    VdevType,
};
use crate::vm::exit::MsiMessage;

pub const PARENT: &str = "dsa0";
pub const REQUESTER: Requester = Requester::new(0, 0, 4, 0);
/// The type with a portal.
pub const DIRECT: &str = "direct";
/// The type without.
pub const TRAPPED: &str = "trapped";
/// MSI-X entries of one queue.
const ENTRIES: u16 = 2;

const TYPES: [VdevType; 2] = [
    VdevType {
        name: DIRECT,
        description: "a queue with its portal",
        direct_portal: true,
        needs_iommu: Some(VdevType::MAPS_A_PAGE),
        instances: 4,
    },
    VdevType {
        name: TRAPPED,
        description: "a queue behind traps",
        direct_portal: false,
        needs_iommu: None,
        instances: 4,
    },
];

pub struct TestParent(pub &'static SharedTruth);

impl Parent for TestParent {
    fn name(&self) -> &str {
        PARENT
    }

    fn requester(&self) -> Requester {
        REQUESTER
    }

    fn dma_tag(&self) -> DmaTag {
        if self.0.lock().tagged_by_requester { DmaTag::Requester } else { DmaTag::Pasid { bits: 20 } }
    }

    fn types(&self) -> &[VdevType] {
        &TYPES
    }

    fn available(&self, _type_name: &str) -> u16 {
        let truth = self.0.lock();
        truth.queues.iter().filter(|queue| queue.owner.is_none()).count() as u16
    }

    fn create(&self, request: &VdevRequest<'_>) -> Result<Box<dyn VdevModel>, Refusal> {
        let mut truth = self.0.lock();
        let refusal = || Refusal::new(format!("vm {}: vdev dsa0", request.vm), "no queue", "free one");
        if truth.fails(Fail::CreateSlice) {
            return Err(refusal());
        }
        let free = truth.queues.iter().position(|queue| queue.owner.is_none());
        let queue = free.ok_or_else(refusal)?;
        truth.queues[queue].owner = Some(request.vm.to_string());
        Ok(Box::new(TestModel { truth: self.0, queue, direct: request.type_name == DIRECT }))
    }

    fn set_interrupt(&self, entry: u16, message: Option<MsiMessage>) {
        let mut truth = self.0.lock();
        match message {
            Some(message) => {
                let other = truth.msix.insert(entry, message);
                truth.demand(other.is_none(), || format!("MSI-X entry {entry} programmed twice"));
            }
            None => {
                let set = truth.msix.remove(&entry).is_some();
                truth.held.remove(&entry);
                truth.demand(set, || format!("MSI-X entry {entry} cleared twice"));
                truth.steps.push(Step::InterruptMasked(entry));
            }
        }
    }

    fn hold_interrupt(&self, entry: u16, hold: bool) -> bool {
        let mut truth = self.0.lock();
        if truth.cannot_hold {
            return false;
        }
        let programmed = truth.msix.contains_key(&entry);
        truth.demand(programmed, || format!("MSI-X entry {entry} held while it is nobody's"));
        truth.holds += 1;
        if hold {
            truth.held.insert(entry);
        } else {
            truth.held.remove(&entry);
        }
        true
    }

    fn event_interrupt(&self) -> Option<u16> {
        Some(0)
    }

    fn interrupt(&self, sink: &mut dyn FnMut(ParentEvent)) -> Drained {
        let (tags, halted): (Vec<Pasid>, bool) = {
            let mut truth = self.0.lock();
            truth.event_looks += 1;
            let tags = truth.queues.iter().filter_map(|queue| queue.tag).collect();
            (tags, core::mem::take(&mut truth.halted))
        };
        for pasid in tags.into_iter().map(Some).chain([None]) {
            for _ in 0..2 {
                sink(ParentEvent::Error { pasid, text: "bad descriptor".to_string() });
            }
        }
        if halted {
            sink(ParentEvent::Halted("overheated".to_string()));
        }
        let mut truth = self.0.lock();
        if truth.more_events == 0 {
            return Drained::Empty;
        }
        truth.more_events -= 1;
        Drained::Again
    }

    fn is_waiting(&self) -> bool {
        self.0.lock().waiting
    }

    fn look(&self, _concerned: &mut dyn FnMut(Pasid)) -> bool {
        self.0.lock().looks += 1;
        true
    }

    fn recover(&self, unreached: &ParentUnreached) -> Result<(), Refusal> {
        let mut truth = self.0.lock();
        let mapped = !truth.portals.is_empty() || unreached.parent() != PARENT;
        truth.demand(!mapped, || "reset while guests reach it".to_string());
        if truth.fails(Fail::Recover) {
            return Err(Refusal::new(PARENT, "the test makes it fail", "none"));
        }
        for queue in &mut truth.queues {
            queue.retired = false;
        }
        truth.steps.push(Step::Recovered);
        Ok(())
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let queues = self.0.lock().queues.len().to_string();
        vec![("state", "enabled".to_string()), ("queues", queues), ("queue 0", "free".to_string())]
    }
}

struct TestModel {
    truth: &'static SharedTruth,
    queue: usize,
    direct: bool,
}

impl TestModel {
    fn page(&self) -> HostPhys {
        HostPhys(WINDOWS + self.queue as u64 * 0x1000)
    }
}

/// All zeros.
struct TestRemains;

impl Remains for TestRemains {
    fn read(&mut self, _bar: u8, _offset: u64, _size: u8) -> u64 {
        0
    }

    fn write(&mut self, _bar: u8, _offset: u64, _size: u8, _value: u64, _raise: &mut dyn FnMut(u16)) {}
}

impl VdevRegisters for TestModel {
    fn identity(&self) -> PciIdentity {
        PciIdentity {
            vendor: 0x8086,
            device: 0x0b25,
            subsystem: (0, 0),
            revision: 0,
            class: 0x08_8000,
            bars: vec![Bar { index: 0, size: 0x1000, prefetchable: false }],
            msix_vectors: ENTRIES,
            msix_bar: 0,
            msix_table: 0x800,
            msix_pba: 0xc00,
        }
    }

    fn portals(&self) -> Vec<Portal> {
        let host = HostPhys(0xf000_0000 + self.queue as u64 * 0x1000);
        let portal = Portal { bar: 2, offset: 0, host, len: 0x1000 };
        self.direct.then_some(portal).into_iter().collect()
    }

    fn read(&mut self, _bar: u8, offset: u64, _size: u8) -> u64 {
        offset
    }

    fn write(&mut self, _bar: u8, _offset: u64, _size: u8, value: u64, raise: &mut dyn FnMut(u16)) {
        raise(value as u16);
    }

    fn submit(&mut self, _bar: u8, _offset: u64, descriptor: &[u8; 64], raise: &mut dyn FnMut(u16)) {
        raise(descriptor[0].into());
    }

    fn interrupt(&mut self, vector: u16, raise: &mut dyn FnMut(u16)) {
        raise(vector + ENTRIES);
    }

    fn set_bus_master(&mut self, _enabled: bool, _raise: &mut dyn FnMut(u16)) {}

    fn remains(&mut self, _raise: &mut dyn FnMut(u16)) -> Box<dyn Remains> {
        Box::new(TestRemains)
    }

    fn reset(&mut self) -> Result<(), QuiesceFailed> {
        Ok(())
    }

    /// A millisecond passes.
    fn device_event(&mut self, _raise: &mut dyn FnMut(u16)) {
        let mut truth = self.truth.lock();
        let queue = &mut truth.queues[self.queue];
        if queue.paused && queue.under_way > 0 {
            queue.under_way -= 1;
            self.truth.pass(1_000_000);
        }
    }
}

impl VdevModel for TestModel {
    /// A trapped slice has none, unless told so: it works where interrupts cannot be remapped.
    fn interrupts(&self) -> Vec<InterruptBinding> {
        let truth = self.truth.lock();
        let count = if self.direct || truth.interrupts_for_all { ENTRIES } else { 0 };
        let for_guest = !truth.keeps_interrupts;
        (0..count)
            .map(|virtual_vector| InterruptBinding {
                physical: 1 + self.queue as u16 * ENTRIES + virtual_vector,
                virtual_vector,
                for_guest,
            })
            .collect()
    }

    fn window(&self) -> Option<HostPhys> {
        (!self.direct).then_some(self.page())
    }

    fn attach(&mut self, attached: Attached) -> Result<(), Refusal> {
        let pasid = attached.pasid;
        assert_eq!(attached.window.map(|window| window.page), self.window());
        let mut truth = self.truth.lock();
        let stands = truth.attached.contains_key(&(REQUESTER, pasid));
        truth.demand(stands, || format!("queue {} got PASID {pasid} before its table", self.queue));
        let connected =
            (1..=ENTRIES).all(|entry| truth.msix.contains_key(&(self.queue as u16 * ENTRIES + entry)));
        truth.demand(!self.direct || connected, || "a tag before the interrupts".to_string());
        if truth.fails(Fail::Tag) {
            return Err(Refusal::new("queue", "the test makes it fail", "none"));
        }
        truth.queues[self.queue].tag = Some(pasid);
        Ok(())
    }

    fn attach_untranslated(&mut self, _memory: Arc<dyn UntranslatedMemory>) -> Result<(), Refusal> {
        let mut truth = self.truth.lock();
        truth.demand(!self.direct, || "a portal without an IOMMU".to_string());
        if truth.fails(Fail::Tag) {
            return Err(Refusal::new("queue", "the test makes it fail", "none"));
        }
        truth.queues[self.queue].untranslated = true;
        Ok(())
    }

    fn quiesce(&mut self) -> Result<DeviceQuiesced, QuiesceFailed> {
        let mut truth = self.truth.lock();
        let queue = self.queue;
        let mapped = truth.portals.values().any(|other| *other == queue);
        truth.demand(!mapped, || format!("queue {queue} stopped while its portal is mapped"));
        truth.queues[queue].paused = false;
        // One that is stuck stays so until the device is reset.
        if truth.fails(Fail::Quiesce) || truth.queues[queue].retired {
            truth.queues[queue].retired = true;
            return Err(QuiesceFailed { why: "the drain never ends".to_string() });
        }
        truth.queues[queue].tag = None;
        truth.queues[queue].untranslated = false;
        truth.steps.push(Step::QueueStopped);
        Ok(DeviceQuiesced::confirmed_by_device())
    }

    fn pause(&mut self) {
        let mut truth = self.truth.lock();
        let (hangs, closed) = (truth.fails(Fail::Drain), truth.fails(Fail::Resume));
        let queue = &mut truth.queues[self.queue];
        queue.paused = true;
        queue.closed |= closed;
        if hangs {
            queue.under_way = u32::MAX;
        }
    }

    fn paused(&self) -> Option<Paused> {
        let truth = self.truth.lock();
        let queue = &truth.queues[self.queue];
        // A trapped one keeps what waits.
        let still = if self.direct { Paused::Drained } else { Paused::Held };
        queue.paused.then_some(if queue.under_way > 0 { Paused::Draining } else { still })
    }

    fn resume(&mut self) -> Result<(), String> {
        let mut truth = self.truth.lock();
        let queue = &mut truth.queues[self.queue];
        if queue.closed {
            self.truth.pass(1_000_000);
            return Err("a drain is under way".to_string());
        }
        queue.paused = false;
        Ok(())
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        vec![("queue", self.queue.to_string())]
    }
}

impl Drop for TestModel {
    fn drop(&mut self) {
        let mut truth = self.truth.lock();
        let queue = self.queue;
        if truth.queues[queue].retired {
            return;
        }
        let shared = truth.reachable(self.page().0, 0x1000);
        truth.demand(!shared, || format!("the page of queue {queue} freed while a device reaches it"));
        let tagged = truth.queues[queue].tag;
        truth.demand(tagged.is_none(), || format!("queue {queue} given back with {tagged:?}"));
        truth.queues[queue] = Queue::default();
        truth.steps.push(Step::SliceReturned);
    }
}
