// SPDX-License-Identifier: MIT OR Apache-2.0
//! The line as its user sees it.

use proptest::prelude::*;

use super::*;

/// Milliseconds.
const MS: u64 = 1_000_000;

fn console(mode: ConsoleMode) -> Console {
    let mut console = Console::new(mode, 0x3f9c);
    console.add(0, "alpha");
    console.add(1, "beta");
    console
}

fn guest(vm: usize, byte: u8) -> Input {
    Input::Guest { vm, received: Received::Byte(byte) }
}

/// What goes out on the line, as text.
#[derive(Default)]
struct Line(Vec<u8>);

impl Line {
    fn sink(&mut self) -> impl FnMut(u8) {
        |byte| self.0.push(byte)
    }

    fn take(&mut self) -> String {
        String::from_utf8_lossy(&core::mem::take(&mut self.0)).into_owned()
    }
}

/// Bytes that come at once, and nothing after them for long.
fn typed(console: &mut Console, text: &[u8], line: &mut Line) -> Vec<Input> {
    let inputs = burst(console, text, line);
    console.quiet(LEAVE_QUIET_NS, &mut line.sink());
    inputs
}

/// Bytes that come at once.
fn burst(console: &mut Console, text: &[u8], line: &mut Line) -> Vec<Input> {
    text.iter().flat_map(|byte| console.input(Received::Byte(*byte), 0, &mut line.sink())).collect()
}

/// What the terminal is sent when a guest is left.
fn left(name: &str) -> String {
    let restored = String::from_utf8([RESTORE_TERMINAL, LAST_LINE].concat()).unwrap();
    format!("{restored}\r\n--- monitor 3f9c, Ctrl-] returns to {name} ---\r\n")
}

#[test]
fn vms_come_and_go_on_their_channels() {
    let mut framed = console(ConsoleMode::Framed);
    let mut sent = Vec::new();
    framed.remove(1);
    framed.guest_output(1, b"late", &mut |byte| sent.push(byte));
    assert_eq!(sent, b"", "there is nobody");
    let typed = |framed: &mut Console| {
        let bytes =
            b"\x10Bx\x10@".iter().flat_map(|byte| framed.input(Received::Byte(*byte), 0, &mut |_| ()));
        bytes.collect::<Vec<_>>()
    };
    assert_eq!(typed(&mut framed), []);
    framed.add(1, "gamma");
    framed.guest_output(1, b"up", &mut |byte| sent.push(byte));
    assert_eq!(sent, b"\x10Bup");
    assert_eq!(typed(&mut framed), [Input::Guest { vm: 1, received: Received::Byte(b'x') }]);
}

#[test]
fn nobody_sees_what_a_vm_printed_that_is_gone() {
    let mut plain = console(ConsoleMode::Plain);
    let mut sent = String::new();
    let mut sink = |byte| sent.push(char::from(byte));
    plain.answer("", &mut sink);
    plain.guest_output(1, b"secret", &mut sink);
    plain.enter(1, &mut sink).unwrap();
    plain.leave(&mut sink);
    plain.guest_output(1, b"secret", &mut sink);
    assert_eq!(plain.unseen(1), 6);
    plain.remove(1);
    plain.add(1, "gamma");
    sent.clear();
    let mut sink = |byte| sent.push(char::from(byte));
    plain.input(Received::Byte(LEAVE_KEY), 0, &mut sink);
    assert_eq!(plain.focus(), None, "the key does not lead to another VM");
    plain.enter(1, &mut sink).unwrap();
    assert!(sent.contains("--- console gamma") && !sent.contains("secret"), "{sent}");
    plain.remove(0);
    assert!(plain.enter(0, &mut |_| ()).unwrap_err().why.contains("no such VM"));
}

#[test]
fn a_command_is_echoed_taken_and_answered() {
    let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
    console.answer("", &mut line.sink());
    assert_eq!(line.take(), "pasidon> ");
    assert_eq!(typed(&mut console, b"vms\r", &mut line), [Input::Line("vms".into())]);
    assert_eq!(line.take(), "vms\r\n");
    console.answer("NAME\nalpha\n", &mut line.sink());
    assert_eq!(line.take(), "NAME\r\nalpha\r\npasidon> ");
}

