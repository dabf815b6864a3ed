// SPDX-License-Identifier: MIT OR Apache-2.0
//! One vCPU: what it is made of, and how interrupts reach it.
//!
//! **Principle.** What only the running vCPU touches ([`Core`]) is behind one lock that its pCPU takes for a
//! whole turn, so that exits take none. Others reach a vCPU through its inbox: they leave an interrupt
//! message and, where the vCPU is in the guest, kick its pCPU.
//! **Invariant.** A message is never missed: the vCPU says that it is in the guest *before* it looks at the
//! inbox for the last time, and the sender looks at that *after* it has put the message in.

use alloc::string::String;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use pasidon_kernel::addr::HostPhys;
use pasidon_kernel::exit::MsiMessage;
use pasidon_kernel::sched::Seat;
use spin::Mutex;

use crate::backend::{Backend, Event, Window};
use crate::emulate::Exception;
use crate::extended::{Extended, ExtendedFeatures};
use crate::guest::cpuid::{CpuidConfig, CpuidPolicy};
use crate::guest::lapic::LocalApic;
use crate::guest::msr::Msrs;
use crate::guest::pvclock::GuestClock;
use crate::svm::SvmVcpu;
use crate::time;

/// Different messages that can wait at once. A guest has one per interrupt source; two of the same are one.
const INBOX: usize = 256;

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    /// Its place.
    pub seat: Seat,
    inbox: Mutex<ArrayVec<MsiMessage, INBOX>>,
    has_mail: AtomicBool,
    lost: AtomicU64,
    in_guest: AtomicBool,
    flush: AtomicBool,
    ended: AtomicBool,
    /// What its pCPU works with.
    pub core: Mutex<Core>,
}

/// The part of a vCPU that only its pCPU touches.
pub struct Core {
    /// The processor's part.
    pub hardware: SvmVcpu,
    /// Its local APIC.
    pub lapic: LocalApic,
    /// Its MSRs.
    pub msrs: Msrs,
    /// What CPUID says.
    pub cpuid: CpuidPolicy,
    /// Its clock.
    pub clock: GuestClock,
    /// Floating point and the like.
    pub extended: Extended,
    /// Added to the host's TSC.
    pub tsc_offset: u64,
    /// It waits for an interrupt.
    pub halted: bool,
    /// An exception to deliver next.
    pub exception: Option<Exception>,
    /// An NMI to deliver next.
    nmi: bool,
}

impl core::fmt::Debug for Core {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Core")
            .field("hardware", &self.hardware)
            .field("halted", &self.halted)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// A vCPU after reset. `stage2` is the root of its VM's stage 2.
    pub fn new(vm: &str, stage2: HostPhys, physical_bits: u8) -> Self {
        let tsc_offset = time::tsc().wrapping_neg();
        let features = ExtendedFeatures::detect();
        let config = CpuidConfig {
            apic_id: 0,
            physical_bits,
            invariant_tsc: true,
            xcr0: features.xcr0,
            tsc_aux: features.tsc_aux,
        };
        Self {
            hardware: SvmVcpu::new(stage2, tsc_offset),
            lapic: LocalApic::new(0),
            msrs: Msrs::new(String::from(vm)),
            cpuid: CpuidPolicy::new(&config, &|leaf, subleaf| {
                core::arch::x86_64::__cpuid_count(leaf, subleaf)
            }),
            clock: GuestClock::new(time::tsc_hz(), time::unix_ns(), 0),
            extended: Extended::new(features),
            tsc_offset,
            halted: false,
            exception: None,
            nmi: false,
        }
    }

    /// The TSC as the guest reads it.
    pub fn guest_tsc(&self) -> u64 {
        time::tsc().wrapping_add(self.tsc_offset)
    }

    /// When the guest's timer wants to be looked at, in nanoseconds of the host's clock.
    pub fn deadline_ns(&self) -> Option<u64> {
        let deadline = self.lapic.next_deadline()?;
        let ticks = deadline.saturating_sub(self.guest_tsc());
        Some(time::now_ns().saturating_add(self.clock.nanoseconds(ticks)))
    }

    /// Whether something ends HLT now.
    pub fn wakes(&mut self) -> bool {
        self.nmi |= self.lapic.take_nmi();
        self.nmi
            || self.exception.is_some()
            || (self.lapic.pending().is_some() && self.hardware.interruptible())
    }

