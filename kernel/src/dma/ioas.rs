// SPDX-License-Identifier: MIT OR Apache-2.0
//! I/O address spaces: what a device sees behind one PASID.
//!
//! **Principle.** An address space is an object of its own: created, mapped, attached, destroyed. By
//! default a VM has one, equal to its guest-physical memory. It can map nothing but the RAM of its owner,
//! because mappings are asked for in guest-physical addresses of a [`GuestRam`] of the same VM, and the
//! [windows](crate::dma::window) of its own slices.
//!
//! **Invariants.** It holds the RAM that it maps until its table is destroyed, and the table cannot be
//! destroyed while a tag may reach it. RAM that a device might write is therefore never free.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::cmp::Ordering;
use core::fmt;

use spin::Mutex;

use crate::base::addr::{GuestPhys, HostPhys, Iova, PAGE_SIZE, Requester};
use crate::base::id::{IoasId, VmId};
use crate::base::refusal::Refusal;
use crate::dma::iommu::{AttachFailed, Iommu, TableId};
use crate::dma::pasid::Pasid;
use crate::dma::window::{self, Window};
use crate::memory::ram::{GuestRam, RamRange};
use crate::monitor::info::IoasInfo;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Live,
    /// The table is gone.
    Destroyed,
    /// The IOMMU refused to destroy the table although nothing is attached: what it maps stays held.
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    len: u64,
    /// The RAM behind it; `None`: it is a window, or what is left of a mapping that could not be taken back.
    guest: Option<GuestPhys>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// By IOVA.
    mappings: BTreeMap<u64, Mapping>,
    /// What is mapped. One VM has one RAM per life, so one reference is enough.
    ram: Option<Arc<GuestRam>>,
    /// Tags that reach the table, or may.
    attached: BTreeSet<(Requester, Pasid)>,
}

/// One I/O address space. Methods may be called from any processor, but not from an interrupt handler.
pub struct IoAddressSpace {
    id: IoasId,
    owner: VmId,
    iommu: &'static dyn Iommu,
    table: TableId,
    /// It was made with a vdev, and goes with the last one on it.
    made_for_vdev: bool,
    inner: Mutex<Inner>,
}

