// SPDX-License-Identifier: MIT OR Apache-2.0
//! IOMMUs.
//!
//! What two makes of IOMMU do alike is here: the parsing of firmware tables, page tables (a make says only what
//! an entry looks like), and who uses which table.

pub mod smmuv3;
pub mod vtd;

mod acpi;
mod attachments;
mod domains;
mod page_table;
mod spaces;
