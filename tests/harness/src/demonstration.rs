// SPDX-License-Identifier: MIT OR Apache-2.0
//! The demonstration: every guest of a configuration has its vdev copy, all at once, and Pasidon is asked what that
//! cost. `cargo xtask run` prints what came of it; scenarios judge it.

use crate::machine::Machine;
use crate::platform::Platform;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::time::Duration;
use toml::Table;

/// Firmware, Pasidon and a guest's kernel, up to its init.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// All copies of a guest, beside others.
const COPIES_TIMEOUT: Duration = Duration::from_secs(1500);

/// What a guest's `dsa-test` reported.
#[derive(Clone, Debug, PartialEq)]
pub struct Copies {
    /// The program that tested: `dmatest` where Linux has a driver for the accelerator, else `dsa-user`.
    pub by: String,
    /// Verified copies done.
    pub done: u64,
    /// Those of them that went wrong.
    pub failures: u64,
    /// As the program measured it, with its own filling and comparing not counted.
    pub per_second: String,
}

impl Copies {
    /// The pattern of the last line that `dsa-test` in the guest prints.
    pub const LINE: &str = "^PASIDON dsa-test by=.*$\n";

    /// Reads such a line.
    ///
    /// # Errors
    /// When the line reports an error or is something else.
    pub fn parse(line: &str) -> Result<Copies> {
        let rest = line
            .trim()
            .strip_prefix("PASIDON dsa-test ")
            .with_context(|| format!("no line of dsa-test: {line}"))?;
        let value = |name: &str| {
            let mut words = rest.split(' ').filter_map(|word| word.split_once('='));
            let found = words.find(|(key, _)| *key == name);
            found
                .map(|(_, value)| value.to_owned())
                .with_context(|| format!("the guest's dsa-test says: {rest}"))
        };
        Ok(Copies {
            by: value("by")?,
            done: value("copies")?.parse()?,
            failures: value("failures")?.parse()?,
            per_second: value("copies_per_second")?,
        })
    }

    /// Whether there were some, and all of them right.
    pub fn good(&self) -> bool {
        self.done > 0 && self.failures == 0
    }
}

/// A vdev as Pasidon's `vdevs --json` reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Vdev {
    /// The VM that owns it.
    pub vm: String,
    /// Its name, `dsa0/dsa-dwq#1`.
    pub name: String,
    /// The tag of its DMA.
    pub pasid: u64,
    /// Exits that submissions to its portal caused.
    pub submission_exits: u64,
    /// Interrupts of it that its VM got.
    pub interrupts: u64,
    /// DMA of it that was refused.
    pub fault_records: u64,
}

/// What came of the demonstration.
pub struct Results {
    /// Each VM with its copies, in the order of the configuration.
    pub guests: Vec<(String, Copies)>,
    /// Every vdev.
    pub vdevs: Vec<Vdev>,
}

/// The reference platform with the accelerator in the place that the demonstration's configuration names.
pub fn platform(platform: Platform) -> Platform {
    platform.dsa("")
}

/// Follows the VMs of `machine` through their copies, telling `say` what happens, and asks Pasidon about the vdevs.
///
/// # Errors
/// When a guest does not come up, reports an error, or does not finish in time.
pub fn follow(machine: &Machine, mut say: impl FnMut(String)) -> Result<Results> {
    let mut guests = Vec::new();
    for vm in machine.vms() {
        let console = machine.console(vm)?;
        console.expect("^PASIDON guest .* up$", BOOT_TIMEOUT)?;
        say(format!("{vm}: Linux is up after {:.1} s", console.time_of_match().as_secs_f32()));
    }
    for vm in machine.vms() {
        let console = machine.console(vm)?;
        let line = console.expect("^PASIDON (?:dsa-test by|.*error).*$\n", COPIES_TIMEOUT)?.swap_remove(0);
        say(format!("{vm}: {}", line.trim().trim_start_matches("PASIDON ")));
        guests.push((
            vm.clone(),
            Copies::parse(&line).with_context(|| format!("VM {vm}\n{}", machine.transcript()))?,
        ));
    }
    Ok(Results { guests, vdevs: vdevs(machine)? })
}

/// Every vdev there is, as the monitor reports it.
///
/// # Errors
/// When the answer is not what `vdevs --json` is documented to give.
pub fn vdevs(machine: &Machine) -> Result<Vec<Vdev>> {
    let answer = machine.monitor("vdevs")?;
    let Some(list) = answer.as_array() else { bail!("vdevs --json: not a list: {answer}") };
    list.iter().map(vdev).collect()
}

fn vdev(entry: &Value) -> Result<Vdev> {
    let text = |name: &str| entry[name].as_str().map(str::to_owned);
    let number = |name: &str| entry[name].as_u64();
    let came = |line: &Value| line["came"].as_u64();
    let read = || {
        let lines = entry["interrupts"].as_array()?;
        Some(Vdev {
            vm: text("vm")?,
            name: text("name")?,
            pasid: number("pasid")?,
            submission_exits: number("submission_exits")?,
            interrupts: lines.iter().map(came).sum::<Option<u64>>()?,
            fault_records: number("fault_records")?,
        })
    };
    read().with_context(|| {
        format!("vdevs --json: no vm, name, pasid, submission_exits, interrupts or fault_records in {entry}")
    })
}

/// `configuration` with the framed console that the harness reads.
///
/// # Errors
/// When it is no TOML, or `host` in it is no table.
pub fn framed(configuration: &str) -> Result<String> {
    let mut table: Table = toml::from_str(configuration).context("in the configuration")?;
    let host = table.entry("host").or_insert_with(|| toml::Value::Table(Table::new()));
    let host = host.as_table_mut().context("in the configuration: host is no table")?;
    host.insert("console".to_owned(), toml::Value::String("framed".to_owned()));
    Ok(toml::to_string(&table)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_framed_console_is_added_to_a_configuration() {
        let framed = framed("[host]\nlog = \"info\"\n[[vm]]\nname = \"alpha\"\n").unwrap();
        let table: Table = toml::from_str(&framed).unwrap();
        assert_eq!(table["host"]["console"].as_str(), Some("framed"));
        assert_eq!(table["vm"][0]["name"].as_str(), Some("alpha"));
    }

    #[test]
    fn reads_a_vdev_and_misses_what_is_not_there() {
        let mut entry = json!({
            "vm": "alpha",
            "name": "dsa0/dsa-dwq#1",
            "pasid": 3,
            "submission_exits": 7,
            "interrupts": [{ "came": 2 }, { "came": 9 }],
            "fault_records": 1,
        });
        let wanted = Vdev {
            vm: "alpha".into(),
            name: "dsa0/dsa-dwq#1".into(),
            pasid: 3,
            submission_exits: 7,
            interrupts: 11,
            fault_records: 1,
        };
        assert_eq!(vdev(&entry).unwrap(), wanted);
        entry["pasid"] = Value::Null;
        assert!(vdev(&entry).is_err());
    }

    #[test]
    fn reads_the_guests_line() {
        let line = "PASIDON dsa-test by=dmatest copies=10000 failures=2 copies_per_second=123.4\n";
        let result = Copies::parse(line).unwrap();
        assert_eq!((result.done, result.failures, result.by.as_str()), (10_000, 2, "dmatest"));
        assert!(!result.good());
        let error = Copies::parse("PASIDON dsa-test by=dmatest error=\"no summary\"\n").unwrap_err();
        assert!(error.to_string().contains("no summary"));
        assert!(Copies::parse("PASIDON dsa dsa0 error=\"loading idxd\" cmd_status=").is_err());
    }
}
