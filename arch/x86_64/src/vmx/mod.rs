// SPDX-License-Identifier: MIT OR Apache-2.0
//! Intel's VMX, with extended page tables and unrestricted guests.
//!
//! **Principle.** Intercept as little as possible: what a guest does to its own registers, page tables and
//! interrupt flag costs no exit. What leaves the VM (ports, most MSRs, device memory, CPUID, HLT) does, and writes to
//! those bits of CR0 and CR4 that are not its own. Reads of these are served by the processor.
//! **Invariants.** VMX itself is never the guest's: CR4.VMXE reads as zero, and its instructions are undefined.
//! Machine checks are never the guest's: CR4.MCE is set while it runs, whatever it sees there. Caches are never the
//! guest's: it sees CR0.CD and CR0.NW, and the processor does not. No exception that can happen while it is being
//! delivered (#DB, #AC) is delivered without an exit in between, or a guest could keep its processor from ever taking an
//! interrupt (CVE-2015-5307, CVE-2015-8104).
//!
//! Source: Intel SDM volume 3, chapters 24 to 31.

pub(crate) mod controls;
mod enter;
pub mod ept;
mod exits;
mod pcpu;
mod permissions;
mod switched;
mod vmcs;

use alloc::sync::Arc;
use core::arch::asm;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::irq::msi::PostedInterrupts;
use x86_64::registers::control::Cr0Flags;

use crate::backend::vcpu::{DR6_BS, DR7_RESET};
use crate::backend::{Backend, Context, Event, Reason, Window, event, segment};
use crate::cpu::PAT_AFTER_RESET;
use crate::emulate::{CpuState, SegmentState};
use crate::guest::boot::EntryState;
use crate::guest::control::{ControlPolicy, ControlState, Cr4, Efer};
use crate::guest::lapic::{ApicPage, Interrupts};
use crate::interrupts;
use crate::posted::Posted;

use controls::{Controls, Entry, Primary};
use exits::{Exit, code, interruption};
pub use pcpu::{VmxPcpu, takes_posted_interrupts};
use switched::Switched;
use vmcs::{Field, SegmentRegister, Vmcs};

/// That of all vCPUs, as each has an EPT pointer of its own; 0 is the hypervisor's.
const VPID: u16 = 1;
/// Exceptions that leave the guest: #DB, #AC, #MC.
const EXCEPTIONS: u64 = 1 << 1 | 1 << 17 | 1 << 18;
/// CR0 bits that are not the guest's: what VMX wants set, and what would turn caches off.
const CR0_OWNED: u64 =
    Cr0Flags::NUMERIC_ERROR.union(Cr0Flags::NOT_WRITE_THROUGH).union(Cr0Flags::CACHE_DISABLE).bits();
/// CR4 bits that VMX and the hypervisor want set, whatever the guest sees.
const CR4_SET: u64 = Cr4::MCE.bits() | CR4_VMXE;
const CR4_VMXE: u64 = 1 << 13;
/// Place of RSP among the general registers.
const RSP: usize = 4;
/// Every leaf of ENCLS leaves the guest.
const ALL_LEAVES: u64 = u64::MAX;

/// Interruptibility state (SDM 3, table 25-3).
mod interruptibility {
    /// Behind STI.
    pub const STI: u64 = 1 << 0;
    /// Behind STI, behind a move to SS.
    pub const SHADOW: u64 = STI | 1 << 1;
    /// The handler of the last NMI runs.
    pub const NMI_BLOCKED: u64 = 1 << 3;
}

/// Access rights of a segment that cannot be used.
const UNUSABLE: u32 = 1 << 16;
/// Bits of access rights that the 12 bits of [`segment`] have in other places.
const ACCESS_LONG: u32 = 1 << 13;
const ACCESS_BIG: u32 = 1 << 14;
const ACCESS_DPL_SHIFT: u32 = 5;

