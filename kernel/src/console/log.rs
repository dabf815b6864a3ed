// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the messages of every crate go.
//!
//! **Principle.** Whoever logs waits for nobody: the message is put into a fixed ring without allocating,
//! and the sink is told. That is safe in an interrupt handler, and while the console is locked. The
//! console's side takes the messages out when it can ([`Logger::drain`]).
//!
//! **Invariant.** A message is shown whole and once, or counted as lost.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use arrayvec::ArrayString;
use log::{Level, LevelFilter, Metadata, Record};
use spin::Once;

use crate::base::sync::{AtomicU64, Mutex, MutexGuard, spin_loop};

/// Longest message in bytes, with its time and origin.
pub const MAX_MESSAGE: usize = 400;
/// Messages that can wait; few in tests, some of which run on small stacks.
const WAITING: usize = if cfg!(test) { 4 } else { 64 };
/// How often a locked ring is tried. Another processor is done long before; the one that was interrupted
/// while it held the lock never is.
const TRIES: usize = 100_000;
/// What ends a message that was cut.
const CUT: &str = "…";

/// The levels, as the configuration and the monitor name them.
pub const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

/// The name of a level.
pub fn level_name(level: LevelFilter) -> &'static str {
    LEVELS.iter().find(|(_, known)| *known == level).map_or("off", |(name, _)| name)
}

/// Who shows the messages.
pub trait LogSink: Sync {
    /// Messages wait. Called after each one, wherever it was logged, so it must not wait for a lock; where
    /// the console is taken, whoever has it calls [`Logger::drain`] before giving it back.
    fn wake(&self);

    /// Time since boot in nanoseconds; 0 while no clock runs.
    fn now_ns(&self) -> u64;
}

type Message = ArrayString<MAX_MESSAGE>;

struct Ring {
    messages: [Message; WAITING],
    first: usize,
    count: usize,
    /// How many found it full.
    lost: u64,
}

impl Ring {
    const fn new() -> Self {
        Self { messages: [Message::new_const(); WAITING], first: 0, count: 0, lost: 0 }
    }
}

/// The logger behind the macros of the `log` crate. One, in a `static`.
pub struct Logger {
    ring: Mutex<Ring>,
    /// How many found the ring locked for good.
    locked_out: AtomicU64,
    sink: Once<&'static dyn LogSink>,
}

impl Default for Logger {
    fn default() -> Self {
        Self::new()
    }
}

impl Logger {
    /// An empty one.
    pub const fn new() -> Self {
        Self { ring: Mutex::new(Ring::new()), locked_out: AtomicU64::new(0), sink: Once::new() }
    }

    /// An empty one for a test that is explored.
    #[cfg(test)]
    pub(super) fn explored() -> Self {
        Self { ring: Mutex::explored(Ring::new()), locked_out: AtomicU64::default(), sink: Once::new() }
    }

    /// A message of that text alone.
    #[cfg(test)]
    pub(super) fn keep(&self, text: &str) {
        self.put(Message::from(text).expect("a short one"));
    }

    /// Makes it the logger of all crates. Messages wait until there is a sink.
    ///
    /// # Errors
    /// When there is a logger already.
    pub fn install(&'static self, level: LevelFilter) -> Result<(), log::SetLoggerError> {
        log::set_logger(self)?;
        log::set_max_level(level);
        Ok(())
    }

    /// Names the sink; the first one stays. Messages that wait are announced to it.
    pub fn set_sink(&self, sink: &'static dyn LogSink) {
        self.sink.call_once(|| sink).wake();
    }

    /// Hands out the messages that wait now, oldest first, and the number of lost ones. The ring is not locked
    /// during `show`, and what comes meanwhile is left: however fast others log, this ends. Gives whether
    /// messages were left.
    pub fn drain(&self, show: &mut dyn FnMut(&str)) -> bool {
        for _ in 0..self.waiting() {
            match self.take() {
                Some(message) => show(&message),
                None => break,
            }
        }
        let full = self.lock().map_or(0, |mut ring| core::mem::take(&mut ring.lost));
        let lost = full.saturating_add(self.locked_out.swap(0, Ordering::Relaxed));
        if lost > 0 {
            let mut line = ArrayString::<64>::new();
            // 64 bytes hold the text and any number.
            let _ = write!(line, "log: {lost} messages came too fast and are lost");
            show(&line);
        }
        self.is_waiting()
    }

    /// Whether messages wait, or the number of lost ones.
    pub fn is_waiting(&self) -> bool {
        self.lock().is_some_and(|ring| ring.count > 0 || ring.lost > 0)
            || self.locked_out.load(Ordering::Relaxed) > 0
    }

    /// How many messages wait.
    fn waiting(&self) -> usize {
        self.lock().map_or(0, |ring| ring.count)
    }

    fn take(&self) -> Option<Message> {
        let mut ring = self.lock()?;
        if ring.count == 0 {
            return None;
        }
        let message = ring.messages[ring.first];
        ring.first = (ring.first + 1) % WAITING;
        ring.count -= 1;
        Some(message)
    }

    fn put(&self, message: Message) {
        let Some(mut ring) = self.lock() else {
            self.locked_out.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if ring.count == WAITING {
            // Within the lock, like a message: whoever looks next sees that there is something to show.
            ring.lost = ring.lost.saturating_add(1);
            return;
        }
        let free = (ring.first + ring.count) % WAITING;
        ring.messages[free] = message;
        ring.count += 1;
    }

    fn lock(&self) -> Option<MutexGuard<'_, Ring>> {
        (0..TRIES).find_map(|_| {
            let guard = self.ring.try_lock();
            if guard.is_none() {
                spin_loop();
            }
            guard
        })
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let sink = self.sink.get();
        let now_ns = sink.map_or(0, |sink| sink.now_ns());
        self.put(message(now_ns, record));
        if let Some(sink) = sink {
            sink.wake();
        }
    }

