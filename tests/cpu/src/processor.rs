// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor, as a test sees it.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::entry::{self, Call};
use crate::library::{Library, RawAccess, RawStop};
use crate::memory::Pages;
use crate::model::Model;
use crate::stop::{Cause, Stop};
use crate::tables::Tables;

/// Bytes of the stack that code runs on.
const STACK: usize = 1 << 20;
/// Instructions that [`Processor::run`] gives: some seconds.
const LIMIT: u64 = 200_000_000;
/// How Bochs begins what it says about an entry that it refused.
const REFUSALS: [&str; 5] = ["VMRUN", "SVM: VMRUN", "SvmInjectEvents", "VMENTER FAIL", "VMFAIL"];

/// There is one processor in a process.
static ONLY: Mutex<()> = Mutex::new(());

thread_local! {
    static HAS_ONE: Cell<bool> = const { Cell::new(false) };
    static ON_PROCESSOR: Cell<bool> = const { Cell::new(false) };
}

/// An access to a device's page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Where, in bytes from the start of the page.
    pub offset: u16,
    /// 1 to 64 bytes.
    pub size: u8,
    /// A write.
    pub write: bool,
    /// What was read or written, in the first `size` bytes.
    pub data: [u8; 64],
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, data) =
            (if self.write { "write" } else { "read" }, &self.data[..self.size.min(64).into()]);
        write!(f, "{kind} of {} bytes at {:#x}: {data:02x?}", self.size, self.offset)
    }
}

/// The processor. It keeps its state from one run to the next.
pub struct Processor {
    library: &'static Library,
    stack: Vec<u128>,
    unfinished: bool,
    _tables: Box<Tables>,
    _only: MutexGuard<'static, ()>,
}

impl fmt::Debug for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processor").field("unfinished", &self.unfinished).finish_non_exhaustive()
    }
}

