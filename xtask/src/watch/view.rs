// SPDX-License-Identifier: MIT OR Apache-2.0
//! The live view on a terminal.
//!
//! Principle: a page is lines of text that can be moved in both directions, so that any size of terminal shows something.

use crate::watch::history::History;
use crate::watch::rates::{self, Drawing};
use crate::watch::reach;
use crate::watch::snapshot::{Snapshot, plain};
use crate::watch::tables::{self, About, Grid};
use anyhow::{Context, Result};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

/// How often the view looks for keys and news.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Least height of a drawing.
const DRAWING_HEIGHT: u16 = 8;
/// How far a key moves a page sideways.
const SIDEWAYS: u16 = 8;
/// Colours of VMs and curves, in their order.
const COLOURS: [Color; rates::MOST_CURVES] =
    [Color::Cyan, Color::Yellow, Color::Green, Color::Magenta, Color::Blue, Color::LightRed];

/// The pages, with what is on them; the last one is drawn.
const PAGES: [(&str, &[About]); 5] = [
    ("overview", &[About::Reach, About::Vms, About::Exits, About::Processors]),
    ("vdevs", &[About::Vdevs, About::Parents]),
    ("pasids", &[About::Pasids, About::Spaces, About::Retired]),
    ("faults", &[About::Faults]),
    ("rates", &[]),
];

/// Where moments come from.
pub enum Moments {
    /// A running machine; as long as nobody takes one, it is not asked for the next.
    Live(Receiver<Result<Snapshot>>),
    /// What was recorded.
    Recorded(Vec<Snapshot>),
}

/// What is shown, and how.
#[derive(Default)]
struct View {
    history: History,
    shown: Snapshot,
    /// Which moment this is, of how many, where they were recorded.
    place: Option<(usize, usize)>,
    page: usize,
    paused: bool,
    /// Why no more will come.
    ended: Option<String>,
    /// How far the page is moved down and to the side.
    moved: (u16, u16),
}

/// What a key asks for.
#[derive(PartialEq, Debug)]
enum Wish {
    End,
    Step(isize),
    Look,
}

/// Shows moments until somebody has seen enough.
///
/// # Errors
/// When the terminal cannot be used.
pub fn show(moments: Moments) -> Result<()> {
    let mut terminal = ratatui::try_init().context("taking the terminal over")?;
    let ended = View::default()
        .follow(&moments, &mut |view| terminal.draw(|frame| view.draw(frame)).map(drop).context("drawing"));
    ratatui::restore();
    ended
}

impl View {
    fn follow(mut self, moments: &Moments, draw: &mut dyn FnMut(&mut View) -> Result<()>) -> Result<()> {
        if let Moments::Recorded(all) = moments {
            self.go_to(all, all.len().saturating_sub(1));
        }
        loop {
            self.take_news(moments);
            draw(&mut self)?;
            if !event::poll(LOOK_INTERVAL)? {
                continue;
            }
            let Event::Key(key) = event::read()? else { continue };
            match (self.key(key), moments) {
                (Wish::End, _) => return Ok(()),
                (Wish::Step(by), Moments::Recorded(all)) => {
                    let at = self.place.map_or(0, |(at, _)| at);
                    self.go_to(all, at.saturating_add_signed(by));
                }
                _ => {}
            }
        }
    }

    fn take_news(&mut self, moments: &Moments) {
        let Moments::Live(receiver) = moments else { return };
        if self.paused || self.ended.is_some() {
            return;
        }
        match receiver.try_recv() {
            Ok(Ok(snapshot)) => {
                self.history.add(&snapshot);
                self.shown = snapshot;
            }
            Ok(Err(error)) => self.ended = Some(plain(&format!("{error:#}"))),
            Err(TryRecvError::Disconnected) => self.ended = Some("nothing more comes".to_owned()),
            Err(TryRecvError::Empty) => {}
        }
    }

    /// Shows what was known at a recorded moment.
    fn go_to(&mut self, all: &[Snapshot], at: usize) {
        let Some(last) = all.len().checked_sub(1) else { return };
        let at = at.min(last);
        self.history = History::of(&all[..=at]);
        self.shown = all[at].clone();
        self.place = Some((at, all.len()));
    }

