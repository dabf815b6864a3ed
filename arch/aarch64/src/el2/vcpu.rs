// SPDX-License-Identifier: MIT OR Apache-2.0
//! One vCPU at EL1, and the processor that runs it.

use core::arch::asm;

use pasidon_kernel::base::addr::HostPhys;

use super::context::{Context, Stage1Loaded, SystemContext};
use super::interface::{Capabilities, Interface};
use super::vmid::{Forgotten, Vmid};
use super::{control, enter, exits, identification, traps};
use crate::features::Features;
use crate::guest::boot::EntryState;
use crate::guest::exception::{self, Exception, Interrupted};
use crate::guest::gic::{Control, LIST_REGISTERS_MAX};
use crate::guest::timer::VirtualCount;
use crate::guest::walk::Stage1;
use crate::system_register::SystemRegister;

/// The VMID that no VM has.
const NOBODY: u16 = 0;

/// EL2 on one pCPU, ready for guests.
#[derive(Debug)]
pub struct El2Pcpu {
    /// VTTBR_EL2 while no guest is loaded: a table that maps nothing. A processor may walk EL1's tables
    /// speculatively whenever stage 2 is on, and must not find what is at physical address 0.
    nobody: u64,
    vhe: bool,
    /// It has VDISR_EL2.
    ras: bool,
    interface: Capabilities,
}

impl El2Pcpu {
    /// Sets up the pCPU that calls.
    ///
    /// # Safety
    /// HCR_EL2 is the hypervisor's own, and no guest is loaded. `empty` is a page of zeroes that stays one.
    pub unsafe fn enable(features: &Features, empty: HostPhys) -> Self {
        let nobody = traps::vttbr(empty.0, NOBODY);
        let vtcr = traps::vtcr(features.physical_size() as u8, features.vmid_16);
        // SAFETY: at EL2; nothing of this concerns the hypervisor, which is at EL2 always.
        unsafe {
            asm!(
                // The table's zeroes are there before a walk is.
                "dsb ishst",
                "msr vttbr_el2, {nobody}",
                "msr vtcr_el2, {vtcr}",
                "msr cntvoff_el2, xzr",
                "isb",
                nobody = in(reg) nobody,
                vtcr = in(reg) vtcr,
                options(nostack, preserves_flags)
            );
            control::program(features);
        }
        Self {
            nobody,
            vhe: features.vhe,
            ras: traps::RAS.is_met(&identification::read),
            interface: Capabilities::read(),
        }
    }

    /// How many list registers it has.
    pub fn list_registers(&self) -> usize {
        self.interface.list_registers
    }
}

macro_rules! live {
    (read $vhe:expr, $e2h:literal $plain:literal) => {{
        let value: u64;
        // SAFETY: reading it changes nothing.
        unsafe {
            if $vhe {
                asm!(concat!("mrs {}, ", $e2h), out(reg) value, options(nomem, nostack, preserves_flags));
            } else {
                asm!(concat!("mrs {}, ", $plain), out(reg) value, options(nomem, nostack, preserves_flags));
            }
        }
        value
    }};
    (write $vhe:expr, $e2h:literal $plain:literal, $value:expr) => {
        // SAFETY: EL1's own; nothing of the hypervisor's depends on it.
        unsafe {
            if $vhe {
                asm!(concat!("msr ", $e2h, ", {}"), in(reg) $value, options(nostack, preserves_flags));
            } else {
                asm!(concat!("msr ", $plain, ", {}"), in(reg) $value, options(nostack, preserves_flags));
            }
        }
    };
}

/// One vCPU.
#[derive(Debug)]
pub struct El2Vcpu {
    /// Its registers, as they were at the last exit.
    pub context: Context,
    system: SystemContext,
    interface: Interface,
    vttbr: u64,
    mpidr: u64,
    /// VDISR_EL2, which a guest has as DISR_EL1.
    vdisr: u64,
    /// What its virtual count is.
    virtual_count: VirtualCount,
    vhe: bool,
}