/// The control block of one vCPU under VMX.
pub struct VmxVcpu {
    vmcs: Vmcs,
    pointer: u64,
    switched: Switched,
    /// CR4 bits that are the guest's alone.
    cr4_free: u64,
    /// The pCPU whose host state and controls the VMCS has, and those.
    home: Option<u32>,
    controls: Controls,
    /// It was entered since it became current.
    resume: bool,
    /// RSP of the host, as the VMCS has it.
    host_rsp: u64,
    /// RIP, RSP and RFLAGS as the VMCS has them.
    written: [u64; 3],
    /// Processor-based controls as the VMCS has them, and the threshold of CR8.
    primary: u32,
    threshold: u8,
    /// The processor delivers the local APIC's interrupts by itself.
    delivers: bool,
    /// The last exit.
    exit: Exit,
    /// Linear translations are dropped at the next entry.
    flush: bool,
    /// An NMI waits for the end of a shadow.
    behind_sti: bool,
    apic: Arc<ApicPage>,
    posted: Option<Arc<Posted>>,
}

impl core::fmt::Debug for VmxVcpu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VmxVcpu").field("exit", &self.exit).finish_non_exhaustive()
    }
}

impl VmxVcpu {
    /// For a vCPU whose guest-physical memory is that of the extended page tables at `stage2`, and that may write to
    /// control registers what `policy` allows. `tsc_offset` is added to the TSC that the guest reads; `apic` is its local
    /// APIC's.
    pub fn new(stage2: HostPhys, tsc_offset: u64, policy: &ControlPolicy, apic: &Arc<ApicPage>) -> Self {
        let pointer = ept::pointer(stage2);
        let cr4_free = policy.cr4_allowed().bits() & !CR4_SET;
        let mut vmcs = Vmcs::new();
        for (field, value) in [
            (Field::Vpid, VPID.into()),
            (Field::Eptp, pointer),
            (Field::VirtualApic, apic.address().0),
            (Field::TscOffset, tsc_offset),
            (Field::ExceptionBitmap, EXCEPTIONS),
            (Field::PageFaultMask, 0),
            (Field::PageFaultMatch, 0),
            (Field::Cr3TargetCount, 0),
            (Field::ExitMsrStoreCount, 0),
            (Field::ExitMsrLoadCount, 0),
            (Field::EntryMsrLoadCount, 0),
            (Field::EntryInterruption, 0),
            (Field::TprThreshold, 0),
            (Field::Cr0Mask, CR0_OWNED),
            (Field::Cr4Mask, !cr4_free),
        ] {
            vmcs.write(field, value);
        }
        Self {
            vmcs,
            pointer,
            switched: Switched::new(),
            cr4_free,
            home: None,
            controls: Controls::default(),
            resume: false,
            host_rsp: 0,
            written: [0; 3],
            primary: 0,
            threshold: 0,
            delivers: false,
            exit: Exit::default(),
            flush: false,
            behind_sti: false,
            apic: Arc::clone(apic),
            posted: None,
        }
    }

    fn write_segment(&mut self, register: SegmentRegister, segment: segment::Segment) {
        let low = u32::from(segment.attributes);
        let access = low & 0xff | (low & 0xf00) << 4;
        self.vmcs.write_segment(register, segment.selector, segment.limit, access, segment.base);
    }

    fn segment_state(&self, register: SegmentRegister) -> SegmentState {
        let (limit, access, base) = self.vmcs.read_segment(register);
        SegmentState { base, limit, long: access & ACCESS_LONG != 0, big: access & ACCESS_BIG != 0 }
    }

    /// Has the VMCS want these windows.
    fn want(&mut self, window: Primary, wanted: bool) {
        let primary = if wanted { self.primary | window.bits() } else { self.primary & !window.bits() };
        if primary != self.primary {
            self.primary = primary;
            self.vmcs.write(Field::ProcessorControls, primary.into());
        }
    }

    /// Has the processor serve the local APIC's registers and deliver its interrupts, or not: then both are the
    /// hypervisor's.
    fn serve_apic(&mut self, by_processor: bool) {
        self.delivers = by_processor;
        let Controls { mut pin, mut secondary, delivery, posting, .. } = self.controls;
        let bitmaps = permissions::bitmaps();
        let mut bitmap = &bitmaps.closed;
        if by_processor {
            secondary |= delivery;
            bitmap = &bitmaps.apic;
            if self.posted.is_some() {
                pin |= posting;
            }
        }
        self.vmcs.write(Field::PinControls, pin.into());
        self.vmcs.write(Field::SecondaryControls, secondary.into());
        self.vmcs.write(Field::MsrBitmap, bitmap.address());
    }