#[test]
fn a_log_line_does_not_break_the_line_being_typed() {
    let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
    console.log("boot", &mut line.sink());
    assert_eq!(line.take(), "boot\r\n");
    console.answer("", &mut line.sink());
    typed(&mut console, b"vm", &mut line);
    line.take();
    console.log("fault: x\x1b[2Jy", &mut line.sink());
    assert_eq!(line.take(), "\r\x1b[Kfault: x?[2Jy\r\npasidon> vm");
    assert_eq!(typed(&mut console, b"s\r", &mut line), [Input::Line("vms".into())]);
}

#[test]
fn a_guest_is_entered_with_what_it_said_and_left_by_key() {
    let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
    console.answer("", &mut line.sink());
    line.take();
    console.guest_output(0, b"hello\r\nguest# ", &mut line.sink());
    console.guest_output(1, b"other", &mut line.sink());
    console.guest_output(2, b"nobody", &mut line.sink());
    assert_eq!(line.take(), "", "the monitor has the line");
    assert_eq!(console.unseen(0), 14);

    assert_eq!(typed(&mut console, b"console alpha\r", &mut line).len(), 1);
    line.take();
    console.enter(0, &mut line.sink()).unwrap();
    assert_eq!(line.take(), "--- console alpha, Ctrl-] leaves it ---\r\nhello\r\nguest# ");
    assert_eq!(typed(&mut console, b"l\x03", &mut line), [guest(0, b'l'), guest(0, 3)]);
    console.guest_output(0, b"l", &mut line.sink());
    console.log("fault", &mut line.sink());
    console.guest_output(0, b"s\r\n", &mut line.sink());
    console.log("fault", &mut line.sink());
    assert_eq!(line.take(), "l\r\n[pasidon 3f9c] fault\r\ns\r\n[pasidon 3f9c] fault\r\n");

    assert_eq!(typed(&mut console, b"\x1d", &mut line), []);
    assert_eq!(line.take(), left("alpha") + "pasidon> ");
    console.guest_output(0, b"more\r\n", &mut line.sink());
    assert_eq!(line.take(), "");
    assert_eq!(typed(&mut console, b"\x1d", &mut line), []);
    assert_eq!(line.take(), "\r\n--- console alpha, Ctrl-] leaves it ---\r\nmore\r\n");
    assert!(console.enter(2, &mut line.sink()).is_err());
}

#[test]
fn a_pasted_leave_key_stays_in_the_guest_with_the_rest() {
    let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
    console.answer("", &mut line.sink());
    console.enter(0, &mut line.sink()).unwrap();
    line.take();
    let paste = b"line one\r\x1dvm beta pause\rline\x1d three\rEOF\r";
    let expected: Vec<Input> = paste.iter().map(|byte| guest(0, *byte)).collect();
    assert_eq!(typed(&mut console, paste, &mut line), expected);
    assert_eq!(console.focus(), Some(0));
    assert_eq!(
        line.take(),
        "[pasidon 3f9c] Ctrl-] came together with other keys and went to alpha; alone it leaves\r\n",
        "said once"
    );
    // Slower than a paste and faster than a person, in pieces between which the line is looked at.
    for (at, byte) in (1000..).step_by(100).zip(paste) {
        let inputs = console.input(Received::Byte(*byte), at * MS, &mut line.sink());
        assert!(inputs.iter().all(|input| matches!(input, Input::Guest { vm: 0, .. })));
        console.quiet((at + 90) * MS, &mut line.sink());
    }
    assert_eq!(console.focus(), Some(0));
    // The first pCPU was away: what it finds then came behind the key, however long ago that was.
    console.input(Received::Byte(LEAVE_KEY), 10_000 * MS, &mut line.sink());
    let late = console.input(Received::Byte(b'v'), 20_000 * MS, &mut line.sink());
    assert_eq!(late.as_slice(), [guest(0, LEAVE_KEY), guest(0, b'v')]);
}

