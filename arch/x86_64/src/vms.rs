// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs while they live, as x86-64 has them: [`pasidon_arch_common::vms`].

pub use pasidon_arch_common::vms::Outside;

use crate::hardware::Pc;

/// The processor, as those ask it.
pub type Processor = Pc;
/// A VM for one life of it.
pub type Instance = pasidon_arch_common::vms::Instance<Pc>;
/// All of them.
pub type Vms = pasidon_arch_common::vms::Vms<Pc>;

/// Interrupts a pCPU, unless it is this one, which looks by itself.
pub fn kick(index: u32) {
    pasidon_arch_common::vms::kick::<Pc>(index);
}
