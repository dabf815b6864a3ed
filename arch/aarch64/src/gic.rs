// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host side of the GICv3: distributor, redistributors, CPU interface.
//!
//! **Principle.** All interrupts are group 1, taken as IRQs. Where the machine has one security state only, the
//! one that stops a pCPU is group 0, which is taken as FIQ, and nothing masks that.
//! **Invariant.** After [`init_distributor`] and [`init_pcpu`] nothing is enabled that nobody asked for.
//!
//! Source: Arm GIC Architecture Specification (IHI 0069), 4 (affinity routing), 12.8 to 12.12 (registers).

use alloc::format;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;

use crate::el2::identification;
use crate::el2::traps::{self, Control};
use crate::firmware_tables::Madt;
use crate::vector::{self, PPIS, PRIVATE};
use crate::{cpu, paging, time};

/// Registers of the distributor.
mod gicd {
    pub const CTLR: u64 = 0x0000;
    pub const TYPER: u64 = 0x0004;
    pub const IGROUPR: u64 = 0x0080;
    pub const ISENABLER: u64 = 0x0100;
    pub const ICENABLER: u64 = 0x0180;
    pub const ICPENDR: u64 = 0x0280;
    pub const ISACTIVER: u64 = 0x0300;
    pub const ICACTIVER: u64 = 0x0380;
    pub const IPRIORITYR: u64 = 0x0400;
    pub const ICFGR: u64 = 0x0c00;
    pub const IROUTER: u64 = 0x6000;
    pub const LENGTH: u64 = 0x1_0000;

    /// Group 0, or in the non-secure view of two security states group 1.
    pub const CTLR_ENABLE_FIRST: u32 = 1 << 0;
    /// Group 1, with affinity routing.
    pub const CTLR_ENABLE_SECOND: u32 = 1 << 1;
    pub const CTLR_ARE: u32 = 1 << 4;
    /// One security state only.
    pub const CTLR_DS: u32 = 1 << 6;
    pub const CTLR_RWP: u32 = 1 << 31;
}

/// Registers of a redistributor: its first frame, and its second, which is laid out as the distributor.
mod gicr {
    pub const TYPER: u64 = 0x0008;
    pub const WAKER: u64 = 0x0014;
    pub const SGI_FRAME: u64 = 0x1_0000;
    pub const LENGTH: u64 = 0x2_0000;
    /// With frames for virtual LPIs.
    pub const LENGTH_VLPIS: u64 = 0x4_0000;

    pub const TYPER_VLPIS: u64 = 1 << 1;
    pub const TYPER_LAST: u64 = 1 << 4;
    pub const TYPER_AFFINITY_SHIFT: u32 = 32;
    pub const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
    pub const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
}

/// Bytes of a redistributor's first frame, which has the registers for LPIs.
pub const LPI_FRAME_LEN: usize = gicr::SGI_FRAME as usize;
/// Priority of all interrupts; lower numbers come first.
const PRIORITY: u32 = 0xa0a0_a0a0;
/// INTID of the maintenance interrupt where the firmware names none: that of the Base System Architecture.
const USUAL_MAINTENANCE: u32 = 25;
/// INTIDs from here on are none that [`acknowledge`] hands out.
const SPECIAL: u32 = 1020;
/// The first INTID that is none of these: an LPI.
const FIRST_LPI: u32 = 8192;
/// How long registers may take to take effect.
const SETTLE_NS: u64 = 100_000_000;

/// Address of the distributor's registers; 0 before [`init_distributor`].
static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);
/// INTID of the maintenance interrupt, the same on all processors.
static MAINTENANCE: AtomicU32 = AtomicU32::new(USUAL_MAINTENANCE);
/// Whether there is a group 0 to use: one security state only.
static GROUP_0: AtomicU64 = AtomicU64::new(0);

/// A block of registers that is mapped.
#[derive(Clone, Copy)]
struct Registers(u64);

impl Registers {
    fn read(self, offset: u64) -> u32 {
        let Self(base) = self;
        // SAFETY: the block is mapped as device memory, and the offsets are this module's.
        unsafe { ((base + offset) as *const u32).read_volatile() }
    }

