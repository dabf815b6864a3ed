// SPDX-License-Identifier: MIT OR Apache-2.0
//! What VMs boot: kernels and initrds, as the configuration and its definitions name them.
//!
//! **Principle.** A file is read once, whoever names it, and stays for as long as the machine runs: a VM boots it again
//! at each start. Before the first VM is built every image is loaded into memory that forgets, by the same loader, so
//! that whoever reads the log sees all errors of all files at once.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::config::{Config, ConfigError, VmConfig};
use pasidon_kernel::memory::ram::RamRange;
use pasidon_kernel::memory::{BadGuestAddress, GuestMemory};
use pasidon_kernel::vm::{BootSpec, VmSpec};

use crate::entropy;
use crate::hardware::{BootImage, Hardware};

/// The bytes of a file, or why they cannot be had, in words.
pub type Bytes = Result<&'static [u8], String>;

/// How much of a file is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it.
    Whole,
    /// What of a kernel is loaded.
    Loaded,
}

/// The files that VMs name, each with its path in the configuration.
#[derive(Debug)]
pub struct Files(Vec<(String, Bytes)>);

impl Files {
    /// Has each file read that one of these VMs names.
    pub fn read<'v>(
        vms: impl Iterator<Item = &'v VmConfig> + Clone,
        read: &mut dyn FnMut(&str, Part) -> Bytes,
    ) -> Self {
        // Initrds first, so that a file that is both is there as a whole.
        let initrds = vms.clone().filter_map(|vm| vm.initrd.as_ref()).map(|path| (path, Part::Whole));
        let kernels = vms.map(|vm| (&vm.kernel, Part::Loaded));
        let mut files: Vec<(String, Bytes)> = Vec::new();
        for (path, part) in initrds.chain(kernels) {
            if files.iter().all(|(known, _)| *known != path.value) {
                files.push((path.value.clone(), read(&path.value, part)));
            }
        }
        Self(files)
    }

    fn get(&self, path: &str) -> Bytes {
        let found = self.0.iter().find(|(known, _)| known == path);
        found.map_or_else(|| Err(String::from("it was not read")), |(_, bytes)| bytes.clone())
    }

    /// What a VM boots, with a seed that no other start gets.
    ///
    /// # Errors
    /// When one of its files is not there.
    pub fn image<'f>(&'f self, vm: &'f VmSpec) -> Result<BootImage<'f>, Refusal> {
        let BootSpec { kernel, initrd, cmdline } = &vm.boots;
        let get = |what: &str, path: &str| {
            self.get(path)
                .map_err(|why| Refusal::new(format!("{what} \"{path}\""), why, "boot again with it"))
        };
        Ok(BootImage {
            kernel: get("kernel", kernel)?,
            initrd: initrd.as_ref().map(|path| get("initrd", path)).transpose()?,
            cmdline,
            slots: vm.slots,
            seed: entropy::seed(),
        })
    }

    /// Checks that each VM's files are there, and that its kernel is one that it can boot.
    pub fn check<H: Hardware>(&self, config: &Config) -> Vec<ConfigError> {
        config.vms.iter().flat_map(|vm| self.errors_of::<H>(vm)).collect()
    }

    fn errors_of<H: Hardware>(&self, vm: &VmConfig) -> Vec<ConfigError> {
        let kernel = self.get(&vm.kernel.value).map_err(|why| vm.file_error("kernel", &vm.kernel, why));
        let initrd = match &vm.initrd {
            Some(path) => self.get(&path.value).map(Some).map_err(|why| vm.file_error("initrd", path, why)),
            None => Ok(None),
        };
        match (kernel, initrd) {
            (Ok(kernel), Ok(initrd)) => {
                let image = BootImage {
                    kernel,
                    initrd,
                    cmdline: &vm.cmdline.value,
                    slots: vm.slots.value,
                    seed: None,
                };
                let loaded = H::load(&Nowhere(H::ram(vm.memory.value)), &image);
                loaded.err().map(|refusal| vm.image_refused(&refusal)).into_iter().collect()
            }
            (kernel, initrd) => [kernel.err(), initrd.err()].into_iter().flatten().collect(),
        }
    }
}

/// Memory that forgets: lets the loader check an image without a guest.
struct Nowhere(Vec<RamRange>);

impl GuestMemory for Nowhere {
    fn read(&self, address: GuestPhys, buffer: &mut [u8]) -> Result<(), BadGuestAddress> {
        self.write(address, buffer)?;
        buffer.fill(0);
        Ok(())
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), BadGuestAddress> {
        let len = bytes.len() as u64;
        let inside = self.0.iter().any(|range| {
            let offset = address.0.checked_sub(range.start.0);
            offset.is_some_and(|offset| offset <= range.len && len <= range.len - offset)
        });
        if inside { Ok(()) } else { Err(BadGuestAddress { address, len }) }
    }

