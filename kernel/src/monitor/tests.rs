// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each command as it is typed, for people and for programs; and that any line at all is answered.

use proptest::prelude::*;
use serde_json::Value;

use super::fake::FakeHost;
use super::*;
use crate::console::Input;
use crate::dev::Received;

fn text(line: &str) -> String {
    match Monitor::new(ConsoleMode::Plain).command(line, &mut FakeHost::new()) {
        Reply::Text(text) => text,
        other => panic!("{line}: {other:?}"),
    }
}

/// The answer to a program, which must be one line of JSON.
fn value(line: &str) -> Value {
    let text = text(&format!("{line} --json"));
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    assert!(text.starts_with(['{', '[']), "{text}");
    serde_json::from_str(&text).unwrap()
}

fn asked(line: &str) -> (String, Vec<String>) {
    let mut host = FakeHost::new();
    match Monitor::new(ConsoleMode::Plain).command(line, &mut host) {
        Reply::Text(text) => (text, host.done),
        other => panic!("{line}: {other:?}"),
    }
}

/// What a program gets is what the monitor had, but for fields that the answer has besides.
#[test]
fn answers_can_be_read_back() {
    fn read<T: serde::de::DeserializeOwned>(line: &str) -> T {
        serde_json::from_value(value(line)).unwrap()
    }
    #[derive(serde::Deserialize)]
    struct Top {
        pcpus: Vec<info::PcpuInfo>,
        vdevs: Vec<info::VdevRow>,
    }
    let host = FakeHost::new();
    let rows = vdev_rows(&host.vms(), &host);
    assert_eq!(read::<SystemInfo>("version"), host.system());
    assert_eq!(read::<Vec<info::DefinitionInfo>>("vm define"), host.definitions());
    assert_eq!(read::<Vec<VmInfo>>("vms"), host.vms());
    assert_eq!(read::<Vec<info::VdevRow>>("vdevs"), rows);
    assert_eq!(read::<Vec<info::PasidInfo>>("pasids"), host.pasids());
    assert_eq!(read::<Vec<info::ParentInfo>>("parents"), host.parents());
    assert_eq!(read::<crate::dma::fault_log::FaultsInfo>("faults"), host.faults());
    let top: Top = read("top");
    assert_eq!((top.pcpus, top.vdevs), (host.pcpus(), rows));
}

#[test]
fn tables_for_people() {
    assert_eq!(
        text("vms"),
        "VM     STATE    MEMORY  VCPUS  VDEVS  PASIDS  QUOTA  STARTS  RUN TIME  FAULT RECORDS  REASON\n\
         alpha  running    256M      1      1       1      4       1   0:00:41              0\n\
         beta   running    256M      1      1       1      4       1   0:00:41              1\n"
    );
    assert_eq!(
        text("vdevs"),
        "VDEV            VM     STATE     WORK     PASID  SPACE  QUEUE        ENTRIES  SUBMISSION EXITS  INTERRUPTS  FAULT RECORDS\n\
         dsa0/dsa-dwq#1  alpha  attached  running      1      1  0 (enabled)       16                 0       10016              0\n\
         dsa0/dsa-dwq#2  beta   attached  running      2      2  1 (enabled)       16                 0       10016              1\n"
    );
    assert_eq!(
        text("exits"),
        "VM     TOTAL  mmio  halt\nalpha   6514  1204  5310\nbeta    6514  1204  5310\n"
    );
    assert!(text("faults").contains(
        "   12.345678 fault: vm beta vdev dsa0/dsa-dwq#2 pasid 2: read from 0x40000000 refused: no mapping (code 0x59)\n"
    ));
    let definitions = text("vm define");
    let lines: Vec<&str> = definitions.lines().collect();
    assert_eq!(
        lines[..3],
        ["FILE            VMS         REFUSED", "vms/gamma.toml  gamma", "vms/pair.toml   left right"]
    );
    assert!(lines[3].starts_with("vms/old.toml                vms/old.toml:3:10: vm old: "), "{}", lines[3]);
    assert!(text("faults").ends_with("1 record since boot, of one fault or several\n"));
    assert_eq!(
        text("interrupts"),
        "VDEV            VM     VECTOR  ENTRY  CPU  HOST VECTOR  POSTED AS  GUEST  HOST              CAME  DELIVERED  PENDED  TRIGGERED\n\
         dsa0/dsa-dwq#1  alpha       0      -    -            -          -  open   open                 -          0       0          0\n\
         dsa0/dsa-dwq#1  alpha       1      1    0         0x41          -  open   open, automask   10016      10016       0          0\n\
         dsa0/dsa-dwq#2  beta        0      -    -            -          -  open   open                 -          0       1          0\n\
         dsa0/dsa-dwq#2  beta        1      2    0         0x42       0x24  open   masked, pending  10016      10016       1          0\n"
    );
    assert!(text("parents").contains("dsa0    0000:00:04.0  on     dsa-dwq          6   8  direct"));
    assert!(text("pasids").contains("\n    2  attached       41       0  beta   dsa0       2      2\n"));
    assert!(text("iommu").contains("PASID width            20 bits\n"));
    assert!(text("version").contains("504M free of 1G"));
    assert!(text("vm beta").contains("exits          mmio 1204, halt 5310\n"));
    for name in ["vdev 2", "vdev #2", "vdev dsa0/dsa-dwq#2"] {
        assert!(text(name).contains("queue             1 (enabled)\n"), "{name}");
    }
}

