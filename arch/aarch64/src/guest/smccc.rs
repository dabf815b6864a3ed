// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of the SMC Calling Convention: what a guest may ask for by HVC or SMC, and that is all.
//!
//! **Principle.** An allow-list. SMCs are trapped (HCR_EL2.TSC), so none reaches the machine's firmware; both
//! conduits have the same functions. What is not in the list is answered with NOT_SUPPORTED, as the convention
//! asks for, and counted. The project has no hypercalls of its own, as on x86-64.
//!
//! What is said of workarounds is what the machine's firmware says of the processor: a guest that was told
//! nothing would believe itself vulnerable, and one that was told more would be. The true random number
//! service, standard secure services and vendor ranges are not offered.
//!
//! Source: Arm DEN 0028 (SMC Calling Convention) 1.1, sections 5 and 7; Arm DEN 0070 (firmware interfaces for
//! mitigating CVE-2017-5715, CVE-2018-3639 and CVE-2022-23960).

use super::psci::{Psci, PsciEffect, result};

/// Function identifiers of Arm architecture calls.
mod function {
    pub use super::super::psci::function::SMCCC_VERSION as VERSION;
    pub const ARCH_FEATURES: u32 = 0x8000_0001;
    pub const ARCH_WORKAROUND_1: u32 = 0x8000_8000;
    pub const ARCH_WORKAROUND_2: u32 = 0x8000_7fff;
    pub const ARCH_WORKAROUND_3: u32 = 0x8000_3fff;
}

/// SMCCC_VERSION: 1.1.
const VERSION_1_1: i64 = 1 << 16 | 1;

/// A workaround that a processor may need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workaround {
    /// SMCCC_ARCH_WORKAROUND_1: branch target injection (CVE-2017-5715).
    One,
    /// SMCCC_ARCH_WORKAROUND_2: speculative store bypass (CVE-2018-3639). Its argument is 0 or 1.
    Two,
    /// SMCCC_ARCH_WORKAROUND_3: branch history injection (CVE-2022-23960).
    Three,
}

impl Workaround {
    const fn of(id: u32) -> Option<Self> {
        match id {
            function::ARCH_WORKAROUND_1 => Some(Self::One),
            function::ARCH_WORKAROUND_2 => Some(Self::Two),
            function::ARCH_WORKAROUND_3 => Some(Self::Three),
            _ => None,
        }
    }

    /// Its function identifier, for asking the machine's firmware.
    pub const fn id(self) -> u32 {
        match self {
            Self::One => function::ARCH_WORKAROUND_1,
            Self::Two => function::ARCH_WORKAROUND_2,
            Self::Three => function::ARCH_WORKAROUND_3,
        }
    }
}

/// What the machine's firmware answered to SMCCC_ARCH_FEATURES for each workaround, as it came: negative where
/// it has none, 0 where the call is needed, 1 where the processor does not need it. The same on all processors
/// that the VM runs on, or the worse of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workarounds {
    /// [`Workaround::One`].
    pub one: i32,
    /// [`Workaround::Two`].
    pub two: i32,
    /// [`Workaround::Three`].
    pub three: i32,
}

impl Workarounds {
    /// Firmware that knows none, or that could not be asked.
    pub const UNKNOWN: Self = Self {
        one: result::NOT_SUPPORTED as i32,
        two: result::NOT_SUPPORTED as i32,
        three: result::NOT_SUPPORTED as i32,
    };

    const fn answer(&self, workaround: Workaround) -> i32 {
        match workaround {
            Workaround::One => self.one,
            Workaround::Two => self.two,
            Workaround::Three => self.three,
        }
    }
}

/// What a call has the vCPU loop do, beside putting the answer into X0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallEffect {
    /// As PSCI says.
    Psci(PsciEffect),
    /// Call the firmware's workaround (which needs it, and is for the processor the vCPU is on), with this
    /// argument, before the guest goes on.
    Workaround(Workaround, u32),
}

/// The answer to a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// What X0 becomes, unless the effect means that the call does not return. X1 to X30 stay.
    pub x0: u64,
    /// What to do besides.
    pub effect: CallEffect,
}

/// Calls that were not in the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refused {
    /// How many.
    pub count: u64,
    /// Function identifier of the last.
    pub last: u32,
}

