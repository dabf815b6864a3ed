// SPDX-License-Identifier: MIT OR Apache-2.0
//! What interrupt handlers leave for the loop of their pCPU.
//!
//! **Invariant.** A note stays until the loop has acted on it. The same note twice is one.

use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use pasidon_kernel::irq::Route;
use spin::Mutex;

use crate::pcpus::MAX_PCPUS;

/// What handlers leave on each pCPU.
#[derive(Debug)]
pub struct Notes {
    /// Device interrupts that came. Only that pCPU touches its own.
    routes: [Mutex<ArrayVec<Route, { Notes::ON_ONE_PCPU }>>; MAX_PCPUS],
    /// Parents whose event interrupt came, a bit each.
    parents: AtomicU64,
    /// How often each pCPU has gone round its loop.
    rounds: [AtomicU64; MAX_PCPUS],
}

const _: () = assert!(Route::PARENTS as u32 == u64::BITS);

impl Notes {
    /// Device interrupts that may wait on one pCPU: one for each vector, as the same twice is one. No pCPU may be given
    /// more vectors.
    pub const ON_ONE_PCPU: usize = 256;

    /// None yet.
    pub const fn new() -> Self {
        Self {
            routes: [const { Mutex::new(ArrayVec::new_const()) }; MAX_PCPUS],
            parents: AtomicU64::new(0),
            rounds: [const { AtomicU64::new(0) }; MAX_PCPUS],
        }
    }

    /// Leaves a route on a pCPU; to be called there.
    pub fn leave(&self, pcpu: u32, route: Route) {
        if let Some(notes) = self.routes.get(pcpu as usize) {
            let mut notes = notes.lock();
            if !notes.contains(&route) {
                // There are no more routes to a pCPU than it has vectors.
                let _ = notes.try_push(route);
            }
        }
    }

    /// Takes the oldest one that was left on a pCPU.
    pub fn take(&self, pcpu: u32) -> Option<Route> {
        self.routes.get(pcpu as usize)?.lock().pop_at(0)
    }

    /// How many wait on a pCPU.
    pub fn waiting(&self, pcpu: u32) -> usize {
        self.routes.get(pcpu as usize).map_or(0, |notes| notes.lock().len())
    }

    /// A parent may have events: its interrupt came, or not all were taken.
    pub fn leave_parent(&self, parent: u16) {
        self.parents.fetch_or(1 << (parent % Route::PARENTS), Ordering::SeqCst);
    }

    /// Parents that were left since the last call.
    pub fn take_parents(&self) -> impl Iterator<Item = u16> + use<> {
        let bits = self.parents.swap(0, Ordering::SeqCst);
        (0..Route::PARENTS).filter(move |bit| bits & 1 << bit != 0)
    }

    /// Whether there are any.
    pub fn has_parents(&self) -> bool {
        self.parents.load(Ordering::SeqCst) != 0
    }

    /// How often the pCPU has gone round its loop: after two more rounds, every interrupt that it had accepted before
    /// has been handled.
    pub fn rounds(&self, pcpu: u32) -> u64 {
        self.rounds.get(pcpu as usize).map_or(0, |rounds| rounds.load(Ordering::SeqCst))
    }

    pub(crate) fn count_round(&self, pcpu: u32) {
        if let Some(rounds) = self.rounds.get(pcpu as usize) {
            rounds.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Default for Notes {
    fn default() -> Self {
        Self::new()
    }
}
