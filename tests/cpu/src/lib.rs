// SPDX-License-Identifier: MIT OR Apache-2.0
//! A processor that others have written, as the judge of code that needs one: Bochs's, as a library in a test.
//!
//! **Principle.** Code of the test runs on it at privilege level 0, in the test's own memory: a physical address is a
//! pointer. So control blocks, nested tables and guests are values that the test makes and looks into.
//! **Strict.** What a processor may cache it caches for ever: guest-physical translations stay until INVEPT or VMRUN's
//! TLB_CONTROL asks for them. An access where the test has no memory, an exception, or code that does not come to its
//! end ends the run, and the test is told where.
//! **Invariant.** There is one processor at a time: whoever wants a second one waits for the first to be dropped.
//!
//! Code on the processor may do what code of a test does, but for threads: system calls are carried out, and a panic
//! comes out of [`Processor::run`].

mod entry;
mod library;
mod memory;
mod model;
mod processor;
mod stop;
mod tables;

pub use memory::Pages;
pub use model::Model;
pub use processor::{Access, Processor};
pub use stop::{Cause, Stop};
