// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the monitor shows of a unit.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pasidon_kernel::addr::Requester;

use super::unit::Unit;
use crate::features;
use crate::iommu::spaces::IommuUnit;
use crate::memory::DmaMemory;
use crate::registers::Registers;

impl<R: Registers, M: DmaMemory> Unit<R, M> {
    /// Name and value of what is worth knowing about it.
    pub(super) fn describe(&self) -> Vec<(&'static str, String)> {
        let (capability, extended) = (self.capability, self.extended);
        let features = features::present([
            (capability.caching_mode(), "caching mode"),
            (capability.write_buffer_flush(), "write buffer"),
            (extended.coherent(), "tables snooped"),
            (extended.page_walk_coherent(), "page walks snooped"),
            (extended.snoop_control(), "snoop control"),
            (extended.device_tlb(), "device TLBs"),
            (extended.extended_interrupt_mode(), "x2APIC destinations"),
        ]);
        let mut lines = alloc::vec![
            ("unit", self.name()),
            (
                "widths",
                format!(
                    "PASID {}, address {}, domain {} bits",
                    extended.pasid_bits(),
                    capability.address_bits(),
                    capability.domain_bits()
                ),
            ),
            ("features", features.join(", ")),
            ("fault records", format!("{}", capability.fault_records())),
            ("commands", format!("{}", self.commands_issued())),
        ];
        for (&rid, device) in &self.inner.lock().devices {
            let requester = Requester {
                segment: self.segment,
                rid,
            };
            lines.push((
                "claimed",
                format!("{requester}: {}", device.attachments.describe()),
            ));
        }
        lines
    }
}
