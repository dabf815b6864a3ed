// SPDX-License-Identifier: MIT OR Apache-2.0
//! The serial line: who may write to it.
//!
//! **Principle.** One lock around the [`Console`], given in the order in which it was asked for: a guest that
//! prints without end delays the monitor by one byte at a time, and cannot keep it from the line. Log messages
//! never wait for it: whoever has the line prints what has been logged meanwhile before he gives it back, and what
//! comes while he prints that is left to the first processor, so that nobody who happens to log prints for others
//! without end.
//!
//! **Invariant.** No message waits while nobody will show it: who logs tries the line after the message is in the
//! ring, and who gives the line back looks into the ring afterwards.

use core::sync::atomic::Ordering;

use super::log::Logger;
use super::{Console, Inputs, Sink};
use crate::base::sync::{AtomicBool, TicketMutex};
use crate::dev::Received;
use crate::irq::host::Host;

/// The port that the line is at; implemented by `arch`.
pub trait SerialPort: Send + Sync {
    /// What came in next, if anything did.
    fn read(&self) -> Option<Received>;

    /// Sends a byte, and waits until the port takes it.
    fn write(&self, byte: u8);
}

/// The line.
pub struct Line {
    console: TicketMutex<Console>,
    port: &'static dyn SerialPort,
    logger: &'static Logger,
    host: &'static dyn Host,
    /// Messages wait that the first processor is to show.
    left: AtomicBool,
}

impl Line {
    /// The line at a port, with what `logger` collects on it.
    pub fn new(
        console: Console,
        port: &'static dyn SerialPort,
        logger: &'static Logger,
        host: &'static dyn Host,
    ) -> Self {
        Self { console: TicketMutex::new(console), port, logger, host, left: AtomicBool::new(false) }
    }

    /// A line for a test that is explored.
    #[cfg(test)]
    fn explored(
        console: Console,
        port: &'static dyn SerialPort,
        logger: &'static Logger,
        host: &'static dyn Host,
    ) -> Self {
        Self { console: TicketMutex::explored(console), port, logger, host, left: AtomicBool::default() }
    }

    /// Uses the console, when it is one's turn. Not from an interrupt handler.
    pub fn with<R>(&self, act: impl FnOnce(&mut Console, Sink<'_>) -> R) -> R {
        let mut console = self.console.lock();
        let result = act(&mut console, &mut |byte| self.port.write(byte));
        self.show(&mut console);
        drop(console);
        self.leave();
        result
    }

    /// Messages wait: shows them, unless somebody has the line, who then does. Whoever logs may call it, anywhere.
    pub fn show_log(&self) {
        if let Some(mut console) = self.console.try_lock() {
            self.show(&mut console);
            drop(console);
            self.leave();
        }
    }

    /// What came in next, and what it comes down to. `None` where nothing did.
    pub fn input(&self, now_ns: u64) -> Option<Inputs> {
        let received = self.port.read()?;
        Some(self.with(|console, sink| console.input(received, now_ns, sink)))
    }

    /// Whether messages were left to the first processor since the last call.
    pub fn take_left(&self) -> bool {
        self.left.swap(false, Ordering::SeqCst)
    }

    /// Whether [`Line::take_left`] would say so.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    fn show(&self, console: &mut Console) {
        self.logger.drain(&mut |message| console.log(message, &mut |byte| self.port.write(byte)));
    }

    /// The line was given back: whoever logged in the last moment did not get it.
    fn leave(&self) {
        if self.logger.is_waiting() {
            self.left.store(true, Ordering::SeqCst);
            self.host.wake_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::sync::explore;
    use crate::config::ConsoleMode;
    use crate::testing::SharedTruth;
    use loom::sync::Arc;

    /// Counts lines.
    #[derive(Default)]
    struct Lines(core::sync::atomic::AtomicU64);

    impl SerialPort for Lines {
        fn read(&self) -> Option<Received> {
            None
        }

        fn write(&self, byte: u8) {
            self.0.fetch_add(u64::from(byte == b'\n'), Ordering::Relaxed);
        }
    }

    fn leak<T>(value: T) -> &'static T {
        Box::leak(Box::new(value))
    }

    /// One logs while another has the line, or logs too: each message is shown, or the first processor is woken for it.
    #[test]
    fn no_message_is_left_without_anybody_to_show_it_in_every_order() {
        for takes_line in [true, false] {
            explore(move || {
                let (port, logger, truth) =
                    (leak(Lines::default()), leak(Logger::explored()), leak(SharedTruth::new(0)));
                let console = Console::new(ConsoleMode::Framed, 0);
                let line = Arc::new(Line::explored(console, port, logger, truth));
                let other = line.clone();
                let other = loom::thread::spawn(move || {
                    logger.keep("other");
                    other.show_log();
                });
                if takes_line {
                    line.with(|_, _| ());
                } else {
                    logger.keep("own");
                    line.show_log();
                }
                other.join().unwrap();
                let messages = if takes_line { 1 } else { 2 };
                let shown = port.0.load(Ordering::Relaxed);
                let left = line.take_left();
                assert!(shown == messages || left && truth.lock().wakes > 0, "{shown} of {messages}");
                line.show_log();
                assert_eq!(port.0.load(Ordering::Relaxed), messages, "each once");
            });
        }
    }
}
