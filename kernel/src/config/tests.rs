// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each error of the configuration, by its whole line; and that no text at all makes the parser panic.

mod definitions;

use proptest::prelude::*;

use super::*;
use crate::base::addr::{GuestPhys, Requester};
use crate::dma::address_space::AddressSpace;
use crate::dma::pasid::NamespaceScope;
use crate::memory::ram::RamRange;

/// Every key given.
pub(super) const FULL: &str = r#"
[host]
mode = "run"
log = "debug"
console = "framed"
definitions = ["vms/gamma.toml"]
last_pasid = 255
pasid_namespace = "device"

[parent.dsa1]
match = "8086:0b25"
allow_unsafe_portals = true
shared_entries = 24

[parent.dsa0]
pci = "0000:00:04.0"
iommu = "off"

[[vm]]
name = "alpha"
memory = "256M"
kernel = "guests/vmlinuz"
initrd = "guests/alpha.img"
cmdline = "console=ttyS0"
pasids = 2
slots = 12
vcpus = 1
autostart = false
on_reboot = "stop"

  [[vm.vdev]]
  parent = "dsa0"
  type = "dsa-dwq"
  entries = 32

  [[vm.vdev]]
  parent = "dsa1"
  type = "dsa-swq"
  weight = 3
  address_space = "dma-only"
  windows = ["0x8000000+16M", "0x1000+4K"]

[[vm]]
name = "beta"
memory = "1G"
kernel = 'guests\vmlinuz'
"#;

fn vm(name: &str, more: &str) -> String {
    let end = if more.is_empty() { "" } else { "\n" };
    format!("[[vm]]\nname = \"{name}\"\nmemory = \"64M\"\nkernel = \"k\"\n{more}{end}")
}

/// The errors of a file that must be refused as a whole.
fn refused(text: &str) -> Vec<String> {
    let errors = parse(text.as_bytes()).expect_err(text);
    errors.iter().map(ConfigError::to_string).collect()
}

/// A file with a sound VM `good` before a section with one error: that one error, and the sound VM left.
fn one_vm_refused(section: &str) -> String {
    let text = format!("[parent.dsa0]\npci = \"0000:00:04.0\"\n{}{section}", vm("good", ""));
    let parsed = parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}"));
    let names: Vec<_> = parsed.config.vms.iter().map(|vm| vm.name.value.clone()).collect();
    assert_eq!(names, ["good"]);
    assert_eq!(parsed.errors.len(), 1, "{:?}", parsed.errors);
    assert_eq!(parsed.errors[0].scope, Scope::Vm(1));
    parsed.errors[0].to_string()
}

