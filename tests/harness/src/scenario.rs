// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a scenario is, and running a list of them.

use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::image::Image;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::workshop::Workshop;
use anyhow::{Result, bail};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// A test of the whole system, runnable by itself.
pub struct Scenario {
    /// What `cargo xtask test NAME` calls it.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// The architectures that it runs on.
    pub arches: &'static [Arch],
    /// And the processors, where the architecture has them.
    pub cpus: &'static [Cpu],
    /// Runs it.
    pub run: fn(&Lab<'_>) -> Result<()>,
}

/// What a scenario works with.
pub struct Lab<'w> {
    /// Where its files come from.
    pub workshop: &'w dyn Workshop,
    /// A folder for its disk images; kept after a failure.
    pub folder: PathBuf,
}

impl Lab<'_> {
    /// The architecture of the machines.
    pub fn arch(&self) -> Arch {
        self.workshop.arch()
    }

    /// Boots Pasidon with that configuration, the Linux guest's files on its disk, and the machine as `adapt` makes it.
    ///
    /// # Errors
    /// When a file cannot be made or QEMU cannot be started.
    pub fn pasidon(&self, configuration: &str, adapt: impl FnOnce(Platform) -> Platform) -> Result<Machine> {
        self.pasidon_built(configuration, &[], adapt)
    }

    /// Like [`Lab::pasidon`], with cargo features of the application.
    ///
    /// # Errors
    /// When a file cannot be made or QEMU cannot be started.
    pub fn pasidon_built(
        &self,
        configuration: &str,
        features: &[&str],
        adapt: impl FnOnce(Platform) -> Platform,
    ) -> Result<Machine> {
        self.pasidon_with(configuration, features, |image| image, adapt)
    }

    /// Like [`Lab::pasidon`], with cargo features of the application and further files on the disk.
    ///
    /// # Errors
    /// When a file cannot be made or QEMU cannot be started.
    pub fn pasidon_with(
        &self,
        configuration: &str,
        features: &[&str],
        fill: impl FnOnce(Image) -> Image,
        adapt: impl FnOnce(Platform) -> Platform,
    ) -> Result<Machine> {
        let configuration = &self.arch().configuration(configuration);
        let image =
            Image::new(&self.workshop.application(features)?, configuration).linux(&self.workshop.linux()?);
        let path = self.folder.join("disk.img");
        fill(image).write(&path)?;
        Machine::start(&self.workshop.qemu()?, &adapt(Platform::disk(self.arch(), &path)), configuration)
    }

    /// Boots Pasidon with that configuration and no files of guests, on a serial line that is one stream: for what
    /// starts no guest.
    ///
    /// # Errors
    /// When a file cannot be made or QEMU cannot be started.
    pub fn pasidon_without_guests(
        &self,
        configuration: &str,
        adapt: impl FnOnce(Platform) -> Platform,
    ) -> Result<Machine> {
        let path = self.folder.join("disk.img");
        Image::new(&self.workshop.application(&[])?, configuration).write(&path)?;
        Machine::start_plain(&self.workshop.qemu()?, &adapt(Platform::disk(self.arch(), &path)))
    }

    /// Boots the Linux guest on the machine itself, without Pasidon, with words added to its command line.
    ///
    /// # Errors
    /// When a file cannot be made or QEMU cannot be started.
    pub fn bare_linux(&self, words: &str, adapt: impl FnOnce(Platform) -> Platform) -> Result<Machine> {
        let initrd = self.workshop.linux()?.initrd;
        self.bare_linux_with(&initrd, words, adapt)
    }

    /// Like [`Lab::bare_linux`], with an initrd of the caller's.
    ///
    /// # Errors
    /// When a file cannot be made or QEMU cannot be started.
    pub fn bare_linux_with(
        &self,
        initrd: &Path,
        words: &str,
        adapt: impl FnOnce(Platform) -> Platform,
    ) -> Result<Machine> {
        let line = format!("console={} {} {words}", self.arch().console(), self.arch().slow());
        let kernel = self.workshop.linux()?.vmlinuz;
        let platform = adapt(Platform::linux(self.arch(), &kernel, initrd, &line));
        Machine::start_plain(&self.workshop.qemu()?, &platform)
    }
}