#[test]
fn json_for_programs() {
    let vdevs = value("vdevs");
    assert_eq!(vdevs[1]["vm"], "beta");
    assert_eq!(vdevs[1]["name"], "dsa0/dsa-dwq#2");
    assert_eq!(vdevs[1]["pasid"], 2);
    assert_eq!(vdevs[1]["submission_exits"], 0);
    assert_eq!(value("vms")[0]["exits"][2]["kind"], "halt");
    assert_eq!(value("vm alpha")["name"], "alpha");
    assert_eq!(value("vdev 1")["vm"], "alpha");
    assert_eq!(value("parents")[0]["types"][0]["available"], 6);
    assert_eq!(value("pasids")[1]["state"], "attached");
    assert_eq!(value("iommu")["iommu"]["spaces"][0]["mapped_bytes"], 256 << 20);
    assert_eq!(value("faults")["faults"][0]["address"], 0x4000_0000);
    assert_eq!(value("interrupts")[1]["delivered"], 10_016);
    assert_eq!(value("interrupts")[3]["masked"], true);
    assert_eq!(value("interrupts")[0]["entry"], Value::Null);
    assert_eq!(value("vdev irq 1 all mask")["done"], "vdev dsa0/dsa-dwq#1: all vectors: masked");
    assert_eq!(value("exits")[0]["total"], 6514);
    assert_eq!(value("log debug")["level"], "debug");
    assert_eq!(value("version")["version"], VERSION);
    assert_eq!(value("help").as_array().unwrap().len(), COMMANDS.len());
    assert_eq!(value("help vms")["name"], "vms");
    assert_eq!(value("vm alpha stop")["done"], "vm alpha stopped");
    assert_eq!(value("vdev create beta dsa0/dsa-swq")["vdev"], 3);
    assert_eq!(value("vm beta")["typed"]["room"], crate::console::TYPED_MAX);
    assert_eq!(value("vm beta break")["done"], "vm beta was sent a BREAK");
    assert_eq!(
        value("vm define vms/pair.toml"),
        serde_json::json!({
            "vms": ["left", "right"],
            "done": "vms left, right defined; `vm NAME start` starts one"
        })
    );
    assert_eq!(
        value("vm define")[0],
        serde_json::json!({"file": "vms/gamma.toml", "vms": ["gamma"], "refused": null})
    );
    assert_eq!(value("nonsense")["error"]["why"], "unknown command nonsense");
    assert_eq!(value("vm alpha start")["error"]["remedy"], "stop it first");
    assert_eq!(value("")["error"]["why"], "no command");
    assert!(value("console alpha")["error"]["why"].is_string());
}

