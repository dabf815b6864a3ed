// SPDX-License-Identifier: MIT OR Apache-2.0
//! The controls that guests run with, and whether a processor has them.
//!
//! **Principle.** What a guest must not do without the hypervisor is a control here; a processor without it is refused,
//! by name. Every other control is as the processor wants it, which is off wherever it leaves the choice.
//!
//! Source: Intel SDM volume 3, 25.6 to 25.8 (controls), appendix A (capability MSRs).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use bitflags::{Flags, bitflags};
use pasidon_kernel::base::refusal::Refusal;

pub const IA32_VMX_BASIC: u32 = 0x480;
pub const IA32_VMX_MISC: u32 = 0x485;
pub const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;
pub const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;
/// The first of the four that say what the true controls are: pin-based, processor-based, exit, entry.
const IA32_VMX_TRUE_PINBASED_CTLS: u32 = 0x48d;

/// IA32_VMX_BASIC: the revision of a VMCS.
const BASIC_REVISION: u64 = 0x7fff_ffff;
/// The true controls can be asked for.
const BASIC_TRUE_CONTROLS: u64 = 1 << 55;
/// IA32_VMX_MISC: exits store EFER.LMA into the entry control, as an unrestricted guest needs it.
const MISC_STORES_LMA: u64 = 1 << 5;

bitflags! {
    /// Pin-based controls.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Pin: u32 {
        /// Interrupts of the host's end the guest.
        const EXTERNAL_INTERRUPT = 1 << 0;
        /// NMIs of the host's end the guest.
        const NMI = 1 << 3;
        /// The guest's NMIs are its own, and blocked while their handler runs.
        const VIRTUAL_NMIS = 1 << 5;
        /// Interrupts that others have posted reach the guest at their notification.
        const POSTED_INTERRUPTS = 1 << 7;
    }

    /// Primary processor-based controls.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Primary: u32 {
        /// An exit as soon as the guest can take an interrupt.
        const INTERRUPT_WINDOW = 1 << 2;
        /// The guest's TSC has an offset.
        const TSC_OFFSET = 1 << 3;
        /// HLT.
        const HLT = 1 << 7;
        /// MWAIT.
        const MWAIT = 1 << 10;
        /// RDPMC.
        const RDPMC = 1 << 11;
        /// Moves to CR3.
        const CR3_LOAD = 1 << 15;
        /// Moves from CR3.
        const CR3_STORE = 1 << 16;
        /// CR8 is a byte of the virtual-APIC page.
        const TPR_SHADOW = 1 << 21;
        /// An exit as soon as the guest can take an NMI.
        const NMI_WINDOW = 1 << 22;
        /// Every port.
        const IO = 1 << 24;
        /// MSRs by the bitmap.
        const MSR_BITMAP = 1 << 28;
        /// MONITOR.
        const MONITOR = 1 << 29;
        /// There are secondary controls.
        const SECONDARY = 1 << 31;
    }

    /// Secondary processor-based controls.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Secondary: u32 {
        /// Extended page tables.
        const EPT = 1 << 1;
        /// The local APIC's MSRs are registers of the virtual-APIC page.
        const X2APIC = 1 << 4;
        /// RDTSCP and RDPID exist.
        const RDTSCP = 1 << 3;
        /// Translations are tagged.
        const VPID = 1 << 5;
        /// WBINVD and WBNOINVD, which would empty the caches of all, for milliseconds.
        const WBINVD = 1 << 6;
        /// Real mode, and no paging.
        const UNRESTRICTED = 1 << 7;
        /// All of these, and not TPR alone.
        const APIC_REGISTERS = 1 << 8;
        /// What the page requests is delivered.
        const INTERRUPT_DELIVERY = 1 << 9;
        /// INVPCID exists.
        const INVPCID = 1 << 12;
        /// ENCLS by its bitmap.
        const ENCLS = 1 << 15;
    }

    /// Exit controls.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Exit: u32 {
        /// DR7 is saved.
        const SAVE_DEBUG = 1 << 2;
        /// The host is in 64-bit mode.
        const HOST_64BIT = 1 << 9;
        /// An interrupt that ends the guest is taken from the local APIC, and its vector told.
        const ACKNOWLEDGE = 1 << 15;
        /// The host's PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// The guest's EFER is saved.
        const SAVE_EFER = 1 << 20;
        /// The host's EFER is loaded.
        const LOAD_EFER = 1 << 21;
    }

    /// Entry controls.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Entry: u32 {
        /// DR7 is loaded.
        const LOAD_DEBUG = 1 << 2;
        /// The guest is in long mode: EFER.LMA.
        const LONG_MODE = 1 << 9;
        /// The guest's PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// The guest's EFER is loaded.
        const LOAD_EFER = 1 << 15;
    }

    /// What IA32_VMX_EPT_VPID_CAP tells.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Translation: u64 {
        const FOUR_LEVELS = 1 << 6;
        const WRITE_BACK = 1 << 14;
        const LARGE_PAGES = 1 << 16;
        const INVEPT_ONE = 1 << 20 | 1 << 25;
        const INVEPT_ALL = 1 << 20 | 1 << 26;
        const INVVPID_ONE = 1 << 32 | 1 << 41;
        const INVVPID_ALL = 1 << 32 | 1 << 42;
    }
}

