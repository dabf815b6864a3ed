// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where everything is in the guest's physical address space.
//!
//! ```text
//! 0x0800_0000    GICv3 distributor, 64 KiB; its first page also takes MSIs (GICD_SETSPI_NSR)
//! 0x080A_0000    GICv3 redistributors, 128 KiB per vCPU
//! 0x0900_0000    PL011 serial port
//! 0x0901_0000    PL031 real-time clock
//! 0x1000_0000    32-bit PCI window, 256 MiB
//! 0x3000_0000    ECAM: configuration space of 256 buses, 256 MiB
//! 0x4000_0000    RAM, in whole 2 MiB blocks of stage 2
//! 0x20_0000_0000 64-bit prefetchable PCI window, 16 GiB
//! ```
//!
//! **Invariant.** Nothing shares a 2 MiB block with RAM, so stage 2 maps RAM in blocks only, and everything
//! ends within 38 bits, so one level-1 table is the root of a 39-bit stage 2.

use pasidon_kernel::base::addr::{GuestPhys, LARGE_PAGE_SIZE};
use pasidon_kernel::dev::pci::PciWindow;
use pasidon_kernel::memory::ram::RamRange;

/// The most vCPUs of one VM: as many redistributors fit their window.
pub const VCPUS_MAX: u16 = 8;

/// Distributor.
pub const GICD_BASE: u64 = 0x0800_0000;
/// Its window.
pub const GICD_LEN: u64 = 0x1_0000;
/// Redistributors, in the order of the vCPUs.
pub const GICR_BASE: u64 = 0x080a_0000;
/// Window of one redistributor: RD_base and SGI_base.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// Window of all.
pub const GICR_LEN: u64 = GICR_STRIDE * VCPUS_MAX as u64;
/// Serial console.
pub const UART_BASE: u64 = 0x0900_0000;
/// Its window.
pub const UART_LEN: u64 = 0x1000;
/// Real-time clock.
pub const RTC_BASE: u64 = 0x0901_0000;
/// Its window.
pub const RTC_LEN: u64 = 0x1000;
/// ECAM of all buses.
pub const ECAM_BASE: u64 = 0x3000_0000;
/// Length of the ECAM: 256 buses.
pub const ECAM_LEN: u64 = 256 << 20;
/// 32-bit PCI window.
pub const PCI32_BASE: u64 = 0x1000_0000;
/// Its length.
pub const PCI32_LEN: u64 = 0x1000_0000;
/// 64-bit prefetchable PCI window.
pub const PCI64_BASE: u64 = 0x20_0000_0000;
/// Its length.
pub const PCI64_LEN: u64 = 0x4_0000_0000;

/// Where BARs go.
pub const PCI_WINDOWS: [PciWindow; 2] =
    [PciWindow::fixed(PCI32_BASE, PCI32_LEN), PciWindow::prefetchable(PCI64_BASE, PCI64_LEN)];

/// First byte of RAM.
pub const RAM_BASE: u64 = 0x4000_0000;
/// The least RAM: room for a kernel and what the loader puts behind it.
pub const RAM_MIN: u64 = 16 << 20;
/// The most RAM, so that it ends below the 64-bit PCI window.
pub const RAM_MAX: u64 = PCI64_BASE - RAM_BASE;
/// Bits of a guest-physical address that stage 2 translates.
pub const IPA_BITS: u8 = 39;

const _: () = assert!(PCI64_BASE + PCI64_LEN <= 1 << (IPA_BITS - 1));

/// INTIDs of the guest's interrupts.
pub mod intid {
    /// First private peripheral interrupt.
    pub const PPI: u32 = 16;
    /// First shared peripheral interrupt.
    pub const SPI: u32 = 32;
    /// Number of INTIDs: SGIs, PPIs and SPIs.
    pub const COUNT: u32 = 512;
    /// EL1 physical timer (not offered; the number that software expects in its place).
    pub const PHYSICAL_TIMER: u32 = 30;
    /// EL1 virtual timer.
    pub const VIRTUAL_TIMER: u32 = 27;
    /// EL2 physical timer (the guest has no EL2).
    pub const HYP_TIMER: u32 = 26;
    /// Secure physical timer (the guest has no Secure state).
    pub const SECURE_TIMER: u32 = 29;
    /// Serial console.
    pub const UART: u32 = SPI + 1;
    /// First SPI that the guest's kernel may use for message-signalled interrupts.
    pub const MSI: u32 = 64;
    /// Number of those.
    pub const MSI_COUNT: u32 = COUNT - MSI;
}

/// Address that a message-signalled interrupt is written to, with the INTID as data: GICD_SETSPI_NSR.
pub const MSI_DOORBELL: u64 = GICD_BASE + 0x40;

/// MPIDR_EL1 of a vCPU: bit 31 is RES1, affinity 0 is its number.
pub const fn mpidr(vcpu: u16) -> u64 {
    const RES1: u64 = 1 << 31;
    RES1 | vcpu as u64
}

/// The vCPU of an affinity (MPIDR layout: Aff3 in 39:32, Aff2 to Aff0 in 23:0); `None` if there can be none.
pub const fn vcpu_of_affinity(affinity: u64) -> Option<u16> {
    const AFFINITY: u64 = 0xff_00ff_ffff;
    let number = affinity & AFFINITY;
    if number < VCPUS_MAX as u64 { Some(number as u16) } else { None }
}

/// Where the guest's RAM is.
pub const fn ram_ranges(ram_size: u64) -> [RamRange; 1] {
    [RamRange { start: GuestPhys(RAM_BASE), len: ram_size }]
}

/// Whether a guest can have `ram_size` bytes.
pub const fn ram_size_fits(ram_size: u64) -> bool {
    RAM_MIN <= ram_size && ram_size <= RAM_MAX && ram_size.is_multiple_of(LARGE_PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_ram_has_its_blocks_to_itself() {
        let windows = [
            (GICD_BASE, GICD_LEN),
            (GICR_BASE, GICR_LEN),
            (UART_BASE, UART_LEN),
            (RTC_BASE, RTC_LEN),
            (PCI32_BASE, PCI32_LEN),
            (ECAM_BASE, ECAM_LEN),
            (RAM_BASE, RAM_MAX),
            (PCI64_BASE, PCI64_LEN),
        ];
        assert!(windows.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        assert!(RAM_BASE.is_multiple_of(LARGE_PAGE_SIZE) && PCI64_BASE.is_multiple_of(LARGE_PAGE_SIZE));
        assert!(ram_size_fits(RAM_MIN) && ram_size_fits(RAM_MAX) && !ram_size_fits(RAM_MIN + 4096));
    }

    #[test]
    fn affinities_lead_back_to_their_vcpus() {
        for vcpu in 0..VCPUS_MAX {
            assert_eq!(vcpu_of_affinity(mpidr(vcpu)), Some(vcpu));
        }
        for none in [u64::from(VCPUS_MAX), 0x100, 0x1_0000, 1 << 32] {
            assert_eq!(vcpu_of_affinity(none), None);
        }
    }
}
