// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers of the local APIC, in memory (xAPIC) and as MSRs (x2APIC).
//!
//! Both views number a register alike: the MSR's low byte is the memory offset divided by 16. In memory a
//! wrong access is ignored and noted in ESR; as an MSR it is a general-protection fault.
//!
//! Source: Intel SDM volume 3A, tables 11-1 "Local APIC Register Address Map" and 11-6 "Local APIC
//! Register Address Map Supported by x2APIC".

use alloc::sync::Arc;

use super::timer::Mode;
use super::{ApicEvent, ApicMode, LVT_MASKED, LocalApic, SVR_ENABLE, apic_base, delivery, esr, lvt, reg};
use crate::guest::GeneralProtection;
use crate::guest::layout::LAPIC_BASE;

/// First MSR of the x2APIC range.
pub const X2APIC_MSR_FIRST: u32 = 0x800;
/// Last MSR of the x2APIC range.
pub const X2APIC_MSR_LAST: u32 = 0x8ff;
/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Version 0x14 (integrated), six LVT entries, no suppression of EOI broadcasts.
const VERSION: u32 = 0x14 | (lvt::COUNT as u32 - 1) << 16;
/// Vector, software enable, focus check.
const SVR_WRITABLE: u32 = 0x3ff;
/// Delivery status (12) and remote IRR (14) are read-only in LVT entries: writing them is no error.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;
/// ICR bits that may be set: vector, modes, status (ignored), level, trigger, shorthand.
const ICR_LOW_WRITABLE: u32 = 0x000c_cfff;
const ICR_STATUS: u32 = 1 << 12;

/// Which bits of an LVT entry software sets.
fn lvt_writable(index: usize) -> u32 {
    const VECTOR_AND_MASK: u32 = 0xff | LVT_MASKED;
    const DELIVERY_MODE: u32 = 7 << 8;
    const POLARITY_AND_TRIGGER: u32 = 1 << 13 | 1 << 15;
    match index {
        lvt::TIMER => VECTOR_AND_MASK | 3 << 17,
        lvt::THERMAL | lvt::PERFORMANCE => VECTOR_AND_MASK | DELIVERY_MODE,
        lvt::LINT0 | lvt::LINT1 => VECTOR_AND_MASK | DELIVERY_MODE | POLARITY_AND_TRIGGER,
        _ => VECTOR_AND_MASK,
    }
}

impl LocalApic {
    /// Reads one of IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC MSRs; `now` is the guest's TSC.
    ///
    /// # Errors
    /// When there is no such MSR in the present mode, or it cannot be read.
    pub fn read_msr(&self, msr: u32, now: u64) -> Result<u64, GeneralProtection> {
        match msr {
            MSR_APIC_BASE => Ok(self.base),
            MSR_TSC_DEADLINE => Ok(self.timer.tsc_deadline()),
            X2APIC_MSR_FIRST..=X2APIC_MSR_LAST if self.mode() == ApicMode::X2Apic => {
                match msr - X2APIC_MSR_FIRST {
                    reg::DFR | reg::ICR_HIGH => Err(GeneralProtection),
                    reg::ID => Ok(u64::from(self.id)),
                    reg::LDR => Ok(u64::from(self.logical_id())),
                    reg::ICR => Ok(self.icr),
                    number => self.read_register(number, now).map(u64::from).ok_or(GeneralProtection),
                }
            }
            _ => Err(GeneralProtection),
        }
    }

