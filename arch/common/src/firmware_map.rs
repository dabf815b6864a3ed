// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the firmware's page tables map, for who reads registers while the firmware is there: what it does not map would
//! be a fault of its own.
//!
//! **Principle.** The tables are only read. UEFI has all memory mapped at its physical address; of registers it
//! promises nothing (UEFI 2.10, 2.3.4 and 2.3.6).

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::page_table::{Format, ReadEntry, Top, span, walk};

/// Whether every byte of a range is mapped at its own address.
pub fn is_mapped<F: Format>(format: F, top: Top, read: ReadEntry<'_>, start: HostPhys, len: u64) -> bool {
    let Some(end) = start.checked_add(len) else { return false };
    let mut at = start.0;
    while at < end.0 {
        match walk(format, top, read, at) {
            Some(mapped) if mapped.to.0 == at => {
                let size = span(mapped.level);
                at = at / size * size + size;
            }
            _ => return false,
        }
    }
    true
}

/// The refusal of registers that the firmware does not map.
pub fn not_mapped(start: HostPhys, len: u64) -> Refusal {
    Refusal::new(
        alloc::format!("registers at {start}"),
        alloc::format!(
            "the firmware does not map these {len:#x} bytes; Pasidon maps them itself when it starts"
        ),
        "",
    )
}
