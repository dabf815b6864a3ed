// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual machine control block: what VMRUN reads and #VMEXIT writes.
//!
//! Layout and names: AMD64 Architecture Programmer's Manual vol. 2, appendix B. Offsets are checked at
//! compile time, so a wrong field order does not build.

use alloc::boxed::Box;
use core::mem::offset_of;

use crate::backend::segment::Segment;

/// Intercept bits of the words at offsets 000h–010h (APM 2, table B-1).
pub mod intercept {
    /// Vector 3 (offset 00Ch): physical interrupt.
    pub const INTR: u32 = 1 << 0;
    /// Physical NMI.
    pub const NMI: u32 = 1 << 1;
    /// System management interrupt.
    pub const SMI: u32 = 1 << 2;
    /// INIT.
    pub const INIT: u32 = 1 << 3;
    /// Virtual interrupt about to be taken (the interrupt window).
    pub const VINTR: u32 = 1 << 4;
    /// RDPMC.
    pub const RDPMC: u32 = 1 << 15;
    /// CPUID.
    pub const CPUID: u32 = 1 << 18;
    /// IRET, before it is carried out.
    pub const IRET: u32 = 1 << 20;
    /// INVD, which would drop other guests' dirty lines.
    pub const INVD: u32 = 1 << 22;
    /// HLT.
    pub const HLT: u32 = 1 << 24;
    /// INVLPGA.
    pub const INVLPGA: u32 = 1 << 26;
    /// Port I/O by the permission map.
    pub const IOIO_PROT: u32 = 1 << 27;
    /// RDMSR and WRMSR by the permission map.
    pub const MSR_PROT: u32 = 1 << 28;
    /// Shutdown (triple fault).
    pub const SHUTDOWN: u32 = 1 << 31;

    /// Vector 4 (offset 010h): VMRUN; architecture demands it.
    pub const VMRUN: u32 = 1 << 0;
    /// VMMCALL.
    pub const VMMCALL: u32 = 1 << 1;
    /// VMLOAD.
    pub const VMLOAD: u32 = 1 << 2;
    /// VMSAVE.
    pub const VMSAVE: u32 = 1 << 3;
    /// STGI.
    pub const STGI: u32 = 1 << 4;
    /// CLGI.
    pub const CLGI: u32 = 1 << 5;
    /// SKINIT.
    pub const SKINIT: u32 = 1 << 6;
    /// WBINVD and WBNOINVD, which would empty the caches of all, for milliseconds.
    pub const WBINVD: u32 = 1 << 9;
    /// MONITOR.
    pub const MONITOR: u32 = 1 << 10;
    /// MWAIT.
    pub const MWAIT: u32 = 1 << 11;
    /// XSETBV.
    pub const XSETBV: u32 = 1 << 13;
    /// RDPRU, which reads counters of the pCPU without RDMSR.
    pub const RDPRU: u32 = 1 << 14;

    /// Exception #DB (bit of the exception word at offset 008h).
    pub const EXCEPTION_DB: u32 = 1 << 1;
    /// Exception #AC.
    pub const EXCEPTION_AC: u32 = 1 << 17;
    /// Exception #MC.
    pub const EXCEPTION_MC: u32 = 1 << 18;

    /// Reads of CR4 (bit of the word at offset 000h).
    pub const CR4_READ: u32 = 1 << 4;
    /// Writes of CR4.
    pub const CR4_WRITE: u32 = 1 << 20;
}