#[test]
fn every_key_is_read() {
    let Parsed { config, errors, .. } = parse(FULL.as_bytes()).unwrap();
    assert_eq!(errors, []);
    assert_eq!(config.host.mode.value, Mode::Run);
    assert_eq!(config.host.log.value, log::LevelFilter::Debug);
    assert_eq!(config.host.console.value, ConsoleMode::Framed);
    assert_eq!(config.host.last_pasid.map(|last| last.value), Some(255));
    assert_eq!(config.host.pasid_namespace.value, NamespaceScope::Device);
    let definitions: Vec<_> = config.host.definitions.iter().map(|path| path.value.as_str()).collect();
    assert_eq!(definitions, ["vms/gamma.toml"]);
    let names: Vec<_> = config.parents.iter().map(|parent| parent.name.value.as_str()).collect();
    assert_eq!(names, ["dsa1", "dsa0"], "in the order of the file");
    let dsa0 = config.parent("dsa0").unwrap();
    assert_eq!(dsa0.selector.value, ParentSelector::Pci(Requester::new(0, 0, 4, 0)));
    assert!(!dsa0.iommu.value && !dsa0.allow_unsafe_portals.value);
    let dsa1 = config.parent("dsa1").unwrap();
    assert_eq!(dsa1.selector.value, ParentSelector::Match { vendor: 0x8086, device: 0x0b25 });
    assert!(dsa1.iommu.value && dsa1.allow_unsafe_portals.value);

    let alpha = config.vm("alpha").unwrap();
    assert_eq!(alpha.memory.value, 256 << 20);
    assert_eq!(alpha.kernel.value, "guests/vmlinuz");
    assert_eq!(alpha.initrd.as_ref().unwrap().value, "guests/alpha.img");
    assert_eq!(alpha.cmdline.value, "console=ttyS0");
    assert_eq!((alpha.pasids.value, alpha.slots.value, alpha.vcpus.value), (2, 12, 1));
    assert!(!alpha.autostart.value);
    assert_eq!(alpha.on_reboot.value, OnReboot::Stop);
    assert_eq!(alpha.vdevs.len(), 2);
    assert_eq!(alpha.vdevs[0].entries.unwrap().value, 32);
    assert_eq!(alpha.vdevs[1].type_name.value, "dsa-swq");
    assert_eq!((alpha.vdevs[1].entries, alpha.vdevs[0].weight), (None, None));
    assert_eq!(alpha.vdevs[1].weight.map(|weight| weight.value), Some(3));
    assert_eq!(alpha.vdevs[0].space.value, AddressSpace::Vm);
    let windows = [(0x800_0000, 16 << 20), (0x1000, 0x1000)];
    let windows = windows.map(|(start, len)| RamRange { start: GuestPhys(start), len });
    assert_eq!(alpha.vdevs[1].space.value, AddressSpace::DmaOnly(windows.into()));
    assert_eq!(config.parents[0].shared_entries.map(|entries| entries.value), Some(24));
    assert_eq!(config.parents[1].shared_entries, None);

    let beta = config.vm("beta").unwrap();
    assert_eq!((beta.index, beta.pasids.value, beta.slots.value, beta.autostart.value), (1, 8, 8, true));
    assert_eq!(beta.on_reboot.value, OnReboot::Restart);
    assert_eq!(beta.kernel.value, "guests/vmlinuz");
}

#[test]
fn windows_are_ranges_of_whole_pages_for_dma_only() {
    let vdev = "[[vm.vdev]]\nparent = \"dsa0\"\ntype = \"x\"\n";
    let refused = |keys: &str| one_vm_refused(&vm("bad", &format!("{vdev}{keys}")));
    let only = "address_space = \"dma-only\"\n";
    for (keys, wanted) in [
        (only.to_string(), "address_space is \"dma-only\", but no windows are named"),
        ("windows = [\"0x0+4K\"]".into(), "windows are for address_space = \"dma-only\""),
        ("address_space = \"dmaonly\"".into(), "did you mean address_space = \"dma-only\"?"),
        (format!("{only}windows = []"), "windows is empty; write windows = [\"0x8000000+16M\"]"),
        (
            format!("{only}windows = \"0x0+4K\""),
            "windows takes a list of strings ADDRESS+SIZE, but this is a string",
        ),
        (format!("{only}windows = [4096]"), "but this is an integer"),
        (format!("{only}windows = [\"4096+4K\"]"), "window \"4096+4K\" is no range of memory"),
        (format!("{only}windows = [\"0x+4K\"]"), "is no range of memory"),
        (format!("{only}windows = [\"0x1000+\"]"), "is no range of memory"),
        (format!("{only}windows = [\"0x1000+0K\"]"), "is not whole pages"),
        (format!("{only}windows = [\"0x1800+4K\"]"), "is not whole pages"),
        (format!("{only}windows = [\"0x1000+6K\"]"), "is not whole pages"),
        (format!("{only}windows = [\"0xfffffffffffff000+8K\"]"), "is no range of memory"),
        (format!("{only}windows = [\"0x0+99999999999999999999G\"]"), "is no range of memory"),
        (format!("{only}windows = [\"0x1000+8K\", \"0x2000+4K\"]"), "overlaps one before it"),
    ] {
        let said = refused(&keys);
        assert!(said.contains(wanted), "{keys}: {said}");
    }
    let many: Vec<String> = (0..17).map(|page| format!("\"{:#x}+4K\"", page * 4096)).collect();
    assert!(
        refused(&format!("{only}windows = [{}]", many.join(", "))).contains("17 windows are more than 16")
    );
}

