// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machines around VMs, as Arm has them: [`pasidon_arch_common::vms`].

pub use pasidon_arch_common::vms::Outside;

use crate::hardware::El2;

/// The processor, as those ask it.
pub type Processor = El2;
/// The machine around one VM.
pub type Machine = pasidon_arch_common::vms::Machine<El2>;
/// All machines.
pub type Vms = pasidon_arch_common::vms::Vms<El2>;
/// VMs, as the kernel's operations see them.
pub type Builder = pasidon_arch_common::vms::Builder<El2>;

/// Interrupts a pCPU, unless it is this one, which looks by itself.
pub fn kick(index: u32) {
    pasidon_arch_common::vms::kick::<El2>(index);
}
