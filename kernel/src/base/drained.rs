// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a source was left that announces itself by an edge.
//!
//! **Principle.** Hardware that raises an interrupt only when it goes from empty to not empty announces nothing
//! more until it was seen empty. Whoever reads such a source says how it was left, and whoever asked for the
//! reading looks again where it was not proven empty. A reader may so take a bounded part of a flood without
//! going deaf.

/// How a source was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a source that may hold more announces nothing: look at it again"]
pub enum Drained {
    /// The hardware said that nothing is left: what comes next is announced.
    Empty,
    /// Something may be left, unannounced: to be looked at again, soon.
    Again,
}

impl Drained {
    /// Of two sources that are announced together: whether one of them is to be looked at again.
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Empty, Self::Empty) => Self::Empty,
            _ => Self::Again,
        }
    }
}
