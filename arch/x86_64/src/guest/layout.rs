// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where everything is in the guest's physical address space and port space.
//!
//! ```text
//! 0x0000_0000  RAM (0xA_0000..0x10_0000 reserved; ACPI tables at 0xE_0000, reset code at 0xF_FFF0)
//! 0xC000_0000  end of low RAM at most
//! 0xD000_0000  ECAM: configuration space of 256 buses, 256 MiB
//! 0xE000_0000  32-bit PCI window, 256 MiB
//! 0xFEC0_0000  I/O APIC
//! 0xFEE0_0000  local APIC
//! 0x1_0000_0000 RAM above the hole
//! 0x20_0000_0000 64-bit prefetchable PCI window, 16 GiB
//! ```

use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::dev::pci::PciWindow;
use pasidon_kernel::memory::ram::RamRange;

/// The most RAM below the hole.
pub const LOW_RAM_MAX: u64 = 0xc000_0000;
/// Where RAM goes on above the hole.
pub const HIGH_RAM_BASE: u64 = 0x1_0000_0000;
/// The least RAM a PC guest can have: room for what the loaders put below 1 MiB, and a kernel.
pub const RAM_MIN: u64 = 16 << 20;
/// The most RAM, so that it ends below the 64-bit PCI window.
pub const RAM_MAX: u64 = LOW_RAM_MAX + (PCI64_BASE - HIGH_RAM_BASE);

/// Legacy hole (video memory, option ROMs, BIOS): backed by RAM, but reserved in the memory map.
pub const LEGACY_HOLE: core::ops::Range<u64> = 0xa_0000..0x10_0000;

/// ECAM of all buses.
pub const ECAM_BASE: u64 = 0xd000_0000;
/// Length of the ECAM: 256 buses.
pub const ECAM_LEN: u64 = 256 << 20;
/// 32-bit PCI window.
pub const PCI32_BASE: u64 = 0xe000_0000;
/// Its length.
pub const PCI32_LEN: u64 = 0x1000_0000;
/// 64-bit prefetchable PCI window. Ends within 38 bits, which every 64-bit processor with nested paging
/// can address.
pub const PCI64_BASE: u64 = 0x20_0000_0000;
/// Its length.
pub const PCI64_LEN: u64 = 0x4_0000_0000;

/// Where BARs go.
pub const PCI_WINDOWS: [PciWindow; 2] =
    [PciWindow::fixed(PCI32_BASE, PCI32_LEN), PciWindow::prefetchable(PCI64_BASE, PCI64_LEN)];

/// I/O APIC.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Its window.
pub const IOAPIC_LEN: u64 = 0x1000;
/// Local APIC.
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// Its window.
pub const LAPIC_LEN: u64 = 0x1000;

/// First port of the serial console.
pub const UART_PORT: u16 = 0x3f8;
/// Global system interrupt of the serial console.
pub const UART_GSI: u32 = 4;
/// First port of the power registers.
pub const POWER_PORT: u16 = 0x600;
/// SLEEP_CONTROL_REG: offset from [`POWER_PORT`].
pub const POWER_SLEEP_CONTROL: u16 = 0;
/// SLEEP_STATUS_REG: offset from [`POWER_PORT`].
pub const POWER_SLEEP_STATUS: u16 = 1;
/// RESET_REG: offset from [`POWER_PORT`].
pub const POWER_RESET: u16 = 2;
/// Number of power ports.
pub const POWER_PORTS: u16 = 4;

/// Power-management timer: 32 bits.
pub const PM_TIMER_PORT: u16 = 0x608;
/// Its width in ports.
pub const PM_TIMER_PORTS: u16 = 4;
/// Interval timer: three counters and a control word.
pub const TIMER_PORT: u16 = 0x40;
/// Gate and output of the interval timer's third counter.
pub const SYSTEM_CONTROL_PORT: u16 = 0x61;
/// Commands to the keyboard controller, of which there is only the reset line.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// Real-time clock: index and data.
pub const RTC_PORT: u16 = 0x70;
/// Reset control register.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;

