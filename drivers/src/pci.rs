// SPDX-License-Identifier: MIT OR Apache-2.0
//! PCI configuration space: finding functions, their BARs and capabilities, and switching them on.
//!
//! **Principle.** Everything here works on 32-bit accesses through [`ConfigSpace`], so that the same code
//! runs on ECAM and on an array in a host test. A capability list is followed for a bounded number of
//! steps: a broken device cannot make the hypervisor loop. Half-words whose other half has write-1-to-clear
//! bits (command/status, device control/status) are written with zeros there.
//!
//! Source: PCI Express Base Specification 6.0, section 7 (configuration space), 6.6.2 (function-level
//! reset).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use pasidon_kernel::base::addr::{HostPhys, Requester};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::host::Host;

mod capabilities;
mod ecam;
mod segments;
#[cfg(test)]
pub(crate) mod tests;

pub use capabilities::{MsixLocation, PasidCapability};
pub use ecam::Ecam;
pub use segments::Segments;

/// What a read gives where nothing answers.
const ABSENT: u32 = u32::MAX;

const VENDOR_DEVICE: u16 = 0x00;
const COMMAND_STATUS: u16 = 0x04;
const CLASS_REVISION: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0c;
const BAR0: u16 = 0x10;

const COMMAND_IO: u32 = 1 << 0;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;
const COMMAND_INTX_DISABLE: u32 = 1 << 10;
/// Command register without the status register above it.
const COMMAND_MASK: u32 = 0xffff;

const HEADER_MULTIFUNCTION: u32 = 1 << 23;
const HEADER_TYPE_MASK: u32 = 0x7f << 16;

const BAR_IO: u32 = 1 << 0;
const BAR_TYPE_MASK: u32 = 3 << 1;
const BAR_TYPE_64: u32 = 2 << 1;
const BAR_PREFETCHABLE: u32 = 1 << 3;
const BAR_ADDRESS_MASK: u32 = !0xf;

/// Longest time a function may take to come back after a function-level reset, in nanoseconds.
const FLR_DEADLINE_NS: u64 = 1_000_000_000;
/// Time in which a function that was just reset must not be touched, in nanoseconds.
const FLR_SETTLE_NS: u64 = 100_000_000;

/// Access to the configuration space of one or more segments. `offset` is below 4096 and a multiple of 4.
pub trait ConfigSpace: Send + Sync {
    /// Reads 32 bits; all ones where nothing answers.
    fn read32(&self, function: Requester, offset: u16) -> u32;
    /// Writes 32 bits; without effect where nothing answers.
    fn write32(&self, function: Requester, offset: u16, value: u32);
}

impl<C: ConfigSpace + ?Sized> ConfigSpace for Arc<C> {
    fn read32(&self, function: Requester, offset: u16) -> u32 {
        (**self).read32(function, offset)
    }

    fn write32(&self, function: Requester, offset: u16, value: u32) {
        (**self).write32(function, offset, value);
    }
}

/// What a function says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Where it is.
    pub requester: Requester,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code, 24 bits (base, sub, interface).
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:04x}:{:04x} class {:06x}", self.requester, self.vendor, self.device, self.class)
    }
}

/// The buses behind a bridge, from its configuration space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusRange {
    /// Secondary bus number: the first behind it.
    pub secondary: u8,
    /// Subordinate bus number: the last behind it.
    pub subordinate: u8,
}

/// A memory base address register, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryBar {
    /// Index of its (lower) register, 0..6.
    pub index: u8,
    /// Where firmware placed it. 0 means nowhere.
    pub address: HostPhys,
    /// Size in bytes, a power of two.
    pub size: u64,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

/// Every function on `buses` of a segment, in routing-ID order. All buses are looked at, so that functions
/// below several root bridges are found without knowing the bridges.
pub fn enumerate<C: ConfigSpace>(config: &C, segment: u16, buses: RangeInclusive<u8>) -> Vec<Identity> {
    let mut found = Vec::new();
    for bus in buses {
        for device in 0..32 {
            for function in 0..8 {
                let requester = Requester::new(segment, bus, device, function);
                let Some(identity) = identify(config, requester) else {
                    if function == 0 {
                        break;
                    }
                    continue;
                };
                found.push(identity);
                let multifunction = config.read32(requester, HEADER_TYPE) & HEADER_MULTIFUNCTION != 0;
                if function == 0 && !multifunction {
                    break;
                }
            }
        }
    }
    found
}

