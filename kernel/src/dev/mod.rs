// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device models that do not depend on an architecture.
//!
//! **Principle.** A model is a value with methods: an access or an event goes in, an answer and
//! [`Action`](crate::vm::exit::Action)s come out. It has no lock, no time and no memory of the guest unless
//! it is handed one, so that everything a guest can do to it is a function call in a test.

pub mod bus;
pub mod i8254;
pub mod mc146818;
pub mod pci;
pub mod pl011;
pub mod pl031;
pub mod uart16550;

/// What comes in on a serial line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// A byte.
    Byte(u8),
    /// A BREAK: the line was held for longer than a byte takes.
    Break,
    /// Something that is not known: a byte with an error, or bytes that came too fast for the receiver.
    Damaged,
}