#[test]
fn operations_reach_the_host_once() {
    assert_eq!(asked("vm alpha restart"), ("vm alpha restarted\n".into(), vec!["Restart alpha".into()]));
    assert_eq!(
        asked("vdev create beta dsa0/dsa-dwq entries=32 ioas=7"),
        (
            "vdev dsa0/dsa-dwq#3 created for vm beta\n".into(),
            vec![
                "NewVdev { vm: \"beta\", parent: \"dsa0\", type_name: \"dsa-dwq\", entries: Some(32), \
                 weight: None, ioas: Some(7) }"
                    .into()
            ]
        )
    );
    assert_eq!(asked("vm beta remove"), ("vm beta removed\n".into(), vec!["Remove beta".into()]));
    assert_eq!(
        asked("vm define vms/gamma.toml"),
        ("vm gamma defined; `vm gamma start` starts it\n".into(), vec!["define vms/gamma.toml".into()])
    );
    assert_eq!(asked("vm define vms/pair.toml").0, "vms left, right defined; `vm NAME start` starts one\n");
    for (words, said, control) in [
        ("1 mask", "vector 1: masked; 1 is pending", "One(1) Mask"),
        ("0 unmask", "vector 0: unmasked", "One(0) Unmask"),
        ("all trigger", "all vectors: triggered; 1 is pending", "All Trigger"),
        ("all automask on", "all vectors: automask on; 1 is pending", "All Automask(true)"),
        ("0 automask off", "vector 0: automask off", "One(0) Automask(false)"),
    ] {
        let said = format!("vdev dsa0/dsa-dwq#2: {said}\n");
        assert_eq!(asked(&format!("vdev irq #2 {words}")), (said, vec![format!("irq of 2: {control}")]));
    }
    for words in ["2", "2 all", "2 all automask", "2 all mask on", "2 one mask", "2 -1 mask", "2 65536 mask"]
    {
        let (said, done) = asked(&format!("vdev irq {words}"));
        assert!(said.starts_with("vdev: the arguments do not fit") && done.is_empty(), "{words}: {said}");
    }
    assert!(asked("vdev irq 3 all mask").0.starts_with("monitor: unknown vdev 3"));
    let said = "vdev dsa0/dsa-dwq#2: its guest is asked to let go of it\n".into();
    assert_eq!(asked("vdev destroy 2"), (said, vec!["destroy 2".into()]));
    let said = "vdev dsa0/dsa-dwq#2 destroyed\n".into();
    assert_eq!(asked("vdev destroy 2 now"), (said, vec!["destroy 2 now".into()]));
    assert_eq!(
        asked("vdev move 2 dsa0/dsa-swq weight=3").0,
        "vdev dsa0/dsa-swq#3 created for vm beta; its guest is asked to let go of dsa0/dsa-dwq#2\n"
    );
    assert_eq!(
        asked("ioas create beta"),
        ("I/O address space 3 created for vm beta, empty\n".into(), vec!["space of beta".into()])
    );
    assert_eq!(
        asked("ioas map 3 0x8000000 0 2M"),
        (
            "I/O address space 3: 2M from 0x8000000 on mapped at 0x0\n".into(),
            vec!["map 3: 0x8000000 at 0x0, 0x200000".into()]
        )
    );
    assert_eq!(
        asked("ioas attach #3 dsa0/dsa-dwq#2"),
        ("I/O address space 3 is behind vdev dsa0/dsa-dwq#2 now\n".into(), vec!["attach 3 to 2".into()])
    );
    assert_eq!(asked("ioas unmap 3 0 4096").1, ["unmap 3: 0x0, 0x1000"]);
    assert_eq!(asked("ioas destroy 3").1, ["destroy space 3"]);
    assert_eq!(asked("parent dsa0 reset"), ("parent dsa0 reset\n".into(), vec!["reset dsa0".into()]));
    assert_eq!(
        asked("parent dsa1 reset"),
        ("monitor: unknown parent dsa1; did you mean dsa0?\n".into(), vec![])
    );
    assert_eq!(asked("shutdown"), ("switching off\n".into(), vec!["Off".into()]));
    assert_eq!(asked("reboot"), ("resetting\n".into(), vec!["Reset".into()]));
    assert_eq!(asked("log warn").0, "log level warn\n");
}