    /// Chooses what is delivered at the next entry: what was cut short, then an exception, an NMI, an
    /// interrupt. Asks for a window where an interrupt must wait.
    pub fn prepare_event(&mut self) {
        let hardware = &mut self.hardware;
        self.nmi |= self.lapic.take_nmi();
        if !hardware.has_event() {
            if let Some(exception) = self.exception.take() {
                hardware.inject(Event::Exception(exception));
            } else if core::mem::take(&mut self.nmi) {
                hardware.inject(Event::Nmi);
            } else if hardware.interruptible()
                && let Some(vector) = self.lapic.pending()
            {
                hardware.inject(Event::Interrupt(vector));
                self.lapic.acknowledge(vector);
            }
        }
        let window = if self.lapic.pending().is_some() {
            Some(Window::Enabled)
        } else {
            let class = self.lapic.highest_requested().map(|vector| vector >> 4);
            class
                .filter(|class| *class <= self.lapic.cr8())
                .map(Window::Class)
        };
        self.hardware.request_window(window);
        self.hardware.set_cr8(self.lapic.cr8());
    }
}

impl Vcpu {
    /// A vCPU at its place.
    pub fn new(seat: Seat, core: Core) -> Self {
        Self {
            seat,
            inbox: Mutex::new(ArrayVec::new()),
            has_mail: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            in_guest: AtomicBool::new(false),
            flush: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            core: Mutex::new(core),
        }
    }

    /// Leaves an interrupt message. The caller then wakes the vCPU and kicks its pCPU where
    /// [`Vcpu::is_in_guest`].
    pub fn post(&self, message: MsiMessage) {
        let mut inbox = self.inbox.lock();
        if !inbox.contains(&message) && inbox.try_push(message).is_err() {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            // The guest names the messages, so it can do this for ever: lines at 1, 2, 4, 8, …
            if lost.is_power_of_two() {
                log::warn!(
                    "vm {}: {lost} interrupts were lost so far: {INBOX} others waited",
                    self.seat.vcpu.vm
                );
            }
        }
        self.has_mail.store(true, Ordering::SeqCst);
    }

    /// Whether messages wait.
    pub fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::SeqCst)
    }

    /// Hands waiting messages to the local APIC.
    pub fn take_mail(&self, lapic: &mut LocalApic) {
        if !self.has_mail.swap(false, Ordering::SeqCst) {
            return;
        }
        for message in self.inbox.lock().drain(..) {
            lapic.accept_message(message);
        }
    }

    /// Whether the guest runs, or is about to.
    pub fn is_in_guest(&self) -> bool {
        self.in_guest.load(Ordering::SeqCst)
    }

    /// The guest is about to run, or has stopped.
    pub fn set_in_guest(&self, inside: bool) {
        self.in_guest.store(inside, Ordering::SeqCst);
    }

    /// Has translations dropped before the guest runs again.
    pub fn request_flush(&self) {
        self.flush.store(true, Ordering::SeqCst);
    }

    /// Whether translations must be dropped now.
    pub fn take_flush(&self) -> bool {
        self.flush.load(Ordering::SeqCst) && self.flush.swap(false, Ordering::SeqCst)
    }

    /// Whether the guest may still use translations from before [`Vcpu::request_flush`]. A vCPU that has taken
    /// the request drops them as it enters, so that it need not be met outside of the guest, where it may be
    /// for moments only.
    pub fn uses_old_translations(&self) -> bool {
        self.flush.load(Ordering::SeqCst) && self.is_in_guest()
    }

    /// It must not run again in this life.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Whether it must not run again.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_kernel::id::VmId;
    use pasidon_kernel::sched::{PcpuId, VcpuId};

    fn vcpu() -> Vcpu {
        let id = VcpuId {
            vm: VmId(0),
            index: 0,
        };
        let seat = Seat {
            vcpu: id,
            pcpu: PcpuId(0),
        };
        Vcpu::new(seat, Core::new("alpha", HostPhys(0x1000), 40))
    }

    #[test]
    fn whoever_waits_for_a_flush_need_not_meet_the_vcpu_outside() {
        let vcpu = vcpu();
        vcpu.request_flush();
        assert!(!vcpu.uses_old_translations(), "it does not run");
        vcpu.set_in_guest(true);
        assert!(vcpu.uses_old_translations(), "it ran before the request");
        vcpu.set_in_guest(false);
        // It left and is back before anybody looked.
        vcpu.set_in_guest(true);
        assert!(vcpu.take_flush());
        assert!(!vcpu.uses_old_translations());
        assert!(!vcpu.take_flush(), "once");
    }

    #[test]
    fn mail_reaches_the_local_apic_once() {
        const FIXED_0X41: MsiMessage = MsiMessage {
            address: 0xfee0_0000,
            data: 0x41,
        };
        let vcpu = vcpu();
        let mut core = vcpu.core.lock();
        core.lapic.mmio_write(0xf0, 4, 0x1ff, 0);
        vcpu.post(FIXED_0X41);
        vcpu.post(FIXED_0X41);
        assert!(vcpu.has_mail());
        vcpu.take_mail(&mut core.lapic);
        assert!(!vcpu.has_mail());
        assert_eq!(core.lapic.pending(), Some(0x41));
        core.lapic.acknowledge(0x41);
        vcpu.take_mail(&mut core.lapic);
        assert_eq!(core.lapic.highest_requested(), None);
    }
}
