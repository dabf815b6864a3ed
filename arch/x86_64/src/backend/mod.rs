// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a processor's virtualization extension must offer: the interface that [`crate::svm`] and [`crate::vmx`]
//! implement, and [what is the same for both](vcpu).
//!
//! **Principle.** A backend knows control blocks and intercepts; it does not know devices, interrupt
//! controllers or VMs. It runs the guest until something happens and says what, in terms that both
//! extensions share. What an instruction or an event means for a guest stands once, in [`vcpu::Vcpu`].

pub mod event;
pub(crate) mod registers;
pub mod segment;
pub mod stage2;
pub mod vcpu;

use alloc::sync::Arc;

use crate::emulate::{CpuState, Exception, Fault};
use crate::guest::boot::EntryState;
use crate::guest::control::ControlState;
use crate::guest::lapic::Interrupts;
use crate::posted::Posted;

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
    /// The guest has ended a level-triggered interrupt that the processor had delivered by itself: its vector.
    EndOfInterrupt(u8),
    /// A move from or to a control register.
    Control {
        /// Which.
        register: ControlRegister,
        /// To it.
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
    /// The guest switched tasks by hardware, which the processor leaves to the hypervisor.
    TaskSwitch,
    /// The processor refused the guest state, or reported something unknown: raw code.
    Failed(u64),
    /// The processor refused what the hypervisor made, or met it: none of the guest's doing.
    HostFault {
        /// What, followed by a number.
        what: &'static str,
        /// The number.
        code: u64,
    },
}

/// A control register that the hypervisor shares with the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlRegister {
    /// CR0.
    Cr0,
    /// CR4.
    Cr4,
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

/// What both extensions keep alike of a vCPU.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// General registers in hardware order: RAX, RCX, RDX, RBX, RSP, ...
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// What is delivered at the next entry.
    pub event: Option<Event>,
}

/// The control block of one vCPU. All calls come from the pCPU that runs it; all but `start_at` between
/// [`Backend::load`] and [`Backend::unload`].
pub trait Backend {
    /// What the extension needs once per pCPU.
    type Pcpu;

    /// Puts segments, control and debug registers into the state of a kernel's first instruction. Before the first
    /// [`Backend::load`].
    fn start_at(&mut self, entry: &EntryState);

    /// Prepares to run on this pCPU; to be called whenever the vCPU comes back to one.
    fn load(&mut self, pcpu: &mut Self::Pcpu);

    /// Leaves this pCPU, so that another vCPU can be loaded here, and this one elsewhere.
    fn unload(&mut self, pcpu: &mut Self::Pcpu);

    /// Delivers the event of `context`, if there is one, and runs the guest until something happens. What that cut short
    /// is the new event. `flush` drops the translations of the guest's memory first.
    fn enter(&mut self, pcpu: &mut Self::Pcpu, context: &mut Context, flush: bool) -> Reason;

    /// The registers that an emulated instruction may use: of segments, in 64-bit code, only what counts there.
    fn state(&self, context: &Context) -> CpuState;

    /// Length of the current instruction, where the processor told it; otherwise the caller must find it.
    fn known_length(&self, context: &Context) -> Option<u8>;

    /// Bit L of CS, whatever the mode is.
    fn cs_long(&self) -> bool;

    /// Whether the guest runs 64-bit code.
    fn is_64bit(&self) -> bool;

    /// Whether the last instruction holds off interrupts until the next one is done (STI, MOV SS).
    fn shadow(&self) -> bool;

    /// Ends that.
    fn end_shadow(&mut self);

    /// An NMI was chosen as the next event.
    fn close_nmi(&mut self);

    /// It was taken back.
    fn reopen_nmi(&mut self);

    /// Whether an NMI can be delivered: none while the handler of the last one runs.
    fn nmi_open(&self) -> bool;

    /// Has the guest stop as soon as an NMI can be delivered. Returns whether that is after the next instruction,
    /// before which nothing else must be delivered.
    fn hasten_nmi(&mut self, context: &mut Context) -> bool;

    /// Asks for [`Reason::InterruptWindow`], or no longer.
    fn request_window(&mut self, window: Option<Window>);

    /// Has the processor deliver the local APIC's interrupts by itself, or no longer; where it cannot, nothing changes.
    /// Returns whether it does: then [`Backend::set_interrupts`] has to follow each change of them.
    fn deliver(&mut self, _wanted: bool) -> bool {
        false
    }

    /// Where interrupts are posted to the guest while the processor delivers them by itself. Before the first
    /// [`Backend::load`]; only where the extension [can](crate::extension::Extension::posts) take them.
    fn post_to(&mut self, _posted: &Arc<Posted>) {}

    /// What the processor delivers by itself has changed.
    fn set_interrupts(&mut self, _interrupts: &Interrupts) {}

    /// CR8 as the guest left it.
    fn cr8(&self) -> u8;

    /// Sets CR8.
    fn set_cr8(&mut self, class: u8);

    /// What is added to the TSC that the guest reads.
    fn set_tsc_offset(&mut self, offset: u64);

    /// CR2.
    fn cr2(&self) -> u64;

    /// Sets CR2.
    fn set_cr2(&mut self, value: u64);

    /// DR6.
    fn dr6(&self) -> u64;

    /// Sets DR6.
    fn set_dr6(&mut self, value: u64);

    /// DR7.
    fn dr7(&self) -> u64;

    /// Sets DR7.
    fn set_dr7(&mut self, value: u64);

    /// Privilege level, 0 to 3.
    fn cpl(&self) -> u8;

    /// CR4 as the guest sees it.
    fn cr4(&self) -> u64;

    /// The control registers as the guest sees them.
    fn control(&self) -> ControlState;

    /// Writes CR0, CR4 and EFER, of which `value` says what the guest sees. They were checked; `flush`: linear
    /// translations that the processor holds may be wrong now.
    fn set_control(&mut self, value: &ControlState, flush: bool);

    /// Whether the control block holds the top level of three-level page tables, so that whoever writes control
    /// registers for the guest has to load it.
    fn holds_pdptes(&self) -> bool;

    /// Loads it.
    fn set_pdptes(&mut self, entries: [u64; 4]);

    /// The guest's PAT.
    fn pat(&self) -> u64;

    /// Sets the guest's PAT, to types that exist.
    fn set_pat(&mut self, value: u64);

    /// Codes of the last exit, for the exit history: code, two words about it.
    fn last_exit(&self) -> [u64; 3];
}

/// When an interrupt window is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// As soon as interrupts are enabled.
    Enabled,
    /// As soon as, besides, CR8 allows a vector of this priority class.
    Class(u8),
}
