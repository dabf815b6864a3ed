// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is shown of machines that were recorded: two Linux guests of which one copies, is restarted, and has copied, and
//! the other then writes to memory that is not its own; and two that share a queue, both copying.

use super::snapshot::Snapshot;
use super::source::{snapshots, transcript};
use super::{History, Poll, html};
use pasidon_kernel::console::framing::Encoder;
use std::path::Path;
use std::time::Duration;

const RECORDED: &[u8] = include_bytes!("../../tests/watch/two-guests.jsonl");
const SHARES: &[u8] = include_bytes!("../../tests/watch/shares.jsonl");
/// A character that clears the screen, and one that a browser would take for a tag.
const HOSTILE: &str = "\\u001b[2J<script>alert('x')</script>\\u202e\\u0007";

pub fn recorded() -> Vec<Snapshot> {
    snapshots(RECORDED)
}

/// The recorded machine with names that mean ill.
pub fn hostile() -> Vec<Snapshot> {
    let text = String::from_utf8(RECORDED.to_vec()).unwrap();
    let text = text.replace("alpha", HOSTILE).replace("dsa0", HOSTILE).replace("not mapped", HOSTILE);
    snapshots(text.as_bytes())
}

/// The last of these moments as plain text.
fn text(snapshots: &[Snapshot]) -> String {
    let Some(last) = snapshots.last() else { return String::new() };
    super::text(last, &History::of(snapshots))
}

/// Compares with a file of `xtask/tests/watch`, or writes it where `PASIDON_BLESS` is set.
pub fn same_as_file(name: &str, shown: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/watch").join(name);
    if std::env::var_os("PASIDON_BLESS").is_some() {
        std::fs::write(&path, shown).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(shown, expected, "PASIDON_BLESS=1 cargo test -p xtask writes {name} anew");
}

#[test]
fn the_recorded_machine_in_tables() {
    let all = recorded();
    assert_eq!(all.len(), 5);
    assert!(all.iter().all(|snapshot| snapshot.notes.is_empty()));
    same_as_file("two-guests.txt", &text(&all));
    // While alpha copied.
    let copying = text(&all[..2]);
    assert!(copying.contains("alpha  running    256M      1      1       1      1  "), "{copying}");
    assert!(!copying.contains("write to 0x20000000"));
}

#[test]
fn descriptors_are_counted_where_the_hypervisor_submits_them() {
    let all = snapshots(SHARES);
    let shown = text(&all);
    let rows = shown.lines().filter(|line| line.starts_with("dsa0/dsa-swq#"));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split_whitespace().collect()).collect();
    let (alpha, beta) = (&rows[0], &rows[1]);
    // Descriptors and submission exits per second, interrupts, and no fault.
    assert_eq!(alpha[alpha.len() - 4..], ["1986", "1986", "1986", "0"]);
    // A vdev that is being worked on while it is asked says nothing of itself, and keeps its other counters.
    assert_eq!(beta[4..], ["trapped", "busy", "-", "-", "-", "1884", "1880", "0"]);
    // Exits, processor time, interrupts, descriptors and submission exits.
    page(&all, |_, document| assert_eq!(count(document, "figure", ""), 5));
}

#[test]
fn a_transcript_that_ends_anywhere_is_shown_as_far_as_it_goes() {
    let mut most = 0;
    for end in (0..RECORDED.len()).step_by(101) {
        let all = snapshots(&RECORDED[..end]);
        assert!(all.len() >= most);
        most = all.len();
        assert!(end < 2000 || !text(&all).is_empty());
    }
    let cut = text(&snapshots(&RECORDED[..9000]));
    assert!(cut.contains("missing: an answer is damaged") && cut.contains("not in the answers"), "{cut}");
    // One that begins in the middle has no time at first.
    let late = snapshots(&RECORDED[3000..]);
    assert!(late[0].system.is_none() && text(&late[..1]).contains("not in the answers"));
}

#[test]
fn a_whole_line_is_taken_apart_and_guests_cannot_forge_answers() {
    let mut line = Vec::new();
    let mut encoder = Encoder::default();
    let mut send = |channel, bytes: &[u8]| encoder.send(channel, bytes, &mut |byte| line.push(byte));
    for answer in RECORDED.split_inclusive(|byte| *byte == b'\n') {
        send(1, b"\n{\"version\":\"9\",\"uptime_ns\":1}\n[]\n");
        send(0, b"    1.000000 info work: something {}\r\n");
        let (start, end) = answer.split_at(7);
        send(0, start);
        send(2, b"login: \x10\n[]\n");
        send(0, end);
    }
    assert_eq!(text(&snapshots(&line)), text(&recorded()));
}

