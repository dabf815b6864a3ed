// SPDX-License-Identifier: MIT OR Apache-2.0
//! A GICv3 as a guest sees it: one distributor, one redistributor per vCPU, no ITS and no LPIs.
//!
//! **Principle.** The state of every interrupt is here; the processor's list registers only borrow it. A vCPU
//! that enters the guest takes with it what [`Gic::fill`] gives, and [`Gic::sync`] takes it back at the exit.
//! What the guest does to ICC_* registers meanwhile (acknowledge, priority, end) needs nobody; what it does to
//! distributor and redistributor exits and comes to [`Gic::read`] and [`Gic::write`].
//! **Invariants.**
//! - An interrupt is in the list registers of at most one vCPU.
//! - No pending interrupt is lost, however many there are: those that have no list register wait here, and
//!   [`Control`] has the processor exit as soon as one can be had, or as soon as the guest enables their group.
//! - Whatever changes what a vCPU would be given is told by [`Gic::take_wakes`]; whoever runs that vCPU has it
//!   exit and enter again.
//!
//! A write to the distributor finds what *another* vCPU has in its list registers at that vCPU's next exit, not
//! at once: as on hardware, where such a write has no completion for interrupts already taken.
//!
//! There is one Security state (GICD_CTLR.DS), affinity routing is always on, priorities have 5 bits (the least
//! that the virtual CPU interface has), PPIs are level-triggered, SGIs edge-triggered.
//!
//! Source: Arm IHI 0069 (GICv3 and GICv4), chapters 2, 4, 6 and 12.

mod access;
mod list_registers;
mod registers;
mod sgi;

#[cfg(test)]
pub(super) mod tests;

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::vm::exit::MsiMessage;

use super::layout::{self, intid};
use registers::ctlr;

pub use access::Window;
pub use list_registers::{Control, LIST_REGISTERS_MAX, VCpuInterface};
pub use sgi::SgiGroup;

/// Private INTIDs of a vCPU: SGIs and PPIs.
const PRIVATE: u32 = intid::SPI;
const SGIS: u32 = intid::PPI;
/// Priority bits that exist.
const PRIORITY_MASK: u8 = 0xf8;
const WORD: u32 = u64::BITS;

/// A set of vCPUs, a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VcpuSet(u64);

impl VcpuSet {
    /// Adds a vCPU.
    pub fn insert(&mut self, vcpu: u16) {
        self.0 |= 1 << (u32::from(vcpu) % WORD);
    }

    /// Takes one out.
    pub fn remove(&mut self, vcpu: u16) {
        self.0 &= !(1 << (u32::from(vcpu) % WORD));
    }

    /// Whether it has the vCPU.
    pub fn contains(self, vcpu: u16) -> bool {
        self.0 & 1 << (u32::from(vcpu) % WORD) != 0
    }

    /// The vCPUs in it, ascending.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        (0..WORD as u16).filter(move |vcpu| self.contains(*vcpu))
    }
}

/// Who has an interrupt in a list register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Borrowed {
    vcpu: u16,
    /// It was given as pending.
    pending: bool,
    /// The guest took the pending state back since.
    withdrawn: bool,
}

/// State of one interrupt.
#[derive(Clone, Copy, Debug)]
struct Irq {
    enabled: bool,
    group1: bool,
    edge: bool,
    /// Pending whatever the line says: an edge, a message to an edge-triggered SPI, an SGI, or set by software.
    latch: bool,
    /// Level of the line.
    line: bool,
    active: bool,
    /// Where it is active.
    active_on: u16,
    priority: u8,
    /// Physical interrupt that its end deactivates as well.
    physical: Option<u16>,
    borrowed: Option<Borrowed>,
}

impl Irq {
    const fn new(edge: bool) -> Self {
        Self {
            enabled: false,
            group1: false,
            edge,
            latch: false,
            line: false,
            active: false,
            active_on: 0,
            priority: 0,
            physical: None,
            borrowed: None,
        }
    }