#[test]
fn slots_are_enough_for_the_vdevs_and_some_more() {
    let vdev = "[[vm.vdev]]\nparent = \"dsa0\"\ntype = \"x\"\n";
    let with = |keys: &str, vdevs: usize| vm("bad", &format!("pasids = 999\n{keys}{}", vdev.repeat(vdevs)));
    for (keys, vdevs, slots) in
        [("", 4, 8), ("", 5, 9), ("", 246, 248), ("slots = 3\n", 3, 3), ("slots = 0\n", 0, 0)]
    {
        let text = format!("[parent.dsa0]\npci = \"0000:00:04.0\"\n{}", with(keys, vdevs));
        let parsed = parse(text.as_bytes()).unwrap();
        assert_eq!((parsed.config.vms[0].slots.value, parsed.errors.len()), (slots, 0));
    }
    assert_eq!(
        one_vm_refused(&with("slots = 2\n", 3)),
        "pasidon.toml:12:9: vm bad: 3 vdevs do not fit 2 slots; write slots = 3 or remove a vdev"
    );
    assert!(one_vm_refused(&with("", 249)).ends_with("249 vdevs do not fit 248 slots; remove vdevs"));
    assert!(one_vm_refused(&with("slots = 249\n", 0)).contains("use a number from 0 to 248"));
}

#[test]
fn the_full_example_names_every_key_of_the_schema() {
    for section in schema::SECTIONS {
        for key in section.keys {
            assert!(FULL.contains(key.name), "{} {} is not exercised", section.heading, key.name);
            assert!(key.example.contains(key.name));
        }
    }
}

#[test]
fn values_know_their_places() {
    let config = parse(FULL.as_bytes()).unwrap().config;
    let alpha = config.vm("alpha").unwrap();
    for (at, text) in [
        (config.host.log.at, "\"debug\""),
        (config.parents[1].name.at, "dsa0]"),
        (config.parents[1].selector.at, "\"0000:00:04.0\""),
        (alpha.at, "[[vm]]"),
        (alpha.memory.at, "\"256M\""),
        (alpha.vdevs[0].at, "[[vm.vdev]]"),
        (alpha.vdevs[0].entries.unwrap().at, "32"),
    ] {
        let line = FULL.lines().nth(at.line as usize - 1).unwrap();
        assert!(line[at.column as usize - 1..].starts_with(text), "{at}: {line}");
    }
    let error = alpha.error_at(alpha.memory.at, "memory: the machine has 128M left", "use less");
    assert_eq!(
        error.to_string(),
        "pasidon.toml:21:10: vm alpha: memory: the machine has 128M left; use less"
    );
}

#[test]
fn syntax_errors_stop_everything() {
    let errors = refused("[[vm]]\nname = \"alpha\nmemory = \"256M\"\n");
    assert_eq!(errors.len(), 1);
    assert!(errors[0].starts_with("pasidon.toml:2:"), "{}", errors[0]);
    assert!(errors[0].contains(": syntax: "), "{}", errors[0]);
    let errors = refused("[[vm]]\nname = \"a\"\nname = \"b\"\n");
    assert!(errors[0].starts_with("pasidon.toml:3:1: syntax: duplicate key"), "{}", errors[0]);
    let bytes = parse(b"[host]\nlog = \"\xff\"").unwrap_err();
    assert_eq!(bytes[0].to_string(), "pasidon.toml:2:8: not UTF-8 text; save the file as UTF-8");
    let long = parse(&vec![b'#'; MAX_FILE + 1]).unwrap_err();
    assert!(long[0].to_string().contains("262145 bytes, more than 262144; shorten it"));
}

#[test]
fn no_vm_stops_everything() {
    let line = "pasidon.toml:1:1: there is no VM; add a [[vm]] section with name, memory and kernel";
    assert_eq!(refused(""), [line]);
    assert_eq!(refused("# nothing\n[host]\n"), [line]);
    assert!(refused("vm = []")[0].contains("there is no VM"));
}

