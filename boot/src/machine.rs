// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine without the firmware: page tables, stack, clock, interrupts, processors; and what there is, in
//! words.

use alloc::boxed::Box;

use pasidon_arch::stack::{self, STACK_BYTES, Stack};
use pasidon_arch::{cpu, firmware_tables, interrupts, paging, time};
use pasidon_kernel::base::calendar::Utc;
use pasidon_kernel::base::refusal::Refusal;

use crate::firmware::{self, Memory, Prepared};
use crate::hypervisor::{self, Handover};
use crate::{heap, provoke, stop};

/// What goes from the firmware's stack to the hypervisor's.
struct Crossing {
    prepared: Prepared,
    memory: Memory,
    stack: Stack,
}

/// Ends boot services, and goes on without them for good.
///
/// # Safety
/// No protocol of the firmware's may be open.
pub unsafe fn take_over(prepared: Prepared) -> ! {
    // SAFETY: by the caller's promise.
    let memory = unsafe { firmware::leave() };
    interrupts::disable();
    // SAFETY: interrupts are off, and the processor has what was checked. The firmware's map is an identity
    // map, and everything in use lies in RAM: image, heap, files and the stack.
    let stack = unsafe {
        cpu::set_up(&prepared.features);
        paging::install(&memory.ram, heap::range(), &prepared.sections).and_then(|()| stack::new(STACK_BYTES))
    };
    match stack {
        Ok(stack) => {
            let crossing = Box::new(Crossing { prepared, memory, stack });
            // SAFETY: the stack is new; nothing on the old one is referred to any more.
            unsafe { stack::run(stack, Box::into_raw(crossing).cast(), arrive) }
        }
        Err(refusal) => stop(&refusal),
    }
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
    let Crossing { prepared, memory, stack } = crossing;
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
    log::info!(
        "memory: {} MiB, {} MiB of it for guests; hypervisor: heap {} MiB ({} KiB used), image {} KiB at {:#x}",
        mib(memory.ram.iter().map(|(_, length)| length).sum()),
        mib(memory.free.iter().map(|(_, length)| length).sum()),
        mib(heap::HEAP_BYTES as u64),
        heap::used() >> 10,
        image.1 >> 10,
        image.0
    );
    log::info!("{}: {}", tables.source(), tables.names());
    let ecams = tables.get("MCFG").map(firmware_tables::mcfg).unwrap_or_default();
    if ecams.is_empty() {
        log::warn!(
            "PCI: the firmware describes no configuration space (MCFG); no device can be shared; update it"
        );
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
        files: files.guests,
        image_bytes: image.1,
        memory: memory.free,
        ecams: ecams.iter().map(|ecam| (ecam.segment, ecam.base, ecam.start, ecam.end)).collect(),
        platform,
        tables,
    })
}