    /// Pending outside of the list registers.
    const fn pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }

    /// Pending as software sees it, as far as is known.
    fn pending_anywhere(&self) -> bool {
        self.pending() || self.borrowed.is_some_and(|b| b.pending && self.edge && !b.withdrawn)
    }

    /// Its bit in GICD_CTLR.
    const fn group_enable(&self) -> u32 {
        if self.group1 { ctlr::ENABLE_GROUP1 } else { ctlr::ENABLE_GROUP0 }
    }
}

/// A shared interrupt.
#[derive(Clone, Copy, Debug)]
struct Spi {
    irq: Irq,
    /// GICD_IROUTER: affinity.
    route: u64,
}

/// What belongs to one vCPU.
#[derive(Clone, Debug)]
struct Redistributor {
    irqs: [Irq; PRIVATE as usize],
    /// INTIDs that are pending, active or in a list register, a bit each.
    busy: u32,
    asleep: bool,
}

/// The interrupt controller of one VM.
#[derive(Clone, Debug)]
pub struct Gic {
    /// GICD_CTLR, the writable bits.
    ctlr: u32,
    spis: Box<[Spi]>,
    /// SPIs that are pending, active or in a list register, a bit each from [`intid::SPI`].
    busy: Vec<u64>,
    vcpus: Vec<Redistributor>,
    wakes: VcpuSet,
}

