// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts of a vdev that come while its owner is away.
//!
//! **Principle.** An interrupt in another guest's turn takes of that guest's time. A few belong to sharing a pCPU; a
//! storm does not. So a vdev has an allowance for each turn of others. When it is used up, its entries in the device's
//! MSI-X table are masked: the device keeps a message of each pending, and sends it when the entry is unmasked, at
//! the owner's next turn. What the allowance let through is accounted to the owner. Below it, nothing is written.
//!
//! **Invariant.** An entry is masked here only while the gate says that it is closed, and after its end the device's
//! entries are not touched: they may be another's.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use crate::monitor::info::AwayInfo;
use crate::vdev::parent::Parent;

/// Interrupts of one vdev that reach a pCPU in one turn of another VM.
pub const ALLOWANCE: u32 = 32;

#[derive(Debug)]
struct State {
    /// MSI-X entries of the device.
    entries: Vec<u16>,
    /// The turn in which `came` were counted.
    turn: u64,
    came: u32,
    closed: bool,
}

/// Counts what came while the owner was away.
#[derive(Debug, Default)]
pub struct Away {
    interrupts: AtomicU64,
    time_ns: AtomicU64,
    masked: AtomicU64,
}

impl Away {
    pub(crate) fn count(&self, time_ns: u64, closed: bool) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        self.time_ns.fetch_add(time_ns, Ordering::Relaxed);
        self.masked.fetch_add(u64::from(closed), Ordering::Relaxed);
    }

    pub(crate) fn info(&self) -> AwayInfo {
        AwayInfo {
            interrupts: self.interrupts.load(Ordering::Relaxed),
            time_ns: self.time_ns.load(Ordering::Relaxed),
            masked: self.masked.load(Ordering::Relaxed),
        }
    }
}

/// Whether interrupts of one vdev come.
#[derive(Debug)]
pub(crate) struct Gate {
    /// `None` after the end.
    state: Mutex<Option<State>>,
    pub(crate) away: Away,
}

/// What became of an interrupt that came while the owner was away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Came {
    /// It is within the allowance.
    Allowed,
    /// With it the allowance was used up: the gate is closed now.
    Closed,
    /// The gate is closed already, or the device could not be told to hold it back.
    Late,
}

impl Gate {
    /// An open one.
    pub(crate) fn new(entries: Vec<u16>) -> Self {
        Self {
            state: Mutex::new(Some(State { entries, turn: 0, came: 0, closed: false })),
            away: Away::default(),
        }
    }

    /// An interrupt came in turn `turn` of another VM, and took `time_ns`.
    pub(crate) fn came(&self, parent: &dyn Parent, turn: u64, time_ns: u64) -> Came {
        let came = self.take(parent, turn);
        self.away.count(time_ns, came == Came::Closed);
        came
    }

    fn take(&self, parent: &dyn Parent, turn: u64) -> Came {
        let mut state = self.state.lock();
        let Some(state) = state.as_mut() else {
            return Came::Late;
        };
        if state.turn != turn {
            state.turn = turn;
            state.came = 0;
        }
        state.came = state.came.saturating_add(1);
        if state.came <= ALLOWANCE {
            return if state.closed { Came::Late } else { Came::Allowed };
        }
        // Also where it is closed: a reset of the device unmasks what is programmed.
        state.came = 0;
        let before = state.closed;
        for entry in &state.entries {
            state.closed |= parent.hold_interrupt(*entry, true);
        }
        match state.closed && !before {
            true => Came::Closed,
            false => Came::Late,
        }
    }

    /// Lets them come again. Whether all do.
    pub(crate) fn open(&self, parent: &dyn Parent) -> bool {
        let mut state = self.state.lock();
        let Some(state) = state.as_mut().filter(|state| state.closed) else {
            return true;
        };
        let mut all = true;
        for entry in &state.entries {
            all &= parent.hold_interrupt(*entry, false);
        }
        state.closed = !all;
        state.came = 0;
        all
    }

    /// From here on the device's entries are left alone. What it kept pending is let out first, while the way still
    /// leads to this vdev: else the next owner of the entry would get it. The queue has stopped.
    pub(crate) fn end(&self, parent: &dyn Parent) {
        self.open(parent);
        *self.state.lock() = None;
    }
}
