// SPDX-License-Identifier: MIT OR Apache-2.0
//! What it costs to attach a PASID and to end it, beside few others and beside many. Only in builds with the feature
//! `measure-attach`, for the benchmarks.
//!
//! **Principle.** Counted, not timed: invalidation commands by the IOMMU's driver, instructions by the plugin
//! `tests/platform/plugins/exits.c`, between two markers. Interrupts are off meanwhile, so every round that finds the
//! same state runs the same instructions. What is attached is as it is for VMs: each PASID has a page table of its
//! own, with memory in large pages.

use pasidon_arch::marker::mark;
use pasidon_arch::{cpu, memory};
use pasidon_kernel::base::addr::{HostPhys, Iova, LARGE_PAGE_SIZE, Requester};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::iommu::{Iommu, TableId};
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::memory::frames::Frames;

/// Whether this build measures, instead of running guests.
pub const ON: bool = cfg!(feature = "measure-attach");

/// How often each case is measured.
const ROUNDS: u32 = 32;
/// Memory in each table, in large pages.
const LARGE_PAGES: u64 = 16;

/// Measures on the device that a parent has claimed and nobody uses yet, prints the invalidation commands, and stops.
pub fn attachments(iommu: Option<&dyn Iommu>, device: Option<Requester>, frames: &Frames) -> ! {
    let found = iommu
        .zip(device)
        .ok_or_else(|| Refusal::new("measure", "no parent behind an IOMMU", "configure one"));
    match found.and_then(|(iommu, device)| measure(iommu, device, frames)) {
        Ok(()) => log::info!("measured: end"),
        Err(refusal) => log::error!("not measured: {refusal}"),
    }
    cpu::halt()
}

/// The kinds of the markers are known to `tests/harness/src/bench/attached.rs`.
fn measure(iommu: &dyn Iommu, device: Requester, frames: &Frames) -> Result<(), Refusal> {
    let ram = frames
        .allocate_guest(LARGE_PAGES * LARGE_PAGE_SIZE)?
        // SAFETY: just taken, and RAM is mapped at its physical address.
        .scrub(&mut |start, len| unsafe { memory::zero(start, len) })
        .for_guest();
    let attached = Attached { iommu, device, ram: ram.chunks() };
    attached.case::<0x11, 0x12>(0, 1)?;
    attached.case::<0x13, 0x14>(1, 1000)
}

struct Attached<'a> {
    iommu: &'a dyn Iommu,
    device: Requester,
    /// What is mapped in each table.
    ram: &'a [(HostPhys, u64)],
}

impl Attached<'_> {
    /// Attaches more until there are `others`, where there are `before`, and then counts what one more costs.
    #[inline(never)]
    fn case<const ATTACH: u32, const DETACH: u32>(&self, before: u32, others: u32) -> Result<(), Refusal> {
        for number in before..others {
            let attached = self.iommu.attach(self.device, tag(number)?, self.table()?);
            attached.map_err(|failed| failed.refusal)?;
        }
        let table = self.table()?;
        let (mut attach, mut detach) = (0, 0);
        for round in 0..ROUNDS {
            let pasid = tag(others + round)?;
            let before = self.iommu.commands_issued();
            counted::<ATTACH, _>(|| self.iommu.attach(self.device, pasid, table))
                .map_err(|failed| failed.refusal)?;
            let between = self.iommu.commands_issued();
            counted::<DETACH, _>(|| self.iommu.detach(self.device, pasid))?;
            attach += between - before;
            detach += self.iommu.commands_issued() - between;
        }
        self.iommu.destroy_table(table)?;
        log::info!("measured: others={others} rounds={ROUNDS} attach={attach} detach={detach}");
        Ok(())
    }

    /// A page table with all the RAM.
    fn table(&self) -> Result<TableId, Refusal> {
        let table = self.iommu.create_table()?;
        let mut iova = 0;
        for &(host, len) in self.ram {
            self.iommu.map(table, Iova(iova), host, len, true)?;
            iova += len;
        }
        Ok(table)
    }
}

/// The PASIDs from 1 on, by their place.
fn tag(place: u32) -> Result<Pasid, Refusal> {
    Pasid::new(place + 1).ok_or_else(|| Refusal::new("measure", "too many PASIDs", "measure fewer"))
}

/// Runs `work` between the two markers of a kind.
#[inline(always)]
fn counted<const KIND: u32, R>(work: impl FnOnce() -> R) -> R {
    mark::<KIND, false>();
    let result = work();
    mark::<KIND, true>();
    result
}
