// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual CPU interface as the architecture describes it: what a processor does with list registers while
//! the guest runs. Source: Arm IHI 0069, sections 4.8, 6.3 and 12.4.

use super::super::list_registers::{hcr, lr, vmcr};
use super::super::{Control, Gic, VCpuInterface};

/// ICH_VMCR_EL2 with both groups enabled and no priority masked.
pub(super) const OPEN: u64 = vmcr::GROUP0_ENABLED | vmcr::GROUP1_ENABLED | 0xff << vmcr::PRIORITY_MASK_SHIFT;

pub(in crate::guest) struct Cpu {
    pub vcpu: u16,
    pub registers: Vec<u64>,
    pub vmcr: u64,
    control: u64,
    /// How many of the registers the last entry uses.
    used: usize,
    ended_elsewhere: u64,
    /// Active priorities, the running one last.
    running: Vec<u8>,
    /// Physical interrupts that the hardware deactivated.
    pub deactivated: Vec<u16>,
}

impl Cpu {
    pub fn new(vcpu: u16, registers: usize) -> Self {
        Self {
            vcpu,
            registers: vec![0; registers],
            vmcr: OPEN,
            control: 0,
            used: 0,
            ended_elsewhere: 0,
            running: Vec::new(),
            deactivated: Vec::new(),
        }
    }

    pub fn interface(&self) -> VCpuInterface {
        VCpuInterface { vmcr: self.vmcr }
    }

    pub fn enter(&mut self, gic: &mut Gic) {
        let interface = self.interface();
        let Control { hcr, used } = gic.fill(self.vcpu, &mut self.registers, interface);
        let (in_use, empty) = self.registers.split_at(used);
        assert!(in_use.iter().all(|register| *register != 0) && empty.iter().all(|register| *register == 0));
        (self.control, self.used) = (hcr, used);
    }

    pub fn exit(&mut self, gic: &mut Gic) {
        let hcr = self.control | self.ended_elsewhere << hcr::EOI_COUNT_SHIFT;
        self.ended_elsewhere = 0;
        gic.sync(self.vcpu, &self.registers[..self.used], hcr);
        self.registers.fill(0);
    }

    pub fn enables(&self, group1: bool) -> bool {
        self.interface().enables(group1)
    }

    pub fn running_priority(&self) -> u16 {
        self.running.last().map_or(0x100, |p| u16::from(*p))
    }

    /// Acknowledges the pending interrupt of the highest priority, if it preempts the running one.
    pub fn acknowledge(&mut self) -> Option<u32> {
        let (running, interface) = (self.running_priority(), self.interface());
        let best = self
            .registers
            .iter_mut()
            .filter(|r| **r & (lr::PENDING | lr::ACTIVE) == lr::PENDING)
            .filter(|r| interface.enables(**r & lr::GROUP1 != 0))
            .min_by_key(|r| priority(**r))
            .filter(|r| u16::from(priority(**r)) < running)?;
        *best ^= lr::PENDING | lr::ACTIVE;
        self.running.push(priority(*best));
        Some((*best & lr::VINTID) as u32)
    }

    /// Ends `number`, the last one acknowledged.
    pub fn end(&mut self, number: u32) {
        self.running.pop();
        let found = self
            .registers
            .iter_mut()
            .find(|r| **r & lr::VINTID == u64::from(number) && **r & lr::ACTIVE != 0);
        match found {
            Some(register) => {
                *register &= !lr::ACTIVE;
                if *register & lr::HW != 0 {
                    self.deactivated.push((*register >> lr::PINTID_SHIFT & 0x1fff) as u16);
                }
            }
            None => self.ended_elsewhere += 1,
        }
    }

    /// Whether the maintenance interrupt is asserted.
    pub fn maintenance(&self) -> bool {
        let on = |bit| self.control & bit != 0;
        let in_use = |r: &&u64| **r & (lr::PENDING | lr::ACTIVE) != 0;
        let ended = |r: &u64| *r & (lr::PENDING | lr::ACTIVE | lr::HW | lr::EOI) == lr::EOI;
        self.registers.iter().any(ended)
            || on(hcr::UIE) && self.registers.iter().filter(in_use).count() <= 1
            || on(hcr::LRENPIE) && self.ended_elsewhere > 0
            || on(hcr::GROUP0_ENABLED_IE) && self.enables(false)
            || on(hcr::GROUP1_ENABLED_IE) && self.enables(true)
            || on(hcr::GROUP0_DISABLED_IE) && !self.enables(false)
            || on(hcr::GROUP1_DISABLED_IE) && !self.enables(true)
    }
}

fn priority(register: u64) -> u8 {
    (register >> lr::PRIORITY_SHIFT) as u8
}
