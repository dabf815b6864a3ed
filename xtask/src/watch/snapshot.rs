// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the monitor says about a machine at one moment.
//!
//! The shapes are the kernel's own types. Any part may be missing: refused, not understood, or lost with the end of a
//! recorded line. Invariant: no text in here has a character that could do something to a terminal, whoever chose it.

use pasidon_kernel::dma::fault_log::FaultsInfo;
use pasidon_kernel::monitor::info::{ParentInfo, PasidInfo, PcpuInfo, SystemInfo, VdevRow, VmInfo};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What is asked, in this order. All of it only reads; the first one begins a snapshot.
pub const COMMANDS: [&str; 6] = ["version", "vms", "top", "pasids", "parents", "faults"];
/// Longer texts are cut.
const LONGEST_TEXT: usize = 500;

/// A moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When it was, in nanoseconds since the machine's boot.
    pub time_ns: Option<u64>,
    /// The hypervisor as a whole.
    pub system: Option<SystemInfo>,
    /// The VMs.
    pub vms: Option<Vec<VmInfo>>,
    /// The processors.
    pub pcpus: Option<Vec<PcpuInfo>>,
    /// The vdevs.
    pub vdevs: Option<Vec<VdevRow>>,
    /// PASIDs, those that are retired included.
    pub pasids: Option<Vec<PasidInfo>>,
    /// The shared devices.
    pub parents: Option<Vec<ParentInfo>>,
    /// DMA that was refused.
    pub faults: Option<FaultsInfo>,
    /// What is missing, and why.
    pub notes: Vec<String>,
}

/// What is used of `top`: its rates depend on who asked last.
#[derive(Deserialize)]
struct Top {
    uptime_ns: u64,
    pcpus: Vec<PcpuInfo>,
    vdevs: Vec<VdevRow>,
}

impl Snapshot {
    /// Takes the answer to one of [`COMMANDS`]; a refusal, or what does not fit, becomes a note.
    pub fn take(&mut self, command: &str, answer: Value) {
        let answer = without_controls(answer);
        if let Some(error) = answer.get("error") {
            let why = error.get("why").and_then(Value::as_str).unwrap_or("refused");
            self.notes.push(format!("{command}: {why}"));
            return;
        }
        if let Err(why) = self.read(command, answer) {
            self.notes
                .push(format!("{command}: the answer is of another version: {}", plain(&why.to_string())));
        }
    }

    fn read(&mut self, command: &str, answer: Value) -> serde_json::Result<()> {
        fn of<T: DeserializeOwned>(answer: Value) -> serde_json::Result<Option<T>> {
            serde_json::from_value(answer).map(Some)
        }
        match command {
            "version" => {
                self.system = of(answer)?;
                self.time_ns = self.system.as_ref().map(|system| system.uptime_ns);
            }
            "vms" => self.vms = of(answer)?,
            "top" => {
                let Top { uptime_ns, pcpus, vdevs } = serde_json::from_value(answer)?;
                self.time_ns.get_or_insert(uptime_ns);
                (self.pcpus, self.vdevs) = (Some(pcpus), Some(vdevs));
            }
            "pasids" => self.pasids = of(answer)?,
            "parents" => self.parents = of(answer)?,
            "faults" => self.faults = of(answer)?,
            _ => {}
        }
        Ok(())
    }

