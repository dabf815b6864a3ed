// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the entries of the vector table leave on the stack.

use core::mem::offset_of;

/// The registers when an exception or interrupt came, in the order in which they lie on the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TrapFrame {
    /// X0 to X30.
    pub x: [u64; 31],
    /// SP_EL0, the hypervisor's stack pointer.
    pub sp: u64,
    /// Where it came.
    pub elr: u64,
    /// The state it came in.
    pub spsr: u64,
    /// What it was.
    pub esr: u64,
    /// The address it was about.
    pub far: u64,
    /// A frame record, so that a backtrace goes through here: X29 and the address.
    record: [u64; 2],
}

/// Bytes of one.
pub const FRAME: usize = size_of::<TrapFrame>();
const _: () = {
    assert!(FRAME == 304 && FRAME.is_multiple_of(16));
    assert!(offset_of!(TrapFrame, sp) == 248);
    assert!(offset_of!(TrapFrame, elr) == 256);
    assert!(offset_of!(TrapFrame, esr) == 272);
    assert!(offset_of!(TrapFrame, record) == 288);
};
