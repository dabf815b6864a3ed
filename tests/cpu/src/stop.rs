// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a run ended before the code did.

use std::fmt;

use crate::library::RawStop;

/// Why, and where. As text it is all of it, in one line, so that a test can simply unwrap.
#[derive(Clone, PartialEq, Eq)]
pub struct Stop {
    /// What happened.
    pub cause: Cause,
    /// The instruction, of the host or of a guest.
    pub rip: u64,
    /// What Bochs said last about an error.
    pub said: Option<String>,
}

/// What ended a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// It did not come to its end within the instructions that it was given.
    Limit,
    /// An exception, with its vector and error code.
    Exception(u8, u64),
    /// A read, a write or an instruction fetch where this process has no such memory.
    NoMemory(&'static str, u64),
    /// A triple fault, outside of a guest.
    Shutdown,
    /// Bochs cannot do what was asked for.
    Bochs,
    /// The last run did not come to its end, and so the processor is in the middle of something.
    Unfinished,
}

impl Stop {
    /// From what the library tells; `None` when the code came to its end.
    pub(crate) fn new(raw: &RawStop, said: Option<String>) -> Option<Stop> {
        let cause = match raw.why {
            0 => return None,
            1 => Cause::Limit,
            2 => Cause::Exception(raw.what as u8, raw.more),
            3 => Cause::NoMemory(["read", "write", "fetch"][(raw.more as usize).min(2)], raw.what),
            4 => Cause::Shutdown,
            _ => Cause::Bochs,
        };
        Some(Stop { cause, rip: raw.rip, said })
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Limit => write!(f, "it does not come to an end"),
            Cause::Exception(vector, code) => write!(f, "exception {vector} with error code {code:#x}"),
            Cause::NoMemory(access, address) => {
                write!(f, "{access} at {address:#x}, where there is no memory")
            }
            Cause::Shutdown => write!(f, "triple fault"),
            Cause::Bochs => write!(f, "Bochs gave up"),
            Cause::Unfinished => {
                write!(f, "the processor's last run did not come to its end; make a new one")
            }
        }?;
        write!(f, " at RIP {:#x}", self.rip)?;
        if let Some(offset) = offset_in_image(self.rip) {
            write!(f, " (addr2line -fie {} {offset:#x})", image())?;
        }
        match &self.said {
            Some(said) => write!(f, "; Bochs said last: {said}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Stop {}

fn image() -> String {
    std::env::current_exe().map_or_else(|_| "the test".to_owned(), |path| path.display().to_string())
}

/// What `addr2line` wants for an address in this program: that of the file, which is linked to begin at zero.
fn offset_in_image(address: u64) -> Option<u64> {
    let (maps, image) = (std::fs::read_to_string("/proc/self/maps").ok()?, image());
    let mut lines = maps.lines().filter(|line| line.ends_with(&image)).filter_map(|line| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
    });
    let first = lines.next()?;
    let within = first.contains(&address) || lines.any(|range| range.contains(&address));
    within.then(|| address - first.start)
}
