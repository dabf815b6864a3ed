// SPDX-License-Identifier: MIT OR Apache-2.0
//! One vCPU as others see it: how interrupts and requests reach it.
//!
//! **Principle.** What only the running vCPU touches ([`crate::hardware::Core`]) is behind one lock that its pCPU
//! takes for a whole turn, so that exits take none. Others reach a vCPU through its inbox: they leave an interrupt
//! message and, where the vCPU is in the guest, kick its pCPU.
//! **Invariant.** A message is never missed: the vCPU says that it is in the guest *before* it looks at the
//! inbox for the last time, and the sender looks at that *after* it has put the message in.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use pasidon_kernel::vm::exit::MsiMessage;
use pasidon_kernel::vm::sched::Seat;
use spin::Mutex;

/// Different messages that can wait at once. A guest has one per interrupt source; two of the same are one.
const INBOX: usize = 256;

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu<C> {
    /// Its place.
    pub seat: Seat,
    inbox: Mutex<ArrayVec<MsiMessage, INBOX>>,
    has_mail: AtomicBool,
    lost: AtomicU64,
    in_guest: AtomicBool,
    flush: AtomicBool,
    /// What [`Vcpu::take_pause`] was told last.
    paused_ns: AtomicU64,
    ended: AtomicBool,
    /// What its pCPU works with.
    pub core: Mutex<C>,
}

impl<C> Vcpu<C> {
    /// A vCPU at its place.
    pub fn new(seat: Seat, core: C) -> Self {
        Self {
            seat,
            inbox: Mutex::new(ArrayVec::new()),
            has_mail: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            in_guest: AtomicBool::new(false),
            flush: AtomicBool::new(false),
            paused_ns: AtomicU64::new(0),
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

    /// Makes it look at what it is interrupted by, without a message.
    pub fn nudge(&self) {
        self.has_mail.store(true, Ordering::SeqCst);
    }

    /// Hands waiting messages to whom they are for.
    pub fn take_mail(&self, mut accept: impl FnMut(MsiMessage)) {
        // Hardly ever is there mail, and to look costs less than to take.
        if !self.has_mail() || !self.has_mail.swap(false, Ordering::SeqCst) {
            return;
        }
        for message in self.inbox.lock().drain(..) {
            accept(message);
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

    /// Whether its VM was paused since the last call; `total_ns` is what
    /// [`Pauses::total_ns`](crate::pauses::Pauses::total_ns) says.
    pub fn take_pause(&self, total_ns: u64) -> bool {
        self.paused_ns.swap(total_ns, Ordering::SeqCst) != total_ns
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
    use pasidon_kernel::base::id::VmId;
    use pasidon_kernel::vm::sched::{PcpuId, VcpuId};

    fn vcpu() -> Vcpu<()> {
        let id = VcpuId { vm: VmId(0), index: 0 };
        let seat = Seat { vcpu: id, pcpu: PcpuId(0) };
        Vcpu::new(seat, ())
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
    fn a_pause_is_told_once() {
        let vcpu = vcpu();
        assert!(!vcpu.take_pause(0));
        for total in [5, 8] {
            assert!(vcpu.take_pause(total));
            assert!(!vcpu.take_pause(total));
        }
    }

    #[test]
    fn mail_is_handed_over_once() {
        const MESSAGE: MsiMessage = MsiMessage { address: 0x1000, data: 0x41 };
        let vcpu = vcpu();
        let taken = || {
            let mut taken = Vec::new();
            vcpu.take_mail(|message| taken.push(message));
            taken
        };
        vcpu.post(MESSAGE);
        vcpu.post(MESSAGE);
        assert!(vcpu.has_mail());
        assert_eq!(taken(), [MESSAGE]);
        assert!(!vcpu.has_mail());
        vcpu.nudge();
        assert!(vcpu.has_mail(), "it must look, though there is no message");
        assert_eq!(taken(), []);
        assert!(!vcpu.has_mail());
    }
}
