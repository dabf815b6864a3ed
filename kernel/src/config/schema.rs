// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sections and keys of `pasidon.toml`, as data.
//!
//! One table serves three readers: the parser (which refuses what is not in it and names the nearest
//! that is), its error messages (which show how a value is written), and the reference in
//! `docs/src/configuration.md` (which a test compares with it).

/// A kind of section.
pub struct Section {
    /// How it is written: `[[vm]]`.
    pub heading: &'static str,
    /// What it describes.
    pub about: &'static str,
    /// Its keys, in the order people write them.
    pub keys: &'static [Key],
}

/// One key of a section.
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it takes, in words: `a string`, `a whole number from 1 to 65535`.
    pub takes: &'static str,
    /// What holds when it is left out; `None` where it must be given.
    pub default: Option<&'static str>,
    /// A whole example: `memory = "256M"`.
    pub example: &'static str,
    /// What it does, with its limits.
    pub about: &'static str,
}

impl Section {
    /// The key of that name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

const NAME_RULE: &str = "1 to 31 letters, digits, `-` or `_`, the first one a letter";

/// `[host]`.
pub static HOST: Section = Section {
    heading: "[host]",
    about: "The hypervisor itself. The whole section may be left out.",
    keys: &[
        Key {
            name: "mode",
            takes: "`\"run\"` or `\"inventory\"`",
            default: Some("`\"run\"`"),
            example: "mode = \"run\"",
            about: "`\"inventory\"` lists what the machine has and what Pasidon would refuse there, changes nothing, and \
                    goes back to the firmware. The file then needs no VM.",
        },
        Key {
            name: "log",
            takes: "`\"off\"`, `\"error\"`, `\"warn\"`, `\"info\"`, `\"debug\"` or `\"trace\"`",
            default: Some("`\"info\"`"),
            example: "log = \"info\"",
            about: "The least severe messages that are still printed. The monitor command `log` changes it later.",
        },
        Key {
            name: "console",
            takes: "`\"plain\"` or `\"framed\"`",
            default: Some("`\"plain\"`"),
            example: "console = \"plain\"",
            about: "How the serial line is shared: one guest at a time for people, or every guest at once in frames that a program takes apart.",
        },
        Key {
            name: "definitions",
            takes: "a list of strings",
            default: Some("none"),
            example: "definitions = [\"vms/gamma.toml\"]",
            about: "Files on the ESP with `[[vm]]` sections, whose VMs are not there at the start: `vm define FILE` makes \
                    them, see [below](#vms-that-come-later).",
        },
        Key {
            name: "last_pasid",
            takes: "a whole number from 1 to 65535",
            default: Some("the largest that the IOMMU understands"),
            example: "last_pasid = 255",
            about: "The largest PASID that is given out, and so how many there are. PASIDs are given out in turn, so that one that was given back rests as long as possible.",
        },
        Key {
            name: "pasid_namespace",
            takes: "`\"host\"` or `\"device\"`",
            default: Some("`\"host\"`"),
            example: "pasid_namespace = \"host\"",
            about: "Where a PASID is given out once: on the whole host, so that the number alone says whose it is, or on each \
                    device, so that each has all of them. The IOMMU tells devices apart before it looks at the PASID.",
        },
    ],
};

/// `[parent.NAME]`.
pub static PARENT: Section = Section {
    heading: "[parent.NAME]",
    about: "A physical device that is shared. Exactly one of `pci` and `match` says which one it is. \
            NAME is how the VMs and the monitor call it: 1 to 31 letters, digits, `-` or `_`, the first one a letter.",
    keys: &[
        Key {
            name: "pci",
            takes: "the string `SEGMENT:BUS:DEVICE.FUNCTION`, hexadecimal",
            default: Some("none"),
            example: "pci = \"0000:00:04.0\"",
            about: "The device at this place.",
        },
        Key {
            name: "match",
            takes: "the string `VENDOR:DEVICE`, hexadecimal",
            default: Some("none"),
            example: "match = \"8086:11fb\"",
            about: "The only device with these IDs.",
        },
        Key {
            name: "iommu",
            takes: "`\"on\"` or `\"off\"`",
            default: Some("`\"on\"`"),
            example: "iommu = \"on\"",
            about: "`\"off\"` shares the device although no IOMMU confines it. Only trapped types are then offered, \
                    and every banner and status line says TAINTED.",
        },
        Key {
            name: "allow_unsafe_portals",
            takes: "`true` or `false`",
            default: Some("`false`"),
            example: "allow_unsafe_portals = true",
            about: "Map portals of a device that is known to be unsafe for that (8086:0b25, INTEL-SA-01084) all the same.",
        },
        Key {
            name: "shared_entries",
            takes: "a whole number from 0 to 65535",
            default: Some(
                "`16` where a vdev of a trapped type is defined or no other type is offered, else `0`",
            ),
            example: "shared_entries = 32",
            about: "Entries of the work queue that the vdevs of a trapped type (`dsa-swq`) share: how many descriptors of \
                    all of them the device has at a time. With `0` there is none, and the type is not offered.",
        },
    ],
};

/// `[[vm]]`.
pub static VM: Section = Section {
    heading: "[[vm]]",
    about: "A virtual machine. At least one, unless there are `definitions`; at most 31.",
    keys: &[
        Key { name: "name", takes: "a string", default: None, example: "name = \"alpha\"", about: NAME_RULE },
        Key {
            name: "memory",
            takes: "a number with `K`, `M` or `G` as a string",
            default: None,
            example: "memory = \"256M\"",
            about: "Size of its memory, a multiple of 2M, from 16M to 1024G.",
        },
        Key {
            name: "kernel",
            takes: "a string",
            default: None,
            example: "kernel = \"guests/vmlinuz\"",
            about: "Its kernel, an ELF `vmlinux` with a PVH entry or a `bzImage`: a file on the ESP, counted from the ESP's root.",
        },
        Key {
            name: "initrd",
            takes: "a string",
            default: Some("none"),
            example: "initrd = \"guests/alpha.img\"",
            about: "Its initial RAM disk, likewise a file on the ESP.",
        },
        Key {
            name: "cmdline",
            takes: "a string",
            default: Some("`\"\"`"),
            example: "cmdline = \"console=ttyS0\"",
            about: "Its kernel's command line, at most 2047 bytes.",
        },
        Key {
            name: "pasids",
            takes: "a whole number from 0 to 65535",
            default: Some("`8`"),
            example: "pasids = 4",
            about: "Quota: how many PASIDs its vdevs may hold together. Every vdev holds one.",
        },
        Key {
            name: "slots",
            takes: "a whole number from 0 to 248",
            default: Some("4 more than it has vdevs, and at least `8`"),
            example: "slots = 8",
            about: "Hot-plug slots of its PCI bus, one for each vdev that it has at a time. They are there from the start, \
                    the empty ones too; `vdev create` needs an empty one. Linux gives each an interrupt of its own, of which \
                    one x86-64 processor has some 200, so give it 150 at most.",
        },
        Key {
            name: "vcpus",
            takes: "a whole number",
            default: Some("`1`"),
            example: "vcpus = 1",
            about: "Number of virtual processors. This version runs one per VM.",
        },
        Key {
            name: "autostart",
            takes: "`true` or `false`",
            default: Some("`true`"),
            example: "autostart = false",
            about: "Whether it starts with the machine; otherwise `vm NAME start` does it.",
        },
        Key {
            name: "on_reboot",
            takes: "`\"restart\"` or `\"stop\"`",
            default: Some("`\"restart\"`"),
            example: "on_reboot = \"stop\"",
            about: "What happens when the guest resets itself. A guest whose life ends so within 10 seconds more than 5 times in a row is stopped.",
        },
        Key {
            name: "vdev",
            takes: "sections `[[vm.vdev]]`",
            default: Some("none"),
            example: "[[vm.vdev]]",
            about: "Its virtual devices, see below.",
        },
    ],
};

/// `[[vm.vdev]]`.
pub static VDEV: Section = Section {
    heading: "[[vm.vdev]]",
    about: "A virtual device of the VM above it.",
    keys: &[
        Key {
            name: "parent",
            takes: "a string",
            default: None,
            example: "parent = \"dsa0\"",
            about: "NAME of the `[parent.NAME]` it is a slice of.",
        },
        Key {
            name: "type",
            takes: "a string",
            default: None,
            example: "type = \"dsa-dwq\"",
            about: "How the parent is sliced. The monitor command `parents` lists what each one offers.",
        },
        Key {
            name: "entries",
            takes: "a whole number from 1 to 65535",
            default: Some("the driver's choice"),
            example: "entries = 32",
            about: "How many descriptors its work queue holds, at most what the device has left.",
        },
        Key {
            name: "weight",
            takes: "a whole number from 1 to 255",
            default: Some("`1`"),
            example: "weight = 2",
            about: "Its part of a work queue that it shares with others: as much as two of weight 1 has one of weight 2. \
                    For trapped types.",
        },
        Key {
            name: "address_space",
            takes: "`\"vm\"`, `\"own\"` or `\"dma-only\"`",
            default: Some("`\"vm\"`"),
            example: "address_space = \"dma-only\"",
            about: "What its DMA reaches: all of the VM's memory, in the I/O address space that the VM's vdevs share or in one \
                    of its own, or only `windows`. A guest that does not keep to its windows gets faults, so its driver must know \
                    of them. `\"own\"` and `\"dma-only\"` need the parent to have an IOMMU.",
        },
        Key {
            name: "windows",
            takes: "a list of strings `ADDRESS+SIZE`",
            default: Some("none"),
            example: "windows = [\"0x8000000+16M\"]",
            about: "Memory of the guest that a vdev with `address_space = \"dma-only\"` reaches, and nothing else, at the same \
                    addresses: 1 to 16 ranges, ADDRESS hexadecimal, SIZE a number with `K`, `M` or `G`, both multiples of 4K.",
        },
    ],
};

/// Every kind of section, in the order of the reference.
pub static SECTIONS: [&Section; 4] = [&HOST, &PARENT, &VM, &VDEV];

/// What may stand at the top level.
pub static TOP: [&str; 3] = ["host", "parent", "vm"];
