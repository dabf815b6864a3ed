// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arm with EL2, for the loop that runs guests.

use pasidon_arch_common::hardware::{BootImage, Hardware};
use pasidon_arch_common::memory::{self, RamView};
use pasidon_kernel::addr::PAGE_SIZE;
use pasidon_kernel::frames::Frames;
use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::ram::GuestRam;
use pasidon_kernel::refusal::Refusal;

use crate::cpu::Features;
use crate::el2::own_vmid::OwnVmid;
use crate::el2::stage2::{GEOMETRY, Stage2Tables};
use crate::el2::{El2Pcpu, El2Vcpu};
use crate::guest::machine::ArmPlatform;
use crate::guest::smccc::Workarounds;
use crate::guest::timer::VirtualCount;
use crate::guest::{boot, layout};
use crate::{cache, gic, interrupts, pcpu, time, vcpu};

/// Arm with EL2.
#[derive(Debug)]
pub enum El2 {}

impl Hardware for El2 {
    type Pcpu = El2Pcpu;
    type Core = vcpu::Core;
    type Platform = ArmPlatform;
    type Stage2 = Stage2Tables;

    fn enable(pcpu: u32, frames: &'static Frames) -> Result<El2Pcpu, Refusal> {
        let empty = frames.allocate_pages(1).ok_or_else(|| {
            Refusal::new(
                alloc::format!("pCPU {pcpu}"),
                "no memory for its empty table",
                "give VMs less memory",
            )
        })?;
        // SAFETY: the page was just taken for this pCPU, and RAM is mapped at its physical address.
        unsafe { memory::zero(empty, PAGE_SIZE) };
        gic::enable_private(time::virtual_timer());
        gic::enable_private(gic::maintenance());
        // SAFETY: the hypervisor's own HCR_EL2 has been set since the start of this processor, and no guest ran.
        Ok(unsafe { El2Pcpu::enable(&Features::read(), empty) })
    }

    fn stage2(frames: &'static Frames) -> Result<Stage2Tables, Refusal> {
        Stage2Tables::new(frames, GEOMETRY)
    }

    fn build(
        vm: &str,
        memory: &RamView,
        image: &BootImage<'_>,
        stage2: &Stage2Tables,
    ) -> Result<(vcpu::Core, ArmPlatform), Refusal> {
        let entry = boot::load(memory, image)?;
        let mut platform = ArmPlatform::new(1, memory.ram_size(), Workarounds::UNKNOWN, time::unix_seconds)?;
        let vmid = OwnVmid::take()?;
        let Some(number) = vmid.vmid() else {
            return Err(Refusal::new("VMID", "none was taken", ""));
        };
        let hardware = El2Vcpu::new(
            &entry,
            stage2.root(),
            number,
            layout::mpidr(0),
            VirtualCount::from_zero_at(time::count()),
            Features::read().vhe,
        );
        let core = vcpu::Core::new(vm, hardware, vmid, &mut platform, time::virtual_timer() as u16);
        Ok((core, platform))
    }

    fn release_ram(ram: &GuestRam) {
        // The guest starts with its caches off, and may use its RAM uncached at any time: without this it would read
        // what an earlier guest left in memory, under the zeros that are only in the caches.
        for segment in ram.segments() {
            // SAFETY: RAM is mapped at its physical address; the VM that it belongs to does not run yet.
            unsafe { cache::release(segment.host.0, segment.len) };
        }
    }

    fn this_pcpu() -> u32 {
        pcpu::current().index
    }

    fn kick(pcpu: u32) {
        interrupts::kick(pcpu);
    }

    fn window() {
        interrupts::window();
    }

    fn wait() {
        interrupts::wait();
    }

    fn now_ns() -> u64 {
        time::now_ns()
    }

    fn arm_timer(deadline_ns: Option<u64>) {
        time::arm_timer(deadline_ns);
    }
}