/// Exit codes (APM 2, appendix C).
pub mod exit_code {
    /// Read of CR4.
    pub const CR4_READ: u64 = 0x04;
    /// Write of CR4.
    pub const CR4_WRITE: u64 = 0x14;
    /// #DB.
    pub const EXCEPTION_DB: u64 = 0x41;
    /// #AC.
    pub const EXCEPTION_AC: u64 = 0x51;
    /// #MC.
    pub const EXCEPTION_MC: u64 = 0x52;
    /// Physical interrupt.
    pub const INTR: u64 = 0x60;
    /// Physical NMI.
    pub const NMI: u64 = 0x61;
    /// SMI.
    pub const SMI: u64 = 0x62;
    /// INIT.
    pub const INIT: u64 = 0x63;
    /// Interrupt window.
    pub const VINTR: u64 = 0x64;
    /// RDPMC.
    pub const RDPMC: u64 = 0x6f;
    /// CPUID.
    pub const CPUID: u64 = 0x72;
    /// IRET.
    pub const IRET: u64 = 0x74;
    /// INVD.
    pub const INVD: u64 = 0x76;
    /// HLT.
    pub const HLT: u64 = 0x78;
    /// INVLPGA.
    pub const INVLPGA: u64 = 0x7a;
    /// Port I/O.
    pub const IOIO: u64 = 0x7b;
    /// RDMSR or WRMSR.
    pub const MSR: u64 = 0x7c;
    /// Shutdown.
    pub const SHUTDOWN: u64 = 0x7f;
    /// VMRUN.
    pub const VMRUN: u64 = 0x80;
    /// VMMCALL.
    pub const VMMCALL: u64 = 0x81;
    /// VMLOAD.
    pub const VMLOAD: u64 = 0x82;
    /// VMSAVE.
    pub const VMSAVE: u64 = 0x83;
    /// STGI.
    pub const STGI: u64 = 0x84;
    /// CLGI.
    pub const CLGI: u64 = 0x85;
    /// SKINIT.
    pub const SKINIT: u64 = 0x86;
    /// WBINVD.
    pub const WBINVD: u64 = 0x89;
    /// MONITOR.
    pub const MONITOR: u64 = 0x8a;
    /// MWAIT.
    pub const MWAIT: u64 = 0x8b;
    /// MWAIT, armed.
    pub const MWAIT_ARMED: u64 = 0x8c;
    /// XSETBV.
    pub const XSETBV: u64 = 0x8d;
    /// RDPRU.
    pub const RDPRU: u64 = 0x8e;
    /// Nested page fault.
    pub const NPF: u64 = 0x400;
}

/// Bits of the word at offset 060h (virtual interrupt control).
pub mod vintr {
    /// A virtual interrupt is pending.
    pub const V_IRQ: u64 = 1 << 8;
    /// Take the virtual interrupt whatever V_TPR says.
    pub const V_IGN_TPR: u64 = 1 << 20;
    /// Physical interrupts follow the host's EFLAGS.IF, the guest's IF masks virtual ones only.
    pub const V_INTR_MASKING: u64 = 1 << 24;
    /// Shift of V_INTR_PRIO, the priority class of the virtual interrupt.
    pub const V_INTR_PRIO_SHIFT: u32 = 16;
    /// Mask of V_INTR_PRIO.
    pub const V_INTR_PRIO: u64 = 0xf << V_INTR_PRIO_SHIFT;
    /// Mask of V_TPR, bits 3:0 of CR8.
    pub const V_TPR: u64 = 0xf;
}