/// What every guest needs. Its PAT needs no saving, as each write of it leaves the guest.
pub const PIN: Pin = Pin::all().difference(Pin::POSTED_INTERRUPTS);
pub const PRIMARY: Primary = Primary::all()
    .difference(Primary::INTERRUPT_WINDOW)
    .difference(Primary::NMI_WINDOW)
    .difference(Primary::CR3_LOAD)
    .difference(Primary::CR3_STORE);
/// Of these, what only has to be held back where it exists: instructions that a processor may lack, with the control.
const IF_THERE: Primary = Primary::MONITOR.union(Primary::MWAIT);
const SECONDARY: Secondary =
    Secondary::EPT.union(Secondary::VPID).union(Secondary::WBINVD).union(Secondary::UNRESTRICTED);
/// What has the processor deliver the local APIC's interrupts by itself: all of it, or nothing.
pub const DELIVERY: Secondary =
    Secondary::X2APIC.union(Secondary::APIC_REGISTERS).union(Secondary::INTERRUPT_DELIVERY);
pub const EXIT: Exit = Exit::all();
pub const ENTRY: Entry = Entry::all().difference(Entry::LONG_MODE);

/// The values for the guests of one processor.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Controls {
    /// What the first word of a VMCS is.
    pub revision: u32,
    /// Pin-based controls.
    pub pin: u32,
    /// Primary processor-based controls, without windows.
    pub primary: u32,
    /// Secondary processor-based controls.
    pub secondary: u32,
    /// Those besides that have the processor deliver the local APIC's interrupts by itself; 0 where it cannot.
    pub delivery: u32,
    /// The pin-based control besides for posted interrupts, which needs these; 0 where it cannot.
    pub posting: u32,
    /// Exit controls.
    pub exit: u32,
    /// Entry controls, without long mode.
    pub entry: u32,
}

/// What a capability MSR says of a group of controls: which may be set, and which must.
#[derive(Clone, Copy)]
struct Choice {
    may: u32,
    must: u32,
}

impl Choice {
    fn new(msr: u64) -> Self {
        Self { may: (msr >> 32) as u32, must: msr as u32 }
    }

    /// The names of those `wanted` that may not be set, and of those `unwanted` that must, go to `missing`.
    fn choose<F: bitflags::Flags<Bits = u32>>(
        &self,
        wanted: F,
        unwanted: F,
        missing: &mut Vec<String>,
    ) -> u32 {
        for (name, flag) in F::FLAGS.iter().map(|flag| (flag.name(), flag.value().bits())) {
            if wanted.bits() & flag & !self.may != 0 {
                missing.push(name.to_string());
            }
            if unwanted.bits() & flag & self.must != 0 {
                missing.push(format!("guests without {name}"));
            }
        }
        wanted.bits() | self.must
    }
}

impl Controls {
    /// Whether ENCLS leaves guests by a bitmap.
    pub fn has_encls(&self) -> bool {
        self.secondary & Secondary::ENCLS.bits() != 0
    }