#[test]
fn the_inventory_needs_no_vm_and_no_sound_file() {
    let parsed = parse(b"[host]\nmode = \"inventory\"\n").unwrap();
    assert_eq!((parsed.config.host.mode.value, parsed.errors.as_slice()), (Mode::Inventory, &[][..]));
    let broken = format!("[hots]\n[host]\nmode = \"inventory\"\n{}", vm("a", "memroy = 1"));
    let parsed = parse(broken.as_bytes()).unwrap();
    let scopes: Vec<_> = parsed.errors.iter().map(|error| error.scope).collect();
    assert_eq!(scopes, [Scope::Whole, Scope::Vm(0)]);
    let errors = refused(&format!("[host]\nmode = \"inventry\"\n{}", vm("a", "")));
    assert!(errors[0].contains("did you mean mode = \"inventory\"?"), "{errors:?}");
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    assert_eq!(
        refused(&format!("[hots]\n{}", vm("a", ""))),
        ["pasidon.toml:1:2: unknown key \"hots\"; did you mean host?"]
    );
    assert_eq!(
        refused(&format!("[host]\nlogg = 1\n{}", vm("a", ""))),
        ["pasidon.toml:2:1: host: unknown key \"logg\"; did you mean log?"]
    );
    assert_eq!(
        one_vm_refused(&vm("bad", "memroy = \"1G\"")),
        "pasidon.toml:11:1: vm bad: unknown key \"memroy\"; did you mean memory?"
    );
    assert_eq!(
        one_vm_refused(&vm("bad", "[[vm.vdev]]\nparent = \"dsa0\"\ntype = \"x\"\nsize = 3")),
        "pasidon.toml:14:1: vm bad: vdev number 1: unknown key \"size\"; \
         [[vm.vdev]] knows parent, type, entries, weight, address_space, windows"
    );
}

#[test]
fn wrong_types_say_what_fits() {
    assert_eq!(
        one_vm_refused("[[vm]]\nname = \"bad\"\nmemory = 256\nkernel = \"k\"\n"),
        "pasidon.toml:9:10: vm bad: memory takes a number with K, M or G as a string, but this is an integer; \
         write memory = \"256M\""
    );
    assert_eq!(
        one_vm_refused(&vm("bad", "autostart = \"no\"")),
        "pasidon.toml:11:13: vm bad: autostart takes true or false, but this is a string; \
         write autostart = false"
    );
    assert_eq!(
        refused(&format!("host = 1\n{}", vm("a", ""))),
        ["pasidon.toml:1:8: host is a section, but this is of type integer; write it as [host]"]
    );
    assert_eq!(
        refused("[vm]\nname = \"a\"\n"),
        [
            "pasidon.toml:1:1: vm is a list of sections, but this is a single one; write it as [[vm]], with double brackets"
        ]
    );
    assert!(one_vm_refused(&vm("bad", "vdev = 3")).contains("vdev takes sections [[vm.vdev]]"));
    assert!(refused(&format!("parent = 3\n{}", vm("a", "")))[0].contains("write it as [parent.NAME]"));
    assert!(refused("vm = [3, {}]\n")[0].contains("vm is a section"));
}

#[test]
fn numbers_and_words_out_of_range() {
    assert_eq!(
        one_vm_refused(&vm("bad", "pasids = 65536")),
        "pasidon.toml:11:10: vm bad: pasids = 65536 is out of range; use a number from 0 to 65535"
    );
    assert!(one_vm_refused(&vm("bad", "pasids = -1")).contains("pasids = -1 is out of range"));
    assert_eq!(
        one_vm_refused(&vm("bad", "vcpus = 2")),
        "pasidon.toml:11:9: vm bad: vcpus = 2, but this version runs one vCPU per VM; \
         write vcpus = 1 or leave it out"
    );
    assert_eq!(
        one_vm_refused(&vm("bad", "on_reboot = \"restrat\"")),
        "pasidon.toml:11:13: vm bad: on_reboot = \"restrat\" is unknown; did you mean on_reboot = \"restart\"?"
    );
    assert_eq!(
        refused(&format!("[host]\nlog = \"loud\"\n{}", vm("a", ""))),
        ["pasidon.toml:2:7: host: log = \"loud\" is unknown; \
          log takes \"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\""]
    );
    assert!(
        one_vm_refused(&vm("bad", &format!("cmdline = \"{}\"", "x".repeat(2048)))).contains("2047 bytes")
    );
}

