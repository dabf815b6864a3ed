// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a checked `pasidon.toml` says. Each value knows its place, so that a check that needs the machine
//! can still point at the line that asked for what is not there.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::error::{ConfigError, Position, Scope, Spanned};
use crate::base::addr::Requester;
use crate::base::refusal::Refusal;
use crate::dma::address_space::AddressSpace;
use crate::dma::pasid::NamespaceScope;

/// The whole file. Everything in it is consistent as far as the text alone can tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// `[host]`.
    pub host: HostConfig,
    /// `[parent.NAME]`, in the order of the file, without those in which an error was found.
    pub parents: Vec<ParentConfig>,
    /// `[[vm]]`, in the order of the file, without those in which an error was found.
    pub vms: Vec<VmConfig>,
}

/// `[host]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostConfig {
    /// What Pasidon does on this machine.
    pub mode: Spanned<Mode>,
    /// The least severe messages that are printed.
    pub log: Spanned<log::LevelFilter>,
    /// How the serial line is shared.
    pub console: Spanned<ConsoleMode>,
    /// The largest PASID that is given out; `None`: the largest that the IOMMU understands.
    pub last_pasid: Option<Spanned<u16>>,
    /// Whether PASIDs differ on the whole host, or on each device.
    pub pasid_namespace: Spanned<NamespaceScope>,
    /// Files of VMs that may be defined later: paths on the ESP, each once, without blanks.
    pub definitions: Vec<Spanned<String>>,
}

/// A file of VMs that may be defined later.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Definition {
    /// Its place in [`HostConfig::definitions`].
    pub index: usize,
    /// Its path on the ESP.
    pub path: String,
    /// Its VMs, none of which starts with the machine; empty where something is wrong with one of them or with the file.
    pub vms: Vec<VmConfig>,
    /// What that is.
    pub errors: Vec<ConfigError>,
}

/// What Pasidon does on a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// It takes the machine over and runs the VMs.
    Run,
    /// It lists what the machine has and what it would refuse there, changes nothing, and goes back to the firmware.
    Inventory,
}

/// How the serial line is shared between monitor and guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsoleMode {
    /// One at a time, for people.
    Plain,
    /// All at once in frames, for a program.
    Framed,
}

/// `[parent.NAME]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParentConfig {
    /// Its place among the `[parent.NAME]` sections of the file, counted from 0; the refused ones count too.
    pub index: usize,
    /// NAME.
    pub name: Spanned<String>,
    /// Which device it is.
    pub selector: Spanned<ParentSelector>,
    /// Whether an IOMMU confines it (`iommu = "on"`). False means: trapped types only, and TAINTED.
    pub iommu: Spanned<bool>,
    /// Portals are mapped even where the device is known to be unsafe for that.
    pub allow_unsafe_portals: Spanned<bool>,
    /// Entries of the work queue that vdevs of a trapped type share; `None` leaves it to the driver.
    pub shared_entries: Option<Spanned<u16>>,
}

/// Which physical device a parent is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParentSelector {
    /// `pci`: the device at this place.
    Pci(Requester),
    /// `match`: the only device with these IDs.
    Match {
        /// PCI vendor ID.
        vendor: u16,
        /// PCI device ID.
        device: u16,
    },
}

impl core::fmt::Display for ParentSelector {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Pci(requester) => write!(f, "pci = \"{requester}\""),
            Self::Match { vendor, device } => write!(f, "match = \"{vendor:04x}:{device:04x}\""),
        }
    }
}

/// `[[vm]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmConfig {
    /// Its place among the `[[vm]]` sections of the file, counted from 0; the refused ones count too. The
    /// framed console's channel is this plus one.
    pub index: usize,
    /// Where the section's heading stands.
    pub at: Position,
    /// Its name, unlike every other VM's.
    pub name: Spanned<String>,
    /// Size of its memory in bytes: a multiple of 2 MiB, from 16 MiB to 1 TiB.
    pub memory: Spanned<u64>,
    /// Path of the kernel on the ESP, from its root, with `/` between components.
    pub kernel: Spanned<String>,
    /// Path of the initial RAM disk.
    pub initrd: Option<Spanned<String>>,
    /// Kernel command line, at most 2047 bytes, without NUL.
    pub cmdline: Spanned<String>,
    /// Quota of PASIDs; at least the number of vdevs.
    pub pasids: Spanned<u16>,
    /// Slots of its PCI bus, 0 to 248; at least the number of vdevs.
    pub slots: Spanned<u8>,
    /// Number of vCPUs: 1.
    pub vcpus: Spanned<u16>,
    /// Starts with the machine.
    pub autostart: Spanned<bool>,
    /// What a reset by the guest does.
    pub on_reboot: Spanned<OnReboot>,
    /// Its virtual devices, in the order of the file.
    pub vdevs: Vec<VdevConfig>,
}

/// What a reset by the guest does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnReboot {
    /// The VM starts again from its kernel, with fresh memory.
    Restart,
    /// The VM stops.
    Stop,
}

