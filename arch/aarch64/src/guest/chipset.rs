// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine as a whole: which device answers an exit, how interrupts reach the processors, and what the
//! guest's calls do.
//!
//! **Principle.** One value behind the VM's lock. An access goes in, a value comes out; what the devices
//! want done besides is given to the `actions` sink. Interrupts end here, wired ones and messages: the sink
//! never sees [`Action::Line`] or [`Action::Message`], and [`ArmChipset::take_wakes`] tells which vCPUs have
//! to look at their list registers again.
//! **Invariant.** No window holds RAM, so no BAR and no portal can be where RAM is.

use core::fmt;

use pasidon_arch_common::hardware::Chipset;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dev::Received;
use pasidon_kernel::dev::bus::{GuestBus, all_ones};
use pasidon_kernel::dev::pci::PciBus;
use pasidon_kernel::dev::pl011::Pl011;
use pasidon_kernel::dev::pl031::Pl031;
use pasidon_kernel::vm::exit::{AccessKind, Action, Actions, Device, Exit};

use super::gic::{Gic, VcpuSet, Window};
use super::layout::{self, intid};
use super::psci::{Psci, PsciEffect, Start};
use super::smccc::{self, CallEffect, Refused, Workaround, Workarounds};

/// Which device a window leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Gic(Window),
    Uart,
    Rtc,
    Ecam,
    /// A PCI window, with its start.
    Pci(u64),
}

/// What a vCPU does after its call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AfterCall {
    /// It goes on.
    Continue,
    /// It waits for an interrupt, as with WFI, then goes on.
    Wait,
    /// It stops, until another one starts it.
    Stop,
    /// It goes on, and another one starts: [`ArmChipset::started`] when it does.
    Start(Start),
    /// It goes on after the machine's firmware was called for this workaround with this argument.
    Workaround(Workaround, u32),
}

/// The devices of one VM.
pub struct ArmChipset {
    bus: GuestBus<Target>,
    pci: PciBus,
    uart: Pl011,
    rtc: Pl031,
    gic: Gic,
    psci: Psci,
    workarounds: Workarounds,
    refused: Refused,
    /// Messages that named no interrupt.
    lost: u64,
}

impl fmt::Debug for ArmChipset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArmChipset")
            .field("unclaimed", &self.unclaimed())
            .field("refused", &self.refused)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

impl ArmChipset {
    /// The machine after power-on, with `vcpus` (1..= [`layout::VCPUS_MAX`]), `ram_size` bytes of RAM and `slots` slots.
    /// `workarounds` is what the machine's firmware says of its processors, `clock` the time in seconds since 1970.
    ///
    /// # Errors
    /// When `vcpus` is outside of that.
    pub fn new(
        vcpus: u16,
        ram_size: u64,
        slots: u8,
        workarounds: Workarounds,
        clock: fn() -> u64,
    ) -> Result<Self, Refusal> {
        let gic = Gic::new(vcpus)?;
        let mut bus = GuestBus::new();
        bus.claim_mmio(layout::GICD_BASE, layout::GICD_LEN, Target::Gic(Window::Distributor))?;
        bus.claim_mmio(
            layout::GICR_BASE,
            layout::GICR_STRIDE * u64::from(vcpus),
            Target::Gic(Window::Redistributors),
        )?;
        bus.claim_mmio(layout::UART_BASE, layout::UART_LEN, Target::Uart)?;
        bus.claim_mmio(layout::RTC_BASE, layout::RTC_LEN, Target::Rtc)?;
        bus.claim_mmio(layout::ECAM_BASE, layout::ECAM_LEN, Target::Ecam)?;
        for window in layout::PCI_WINDOWS {
            bus.claim_mmio(window.start, window.len, Target::Pci(window.start))?;
        }
        let pci = PciBus::new(&layout::PCI_WINDOWS, slots);
        Ok(Self {
            bus,
            pci,
            uart: Pl011::new(intid::UART),
            rtc: Pl031::new(clock),
            gic,
            psci: Psci::new(vcpus, ram_size),
            workarounds,
            refused: Refused::default(),
            lost: 0,
        })
    }