#[test]
fn bad_sizes_and_missing_keys() {
    assert_eq!(
        one_vm_refused("[[vm]]\nname = \"bad\"\nmemory = \"256\"\nkernel = \"k\"\n"),
        "pasidon.toml:9:10: vm bad: memory \"256\" is no size; \
         write a whole number and K, M or G, like memory = \"256M\""
    );
    assert_eq!(
        one_vm_refused("[[vm]]\nname = \"bad\"\nmemory = \"256M\"\n"),
        "pasidon.toml:7:1: vm bad: the key kernel is missing; \
         add a line like kernel = \"guests/vmlinuz\" to this [[vm]]"
    );
    assert_eq!(
        one_vm_refused("[[vm]]\nmemory = \"256M\"\nkernel = \"k\"\n"),
        "pasidon.toml:7:1: vm number 2: the key name is missing; add a line like name = \"alpha\" to this [[vm]]"
    );
}

#[test]
fn there_are_not_more_vms_than_channels() {
    let text: String = (0..40).map(|n| vm(&format!("vm{n}"), "")).collect();
    let parsed = parse(text.as_bytes()).unwrap();
    assert_eq!(parsed.config.vms.len(), MAX_VMS);
    let errors: Vec<_> = parsed.errors.iter().map(ConfigError::to_string).collect();
    assert_eq!(
        errors,
        ["pasidon.toml:125:1: 40 VMs are more than the 31 that the console can tell apart; remove some"]
    );
}

#[test]
fn the_second_of_two_equal_names_is_refused() {
    assert_eq!(
        one_vm_refused(&vm("good", "")),
        "pasidon.toml:8:8: vm good: the VM on line 4 has this name already; give each VM a name of its own"
    );
}

#[test]
fn vdevs_name_a_parent_of_the_file() {
    let vdev = "[[vm.vdev]]\ntype = \"dsa-dwq\"\nparent = ";
    assert_eq!(
        one_vm_refused(&vm("bad", &format!("{vdev} \"dsa1\""))),
        "pasidon.toml:13:11: vm bad: vdev number 1: unknown parent \"dsa1\"; did you mean \"dsa0\"?"
    );
    assert!(one_vm_refused(&vm("bad", &format!("{vdev} \"gpu\""))).contains("add a [parent.NAME] section"));
}

#[test]
fn the_quota_covers_the_vdevs() {
    let vdev = "[[vm.vdev]]\nparent = \"dsa0\"\ntype = \"dsa-dwq\"\n";
    assert_eq!(
        one_vm_refused(&vm("bad", &format!("pasids = 1\n{vdev}{vdev}{vdev}"))),
        "pasidon.toml:15:1: vm bad: 3 vdevs need 3 PASIDs, but its quota is 1; write pasids = 3 or remove a vdev"
    );
}

/// The errors of a file that can be used without its parents.
fn parents_refused(parents: &str) -> Vec<String> {
    let text = format!("{parents}\n{}", vm("a", ""));
    let parsed = parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}"));
    assert_eq!(parsed.config.vms.len(), 1);
    assert_eq!(parsed.config.parents, []);
    let scopes: Vec<_> = parsed.errors.iter().map(|error| error.scope).collect();
    assert!(scopes.iter().all(|scope| matches!(scope, Scope::Parent(_))), "{scopes:?}");
    parsed.errors.iter().map(ConfigError::to_string).collect()
}

#[test]
fn parents_say_which_device_they_are_exactly_once() {
    assert_eq!(
        parents_refused("[parent.dsa0]"),
        ["pasidon.toml:1:9: parent dsa0: neither pci nor match says which device it is; \
          add a line like pci = \"0000:00:04.0\" or match = \"8086:11fb\""]
    );
    assert_eq!(
        parents_refused("[parent.dsa0]\npci = \"0000:00:04.0\"\nmatch = \"8086:11fb\""),
        ["pasidon.toml:3:9: parent dsa0: pci and match both say which device it is; keep one of them"]
    );
    assert_eq!(
        parents_refused("[parent.dsa0]\npci = \"00:04.0\""),
        ["pasidon.toml:2:7: parent dsa0: pci \"00:04.0\" is no PCI address; \
          write SEGMENT:BUS:DEVICE.FUNCTION in hexadecimal, like pci = \"0000:00:04.0\""]
    );
    assert_eq!(
        parents_refused("[parent.b]\npci = \"0000:00:04.0\"\n[parent.a]\npci = \"0000:00:04.0\""),
        [
            "pasidon.toml:2:7: parent b: pci = \"0000:00:04.0\" is the device of parent a too (line 4); \
             keep one of the two, or let each name its own device by pci",
            "pasidon.toml:4:7: parent a: pci = \"0000:00:04.0\" is the device of parent b too (line 2); \
             keep one of the two, or let each name its own device by pci"
        ]
    );
    assert_eq!(parents_refused("[parent.\"a\\nb\"]\npci = \"0000:00:04.0\"")[0].lines().count(), 1);
}

