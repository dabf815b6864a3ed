// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local APIC, in x2APIC mode only: interrupts to other pCPUs, and this pCPU's one-shot timer.
//!
//! Source: Intel SDM volume 3, chapter 11 (11.12 for x2APIC, 11.5.4 for the timer).

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::cpu::{self, Features, msr};
use crate::time;
use crate::vector;

/// IA32_APIC_BASE: enabled.
const APIC_BASE_EN: u64 = 1 << 11;
/// IA32_APIC_BASE: x2APIC mode.
const APIC_BASE_EXTD: u64 = 1 << 10;

/// The registers, as offsets from [`msr::X2APIC_FIRST`].
mod register {
    pub const ID: u32 = 0x02;
    pub const TPR: u32 = 0x08;
    pub const EOI: u32 = 0x0b;
    pub const SVR: u32 = 0x0f;
    pub const ESR: u32 = 0x28;
    pub const LVT_CMCI: u32 = 0x2f;
    pub const ICR: u32 = 0x30;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_THERMAL: u32 = 0x33;
    pub const LVT_PERFORMANCE: u32 = 0x34;
    pub const LVT_LINT0: u32 = 0x35;
    pub const LVT_LINT1: u32 = 0x36;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
}

/// SVR: the APIC is enabled.
const SVR_ENABLE: u64 = 1 << 8;
/// LVT: masked.
const LVT_MASKED: u64 = 1 << 16;
/// LVT timer: one interrupt when the TSC passes IA32_TSC_DEADLINE.
const LVT_TSC_DEADLINE: u64 = 2 << 17;
/// LVT: delivered as NMI.
const LVT_NMI: u64 = 4 << 8;
/// Divide configuration: by 16, so that 32 bits last for seconds.
const DIVIDE_BY_16: u64 = 0b0011;

/// ICR: the level is asserted; required for all but INIT de-assert.
const ICR_ASSERT: u64 = 1 << 14;
const ICR_NMI: u64 = 4 << 8;
const ICR_INIT: u64 = 5 << 8;
const ICR_STARTUP: u64 = 6 << 8;
/// ICR: all but the sender.
const ICR_ALL_OTHERS: u64 = 3 << 18;

static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);
/// Rate of the timer where it counts down.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);

fn read(register: u32) -> u64 {
    // SAFETY: [`init`] has put the APIC into x2APIC mode, so that its registers exist.
    unsafe { cpu::read_msr(msr::X2APIC_FIRST + register) }
}

fn write(register: u32, value: u64) {
    // SAFETY: as in `read`; the values are this module's.
    unsafe { cpu::write_msr(msr::X2APIC_FIRST + register, value) }
}

/// Puts this pCPU's APIC into x2APIC mode with everything masked that nobody asked for. NMIs of the
/// platform's (LINT1) come through.
///
/// # Safety
/// On a processor with x2APIC, interrupts off.
pub unsafe fn init(features: &Features) {
    TSC_DEADLINE.store(features.tsc_deadline, Ordering::Relaxed);
    // SAFETY: both bits are allowed where CPUID says x2APIC; from xAPIC mode they are set together, and
    // setting them again changes nothing. A disabled APIC has to be enabled before.
    unsafe {
        let base = cpu::read_msr(msr::IA32_APIC_BASE);
        if base & APIC_BASE_EN == 0 {
            cpu::write_msr(msr::IA32_APIC_BASE, base | APIC_BASE_EN);
        }
        cpu::write_msr(msr::IA32_APIC_BASE, base | APIC_BASE_EN | APIC_BASE_EXTD);
    }
    write(register::SVR, SVR_ENABLE | u64::from(vector::SPURIOUS));
    write(register::TPR, 0);
    write(register::INITIAL_COUNT, 0);
    write(register::DIVIDE, DIVIDE_BY_16);
    for lvt in [register::LVT_TIMER, register::LVT_LINT0, register::LVT_ERROR] {
        write(lvt, LVT_MASKED);
    }
    write(register::LVT_LINT1, LVT_NMI);
    // The number of further entries is in the version register; an entry that is not there must not be written.
    const VERSION: u32 = 0x03;
    let highest = read(VERSION) >> 16 & 0xff;
    let optional = [(4, register::LVT_PERFORMANCE), (5, register::LVT_THERMAL), (6, register::LVT_CMCI)];
    for (_, lvt) in optional.iter().filter(|(number, _)| highest >= *number) {
        write(*lvt, LVT_MASKED);
    }
    write(register::ESR, 0);
    if features.tsc_deadline {
        write(register::LVT_TIMER, u64::from(vector::TIMER) | LVT_TSC_DEADLINE);
    } else {
        write(register::LVT_TIMER, u64::from(vector::TIMER));
    }
}

/// Lets the timer count from its maximum without an interrupt, and returns how to read it. For
/// [`time::init`].
pub fn free_run() -> impl Fn() -> u32 {
    write(register::LVT_TIMER, LVT_MASKED);
    write(register::INITIAL_COUNT, u64::from(u32::MAX));
    || read(register::CURRENT_COUNT) as u32
}

