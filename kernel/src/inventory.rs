// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a machine has and what Pasidon would refuse there, in words, page by page.
//!
//! **Principle.** What is refused comes from the checks that the start itself makes, each as its own [`Refusal`]: here
//! they only get a column for what they stop. So the two cannot disagree.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::base::refusal::Refusal;
use crate::base::table::{Table, fold};
use crate::config::{Config, ConfigError, Scope};

/// Spaces before what stands under a title.
const INDENT: usize = 2;
/// Widest lines, in characters, however wide the console is.
pub const WIDEST: usize = 100;

/// What a refusal stops.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stops {
    /// Nothing runs.
    Everything,
    /// No device can be shared behind an IOMMU.
    Sharing,
    /// This device, parent or VM.
    One(String),
}

impl Stops {
    /// What an error of the configuration stops.
    pub fn of(error: &ConfigError, config: &Config) -> Self {
        let parent = |index| config.parents.iter().find(|parent| parent.index == index);
        let vm = |index| config.vms.iter().find(|vm| vm.index == index);
        match error.scope {
            Scope::Whole => Self::Everything,
            Scope::Parent(index) => Self::One(match parent(index) {
                Some(parent) => alloc::format!("parent {}", parent.name.value),
                None => "a parent".to_string(),
            }),
            Scope::Vm(index) => Self::One(match vm(index) {
                Some(vm) => alloc::format!("vm {}", vm.name.value),
                None => "a VM".to_string(),
            }),
            Scope::Definition(index) => Self::One(match config.host.definitions.get(index) {
                Some(path) => alloc::format!("definition {}", path.value),
                None => "a definition".to_string(),
            }),
        }
    }
}

impl core::fmt::Display for Stops {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Everything => "everything",
            Self::Sharing => "sharing",
            Self::One(what) => what,
        })
    }
}

/// What stands under a title.
enum Body {
    Facts(Vec<(String, String)>),
    Table(Table),
}

/// What was found, in the order in which it is shown.
#[derive(Default)]
pub struct Inventory {
    sections: Vec<(String, Body)>,
    refused: Vec<(Stops, Refusal)>,
}

impl Inventory {
    /// Of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds names with values.
    pub fn facts<N: Into<String>>(
        &mut self,
        title: impl Into<String>,
        facts: impl IntoIterator<Item = (N, String)>,
    ) {
        let facts = facts.into_iter().map(|(name, value)| (name.into(), value)).collect();
        self.sections.push((title.into(), Body::Facts(facts)));
    }

    /// Adds a table.
    pub fn table(&mut self, title: impl Into<String>, table: Table) {
        self.sections.push((title.into(), Body::Table(table)));
    }

    /// Notes what would be refused. The same line twice counts once.
    pub fn refuse(&mut self, stops: Stops, refusal: Refusal) {
        let entry = (stops, refusal);
        if !self.refused.contains(&entry) {
            self.refused.push(entry);
        }
    }

    /// Notes what would be refused of the configuration.
    pub fn refuse_configured(&mut self, config: &Config, errors: &[ConfigError]) {
        for error in errors {
            let place = alloc::format!("{}:{}", error.file, error.at);
            self.refuse(
                Stops::of(error, config),
                Refusal::new(place, error.what.as_str(), error.remedy.as_str()),
            );
        }
    }

    /// What it comes to, in a few words.
    pub fn summary(&self) -> String {
        let everything = self.refused.iter().any(|(stops, _)| *stops == Stops::Everything);
        let start = if everything { "Pasidon would not start here" } else { "Pasidon would start here" };
        match self.refused.len() {
            0 => alloc::format!("{start}, and refuse nothing"),
            1 => alloc::format!("{start}; 1 refusal"),
            count => alloc::format!("{start}; {count} refusals"),
        }
    }