impl Gic {
    /// After reset: nothing enabled, every SPI routed to the first vCPU. `vcpus` is 1..=
    /// [`layout::VCPUS_MAX`].
    ///
    /// # Errors
    /// When `vcpus` is outside of that.
    pub fn new(vcpus: u16) -> Result<Self, Refusal> {
        if vcpus == 0 || vcpus > layout::VCPUS_MAX {
            return Err(Refusal::new(
                "vCPUs",
                format!("{vcpus} have no room in the interrupt controller"),
                format!("use 1 to {}", layout::VCPUS_MAX),
            ));
        }
        let mut private = [Irq::new(false); PRIVATE as usize];
        private[..SGIS as usize].fill(Irq::new(true));
        let redistributor = Redistributor {
            irqs: private,
            busy: 0,
            // As KVM has it: a guest that never wakes it gets its interrupts all the same.
            asleep: false,
        };
        let spis = (intid::COUNT - intid::SPI) as usize;
        let spi = Spi { irq: Irq::new(false), route: 0 };
        Ok(Self {
            ctlr: 0,
            spis: vec![spi; spis].into_boxed_slice(),
            busy: vec![0; spis.div_ceil(WORD as usize)],
            vcpus: vec![redistributor; usize::from(vcpus)],
            wakes: VcpuSet::default(),
        })
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> u16 {
        self.vcpus.len() as u16
    }

    /// An interrupt: a private one of `vcpu`, or a shared one.
    fn irq(&self, vcpu: u16, number: u32) -> Option<&Irq> {
        match number.checked_sub(intid::SPI) {
            None => self.vcpus.get(usize::from(vcpu))?.irqs.get(number as usize),
            Some(index) => self.spis.get(index as usize).map(|spi| &spi.irq),
        }
    }

    fn irq_mut(&mut self, vcpu: u16, number: u32) -> Option<&mut Irq> {
        match number.checked_sub(intid::SPI) {
            None => self.vcpus.get_mut(usize::from(vcpu))?.irqs.get_mut(number as usize),
            Some(index) => self.spis.get_mut(index as usize).map(|spi| &mut spi.irq),
        }
    }

    /// The vCPU that an interrupt goes to; `None` where its route leads nowhere.
    fn target(&self, vcpu: u16, number: u32) -> Option<u16> {
        match number.checked_sub(intid::SPI) {
            None => Some(vcpu),
            Some(index) => {
                let route = self.spis.get(index as usize)?.route;
                layout::vcpu_of_affinity(route).filter(|target| *target < self.vcpus())
            }
        }
    }

    /// After every change to an interrupt: keeps the index, and notes whom the change may concern.
    fn touch(&mut self, vcpu: u16, number: u32) {
        let Some(irq) = self.irq(vcpu, number).copied() else {
            return;
        };
        let busy = irq.pending() || irq.active || irq.borrowed.is_some();
        match number.checked_sub(intid::SPI) {
            None => {
                if let Some(redistributor) = self.vcpus.get_mut(usize::from(vcpu)) {
                    redistributor.busy = redistributor.busy & !(1 << number) | u32::from(busy) << number;
                }
            }
            Some(index) => {
                if let Some(word) = self.busy.get_mut((index / WORD) as usize) {
                    let bit = index % WORD;
                    *word = *word & !(1 << bit) | u64::from(busy) << bit;
                }
            }
        }
        if let Some(borrowed) = irq.borrowed {
            self.wakes.insert(borrowed.vcpu);
        }
        if irq.enabled
            && irq.pending()
            && let Some(target) = self.target(vcpu, number)
        {
            self.wakes.insert(target);
        }
    }

    /// Changes one interrupt; nothing where there is none of that number.
    fn change(&mut self, vcpu: u16, number: u32, change: impl FnOnce(&mut Irq)) {
        if let Some(irq) = self.irq_mut(vcpu, number) {
            change(irq);
            self.touch(vcpu, number);
        }
    }

    /// The vCPUs whose next entry would be different, since the last call: those of them that run or sleep
    /// must come out of the guest, or wake, and be filled again.
    pub fn take_wakes(&mut self) -> VcpuSet {
        core::mem::take(&mut self.wakes)
    }

    /// Drives the line of a shared interrupt; numbers that do not exist are ignored.
    pub fn set_spi_line(&mut self, number: u32, level: bool) {
        if number >= intid::SPI {
            self.change(0, number, |irq| drive(irq, level));
        }
    }

    /// Drives the line of a private peripheral interrupt of `vcpu`, the virtual timer's for instance.
    ///
    /// Where the PPI is mapped ([`Gic::map_physical`]), `true` means that the physical interrupt was taken and
    /// is active; it is told once, and the guest's end of it deactivates both. `false` takes back what the
    /// guest has not acknowledged; the caller deactivates the physical interrupt then.
    pub fn set_ppi_line(&mut self, vcpu: u16, number: u32, level: bool) {
        if (intid::PPI..intid::SPI).contains(&number) {
            self.change(vcpu, number, |irq| {
                if irq.physical.is_some() {
                    irq.latch = level;
                    withdraw(irq, !level);
                } else {
                    drive(irq, level);
                }
            });
        }
    }

    /// Has the guest's end of a PPI of `vcpu` deactivate physical interrupt `physical` (a PPI or SPI, below
    /// 1020) too, through the HW bit of its list register; `None` ends that. While the PPI is not active.
    pub fn map_physical(&mut self, vcpu: u16, number: u32, physical: Option<u16>) {
        if (intid::PPI..intid::SPI).contains(&number) {
            self.change(vcpu, number, |irq| irq.physical = physical);
        }
    }

    /// Whether a private interrupt of `vcpu` is pending, and whether it is active. After [`Gic::sync`].
    pub fn ppi_state(&self, vcpu: u16, number: u32) -> (bool, bool) {
        let irq = self.irq(vcpu, number).filter(|_| number < PRIVATE);
        irq.map_or((false, false), |irq| (irq.pending(), irq.active))
    }

    /// A message-signalled interrupt on the guest's bus. `false`: it is not meant for the interrupt controller,
    /// or names no SPI.
    pub fn message(&mut self, message: MsiMessage) -> bool {
        let named = (intid::SPI..intid::COUNT).contains(&message.data);
        let ours = message.address == layout::MSI_DOORBELL;
        if named && ours {
            self.set_spi(message.data, true);
        }
        named && ours
    }

    /// GICD_SETSPI_NSR and GICD_CLRSPI_NSR.
    fn set_spi(&mut self, number: u32, pending: bool) {
        if number < intid::SPI {
            return;
        }
        self.change(0, number, |irq| {
            if irq.edge {
                irq.latch = pending;
                withdraw(irq, !pending);
            } else {
                irq.line = pending;
            }
        });
    }
}

/// The pending state in a list register, where there is one, stands no more.
fn withdraw(irq: &mut Irq, condition: bool) {
    if condition && let Some(borrowed) = &mut irq.borrowed {
        borrowed.withdrawn = true;
    }
}

fn drive(irq: &mut Irq, level: bool) {
    irq.latch |= irq.edge && level && !irq.line;
    irq.line = level;
}
