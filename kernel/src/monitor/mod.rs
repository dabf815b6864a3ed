// SPDX-License-Identifier: MIT OR Apache-2.0
//! The monitor: commands come in as lines, answers go out as text.
//!
//! **Principle.** It renders snapshots and passes requests on; it holds no state of its own but the
//! counters that `top` compares with. With `--json` anywhere in a command, the answer is exactly one line
//! of JSON that starts with `{` or `[`, whatever happens: a refusal is `{"error":{…}}`.

mod commands;
mod host;
pub mod info;
mod show;
mod spaces;
mod top;
mod vdevs;
mod vms;

#[cfg(test)]
mod docs;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;

use crate::base::nearest::nearest;
use crate::base::refusal::Refusal;
use crate::base::table::Table;
use crate::config::ConsoleMode;
use crate::console::framing::FIRST_VM_CHANNEL;
use crate::console::log::{LEVELS, level_name};
use crate::console::{BadLine, Console, Sink};
use crate::monitor::info::{SystemInfo, VdevRow, VmInfo, vdev_name};
use crate::system::Dismissal;
use top::Sample;

pub use commands::{COMMANDS, Command, command};
pub use host::{HostPower, MonitorHost, NewVdev, VmControl};

/// The word that asks for JSON.
const JSON_FLAG: &str = "--json";
/// Version of the hypervisor.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a command leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Text to show ([`Console::answer`](crate::console::Console::answer)); may be empty.
    Text(String),
    /// The line is to be given to the console of the VM at this place
    /// ([`Console::enter`](crate::console::Console::enter)).
    Enter(usize),
    /// The first picture of a live display ([`Console::live`](crate::console::Console::live)). More come
    /// from [`Monitor::tick`] until [`Monitor::cancel`].
    Live(String),
}

impl Reply {
    /// Shows the reply. The console should not have been locked while the command ran: VMs print, and the
    /// command itself may log.
    pub fn show(self, console: &mut Console, sink: Sink<'_>) {
        match self {
            Self::Text(text) => console.answer(&text, sink),
            Self::Live(picture) => console.live(&picture, sink),
            Self::Enter(vm) => {
                if let Err(refusal) = console.enter(vm, sink) {
                    console.answer(&format!("{refusal}\n"), sink);
                }
            }
        }
    }
}

/// The monitor.
#[derive(Debug)]
pub struct Monitor {
    mode: ConsoleMode,
    /// The counters of the last picture of `top`.
    last: Option<Sample>,
    /// `top` is being shown.
    live: bool,
}

/// A command taken apart.
struct Words<'a> {
    words: Vec<&'a str>,
    json: bool,
}

impl Monitor {
    /// A monitor on a line of that kind.
    pub fn new(mode: ConsoleMode) -> Self {
        Self { mode, last: None, live: false }
    }

    /// Carries out one command.
    pub fn command(&mut self, line: &str, host: &mut dyn MonitorHost) -> Reply {
        let (flags, words): (Vec<&str>, Vec<&str>) =
            line.split_whitespace().partition(|word| *word == JSON_FLAG);
        let words = Words { words, json: !flags.is_empty() };
        self.live = false;
        match self.run(&words, host) {
            Ok(reply) => reply,
            Err(refusal) if words.json => Reply::Text(json(&Failure::from(&refusal))),
            Err(refusal) => Reply::Text(format!("{refusal}\n")),
        }
    }

    /// The answer to a line that is no command: a refusal, in JSON where the line asked for that.
    pub fn refuse(&mut self, line: &BadLine) -> Reply {
        self.live = false;
        let refusal = line.refusal();
        Reply::Text(if line.json { json(&Failure::from(&refusal)) } else { format!("{refusal}\n") })
    }

    /// The next picture of a live display, when it is time for it. To be called a few times a second, or
    /// whenever there is nothing else to do.
    pub fn tick(&mut self, host: &dyn MonitorHost) -> Option<String> {
        let last = self.last.as_ref().filter(|_| self.live)?;
        if host.now_ns().saturating_sub(last.time_ns) < top::INTERVAL_NS {
            return None;
        }
        let sample = Sample::take(host);
        let text = sample.text(Some(last));
        self.last = Some(sample);
        Some(text + LIVE_HINT)
    }

