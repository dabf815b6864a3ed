// SPDX-License-Identifier: MIT OR Apache-2.0
//! A refusal: one line that says what was refused, why, and what would help (promise 7 of `docs/src/security.md`).

use alloc::string::String;
use core::fmt;

/// Why a request was refused. Printed as `what: why; remedy`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The thing asked for, outermost first: `vm beta: vdev dsa0/dsa-dwq`.
    pub what: String,
    /// The reason, in words of the specification or the configuration.
    pub why: String,
    /// What the reader can do about it. Empty only where nothing helps.
    pub remedy: String,
}

impl Refusal {
    /// From its three parts.
    pub fn new(what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into(), remedy: remedy.into() }
    }

    /// The same refusal seen from one level further out: `outer: what`.
    pub fn within(mut self, outer: impl fmt::Display) -> Self {
        self.what = if self.what.is_empty() {
            alloc::format!("{outer}")
        } else {
            alloc::format!("{outer}: {}", self.what)
        };
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl core::error::Error for Refusal {}
