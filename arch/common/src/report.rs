// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end: what is said when the hypervisor itself fails, and how all pCPUs come to stand still.
//!
//! **Principle.** The first pCPU that comes here stops the others and reports alone: cause, registers,
//! backtrace, where the others were, and what others add ([`Report::add_context`]).
//! **Invariants.** Nothing here takes a lock or allocates. A fault while reporting costs the rest of the
//! report: one line, and the processor halts.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use pasidon_kernel::console::framing::SELECT_MONITOR;

use crate::backtrace::{self, StackRanges, Unwind};
use crate::pcpus::MAX_PCPUS;
use crate::symbols::Place;

/// How long the others get to stop, in nanoseconds. Simulated ones may have to wait for their turn.
const STOP_NS: u64 = 1_000_000_000;
/// How many functions can add to the report.
const CONTEXTS: usize = 8;

/// What the architecture gives. None of these may lock, allocate or panic.
pub struct Hooks {
    /// Writes to the serial line, without its lock.
    pub write: fn(&[u8]),
    /// How many pCPUs there are.
    pub pcpus: fn() -> usize,
    /// Tells all other pCPUs to stop; each comes to [`Report::begin`] then.
    pub stop_others: fn(),
    /// Waits until the function says so, so many nanoseconds at most; says whether it did.
    pub spin_until: fn(u64, &dyn Fn() -> bool) -> bool,
    /// Stops this processor for good.
    pub halt: fn() -> !,
}

/// Adds lines to the report, each ended by a newline. It must neither lock nor allocate, and may be called
/// at any time.
pub type Context = fn(&mut dyn Write);

/// The one report of a machine.
pub struct Report {
    hooks: Hooks,
    /// The pCPU that reports, its index plus one; 0 while all is well.
    reporter: AtomicU64,
    /// How often the reporter faulted while reporting.
    nested: AtomicUsize,
    /// Where each other pCPU was when it was stopped; 0 while it runs.
    stopped: [AtomicU64; MAX_PCPUS],
    contexts: [AtomicPtr<()>; CONTEXTS],
}

/// The serial line, without its lock.
struct Line<'a>(&'a Hooks);

impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Self(hooks) = self;
        for byte in text.bytes() {
            if byte == b'\n' {
                (hooks.write)(b"\r");
            }
            (hooks.write)(&[byte]);
        }
        Ok(())
    }
}

impl Report {
    /// Nothing has happened yet.
    pub const fn new(hooks: Hooks) -> Self {
        Self {
            hooks,
            reporter: AtomicU64::new(0),
            nested: AtomicUsize::new(0),
            stopped: [const { AtomicU64::new(0) }; MAX_PCPUS],
            contexts: [const { AtomicPtr::new(core::ptr::null_mut()) }; CONTEXTS],
        }
    }

    /// Adds what `context` prints. There is room for a few; says whether there was some left.
    pub fn add_context(&self, context: Context) -> bool {
        self.contexts.iter().any(|place| {
            let empty = core::ptr::null_mut();
            place.compare_exchange(empty, context as *mut (), Ordering::AcqRel, Ordering::Acquire).is_ok()
        })
    }

    /// Whether a pCPU reports already.
    pub fn is_begun(&self) -> bool {
        self.reporter.load(Ordering::Acquire) != 0
    }

    /// Comes back on the first pCPU to fail only, and only once: all others are stopped then.
    pub fn begin(&self, index: u32, pc: u64, what: fmt::Arguments<'_>) {
        let claim =
            self.reporter.compare_exchange(0, u64::from(index) + 1, Ordering::AcqRel, Ordering::Acquire);
        match claim {
            Ok(_) => {}
            Err(reporter) if reporter == u64::from(index) + 1 => {
                if self.nested.fetch_add(1, Ordering::Relaxed) == 0 {
                    let place = Place { address: pc, behind_call: false };
                    // The sink cannot fail.
                    let _ = writeln!(self.line(), "\nPasidon: {what} at {place} while reporting; halted");
                }
                (self.hooks.halt)()
            }
            Err(_) => {
                self.stopped[index as usize].store(pc.max(1), Ordering::Release);
                (self.hooks.halt)()
            }
        }
        if (self.hooks.pcpus)() > 1 {
            (self.hooks.stop_others)();
            // Who did not stop is named at the end.
            let _ = (self.hooks.spin_until)(STOP_NS, &|| self.others(index).all(|(_, pc)| pc != 0));
        }
        (self.hooks.write)(b"\r\n");
        (self.hooks.write)(&SELECT_MONITOR);
    }

