// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where an interrupt of a physical device goes: from a vector on a processor to whoever owns it.
//!
//! **Principle.** [`RouteTable::deliver`] is what an interrupt handler calls: two atomic operations, no
//! lock, no allocation. A route names a vdev by its [`VdevId`], which is never used for another vdev, so
//! that whoever acts on a route later still sees when it is too late. An interrupt for which there is
//! no route any more goes nowhere and is counted.
//!
//! **Invariant.** A vector of a processor leads to at most one place.

pub mod host;
pub mod msi;
pub mod vectors;

use alloc::boxed::Box;
use alloc::format;
use core::ops::Range;
use core::sync::atomic::Ordering;

use crate::base::id::{VdevId, VmId};
use crate::base::refusal::Refusal;
use crate::base::sync::AtomicU64;

/// Where a physical interrupt goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostVector {
    /// Interrupt number on the target, as its interrupt handler sees it.
    pub vector: u32,
    /// Hardware identifier of the target processor.
    pub cpu: u32,
}

/// Where an interrupt goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// To a guest.
    Vdev {
        /// The VM.
        vm: VmId,
        /// Its vdev.
        vdev: VdevId,
        /// MSI-X vector of the vdev, below 2048.
        vector: u16,
    },
    /// To the driver of a parent: its event interrupt. The number is its place in
    /// [`crate::system::System::parents`].
    ParentEvent(u16),
    /// To a VM that was posted an interrupt while it did not run.
    Posted(VmId),
}

/// Layout of a route in one word: kind 63:62 (0: none), VM 61:46, vdev 45:14, vector 13:0; or the
/// parent or the VM in 15:0.
mod word {
    pub const KIND: u32 = 62;
    pub const VM: u32 = 46;
    pub const VDEV: u32 = 14;
    pub const VECTOR_MASK: u64 = (1 << VDEV) - 1;
    pub const KIND_VDEV: u64 = 1;
    pub const KIND_PARENT: u64 = 2;
    pub const KIND_POSTED: u64 = 3;
}

impl Route {
    /// Parents whose event interrupts can be told apart.
    pub const PARENTS: u16 = 64;

    fn encode(self) -> u64 {
        match self {
            Self::Vdev { vm, vdev, vector } => {
                word::KIND_VDEV << word::KIND
                    | u64::from(vm.0) << word::VM
                    | u64::from(vdev.0) << word::VDEV
                    | u64::from(vector) & word::VECTOR_MASK
            }
            Self::ParentEvent(parent) => word::KIND_PARENT << word::KIND | u64::from(parent),
            Self::Posted(vm) => word::KIND_POSTED << word::KIND | u64::from(vm.0),
        }
    }

