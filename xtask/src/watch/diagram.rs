// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may reach what, as a picture: a column each for VMs, vdevs, tags, address spaces and memory, and a line for each
//! way through them.

use crate::watch::markup::{cut, escaped};
use crate::watch::reach::{self, Way};
use crate::watch::snapshot::Snapshot;

/// What the columns hold.
const COLUMNS: [&str; 5] = ["VM", "vdev", "tag of its DMA", "I/O address space", "memory"];
/// Characters that fit a box; the whole text is its tooltip.
const ROOM: usize = 30;
/// Sizes in pixels.
const CHARACTER: f64 = 7.5;
const PADDING: f64 = 12.0;
const BOX_HEIGHT: f64 = 28.0;
const PITCH: f64 = 40.0;
const BETWEEN: f64 = 56.0;
const MARGIN: f64 = 16.0;
const TITLE: f64 = 30.0;
/// Above the vdevs of a parent, for its name.
const FRAME_TITLE: f64 = 26.0;

/// A box.
struct Node {
    label: String,
    /// The middle of its left side.
    y: f64,
    colour: usize,
    alarm: bool,
}

/// The picture as SVG; nothing where nobody is known.
pub fn svg(snapshot: &Snapshot, colours: usize) -> String {
    let mut ways = reach::ways(snapshot);
    // A parent's vdevs lie side by side, and a VM's among them.
    ways.sort_by(|one, other| (&one.parent, &one.vm).cmp(&(&other.parent, &other.vm)));
    let alone = reach::without_vdev(snapshot);
    if ways.is_empty() && alone.is_empty() {
        return String::new();
    }
    let colour = |vm: &str| reach::place(snapshot, vm).unwrap_or(0) % colours.max(1);
    let mut y = TITLE + MARGIN;
    let mut frames: Vec<(String, f64, f64)> = Vec::new();
    let mut rows = Vec::new();
    for way in &ways {
        match frames.last_mut() {
            Some((parent, _, bottom)) if *parent == way.parent => *bottom = y + PITCH,
            _ => {
                y += if frames.is_empty() { 0.0 } else { PADDING };
                frames.push((way.parent.clone(), y, y + FRAME_TITLE + PITCH));
                y += FRAME_TITLE;
            }
        }
        rows.push(y + PITCH / 2.0);
        y += PITCH;
    }
    y += PADDING;
    let mut columns: [Vec<Node>; COLUMNS.len()] = Default::default();
    for (column, nodes) in columns.iter_mut().enumerate() {
        for way in &ways {
            let label = labels(way)[column];
            if nodes.iter().any(|node| node.label == *label) {
                continue;
            }
            let same = || ways.iter().zip(&rows).filter(|(other, _)| labels(other)[column] == label);
            let middle = same().map(|(_, y)| y).sum::<f64>() / same().count() as f64;
            // A way in alarm marks what it leads through.
            let alarm = same().any(|(other, _)| other.alarm.is_some()) && column > 0;
            nodes.push(Node { label: label.clone(), y: middle, colour: colour(&way.vm), alarm });
        }
    }
    for vm in alone {
        let label = vm.to_owned();
        columns[0].push(Node { label, y: y + PITCH / 2.0, colour: colour(vm), alarm: false });
        y += PITCH;
    }
    columns.iter_mut().for_each(|nodes| apart(nodes));
    let bottom = columns.iter().flatten().map(|node| node.y + PITCH).fold(y, f64::max);
    drawn(&columns, &ways, &frames, snapshot, bottom)
}

fn labels(way: &Way) -> [&String; COLUMNS.len()] {
    [&way.vm, &way.vdev, &way.pasid, &way.space, &way.memory]
}

/// Moves boxes down that would lie on others.
fn apart(nodes: &mut [Node]) {
    nodes.sort_by(|one, other| one.y.total_cmp(&other.y));
    let mut free = f64::MIN;
    for node in nodes {
        node.y = node.y.max(free);
        free = node.y + PITCH;
    }
}

