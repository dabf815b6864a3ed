// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of an interrupt without an exit, as KVM offers it and Linux uses it.
//!
//! **Principle.** The guest names four bytes of its RAM. Before it runs with an interrupt in service whose end concerns
//! nobody but its own local APIC, bit 0 there is set. A guest that finds it set clears it instead of writing the EOI
//! register; after the next exit the interrupt is ended here.
//! **Invariant.** Nothing looks at the local APIC between [`PvEoi::offer`] and [`PvEoi::settle`], so nobody sees an
//! interrupt in service that the guest has ended. While another one waits nothing is offered: its turn comes with the
//! end, which must be an exit then.
//!
//! Source: Linux `Documentation/virt/kvm/x86/msr.rst`, `MSR_KVM_EOI_EN` (the interface, not the code).

use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::GuestMemory;

use super::GeneralProtection;
use super::lapic::LocalApic;

/// Bit of the MSR: the rest is an address.
const ENABLE: u64 = 1;
/// Bit of the MSR that must be zero: the bytes are aligned.
const RESERVED: u64 = 1 << 1;
/// Bytes that the guest sets apart.
const LEN: usize = 4;
/// Bit of the first of them: the end needs no exit.
const SILENT: u8 = 1;

/// How one vCPU may end its interrupts.
#[derive(Clone, Copy, Debug, Default)]
pub struct PvEoi {
    msr: u64,
    /// The bit was set, and has not been looked at since.
    offered: bool,
}

impl PvEoi {
    /// What the MSR reads.
    pub const fn msr(&self) -> u64 {
        self.msr
    }

    /// WRMSR. To be called between two entries.
    ///
    /// # Errors
    /// When a reserved bit is set, or the bytes are not RAM.
    pub fn set_msr(&mut self, value: u64, memory: &dyn GuestMemory) -> Result<(), GeneralProtection> {
        let usable = value & ENABLE == 0 || memory.is_ram(GuestPhys(value & !ENABLE), LEN);
        if value & RESERVED != 0 || !usable {
            return Err(GeneralProtection);
        }
        self.msr = value;
        Ok(())
    }

    /// Before an entry, when it is chosen what the guest is interrupted by.
    #[inline]
    pub fn offer(&mut self, lapic: &LocalApic, memory: &dyn GuestMemory) {
        // At most entries no interrupt is in service.
        if lapic.ends_silently() && self.msr & ENABLE != 0 {
            self.offered = self.flags(memory).is_some_and(|flags| self.set_flags(flags | SILENT, memory));
        }
    }

    /// After an exit, before anything looks at the local APIC; or where the entry does not come.
    #[inline]
    pub fn settle(&mut self, lapic: &mut LocalApic, memory: &dyn GuestMemory) {
        if core::mem::take(&mut self.offered) {
            self.look(lapic, memory);
        }
    }

    /// Whether the guest has ended the interrupt.
    fn look(&self, lapic: &mut LocalApic, memory: &dyn GuestMemory) {
        match self.flags(memory) {
            Some(flags) if flags & SILENT != 0 => {
                self.set_flags(flags & !SILENT, memory);
            }
            _ => lapic.end_silently(),
        }
    }

    fn flags(&self, memory: &dyn GuestMemory) -> Option<u8> {
        let mut flags = [0];
        memory.read(GuestPhys(self.msr & !ENABLE), &mut flags).ok()?;
        Some(flags[0])
    }