impl El2Vcpu {
    /// A vCPU before its first instruction. `stage2` is the root of its VM's stage 2, `mpidr` what it reads as its
    /// own affinity, `virtual_count` its VM's.
    pub fn new(
        entry: &EntryState,
        stage2: HostPhys,
        vmid: &Vmid,
        mpidr: u64,
        virtual_count: VirtualCount,
        vhe: bool,
    ) -> Self {
        Self {
            context: Context::new(entry),
            system: SystemContext { sctlr: entry.sctlr, ..SystemContext::default() },
            interface: Interface::default(),
            vttbr: traps::vttbr(stage2.0, vmid.number()),
            mpidr,
            vdisr: 0,
            virtual_count,
            vhe,
        }
    }

    /// Puts it on the pCPU, for a turn.
    ///
    /// # Safety
    /// On the pCPU that `pcpu` is of, on which no other vCPU is loaded.
    pub unsafe fn load(&mut self, pcpu: &El2Pcpu) {
        let midr: u64;
        // SAFETY: by the caller's promise; these say what the guest is, not what the hypervisor is.
        unsafe {
            asm!("mrs {}, midr_el1", out(reg) midr, options(nomem, nostack, preserves_flags));
            asm!(
                "msr vpidr_el2, {midr}",
                "msr vmpidr_el2, {mpidr}",
                "msr cntvoff_el2, {offset}",
                midr = in(reg) midr,
                mpidr = in(reg) self.mpidr,
                offset = in(reg) self.virtual_count.offset(),
                options(nostack, preserves_flags)
            );
            if pcpu.ras {
                asm!("msr S3_4_C12_C1_1, {}", in(reg) self.vdisr, options(nostack, preserves_flags));
            }
            self.interface.load(pcpu.interface);
            let loaded = self.system.load(pcpu.vhe);
            self.choose_stage2(&loaded);
        }
    }

    /// From here on, what EL1's registers say is walked through this VM's stage 2.
    fn choose_stage2(&self, _stage1: &Stage1Loaded) {
        // SAFETY: the table is of the VM whose registers are loaded.
        unsafe { asm!("msr vttbr_el2, {}", "isb", in(reg) self.vttbr, options(nostack, preserves_flags)) };
    }

    /// Takes it off again.
    ///
    /// # Safety
    /// It is loaded on this pCPU.
    pub unsafe fn unload(&mut self, pcpu: &El2Pcpu) {
        self.system.save(pcpu.vhe);
        // SAFETY: by the caller's promise. A timer that is on would raise its interrupt for nobody.
        unsafe {
            self.interface.save(pcpu.interface);
            if pcpu.vhe {
                asm!("msr S3_5_C14_C3_1, xzr", options(nostack, preserves_flags));
            } else {
                asm!("msr cntv_ctl_el0, xzr", options(nostack, preserves_flags));
            }
            if pcpu.ras {
                asm!("mrs {}, S3_4_C12_C1_1", out(reg) self.vdisr, options(nomem, nostack, preserves_flags));
            }
            // EL1's registers stay until the next vCPU's come: no walk finds anything meanwhile.
            asm!("msr vttbr_el2, {}", "isb", in(reg) pcpu.nobody, options(nostack, preserves_flags));
        }
    }

    /// Runs the guest until something happens. `list_registers` and `control` are for its virtual CPU interface; the
    /// registers in use come back as the guest left them, with ICH_HCR_EL2.
    ///
    /// # Safety
    /// It is loaded on this pCPU; IRQs are masked.
    pub unsafe fn enter(
        &mut self,
        pcpu: &El2Pcpu,
        list_registers: &mut [u64; LIST_REGISTERS_MAX],
        control: Control,
    ) -> (exits::Reason, u64) {
        let registers = &mut list_registers[..pcpu.interface.list_registers];
        // SAFETY: by the caller's promise, and GICv3 system registers are a condition of the start.
        let (vector, hcr) = unsafe {
            self.interface.lend(registers, control);
            let vector = enter::enter(&mut self.context);
            (vector, self.interface.take_back(registers))
        };
        let Context { esr, far, hpfar, .. } = self.context;
        (exits::reason(vector, esr, far, hpfar), hcr)
    }

