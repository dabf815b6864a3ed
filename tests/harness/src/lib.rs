// SPDX-License-Identifier: MIT OR Apache-2.0
//! Serial-console harness: starts the platform, splits its serial line into one stream per guest, runs scenarios.
//!
//! Principle: everything a test knows about the machine it knows through the serial line, as a user would, and
//! through QMP where the machine itself has to be changed. Every wait is for a condition and has a time-out; a
//! time-out shows the whole transcript of every stream. Several streams share the line as
//! [`pasidon_kernel::console::framing`] says.
//!
//! | module | subject |
//! |---|---|
//! | [`arch`] | the processor architectures |
//! | [`cpu`] | whose processors run the instructions |
//! | [`transcript`] | what came in on each stream, and waiting for it |
//! | [`platform`] | the machine as a QEMU command line |
//! | [`mod@line`] | this end of a serial line: consoles, and the monitor's answers |
//! | [`machine`] | a running machine: consoles, monitor, log |
//! | [`qmp`] | changing the machine from outside |
//! | [`image`] | the boot disk |
//! | [`workshop`] | where a scenario gets its files from |
//! | [`demonstration`] | all guests' copies at once |
//! | [`scenario`] | what a scenario is, and running a list of them |
//! | [`scenarios`] | the scenarios |
//! | [`mod@bench`] | the benchmarks |
#![forbid(unsafe_code)]

pub mod arch;
pub mod bench;
pub mod cpu;
pub mod demonstration;
pub mod image;
pub mod line;
pub mod machine;
pub mod platform;
pub mod qmp;
pub mod scenario;
pub mod scenarios;
pub mod transcript;
pub mod workshop;

pub use arch::Arch;
pub use cpu::Cpu;
pub use line::{Console, Line};
pub use machine::Machine;
pub use platform::{Engine, Platform, Qemu};
pub use workshop::{Application, Linux, Workshop};
