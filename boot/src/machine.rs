// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine without the firmware: page tables, stack, clock, interrupts, processors; and what there is, in
//! words.

use alloc::boxed::Box;
use alloc::format;

use pasidon_arch::stack::{self, STACK_BYTES, Stack};
use pasidon_arch::{cpu, firmware_tables, interrupts, paging, time};
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::calendar::Utc;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::memory::ranges;

use crate::firmware::{self, Memory, Prepared};
use crate::hypervisor::{self, Handover};
use crate::{heap, provoke, stop};

/// What goes from the firmware's stack to the hypervisor's.
struct Crossing {
    prepared: Prepared,
    memory: u64,
    frames: &'static Frames,
    stack: Stack,
}

/// Ends boot services, and goes on without them for good.
///
/// # Safety
/// No protocol of the firmware's may be open.
pub unsafe fn take_over(prepared: Prepared) -> ! {
    // SAFETY: by the caller's promise.
    let mut memory = unsafe { firmware::leave() };
    interrupts::disable();
    let (frames, stacks) = match share_out(&mut memory, prepared.platform.stack_bytes()) {
        Ok(shares) => shares,
        Err(refusal) => stop(&refusal),
    };
    // SAFETY: interrupts are off, and the processor has what was checked. The firmware's map is an identity
    // map, and everything in use lies in RAM: image, heap, files and the stack. The memory for stacks is theirs alone.
    let stack = unsafe {
        cpu::set_up(&prepared.features);
        stack::give(stacks.0, stacks.1);
        paging::install(&memory.ram, stacks, &prepared.sections).and_then(|()| stack::new(STACK_BYTES))
    };
    match stack {
        Ok(stack) => {
            let memory = memory.ram.iter().map(|(_, length)| length).sum();
            let crossing = Box::new(Crossing { prepared, memory, frames, stack });
            // SAFETY: the stack is new; nothing on the old one is referred to any more.
            unsafe { stack::run(stack, Box::into_raw(crossing).cast(), arrive) }
        }
        Err(refusal) => stop(&refusal),
    }
}

/// Memory that nobody uses: for the stacks so much (start and length), the rest for guests, tables and the heap.
fn share_out(memory: &mut Memory, stack_bytes: u64) -> Result<(&'static Frames, (HostPhys, u64)), Refusal> {
    let stacks = memory_for_stacks(memory, stack_bytes)?;
    let frames: &'static Frames = Box::leak(Box::new(Frames::new(memory.free.drain(..))));
    heap::grow_from(frames);
    Ok((frames, (stacks, stack_bytes)))
}

/// Takes memory for stacks out of what nobody uses.
///
/// # Errors
/// When there is not so much in one piece.
pub fn memory_for_stacks(memory: &mut Memory, bytes: u64) -> Result<HostPhys, Refusal> {
    ranges::carve(&mut memory.free, bytes).ok_or_else(|| {
        Refusal::new(
            "memory",
            format!("there are no {} KiB in one piece for stacks", bytes >> 10),
            "give the machine more",
        )
    })
}

/// The refusal of a machine whose firmware says nothing of PCI configuration space.
pub fn no_configuration_space() -> Refusal {
    Refusal::new(
        "PCI",
        "the firmware describes no configuration space (MCFG), so no device can be shared",
        "update the firmware",
    )
}

fn arrive(crossing: *mut u8) -> ! {
    // SAFETY: `take_over` passes the box that it has given up.
    let crossing = unsafe { Box::from_raw(crossing.cast::<Crossing>()) };
    match set_up(*crossing) {
        Ok(handover) => hypervisor::run(handover),
        Err(refusal) => stop(&refusal),
    }
}

fn set_up(crossing: Crossing) -> Result<Handover, Refusal> {
    let Crossing { prepared, memory, frames, stack } = crossing;
    let Prepared { features, files, tables, platform, image, trampoline, .. } = prepared;
    let config = files.parsed.as_ref().ok().map(|parsed| &parsed.config);
    let entry = provoke::processor(config).unwrap_or(hypervisor::processor);
    // SAFETY: on the hypervisor's page tables and on `stack`, interrupts off; the firmware gave the pages for
    // this.
    let processors = unsafe { platform.bring_up(&features, stack, trampoline, entry)? };
    log::info!(
        "processors: {} of {} ({}), {}, {}, {} address bits",
        processors.count,
        processors.found,
        processors.ids,
        processors.name,
        processors.clocks,
        processors.physical_bits
    );
    match time::unix_ns() {
        0 => log::warn!("date: the firmware tells none; guests start in 1970: set the clock in its menu"),
        now => log::info!("date: {}", Utc(now)),
    }
    let mib = |bytes: u64| bytes >> 20;
    let (heap_bytes, heap_used) = heap::counts();
    log::info!(
        "memory: {} MiB, {} MiB of it for guests; hypervisor: heap {} MiB ({} KiB used), image {} KiB at {:#x}",
        mib(memory),
        mib(frames.counts().for_guests),
        mib(heap_bytes),
        heap_used >> 10,
        image.1 >> 10,
        image.0
    );
    log::info!("{}: {}", tables.source(), tables.names());
    let ecams = tables.get("MCFG").map(firmware_tables::mcfg).unwrap_or_default();
    if ecams.is_empty() {
        log::warn!("{}", no_configuration_space());
    }
    for ecam in &ecams {
        log::info!(
            "PCI: segment {:04x} buses {:02x}-{:02x}, ECAM at {:#x}",
            ecam.segment,
            ecam.start,
            ecam.end,
            ecam.base
        );
    }
    provoke::fail(config);
    Ok(Handover {
        parsed: files.parsed,
        definitions: files.definitions,
        files: files.guests,
        image_bytes: image.1,
        frames,
        ecams: ecams.iter().map(|ecam| (ecam.segment, ecam.base, ecam.start, ecam.end)).collect(),
        platform,
        tables,
    })
}