    fn set_flags(&self, flags: u8, memory: &dyn GuestMemory) -> bool {
        memory.write(GuestPhys(self.msr & !ENABLE), &[flags]).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::lapic::{ApicEvent, MSR_APIC_BASE};
    use pasidon_arch_common::testing::TestMemory;
    use proptest::prelude::*;

    const PLACE: u64 = 0x200;
    const SVR: u32 = 0x80f;
    const EOI: u32 = 0x80b;
    const IN_SERVICE: core::ops::Range<u32> = 0x810..0x818;

    struct Rig {
        eoi: PvEoi,
        lapic: LocalApic,
        memory: TestMemory,
    }

    impl Rig {
        fn new() -> Self {
            let memory = TestMemory::new(0, 0x1000);
            let mut lapic = LocalApic::new(0);
            lapic.write_msr(MSR_APIC_BASE, 0xfee0_0000 | 3 << 10, 0).unwrap();
            lapic.write_msr(SVR, 0x1ff, 0).unwrap();
            let mut eoi = PvEoi::default();
            eoi.set_msr(PLACE | ENABLE, &memory).unwrap();
            Self { eoi, lapic, memory }
        }

        fn take(&mut self, vector: u8, level: bool) {
            self.lapic.accept(vector, level);
            self.lapic.acknowledge(vector);
        }

        fn enter(&mut self) {
            self.eoi.offer(&self.lapic, &self.memory);
        }

        fn exit(&mut self) {
            self.eoi.settle(&mut self.lapic, &self.memory);
        }

        /// As Linux does it; says whether it took no exit.
        fn end(&mut self) -> bool {
            let silent = self.memory.bytes(PLACE, 1) == [SILENT];
            if silent {
                self.memory.put(PLACE, &[0]);
            } else {
                self.exit();
                self.lapic.write_msr(EOI, 0, 0).unwrap();
                self.enter();
            }
            silent
        }

        fn in_service(&self) -> u32 {
            IN_SERVICE.map(|msr| (self.lapic.read_msr(msr, 0).unwrap() as u32).count_ones()).sum()
        }
    }

    #[test]
    fn an_end_takes_no_exit_and_counts_after_the_next_one() {
        let mut rig = Rig::new();
        rig.take(0x41, false);
        rig.enter();
        assert!(rig.end());
        rig.exit();
        assert_eq!((rig.in_service(), rig.memory.bytes(PLACE, 4)), (0, vec![0; 4]));
    }

    #[test]
    fn an_exit_before_the_end_ends_nothing() {
        let mut rig = Rig::new();
        rig.take(0x41, false);
        for _ in 0..3 {
            rig.enter();
            rig.exit();
            assert_eq!(
                (rig.in_service(), rig.memory.bytes(PLACE, 1)),
                (1, vec![0]),
                "and the bit is taken back"
            );
        }
        rig.enter();
        assert!(rig.end());
    }

    #[test]
    fn what_others_must_hear_of_takes_an_exit() {
        // A level-triggered interrupt; one behind which another waits; an APIC without the bytes.
        let mut level = Rig::new();
        level.take(0x41, true);
        let mut waiting = Rig::new();
        waiting.take(0x41, false);
        waiting.lapic.accept(0x31, false);
        let mut without = Rig::new();
        without.eoi.set_msr(PLACE, &without.memory).unwrap();
        without.take(0x41, false);
        for (name, mut rig) in [("level", level), ("waiting", waiting), ("without", without)] {
            rig.enter();
            assert_eq!(rig.memory.bytes(PLACE, 1), [0], "{name}");
            assert!(!rig.end(), "{name}");
            assert_eq!(rig.in_service(), 0, "{name}");
        }
        let mut level = Rig::new();
        level.take(0x41, true);
        let event = level.lapic.write_msr(EOI, 0, 0).unwrap();
        assert_eq!(event, Some(ApicEvent::EndOfInterrupt { vector: 0x41 }));
    }

    #[test]
    fn a_guest_that_ends_by_the_register_all_the_same_ends_one() {
        let mut rig = Rig::new();
        rig.take(0x31, false);
        rig.take(0x41, false);
        rig.enter();
        rig.exit();
        rig.lapic.write_msr(EOI, 0, 0).unwrap();
        assert_eq!(rig.in_service(), 1);
    }

    #[test]
    fn the_bytes_are_aligned_ram() {
        let mut rig = Rig::new();
        for (value, fine) in [(0x300, true), (0x301, true), (0x303, false), (0x1001, false), (0x1000, true)] {
            assert_eq!(rig.eoi.set_msr(value, &rig.memory).is_ok(), fine, "{value:#x}");
            if fine {
                assert_eq!(rig.eoi.msr(), value);
            }
        }
    }

    proptest! {
        /// Whatever comes in whatever order, each interrupt that the guest took is ended once by its own end.
        #[test]
        fn each_end_ends_one(steps in proptest::collection::vec((0..4u8, 0x20..0xffu8, any::<bool>()), 0..200)) {
            let mut rig = Rig::new();
            let mut taken = 0u32;
            rig.enter();
            for (step, vector, level) in steps {
                match step {
                    // A message, for which there is an exit; it is delivered where its priority allows.
                    0 => {
                        rig.exit();
                        rig.lapic.accept(vector, level);
                        if let Some(vector) = rig.lapic.pending() {
                            rig.lapic.acknowledge(vector);
                            taken += 1;
                        }
                        rig.enter();
                    }
                    1 if taken > 0 => {
                        let waits = rig.lapic.highest_requested().is_some();
                        prop_assert!(!(rig.end() && waits), "what waits was not looked at");
                        taken -= 1;
                        if let Some(vector) = rig.lapic.pending() {
                            rig.exit();
                            rig.lapic.acknowledge(vector);
                            taken += 1;
                            rig.enter();
                        }
                    }
                    _ => {
                        rig.exit();
                        prop_assert_eq!(rig.in_service(), taken);
                        rig.enter();
                    }
                }
            }
        }
    }
}