#[test]
fn the_leave_key_leaves_alone_and_is_sent_when_pressed_twice() {
    let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
    console.answer("", &mut line.sink());
    console.enter(1, &mut line.sink()).unwrap();
    line.take();
    let press =
        |console: &mut Console, at: u64| console.input(Received::Byte(LEAVE_KEY), at * MS, &mut |_| {});
    assert!(press(&mut console, 0).is_empty());
    console.quiet(150 * MS, &mut line.sink());
    assert!(console.is_leaving() && console.focus().is_some(), "not yet");
    assert_eq!(press(&mut console, 200).as_slice(), [guest(1, LEAVE_KEY)]);
    console.quiet(900 * MS, &mut line.sink());
    assert_eq!((console.focus(), line.take().as_str()), (Some(1), ""), "it was sent");

    press(&mut console, 1000);
    console.quiet(1300 * MS, &mut line.sink());
    assert_eq!(console.focus(), None);
    assert_eq!(line.take(), left("beta") + "pasidon> ");
    press(&mut console, 1500);
    assert_eq!(console.focus(), Some(1), "and back");
}

#[test]
fn a_break_goes_to_the_guest_that_has_the_line() {
    let (mut plain, mut line) = (console(ConsoleMode::Plain), Line::default());
    let broken = |vm| Input::Guest { vm, received: Received::Break };
    plain.answer("", &mut line.sink());
    assert!(plain.input(Received::Break, 0, &mut line.sink()).is_empty());
    plain.enter(1, &mut line.sink()).unwrap();
    assert_eq!(plain.input(Received::Break, 0, &mut line.sink()).as_slice(), [broken(1)]);

    let mut framed = console(ConsoleMode::Framed);
    assert!(framed.input(Received::Break, 0, &mut line.sink()).is_empty());
    typed(&mut framed, b"\x10A", &mut line);
    assert_eq!(framed.input(Received::Break, 0, &mut line.sink()).as_slice(), [broken(0)]);
}

#[test]
fn a_bad_line_is_answered_and_not_carried_out() {
    for mode in [ConsoleMode::Plain, ConsoleMode::Framed] {
        let (mut console, mut line) = (console(mode), Line::default());
        console.answer("", &mut line.sink());
        let inputs = typed(&mut console, b"vm alpha\xe9 stop --json\r", &mut line);
        let [Input::Refused(bad)] = inputs.as_slice() else {
            panic!("{inputs:?}");
        };
        assert!(bad.json);
        console.answer("no", &mut line.sink());
        assert_eq!(typed(&mut console, b"vms\r", &mut line), [Input::Line("vms".into())]);
    }
}

#[test]
fn a_live_display_ends_with_any_key() {
    let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
    console.answer("", &mut line.sink());
    typed(&mut console, b"top\r", &mut line);
    line.take();
    console.live("picture", &mut line.sink());
    assert_eq!(line.take(), "\x1b[H\x1b[2Jpicture\r\n");
    assert_eq!(typed(&mut console, b"q", &mut line), [Input::Cancel]);
    console.answer("", &mut line.sink());
    assert_eq!(line.take(), "pasidon> ");
}

#[test]
fn ctrl_c_starts_a_new_line() {
    let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
    console.answer("", &mut line.sink());
    assert_eq!(typed(&mut console, b"ab\x03", &mut line), []);
    assert_eq!(line.take(), "pasidon> ab^C\r\npasidon> ");
}

#[test]
fn the_framed_monitor_answers_without_echo_and_prompt() {
    let (mut console, mut line) = (console(ConsoleMode::Framed), Line::default());
    console.answer("", &mut line.sink());
    console.log("ready", &mut line.sink());
    assert_eq!(line.take(), "ready\r\n");
    console.guest_output(1, b"b\x10", &mut line.sink());
    assert_eq!(line.take(), "\x10Bb\x10\x10");
    let input = typed(&mut console, b"\x10Ax\x1d\x10_y\x10@vms --json\r", &mut line);
    assert_eq!(input, [guest(0, b'x'), guest(0, 0x1d), Input::Line("vms --json".into())]);
    assert_eq!(line.take(), "");
    console.answer("[]", &mut line.sink());
    assert_eq!(line.take(), "\x10@[]\r\n");
    assert!(console.enter(0, &mut line.sink()).is_err());
}

/// Something that happens on a line.
#[derive(Clone, Debug)]
enum Event {
    Output(usize, Vec<u8>),
    Log,
    Input(u8),
    Break,
    Quiet,
    Enter(usize),
    Answer,
    Live,
}

