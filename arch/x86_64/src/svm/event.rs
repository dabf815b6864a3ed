// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events on their way into a guest: what EVENTINJ takes and EXITINTINFO tells.
//!
//! Source: AMD APM volume 2, 15.20 "Event Injection", 15.7.2 "EXITINTINFO", 8.2 (which exceptions are faults).

use super::vmcb::event;
use crate::backend::Event;
use crate::emulate::Exception;

/// Vectors below are exceptions.
const FIRST_INTERRUPT: u64 = 32;
const DEBUG: u8 = 1;
const NMI: u8 = 2;
const BREAKPOINT: u8 = 3;
const OVERFLOW: u8 = 4;
const DOUBLE_FAULT: u8 = 8;
const MACHINE_CHECK: u8 = 18;

/// #DB.
pub const DEBUG_EXCEPTION: Exception = Exception { vector: DEBUG, error_code: None, cr2: None };
/// #AC; its error code is always zero.
pub const ALIGNMENT_CHECK: Exception = Exception { vector: 17, error_code: Some(0), cr2: None };

/// The word that has VMRUN deliver `event`.
pub fn encode(event: Event) -> u64 {
    event::VALID
        | match event {
            Event::Interrupt(vector) => event::TYPE_INTR | u64::from(vector),
            Event::Nmi => event::TYPE_NMI | u64::from(NMI),
            Event::Exception(Exception { vector, error_code, .. }) => {
                let code = error_code.map_or(0, |code| u64::from(code) << 32 | event::ERROR_CODE);
                event::TYPE_EXCEPTION | u64::from(vector) | code
            }
        }
}

/// What such a word delivers.
pub fn decode(info: u64) -> Option<Event> {
    let vector = info as u8;
    match (info & event::VALID, info & event::TYPE_MASK) {
        (0, _) => None,
        (_, event::TYPE_INTR) => Some(Event::Interrupt(vector)),
        (_, event::TYPE_NMI) => Some(Event::Nmi),
        _ => Some(Event::Exception(Exception {
            vector,
            error_code: (info & event::ERROR_CODE != 0).then_some((info >> 32) as u32),
            cr2: None,
        })),
    }
}

/// Whether the exception is a fault: its handler returns to the instruction, with RFLAGS.RF set so that a breakpoint
/// on it does not hit twice. #DB sets the flag by itself, where it must.
pub fn is_fault(vector: u8) -> bool {
    !matches!(vector, DEBUG | NMI | BREAKPOINT | OVERFLOW | DOUBLE_FAULT | MACHINE_CHECK)
}

/// The event to inject for one whose delivery was interrupted (EXITINTINFO); `None` where the guest will
/// raise it again by itself.
///
/// The type is taken from the vector where the two contradict: QEMU reports every event as an exception.
pub fn redelivered(info: u64) -> Option<u64> {
    if info & event::VALID == 0 {
        return None;
    }
    let vector = info & 0xff;
    const TRAPS: [u64; 2] = [BREAKPOINT as u64, OVERFLOW as u64];
    match info & event::TYPE_MASK {
        // RIP is still at the instruction, which runs again.
        event::TYPE_SOFTWARE => None,
        event::TYPE_EXCEPTION if TRAPS.contains(&vector) => None,
        event::TYPE_EXCEPTION if vector >= FIRST_INTERRUPT => Some(event::VALID | event::TYPE_INTR | vector),
        event::TYPE_EXCEPTION if vector == u64::from(NMI) => Some(event::VALID | event::TYPE_NMI | vector),
        _ => Some(info),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_short_is_delivered_again() {
        let valid = |kind, vector| event::VALID | kind | vector;
        for (info, again) in [
            (0, None),
            (valid(event::TYPE_INTR, 0x31), Some(valid(event::TYPE_INTR, 0x31))),
            (valid(event::TYPE_EXCEPTION, 0x31), Some(valid(event::TYPE_INTR, 0x31))),
            (valid(event::TYPE_EXCEPTION, 2), Some(valid(event::TYPE_NMI, 2))),
            (
                valid(event::TYPE_EXCEPTION, 14) | event::ERROR_CODE | 7 << 32,
                Some(valid(event::TYPE_EXCEPTION, 14) | event::ERROR_CODE | 7 << 32),
            ),
            (valid(event::TYPE_SOFTWARE, 0x80), None),
            (valid(event::TYPE_EXCEPTION, 3), None),
        ] {
            assert_eq!(redelivered(info), again, "{info:#x}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for event in [
            Event::Interrupt(0xfe),
            Event::Nmi,
            Event::Exception(DEBUG_EXCEPTION),
            Event::Exception(ALIGNMENT_CHECK),
        ] {
            assert_eq!(decode(encode(event)), Some(event));
        }
        assert_eq!(decode(0), None);
    }
}
