// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way to the end: from an exception in the hypervisor, or a panic, to the [`report`](crate::report) of it.
//!
//! **Principle.** What is told, and in which order, is the same on all processors: cause, registers, backtrace. A
//! [`Processor`] says what its registers are called and where they are.
//! **Invariants.** Nothing here takes a lock or allocates. Memory is read only where it is known to be: the
//! image's read-only parts, and the stacks of the pCPU that fails.

use core::fmt::{self, Display, Write};
use core::panic::PanicInfo;

use arrayvec::ArrayVec;
use spin::Once;

use crate::backtrace::{Frame, StackRanges, Unwind};
use crate::denial::Target;
use crate::image::{Parts, Section};
use crate::report::{Context, Hooks, Report};
use crate::stack::Stack;

/// How many sections are looked at.
const SECTIONS: usize = 16;

/// The registers of a frame on a processor.
type Registers<P> = <<P as Processor>::Image as Unwind>::Registers;

/// What a processor brings. Nothing of it may lock, allocate or panic.
pub trait Processor {
    /// How frames are left.
    type Image: Unwind + From<Parts<'static>> + 'static;
    /// How the report is written, and how the others are stopped.
    const HOOKS: Hooks;

    /// Number and stacks of the pCPU that runs this, if it has some yet. Found without the register that holds its
    /// address, which may be what is wrong.
    fn current() -> Option<(u32, impl Iterator<Item = Stack> + Clone)>;

    /// Whether an address may be read, before there are pCPUs.
    fn is_readable(address: u64) -> bool;

    /// Prints those registers, and the ones that matter after any fault.
    ///
    /// # Errors
    /// When `out` cannot be written to.
    fn print(registers: &Registers<Self>, out: &mut dyn Write) -> fmt::Result;
}

/// The loaded image, and its sections' bounds.
struct Loaded<I> {
    image: I,
    /// The first one with an address in it counts: the last is the whole image.
    sections: ArrayVec<Section, SECTIONS>,
}

/// An exception.
pub struct Exception<'a, R> {
    /// What it is called.
    pub name: &'static str,
    /// The registers where it came.
    pub registers: &'a R,
    /// What was accessed, if it came of that.
    pub address: u64,
    /// What else the processor said about it.
    pub syndrome: fmt::Arguments<'a>,
}

/// The failures of a machine's hypervisor, of which the first is the last.
pub struct Faults<P: Processor> {
    report: Report,
    loaded: Once<Loaded<P::Image>>,
}

impl<P: Processor> Faults<P> {
    /// Nothing has happened yet.
    pub const fn new() -> Self {
        Self { report: Report::new(P::HOOKS), loaded: Once::new() }
    }

    /// Where the image was loaded, how many bytes it has, and its sections, as
    /// [`crate::image::sections_of_image`] gives them; for backtraces. Once.
    ///
    /// # Safety
    /// The image must be there, for ever, and nothing written to those sections that say so.
    pub unsafe fn install(&self, base: u64, size: u64, sections: &[Section]) {
        self.loaded.call_once(|| Loaded {
            // SAFETY: by the caller's promise.
            image: unsafe { Parts::of_image(base, size, sections) }.into(),
            sections: sections.iter().rev().take(SECTIONS).copied().collect(),
        });
    }

    /// Adds what `context` prints to the report. There is room for a few; says whether there was some left.
    pub fn add_context(&self, context: Context) -> bool {
        self.report.add_context(context)
    }

    /// Ends this pCPU, which was at `pc`; if because another one failed, then that is told.
    pub fn stop(&self, pc: u64) -> ! {
        if self.report.is_begun() {
            self.report.begin(index::<P>(), pc, format_args!("stop"));
        }
        (P::HOOKS.halt)()
    }

    /// Ends the hypervisor after an exception in it. `cause` is told what lies at the address that was accessed.
    pub fn exception<C: Display>(
        &self,
        exception: &Exception<'_, Registers<P>>,
        cause: impl FnOnce(Target) -> C,
    ) -> ! {
        let Exception { name, registers, address, syndrome } = exception;
        let index = index::<P>();
        self.report.begin(index, registers.pc(), format_args!("{name}"));
        let stacks = P::current().into_iter().flat_map(|(_, stacks)| stacks);
        let sections = self.loaded.get().into_iter().flat_map(|loaded| &loaded.sections);
        let cause = cause(Target::of(*address, stacks, sections));
        let mut line = self.report.line();
        // The sink cannot fail, here and below.
        let _ = writeln!(line, "Pasidon stops on pCPU {index}: {cause}");
        let _ = P::print(registers, &mut line);
        let _ = writeln!(line, "  {syndrome}");
        self.finish(index, registers)
    }

    /// Ends the hypervisor after a panic, with interrupts off. `registers`: those of the function that calls this.
    pub fn panic(&self, info: &PanicInfo<'_>, registers: &Registers<P>) -> ! {
        let index = index::<P>();
        self.report.begin(index, registers.pc(), format_args!("panic ({})", info.message()));
        let mut line = self.report.line();
        let _ = write!(line, "Pasidon stops on pCPU {index}: panic");
        if let Some(location) = info.location() {
            let _ = write!(line, " at {location}");
        }
        let _ = writeln!(line, ": {}", info.message());
        let _ = P::print(registers, &mut line);
        self.finish(index, registers)
    }