fn identify<C: ConfigSpace>(config: &C, requester: Requester) -> Option<Identity> {
    let ids = config.read32(requester, VENDOR_DEVICE);
    let vendor = ids as u16;
    if vendor == u16::MAX || vendor == 0 {
        return None;
    }
    let class = config.read32(requester, CLASS_REVISION);
    Some(Identity { requester, vendor, device: (ids >> 16) as u16, class: class >> 8, revision: class as u8 })
}

/// One function, with the means to reach its configuration space. Used by the driver that owns it; it has
/// no lock of its own.
#[derive(Clone, Debug)]
pub struct Function<C> {
    config: C,
    identity: Identity,
}

impl<C: ConfigSpace> Function<C> {
    /// The function at `requester`.
    ///
    /// # Errors
    /// When none answers there.
    pub fn new(config: C, requester: Requester) -> Result<Self, Refusal> {
        match identify(&config, requester) {
            Some(identity) => Ok(Self { config, identity }),
            None => Err(Refusal::new(
                alloc::format!("pci {requester}"),
                "no function answers there",
                "name one of those that `parents` lists, or match by vendor:device",
            )),
        }
    }

    /// What it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Where it is.
    pub fn requester(&self) -> Requester {
        self.identity.requester
    }

    pub(crate) fn read32(&self, offset: u16) -> u32 {
        self.config.read32(self.identity.requester, offset)
    }

    pub(crate) fn write32(&self, offset: u16, value: u32) {
        self.config.write32(self.identity.requester, offset, value);
    }

    fn refusal(&self, why: &str, remedy: &str) -> Refusal {
        Refusal::new(alloc::format!("pci {}", self.requester()), why, remedy)
    }

    /// Changes bits of the command register.
    fn update_command(&self, clear: u32, set: u32) {
        let command = self.read32(COMMAND_STATUS) & COMMAND_MASK;
        self.write32(COMMAND_STATUS, (command & !clear) | set);
    }

    /// The memory BARs of a type 0 function, by register index. Sizes are found by writing ones, with
    /// decoding off meanwhile: no register of the function may be in use by anyone.
    pub fn memory_bars(&self) -> Vec<MemoryBar> {
        let mut bars = Vec::new();
        if self.read32(HEADER_TYPE) & HEADER_TYPE_MASK != 0 {
            return bars;
        }
        let command = self.read32(COMMAND_STATUS) & COMMAND_MASK;
        self.write32(COMMAND_STATUS, command & !(COMMAND_IO | COMMAND_MEMORY));
        let mut index = 0u8;
        while index < 6 {
            let register = BAR0 + u16::from(index) * 4;
            let low = self.read32(register);
            let wide = low & BAR_IO == 0 && low & BAR_TYPE_MASK == BAR_TYPE_64 && index < 5;
            if low & BAR_IO == 0 {
                bars.extend(self.size_memory_bar(index, register, low, wide));
            }
            index += if wide { 2 } else { 1 };
        }
        self.write32(COMMAND_STATUS, command);
        bars
    }

    fn size_memory_bar(&self, index: u8, register: u16, low: u32, wide: bool) -> Option<MemoryBar> {
        let high = if wide { self.read32(register + 4) } else { 0 };
        self.write32(register, u32::MAX);
        let low_mask = self.read32(register) & BAR_ADDRESS_MASK;
        self.write32(register, low);
        let high_mask = if wide {
            self.write32(register + 4, u32::MAX);
            let mask = self.read32(register + 4);
            self.write32(register + 4, high);
            mask
        } else {
            u32::MAX
        };
        let mask = u64::from(high_mask) << 32 | u64::from(low_mask);
        // A 32-bit BAR that does not exist reads zero; so does a 64-bit one, in both halves.
        if low_mask == 0 && (!wide || high_mask == 0) {
            return None;
        }
        Some(MemoryBar {
            index,
            address: HostPhys(u64::from(high) << 32 | u64::from(low & BAR_ADDRESS_MASK)),
            size: mask & mask.wrapping_neg(),
            prefetchable: low & BAR_PREFETCHABLE != 0,
        })
    }

    /// The memory BAR with this register index.
    ///
    /// # Errors
    /// When there is none, or the firmware gave it no address.
    pub fn memory_bar(&self, index: u8) -> Result<MemoryBar, Refusal> {
        let bar = self.memory_bars().into_iter().find(|bar| bar.index == index);
        self.with_address(index, bar, |bar| bar.address)
    }