/// Control area, offsets 000h–3FFh.
#[derive(Debug)]
#[repr(C)]
pub struct Control {
    /// CR reads (15:0) and writes (31:16).
    pub intercept_cr: u32,
    /// DR reads and writes.
    pub intercept_dr: u32,
    /// Exceptions by vector.
    pub intercept_exceptions: u32,
    /// [`intercept`] vector 3.
    pub intercept_misc1: u32,
    /// [`intercept`] vector 4.
    pub intercept_misc2: u32,
    reserved_014: [u8; 0x3c - 0x14],
    /// PAUSE filter threshold.
    pub pause_filter_threshold: u16,
    /// PAUSE filter count.
    pub pause_filter_count: u16,
    /// Host-physical address of the I/O permission map (12 KiB).
    pub iopm_base_pa: u64,
    /// Host-physical address of the MSR permission map (8 KiB).
    pub msrpm_base_pa: u64,
    /// Added to the TSC in the guest.
    pub tsc_offset: u64,
    /// Address space identifier of the guest's translations; 0 is the host's.
    pub guest_asid: u32,
    /// What VMRUN flushes: 0 nothing, 1 everything, 3 this ASID.
    pub tlb_control: u32,
    /// [`vintr`].
    pub vintr: u64,
    /// Bit 0: the guest is in an interrupt shadow.
    pub interrupt_shadow: u64,
    /// [`exit_code`].
    pub exit_code: u64,
    /// First word about the exit.
    pub exit_info1: u64,
    /// Second word about the exit.
    pub exit_info2: u64,
    /// Event under delivery when the exit came ([`crate::backend::event`]).
    pub exit_int_info: u64,
    /// Bit 0: nested paging.
    pub nested_ctl: u64,
    reserved_098: [u8; 0xa8 - 0x98],
    /// Event to deliver at VMRUN ([`crate::backend::event`]).
    pub event_inj: u64,
    /// Host-physical address of the nested page table.
    pub n_cr3: u64,
    /// LBR and VMSAVE virtualisation.
    pub virt_ext: u64,
    /// State the processor may keep cached; 0: reload all.
    pub clean_bits: u32,
    reserved_0c4: u32,
    /// Next sequential instruction, where the processor has nRIP save.
    pub next_rip: u64,
    /// Number of instruction bytes fetched, then the bytes (decode assists).
    pub fetched: [u8; 16],
    reserved_0e0: [u8; 0x400 - 0xe0],
}

/// State save area, offsets 400h–FFFh.
#[derive(Debug)]
#[repr(C)]
pub struct Save {
    /// ES.
    pub es: Segment,
    /// CS.
    pub cs: Segment,
    /// SS.
    pub ss: Segment,
    /// DS.
    pub ds: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// GDTR (limit and base only).
    pub gdtr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// IDTR (limit and base only).
    pub idtr: Segment,
    /// TR.
    pub tr: Segment,
    reserved_4a0: [u8; 0xcb - 0xa0],
    /// Current privilege level.
    pub cpl: u8,
    reserved_4cc: u32,
    /// EFER, always with SVME set.
    pub efer: u64,
    reserved_4d8: [u8; 0x148 - 0xd8],
    /// CR4.
    pub cr4: u64,
    /// CR3.
    pub cr3: u64,
    /// CR0.
    pub cr0: u64,
    /// DR7.
    pub dr7: u64,
    /// DR6.
    pub dr6: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RIP.
    pub rip: u64,
    reserved_580: [u8; 0x1d8 - 0x180],
    /// RSP.
    pub rsp: u64,
    reserved_5e0: [u8; 0x1f8 - 0x1e0],
    /// RAX.
    pub rax: u64,
    /// SYSCALL MSRs.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// KernelGSBase.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// CR2.
    pub cr2: u64,
    reserved_648: [u8; 0x268 - 0x248],
    /// The guest's PAT (nested paging only).
    pub g_pat: u64,
    /// DebugCtl.
    pub dbgctl: u64,
    reserved_678: [u8; 0xc00 - 0x278],
}

/// The block itself: one page.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// What to intercept, and what came of it.
    pub control: Control,
    /// Guest state.
    pub save: Save,
}

impl Vmcb {
    /// A block without intercepts and with all state zero.
    pub fn zeroed() -> Box<Self> {
        // SAFETY: it is made of integers only, for which zero is a value.
        unsafe { Box::<Self>::new_zeroed().assume_init() }
    }
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096);
    assert!(offset_of!(Control, pause_filter_threshold) == 0x3c);
    assert!(offset_of!(Control, iopm_base_pa) == 0x40);
    assert!(offset_of!(Control, guest_asid) == 0x58);
    assert!(offset_of!(Control, vintr) == 0x60);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, nested_ctl) == 0x90);
    assert!(offset_of!(Control, event_inj) == 0xa8);
    assert!(offset_of!(Control, n_cr3) == 0xb0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rflags) == 0x170);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, star) == 0x200);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, g_pat) == 0x268);
};
