// SPDX-License-Identifier: MIT OR Apache-2.0
//! An IOMMU that checks its callers.

use std::collections::BTreeMap;

use super::truth::{Fail, SharedTruth, Step};
use crate::base::addr::{HostPhys, Iova, Requester};
use crate::base::drained::Drained;
use crate::base::refusal::Refusal;
use crate::dma::fault::Noted;
use crate::dma::iommu::{AttachFailed, Iommu, IommuCapabilities, TableId};
use crate::dma::pasid::Pasid;
use crate::irq::HostVector;
use crate::irq::msi::{Delivery, MsiController, RemappedInterrupt};
use crate::vm::exit::MsiMessage;

fn fault(what: &str) -> Refusal {
    Refusal::new(what, "the test makes it fail", "none")
}

impl Iommu for SharedTruth {
    fn name(&self) -> &str {
        "test"
    }

    fn capabilities(&self) -> IommuCapabilities {
        IommuCapabilities {
            pasid_bits: 20,
            address_bits: 39,
            largest_page: 1 << 30,
            lacks_dirty_tracking: None,
        }
    }

    fn confines(&self, _requester: Requester) -> bool {
        !self.lock().bypassed
    }

    fn create_table(&self) -> Result<TableId, Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::CreateTable) {
            return Err(fault("create table"));
        }
        truth.next_table += 1;
        let id = TableId(truth.next_table);
        truth.tables.insert(id, BTreeMap::new());
        Ok(id)
    }

    fn map(
        &self,
        table: TableId,
        iova: Iova,
        host: HostPhys,
        len: u64,
        _writable: bool,
    ) -> Result<(), Refusal> {
        let mut truth = self.lock();
        let more = truth.tables.get(&table).is_some_and(|table| !table.is_empty());
        if truth.fails(Fail::Map) || more && truth.fails(Fail::MapMore) {
            return Err(fault("map"));
        }
        let Some(mappings) = truth.tables.get_mut(&table) else {
            truth.demand(false, || format!("map into {table:?}, which is gone"));
            return Err(fault("map"));
        };
        mappings.insert(iova.0, (host.0, len));
        Ok(())
    }

    fn unmap(&self, table: TableId, iova: Iova, len: u64) -> Result<(), Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::Unmap) {
            return Err(fault("unmap"));
        }
        if let Some(mappings) = truth.tables.get_mut(&table) {
            mappings.retain(|start, _| !(iova.0..iova.0 + len).contains(start));
        }
        Ok(())
    }

    fn destroy_table(&self, table: TableId) -> Result<(), Refusal> {
        let mut truth = self.lock();
        let mut attached = truth.attached.values().chain(truth.also_attached.values());
        let attached = attached.any(|other| *other == table);
        truth.demand(!attached, || format!("{table:?} destroyed while attached"));
        if attached || truth.fails(Fail::DestroyTable) {
            return Err(fault("destroy table"));
        }
        let known = truth.tables.remove(&table).is_some();
        truth.demand(known, || format!("{table:?} destroyed twice"));
        truth.steps.push(Step::TableDestroyed);
        Ok(())
    }

    fn claim(&self, requester: Requester) -> Result<(), Refusal> {
        self.lock().claimed.insert(requester);
        Ok(())
    }

    fn attach(&self, requester: Requester, pasid: Pasid, table: TableId) -> Result<(), AttachFailed> {
        let mut truth = self.lock();
        let claimed = truth.claimed.contains(&requester);
        truth.demand(claimed, || format!("{requester} attached before it was claimed"));
        truth.demand(pasid.value() != 0, || "PASID 0 attached".to_string());
        if truth.fails(Fail::Attach) {
            return Err(fault("attach").into());
        }
        let other = truth.attached.insert((requester, pasid), table);
        truth.demand(other.is_none(), || format!("PASID {pasid} attached twice"));
        let known = truth.tables.contains_key(&table);
        truth.demand(known, || format!("attach of {table:?}, which is gone"));
        if truth.fails(Fail::AttachHalfway) {
            return Err(AttachFailed { refusal: fault("attach"), tag_kept: true });
        }
        Ok(())
    }

    fn replace(&self, requester: Requester, pasid: Pasid, table: TableId) -> Result<(), AttachFailed> {
        let mut truth = self.lock();
        if truth.fails(Fail::Replace) {
            return Err(fault("replace").into());
        }
        let known = truth.tables.contains_key(&table);
        truth.demand(known, || format!("replacement by {table:?}, which is gone"));
        let halfway = truth.fails(Fail::ReplaceHalfway);
        match truth.attached.insert((requester, pasid), table) {
            Some(before) if halfway => {
                truth.also_attached.insert((requester, pasid), before);
                Err(AttachFailed { refusal: fault("replace"), tag_kept: true })
            }
            Some(_) => Ok(()),
            None => {
                truth.demand(false, || format!("PASID {pasid} replaced, which is not attached"));
                Err(fault("replace").into())
            }
        }
    }

    fn detach(&self, requester: Requester, pasid: Pasid) -> Result<(), Refusal> {
        let mut truth = self.lock();
        let tagged = truth.queues.iter().any(|queue| queue.tag == Some(pasid));
        truth.demand(!tagged, || format!("PASID {pasid} detached while a queue may send with it"));
        if truth.fails(Fail::Detach) {
            return Err(fault("detach"));
        }
        if truth.attached.remove(&(requester, pasid)).is_none() {
            return Err(fault("detach"));
        }
        truth.also_attached.remove(&(requester, pasid));
        truth.steps.push(Step::Detached(pasid));
        Ok(())
    }

    fn drain_faults(&self, sink: &mut dyn FnMut(Noted)) -> Drained {
        let mut truth = self.lock();
        truth.fault_looks += 1;
        let some = truth.at_once.min(truth.faults.len());
        truth.faults.drain(..some).for_each(sink);
        if truth.faults.is_empty() { Drained::Empty } else { Drained::Again }
    }

    fn commands_issued(&self) -> u64 {
        0
    }
}