#[test]
fn a_vm_on_a_refused_parent_is_refused_and_says_why() {
    let vdev = "[[vm.vdev]]\ntype = \"dsa-dwq\"\nparent = \"dsa0\"";
    let text = format!("[parent.dsa0]\niommu = 1\n{}{}", vm("good", ""), vm("bad", vdev));
    let parsed = parse(text.as_bytes()).unwrap();
    assert!(parsed.config.vm("good").is_some() && parsed.config.vm("bad").is_none());
    assert_eq!(
        parsed.errors.last().unwrap().to_string(),
        "pasidon.toml:13:10: vm bad: vdev number 1: parent dsa0 was refused; correct it first, it is on line 1 of pasidon.toml"
    );
}

#[test]
fn all_errors_are_found_at_once_and_in_order() {
    let text = format!("[host]\nlog = 1\n{}{}", vm("a", "pasids = \"x\"\nfoo = 1"), vm("b", "vcpus = 3"));
    let errors = parse(text.as_bytes()).unwrap_err();
    let scopes: Vec<_> = errors.iter().map(|error| (error.at.line, error.scope)).collect();
    assert_eq!(scopes, [(2, Scope::Whole), (7, Scope::Vm(0)), (8, Scope::Vm(0)), (13, Scope::Vm(1))]);
}

#[test]
fn a_file_whose_only_vm_is_refused_starts_nothing() {
    assert_eq!(refused(&vm("a", "vcpus = 3")).len(), 1);
}

/// Pieces from which configurations are shuffled, so that deep states are reached that random text never
/// reaches.
fn fragment() -> impl Strategy<Value = String> {
    let pieces: Vec<String> = FULL.split_inclusive(['\n', ' ', '=', '"', ']']).map(String::from).collect();
    prop_oneof![
        8 => proptest::sample::select(pieces),
        1 => any::<String>(),
        1 => any::<i128>().prop_map(|number| number.to_string()),
    ]
}

fn check_any(bytes: &[u8]) {
    let errors = match parse(bytes) {
        Ok(parsed) => {
            assert!(!parsed.config.vms.is_empty());
            assert!(parsed.errors.iter().all(|error| error.scope != Scope::Whole));
            for vm in &parsed.config.vms {
                assert!(parsed.errors.iter().all(|error| error.scope != Scope::Vm(vm.index)));
                assert!((MIN_MEMORY..=MAX_MEMORY).contains(&vm.memory.value));
                assert!(vm.vdevs.len() <= usize::from(vm.pasids.value).min(vm.slots.value.into()));
                for vdev in &vm.vdevs {
                    assert!(parsed.config.parent(&vdev.parent).is_some());
                }
            }
            parsed.errors
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            errors
        }
    };
    for error in errors {
        let line = error.to_string();
        assert!(line.starts_with("pasidon.toml:") && line.contains("; "), "{line}");
        assert!(!line.contains(|c: char| c.is_control()), "one printable line: {line:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check_any(&bytes);
    }

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        check_any(text.as_bytes());
    }

    #[test]
    fn any_shuffle_of_sensible_pieces_is_answered(pieces in proptest::collection::vec(fragment(), 0..60)) {
        check_any(pieces.concat().as_bytes());
    }

    #[test]
    fn any_damage_to_a_good_file_is_answered(
        at in 0..FULL.len(), len in 0usize..20, with in "[\\PC\n]{0,10}"
    ) {
        let mut bytes = FULL.as_bytes().to_vec();
        let end = (at + len).min(bytes.len());
        bytes.splice(at..end, with.bytes());
        check_any(&bytes);
    }
}
