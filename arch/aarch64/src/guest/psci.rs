// SPDX-License-Identifier: MIT OR Apache-2.0
//! PSCI 1.1: how a guest starts, stops and waits with its vCPUs, and switches itself off.
//!
//! **Principle.** The power state of all vCPUs of a VM is one value behind the VM's lock. A call goes in, an
//! answer and at most one effect come out; the vCPU loop carries the effect out.
//! **Invariant.** A vCPU is started only from off, so that two callers never start it twice.
//!
//! Source: Arm DEN 0022 (PSCI) 1.1, chapter 5.

use arrayvec::ArrayVec;

use super::layout;

/// Function identifiers (5.1). The 64-bit form of a call has bit 30 set.
pub(super) mod function {
    pub const SMC64: u32 = 1 << 30;
    pub const VERSION: u32 = 0x8400_0000;
    pub const CPU_SUSPEND: u32 = 0x8400_0001;
    pub const CPU_OFF: u32 = 0x8400_0002;
    pub const CPU_ON: u32 = 0x8400_0003;
    pub const AFFINITY_INFO: u32 = 0x8400_0004;
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    pub const FEATURES: u32 = 0x8400_000a;
    /// Of the SMC Calling Convention: PSCI_FEATURES tells whether it is there (5.16).
    pub const SMCCC_VERSION: u32 = 0x8000_0000;
}

/// Version 1.1.
const VERSION_1_1: i64 = 1 << 16 | 1;
/// MIGRATE_INFO_TYPE: there is no trusted OS to migrate.
const NO_TRUSTED_OS: i64 = 2;

/// Return values (5.2.2).
pub(super) mod result {
    pub const SUCCESS: i64 = 0;
    pub const NOT_SUPPORTED: i64 = -1;
    pub const INVALID_PARAMETERS: i64 = -2;
    pub const ALREADY_ON: i64 = -4;
    pub const ON_PENDING: i64 = -5;
    pub const INVALID_ADDRESS: i64 = -9;
}

/// Where a vCPU's execution starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// Number of the vCPU.
    pub vcpu: u16,
    /// First instruction: a guest-physical address in RAM.
    pub entry: u64,
    /// What is in X0 then.
    pub context: u64,
}

/// What a call has the vCPU loop do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PsciEffect {
    /// Nothing: the answer is all.
    None,
    /// The vCPU waits for an interrupt, as with WFI, then goes on.
    Wait,
    /// The vCPU stops, and does not return from the call.
    CpuOff,
    /// Another vCPU is to start, in the state of [`super::boot::EntryState`] with `entry` and `context`. The
    /// loop says [`Psci::started`] when it does.
    CpuOn(Start),
    /// The VM switches itself off.
    SystemOff,
    /// The VM asks to be started again.
    SystemReset,
}

/// Power state of one vCPU, with the numbers of AFFINITY_INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Power {
    On = 0,
    Off = 1,
    OnPending = 2,
}

/// The power state of a VM's vCPUs.
#[derive(Clone, Debug)]
pub struct Psci {
    power: ArrayVec<Power, { layout::VCPUS_MAX as usize }>,
    /// RAM in bytes.
    ram_size: u64,
}

impl Psci {
    /// After power-on: the first vCPU is on. `vcpus` is 1..= [`layout::VCPUS_MAX`]; the VM has `ram_size`
    /// bytes of RAM.
    pub fn new(vcpus: u16, ram_size: u64) -> Self {
        let off =
            core::iter::repeat_n(Power::Off, usize::from(vcpus.min(layout::VCPUS_MAX)).saturating_sub(1));
        Self { power: core::iter::once(Power::On).chain(off).collect(), ram_size }
    }

    /// A vCPU that [`PsciEffect::CpuOn`] named runs.
    pub fn started(&mut self, vcpu: u16) {
        if let Some(power) = self.power.get_mut(usize::from(vcpu)) {
            *power = Power::On;
        }
    }