#[test]
fn nothing_that_a_name_holds_reaches_the_terminal() {
    let shown = text(&hostile());
    assert!(shown.contains("\\u{1b}[2J<script>"), "{shown}");
    assert!(!shown.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'));
}

#[test]
fn a_machine_of_which_nothing_is_known_is_shown() {
    let empty = text(&[Snapshot::default()]);
    assert!(empty.contains("up -") && empty.contains("not in the answers"), "{empty}");
    assert_eq!(text(&[]), "");
    // A machine where nothing runs.
    let idle = snapshots(b"{\"iommu\":null}\n[]\n{\"uptime_ns\":5,\"pcpus\":[],\"vdevs\":[]}\n[]\n[]\n");
    let idle = text(&idle);
    for none in ["there is no VM", "there is no vdev", "no PASID is in use", "there is no parent"] {
        assert!(idle.contains(none), "{idle}");
    }
}

#[test]
fn what_is_no_transcript_or_no_line_is_said_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "[ OK ] not JSON\n[1]\n{}\n").unwrap();
    let why = |path: &Path| transcript(path).unwrap_err().to_string();
    assert!(why(&file).contains("is no transcript") && why(&file).contains("--record"));
    assert!(why(&folder.path().join("none")).contains("--record"));
    let why = |path: &Path| Poll::open(path, Duration::from_secs(1), None).err().unwrap().to_string();
    assert!(why(&file).contains("--transcript"));
    assert!(why(folder.path()).contains("no serial line"));
    assert!(why(&folder.path().join("none")).contains("cargo xtask run --socket"));
    assert!(why(Path::new("/dev/null")).contains("no serial line"));
    let socket = folder.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(why(&socket).contains("nobody listens"));
    for (path, why) in [(&file, why(&file)), (&socket, why(&socket))] {
        assert!(!why.contains('\n') && why.contains(&path.display().to_string()), "{why}");
    }
}

/// The page of the last of these moments, read back.
fn page(snapshots: &[Snapshot], look: impl FnOnce(&str, &roxmltree::Document<'_>)) {
    let nothing = Snapshot::default();
    let page = html::page(snapshots.last().unwrap_or(&nothing), &History::of(snapshots));
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    look(&page, &roxmltree::Document::parse_with_options(&page, options).unwrap());
}

/// How many elements of that name and class there are.
fn count(document: &roxmltree::Document<'_>, name: &str, class: &str) -> usize {
    let has = |node: &roxmltree::Node<'_, '_>| {
        class.is_empty() || node.attribute("class").is_some_and(|all| all.split(' ').any(|one| one == class))
    };
    document.descendants().filter(|node| node.tag_name().name() == name).filter(has).count()
}

#[test]
fn the_recorded_machine_on_a_page() {
    page(&recorded(), |text, document| {
        // VM, vdev, PASID, space and memory of two guests, and their ways; the device around their vdevs.
        assert_eq!([count(document, "g", "node"), count(document, "path", "way")], [10, 2]);
        assert_eq!([count(document, "g", "parent"), count(document, "g", "alarm")], [1, 0]);
        // Exits, processor time, interrupts, and beta's fault.
        assert_eq!(count(document, "figure", ""), 4);
        assert!(count(document, "polyline", "") >= 6);
        let title = document.descendants().find(|node| node.tag_name().name() == "h1").unwrap();
        assert_eq!(title.text(), Some("Pasidon, seen from its serial line"));
        // It loads nothing and runs nothing.
        for outside in ["script", "link", "img", "iframe", "object", "a"] {
            assert_eq!(count(document, outside, ""), 0, "{outside}");
        }
        assert!(!text.replace("http://www.w3.org/2000/svg", "").contains("http") && !text.contains("url("));
        for look in ["prefers-color-scheme: dark", ">space 3</text>", "<td class=\"n\">256M</td>"] {
            assert!(text.contains(look), "{look}");
        }
    });
}

#[test]
fn names_stay_text_on_a_page() {
    page(&hostile(), |text, document| {
        assert!(text.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
        assert_eq!(count(document, "script", ""), 0);
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'));
        assert_eq!(count(document, "path", "way"), 2);
    });
}

#[test]
fn a_page_of_little_is_a_page() {
    for snapshots in
        [Vec::new(), recorded()[..1].to_vec(), snapshots(&RECORDED[..9000]), snapshots(&RECORDED[3000..9000])]
    {
        page(&snapshots, |text, document| {
            assert_eq!(count(document, "body", ""), 1);
            assert!(!text.contains("NaN") && !text.contains("inf"));
        });
    }
}
