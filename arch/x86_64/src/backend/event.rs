// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events on their way into a guest, and the word that both extensions have for them: SVM's EVENTINJ and EXITINTINFO; of
//! VMX the low half is the VM-entry interruption information and the IDT-vectoring information, the high half the error
//! code that goes with it.
//!
//! Source: AMD APM volume 2, 15.20 "Event Injection", 15.7.2 "EXITINTINFO", 8.2 (which exceptions are faults); Intel SDM
//! volume 3, 25.8.3 and 25.9.3.

use super::Event;
use crate::emulate::Exception;

/// Vectors below are exceptions.
const FIRST_INTERRUPT: u8 = 32;
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

/// External interrupt.
const TYPE_INTERRUPT: u64 = 0 << 8;
const TYPE_NMI: u64 = 2 << 8;
/// Exception that an instruction did not ask for. Those that one did (software interrupts, and with VMX INT1, INT3 and
/// INTO) have further types.
const TYPE_EXCEPTION: u64 = 3 << 8;
const TYPE_MASK: u64 = 7 << 8;
/// An error code (bits 63:32) is pushed.
pub const ERROR_CODE: u64 = 1 << 11;
/// The word tells of an event.
pub const VALID: u64 = 1 << 31;

/// The word that has `event` delivered.
pub fn encode(event: Event) -> u64 {
    VALID
        | match event {
            Event::Interrupt(vector) => TYPE_INTERRUPT | u64::from(vector),
            Event::Nmi => TYPE_NMI | u64::from(NMI),
            Event::Exception(Exception { vector, error_code, .. }) => {
                let code = error_code.map_or(0, |code| u64::from(code) << 32 | ERROR_CODE);
                TYPE_EXCEPTION | u64::from(vector) | code
            }
        }
}

/// The event that is to be delivered after its delivery was interrupted, of which `word` tells; `None` where there was
/// none, or the guest will raise it again by itself.
///
/// The type is taken from the vector where the two contradict: QEMU reports every event as an exception.
pub fn redelivered(word: u64) -> Option<Event> {
    if word & VALID == 0 {
        return None;
    }
    let vector = word as u8;
    match word & TYPE_MASK {
        TYPE_INTERRUPT => Some(Event::Interrupt(vector)),
        TYPE_NMI => Some(Event::Nmi),
        TYPE_EXCEPTION => match vector {
            // RIP is still at the instruction, which runs again.
            BREAKPOINT | OVERFLOW => None,
            FIRST_INTERRUPT.. => Some(Event::Interrupt(vector)),
            NMI => Some(Event::Nmi),
            _ => Some(Event::Exception(Exception {
                vector,
                error_code: (word & ERROR_CODE != 0).then_some((word >> 32) as u32),
                cr2: None,
            })),
        },
        // The same.
        _ => None,
    }
}

/// Whether the exception is a fault: its handler returns to the instruction, with RFLAGS.RF set so that a breakpoint
/// on it does not hit twice. #DB sets the flag by itself, where it must.
pub fn is_fault(vector: u8) -> bool {
    !matches!(vector, DEBUG | NMI | BREAKPOINT | OVERFLOW | DOUBLE_FAULT | MACHINE_CHECK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_short_is_delivered_again() {
        let word = |kind: u64, vector| VALID | kind << 8 | vector;
        let page_fault = Exception { vector: 14, error_code: Some(7), cr2: None };
        for (info, again) in [
            (0, None),
            (word(0, 0x31), Some(Event::Interrupt(0x31))),
            (word(3, 0x31), Some(Event::Interrupt(0x31))),
            (word(2, 2), Some(Event::Nmi)),
            (word(3, 2), Some(Event::Nmi)),
            (word(3, 14) | ERROR_CODE | 7 << 32, Some(Event::Exception(page_fault))),
            (word(4, 0x80), None),
            (word(3, 3), None),
            (word(5, 1), None),
            (word(6, 3), None),
        ] {
            assert_eq!(redelivered(info), again, "{info:#x}");
        }
    }

    #[test]
    fn what_is_encoded_is_what_comes_again() {
        for event in [
            Event::Interrupt(0xfe),
            Event::Nmi,
            Event::Exception(DEBUG_EXCEPTION),
            Event::Exception(ALIGNMENT_CHECK),
        ] {
            assert_eq!(redelivered(encode(event)), Some(event));
        }
    }
}