    fn interruptibility(&self) -> u64 {
        self.vmcs.read(Field::Interruptibility)
    }

    /// Takes the registers into the VMCS that are there while the guest runs. Most exits change RIP alone.
    fn put(&mut self, context: &Context) {
        let now = [context.rip, context.gpr[RSP], context.rflags];
        for (index, field) in [Field::GuestRip, Field::GuestRsp, Field::GuestRflags].into_iter().enumerate() {
            if self.written[index] != now[index] {
                self.vmcs.write(field, now[index]);
            }
        }
    }

    /// The guest left: what cut the delivery of an event short, and what its IRET had done already.
    fn left(&mut self, context: &mut Context) {
        let information = self.vmcs.read(Field::IdtVectoring);
        let word = if information & event::ERROR_CODE != 0 {
            information | self.vmcs.read(Field::IdtVectoringErrorCode) << 32
        } else {
            information
        };
        context.event = event::redelivered(word);
        match self.exit.reason as u16 {
            code::EPT_VIOLATION if information & event::VALID == 0 => {
                self.block_nmis_again(self.exit.qualification);
            }
            code::EXCEPTION => {
                let exit = self.vmcs.read(Field::ExitInterruption);
                if exit & interruption::TYPE == interruption::NMI {
                    // SAFETY: the gate of vector 2 takes NMIs on this pCPU. VMX has taken this one out, and blocks
                    // further ones until the handler's IRET.
                    unsafe { asm!("int 2") };
                } else {
                    if information & event::VALID == 0 {
                        self.block_nmis_again(exit);
                    }
                    if exit & interruption::VECTOR == 1 {
                        self.left_by_debug(exit, context);
                    }
                }
            }
            code::EXTERNAL_INTERRUPT => {
                let exit = self.vmcs.read(Field::ExitInterruption);
                if exit & event::VALID != 0 {
                    // SAFETY: the processor has taken it from the local APIC, and leaves it to be handled.
                    unsafe { interrupts::deliver((exit & interruption::VECTOR) as u8) };
                }
            }
            _ => {}
        }
        if context.event == Some(Event::Nmi) {
            // Its delivery had begun, and begins again.
            let state = self.interruptibility();
            self.vmcs.write(Field::Interruptibility, state & !interruptibility::NMI_BLOCKED);
        }
    }

    /// An IRET that faults has unblocked NMIs already, and is executed again.
    fn block_nmis_again(&mut self, information: u64) {
        if information & interruption::NMI_UNBLOCKED != 0 {
            let state = self.interruptibility();
            self.vmcs.write(Field::Interruptibility, state | interruptibility::NMI_BLOCKED);
        }
    }

    /// A #DB left the guest. Its delivery ends a shadow; an entry with one, and with TF, would be refused, as the exit
    /// does not keep that a step is pending (SDM 3, 27.3.1.5).
    fn left_by_debug(&mut self, exit: u64, context: &mut Context) {
        self.end_shadow();
        if exit & interruption::TYPE == interruption::INT1 {
            // The instruction asked for it: its handler returns behind it.
            context.rip = context.rip.wrapping_add(self.vmcs.read(Field::InstructionLength) & 15);
        } else {
            self.note_debug(self.exit.qualification);
        }
    }

    /// A #DB left the guest before it was in DR6 (SDM 3, table 28-1).
    fn note_debug(&mut self, qualification: u64) {
        /// B0 to B3, which each #DB sets anew.
        const BREAKPOINTS: u64 = 0xf;
        /// BD.
        const GENERAL_DETECT: u64 = 1 << 13;
        let told = qualification & (BREAKPOINTS | GENERAL_DETECT | DR6_BS);
        self.set_dr6(self.dr6() & !BREAKPOINTS | told);
    }
}