    fn read64(self, offset: u64) -> u64 {
        let Self(base) = self;
        // SAFETY: as in `read`.
        unsafe { ((base + offset) as *const u64).read_volatile() }
    }

    fn write(self, offset: u64, value: u32) {
        let Self(base) = self;
        // SAFETY: as in `read`; nobody else uses the GIC.
        unsafe { ((base + offset) as *mut u32).write_volatile(value) }
    }

    fn write64(self, offset: u64, value: u64) {
        let Self(base) = self;
        // SAFETY: as in `write`.
        unsafe { ((base + offset) as *mut u64).write_volatile(value) }
    }

    /// One bit per INTID.
    fn set_bit(self, offset: u64, intid: u32) {
        self.write(offset + u64::from(intid / 32) * 4, 1 << (intid % 32));
    }

    /// Everything disabled, not pending, not active, of group 1 and of one priority: the INTIDs of
    /// `first..first + 32`.
    fn calm(self, first: u32) {
        let word = u64::from(first / 32) * 4;
        for (register, value) in [
            (gicd::ICENABLER, u32::MAX),
            (gicd::ICPENDR, u32::MAX),
            (gicd::ICACTIVER, u32::MAX),
            (gicd::IGROUPR, u32::MAX),
        ] {
            self.write(register + word, value);
        }
        for four in 0..8 {
            self.write(gicd::IPRIORITYR + u64::from(first) + four * 4, PRIORITY);
        }
    }

    fn settle(self) {
        let _ = time::spin_until(SETTLE_NS, || self.read(gicd::CTLR) & gicd::CTLR_RWP == 0);
    }
}

fn distributor() -> Registers {
    Registers(DISTRIBUTOR.load(Ordering::Acquire))
}

fn has_group_0() -> bool {
    GROUP_0.load(Ordering::Relaxed) != 0
}

/// Sets the distributor up: affinity routing, nothing enabled. Once, on the first pCPU. Returns how many SPIs
/// there are.
///
/// # Errors
/// When the firmware describes none, or none that is a GICv3.
pub fn init_distributor(madt: &Madt) -> Result<u32, Refusal> {
    /// GICv3 and GICv4.
    const VERSIONS: [u8; 2] = [3, 4];
    let none = |why: &str| {
        Refusal::new("interrupts", why, "use a machine with a GICv3; with QEMU use -M virt,gic-version=3")
    };
    let (base, version) = madt.distributor.ok_or_else(|| none("the MADT describes no GIC distributor"))?;
    if version != 0 && !VERSIONS.contains(&version) {
        return Err(none(&format!("the MADT describes a GICv{version}")));
    }
    let mut stated = madt.processors.iter().map(|processor| processor.maintenance);
    if let Some(intid) = stated.find(|intid| PPIS.contains(intid)) {
        MAINTENANCE.store(intid, Ordering::Relaxed);
    }
    paging::map_device(HostPhys(base), gicd::LENGTH)?;
    DISTRIBUTOR.store(base, Ordering::Release);
    let gicd = distributor();
    gicd.write(gicd::CTLR, 0);
    gicd.settle();
    // With one security state only, this bit is there and set.
    let one_state = gicd.read(gicd::CTLR) & gicd::CTLR_DS != 0;
    GROUP_0.store(one_state.into(), Ordering::Relaxed);
    gicd.write(gicd::CTLR, gicd::CTLR_ARE);
    gicd.settle();
    let lines = 32 * ((gicd.read(gicd::TYPER) & 0x1f) + 1);
    for first in (PRIVATE..lines.min(SPECIAL)).step_by(32) {
        gicd.calm(first);
    }
    gicd.settle();
    gicd.write(gicd::CTLR, gicd::CTLR_ARE | gicd::CTLR_ENABLE_FIRST | gicd::CTLR_ENABLE_SECOND);
    gicd.settle();
    Ok(lines.min(SPECIAL) - PRIVATE)
}

/// Affinity as GICR_TYPER has it: four bytes, the highest first.
pub fn affinity(mpidr: u64) -> u32 {
    (mpidr >> 32 << 24) as u32 | mpidr as u32 & 0xff_ffff
}

