// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accelerators that can be shared: one module per kind, each a
//! [`Parent`](pasidon_kernel::vdev::parent::Parent) with the models of its slices.

pub mod dsa;