impl MsiController for SharedTruth {
    fn map_interrupt(&self, _requester: Requester, target: HostVector) -> Result<RemappedInterrupt, Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::MapInterrupt) {
            return Err(fault("map interrupt"));
        }
        let taken = truth.vectors.contains(&target);
        truth.demand(taken, || format!("{target:?} mapped before it was allocated"));
        let twice = truth.remapped.values().any(|other| *other == target);
        truth.demand(!twice, || format!("{target:?} mapped twice"));
        truth.next_handle += 1;
        let handle = truth.next_handle;
        truth.remapped.insert(handle, target);
        truth.unsettled.insert(target);
        Ok(RemappedInterrupt { handle, message: MsiMessage { address: 0xfee0_0010, data: handle } })
    }

    fn unmap_interrupt(&self, handle: u32) -> Result<(), Refusal> {
        let mut truth = self.lock();
        let unmasked = truth.msix.values().any(|message| message.data == handle);
        truth.demand(!unmasked, || format!("interrupt {handle} unmapped before it was masked"));
        if truth.fails(Fail::UnmapInterrupt) {
            return Err(fault("unmap interrupt"));
        }
        truth.posted.remove(&handle);
        let known = truth.remapped.remove(&handle).is_some();
        truth.demand(known, || format!("interrupt {handle} unmapped twice"));
        truth.steps.push(Step::InterruptUnmapped);
        Ok(())
    }

    fn can_post(&self, _requester: Requester) -> bool {
        true
    }

    fn redirect(&self, handle: u32, to: Delivery<'_>) -> Result<(), Refusal> {
        let mut truth = self.lock();
        truth.redirects += 1;
        let known = truth.remapped.get(&handle).copied();
        truth.demand(known.is_some(), || format!("interrupt {handle} redirected, which is not mapped"));
        match to {
            Delivery::Host(vector) => {
                truth
                    .demand(known == Some(vector), || format!("interrupt {handle} redirected to {vector:?}"));
                truth.posted.remove(&handle);
            }
            Delivery::Guest(posting) => {
                let way = (posting.descriptor.address(), posting.vector);
                truth.posted.insert(handle, way);
            }
        }
        if truth.fails(Fail::Redirect) { Err(fault("redirect")) } else { Ok(()) }
    }
}