    /// Whether a live display runs, so that [`Monitor::tick`] wants to be called.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Ends a live display.
    pub fn cancel(&mut self) {
        self.live = false;
    }

    fn run(&mut self, words: &Words<'_>, host: &mut dyn MonitorHost) -> Result<Reply, Refusal> {
        let Some((name, arguments)) = words.words.split_first() else {
            return Ok(Reply::Text(if words.json {
                json(&Failure::from(&Refusal::new("monitor", "no command", HELP_HINT)))
            } else {
                String::new()
            }));
        };
        let Some(command) = command(name) else {
            return Err(unknown("command", name, COMMANDS.iter().map(|known| known.name)));
        };
        let json = words.json;
        let text = match (command.name, arguments) {
            ("help", []) => help(json),
            ("help", [topic]) => explain(topic, json)?,
            ("vms", []) => {
                let vms = host.vms();
                answer(json, &vms, || show::taints(&host.system()) + &show::vms(&vms))
            }
            ("vm", ["define"]) => {
                let definitions = host.definitions();
                answer(json, &definitions, || show::definitions(&definitions))
            }
            ("vm", [vm]) => {
                let vm = find_vm(host, vm)?;
                let vm = show::VmView { typed: host.typed(&vm.name), info: vm };
                answer(json, &vm, || show::vm(&vm))
            }
            ("vm", ["define", file]) => vms::define(host, file, json)?,
            ("vm", [vm, verb]) => vms::control(host, vm, verb, json)?,
            ("vdevs", []) => {
                let vdevs = vdev_rows(&host.vms(), host);
                answer(json, &vdevs, || show::taints(&host.system()) + &show::vdevs(&vdevs))
            }
            ("vdev", ["create", vm, slice, options @ ..]) => {
                vdevs::create(host, vm, slice, options, command, json)?
            }
            ("vdev", ["move", vdev, slice, options @ ..]) => {
                vdevs::go_over(host, vdev, slice, options, command, json)?
            }
            ("vdev", ["destroy", vdev]) => vdevs::destroy(host, vdev, false, json)?,
            ("vdev", ["destroy", vdev, "now"]) => vdevs::destroy(host, vdev, true, json)?,
            ("vdev", ["irq", vdev, vectors, verb @ ..]) => {
                vdevs::irq(host, vdev, vectors, verb, command, json)?
            }
            ("vdev", [vdev]) => {
                let vdev = find_vdev(host, vdev)?;
                answer(json, &vdev, || show::vdev(&vdev))
            }
            ("parents", []) => {
                let parents = host.parents();
                answer(json, &parents, || show::taints(&host.system()) + &show::parents(&parents))
            }
            ("parent", [name, "reset"]) => {
                let parents = host.parents();
                if !parents.iter().any(|parent| parent.name == *name) {
                    let names = parents.iter().map(|parent| parent.name.as_str());
                    return Err(unknown("parent", name, names));
                }
                let held = host.reset_parent(name)?;
                let held = match held {
                    0 => String::new(),
                    held => format!("; {held} things are still held, see iommu"),
                };
                done(json, &format!("parent {name} reset{held}"))
            }
            ("pasids", []) => {
                let pasids = host.pasids();
                answer(json, &pasids, || show::pasids(&pasids, host.now_ns()))
            }
            ("iommu", []) => {
                let system = host.system();
                let state = show::IommuState {
                    taints: &system.taints,
                    iommu: &system.iommu,
                    retired: &system.retired,
                    revived: system.revived,
                    uptime_ns: system.uptime_ns,
                    stray_interrupts: system.stray_interrupts,
                };
                answer(json, &state, || show::taints(&system) + &show::iommu(&state))
            }
            ("ioas", arguments) => spaces::ioas(host, arguments, command, json)?,
            ("faults", []) => {
                let faults = host.faults();
                answer(json, &faults, || show::faults(&faults))
            }
            ("interrupts", []) => {
                let vdevs = vdev_rows(&host.vms(), host);
                let rows = show::interrupt_rows(&vdevs, |vdev| host.vectors(vdev));
                answer(json, &rows, || show::interrupts(&rows))
            }
            ("exits", []) => {
                let vms = host.vms();
                answer(json, &show::exits_rows(&vms), || show::exits(&vms))
            }
            ("top", []) => return Ok(self.top(host, json)),
            ("console", [vm]) => return self.console(host, vm, json),
            ("log", []) => log_level(host, json),
            ("log", [level]) => {
                let known = LEVELS.iter().find(|(name, _)| name == level);
                let Some((_, level)) = known else {
                    return Err(unknown("level", level, LEVELS.iter().map(|(name, _)| *name)));
                };
                host.set_log_level(*level);
                log_level(host, json)
            }
            ("version", []) => {
                let system = host.system();
                version(&system, json)
            }
            ("shutdown", []) => {
                host.power(HostPower::Off)?;
                done(json, "switching off")
            }
            ("reboot", []) => {
                host.power(HostPower::Reset)?;
                done(json, "resetting")
            }
            _ => return Err(command.misused()),
        };
        Ok(Reply::Text(text))
    }

