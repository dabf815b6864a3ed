// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files of VMs that may be defined later.

use super::*;

/// What `[host] definitions` and these files come to: of each the VMs, or what is wrong with it.
fn definitions(host: &str, files: &[(&str, &str)]) -> Vec<Result<Vec<String>, Vec<String>>> {
    let text =
        format!("[host]\n{host}\n[parent.dsa0]\npci = \"0000:00:04.0\"\n[parent.bad]\n{}", vm("alpha", ""));
    let parsed = parse(text.as_bytes()).unwrap();
    let mut read = |path: &str| {
        let found = files.iter().find(|(name, _)| *name == path);
        found.map(|(_, text)| text.as_bytes()).ok_or_else(|| "it is not there".to_string())
    };
    let one = |(place, definition): (usize, Definition)| {
        assert_eq!(definition.index, place);
        assert!(definition.errors.iter().all(|error| error.scope == Scope::Definition(place)));
        match definition.errors.is_empty() {
            true => Ok(definition.vms.iter().map(|vm| vm.name.value.clone()).collect()),
            false => {
                assert_eq!(definition.vms, [], "nothing of it is taken");
                Err(definition.errors.iter().map(ConfigError::to_string).collect())
            }
        }
    };
    parsed.definitions(&mut read).into_iter().enumerate().map(one).collect()
}

#[test]
fn a_definition_is_written_as_pasidon_toml_is() {
    let vdev = "[[vm.vdev]]\nparent = \"dsa0\"\ntype = \"x\"\n";
    let gamma = vm("gamma", vdev) + &vm("alpha", "autostart = true");
    let found = definitions(
        r#"definitions = ["/vms\\gamma.toml", "other", "gone"]"#,
        &[("vms/gamma.toml", &gamma), ("other", &vm("gamma", "")), ("unnamed", "[")],
    );
    let names = |names: &[&str]| Ok(names.iter().map(|name| name.to_string()).collect());
    // Names may be those of others: whether one is free shows when it is defined.
    assert_eq!(found[..2], [names(&["gamma", "alpha"]), names(&["gamma"])]);
    assert_eq!(
        found[2],
        Err(vec![
            "pasidon.toml:2:45: definition \"gone\": it is not there; put a good one there or correct the path"
                .to_string()
        ])
    );
    let parsed = parse(format!("[host]\ndefinitions = [\"g\"]\n{}", vm("alpha", "")).as_bytes()).unwrap();
    let read = vm("gamma", "autostart = true");
    let definition = &parsed.definitions(&mut |_| Ok(read.as_bytes()))[0];
    assert!(!definition.vms[0].autostart.value, "none of them starts with the machine");
    assert_eq!(definition.vms[0].kernel.at.to_string(), "4:10");
}

#[test]
fn a_wrong_definition_is_refused_by_its_own_name_and_the_others_stay() {
    let wrong = |text: &str| {
        let host = r#"definitions = ["good", "bad.toml"]"#;
        let mut found = definitions(host, &[("good", &vm("good", "")), ("bad.toml", text)]);
        assert_eq!(found[0], Ok(vec!["good".to_string()]));
        found.remove(1).unwrap_err()
    };
    let vdev = |parent: &str| vm("gamma", &format!("[[vm.vdev]]\nparent = \"{parent}\"\ntype = \"x\""));
    let one = |text: &str| {
        let mut errors = wrong(text);
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors.remove(0)
    };
    assert_eq!(
        one(&(vm("sound", "") + &vm("gamma", "").replace("64M", "64"))),
        "bad.toml:7:10: vm gamma: memory \"64\" is no size; write a whole number and K, M or G, like memory = \"256M\""
    );
    assert_eq!(one("[[vm]]\nname = \n").split("syntax: ").next(), Some("bad.toml:2:8: "));
    assert_eq!(one("\n"), "bad.toml:1:1: there is no VM; add a [[vm]] section with name, memory and kernel");
    assert_eq!(
        one(&format!("[host]\nlog = \"off\"\n{}", vm("gamma", ""))),
        "bad.toml:1:2: \"host\" is not for a definition; write [[vm]] sections only; all else is in pasidon.toml"
    );
    assert_eq!(
        one(&vdev("dsa1")),
        "bad.toml:6:10: vm gamma: vdev number 1: unknown parent \"dsa1\"; did you mean \"dsa0\"?"
    );
    assert_eq!(
        one(&vdev("bad")),
        "bad.toml:6:10: vm gamma: vdev number 1: parent bad was refused; correct it first, it is on line 5 of pasidon.toml"
    );
    assert!(one(&(vm("gamma", "") + &vm("gamma", ""))).contains("the VM on line 2 has this name already"));
    assert_eq!(wrong(&vm("gamma", "kernle = 1\nslots = 999")).len(), 2, "all errors at once");
    assert!(wrong("\u{0}")[0].starts_with("bad.toml:1:"));
    assert!(wrong("= 1\n").iter().all(|line| line.starts_with("bad.toml:")));
}

#[test]
fn definitions_are_named_as_the_monitor_can_take_them() {
    let line = |value: &str| refused(&format!("[host]\ndefinitions = {value}\n{}", vm("alpha", "")));
    assert_eq!(
        line("7"),
        [
            "pasidon.toml:2:15: host: definitions takes a list of strings, but this is an integer; write definitions = [\"vms/gamma.toml\"]"
        ]
    );
    assert_eq!(
        line("[\"a\", \"b c\", \"/a\", \"..\", 1]"),
        [
            "pasidon.toml:2:21: host: definitions \"b c\" has blanks, so the monitor cannot take it; rename the file",
            "pasidon.toml:2:28: host: definitions names \"a\" twice; remove one of the two",
            "pasidon.toml:2:34: host: definitions \"..\" is no path of a file on the ESP; write it from the ESP's root, \
             like \"guests/vmlinuz\"",
            "pasidon.toml:2:40: host: definitions takes a list of strings, but this is an integer; write definitions = \
             [\"vms/gamma.toml\"]",
        ]
    );
    assert_eq!(
        one_vm_refused(&vm("define", "")),
        "pasidon.toml:8:8: vm number 2: name \"define\" is a word of the monitor (`vm define`); choose another"
    );
    // Where VMs can come later, none need be there at the start.
    assert_eq!(parse(b"[host]\ndefinitions = [\"a\"]\n").unwrap().config.vms, []);
    assert_eq!(
        refused("[host]\ndefinitions = []\n"),
        [
            "pasidon.toml:1:1: there is no VM; add a [[vm]] section with name, memory and kernel",
            "pasidon.toml:2:15: host: definitions is empty; write definitions = [\"vms/gamma.toml\"]",
        ]
    );
}
