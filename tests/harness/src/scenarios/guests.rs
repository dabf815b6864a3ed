// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linux guests without an accelerator: booting, running side by side, ending in every way a guest can end.

use super::pasidon::{BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, check, shell, vm, wait_for_state};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::line::PROMPT;
use crate::scenario::Scenario;
use anyhow::Context;

/// Pasidon takes the machine over and says what it found.
pub const INVENTORY: Scenario = Scenario {
    name: "boot",
    about: "Pasidon boots, lists processors, IOMMU and the parent, and starts a guest from a bzImage too",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let bzimage = vm("alpha", 0, "").replace("guests/vmlinux", "guests/vmlinuz");
        let machine = lab.pasidon(&[HOST, &bzimage].concat(), demonstration::platform)?;
        machine.log().expect("Pasidon", BOOT_TIMEOUT)?;
        let alpha = shell(&machine, "alpha")?;
        let parents = machine.monitor("parents")?;
        anyhow::ensure!(parents[0]["name"] == "dsa0" && parents[0]["iommu"] == true, "parents : {parents}");
        anyhow::ensure!(parents[0]["requester"] == "0000:00:04.0", "parents : {parents}");
        check(&machine, alpha, "uname -sr", "Linux 6.1.").map(drop)
    },
};

/// Two guests at their shells.
pub const TWO: Scenario = Scenario {
    name: "two-guests",
    about: "two Linux guests at their shells at once, each on its own console",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 0, ""), &vm("beta", 0, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        for name in ["alpha", "beta"] {
            let console = shell(&machine, name)?;
            check(&machine, console, "hostname", name)?;
        }
        Ok(())
    },
};

/// More guests than processors.
pub const THREE: Scenario = Scenario {
    name: "three-guests",
    about: "three guests on two pCPUs: all compute to the end and all keep time",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 0, ""), &vm("beta", 0, ""), &vm("gamma", 0, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let names = ["alpha", "beta", "gamma"];
        for name in names {
            shell(&machine, name)?;
        }
        // All three at once; a guest that is never scheduled does not finish.
        for name in names {
            machine
                .console(name)?
                .send_line("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done $i")?;
        }
        for name in names {
            machine.console(name)?.expect("^done 20000$", BOOT_TIMEOUT)?;
        }
        Ok(())
    },
};

/// Floating-point registers stay a guest's own.
pub const FPU: Scenario = Scenario {
    name: "fpu-isolation",
    about: "three guests on two pCPUs keep patterns of their own in x87, SSE and AVX registers (on Arm V0-V31, DISR_EL1 and debug registers) across turns",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 0, ""), &vm("beta", 0, ""), &vm("gamma", 0, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let guests = [("alpha", 1), ("beta", 2), ("gamma", 3)];
        for (name, _) in guests {
            shell(&machine, name)?;
        }
        for (name, seed) in guests {
            machine.console(name)?.send_line(&format!("fpu-check {seed}"))?;
        }
        let registers = match lab.arch() {
            Arch::X86_64 => "x87\\+avx",
            Arch::Aarch64 => "simd",
        };
        let mut interrupted = 0;
        for (name, seed) in guests {
            let line =
                format!("^PASIDON fpu seed={seed} registers={registers} rounds=60 gaps=(\\d+) wrong=(\\d+)$");
            let found = machine.console(name)?.expect(&line, BOOT_TIMEOUT)?;
            anyhow::ensure!(found[2] == "0", "{name}: {}", found[0]);
            interrupted += found[1].parse::<u32>()?;
        }
        anyhow::ensure!(interrupted >= 20, "only {interrupted} rounds met another guest's turn");
        Ok(())
    },
};

/// No register tells of a neighbour.
pub const NEIGHBOUR: Scenario = Scenario {
    name: "hostile-neighbour",
    about: "two guests on one pCPU: one changes every register it can reach, the other reads every one and finds only its own values",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 0, ""), &vm("beta", 0, "")].concat();
        let machine = lab.pasidon(&configuration, |machine| demonstration::platform(machine).cpus(1))?;
        let writer = shell(&machine, "alpha")?;
        let reader = shell(&machine, "beta")?;
        // What the reader holds for its own it has seen before the other began.
        let reads = reader.command("register-sweep read", BOOT_TIMEOUT)?;
        anyhow::ensure!(reads.contains("PASIDON sweep reads="), "{reads}");
        let wrote = writer.command("register-sweep write 100", BOOT_TIMEOUT)?;
        let read = reader.command("register-sweep stop", BOOT_TIMEOUT)?;
        let number = |text: &str, name: &str| -> anyhow::Result<u32> {
            let mut words = text.split_whitespace().filter_map(|word| word.split_once('='));
            let (_, value) = words
                .find(|(key, _)| *key == name)
                .with_context(|| format!("no {name} in {text}\n{}", machine.transcript()))?;
            Ok(value.parse()?)
        };
        for (said, bad) in [(&read, "leaked"), (&wrote, "lost")] {
            anyhow::ensure!(number(said, bad)? == 0, "{said}\n{}", machine.transcript());
            anyhow::ensure!(number(said, "gaps")? >= 20, "the other had too few turns: {said}");
            anyhow::ensure!(number(said, "registers")? >= 60, "{said}");
        }
        anyhow::ensure!(number(&wrote, "written")? >= 20, "{wrote}");
        // Both are well.
        for console in [writer, reader] {
            check(&machine, console, "echo $((6 * 7))", "42")?;
        }
        Ok(())
    },
};

