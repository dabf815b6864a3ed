// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU as the processor runs it: what both extensions keep alike, and the control block of one of them.
//!
//! **Principle.** What follows from an instruction that the hypervisor carried out, from an event that it delivers, or
//! from a value that it writes to a control register does not depend on the extension, and stands here.

use alloc::sync::Arc;

use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::GuestMemory;
use x86_64::registers::control::Cr0Flags;

use super::event::{self, DEBUG_EXCEPTION};
use super::{Backend, Context, ControlRegister, Event, Reason, Window};
use crate::emulate::CpuState;
use crate::guest::GeneralProtection;
use crate::guest::boot::EntryState;
use crate::guest::control::{self, ControlPolicy, ControlState};
use crate::guest::lapic::Interrupts;
use crate::posted::Posted;

/// RFLAGS bit 1, always set.
pub const RFLAGS_FIXED: u64 = 1 << 1;
/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.IF.
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.RF.
pub const RFLAGS_RF: u64 = 1 << 16;
/// DR6 after reset.
pub const DR6_RESET: u64 = 0xffff_0ff0;
/// DR6.BS: a single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR7 after reset.
pub const DR7_RESET: u64 = 0x400;
/// DR7.GD: accesses to debug registers raise #DB. The processor clears it with every #DB.
pub const DR7_GD: u64 = 1 << 13;
/// Reserved bits of a page-directory-pointer entry of three-level page tables, whatever the width of addresses.
const PDPTE_RESERVED: u64 = 0x1e6;

/// A vCPU whose control block is a `B`. All calls come from the pCPU that runs it; all but [`Vcpu::start_at`] and those
/// about general registers and events between [`Vcpu::load`] and [`Vcpu::unload`].
#[derive(Debug)]
pub struct Vcpu<B> {
    context: Context,
    policy: ControlPolicy,
    block: B,
}

impl<B: Backend> Vcpu<B> {
    /// A vCPU that may write to control registers what `policy` allows.
    pub fn new(block: B, policy: ControlPolicy) -> Self {
        Self { context: Context::default(), policy, block }
    }

    /// The control block, for tests.
    #[cfg(test)]
    pub(crate) fn parts(&mut self) -> (&mut B, &mut Context) {
        (&mut self.block, &mut self.context)
    }

    /// Puts the registers into the state of a kernel's first instruction.
    pub fn start_at(&mut self, entry: &EntryState) {
        self.block.start_at(entry);
        self.context = Context { rip: entry.rip, rflags: RFLAGS_FIXED, ..Context::default() };
        self.set_gpr(3, entry.rbx);
        self.set_gpr(6, entry.rsi);
    }

    /// Prepares to run on this pCPU; to be called whenever the vCPU comes back to one.
    pub fn load(&mut self, pcpu: &mut B::Pcpu) {
        self.block.load(pcpu);
    }

    /// Leaves this pCPU.
    pub fn unload(&mut self, pcpu: &mut B::Pcpu) {
        self.block.unload(pcpu);
    }

    /// Runs the guest until something happens. `flush` drops the translations of its memory first.
    pub fn enter(&mut self, pcpu: &mut B::Pcpu, flush: bool) -> Reason {
        self.block.enter(pcpu, &mut self.context, flush)
    }

    /// The registers that an emulated instruction may use.
    pub fn state(&self) -> CpuState {
        self.block.state(&self.context)
    }

    /// Takes over general registers, RIP and RFLAGS of `state`. The caller says [`Vcpu::retire`] where an
    /// instruction was carried out.
    pub fn set_state(&mut self, state: &CpuState) {
        let context = &mut self.context;
        (context.gpr, context.rip, context.rflags) = (state.gpr, state.rip, state.rflags);
    }

    /// General registers in hardware order: RAX, RCX, RDX, RBX, RSP, ...
    pub fn gpr(&self, index: usize) -> u64 {
        self.context.gpr[index & 15]
    }