    fn key(&mut self, key: KeyEvent) -> Wish {
        if key.kind == KeyEventKind::Release {
            return Wish::Look;
        }
        let (down, side) = self.moved;
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Wish::End,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Wish::End,
            KeyCode::Char(',') => return Wish::Step(-1),
            KeyCode::Char('.') => return Wish::Step(1),
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char(digit @ '1'..='9') => self.turn_to(digit as usize - '1' as usize),
            KeyCode::Tab => self.turn_to((self.page + 1) % PAGES.len()),
            KeyCode::BackTab => self.turn_to((self.page + PAGES.len() - 1) % PAGES.len()),
            KeyCode::Up => self.moved.0 = down.saturating_sub(1),
            KeyCode::Down => self.moved.0 = down.saturating_add(1),
            KeyCode::PageUp => self.moved.0 = down.saturating_sub(10),
            KeyCode::PageDown => self.moved.0 = down.saturating_add(10),
            KeyCode::Home => self.moved = (0, 0),
            KeyCode::Left => self.moved.1 = side.saturating_sub(SIDEWAYS),
            KeyCode::Right => self.moved.1 = side.saturating_add(SIDEWAYS),
            _ => {}
        }
        Wish::Look
    }

    fn turn_to(&mut self, page: usize) {
        if page < PAGES.len() {
            (self.page, self.moved) = (page, (0, 0));
        }
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let parts = [Constraint::Length(1), Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)];
        let [head, tabs, body, keys] = Layout::vertical(parts).areas(frame.area());
        frame.render_widget(self.head(), head);
        frame.render_widget(self.tabs(), tabs);
        frame.render_widget(self.keys(), keys);
        match PAGES[self.page] {
            (_, []) => self.draw_rates(frame, body),
            (_, about) => self.draw_tables(about, frame, body),
        }
    }

    fn head(&self) -> Line<'static> {
        let words = tables::summary(&self.shown, &self.history);
        let spans = words.into_iter().flat_map(|(name, value)| {
            [Span::from(format!("{name} ")).dim(), Span::from(format!("{value}  "))]
        });
        Line::from_iter(spans)
    }

    fn tabs(&self) -> Line<'static> {
        let tab = |(number, (name, _)): (usize, &(&'static str, _))| {
            let tab = Span::from(format!(" {} {name} ", number + 1));
            if number == self.page { tab.reversed() } else { tab }
        };
        let mut line: Vec<Span<'_>> = PAGES.iter().enumerate().map(tab).collect();
        if let Some((at, of)) = self.place {
            line.push(Span::from(format!("  moment {} of {of}", at + 1)).dim());
        }
        if self.paused {
            line.push(Span::from("  paused").yellow());
        }
        if let Some(why) = &self.ended {
            line.push(Span::from(format!("  {why}")).red());
        }
        Line::from(line)
    }

    fn keys(&self) -> Line<'static> {
        let step = if self.place.is_some() { ", . step" } else { "p pause" };
        Line::from(format!("q end  1-{} Tab page  arrows PgUp PgDn Home move  {step}", PAGES.len())).dim()
    }

    fn draw_tables(&mut self, about: &[About], frame: &mut Frame<'_>, area: Rect) {
        let alarms = tables::alarms(&self.shown).into_iter();
        let mut lines: Vec<Line<'_>> = alarms.map(|alarm| Line::from(alarm).red()).collect();
        for grid in tables::tables(&self.shown, &self.history) {
            if about.contains(&grid.about) {
                lines.push(Line::default());
                lines.extend(self.lines(&grid));
            }
        }
        let width = lines.iter().map(Line::width).max().unwrap_or(0);
        let room = |length: usize, room: u16| {
            u16::try_from(length.saturating_sub(usize::from(room))).unwrap_or(u16::MAX)
        };
        self.moved.0 = self.moved.0.min(room(lines.len(), area.height));
        self.moved.1 = self.moved.1.min(room(width, area.width));
        frame.render_widget(Paragraph::new(lines).scroll(self.moved), area);
    }

    /// A table, with its VM's colour in each row of who may reach what.
    fn lines(&self, grid: &Grid) -> Vec<Line<'static>> {
        let text = grid.text();
        let mut lines = vec![Line::from(grid.title.clone()).bold()];
        for (number, line) in text.lines().enumerate() {
            let row = number.checked_sub(1).and_then(|row| grid.rows.get(row));
            let style = match row {
                Some(row) if row.alarm => Style::new().red(),
                Some(row) if grid.about == About::Reach => Style::new().fg(self.colour(&row.cells[0])),
                None if !grid.rows.is_empty() => Style::new().dim(),
                _ => Style::new(),
            };
            lines.push(Line::styled(line.to_owned(), style));
        }
        lines
    }

    fn colour(&self, vm: &str) -> Color {
        reach::place(&self.shown, vm).map_or(Color::Reset, |place| COLOURS[place % COLOURS.len()])
    }

    fn draw_rates(&self, frame: &mut Frame<'_>, area: Rect) {
        let drawings = rates::drawings(&self.history);
        let Some((from, to)) = self.history.span().filter(|_| !drawings.is_empty()) else {
            frame.render_widget(Line::from("no rates yet: they need two moments that differ"), area);
            return;
        };
        let fit = usize::from((area.height / DRAWING_HEIGHT).max(1)).min(drawings.len());
        let shown = drawings.iter().skip(usize::from(self.moved.0).min(drawings.len() - fit)).take(fit);
        let areas = Layout::vertical(vec![Constraint::Fill(1); fit]).split(area);
        for (drawing, area) in shown.zip(areas.iter()) {
            draw_rate(drawing, (from, to), frame, *area);
        }
    }
}

fn draw_rate(drawing: &Drawing, (from, to): (f64, f64), frame: &mut Frame<'_>, area: Rect) {
    let coloured = || drawing.curves.iter().zip(COLOURS);
    let names = coloured().map(|(curve, colour)| Span::styled(format!("  {}", curve.name), colour));
    let title = Line::from_iter([Span::from(drawing.title.clone())].into_iter().chain(names));
    let parts: Vec<_> = coloured()
        .flat_map(|(curve, colour)| curve.parts().into_iter().map(move |part| (colour, part)))
        .collect();
    let datasets = parts.iter().map(|(colour, part)| {
        let set = Dataset::default().data(part).style(*colour).marker(Marker::Braille);
        set.graph_type(GraphType::Line)
    });
    let axis = |from: f64, to: f64, unit: &str| {
        let labels = [format!("{from:.0}{unit}"), format!("{to:.0}{unit}")];
        Axis::default().bounds([from, to]).labels(labels).style(Style::new().dim())
    };
    let chart = Chart::new(datasets.collect())
        .block(Block::bordered().title(title))
        .x_axis(axis(from, to.max(from + 1.0), " s"))
        .y_axis(axis(0.0, drawing.most, ""));
    frame.render_widget(chart, area);
}

#[cfg(test)]
mod tests;
