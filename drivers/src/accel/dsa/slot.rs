// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known of commands without looking at the device: which one it executes, who waits behind it, and ends that
//! nobody has taken yet. It is moved on in `dispatch`.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use pasidon_kernel::vm::exit::MsiMessage;

use super::commands::{Command, CommandFailure};

/// A command that a queue waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Job {
    pub wq: u8,
    pub command: Command,
    pub since_ns: u64,
}

/// How a command ended.
type End = Result<(), CommandFailure>;

/// What only the holder of an access may use.
pub(super) struct Slot {
    /// What each MSI-X entry was programmed with, for the time after a reset.
    pub messages: Vec<Option<MsiMessage>>,
    /// What the device executes, and since when.
    pub active: Option<Job>,
    /// One for each queue at most.
    pub waiting: VecDeque<Job>,
    /// By queue: ends that nobody has taken yet.
    pub ended: Vec<Option<(Command, End)>>,
}

/// Where the last command on a queue is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// There is none.
    Idle,
    /// It waits for its turn, since that time.
    Waiting(Command, u64),
    /// The device executes it, since that time.
    Active(Command, u64),
    /// It has ended. Told once.
    Ended(Command, End),
    /// The device is being reset: what was in line is lost.
    Lost,
}

impl Slot {
    /// Nothing in line.
    pub fn new(queues: usize, msix_entries: u16) -> Self {
        Self {
            messages: alloc::vec![None; usize::from(msix_entries)],
            active: None,
            waiting: VecDeque::new(),
            ended: alloc::vec![None; queues],
        }
    }

    /// The device was reset: it has forgotten every command.
    pub fn clear(&mut self) {
        self.active = None;
        self.waiting.clear();
        self.ended.fill(None);
    }

    /// Whether anything waits for the device.
    pub fn is_busy(&self) -> bool {
        self.active.is_some() || !self.waiting.is_empty()
    }

    /// Where a queue's command is in line.
    pub fn line_of(&self, wq: u8) -> Option<Progress> {
        let waiting = self.waiting.iter().find(|job| job.wq == wq);
        let active = self.active.iter().find(|job| job.wq == wq);
        waiting
            .map(|job| Progress::Waiting(job.command, job.since_ns))
            .or_else(|| active.map(|job| Progress::Active(job.command, job.since_ns)))
    }
}
