// SPDX-License-Identifier: MIT OR Apache-2.0
//! The small common set of events that a guest can cause, and of effects that answer them.
//!
//! Architecture code turns a hardware exit into an [`Exit`]; the VM's devices answer through an
//! [`Actions`] sink; architecture code carries the actions out. Nothing here names a processor.

use crate::base::addr::{GuestPhys, HostPhys};

/// What a guest did that needs an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit<'a> {
    /// An access to guest-physical memory that is not RAM.
    Mmio(Access),
    /// A store of 64 bytes at once (MOVDIR64B) to guest-physical memory that is not RAM.
    Store64 {
        /// Guest-physical address, a multiple of 64.
        address: u64,
        /// What is stored: a copy, which the guest does not reach.
        bytes: &'a [u8; 64],
    },
    /// An access to the I/O port space (where the architecture has one). `address` is the port.
    Io(Access),
    /// The vCPU waits for an interrupt.
    Halt,
    /// The vCPU can take an interrupt again.
    InterruptWindow,
    /// The vCPU cannot go on (triple fault and its like).
    Shutdown,
}

/// One read or write of 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Guest-physical address or port number.
    pub address: u64,
    /// Number of bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Direction, with the value where it is a write (zero-extended).
    pub kind: AccessKind,
}

/// Direction of an [`Access`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessKind {
    /// The device supplies the value.
    Read,
    /// The guest supplies the value, zero-extended to 64 bits.
    Write(u64),
}

/// A message-signalled interrupt as it is written on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MsiMessage {
    /// The address written to.
    pub address: u64,
    /// The 32-bit value written.
    pub data: u32,
}

/// What a device model asks the world to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Deliver a message-signalled interrupt to the guest's interrupt controller.
    Message(MsiMessage),
    /// Drive a wired interrupt of the guest's interrupt controller (global system interrupt number).
    Line {
        /// Global system interrupt.
        gsi: u32,
        /// The new level.
        level: bool,
    },
    /// Map a page-aligned window of a physical device into the guest's stage 2, uncached, read-write.
    MapPortal {
        /// Where the guest sees it.
        guest: GuestPhys,
        /// The device's own address.
        host: HostPhys,
        /// Length in bytes, a multiple of the page size.
        len: u64,
    },
    /// Remove such a window everywhere; no vCPU may reach it when this returns.
    UnmapPortal {
        /// Where the guest saw it.
        guest: GuestPhys,
        /// Length in bytes.
        len: u64,
    },
    /// A vdev's model waits for its device ([`VdevRegisters::is_waiting`](crate::vdev::parent::VdevRegisters::is_waiting)),
    /// or the guest has let go of a vdev ([`PciBus::has_let_go`](crate::dev::pci::PciBus::has_let_go)): somebody is to
    /// look.
    Attend,
    /// A byte the guest printed on its console.
    Console(u8),
    /// The guest asked to be switched off.
    PowerOff,
    /// The guest asked to be started again.
    Reset,
}

/// Where actions go. A closure in tests, the vCPU loop in real life.
pub type Actions<'a> = &'a mut dyn FnMut(Action);

/// A register-level device model that a guest sees at a window of its memory or port space.
pub trait Device: Send {
    /// Reads `size` (1, 2, 4, 8) bytes at `offset` from the window's start. Never fails: what is not
    /// there reads as the bus would have it.
    fn read(&mut self, offset: u64, size: u8, actions: Actions<'_>) -> u64;

    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&mut self, offset: u64, size: u8, value: u64, actions: Actions<'_>);
}