/// `[[vm.vdev]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VdevConfig {
    /// Where the section's heading stands.
    pub at: Position,
    /// Name of a parent in [`Config::parents`].
    pub parent: Spanned<String>,
    /// Name of the type; whether the parent has it is for its driver to say.
    pub type_name: Spanned<String>,
    /// Entries of its work queue, at least 1; `None` leaves it to the driver.
    pub entries: Option<Spanned<u16>>,
    /// Its part of what it shares with others, 1 to 255; `None` leaves it to the driver.
    pub weight: Option<Spanned<u8>>,
    /// What its DMA reaches.
    pub space: Spanned<AddressSpace>,
}

impl Config {
    /// The parent of that name.
    pub fn parent(&self, name: &str) -> Option<&ParentConfig> {
        self.parents.iter().find(|parent| parent.name.value == name)
    }

    /// The VM of that name, unless it was refused.
    pub fn vm(&self, name: &str) -> Option<&VmConfig> {
        self.vms.iter().find(|vm| vm.name.value == name)
    }

    /// Takes out what errors found later are about: parents, and VMs.
    pub fn remove_refused(&mut self, errors: &[ConfigError]) {
        let refused = |scope: Scope| errors.iter().any(|error| error.scope == scope);
        self.parents.retain(|parent| !refused(Scope::Parent(parent.index)));
        self.vms.retain(|vm| !refused(Scope::Vm(vm.index)));
    }

    /// The same with the VMs of a definition in the place of its own.
    #[must_use]
    pub fn with_vms_of(&self, definition: &Definition) -> Self {
        Self { vms: definition.vms.clone(), ..self.clone() }
    }

    /// An error that stops everything, for checks that need the machine.
    pub fn error_at(&self, at: Position, what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
        ConfigError::new(Scope::Whole, at, what, remedy)
    }
}

impl Definition {
    /// Refuses it as a whole for errors of its VMs that were found later.
    pub fn refuse(&mut self, errors: impl IntoIterator<Item = ConfigError>) {
        let (scope, path) = (Scope::Definition(self.index), &self.path);
        let own = errors.into_iter().map(|error| ConfigError { scope, file: path.clone().into(), ..error });
        self.errors.extend(own);
        if !self.errors.is_empty() {
            self.vms.clear();
        }
    }
}

impl ParentConfig {
    /// An error that makes this parent unusable, for checks that need the machine. Reads
    /// `parent NAME: what; remedy`.
    pub fn error_at(
        &self,
        at: Position,
        what: impl core::fmt::Display,
        remedy: impl Into<String>,
    ) -> ConfigError {
        let what = format!("parent {}: {what}", self.name.value);
        ConfigError::new(Scope::Parent(self.index), at, what, remedy)
    }

    /// A refusal met while this parent was taken; the refusal names the parent itself.
    pub fn refused(&self, at: Position, refusal: &Refusal) -> ConfigError {
        ConfigError::from_refusal(Scope::Parent(self.index), at, refusal)
    }
}

impl VmConfig {
    /// The error of a file on the ESP that is missing or damaged; `key` is the one that names it.
    pub fn file_error(&self, key: &str, path: &Spanned<String>, why: impl core::fmt::Display) -> ConfigError {
        let what = format!("{key} \"{}\": {why}", path.value);
        self.error_at(path.at, what, "put a good one there or correct the path")
    }

    /// What the loader refused about this VM's files, memory or command line: it stands at what is to blame, with the
    /// loader's remedy.
    pub fn image_refused(&self, refusal: &Refusal) -> ConfigError {
        let Refusal { what, why, remedy } = refusal;
        match (what.as_str(), &self.initrd) {
            ("memory", _) => self.error_at(self.memory.at, format_args!("memory: {why}"), remedy.as_str()),
            ("command line", _) => {
                self.error_at(self.cmdline.at, format_args!("cmdline: {why}"), remedy.as_str())
            }
            ("initrd", Some(path)) => {
                let what = format!("initrd \"{}\": {why}", path.value);
                self.error_at(path.at, what, remedy.as_str())
            }
            _ => {
                let what = format!("kernel \"{}\": {why}", self.kernel.value);
                self.error_at(self.kernel.at, what, remedy.as_str())
            }
        }
    }

    /// An error that stops this VM, for checks that need the machine. Reads `vm NAME: what; remedy`.
    pub fn error_at(
        &self,
        at: Position,
        what: impl core::fmt::Display,
        remedy: impl Into<String>,
    ) -> ConfigError {
        let what = format!("vm {}: {what}", self.name.value);
        ConfigError::new(Scope::Vm(self.index), at, what, remedy)
    }

    /// A refusal met while this VM was built; `at` is the value that asked for what was refused. The
    /// refusal names the VM itself.
    pub fn refused(&self, at: Position, refusal: &Refusal) -> ConfigError {
        ConfigError::from_refusal(Scope::Vm(self.index), at, refusal)
    }
}
