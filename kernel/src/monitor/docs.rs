// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command reference in `docs/src/monitor.md` is made from the table of commands, with answers of a
//! small example system; a test keeps it so. `PASIDON_BLESS=1 cargo test -p pasidon-kernel` rewrites it.

use super::fake::FakeHost;
use super::*;
use crate::generated::check_page;

/// What is typed to show what a command answers; nothing for those that only do something.
fn examples(command: &Command) -> Vec<String> {
    match command.name {
        "help" | "console" | "shutdown" | "reboot" => Vec::new(),
        "vm" => vec!["vm alpha".into(), "vm alpha restart".into(), "vm define vms/gamma.toml".into()],
        "vdev" => vec!["vdev create beta dsa0/dsa-dwq entries=16".into(), "vdev dsa0/dsa-dwq#1".into()],
        "ioas" => vec!["ioas create alpha".into(), "ioas attach 3 dsa0/dsa-dwq#1".into()],
        "log" => vec!["log debug".into()],
        name => vec![name.into()],
    }
}

fn typed(line: &str) -> String {
    match Monitor::new(ConsoleMode::Framed).command(line, &mut FakeHost::new()) {
        Reply::Text(text) => text,
        other => panic!("{line}: {other:?}"),
    }
}

fn reference() -> String {
    let mut page = String::new();
    for command in &COMMANDS {
        page += &format!("### `{}`\n\n{}\n\n", command.name, command.about);
        page += &format!("```text\n{}\n```\n\n", command.usage.join("\n"));
        if !command.more.is_empty() {
            page += &format!("{}\n\n", command.more.join("\n"));
        }
        for example in examples(command) {
            page += &format!("```text\npasidon> {example}\n{}```\n\n", typed(&example));
        }
        if let Some(example) = examples(command).into_iter().next() {
            let value: serde_json::Value =
                serde_json::from_str(&typed(&format!("{example} --json"))).unwrap();
            let shape = serde_json::to_string_pretty(&shape(&value)).unwrap();
            page += &format!(
                "<details><summary>With <code>--json</code></summary>\n\n```json\n{shape}\n```\n\n</details>\n\n"
            );
        }
    }
    page
}

/// The first of each list says enough.
fn shape(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Array(items) => items.iter().take(1).map(shape).collect(),
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect()
        }
        other => other.clone(),
    }
}

#[test]
fn the_monitor_reference_is_up_to_date() {
    check_page("monitor.md", &reference());
}
