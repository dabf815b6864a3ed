// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine under test as a QEMU command line.

use crate::arch::Arch;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// What differs between the architectures' machines.
struct Model {
    /// Where Debian puts the firmware: the code, and the template of the variable store. The first that is there.
    firmware: &'static [(&'static str, &'static str)],
    /// Debian packages with the firmware and with what QEMU loads by name.
    packages: &'static [&'static str],
    /// Folders of that.
    rom_folders: &'static [&'static str],
    machine: &'static str,
    cpu: &'static str,
    iommu: Iommu,
    /// A unit for another root bus, as a device without the name of that bus.
    further_unit: &'static str,
    /// Properties of the accelerator.
    dsa: &'static str,
}

/// How a machine gets its IOMMU.
enum Iommu {
    /// As a device.
    Device(&'static str),
    /// By a property of the machine.
    Machine(&'static str),
}

/// As Pasidon needs it: scalable mode with PASIDs, interrupt remapping with x2APIC; and what it uses: posted interrupts.
const VT_D: &str = "intel-iommu,x-scalable-mode=on,x-pasid-mode=on,intremap=on,eim=on,x-posted-interrupts=on";

/// What the same unit needs beside for a guest of the machine, or Linux on it, to share address spaces with the accelerator:
/// both stages and one upon the other, translations that devices keep, and what Linux asks for before it uses them so.
const SHARED_ADDRESSES: &str = ",x-flts=on,x-nest=on,device-iotlb=on,svm=on";

const X86_64: Model = Model {
    firmware: &[
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ],
    packages: &["ovmf", "seabios", "qemu-system-data"],
    rom_folders: &["/usr/share/seabios", "/usr/share/qemu"],
    machine: "q35,hpet=on",
    cpu: "max",
    iommu: Iommu::Device(VT_D),
    further_unit: VT_D,
    dsa: "",
};

const AARCH64: Model = Model {
    firmware: &[("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd")],
    packages: &["qemu-efi-aarch64", "qemu-system-data"],
    rom_folders: &["/usr/share/qemu"],
    machine: "virt,virtualization=on,gic-version=3",
    // VHE, and none of what makes `max` slow to emulate.
    cpu: "neoverse-n1",
    iommu: Iommu::Machine("iommu=smmuv3"),
    further_unit: "arm-smmuv3,stage=nested",
    // These processors have no store of 64 bytes, and interrupt messages go to the ITS.
    dsa: ",portal-merge=on,ims-window=0x8000000",
};

impl Model {
    fn of(arch: Arch) -> &'static Model {
        match arch {
            Arch::X86_64 => &X86_64,
            Arch::Aarch64 => &AARCH64,
        }
    }

    /// The firmware as arguments of `-drive`: the code, and a copy of the variable store in the folder `private`.
    fn flash(&self, private: &Path) -> Result<[String; 2]> {
        let found = self.firmware.iter().find(|(code, _)| Path::new(code).is_file());
        let Some((code, variables)) = found else {
            bail!(
                "no UEFI firmware at {}; run: sudo apt-get install {}",
                self.firmware[0].0,
                self.packages.join(" ")
            );
        };
        let own_variables = private.join("variables.fd");
        fs::copy(variables, &own_variables).with_context(|| format!("copying {variables}"))?;
        let drive = |file: &str| format!("if=pflash,format=raw,file={}", file.replace(',', ",,"));
        Ok([drive(code), drive(&own_variables.to_string_lossy())])
    }
}

/// The emulator that a machine is started with.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// What runs the processors' instructions in the place of its translator.
    pub engine: Option<Engine>,
}

/// A library with processors, and which of them.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The library.
    pub library: PathBuf,
    /// Its name of the processor.
    pub model: &'static str,
}

impl Qemu {
    /// The accelerator, as `-accel` takes it.
    pub fn accelerator(&self) -> String {
        match &self.engine {
            None => "tcg,thread=multi".to_owned(),
            Some(Engine { library, model }) => {
                let library = library.to_string_lossy().replace(',', ",,");
                format!("tcg,thread=single,engine={library},engine-model={model}")
            }
        }
    }
}

/// Debian packages with the firmware of `arch` and the option ROMs.
pub fn packages(arch: Arch) -> &'static [&'static str] {
    Model::of(arch).packages
}

/// PCI device number of the boot disk on the root bus.
const DISK_SLOT: &str = "0x2";
/// PCI device number of the first accelerator; further ones follow.
const DSA_SLOT: u32 = 4;

/// The root bus with an IOMMU unit of its own, where the machine has one, as QEMU calls it.
const FURTHER_BUS: &str = "pcie.1";
/// Its number.
pub const FURTHER_BUS_NUMBER: u8 = 0x40;

/// What the machine starts.
enum Boot {
    /// The EFI application on a disk image.
    Disk(PathBuf),
    /// An ELF file without firmware.
    Program(PathBuf),
    /// A kernel that the firmware is handed directly.
    Linux { kernel: PathBuf, initrd: PathBuf, command_line: String },
}

/// A machine: two processors, 2 GiB, an IOMMU, and what is added.
pub struct Platform {
    model: &'static Model,
    boot: Boot,
    cpus: u32,
    memory_mib: u32,
    iommu: bool,
    /// Properties of the IOMMU's device beside the model's, each behind a comma.
    iommu_properties: &'static str,
    acpi: bool,
    devices: Vec<String>,
    accelerators: u32,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
}

impl Platform {
    /// A machine that boots the disk image at `path`, made with [`crate::image::Image`].
    pub fn disk(arch: Arch, path: &Path) -> Platform {
        Platform::new(arch, Boot::Disk(path.to_path_buf()))
    }