fn drawn(
    columns: &[Vec<Node>; COLUMNS.len()],
    ways: &[Way],
    frames: &[(String, f64, f64)],
    snapshot: &Snapshot,
    height: f64,
) -> String {
    let width = |column: usize| {
        let labels = columns[column].iter().map(|node| node.label.chars().count().min(ROOM));
        let widest = labels.chain([COLUMNS[column].len()]).max().unwrap_or(0);
        widest as f64 * CHARACTER + 2.0 * PADDING
    };
    let widths: [f64; COLUMNS.len()] = std::array::from_fn(width);
    let left: [f64; COLUMNS.len()] = std::array::from_fn(|column| {
        MARGIN + (0..column).map(|before| widths[before] + BETWEEN).sum::<f64>()
    });
    let right = left[COLUMNS.len() - 1] + widths[COLUMNS.len() - 1] + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {right:.0} {height:.0}\" width=\"{right:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"Who may reach what\">\n"
    );
    for (title, (left, width)) in COLUMNS.iter().zip(left.iter().zip(widths)) {
        let middle = left + width / 2.0;
        svg +=
            &format!("<text class=\"column\" x=\"{middle:.1}\" y=\"{TITLE:.1}\">{}</text>\n", escaped(title));
    }
    let devices = reach::devices(snapshot);
    for (parent, top, bottom) in frames {
        let device = devices.iter().find(|device| device.name == *parent);
        let about = device.map_or(parent, |device| &device.about);
        let class = if device.is_some_and(|device| !device.confined) { "parent alarm" } else { "parent" };
        let (x, width) = (left[1] - PADDING, widths[1] + BETWEEN + widths[2] + 2.0 * PADDING);
        let room = ((width - PADDING) / CHARACTER) as usize;
        svg += &format!(
            "<g class=\"{class}\"><title>{}</title><rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"8\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>\n",
            escaped(about),
            bottom - top,
            x + PADDING,
            top + 18.0,
            escaped(&cut(about, room)),
        );
    }
    for way in ways {
        let ends = labels(way);
        let place = |column: usize| columns[column].iter().find(|node| node.label == *ends[column]);
        let colour = place(0).map_or(0, |node| node.colour);
        let class = if way.alarm.is_some() { "way alarm".to_owned() } else { format!("way c{colour}") };
        let mut path = String::new();
        for column in 1..COLUMNS.len() {
            let (Some(from), Some(to)) = (place(column - 1), place(column)) else { continue };
            let (start, end) = (left[column - 1] + widths[column - 1], left[column]);
            let bend = (start + end) / 2.0;
            path += &format!(
                "M{start:.1} {:.1}C{bend:.1} {:.1} {bend:.1} {:.1} {end:.1} {:.1}",
                from.y, from.y, to.y, to.y
            );
        }
        let why = way.alarm.iter().map(|why| format!(": {why}")).collect::<String>();
        let title = escaped(&format!("{} by {} to {}{why}", way.vm, way.vdev, way.memory));
        svg += &format!("<path class=\"{class}\" d=\"{path}\"><title>{title}</title></path>\n");
    }
    for (column, nodes) in columns.iter().enumerate() {
        for node in nodes {
            let class = if node.alarm { "node alarm".to_owned() } else { format!("node c{}", node.colour) };
            svg += &format!(
                "<g class=\"{class}\"><title>{}</title><rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BOX_HEIGHT:.1}\" rx=\"5\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>\n",
                escaped(&node.label),
                left[column],
                node.y - BOX_HEIGHT / 2.0,
                widths[column],
                left[column] + widths[column] / 2.0,
                node.y + 5.0,
                escaped(&cut(&node.label, ROOM)),
            );
        }
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_do_not_lie_on_each_other() {
        let node = |y| Node { label: String::new(), y, colour: 0, alarm: false };
        let mut nodes = [node(50.0), node(10.0), node(20.0)];
        apart(&mut nodes);
        assert_eq!(nodes.map(|node| node.y), [10.0, 50.0, 90.0]);
    }
}
