// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machines around VMs, as x86-64 has them: [`pasidon_arch_common::vms`].

pub use pasidon_arch_common::vms::Outside;

use crate::hardware::Svm;

/// The processor, as those ask it.
pub type Processor = Svm;
/// The machine around one VM.
pub type Machine = pasidon_arch_common::vms::Machine<Svm>;
/// All machines.
pub type Vms = pasidon_arch_common::vms::Vms<Svm>;
/// VMs, as the kernel's operations see them.
pub type Builder = pasidon_arch_common::vms::Builder<Svm>;

/// Interrupts a pCPU, unless it is this one, which looks by itself.
pub fn kick(index: u32) {
    pasidon_arch_common::vms::kick::<Svm>(index);
}