/// A process and device memory.
pub const DEVICE_MEMORY: Scenario = Scenario {
    name: "device-memory",
    about: "a process moves SSE and AVX registers to and from a BAR; what a BAR does not take ends that process only",
    arches: &[Arch::X86_64],
    cpus: Cpu::ALL,
    run: |lab| {
        const SIGILL: &str = "signal=4";
        let configuration = [HOST, &vm("alpha", 1, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        let said = alpha.command("bar-access", COMMAND_TIMEOUT)?;
        for (access, outcome) in [
            ("sse", "done"),
            ("avx", "done"),
            ("parts", "done"),
            ("popcnt", SIGILL),
            ("x87", SIGILL),
            ("execute-registers", SIGILL),
            ("execute-portals", SIGILL),
        ] {
            let line = format!("PASIDON bar-access {access} {outcome}");
            anyhow::ensure!(
                said.lines().any(|said| said == line),
                "no line {line} in {said}\n{}",
                machine.transcript()
            );
        }
        check(&machine, alpha, "echo $((6 * 7))", "42")?;
        machine.log().expect("that device memory does not take", COMMAND_TIMEOUT).map(drop)
    },
};

/// Watchpoints fire where they are, for whom they are.
pub const WATCH: Scenario = Scenario {
    name: "watchpoints",
    about: "three guests on two pCPUs have hardware watchpoints at work: each fires at every write, in its own guest",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 0, ""), &vm("beta", 0, ""), &vm("gamma", 0, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        // On Arm Linux steps over the write with the watchpoint off, and where an interrupt of its own comes first, it
        // steps into the handler instead: the write is begun again, and fires once more. It is so without Pasidon,
        // too (100,309 times for 100,000 writes on the platform alone). What comes to Pasidon meanwhile must not show.
        let open = match lab.arch() {
            Arch::X86_64 => "2000",
            Arch::Aarch64 => "2[0-9]{3}",
        };
        let guests = ["alpha", "beta", "gamma"];
        for name in guests {
            shell(&machine, name)?;
        }
        for name in guests {
            machine.console(name)?.send_line("watch-check 2000")?;
        }
        for name in guests {
            let console = machine.console(name)?;
            console.expect(
                &format!("^PASIDON watch writes=2000 hits=2000 open={open} quiet=0$"),
                BOOT_TIMEOUT,
            )?;
        }
        Ok(())
    },
};

/// A guest knows what time it is, and has random numbers from the start.
pub const SEED: Scenario = Scenario {
    name: "clock-and-seed",
    about: "an Arm guest has the date by its real-time clock, and seeds for its addresses and random numbers",
    arches: &[Arch::Aarch64],
    cpus: Cpu::ALL,
    run: |lab| {
        // The platform's own processor has no RNDR, and its firmware no random numbers.
        let machine = lab.pasidon(&[HOST, &vm("alpha", 0, "")].concat(), |machine| {
            demonstration::platform(machine).arguments(["-cpu", "max,pauth-impdef=on"])
        })?;
        let console = shell(&machine, "alpha")?;
        check(&machine, console, "cat /sys/class/rtc/rtc0/name", "rtc-pl031")?;
        // The clock of the machine that this runs on, which the platform shows the firmware.
        let now = std::time::UNIX_EPOCH.elapsed()?.as_secs();
        for command in ["date +%s", "cat /sys/class/rtc/rtc0/since_epoch"] {
            let said = console.command(command, COMMAND_TIMEOUT)?;
            let seconds: u64 = said.trim().parse()?;
            anyhow::ensure!(
                (now - 60..now + 600).contains(&seconds),
                "{command} says {seconds}, and it is {now}"
            );
        }
        check(&machine, console, "dmesg | grep -c 'KASLR enabled'", "1").map(drop)
    },
};

/// Ends of a guest that the others do not notice.
pub const ENDS: Scenario = Scenario {
    name: "guest-ends",
    about: "guest panic, triple fault (x86_64), reboot and poweroff, then a new start: the other guest goes on",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        // reboot=t: Linux resets by a triple fault, which is x86's own. panic=0: it stays where it panicked.
        let triple = ("triple", "reboot=t", "reboot -f", Some("crashed"));
        let mut ends = vec![
            ("panics", "panic=0", "echo c > /proc/sysrq-trigger", None),
            ("reboots", "reboot=a", "reboot -f", Some("stopped")),
            ("leaves", "", "poweroff -f", Some("stopped")),
        ];
        if lab.arch() == Arch::X86_64 {
            ends.insert(1, triple);
        }
        let mut configuration = [HOST, &vm("alpha", 0, "")].concat();
        for (name, words, ..) in &ends {
            let memory = vm(name, 0, words).replace("256M", "128M");
            configuration += &memory.replace("cmdline", "on_reboot = \"stop\"\ncmdline");
        }
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        for (name, _, command, state) in &ends {
            let console = shell(&machine, name)?;
            console.send_line(command)?;
            match state {
                Some(state) => wait_for_state(&machine, name, state)?,
                None => drop(console.expect("Kernel panic - not syncing", COMMAND_TIMEOUT)?),
            }
            check(&machine, alpha, "echo $((6 * 7))", "42")?;
        }
        // What it had is free again, and good for another life.
        machine.monitor("vm leaves start")?;
        shell(&machine, "leaves")?;
        check(&machine, alpha, "echo $((6 * 7))", "42").map(drop)
    },
};

