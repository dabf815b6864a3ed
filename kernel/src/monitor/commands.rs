// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands as data: for `help`, for error messages, and for `docs/src/monitor.md`, which a test
//! compares with this table.

use alloc::format;
use alloc::string::String;

use crate::base::refusal::Refusal;

/// One command.
#[derive(Debug)]
pub struct Command {
    /// Its first word.
    pub name: &'static str,
    /// Its forms.
    pub usage: &'static [&'static str],
    /// What it does, in one line.
    pub about: &'static str,
    /// What else one should know, in lines.
    pub more: &'static [&'static str],
}

/// All commands, in the order of `help`.
pub static COMMANDS: [Command; 19] = [
    Command {
        name: "help",
        usage: &["help [COMMAND]"],
        about: "Lists the commands, or explains one.",
        more: &[],
    },
    Command {
        name: "vms",
        usage: &["vms"],
        about: "Lists the VMs with their state, memory and PASIDs.",
        more: &[],
    },
    Command {
        name: "vm",
        usage: &[
            "vm NAME",
            "vm NAME start|stop|restart|pause|resume",
            "vm NAME break",
            "vm define [FILE]",
            "vm NAME remove",
        ],
        about: "Shows one VM, controls it, defines or removes one.",
        more: &[
            "start builds the VM and lets it run; stop ends it in order: its vdevs are quiesced, their",
            "PASIDs returned, its memory freed and scrubbed. restart is both. pause stops its processors",
            "where they are until resume, waits up to a second for what its vdevs have in the device, and",
            "says of each: drained (nothing of it is under way), held (nothing is in the device, what waits",
            "is sent after resume), or draining (the device has some still, which goes on). break has its",
            "serial port receive a BREAK, with which Linux takes the next key as a SysRq command. typed is",
            "what was sent to its console: bytes that wait, the room for more, and what it never got.",
            "define makes the VMs of a file, all or none, which start then starts; without FILE it lists those",
            "that there are. They were read at boot (definitions in pasidon.toml): the disk cannot be read",
            "now. remove is the way back, for VMs of pasidon.toml too, until the next boot: the VM must be",
            "stopped, and nothing of it kept back. Its name and the channel of its console are free then.",
        ],
    },
    Command {
        name: "vdevs",
        usage: &["vdevs"],
        about: "Lists the vdevs with their owners, PASIDs and counters.",
        more: &[
            "STATE is leaving where the guest was asked to let go of it (vdev destroy), and has not yet.",
            "WORK is running, or while the VM is paused draining, drained or held (see vm).",
            "SUBMISSION EXITS counts accesses to a portal that came to the hypervisor: each descriptor of a",
            "trapped type. It is 0 while the guest reaches its queue directly.",
        ],
    },
    Command {
        name: "vdev",
        usage: &[
            "vdev ID",
            "vdev create VM PARENT/TYPE [KEY=N]...",
            "vdev move ID PARENT/TYPE [KEY=N]...",
            "vdev destroy ID [now]",
            "vdev irq ID VECTOR mask|unmask|trigger",
            "vdev irq ID VECTOR automask on|off",
        ],
        about: "Shows one vdev, creates, moves or ends one, or holds its interrupts back.",
        more: &[
            "ID is the number, or the whole name as vdevs shows it. Creating gives queue, PASID, address",
            "space and interrupts, or nothing. Ending quiesces in order before anything is reused. KEY is",
            "entries (how many descriptors its queue holds), weight (its part of a queue it shares), or ioas",
            "(the number of an I/O address space of the VM, which is then behind it from the start).",
            "Moving creates another, on the same I/O address space (or ioas), and then destroys this one: its guest can go",
            "over from one to the other. Nothing changes where the other cannot be had.",
            "Destroying asks the guest first: the vdev is leaving until the guest's driver has let go of it,",
            "for 20 seconds at most. now ends it without a word: the guest keeps a device that has halted. So",
            "does one that would not hear, and one that has not let go in time.",
            "irq masks MSI-X vectors (mask, unmask), or has an interrupt come as if the device had sent it (trigger).",
            "VECTOR is a number, or all. The mask lies on top of the guest's, which cannot take it away; what comes",
            "meanwhile is pending, in the guest's pending bits too, and is one interrupt after unmask. With automask",
            "on, each interrupt that is sent masks its vector. All that ends with the vdev. `interrupts` shows it.",
        ],
    },
    Command {
        name: "parents",
        usage: &["parents"],
        about: "Lists the shared devices, their types and how many instances are available.",
        more: &[],
    },
    Command {
        name: "parent",
        usage: &["parent NAME reset"],
        about: "Resets a shared device as a whole: the way out when it hangs or has halted.",
        more: &[
            "Every vdev on it stops, and its guest is told. What was retired because the device did not stop is",
            "taken back as far as it is proven quiet then; `iommu` shows what is still held.",
        ],
    },
    Command {
        name: "pasids",
        usage: &["pasids"],
        about: "Lists the PASIDs that are attached or retired.",
        more: &[
            "A PASID is retired when a device or the IOMMU did not confirm its end, and is used again once it has.",
            "SECONDS is how long it has been in that state, BEFORE how many attachments had the number before this one.",
        ],
    },
    Command {
        name: "iommu",
        usage: &["iommu"],
        about: "Shows the IOMMU, the I/O address spaces, and what failed stops have cost.",
        more: &[],
    },
    Command {
        name: "ioas",
        usage: &[
            "ioas create VM",
            "ioas map IOAS ADDRESS IOVA SIZE",
            "ioas unmap IOAS IOVA SIZE",
            "ioas attach IOAS VDEV",
            "ioas destroy IOAS",
        ],
        about: "Makes I/O address spaces beside a VM's own, and puts them behind its vdevs.",
        more: &[
            "IOAS is a number that `iommu` shows. map lets devices find SIZE bytes of the VM's memory, from its",
            "ADDRESS on, at IOVA; unmap takes out what was mapped so. attach replaces what is behind a vdev while",
            "it works: each access meets the old one or the new one. That is so for each vdev by itself: several",
            "change one after another, whether their IOMMU unit is the same or not. A VM's spaces go when it stops.",
        ],
    },
    Command {
        name: "faults",
        usage: &["faults"],
        about: "Lists the last records of DMA faults of every vdev, and counts all; faults may share one.",
        more: &[],
    },
    Command {
        name: "interrupts",
        usage: &["interrupts"],
        about: "Lists the MSI-X vectors of vdevs, and the physical interrupts that lead to them.",
        more: &[
            "POSTED AS is the guest's vector where the hardware posts it to the guest without the hypervisor,",
            "which then sees, and counts, none of them. Else the hypervisor delivers it. GUEST is what the guest has",
            "made of the vector: off (MSI-X is off), unused (no message), masked or open. HOST is what `vdev irq` has:",
            "open or masked, with automask, and pending where one waits for the last mask to go. CAME counts physical",
            "interrupts, DELIVERED what was sent to the guest, PENDED what came while something masked the vector, and",
            "TRIGGERED what `vdev irq` had come; these count as delivered or pended, too.",
        ],
    },
    Command {
        name: "exits",
        usage: &["exits"],
        about: "Counts the exits of every VM by kind, since its definition.",
        more: &[],
    },
    Command {
        name: "top",
        usage: &["top"],
        about: "Shows once a second what runs: processors, VMs, exits by kind, vdevs.",
        more: &[
            "Any key ends it. With --json, and on a framed line, it shows one picture: rates since the",
            "last one, the first time since boot.",
        ],
    },
    Command {
        name: "console",
        usage: &["console NAME"],
        about: "Gives the line to the console of that VM; Ctrl-] comes back.",
        more: &[
            "In the monitor, Ctrl-] returns to the guest that was left last. Ctrl-] twice sends one to the",
            "guest. In a paste, where other keys come with it, it stays in the guest with all the rest. A",
            "BREAK on the line goes to the guest that has it.",
        ],
    },
    Command {
        name: "log",
        usage: &["log [off|error|warn|info|debug|trace]"],
        about: "Shows or sets the least severe messages that are printed.",
        more: &[],
    },
    Command {
        name: "version",
        usage: &["version"],
        about: "Shows the version, the time since boot, memory, and taints.",
        more: &[],
    },
    Command {
        name: "shutdown",
        usage: &["shutdown"],
        about: "Ends all VMs in order and switches the machine off.",
        more: &[],
    },
    Command {
        name: "reboot",
        usage: &["reboot"],
        about: "Ends all VMs in order and resets the machine.",
        more: &[],
    },
];

/// The command of that name.
pub fn command(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

impl Command {
    /// The refusal of arguments that fit none of its forms.
    pub(super) fn misused(&self) -> Refusal {
        Refusal::new(self.name, "the arguments do not fit", format!("use {}", self.usage.join(", or ")))
    }

    /// What `help COMMAND` shows.
    pub(super) fn explain(&self) -> String {
        let mut text = String::new();
        for usage in self.usage {
            text += &format!("{usage}\n");
        }
        text += &format!("\n{}\n", self.about);
        for line in self.more {
            text += &format!("{line}\n");
        }
        text
    }
}