    fn flush(&self) {
        if let Some(sink) = self.sink.get() {
            sink.wake();
        }
    }
}

/// `   12.345678 warn vtd: text`; information bears no level. Never starts like JSON, so that programs can
/// tell it from the monitor's answers.
fn message(now_ns: u64, record: &Record<'_>) -> Message {
    let mut line = OneLine(Message::new());
    let origin = record.target().rsplit("::").next().unwrap_or_default();
    let level = match record.level() {
        Level::Error => "error ",
        Level::Warn => "warn ",
        Level::Info => "",
        Level::Debug => "debug ",
        Level::Trace => "trace ",
    };
    let (seconds, micros) = (now_ns / 1_000_000_000, now_ns / 1000 % 1_000_000);
    // A message that does not fit is cut, which its end shows.
    let _ = write!(line, "{seconds:5}.{micros:06} {level}{origin}: {}", record.args());
    line.0
}

/// Takes text as one line, as much as fits.
struct OneLine(Message);

impl Write for OneLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let character = if character.is_control() { ' ' } else { character };
            if self.0.remaining_capacity() < character.len_utf8() + CUT.len() {
                self.0.push_str(CUT);
                return Err(fmt::Error);
            }
            self.0.push(character);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::sync::explore;
    use log::Log;

    struct Clock;

    impl LogSink for Clock {
        fn wake(&self) {}

        fn now_ns(&self) -> u64 {
            12_345_678_901
        }
    }

    fn say(logger: &Logger, level: Level, text: &str) {
        logger.log(
            &Record::builder()
                .level(level)
                .target("pasidon_drivers::iommu::vtd")
                .args(format_args!("{text}"))
                .build(),
        );
    }

    fn drained(logger: &Logger) -> Vec<String> {
        let mut lines = Vec::new();
        logger.drain(&mut |line| lines.push(line.to_string()));
        lines
    }

    /// The maximum level belongs to the whole process, so one test does all that depends on it.
    #[test]
    fn a_number_of_lost_messages_waits_like_a_message() {
        let logger = Logger::new();
        (0..=WAITING).for_each(|_| logger.keep("text"));
        // The one that has the line was about to show these when the last one came.
        (0..WAITING).for_each(|_| assert!(logger.take().is_some()));
        assert!(logger.is_waiting());
        assert!(!logger.drain(&mut |line| assert_eq!(line, "log: 1 messages came too fast and are lost")));
        assert!(!logger.is_waiting());
    }

    #[test]
    fn messages_wait_in_order_and_the_excess_is_counted() {
        log::set_max_level(LevelFilter::Info);
        let logger = Logger::new();
        say(&logger, Level::Info, "before the sink");
        say(&logger, Level::Debug, "not wanted");
        logger.set_sink(&Clock);
        say(&logger, Level::Warn, "two\nlines");
        assert_eq!(
            drained(&logger),
            ["    0.000000 vtd: before the sink", "   12.345678 warn vtd: two lines"]
        );
        assert!(drained(&logger).is_empty());

        for n in 0..WAITING + 3 {
            say(&logger, Level::Info, &n.to_string());
        }
        let lines = drained(&logger);
        assert_eq!(lines.len(), WAITING + 1);
        assert!(lines[WAITING - 1].ends_with(&format!("vtd: {}", WAITING - 1)));
        assert_eq!(lines[WAITING], "log: 3 messages came too fast and are lost");

        say(&logger, Level::Info, &"\u{e4}".repeat(1000));
        let line = drained(&logger).remove(0);
        assert!(line.ends_with("\u{e4}…") && line.len() > MAX_MESSAGE - 8, "{line}");

        // Others log as fast as this one prints.
        let mut shown = 0;
        say(&logger, Level::Info, "first");
        say(&logger, Level::Info, "second");
        let left = logger.drain(&mut |_| {
            shown += 1;
            assert!(shown < 1000, "the drain has no end");
            say(&logger, Level::Info, "meanwhile");
        });
        assert_eq!((left, shown), (true, 2));
        assert_eq!(drained(&logger).len(), 2);
        assert!(!logger.drain(&mut |_| {}));

        // The processor that holds the ring is interrupted, and the handler logs.
        let guard = logger.ring.lock();
        say(&logger, Level::Error, "in the handler");
        drop(guard);
        assert_eq!(drained(&logger), ["log: 1 messages came too fast and are lost"]);
    }

    /// One logs while another logs and shows: each message comes once, whole, and in the order of whoever logged it.
    #[test]
    fn messages_come_once_in_every_order() {
        explore(|| {
            let logger = loom::sync::Arc::new(Logger::explored());
            let other = logger.clone();
            let other = loom::thread::spawn(move || ["a1", "a2"].iter().for_each(|text| other.keep(text)));
            logger.keep("b1");
            let mut shown = drained(&logger);
            other.join().unwrap();
            assert_eq!(logger.is_waiting(), shown.len() < 3);
            shown.extend(drained(&logger));
            let of = |name: char| shown.iter().map(String::as_str).filter(move |text| text.starts_with(name));
            assert!(of('a').eq(["a1", "a2"]) && of('b').eq(["b1"]) && shown.len() == 3, "{shown:?}");
        });
    }

    #[test]
    fn levels_have_names() {
        for (name, level) in LEVELS {
            assert_eq!(level_name(level), name);
        }
    }
}
