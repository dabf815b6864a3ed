// SPDX-License-Identifier: MIT OR Apache-2.0
//! AMD-V with nested paging.
//!
//! **Principle.** Intercept as little as possible: what a guest does to its own registers, page tables and
//! interrupt flag costs no exit. What leaves the VM (ports, most MSRs, device memory, CPUID, HLT) does.
//! **Invariant.** SVM itself is never the guest's: EFER.SVME reads as zero, and its instructions are
//! undefined.
//!
//! Source: AMD APM volume 2, chapter 15 "Secure Virtual Machine".

mod enter;
mod exits;
pub mod npt;
mod pcpu;
mod permissions;
mod vmcb;

use alloc::boxed::Box;

use pasidon_kernel::addr::HostPhys;

use crate::backend::{Backend, Event, Reason, Window};
use crate::emulate::{CpuState, Exception, SegmentState};
use crate::guest::boot::{EntryMode, EntryState};

pub use pcpu::SvmPcpu;
use pcpu::{Asid, EFER_SVME};
use permissions::{IoPermissionMap, MsrPermissionMap};
use vmcb::{Segment, Vmcb, event, intercept, vintr};

/// EFER bits that a guest may set (APM 2, 3.1.7).
mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// CR0.PG.
const CR0_PG: u64 = 1 << 31;
/// PAT after reset: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// RFLAGS bit 1, always set.
const RFLAGS_FIXED: u64 = 1 << 1;
/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.RF.
const RFLAGS_RF: u64 = 1 << 16;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;
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
/// Vectors below are exceptions.
const FIRST_INTERRUPT: u64 = 32;
const NMI_VECTOR: u64 = 2;

/// One vCPU under SVM.
pub struct SvmVcpu {
    vmcb: Box<Vmcb>,
    registers: enter::Registers,
    asid: Asid,
    next_rip_save: bool,
    _io_map: Box<IoPermissionMap>,
    _msr_map: Box<MsrPermissionMap>,
}

impl core::fmt::Debug for SvmVcpu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SvmVcpu")
            .field("rip", &self.vmcb.save.rip)
            .finish_non_exhaustive()
    }
}

impl SvmVcpu {
    /// A vCPU whose guest-physical memory is the nested table at `stage2`. `tsc_offset` is added to the TSC
    /// that the guest reads.
    pub fn new(stage2: HostPhys, tsc_offset: u64) -> Self {
        let mut vmcb = Vmcb::zeroed();
        let io_map = IoPermissionMap::all();
        let msr_map = MsrPermissionMap::switched_only();
        let control = &mut vmcb.control;
        control.intercept_exceptions = intercept::EXCEPTION_MC;
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
            next_rip_save: false,
            _io_map: io_map,
            _msr_map: msr_map,
        }
    }

    /// What the last exit interrupted while it was being delivered is delivered again.
    fn redeliver(&mut self) {
        let control = &mut self.vmcb.control;
        let info = control.exit_int_info;
        control.exit_int_info = 0;
        control.event_inj = redelivered(info).unwrap_or(0);
    }
}