    /// Has the guest take an exception, at the instruction that it is at. It is loaded.
    pub fn take_exception(&mut self, exception: Exception) {
        /// ID_AA64MMFR1_EL1.PAN.
        const PAN: u64 = 0xf << 20;
        let vhe = self.vhe;
        let mmfr1 = identification::read(SystemRegister::new(3, 0, 0, 7, 1));
        let from = Interrupted {
            pc: self.context.pc,
            pstate: self.context.pstate,
            vbar: live!(read vhe, "S3_5_C12_C0_0" "vbar_el1"),
            sctlr: live!(read vhe, "S3_5_C1_C0_0" "sctlr_el1"),
            long_instruction: self.context.is_long(),
        };
        let entered = exception::enter(exception, &from, mmfr1 & PAN != 0);
        self.context.pc = entered.pc;
        self.context.pstate = entered.pstate;
        live!(write vhe, "S3_5_C4_C0_1" "elr_el1", entered.elr);
        live!(write vhe, "S3_5_C4_C0_0" "spsr_el1", entered.spsr);
        live!(write vhe, "S3_5_C5_C2_0" "esr_el1", entered.esr);
        if let Some(far) = entered.far {
            live!(write vhe, "S3_5_C6_C0_0" "far_el1", far);
        }
    }

    /// CNTV_CTL_EL0 as it is. It is loaded.
    pub fn timer_control(&self) -> u64 {
        live!(read self.vhe, "S3_5_C14_C3_1" "cntv_ctl_el0")
    }

    /// Sets MDSCR_EL1. It is loaded.
    pub fn set_debug_control(&self, value: u64) {
        live!(write false, "mdscr_el1" "mdscr_el1", value);
    }

    /// The stack pointer of EL1. It is loaded.
    pub fn sp_el1(&self) -> u64 {
        live!(read false, "sp_el1" "sp_el1")
    }

    /// Sets it. It is loaded.
    pub fn set_sp_el1(&self, value: u64) {
        live!(write false, "sp_el1" "sp_el1", value);
    }

    /// Whether HCR_EL2.E2H is set where it runs.
    pub fn has_vhe(&self) -> bool {
        self.vhe
    }

    /// The stage 1 of the vCPU that is loaded. `vhe` as in [`El2Vcpu::has_vhe`].
    pub fn stage1(vhe: bool) -> Stage1 {
        Stage1 {
            sctlr: live!(read vhe, "S3_5_C1_C0_0" "sctlr_el1"),
            tcr: live!(read vhe, "S3_5_C2_C0_2" "tcr_el1"),
            ttbr0: live!(read vhe, "S3_5_C2_C0_0" "ttbr0_el1"),
            ttbr1: live!(read vhe, "S3_5_C2_C0_1" "ttbr1_el1"),
        }
    }

    /// Drops its VM's translations on all processors. It is loaded.
    pub fn forget_translations(&self) {
        // SAFETY: dropping translations changes nothing but what the guest may not use any more.
        unsafe {
            asm!("dsb ishst", "tlbi vmalls12e1is", "dsb ish", "isb", options(nostack, preserves_flags));
        }
    }

    /// What its virtual count is.
    pub fn virtual_count(&self) -> VirtualCount {
        self.virtual_count
    }

    /// Its virtual count stood still for so many counts since its VM's start. It is not loaded.
    pub fn stood_still(&mut self, counts: u64) {
        self.virtual_count.stood_still(counts);
    }

    /// ICH_VMCR_EL2 as the guest left it.
    pub fn vmcr(&self) -> u64 {
        self.interface.vmcr
    }

    /// CNTV_CVAL_EL0 as it is. It is loaded.
    pub fn timer_compare(&self) -> u64 {
        live!(read self.vhe, "S3_5_C14_C3_2" "cntv_cval_el0")
    }
}

/// Drops all translations of a VM on all processors, and waits.
///
/// # Safety
/// At EL2, with no guest loaded on this processor.
pub unsafe fn forget(vmid: &Vmid) -> Forgotten {
    // SAFETY: by the caller's promise. The invalidation is for the VMID in VTTBR_EL2, and goes to all processors.
    unsafe {
        asm!(
            "mrs {nobody}, vttbr_el2",
            "orr {of}, {of}, {nobody}",
            "msr vttbr_el2, {of}",
            "isb",
            "dsb ishst",
            "tlbi vmalls12e1is",
            "dsb ish",
            "isb",
            "msr vttbr_el2, {nobody}",
            "isb",
            nobody = out(reg) _,
            of = inout(reg) traps::vttbr(0, vmid.number()) => _,
            options(nostack, preserves_flags)
        );
    }
    Forgotten::confirmed(vmid)
}
