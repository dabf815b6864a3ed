// SPDX-License-Identifier: MIT OR Apache-2.0
//! AMD-V with nested paging.
//!
//! **Principle.** Intercept as little as possible: what a guest does to its own registers, page tables and
//! interrupt flag costs no exit. What leaves the VM (ports, most MSRs, device memory, CPUID, HLT) does, and CR4,
//! which turns on what nobody switches between guests.
//! **Invariants.** SVM itself is never the guest's: EFER.SVME reads as zero, and its instructions are
//! undefined. Machine checks are never the guest's: CR4.MCE is set while it runs, whatever it sees there. No exception
//! that can happen while it is being delivered (#DB, #AC) is delivered without an exit in between, or a guest could
//! keep its processor from ever taking an interrupt (CVE-2015-5307, CVE-2015-8104).
//!
//! Source: AMD APM volume 2, chapter 15 "Secure Virtual Machine".

mod enter;
mod exits;
mod nmi;
pub mod npt;
mod pcpu;
mod permissions;
mod vmcb;

use alloc::boxed::Box;

use pasidon_kernel::base::addr::HostPhys;

use crate::backend::segment::{self, Segment};
use crate::backend::vcpu::{DR6_RESET, DR7_RESET};
use crate::backend::{Backend, Context, Reason, Window, event};
use crate::cpu::PAT_AFTER_RESET;
use crate::emulate::{CpuState, SegmentState};
use crate::guest::boot::EntryState;
use crate::guest::control::{ControlState, Cr4, Efer};

use nmi::NmiGate;
pub use pcpu::SvmPcpu;
use pcpu::{Asid, Assists, EFER_SVME};
use permissions::{IoPermissionMap, MsrPermissionMap};
use vmcb::{Vmcb, intercept, vintr};

/// Places of general registers that the VMCB holds.
const RAX: usize = 0;
const RSP: usize = 4;
/// Nested paging on (VMCB offset 090h).
const NP_ENABLE: u64 = 1;

/// The control block of one vCPU under SVM.
pub struct SvmVcpu {
    vmcb: Box<Vmcb>,
    asid: Asid,
    assists: Assists,
    /// CR4.MCE as the guest set it.
    machine_checks: bool,
    /// Translations are dropped at the next entry.
    flush: bool,
    nmi: NmiGate,
    _io_map: Box<IoPermissionMap>,
    _msr_map: Box<MsrPermissionMap>,
}

impl core::fmt::Debug for SvmVcpu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SvmVcpu").field("rip", &self.vmcb.save.rip).finish_non_exhaustive()
    }
}

impl SvmVcpu {
    /// For a vCPU whose guest-physical memory is the nested table at `stage2`. `tsc_offset` is added to the TSC that the
    /// guest reads.
    pub fn new(stage2: HostPhys, tsc_offset: u64) -> Self {
        let mut vmcb = Vmcb::zeroed();
        let io_map = IoPermissionMap::all();
        let msr_map = MsrPermissionMap::switched_only();
        let control = &mut vmcb.control;
        control.intercept_cr = intercept::CR4_READ | intercept::CR4_WRITE;
        control.intercept_exceptions =
            intercept::EXCEPTION_DB | intercept::EXCEPTION_AC | intercept::EXCEPTION_MC;
        control.intercept_misc1 = intercept::INTR
            | intercept::NMI
            | intercept::SMI
            | intercept::INIT
            | intercept::RDPMC
            | intercept::CPUID
            | intercept::INVD
            | intercept::HLT
            | intercept::INVLPGA
            | intercept::IOIO_PROT
            | intercept::MSR_PROT
            | intercept::SHUTDOWN;
        control.intercept_misc2 = intercept::VMRUN
            | intercept::VMMCALL
            | intercept::VMLOAD
            | intercept::VMSAVE
            | intercept::STGI
            | intercept::CLGI
            | intercept::SKINIT
            | intercept::WBINVD
            | intercept::MONITOR
            | intercept::MWAIT
            | intercept::XSETBV
            | intercept::RDPRU;
        control.iopm_base_pa = core::ptr::from_ref(&*io_map) as u64;
        control.msrpm_base_pa = core::ptr::from_ref(&*msr_map) as u64;
        control.tsc_offset = tsc_offset;
        control.vintr = vintr::V_INTR_MASKING;
        control.nested_ctl = NP_ENABLE;
        control.n_cr3 = stage2.0;
        Self {
            vmcb,
            asid: Asid::default(),
            assists: Assists::default(),
            machine_checks: false,
            flush: false,
            nmi: NmiGate::default(),
            _io_map: io_map,
            _msr_map: msr_map,
        }
    }

