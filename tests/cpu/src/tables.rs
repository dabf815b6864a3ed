// SPDX-License-Identifier: MIT OR Apache-2.0
//! The descriptor tables of code on the processor.
//!
//! Handlers have stacks of their own: the compiler lets functions of a program use memory below the stack pointer, which
//! an interrupt would overwrite.

use crate::entry;
use crate::library::Host;

/// Flat segments: 64-bit code, and data.
const CODE: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const CODE_SELECTOR: u64 = 8;
/// Present, privilege level 0, 64-bit interrupt gate.
const INTERRUPT_GATE: u64 = 0x8e00;
const NMI: usize = 2;
/// Bytes of a handler's stack.
const STACK: usize = 16 << 10;

/// Task state segment: what the processor reads of it are the handlers' stacks.
#[derive(Default)]
#[repr(C, packed)]
struct TaskState {
    reserved: u32,
    rsp: [u64; 3],
    reserved_1c: u64,
    ist: [u64; 7],
    reserved_5c: u64,
    reserved_64: u16,
    io_map: u16,
}

/// The tables. The processor has their addresses, so they stay where they are.
pub struct Tables {
    gdt: [u64; 5],
    task: TaskState,
    idt: [[u64; 2]; entry::VECTORS],
    _stacks: [Vec<u8>; 2],
}

impl Tables {
    pub fn new() -> Box<Tables> {
        let stacks = [vec![0; STACK], vec![0; STACK]];
        let top = |stack: &Vec<u8>| (stack.as_ptr() as u64 + STACK as u64) & !15;
        let ist = [top(&stacks[0]), top(&stacks[1]), 0, 0, 0, 0, 0];
        let task = TaskState { ist, ..TaskState::default() };
        let gate = |vector| {
            // An NMI may come while an interrupt's handler runs.
            let (handler, stack) = (entry::handler(vector), if vector == NMI { 2 } else { 1 });
            let low = handler & 0xffff | CODE_SELECTOR << 16 | stack << 32 | INTERRUPT_GATE << 32;
            [low | (handler >> 16 & 0xffff) << 48, handler >> 32]
        };
        let idt = std::array::from_fn(gate);
        let mut tables = Box::new(Tables { gdt: [0, CODE, DATA, 0, 0], task, idt, _stacks: stacks });
        // A busy task state segment, for VMLOAD and entries of VMX, which read it from here.
        let (base, limit) = (&raw const tables.task as u64, size_of::<TaskState>() as u64 - 1);
        tables.gdt[3] = limit | (base & 0xff_ffff) << 16 | 0x8b << 40 | (base >> 24 & 0xff) << 56;
        tables.gdt[4] = base >> 32;
        tables
    }

    /// What the processor is told.
    pub fn host(&self, fs_base: u64) -> Host {
        Host {
            gdt: self.gdt.as_ptr() as u64,
            gdt_limit: size_of_val(&self.gdt) as u64 - 1,
            idt: self.idt.as_ptr() as u64,
            idt_limit: size_of_val(&self.idt) as u64 - 1,
            tss: &raw const self.task as u64,
            tss_limit: size_of::<TaskState>() as u64 - 1,
            fs_base,
            system_call: entry::system_call as *const () as u64,
        }
    }
}
