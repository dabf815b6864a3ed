// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local APIC of one vCPU: xAPIC and x2APIC.
//!
//! **Principle.** A plain value that lives in its vCPU: no lock, no allocation, no clock. The caller
//! supplies the guest's TSC where time matters, asks [`LocalApic::pending`] before it enters the guest,
//! and says [`LocalApic::acknowledge`] when the processor took the interrupt.
//! **Invariant.** A vector is delivered only if its priority class is above that of PPR, and only while
//! the APIC is enabled by software; what is in service is never delivered a second time.
//!
//! Source: Intel SDM volume 3A, chapter 11 "Advanced Programmable Interrupt Controller (APIC)".

mod page;
mod registers;
mod timer;

#[cfg(test)]
mod tests;

use alloc::sync::Arc;

use pasidon_kernel::vm::exit::MsiMessage;

pub use page::ApicPage;
use page::{Sets, Vectors};
pub use registers::{MSR_APIC_BASE, MSR_TSC_DEADLINE, X2APIC_MSR_FIRST, X2APIC_MSR_LAST};
use timer::Timer;

/// Register numbers: memory offset / 16.
mod reg {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const IRR_LAST: u32 = 0x27;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// IA32_APIC_BASE bits.
mod apic_base {
    pub const BSP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
}

/// SVR bit 8: the APIC is enabled by software.
const SVR_ENABLE: u32 = 1 << 8;
/// Mask bit of an LVT entry.
const LVT_MASKED: u32 = 1 << 16;

/// Error status register bits.
mod esr {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Indices of the local vector table, in the order of their registers.
mod lvt {
    pub const TIMER: usize = 0;
    pub const THERMAL: usize = 1;
    pub const PERFORMANCE: usize = 2;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;
    pub const COUNT: usize = 6;
}

/// Delivery modes, as in ICR, LVT entries and messages.
mod delivery {
    pub const FIXED: u32 = 0;
    pub const LOWEST_PRIORITY: u32 = 1;
    pub const NMI: u32 = 4;
}

/// Destination of a message: every processor.
const MSI_EVERYONE: u32 = 0xff;
/// Trigger mode in a message's data.
const LEVEL: u32 = 1 << 15;

/// Where an interrupt message goes, and whether that is logical; `None` for other writes.
fn destination(message: MsiMessage) -> Option<(u32, bool)> {
    const ADDRESS_TOP: u64 = 0xfee;
    let destination = (message.address >> 12) as u32 & 0xff;
    (message.address >> 20 == ADDRESS_TOP).then_some((destination, message.address & 1 << 2 != 0))
}

/// The first vector that is not an exception.
const FIRST_VECTOR: u8 = 16;

/// How software reaches the registers: IA32_APIC_BASE bits 11:10.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicMode {
    /// The APIC is off.
    Disabled,
    /// Registers in memory at 0xFEE0_0000.
    XApic,
    /// Registers as MSRs 0x800..=0x8FF.
    X2Apic,
}

/// What an access to the APIC asks of the world outside this vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicEvent {
    /// A level-triggered interrupt was ended: the I/O APIC must hear of it.
    EndOfInterrupt {
        /// Its vector.
        vector: u8,
    },
    /// An inter-processor interrupt that other vCPUs may be meant by. Delivery to the sender itself has
    /// been done already.
    Ipi(Ipi),
}

/// What a processor that delivers interrupts by itself must know of them besides the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupts {
    /// The highest one in IRR.
    pub requested: Option<u8>,
    /// The highest one in ISR.
    pub in_service: Option<u8>,
    /// TMR, the lowest vectors first: the I/O APIC must hear of their end.
    pub level_triggered: [u64; 4],
}

/// An inter-processor interrupt: ICR, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipi {
    /// Vector.
    pub vector: u8,
    /// Delivery mode, ICR bits 10:8.
    pub delivery_mode: u8,
    /// Destination mode: logical if set.
    pub logical: bool,
    /// Destination, 8 bits in xAPIC mode, 32 bits in x2APIC mode; all ones is everyone.
    pub destination: u32,
    /// Shorthand "all excluding self" or "all including self": `destination` does not count.
    pub all: bool,
}

/// The local APIC of one vCPU.
#[derive(Debug)]
pub struct LocalApic {
    id: u32,
    base: u64,
    /// ISR, TMR and IRR; in the same page is TPR.
    sets: Sets,
    /// xAPIC only; bits 31:24.
    ldr: u32,
    /// xAPIC only; bits 31:28.
    dfr: u32,
    svr: u32,
    esr: u32,
    /// Errors since the last write to ESR.
    errors: u32,
    icr: u64,
    lvt: [u32; lvt::COUNT],
    timer: Timer,
    nmi: bool,
}

impl LocalApic {
    /// The APIC after reset: on, in xAPIC mode, disabled by software. `id` 0 is the bootstrap processor.
    pub fn new(id: u32) -> Self {
        Self::reset(id, ApicPage::new())
    }

