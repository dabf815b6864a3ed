// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM as its vCPU sees it.
//!
//! **Principle.** What answers exits gets memory, devices and a way to say what came of it; who schedules, wakes and
//! ends is not its business. So exits can be answered wherever these three are, also in a test.

use core::fmt;

use pasidon_kernel::vm::VmEnd;
use pasidon_kernel::vm::exit::Action;
use spin::Mutex;

use crate::board::Board;
use crate::memory::RamView;

/// What takes what comes of an exit.
pub trait Sink {
    /// Carries out what a device model asks for. May be called with the board locked.
    fn act(&self, action: Action);

    /// The VM's life is over.
    fn end(&self, end: VmEnd);
}

/// A VM as its vCPU sees it.
#[derive(Clone, Copy)]
pub struct VmView<'a, P> {
    /// Its name.
    pub name: &'a str,
    /// Its RAM.
    pub memory: &'a RamView,
    /// Its devices; taken for one access.
    pub board: &'a Mutex<Board<P>>,
    /// Where it goes on.
    pub sink: &'a dyn Sink,
}

impl<P> fmt::Debug for VmView<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmView").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<P> VmView<'_, P> {
    /// [`Sink::act`].
    pub fn act(&self, action: Action) {
        self.sink.act(action);
    }

    /// [`Sink::end`].
    pub fn end(&self, end: VmEnd) {
        self.sink.end(end);
    }
}
