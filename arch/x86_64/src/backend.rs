// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a processor's virtualization extension must offer: the interface that [`crate::svm`] implements
//! and that VMX will.
//!
//! **Principle.** A backend knows control blocks and intercepts; it does not know devices, interrupt
//! controllers or VMs. It runs the guest until something happens and says what, in terms that both
//! extensions share.

use crate::emulate::{CpuState, Exception, Fault};
use crate::guest::boot::EntryState;

/// Why the guest stopped running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A host interrupt, NMI or SMI is waiting.
    HostInterrupt,
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
    /// A port access.
    Io(IoExit),
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// An access that stage 2 does not allow.
    Stage2 {
        /// Where, and what it wanted.
        fault: Fault,
        /// An instruction fetch.
        fetch: bool,
    },
    /// A call to the hypervisor.
    Hypercall,
    /// XSETBV.
    Xsetbv,
    /// The guest can take an interrupt now.
    InterruptWindow,
    /// A move from or to CR4.
    Cr4 {
        /// To CR4.
        write: bool,
        /// The general register, where the processor told it; otherwise the caller must find it.
        gpr: Option<u8>,
    },
    /// An exception that must not be delivered without the hypervisor having been asked.
    Exception(Exception),
    /// Triple fault, or a machine check that the processor could not deliver.
    Shutdown,
    /// The processor found an error in itself or in memory.
    MachineCheck,
    /// An instruction that this machine does not have.
    Undefined,
    /// An instruction that the guest may not use.
    Forbidden,
    /// An instruction with no effect here.
    Ignored,
    /// The processor refused the guest state, or reported something unknown: raw code.
    Failed(u64),
}

/// A port access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoExit {
    /// Port.
    pub port: u16,
    /// 1, 2 or 4.
    pub size: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
}

/// An event to deliver when the guest is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// An external interrupt.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception.
    Exception(Exception),
}

/// One vCPU of a virtualization extension. All calls come from the pCPU that runs it.
pub trait Backend {
    /// What the extension needs once per pCPU.
    type Pcpu;

    /// Puts the registers into the state of a kernel's first instruction.
    fn start_at(&mut self, entry: &EntryState);

    /// Prepares to run on this pCPU; to be called whenever the vCPU comes back to one.
    fn load(&mut self, pcpu: &mut Self::Pcpu);

    /// Runs the guest until something happens. `flush` drops its translations first.
    fn enter(&mut self, pcpu: &mut Self::Pcpu, flush: bool) -> Reason;

    /// The registers that an emulated instruction may use.
    fn state(&self) -> CpuState;

    /// Takes over general registers, RIP and RFLAGS of `state`. The caller says [`Backend::retire`] where an
    /// instruction was carried out.
    fn set_state(&mut self, state: &CpuState);

    /// General registers in hardware order: RAX, RCX, RDX, RBX, RSP, ...
    fn gpr(&self, index: usize) -> u64;

    /// Sets a general register.
    fn set_gpr(&mut self, index: usize, value: u64);

    /// Length of the current instruction, where the processor told it; otherwise the caller must find it.
    fn known_length(&self) -> Option<u8>;

    /// Goes on behind the current instruction, `length` bytes long: clears RFLAGS.RF and
    /// [retires](Backend::retire) it.
    fn skip(&mut self, length: u8);

    /// An instruction, or an iteration of one, was carried out for the guest: what a processor does then. The
    /// interrupt shadow ends, and where the guest steps (RFLAGS.TF) it gets its #DB.
    fn retire(&mut self);

    /// Whether an external interrupt would be taken now.
    fn interruptible(&self) -> bool;

    /// Whether an event waits to be delivered at the next entry.
    fn has_event(&self) -> bool;

    /// Delivers an event at the next entry. There must be none yet.
    fn inject(&mut self, event: Event);

    /// Takes the event back that waits to be delivered at the next entry.
    fn take_event(&mut self) -> Option<Event>;

    /// Whether an NMI can be delivered: none while the handler of the last one runs.
    fn nmi_open(&self) -> bool;

    /// Has the guest stop as soon as an NMI can be delivered. Returns whether that is after the next instruction,
    /// before which nothing else must be delivered.
    fn hasten_nmi(&mut self) -> bool;

    /// Asks for [`Reason::InterruptWindow`], or no longer.
    fn request_window(&mut self, window: Option<Window>);

    /// CR8 as the guest left it.
    fn cr8(&self) -> u8;

    /// Sets CR8.
    fn set_cr8(&mut self, class: u8);

    /// What is added to the TSC that the guest reads.
    fn set_tsc_offset(&mut self, offset: u64);

    /// RIP.
    fn rip(&self) -> u64;

    /// CR2.
    fn cr2(&self) -> u64;

    /// CR4 as the guest sees it.
    fn cr4(&self) -> u64;

    /// Writes CR4; false where the guest must get a general-protection fault.
    fn set_cr4(&mut self, value: u64) -> bool;

    /// Privilege level, 0 to 3.
    fn cpl(&self) -> u8;

    /// EFER as the guest sees it.
    fn efer(&self) -> u64;

    /// Writes EFER; false where the guest must get a general-protection fault.
    fn set_efer(&mut self, value: u64) -> bool;

    /// The guest's PAT.
    fn pat(&self) -> u64;

    /// Writes the guest's PAT; false where the guest must get a general-protection fault.
    fn set_pat(&mut self, value: u64) -> bool;

    /// Codes of the last exit, for the exit history.
    fn last_exit(&self) -> [u64; 4];
}

/// When an interrupt window is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// As soon as interrupts are enabled.
    Enabled,
    /// As soon as, besides, CR8 allows a vector of this priority class.
    Class(u8),
}
