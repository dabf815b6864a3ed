// SPDX-License-Identifier: MIT OR Apache-2.0
//! One virtual machine with one vCPU.

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// Bytes of the guest's memory, from address 0.
const MEMORY: usize = 16 << 20;
/// The serial port's data and line status, where it always can send.
const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 0x60;
/// With a write there the guest ends.
const SLEEP_CONTROL: u16 = 0x600;

// The state that a PVH kernel starts in: 32-bit protected mode without paging (Xen, `docs/misc/pvh.pandoc`).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const RFLAGS_RESERVED: u64 = 1 << 1;
const CODE: kvm_segment = segment(8, 0b1011);
const DATA: kvm_segment = segment(16, 0b0011);

/// A segment of 4 GiB of that type.
const fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Runs the ELF file until the guest ends, and prints what it says.
///
/// # Errors
/// When KVM refuses something, the file is none, or the guest does what a guest of this kind does not.
pub fn run(file: &Path) -> Result<()> {
    let image = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let kvm = Kvm::new().context("opening /dev/kvm")?;
    let vm = kvm.create_vm().context("making a VM")?;
    vm.create_irq_chip().context("making its interrupt controllers")?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).context("making its interval timer")?;
    let memory = memory_of(&vm)?;
    let entry = load(&image, memory).with_context(|| format!("loading {}", file.display()))?;
    let vcpu = vm.create_vcpu(0).context("making its vCPU")?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("asking for CPUID")?;
    vcpu.set_cpuid2(&cpuid).context("setting CPUID")?;
    start_at(&vcpu, entry).context("setting registers")?;
    follow(vcpu)
}

/// Gives the machine memory, which stays until the process ends.
fn memory_of(vm: &VmFd) -> Result<&'static mut [u8]> {
    let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping where the kernel chooses; it is zeroed.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), MEMORY, protection, flags) }
        .context("taking memory for the guest")?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: base as u64,
    };
    // SAFETY: the mapping is never undone, and used by nobody here once the guest runs.
    unsafe { vm.set_user_memory_region(region) }.context("giving the guest memory")?;
    // SAFETY: as above, and nobody else has a pointer to it.
    Ok(unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>(), MEMORY) })
}

/// Puts the file's segments into the guest's memory, and returns where it starts.
fn load(image: &[u8], memory: &mut [u8]) -> Result<u64> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(image)?;
    let segments = elf.segments().context("it has no program headers")?;
    for segment in segments.iter().filter(|segment| segment.p_type == PT_LOAD) {
        let bytes = elf.segment_data(&segment)?;
        let place = range(segment.p_paddr, bytes.len()).and_then(|place| memory.get_mut(place));
        place.context("it is too large for the guest's memory")?.copy_from_slice(bytes);
    }
    Ok(elf.ehdr.e_entry)
}

fn range(start: u64, len: usize) -> Option<Range<usize>> {
    let start = usize::try_from(start).ok()?;
    Some(start..start.checked_add(len)?)
}

fn start_at(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut special = vcpu.get_sregs()?;
    special.cs = CODE;
    for data in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
        *data = DATA;
    }
    special.cr0 = CR0_PE | CR0_ET;
    vcpu.set_sregs(&special)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = entry;
    registers.rflags = RFLAGS_RESERVED;
    vcpu.set_regs(&registers)
}

/// Runs the vCPU until the guest ends.
fn follow(mut vcpu: VcpuFd) -> Result<()> {
    let mut output = std::io::stdout().lock();
    loop {
        match vcpu.run().context("running the guest")? {
            VcpuExit::IoOut(COM1, bytes) => output.write_all(bytes)?,
            VcpuExit::IoIn(LINE_STATUS, bytes) => bytes.fill(TRANSMITTER_EMPTY),
            VcpuExit::IoOut(SLEEP_CONTROL, _) => break,
            other => bail!("the guest left in a way that was not expected: {other:?}"),
        }
    }
    Ok(output.flush()?)
}