#[test]
fn a_pause_says_what_each_vdev_has_under_way() {
    let (mut monitor, mut host) = (Monitor::new(ConsoleMode::Framed), FakeHost::new());
    host.vms[0].state = "paused".into();
    host.vms[0].vdevs[0].work = "draining".into();
    let mut answer = |line: &str| match monitor.command(line, &mut host) {
        Reply::Text(text) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(answer("vm alpha pause"), "vm alpha paused; dsa0/dsa-dwq#1 draining\n");
    assert_eq!(answer("vm alpha pause --json"), "{\"done\":\"vm alpha paused; dsa0/dsa-dwq#1 draining\"}\n");
    assert!(answer("vm alpha").contains("dsa0/dsa-dwq#1 draining"));
    assert!(answer("vm beta").contains("dsa0/dsa-dwq#2\n"));
    assert_eq!(answer("vm alpha resume"), "vm alpha resumed\n");
}

#[test]
fn refusals_say_what_helps_and_do_nothing() {
    for (line, answer) in [
        ("vmz", "monitor: unknown command vmz; did you mean vms?"),
        ("frobnicate", "monitor: unknown command frobnicate; help lists the commands"),
        ("help vsm", "monitor: unknown command vsm; did you mean vms?"),
        ("vm gamma stop", "monitor: unknown vm gamma; known: alpha, beta"),
        ("vm alhpa stop", "monitor: unknown vm alhpa; did you mean alpha?"),
        (
            "vm alpha kill",
            "monitor: unknown operation kill; known: start, stop, restart, pause, resume, break, remove",
        ),
        ("vm alpha start", "vm alpha: it runs already; stop it first"),
        (
            "vm define vms/gama.toml",
            "monitor: unknown definition vms/gama.toml; did you mean vms/gamma.toml?",
        ),
        (
            "vm define elsewhere",
            "monitor: unknown definition elsewhere; known: vms/gamma.toml, vms/pair.toml, vms/old.toml",
        ),
        ("vm gamma remove", "monitor: unknown vm gamma; known: alpha, beta"),
        ("vms all", "vms: the arguments do not fit; use vms"),
        (
            "vdev create alpha dsa0",
            "vdev: the arguments do not fit; use vdev ID, or vdev create VM PARENT/TYPE [KEY=N]..., \
             or vdev move ID PARENT/TYPE [KEY=N]..., or vdev destroy ID [now], \
             or vdev irq ID VECTOR mask|unmask|trigger, or vdev irq ID VECTOR automask on|off",
        ),
        (
            "vdev create alpha dsa0/dsa-dwq entries=0",
            "vm alpha: vdev dsa0/dsa-dwq: entries is no number from 1 to 65535; write entries=32",
        ),
        (
            "vdev create alpha dsa0/dsa-swq weight=256",
            "vm alpha: vdev dsa0/dsa-swq: weight is no number from 1 to 255; write weight=2",
        ),
        ("vdev destroy 9", "monitor: unknown vdev 9; known: dsa0/dsa-dwq#1, dsa0/dsa-dwq#2"),
        ("log inf", "monitor: unknown level inf; did you mean info?"),
    ] {
        assert_eq!(asked(line), (format!("{answer}\n"), vec![]), "{line}");
    }
    assert_eq!(text("  "), "");
}

#[test]
fn help_knows_every_command_and_every_command_is_known() {
    let list = text("help");
    for command in &COMMANDS {
        assert!(list.contains(command.about));
        assert!(text(&format!("help {}", command.name)).starts_with(command.usage[0]));
        let answer = Monitor::new(ConsoleMode::Plain).command(command.name, &mut FakeHost::new());
        assert!(!matches!(&answer, Reply::Text(text) if text.contains("unknown command")), "{answer:?}");
    }
    assert!(list.lines().all(|line| line.chars().count() <= 130));
}

#[test]
fn taints_are_said_everywhere() {
    let mut host = FakeHost::new();
    host.system.taints = vec!["parent dsa0 without an IOMMU".into()];
    for line in ["vms", "vdevs", "parents", "iommu", "version", "top"] {
        let reply = Monitor::new(ConsoleMode::Framed).command(line, &mut host);
        let Reply::Text(text) = reply else { panic!("{reply:?}") };
        assert!(text.contains("TAINTED: parent dsa0 without an IOMMU\n"), "{line}: {text}");
    }
}

#[test]
fn without_an_iommu_it_says_so() {
    let mut host = FakeHost::new();
    host.system.iommu = None;
    let mut monitor = Monitor::new(ConsoleMode::Framed);
    let Reply::Text(text) = monitor.command("iommu", &mut host) else { panic!() };
    assert_eq!(text, "there is no IOMMU: vdevs only of parents with iommu = \"off\"\n");
    let Reply::Text(json) = monitor.command("iommu --json", &mut host) else { panic!() };
    assert!(json.contains("\"iommu\":null"), "{json}");
}

#[test]
fn top_refreshes_with_rates_until_it_is_cancelled() {
    let (mut monitor, mut host) = (Monitor::new(ConsoleMode::Plain), FakeHost::new());
    let Reply::Live(first) = monitor.command("top", &mut host) else { panic!() };
    assert!(first.starts_with("up 0:01:23  memory 504M free of 1G  PASIDs 2  rates since boot\n"));
    assert!(
        first.contains(
            "\nalpha  running   0:00:41  49.3              0  10016    120       77      14      63\n"
        ),
        "{first}"
    );
    host.now_ns += 500_000_000;
    assert_eq!(monitor.tick(&host), None, "not yet");
    host.now_ns += 1_500_000_000;
    host.vms[0].run_ns += 1_000_000_000;
    host.vms[0].exits[0].count += 30;
    host.vms[0].interrupts += 8;
    let second = monitor.tick(&host).unwrap();
    assert!(second.contains("rates of the last 2000 ms"));
    assert!(
        second.contains(
            "\nalpha  running   0:00:42  50.0              0  10024      4       15      15       0\n"
        ),
        "{second}"
    );
    assert!(second.contains(
        "\ndsa0/dsa-dwq#1  alpha      1          -                 0       10016              0\n"
    ));
    monitor.cancel();
    host.now_ns += 5_000_000_000;
    assert_eq!(monitor.tick(&host), None);
}

#[test]
fn top_for_programs_is_one_picture() {
    let (mut monitor, mut host) = (Monitor::new(ConsoleMode::Framed), FakeHost::new());
    let mut picture = |host: &mut FakeHost| -> Value {
        let Reply::Text(text) = monitor.command("top --json", host) else { panic!() };
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(picture(&mut host)["interval_ns"], 83_000_000_000u64);
    host.now_ns += 1_000_000_000;
    host.vms[1].exits[2].count += 7;
    let second = picture(&mut host);
    assert_eq!(second["interval_ns"], 1_000_000_000);
    assert_eq!(second["vms"][1]["exits_per_second"][1]["rate"], 7);
    assert_eq!(second["vdevs"][0]["submission_exits"], 0);
    assert_eq!(monitor.tick(&host), None);
}

#[test]
fn a_vm_that_restarts_its_counters_is_no_flood() {
    let (mut monitor, mut host) = (Monitor::new(ConsoleMode::Plain), FakeHost::new());
    monitor.command("top", &mut host);
    host.now_ns += 1_000_000_000;
    host.vms[0].run_ns = 0;
    host.vms[0].exits[0].count = 0;
    assert!(monitor.tick(&host).unwrap().contains("\nalpha  running   0:00:00   0.0"));
}

#[test]
fn the_console_is_entered_or_named() {
    let mut host = FakeHost::new();
    let enter = Monitor::new(ConsoleMode::Plain).command("console beta", &mut host);
    assert_eq!(enter, Reply::Enter(1));
    let mut framed = Monitor::new(ConsoleMode::Framed);
    assert_eq!(
        framed.command("console beta", &mut host),
        Reply::Text("the console of beta is channel 2\n".into())
    );
    assert_eq!(framed.command("console beta --json", &mut host), Reply::Text("{\"channel\":2}\n".into()));
    host.vms[0].name = "later".into();
    assert!(
        matches!(framed.command("console later", &mut host), Reply::Text(text) if text.contains("no console"))
    );
}

#[test]
fn a_line_that_is_no_command_is_refused_in_the_form_it_asked_for() {
    let refused = |bytes: &[u8]| {
        let mut console = Console::new(ConsoleMode::Framed, 0);
        let mut inputs = Vec::new();
        for byte in bytes {
            inputs.extend(console.input(Received::Byte(*byte), 0, &mut |_| {}));
        }
        match inputs.as_slice() {
            [Input::Refused(bad)] => match Monitor::new(ConsoleMode::Framed).refuse(bad) {
                Reply::Text(text) => text,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        refused(b"vm alpha\xe9 stop\n"),
        "monitor: the line has the byte 0xe9, which is not understood; nothing was done; \
         send letters, digits and signs of ASCII, with blanks between words\n"
    );
    let long = refused(format!("--json vdev{:223}destroy dsa0/dsa-dwq#12\n", "").as_bytes());
    let long: Value = serde_json::from_str(&long).unwrap();
    assert!(long["error"]["why"].as_str().unwrap().starts_with("the line has more than 256"));
}

#[test]
fn replies_are_shown_on_the_console() {
    let mut host = FakeHost::new();
    let mut shown = |line: &str, mode: ConsoleMode| {
        let mut console = Console::new(mode, 0);
        console.add(1, "beta");
        let mut bytes = Vec::new();
        console.guest_output(1, b"guest# ", &mut |_| ());
        Monitor::new(mode).command(line, &mut host).show(&mut console, &mut |byte| bytes.push(byte));
        String::from_utf8(bytes).unwrap()
    };
    assert_eq!(shown("log", ConsoleMode::Plain), "log level info\r\npasidon> ");
    assert_eq!(
        shown("console beta", ConsoleMode::Plain),
        "--- console beta, Ctrl-] leaves it ---\r\nguest# "
    );
    assert!(shown("top", ConsoleMode::Plain).ends_with("\r\nany key ends this\r\n"));
    assert_eq!(shown("log --json", ConsoleMode::Framed), "\u{10}@{\"level\":\"info\"}\r\n");
}

fn word() -> impl Strategy<Value = String> {
    let known = COMMANDS.iter().map(|command| command.name);
    let more = [
        "alpha",
        "beta",
        "stop",
        "start",
        "create",
        "destroy",
        "dsa0/dsa-dwq",
        "#1",
        "9",
        "entries=",
        "entries=70000",
        "--json",
        "/",
        "=",
    ];
    let known: Vec<String> = known.chain(more).map(String::from).collect();
    prop_oneof![4 => proptest::sample::select(known), 1 => any::<String>()]
}

proptest! {
    #[test]
    fn any_line_is_answered(words in proptest::collection::vec(word(), 0..6), framed in any::<bool>()) {
        let mode = if framed { ConsoleMode::Framed } else { ConsoleMode::Plain };
        let line = words.join(" ");
        let json = line.split_whitespace().any(|word| word == JSON_FLAG);
        let mut host = FakeHost::new();
        match Monitor::new(mode).command(&line, &mut host) {
            Reply::Text(text) if json => {
                let starts_well = text.starts_with(['{', '[']);
                prop_assert!(starts_well);
                prop_assert_eq!(text.matches('\n').count(), 1);
                prop_assert!(serde_json::from_str::<Value>(&text).is_ok());
            }
            Reply::Text(text) => prop_assert!(text.is_empty() || text.ends_with('\n')),
            Reply::Enter(vm) => prop_assert!(vm < 2 && !framed && !json),
            Reply::Live(_) => prop_assert!(!framed && !json),
        }
        prop_assert!(host.done.len() <= 1);
    }
}
