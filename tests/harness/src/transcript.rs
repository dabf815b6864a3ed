// SPDX-License-Identifier: MIT OR Apache-2.0
//! What came in on each stream of a machine, and waiting for it.
//!
//! Invariant: nothing is ever dropped unless its owner says so ([`Transcript::forget`]). A wait looks at what arrived since the last match on that stream, whether it
//! arrived before or after the wait began, so there is no race between sending and expecting.

use anyhow::{Result, bail};
use regex::bytes::{Captures, Regex};
use std::fmt::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often at most a wait looks at what came.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The streams of one machine.
pub struct Transcript {
    state: Mutex<State>,
    changed: Condvar,
    started: Instant,
}

struct State {
    streams: Vec<Stream>,
    /// Why no more will come.
    ended: Option<String>,
}

struct Stream {
    name: String,
    /// Everything received, without carriage returns.
    bytes: Vec<u8>,
    /// Where the next wait starts to look.
    cursor: usize,
    /// Since when the machine has been saying this: offset of a line's start and its time, in order.
    lines: Vec<(usize, Duration)>,
}

impl Transcript {
    /// A transcript with one empty stream for each name.
    pub fn new(names: impl IntoIterator<Item = String>) -> Transcript {
        let empty = |name| Stream { name, bytes: Vec::new(), cursor: 0, lines: Vec::new() };
        let state = State { streams: names.into_iter().map(empty).collect(), ended: None };
        Transcript { state: Mutex::new(state), changed: Condvar::new(), started: Instant::now() }
    }

    /// Appends bytes to streams; those of an unknown stream get a stream of their own, named by its number.
    pub fn receive(&self, bytes: impl IntoIterator<Item = (usize, u8)>) {
        let now = self.started.elapsed();
        let mut state = self.lock();
        for (index, byte) in bytes {
            while state.streams.len() <= index {
                let name = format!("channel {}", state.streams.len());
                state.streams.push(Stream { name, bytes: Vec::new(), cursor: 0, lines: Vec::new() });
            }
            state.streams[index].push(byte, now);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Says that nothing more will come, and why.
    pub fn end(&self, why: String) {
        self.lock().ended.get_or_insert(why);
        self.changed.notify_all();
    }

    /// Waits until `pattern` matches what came on stream `index` after the previous match there, moves behind the
    /// match, and returns its groups (group 0 is the whole match; a group that did not take part is empty).
    ///
    /// # Errors
    /// When the time is up or the machine ends first; the error holds every stream's transcript.
    pub fn expect(&self, index: usize, pattern: &str, timeout: Duration) -> Result<Vec<String>> {
        let regex = compile(pattern)?;
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            let ended = state.ended.is_some();
            if let Some(groups) = state.streams[index].take(&regex, ended) {
                return Ok(groups);
            }
            let name = state.streams[index].name.clone();
            if let Some(why) = &state.ended {
                let why = why.clone();
                bail!("{name}: /{pattern}/ did not come before the end: {why}\n{}", state.render());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seconds = timeout.as_secs_f32();
                bail!("{name}: /{pattern}/ did not come within {seconds} s\n{}", state.render());
            }
            let waited = self.changed.wait_timeout(state, left);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            // A console's bytes come a few at a time. Looking at all of them for each few took half a processor.
            thread::sleep(LOOK_INTERVAL);
            state = self.lock();
        }
    }

    /// How often `pattern` matches everything that came on stream `index` so far.
    ///
    /// # Errors
    /// When the pattern is no regular expression.
    pub fn count(&self, index: usize, pattern: &str) -> Result<usize> {
        let regex = compile(pattern)?;
        Ok(regex.find_iter(&self.lock().streams[index].bytes).count())
    }

    /// Moves behind everything that came on stream `index` so far, and returns where the next wait would have looked.
    pub fn skip(&self, index: usize) -> usize {
        let stream = &mut self.lock().streams[index];
        std::mem::replace(&mut stream.cursor, stream.bytes.len())
    }

    /// Lets the next wait on stream `index` look from that place on.
    pub fn go_back(&self, index: usize, place: usize) {
        self.lock().streams[index].cursor = place;
    }

    /// Drops every whole line that came so far, on all streams: for who stays with a machine for days.
    pub fn forget(&self) {
        for stream in &mut self.lock().streams {
            let whole = stream.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            stream.bytes.drain(..whole);
            stream.cursor = stream.cursor.saturating_sub(whole);
            stream.lines.retain(|(start, _)| *start >= whole);
            stream.lines.iter_mut().for_each(|(start, _)| *start -= whole);
        }
    }

    /// Waits until the machine has ended, and says why it did.
    ///
    /// # Errors
    /// When the time is up first; the error holds every stream's transcript.
    pub fn wait_for_end(&self, timeout: Duration) -> Result<String> {
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, |state| state.ended.is_none());
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        match &state.ended {
            Some(why) => Ok(why.clone()),
            None => bail!("the machine did not end within {} s\n{}", timeout.as_secs_f32(), state.render()),
        }
    }

    /// When, counted from the machine's start, the line began that holds the previous match on stream `index`.
    pub fn time_of_match(&self, index: usize) -> Duration {
        let state = self.lock();
        let stream = &state.streams[index];
        let line = stream.lines.partition_point(|(start, _)| *start < stream.cursor);
        line.checked_sub(1).map_or(Duration::ZERO, |line| stream.lines[line].1)
    }