    /// Sets a general register.
    pub fn set_gpr(&mut self, index: usize, value: u64) {
        self.context.gpr[index & 15] = value;
    }

    /// RIP.
    pub fn rip(&self) -> u64 {
        self.context.rip
    }

    /// Length of the current instruction, where the processor told it; otherwise the caller must find it.
    pub fn known_length(&self) -> Option<u8> {
        self.block.known_length(&self.context)
    }

    /// Goes on behind the current instruction, `length` bytes long: clears RFLAGS.RF and [retires](Vcpu::retire) it.
    pub fn skip(&mut self, length: u8) {
        let next = self.context.rip.wrapping_add(length.into());
        let wraps = next > u64::from(u32::MAX) && !self.block.is_64bit();
        self.context.rip = if wraps { next & u64::from(u32::MAX) } else { next };
        self.context.rflags &= !RFLAGS_RF;
        self.retire();
    }

    /// An instruction, or an iteration of one, was carried out for the guest: what a processor does then. The
    /// interrupt shadow ends, and where the guest steps (RFLAGS.TF) it gets its #DB.
    pub fn retire(&mut self) {
        self.block.end_shadow();
        if self.context.rflags & RFLAGS_TF != 0 {
            self.block.set_dr6(self.block.dr6() | DR6_BS);
            self.inject(Event::Exception(DEBUG_EXCEPTION));
        }
    }

    /// Whether an external interrupt would be taken now.
    pub fn interruptible(&self) -> bool {
        self.context.rflags & RFLAGS_IF != 0 && !self.has_event() && !self.block.shadow()
    }

    /// Whether an event waits to be delivered at the next entry.
    pub fn has_event(&self) -> bool {
        self.context.event.is_some()
    }

    /// Delivers an event at the next entry. There must be none yet.
    pub fn inject(&mut self, mut event: Event) {
        match event {
            Event::Interrupt(_) => {}
            Event::Nmi => self.block.close_nmi(),
            Event::Exception(ref mut exception) => {
                // In real mode there are none.
                if exception.error_code.is_some()
                    && self.block.control().cr0 & Cr0Flags::PROTECTED_MODE_ENABLE.bits() == 0
                {
                    exception.error_code = None;
                }
                if let Some(cr2) = exception.cr2 {
                    self.block.set_cr2(cr2);
                }
                if event::is_fault(exception.vector) {
                    self.context.rflags |= RFLAGS_RF;
                }
                if *exception == DEBUG_EXCEPTION {
                    self.block.set_dr7(self.block.dr7() & !DR7_GD);
                }
            }
        }
        self.context.event = Some(event);
    }

    /// Takes the event back that waits to be delivered at the next entry.
    pub fn take_event(&mut self) -> Option<Event> {
        let event = self.context.event.take();
        if event == Some(Event::Nmi) {
            self.block.reopen_nmi();
        }
        event
    }

    /// Whether an NMI can be delivered: none while the handler of the last one runs.
    pub fn nmi_open(&self) -> bool {
        self.block.nmi_open()
    }

    /// Has the guest stop as soon as an NMI can be delivered. Returns whether that is after the next instruction,
    /// before which nothing else must be delivered.
    pub fn hasten_nmi(&mut self) -> bool {
        self.block.hasten_nmi(&mut self.context)
    }

    /// Asks for [`Reason::InterruptWindow`], or no longer.
    pub fn request_window(&mut self, window: Option<Window>) {
        self.block.request_window(window);
    }

    /// Has the processor deliver the local APIC's interrupts by itself, or no longer. Returns whether it does.
    pub fn deliver(&mut self, wanted: bool) -> bool {
        self.block.deliver(wanted)
    }

    /// Where interrupts are posted to the guest meanwhile. Before the first [`Vcpu::load`].
    pub fn post_to(&mut self, posted: &Arc<Posted>) {
        self.block.post_to(posted);
    }

    /// What it delivers by itself has changed.
    pub fn set_interrupts(&mut self, interrupts: &Interrupts) {
        self.block.set_interrupts(interrupts);
    }