    /// Those of a processor with VMX, whose MSRs `read` reads.
    ///
    /// # Errors
    /// When it lacks some: all are named.
    pub fn new(read: &dyn Fn(u32) -> u64) -> Result<Self, Refusal> {
        let mut missing = Vec::new();
        let basic = read(IA32_VMX_BASIC);
        if basic & BASIC_TRUE_CONTROLS == 0 {
            return Err(refusal("true controls"));
        }
        let choice = |index| Choice::new(read(IA32_VMX_TRUE_PINBASED_CTLS + index));
        let pins = choice(0);
        let pin = pins.choose(PIN, Pin::POSTED_INTERRUPTS, &mut missing);
        let primary = choice(1);
        let windows = (Primary::INTERRUPT_WINDOW | Primary::NMI_WINDOW).bits() & !primary.may;
        if windows != 0 {
            missing.push("windows".to_string());
        }
        let unwanted = Primary::all() - PRIMARY;
        let absent = IF_THERE.difference(Primary::from_bits_truncate(primary.may));
        let primary = primary.choose(PRIMARY - absent, unwanted, &mut missing);
        let exit = choice(2).choose(EXIT, Exit::empty(), &mut missing);
        let entry = choice(3).choose(ENTRY, Entry::LONG_MODE, &mut missing);
        let (mut secondary, mut delivery) = (0, 0);
        if primary & Primary::SECONDARY.bits() != 0 && missing.is_empty() {
            let choice = Choice::new(read(IA32_VMX_PROCBASED_CTLS2));
            // What only has to be held back where it exists.
            let there = Secondary::from_bits_truncate(choice.may);
            secondary = choice.choose(SECONDARY | (there - DELIVERY), DELIVERY, &mut missing);
            delivery = if there.contains(DELIVERY) { DELIVERY.bits() } else { 0 };
            // The register is there only where one of these is.
            let tells = choice.may & (Secondary::EPT | Secondary::VPID).bits() != 0;
            let told = if tells { read(IA32_VMX_EPT_VPID_CAP) } else { 0 };
            let has = Translation::from_bits_truncate(told);
            for flag in Translation::FLAGS.iter().filter(|flag| !has.contains(*flag.value())) {
                missing.push(format!("EPT {}", flag.name()));
            }
            if read(IA32_VMX_MISC) & MISC_STORES_LMA == 0 {
                missing.push("LMA stored at exits".to_string());
            }
        }
        if !missing.is_empty() {
            return Err(refusal(&missing.join(", ")));
        }
        let revision = (basic & BASIC_REVISION) as u32;
        let posting = if delivery != 0 { pins.may & Pin::POSTED_INTERRUPTS.bits() } else { 0 };
        Ok(Self { revision, pin, primary, secondary, delivery, posting, exit, entry })
    }
}