    /// Writes CR4 as the guest wants it.
    fn put_cr4(&mut self, value: u64) {
        self.machine_checks = value & Cr4::MCE.bits() != 0;
        self.vmcb.save.cr4 = value | Cr4::MCE.bits();
    }
}

fn segment_state(segment: &Segment) -> SegmentState {
    SegmentState {
        base: segment.base,
        limit: segment.limit,
        long: segment.attributes & segment::L != 0,
        big: segment.attributes & segment::DB != 0,
    }
}

impl Backend for SvmVcpu {
    type Pcpu = SvmPcpu;

    fn start_at(&mut self, entry: &EntryState) {
        let save = &mut self.vmcb.save;
        save.cs = segment::code(entry);
        for data in [&mut save.ds, &mut save.es, &mut save.ss, &mut save.fs, &mut save.gs] {
            *data = segment::data(entry);
        }
        save.tr = segment::TASK;
        save.ldtr = segment::NO_LDT;
        let (base, limit) = entry.gdt.unwrap_or((0, 0));
        save.gdtr = Segment { base, limit: limit.into(), ..Segment::default() };
        save.idtr = Segment::default();
        save.cr0 = entry.cr0;
        save.cr3 = entry.cr3;
        save.efer = entry.efer | EFER_SVME;
        save.dr6 = DR6_RESET;
        save.dr7 = DR7_RESET;
        save.g_pat = PAT_AFTER_RESET;
        self.put_cr4(entry.cr4);
    }

    fn load(&mut self, pcpu: &mut SvmPcpu) {
        pcpu.renew(&mut self.asid);
        self.vmcb.control.guest_asid = self.asid.number;
        self.assists = pcpu.assists;
    }

    fn unload(&mut self, _pcpu: &mut SvmPcpu) {}

    fn enter(&mut self, pcpu: &mut SvmPcpu, context: &mut Context, flush: bool) -> Reason {
        let Vmcb { control, save } = &mut *self.vmcb;
        control.tlb_control = pcpu.take_tlb_control(flush | core::mem::take(&mut self.flush));
        // Nothing is cached between entries: the control block was changed in many places.
        control.clean_bits = 0;
        control.event_inj = context.event.take().map_or(0, event::encode);
        save.rax = context.gpr[RAX];
        save.rsp = context.gpr[RSP];
        save.rip = context.rip;
        save.rflags = context.rflags;
        let vmcb = core::ptr::from_mut(&mut *self.vmcb) as u64;
        // SAFETY: `pcpu` exists only where SVM is on for this pCPU and holds its host VMCB; interrupts are
        // disabled here always; memory is mapped at its physical address, so the pointer is one.
        unsafe { enter::enter(&raw mut context.gpr, vmcb, pcpu.host_vmcb.0) };
        let Vmcb { control, save } = &mut *self.vmcb;
        context.gpr[RAX] = save.rax;
        context.gpr[RSP] = save.rsp;
        context.rip = save.rip;
        context.rflags = save.rflags;
        // An event that was delivered is gone; one whose delivery was cut short is in EXITINTINFO.
        context.event = event::redelivered(control.exit_int_info);
        if self.nmi.left(&mut self.vmcb, context) {
            return Reason::InterruptWindow;
        }
        let reason = exits::reason(&self.vmcb, self.assists.decode);
        if matches!(reason, Reason::Failed(_)) {
            // Whether the flush that was asked for has been done before it failed, nobody says.
            pcpu.flush_all_next();
        }
        reason
    }

    fn state(&self, context: &Context) -> CpuState {
        let save = &self.vmcb.save;
        let mut state = CpuState {
            gpr: context.gpr,
            rip: context.rip,
            rflags: context.rflags,
            cr0: save.cr0,
            cr3: save.cr3,
            cr4: self.cr4(),
            efer: save.efer & !EFER_SVME,
            cpl: save.cpl,
            cs: SegmentState { long: self.cs_long(), ..SegmentState::default() },
            ..CpuState::default()
        };
        if state.is_64bit() {
            (state.fs.base, state.gs.base) = (save.fs.base, save.gs.base);
        } else {
            state.cs = segment_state(&save.cs);
            state.ss = segment_state(&save.ss);
            state.ds = segment_state(&save.ds);
            state.es = segment_state(&save.es);
            state.fs = segment_state(&save.fs);
            state.gs = segment_state(&save.gs);
        }
        state
    }

