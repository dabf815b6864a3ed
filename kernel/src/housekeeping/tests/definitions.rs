// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that are defined and removed from the monitor, and what is kept for them meanwhile.

use super::*;

/// What the monitor answers a program.
fn answer(rig: &mut Rig, command: &str) -> serde_json::Value {
    let before = rig.sent_on(0).lines().count();
    rig.send(0, format!("{command} --json\r").as_bytes());
    rig.pass(MS);
    let said = rig.sent_on(0);
    let line = said.lines().nth(before).unwrap_or_else(|| panic!("{command}: no answer in {said}"));
    serde_json::from_str(line).unwrap()
}

/// What of it is refused.
fn refusal(rig: &mut Rig, command: &str) -> String {
    let error = answer(rig, command)["error"].take();
    format!("{}: {}", error["what"].as_str().unwrap(), error["why"].as_str().unwrap())
}

#[test]
fn vms_come_and_go_and_their_channels_with_them() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    rig.truth.lock().room = usize::MAX;
    rig.start("beta");
    let mut numbers = std::collections::BTreeSet::new();
    for round in 1..=100usize {
        let text = format!("round {round}\n");
        rig.send(2, b"for nobody");
        assert_eq!(answer(&mut rig, "vm define gamma")["vms"], serde_json::json!(["gamma"]));
        // In the place of the one that was refused, so on the second channel.
        assert_eq!(answer(&mut rig, "console gamma")["channel"], 2);
        rig.send(2, b"while it is stopped");
        rig.pass(MS);
        assert_eq!(answer(&mut rig, "vm gamma start")["done"], "vm gamma started");
        let gamma = rig.system.vm_named("gamma").unwrap();
        assert!(numbers.insert(gamma.id()), "a number of its own");
        text.bytes().for_each(|byte| rig.keeper.guest_output(gamma.id(), byte));
        assert!(rig.sent_on(2).ends_with(&text) && rig.sent_on(2).matches("round").count() == round);
        rig.send(2, b"ok");
        rig.pass(MS);
        assert_eq!(rig.typed("gamma"), b"ok".map(Received::Byte), "and nothing of the one before");
        rig.receive([Received::Damaged]);
        let typed = answer(&mut rig, "vm gamma")["typed"].take();
        assert_eq!((typed["waiting"].as_u64(), typed["lost"].as_u64()), (Some(0), Some(1)), "of this one");
        assert_eq!(refusal(&mut rig, "vm gamma remove"), "vm gamma: it is running");
        rig.keeper
            .events
            .lines
            .lock()
            .insert(Some("gamma".to_string()), crate::base::allowance::Allowance::new(0));
        answer(&mut rig, "vm gamma stop");
        assert_eq!(answer(&mut rig, "vm gamma remove")["done"], "vm gamma removed");
        assert!(!rig.keeper.events.lines.lock().contains_key(&Some("gamma".to_string())));
        // What comes late of it goes nowhere.
        rig.keeper.guest_output(gamma.id(), b'!');
        assert!(refusal(&mut rig, "console gamma").ends_with("unknown vm gamma"));
        assert_eq!(answer(&mut rig, "vms").as_array().unwrap().len(), 3);
    }
    assert!(!rig.sent_on(2).contains('!'));
    assert_eq!(rig.system.vm_named("beta").unwrap().state(), VmState::Running);
    // Those of the configuration go, too.
    assert_eq!(answer(&mut rig, "vm alpha remove")["done"], "vm alpha removed");
    assert_eq!(answer(&mut rig, "vm define gamma")["done"], "vm gamma defined; `vm gamma start` starts it");
    assert_eq!(answer(&mut rig, "console gamma")["channel"], 1, "the lowest that is free");
    assert_eq!(rig.keeper.next_work(), None);
}

#[test]
fn what_cannot_be_defined_says_why() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    assert_eq!(
        refusal(&mut rig, "vm define old"),
        "definition old: it was refused at boot: old:1:2: vm old: wrong; right it"
    );
    assert_eq!(answer(&mut rig, "vm define zzzz")["error"]["remedy"], "known: gamma, pair, old");
    assert!(refusal(&mut rig, "vm bad remove").starts_with("vm bad: it was refused at boot: "));
    answer(&mut rig, "vm define gamma");
    assert_eq!(refusal(&mut rig, "vm define gamma"), "vm gamma: there is one of that name");
    // One of that name was refused at boot. Now it is there.
    let states = |rig: &mut Rig| -> Vec<String> {
        let vms = answer(rig, "vms");
        vms.as_array().unwrap().iter().map(|vm| format!("{} {}", vm["name"], vm["state"])).collect()
    };
    assert!(states(&mut rig).contains(&r#""bad" "refused""#.to_string()));
    answer(&mut rig, "vm define pair");
    let there = states(&mut rig);
    assert_eq!(there.iter().filter(|vm| vm.starts_with(r#""bad""#)).count(), 1);
    assert!(there.contains(&r#""bad" "created""#.to_string()), "{there:?}");
    answer(&mut rig, "vm bad remove");
    assert!(refusal(&mut rig, "vm define pair").contains("vm delta: there is one of that name"));
    assert!(!states(&mut rig).iter().any(|vm| vm.contains("bad")), "all of a file or nothing");
}
