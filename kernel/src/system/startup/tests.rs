// SPDX-License-Identifier: MIT OR Apache-2.0
//! Configurations that are started on a machine that has too little, or does not obey.

use std::cell::RefCell;

use super::*;
use crate::base::addr::GuestPhys;
use crate::config::parse;
use crate::dma::address_space::AddressSpace;
use crate::testing::{Fail, Options, REQUESTER, TestMachine, TestParent, lines};
use crate::vdev::parent::Planned;
use crate::vm::VmState;

const PARENT: &str = "[parent.dsa0]\npci = \"0000:00:04.0\"\n";
const VDEV: &str = "[[vm.vdev]]\nparent = \"dsa0\"\ntype = \"direct\"\n";
const WAITS: &str = "autostart = false\n";
/// What is said of the parent.
const TAKEN: &str = "parent dsa0: state enabled, queues 4 at 0000:00:04.0";
const ON_DEMAND: &str = "no VM starts with the machine; `vm NAME start` starts one";
const NOTHING: &str = "nothing was started: no VM is left to run; `vms` and `help` still work";
const HINT: &str = "`console NAME` goes to a guest, Ctrl-] comes back; `help` lists the commands";
/// A size of which the machine makes a layout that is none.
const ODD: u64 = 18 << 20;

/// A section of four lines and `more`: a VM of 16 MiB.
fn vm(name: &str, more: &str) -> String {
    format!("[[vm]]\nname = \"{name}\"\nmemory = \"16M\"\nkernel = \"k\"\n{more}")
}

/// What the tests give.
struct Supply {
    parent: &'static TestParent,
    /// It cannot be brought up.
    broken: bool,
    /// The queues that were asked for.
    asked: RefCell<Vec<Vec<Option<u16>>>>,
}

impl Machine for Supply {
    fn devices(&self) -> Vec<PciDevice> {
        vec![PciDevice { requester: REQUESTER, vendor: 0x8086, device: 0x0b25 }]
    }

    fn check_files(&self, config: &Config) -> Vec<ConfigError> {
        let missing = config.vms.iter().filter(|vm| vm.kernel.value == "gone");
        missing.map(|vm| vm.file_error("kernel", &vm.kernel, "it is not there")).collect()
    }

    fn bring_up(
        &self,
        parent: &ParentConfig,
        device: &PciDevice,
        planned: Vec<Planned>,
    ) -> Result<&'static dyn Parent, Refusal> {
        assert_eq!((parent.name.value.as_str(), device.requester), ("dsa0", REQUESTER));
        self.asked.borrow_mut().push(planned.into_iter().map(|vdev| vdev.entries).collect());
        match self.broken {
            true => Err(Refusal::new("parent dsa0", "it does not answer", "replace it")),
            false => Ok(self.parent),
        }
    }

    fn ram(&self, bytes: u64) -> Vec<RamRange> {
        vec![RamRange { start: GuestPhys(u64::from(bytes == ODD)), len: bytes }]
    }
}

/// How a machine goes wrong.
#[derive(Default)]
struct Fault {
    no_iommu: bool,
    broken: bool,
    fails: Option<Fail>,
}

/// What came of a configuration.
struct Outcome {
    machine: TestMachine,
    asked: Vec<Vec<Option<u16>>>,
    /// The parents that work, and the VMs that were not refused before any was defined.
    parents: Vec<String>,
    sound: Vec<String>,
    refused: Vec<VmInfo>,
    definitions: Definitions,
    lines: Vec<String>,
}

/// Starts a configuration on a machine with 96 MiB for guests and four queues.
fn start(text: &str, fault: &Fault) -> Outcome {
    start_with(text, &[], fault)
}

/// The same where the disk has files of definitions.
fn start_with(text: &str, files: &[(&str, &str)], fault: &Fault) -> Outcome {
    lines::keep();
    let options = Options { frames: 48, iommu: !fault.no_iommu, ..Options::default() };
    let mut machine = TestMachine::without_parent(options);
    if let Some(step) = fault.fails {
        machine.truth.fail(step);
    }
    let supply = Supply { parent: machine.parent(), broken: fault.broken, asked: RefCell::default() };
    let parsed = parse(text.as_bytes());
    let mut read = |path: &str| {
        let found = files.iter().find(|(name, _)| *name == path);
        found.map(|(_, text)| text.as_bytes()).ok_or_else(|| "it is not there".to_string())
    };
    let definitions = parsed.as_ref().map_or_else(|_| Vec::new(), |parsed| parsed.definitions(&mut read));
    let wanted = Wanted::new(parsed, definitions).expect("something to start");
    let checked = wanted.check(&mut machine.system, &supply);
    let parents = checked.parents().map(|parent| parent.name().to_string()).collect();
    let sound = checked.vms().iter().map(|vm| vm.name.value.clone()).collect();
    let defined = checked.define(&machine.system, &supply);
    let (refused, definitions) = (defined.refused().to_vec(), defined.definitions().clone());
    defined.start(&machine.system, machine.truth);
    machine.assert_sound();
    Outcome {
        machine,
        asked: supply.asked.take(),
        parents,
        sound,
        refused,
        definitions,
        lines: lines::kept(),
    }
}

