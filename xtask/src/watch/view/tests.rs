// SPDX-License-Identifier: MIT OR Apache-2.0
//! The view on terminals of all sizes, and what its keys do.

use super::*;
use crate::watch::tests::{hostile, recorded, same_as_file};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::sync::mpsc;

fn of(all: &[Snapshot]) -> View {
    let mut view = View::default();
    view.go_to(all, all.len().saturating_sub(1));
    view
}

/// What a terminal of that size shows.
fn drawn(view: &mut View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| {
        let cells = (0..width).map(|x| buffer[(x, y)].symbol());
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    (0..height).map(row).collect()
}

fn press(view: &mut View, code: KeyCode) -> Wish {
    view.key(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn the_recorded_machine_on_a_terminal() {
    let mut view = of(&recorded());
    let mut all = String::new();
    for page in 0..PAGES.len() {
        view.turn_to(page);
        all += &drawn(&mut view, 110, 30);
    }
    same_as_file("two-guests-view.txt", &all);
}

#[test]
fn every_size_shows_what_fits() {
    for snapshots in [recorded(), hostile(), recorded()[..1].to_vec(), vec![Snapshot::default()], Vec::new()]
    {
        let mut view = of(&snapshots);
        for (width, height) in [(1, 1), (2, 3), (10, 2), (12, 4), (20, 5), (40, 12), (80, 24), (300, 100)] {
            for page in 0..PAGES.len() {
                view.turn_to(page);
                view.moved = (u16::MAX, u16::MAX);
                let shown = drawn(&mut view, width, height);
                assert!(!shown.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'));
            }
        }
    }
    // The last line of a page is within reach, and no further.
    let mut view = of(&recorded());
    view.turn_to(1);
    view.moved = (u16::MAX, 0);
    assert!(drawn(&mut view, 80, 10).lines().rev().nth(1).unwrap().starts_with("dsa0    events   0"));
    assert!(drawn(&mut view, 20, 5).starts_with("up 0:01:06"));
}

#[test]
fn keys_turn_pages_and_step_through_what_was_recorded() {
    let all = recorded();
    let mut view = of(&all);
    assert!(drawn(&mut view, 110, 30).contains("moment 5 of 5"));
    assert_eq!(press(&mut view, KeyCode::Char(',')), Wish::Step(-1));
    view.go_to(&all, 1);
    assert!(drawn(&mut view, 110, 30).contains("moment 2 of 5"));
    assert_eq!(view.history.len(), 2);
    view.go_to(&all, usize::MAX);
    assert_eq!(view.place, Some((4, 5)));
    assert_eq!(press(&mut view, KeyCode::Tab), Wish::Look);
    assert_eq!(press(&mut view, KeyCode::Char('9')), Wish::Look);
    assert_eq!(view.page, 1);
    press(&mut view, KeyCode::BackTab);
    press(&mut view, KeyCode::BackTab);
    assert_eq!(view.page, PAGES.len() - 1);
    press(&mut view, KeyCode::Down);
    press(&mut view, KeyCode::Right);
    assert_eq!(view.moved, (1, SIDEWAYS));
    for end in [KeyCode::Char('q'), KeyCode::Esc] {
        assert_eq!(press(&mut view, end), Wish::End);
    }
    assert_eq!(view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Wish::End);
}

#[test]
fn a_machine_that_ends_leaves_its_last_picture() {
    let (sender, receiver) = mpsc::sync_channel(3);
    let moments = Moments::Live(receiver);
    let mut view = View::default();
    assert!(drawn(&mut view, 110, 30).contains("not in the answers"));
    for snapshot in &recorded()[..2] {
        sender.send(Ok(snapshot.clone())).unwrap();
    }
    view.paused = true;
    view.take_news(&moments);
    assert_eq!(view.history.len(), 0);
    view.paused = false;
    view.take_news(&moments);
    view.take_news(&moments);
    sender.send(Err(anyhow::anyhow!("the line\x1b was closed"))).unwrap();
    view.take_news(&moments);
    view.take_news(&moments);
    let shown = drawn(&mut view, 110, 30);
    assert!(shown.contains("the line\\u{1b} was closed") && shown.contains("alpha  running"), "{shown}");
}