/// Answers HVC or SMC `immediate` of `vcpu` with X0 to X3 in `registers`.
pub fn call(
    psci: &mut Psci,
    workarounds: &Workarounds,
    refused: &mut Refused,
    vcpu: u16,
    immediate: u16,
    registers: [u64; 4],
) -> Reply {
    let id = registers[0] as u32;
    let reply = |answer: i64, effect| Reply { x0: answer.cast_unsigned(), effect };
    let nothing = CallEffect::Psci(PsciEffect::None);
    if immediate == 0 {
        if let Some((answer, effect)) = psci.call(vcpu, registers) {
            return reply(answer, CallEffect::Psci(effect));
        }
        match id {
            function::VERSION => return reply(VERSION_1_1, nothing),
            function::ARCH_FEATURES => return reply(features(registers[1] as u32, workarounds), nothing),
            _ => {}
        }
        if let Some(workaround) = Workaround::of(id).filter(|w| workarounds.answer(*w) >= 0) {
            let needed = workarounds.answer(workaround) == 0;
            let effect =
                if needed { CallEffect::Workaround(workaround, registers[1] as u32) } else { nothing };
            return reply(result::SUCCESS, effect);
        }
    }
    refused.count = refused.count.saturating_add(1);
    refused.last = id;
    reply(result::NOT_SUPPORTED, nothing)
}

/// SMCCC_ARCH_FEATURES.
fn features(id: u32, workarounds: &Workarounds) -> i64 {
    match Workaround::of(id) {
        Some(workaround) => workarounds.answer(workaround).into(),
        None if matches!(id, function::VERSION | function::ARCH_FEATURES) => result::SUCCESS,
        None => result::NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::layout;
    use proptest::prelude::*;

    const SOME: Workarounds = Workarounds { one: 0, two: 1, three: -1 };
    const NOTHING: CallEffect = CallEffect::Psci(PsciEffect::None);

    struct Rig(Psci, Refused);

    impl Rig {
        fn new() -> Self {
            Self(Psci::new(1, layout::RAM_MIN), Refused::default())
        }

        fn call(&mut self, immediate: u16, id: u64, argument: u64) -> (i64, CallEffect) {
            let reply = call(&mut self.0, &SOME, &mut self.1, 0, immediate, [id, argument, 0, 0]);
            (reply.x0.cast_signed(), reply.effect)
        }
    }

    #[test]
    fn linux_finds_smccc_1_1_through_psci() {
        let mut rig = Rig::new();
        assert_eq!(rig.call(0, 0x8400_000a, 0x8000_0000), (0, NOTHING));
        assert_eq!(rig.call(0, 0x8000_0000, 0), (0x1_0001, NOTHING));
        assert_eq!(rig.1, Refused::default());
    }

    #[test]
    fn workarounds_are_what_the_firmware_says() {
        let mut rig = Rig::new();
        let told = [0x8000_8000, 0x8000_7fff, 0x8000_3fff].map(|id| rig.call(0, 0x8000_0001, id).0);
        assert_eq!(told, [0, 1, -1]);
        assert_eq!(rig.call(0, 0x8000_8000, 0), (0, CallEffect::Workaround(Workaround::One, 0)));
        assert_eq!(rig.call(0, 0x8000_7fff, 1), (0, NOTHING), "not needed: not done");
        assert_eq!(rig.call(0, 0x8000_3fff, 0), (-1, NOTHING));
        assert_eq!(Workaround::Three.id(), 0x8000_3fff);
    }

    #[test]
    fn everything_else_is_refused_and_counted() {
        let mut rig = Rig::new();
        // True random numbers, SoC ID, KVM's vendor UID, trusted OS, SiP, a PSCI call with an immediate.
        let others = [0x8400_0050, 0xc400_0053, 0x8000_0002, 0x8600_ff01, 0xb200_0000, 0xc200_0001, 0];
        for id in others {
            assert_eq!(rig.call(0, id, 0), (-1, NOTHING), "{id:#x}");
        }
        assert_eq!(rig.call(1, 0x8400_0008, 0), (-1, NOTHING));
        assert_eq!((rig.1.count, rig.1.last), (others.len() as u64 + 1, 0x8400_0008));
    }

    proptest! {
        #[test]
        fn no_call_does_what_is_not_in_the_list(immediate: u16, id: u32, argument: u64) {
            let mut rig = Rig::new();
            let (answer, effect) = rig.call(immediate, id.into(), argument);
            let psci = id & !(1 << 30);
            let listed = immediate == 0
                && ((0x8400_0000..=0x8400_000a).contains(&psci) || (0x8000_0000..=0x8000_ffff).contains(&id));
            prop_assert!(listed || (answer, effect) == (-1, NOTHING));
        }
    }
}
