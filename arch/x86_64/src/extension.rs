// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtualization extension that the machine's processors have: SVM or VMX.
//!
//! **Principle.** It is found once, at start, and everything that depends on it is one of two. A branch that always goes
//! the same way costs less than a second copy of all that runs guests.

use alloc::sync::Arc;

use pasidon_arch_common::stage2::Tables;
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::memory::page_table::Geometry;

use crate::backend::stage2::Form;
use crate::backend::{Backend, Context, Reason, Window};
use crate::cpu::{self, Features};
use crate::emulate::CpuState;
use crate::guest::boot::EntryState;
use crate::guest::control::{ControlPolicy, ControlState};
use crate::guest::lapic::{ApicPage, Interrupts};
use crate::posted::Posted;
use crate::svm::{SvmPcpu, SvmVcpu, npt};
use crate::vmx::{self, VmxPcpu, VmxVcpu, ept};

/// Which it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extension {
    /// AMD's.
    Svm,
    /// Intel's.
    Vmx,
}

impl Extension {
    /// That of a processor with these features, which passed [`Features::check`].
    pub fn of(features: &Features) -> Self {
        if features.vmx { Self::Vmx } else { Self::Svm }
    }

    /// That of the processor that calls.
    pub fn here() -> Self {
        Self::of(&Features::read())
    }

    /// Whether the processor that calls takes posted interrupts for its guests.
    pub fn posts(self) -> bool {
        self == Self::Vmx && vmx::takes_posted_interrupts()
    }

    /// An empty stage 2.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn stage2(self, frames: &'static Frames) -> Result<Stage2, Refusal> {
        Tables::new(frames, self.geometry(cpu::five_levels()))
    }

    /// The form of its tables, on a host that walks five levels or four.
    fn geometry(self, five: bool) -> Geometry<Form> {
        match self {
            Self::Svm => npt::geometry(five),
            Self::Vmx => ept::geometry(),
        }
    }

    /// The control block of a vCPU whose guest-physical memory is the stage 2 at `stage2`, and that may write to control
    /// registers what `policy` allows. `tsc_offset` is added to the TSC that the guest reads; `apic` is its local APIC's.
    pub fn control_block(
        self,
        stage2: HostPhys,
        tsc_offset: u64,
        policy: &ControlPolicy,
        apic: &Arc<ApicPage>,
    ) -> ControlBlock {
        match self {
            Self::Svm => ControlBlock::Svm(SvmVcpu::new(stage2, tsc_offset)),
            Self::Vmx => ControlBlock::Vmx(VmxVcpu::new(stage2, tsc_offset, policy, apic)),
        }
    }
}

/// What the extension needs once per pCPU.
#[derive(Debug)]
pub enum Pcpu {
    /// Of SVM.
    Svm(SvmPcpu),
    /// Of VMX.
    Vmx(VmxPcpu),
}

impl Pcpu {
    /// Turns the extension on for the pCPU that calls, once its control registers, tables and segments are final.
    ///
    /// # Errors
    /// When the processor lacks something, the firmware has locked it off, or there is no memory.
    pub fn enable(index: u32, frames: &Frames) -> Result<Self, Refusal> {
        match Extension::here() {
            Extension::Svm => SvmPcpu::enable(index, frames).map(Self::Svm),
            Extension::Vmx => VmxPcpu::enable(index, frames).map(Self::Vmx),
        }
    }
}

/// The guest-physical memory of one VM.
pub type Stage2 = Tables<Form>;

/// The control block of one vCPU.
#[derive(Debug)]
pub enum ControlBlock {
    /// Of SVM.
    Svm(SvmVcpu),
    /// Of VMX.
    Vmx(VmxVcpu),
}

/// What to do with the block, whichever it is.
macro_rules! either {
    ($block:expr, $inner:ident => $call:expr) => {
        match $block {
            ControlBlock::Svm($inner) => $call,
            ControlBlock::Vmx($inner) => $call,
        }
    };
}

impl Backend for ControlBlock {
    type Pcpu = Pcpu;

    fn start_at(&mut self, entry: &EntryState) {
        either!(self, block => block.start_at(entry));
    }