/// The entry control that goes with EFER: each exit sets it, too.
fn long_mode(efer: u64) -> u32 {
    if efer & Efer::LMA.bits() != 0 { Entry::LONG_MODE.bits() } else { 0 }
}

impl Backend for VmxVcpu {
    type Pcpu = VmxPcpu;

    fn start_at(&mut self, entry: &EntryState) {
        use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
        self.write_segment(Cs, segment::code(entry));
        for register in [Ds, Es, Ss, Fs, Gs] {
            self.write_segment(register, segment::data(entry));
        }
        self.write_segment(Tr, segment::TASK);
        self.vmcs.write_segment(Ldtr, 0, 0, UNUSABLE, 0);
        let (gdt, limit) = entry.gdt.unwrap_or((0, 0));
        for (field, value) in [
            (Field::GuestGdtrBase, gdt),
            (Field::GuestGdtrLimit, limit.into()),
            (Field::GuestIdtrBase, 0),
            (Field::GuestIdtrLimit, 0),
            (Field::GuestCr3, entry.cr3),
            (Field::GuestDr7, DR7_RESET),
            (Field::GuestDebugCtl, 0),
            (Field::GuestPat, PAT_AFTER_RESET),
            (Field::GuestSysenterCs, 0),
            (Field::GuestSysenterEsp, 0),
            (Field::GuestSysenterEip, 0),
            (Field::PendingDebug, 0),
            (Field::Interruptibility, 0),
            (Field::Activity, 0),
            (Field::GuestPdpte0, 0),
            (Field::GuestPdpte1, 0),
            (Field::GuestPdpte2, 0),
            (Field::GuestPdpte3, 0),
            (Field::GuestRip, 0),
            (Field::GuestRsp, 0),
            (Field::GuestRflags, 0),
        ] {
            self.vmcs.write(field, value);
        }
        self.written = [0; 3];
        self.switched = Switched::new();
        let control = ControlState { cr0: entry.cr0, cr3: entry.cr3, cr4: entry.cr4, efer: entry.efer };
        self.set_control(&control, true);
    }

    fn load(&mut self, pcpu: &mut VmxPcpu) {
        // SAFETY: `pcpu` exists only where VMX is on; who ran here before was unloaded, and this one elsewhere. The
        // registers are the guests' while one is loaded.
        unsafe {
            self.vmcs.load(pcpu.controls.revision);
            self.switched.load();
        }
        self.resume = false;
        if self.home != Some(pcpu.index) {
            self.home = Some(pcpu.index);
            pcpu.write_host(&mut self.vmcs);
            self.controls = pcpu.controls;
            let controls = &pcpu.controls;
            self.primary = controls.primary;
            self.threshold = 0;
            self.host_rsp = 0;
            let long = long_mode(self.vmcs.read(Field::GuestEfer));
            for (field, value) in [
                (Field::ProcessorControls, controls.primary),
                (Field::ExitControls, controls.exit),
                (Field::EntryControls, controls.entry | long),
                (Field::TprThreshold, 0),
            ] {
                self.vmcs.write(field, value.into());
            }
            if controls.has_encls() {
                self.vmcs.write(Field::EnclsBitmap, ALL_LEAVES);
            }
            self.serve_apic(false);
            pcpu::forget_memory(self.pointer);
        }
    }

    fn unload(&mut self, _pcpu: &mut VmxPcpu) {
        // SAFETY: loaded here, and nobody since.
        unsafe {
            self.vmcs.unload();
            self.switched.save();
        }
    }

    fn enter(&mut self, _pcpu: &mut VmxPcpu, context: &mut Context, flush: bool) -> Reason {
        if flush {
            pcpu::forget_memory(self.pointer);
        }
        if core::mem::take(&mut self.flush) {
            pcpu::forget_linear(VPID);
        }
        if let Some(event) = context.event.take() {
            let word = event::encode(event);
            self.vmcs.write(Field::EntryInterruption, word & u64::from(u32::MAX));
            self.vmcs.write(Field::EntryErrorCode, word >> 32);
        }
        self.put(context);
        // SAFETY: interrupts are disabled here always; the VMCS is current, with this pCPU's host state.
        let failed = unsafe { enter::enter(&raw mut context.gpr, self.resume, &raw mut self.host_rsp) };
        if failed {
            let code = self.vmcs.read(Field::InstructionError);
            return Reason::HostFault { what: "a VM entry was refused, error", code };
        }
        self.exit = Exit::read(&self.vmcs);
        self.written =
            [Field::GuestRip, Field::GuestRsp, Field::GuestRflags].map(|field| self.vmcs.read(field));
        [context.rip, context.gpr[RSP], context.rflags] = self.written;
        if self.exit.reason & exits::ENTRY_FAILED == 0 {
            self.resume = true;
            self.left(context);
        }
        exits::reason(&self.vmcs, &self.exit)
    }

