// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts a kernel, its initrd, its command line and the firmware's tables into guest memory.
//!
//! **Principle.** An image is untrusted bytes: every number in it is checked before it is used, and what
//! is wrong ends in one line that names it. Nothing is written outside of the guest's RAM, because there
//! is no way to.

mod bzimage;
mod elf;

#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;

pub use pasidon_arch_common::hardware::BootImage;
use pasidon_kernel::base::addr::{GuestPhys, LARGE_PAGE_SIZE, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::GuestMemory;

use super::{acpi, layout};

/// How the processor is set up for the kernel's first instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryMode {
    /// 32-bit protected mode without paging: flat CS, DS, ES and SS with base 0 and limit 4 GiB, TR with
    /// base 0 and limit 0x67, RFLAGS 2, interrupts off.
    Protected32,
    /// 64-bit mode with the page tables at CR3, flat segments loaded from the GDT at
    /// [`layout::boot::GDT`], RFLAGS 2, interrupts off.
    Long64,
}

/// Registers at the kernel's first instruction; those not named are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryState {
    /// Mode.
    pub mode: EntryMode,
    /// First instruction.
    pub rip: u64,
    /// PVH: address of the start info.
    pub rbx: u64,
    /// bzImage: address of the boot parameters.
    pub rsi: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER as the guest sees it.
    pub efer: u64,
    /// GDTR: base and limit; `None` where the kernel loads its own before it needs one.
    pub gdt: Option<(u64, u16)>,
    /// CS selector.
    pub cs: u16,
    /// DS, ES and SS selector.
    pub ds: u16,
}

/// CR0.PE and CR0.ET.
const CR0_PROTECTED: u64 = 1 | 1 << 4;

/// 16-bit code at the reset vector: writes RESET_VALUE to RESET_REG, then halts.
///
/// Linux on hardware-reduced ACPI restarts through EFI, and without EFI by a jump to the reset vector in
/// real mode; it never comes to the ACPI register (`arch/x86/kernel/reboot.c`). So the firmware that is
/// there has to do it.
const RESET_CODE: [u8; 9] = {
    let [low, high] = (layout::POWER_PORT + layout::POWER_RESET).to_le_bytes();
    const MOV_DX: u8 = 0xba;
    const MOV_AL: u8 = 0xb0;
    const OUT_DX_AL: u8 = 0xee;
    const HLT: u8 = 0xf4;
    const JMP_TO_HLT: [u8; 2] = [0xeb, 0xfd];
    [MOV_DX, low, high, MOV_AL, acpi::RESET_VALUE, OUT_DX_AL, HLT, JMP_TO_HLT[0], JMP_TO_HLT[1]]
};

/// Loads everything into `memory` and says how to start. Writes the ACPI tables and the code at the reset
/// vector too.
///
/// # Errors
/// When the image is no kernel for this machine, or does not fit into the RAM with what goes beside it.
pub fn load(memory: &dyn GuestMemory, image: &BootImage<'_>) -> Result<EntryState, Refusal> {
    let ram = memory.ram_size();
    if !(layout::RAM_MIN..=layout::RAM_MAX).contains(&ram) {
        return Err(Refusal::new(
            "memory",
            format!("{} MiB cannot be laid out as a PC", ram >> 20),
            format!("use {} MiB to {} MiB", layout::RAM_MIN >> 20, layout::RAM_MAX >> 20),
        ));
    }
    write(memory, "ACPI tables", layout::ACPI_BASE, &acpi::tables(image.slots))?;
    write(memory, "reset code", layout::RESET_VECTOR, &RESET_CODE)?;
    write_cmdline(memory, image.cmdline)?;
    if image.kernel.starts_with(elf::MAGIC) {
        return elf::load(memory, image);
    }
    if bzimage::recognises(image.kernel) {
        return bzimage::load(memory, image);
    }
    Err(damaged("it is neither an ELF vmlinux nor a bzImage"))
}