    /// A machine whose firmware starts a Linux kernel directly: the platform without a hypervisor.
    pub fn linux(arch: Arch, kernel: &Path, initrd: &Path, command_line: &str) -> Platform {
        let (kernel, initrd) = (kernel.to_path_buf(), initrd.to_path_buf());
        let boot = Boot::Linux { kernel, initrd, command_line: command_line.to_owned() };
        Platform::new(arch, boot)
    }

    /// A machine without firmware that starts an ELF file as it is.
    pub fn program(arch: Arch, path: &Path) -> Platform {
        Platform::new(arch, Boot::Program(path.to_path_buf()))
    }

    fn new(arch: Arch, boot: Boot) -> Platform {
        Platform {
            model: Model::of(arch),
            boot,
            cpus: 2,
            memory_mib: 2048,
            iommu: true,
            iommu_properties: "",
            acpi: true,
            devices: Vec::new(),
            accelerators: 0,
            arguments: Vec::new(),
            variables: Vec::new(),
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
        self.iommu = false;
        self
    }

    /// Gives the IOMMU what shared virtual addressing takes (x86_64): first-stage and nested translation, device TLBs, page
    /// requests.
    pub fn shared_addresses(mut self) -> Platform {
        self.iommu_properties = SHARED_ADDRESSES;
        self
    }

    /// Takes the ACPI tables away, so that the firmware of an Arm machine offers a device tree.
    pub fn without_acpi(mut self) -> Platform {
        self.acpi = false;
        self
    }

    /// Adds a DSA at the next slot from 00:04.0 on, with those properties (`""`, or such as `device-id=0x0b25`).
    pub fn dsa(self, properties: &str) -> Platform {
        let slot = DSA_SLOT + self.accelerators;
        self.dsa_at(&format!("addr={slot:#x}"), properties)
    }

    /// Adds a DSA at a place given as QEMU's properties of it.
    fn dsa_at(mut self, place: &str, properties: &str) -> Platform {
        let name = self.accelerators;
        self.accelerators += 1;
        let separator = if properties.is_empty() { "" } else { "," };
        let model = self.model.dsa;
        self.device(&format!("dsa,id=dsa{name},{place}{model}{separator}{properties}"))
    }

    /// Adds a root bus of the number [`FURTHER_BUS_NUMBER`] with an IOMMU unit of its own, and on it two DSAs with those
    /// properties: device 1, which the firmware names as an endpoint, and what is behind the port that is device 0.
    pub fn further_unit(self, properties: &str) -> Platform {
        let unit = self.model.further_unit;
        self.device(&format!("pxb-pcie,id={FURTHER_BUS},bus_nr={FURTHER_BUS_NUMBER},addr=0x8"))
            .device(&format!("{unit},primary-bus={FURTHER_BUS}"))
            .device(&format!("pcie-root-port,id=further-port,bus={FURTHER_BUS},addr=0x0,chassis=1"))
            .dsa_at(&format!("bus={FURTHER_BUS},addr=0x1"), properties)
            .dsa_at("bus=further-port", properties)
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

    /// Adds a variable of QEMU's environment.
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Platform {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// The variables of QEMU's environment, by name and value.
    pub fn variables(&self) -> &[(OsString, OsString)] {
        &self.variables
    }

    /// The arguments of `qemu`, without those for the serial line and for QMP.
    ///
    /// The firmware's variable store is copied to the folder `private`, since the machine writes to it.
    ///
    /// # Errors
    /// When there is no firmware on this system.
    pub fn command_line(&self, qemu: &Qemu, private: &Path) -> Result<Vec<OsString>> {
        let model = self.model;
        let mut line: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| line.extend(words.iter().map(OsString::from));
        let mut machine = model.machine.to_owned();
        if let (true, Iommu::Machine(property)) = (self.iommu, &model.iommu) {
            machine = format!("{machine},{property}");
        }
        if !self.acpi {
            machine += ",acpi=off";
        }
        add(&["-M", &machine, "-accel", &qemu.accelerator(), "-cpu", model.cpu]);
        add(&["-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.memory_mib)]);
        add(&["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
        model.rom_folders.iter().for_each(|folder| add(&["-L", folder]));
        if !matches!(self.boot, Boot::Program(_)) {
            let [code, variables] = model.flash(private)?;
            add(&["-drive", &format!("{code},readonly=on"), "-drive", &variables]);
        }
        if let (true, Iommu::Device(device)) = (self.iommu, &model.iommu) {
            add(&["-device", &format!("{device}{}", self.iommu_properties)]);
        }
        match &self.boot {
            Boot::Disk(path) => {
                let file = path.to_string_lossy().replace(',', ",,");
                add(&["-drive", &format!("if=none,id=esp,format=raw,readonly=on,file={file}")]);
                add(&["-device", &format!("virtio-blk-pci,drive=esp,bootindex=0,addr={DISK_SLOT}")]);
            }
            Boot::Program(path) => add(&["-kernel", &path.to_string_lossy()]),
            Boot::Linux { kernel, initrd, command_line } => {
                add(&["-kernel", &kernel.to_string_lossy(), "-initrd", &initrd.to_string_lossy()]);
                add(&["-append", command_line]);
            }
        }
        self.devices.iter().for_each(|device| add(&["-device", device]));
        line.extend(self.arguments.iter().cloned());
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_has_one_thread_and_its_commas_doubled() {
        let mut qemu = Qemu { program: PathBuf::from("qemu"), engine: None };
        assert_eq!(qemu.accelerator(), "tcg,thread=multi");
        qemu.engine = Some(Engine { library: PathBuf::from("/a,b.so"), model: "ryzen" });
        assert_eq!(qemu.accelerator(), "tcg,thread=single,engine=/a,,b.so,engine-model=ryzen");
    }
}
