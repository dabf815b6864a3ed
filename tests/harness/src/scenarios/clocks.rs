// SPDX-License-Identifier: MIT OR Apache-2.0
//! What time it is in a guest, by whichever clock it has, and what a guest makes of time that it did not see.

use super::pasidon::{BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, check, shell, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::line::Console;
use crate::machine::Machine;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds that a guest's date may be behind. Some are for whole seconds: the machine's clock starts with one, its
/// firmware sets it to one again, and a kernel without kvm-clock sets its own so. Most are for what Linux loses before it
/// has chosen a clock: it counts ticks until then, of which many come late on a slow machine.
const BEHIND: f64 = 60.0;
/// What is between a clock and the line that tells of it, in seconds.
const TOLERANCE: f64 = 0.05;

/// Clocks with and without the paravirtual one.
pub const CLOCKS: Scenario = Scenario {
    name: "guest-clocks",
    about: "guests with and without kvm-clock find the TSC's rate, and all know the date",
    arches: &[Arch::X86_64],
    cpus: Cpu::ALL,
    run: |lab| {
        // Without kvm-clock Linux measures the TSC, for which the accesses of this platform take too long.
        let rate = tsc_khz(lab)?;
        let guests = [
            ("alpha", String::new()),
            ("beta", format!("no-kvmclock tsc_early_khz={rate}")),
            ("gamma", format!("nopv tsc_early_khz={rate}")),
        ];
        let mut configuration = HOST.to_string();
        for (name, words) in &guests {
            configuration += &vm(name, 0, words);
        }
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        for (name, _) in guests {
            let console = shell(&machine, name)?;
            // `tsc-early` is the TSC before Linux has measured it by another clock. On a computer that is busy the
            // platform's clocks are so slow to read that it may never manage, or find the TSC at fault and take another.
            console.command("cd /sys/devices/system/clocksource/clocksource0", COMMAND_TIMEOUT)?;
            console.command("until grep -E '^(tsc|acpi_pm)' current*; do sleep 1; done", BOOT_TIMEOUT)?;
            keeps_time(&machine, name, console)?;
            check(&machine, console, "echo acpi_pm >current_clocksource; cat current*", "acpi_pm")?;
            keeps_time(&machine, name, console)?;
        }
        Ok(())
    },
};

/// Checks a guest's date, and the pace of the clock that it has.
fn keeps_time(machine: &Machine, name: &str, console: Console<'_>) -> Result<()> {
    let first = date(console)?;
    check(machine, console, "sleep 5; echo $((6 * 7))", "42")?;
    let second = date(console)?;
    for reading in [&first, &second] {
        ensure!(
            reading.before - BEHIND <= reading.date && reading.date <= reading.after + TOLERANCE,
            "{name}: {reading:?}\n{}",
            machine.transcript()
        );
    }
    let passed = second.date - first.date;
    let least = second.before - first.after - TOLERANCE;
    let most = second.after - first.before + TOLERANCE;
    ensure!(
        least <= passed && passed <= most,
        "{name}: {passed} s in {least} to {most}\n{}",
        machine.transcript()
    );
    Ok(())
}

/// The rate that Pasidon finds.
fn tsc_khz(lab: &Lab<'_>) -> Result<u64> {
    let machine = lab.pasidon(&[HOST, &vm("alpha", 0, "")].concat(), demonstration::platform)?;
    let said = machine.log().expect(r"TSC (\d+) MHz", BOOT_TIMEOUT)?;
    Ok(said[1].parse::<u64>()? * 1000)
}

/// A guest's clock, and the clock here before and after it was read; seconds since 1970.
#[derive(Debug)]
struct Reading {
    before: f64,
    date: f64,
    after: f64,
}

fn date(console: Console<'_>) -> Result<Reading> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs_f64());
    let before = now()?;
    let said = console.command("adjtimex | grep time.tv", COMMAND_TIMEOUT)?;
    let after = now()?;
    let field = |name: &str| -> Result<f64> {
        let line = said.lines().find(|line| line.contains(name));
        let number = line.and_then(|line| line.split_whitespace().last());
        let number = number.with_context(|| format!("no {name} in: {said}"))?;
        Ok(number.parse()?)
    };
    let date = field("tv_sec")? + field("tv_usec")? / 1e6;
    Ok(Reading { before, date, after })
}

/// A pause that is longer than a kernel's patience.
pub const PAUSE: Scenario = Scenario {
    name: "guest-pause",
    about: "a guest that was paused for longer than its kernel's stall detector waits goes on without a report; what its clocks say",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        const PATIENCE: u64 = 15;
        const PAUSE: u64 = 2 * PATIENCE;
        let patience = format!("rcupdate.rcu_cpu_stall_timeout={PATIENCE}");
        let configuration = [HOST, &vm("alpha", 0, &patience), &vm("beta", 0, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        let beta = shell(&machine, "beta")?;
        // Something that keeps asking for grace periods.
        alpha.command("mkdir /tmp/m; cd /tmp", COMMAND_TIMEOUT)?;
        alpha.command("while :; do mount -t tmpfs none m; umount m; done &", COMMAND_TIMEOUT)?;
        let uptime = || seconds(alpha, "cut -d. -f1 /proc/uptime");
        let before = uptime()?;
        machine.monitor("vm alpha pause")?;
        // The other guest is the clock.
        let long = Duration::from_secs(10 * PATIENCE);
        beta.command(&format!("sleep {PAUSE}"), long)?;
        machine.monitor("vm alpha resume")?;
        let passed = uptime()? - before;
        // Waits for its end too, or the shell would tell of it in the midst of what follows.
        alpha.command("sleep 3; kill %1; wait", long)?;
        let reports = alpha
            .command("dmesg | grep -cE 'detected stall|kthread starved|soft lockup'", COMMAND_TIMEOUT)?;
        ensure!(reports.trim() == "0", "{reports} reports\n{}", machine.transcript());
        // On Arm the guest's time stands still with it; its real-time clock does not.
        let stands = lab.arch() == Arch::Aarch64;
        ensure!((passed < PAUSE) == stands, "{passed} s of uptime for {PAUSE} s\n{}", machine.transcript());
        if stands {
            let behind = || -> Result<u64> {
                let system = seconds(alpha, "date +%s")?;
                Ok(seconds(alpha, "cat /sys/class/rtc/rtc0/since_epoch")?.saturating_sub(system))
            };
            let (late, set) = (behind()?, {
                alpha.command("hwclock -us", COMMAND_TIMEOUT)?;
                behind()?
            });
            ensure!(
                late + 1 >= PAUSE && set < PATIENCE,
                "the date was {late} s behind the real-time clock, and {set} s after it was set\n{}",
                machine.transcript()
            );
        }
        Ok(())
    },
};

/// The number that a command prints.
fn seconds(console: Console<'_>, command: &str) -> Result<u64> {
    let said = console.command(command, COMMAND_TIMEOUT)?;
    said.trim().parse().with_context(|| format!("{command}: {said}"))
}