    /// Answers [`Exit::Mmio`] of `vcpu`, whose list registers were taken back, with what a read returns
    /// (zero-extended; 0 for a write); `None` for all others.
    pub fn exit(&mut self, vcpu: u16, exit: &Exit<'_>, actions: Actions<'_>) -> Option<u64> {
        let Exit::Mmio(access) = exit else { return None };
        let size = access.size;
        let Some((target, offset)) = self.bus.mmio(access.address, size) else {
            return Some(match access.kind {
                AccessKind::Read => all_ones(size),
                AccessKind::Write(_) => 0,
            });
        };
        let Self { pci, uart, rtc, gic, lost, .. } = self;
        if let Target::Gic(window) = target {
            return Some(match access.kind {
                AccessKind::Read => gic.read(vcpu, window, offset, size),
                AccessKind::Write(value) => {
                    gic.write(vcpu, window, offset, size, value);
                    0
                }
            });
        }
        let mut sink = |action| route(gic, lost, action, actions);
        Some(match (target, access.kind) {
            (Target::Uart, AccessKind::Read) => uart.read(offset, size, &mut sink),
            (Target::Rtc, AccessKind::Read) => rtc.read(offset, size),
            (Target::Ecam, AccessKind::Read) => pci.ecam_read(offset, size),
            (Target::Pci(start), AccessKind::Read) => pci.mmio_read(start + offset, size),
            (target, AccessKind::Write(value)) => {
                match target {
                    Target::Uart => uart.write(offset, size, value, &mut sink),
                    Target::Rtc => rtc.write(offset, size, value),
                    Target::Ecam => pci.ecam_write(offset, size, value, &mut sink),
                    Target::Pci(start) => pci.mmio_write(start + offset, size, value, &mut sink),
                    Target::Gic(_) => {}
                }
                0
            }
            (Target::Gic(_), AccessKind::Read) => 0,
        })
    }

    /// Answers HVC or SMC `immediate` of `vcpu`, with X0 to X3 in `registers`: what X0 becomes, and what the
    /// vCPU does then. The end of the VM goes to `actions`.
    pub fn call(
        &mut self,
        vcpu: u16,
        immediate: u16,
        registers: [u64; 4],
        actions: Actions<'_>,
    ) -> (u64, AfterCall) {
        let Self { psci, workarounds, refused, .. } = self;
        let reply = smccc::call(psci, workarounds, refused, vcpu, immediate, registers);
        let after = match reply.effect {
            CallEffect::Workaround(workaround, argument) => AfterCall::Workaround(workaround, argument),
            CallEffect::Psci(effect) => match effect {
                PsciEffect::None => AfterCall::Continue,
                PsciEffect::Wait => AfterCall::Wait,
                PsciEffect::CpuOff => AfterCall::Stop,
                PsciEffect::CpuOn(start) => AfterCall::Start(start),
                PsciEffect::SystemOff => {
                    actions(Action::PowerOff);
                    AfterCall::Stop
                }
                PsciEffect::SystemReset => {
                    actions(Action::Reset);
                    AfterCall::Stop
                }
            },
        };
        (reply.x0, after)
    }

    /// A vCPU that [`AfterCall::Start`] named runs.
    pub fn started(&mut self, vcpu: u16) {
        self.psci.started(vcpu);
    }

    /// The interrupt controller: list registers, the timer's line, SGIs.
    pub fn gic(&mut self) -> &mut Gic {
        &mut self.gic
    }

    /// The vCPUs whose next entry would be different, since the last call ([`Gic::take_wakes`]). To be asked
    /// after every call that takes `&mut self`, before the lock is released.
    pub fn take_wakes(&mut self) -> VcpuSet {
        self.gic.take_wakes()
    }

    /// How many memory accesses no device answered.
    pub fn unclaimed(&self) -> u64 {
        self.bus.unclaimed().0.saturating_add(self.pci.unclaimed())
    }

    /// Calls that were refused.
    pub fn refused(&self) -> Refused {
        self.refused
    }

    /// Interrupt messages that named no interrupt of the guest's.
    pub fn lost_messages(&self) -> u64 {
        self.lost
    }
}

impl Chipset for ArmChipset {
    fn push_input(&mut self, received: Received, actions: Actions<'_>) -> bool {
        let Self { uart, gic, lost, .. } = self;
        uart.push_input(received, &mut |action| route(gic, lost, action, actions))
    }

    fn pci(&mut self) -> &mut PciBus {
        &mut self.pci
    }

    fn with_pci<T>(&mut self, actions: Actions<'_>, act: impl FnOnce(&mut PciBus, Actions<'_>) -> T) -> T {
        let Self { pci, gic, lost, .. } = self;
        act(pci, &mut |action| route(gic, lost, action, actions))
    }

    fn take_wake(&mut self) -> bool {
        self.take_wakes().contains(0)
    }
}

/// Interrupts go to the interrupt controller, all else out.
fn route(gic: &mut Gic, lost: &mut u64, action: Action, actions: Actions<'_>) {
    match action {
        Action::Line { gsi, level } => gic.set_spi_line(gsi, level),
        Action::Message(message) => {
            if !gic.message(message) {
                *lost = lost.saturating_add(1);
            }
        }
        other => actions(other),
    }
}

#[cfg(test)]
mod tests;
