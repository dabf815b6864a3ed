// SPDX-License-Identifier: MIT OR Apache-2.0
//! DMA: who may reach which memory behind which tag, and what is left of it afterwards.
//!
//! A [`pasid`] names an address space in a device's requests, an [`ioas`] is that space, an
//! [`attachment`] joins the two on an [`iommu`]. What reaches beyond is a [`fault`].

pub mod address_space;
pub mod attachment;
pub mod fault;
pub mod fault_log;
pub mod ioas;
pub mod iommu;
pub mod pasid;
pub mod window;