/// RSDP and the other ACPI tables, in the legacy hole.
pub const ACPI_BASE: u64 = 0xe_0000;
/// Room for them.
pub const ACPI_LEN: u64 = 0x1_0000;

/// Where a processor starts after reset, as 16-bit code: F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;

/// What the loaders put below the kernel, each at its own place.
pub mod boot {
    /// Global descriptor table of the 64-bit entry.
    pub const GDT: u64 = 0x5000;
    /// PVH start info, or the boot parameters ("zero page") of a bzImage.
    pub const START_INFO: u64 = 0x6000;
    /// PVH memory map.
    pub const MEMORY_MAP: u64 = 0x7000;
    /// PVH module list.
    pub const MODULES: u64 = 0x7800;
    /// Identity page tables of the 64-bit entry: PML4, PDPT, four page directories.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// Command line, zero-terminated.
    pub const CMDLINE: u64 = 0x2_0000;
    /// Room for it, the zero included: as much as Linux takes (COMMAND_LINE_SIZE). A longer one would be
    /// cut off silently.
    pub const CMDLINE_LEN: u64 = 2048;
    /// Kernels start here or above: what is below belongs to the loader.
    pub const KERNEL_MIN: u64 = 0x10_0000;
}

/// Bytes of RAM below and above the hole for a guest of `ram_size` bytes.
pub const fn ram_split(ram_size: u64) -> (u64, u64) {
    if ram_size > LOW_RAM_MAX { (LOW_RAM_MAX, ram_size - LOW_RAM_MAX) } else { (ram_size, 0) }
}

/// Where the guest's RAM is. The second range is empty unless the guest has more than [`LOW_RAM_MAX`].
pub const fn ram_ranges(ram_size: u64) -> [RamRange; 2] {
    let (low, high) = ram_split(ram_size);
    [RamRange { start: GuestPhys(0), len: low }, RamRange { start: GuestPhys(HIGH_RAM_BASE), len: high }]
}

/// Kind of a memory-map entry, with the numbers that both e820 and the PVH memory map use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MemoryKind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// One entry of the memory map handed to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryEntry {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Kind.
    pub kind: MemoryKind,
}

/// The memory map of a guest with `ram_size` bytes ([`RAM_MIN`]..=[`RAM_MAX`]), in ascending order. The
/// last entry is empty unless there is RAM above the hole.
pub const fn memory_map(ram_size: u64) -> [MemoryEntry; 5] {
    const fn entry(start: u64, len: u64, kind: MemoryKind) -> MemoryEntry {
        MemoryEntry { start, len, kind }
    }
    let (low, high) = ram_split(ram_size);
    [
        entry(0, LEGACY_HOLE.start, MemoryKind::Ram),
        entry(LEGACY_HOLE.start, LEGACY_HOLE.end - LEGACY_HOLE.start, MemoryKind::Reserved),
        entry(LEGACY_HOLE.end, low.saturating_sub(LEGACY_HOLE.end), MemoryKind::Ram),
        // Linux uses ECAM early only where the memory map reserves it.
        entry(ECAM_BASE, ECAM_LEN, MemoryKind::Reserved),
        entry(HIGH_RAM_BASE, high, MemoryKind::Ram),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_covers_all_ram_and_never_overlaps() {
        const STEP: u64 = 2 << 20;
        let odd = [LOW_RAM_MAX - STEP, LOW_RAM_MAX + STEP, (4 << 30) + STEP];
        for ram in [RAM_MIN, 256 << 20, LOW_RAM_MAX, LOW_RAM_MAX + (1 << 30), RAM_MAX].into_iter().chain(odd)
        {
            let map = memory_map(ram);
            assert!(map.windows(2).all(|w| w[0].start + w[0].len <= w[1].start));
            let usable: u64 = map.iter().filter(|e| e.kind == MemoryKind::Ram).map(|e| e.len).sum();
            assert_eq!(usable, ram - (LEGACY_HOLE.end - LEGACY_HOLE.start));
            assert_eq!(ram_ranges(ram).iter().map(|range| range.len).sum::<u64>(), ram);
        }
        assert_eq!(HIGH_RAM_BASE + ram_split(RAM_MAX).1, PCI64_BASE);
    }
}
