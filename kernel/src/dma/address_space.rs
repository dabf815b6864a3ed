// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which I/O address space a vdev is created on, as it is asked for.

use alloc::vec::Vec;

use crate::memory::ram::RamRange;

/// Which memory of its VM a vdev's DMA reaches, and with whom it shares that.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum AddressSpace {
    /// All of it, with the VM's other vdevs.
    #[default]
    Vm,
    /// All of it, in an I/O address space of its own.
    Own,
    /// These ranges and nothing else, in an I/O address space of its own, each where the guest sees it.
    DmaOnly(Vec<RamRange>),
}

impl AddressSpace {
    /// The ranges, where there are only some.
    pub fn windows(&self) -> &[RamRange] {
        match self {
            Self::Vm | Self::Own => &[],
            Self::DmaOnly(windows) => windows,
        }
    }
}
