// SPDX-License-Identifier: MIT OR Apache-2.0
//! What VMX needs once per pCPU: VMX operation, the state that exits go back to, and what the processor keeps of stage-2
//! tables.
//!
//! **Translations.** They are tagged by the EPT pointer, and by a VPID that all guests share: there is one vCPU to an
//! EPT pointer. So nothing has to be handed out, and a vCPU that comes to another pCPU drops what was left there of
//! its own memory, or of another VM's whose top table lay in the same frame.
//!
//! Source: Intel SDM volume 3, 24.7 "Enabling and Entering VMX Operation", 29.4 "Caching Translation Information".

use alloc::boxed::Box;
use core::arch::asm;

use pasidon_kernel::base::addr::PAGE_SIZE;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::frames::Frames;
use x86_64::instructions::tables::{sgdt, sidt};

use super::controls::Controls;
use super::enter;
use super::vmcs::{Field, Vmcs};
use crate::cpu::{self, msr};

/// CR4.VMXE.
const CR4_VMXE: u64 = 1 << 13;
const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
/// Type of INVEPT and INVVPID: what belongs to one EPT pointer or VPID.
const ONE: u64 = 1;
/// Type of INVEPT and INVVPID: everything.
const ALL: u64 = 2;

/// VMX on one pCPU.
#[derive(Debug)]
pub struct VmxPcpu {
    pub(super) index: u32,
    pub(super) controls: Controls,
    host: Box<[(Field, u64); HOST_FIELDS]>,
}

/// How many fields tell what the host is.
const HOST_FIELDS: usize = 22;

/// Whether the processor that calls takes posted interrupts for its guests. It has VMX.
pub fn takes_posted_interrupts() -> bool {
    // SAFETY: the processor has VMX, and so these MSRs.
    let controls = Controls::new(&|msr| unsafe { cpu::read_msr(msr) });
    controls.is_ok_and(|controls| controls.posting != 0)
}

impl VmxPcpu {
    /// Turns VMX on for the pCPU that calls. Its control registers, descriptor tables, page tables and the bases of FS and
    /// GS must be final.
    ///
    /// # Errors
    /// When VMX lacks something, the firmware has locked it off, or there is no memory for its region.
    pub fn enable(index: u32, frames: &Frames) -> Result<Self, Refusal> {
        let refuse = |why: &str, remedy: &str| Refusal::new(alloc::format!("pCPU {index}"), why, remedy);
        cpu::unlock_vmx()?;
        // SAFETY: the processor has VMX, and so these MSRs.
        let controls = Controls::new(&|msr| unsafe { cpu::read_msr(msr) })?;
        let region =
            frames.allocate_pages(1).ok_or_else(|| refuse("no memory for VMX", "give VMs less memory"))?;
        let failed: u8;
        // SAFETY: the page was just taken for this pCPU and is mapped. VMXE changes nothing for other code; VMXON does
        // not, either, but that INIT waits from here on.
        unsafe {
            crate::memory::zero(region, PAGE_SIZE);
            (region.0 as *mut u32).write_volatile(controls.revision);
            asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, const CR4_VMXE, options(nostack));
            asm!("vmxon [{}]", "setbe {}", in(reg) &region.0, out(reg_byte) failed, options(nostack));
        }
        if failed != 0 {
            return Err(refuse("VMXON fails", "reset the machine; if it stays, report it"));
        }
        // Of a hypervisor that was here before, there may be anything.
        invept(ALL, 0);
        invvpid(ALL, 0);
        Ok(Self { index, controls, host: Box::new(host()) })
    }

    /// Tells the VMCS where exits on this pCPU go.
    pub(super) fn write_host(&self, vmcs: &mut Vmcs) {
        for (field, value) in *self.host {
            vmcs.write(field, value);
        }
    }
}

/// Drops what this pCPU keeps of the tables that `pointer` leads to.
pub(super) fn forget_memory(pointer: u64) {
    invept(ONE, pointer);
}

/// Drops what this pCPU keeps of guests' own page tables under that VPID.
pub(super) fn forget_linear(vpid: u16) {
    invvpid(ONE, vpid);
}

fn invept(kind: u64, pointer: u64) {
    let descriptor = [pointer, 0];
    // SAFETY: it drops translations, which are found again. Private: whoever calls has VMX on.
    unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) };
}

fn invvpid(kind: u64, vpid: u16) {
    let descriptor = [u64::from(vpid), 0];
    // SAFETY: as for `invept`.
    unsafe { asm!("invvpid {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) };
}

/// What this pCPU is now.
fn host() -> [(Field, u64); HOST_FIELDS] {
    let (cr0, cr3, cr4): (u64, u64, u64);
    let (es, cs, ss, ds, fs, gs, tr): (u64, u64, u64, u64, u64, u64, u64);
    // SAFETY: to read these registers changes nothing.
    unsafe {
        asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4,
            options(nomem, nostack, preserves_flags));
        asm!("mov {:e}, es", "mov {:e}, cs", "mov {:e}, ss", "mov {:e}, ds",
            out(reg) es, out(reg) cs, out(reg) ss, out(reg) ds, options(nomem, nostack, preserves_flags));
        asm!("mov {:e}, fs", "mov {:e}, gs", "str {:e}",
            out(reg) fs, out(reg) gs, out(reg) tr, options(nomem, nostack, preserves_flags));
    }
    // SAFETY: every 64-bit processor has these.
    let read = |msr| unsafe { cpu::read_msr(msr) };
    let gdt = sgdt().base.as_u64();
    /// Where a selector is found; the rest is its privilege level and table, which must be clear.
    const INDEX: u64 = 0xfff8;
    [
        (Field::HostCr0, cr0),
        (Field::HostCr3, cr3),
        (Field::HostCr4, cr4),
        (Field::HostEsSelector, es & INDEX),
        (Field::HostCsSelector, cs & INDEX),
        (Field::HostSsSelector, ss & INDEX),
        (Field::HostDsSelector, ds & INDEX),
        (Field::HostFsSelector, fs & INDEX),
        (Field::HostGsSelector, gs & INDEX),
        (Field::HostTrSelector, tr & INDEX),
        (Field::HostFsBase, read(msr::FS_BASE)),
        (Field::HostGsBase, read(msr::GS_BASE)),
        (Field::HostTrBase, task_base(gdt + (tr & INDEX))),
        (Field::HostGdtrBase, gdt),
        (Field::HostIdtrBase, sidt().base.as_u64()),
        (Field::HostSysenterCs, read(IA32_SYSENTER_CS)),
        (Field::HostSysenterEsp, read(IA32_SYSENTER_ESP)),
        (Field::HostSysenterEip, read(IA32_SYSENTER_EIP)),
        (Field::HostEfer, read(msr::EFER)),
        (Field::HostPat, read(msr::IA32_PAT)),
        (Field::HostRip, enter::host_rip()),
        // The field of RSP is written on the way in.
        (Field::LinkPointer, u64::MAX),
    ]
}

/// The base that the descriptor of a task state segment holds.
fn task_base(descriptor: u64) -> u64 {
    // SAFETY: the caller found it in the GDT that is loaded, where such descriptors have 16 bytes.
    let [low, high] = unsafe { (descriptor as *const [u64; 2]).read_unaligned() };
    low >> 16 & 0xff_ffff | (low >> 56) << 24 | high << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_of_a_task_state_segment_is_put_together() {
        let descriptor = [0x5600_8b34_1278_0067_u64, 0xffff_8000];
        assert_eq!(task_base(descriptor.as_ptr() as u64), 0xffff_8000_5634_1278);
    }
}