    /// A call of `vcpu`: X0 to X3. `None`: it is none of PSCI's that are offered.
    pub fn call(&mut self, vcpu: u16, registers: [u64; 4]) -> Option<(i64, PsciEffect)> {
        let [id, first, second, third] = registers;
        let id = id as u32;
        let wide = id & function::SMC64 != 0;
        // A 32-bit call has 32-bit arguments.
        let argument = |value: u64| if wide { value } else { value & u64::from(u32::MAX) };
        if !offered(id) {
            return None;
        }
        let (answer, effect) = match id & !function::SMC64 {
            function::VERSION => (VERSION_1_1, PsciEffect::None),
            // Every state is a stand-by state: one keeps running after it, so the entry point is unused.
            function::CPU_SUSPEND => (result::SUCCESS, PsciEffect::Wait),
            function::CPU_OFF => return Some(self.cpu_off(vcpu)),
            function::CPU_ON => return Some(self.cpu_on(argument(first), argument(second), argument(third))),
            function::AFFINITY_INFO => {
                (self.affinity_info(argument(first), argument(second)), PsciEffect::None)
            }
            function::MIGRATE_INFO_TYPE => (NO_TRUSTED_OS, PsciEffect::None),
            // These do not return; if they did, this would be said.
            function::SYSTEM_OFF => (result::NOT_SUPPORTED, PsciEffect::SystemOff),
            function::SYSTEM_RESET => (result::NOT_SUPPORTED, PsciEffect::SystemReset),
            function::FEATURES => (features(first as u32), PsciEffect::None),
            _ => return None,
        };
        Some((answer, effect))
    }

    fn vcpu(&mut self, affinity: u64) -> Option<(u16, &mut Power)> {
        let vcpu = layout::vcpu_of_affinity(affinity)?;
        Some((vcpu, self.power.get_mut(usize::from(vcpu))?))
    }

    /// Where nothing is left that could start another one, the VM is off.
    fn cpu_off(&mut self, vcpu: u16) -> (i64, PsciEffect) {
        if let Some(power) = self.power.get_mut(usize::from(vcpu)) {
            *power = Power::Off;
        }
        let over = self.power.iter().all(|power| *power == Power::Off);
        let effect = if over { PsciEffect::SystemOff } else { PsciEffect::CpuOff };
        (result::NOT_SUPPORTED, effect)
    }

    fn cpu_on(&mut self, target: u64, entry: u64, context: u64) -> (i64, PsciEffect) {
        /// Bits of MPIDR that are no affinity, and so must be zero in a target.
        const RESERVED: u64 = 0xffff_ff00_ff00_0000;
        const INSTRUCTION: u64 = 4;
        let in_ram = entry.checked_sub(layout::RAM_BASE).is_some_and(|offset| offset < self.ram_size);
        let none = |answer| (answer, PsciEffect::None);
        if target & RESERVED != 0 {
            return none(result::INVALID_PARAMETERS);
        }
        let Some((vcpu, power)) = self.vcpu(target) else {
            return none(result::INVALID_PARAMETERS);
        };
        match power {
            Power::On => none(result::ALREADY_ON),
            Power::OnPending => none(result::ON_PENDING),
            Power::Off if !in_ram || !entry.is_multiple_of(INSTRUCTION) => none(result::INVALID_ADDRESS),
            Power::Off => {
                *power = Power::OnPending;
                (result::SUCCESS, PsciEffect::CpuOn(Start { vcpu, entry, context }))
            }
        }
    }

    fn affinity_info(&mut self, target: u64, lowest_level: u64) -> i64 {
        match self.vcpu(target) {
            // Since PSCI 1.0 higher levels need not be supported.
            Some((_, power)) if lowest_level == 0 => (*power as u8).into(),
            _ => result::INVALID_PARAMETERS,
        }
    }
}

/// Whether a function is offered, in the form that its identifier says.
pub(super) fn offered(id: u32) -> bool {
    match id & !function::SMC64 {
        function::CPU_SUSPEND | function::CPU_ON | function::AFFINITY_INFO => true,
        function::VERSION
        | function::CPU_OFF
        | function::MIGRATE_INFO_TYPE
        | function::SYSTEM_OFF
        | function::SYSTEM_RESET
        | function::FEATURES => id & function::SMC64 == 0,
        _ => false,
    }
}