impl Outcome {
    /// How often a VM was started, and where it is in its life.
    #[track_caller]
    fn life(&self, name: &str) -> (u64, VmState) {
        let vm = self.machine.system.vm_named(name).expect("it is defined");
        (vm.stats().starts(), vm.state())
    }
}

const RUNS: (u64, VmState) = (1, VmState::Running);

#[test]
fn each_vm_starts_once_in_the_order_of_the_file() {
    let text = [PARENT, &vm("beta", VDEV), &vm("alpha", ""), &vm("gamma", &VDEV.repeat(2))].concat();
    let outcome = start(&text, &Fault::default());
    assert_eq!(
        outcome.lines,
        [
            TAKEN,
            "vm beta: started, 16 MiB, dsa0/direct with PASID 1",
            "vm alpha: started, 16 MiB",
            "vm gamma: started, 16 MiB, dsa0/direct with PASID 2, dsa0/direct with PASID 3",
            HINT,
        ]
    );
    for name in ["beta", "alpha", "gamma"] {
        assert_eq!(outcome.life(name), RUNS);
    }
    assert_eq!(outcome.machine.truth.lock().running.len(), 3);
    assert_eq!(outcome.refused, []);
}

#[test]
fn a_vm_is_what_its_section_asks_for() {
    let text = format!(
        "{PARENT}{}{}",
        vm("alpha", &format!("pasids = 3\non_reboot = \"stop\"\n{VDEV}{VDEV}entries = 9\n")),
        vm("beta", "")
    );
    let outcome = start(&text, &Fault::default());
    let vdev = |entries| VdevSpec {
        parent: "dsa0".to_string(),
        type_name: "direct".to_string(),
        entries,
        weight: None,
        space: AddressSpace::Vm,
    };
    let alpha = VmSpec {
        name: "alpha".to_string(),
        ram: vec![RamRange { start: GuestPhys(0), len: 16 << 20 }],
        vcpus: 1,
        pasid_quota: 3,
        restart_on_reset: false,
        boots: BootSpec { kernel: "k".to_string(), ..BootSpec::default() },
        slots: 8,
        vdevs: vec![vdev(None), vdev(Some(9))],
    };
    assert_eq!(outcome.machine.system.vm_named("alpha").unwrap().spec(), &alpha);
    assert!(outcome.machine.system.vm_named("beta").unwrap().spec().restart_on_reset);
    assert_eq!(outcome.asked, [[None, Some(9)]]);
}

/// Starts a VM that is stopped, and two others, which start. Of the first there is one line, this one, behind those
/// `before` it.
#[track_caller]
fn stops_one(bad: &str, fault: &Fault, before: &[&str], error: &str) -> Outcome {
    let text = [PARENT, bad, &vm("alpha", ""), &vm("omega", "")].concat();
    let outcome = start(&text, fault);
    let after = [error, "vm alpha: started, 16 MiB", "vm omega: started, 16 MiB", HINT];
    assert_eq!(outcome.lines, [before, &after].concat());
    assert_eq!((outcome.life("alpha"), outcome.life("omega")), (RUNS, RUNS));
    outcome
}

/// The same for a VM that is not even defined: the monitor shows it with its line.
#[track_caller]
fn refuses_one(bad: &str, fault: &Fault, before: &[&str], error: &str) {
    let outcome = stops_one(bad, fault, before, error);
    let [info] = outcome.refused.as_slice() else { panic!("{:?}", outcome.refused) };
    assert_eq!((info.name.as_str(), &*info.state, info.reason.as_deref()), ("bad", "refused", Some(error)));
    assert!(outcome.machine.system.vm_named("bad").is_none());
}