    fn ram_size(&self) -> u64 {
        self.0.iter().map(|range| range.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use pasidon_kernel::config::parse;

    const MIB: u64 = 1 << 20;

    /// Two VMs of 16 MiB that boot the same kernel, one with an initrd, and one that boots the initrd.
    fn config() -> Config {
        let vm = |name: &str, kernel: &str, more: &str| {
            format!("[[vm]]\nname = \"{name}\"\nmemory = \"16M\"\nkernel = \"{kernel}\"\n{more}")
        };
        let text = [
            vm("alpha", "kernel", "initrd = \"initrd\"\ncmdline = \"quiet\"\n"),
            vm("beta", "kernel", ""),
            vm("gamma", "initrd", ""),
        ];
        parse(text.concat().as_bytes()).unwrap().config
    }

    /// Files of which some are missing; every other goes to the bottom of RAM.
    fn files(config: &Config, missing: &[&str]) -> Files {
        Files::read(config.vms.iter(), &mut |path, _| match missing.contains(&path) {
            true => Err("it is not there".to_string()),
            false => Ok(&[0; 16]),
        })
    }

    /// A VM that boots these.
    fn boots(kernel: &str, initrd: Option<&str>) -> VmSpec {
        VmSpec {
            name: "alpha".to_string(),
            ram: Vec::new(),
            vcpus: 1,
            pasid_quota: 0,
            restart_on_reset: true,
            boots: BootSpec {
                kernel: kernel.to_string(),
                initrd: initrd.map(str::to_string),
                cmdline: "quiet".to_string(),
            },
            slots: 9,
            vdevs: Vec::new(),
        }
    }

    fn lines(errors: &[ConfigError]) -> Vec<String> {
        errors.iter().map(ConfigError::to_string).collect()
    }

    #[test]
    fn each_file_is_read_once_and_initrds_whole() {
        let mut read = Vec::new();
        Files::read(config().vms.iter(), &mut |path, part| {
            read.push((path.to_string(), part));
            Ok(&[])
        });
        assert_eq!(read, [("initrd".to_string(), Part::Whole), ("kernel".to_string(), Part::Loaded)]);
    }

    #[test]
    fn sound_files_are_found_again() {
        let config = config();
        let files = files(&config, &[]);
        assert_eq!(files.check::<Fake>(&config), []);
        let alpha = boots("kernel", Some("initrd"));
        let image = files.image(&alpha).unwrap();
        assert_eq!((image.kernel, image.initrd, image.cmdline), (&[0; 16][..], Some(&[0; 16][..]), "quiet"));
        assert_eq!(image.slots, 9);
        assert_eq!(files.image(&boots("kernel", None)).unwrap().initrd, None);
        let refusal = files.image(&boots("other", None)).unwrap_err().to_string();
        assert_eq!(refusal, "kernel \"other\": it was not read; boot again with it");
    }

    #[test]
    fn what_is_missing_is_said_of_each_vm_that_names_it() {
        let config = config();
        let missing = files(&config, &["kernel", "initrd"]);
        let line = |place, vm, what| {
            format!(
                "pasidon.toml:{place}: vm {vm}: {what}: it is not there; put a good one there or correct the path"
            )
        };
        assert_eq!(
            lines(&missing.check::<Fake>(&config)),
            [
                line("4:10", "alpha", "kernel \"kernel\""),
                line("5:10", "alpha", "initrd \"initrd\""),
                line("10:10", "beta", "kernel \"kernel\""),
                line("14:10", "gamma", "kernel \"initrd\""),
            ]
        );
        let initrd = files(&config, &["initrd"]);
        assert_eq!(lines(&initrd.check::<Fake>(&config)).len(), 2);
        let alpha = boots("kernel", Some("initrd"));
        assert!(initrd.image(&boots("kernel", None)).is_ok());
        assert!(initrd.image(&alpha).is_err(), "no VM boots half of what it names");
        let unread = Files::read([].iter(), &mut |_, _| Ok(&[]));
        assert!(
            lines(&unread.check::<Fake>(&config))[2].contains("vm beta: kernel \"kernel\": it was not read")
        );
    }

    #[test]
    fn what_the_loader_refuses_is_said() {
        let mut config = config();
        let above: &'static [u8] = Vec::leak((16 * MIB - 7).to_le_bytes().to_vec());
        let files = Files::read(config.vms.iter(), &mut |path, _| {
            Ok(if path == "kernel" { above } else { &[0; 16] })
        });
        let line = |place, vm| {
            format!(
                "pasidon.toml:{place}: vm {vm}: kernel \"kernel\": 8 bytes at 0xfffff9 are not guest RAM; move it"
            )
        };
        assert_eq!(lines(&files.check::<Fake>(&config)), [line("4:10", "alpha"), line("10:10", "beta")]);
        let files =
            Files::read(config.vms.iter(), &mut |path, _| Ok(if path == "kernel" { &[] } else { &[0; 17] }));
        assert_eq!(
            lines(&files.check::<Fake>(&config)),
            ["pasidon.toml:5:10: vm alpha: initrd \"initrd\": it has 17 bytes; shorten it"]
        );
        config.vms[0].cmdline.value = "quiet loglevel=9".repeat(2);
        assert_eq!(
            lines(&files.check::<Fake>(&config)),
            ["pasidon.toml:6:11: vm alpha: cmdline: it has 32 bytes; shorten it"]
        );
    }

    #[test]
    fn memory_that_forgets_ends_where_memory_ends() {
        let range = |start, len| RamRange { start: GuestPhys(start), len };
        let memory = Nowhere(vec![range(MIB, MIB), range(4 * MIB, 2 * MIB)]);
        assert_eq!(memory.ram_size(), 3 * MIB);
        let mut bytes = [7; 8];
        for inside in [MIB, 2 * MIB - 8, 4 * MIB, 6 * MIB - 8] {
            memory.write(GuestPhys(inside), &bytes).unwrap();
        }
        for outside in [0, MIB - 1, 2 * MIB - 7, 3 * MIB, 4 * MIB - 8, 6 * MIB - 7, 6 * MIB + 1, u64::MAX] {
            assert!(memory.write(GuestPhys(outside), &bytes).is_err(), "{outside:#x}");
            assert!(memory.read(GuestPhys(outside), &mut bytes).is_err() && bytes == [7; 8]);
        }
        memory.read(GuestPhys(MIB), &mut bytes).unwrap();
        assert_eq!(bytes, [0; 8]);
    }
}
