// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be told of a device without changing anything: what its bring-up checks first, and all that an inventory
//! looks at.
//!
//! **Invariant.** Nothing here writes a register or to configuration space, and nothing that is read changes by it.
//!
//! Source: Intel DSA Architecture Specification 341204-006, chapter on registers; INTEL-SA-01084.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pasidon_kernel::base::addr::PAGE_SIZE;
use pasidon_kernel::base::refusal::Refusal;

use super::Silicon;
use super::capabilities::Capabilities;
use super::registers::{GENSTS, gensts};
use crate::pci::{ConfigSpace, Function, MsixLocation, PasidCapability};
use crate::registers::{MapRegisters, Registers};

/// Operations of DSA 1.0, as in OPCAP word 0. Later ones (inter-domain among them) are not given to
/// guests: they reach other address spaces.
pub(super) const OPERATIONS_1_0: u64 = 1 << 0x20 | 0x3f << 0x10 | 0x3ff;

/// What a device says of itself in its configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Which part it is.
    pub silicon: Silicon,
    /// Its MSI-X capability.
    pub msix: MsixLocation,
    /// Its PASID capability.
    pub pasid: PasidCapability,
}

impl Found {
    /// Of this function.
    ///
    /// # Errors
    /// When the driver does not know it, or it lacks what Pasidon needs of it.
    pub fn of<C: ConfigSpace>(function: &Function<C>) -> Result<Self, Refusal> {
        let refuse = |why: &str, remedy: &str| Refusal::new("", why, remedy);
        let identity = function.identity();
        let silicon = Silicon::of(identity.vendor, identity.device).ok_or_else(|| {
            refuse(
                "not a Data Streaming Accelerator this driver knows",
                "name a function that is 8086:11fb or 8086:0b25",
            )
        })?;
        let msix = function.msix().ok_or_else(|| refuse("it has no MSI-X", "name another device"))?;
        let pasid = function.pasid().filter(|pasid| pasid.bits > 0).ok_or_else(|| {
            refuse(
                "it cannot tag its requests (no PASID capability)",
                "switch PASID on in the firmware's setup",
            )
        })?;
        Ok(Self { silicon, msix, pasid })
    }
}

/// Whether a device with these capabilities can be shared. `window`: size of its BAR0 in bytes, where that is known.
///
/// # Errors
/// When it lacks what Pasidon needs of it, or its queues cannot be kept from what guests must not have.
pub fn check(capabilities: &Capabilities, window: Option<usize>, msix: &MsixLocation) -> Result<(), Refusal> {
    capabilities.check(window, msix).map_err(unfit)?;
    match unenforced(capabilities) {
        None => Ok(()),
        Some(beyond) => Err(Refusal::new(
            "",
            format!(
                "its queues take operation {beyond:#04x}, which guests must not have, and cannot be kept from it \
                 (OPCAP has it, WQCAP has no OPCFG)"
            ),
            "name a device with OPCFG, or one of DSA 1.0",
        )),
    }
}

/// Whether portals of a part may be mapped into guests; `accepted`: the configuration accepts that some are unsafe.
///
/// # Errors
/// When they are, and that is not accepted.
pub fn check_portals(silicon: Silicon, accepted: bool) -> Result<(), Refusal> {
    if silicon.safe_portals() || accepted {
        return Ok(());
    }
    Err(Refusal::new(
        "",
        "the portals of 8086:0b25 are not safe for guests (INTEL-SA-01084)",
        "use a device with the fix (8086:11fb), or accept the risk with allow_unsafe_portals = true",
    ))
}

/// A device whose registers do not fit.
pub(super) fn unfit(why: String) -> Refusal {
    Refusal::new("", why, "name another device, or check the firmware's setup")
}

/// The first operation beyond DSA 1.0 that a queue would carry out whatever it is programmed with. (Batch is not one:
/// where it is not given to guests, portals are mapped only for who accepted that they are unsafe.)
fn unenforced(capabilities: &Capabilities) -> Option<usize> {
    let allowed = |word: usize| if word == 0 { OPERATIONS_1_0 } else { 0 };
    let beyond = (0..).zip(capabilities.operations).find_map(|(word, operations)| {
        let beyond = operations & !allowed(word);
        (beyond != 0).then(|| word * 64 + beyond.trailing_zeros() as usize)
    });
    beyond.filter(|_| !capabilities.has_opcfg())
}