    /// CR8 as the guest left it.
    pub fn cr8(&self) -> u8 {
        self.block.cr8()
    }

    /// Sets CR8.
    pub fn set_cr8(&mut self, class: u8) {
        self.block.set_cr8(class);
    }

    /// What is added to the TSC that the guest reads.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.block.set_tsc_offset(offset);
    }

    /// CR2.
    pub fn cr2(&self) -> u64 {
        self.block.cr2()
    }

    /// Privilege level, 0 to 3.
    pub fn cpl(&self) -> u8 {
        self.block.cpl()
    }

    /// CR4 as the guest sees it.
    pub fn cr4(&self) -> u64 {
        self.block.cr4()
    }

    /// A control register as the guest sees it.
    pub fn control(&self, register: ControlRegister) -> u64 {
        match register {
            ControlRegister::Cr0 => self.block.control().cr0,
            ControlRegister::Cr4 => self.block.cr4(),
        }
    }

    /// Writes a control register. `memory` is where the guest's page tables are.
    ///
    /// # Errors
    /// When the guest must get a general-protection fault.
    pub fn set_control(
        &mut self,
        register: ControlRegister,
        value: u64,
        memory: &dyn GuestMemory,
    ) -> Result<(), GeneralProtection> {
        let old = self.block.control();
        let new = match register {
            ControlRegister::Cr0 => self.policy.cr0(value, &old, self.block.cs_long())?,
            ControlRegister::Cr4 => ControlState { cr4: self.policy.cr4(value, &old)?.bits(), ..old },
        };
        if self.block.holds_pdptes() && control::reloads_pdptes(&old, &new) {
            let reserved = PDPTE_RESERVED | self.policy.above_physical();
            self.block.set_pdptes(pdptes(new.cr3, reserved, memory)?);
        }
        self.block.set_control(&new, control::changes_translations(&old, &new));
        Ok(())
    }

    /// EFER as the guest sees it.
    pub fn efer(&self) -> u64 {
        self.block.control().efer
    }

    /// Writes EFER; false where the guest must get a general-protection fault.
    pub fn set_efer(&mut self, value: u64) -> bool {
        let old = self.block.control();
        let Ok(efer) = self.policy.efer(value, &old) else {
            return false;
        };
        let new = ControlState { efer: efer.bits(), ..old };
        self.block.set_control(&new, control::changes_translations(&old, &new));
        true
    }

    /// The guest's PAT.
    pub fn pat(&self) -> u64 {
        self.block.pat()
    }

    /// Writes the guest's PAT; false where the guest must get a general-protection fault.
    pub fn set_pat(&mut self, value: u64) -> bool {
        // UC, WC, WT, WP, WB, UC- (APM 2, table 7-9).
        let valid = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
        if valid {
            self.block.set_pat(value);
        }
        valid
    }

    /// Codes of the last exit, for the exit history.
    pub fn last_exit(&self) -> [u64; 4] {
        let [code, first, second] = self.block.last_exit();
        [code, first, second, self.context.rip]
    }
}

/// The top level of the three-level page tables at `cr3`, as a move to a control register loads it (SDM 3A, 5.4.1).
fn pdptes(cr3: u64, reserved: u64, memory: &dyn GuestMemory) -> Result<[u64; 4], GeneralProtection> {
    const PRESENT: u64 = 1;
    const TABLE: u64 = 0xffff_ffe0;
    let mut entries = [0; 4];
    for (entry, offset) in entries.iter_mut().zip((0u64..).step_by(8)) {
        // Where nothing is, a bus reads as ones, and those are reserved.
        let value = memory.read_u64(GuestPhys((cr3 & TABLE) + offset)).ok_or(GeneralProtection)?;
        if value & PRESENT != 0 && value & reserved != 0 {
            return Err(GeneralProtection);
        }
        *entry = value;
    }
    Ok(entries)
}