/// The redistributor of the processor with that MPIDR, mapped.
///
/// # Errors
/// When the firmware describes none.
pub fn redistributor_of(madt: &Madt, mpidr: u64) -> Result<u64, Refusal> {
    let of_its_own = madt
        .processors
        .iter()
        .find(|processor| processor.mpidr == mpidr)
        .map(|processor| processor.redistributor)
        .filter(|base| *base != 0);
    if let Some(base) = of_its_own {
        paging::map_device(HostPhys(base), gicr::LENGTH)?;
        return Ok(base);
    }
    for &(start, length) in &madt.redistributors {
        let end = start.saturating_add(length.into());
        let mut at = start;
        while end.saturating_sub(at) >= gicr::LENGTH {
            paging::map_device(HostPhys(at), gicr::LENGTH)?;
            let kind = Registers(at).read64(gicr::TYPER);
            if (kind >> gicr::TYPER_AFFINITY_SHIFT) as u32 == affinity(mpidr) {
                return Ok(at);
            }
            if kind & gicr::TYPER_LAST != 0 {
                break;
            }
            at += if kind & gicr::TYPER_VLPIS != 0 { gicr::LENGTH_VLPIS } else { gicr::LENGTH };
        }
    }
    Err(Refusal::new(
        "interrupts",
        format!("the MADT describes no redistributor for the processor with MPIDR {mpidr:#x}"),
        "update the firmware",
    ))
}

/// Sets this pCPU's redistributor and CPU interface up. SGIs and the timer's interrupt are enabled.
///
/// # Errors
/// When the redistributor does not wake up.
///
/// # Safety
/// After [`init_distributor`]; `redistributor` is this processor's, from [`redistributor_of`].
pub unsafe fn init_pcpu(redistributor: u64) -> Result<(), Refusal> {
    const SRE_EL1: u64 = 0b111;
    const LOWEST_PRIORITY: u64 = 0xff;
    const SGIS: u32 = 0xffff;
    let gicr = Registers(redistributor);
    gicr.write(gicr::WAKER, gicr.read(gicr::WAKER) & !gicr::WAKER_PROCESSOR_SLEEP);
    if !time::spin_until(SETTLE_NS, || gicr.read(gicr::WAKER) & gicr::WAKER_CHILDREN_ASLEEP == 0) {
        return Err(Refusal::new(
            "interrupts",
            format!("the redistributor at {redistributor:#x} does not wake up"),
            "reset the machine",
        ));
    }
    let private = Registers(redistributor + gicr::SGI_FRAME);
    private.calm(0);
    if has_group_0() {
        private.write(gicd::IGROUPR, !(1 << vector::STOP));
    }
    private.write(gicd::ISENABLER, SGIS | 1 << time::vector());
    // SAFETY: the processor has these registers, which was checked. All that can come is what was enabled above.
    unsafe {
        asm!(
            "msr icc_sre_el2, {sre}",
            "isb",
            "msr icc_sre_el1, {sre1}",
            "isb",
            "msr icc_pmr_el1, {pmr}",
            "msr icc_bpr1_el1, xzr",
            "msr icc_ctlr_el1, xzr",
            "msr icc_igrpen1_el1, {one}",
            "isb",
            sre = in(reg) traps::value(Control::IccSre, &identification::read),
            sre1 = in(reg) SRE_EL1,
            pmr = in(reg) LOWEST_PRIORITY,
            one = in(reg) 1u64,
            options(nostack, preserves_flags)
        );
        if has_group_0() {
            asm!("msr icc_igrpen0_el1, {}", "isb", in(reg) 1u64, options(nostack, preserves_flags));
        }
    }
    Ok(())
}

/// The interrupt that a guest's list registers raise: private to each pCPU.
pub fn maintenance() -> u32 {
    MAINTENANCE.load(Ordering::Relaxed)
}

/// The redistributor's frame of what is private to this pCPU.
fn private() -> Registers {
    Registers(crate::pcpu::current().redistributor + gicr::SGI_FRAME)
}

/// Lets a private interrupt come to this pCPU.
pub fn enable_private(intid: u32) {
    private().write(gicd::ISENABLER, 1 << (intid % PRIVATE));
}

