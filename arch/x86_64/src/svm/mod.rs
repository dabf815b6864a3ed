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
mod event;
mod exits;
mod nmi;
pub mod npt;
mod pcpu;
mod permissions;
mod vmcb;

use alloc::boxed::Box;

use pasidon_kernel::base::addr::HostPhys;

use crate::backend::{Backend, Event, Reason, Window};
use crate::emulate::{CpuState, SegmentState};
use crate::guest::boot::{EntryMode, EntryState};
use crate::guest::control::{self, ControlPolicy, ControlState, Cr4, Efer};

use nmi::NmiGate;
pub use pcpu::SvmPcpu;
use pcpu::{Asid, Assists, EFER_SVME};
use permissions::{IoPermissionMap, MsrPermissionMap};
use vmcb::{Segment, Vmcb, event::VALID, intercept, vintr};

/// PAT after reset: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// RFLAGS bit 1, always set.
const RFLAGS_FIXED: u64 = 1 << 1;
/// RFLAGS.TF.
const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.RF.
const RFLAGS_RF: u64 = 1 << 16;
const DR6_RESET: u64 = 0xffff_0ff0;
/// DR6.BS: a single step.
const DR6_BS: u64 = 1 << 14;
const DR7_RESET: u64 = 0x400;
/// DR7.GD: accesses to debug registers raise #DB. The processor clears it with every #DB.
const DR7_GD: u64 = 1 << 13;
/// Nested paging on (VMCB offset 090h).
const NP_ENABLE: u64 = 1;

/// Segment attributes: type, S, DPL, P, AVL, L, D/B, G.
mod attributes {
    /// Long mode code.
    pub const L: u16 = 1 << 9;
    /// 32-bit.
    pub const DB: u16 = 1 << 10;
    /// Execute/read, accessed, code, present, 32-bit, 4 KiB units.
    pub const CODE32: u16 = 0xc9b;
    /// Execute/read, accessed, code, present, 64-bit, 4 KiB units.
    pub const CODE64: u16 = 0xa9b;
    /// Read/write, accessed, data, present, 32-bit, 4 KiB units.
    pub const DATA: u16 = 0xc93;
    /// Busy 32/64-bit task state segment.
    pub const TSS: u16 = 0x8b;
    /// Local descriptor table.
    pub const LDT: u16 = 0x82;
}

/// Limit of a task state segment without an I/O map.
const TSS_LIMIT: u32 = 0x67;
/// One vCPU under SVM.
pub struct SvmVcpu {
    vmcb: Box<Vmcb>,
    registers: enter::Gprs,
    asid: Asid,
    assists: Assists,
    control: ControlPolicy,
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
    /// A vCPU whose guest-physical memory is the nested table at `stage2`, and that may write to control registers
    /// what `policy` allows. `tsc_offset` is added to the TSC that the guest reads.
    pub fn new(stage2: HostPhys, tsc_offset: u64, policy: ControlPolicy) -> Self {
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
            registers: [0; 16],
            asid: Asid::default(),
            assists: Assists::default(),
            control: policy,
            machine_checks: false,
            flush: false,
            nmi: NmiGate::default(),
            _io_map: io_map,
            _msr_map: msr_map,
        }
    }

    /// What the last exit interrupted while it was being delivered is delivered again.
    fn redeliver(&mut self) {
        let control = &mut self.vmcb.control;
        let info = control.exit_int_info;
        control.exit_int_info = 0;
        control.event_inj = event::redelivered(info).unwrap_or(0);
    }

    fn control_state(&self) -> ControlState {
        let save = &self.vmcb.save;
        ControlState { cr0: save.cr0, cr3: save.cr3, cr4: self.cr4(), efer: self.efer() }
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
        long: segment.attributes & attributes::L != 0,
        big: segment.attributes & attributes::DB != 0,
    }
}

const fn flat(selector: u16, attributes: u16) -> Segment {
    Segment { selector, attributes, limit: u32::MAX, base: 0 }
}

impl Backend for SvmVcpu {
    type Pcpu = SvmPcpu;