    /// All of it as lines for a console of so many columns.
    pub fn render(&self, columns: usize) -> Vec<String> {
        let width = columns.min(WIDEST).saturating_sub(INDENT);
        let mut lines = Vec::new();
        let mut section = |title: &str, body: &str| {
            lines.push(String::new());
            lines.push(title.to_uppercase());
            let indent = " ".repeat(INDENT);
            lines.extend(body.lines().map(|line| alloc::format!("{indent}{line}")));
        };
        for (title, body) in &self.sections {
            match body {
                Body::Facts(facts) => section(title, &aligned(facts, width)),
                Body::Table(table) if table.is_empty() => section(title, "none"),
                Body::Table(table) => section(title, &table.render_within(width)),
            }
        }
        let title = "what Pasidon would refuse here, why, and what would help";
        if self.refused.is_empty() {
            section(title, "nothing that can be told without changing anything");
        } else {
            let mut table = Table::new(["STOPS", "WHAT", "WHY", "WHAT WOULD HELP"]);
            for (stops, Refusal { what, why, remedy }) in &self.refused {
                table.row([stops.to_string(), what.clone(), why.clone(), remedy.clone()]);
            }
            section(title, &table.render_within(width));
        }
        lines
    }
}

/// Names and values, the values aligned and folded.
fn aligned(facts: &[(String, String)], width: usize) -> String {
    const GAP: usize = 2;
    let names = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in facts {
        let folded = fold(value, width.saturating_sub(names + GAP));
        for (number, part) in folded.iter().enumerate() {
            let name = if number == 0 { name.as_str() } else { "" };
            out.push_str(alloc::format!("{name:names$}  {part}").trim_end());
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Parsed, parse};

    fn example() -> Inventory {
        let mut inventory = Inventory::new();
        inventory.facts("processor", [("name", "Some Processor".to_string()), ("x2APIC", "yes".to_string())]);
        inventory.table("accelerators", Table::new(["FUNCTION"]));
        inventory
    }

    #[test]
    fn sections_follow_each_other_and_refusals_come_last() {
        let mut inventory = example();
        let title = "WHAT PASIDON WOULD REFUSE HERE, WHY, AND WHAT WOULD HELP";
        let found =
            ["", "PROCESSOR", "  name    Some Processor", "  x2APIC  yes", "", "ACCELERATORS", "  none"];
        let nothing = ["", title, "  nothing that can be told without changing anything"];
        assert_eq!(inventory.render(80), [&found[..], &nothing].concat());
        assert_eq!(inventory.summary(), "Pasidon would start here, and refuse nothing");
        for _ in 0..2 {
            inventory.refuse(Stops::Everything, Refusal::new("processor", "it has no SVM", "switch it on"));
        }
        assert_eq!(inventory.summary(), "Pasidon would not start here; 1 refusal");
        let refused = [
            "",
            title,
            "  STOPS       WHAT       WHY            WHAT WOULD HELP",
            "  everything  processor  it has no SVM  switch it on",
        ];
        assert_eq!(inventory.render(80), [&found[..], &refused].concat());
    }

    #[test]
    fn errors_of_the_configuration_say_what_they_stop() {
        let text =
            "[host]\nmode = \"inventory\"\n[hots]\n[parent.dsa0]\npci = \"0000:00:04.0\"\n[[vm]]\nname = 1\n";
        let Parsed { config, errors, .. } = parse(text.as_bytes()).unwrap();
        let mut inventory = Inventory::new();
        inventory.refuse_configured(&config, &errors);
        let parent = &config.parents[0];
        let gone = parent.error_at(parent.selector.at, "the machine has no such device", "name another");
        inventory.refuse_configured(&config, &[gone]);
        let stops: Vec<String> = inventory.refused.iter().map(|(stops, _)| stops.to_string()).collect();
        assert_eq!(stops, ["everything", "a VM", "a VM", "a VM", "parent dsa0"]);
        assert_eq!(inventory.refused[4].1.what, "pasidon.toml:5:7");
    }

    #[test]
    fn no_line_is_wider_than_the_console_or_than_people_read() {
        let mut inventory = example();
        let long = "words of all kinds ".repeat(30);
        inventory.facts("facts", [("name", long.clone())]);
        inventory.refuse(Stops::Sharing, Refusal::new("vtd fed90000", long.clone(), long));
        for (columns, widest) in [(60, 60), (80, 80), (200, WIDEST)] {
            let lines = inventory.render(columns);
            assert!(lines.iter().all(|line| line.chars().count() <= widest), "{lines:#?}");
        }
    }
}
