// SPDX-License-Identifier: MIT OR Apache-2.0
//! The inventory mode on machines of several shapes: what it says of each, and that it leaves each as it was.
//!
//! **Principle.** That nothing is touched is not believed but seen. QEMU logs every store to a register of a device, and
//! the plugin `tests/platform/plugins/writes.c` every instruction that changes the processor itself or reaches an I/O
//! port. What the serial line shows is in the same log, byte by byte, so the log itself says what happened between the
//! first line and the last.

use std::fs;
use std::path::Path;

use super::pasidon::{BOOT_TIMEOUT, COMMAND_TIMEOUT};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::platform::Platform;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result, ensure};
use regex::Regex;

/// The mode on several machines.
pub const MODE: Scenario = Scenario {
    name: "inventory-mode",
    about: "mode = \"inventory\" on machines with and without what Pasidon needs: what it lists, what it would refuse, no device or register written, and back to the firmware",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let shapes = match lab.arch() {
            Arch::X86_64 => X86_64,
            Arch::Aarch64 => AARCH64,
        };
        shapes.iter().try_for_each(|shape| shape.check(lab).with_context(|| format!("shape: {}", shape.name)))
    },
};

/// A machine and what is said of it.
struct Shape {
    name: &'static str,
    machine: fn(Platform) -> Platform,
    /// What stands in `pasidon.toml` beside the mode.
    parents: &'static str,
    /// Lines of the list, as regular expressions.
    listed: &'static [&'static str],
    /// What would be refused, as regular expressions for what that stops, for what is refused, and why.
    refused: &'static [[&'static str; 3]],
    /// How the last line goes on.
    end: &'static str,
}

const DSA0: &str = "[parent.dsa0]\npci = \"0000:00:04.0\"\n";

/// On the machine with two units.
const BEHIND_TWO: &str = "[parent.dsa0]\npci = \"0000:00:04.0\"\n[parent.dsa1]\npci = \"0000:40:01.0\"\n\
                          [parent.dsa2]\npci = \"0000:41:00.0\"\n";

const X86_64: &[Shape] = &[
    Shape {
        name: "all there",
        machine: |platform| platform.dsa(""),
        parents: DSA0,
        listed: &[
            "DMAR +120 +1 +BOCHS BXPC +good +yes",
            "has +64-bit mode, NX, CMPXCHG16B, x2APIC, SVM, nested paging .NPT.,.*",
            "processors +2, highest APIC ID 1",
            "RAM +2047 MiB, .*",
            "Pasidon would use +a UART answers at port 0x3f8 .COM1.",
            "0000 +00-ff +0xb0000000 +6 +1",
            "structures +1 DRHD, 0 RMRR, 0 ATSR, 0 SATC",
            "unit +vtd 0xfed90000",
            "ECAP +0x0000499880f00f5a",
            "lacks +nothing",
            "widths +PASID 20, address 48, domain 16 bits",
            "parent +dsa0",
            "behind +vtd 0xfed90000",
            "device +0000:00:04.0 8086:11fb class 088000",
            "version +1.0",
            "queues +8 with 128 entries, 4 groups, 4 engines",
        ],
        refused: &[],
        end: "Pasidon would start here, and refuse nothing",
    },
    Shape {
        name: "two units",
        machine: |platform| platform.dsa("").further_unit(""),
        parents: BEHIND_TWO,
        listed: &[
            "structures +2 DRHD, 0 RMRR, 0 ATSR, 0 SATC",
            "unit +vtd 0xfed91000",
            "serves +segment 0000: 1 endpoints, 1 bridges, .*",
            "serves +segment 0000: all that no other unit names, .*",
            "parent +dsa0\n +behind +vtd 0xfed90000",
            "parent +dsa1\n +behind +vtd 0xfed91000",
            "parent +dsa2\n +behind +vtd 0xfed91000",
        ],
        refused: &[],
        end: "Pasidon would start here, and refuse nothing",
    },
    Shape {
        name: "no SVM, no IOMMU, no accelerator, little memory",
        machine: |platform| platform.without_iommu().memory_mib(512).arguments(["-cpu", "max,svm=off"]),
        parents: "",
        listed: &["has not +SVM, .*", "RAM +511 MiB, .*", "0000 +00-ff +0xb0000000 +5 +0"],
        refused: &[
            ["everything", "processor", ".*SVM.*"],
            ["sharing", "IOMMU", "the firmware has no DMAR table, so nothing confines a device"],
        ],
        end: "Pasidon would not start here; 2 refusals",
    },
    Shape {
        name: "two sockets, an old IOMMU, first-generation accelerators, one of them behind a port",
        machine: |platform| {
            let old = platform.without_iommu().device("intel-iommu,intremap=off").dsa("device-id=0x0b25");
            let port = old.device("pcie-root-port,id=way,chassis=1,slot=1,addr=0x8");
            port.device("dsa,bus=way,device-id=0x0b25").arguments(["-smp", "4,sockets=2,cores=2,threads=1"])
        },
        parents: "[parent.dsa0]\npci = \"0000:00:04.0\"\n[parent.gone]\nmatch = \"8086:1234\"\n\
                  [parent.disk]\npci = \"0000:00:02.0\"\n",
        listed: &[
            "processors +4, highest APIC ID 3",
            "interrupt remapping +no",
            "part +DSA of Sapphire Rapids or Emerald Rapids",
            "device +0000:01:00.0 8086:0b25 class 088000",
            // A processor with ENQCMD can share it all the same.
            "portals +not offered: the portals of 8086:0b25 are not safe for guests",
        ],
        refused: &[
            ["sharing", "vtd", "the DMAR table says that interrupt remapping is off"],
            ["sharing", "vtd 0xfed90000", "the IOMMU lacks scalable mode .ECAP.SMTS., .* .ECAP.EIM."],
            ["parent gone", "pasidon.toml:6:9", ".*no device with match = \"8086:1234\""],
            ["parent disk", "parent disk", "1af4:1001 at 0000:00:02.0 is no accelerator .*"],
            ["parent dsa0", "parent dsa0", "no IOMMU confines its DMA"],
            ["0000:01:00.0", "0000:01:00.0", "no IOMMU confines its DMA"],
        ],
        end: "Pasidon would start here; 6 refusals",
    },
];

