// SPDX-License-Identifier: MIT OR Apache-2.0
//! What vdevs that share a queue take of Pasidon: memory, and the time in which a VM with some of them starts.

use super::{Figure, Results};
use crate::scenario::Lab;
use crate::scenarios::shared_queue::{CROWD, EACH, crowd};
use crate::workshop::Workshop;
use anyhow::Result;
use std::path::Path;

/// Pairs of guests and vdevs of each.
const CROWDS: [(u64, u64); 3] = [(2, 4), (4, 16), (CROWD, EACH)];

/// Measures.
pub fn crowds(workshop: &dyn Workshop, folder: &Path) -> Result<Results> {
    let lab = Lab { workshop, folder: folder.to_path_buf() };
    let mut figures = Vec::new();
    for (guests, each) in CROWDS {
        let cost = crowd(&lab, guests, each)?;
        let name = |what: &str| format!("{} vdevs of type dsa-swq, {guests} guests: {what}", guests * each);
        figures.extend([
            Figure::new(name("heap"), (cost.heap >> 10) as f64, "KiB"),
            Figure::new(name("tables and pages of drivers"), (cost.tables >> 10) as f64, "KiB"),
            Figure::new(name("a VM starts in"), cost.per_vm * 1e3, "ms"),
        ]);
    }
    Ok(figures.into())
}