/// Picks the scenarios of those names that run on `arch` with processors `cpu`; no name means all. A name that ends in `*` stands for all that
/// start so.
///
/// # Errors
/// When a name fits no scenario of that architecture with those processors.
pub fn select<'a>(all: &'a [Scenario], names: &[String], arch: Arch, cpu: Cpu) -> Result<Vec<&'a Scenario>> {
    let here = |scenario: &&Scenario| scenario.arches.contains(&arch) && scenario.cpus.contains(&cpu);
    let fits = |scenario: &Scenario, name: &str| match name.strip_suffix('*') {
        Some(start) => scenario.name.starts_with(start),
        None => scenario.name == name,
    };
    for name in names {
        if !all.iter().any(|scenario| fits(scenario, name)) {
            bail!("no scenario {name}; `cargo xtask list` shows them all");
        }
        if !all.iter().filter(here).any(|scenario| fits(scenario, name)) {
            bail!(
                "scenario {name} does not run on {arch} with processors {cpu}; `cargo xtask list` shows where each one runs"
            );
        }
    }
    let chosen = |scenario: &&Scenario| names.is_empty() || names.iter().any(|name| fits(scenario, name));
    Ok(all.iter().filter(here).filter(chosen).collect())
}

/// What a run of several scenarios came to.
#[derive(Default)]
pub struct Outcome {
    /// How many passed.
    pub passed: usize,
    /// Those that failed, in the order of their ends.
    pub failed: Vec<Failure>,
}

/// A test that failed.
pub struct Failure {
    /// What runs it again.
    pub name: &'static str,
    /// Why, in one line.
    pub why: String,
}

/// Runs the scenarios, started in their order, so many `at_once`, and prints a line when one starts and when it ends,
/// behind that the reason of a failure.
pub fn run(
    scenarios: &[&Scenario],
    workshop: &dyn Workshop,
    folder: &Path,
    at_once: NonZero<usize>,
) -> Outcome {
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new(Outcome::default());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(scenario) = scenarios.get(index) else {
                break;
            };
            println!("scenario {} ({} of {}) …", scenario.name, index + 1, scenarios.len());
            let result = run_one(scenario, workshop, folder.join(scenario.name));
            let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(()) => outcome.passed += 1,
                Err(why) => outcome.failed.push(Failure {
                    name: scenario.name,
                    why: why.lines().next().unwrap_or_default().to_owned(),
                }),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..at_once.get().min(scenarios.len()) {
            scope.spawn(work);
        }
    });
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one scenario, says how it ended, and returns why it failed.
fn run_one(scenario: &Scenario, workshop: &dyn Workshop, folder: PathBuf) -> Result<(), String> {
    let started = Instant::now();
    let result = std::fs::create_dir_all(&folder)
        .map_err(anyhow::Error::from)
        .and_then(|()| (scenario.run)(&Lab { workshop, folder: folder.clone() }));
    let seconds = started.elapsed().as_secs_f32();
    match result {
        Ok(()) => {
            println!("scenario {}: passed in {seconds:.1} s", scenario.name);
            // A disk image is large and can be made again.
            let _ = std::fs::remove_dir_all(&folder);
            Ok(())
        }
        Err(error) => {
            let why = format!("{error:#}");
            println!("scenario {}: FAILED in {seconds:.1} s: {why}", scenario.name);
            Err(why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_name_and_by_the_start_of_a_name() {
        let scenario = |(name, arches, cpus)| Scenario { name, about: "", arches, cpus, run: |_| Ok(()) };
        let all = [
            ("platform-dsa", Arch::ALL, Cpu::ALL),
            ("boot", &[Arch::X86_64], Cpu::ALL),
            ("platform-boot", Arch::ALL, Cpu::ALL),
            ("posted", Arch::ALL, &[Cpu::Vmx]),
        ]
        .map(scenario);
        let chosen_on = |arch: Arch, names: &[&str]| -> Vec<&str> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            select(&all, &names, arch, Cpu::Tcg).unwrap().iter().map(|scenario| scenario.name).collect()
        };
        let chosen = |names: &[&str]| chosen_on(Arch::X86_64, names);
        assert_eq!(chosen(&[]), ["platform-dsa", "boot", "platform-boot"]);
        assert_eq!(chosen(&["boot"]), ["boot"]);
        assert_eq!(chosen(&["platform*"]), ["platform-dsa", "platform-boot"]);
        let select = |name: &str, arch, cpu| select(&all, &[name.to_owned()], arch, cpu);
        assert!(select("bot", Arch::X86_64, Cpu::Tcg).is_err());
        assert_eq!(chosen_on(Arch::Aarch64, &[]), ["platform-dsa", "platform-boot"]);
        assert!(select("boot", Arch::Aarch64, Cpu::Tcg).is_err());
        assert!(select("posted", Arch::X86_64, Cpu::Tcg).is_err());
        assert_eq!(select("posted", Arch::X86_64, Cpu::Vmx).unwrap().len(), 1);
    }
}