const AARCH64: &[Shape] = &[
    Shape {
        name: "all there",
        machine: |platform| platform.dsa(""),
        parents: DSA0,
        listed: &[
            "IORT +[0-9]+ +[0-9]+ +BOCHS BXPC +good +yes",
            "name +Neoverse-N1",
            "has +EL2, VHE, 4 KiB pages, GICv3 system registers, .*",
            "has not +nothing",
            "processors +2",
            "ITS +0x8080000",
            "Pasidon would use +PL011 or SBSA UART at 0x9000000",
            "unit +smmuv3 0x9050000",
            "lacks +nothing",
            "parent +dsa0",
            "behind +smmuv3 0x9050000",
            // This firmware leaves devices off that it has no driver for.
            "not read +its memory is off, and stays so",
        ],
        refused: &[],
        end: "Pasidon would start here, and refuse nothing",
    },
    Shape {
        name: "two units",
        machine: |platform| platform.dsa("").further_unit(""),
        parents: BEHIND_TWO,
        listed: &[
            "nodes +2 SMMUv3, 0 older SMMUs, .*",
            "parent +dsa0\n +behind +smmuv3 0x9050000",
            "parent +dsa1\n +behind +smmuv3 0xc000000",
            "parent +dsa2\n +behind +smmuv3 0xc000000",
        ],
        refused: &[],
        end: "Pasidon would start here, and refuse nothing",
    },
    Shape {
        name: "started at EL1, no IOMMU, little memory",
        machine: |platform| {
            let little = platform.dsa("").without_iommu().memory_mib(512);
            little.arguments(["-M", "virtualization=off"])
        },
        parents: "",
        listed: &["has not +EL2", "RAM +5[01][0-9] MiB, .*", "parent +none names it"],
        refused: &[
            ["everything", "processor", "the firmware started Pasidon at EL1; a hypervisor runs at EL2"],
            ["sharing", "IOMMU", "the firmware.*, so nothing confines a device"],
            ["0000:00:04.0", "0000:00:04.0", "no IOMMU confines its DMA"],
        ],
        end: "Pasidon would not start here; 3 refusals",
    },
];