    fn start_at(&mut self, entry: &EntryState) {
        let save = &mut self.vmcb.save;
        let code = match entry.mode {
            EntryMode::Protected32 => attributes::CODE32,
            EntryMode::Long64 => attributes::CODE64,
        };
        save.cs = flat(entry.cs, code);
        for segment in [&mut save.ds, &mut save.es, &mut save.ss, &mut save.fs, &mut save.gs] {
            *segment = flat(entry.ds, attributes::DATA);
        }
        save.tr = Segment { selector: 0, attributes: attributes::TSS, limit: TSS_LIMIT, base: 0 };
        save.ldtr = Segment { selector: 0, attributes: attributes::LDT, limit: 0, base: 0 };
        let (base, limit) = entry.gdt.unwrap_or((0, 0));
        save.gdtr = Segment { base, limit: limit.into(), ..Segment::default() };
        save.cr0 = entry.cr0;
        save.cr3 = entry.cr3;
        save.efer = entry.efer | EFER_SVME;
        save.dr6 = DR6_RESET;
        save.dr7 = DR7_RESET;
        save.rflags = RFLAGS_FIXED;
        save.rip = entry.rip;
        save.g_pat = PAT_RESET;
        self.put_cr4(entry.cr4);
        self.registers = [0; 16];
        self.set_gpr(3, entry.rbx);
        self.set_gpr(6, entry.rsi);
    }

    fn load(&mut self, pcpu: &mut SvmPcpu) {
        pcpu.renew(&mut self.asid);
        self.vmcb.control.guest_asid = self.asid.number;
        self.assists = pcpu.assists;
    }

    fn enter(&mut self, pcpu: &mut SvmPcpu, flush: bool) -> Reason {
        let control = &mut self.vmcb.control;
        control.tlb_control = pcpu.take_tlb_control(flush | core::mem::take(&mut self.flush));
        // Nothing is cached between entries: the control block was changed in many places.
        control.clean_bits = 0;
        let vmcb = core::ptr::from_mut(&mut *self.vmcb) as u64;
        // SAFETY: `pcpu` exists only where SVM is on for this pCPU and holds its host VMCB; interrupts are
        // disabled here always; memory is mapped at its physical address, so the pointer is one.
        unsafe { enter::enter(vmcb, &raw mut self.registers, pcpu.host_vmcb.0) };
        // An event that was delivered is gone; one whose delivery was cut short is in EXITINTINFO.
        self.vmcb.control.event_inj = 0;
        self.redeliver();
        if self.nmi.left(&mut self.vmcb) {
            return Reason::InterruptWindow;
        }
        let reason = exits::reason(&self.vmcb, self.assists.decode);
        if matches!(reason, Reason::Failed(_)) {
            // Whether the flush that was asked for has been done before it failed, nobody says.
            pcpu.flush_all_next();
        }
        reason
    }

    fn state(&self) -> CpuState {
        let save = &self.vmcb.save;
        let mut gpr = self.registers;
        gpr[0] = save.rax;
        gpr[4] = save.rsp;
        CpuState {
            gpr,
            rip: save.rip,
            rflags: save.rflags,
            cr0: save.cr0,
            cr3: save.cr3,
            cr4: self.cr4(),
            efer: save.efer,
            cpl: save.cpl,
            cs: segment_state(&save.cs),
            ss: segment_state(&save.ss),
            ds: segment_state(&save.ds),
            es: segment_state(&save.es),
            fs: segment_state(&save.fs),
            gs: segment_state(&save.gs),
        }
    }

    fn set_state(&mut self, state: &CpuState) {
        self.registers = state.gpr;
        let save = &mut self.vmcb.save;
        save.rax = state.gpr[0];
        save.rsp = state.gpr[4];
        save.rip = state.rip;
        save.rflags = state.rflags;
    }

    fn gpr(&self, index: usize) -> u64 {
        match index {
            0 => self.vmcb.save.rax,
            4 => self.vmcb.save.rsp,
            _ => self.registers[index & 15],
        }
    }

    fn set_gpr(&mut self, index: usize, value: u64) {
        match index {
            0 => self.vmcb.save.rax = value,
            4 => self.vmcb.save.rsp = value,
            _ => self.registers[index & 15] = value,
        }
    }

