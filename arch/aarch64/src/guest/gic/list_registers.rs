// SPDX-License-Identifier: MIT OR Apache-2.0
//! What goes into a vCPU's list registers at entry, and what they mean when they come back.
//!
//! **Principle.** With N list registers, the N candidates of the highest priority get one; among equals, active
//! ones come first, then lower numbers. So whatever is left out can neither be acknowledged nor (software ends
//! in the order of priority) be ended before one of those that are in.
//! - Something was left out: an underflow interrupt brings the processor back when at most one register is in
//!   use, while what is in it still is of higher priority than all that is out.
//! - An *active* one was left out: its end finds no list register and is counted in EOIcount, with an interrupt.
//! - Left out because the guest has its group disabled: an interrupt when it enables that group.
//!
//! A level-triggered interrupt is given either as pending or as active, never both: the line may fall while it
//! is active. While its line is high its end raises a maintenance interrupt, and the next entry gives it again.
//!
//! Source: Arm IHI 0069, chapter 6, and `ICH_LR<n>_EL2`, ICH_HCR_EL2, ICH_VMCR_EL2 in section 12.4.

use arrayvec::ArrayVec;

use super::{Borrowed, Gic, Irq, PRIVATE, WORD};
use crate::guest::layout::intid;

/// The most list registers that a processor has.
pub const LIST_REGISTERS_MAX: usize = 16;

/// `ICH_LR<n>_EL2`.
pub(super) mod lr {
    pub const VINTID: u64 = 0xffff_ffff;
    pub const PINTID_SHIFT: u32 = 32;
    /// Without HW: the end raises a maintenance interrupt.
    pub const EOI: u64 = 1 << 41;
    pub const PRIORITY_SHIFT: u32 = 48;
    pub const GROUP1: u64 = 1 << 60;
    pub const HW: u64 = 1 << 61;
    pub const PENDING: u64 = 1 << 62;
    pub const ACTIVE: u64 = 1 << 63;
}

/// ICH_HCR_EL2.
pub(super) mod hcr {
    pub const EN: u64 = 1;
    /// Underflow: at most one list register is in use.
    pub const UIE: u64 = 1 << 1;
    /// EOIcount is not zero.
    pub const LRENPIE: u64 = 1 << 2;
    pub const GROUP0_ENABLED_IE: u64 = 1 << 4;
    pub const GROUP0_DISABLED_IE: u64 = 1 << 5;
    pub const GROUP1_ENABLED_IE: u64 = 1 << 6;
    pub const GROUP1_DISABLED_IE: u64 = 1 << 7;
    /// ICC_DIR_EL1 is trapped.
    pub const TDIR: u64 = 1 << crate::el2::traps::TDIR;
    pub const EOI_COUNT_SHIFT: u32 = 27;
    pub const EOI_COUNT: u64 = 0x1f;
}

/// ICH_VMCR_EL2.
pub(super) mod vmcr {
    pub const GROUP0_ENABLED: u64 = 1;
    pub const GROUP1_ENABLED: u64 = 1 << 1;
    pub const PRIORITY_MASK_SHIFT: u32 = 24;
}

/// What the guest made of its virtual CPU interface: ICH_VMCR_EL2 as it was read at the last exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VCpuInterface {
    /// ICH_VMCR_EL2.
    pub vmcr: u64,
}

impl VCpuInterface {
    pub(super) const fn enables(self, group1: bool) -> bool {
        self.vmcr & if group1 { vmcr::GROUP1_ENABLED } else { vmcr::GROUP0_ENABLED } != 0
    }

    const fn priority_mask(self) -> u8 {
        (self.vmcr >> vmcr::PRIORITY_MASK_SHIFT) as u8
    }
}

/// What an entry needs beside the list registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Control {
    /// ICH_HCR_EL2: the interface enabled, and the maintenance interrupts that this entry needs. EOIcount is zero.
    pub hcr: u64,
    /// How many list registers, from the first, are in use. A guest can put nothing into the others.
    pub used: usize,
}

/// One that wants a list register. Ordered as they are chosen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Candidate {
    priority: u8,
    /// `false` sorts first.
    only_pending: bool,
    number: u32,
    pending: bool,
}