    /// Writes one of these MSRs; `now` is the guest's TSC.
    ///
    /// # Errors
    /// When there is no such MSR in the present mode, or it does not take the value.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<Option<ApicEvent>, GeneralProtection> {
        match msr {
            MSR_APIC_BASE => self.write_base(value).map(|()| None),
            MSR_TSC_DEADLINE => {
                self.timer.set_tsc_deadline(value);
                self.timer_expired(now);
                Ok(None)
            }
            X2APIC_MSR_FIRST..=X2APIC_MSR_LAST if self.mode() == ApicMode::X2Apic => {
                self.write_x2apic(msr - X2APIC_MSR_FIRST, value, now)
            }
            _ => Err(GeneralProtection),
        }
    }

    fn write_x2apic(
        &mut self,
        number: u32,
        value: u64,
        now: u64,
    ) -> Result<Option<ApicEvent>, GeneralProtection> {
        if number == reg::ICR {
            let low = value as u32;
            if low & !ICR_LOW_WRITABLE != 0 || low & ICR_STATUS != 0 {
                return Err(GeneralProtection);
            }
            self.icr = value;
            return Ok(self.send());
        }
        let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
        let reserved = match number {
            reg::TPR | reg::SELF_IPI => !0xff,
            reg::EOI | reg::ESR => !0,
            reg::SVR => !SVR_WRITABLE,
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                !(lvt_writable((number - reg::LVT_TIMER) as usize) | LVT_READ_ONLY)
            }
            reg::INITIAL_COUNT => 0,
            reg::DIVIDE => !0xb,
            _ => return Err(GeneralProtection),
        };
        if value & reserved != 0 || (number == reg::LVT_TIMER && (value >> 17) & 3 == 3) {
            return Err(GeneralProtection);
        }
        if number == reg::SELF_IPI {
            if value < 16 {
                self.error(esr::SEND_ILLEGAL_VECTOR);
            } else {
                self.deliver(delivery::FIXED, value as u8, false);
            }
            return Ok(None);
        }
        self.write_register(number, value, now).ok_or(GeneralProtection)
    }

    /// Reads `size` bytes at `offset` of the xAPIC page; `None` unless in xAPIC mode (nobody answers).
    pub fn mmio_read(&mut self, offset: u64, size: u8, now: u64) -> Option<u64> {
        if self.mode() != ApicMode::XApic {
            return None;
        }
        // Architecturally only aligned 32-bit accesses are defined; others read as zero here.
        if size != 4 || offset & 0xf != 0 {
            return Some(0);
        }
        let value = match (offset >> 4) as u32 {
            reg::ID => Some(self.id << 24),
            reg::LDR => Some(self.ldr),
            reg::DFR => Some(self.dfr),
            reg::ICR => Some(self.icr as u32),
            reg::ICR_HIGH => Some((self.icr >> 32) as u32),
            // Write-only registers read as zero.
            reg::EOI => Some(0),
            number => self.read_register(number, now),
        };
        if value.is_none() {
            self.error(esr::ILLEGAL_REGISTER);
        }
        Some(u64::from(value.unwrap_or(0)))
    }

    /// Writes to the xAPIC page. Ignored unless in xAPIC mode.
    pub fn mmio_write(&mut self, offset: u64, size: u8, value: u64, now: u64) -> Option<ApicEvent> {
        if self.mode() != ApicMode::XApic || size != 4 || offset & 0xf != 0 {
            return None;
        }
        let value = value as u32;
        match (offset >> 4) as u32 {
            // The ID is not software's to choose here.
            reg::ID => None,
            reg::LDR => {
                self.ldr = value & 0xff00_0000;
                None
            }
            reg::DFR => {
                self.dfr = value | 0x0fff_ffff;
                None
            }
            reg::ICR => {
                let low = value & ICR_LOW_WRITABLE & !ICR_STATUS;
                self.icr = self.icr & !0xffff_ffff | u64::from(low);
                self.send()
            }
            reg::ICR_HIGH => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                None
            }
            number => match self.write_register(number, value, now) {
                Some(event) => event,
                None => {
                    self.error(esr::ILLEGAL_REGISTER);
                    None
                }
            },
        }
    }

    /// Registers that read alike in both views.
    fn read_register(&self, number: u32, now: u64) -> Option<u32> {
        Some(match number {
            reg::VERSION => VERSION,
            reg::PPR => u32::from(self.ppr()),
            reg::SVR => self.svr,
            reg::TPR | reg::ISR..=reg::IRR_LAST => self.sets.page.get(number),
            reg::ESR => self.esr,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(number - reg::LVT_TIMER) as usize],
            reg::INITIAL_COUNT => self.timer.initial_count(),
            reg::CURRENT_COUNT => self.timer.current_count(now),
            reg::DIVIDE => self.timer.divide_configuration(),
            _ => return None,
        })
    }

    /// Registers that are written alike in both views. `None`: there is no such register.
    fn write_register(&mut self, number: u32, value: u32, now: u64) -> Option<Option<ApicEvent>> {
        match number {
            reg::TPR => self.sets.page.set(number, value & 0xff),
            reg::EOI => return Some(self.end_of_interrupt()),
            reg::SVR => {
                self.svr = value & SVR_WRITABLE;
                if value & SVR_ENABLE == 0 {
                    self.timer_expired(now);
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
            }
            reg::ESR => self.esr = core::mem::take(&mut self.errors),
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                self.write_lvt((number - reg::LVT_TIMER) as usize, value, now);
            }
            reg::INITIAL_COUNT => self.timer.set_initial_count(value, now),
            reg::DIVIDE => self.timer.set_divide_configuration(value, now),
            _ => return None,
        }
        Some(None)
    }

    fn write_lvt(&mut self, index: usize, value: u32, now: u64) {
        let mut value = value & lvt_writable(index);
        if self.svr & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        if index == lvt::TIMER {
            // What expired while the entry was masked stays unsaid after it is unmasked.
            self.timer_expired(now);
            if (value >> 17) & 3 == 3 {
                value &= !(1 << 17);
            }
            self.timer.set_mode(Mode::from_lvt(value));
        }
        self.lvt[index] = value;
    }

    /// IA32_APIC_BASE: the mode may change along off → xAPIC → x2APIC → off; the address may not.
    fn write_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        const SETTABLE: u64 = apic_base::ENABLE | apic_base::X2APIC;
        if value & !(SETTABLE | apic_base::BSP) != LAPIC_BASE {
            return Err(GeneralProtection);
        }
        let (enable, x2apic) = (value & apic_base::ENABLE != 0, value & apic_base::X2APIC != 0);
        match (self.mode(), enable, x2apic) {
            (_, false, true) | (ApicMode::Disabled, true, true) | (ApicMode::X2Apic, true, false) => {
                return Err(GeneralProtection);
            }
            (_, false, false) => {
                *self = Self { nmi: self.nmi, ..Self::reset(self.id, Arc::clone(&self.sets.page)) };
            }
            (ApicMode::XApic, true, true) => self.icr = 0,
            _ => {}
        }
        self.base = value & SETTABLE | self.base & !SETTABLE;
        Ok(())
    }
}