    /// Everything behind cause and registers.
    fn finish(&self, index: u32, registers: &Registers<P>) -> ! {
        let stacks = match P::current() {
            Some((_, stacks)) => StackRanges::of(stacks),
            None => StackRanges::from(registers.sp(), P::is_readable),
        };
        self.report.finish(index, self.loaded.get().map(|loaded| &loaded.image), registers, &stacks)
    }
}

impl<P: Processor> Default for Faults<P> {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of the pCPU that runs this: before there are any, that of the one that booted.
fn index<P: Processor>() -> u32 {
    P::current().map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backtrace::{Position, ReadStack, Stop};
    use crate::image::Kind;
    use std::cell::{Cell, RefCell};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::string::String;

    const BASE: u64 = 0x10_0000;
    const STACK: Stack = Stack { bottom: 0x9000, top: 0xd000 };

    std::thread_local! {
        static SAID: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        static STARTED: Cell<bool> = const { Cell::new(true) };
    }

    /// Program counter, and stack pointer.
    #[derive(Clone, Copy)]
    struct Two(u64, u64);

    impl Frame for Two {
        fn pc(&self) -> u64 {
            self.0
        }

        fn sp(&self) -> u64 {
            self.1
        }
    }

    /// An image of one function.
    struct One(Parts<'static>);

    impl From<Parts<'static>> for One {
        fn from(parts: Parts<'static>) -> Self {
            Self(parts)
        }
    }

    impl Unwind for One {
        type Registers = Two;

        fn parts(&self) -> &Parts<'_> {
            &self.0
        }

        fn caller(&self, _: &Two, _: Position, _: ReadStack<'_>) -> Result<(Two, Position), Stop> {
            Err(Stop::Outermost)
        }

        fn is_behind_call(&self, _: u64) -> bool {
            false
        }
    }

    struct Fake;

    impl Processor for Fake {
        type Image = One;
        const HOOKS: Hooks = Hooks {
            write: |bytes| SAID.with_borrow_mut(|said| said.extend(bytes)),
            pcpus: || 2,
            stop_others: || {},
            spin_until: |_, _| true,
            halt: || panic!("halted"),
        };

        fn current() -> Option<(u32, impl Iterator<Item = Stack> + Clone)> {
            STARTED.get().then(|| (1, [STACK].into_iter()))
        }

        fn is_readable(_: u64) -> bool {
            false
        }

        fn print(Two(pc, sp): &Two, out: &mut dyn Write) -> fmt::Result {
            writeln!(out, "  pc {pc:#x} sp {sp:#x}")
        }
    }

    /// What is said until the processor halts.
    fn said(end: impl FnOnce()) -> String {
        assert!(catch_unwind(AssertUnwindSafe(end)).is_err(), "it goes on");
        String::from_utf8_lossy(&SAID.take()).replace('\r', "")
    }

    fn faults() -> Faults<Fake> {
        let faults = Faults::new();
        let whole = Section { start: BASE, end: BASE + 0x2000, kind: Kind::Data };
        let code = Section { start: BASE + 0x1000, end: BASE + 0x2000, kind: Kind::Data };
        // SAFETY: sections that are written to are not read, and it has no others.
        unsafe { faults.install(BASE, 0x2000, &[whole, code]) };
        faults
    }

    fn exception(faults: &Faults<Fake>, address: u64) -> String {
        let registers = Two(BASE + 0x1010, 0xa000);
        let syndrome = format_args!("syndrome {:#x}", 7);
        let exception = Exception { name: "#XX", registers: &registers, address, syndrome };
        said(|| faults.exception(&exception, |target| alloc::format!("{target:?}")))
    }

    #[test]
    fn cause_registers_and_backtrace_follow_each_other() {
        let said = exception(&faults(), STACK.bottom - 8);
        let told = said.split_once("Pasidon stops").map(|(_, told)| told);
        assert_eq!(
            told,
            Some(
                " on pCPU 1: Guard\n  pc 0x101010 sp 0xa000\n  syndrome 0x7\nbacktrace, image at 0x100000:\n   \
                 0  image+0x01010  0x101010\npCPU 0 does not stop\nPasidon stands still until the machine is reset\n"
            )
        );
    }

    #[test]
    fn before_there_are_pcpus_and_an_image_the_report_is_shorter() {
        STARTED.set(false);
        let said = exception(&Faults::new(), STACK.bottom - 8);
        assert!(said.contains("on pCPU 0: Other\n"), "{said}");
        assert!(said.contains("no backtrace: nobody said where the image is\n"), "{said}");
    }

    #[test]
    fn who_is_stopped_says_nothing() {
        let faults = faults();
        assert_eq!(said(|| faults.stop(1)), "");
        assert!(!faults.report.is_begun(), "it is no failure by itself");
        exception(&faults, 0);
        STARTED.set(false);
        assert_eq!(said(|| faults.stop(BASE)), "");
    }
}