    fn decode(word: u64) -> Option<Self> {
        match word >> word::KIND {
            word::KIND_VDEV => Some(Self::Vdev {
                vm: VmId((word >> word::VM) as u16),
                vdev: VdevId((word >> word::VDEV) as u32),
                vector: (word & word::VECTOR_MASK) as u16,
            }),
            word::KIND_PARENT => Some(Self::ParentEvent(word as u16)),
            word::KIND_POSTED => Some(Self::Posted(VmId(word as u16))),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    route: AtomicU64,
    delivered: AtomicU64,
}

#[derive(Debug)]
struct Cpu {
    id: u32,
    slots: Box<[Slot]>,
}

/// A registered route. Not `Clone`: who holds it removes it.
#[derive(Debug)]
pub struct RouteHandle {
    vector: HostVector,
    route: Route,
}

impl RouteHandle {
    /// The vector.
    pub fn vector(&self) -> HostVector {
        self.vector
    }

    /// Where it leads.
    pub fn route(&self) -> Route {
        self.route
    }
}

/// The routes of all processors.
#[derive(Debug)]
pub struct RouteTable {
    /// Ascending by hardware identifier.
    cpus: Box<[Cpu]>,
    /// The lowest vector that a device can be given.
    first: u32,
    stray: AtomicU64,
}

impl RouteTable {
    /// An empty table for the processors with these hardware identifiers (the `cpu` of [`HostVector`]), and
    /// the vectors that devices can be given on each.
    pub fn new(cpus: impl IntoIterator<Item = u32>, vectors: Range<u32>) -> Self {
        let mut cpus: alloc::vec::Vec<Cpu> = cpus
            .into_iter()
            .map(|id| Cpu { id, slots: vectors.clone().map(|_| Slot::default()).collect() })
            .collect();
        cpus.sort_unstable_by_key(|cpu| cpu.id);
        cpus.dedup_by_key(|cpu| cpu.id);
        Self { cpus: cpus.into_boxed_slice(), first: vectors.start, stray: AtomicU64::default() }
    }

    fn slot(&self, vector: HostVector) -> Option<&Slot> {
        let index = self.cpus.binary_search_by_key(&vector.cpu, |cpu| cpu.id).ok()?;
        let slot = vector.vector.checked_sub(self.first)?;
        self.cpus.get(index)?.slots.get(slot as usize)
    }

    /// Registers a route.
    ///
    /// # Errors
    /// When the table does not know the processor or the vector, the vector is in use, or a number of the route is too large.
    pub fn register(&self, vector: HostVector, route: Route) -> Result<RouteHandle, Refusal> {
        let refuse = |why: &str, remedy: &str| {
            Refusal::new(
                format!("interrupt vector {:#x} of processor {}", vector.vector, vector.cpu),
                why,
                remedy,
            )
        };
        let slot = self.slot(vector).ok_or_else(|| {
            refuse(
                "no such processor, or no vector that its devices can have",
                "give vectors and processors that were found at start",
            )
        })?;
        let encoded = route.encode();
        if Route::decode(encoded) != Some(route) {
            return Err(refuse("its route has too large a number", "use fewer MSI-X vectors"));
        }
        slot.route
            .compare_exchange(0, encoded, Ordering::AcqRel, Ordering::Acquire)
            .map_err(|_| refuse("leads somewhere already", "allocate each vector once"))?;
        slot.delivered.store(0, Ordering::Relaxed);
        Ok(RouteHandle { vector, route })
    }

    /// Removes a route. Interrupts that still come go nowhere.
    pub fn unregister(&self, handle: RouteHandle) {
        if let Some(slot) = self.slot(handle.vector) {
            slot.route.store(0, Ordering::Release);
        }
    }

    /// Where an interrupt that just arrived goes; counts it. To be called from the interrupt handler.
    pub fn deliver(&self, vector: HostVector) -> Option<Route> {
        let slot = self.slot(vector);
        let route = slot.and_then(|slot| Route::decode(slot.route.load(Ordering::Acquire)));
        match (slot, route) {
            (Some(slot), Some(_)) => slot.delivered.fetch_add(1, Ordering::Relaxed),
            _ => self.stray.fetch_add(1, Ordering::Relaxed),
        };
        route
    }

    /// Where a vector leads, without counting.
    pub fn peek(&self, vector: HostVector) -> Option<Route> {
        Route::decode(self.slot(vector)?.route.load(Ordering::Acquire))
    }

    /// Interrupts delivered on a route since it was registered.
    pub fn delivered(&self, handle: &RouteHandle) -> u64 {
        self.slot(handle.vector).map_or(0, |slot| slot.delivered.load(Ordering::Relaxed))
    }

    /// Interrupts that led nowhere.
    pub fn stray(&self) -> u64 {
        self.stray.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::sync::explore;
    use loom::sync::Arc;
    use proptest::prelude::*;

    const VECTOR: HostVector = HostVector { vector: 0x41, cpu: 7 };
    const ROUTE: Route = Route::Vdev { vm: VmId(u16::MAX), vdev: VdevId(u32::MAX), vector: 2047 };

    #[test]
    fn an_interrupt_after_the_end_goes_nowhere() {
        let table = RouteTable::new([7, 1], 0x30..0x50);
        let handle = table.register(VECTOR, ROUTE).unwrap();
        assert_eq!(table.deliver(VECTOR), Some(ROUTE));
        assert_eq!(table.delivered(&handle), 1);
        table.unregister(handle);
        assert_eq!(table.deliver(VECTOR), None);
        assert_eq!(table.stray(), 1);
        let next = table.register(VECTOR, Route::ParentEvent(3)).unwrap();
        assert_eq!(table.delivered(&next), 0, "counts start anew");
        assert_eq!(table.deliver(VECTOR), Some(Route::ParentEvent(3)));
    }

    #[test]
    fn the_same_vector_on_two_processors_is_two() {
        let table = RouteTable::new([0, 1], 0x41..0x42);
        let on = |cpu| HostVector { vector: 0x41, cpu };
        let _zero = table.register(on(0), ROUTE).unwrap();
        let _one = table.register(on(1), Route::ParentEvent(0)).unwrap();
        assert!(table.register(on(1), ROUTE).is_err(), "in use");
        assert!(table.register(on(2), ROUTE).is_err(), "no such processor");
        for vector in [0, 0x40, 0x42, u32::MAX] {
            let beside = HostVector { vector, cpu: 0 };
            assert!(table.register(beside, ROUTE).is_err(), "not of devices");
            assert_eq!((table.deliver(beside), table.peek(beside)), (None, None));
        }
        assert_eq!(table.deliver(on(0)), Some(ROUTE));
        assert_eq!(table.deliver(on(1)), Some(Route::ParentEvent(0)));
        assert_eq!(table.deliver(on(2)), None);
    }

    /// A vector that changes hands, while its interrupt comes: whoever gets it finds what its owner had done before, and
    /// nobody gets it after the end.
    #[test]
    fn an_interrupt_finds_its_owner_in_every_order() {
        const OTHER: Route = Route::ParentEvent(3);
        explore(|| {
            let table = Arc::new(RouteTable::new([VECTOR.cpu], VECTOR.vector..VECTOR.vector + 1));
            let ready = Arc::new(AtomicU64::default());
            let own = |route: Route| {
                let (table, ready) = (table.clone(), ready.clone());
                loom::thread::spawn(move || {
                    let bit = if route == ROUTE { 1 } else { 2 };
                    ready.fetch_add(bit, Ordering::Relaxed);
                    let handle = table.register(VECTOR, route).ok()?;
                    assert_eq!(handle.route(), route);
                    table.unregister(handle);
                    Some(())
                })
            };
            let owners = [own(ROUTE), own(OTHER)];
            let came = table.deliver(VECTOR);
            match came {
                Some(ROUTE) => assert_ne!(ready.load(Ordering::Relaxed) & 1, 0, "before it was ready"),
                Some(OTHER) => assert_ne!(ready.load(Ordering::Relaxed) & 2, 0, "before it was ready"),
                Some(route) => panic!("{route:?} is nobody's"),
                None => assert_eq!(table.stray(), 1),
            }
            let got = owners.map(|owner| owner.join().unwrap().is_some());
            assert_ne!(got, [false, false], "it was free, and neither got it");
            assert_eq!((table.deliver(VECTOR), table.peek(VECTOR)), (None, None));
            assert_eq!(table.stray(), 1 + u64::from(came.is_none()));
        });
    }

    /// Both ask at once, and keep it: one has it.
    #[test]
    fn a_vector_has_one_owner_in_every_order() {
        explore(|| {
            let table = Arc::new(RouteTable::new([VECTOR.cpu], VECTOR.vector..VECTOR.vector + 1));
            let other = table.clone();
            let other = loom::thread::spawn(move || other.register(VECTOR, Route::ParentEvent(3)).is_ok());
            let own = table.register(VECTOR, ROUTE).is_ok();
            let other = other.join().unwrap();
            assert!(own != other, "{own} and {other}");
            let expected = if own { ROUTE } else { Route::ParentEvent(3) };
            assert_eq!(table.deliver(VECTOR), Some(expected));
        });
    }

    proptest! {
        #[test]
        fn routes_survive_their_encoding(vm: u16, vdev: u32, vector in 0u16..2048, parent: u16) {
            for route in [
                Route::Vdev { vm: VmId(vm), vdev: VdevId(vdev), vector },
                Route::ParentEvent(parent),
            ] {
                prop_assert_ne!(route.encode(), 0);
                prop_assert_eq!(Route::decode(route.encode()), Some(route));
            }
        }
    }
}
