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
    /// How often each pCPU has gone round its loop.
    rounds: [AtomicU64; MAX_PCPUS],
}

impl Notes {
    /// Device interrupts that may wait on one pCPU: one for each vector, as the same twice is one. No pCPU may be given
    /// more vectors.
    pub const ON_ONE_PCPU: usize = 256;

    /// None yet.
    pub const fn new() -> Self {
        Self {
            routes: [const { Mutex::new(ArrayVec::new_const()) }; MAX_PCPUS],
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