const FIRST: &str = "Pasidon 0.1.0: inventory of this machine; nothing of it is changed";
const MORE: &str = "-- more: any key; c: all the rest --";
const LAST: &str = "-- any key: back to the firmware --";
/// The firmware says so when it starts something.
const STARTED: &str = "BdsDxe: starting Boot";

impl Shape {
    fn check(&self, lab: &Lab<'_>) -> Result<()> {
        let log = lab.folder.join("writes.log");
        let plugin = lab.workshop.plugin("writes")?;
        let configuration = format!("[host]\nmode = \"inventory\"\n{}", self.parents);
        let machine = lab.pasidon_without_guests(&configuration, |platform| {
            (self.machine)(platform)
                .arguments(["-plugin".as_ref(), plugin.as_os_str()])
                .arguments(["-d", "plugin,trace:memory_region_ops_write"])
                .arguments(["-D".as_ref(), log.as_os_str()])
        })?;
        let console = machine.log();
        let mut said = console.expect(&format!("(?s){STARTED}.*?{MORE}"), BOOT_TIMEOUT)?.swap_remove(0);
        console.send(b"c")?;
        said += &console.expect(&format!("(?s).*?{LAST}"), COMMAND_TIMEOUT)?.swap_remove(0);
        let said = said.replace(&format!("{MORE}\n"), "");
        for line in self.listed {
            let line = Regex::new(&format!("(?m)^  {line}$"))?;
            ensure!(line.is_match(&said), "/{line}/ is not in\n{said}");
        }
        self.check_refusals(&said).with_context(|| said.clone())?;
        let end = format!("\nend of the inventory: {}; nothing was changed\n", self.end);
        ensure!(said.contains(&end), "wanted {end} in\n{said}");
        console.send(b"x")?;
        // The firmware names what could not be started, and shows its menu where all went well.
        let next = console.expect("BdsDxe: (?:failed to start|loading) .*$", COMMAND_TIMEOUT)?.swap_remove(0);
        ensure!(next.contains("loading"), "{next}");
        drop(machine);
        untouched(&log, image(&said)?)
    }

    fn check_refusals(&self, said: &str) -> Result<()> {
        let rows = refusals(said)?;
        ensure!(rows.len() == self.refused.len(), "{} refusals are wanted: {rows:#?}", self.refused.len());
        for (row, wanted) in rows.iter().zip(self.refused) {
            for (cell, wanted) in row.iter().zip(wanted) {
                ensure!(Regex::new(&format!("^(?:{wanted})$"))?.is_match(cell), "/{wanted}/ for {cell}");
            }
            ensure!(row.iter().all(|cell| !cell.is_empty()), "a cell is empty: {row:?}");
        }
        Ok(())
    }
}

/// The rows of the last table, each cell in one piece.
fn refusals(said: &str) -> Result<Vec<[String; 4]>> {
    const HEADINGS: [&str; 4] = ["STOPS", "WHAT", "WHY", "WHAT WOULD HELP"];
    let mut rows: Vec<[String; 4]> = Vec::new();
    let mut lines = said.lines().skip_while(|line| !line.trim_start().starts_with("STOPS "));
    let Some(headings) = lines.next() else {
        ensure!(said.contains("\n  nothing that can be told without changing anything\n"), "no refusals");
        return Ok(rows);
    };
    let mut starts = [0; 4];
    let mut from = 0;
    for (start, heading) in starts.iter_mut().zip(HEADINGS) {
        *start = from + headings[from..].find(heading).with_context(|| format!("{heading}: {headings}"))?;
        from = *start + heading.len();
    }
    for line in lines.take_while(|line| !line.is_empty()) {
        let ends = starts.iter().skip(1).copied().chain([line.len()]);
        let cells: Vec<&str> = starts
            .iter()
            .zip(ends)
            .map(|(start, end)| line.get(*start..end.min(line.len())).unwrap_or_default().trim())
            .collect();
        if !cells[0].is_empty() {
            rows.push(Default::default());
        }
        let row = rows.last_mut().context("a table that begins in the middle")?;
        for (whole, part) in row.iter_mut().zip(cells).filter(|(_, part)| !part.is_empty()) {
            if !whole.is_empty() {
                whole.push(' ');
            }
            whole.push_str(part);
        }
    }
    Ok(rows)
}

