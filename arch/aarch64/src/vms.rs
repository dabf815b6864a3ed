// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs while they live, as Arm has them: [`pasidon_arch_common::vms`].

pub use pasidon_arch_common::vms::Outside;

use crate::hardware::El2;

/// The processor, as those ask it.
pub type Processor = El2;
/// A VM for one life of it.
pub type Instance = pasidon_arch_common::vms::Instance<El2>;
/// All of them.
pub type Vms = pasidon_arch_common::vms::Vms<El2>;

/// Interrupts a pCPU, unless it is this one, which looks by itself.
pub fn kick(index: u32) {
    pasidon_arch_common::vms::kick::<El2>(index);
}
