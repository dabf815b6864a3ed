// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arm SMMUv3: a stage-1-format table of guest-physical memory per SubstreamID (PASID).
//!
//! | file | duty |
//! |---|---|
//! | `iort` | which units there are, and what a requester is called behind each |
//!
//! Source: Arm System Memory Management Unit architecture specification, version 3 (IHI 0070).

pub mod iort;
pub(super) mod stage1;