/// Every way in which Linux starts a PC again.
pub const RESTARTS: Scenario = Scenario {
    name: "guest-restarts",
    about: "a guest restarts by a triple fault, by port CF9h and by the keyboard controller, and is there again",
    arches: &[Arch::X86_64],
    cpus: Cpu::ALL,
    run: |lab| {
        let methods = ["triple", "pci", "kbd"];
        let mut configuration = HOST.to_string();
        for method in methods {
            configuration += &vm(method, 0, &format!("reboot={method}")).replace("256M", "128M");
        }
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        for method in methods {
            let console = shell(&machine, method)?;
            console.send_line("reboot -f")?;
            shell(&machine, method)?;
            check(&machine, console, "echo $((6 * 7))", "42")?;
        }
        // The triple fault alone is worth a warning.
        machine.log().expect("vm triple: triple fault .*: started again", COMMAND_TIMEOUT).map(drop)
    },
};

/// The processor that a guest sees keeps the rules of a real one.
pub const RULES: Scenario = Scenario {
    name: "processor-rules",
    about: "single steps end behind trapped instructions, CR4 and EFER refuse what CPUID does not show, NMIs nest as they should, the TSC can be written",
    arches: &[Arch::X86_64],
    cpus: Cpu::ALL,
    run: |lab| {
        // Both on one pCPU: what one turned on, the other would meet.
        let configuration = [HOST, &vm("alpha", 0, ""), &vm("beta", 0, "")].concat();
        let machine = lab.pasidon(&configuration, |machine| demonstration::platform(machine).cpus(1))?;
        for name in ["alpha", "beta"] {
            shell(&machine, name)?.send_line("cpu-check")?;
        }
        for name in ["alpha", "beta"] {
            let line = machine.console(name)?.expect("^PASIDON cpu (.* debug=[a-z]+)$", BOOT_TIMEOUT)?;
            let wrong = line[1].split_whitespace().find(|word| !word.ends_with("=ok"));
            anyhow::ensure!(wrong.is_none(), "{name}: {}", line[0]);
            machine.console(name)?.expect(PROMPT, COMMAND_TIMEOUT)?;
            check(&machine, machine.console(name)?, "hostname", name)?;
        }
        Ok(())
    },
};

/// Words that people give a kernel when a PC gives them trouble. `docs/src/guest.md` says what each costs here.
pub const WORDS: Scenario = Scenario {
    name: "guest-words",
    about: "a guest with pci=nomsi is at its shell; with noapic, acpi=off and nolapic_timer the kernel gets as far as its init",
    arches: &[Arch::X86_64],
    cpus: Cpu::ALL,
    run: |lab| {
        let guests =
            [("timer", "nolapic_timer"), ("nomsi", "pci=nomsi"), ("noapic", "noapic"), ("acpi", "acpi=off")];
        let mut configuration = HOST.to_string();
        for (name, word) in guests {
            // How far the kernel got is among its messages.
            let words = format!("{word} loglevel=7");
            configuration += &vm(name, 0, &words).replace("256M", "128M");
        }
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        for (name, word) in guests {
            if word == "pci=nomsi" {
                let console = shell(&machine, name)?;
                check(&machine, console, "echo $((6 * 7))", "42")?;
            } else {
                let init = "Run /init as init process";
                machine.console(name)?.expect(init, BOOT_TIMEOUT)?;
            }
        }
        Ok(())
    },
};
