// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which rates are drawn over time.

use crate::watch::history::{Counter, History, Point, Subject};

/// Curves in one drawing: more cannot be told apart.
pub const MOST_CURVES: usize = 6;

/// A drawing.
#[derive(Debug)]
pub struct Drawing {
    /// What stands above it.
    pub title: String,
    /// Its curves, in the order of their names.
    pub curves: Vec<Curve>,
    /// The largest value.
    pub most: f64,
}

/// A curve.
#[derive(Debug)]
pub struct Curve {
    /// Whose.
    pub name: String,
    /// Its points; `None` is a gap.
    pub points: Vec<Point>,
}

impl Curve {
    fn most(&self) -> f64 {
        self.points.iter().filter_map(|(_, rate)| *rate).fold(0.0, f64::max)
    }

    /// The parts between gaps.
    pub fn parts(&self) -> Vec<Vec<(f64, f64)>> {
        let gaps = self.points.split(|(_, rate)| rate.is_none());
        let known = |part: &[Point]| part.iter().filter_map(|(time, rate)| Some((*time, (*rate)?))).collect();
        gaps.filter(|part| !part.is_empty()).map(known).collect()
    }
}

/// The drawings that there is anything to see in.
pub fn drawings(history: &History) -> Vec<Drawing> {
    let all = [
        ("Exits per second", Counter::Exits, 1.0),
        ("Processor time, % of one", Counter::RunTime, 1e-7),
        ("Interrupts of vdevs per second", Counter::Interrupts, 1.0),
        ("Descriptors of trapped vdevs per second", Counter::Descriptors, 1.0),
        ("Submission exits per second", Counter::SubmissionExits, 1.0),
        ("Records of refused DMA per second", Counter::Faults, 1.0),
    ];
    all.into_iter().filter_map(|(title, counter, unit)| drawing(history, title, counter, unit)).collect()
}

fn drawing(history: &History, title: &str, counter: Counter, unit: f64) -> Option<Drawing> {
    // What VMs and vdevs both have is drawn for the vdevs.
    let subjects = history.subjects(&counter);
    let vdevs = subjects.iter().any(|subject| matches!(subject, Subject::Vdev(..)));
    let wanted = subjects.into_iter().filter(|subject| matches!(subject, Subject::Vdev(..)) == vdevs);
    let curve = |subject: &Subject| {
        let name = match subject {
            Subject::Vm(name) => name.clone(),
            Subject::Vdev(vm, name) => format!("{vm}: {name}"),
        };
        let points = history.points(subject, counter.clone());
        let points = points.into_iter().map(|(time, rate)| (time, rate.map(|rate| rate * unit))).collect();
        Curve { name, points }
    };
    let mut curves: Vec<Curve> = wanted.map(curve).filter(|curve| curve.most() > 0.0).collect();
    curves.sort_by(|one, other| other.most().total_cmp(&one.most()));
    let most = curves.first()?.most();
    let title = match curves.len() {
        all if all > MOST_CURVES => format!("{title}, the {MOST_CURVES} largest of {all}"),
        _ => title.to_owned(),
    };
    curves.truncate(MOST_CURVES);
    curves.sort_by(|one, other| one.name.cmp(&other.name));
    Some(Drawing { title, curves, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_broken_where_nothing_is_known() {
        let points = vec![(1.0, None), (2.0, Some(5.0)), (3.0, Some(6.0)), (4.0, None), (5.0, Some(7.0))];
        let curve = Curve { name: String::new(), points };
        assert_eq!(curve.parts(), [vec![(2.0, 5.0), (3.0, 6.0)], vec![(5.0, 7.0)]]);
        assert_eq!(curve.most(), 7.0);
    }
}
