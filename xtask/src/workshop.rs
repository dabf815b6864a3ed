// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes for the harness what machines are started from.

use crate::{apt, freestanding, guests, platform, processor, uefi};
use anyhow::Result;
use pasidon_harness::{Application, Arch, Cpu, Engine, Linux, Qemu, Workshop};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The workshop of this checkout, for machines of one architecture. What it has made once it does not look at again: a
/// run of many scenarios tests one state of the sources.
pub struct Shop {
    arch: Arch,
    cpu: Cpu,
    qemu: Once<Qemu>,
    linux: Once<Linux>,
    /// By cargo features.
    applications: Mutex<BTreeMap<Vec<String>, Arc<Once<Application>>>>,
}

impl Shop {
    /// A workshop that has made nothing yet, for machines with processors `cpu`.
    pub fn new(arch: Arch, cpu: Cpu) -> Shop {
        Shop { arch, cpu, qemu: Once::default(), linux: Once::default(), applications: Mutex::default() }
    }
}

impl Workshop for Shop {
    fn arch(&self) -> Arch {
        self.arch
    }

    fn qemu(&self) -> Result<Qemu> {
        self.qemu.get(|| {
            self.cpu.check(self.arch)?;
            apt::need(pasidon_harness::platform::packages(self.arch))?;
            let program = platform::qemu(self.arch)?;
            let engine = |model| Ok::<_, anyhow::Error>(Engine { library: processor::engine()?, model });
            Ok(Qemu { program, engine: self.cpu.bochs_model().map(engine).transpose()? })
        })
    }

    fn plugin(&self, name: &str) -> Result<PathBuf> {
        platform::plugin(self.arch, name)
    }

    fn application(&self, features: &[&str]) -> Result<Application> {
        let features: Vec<String> = features.iter().map(|feature| (*feature).to_owned()).collect();
        let application = Arc::clone(locked(&self.applications).entry(features.clone()).or_default());
        application.get(|| uefi::build(self.arch, &features))
    }

    fn linux(&self) -> Result<Linux> {
        self.linux.get(|| guests::linux(self.arch))
    }

    fn initrd_with(&self, tool: &str) -> Result<PathBuf> {
        guests::with_tool(&self.linux()?, self.arch, tool)
    }

    fn self_test(&self) -> Result<PathBuf> {
        guests::self_test(&self.linux()?)
    }

    fn iommu_self_test(&self) -> Result<PathBuf> {
        freestanding::smmu()
    }

    fn pc_self_test(&self) -> Result<PathBuf> {
        freestanding::pc()
    }

    fn exits(&self) -> Result<PathBuf> {
        freestanding::exits()
    }

    fn shares(&self) -> Result<PathBuf> {
        freestanding::shares()
    }

    fn kvm(&self) -> Result<PathBuf> {
        guests::kvm(&self.linux()?, &self.exits()?)
    }
}

/// What the first who asks makes; who asks meanwhile waits for it. After a failure the next one tries again.
struct Once<T>(Mutex<Option<T>>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Once(Mutex::new(None))
    }
}

impl<T: Clone> Once<T> {
    fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut made = locked(&self.0);
        match &*made {
            Some(made) => Ok(made.clone()),
            None => Ok(made.insert(make()?).clone()),
        }
    }
}

/// What is in there changes in one step, so that whoever panicked with the lock left it whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
