// SPDX-License-Identifier: MIT OR Apache-2.0
//! The serial line, with a program at its other end that types commands and keys, and the switch that nobody uses.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use log::{Level, LevelFilter, Log, Metadata, Record};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::console::framing::{Decoder, Encoder};
use pasidon_kernel::console::line::SerialPort;
use pasidon_kernel::console::log::Logger;
use pasidon_kernel::dev::Received;
use pasidon_kernel::housekeeping::Power;
use pasidon_kernel::monitor::HostPower;

use super::sim::{Sim, here, try_here};

/// What the program types, each answered by one line of JSON.
const COMMANDS: [&str; 4] = ["version", "vms", "vm vm1 break", "nonsense"];

/// The line.
#[derive(Default)]
pub struct Line {
    encoder: Encoder,
    incoming: VecDeque<u8>,
    sent: Vec<u8>,
    /// Commands that were typed.
    commands: usize,
}

impl Line {
    /// A command is typed.
    pub fn type_one(&mut self, which: usize) {
        let Self { encoder, incoming, .. } = self;
        let command = COMMANDS[which % COMMANDS.len()];
        encoder.send(0, format!("{command} --json\r").as_bytes(), &mut |byte| incoming.push_back(byte));
        self.commands += 1;
    }

    /// What was sent on each channel.
    pub fn sent(&self) -> BTreeMap<u8, Vec<u8>> {
        let mut decoder = Decoder::default();
        let mut sent = BTreeMap::<u8, Vec<u8>>::new();
        for (channel, byte) in self.sent.iter().filter_map(|byte| decoder.receive(*byte)) {
            sent.entry(channel).or_default().push(byte);
        }
        sent
    }

    /// What is not as it must be when nothing happens any more.
    pub fn check(&self, messages: usize) -> Vec<String> {
        let sent = self.sent().remove(&0).unwrap_or_default();
        let text = String::from_utf8_lossy(&sent);
        let answers = text.lines().filter(|line| line.starts_with('{') || line.starts_with('[')).count();
        let shown = text.matches(MESSAGE).count();
        let mut wrong = Vec::new();
        if answers != self.commands {
            wrong.push(format!("{} commands were answered {answers} times: {text}", self.commands));
        }
        if shown != messages && !text.contains("are lost") {
            wrong.push(format!("{shown} messages were shown, and {messages} logged: {text}"));
        }
        wrong
    }
}

/// What is logged for each byte that a guest prints.
pub const MESSAGE: &str = "a guest prints";

/// The port that it is at.
pub struct Port(pub Arc<Sim>);

impl SerialPort for Port {
    fn read(&self) -> Option<Received> {
        let (_, me) = here();
        self.0.step(me);
        self.0.lock().line.incoming.pop_front().map(Received::Byte)
    }

    /// Others do not come between: whoever waits for the line spins.
    fn write(&self, byte: u8) {
        self.0.lock().line.sent.push(byte);
    }
}

/// A switch that nobody uses.
pub struct Switch;

impl Power for Switch {
    fn check(&self, _power: HostPower) -> Result<(), Refusal> {
        Err(Refusal::new("power", "a test's machine has no switch", "none"))
    }

    fn carry_out(&self, _power: HostPower) {}
}

/// Notes what is logged as an error on the machine of the thread that logs it: nothing fails here by itself.
struct Errors;

impl Log for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() == Level::Error
    }

    fn log(&self, record: &Record<'_>) {
        if let Some((sim, _)) = try_here().filter(|_| self.enabled(record.metadata())) {
            sim.lock().violations.push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// From here on errors are violations.
pub fn watch_errors() {
    static ERRORS: Errors = Errors;
    static ONCE: Mutex<bool> = Mutex::new(false);
    let mut done = ONCE.lock().expect("a lock");
    if !core::mem::replace(&mut done, true) {
        log::set_logger(&ERRORS).expect("the only one");
        log::set_max_level(LevelFilter::Info);
    }
}

/// Logs as the hypervisor would.
pub fn say(logger: &Logger) {
    logger.log(&Record::builder().level(Level::Info).target("fake").args(format_args!("{MESSAGE}")).build());
}
