// SPDX-License-Identifier: MIT OR Apache-2.0
//! The I/O APICs: every input masked from the take-over on, until somebody routes it.
//!
//! Source: 82093AA (IOAPIC) datasheet, 3; Intel VT-d specification, 5.1.5.1 (remappable format).

use alloc::format;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use spin::Mutex;

use crate::firmware_tables::IoApic;
use crate::paging;

/// IOREGSEL: which register IOWIN shows.
const IOREGSEL: u64 = 0x00;
/// IOWIN.
const IOWIN: u64 = 0x10;
/// Bytes of the registers.
const LENGTH: u64 = 0x20;
/// IOAPICVER; bits 23:16 are the number of the last input.
const IOAPICVER: u32 = 0x01;
/// The low half of the first input's redirection entry; two registers per input.
const IOREDTBL: u32 = 0x10;
/// Redirection entry: masked.
const MASKED: u32 = 1 << 16;

struct Unit {
    base: u64,
    gsi_base: u32,
    inputs: u32,
}

impl Unit {
    fn read(&self, register: u32) -> u32 {
        // SAFETY: `init` has mapped the registers; the lock around all units keeps the pair together.
        unsafe {
            ((self.base + IOREGSEL) as *mut u32).write_volatile(register);
            ((self.base + IOWIN) as *const u32).read_volatile()
        }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: as in `read`.
        unsafe {
            ((self.base + IOREGSEL) as *mut u32).write_volatile(register);
            ((self.base + IOWIN) as *mut u32).write_volatile(value);
        }
    }
}

static UNITS: Mutex<Vec<Unit>> = Mutex::new(Vec::new());

/// Takes the I/O APICs that the firmware describes and masks all their inputs. Once, on the first pCPU. One
/// whose registers cannot be mapped costs a line in the log.
pub fn init(described: &[IoApic]) {
    let mut units = UNITS.lock();
    for io_apic in described {
        if let Err(refusal) = paging::map_device(HostPhys(io_apic.address), LENGTH) {
            log::warn!("I/O APIC {}: {refusal}", io_apic.id);
            continue;
        }
        let mut unit = Unit { base: io_apic.address, gsi_base: io_apic.gsi_base, inputs: 0 };
        unit.inputs = (unit.read(IOAPICVER) >> 16 & 0xff) + 1;
        for input in 0..unit.inputs {
            unit.write(IOREDTBL + 2 * input, MASKED);
        }
        units.push(unit);
    }
}

/// The redirection entry that sends what an MSI to `address` would, edge triggered and active high: low
/// half, high half.
fn entry(address: u64, vector: u8) -> (u32, u32) {
    const FORMAT: u64 = 1 << 4;
    if address & FORMAT == 0 {
        // Compatibility format: an 8-bit destination.
        return (u32::from(vector), (address >> 12 & 0xff) as u32 * (1 << 24));
    }
    let handle_low = (address >> 5 & 0x7fff) as u32;
    let handle_high = (address >> 2 & 1) as u32;
    (u32::from(vector) | handle_high << 11, handle_low << 17 | 1 << 16)
}

/// Sends the interrupts of an edge-triggered input to where an MSI to `address` with that vector would go
/// (the remappable format included), and unmasks it.
///
/// # Errors
/// When no I/O APIC has that global system interrupt.
pub fn route(gsi: u32, address: u64, vector: u8) -> Result<(), Refusal> {
    let (low, high) = entry(address, vector);
    with_input(gsi, |unit, register| {
        unit.write(register, MASKED);
        unit.write(register + 1, high);
        unit.write(register, low);
    })
}

/// Masks an input again.
///
/// # Errors
/// As [`route`].
pub fn mask(gsi: u32) -> Result<(), Refusal> {
    with_input(gsi, |unit, register| unit.write(register, MASKED))
}

fn with_input(gsi: u32, change: impl FnOnce(&Unit, u32)) -> Result<(), Refusal> {
    let units = UNITS.lock();
    let place = units.iter().find_map(|unit| {
        let input = gsi.checked_sub(unit.gsi_base)?;
        (input < unit.inputs).then_some((unit, input))
    });
    match place {
        Some((unit, input)) => {
            change(unit, IOREDTBL + 2 * input);
            Ok(())
        }
        None => Err(Refusal::new(
            format!("interrupt {gsi}"),
            "the firmware describes no I/O APIC with it",
            "update the firmware",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_carry_what_the_message_does() {
        // APIC ID 3.
        assert_eq!(entry(0xfee0_3000, 0x41), (0x41, 3 << 24));
        // Handle 0x8005 in remappable format.
        assert_eq!(entry(0xfee0_0000 | 5 << 5 | 1 << 4 | 1 << 2, 0x41), (0x41 | 1 << 11, 5 << 17 | 1 << 16));
    }

    #[test]
    fn an_input_that_nobody_has_is_refused() {
        assert!(route(4, 0xfee0_0000, 0x41).is_err());
        assert!(mask(4).is_err());
    }
}