/// How much of a kernel's file [`load`] needs, by its first bytes; `None` for all of it.
pub fn loaded_len(head: &[u8]) -> Option<u64> {
    head.starts_with(elf::MAGIC).then(|| elf::loaded_len(head)).flatten()
}

/// What helps where something needs low RAM up to `end`: more memory, if there can be so much of it.
fn more_memory(end: u64) -> Option<String> {
    let needed = end.checked_next_multiple_of(LARGE_PAGE_SIZE)?;
    (needed <= layout::LOW_RAM_MAX).then(|| format!("give the VM more memory: {} MiB at least", needed >> 20))
}

/// A refusal of the kernel image.
fn damaged(why: impl Into<String>) -> Refusal {
    Refusal::new("kernel image", why, "use an unmodified vmlinux with a PVH entry, or a bzImage, for x86-64")
}

fn write(memory: &dyn GuestMemory, what: &str, address: u64, bytes: &[u8]) -> Result<(), Refusal> {
    memory
        .write(GuestPhys(address), bytes)
        .map_err(|error| Refusal::new(what, format!("{error}"), "give the VM more memory"))
}

/// Writes `len` zeros.
fn zero(memory: &dyn GuestMemory, what: &str, address: u64, len: u64) -> Result<(), Refusal> {
    static ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < len {
        let step = (len - done).min(ZEROS.len() as u64);
        write(memory, what, address.saturating_add(done), &ZEROS[..step as usize])?;
        done += step;
    }
    Ok(())
}

fn write_cmdline(memory: &dyn GuestMemory, cmdline: &str) -> Result<(), Refusal> {
    let len = cmdline.len() as u64;
    if len >= layout::boot::CMDLINE_LEN || cmdline.contains('\0') {
        return Err(Refusal::new(
            "command line",
            format!("{len} bytes, or a zero byte in it"),
            format!("use less than {} bytes", layout::boot::CMDLINE_LEN),
        ));
    }
    write(memory, "command line", layout::boot::CMDLINE, cmdline.as_bytes())?;
    write(memory, "command line", layout::boot::CMDLINE + len, &[0])
}

/// Puts the initrd as high as `limit` (exclusive) and low RAM allow, above `kernel_end`. Returns its
/// address and length; zeros without one.
fn write_initrd(
    memory: &dyn GuestMemory,
    initrd: Option<&[u8]>,
    kernel_end: u64,
    limit: u64,
) -> Result<(u64, u64), Refusal> {
    let Some(bytes) = initrd.filter(|b| !b.is_empty()) else {
        return Ok((0, 0));
    };
    let len = bytes.len() as u64;
    let top = layout::ram_split(memory.ram_size()).0.min(limit);
    let start =
        top.checked_sub(len).map(|s| s & !(PAGE_SIZE - 1)).filter(|s| *s >= kernel_end).ok_or_else(|| {
            let first = kernel_end.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1);
            let end = first.saturating_add(len);
            let most = limit.min(layout::LOW_RAM_MAX);
            let smaller = || {
                let mib = most.saturating_sub(first) >> 20;
                format!(
                    "use one of at most {mib} MiB: the kernel reaches no higher, however much memory there is"
                )
            };
            let remedy = Some(end).filter(|end| *end <= most).and_then(more_memory);
            Refusal::new(
                "initrd",
                format!("{len} bytes do not fit between the kernel's end at {kernel_end:#x} and {top:#x}"),
                remedy.unwrap_or_else(smaller),
            )
        })?;
    write(memory, "initrd", start, bytes)?;
    Ok((start, len))
}

/// `N` bytes at `offset`, if there are so many.
fn bytes_at<const N: usize>(bytes: &[u8], offset: u64) -> Option<[u8; N]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], offset: u64) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: u64) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: u64) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_le_bytes)
}

/// `len` bytes at `offset`, if there are so many.
fn slice_at(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}