    /// Which of [`COMMANDS`] an answer on a recorded line is for, as seen from what came before it. A list without
    /// anything in it does not tell: it is the next one that is missing.
    pub fn command_of(&self, answer: &Value) -> Option<&'static str> {
        let has = |fields: &[&str], value: &Value| fields.iter().all(|field| value.get(field).is_some());
        match answer {
            Value::Object(_) if has(&["version", "uptime_ns"], answer) => Some("version"),
            Value::Object(_) if has(&["pcpus", "uptime_ns"], answer) => Some("top"),
            Value::Object(_) if has(&["faults", "records"], answer) => Some("faults"),
            Value::Array(list) => match list.first() {
                Some(vm) if has(&["vcpus", "exits"], vm) => Some("vms"),
                Some(pasid) if has(&["pasid", "used_before"], pasid) => Some("pasids"),
                Some(parent) if has(&["requester", "types"], parent) => Some("parents"),
                Some(_) => None,
                None if self.pcpus.is_none() => self.vms.is_none().then_some("vms"),
                None if self.pasids.is_none() => Some("pasids"),
                None => self.parents.is_none().then_some("parents"),
            },
            _ => None,
        }
    }

    /// The parent of that name.
    pub fn parent(&self, name: &str) -> Option<&ParentInfo> {
        self.parents.as_ref()?.iter().find(|parent| parent.name == name)
    }

    /// Whether guests reach a vdev's queue without an exit; `None` where that is not known.
    pub fn is_direct(&self, vdev: &VdevRow) -> Option<bool> {
        let types = &self.parent(&vdev.info.parent)?.types;
        types.iter().find(|kind| kind.name == vdev.info.type_name).map(|kind| kind.direct_portal)
    }
}

/// The same with every text made [`plain`].
fn without_controls(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(plain(&text)),
        Value::Array(items) => items.into_iter().map(without_controls).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name, without_controls(value))).collect()
        }
        other => other,
    }
}

/// The text on one line, with characters that steer a terminal or turn the order of others around spelled out.
pub fn plain(text: &str) -> String {
    let mut shown = String::new();
    for (number, c) in text.chars().enumerate() {
        if number == LONGEST_TEXT {
            shown.push('…');
            break;
        }
        match c {
            c if c.is_control() => shown.extend(c.escape_unicode()),
            // Soft hyphen, zero width, directions, and what else is not seen.
            '\u{ad}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}' => {
                shown.extend(c.escape_unicode());
            }
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_steers_a_terminal_is_spelled_out() {
        assert_eq!(plain("a\x1b[2Jb\r\n\u{9b}\u{202e}ü"), "a\\u{1b}[2Jb\\u{d}\\u{a}\\u{9b}\\u{202e}ü");
        assert_eq!(plain(&"x".repeat(LONGEST_TEXT + 1)), format!("{}…", "x".repeat(LONGEST_TEXT)));
        let mut snapshot = Snapshot::default();
        snapshot
            .take("version", json!({ "error": { "what": "monitor", "why": "un\x07known", "remedy": "" } }));
        assert_eq!(snapshot.notes, ["version: un\\u{7}known"]);
    }

    #[test]
    fn an_answer_of_another_shape_is_a_note_and_no_failure() {
        let mut snapshot = Snapshot::default();
        snapshot.take("vms", json!([{ "name": "alpha" }]));
        snapshot.take("top", json!(7));
        assert!(snapshot.vms.is_none() && snapshot.pcpus.is_none());
        assert_eq!(snapshot.notes.len(), 2, "{:?}", snapshot.notes);
    }

    #[test]
    fn an_empty_list_is_the_one_that_is_missing() {
        let mut snapshot = Snapshot::default();
        let top = json!({ "uptime_ns": 7, "pcpus": [], "vdevs": [] });
        for (answer, command) in [
            (json!([]), Some("vms")),
            (top, Some("top")),
            (json!([]), Some("pasids")),
            (json!([]), Some("parents")),
            (json!([]), None),
            (json!({ "done": "vm alpha stopped" }), None),
            (json!([{ "vdev": "dsa0/dsa-dwq#1", "entry": 1 }]), None),
        ] {
            assert_eq!(snapshot.command_of(&answer), command, "{answer}");
            if let Some(command) = command {
                snapshot.take(command, answer);
            }
        }
        assert!(snapshot.notes.is_empty(), "{:?}", snapshot.notes);
        assert_eq!((snapshot.time_ns, snapshot.parents), (Some(7), Some(Vec::new())));
    }
}