fn event() -> impl Strategy<Value = Event> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        4 => (0..3usize, bytes()).prop_map(|(vm, bytes)| Event::Output(vm, bytes)),
        1 => Just(Event::Log),
        4 => any::<u8>().prop_map(Event::Input),
        1 => Just(Event::Input(LEAVE_KEY)),
        1 => Just(Event::Break),
        1 => Just(Event::Quiet),
        1 => (0..3usize).prop_map(Event::Enter),
        1 => Just(Event::Answer),
        1 => Just(Event::Live),
    ]
}

fn happen(console: &mut Console, event: Event, line: &mut Line) {
    let sink = &mut line.sink();
    match event {
        Event::Output(vm, bytes) => console.guest_output(vm, &bytes, sink),
        Event::Log => console.log("a line\nand another", sink),
        Event::Input(byte) => drop(console.input(Received::Byte(byte), 0, sink)),
        Event::Break => drop(console.input(Received::Break, 0, sink)),
        Event::Quiet => console.quiet(LEAVE_QUIET_NS, sink),
        Event::Enter(vm) => drop(console.enter(vm, sink)),
        Event::Answer => console.answer("answer", sink),
        Event::Live => console.live("picture", sink),
    }
}

proptest! {
    #[test]
    fn framed_output_comes_apart_again(events in proptest::collection::vec(event(), 0..60)) {
        let (mut console, mut line) = (console(ConsoleMode::Framed), Line::default());
        let mut expected = vec![Vec::<u8>::new(); 2];
        for event in events {
            if let Event::Output(vm @ 0..2, bytes) = &event {
                expected[*vm].extend(bytes);
            }
            happen(&mut console, event, &mut line);
        }
        let mut decoder = Decoder::default();
        let mut seen = vec![Vec::new(); 2];
        let mut monitor = String::new();
        for byte in line.0 {
            match decoder.receive(byte) {
                Some((MONITOR_CHANNEL, byte)) => monitor.push(char::from(byte)),
                Some((channel, byte)) => seen[usize::from(channel) - 1].push(byte),
                None => {}
            }
        }
        prop_assert_eq!(seen, expected);
        let whole = ["a line", "and another", "answer", "picture"];
        prop_assert!(monitor.lines().all(|line| whole.contains(&line)), "{:?}", monitor);
    }

    /// Two guests print lines of bytes that nothing else prints; switching to and fro shows each line
    /// once, in order, however the rest goes.
    #[test]
    fn plain_output_is_shown_once_and_in_order(events in proptest::collection::vec(event(), 0..60)) {
        let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
        let mut expected = [Vec::<u8>::new(), Vec::new()];
        for event in events {
            let event = match event {
                Event::Output(vm @ 0..2, bytes) => {
                    let base = 0x80 + 0x40 * vm as u8;
                    let mut bytes: Vec<u8> = bytes.iter().map(|byte| base + byte % 0x40).collect();
                    expected[vm].extend(&bytes);
                    bytes.push(b'\n');
                    Event::Output(vm, bytes)
                }
                other => other,
            };
            happen(&mut console, event, &mut line);
        }
        for vm in 0..2 {
            console.enter(vm, &mut line.sink()).unwrap();
        }
        for (vm, expected) in expected.iter().enumerate() {
            let base = 0x80 + 0x40 * vm as u8;
            let seen: Vec<u8> = line.0.iter().copied().filter(|byte| byte & 0xc0 == base).collect();
            prop_assert_eq!(&seen, expected);
        }
    }

    /// However they come: of two leave keys together one is sent, and none leaves while others come with it.
    #[test]
    fn a_focused_guest_gets_every_byte_of_a_burst(
        bytes in proptest::collection::vec(prop_oneof![4 => any::<u8>(), 1 => Just(LEAVE_KEY)], 0..60)
    ) {
        let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
        console.enter(1, &mut line.sink()).unwrap();
        let mut expected = Vec::new();
        let mut rest = bytes.as_slice();
        while let [first, after @ ..] = rest {
            let twice = *first == LEAVE_KEY && after.first() == Some(&LEAVE_KEY);
            rest = if twice { &after[1..] } else { after };
            // The last one waits.
            if twice || *first != LEAVE_KEY || !rest.is_empty() {
                expected.push(guest(1, *first));
            }
        }
        prop_assert_eq!(burst(&mut console, &bytes, &mut line), expected);
        prop_assert_eq!(console.focus(), Some(1));
    }
}
