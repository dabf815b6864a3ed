// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log on the serial line, from the first line on until the console takes it over.

use core::sync::atomic::{AtomicPtr, Ordering};

use pasidon_arch_x86_64::{serial, time};
use pasidon_kernel::log::{LogSink, Logger};

/// The logger of all crates.
pub static LOGGER: Logger = Logger::new();
static SINK: SerialSink = SerialSink;
/// What is called when messages wait; null: this module writes them to the line.
static CONSOLE: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

struct SerialSink;

impl LogSink for SerialSink {
    fn wake(&self) {
        let console = CONSOLE.load(Ordering::Acquire);
        if console.is_null() {
            return flush();
        }
        // SAFETY: only `redirect` stores here, and only a `fn()`.
        let console: fn() = unsafe { core::mem::transmute::<*mut (), fn()>(console) };
        console();
    }

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }
}

/// Sets the serial line and the log up, and says who is there.
pub fn init() {
    let present = serial::init();
    // The firmware may have left its cursor anywhere in a line.
    serial::write(b"\r\n");
    serial::write(concat!("Pasidon ", env!("CARGO_PKG_VERSION"), "\r\n").as_bytes());
    // The only logger; a second one would need a second `init`.
    let _ = LOGGER.install(log::LevelFilter::Info);
    LOGGER.set_sink(&SINK);
    if !present {
        log::warn!("COM1: there is no UART; nobody will read this");
    }
}

/// Writes the messages that wait to the line.
pub fn flush() {
    LOGGER.drain(&mut |line| {
        serial::write(line.as_bytes());
        serial::write(b"\r\n");
    });
}

/// From now on messages are announced to `wake`, which shows them with [`Logger::drain`] when it can. It is
/// called wherever something is logged, so it must not wait for a lock.
pub fn redirect(wake: fn()) {
    CONSOLE.store(wake as *mut (), Ordering::Release);
    wake();
}
