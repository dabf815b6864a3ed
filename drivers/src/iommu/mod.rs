// SPDX-License-Identifier: MIT OR Apache-2.0
//! IOMMUs.
//!
//! What all makes of IOMMU do alike is here: who uses which page table (trees are the kernel's, a make says only what
//! an entry looks like), and the order in which units are made to forget. A make brings an [`IommuUnit`] and its
//! [`Topology`].

pub mod smmuv3;
pub mod vtd;

mod attachments;
mod domains;
mod spaces;
#[cfg(test)]
pub(crate) mod suite;
pub mod survey;
mod unit;

pub use self::spaces::Spaces;
pub use self::unit::{DeviceTlb, IommuUnit, Place, Topology};