/// Whoever looks between the checks and the definitions finds what was not refused.
#[test]
fn what_was_not_refused_is_given_on() {
    let text = [PARENT, &vm("bad", VDEV), &vm("alpha", "")].concat();
    let given = |fault: Fault| {
        let outcome = start(&text, &fault);
        (outcome.parents, outcome.sound)
    };
    let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    assert_eq!(given(Fault::default()), (names(&["dsa0"]), names(&["bad", "alpha"])));
    assert_eq!(given(Fault { broken: true, ..Fault::default() }), (names(&[]), names(&["alpha"])));
    assert_eq!(given(Fault { no_iommu: true, ..Fault::default() }), (names(&[]), names(&["alpha"])));
}

#[test]
fn memory_that_the_machine_does_not_have() {
    refuses_one(
        &vm("bad", "").replace("16M", "96M"),
        &Fault::default(),
        &[TAKEN],
        "pasidon.toml:5:10: vm bad: memory 96M is more than the 94M that the machine has left; give the VMs less, \
         or the machine more",
    );
}

#[test]
fn files_that_are_not_there() {
    refuses_one(
        &vm("bad", "").replace("\"k\"", "\"gone\""),
        &Fault::default(),
        &[TAKEN],
        "pasidon.toml:6:10: vm bad: kernel \"gone\": it is not there; put a good one there or correct the path",
    );
}

#[test]
fn a_parent_that_the_machine_does_not_have() {
    let far = "[parent.far]\npci = \"0000:00:09.0\"\n";
    refuses_one(
        &[far, &vm("bad", &VDEV.replace("dsa0", "far"))].concat(),
        &Fault::default(),
        &[
            TAKEN,
            "pasidon.toml:4:7: parent far: the machine has no device at pci = \"0000:00:09.0\"; correct the address, \
             or name the device by match",
        ],
        "pasidon.toml:10:10: vm bad: vdev number 1: parent far was refused; correct it first",
    );
}

#[test]
fn a_parent_that_cannot_be_brought_up() {
    refuses_one(
        &vm("bad", VDEV),
        &Fault { broken: true, ..Fault::default() },
        &["pasidon.toml:2:7: parent dsa0: it does not answer; replace it"],
        "pasidon.toml:8:10: vm bad: vdev number 1: parent dsa0: it does not answer; replace it",
    );
}

#[test]
fn a_parent_that_nothing_confines() {
    let why = "no IOMMU confines its DMA; use a machine with an IOMMU and turn it on in the firmware; or accept the \
               risk with iommu = \"off\", for trapped types only";
    refuses_one(
        &vm("bad", VDEV),
        &Fault { no_iommu: true, ..Fault::default() },
        &[&format!("pasidon.toml:2:7: parent dsa0: {why}")],
        &format!("pasidon.toml:8:10: vm bad: vdev number 1: parent dsa0: {why}"),
    );
}

#[test]
fn vdevs_that_the_parent_cannot_give() {
    refuses_one(
        &vm("bad", &VDEV.repeat(5)),
        &Fault::default(),
        &[TAKEN],
        "pasidon.toml:21:8: vm bad: vdev dsa0: no queue; free one",
    );
}

#[test]
fn a_definition_that_the_system_refuses() {
    refuses_one(
        &vm("bad", "").replace("16M", "18M"),
        &Fault::default(),
        &[TAKEN],
        "pasidon.toml:4:8: vm bad: RAM at 0x1, 0x1200000 bytes: not whole 2 MiB pages; lay RAM out in ascending ranges \
         of whole 2 MiB pages",
    );
}

/// It is there, and may be started again.
#[test]
fn a_start_that_fails() {
    let error = "pasidon.toml:4:8: vm bad: build: the test makes it fail; none";
    let fault = Fault { fails: Some(Fail::Build), ..Fault::default() };
    let outcome = stops_one(&vm("bad", ""), &fault, &[TAKEN], error);
    assert_eq!(outcome.refused, []);
    assert_eq!(outcome.life("bad"), (0, VmState::Stopped));
    let reason = outcome.machine.system.vm_named("bad").and_then(|vm| vm.reason());
    assert_eq!(reason.as_deref(), Some("vm bad: build: the test makes it fail; none"));
}

/// The queues of a parent are shared out among those that are left when it is brought up.
#[test]
fn a_vm_that_is_refused_asks_for_no_queue() {
    let large = vm("large", &VDEV.repeat(2)).replace("16M", "98M");
    let gone = vm("gone", VDEV).replace("\"k\"", "\"gone\"");
    let text = [PARENT, &large, &gone, &vm("alpha", VDEV)].concat();
    assert_eq!(start(&text, &Fault::default()).asked, [[None]]);
}

