// SPDX-License-Identifier: MIT OR Apache-2.0
//! The line as its user sees it.

use proptest::prelude::*;

use super::*;

fn console(mode: ConsoleMode) -> Console {
    Console::new(mode, ["alpha", "beta"].map(String::from))
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

fn typed(console: &mut Console, text: &[u8], line: &mut Line) -> Vec<Input> {
    text.iter()
        .filter_map(|byte| console.input(*byte, &mut line.sink()))
        .collect()
}

#[test]
fn a_command_is_echoed_taken_and_answered() {
    let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
    console.answer("", &mut line.sink());
    assert_eq!(line.take(), "pasidon> ");
    assert_eq!(
        typed(&mut console, b"vms\r", &mut line),
        [Input::Line("vms".into())]
    );
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
    assert_eq!(
        typed(&mut console, b"s\r", &mut line),
        [Input::Line("vms".into())]
    );
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
    assert_eq!(
        line.take(),
        "--- console alpha, Ctrl-] leaves it ---\r\nhello\r\nguest# "
    );
    assert_eq!(
        typed(&mut console, b"l\x03", &mut line),
        [
            Input::Guest { vm: 0, byte: b'l' },
            Input::Guest { vm: 0, byte: 3 }
        ]
    );
    console.guest_output(0, b"l", &mut line.sink());
    console.log("fault", &mut line.sink());
    console.guest_output(0, b"s\r\n", &mut line.sink());
    console.log("fault", &mut line.sink());
    assert_eq!(line.take(), "l\r\n[pasidon] fault\r\ns\r\n[pasidon] fault\r\n");

    assert_eq!(typed(&mut console, b"\x1d", &mut line), []);
    assert_eq!(
        line.take(),
        "--- monitor, Ctrl-] returns to alpha ---\r\npasidon> "
    );
    console.guest_output(0, b"more\r\n", &mut line.sink());
    assert_eq!(line.take(), "");
    assert_eq!(typed(&mut console, b"\x1d", &mut line), []);
    assert_eq!(
        line.take(),
        "\r\n--- console alpha, Ctrl-] leaves it ---\r\nmore\r\n"
    );
    assert!(console.enter(2, &mut line.sink()).is_err());
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
    assert_eq!(
        input,
        [
            Input::Guest { vm: 0, byte: b'x' },
            Input::Guest { vm: 0, byte: 0x1d },
            Input::Line("vms --json".into())
        ]
    );
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
        1 => (0..3usize).prop_map(Event::Enter),
        1 => Just(Event::Answer),
        1 => Just(Event::Live),
    ]
}

fn happen(console: &mut Console, event: Event, line: &mut Line) -> Option<Input> {
    let sink = &mut line.sink();
    match event {
        Event::Output(vm, bytes) => console.guest_output(vm, &bytes, sink),
        Event::Log => console.log("a line\nand another", sink),
        Event::Input(byte) => return console.input(byte, sink),
        Event::Enter(vm) => drop(console.enter(vm, sink)),
        Event::Answer => console.answer("answer", sink),
        Event::Live => console.live("picture", sink),
    }
    None
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

    #[test]
    fn a_focused_guest_gets_every_byte_but_the_leave_key(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let (mut console, mut line) = (console(ConsoleMode::Plain), Line::default());
        console.enter(1, &mut line.sink()).unwrap();
        for byte in bytes.into_iter().filter(|byte| *byte != LEAVE_KEY) {
            prop_assert_eq!(console.input(byte, &mut line.sink()), Some(Input::Guest { vm: 1, byte }));
        }
    }
}
