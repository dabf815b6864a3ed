// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine under test as a QEMU command line.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Where Debian's ovmf package puts the firmware: the code, and the template of the variable store.
const FIRMWARE: [(&str, &str); 2] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];
/// Where Debian's packages put the option ROMs that QEMU loads by name.
const ROM_FOLDERS: [&str; 2] = ["/usr/share/seabios", "/usr/share/qemu"];
/// Debian packages with the firmware and the option ROMs above.
pub const PACKAGES: [&str; 3] = ["ovmf", "seabios", "qemu-system-data"];

/// The VT-d unit as Pasidon needs it: scalable mode with PASIDs, interrupt remapping with x2APIC.
const VTD: &str = "intel-iommu,x-scalable-mode=on,x-pasid-mode=on,intremap=on,eim=on";
/// PCI device number of the boot disk on the root bus.
const DISK_SLOT: &str = "0x2";
/// PCI device number of the first accelerator; further ones follow.
const DSA_SLOT: u32 = 4;

/// What the machine starts.
enum Boot {
    /// The EFI application on a disk image.
    Disk(PathBuf),
    /// A kernel that the firmware is handed directly.
    Linux {
        kernel: PathBuf,
        initrd: PathBuf,
        command_line: String,
    },
}

/// A machine: two processors, 2 GiB, VT-d, and what is added.
pub struct Platform {
    boot: Boot,
    cpus: u32,
    memory_mib: u32,
    iommu: Option<String>,
    devices: Vec<String>,
    accelerators: u32,
    arguments: Vec<OsString>,
}

impl Platform {
    /// A machine that boots the disk image at `path`, made with [`crate::image::Image`].
    pub fn disk(path: &Path) -> Platform {
        Platform::new(Boot::Disk(path.to_path_buf()))
    }

    /// A machine whose firmware starts a Linux kernel directly: the platform without a hypervisor.
    pub fn linux(kernel: &Path, initrd: &Path, command_line: &str) -> Platform {
        let (kernel, initrd) = (kernel.to_path_buf(), initrd.to_path_buf());
        Platform::new(Boot::Linux {
            kernel,
            initrd,
            command_line: command_line.to_owned(),
        })
    }

    fn new(boot: Boot) -> Platform {
        let iommu = Some(VTD.to_owned());
        let (devices, arguments) = (Vec::new(), Vec::new());
        Platform {
            boot,
            cpus: 2,
            memory_mib: 2048,
            iommu,
            devices,
            accelerators: 0,
            arguments,
        }
    }

    /// Sets the number of processors.
    pub fn cpus(mut self, cpus: u32) -> Platform {
        self.cpus = cpus;
        self
    }

    /// Sets the size of memory in MiB.
    pub fn memory_mib(mut self, memory_mib: u32) -> Platform {
        self.memory_mib = memory_mib;
        self
    }

    /// Takes the IOMMU away.
    pub fn without_iommu(mut self) -> Platform {
        self.iommu = None;
        self
    }

    /// Adds properties to the IOMMU's, such as `aw-bits=48`.
    pub fn iommu_properties(mut self, properties: &str) -> Platform {
        if let Some(iommu) = &mut self.iommu {
            iommu.push(',');
            iommu.push_str(properties);
        }
        self
    }

    /// Adds a DSA at the next slot from 00:04.0 on, with those properties (`""`, or such as `device-id=0x0b25`).
    pub fn dsa(mut self, properties: &str) -> Platform {
        let slot = DSA_SLOT + self.accelerators;
        let name = self.accelerators;
        self.accelerators += 1;
        let separator = if properties.is_empty() { "" } else { "," };
        self.device(&format!("dsa,id=dsa{name},addr={slot:#x}{separator}{properties}"))
    }

    /// Adds a device, as `-device` takes it.
    pub fn device(mut self, device: &str) -> Platform {
        self.devices.push(device.to_owned());
        self
    }

    /// Adds further arguments of QEMU.
    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Platform {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// The arguments of QEMU, without those for the serial line and for QMP.
    ///
    /// The firmware's variable store is copied to the folder `private`, since the machine writes to it.
    ///
    /// # Errors
    /// When there is no firmware on this system.
    pub fn command_line(&self, private: &Path) -> Result<Vec<OsString>> {
        let Some((code, variables)) = FIRMWARE.iter().find(|(code, _)| Path::new(code).is_file()) else {
            bail!(
                "no UEFI firmware at {}; run: sudo apt-get install {}",
                FIRMWARE[0].0,
                PACKAGES.join(" ")
            );
        };
        let own_variables = private.join("variables.fd");
        fs::copy(variables, &own_variables).with_context(|| format!("copying {variables}"))?;
        let mut line: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| line.extend(words.iter().map(OsString::from));
        add(&["-M", "q35,hpet=on", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        add(&[
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &format!("{}M", self.memory_mib),
        ]);
        add(&["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
        ROM_FOLDERS.iter().for_each(|folder| add(&["-L", folder]));
        let flash =
            |file: &str, more: &str| format!("if=pflash,format=raw,file={}{more}", file.replace(',', ",,"));
        add(&["-drive", &flash(code, ",readonly=on")]);
        add(&["-drive", &flash(&own_variables.to_string_lossy(), "")]);
        if let Some(iommu) = &self.iommu {
            add(&["-device", iommu]);
        }
        match &self.boot {
            Boot::Disk(path) => {
                let file = path.to_string_lossy().replace(',', ",,");
                add(&[
                    "-drive",
                    &format!("if=none,id=esp,format=raw,readonly=on,file={file}"),
                ]);
                add(&[
                    "-device",
                    &format!("virtio-blk-pci,drive=esp,bootindex=0,addr={DISK_SLOT}"),
                ]);
            }
            Boot::Linux {
                kernel,
                initrd,
                command_line,
            } => {
                add(&[
                    "-kernel",
                    &kernel.to_string_lossy(),
                    "-initrd",
                    &initrd.to_string_lossy(),
                ]);
                add(&["-append", command_line]);
            }
        }
        self.devices.iter().for_each(|device| add(&["-device", device]));
        line.extend(self.arguments.iter().cloned());
        Ok(line)
    }
}