impl Gic {
    /// Before `vcpu` enters the guest: writes `registers` (those that the processor has, 1 to
    /// [`LIST_REGISTERS_MAX`]; unused ones become 0) and says what ICH_HCR_EL2 is to be. After [`Gic::sync`]
    /// of the same vCPU, and with nothing but changes told to [`Gic`] in between.
    pub fn fill(&mut self, vcpu: u16, registers: &mut [u64], interface: VCpuInterface) -> Control {
        registers.fill(0);
        // Whatever changed before is in what it gets now.
        self.wakes.remove(vcpu);
        let mut control = hcr::EN;
        // At most exits there is none.
        if self.is_idle(vcpu) {
            return Control { hcr: control, used: 0 };
        }
        let room = registers.len().min(LIST_REGISTERS_MAX);
        let mut chosen: ArrayVec<Candidate, LIST_REGISTERS_MAX> = ArrayVec::new();
        let mut overflow = false;
        let mut left_active = false;
        let mut consider = |number: u32, irq: &Irq| {
            let Some(candidate) = self.candidate(vcpu, number, irq, interface, &mut control) else {
                return;
            };
            let mut out = Some(candidate);
            let at = chosen.partition_point(|other| *other < candidate);
            if at < room {
                out = if chosen.len() == room { chosen.pop() } else { None };
                // There is room: one was taken out where there was none.
                let _ = chosen.try_insert(at, candidate);
            }
            if let Some(out) = out {
                overflow = true;
                left_active |= !out.only_pending;
            }
        };
        self.for_each_busy(vcpu, &mut consider);

        for (register, candidate) in registers.iter_mut().zip(&chosen) {
            if let Some(irq) = self.irq_mut(vcpu, candidate.number) {
                *register = lend(vcpu, irq, candidate);
            }
        }
        if overflow {
            if registers.len() > 1 {
                control |= hcr::UIE;
            } else {
                registers.iter_mut().filter(|register| **register & lr::HW == 0).for_each(|register| {
                    *register |= lr::EOI;
                });
            }
            // Those of the other group may be all that is left out.
            for (group1, bit) in [(false, hcr::GROUP0_DISABLED_IE), (true, hcr::GROUP1_DISABLED_IE)] {
                if interface.enables(group1) {
                    control |= bit;
                }
            }
        }
        if left_active {
            // One that is deactivated by its number says more than a count.
            control |= hcr::LRENPIE | hcr::TDIR;
        }
        Control { hcr: control, used: chosen.len() }
    }

    /// After `vcpu` left the guest: takes back what [`Gic::fill`] gave. `registers` and `hcr` are
    /// `ICH_LR<n>_EL2`, those in use and no others, and ICH_HCR_EL2 as they were read; they are then free, and the
    /// caller disables the interface.
    pub fn sync(&mut self, vcpu: u16, registers: &[u64], hcr: u64) {
        // Interrupt 0 of the highest priority in group 0 reads as zero when it has ended.
        for value in registers {
            let number = (value & lr::VINTID) as u32;
            let borrowed = self.irq(vcpu, number).and_then(|irq| irq.borrowed).filter(|b| b.vcpu == vcpu);
            if let Some(borrowed) = borrowed {
                let (pending, active) = (value & lr::PENDING != 0, value & lr::ACTIVE != 0);
                self.give_back(vcpu, number, borrowed, pending, active);
            }
        }
        let mut ended = hcr >> hcr::EOI_COUNT_SHIFT & hcr::EOI_COUNT;
        while ended > 0 && self.end_left_out(vcpu) {
            ended -= 1;
        }
    }

    fn give_back(&mut self, vcpu: u16, number: u32, borrowed: Borrowed, pending: bool, active: bool) {
        let Some(irq) = self.irq_mut(vcpu, number) else {
            return;
        };
        irq.borrowed = None;
        irq.active = active;
        irq.active_on = vcpu;
        if irq.edge || irq.physical.is_some() {
            irq.latch |= pending && !borrowed.withdrawn;
        } else if borrowed.pending && !pending {
            // Acknowledged: what software had set is served. The line speaks for itself.
            irq.latch = false;
        }
        self.touch(vcpu, number);
    }