    fn top(&mut self, host: &dyn MonitorHost, json: bool) -> Reply {
        let sample = Sample::take(host);
        let last = self.last.take();
        let reply = if json {
            Reply::Text(sample.json(last.as_ref()))
        } else if self.mode == ConsoleMode::Framed {
            Reply::Text(sample.text(last.as_ref()))
        } else {
            self.live = true;
            Reply::Live(sample.text(last.as_ref()) + LIVE_HINT)
        };
        self.last = Some(sample);
        reply
    }

    fn console(&self, host: &dyn MonitorHost, vm: &str, json: bool) -> Result<Reply, Refusal> {
        let vm = find_vm(host, vm)?;
        let Some(index) = host.console_of(&vm.name) else {
            return Err(Refusal::new(
                format!("console {}", vm.name),
                "it was not made, so it has no console",
                "`vms` says why it was not",
            ));
        };
        match self.mode {
            ConsoleMode::Plain if json => Err(Refusal::new(
                format!("console {}", vm.name),
                "the line is one for people",
                "leave out --json, or use console = \"framed\" in the configuration",
            )),
            ConsoleMode::Plain => Ok(Reply::Enter(index)),
            ConsoleMode::Framed => {
                let channel = Channel { channel: index + usize::from(FIRST_VM_CHANNEL) };
                Ok(Reply::Text(answer(json, &channel, || {
                    format!("the console of {} is channel {}\n", vm.name, channel.channel)
                })))
            }
        }
    }
}

/// What stands under a live display.
const LIVE_HINT: &str = "\nany key ends this\n";
/// What helps who is lost.
const HELP_HINT: &str = "help lists the commands";

#[derive(Serialize)]
struct Channel {
    channel: usize,
}

#[derive(Serialize)]
struct Failure<'a> {
    error: FailureParts<'a>,
}

#[derive(Serialize)]
struct FailureParts<'a> {
    what: &'a str,
    why: &'a str,
    remedy: &'a str,
}

impl<'a> From<&'a Refusal> for Failure<'a> {
    fn from(refusal: &'a Refusal) -> Self {
        let Refusal { what, why, remedy } = refusal;
        Self { error: FailureParts { what, why, remedy } }
    }
}

/// One line of JSON.
fn json(value: &impl Serialize) -> String {
    match serde_json::to_string(value) {
        Ok(line) => line + "\n",
        // No type here can fail; should one ever, the answer stays JSON.
        Err(_) => String::from("{\"error\":{\"what\":\"monitor\",\"why\":\"no JSON\",\"remedy\":\"\"}}\n"),
    }
}