/// Makes a private interrupt of this pCPU active, so that it does not come, or inactive.
pub fn set_active(intid: u32, active: bool) {
    let register = if active { gicd::ISACTIVER } else { gicd::ICACTIVER };
    private().write(register, 1 << (intid % PRIVATE));
}

/// Sends an SPI to the pCPU with that MPIDR from now on, by its edge or by its level.
///
/// # Errors
/// When the INTID is no SPI's.
pub fn route(intid: u32, mpidr: u64, edge: bool) -> Result<(), Refusal> {
    const EDGE: u32 = 0b10;
    if !(PRIVATE..SPECIAL).contains(&intid) {
        return Err(Refusal::new(
            "interrupts",
            format!("INTID {intid} is none of a shared peripheral"),
            "correct what the firmware says about the device",
        ));
    }
    let gicd = distributor();
    let (register, shift) = (gicd::ICFGR + u64::from(intid / 16) * 4, intid % 16 * 2);
    let others = gicd.read(register) & !(0b11 << shift);
    gicd.write(register, others | if edge { EDGE << shift } else { 0 });
    gicd.write64(gicd::IROUTER + u64::from(intid) * 8, mpidr);
    gicd.set_bit(gicd::ISENABLER, intid);
    Ok(())
}

/// The interrupt of group 1 with the highest priority, if one waits; it is in service then.
pub fn acknowledge() -> Option<u32> {
    let intid: u64;
    // SAFETY: acknowledging is what reading the register does; the caller ends the interrupt.
    unsafe {
        asm!("mrs {}, icc_iar1_el1", "dsb sy", out(reg) intid, options(nostack, preserves_flags));
    }
    let intid = intid as u32;
    (!(SPECIAL..FIRST_LPI).contains(&intid)).then_some(intid)
}

/// Ends the interrupt, which [`acknowledge`] gave.
pub fn end_of_interrupt(intid: u32) {
    // SAFETY: it was acknowledged.
    unsafe {
        asm!("msr icc_eoir1_el1, {}", "isb", in(reg) u64::from(intid), options(nostack, preserves_flags));
    }
}

/// The bits of ICC_SGI0R_EL1 and ICC_SGI1R_EL1 for one processor.
fn to_one(mpidr: u64, intid: u32) -> u64 {
    const INTID_SHIFT: u32 = 24;
    const AFF1_SHIFT: u32 = 16;
    const AFF2_SHIFT: u32 = 32;
    const RANGE_SHIFT: u32 = 44;
    const AFF3_SHIFT: u32 = 48;
    let byte = |shift: u32| mpidr >> shift & 0xff;
    let aff0 = byte(0);
    byte(32) << AFF3_SHIFT
        | (aff0 / 16) << RANGE_SHIFT
        | byte(16) << AFF2_SHIFT
        | u64::from(intid) << INTID_SHIFT
        | byte(8) << AFF1_SHIFT
        | 1 << (aff0 % 16)
}

/// Raises an SGI on the processor with that MPIDR, which may be this one. Writes to memory before it are seen by
/// the handler.
pub fn send(mpidr: u64, intid: u32) {
    barrier::dsb(barrier::ISHST);
    // SAFETY: an interrupt for a processor that runs the hypervisor.
    unsafe {
        asm!("msr icc_sgi1r_el1, {}", "isb", in(reg) to_one(mpidr, intid), options(nostack, preserves_flags));
    }
}

/// Stops all other pCPUs, for a panic: in their tracks where there is a group 0, otherwise as soon as they take
/// interrupts.
pub fn stop_others() {
    let me = cpu::mpidr();
    barrier::dsb(barrier::ISHST);
    for pcpu in crate::pcpu::all().filter(|pcpu| pcpu.mpidr != me) {
        let value = to_one(pcpu.mpidr, vector::STOP);
        // SAFETY: as in `send`.
        unsafe {
            if has_group_0() {
                asm!("msr icc_sgi0r_el1, {}", "isb", in(reg) value, options(nostack, preserves_flags));
            } else {
                asm!("msr icc_sgi1r_el1, {}", "isb", in(reg) value, options(nostack, preserves_flags));
            }
        }
    }
}