/// Two things are wrong with a VM: both are said, and the monitor shows the first.
#[test]
fn every_error_of_a_vm_is_said() {
    let vdevs = VDEV.replace("direct", "dirct").repeat(2);
    let outcome = start(&[PARENT, &vm("bad", &vdevs), &vm("alpha", "")].concat(), &Fault::default());
    let errors: Vec<&String> = outcome.lines.iter().filter(|line| line.contains("vm bad:")).collect();
    let [first, second] = errors.as_slice() else { panic!("{errors:?}") };
    assert!(first.contains("vdev number 1: ") && second.contains("vdev number 2: "));
    let [info] = outcome.refused.as_slice() else { panic!("{:?}", outcome.refused) };
    assert_eq!(info.reason.as_ref(), Some(*first));
}

/// What is wrong within the file is said first, and leaves a place in it.
#[test]
fn consoles_are_counted_by_the_places_in_the_file() {
    let torn = vm("torn", "").replace("kernel", "kernle");
    let gone = |name| vm(name, "").replace("\"k\"", "\"gone\"");
    let text = [torn, vm("alpha", ""), gone("gone"), vm("waits", WAITS), gone("last")].concat();
    let outcome = start(&text, &Fault::default());
    assert!(outcome.lines[0].contains("vm torn: "), "{:?}", outcome.lines);
    let vms = outcome.machine.system.vms();
    let places: Vec<(&str, usize)> = vms.iter().map(|vm| (vm.name(), vm.id().place())).collect();
    assert_eq!(places, [("alpha", 1), ("waits", 3)]);
    let refused: Vec<(&str, u32)> =
        outcome.refused.iter().map(|vm| (vm.name.as_str(), vm.id & 0xffff)).collect();
    assert_eq!(refused, [("gone", 2), ("last", 4)]);
}

#[test]
fn a_vm_that_waits_is_defined_and_not_started() {
    let text = [PARENT, &vm("later", WAITS), &vm("alpha", "")].concat();
    let outcome = start(&text, &Fault::default());
    let later = "vm later: defined, not started (autostart = false)";
    assert_eq!(outcome.lines, [TAKEN, later, "vm alpha: started, 16 MiB", HINT]);
    assert_eq!((outcome.life("later"), outcome.life("alpha")), ((0, VmState::Created), RUNS));
    assert_eq!((outcome.machine.system.vms().len(), outcome.refused.len()), (2, 0));
}

/// `[host]` with these definitions.
fn host(files: &str) -> String {
    format!("[host]\ndefinitions = [{files}]\n")
}

#[test]
fn what_may_be_defined_is_checked_at_boot_and_made_later() {
    let gamma = vm("gamma", VDEV) + &vm("delta", "");
    let text = [host("\"g\""), PARENT.to_string(), vm("alpha", VDEV)].concat();
    let outcome = start_with(&text, &[("g", &gamma)], &Fault::default());
    assert_eq!(outcome.lines, [TAKEN, "vm alpha: started, 16 MiB, dsa0/direct with PASID 1", HINT]);
    assert_eq!(outcome.asked, [[None, None]], "its queues are planned for, too");
    let system = &outcome.machine.system;
    assert!(system.vm_named("gamma").is_none());
    let specs = outcome.definitions.vms_of("g").unwrap();
    let vms = system.define_vms(specs).unwrap();
    assert_eq!((vms[0].name(), vms[0].id().place(), vms[1].id().place()), ("gamma", 1, 2));
    assert_eq!(vms[0].spec().boots.kernel, "k");
    for vm in &vms {
        assert_eq!(vm.state(), VmState::Created, "autostart says nothing there");
        system.start_vm(outcome.machine.truth, vm).unwrap();
    }
    outcome.machine.assert_sound();
    assert_eq!(
        outcome.definitions.vms_of("h").unwrap_err().to_string(),
        "definition h: it was not read at boot, and the disk cannot be read now; name it in definitions of [host] in \
         pasidon.toml, and boot again"
    );
}