impl Processor {
    /// A processor of that model, in 64-bit mode at privilege level 0, with interrupts off. Where another test of this
    /// process has one, this waits for its end.
    ///
    /// # Panics
    /// When this thread has a processor already, or there is no library: with one line that says what to do.
    pub fn new(model: Model) -> Processor {
        let library = Library::get(model).unwrap_or_else(|why| panic!("{why}"));
        spare_backtraces();
        assert!(!HAS_ONE.get(), "this test has a processor already: drop it before you make another one");
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, features) = model.name();
        // SAFETY: two strings, and `ONLY` is held from here on.
        let refused = unsafe { (library.new)(name.as_ptr(), features.as_ptr()) };
        assert!(refused.is_null(), "Bochs makes no {model:?}: {:?}", library.said());
        entry::forget_taken();
        let tables = Tables::new();
        // SAFETY: the tables live as long as the processor, and say where code of this library is.
        unsafe { (library.host_mode)(&tables.host(this_threads_fs_base())) };
        HAS_ONE.set(true);
        let stack = vec![0; STACK / size_of::<u128>()];
        Processor { library, stack, unfinished: false, _tables: tables, _only: only }
    }

    /// Runs `code` on the processor, and returns what it returns. A panic of it goes on here. Where it is stopped, what
    /// it has locked or borrowed stays so.
    ///
    /// # Errors
    /// When it does not come to its end: within 200 million instructions, without an exception, on memory that exists.
    pub fn run<T>(&mut self, code: impl FnOnce() -> T) -> Result<T, Stop> {
        self.run_for(LIMIT, code)
    }

    /// [`Processor::run`], for so many instructions at most. Where it is halted, time goes on as if it ran.
    ///
    /// # Errors
    /// When `code` does not come to its end.
    pub fn run_for<T, F: FnOnce() -> T>(&mut self, instructions: u64, code: F) -> Result<T, Stop> {
        if self.unfinished {
            return Err(Stop { cause: Cause::Unfinished, rip: 0, said: None });
        }
        let mut slot = Slot { code: Some(code), result: None };
        let call = Call { function: call::<T, F>, argument: (&raw mut slot).cast() };
        let top = self.stack.as_mut_ptr_range().end as u64;
        let mut raw = RawStop::default();
        self.unfinished = true;
        // SAFETY: `ONLY` is held. The code runs on this thread, as if called here, on a stack of its own.
        unsafe {
            (self.library.run)(
                entry::enter as *const () as u64,
                top,
                &raw const call as u64,
                instructions,
                &mut raw,
            );
        }
        if let Some(stop) = Stop::new(&raw, self.library.said().pop()) {
            ON_PROCESSOR.set(false);
            return Err(stop);
        }
        self.unfinished = false;
        match slot.result {
            Some(Ok(value)) => Ok(value),
            Some(Err(panic)) => resume_unwind(panic),
            None => unreachable!("a run ends behind its call"),
        }
    }

    /// Has the processor's interrupt line raised with that vector, after so many instructions of the next run (0: before
    /// its first one), until it is taken. One such can be asked for per run.
    pub fn interrupt(&mut self, vector: u8, after: u64) {
        // SAFETY: `ONLY` is held.
        unsafe { (self.library.interrupt)(vector, after) }
    }

    /// Sends the processor an NMI, after so many instructions of the next run (0: before its first one). One such can
    /// be asked for per run.
    pub fn nmi(&mut self, after: u64) {
        // SAFETY: `ONLY` is held.
        unsafe { (self.library.nmi)(after) }
    }

    /// How often the host, not a guest, has taken an interrupt of that vector; 2: NMIs.
    pub fn taken(&self, vector: u8) -> u64 {
        entry::TAKEN[usize::from(vector)].load(Ordering::Relaxed)
    }

    /// Whether an interrupt, and an NMI, waits to be taken.
    pub fn waiting(&self) -> (bool, bool) {
        // SAFETY: `ONLY` is held.
        let waiting = unsafe { (self.library.waiting)() };
        (waiting & 1 != 0, waiting & 2 != 0)
    }

    /// Makes the pages those of a device: the processor's accesses are seen one by one. A read finds what was written
    /// there, by the processor or the test. Enqueue stores (ENQCMD, ENQCMDS) are accepted there, and by no memory.
    pub fn device(&mut self, pages: &Pages) {
        for page in (0..pages.len() as u64).step_by(4096) {
            // SAFETY: `ONLY` is held.
            unsafe { (self.library.device)(pages.address() + page) };
        }
    }

    /// The accesses to devices since the last call, the oldest first.
    pub fn accesses(&mut self) -> Vec<Access> {
        let mut accesses = Vec::new();
        let mut raw = RawAccess { address: 0, size: 0, write: 0, data: [0; 64] };
        // SAFETY: room for one; `ONLY` is held.
        while unsafe { (self.library.accesses)(&mut raw, 1) } == 1 {
            accesses.push(Access {
                offset: (raw.address & 0xfff) as u16,
                size: raw.size as u8,
                write: raw.write != 0,
                data: raw.data,
            });
        }
        accesses
    }

    /// Why the processor refused the last entry into a guest that it refused during the last run, in words.
    pub fn refusal(&self) -> Option<String> {
        let refusal = |line: &String| REFUSALS.iter().any(|start| line.starts_with(start));
        self.library.said().into_iter().rfind(refusal)
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        HAS_ONE.set(false);
    }
}

/// What runs on the processor, and what came of it.
struct Slot<F, T> {
    code: Option<F>,
    result: Option<Result<T, Box<dyn Any + Send>>>,
}

/// Calls the code of the slot that `slot` points to.
///
/// # Safety
/// `slot` is a `Slot<F, T>` that nobody else uses.
unsafe extern "sysv64" fn call<T, F: FnOnce() -> T>(slot: *mut ()) {
    // SAFETY: the caller's word.
    let slot = unsafe { &mut *slot.cast::<Slot<F, T>>() };
    slot.result = slot.code.take().map(|code| {
        ON_PROCESSOR.set(true);
        let result = catch_unwind(AssertUnwindSafe(code));
        ON_PROCESSOR.set(false);
        result
    });
}

/// Lets panics on the processor be reported without a backtrace: to find the names for one takes millions of instructions.
fn spare_backtraces() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |info| if ON_PROCESSOR.get() { eprintln!("{info}") } else { others(info) }));
    });
}

/// The base of FS, by which thread-local variables are found.
fn this_threads_fs_base() -> u64 {
    let base;
    // SAFETY: on x86-64 the first word there is the base itself (System V ABI, "Thread-Local Storage").
    unsafe { std::arch::asm!("mov {}, fs:[0]", out(reg) base, options(nostack, readonly, preserves_flags)) };
    base
}