    fn state(&self, context: &Context) -> CpuState {
        let ControlState { cr0, cr3, cr4, efer } = self.control();
        let mut state = CpuState {
            gpr: context.gpr,
            rip: context.rip,
            rflags: context.rflags,
            cr0,
            cr3,
            cr4,
            efer,
            cpl: self.cpl(),
            cs: SegmentState { long: self.cs_long(), ..SegmentState::default() },
            ..CpuState::default()
        };
        if state.is_64bit() {
            state.fs.base = self.vmcs.read(Field::GuestFsBase);
            state.gs.base = self.vmcs.read(Field::GuestGsBase);
        } else {
            state.cs = self.segment_state(SegmentRegister::Cs);
            state.ss = self.segment_state(SegmentRegister::Ss);
            state.ds = self.segment_state(SegmentRegister::Ds);
            state.es = self.segment_state(SegmentRegister::Es);
            state.fs = self.segment_state(SegmentRegister::Fs);
            state.gs = self.segment_state(SegmentRegister::Gs);
        }
        state
    }

    fn known_length(&self, _context: &Context) -> Option<u8> {
        if !exits::is_instruction(self.exit.reason) {
            return None;
        }
        let length = self.vmcs.read(Field::InstructionLength);
        u8::try_from(length).ok().filter(|length| (1..=15).contains(length))
    }

    fn cs_long(&self) -> bool {
        self.vmcs.read(Field::GuestCsAccess) as u32 & ACCESS_LONG != 0
    }

    fn is_64bit(&self) -> bool {
        self.cs_long() && self.vmcs.read(Field::GuestEfer) & Efer::LMA.bits() != 0
    }

    fn shadow(&self) -> bool {
        self.interruptibility() & interruptibility::SHADOW != 0
    }

    fn end_shadow(&mut self) {
        let state = self.interruptibility();
        if state & interruptibility::SHADOW != 0 {
            self.vmcs.write(Field::Interruptibility, state & !interruptibility::SHADOW);
            // A step that the shadow held back is delivered by whoever ends it.
            let pending = self.vmcs.read(Field::PendingDebug);
            self.vmcs.write(Field::PendingDebug, pending & !DR6_BS);
        }
    }

    fn close_nmi(&mut self) {
        self.want(Primary::NMI_WINDOW, false);
    }

    fn reopen_nmi(&mut self) {}

    fn nmi_open(&self) -> bool {
        self.interruptibility() & (interruptibility::SHADOW | interruptibility::NMI_BLOCKED) == 0
    }

    fn hasten_nmi(&mut self, _context: &mut Context) -> bool {
        // Processors may open the window for NMIs behind STI already, where an NMI must not be delivered. Interrupts are on
        // there, and their window opens behind the shadow.
        self.behind_sti = self.interruptibility() & interruptibility::STI != 0;
        self.want(Primary::NMI_WINDOW, !self.behind_sti);
        false
    }

    fn request_window(&mut self, window: Option<Window>) {
        let behind_sti = core::mem::take(&mut self.behind_sti);
        self.want(Primary::INTERRUPT_WINDOW, behind_sti || window == Some(Window::Enabled));
        let threshold = match window {
            Some(Window::Class(class)) => class & 15,
            _ => 0,
        };
        if threshold != self.threshold {
            self.threshold = threshold;
            self.vmcs.write(Field::TprThreshold, threshold.into());
        }
    }