    /// Every stream's transcript, each line with its time in seconds since the machine's start.
    pub fn render(&self) -> String {
        self.lock().render()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn render(&self) -> String {
        let mut text = String::new();
        for stream in self.streams.iter().filter(|stream| !stream.bytes.is_empty()) {
            let _ = writeln!(text, "──── {} ────", stream.name);
            for (number, (start, time)) in stream.lines.iter().enumerate() {
                let end = stream.lines.get(number + 1).map_or(stream.bytes.len(), |(next, _)| *next);
                let line = String::from_utf8_lossy(&stream.bytes[*start..end]);
                let _ = writeln!(text, "{:8.2} {}", time.as_secs_f32(), printable(line.trim_end()));
            }
        }
        text
    }
}

impl Stream {
    fn push(&mut self, byte: u8, now: Duration) {
        if byte == b'\r' {
            return;
        }
        if self.bytes.last().is_none_or(|last| *last == b'\n') {
            self.lines.push((self.bytes.len(), now));
        }
        self.bytes.push(byte);
    }

    /// The groups of the next match, unless it rests on a line's end that may still turn out to be none.
    fn take(&mut self, regex: &Regex, ended: bool) -> Option<Vec<String>> {
        let text = |captures: &Captures<'_>, group| {
            captures
                .get(group)
                .map_or(String::new(), |found| String::from_utf8_lossy(found.as_bytes()).into_owned())
        };
        let captures = regex.captures(&self.bytes[self.cursor..])?;
        let end = self.cursor + captures.get(0)?.end();
        // At the end of what came so far, `$` matches in the midst of a line too.
        let open = end == self.bytes.len() && self.bytes.last() != Some(&b'\n');
        if open && !ended && regex.as_str().contains('$') {
            return None;
        }
        let groups = (0..captures.len()).map(|group| text(&captures, group)).collect();
        self.cursor = end;
        Some(groups)
    }
}

/// Patterns work line by line: `^` and `$` match at line ends. Only a `$` waits for the rest of a line.
fn compile(pattern: &str) -> Result<Regex> {
    Ok(regex::bytes::RegexBuilder::new(pattern).multi_line(true).build()?)
}

/// Control characters (the firmware clears the screen) as carets, so that a transcript cannot disturb a terminal.
fn printable(line: &str) -> String {
    let show = |c: char| match c {
        '\t' => String::from("\t"),
        c if c.is_ascii_control() => format!("^{}", char::from((c as u8) ^ 0x40)),
        c => c.to_string(),
    };
    line.chars().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn say(transcript: &Transcript, stream: usize, text: &str) {
        transcript.receive(text.bytes().map(|byte| (stream, byte)));
    }

    fn two() -> Transcript {
        Transcript::new(["monitor".to_owned(), "alpha".to_owned()])
    }

    #[test]
    fn matches_what_came_before_the_wait_and_never_twice() {
        let transcript = two();
        say(&transcript, 1, "one 1\r\none 2\r\n");
        let first = transcript.expect(1, r"^one (\d)$", Duration::ZERO).unwrap();
        assert_eq!(first, ["one 1", "1"]);
        assert_eq!(transcript.expect(1, r"^one (\d)$", Duration::ZERO).unwrap()[1], "2");
        assert!(transcript.expect(1, r"^one", Duration::ZERO).is_err());
        assert_eq!(transcript.count(1, "^one").unwrap(), 2);
    }

    #[test]
    fn what_was_forgotten_is_not_found_again() {
        let transcript = two();
        say(&transcript, 1, "one 1\none 2\n");
        transcript.expect(1, "^one 1$", Duration::ZERO).unwrap();
        say(&transcript, 1, "on");
        transcript.forget();
        say(&transcript, 1, "e 3\n");
        assert_eq!(transcript.expect(1, r"^one (\d)$", Duration::ZERO).unwrap()[1], "3");
        assert_eq!(transcript.count(1, "^one").unwrap(), 1);
    }

    #[test]
    fn wakes_up_when_the_rest_of_the_line_comes() {
        let transcript = Arc::new(two());
        say(&transcript, 1, "gue");
        let speaker = Arc::clone(&transcript);
        let thread = std::thread::spawn(move || say(&speaker, 1, "st# "));
        transcript.expect(1, "guest# ", Duration::from_secs(60)).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_line_that_is_still_coming_does_not_end_yet() {
        let transcript = two();
        say(&transcript, 1, "state=o");
        assert!(transcript.expect(1, "^state=([a-z]+)$", Duration::ZERO).is_err());
        say(&transcript, 1, "k\n");
        let groups = transcript.expect(1, "^state=([a-z]+)$", Duration::ZERO).unwrap();
        assert_eq!(groups[1], "ok");
        say(&transcript, 1, "{}\n");
        // The line's end is part of the match, and nothing need come behind it.
        transcript.expect(1, "^\\{.*$\n", Duration::ZERO).unwrap();
        say(&transcript, 1, "last");
        transcript.end("QEMU exited".to_owned());
        transcript.expect(1, "^last$", Duration::ZERO).unwrap();
    }

    #[test]
    fn a_time_out_and_an_end_show_every_stream() {
        let transcript = two();
        say(&transcript, 0, "log line\n");
        say(&transcript, 1, "\x1b[2Jhello\n");
        let error = transcript.expect(1, "bye", Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("log line") && error.contains("^[[2Jhello"), "{error}");
        transcript.end("QEMU exited".to_owned());
        let error = transcript.expect(1, "bye", Duration::from_secs(60)).unwrap_err().to_string();
        assert!(error.contains("QEMU exited") && error.contains("log line"), "{error}");
    }
}