    fn known_length(&self, context: &Context) -> Option<u8> {
        let control = &self.vmcb.control;
        let next = if control.exit_code == vmcb::exit_code::IOIO {
            control.exit_info2
        } else if self.assists.next_rip {
            control.next_rip
        } else {
            return None;
        };
        u8::try_from(next.wrapping_sub(context.rip)).ok().filter(|length| (1..=15).contains(length))
    }

    fn cs_long(&self) -> bool {
        self.vmcb.save.cs.attributes & segment::L != 0
    }

    fn is_64bit(&self) -> bool {
        self.cs_long() && self.vmcb.save.efer & Efer::LMA.bits() != 0
    }

    fn shadow(&self) -> bool {
        self.vmcb.control.interrupt_shadow & 1 != 0
    }

    fn end_shadow(&mut self) {
        self.vmcb.control.interrupt_shadow = 0;
    }

    fn close_nmi(&mut self) {
        self.nmi.close(&mut self.vmcb);
    }

    fn reopen_nmi(&mut self) {
        self.nmi.reopen(&mut self.vmcb);
    }

    fn nmi_open(&self) -> bool {
        self.nmi == NmiGate::Open
    }

    fn hasten_nmi(&mut self, context: &mut Context) -> bool {
        self.nmi.hasten(&mut self.vmcb, context)
    }

    fn request_window(&mut self, window: Option<Window>) {
        let control = &mut self.vmcb.control;
        control.vintr &= !(vintr::V_IRQ | vintr::V_IGN_TPR | vintr::V_INTR_PRIO);
        control.intercept_misc1 &= !intercept::VINTR;
        let Some(window) = window else { return };
        control.intercept_misc1 |= intercept::VINTR;
        control.vintr |= vintr::V_IRQ
            | match window {
                Window::Enabled => vintr::V_IGN_TPR,
                Window::Class(class) => u64::from(class & 15) << vintr::V_INTR_PRIO_SHIFT,
            };
    }

    fn cr8(&self) -> u8 {
        (self.vmcb.control.vintr & vintr::V_TPR) as u8
    }

    fn set_cr8(&mut self, class: u8) {
        let control = &mut self.vmcb.control;
        control.vintr = control.vintr & !vintr::V_TPR | u64::from(class) & vintr::V_TPR;
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.control.tsc_offset = offset;
    }

    fn cr2(&self) -> u64 {
        self.vmcb.save.cr2
    }

    fn set_cr2(&mut self, value: u64) {
        self.vmcb.save.cr2 = value;
    }

    fn dr6(&self) -> u64 {
        self.vmcb.save.dr6
    }

    fn set_dr6(&mut self, value: u64) {
        self.vmcb.save.dr6 = value;
    }

    fn dr7(&self) -> u64 {
        self.vmcb.save.dr7
    }

    fn set_dr7(&mut self, value: u64) {
        self.vmcb.save.dr7 = value;
    }

    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl
    }

    fn cr4(&self) -> u64 {
        let mce = Cr4::MCE.bits();
        self.vmcb.save.cr4 & !mce | if self.machine_checks { mce } else { 0 }
    }

    fn control(&self) -> ControlState {
        let save = &self.vmcb.save;
        ControlState { cr0: save.cr0, cr3: save.cr3, cr4: self.cr4(), efer: save.efer & !EFER_SVME }
    }

    fn set_control(&mut self, value: &ControlState, flush: bool) {
        self.vmcb.save.cr0 = value.cr0;
        self.put_cr4(value.cr4);
        self.vmcb.save.efer = value.efer | EFER_SVME;
        self.flush |= flush;
    }

    fn holds_pdptes(&self) -> bool {
        false
    }

    fn set_pdptes(&mut self, _entries: [u64; 4]) {}

    fn pat(&self) -> u64 {
        self.vmcb.save.g_pat
    }

    fn set_pat(&mut self, value: u64) {
        self.vmcb.save.g_pat = value;
    }

    fn last_exit(&self) -> [u64; 3] {
        let control = &self.vmcb.control;
        [control.exit_code, control.exit_info1, control.exit_info2]
    }
}

#[cfg(test)]
mod tests;