    fn deliver(&mut self, wanted: bool) -> bool {
        let wanted = wanted && self.controls.delivery != 0;
        if wanted != self.delivers {
            self.serve_apic(wanted);
        }
        wanted
    }

    fn post_to(&mut self, posted: &Arc<Posted>) {
        self.vmcs.write(Field::PostedDescriptor, posted.address().0);
        self.vmcs.write(Field::PostedVector, posted.vector().into());
        self.posted = Some(Arc::clone(posted));
    }

    fn set_interrupts(&mut self, interrupts: &Interrupts) {
        let Interrupts { requested, in_service, level_triggered } = *interrupts;
        let status = u64::from(in_service.unwrap_or(0)) << 8 | u64::from(requested.unwrap_or(0));
        self.vmcs.write(Field::InterruptStatus, status);
        let fields = [Field::EoiExit0, Field::EoiExit1, Field::EoiExit2, Field::EoiExit3];
        for (field, word) in fields.into_iter().zip(level_triggered) {
            self.vmcs.write(field, word);
        }
    }

    fn cr8(&self) -> u8 {
        self.apic.class()
    }

    fn set_cr8(&mut self, class: u8) {
        self.apic.set_class(class);
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcs.write(Field::TscOffset, offset);
    }

    fn cr2(&self) -> u64 {
        switched::cr2()
    }

    fn set_cr2(&mut self, value: u64) {
        switched::set_cr2(value);
    }

    fn dr6(&self) -> u64 {
        switched::dr6()
    }

    fn set_dr6(&mut self, value: u64) {
        switched::set_dr6(value);
    }

    fn dr7(&self) -> u64 {
        self.vmcs.read(Field::GuestDr7)
    }

    fn set_dr7(&mut self, value: u64) {
        self.vmcs.write(Field::GuestDr7, value);
    }

    fn cpl(&self) -> u8 {
        (self.vmcs.read(Field::GuestSsAccess) as u32 >> ACCESS_DPL_SHIFT & 3) as u8
    }

    fn cr4(&self) -> u64 {
        self.vmcs.read(Field::GuestCr4) & self.cr4_free | self.vmcs.read(Field::Cr4Shadow) & !self.cr4_free
    }

    fn control(&self) -> ControlState {
        let cr0 = self.vmcs.read(Field::GuestCr0) & !CR0_OWNED | self.vmcs.read(Field::Cr0Shadow) & CR0_OWNED;
        let (cr3, efer) = (self.vmcs.read(Field::GuestCr3), self.vmcs.read(Field::GuestEfer));
        ControlState { cr0, cr3, cr4: self.cr4(), efer }
    }

    fn set_control(&mut self, value: &ControlState, flush: bool) {
        self.vmcs.write(Field::GuestCr0, value.cr0 & !CR0_OWNED | Cr0Flags::NUMERIC_ERROR.bits());
        self.vmcs.write(Field::Cr0Shadow, value.cr0);
        self.vmcs.write(Field::GuestCr4, value.cr4 | CR4_SET);
        self.vmcs.write(Field::Cr4Shadow, value.cr4);
        self.vmcs.write(Field::GuestEfer, value.efer);
        // Before the first time on a pCPU the other controls are not known yet, and all are written there.
        if self.home.is_some() {
            self.vmcs.write(Field::EntryControls, (self.controls.entry | long_mode(value.efer)).into());
        }
        self.flush |= flush;
    }

    fn holds_pdptes(&self) -> bool {
        true
    }

    fn set_pdptes(&mut self, entries: [u64; 4]) {
        let fields = [Field::GuestPdpte0, Field::GuestPdpte1, Field::GuestPdpte2, Field::GuestPdpte3];
        for (field, entry) in fields.into_iter().zip(entries) {
            self.vmcs.write(field, entry);
        }
    }

    fn pat(&self) -> u64 {
        self.vmcs.read(Field::GuestPat)
    }

    fn set_pat(&mut self, value: u64) {
        self.vmcs.write(Field::GuestPat, value);
    }

    fn last_exit(&self) -> [u64; 3] {
        let Exit { reason, qualification, address } = self.exit;
        [reason.into(), qualification, address]
    }
}

#[cfg(test)]
mod tests;