/// PSCI_FEATURES: 0 for what is there, without options. (CPU_SUSPEND: the original format of power_state, and
/// no operating-system-initiated mode.)
fn features(id: u32) -> i64 {
    if offered(id) || id == function::SMCCC_VERSION { result::SUCCESS } else { result::NOT_SUPPORTED }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = layout::RAM_BASE + 0x8_0000;
    const CPU_ON_64: u64 = 0xc400_0003;

    fn psci(vcpus: u16) -> Psci {
        Psci::new(vcpus, layout::RAM_MIN)
    }

    fn answer(psci: &mut Psci, id: u64, arguments: [u64; 3]) -> Option<i64> {
        psci.call(0, [id, arguments[0], arguments[1], arguments[2]]).map(|(answer, _)| answer)
    }

    #[test]
    fn linux_finds_what_it_asks_for() {
        let mut psci = psci(1);
        assert_eq!(answer(&mut psci, 0x8400_0000, [0; 3]), Some(0x1_0001));
        assert_eq!(answer(&mut psci, 0x8400_0006, [0; 3]), Some(2));
        for there in [0x8400_0001, 0xc400_0001, 0x8400_0002, 0xc400_0003, 0xc400_0004, 0x8000_0000] {
            assert_eq!(answer(&mut psci, 0x8400_000a, [there, 0, 0]), Some(0), "{there:#x}");
        }
        // Suspend to RAM, reset 2, memory protection: not here.
        for absent in [0x8400_000e, 0xc400_000e, 0x8400_0012, 0x8400_0013, 0xc400_0002, 0x8400_0015] {
            assert_eq!(answer(&mut psci, 0x8400_000a, [absent, 0, 0]), Some(-1), "{absent:#x}");
            assert_eq!(answer(&mut psci, absent, [0; 3]), None, "{absent:#x}");
        }
    }

    #[test]
    fn a_vcpu_is_started_once() {
        let mut psci = psci(2);
        assert_eq!(answer(&mut psci, CPU_ON_64, [0, ENTRY, 0]), Some(-4), "the caller runs");
        for nobody in [2, 0x100, 1 << 32, layout::mpidr(1), 1 << 40 | 1] {
            assert_eq!(answer(&mut psci, CPU_ON_64, [nobody, ENTRY, 0]), Some(-2), "{nobody:#x}");
        }
        for nowhere in [0, ENTRY + 2, layout::RAM_BASE + layout::RAM_MIN, u64::MAX] {
            assert_eq!(answer(&mut psci, CPU_ON_64, [1, nowhere, 0]), Some(-9), "{nowhere:#x}");
        }
        assert_eq!(answer(&mut psci, 0xc400_0004, [1, 0, 0]), Some(1));
        let start = Start { vcpu: 1, entry: ENTRY, context: 7 };
        assert_eq!(psci.call(0, [CPU_ON_64, 1, ENTRY, 7]), Some((0, PsciEffect::CpuOn(start))));
        assert_eq!(answer(&mut psci, CPU_ON_64, [1, ENTRY, 0]), Some(-5));
        assert_eq!(answer(&mut psci, 0xc400_0004, [1, 0, 0]), Some(2));
        psci.started(1);
        assert_eq!(answer(&mut psci, CPU_ON_64, [1, ENTRY, 0]), Some(-4));
        assert_eq!(answer(&mut psci, 0xc400_0004, [1, 0, 0]), Some(0));
        assert_eq!(answer(&mut psci, 0xc400_0004, [1, 1, 0]), Some(-2));
    }

    #[test]
    fn the_last_vcpu_that_stops_switches_the_vm_off() {
        let mut psci = psci(2);
        psci.call(0, [CPU_ON_64, 1, ENTRY, 0]);
        psci.started(1);
        let off = [0x8400_0002, 0, 0, 0];
        assert_eq!(psci.call(0, off).map(|(_, e)| e), Some(PsciEffect::CpuOff));
        assert_eq!(psci.call(1, off).map(|(_, e)| e), Some(PsciEffect::SystemOff));
    }

    #[test]
    fn suspend_waits_and_the_system_ends() {
        let mut psci = psci(1);
        let effect = |psci: &mut Psci, id| psci.call(0, [id, 0, 0, 0]).map(|(_, effect)| effect);
        assert_eq!(effect(&mut psci, 0xc400_0001), Some(PsciEffect::Wait));
        assert_eq!(effect(&mut psci, 0x8400_0008), Some(PsciEffect::SystemOff));
        assert_eq!(effect(&mut psci, 0x8400_0009), Some(PsciEffect::SystemReset));
    }

    #[test]
    fn arguments_of_32_bit_calls_are_32_bits_wide() {
        let mut psci = psci(2);
        let start = psci.call(0, [0xffff_ffff_8400_0003, 1 << 40 | 1, 1 << 32 | ENTRY, 1 << 33 | 5]);
        let expected = Start { vcpu: 1, entry: ENTRY, context: 5 };
        assert_eq!(start, Some((0, PsciEffect::CpuOn(expected))));
    }
}