    fn known_length(&self) -> Option<u8> {
        let control = &self.vmcb.control;
        let next = if control.exit_code == vmcb::exit_code::IOIO {
            control.exit_info2
        } else if self.assists.next_rip {
            control.next_rip
        } else {
            return None;
        };
        u8::try_from(next.wrapping_sub(self.vmcb.save.rip)).ok().filter(|length| (1..=15).contains(length))
    }

    fn skip(&mut self, length: u8) {
        let save = &mut self.vmcb.save;
        let next = save.rip.wrapping_add(length.into());
        save.rip = if save.cs.attributes & attributes::L != 0 && save.efer & Efer::LMA.bits() != 0 {
            next
        } else {
            next & u64::from(u32::MAX)
        };
        save.rflags &= !RFLAGS_RF;
        self.retire();
    }

    fn retire(&mut self) {
        let Vmcb { control, save } = &mut *self.vmcb;
        control.interrupt_shadow = 0;
        if save.rflags & RFLAGS_TF != 0 {
            save.dr6 |= DR6_BS;
            self.inject(Event::Exception(event::DEBUG_EXCEPTION));
        }
    }

    fn interruptible(&self) -> bool {
        self.vmcb.save.rflags & RFLAGS_IF != 0
            && self.vmcb.control.interrupt_shadow & 1 == 0
            && !self.has_event()
    }

    fn has_event(&self) -> bool {
        self.vmcb.control.event_inj & VALID != 0
    }

    fn inject(&mut self, event: Event) {
        match event {
            Event::Interrupt(_) => {}
            Event::Nmi => self.nmi.close(&mut self.vmcb),
            Event::Exception(exception) => {
                let save = &mut self.vmcb.save;
                if let Some(cr2) = exception.cr2 {
                    save.cr2 = cr2;
                }
                if event::is_fault(exception.vector) {
                    save.rflags |= RFLAGS_RF;
                }
                if exception == event::DEBUG_EXCEPTION {
                    save.dr7 &= !DR7_GD;
                }
            }
        }
        self.vmcb.control.event_inj = event::encode(event);
    }

    fn take_event(&mut self) -> Option<Event> {
        let event = event::decode(core::mem::take(&mut self.vmcb.control.event_inj));
        if event == Some(Event::Nmi) {
            self.nmi.reopen(&mut self.vmcb);
        }
        event
    }

    fn nmi_open(&self) -> bool {
        self.nmi == NmiGate::Open
    }

    fn hasten_nmi(&mut self) -> bool {
        self.nmi.hasten(&mut self.vmcb)
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

    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }

    fn cr2(&self) -> u64 {
        self.vmcb.save.cr2
    }

    fn cr4(&self) -> u64 {
        let mce = Cr4::MCE.bits();
        self.vmcb.save.cr4 & !mce | if self.machine_checks { mce } else { 0 }
    }

    fn set_cr4(&mut self, value: u64) -> bool {
        let old = self.cr4();
        let Ok(cr4) = self.control.cr4(value, &self.control_state()) else {
            return false;
        };
        self.put_cr4(cr4.bits());
        self.flush |= control::changes_translations(old, value);
        true
    }

    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl
    }

    fn efer(&self) -> u64 {
        self.vmcb.save.efer & !EFER_SVME
    }

    fn set_efer(&mut self, value: u64) -> bool {
        let Ok(efer) = self.control.efer(value, &self.control_state()) else {
            return false;
        };
        // Whether no-execute bits count is cached with translations.
        self.flush |= (value ^ self.vmcb.save.efer) & Efer::NXE.bits() != 0;
        self.vmcb.save.efer = efer.bits() | EFER_SVME;
        true
    }

    fn pat(&self) -> u64 {
        self.vmcb.save.g_pat
    }

    fn set_pat(&mut self, value: u64) -> bool {
        // UC, WC, WT, WP, WB, UC- (APM 2, table 7-9).
        let valid = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
        if valid {
            self.vmcb.save.g_pat = value;
        }
        valid
    }

    fn last_exit(&self) -> [u64; 4] {
        let control = &self.vmcb.control;
        [control.exit_code, control.exit_info1, control.exit_info2, self.vmcb.save.rip]
    }
}

#[cfg(test)]
mod tests;