    /// Where the report goes. It cannot fail.
    pub fn line(&self) -> impl Write {
        Line(&self.hooks)
    }

    /// All pCPUs but `index`, with where they stopped.
    fn others(&self, index: u32) -> impl Iterator<Item = (u32, u64)> {
        (0..(self.hooks.pcpus)() as u32).filter(move |other| *other != index).filter_map(|other| {
            let stopped = self.stopped.get(other as usize)?;
            Some((other, stopped.load(Ordering::Acquire)))
        })
    }

    /// Everything behind cause and registers.
    pub fn finish<U: Unwind>(
        &self,
        index: u32,
        image: Option<&U>,
        registers: &U::Registers,
        stacks: &StackRanges,
    ) -> ! {
        let mut line = self.line();
        match image {
            Some(image) => {
                let _ = writeln!(line, "backtrace, image at {:#x}:", image.parts().base());
                let _ = backtrace::print(&mut line, image, registers, stacks);
            }
            None => {
                let _ = writeln!(line, "no backtrace: nobody said where the image is");
            }
        }
        for (other, pc) in self.others(index) {
            let place = Place { address: pc, behind_call: false };
            let _ = match pc {
                0 => writeln!(line, "pCPU {other} does not stop"),
                _ => writeln!(line, "pCPU {other} stopped at {place}"),
            };
        }
        for context in &self.contexts {
            let context = context.load(Ordering::Acquire);
            if !context.is_null() {
                // SAFETY: only `add_context` stores here, and only a `Context`.
                let context: Context = unsafe { core::mem::transmute::<*mut (), Context>(context) };
                context(&mut line);
            }
        }
        let _ = writeln!(line, "Pasidon stands still until the machine is reset");
        (self.hooks.halt)()
    }
}

/// Prints registers by their names, so many to a line.
///
/// # Errors
/// When `out` cannot be written to.
pub fn print_registers(out: &mut dyn Write, names: &[&str], values: &[u64]) -> fmt::Result {
    const PER_LINE: usize = 4;
    for (names, values) in names.chunks(PER_LINE).zip(values.chunks(PER_LINE)) {
        for (name, value) in names.iter().zip(values) {
            write!(out, "  {name:3} {value:016x}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    static REPORT: Report = Report::new(Hooks {
        write: |_| {},
        pcpus: || 1,
        stop_others: || panic!("there are no others"),
        spin_until: |_, _| panic!("there are no others"),
        halt: || panic!("halted"),
    });

    #[test]
    fn there_is_room_for_some_contexts() {
        fn context(out: &mut dyn Write) {
            let _ = out.write_str("x");
        }
        for _ in 0..CONTEXTS {
            assert!(REPORT.add_context(context));
        }
        assert!(!REPORT.add_context(context));
    }

    #[test]
    fn only_the_first_one_reports_and_only_once() {
        let report = Report::new(Hooks {
            write: |_| {},
            pcpus: || 1,
            stop_others: || {},
            spin_until: |_, _| true,
            halt: || panic!("halted"),
        });
        assert!(!report.is_begun());
        report.begin(0, 0x1000, format_args!("a test"));
        assert!(report.is_begun());
        let again = std::panic::AssertUnwindSafe(|| report.begin(0, 0x1000, format_args!("again")));
        assert!(std::panic::catch_unwind(again).is_err());
        assert_eq!(report.nested.load(Ordering::Relaxed), 1);
        let other = std::panic::AssertUnwindSafe(|| report.begin(2, 0x2000, format_args!("another")));
        assert!(std::panic::catch_unwind(other).is_err());
        assert_eq!(report.stopped[2].load(Ordering::Relaxed), 0x2000);
    }
}
