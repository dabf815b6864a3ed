// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known of commands without looking at the device: which one it executes, who waits behind it, and ends that
//! nobody has taken yet. It is moved on in `dispatch`.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use pasidon_kernel::vm::exit::MsiMessage;

use super::commands::{Command, CommandFailure};

/// Who waits for a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiter {
    /// Who has that queue.
    Queue(u8),
    /// Who has that share of a queue.
    Share(u16),
}

/// A command that somebody waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Job {
    pub waiter: Waiter,
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
    /// One for each who waits.
    pub waiting: VecDeque<Job>,
    /// Ends that nobody has taken yet, one of each waiter at most.
    ended: Vec<(Waiter, Command, End)>,
}

/// Where somebody's last command is.
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
    pub fn new(interrupt_entries: u16) -> Self {
        Self {
            messages: alloc::vec![None; usize::from(interrupt_entries)],
            active: None,
            waiting: VecDeque::new(),
            ended: Vec::new(),
        }
    }

    /// The device was reset: it has forgotten every command.
    pub fn clear(&mut self) {
        self.active = None;
        self.waiting.clear();
        self.ended.clear();
    }

    /// The device has ended that job's command.
    pub fn note_end(&mut self, job: Job, end: End) {
        self.take_end(job.waiter);
        self.ended.push((job.waiter, job.command, end));
    }

    /// How somebody's command ended, where nobody has taken that yet.
    pub fn take_end(&mut self, waiter: Waiter) -> Option<(Command, End)> {
        let place = self.ended.iter().position(|(other, ..)| *other == waiter)?;
        let (_, command, end) = self.ended.swap_remove(place);
        Some((command, end))
    }

    /// Whether anything waits for the device.
    pub fn is_busy(&self) -> bool {
        self.active.is_some() || !self.waiting.is_empty()
    }

    /// Where somebody's command is in line.
    pub fn line_of(&self, waiter: Waiter) -> Option<Progress> {
        let waiting = self.waiting.iter().find(|job| job.waiter == waiter);
        let active = self.active.iter().find(|job| job.waiter == waiter);
        waiting
            .map(|job| Progress::Waiting(job.command, job.since_ns))
            .or_else(|| active.map(|job| Progress::Active(job.command, job.since_ns)))
    }
}