/// Version and queues, as names and values; `state` is GENSTS, where it could be read.
pub(super) fn describe(capabilities: &Capabilities, state: Option<u32>) -> [(&'static str, String); 3] {
    [
        ("version", format!("{}.{}", capabilities.version >> 8 & 0xff, capabilities.version & 0xff)),
        ("state", state.map_or("being reset", gensts::state).to_string()),
        (
            "queues",
            format!(
                "{} with {} entries, {} groups, {} engines",
                capabilities.work_queues.queues(),
                capabilities.work_queues.total_size(),
                capabilities.groups.groups(),
                capabilities.engines
            ),
        ),
    ]
}

/// What an inventory says of a device.
#[derive(Default)]
pub struct Survey {
    /// Names and values.
    pub facts: Vec<(&'static str, String)>,
    /// Why it could not be shared. What is refused is the device.
    pub refused: Vec<Refusal>,
}

/// Looks at a device. `accepted`: the configuration accepts that portals are unsafe; `can_trap`: the processor can submit
/// to a shared queue, so that portals are not needed.
pub fn survey<R: Registers, C: ConfigSpace>(
    function: &Function<C>,
    accepted: bool,
    can_trap: bool,
    map_registers: MapRegisters<'_, R>,
) -> Survey {
    let mut survey = Survey::default();
    survey.facts.push(("revision", format!("{:#04x}", function.identity().revision)));
    if let Err(refusal) = survey.look(function, accepted, can_trap, map_registers) {
        survey.refused.push(refusal);
    }
    survey
}

impl Survey {
    fn look<R: Registers, C: ConfigSpace>(
        &mut self,
        function: &Function<C>,
        accepted: bool,
        can_trap: bool,
        map_registers: MapRegisters<'_, R>,
    ) -> Result<(), Refusal> {
        let found = Found::of(function)?;
        self.facts.extend([
            ("part", found.silicon.name().to_string()),
            ("PASID", format!("{} bits", found.pasid.bits)),
            ("MSI-X", format!("{} entries", found.msix.entries)),
        ]);
        match check_portals(found.silicon, accepted) {
            Err(refusal) if can_trap => {
                self.facts.push(("portals", format!("not offered: {}; dsa-swq needs none", refusal.why)));
            }
            checked => self.refused.extend(checked.err()),
        }
        let bar0 = function.memory_address(0)?;
        let bar2 = function.memory_address(2)?;
        self.facts.push(("registers", format!("BAR0 at {bar0}, portals BAR2 at {bar2}")));
        if !function.decodes_memory() {
            self.facts.push(("not read", "its memory is off, and stays so".to_string()));
            return Ok(());
        }
        // The registers at fixed places, which are all that is read, lie in one page of every DSA.
        let registers = match map_registers(bar0, PAGE_SIZE) {
            Ok(registers) => registers,
            Err(refusal) => {
                self.facts.push(("not read", refusal.why));
                return Ok(());
            }
        };
        let capabilities = Capabilities::read(&registers, &found.msix).map_err(unfit)?;
        self.facts.extend(describe(&capabilities, Some(registers.read32(GENSTS))));
        self.facts.extend([
            ("GENCAP", format!("{:#018x}", capabilities.general.0)),
            ("WQCAP", format!("{:#018x}", capabilities.work_queues.0)),
            ("OPCAP", format!("{:#018x}", capabilities.operations[0])),
        ]);
        check(&capabilities, None, &found.msix)
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use std::collections::BTreeMap;

    use pasidon_kernel::base::addr::Requester;

    use super::*;
    use crate::accel::dsa::registers::{ENGCAP, GENCAP, GRPCAP, OFFSETS, OPCAP, VERSION, WQCAP};
    use crate::testing::ReadOnly;

    const PLACE: Requester = Requester::new(0, 0x6a, 1, 0);
    const MEMORY_ON: u32 = 1 << 1;

    /// Configuration space that nobody may write.
    struct Config(BTreeMap<u16, u32>);

    impl ConfigSpace for Config {
        fn read32(&self, _: Requester, offset: u16) -> u32 {
            self.0.get(&offset).copied().unwrap_or(0)
        }

        fn write32(&self, _: Requester, offset: u16, value: u32) {
            panic!("{value:#x} is written to {offset:#x}");
        }
    }

    fn function(device: u32, command: u32) -> Function<Arc<Config>> {
        const CAPABILITIES: u32 = 1 << 20;
        let words = [
            (0x00, device << 16 | 0x8086),
            (0x04, CAPABILITIES | command),
            (0x08, 0x0880_0000),
            (0x10, 0xfe00_000c),
            (0x14, 0x20),
            (0x18, 0xfd00_000c),
            (0x1c, 0x20),
            (0x34, 0x40),
            (0x40, 8 << 16 | 0x11),
            (0x44, 0x2000),
            (0x100, 0x0001_001b),
            (0x104, 20 << 8),
        ];
        Function::new(Arc::new(Config(BTreeMap::from(words))), PLACE).unwrap()
    }

    /// What Linux prints of the first parts, but for the operations.
    fn registers(gencap: u64) -> ReadOnly {
        ReadOnly::new(&[
            (VERSION, 0x100),
            (GENCAP, gencap),
            (WQCAP, 0x3f_0000_0000_0000 | 8 << 16 | 128),
            (GRPCAP, 4),
            (ENGCAP, 4),
            (OPCAP, 0x1_003f_03ff),
            (OPCAP + 8, 0),
            (OPCAP + 16, 0),
            (OPCAP + 24, 0),
            (OFFSETS, 7 << 32 | 5 << 16 | 4),
            (GENSTS, 0),
        ])
    }

    fn looked(device: u32, command: u32, gencap: u64) -> (Vec<(&'static str, String)>, Vec<String>) {
        looked_at(device, command, gencap, false)
    }

    fn looked_at(
        device: u32,
        command: u32,
        gencap: u64,
        can_trap: bool,
    ) -> (Vec<(&'static str, String)>, Vec<String>) {
        let survey = survey(&function(device, command), false, can_trap, &mut |base, _| {
            assert_eq!(base.0, 0x20_fe00_0000);
            Ok(registers(gencap))
        });
        (survey.facts, survey.refused.iter().map(|refusal| refusal.why.clone()).collect())
    }

    #[test]
    fn a_device_is_described_without_a_write() {
        let (facts, refused) = looked(0x11fb, MEMORY_ON, 1 << 31);
        assert_eq!(refused, [""; 0]);
        let queues = ("queues", "8 with 128 entries, 4 groups, 4 engines".to_string());
        assert!(facts.contains(&queues) && facts.contains(&("state", "disabled".to_string())), "{facts:?}");
    }

    #[test]
    fn unsafe_portals_are_no_refusal_where_none_is_needed() {
        let (facts, refused) = looked_at(0x0b25, MEMORY_ON, 1 << 31, true);
        assert_eq!(refused, [""; 0]);
        let said = facts.iter().find(|(name, _)| *name == "portals").map(|(_, value)| value.as_str());
        assert!(said.is_some_and(|said| said.ends_with("dsa-swq needs none")), "{said:?}");
    }

    #[test]
    fn a_device_is_refused_as_at_its_bring_up() {
        let (_, refused) = looked(0x0b25, MEMORY_ON, 0);
        assert!(refused[0].contains("INTEL-SA-01084") && refused[1].contains("CONFIG_EN"), "{refused:?}");
        let (facts, refused) = looked(0x11fb, 0, 0);
        assert_eq!(refused, [""; 0]);
        assert!(facts.iter().any(|(name, _)| *name == "not read"), "{facts:?}");
        assert!(looked(0x11fc, 0, 0).1[0].contains("not a Data Streaming Accelerator"));
    }
}
