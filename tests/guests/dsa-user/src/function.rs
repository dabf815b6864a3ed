// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PCI function in sysfs.
//!
//! Source: Linux, `Documentation/ABI/testing/sysfs-bus-pci`.

use anyhow::{Context, Result, ensure};
use pasidon_drivers::registers::Mmio;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const DEVICES: &str = "/sys/bus/pci/devices";
/// Intel DSA 1.0.
const VENDOR: &str = "0x8086";
const DEVICE: &str = "0x0b25";
/// Command register of the configuration header: memory space and bus master enable.
const COMMAND: u64 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// `O_SYNC`, with which the kernel maps a BAR uncached even where it is prefetchable.
const UNCACHED: i32 = rustix::fs::OFlags::SYNC.bits() as i32;

/// A PCI function that this program drives.
pub struct Function {
    /// Such as `0000:01:00.0`.
    pub address: String,
    /// Its folder in sysfs.
    pub path: PathBuf,
}

impl Function {
    /// The function with this address, or the first DSA. It must not have a kernel driver that drives it too.
    pub fn find(address: Option<&str>) -> Result<Self> {
        let address = match address {
            Some(address) => address.to_string(),
            None => first_dsa()?,
        };
        let path = Path::new(DEVICES).join(&address);
        ensure!(path.exists(), "no PCI function {address}; `ls {DEVICES}` shows which there are");
        let function = Self { address, path };
        if let Some(driver) = function.driver()
            && !driver.starts_with("uio")
        {
            anyhow::bail!(
                "{0} is driven by {driver}; take it away first: echo {0} >/sys/bus/pci/drivers/{driver}/unbind",
                function.address
            );
        }
        Ok(function)
    }

    /// The kernel driver that has it.
    pub fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.path.join("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Lets it answer at its BARs and send.
    pub fn enable(&self) -> Result<()> {
        // A UIO driver that has it has enabled it, and Linux refuses to do it a second time.
        if self.driver().is_none() {
            let enable = self.path.join("enable");
            fs::write(&enable, "1").with_context(|| format!("writing 1 to {}", enable.display()))?;
        }
        let path = self.path.join("config");
        let config = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let mut command = [0; 2];
        config.read_exact_at(&mut command, COMMAND)?;
        let command = u16::from_le_bytes(command) | COMMAND_MEMORY | COMMAND_BUS_MASTER;
        config.write_all_at(&command.to_le_bytes(), COMMAND)?;
        Ok(())
    }

    /// Maps a BAR, uncached. It stays mapped until the program ends.
    pub fn map_bar(&self, bar: u8) -> Result<(Mmio, *mut u8)> {
        let path = self.path.join(format!("resource{bar}"));
        let what = || format!("mapping {}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(UNCACHED)
            .open(&path)
            .with_context(what)?;
        let len = usize::try_from(file.metadata().with_context(what)?.len())?;
        let base = map_shared(&file, len).with_context(what)?;
        // SAFETY: the BAR of a device that no other driver has, mapped uncached for as long as the program runs.
        Ok((unsafe { Mmio::new(base, len) }, base))
    }
}

fn map_shared(file: &File, len: usize) -> Result<*mut u8> {
    // SAFETY: a new mapping where the kernel chooses.
    let base = unsafe {
        mmap(core::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)
    }?;
    Ok(base.cast())
}

fn first_dsa() -> Result<String> {
    let mut found: Vec<String> = fs::read_dir(DEVICES)
        .with_context(|| format!("reading {DEVICES}"))?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let is = |name: &str, value: &str| {
                fs::read_to_string(path.join(name)).is_ok_and(|text| text.trim() == value)
            };
            (is("vendor", VENDOR) && is("device", DEVICE))
                .then(|| path.file_name().map(|name| name.to_string_lossy().into_owned()))?
        })
        .collect();
    found.sort();
    found.into_iter().next().with_context(|| {
        format!("no DSA (8086:0b25) in {DEVICES}; give the VM a [[vm.vdev]] of type dsa-dwq in pasidon.toml")
    })
}