/// Ends [`free_run`]; `hz` is what was measured. On the first processor.
pub fn set_timer_rate(hz: u64) {
    TIMER_HZ.store(hz, Ordering::Relaxed);
    write(register::INITIAL_COUNT, 0);
    let mode = if TSC_DEADLINE.load(Ordering::Relaxed) { LVT_TSC_DEADLINE } else { 0 };
    write(register::LVT_TIMER, u64::from(vector::TIMER) | mode);
}

/// This pCPU's APIC ID.
pub fn id() -> u32 {
    read(register::ID) as u32
}

/// Ends the interrupt in service with the highest priority.
pub fn end_of_interrupt() {
    write(register::EOI, 0);
}

/// What was written to memory before is seen by who gets the interrupt: a write to an x2APIC register does
/// not order anything by itself.
fn order_before_icr() {
    // SAFETY: fences only.
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

fn command(destination: u32, what: u64) {
    order_before_icr();
    write(register::ICR, u64::from(destination) << 32 | ICR_ASSERT | what);
}

/// Raises `vector` on the pCPU with that APIC ID, which may be this one. Writes to memory before it are seen
/// by the handler.
pub fn send(apic_id: u32, vector: u8) {
    command(apic_id, u64::from(vector));
}

/// Stops all other pCPUs in their tracks with an NMI, for a panic.
pub fn nmi_all_others() {
    command(0, ICR_NMI | ICR_ALL_OTHERS);
}

/// Resets the processor with that APIC ID; it then waits for [`send_startup`].
pub(crate) fn send_init(apic_id: u32) {
    command(apic_id, ICR_INIT);
}

/// Starts a processor that was reset, in real mode at the page with that number.
pub(crate) fn send_startup(apic_id: u32, page: u8) {
    command(apic_id, ICR_STARTUP | u64::from(page));
}

/// Arms this pCPU's timer for a time of [`time::now_ns`], or disarms it. A deadline in the past fires at
/// once. One too far away for the hardware (over a minute at the rates seen) fires early, so the handler has
/// to look at the time and arm it again.
pub fn arm_timer(deadline_ns: Option<u64>) {
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        // Zero disarms. SAFETY: the register exists where CPUID has the TSC-deadline bit.
        let deadline = deadline_ns.map_or(0, |ns| time::tsc_at(ns).max(1));
        order_before_icr();
        // SAFETY: as above.
        unsafe { cpu::write_msr(msr::IA32_TSC_DEADLINE, deadline) };
        return;
    }
    let ticks = deadline_ns.map_or(0, |deadline| {
        ticks_until(deadline.saturating_sub(time::now_ns()), TIMER_HZ.load(Ordering::Relaxed))
    });
    write(register::INITIAL_COUNT, u64::from(ticks));
}

/// Ticks of a timer for a time from now, at least one: zero would disarm it.
fn ticks_until(ns: u64, hz: u64) -> u32 {
    // Seconds and the rest apart: no 128-bit division.
    let seconds = (ns / 1_000_000_000).saturating_mul(hz);
    let rest = (ns % 1_000_000_000).saturating_mul(hz) / 1_000_000_000;
    u32::try_from(seconds.saturating_add(rest)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupts;
    use pasidon_cpu::{Model, Processor};

    #[test]
    fn a_kick_to_oneself_waits_for_the_window_and_comes_once() {
        for model in [Model::Ryzen, Model::SapphireRapids] {
            let mut processor = Processor::new(model);
            // SAFETY: interrupts are off.
            processor.run(|| unsafe { init(&Features::read()) }).unwrap();
            processor.run(|| send(id(), vector::KICK)).unwrap();
            assert_eq!(processor.taken(vector::KICK), 0);
            for _ in 0..2 {
                processor.run(interrupts::window).unwrap();
                assert_eq!(processor.taken(vector::KICK), 1, "{model:?}");
            }
            // The next one comes only after the end of this one.
            processor.run(|| send(id(), vector::KICK)).unwrap();
            processor.run(interrupts::window).unwrap();
            assert_eq!(processor.taken(vector::KICK), 1, "{model:?}");
            processor.run(end_of_interrupt).unwrap();
            processor.run(interrupts::window).unwrap();
            assert_eq!(processor.taken(vector::KICK), 2, "{model:?}");
        }
    }

    #[test]
    fn timer_ticks() {
        assert_eq!(ticks_until(0, 62_500_000), 1);
        assert_eq!(ticks_until(1_000_000, 62_500_000), 62_500);
        assert_eq!(ticks_until(2_500_000_000, 62_500_000), 156_250_000);
        assert_eq!(ticks_until(u64::MAX, 62_500_000), u32::MAX);
        assert_eq!(ticks_until(u64::MAX, u64::MAX), u32::MAX);
    }
}