    /// An end that found no list register: it is of the highest priority among the active ones that are out.
    fn end_left_out(&mut self, vcpu: u16) -> bool {
        let mut first: Option<(u8, u32)> = None;
        self.for_each_busy(vcpu, &mut |number, irq| {
            if irq.active && irq.active_on == vcpu && irq.borrowed.is_none() {
                let key = (irq.priority, number);
                first = Some(first.map_or(key, |first| first.min(key)));
            }
        });
        let Some((_, number)) = first else {
            return false;
        };
        self.deactivate(vcpu, number);
        true
    }

    /// `vcpu` wrote `number` to ICC_DIR_EL1, and that was trapped.
    pub fn deactivate(&mut self, vcpu: u16, number: u32) {
        self.change(vcpu, number, |irq| irq.active = false);
    }

    /// Whether an interrupt would be signalled to `vcpu` now: what ends WFI. After [`Gic::sync`].
    pub fn has_pending(&self, vcpu: u16, interface: VCpuInterface) -> bool {
        let mut found = false;
        self.for_each_busy(vcpu, &mut |number, irq| {
            let candidate = self.candidate(vcpu, number, irq, interface, &mut 0);
            found |= candidate.is_some_and(|c| c.only_pending && c.priority < interface.priority_mask());
        });
        found
    }

    /// Whether no interrupt concerns `vcpu`.
    fn is_idle(&self, vcpu: u16) -> bool {
        self.vcpus.get(usize::from(vcpu)).is_none_or(|redistributor| redistributor.busy == 0)
            && self.busy.iter().all(|word| *word == 0)
    }

    /// Calls `with` for every interrupt that may concern `vcpu`.
    fn for_each_busy(&self, vcpu: u16, with: &mut dyn FnMut(u32, &Irq)) {
        let Some(redistributor) = self.vcpus.get(usize::from(vcpu)) else {
            return;
        };
        let private = core::iter::once((0, u64::from(redistributor.busy)));
        let shared = (intid::SPI..).step_by(WORD as usize).zip(self.busy.iter().copied());
        for (first, mut word) in private.chain(shared) {
            while word != 0 {
                let number = first + word.trailing_zeros();
                word &= word - 1;
                if let Some(irq) = self.irq(vcpu, number) {
                    with(number, irq);
                }
            }
        }
    }

    /// What a list register of `vcpu` would say of an interrupt. Where its group is disabled by the CPU
    /// interface, an interrupt is added to `control` instead.
    fn candidate(
        &self,
        vcpu: u16,
        number: u32,
        irq: &Irq,
        interface: VCpuInterface,
        control: &mut u64,
    ) -> Option<Candidate> {
        if irq.borrowed.is_some() {
            return None;
        }
        let active = irq.active && irq.active_on == vcpu;
        if irq.active && !active {
            return None;
        }
        // One that is mapped is pending at the physical interrupt controller while it is active.
        let both = irq.edge && irq.physical.is_none();
        let wanted = irq.enabled
            && irq.pending()
            && self.ctlr & irq.group_enable() != 0
            && !self.asleep(vcpu)
            && (both || !active)
            && self.target(vcpu, number) == Some(vcpu);
        let pending = wanted && interface.enables(irq.group1);
        if wanted && !pending {
            *control |= if irq.group1 { hcr::GROUP1_ENABLED_IE } else { hcr::GROUP0_ENABLED_IE };
        }
        (active || pending).then_some(Candidate {
            priority: irq.priority,
            only_pending: !active,
            number,
            pending,
        })
    }
}

/// The list register of a chosen interrupt, which is borrowed from then on.
fn lend(vcpu: u16, irq: &mut Irq, candidate: &Candidate) -> u64 {
    let mut value = u64::from(candidate.number) | u64::from(irq.priority) << lr::PRIORITY_SHIFT;
    if irq.group1 {
        value |= lr::GROUP1;
    }
    if !candidate.only_pending {
        value |= lr::ACTIVE;
    }
    if candidate.pending {
        value |= lr::PENDING;
    }
    match irq.physical {
        Some(physical) => value |= lr::HW | u64::from(physical) << lr::PINTID_SHIFT,
        None if !irq.edge && irq.pending() => value |= lr::EOI,
        None => {}
    }
    if candidate.pending && (irq.edge || irq.physical.is_some()) {
        irq.latch = false;
    }
    irq.borrowed = Some(Borrowed { vcpu, pending: candidate.pending, withdrawn: false });
    value
}

const _: () = assert!(PRIVATE <= u32::BITS);