    fn load(&mut self, pcpu: &mut Pcpu) {
        match (self, pcpu) {
            (Self::Svm(block), Pcpu::Svm(pcpu)) => block.load(pcpu),
            (Self::Vmx(block), Pcpu::Vmx(pcpu)) => block.load(pcpu),
            // Processors are alike: whatever is made here is made for the extension that all have.
            _ => {}
        }
    }

    fn unload(&mut self, pcpu: &mut Pcpu) {
        match (self, pcpu) {
            (Self::Svm(block), Pcpu::Svm(pcpu)) => block.unload(pcpu),
            (Self::Vmx(block), Pcpu::Vmx(pcpu)) => block.unload(pcpu),
            _ => {}
        }
    }

    fn enter(&mut self, pcpu: &mut Pcpu, context: &mut Context, flush: bool) -> Reason {
        match (self, pcpu) {
            (Self::Svm(block), Pcpu::Svm(pcpu)) => block.enter(pcpu, context, flush),
            (Self::Vmx(block), Pcpu::Vmx(pcpu)) => block.enter(pcpu, context, flush),
            _ => Reason::HostFault { what: "processors are not alike", code: 0 },
        }
    }

    fn state(&self, context: &Context) -> CpuState {
        either!(self, block => block.state(context))
    }

    fn known_length(&self, context: &Context) -> Option<u8> {
        either!(self, block => block.known_length(context))
    }

    fn cs_long(&self) -> bool {
        either!(self, block => block.cs_long())
    }

    fn is_64bit(&self) -> bool {
        either!(self, block => block.is_64bit())
    }

    fn shadow(&self) -> bool {
        either!(self, block => block.shadow())
    }

    fn end_shadow(&mut self) {
        either!(self, block => block.end_shadow());
    }

    fn close_nmi(&mut self) {
        either!(self, block => block.close_nmi());
    }

    fn reopen_nmi(&mut self) {
        either!(self, block => block.reopen_nmi());
    }

    fn nmi_open(&self) -> bool {
        either!(self, block => block.nmi_open())
    }

    fn hasten_nmi(&mut self, context: &mut Context) -> bool {
        either!(self, block => block.hasten_nmi(context))
    }

    fn request_window(&mut self, window: Option<Window>) {
        either!(self, block => block.request_window(window));
    }

    fn deliver(&mut self, wanted: bool) -> bool {
        either!(self, block => block.deliver(wanted))
    }

    fn post_to(&mut self, posted: &Arc<Posted>) {
        either!(self, block => block.post_to(posted));
    }

    fn set_interrupts(&mut self, interrupts: &Interrupts) {
        either!(self, block => block.set_interrupts(interrupts));
    }

    fn cr8(&self) -> u8 {
        either!(self, block => block.cr8())
    }

    fn set_cr8(&mut self, class: u8) {
        either!(self, block => block.set_cr8(class));
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        either!(self, block => block.set_tsc_offset(offset));
    }

    fn cr2(&self) -> u64 {
        either!(self, block => block.cr2())
    }

    fn set_cr2(&mut self, value: u64) {
        either!(self, block => block.set_cr2(value));
    }

    fn dr6(&self) -> u64 {
        either!(self, block => block.dr6())
    }

    fn set_dr6(&mut self, value: u64) {
        either!(self, block => block.set_dr6(value));
    }

    fn dr7(&self) -> u64 {
        either!(self, block => block.dr7())
    }

    fn set_dr7(&mut self, value: u64) {
        either!(self, block => block.set_dr7(value));
    }

    fn cpl(&self) -> u8 {
        either!(self, block => block.cpl())
    }

    fn cr4(&self) -> u64 {
        either!(self, block => block.cr4())
    }

    fn control(&self) -> ControlState {
        either!(self, block => block.control())
    }

    fn set_control(&mut self, value: &ControlState, flush: bool) {
        either!(self, block => block.set_control(value, flush));
    }

    fn holds_pdptes(&self) -> bool {
        either!(self, block => block.holds_pdptes())
    }

    fn set_pdptes(&mut self, entries: [u64; 4]) {
        either!(self, block => block.set_pdptes(entries));
    }

    fn pat(&self) -> u64 {
        either!(self, block => block.pat())
    }

    fn set_pat(&mut self, value: u64) {
        either!(self, block => block.set_pat(value));
    }

    fn last_exit(&self) -> [u64; 3] {
        either!(self, block => block.last_exit())
    }
}

#[cfg(test)]
pub(crate) mod tests;
