// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts a kernel, its initrd and the device tree into guest memory.
//!
//! **Principle.** An image is untrusted bytes: every number in it is checked before it is used, and what
//! is wrong ends in one line that names it. Nothing is written outside of the guest's RAM, because there
//! is no way to.
//!
//! The kernel is at the bottom of RAM, where Linux likes it. The device tree has the highest 2 MiB block of the
//! first 32 GiB of RAM, or of all RAM where there is less; the initrd lies right below it. So the initrd is within
//! the window around the kernel that Linux asks for (`Documentation/arch/arm64/booting.rst`), which begins at a
//! border of 1 GiB, as RAM does.

mod device_tree;
mod image;

#[cfg(test)]
mod tests;

use alloc::format;

pub use pasidon_arch_common::entropy::Seed;
pub use pasidon_arch_common::hardware::BootImage;
use pasidon_kernel::base::addr::{GuestPhys, LARGE_PAGE_SIZE, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::GuestMemory;

use super::exception::pstate;
use super::layout;

/// Registers at the first instruction of a vCPU; those not named are zero, and the MMU is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryState {
    /// First instruction.
    pub pc: u64,
    /// X0: the device tree's address, or the context of PSCI's CPU_ON. X1 to X3 are zero.
    pub x0: u64,
    /// PSTATE: EL1h, with all interrupts masked.
    pub pstate: u64,
    /// SCTLR_EL1: MMU and caches off, little-endian.
    pub sctlr: u64,
}

impl EntryState {
    /// A vCPU that starts at `pc` with `x0`: the first one, and one that PSCI's CPU_ON starts.
    pub const fn new(pc: u64, x0: u64) -> Self {
        /// Bits of SCTLR_EL1 that are one where Armv8.0 has nothing else: LSMAOE, nTLSMD, SPAN, EIS, TSCXT, EOS.
        const SCTLR_RES1: u64 = 1 << 29 | 1 << 28 | 1 << 23 | 1 << 22 | 1 << 20 | 1 << 11;
        Self { pc, x0, pstate: pstate::EL1H | pstate::DAIF, sctlr: SCTLR_RES1 }
    }
}

/// The most of RAM that the loader uses, from its start.
const REACH: u64 = 32 << 30;
/// The longest command line, as much as Linux takes (COMMAND_LINE_SIZE) without the zero. A longer one would be
/// cut off silently.
const CMDLINE_MAX: usize = 2047;

/// Where the initrd is; zeros without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Initrd {
    start: u64,
    len: u64,
}

/// Loads everything into `memory` for a VM with one vCPU, and says how that starts.
///
/// # Errors
/// When the image is no kernel for this machine, or does not fit into the RAM with what goes beside it.
pub fn load(memory: &dyn GuestMemory, image: &BootImage<'_>) -> Result<EntryState, Refusal> {
    const VCPUS: u16 = 1;
    let ram = memory.ram_size();
    if !layout::ram_size_fits(ram) {
        return Err(Refusal::new(
            "memory",
            format!("{} MiB cannot be laid out as a guest's", ram >> 20),
            format!("use {} MiB to {} MiB in steps of 2 MiB", layout::RAM_MIN >> 20, layout::RAM_MAX >> 20),
        ));
    }
    if image.cmdline.len() > CMDLINE_MAX || image.cmdline.contains('\0') {
        return Err(Refusal::new(
            "command line",
            format!("{} bytes, or a zero byte in it", image.cmdline.len()),
            format!("use {CMDLINE_MAX} bytes at most"),
        ));
    }
    let top = layout::RAM_BASE + ram.min(REACH);
    let tree_at = top - LARGE_PAGE_SIZE;
    let kernel = image::load(memory, image.kernel, tree_at)?;
    let initrd = write_initrd(memory, image.initrd, kernel.end, tree_at)?;
    let tree = device_tree::build(VCPUS, ram, initrd, image)?;
    if tree.len() as u64 > LARGE_PAGE_SIZE {
        return Err(Refusal::new("device tree", "it is larger than 2 MiB", "shorten the command line"));
    }
    write(memory, "device tree", tree_at, &tree)?;
    Ok(EntryState::new(kernel.entry, tree_at))
}

fn write(memory: &dyn GuestMemory, what: &str, address: u64, bytes: &[u8]) -> Result<(), Refusal> {
    memory
        .write(GuestPhys(address), bytes)
        .map_err(|error| Refusal::new(what, format!("{error}"), "give the VM more memory"))
}

/// How much of a kernel's file [`load`] needs, by its first bytes; `None` for all of it.
pub fn loaded_len(_head: &[u8]) -> Option<u64> {
    // An Image has nothing in it that is not loaded.
    None
}

/// Puts the initrd as high as `limit` allows, above `kernel_end`.
fn write_initrd(
    memory: &dyn GuestMemory,
    initrd: Option<&[u8]>,
    kernel_end: u64,
    limit: u64,
) -> Result<Initrd, Refusal> {
    let Some(bytes) = initrd.filter(|bytes| !bytes.is_empty()) else {
        return Ok(Initrd::default());
    };
    let len = bytes.len() as u64;
    let pages = [kernel_end - layout::RAM_BASE, len].map(|len| len.next_multiple_of(PAGE_SIZE));
    let least = (pages[0] + pages[1] + LARGE_PAGE_SIZE).next_multiple_of(LARGE_PAGE_SIZE);
    let start = limit
        .checked_sub(len)
        .map(|start| start & !(PAGE_SIZE - 1))
        .filter(|start| *start >= kernel_end)
        .ok_or_else(|| {
            Refusal::new(
                "initrd",
                format!("{len} bytes do not fit between the kernel's end at {kernel_end:#x} and {limit:#x}"),
                format!("give the VM {} MiB of memory or more, or use a smaller initrd", least >> 20),
            )
        })?;
    write(memory, "initrd", start, bytes)?;
    Ok(Initrd { start, len })
}