impl IoAddressSpace {
    /// An empty address space of a VM, or one that is made for a vdev of it. `id` is not used for any other, ever.
    ///
    /// # Errors
    /// When the IOMMU has no table for it.
    pub fn create(
        id: IoasId,
        owner: VmId,
        iommu: &'static dyn Iommu,
        made_for_vdev: bool,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            id,
            owner,
            iommu,
            table: iommu.create_table().map_err(|refusal| refusal.within("I/O address space"))?,
            made_for_vdev,
            inner: Mutex::new(Inner {
                state: State::Live,
                mappings: BTreeMap::new(),
                ram: None,
                attached: BTreeSet::new(),
            }),
        })
    }

    /// Its number.
    pub fn id(&self) -> IoasId {
        self.id
    }

    /// Whether it goes with the last vdev on it.
    pub(crate) fn is_made_for_vdev(&self) -> bool {
        self.made_for_vdev
    }

    /// The VM that owns it.
    pub fn owner(&self) -> VmId {
        self.owner
    }

    /// Maps `len` bytes of the owner's RAM from guest-physical `guest` at `iova`. Everything is a multiple
    /// of the page size. All or nothing.
    ///
    /// # Errors
    /// When it is not whole pages of the owner's RAM, part of the range is mapped or beyond the IOMMU's width, the address
    /// space is being destroyed, or the IOMMU refuses. What was mapped of it is unmapped again.
    pub fn map(
        &self,
        ram: &Arc<GuestRam>,
        guest: GuestPhys,
        iova: Iova,
        len: u64,
        writable: bool,
    ) -> Result<(), Refusal> {
        let refuse = |why: String, remedy: &str| {
            Err(Refusal::new(
                format!("I/O address space {}: map {len:#x} bytes at {iova}", self.id),
                why,
                remedy,
            ))
        };
        if ram.owner() != self.owner {
            return refuse(
                format!("the RAM is of VM {}, the address space of VM {}", ram.owner(), self.owner),
                "map a VM's own RAM",
            );
        }
        let aligned = [guest.0, iova.0, len].iter().all(|value| value % PAGE_SIZE == 0);
        let width = self.iommu.capabilities().address_bits;
        let Some(end) = iova.checked_add(len).filter(|_| aligned && len > 0) else {
            return refuse("not whole pages".to_string(), "use multiples of 4096 bytes");
        };
        if end > window::first(width) {
            return refuse(
                format!(
                    "the IOMMU translates addresses of {width} bits, and those from {} on are windows",
                    window::first(width)
                ),
                "use lower addresses, or give the VM less memory",
            );
        }
        let mut inner = self.inner.lock();
        if inner.state != State::Live {
            return refuse("it is being destroyed".to_string(), "create another");
        }
        let below = inner.mappings.range(..end.0).next_back();
        if below.is_some_and(|(start, mapping)| start + mapping.len > iova.0) {
            return refuse("part of it is mapped".to_string(), "unmap it first");
        }
        let Some(pieces) = ram.host_ranges(guest, len) else {
            return refuse(format!("{guest} is not all RAM of the VM"), "map only RAM");
        };
        // From here on the table may hold these pages.
        inner.ram = Some(ram.clone());
        let mut done = 0;
        for (host, piece) in pieces {
            if let Err(refusal) = self.map_piece(iova, done, host, piece, writable) {
                if done > 0 && self.iommu.unmap(self.table, iova, done).is_err() {
                    // Still there, as far as anyone knows. Listed, so that it is not mapped over.
                    inner.mappings.insert(iova.0, Mapping { len: done, guest: None });
                }
                return Err(refusal.within(format!("I/O address space {}", self.id)));
            }
            done += piece;
        }
        inner.mappings.insert(iova.0, Mapping { len, guest: Some(guest) });
        Ok(())
    }

    /// Maps a page that a driver shares with a slice that this is the address space of; where it has a place already, there.
    ///
    /// # Errors
    /// When there is no place left for it or its place is taken, the address space is being destroyed, or the IOMMU refuses.
    pub(crate) fn map_window(&self, page: HostPhys, place: Option<Iova>) -> Result<Window, Refusal> {
        let refuse = |why: &str, remedy: &str| {
            Refusal::new(format!("I/O address space {}: a window for a driver", self.id), why, remedy)
        };
        let width = self.iommu.capabilities().address_bits;
        let mut inner = self.inner.lock();
        if inner.state != State::Live {
            return Err(refuse("it is being destroyed", "create another"));
        }
        let places = match place {
            Some(place) => place.0..place.0 + PAGE_SIZE,
            None => window::first(width).0..window::end(width),
        };
        let mut places = places.step_by(PAGE_SIZE as usize);
        let free = places.find(|place| !inner.mappings.contains_key(place));
        let iova = Iova(free.ok_or_else(|| refuse("no place is left", "destroy a vdev of it"))?);
        self.iommu
            .map(self.table, iova, page, PAGE_SIZE, true)
            .map_err(|refusal| refusal.within(format!("I/O address space {}", self.id)))?;
        inner.mappings.insert(iova.0, Mapping { len: PAGE_SIZE, guest: None });
        Ok(Window { iova, page })
    }

    /// The first address that a guest may not name to a device.
    pub(crate) fn limit(&self) -> Iova {
        window::first(self.iommu.capabilities().address_bits)
    }

    /// The RAM behind `len` bytes at `iova`, where they lie in one mapping.
    pub(crate) fn translate(&self, iova: Iova, len: u64) -> Option<GuestPhys> {
        let inner = self.inner.lock();
        let (start, mapping) = inner.mappings.range(..=iova.0).next_back()?;
        let offset = iova.0 - start;
        let inside = offset.checked_add(len).is_some_and(|end| end <= mapping.len);
        mapping.guest.filter(|_| inside)?.checked_add(offset)
    }

    fn map_piece(
        &self,
        iova: Iova,
        done: u64,
        host: HostPhys,
        len: u64,
        writable: bool,
    ) -> Result<(), Refusal> {
        self.iommu.map(self.table, Iova(iova.0 + done), host, len, writable)
    }

    /// Maps ranges of the owner's RAM at the addresses at which the guest sees them.
    ///
    /// # Errors
    /// As [`IoAddressSpace::map`]; those before stay mapped.
    pub fn map_as_seen(&self, ram: &Arc<GuestRam>, ranges: &[RamRange]) -> Result<(), Refusal> {
        ranges.iter().try_for_each(|range| self.map(ram, range.start, Iova(range.start.0), range.len, true))
    }

    /// Removes one whole mapping, as it was mapped. The owner's RAM stays held until the address space is
    /// destroyed.
    ///
    /// # Errors
    /// When nothing was mapped so, or the IOMMU does not confirm; it then counts as mapped.
    pub fn unmap(&self, iova: Iova, len: u64) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        let mapped = inner.mappings.get(&iova.0).is_some_and(|mapping| mapping.len == len);
        if inner.state != State::Live || !mapped {
            return Err(Refusal::new(
                format!("I/O address space {}: unmap {len:#x} bytes at {iova}", self.id),
                "no such mapping",
                "unmap a range as it was mapped",
            ));
        }
        self.iommu
            .unmap(self.table, iova, len)
            .map_err(|refusal| refusal.within(format!("I/O address space {}", self.id)))?;
        inner.mappings.remove(&iova.0);
        Ok(())
    }

    /// On refusal what is left of the attempt is detached again. Where that fails too, the tag is listed and kept.
    pub(crate) fn attach(&self, requester: Requester, pasid: Pasid) -> Result<(), AttachFailed> {
        let mut inner = self.inner.lock();
        if inner.state != State::Live {
            return Err(Refusal::new(
                format!("I/O address space {}", self.id),
                "it is being destroyed",
                "create another",
            )
            .into());
        }
        if inner.attached.contains(&(requester, pasid)) {
            return Err(Refusal::new(
                format!("{requester}: PASID {pasid}"),
                "attached already",
                "detach it first",
            )
            .into());
        }
        let attached = self.iommu.attach(requester, pasid, self.table);
        let attached = attached.map_err(|failed| AttachFailed {
            tag_kept: failed.tag_kept && self.iommu.detach(requester, pasid).is_err(),
            ..failed
        });
        if attached.as_ref().err().is_none_or(|failed| failed.tag_kept) {
            inner.attached.insert((requester, pasid));
        }
        attached
    }

    /// Leads a tag that is attached here to another address space, while its device may be sending. On refusal it is
    /// listed where it may lead to: here, or with both.
    pub(crate) fn replace(&self, to: &Self, requester: Requester, pasid: Pasid) -> Result<(), AttachFailed> {
        let refuse = |why: &str, remedy: &str| {
            AttachFailed::from(Refusal::new(format!("I/O address space {}", to.id), why, remedy))
        };
        // By number, so that two in opposite directions do not wait for each other.
        let (mut own, mut other) = match self.id.0.cmp(&to.id.0) {
            Ordering::Less => {
                let own = self.inner.lock();
                (own, to.inner.lock())
            }
            Ordering::Greater => {
                let other = to.inner.lock();
                (self.inner.lock(), other)
            }
            Ordering::Equal => return Err(refuse("it is the one that is attached", "name another")),
        };
        if other.state != State::Live {
            return Err(refuse("it is being destroyed", "create another"));
        }
        let replaced = self.iommu.replace(requester, pasid, to.table);
        if replaced.as_ref().err().is_none_or(|failed| failed.tag_kept) {
            other.attached.insert((requester, pasid));
        }
        replaced?;
        own.attached.remove(&(requester, pasid));
        Ok(())
    }

    /// A tag that was listed with two is detached.
    pub(crate) fn forget(&self, requester: Requester, pasid: Pasid) {
        self.inner.lock().attached.remove(&(requester, pasid));
    }

    /// On refusal the tag stays listed: the table cannot be destroyed.
    pub(crate) fn detach(&self, requester: Requester, pasid: Pasid) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        self.iommu.detach(requester, pasid)?;
        inner.attached.remove(&(requester, pasid));
        Ok(())
    }

    /// Destroys the table and lets go of the RAM. Destroying twice is
    /// no error.
    ///
    /// # Errors
    /// When a tag may reach it, or the IOMMU refuses.
    pub fn destroy(&self) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        if inner.state == State::Destroyed {
            return Ok(());
        }
        if let Some((requester, pasid)) = inner.attached.first() {
            return Err(Refusal::new(
                format!("I/O address space {}", self.id),
                format!("PASID {pasid} of {requester} may still reach it"),
                "end the vdev first; if it would not stop, reset its parent",
            ));
        }
        inner.state = State::Lost;
        self.iommu
            .destroy_table(self.table)
            .map_err(|refusal| refusal.within(format!("I/O address space {}", self.id)))?;
        inner.state = State::Destroyed;
        inner.mappings.clear();
        inner.ram = None;
        Ok(())
    }

    /// Whether its table is gone, and with it whatever it mapped.
    pub(crate) fn is_destroyed(&self) -> bool {
        self.inner.lock().state == State::Destroyed
    }

    /// For the monitor; `vm` is its owner's name.
    pub fn info(&self, vm: &str) -> IoasInfo {
        let inner = self.inner.lock();
        IoasInfo {
            id: self.id.0,
            vm: vm.to_string(),
            table: self.table.0,
            mappings: inner.mappings.len(),
            mapped_bytes: inner.mappings.values().map(|mapping| mapping.len).sum(),
            pasids: inner.attached.iter().map(|(_, pasid)| pasid.value()).collect(),
        }
    }
}