/// Where the program lies: start and end.
fn image(said: &str) -> Result<[u64; 2]> {
    let pattern = Regex::new(r"(?m)^  this program +0x([0-9a-f]+) bytes at 0x([0-9a-f]+)$")?;
    let found = pattern.captures(said).context("it does not say where it lies")?;
    let number = |group: usize| u64::from_str_radix(&found[group], 16);
    let (length, start) = (number(1)?, number(2)?);
    Ok([start, start + length])
}

/// Makes sure of what QEMU logged: no instruction of the program changed the processor or reached a port, and from its
/// first line to its last nobody wrote to a device but the firmware to its console and to its own timer's interrupt.
fn untouched(log: &Path, image: [u64; 2]) -> Result<()> {
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    let write = Regex::new(
        r"^memory_region_ops_write cpu \S+ mr \S+ addr 0x(\S+) value 0x(\S+) size \d+ name '(.*)'$",
    )?;
    let (mut shown, mut instructions, mut between) = (String::new(), 0, 0);
    let (mut running, mut looking) = (false, false);
    for line in text.lines() {
        if let Some(address) = line.strip_prefix("changes at ") {
            let address = u64::from_str_radix(address, 16)?;
            instructions += 1;
            ensure!(
                !running || !(image[0]..image[1]).contains(&address),
                "the program changes the processor, or reaches a port, at {:#x} of its image",
                address - image[0]
            );
        } else if let Some(write) = write.captures(line) {
            let address = u64::from_str_radix(&write[1], 16)?;
            let is_console = matches!((&write[3], address), ("serial", 0x3f8) | ("pl011", 0x900_0000));
            if is_console {
                shown.push(char::from(u64::from_str_radix(&write[2], 16)? as u8));
                running |= shown.ends_with(STARTED);
                looking |= shown.ends_with(FIRST);
                if shown.ends_with(LAST) {
                    ensure!(instructions > 0 && between > 0, "nothing was logged: {instructions}, {between}");
                    return Ok(());
                }
            }
            // The local APIC's end of interrupt.
            let is_tick = (&write[3], address) == ("apic-msi", 0xfee0_00b0);
            between += u32::from(looking);
            ensure!(!looking || is_console || is_tick, "a device was written to: {line}");
        }
    }
    anyhow::bail!("the log does not show the whole inventory: {} bytes of the console", shown.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(lines: &[&str]) -> Result<()> {
        let serial = |text: &str| {
            let byte = |byte| {
                format!(
                    "memory_region_ops_write cpu 0 mr 0x1 addr 0x3f8 value {byte:#x} size 1 name 'serial'\n"
                )
            };
            text.bytes().map(byte).collect::<String>()
        };
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let log = tempfile::NamedTempFile::new()?;
        let before = "memory_region_ops_write cpu 0 mr 0x1 addr 0xcf8 value 0x0 size 4 name 'pci-conf-idx'\n";
        let text = [before, "changes at 2000\n", &serial(STARTED), &serial(FIRST), &lines, &serial(LAST)];
        fs::write(log.path(), text.concat())?;
        untouched(log.path(), [0x1000, 0x3000])
    }

    #[test]
    fn what_is_touched_is_found_in_the_log() {
        let tick = "memory_region_ops_write cpu 0 mr 0x1 addr 0xfee000b0 value 0x0 size 4 name 'apic-msi'";
        logged(&[tick, "changes at 3000"]).unwrap();
        let write =
            "memory_region_ops_write cpu 0 mr 0x1 addr 0xfed90018 value 0x0 size 4 name 'intel_iommu'";
        assert!(logged(&[write]).unwrap_err().to_string().contains("intel_iommu"));
        assert!(logged(&["changes at 1010"]).unwrap_err().to_string().contains("at 0x10 of its image"));
    }

    #[test]
    fn a_folded_table_is_put_together() {
        let said = "\n  STOPS       WHAT       WHY           WHAT WOULD HELP\n\
                    \x20 everything  processor  it has no     switch it\n\
                    \x20                        SVM           on\n\
                    \x20 sharing     vtd        it is off     turn it on\n\nend";
        let rows = refusals(said).unwrap();
        assert_eq!(rows[0], ["everything", "processor", "it has no SVM", "switch it on"]);
        assert_eq!(rows[1], ["sharing", "vtd", "it is off", "turn it on"]);
        assert!(refusals("").is_err());
    }
}