    fn reset(id: u32, page: Arc<ApicPage>) -> Self {
        let bsp = if id == 0 { apic_base::BSP } else { 0 };
        Self {
            id,
            base: super::layout::LAPIC_BASE | apic_base::ENABLE | bsp,
            sets: Sets::clear(page),
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; lvt::COUNT],
            timer: Timer::new(),
            nmi: false,
        }
    }

    /// The page with those registers that processors can use.
    pub const fn page(&self) -> &Arc<ApicPage> {
        &self.sets.page
    }

    /// Whether a processor that knows nothing but that page may deliver its interrupts: it does not ask whether the APIC is
    /// enabled by software, and serves the registers as MSRs.
    #[inline]
    pub fn suits_processor(&self) -> bool {
        self.mode() == ApicMode::X2Apic && self.svr & SVR_ENABLE != 0
    }

    /// The processor was in the guest, and may have delivered interrupts by itself.
    pub fn used_by_processor(&mut self) {
        self.sets.used_by_processor();
    }

    /// What the processor must be told before it goes on to deliver by itself; `None` where nothing has changed since.
    #[inline]
    pub fn take_changes(&mut self) -> Option<Interrupts> {
        let sets = &mut self.sets;
        sets.take_changed().then(|| Interrupts {
            requested: sets.highest(Vectors::Requested),
            in_service: sets.highest(Vectors::InService),
            level_triggered: sets.words(Vectors::LevelTriggered),
        })
    }

    /// The APIC ID.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Off, xAPIC or x2APIC.
    pub const fn mode(&self) -> ApicMode {
        match (self.base & apic_base::ENABLE != 0, self.base & apic_base::X2APIC != 0) {
            (false, _) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
        }
    }

    fn software_enabled(&self) -> bool {
        self.mode() != ApicMode::Disabled && self.svr & SVR_ENABLE != 0
    }

    /// Takes a fixed interrupt: it waits in IRR until its priority is served. Dropped while the APIC is
    /// off or disabled by software, as hardware does.
    pub fn accept(&mut self, vector: u8, level: bool) {
        if !self.software_enabled() {
            return;
        }
        if vector < FIRST_VECTOR {
            self.error(esr::RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.sets.insert(Vectors::Requested, vector);
        if level {
            self.sets.insert(Vectors::LevelTriggered, vector);
        } else {
            self.sets.remove(Vectors::LevelTriggered, vector);
        }
    }

    /// Takes an interrupt message if it is addressed to this vCPU; says whether it was.
    pub fn accept_message(&mut self, message: MsiMessage) -> bool {
        let Some((destination, logical)) = destination(message) else {
            return false;
        };
        if !self.is_destination(destination, logical, destination == MSI_EVERYONE) {
            return false;
        }
        let level = message.data & LEVEL != 0;
        self.deliver((message.data >> 8) & 7, message.data as u8, level);
        true
    }

    /// The vector that a message can be posted as: that of an edge-triggered interrupt for this vCPU, in x2APIC mode, where
    /// software does not choose its logical destination. A guest that leaves that mode without programming its devices anew
    /// gets their interrupts as before.
    pub fn posts(&self, message: MsiMessage) -> Option<u8> {
        let (destination, logical) = destination(message)?;
        let delivery_mode = (message.data >> 8) & 7;
        let fixed = matches!(delivery_mode, delivery::FIXED | delivery::LOWEST_PRIORITY);
        let level = message.data & LEVEL != 0;
        let vector = message.data as u8;
        let here = self.mode() == ApicMode::X2Apic
            && self.is_destination(destination, logical, destination == MSI_EVERYONE);
        (here && fixed && !level && vector >= FIRST_VECTOR).then_some(vector)
    }

    /// The vector to inject now, if the guest's interrupt flag allows one: the highest in IRR whose
    /// priority class is above PPR.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        self.highest_requested().filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// The highest vector waiting, whatever TPR says: what a TPR threshold is set from.
    #[inline]
    pub fn highest_requested(&self) -> Option<u8> {
        self.sets.highest(Vectors::Requested).filter(|_| self.software_enabled())
    }

    /// The processor took `vector`: it moves from IRR to ISR.
    pub fn acknowledge(&mut self, vector: u8) {
        if self.sets.contains(Vectors::Requested, vector) {
            self.sets.remove(Vectors::Requested, vector);
            self.sets.insert(Vectors::InService, vector);
        }
    }

    /// The processor could not deliver `vector` after all: it waits again.
    pub fn take_back(&mut self, vector: u8) {
        if self.sets.contains(Vectors::InService, vector) {
            self.sets.remove(Vectors::InService, vector);
            self.sets.insert(Vectors::Requested, vector);
        }
    }

    /// Takes the pending NMI, if there is one.
    pub fn take_nmi(&mut self) -> bool {
        core::mem::take(&mut self.nmi)
    }

    /// When the timer wants to be looked at, in guest TSC ticks; `None` while it would do nothing.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.lvt[lvt::TIMER] & LVT_MASKED != 0 {
            return None;
        }
        self.timer.deadline()
    }

    /// Looks at the timer: raises its interrupt if it expired by guest TSC `now`. Harmless when early.
    pub fn timer_expired(&mut self, now: u64) {
        if self.timer.expire(now) {
            self.fire(lvt::TIMER);
        }
    }

    /// The guest has written its TSC, which reads `delta` more than before, modulo 2⁶⁴.
    pub fn tsc_moved(&mut self, delta: u64) {
        self.timer.tsc_moved(delta);
    }

    /// CR8: the task priority class, 0..=15.
    pub fn cr8(&self) -> u8 {
        self.sets.page.class()
    }

    /// Sets the task priority from CR8, for processors that keep it elsewhere while the guest runs.
    pub fn set_cr8(&mut self, class: u8) {
        self.sets.page.set_class(class);
    }

    /// Processor priority.
    fn ppr(&self) -> u8 {
        let in_service = self.sets.highest(Vectors::InService).unwrap_or(0);
        let tpr = self.sets.page.get(reg::TPR) as u8;
        if tpr >> 4 >= in_service >> 4 { tpr } else { in_service & 0xf0 }
    }

    /// Ends the interrupt in service with the highest priority.
    fn end_of_interrupt(&mut self) -> Option<ApicEvent> {
        let vector = self.sets.highest(Vectors::InService)?;
        self.sets.remove(Vectors::InService, vector);
        self.sets.contains(Vectors::LevelTriggered, vector).then_some(ApicEvent::EndOfInterrupt { vector })
    }

    /// Whether an interrupt is in service whose end concerns nobody else: it is edge-triggered, and none waits.
    #[inline]
    pub fn ends_silently(&self) -> bool {
        let sets = &self.sets;
        sets.highest(Vectors::InService).is_some_and(|vector| !sets.contains(Vectors::LevelTriggered, vector))
            && sets.highest(Vectors::Requested).is_none()
    }

    /// The guest has ended the interrupt that [`LocalApic::ends_silently`] was asked about.
    pub fn end_silently(&mut self) {
        // It is edge-triggered: there is nothing to tell.
        let _ = self.end_of_interrupt();
    }

    /// Notes an error and raises the error interrupt, once per bit until software looked.
    fn error(&mut self, bit: u32) {
        if self.errors & bit == 0 {
            self.errors |= bit;
            self.fire(lvt::ERROR);
        }
    }

    /// Raises a local interrupt.
    fn fire(&mut self, index: usize) {
        let entry = self.lvt[index];
        if entry & LVT_MASKED != 0 {
            return;
        }
        // Timer and error entries have no delivery mode; their bits 10:8 are zero, which is fixed.
        self.deliver((entry >> 8) & 7, entry as u8, false);
    }

    fn deliver(&mut self, delivery_mode: u32, vector: u8, level: bool) {
        match delivery_mode {
            delivery::FIXED | delivery::LOWEST_PRIORITY => self.accept(vector, level),
            delivery::NMI => self.nmi = true,
            // There is no SMM, no 8259 and no INIT for the only processor.
            _ => {}
        }
    }

    /// Logical ID: programmed in xAPIC mode, derived from the ID in x2APIC mode.
    fn logical_id(&self) -> u32 {
        if self.mode() == ApicMode::X2Apic { (self.id >> 4) << 16 | 1 << (self.id & 0xf) } else { self.ldr }
    }

    fn is_destination(&self, destination: u32, logical: bool, broadcast: bool) -> bool {
        if broadcast {
            return true;
        }
        if !logical {
            return destination == self.id;
        }
        let own = self.logical_id();
        if self.mode() == ApicMode::X2Apic {
            return destination >> 16 == own >> 16 && destination & own & 0xffff != 0;
        }
        let own = own >> 24;
        if self.dfr >> 28 == 0xf {
            destination & own != 0
        } else {
            destination >> 4 == own >> 4 && destination & own & 0xf != 0
        }
    }

    /// A write to ICR: delivers to this vCPU if it is meant, and reports what others may be meant by.
    fn send(&mut self) -> Option<ApicEvent> {
        let low = self.icr as u32;
        let vector = low as u8;
        let delivery_mode = (low >> 8) & 7;
        let logical = low & 1 << 11 != 0;
        let (destination, everyone) = match self.mode() {
            ApicMode::X2Apic => ((self.icr >> 32) as u32, u32::MAX),
            _ => ((self.icr >> 56) as u32, 0xff),
        };
        if matches!(delivery_mode, delivery::FIXED | delivery::LOWEST_PRIORITY) && vector < FIRST_VECTOR {
            self.error(esr::SEND_ILLEGAL_VECTOR);
            return None;
        }
        let (to_self, to_others, all) = match (low >> 18) & 3 {
            0 => {
                let broadcast = destination == everyone;
                let to_self = self.is_destination(destination, logical, broadcast);
                (to_self, broadcast || logical || !to_self, false)
            }
            1 => (true, false, false),
            2 => (true, true, true),
            _ => (false, true, true),
        };
        if to_self {
            self.deliver(delivery_mode, vector, false);
        }
        let ipi = Ipi { vector, delivery_mode: delivery_mode as u8, logical, destination, all };
        to_others.then_some(ApicEvent::Ipi(ipi))
    }
}
