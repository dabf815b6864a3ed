// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of a vCPU that only its pCPU touches: registers, list registers, virtual timer.

use alloc::string::String;

use pasidon_arch_common::view::VmView;

use crate::el2::own_vmid::OwnVmid;
use crate::el2::{El2Vcpu, debug};
use crate::guest::chipset::ArmChipset;
use crate::guest::exception::Exception;
use crate::guest::gic::{Control, LIST_REGISTERS_MAX, VCpuInterface};
use crate::guest::sysreg::SystemRegisters;
use crate::guest::timer::VirtualTimer;

/// The number of the only vCPU.
pub(crate) const VCPU: u16 = 0;

/// The VM as a vCPU sees it.
pub type Vm<'a> = VmView<'a, ArmChipset>;

/// One vCPU.
#[derive(Debug)]
pub struct Core {
    pub(crate) hardware: El2Vcpu,
    pub(crate) system_registers: SystemRegisters,
    pub(crate) timer: VirtualTimer,
    /// Given back when it is dropped.
    _vmid: OwnVmid,
    pub(crate) list_registers: [u64; LIST_REGISTERS_MAX],
    /// How many of them the processor has.
    pub(crate) count: usize,
    /// ICH_HCR_EL2 for the entry, and what it was at the exit, with the list registers that are in use.
    pub(crate) control: Control,
    pub(crate) waiting: bool,
    /// The processor has its breakpoints and watchpoints.
    pub(crate) points_loaded: bool,
    /// An exception that it takes at the next entry.
    pub(crate) exception: Option<Exception>,
    /// Accesses to devices that were refused.
    pub(crate) refused: u64,
}

impl Core {
    /// A vCPU before its first instruction.
    pub fn new(
        vm: &str,
        hardware: El2Vcpu,
        vmid: OwnVmid,
        chipset: &mut ArmChipset,
        timer_intid: u16,
    ) -> Self {
        Self {
            hardware,
            system_registers: SystemRegisters::new(String::from(vm)),
            timer: VirtualTimer::new(chipset.gic(), VCPU, timer_intid),
            _vmid: vmid,
            list_registers: [0; LIST_REGISTERS_MAX],
            count: 1,
            control: Control::default(),
            waiting: false,
            points_loaded: false,
            exception: None,
            refused: 0,
        }
    }

    /// What the guest has set of its CPU interface.
    pub(crate) fn interface(&self) -> VCpuInterface {
        VCpuInterface { vmcr: self.hardware.vmcr() }
    }

    /// Its breakpoints and watchpoints go into the processor, until it leaves that.
    pub(crate) fn load_points(&mut self) {
        self.points_loaded = true;
        debug::load(self.system_registers.debug());
    }

    /// The list registers go back to the interrupt controller.
    pub(crate) fn take_back(&mut self, vm: &Vm<'_>) {
        let mut board = vm.board.lock();
        board.chipset.gic().sync(VCPU, &self.list_registers[..self.control.used], self.control.hcr);
        let _ = board.chipset.take_wakes();
    }
}