/// The event to inject for one whose delivery was interrupted (EXITINTINFO); `None` where the guest will
/// raise it again by itself.
///
/// The type is taken from the vector where the two contradict: QEMU reports every event as an exception.
fn redelivered(info: u64) -> Option<u64> {
    if info & event::VALID == 0 {
        return None;
    }
    let vector = info & 0xff;
    const BREAKPOINT: u64 = 3;
    const OVERFLOW: u64 = 4;
    match info & event::TYPE_MASK {
        // RIP is still at the instruction, which runs again.
        event::TYPE_SOFTWARE => None,
        event::TYPE_EXCEPTION if matches!(vector, BREAKPOINT | OVERFLOW) => None,
        event::TYPE_EXCEPTION if vector >= FIRST_INTERRUPT => Some(event::VALID | event::TYPE_INTR | vector),
        event::TYPE_EXCEPTION if vector == NMI_VECTOR => Some(event::VALID | event::TYPE_NMI | vector),
        _ => Some(info),
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
    Segment {
        selector,
        attributes,
        limit: u32::MAX,
        base: 0,
    }
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
        for segment in [
            &mut save.ds,
            &mut save.es,
            &mut save.ss,
            &mut save.fs,
            &mut save.gs,
        ] {
            *segment = flat(entry.ds, attributes::DATA);
        }
        save.tr = Segment {
            selector: 0,
            attributes: attributes::TSS,
            limit: TSS_LIMIT,
            base: 0,
        };
        save.ldtr = Segment {
            selector: 0,
            attributes: attributes::LDT,
            limit: 0,
            base: 0,
        };
        let (base, limit) = entry.gdt.unwrap_or((0, 0));
        save.gdtr = Segment {
            base,
            limit: limit.into(),
            ..Segment::default()
        };
        save.cr0 = entry.cr0;
        save.cr3 = entry.cr3;
        save.cr4 = entry.cr4;
        save.efer = entry.efer | EFER_SVME;
        save.dr6 = DR6_RESET;
        save.dr7 = DR7_RESET;
        save.rflags = RFLAGS_FIXED;
        save.rip = entry.rip;
        save.g_pat = PAT_RESET;
        self.registers = [0; 16];
        self.set_gpr(3, entry.rbx);
        self.set_gpr(6, entry.rsi);
    }

    fn load(&mut self, pcpu: &mut SvmPcpu) {
        pcpu.renew(&mut self.asid);
        self.vmcb.control.guest_asid = self.asid.number;
        self.next_rip_save = pcpu.next_rip_save;
    }

    fn enter(&mut self, pcpu: &mut SvmPcpu, flush: bool) -> Reason {
        let control = &mut self.vmcb.control;
        control.tlb_control = pcpu.take_tlb_control(flush);
        // Nothing is cached between entries: the control block was changed in many places.
        control.clean_bits = 0;
        let vmcb = core::ptr::from_mut(&mut *self.vmcb) as u64;
        // SAFETY: `pcpu` exists only where SVM is on for this pCPU and holds its host VMCB; interrupts are
        // disabled here always; memory is mapped at its physical address, so the pointer is one.
        unsafe { enter::enter(vmcb, &raw mut self.registers, pcpu.host_vmcb.0) };
        // An event that was delivered is gone; one whose delivery was cut short is in EXITINTINFO.
        self.vmcb.control.event_inj = 0;
        self.redeliver();
        let reason = exits::reason(&self.vmcb);
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
            cr4: save.cr4,
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
        if save.rip != state.rip {
            self.vmcb.control.interrupt_shadow = 0;
        }
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
        } else if self.next_rip_save {
            control.next_rip
        } else {
            return None;
        };
        u8::try_from(next.wrapping_sub(self.vmcb.save.rip))
            .ok()
            .filter(|length| (1..=15).contains(length))
    }

    fn skip(&mut self, length: u8) {
        let save = &mut self.vmcb.save;
        let next = save.rip.wrapping_add(length.into());
        save.rip = if save.cs.attributes & attributes::L != 0 && save.efer & efer::LMA != 0 {
            next
        } else {
            next & u64::from(u32::MAX)
        };
        save.rflags &= !RFLAGS_RF;
        self.vmcb.control.interrupt_shadow = 0;
    }

    fn interruptible(&self) -> bool {
        self.vmcb.save.rflags & RFLAGS_IF != 0
            && self.vmcb.control.interrupt_shadow & 1 == 0
            && !self.has_event()
    }

    fn has_event(&self) -> bool {
        self.vmcb.control.event_inj & event::VALID != 0
    }

    fn inject(&mut self, event: Event) {
        self.vmcb.control.event_inj = event::VALID
            | match event {
                Event::Interrupt(vector) => event::TYPE_INTR | u64::from(vector),
                Event::Nmi => event::TYPE_NMI | NMI_VECTOR,
                Event::Exception(Exception {
                    vector,
                    error_code,
                    cr2,
                }) => {
                    if let Some(cr2) = cr2 {
                        self.vmcb.save.cr2 = cr2;
                    }
                    let code = error_code.map_or(0, |code| u64::from(code) << 32 | event::ERROR_CODE);
                    event::TYPE_EXCEPTION | u64::from(vector) | code
                }
            };
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

    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }

    fn cr2(&self) -> u64 {
        self.vmcb.save.cr2
    }

    fn cr4(&self) -> u64 {
        self.vmcb.save.cr4
    }

    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl
    }

    fn efer(&self) -> u64 {
        self.vmcb.save.efer & !EFER_SVME
    }

    fn set_efer(&mut self, value: u64) -> bool {
        const WRITABLE: u64 = efer::SCE | efer::LME | efer::NXE;
        let save = &mut self.vmcb.save;
        let paging = save.cr0 & CR0_PG != 0;
        if value & !(WRITABLE | efer::LMA) != 0 || (paging && (value ^ save.efer) & efer::LME != 0) {
            return false;
        }
        save.efer = value & WRITABLE | save.efer & efer::LMA | EFER_SVME;
        true
    }

    fn pat(&self) -> u64 {
        self.vmcb.save.g_pat
    }

    fn set_pat(&mut self, value: u64) -> bool {
        // UC, WC, WT, WP, WB, UC- (APM 2, table 7-9).
        let valid = value
            .to_le_bytes()
            .iter()
            .all(|kind| matches!(kind, 0 | 1 | 4..=7));
        if valid {
            self.vmcb.save.g_pat = value;
        }
        valid
    }

    fn last_exit(&self) -> [u64; 4] {
        let control = &self.vmcb.control;
        [
            control.exit_code,
            control.exit_info1,
            control.exit_info2,
            self.vmcb.save.rip,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vcpu() -> SvmVcpu {
        SvmVcpu::new(HostPhys(0x1000), 0)
    }

    #[test]
    fn a_guest_never_sees_svm_in_efer() {
        let mut vcpu = vcpu();
        assert!(!vcpu.set_efer(EFER_SVME), "reserved for it");
        assert!(vcpu.set_efer(efer::LME | efer::NXE));
        assert_eq!(vcpu.efer(), efer::LME | efer::NXE);
        assert_ne!(vcpu.vmcb.save.efer & EFER_SVME, 0, "VMRUN demands it");
        vcpu.vmcb.save.cr0 = CR0_PG;
        assert!(!vcpu.set_efer(efer::NXE), "LME is fixed while paging is on");
        assert!(vcpu.set_efer(efer::LME | efer::SCE));
    }

    #[test]
    fn pat_types_that_do_not_exist_are_refused() {
        let mut vcpu = vcpu();
        assert!(!vcpu.set_pat(2) && !vcpu.set_pat(8 << 56));
        assert!(vcpu.set_pat(PAT_RESET));
        assert_eq!(vcpu.pat(), PAT_RESET);
    }

    #[test]
    fn what_was_cut_short_is_delivered_again() {
        let valid = |kind, vector| event::VALID | kind | vector;
        for (info, again) in [
            (0, None),
            (valid(event::TYPE_INTR, 0x31), Some(valid(event::TYPE_INTR, 0x31))),
            (
                valid(event::TYPE_EXCEPTION, 0x31),
                Some(valid(event::TYPE_INTR, 0x31)),
            ),
            (valid(event::TYPE_EXCEPTION, 2), Some(valid(event::TYPE_NMI, 2))),
            (
                valid(event::TYPE_EXCEPTION, 14) | event::ERROR_CODE | 7 << 32,
                Some(valid(event::TYPE_EXCEPTION, 14) | event::ERROR_CODE | 7 << 32),
            ),
            (valid(event::TYPE_SOFTWARE, 0x80), None),
            (valid(event::TYPE_EXCEPTION, 3), None),
        ] {
            assert_eq!(redelivered(info), again, "{info:#x}");
        }
    }

    #[test]
    fn skipping_wraps_outside_of_long_mode_and_ends_the_shadow() {
        let mut vcpu = vcpu();
        vcpu.vmcb.save.rip = 0xffff_ffff;
        vcpu.vmcb.control.interrupt_shadow = 1;
        vcpu.vmcb.save.rflags = RFLAGS_IF | RFLAGS_FIXED;
        assert!(!vcpu.interruptible());
        vcpu.skip(2);
        assert_eq!(vcpu.vmcb.save.rip, 1);
        assert!(vcpu.interruptible());
        vcpu.inject(Event::Nmi);
        assert!(!vcpu.interruptible());
    }
}
