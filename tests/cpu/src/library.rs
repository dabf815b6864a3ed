// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bochs with the shim of `tests/cpu/shim`, as `cargo xtask` makes it, found and loaded when a test asks for it: what
//! does not ask needs neither it nor a C++ compiler.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_long, c_void};
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;

use crate::model::{MODELS, Model};

/// Names the library. `cargo xtask test host` sets it.
const VARIABLE: &str = "PASIDON_BOCHS";

// The dynamic loader of the GNU C library (dlfcn.h).
const LM_ID_NEWLM: c_long = -1;
const RTLD_NOW: c_int = 2;

unsafe extern "C" {
    // In a namespace of its own the library has a C library of its own: while it emulates a program in the middle of
    // `malloc`, that program's allocator is locked.
    fn dlmopen(namespace: c_long, path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *mut c_char;
}

/// A function of the library, by its name.
///
/// # Safety
/// `F` is the type of a pointer to that function.
unsafe fn symbol<F: Copy>(handle: *mut c_void, name: &CStr) -> Result<F, String> {
    // SAFETY: a handle of `dlmopen` and a string.
    let address = unsafe { dlsym(handle, name.as_ptr()) };
    assert_eq!(size_of::<F>(), size_of_val(&address));
    // SAFETY: both are pointers; the caller's word.
    if address.is_null() { Err(last_error()) } else { Ok(unsafe { std::mem::transmute_copy(&address) }) }
}

/// What the loader said last.
fn last_error() -> String {
    // SAFETY: a string that lives until this thread's next call of the loader, or null.
    let error = unsafe { dlerror() };
    if error.is_null() {
        return "the loader does not say why".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()
}

/// `struct stop` of `shim.h`.
#[derive(Default)]
#[repr(C)]
pub struct RawStop {
    pub why: u64,
    pub what: u64,
    pub more: u64,
    pub rip: u64,
}

/// `struct host` of `shim.h`.
#[repr(C)]
pub struct Host {
    pub gdt: u64,
    pub gdt_limit: u64,
    pub idt: u64,
    pub idt_limit: u64,
    pub tss: u64,
    pub tss_limit: u64,
    pub fs_base: u64,
    pub system_call: u64,
}

/// `struct access_seen` of `shim.h`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawAccess {
    pub address: u64,
    pub size: u32,
    pub write: u32,
    pub data: [u8; 64],
}

/// The functions of `shim.h`. None of them may be called by two threads at once.
pub struct Library {
    pub new: unsafe extern "C" fn(model: *const c_char, features: *const c_char) -> *const c_char,
    pub host_mode: unsafe extern "C" fn(host: *const Host),
    pub run: unsafe extern "C" fn(rip: u64, rsp: u64, argument: u64, instructions: u64, stop: *mut RawStop),
    pub interrupt: unsafe extern "C" fn(vector: u8, after: u64),
    pub nmi: unsafe extern "C" fn(after: u64),
    pub waiting: unsafe extern "C" fn() -> u32,
    pub device: unsafe extern "C" fn(address: u64),
    pub accesses: unsafe extern "C" fn(seen: *mut RawAccess, room: usize) -> usize,
    pub words: unsafe extern "C" fn() -> *const c_char,
}

impl Library {
    /// The library for a model, loaded with the first call. It stays until the process ends. Each model has a copy of
    /// its own: Bochs strikes what a model lacks out of its tables, for good.
    ///
    /// # Errors
    /// When it is not named, or cannot be loaded: one line that says what to do.
    pub fn get(model: Model) -> Result<&'static Library, String> {
        static LIBRARIES: [OnceLock<Result<Library, String>>; MODELS] = [const { OnceLock::new() }; MODELS];
        LIBRARIES[model as usize].get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Library, String> {
        const REMEDY: &str =
            "run `cargo xtask test host`, or set PASIDON_BOCHS to what `cargo xtask bochs` prints";
        match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            None => Err(format!("no processor to run on: {REMEDY}")),
            Some(path) => Self::open(path).map_err(|why| format!("no processor to run on: {why}; {REMEDY}")),
        }
    }

    fn open(path: OsString) -> Result<Library, String> {
        let path = CString::new(path.into_vec()).map_err(|error| error.to_string())?;
        // SAFETY: a string; its initializers set up variables of its own. It is never unloaded.
        let handle = unsafe { dlmopen(LM_ID_NEWLM, path.as_ptr(), RTLD_NOW) };
        if handle.is_null() {
            return Err(last_error());
        }
        // SAFETY: these are the types of `shim.h`, of which the library is made.
        unsafe {
            Ok(Library {
                new: symbol(handle, c"pasidon_new")?,
                host_mode: symbol(handle, c"pasidon_host_mode")?,
                run: symbol(handle, c"pasidon_run")?,
                interrupt: symbol(handle, c"pasidon_interrupt")?,
                nmi: symbol(handle, c"pasidon_nmi")?,
                waiting: symbol(handle, c"pasidon_waiting")?,
                device: symbol(handle, c"pasidon_device")?,
                accesses: symbol(handle, c"pasidon_accesses")?,
                words: symbol(handle, c"pasidon_words")?,
            })
        }
    }

    /// What Bochs said during the last run, a line each.
    pub fn said(&self) -> Vec<String> {
        // SAFETY: it returns a string that lives until the next run; whoever holds the processor calls this.
        let words = unsafe { CStr::from_ptr((self.words)()) };
        words.to_string_lossy().lines().map(str::to_owned).collect()
    }
}