#[test]
fn a_wrong_definition_is_refused_at_boot_and_stops_nothing_else() {
    let refused = |bad: &str, line: &str| {
        let text = [host("\"bad\", \"good\""), PARENT.to_string(), vm("alpha", "")].concat();
        let outcome = start_with(&text, &[("bad", bad), ("good", &vm("good", VDEV))], &Fault::default());
        let mut lines = outcome.lines.clone();
        lines.retain(|line| line != TAKEN);
        assert_eq!(lines, [line, "vm alpha: started, 16 MiB", HINT]);
        assert_eq!(
            outcome.definitions.vms_of("bad").unwrap_err().to_string(),
            format!("definition bad: it was refused at boot: {line}; correct the file and boot again")
        );
        assert_eq!(outcome.definitions.vms_of("good").unwrap().len(), 1);
        let infos = outcome.definitions.infos();
        assert_eq!((infos[0].vms.len(), infos[0].refused.as_deref()), (0, Some(line)));
        assert_eq!((infos[1].vms.as_slice(), infos[1].refused.as_ref()), (&["good".to_string()][..], None));
    };
    refused(&vm("gamma", "slts = 3\n"), "bad:5:1: vm gamma: unknown key \"slts\"; did you mean slots?");
    refused(
        &(vm("sound", "") + &vm("gamma", "").replace("\"k\"", "\"gone\"")),
        "bad:8:10: vm gamma: kernel \"gone\": it is not there; put a good one there or correct the path",
    );
    refused(
        &vm("gamma", "").replace("16M", "18M"),
        "bad:2:8: vm gamma: RAM at 0x1, 0x1200000 bytes: not whole 2 MiB pages; lay RAM out in ascending ranges of whole 2 \
         MiB pages",
    );
    refused(
        &vm("gamma", "").replace("16M", "512M"),
        "bad:3:10: vm gamma: memory 512M is more than the 94M that the machine has left; give the VMs less, or the \
         machine more",
    );
    refused(
        &vm("gamma", &VDEV.replace("direct", "dirct")),
        "bad:7:8: vm gamma: vdev number 1: parent dsa0 has no type \"dirct\"; did you mean \"direct\"?",
    );
}

#[test]
fn a_machine_may_start_with_definitions_only() {
    let gone =
        "pasidon.toml:2:16: definition \"g\": it is not there; put a good one there or correct the path";
    let outcome = start_with(&host("\"g\""), &[], &Fault::default());
    assert_eq!(outcome.lines, [gone, NOTHING, HINT]);
    let outcome = start_with(&host("\"g\""), &[("g", &vm("gamma", ""))], &Fault::default());
    assert_eq!(outcome.lines, ["no VM is defined; `vm define` lists the files that can be", HINT]);
}

/// The last lines say what there is to do.
#[test]
fn the_last_word_fits_what_runs() {
    let last = |text: &[&str], fault: Fault| {
        let mut lines = start(&text.concat(), &fault).lines;
        lines.split_off(lines.len().saturating_sub(2))
    };
    let later = vm("later", WAITS);
    let gone = vm("gone", "").replace("\"k\"", "\"gone\"");
    let fails = || Fault { fails: Some(Fail::Run), ..Fault::default() };
    assert_eq!(last(&[&later], Fault::default()), [ON_DEMAND, HINT]);
    assert_eq!(last(&[&gone], Fault::default()), [NOTHING, HINT]);
    assert_eq!(last(&[&gone, &later], Fault::default()), [ON_DEMAND, HINT]);
    assert_eq!(last(&[&vm("alpha", "")], fails()), [NOTHING, HINT]);
    assert_eq!(last(&[&vm("alpha", ""), &later], fails()), [ON_DEMAND, HINT]);
    let waits = "vm later: defined, not started (autostart = false)";
    assert_eq!(last(&[&vm("alpha", ""), &later], Fault::default()), [waits, HINT]);
    // A program that reads frames needs no hint.
    let framed = "[host]\nconsole = \"framed\"\n";
    assert_eq!(
        last(&[framed, &vm("alpha", ""), &later], Fault::default()),
        ["vm alpha: started, 16 MiB", waits]
    );
}

#[test]
fn why_isolation_is_weaker_is_said_once() {
    let text = [PARENT, "iommu = \"off\"\n", &vm("alpha", &VDEV.replace("direct", "trapped"))].concat();
    let outcome = start(&text, &Fault { no_iommu: true, ..Fault::default() });
    let taint = "TAINTED: dsa0: iommu = \"off\", no IOMMU confines it";
    let events = "parent dsa0: its events are not seen: interrupt 0 of dsa0: this machine cannot raise it without \
                  interrupt remapping; use the parent with an IOMMU";
    assert_eq!(outcome.lines, [events, TAKEN, taint, "vm alpha: started, 16 MiB, dsa0/trapped", HINT]);
}

#[test]
fn a_file_that_is_wrong_as_a_whole_starts_nothing() {
    lines::keep();
    assert!(Wanted::new(parse(b"[hots]\n"), Vec::new()).is_none());
    let lines = lines::kept();
    assert!(!lines.is_empty() && lines.iter().all(|line| line.starts_with("pasidon.toml:")), "{lines:?}");
}
