// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's services for the kernel and the drivers: time, and interrupts.
//!
//! Interrupts of devices are LPIs, which the interrupt translation service gives out; there is no driver for it yet,
//! so none can be had.

use alloc::string::String;
use core::fmt::Write;
use core::ops::Range;

use pasidon_arch_common::firmware_tables::Find;
use pasidon_kernel::exit::MsiMessage;
use pasidon_kernel::host::Host;
use pasidon_kernel::id::VmId;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::refusal::Refusal;

use crate::interrupts::Handler;
use crate::{firmware_tables, pcpu, serial, time};

/// [`Host`] on this machine.
#[derive(Clone, Copy, Debug)]
pub struct MachineHost;

impl Host for MachineHost {
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn allocate_vector(&self, _vm: Option<VmId>) -> Option<HostVector> {
        None
    }

    fn free_vector(&self, _vector: HostVector) {}
}

/// The interrupt numbers that devices can be given on each pCPU: none, for want of the driver.
pub fn device_vectors() -> Range<u32> {
    0..0
}

/// How interrupts name the pCPU of that number.
pub fn cpu_of(pcpu: u32) -> Option<u32> {
    pcpu::get(pcpu).map(|pcpu| pcpu.index)
}

/// What there is where there is no IOMMU that can be driven, in words.
pub fn no_iommu(tables: Find<'_>) -> String {
    let smmus = tables("IORT").map(firmware_tables::smmus).unwrap_or_default();
    if smmus.is_empty() {
        return String::from("the firmware's IORT describes no SMMUv3");
    }
    let mut words = String::from("there is no driver yet for SMMUv3");
    for base in smmus {
        // A String takes everything.
        let _ = write!(words, " at {base:#x}");
    }
    words
}

/// Has the IOMMU's faults handled: there is none yet that could report any.
pub fn fault_interrupt(_handler: Handler) -> Option<HostVector> {
    None
}

/// Has `note` called, as an interrupt handler on the pCPU that calls, when bytes came on the serial line.
///
/// # Errors
/// When it cannot be; the line is then to be looked at from time to time.
pub fn connect_serial(
    _intid: Option<u32>,
    _remap: Option<&dyn Fn(HostVector) -> Result<MsiMessage, Refusal>>,
    note: fn(),
) -> Result<(), Refusal> {
    serial::announce_keys(pcpu::current().mpidr, note)
}
