// SPDX-License-Identifier: MIT OR Apache-2.0
//! Segments and the task state segment of a pCPU. Flat segments only; the TSS is there for the stacks of the
//! exceptions that may come when the normal stack is the problem, or in the middle of anything.
//!
//! Source: APM volume 2, 4.8 and 12.2.5; 8.9.4 (interrupt-stack table).

use alloc::boxed::Box;

use pasidon_kernel::base::refusal::Refusal;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use crate::stack::{self, EXCEPTION_STACK_BYTES, Stack};

/// Selector of the hypervisor's code segment, on every pCPU.
pub const CODE_SELECTOR: u16 = 0x08;
/// Selector of its data segment.
pub const DATA_SELECTOR: u16 = 0x10;
/// Selector of the pCPU's TSS.
pub const TSS_SELECTOR: u16 = 0x18;

/// Interrupt-stack table entries, counted from 1 as a gate does.
pub mod ist {
    /// #DF: the stack may be gone.
    pub const DOUBLE_FAULT: u8 = 1;
    /// NMI: comes anywhere.
    pub const NMI: u8 = 2;
    /// #MC: comes anywhere.
    pub const MACHINE_CHECK: u8 = 3;
    /// All of them.
    pub const ALL: [u8; 3] = [DOUBLE_FAULT, NMI, MACHINE_CHECK];
}

/// Those of one pCPU.
#[derive(Debug)]
pub(crate) struct Descriptors {
    gdt: &'static GlobalDescriptorTable,
    /// The exception stacks, in the order of [`ist::ALL`].
    pub(crate) stacks: [Stack; ist::ALL.len()],
}

impl Descriptors {
    /// What the exception stacks take, in bytes.
    pub(crate) const STACKS_BYTES: u64 = ist::ALL.len() as u64 * Stack::room(EXCEPTION_STACK_BYTES);

    /// New ones. After `paging::install`.
    pub(crate) fn new() -> Result<Self, Refusal> {
        let mut tss = TaskStateSegment::new();
        let mut stacks = [Stack { bottom: 0, top: 0 }; ist::ALL.len()];
        for (stack, entry) in stacks.iter_mut().zip(ist::ALL) {
            *stack = stack::new(EXCEPTION_STACK_BYTES)?;
            tss.interrupt_stack_table[usize::from(entry) - 1] = VirtAddr::new(stack.top);
        }
        let tss: &'static TaskStateSegment = Box::leak(Box::new(tss));
        let mut gdt = GlobalDescriptorTable::new();
        gdt.append(Descriptor::kernel_code_segment());
        gdt.append(Descriptor::kernel_data_segment());
        gdt.append(Descriptor::tss_segment(tss));
        Ok(Self { gdt: Box::leak(Box::new(gdt)), stacks })
    }

    /// Makes them those of this processor. GS base is lost.
    ///
    /// # Safety
    /// Only one processor may use them, with interrupts off.
    pub(crate) unsafe fn load(&self) {
        let data = SegmentSelector(DATA_SELECTOR);
        self.gdt.load();
        // SAFETY: `new` has put flat segments and the TSS at these selectors.
        unsafe {
            CS::set_reg(SegmentSelector(CODE_SELECTOR));
            SS::set_reg(data);
            DS::set_reg(data);
            ES::set_reg(data);
            FS::set_reg(SegmentSelector::NULL);
            GS::set_reg(SegmentSelector::NULL);
            load_tss(SegmentSelector(TSS_SELECTOR));
        }
    }
}