fn refusal(missing: &str) -> Refusal {
    Refusal::new(
        "processor",
        format!("its VMX lacks {missing}"),
        "use a processor with EPT and unrestricted guests (Intel, 2011 or later); of a hypervisor below, ask for nested VMX",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_cpu::{Model, Processor};

    /// A processor that can do everything and asks for nothing but `changed`.
    fn generous(changed: u32, value: u64) -> impl Fn(u32) -> u64 {
        move |msr| match msr {
            _ if msr == changed => value,
            IA32_VMX_BASIC => BASIC_TRUE_CONTROLS | 4,
            IA32_VMX_EPT_VPID_CAP | IA32_VMX_MISC => u64::MAX,
            _ => u64::from(u32::MAX) << 32,
        }
    }

    #[test]
    fn each_thing_that_a_processor_lacks_is_named() {
        assert!(Controls::new(&generous(0, 0)).is_ok());
        for (msr, value, name) in [
            (IA32_VMX_BASIC, 4, "true controls"),
            (IA32_VMX_MISC, 0, "LMA stored at exits"),
            (IA32_VMX_EPT_VPID_CAP, !(1 << 16), "EPT LARGE_PAGES"),
            (IA32_VMX_EPT_VPID_CAP, !(1 << 41), "EPT INVVPID_ONE"),
            (IA32_VMX_PROCBASED_CTLS2, !(1 << 39) & u64::MAX << 32, "UNRESTRICTED"),
            (IA32_VMX_PROCBASED_CTLS2, u64::MAX << 32 | 1 << 9, "guests without INTERRUPT_DELIVERY"),
            (IA32_VMX_TRUE_PINBASED_CTLS, !(1 << 37), "VIRTUAL_NMIS"),
            (IA32_VMX_TRUE_PINBASED_CTLS + 1, !(1 << 60), "MSR_BITMAP"),
            (IA32_VMX_TRUE_PINBASED_CTLS + 1, !(1 << 34) & u64::MAX << 32, "windows"),
            (IA32_VMX_TRUE_PINBASED_CTLS + 1, u64::MAX << 32 | 1 << 15, "guests without CR3_LOAD"),
            (IA32_VMX_TRUE_PINBASED_CTLS + 2, !(1 << 51), "LOAD_PAT"),
            (IA32_VMX_TRUE_PINBASED_CTLS + 3, !(1 << 47), "LOAD_EFER"),
        ] {
            // The low half says what must be set: nothing that is not in question.
            let value = if msr >= IA32_VMX_TRUE_PINBASED_CTLS && value & 1 != 0 {
                value & u64::MAX << 32
            } else {
                value
            };
            let why = Controls::new(&generous(msr, value)).unwrap_err().why;
            assert_eq!(why, format!("its VMX lacks {name}"));
        }
    }

    #[test]
    fn what_a_processor_does_not_have_is_not_asked() {
        let poor = generous(IA32_VMX_PROCBASED_CTLS2, 0);
        let read = |msr| {
            assert_ne!(msr, IA32_VMX_EPT_VPID_CAP, "it would fault");
            poor(msr)
        };
        let why = Controls::new(&read).unwrap_err().why;
        assert!(why.contains("EPT, VPID, WBINVD, UNRESTRICTED"), "{why}");
    }

    #[test]
    fn what_would_let_a_guest_do_something_to_others_is_on_where_it_exists() {
        let controls = Controls::new(&generous(0, 0)).unwrap();
        assert_eq!(controls.secondary, (Secondary::all() - DELIVERY).bits());
        let poor = generous(IA32_VMX_PROCBASED_CTLS2, u64::from(SECONDARY.bits()) << 32);
        assert_eq!(Controls::new(&poor).unwrap().secondary, SECONDARY.bits());
        assert_eq!(controls.primary, PRIMARY.bits());
        let rest = u64::from((Primary::all() - IF_THERE).bits()) << 32;
        let poor = Controls::new(&generous(IA32_VMX_TRUE_PINBASED_CTLS + 1, rest)).unwrap();
        assert_eq!(poor.primary, (PRIMARY - IF_THERE).bits(), "without MONITOR");
    }

    #[test]
    fn interrupts_are_delivered_by_processors_that_can_do_all_of_it() {
        let of = |msr, value| {
            let controls = Controls::new(&generous(msr, value)).unwrap();
            (controls.delivery, controls.posting)
        };
        assert_eq!(of(0, 0), (DELIVERY.bits(), Pin::POSTED_INTERRUPTS.bits()));
        for bit in [36, 40, 41] {
            let without = (u64::from(u32::MAX) << 32) & !(1 << bit);
            assert_eq!(of(IA32_VMX_PROCBASED_CTLS2, without), (0, 0), "without bit {bit}");
        }
        let without = (u64::from(u32::MAX) << 32) & !(1 << 39);
        assert_eq!(of(IA32_VMX_TRUE_PINBASED_CTLS, without), (DELIVERY.bits(), 0));
    }

    #[test]
    fn a_real_model_has_them_and_keeps_what_it_must() {
        let controls = Processor::new(Model::SapphireRapids)
            // SAFETY: this model has VMX, and these MSRs.
            .run(|| Controls::new(&|msr| unsafe { crate::cpu::read_msr(msr) }))
            .unwrap()
            .unwrap();
        assert_eq!(controls.pin, PIN.bits() | 0x16);
        assert_eq!(controls.primary, PRIMARY.bits() | 0x0400_6172);
    }
}