    /// Where the memory BAR with this register index is, as the firmware left it. Writes nothing, so its size is not
    /// known.
    ///
    /// # Errors
    /// When there is none, or the firmware gave it no address.
    pub fn memory_address(&self, index: u8) -> Result<HostPhys, Refusal> {
        let register = BAR0 + u16::from(index) * 4;
        let low = self.read32(register);
        let is_memory = self.read32(HEADER_TYPE) & HEADER_TYPE_MASK == 0 && low & BAR_IO == 0;
        let wide = low & BAR_TYPE_MASK == BAR_TYPE_64 && index < 5;
        let high = if wide { self.read32(register + 4) } else { 0 };
        let address = HostPhys(u64::from(high) << 32 | u64::from(low & BAR_ADDRESS_MASK));
        self.with_address(index, is_memory.then_some(address), |address| *address)
    }

    /// A memory BAR, if it is one with an address.
    fn with_address<B>(
        &self,
        index: u8,
        bar: Option<B>,
        address: impl Fn(&B) -> HostPhys,
    ) -> Result<B, Refusal> {
        match bar {
            Some(bar) if address(&bar).0 != 0 => Ok(bar),
            Some(_) => Err(self.refusal(
                &alloc::format!("BAR{index} has no address"),
                "let the firmware assign PCI resources (64-bit window too small?)",
            )),
            None => {
                Err(self.refusal(&alloc::format!("BAR{index} is not a memory BAR"), "name another device"))
            }
        }
    }

    /// Whether it answers at its memory BARs.
    pub fn decodes_memory(&self) -> bool {
        self.read32(COMMAND_STATUS) & COMMAND_MEMORY != 0
    }

    /// Lets the function answer at its memory BARs; INTx off.
    pub fn enable_memory(&self) {
        self.update_command(0, COMMAND_MEMORY | COMMAND_INTX_DISABLE);
    }

    /// Allows DMA and MSIs of the function, all of which look into the processors' caches: No Snoop, on after
    /// every reset, goes off first. Accesses past the caches would see what RAM held before it was scrubbed, on
    /// IOMMUs that do not overrule them.
    ///
    /// # Errors
    /// When No Snoop does not go off.
    pub fn allow_dma(&self) -> Result<(), Refusal> {
        if !self.disable_no_snoop() {
            return Err(self.refusal(
                "Enable No Snoop stays set, so its DMA may pass by the caches",
                "name another device",
            ));
        }
        self.update_command(0, COMMAND_BUS_MASTER);
        Ok(())
    }

    /// Forbids DMA and MSIs of the function.
    pub fn forbid_dma(&self) {
        self.update_command(COMMAND_BUS_MASTER, 0);
    }

    /// Resets the function (FLR) and waits until it answers again. BARs and decoding come back as they
    /// were; bus mastering, MSI-X, PASID, ATS and PRI are off until they are switched on anew. Takes at least 100 ms, in which the function
    /// must not be touched by anyone.
    ///
    /// # Errors
    /// When it has no such reset, or does not answer again within a second.
    pub fn function_level_reset(&self, host: &dyn Host) -> Result<(), Refusal> {
        let (control, supported) = self.device_control();
        let Some(control) = control.filter(|_| supported) else {
            return Err(self.refusal("the function has no function-level reset", "power-cycle the machine"));
        };
        self.forbid_dma();
        let start = host.now_ns();
        let patience = start.saturating_add(FLR_DEADLINE_NS);
        // Transactions still pending after this time are lost with the reset, which PCIe allows.
        while self.transactions_pending(control) && host.now_ns() < start.saturating_add(FLR_SETTLE_NS) {
            core::hint::spin_loop();
        }
        let command = self.read32(COMMAND_STATUS) & COMMAND_MASK;
        let bars: Vec<u32> = (0..6).map(|index| self.read32(BAR0 + index * 4)).collect();
        self.initiate_reset(control);
        let settled = host.now_ns().saturating_add(FLR_SETTLE_NS);
        while host.now_ns() < settled {
            core::hint::spin_loop();
        }
        while self.read32(VENDOR_DEVICE) == ABSENT {
            if host.now_ns() > patience.max(settled) {
                return Err(
                    self.refusal("does not answer after a function-level reset", "power-cycle the machine")
                );
            }
            core::hint::spin_loop();
        }
        for (index, value) in (0u16..).zip(bars) {
            self.write32(BAR0 + index * 4, value);
        }
        self.write32(COMMAND_STATUS, command & !COMMAND_BUS_MASTER);
        Ok(())
    }
}
