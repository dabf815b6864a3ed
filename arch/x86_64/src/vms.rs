// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs while they live, as x86-64 has them: [`pasidon_arch_common::vms`].

pub use pasidon_arch_common::vms::Outside;

use crate::hardware::Svm;

/// The processor, as those ask it.
pub type Processor = Svm;
/// A VM for one life of it.
pub type Instance = pasidon_arch_common::vms::Instance<Svm>;
/// All of them.
pub type Vms = pasidon_arch_common::vms::Vms<Svm>;

/// Interrupts a pCPU, unless it is this one, which looks by itself.
pub fn kick(index: u32) {
    pasidon_arch_common::vms::kick::<Svm>(index);
}
