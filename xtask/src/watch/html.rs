// SPDX-License-Identifier: MIT OR Apache-2.0
//! One page with everything, for a browser: it loads nothing, and runs nothing.

use crate::watch::history::History;
use crate::watch::markup::escaped;
use crate::watch::rates::{self, MOST_CURVES};
use crate::watch::snapshot::Snapshot;
use crate::watch::tables::{self, About, Grid};
use crate::watch::{curves, diagram};

/// How it looks, by day and by night.
const STYLE: &str = include_str!("page.css");

/// The page. It is XML too, so that a test can read it.
pub fn page(snapshot: &Snapshot, history: &History) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" content=\"width=device-width\"/>\n<title>Pasidon</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>Pasidon, seen from its serial line</h1>\n<dl>\n"
    );
    for (name, value) in tables::summary(snapshot, history) {
        page += &format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escaped(name), escaped(&value));
    }
    page += "</dl>\n";
    let alarms: Vec<String> = tables::alarms(snapshot).iter().map(|alarm| escaped(alarm)).collect();
    if !alarms.is_empty() {
        page += &format!("<ul class=\"alarms\"><li>{}</li></ul>\n", alarms.join("</li><li>"));
    }
    let picture = diagram::svg(snapshot, MOST_CURVES);
    if !picture.is_empty() {
        page += &format!("<h2>Who may reach what</h2>\n<div class=\"wide\">{picture}</div>\n");
    }
    if let Some(span) = history.span() {
        let figures: String =
            rates::drawings(history).iter().map(|drawing| curves::figure(drawing, span)).collect();
        if !figures.is_empty() {
            page +=
                &format!("<h2>Rates over the time since boot</h2>\n<div class=\"rates\">\n{figures}</div>\n");
        }
    }
    for grid in tables::tables(snapshot, history) {
        if grid.about != About::Reach || picture.is_empty() {
            page += &table(&grid);
        }
    }
    page + "</body>\n</html>\n"
}

fn table(grid: &Grid) -> String {
    let mut table = format!("<h2>{}</h2>\n", escaped(&grid.title));
    if grid.rows.is_empty() {
        return table + &format!("<p class=\"none\">{}</p>\n", escaped(grid.otherwise));
    }
    let class = |column: usize| {
        let number = grid.headings.get(column).is_some_and(|heading| heading.starts_with('#'));
        if number { " class=\"n\"" } else { "" }
    };
    table += "<div class=\"wide\"><table>\n<thead><tr>";
    for (column, heading) in grid.headings.iter().enumerate() {
        let heading = heading.strip_prefix('#').unwrap_or(heading);
        table += &format!("<th{}>{}</th>", class(column), escaped(heading));
    }
    table += "</tr></thead>\n<tbody>\n";
    for row in &grid.rows {
        table += if row.alarm { "<tr class=\"alarm\">" } else { "<tr>" };
        for (column, cell) in row.cells.iter().enumerate() {
            table += &format!("<td{}>{}</td>", class(column), escaped(cell));
        }
        table += "</tr>\n";
    }
    table + "</tbody>\n</table></div>\n"
}