impl fmt::Debug for IoAddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoAddressSpace")
            .field("id", &self.id)
            .field("owner", &self.owner)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::addr::LARGE_PAGE_SIZE;
    use crate::memory::frames::Frames;
    use crate::memory::ram::RamRange;
    use crate::testing::{Fail, SharedTruth};

    /// RAM of two large pages that are apart in host memory.
    fn split_ram(owner: VmId) -> Arc<GuestRam> {
        let frames = Frames::new([0, 8].map(|n| (HostPhys(n * LARGE_PAGE_SIZE), LARGE_PAGE_SIZE)));
        let frames = frames.allocate_guest(2 * LARGE_PAGE_SIZE).unwrap().scrub(&mut |_, _| ());
        let range = RamRange { start: GuestPhys(0), len: 2 * LARGE_PAGE_SIZE };
        Arc::new(GuestRam::new(owner, frames, &[range]).unwrap())
    }

    fn space() -> (&'static SharedTruth, IoAddressSpace) {
        let truth: &'static SharedTruth = Box::leak(Box::new(SharedTruth::new(1)));
        let space = IoAddressSpace::create(IoasId(1), VmId(3), truth, false).unwrap();
        (truth, space)
    }

    #[test]
    fn a_mapping_over_split_memory_is_whole_or_not_there() {
        let (truth, space) = space();
        let ram = split_ram(VmId(3));
        let map = || space.map(&ram, GuestPhys(0x1000), Iova(0), 2 * LARGE_PAGE_SIZE - 0x1000, true);
        truth.fail(Fail::MapMore);
        assert!(map().is_err());
        assert!(truth.lock().tables[&space.table].is_empty(), "the first piece is gone again");
        assert_eq!(space.info("").mappings, 0);
        map().unwrap();
        let pieces: Vec<_> = truth.lock().tables[&space.table].iter().map(|(a, b)| (*a, *b)).collect();
        let first = LARGE_PAGE_SIZE - 0x1000;
        assert_eq!(pieces, [(0, (0x1000, first)), (first, (8 * LARGE_PAGE_SIZE, LARGE_PAGE_SIZE))]);
        assert_eq!(space.info("").mapped_bytes, 2 * LARGE_PAGE_SIZE - 0x1000);
    }

    #[test]
    fn a_piece_that_cannot_be_taken_back_is_not_mapped_over() {
        let (truth, space) = space();
        let ram = split_ram(VmId(3));
        truth.fail(Fail::MapMore);
        truth.fail(Fail::Unmap);
        assert!(space.map(&ram, GuestPhys(0), Iova(0), 2 * LARGE_PAGE_SIZE, true).is_err());
        assert!(space.map(&ram, GuestPhys(0), Iova(0x1000), 0x1000, true).is_err());
        space.map(&ram, GuestPhys(0), Iova(LARGE_PAGE_SIZE), 0x1000, true).unwrap();
        assert!(Arc::try_unwrap(ram).is_err(), "the address space holds the RAM");
        space.destroy().unwrap();
        space.destroy().unwrap();
        assert!(truth.lock().violations.is_empty());
    }

    #[test]
    fn a_window_lies_above_what_guests_may_name_and_is_no_ram() {
        let (truth, space) = space();
        let ram = split_ram(VmId(3));
        let limit = space.limit();
        let above = space.map(&ram, GuestPhys(0), limit, 0x1000, true).unwrap_err();
        assert!(above.why.contains("are windows"), "{above}");
        space.map(&ram, GuestPhys(0x1000), Iova(0x5000), 0x2000, true).unwrap();
        let [one, two] = [0x10_0000, 0x20_0000].map(|page| space.map_window(HostPhys(page), None).unwrap());
        assert_eq!((one.iova, two.iova), (limit, Iova(limit.0 + PAGE_SIZE)));
        assert_eq!(truth.lock().tables[&space.table][&one.iova.0], (0x10_0000, PAGE_SIZE));
        assert_eq!(space.translate(one.iova, 8), None);
        space.unmap(one.iova, PAGE_SIZE).unwrap();
        assert_eq!(
            space.map_window(HostPhys(0x30_0000), None).unwrap().iova,
            one.iova,
            "its place is free again"
        );
        truth.fail(Fail::Map);
        assert!(space.map_window(HostPhys(0x40_0000), None).is_err());
        space.destroy().unwrap();
        assert!(space.map_window(HostPhys(0x40_0000), None).is_err());
    }

    #[test]
    fn translation_ends_where_the_mapping_ends() {
        let (_, space) = space();
        let ram = split_ram(VmId(3));
        space.map(&ram, GuestPhys(0x1000), Iova(0x5000), 0x2000, true).unwrap();
        assert_eq!(space.translate(Iova(0x5008), 0x1ff8), Some(GuestPhys(0x1008)));
        for (iova, len) in [(0x4fff, 1), (0x5008, 0x1ff9), (0x7000, 1), (u64::MAX, 2), (0x5000, u64::MAX)] {
            assert_eq!(space.translate(Iova(iova), len), None, "{iova:#x}");
        }
    }

    #[test]
    fn nothing_is_mapped_or_attached_after_the_end() {
        let (_, space) = space();
        space.destroy().unwrap();
        assert!(space.map(&split_ram(VmId(3)), GuestPhys(0), Iova(0), 0x1000, true).is_err());
        let failed = space.attach(crate::testing::REQUESTER, Pasid::new(1).unwrap());
        assert!(failed.is_err_and(|failed| !failed.tag_kept));
    }
}
