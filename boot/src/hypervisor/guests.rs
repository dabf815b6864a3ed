// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the configuration's VMs to what the kernel and the loader are asked for.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pasidon_arch::guest::boot::{self, BootImage};
use pasidon_arch::guest::layout;
use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::config::{Config, ConfigError, OnReboot, Scope, VmConfig};
use pasidon_kernel::memory::ram::RamRange;
use pasidon_kernel::memory::{BadGuestAddress, GuestMemory};
use pasidon_kernel::monitor::info::VmInfo;
use pasidon_kernel::vdev::VdevSpec;
use pasidon_kernel::vm::VmSpec;

/// What a VM boots, as named by the configuration.
pub struct Image {
    /// The VM's name.
    pub vm: String,
    /// What it boots.
    pub boot: BootImage<'static>,
}

/// What was read from the boot disk: the path in the configuration, and the bytes or why there are none.
pub type Files = [(String, Result<&'static [u8], String>)];

/// The bytes of a file.
fn file(files: &Files, path: &str) -> Result<&'static [u8], String> {
    files
        .iter()
        .find(|(name, _)| name == path)
        .map_or_else(|| Err(String::from("it was not read")), |(_, bytes)| bytes.clone())
}

/// Memory that forgets: lets the loader check an image without a guest.
struct Nowhere(u64);

impl GuestMemory for Nowhere {
    fn read(&self, address: GuestPhys, buffer: &mut [u8]) -> Result<(), BadGuestAddress> {
        buffer.fill(0);
        self.write(address, buffer)
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), BadGuestAddress> {
        let len = bytes.len() as u64;
        let inside = layout::ram_ranges(self.0).iter().any(|(start, size)| {
            let offset = address.0.checked_sub(start.0);
            offset.is_some_and(|offset| offset <= *size && len <= size - offset)
        });
        if inside { Ok(()) } else { Err(BadGuestAddress { address, len }) }
    }

    fn ram_size(&self) -> u64 {
        self.0
    }
}

/// Checks that each VM's files are there and that its kernel is one.
pub fn check_files(config: &Config, files: &Files) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    for vm in &config.vms {
        let before = errors.len();
        let kernel = file(files, &vm.kernel.value);
        if let Err(why) = &kernel {
            errors.push(vm.file_error("kernel", &vm.kernel, why));
        }
        let initrd = vm.initrd.as_ref().map(|path| (path, file(files, &path.value)));
        if let Some((path, Err(why))) = &initrd {
            errors.push(vm.file_error("initrd", path, why));
        }
        let (Ok(kernel), true) = (kernel, errors.len() == before) else {
            continue;
        };
        let image = BootImage {
            kernel,
            initrd: initrd.and_then(|(_, bytes)| bytes.ok()),
            cmdline: &vm.cmdline.value,
            seed: None,
        };
        if let Err(refusal) = boot::load(&Nowhere(vm.memory.value), &image) {
            errors.push(vm.image_refused(&refusal));
        }
    }
    errors
}

/// The VMs that those errors stop, for the monitor.
pub fn refused(vms: &[VmConfig], errors: &[ConfigError]) -> Vec<VmInfo> {
    let refused = |vm: &VmConfig| {
        let error = errors.iter().find(|error| error.scope == Scope::Vm(vm.index))?;
        Some(VmInfo::refused(vm, error.to_string()))
    };
    vms.iter().filter_map(refused).collect()
}

/// What each VM boots. Those whose files are missing were refused by [`check_files`].
pub fn images(config: &Config, files: &Files) -> Vec<Image> {
    let image = |vm: &VmConfig| {
        Some(Image {
            vm: vm.name.value.clone(),
            boot: BootImage {
                kernel: file(files, &vm.kernel.value).ok()?,
                initrd: match &vm.initrd {
                    Some(path) => Some(file(files, &path.value).ok()?),
                    None => None,
                },
                // VMs stay defined for as long as the machine runs.
                cmdline: Box::leak(vm.cmdline.value.clone().into_boxed_str()),
                // Each start gets its own.
                seed: None,
            },
        })
    };
    config.vms.iter().filter_map(image).collect()
}

/// The VM that a section of the configuration asks for.
pub fn spec(vm: &VmConfig) -> VmSpec {
    let ranges = layout::ram_ranges(vm.memory.value);
    VmSpec {
        name: vm.name.value.clone(),
        ram: ranges
            .into_iter()
            .filter(|(_, len)| *len > 0)
            .map(|(start, len)| RamRange { start, len })
            .collect(),
        vcpus: vm.vcpus.value,
        pasid_quota: vm.pasids.value.into(),
        restart_on_reset: vm.on_reboot.value == OnReboot::Restart,
        vdevs: vm
            .vdevs
            .iter()
            .map(|vdev| VdevSpec {
                parent: vdev.parent.value.clone(),
                type_name: vdev.type_name.value.clone(),
                entries: vdev.entries.as_ref().map(|entries| entries.value),
            })
            .collect(),
    }
}