fn answer(as_json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> String {
    if as_json { json(value) } else { text() }
}

fn done(as_json: bool, what: &str) -> String {
    #[derive(Serialize)]
    struct Done<'a> {
        done: &'a str,
    }
    answer(as_json, &Done { done: what }, || format!("{what}\n"))
}

/// The refusal of a word that is not known.
fn unknown<'a>(what: &str, word: &str, known: impl IntoIterator<Item = &'a str>) -> Refusal {
    let known: Vec<&str> = known.into_iter().collect();
    let remedy = match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if what == "command" => HELP_HINT.to_string(),
        None if known.is_empty() => format!("there is no {what}"),
        None => format!("known: {}", known.join(", ")),
    };
    let shown: String = word.chars().take(40).collect();
    Refusal::new("monitor", format!("unknown {what} {shown}"), remedy)
}

fn find_vm(host: &dyn MonitorHost, name: &str) -> Result<VmInfo, Refusal> {
    let vms = host.vms();
    match vms.iter().find(|vm| vm.name == name) {
        Some(vm) => Ok(vm.clone()),
        None => Err(unknown("vm", name, vms.iter().map(|vm| vm.name.as_str()))),
    }
}

/// Every vdev, in the order of the VMs.
fn vdev_rows(vms: &[VmInfo], host: &dyn MonitorHost) -> Vec<VdevRow> {
    let row = |info: &crate::monitor::info::VdevInfo| VdevRow {
        name: vdev_name(&info.parent, &info.type_name, info.id),
        submission_exits: host.submission_exits(info.id),
        info: info.clone(),
    };
    vms.iter().flat_map(|vm| &vm.vdevs).map(row).collect()
}

/// By number (`3`, `#3`) or whole name.
fn find_vdev(host: &dyn MonitorHost, word: &str) -> Result<VdevRow, Refusal> {
    let vdevs = vdev_rows(&host.vms(), host);
    let number = word.strip_prefix('#').unwrap_or(word).parse::<u32>().ok();
    let names: Vec<String> = vdevs.iter().map(|vdev| vdev.name.clone()).collect();
    let found = vdevs.into_iter().find(|vdev| Some(vdev.info.id) == number || vdev.name == word);
    found.ok_or_else(|| unknown("vdev", word, names.iter().map(String::as_str)))
}

fn help(as_json: bool) -> String {
    #[derive(Serialize)]
    struct Known {
        name: &'static str,
        usage: &'static [&'static str],
        about: &'static str,
    }
    let known =
        |command: &'static Command| Known { name: command.name, usage: command.usage, about: command.about };
    answer(as_json, &COMMANDS.iter().map(known).collect::<Vec<_>>(), || {
        let mut table = Table::new(["COMMAND", "WHAT IT DOES"]);
        for command in &COMMANDS {
            for (number, usage) in command.usage.iter().enumerate() {
                let about = if number == 0 { command.about } else { "" };
                table.row([usage.to_string(), about.to_string()]);
            }
        }
        table.render()
            + "\nWith --json a command answers in one line of JSON. Ctrl-] switches between monitor and guest.\n"
    })
}

fn explain(topic: &str, as_json: bool) -> Result<String, Refusal> {
    #[derive(Serialize)]
    struct Explained<'a> {
        name: &'a str,
        text: &'a str,
    }
    let Some(command) = command(topic) else {
        return Err(unknown("command", topic, COMMANDS.iter().map(|known| known.name)));
    };
    let text = command.explain();
    let explained = Explained { name: command.name, text: &text };
    Ok(answer(as_json, &explained, || text.clone()))
}

fn log_level(host: &dyn MonitorHost, as_json: bool) -> String {
    #[derive(Serialize)]
    struct Level {
        level: &'static str,
    }
    let level = level_name(host.log_level());
    answer(as_json, &Level { level }, || format!("log level {level}\n"))
}

fn version(system: &SystemInfo, as_json: bool) -> String {
    let version = show::Version { name: "Pasidon", version: VERSION, system };
    answer(as_json, &version, || show::taints(system) + &show::version(&version))
}
