// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log on the serial line, from the first line on until the console takes it over. Where there is no
//! serial line, it is on the firmware's console for as long as that is there.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicU8, Ordering};

use pasidon_arch::{serial, time};
use pasidon_kernel::console::log::{LogSink, Logger};
use spin::Once;
use uefi::system;

use crate::tables::Tables;

/// The logger of all crates.
pub static LOGGER: Logger = Logger::new();
static SINK: SerialSink = SerialSink;
/// Who has taken the line over: from then on messages are announced to this, which shows them with
/// [`Logger::drain`] when it can. It is called wherever something is logged, so it must not wait for a lock.
pub static CONSOLE: Once<fn()> = Once::new();

/// Where the log goes: nowhere.
const NOTHING: u8 = 0;
/// To the serial line.
const SERIAL: u8 = 1;
/// To the firmware's console.
const FIRMWARE: u8 = 2;
static LINE: AtomicU8 = AtomicU8::new(NOTHING);

struct SerialSink;

impl LogSink for SerialSink {
    fn wake(&self) {
        match CONSOLE.get() {
            Some(announce) => announce(),
            None => flush(),
        }
    }

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }
}

/// Collects what is logged, until there is a line for it.
pub fn collect() {
    // The only logger; a second one would need a second call.
    let _ = LOGGER.install(log::LevelFilter::Info);
}

/// Sets the serial line up where the tables say it is, says who is there, and shows what was logged. Once, before boot
/// services end.
pub fn init(tables: &Tables) {
    let missing = serial::init(&|name| tables.get(name)).err();
    LINE.store(if missing.is_none() { SERIAL } else { FIRMWARE }, Ordering::Release);
    // The firmware may have left its cursor anywhere in a line.
    write("\r\n");
    write(concat!("Pasidon ", env!("CARGO_PKG_VERSION"), "\r\n"));
    LOGGER.set_sink(&SINK);
    if let Some(refusal) = missing {
        log::warn!("{refusal}; until then this is the firmware's console");
    }
}

/// Has [`write()`] write to the firmware's console only, so that no device is touched. Messages are collected until
/// [`collected`].
pub fn firmware_only() {
    LINE.store(FIRMWARE, Ordering::Release);
}

/// The messages that were collected.
pub fn collected() -> Vec<String> {
    let mut lines = Vec::new();
    while LOGGER.drain(&mut |line| lines.push(String::from(line))) {}
    lines
}

/// The firmware's console is gone, with its boot services.
pub fn leave_firmware() {
    // Without a serial line there is nothing left to write to.
    let _ = LINE.compare_exchange(FIRMWARE, NOTHING, Ordering::AcqRel, Ordering::Acquire);
}

/// To the line that there is.
pub fn write(text: &str) {
    match LINE.load(Ordering::Acquire) {
        SERIAL => serial::write(text.as_bytes()),
        FIRMWARE => system::with_stdout(|console| {
            // Nobody can be told.
            let _ = console.write_str(text);
        }),
        _ => {}
    }
}

/// Writes the messages that wait to the line.
fn flush() {
    // Nobody else logs yet: this is called for each message.
    let _ = LOGGER.drain(&mut |line| {
        write(line);
        write("\r\n");
    });
}
