// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine without the firmware: page tables, stack, descriptors, clock, processors.

use alloc::boxed::Box;
use alloc::vec::Vec;

use pasidon_arch_x86_64::stack::{STACK_BYTES, Stack};
use pasidon_arch_x86_64::{apic, cpu, firmware_tables, ioapic, paging, pcpu, smp, time};
use pasidon_kernel::refusal::Refusal;
use x86_64::instructions::interrupts;

use crate::firmware::{self, Memory, Prepared};
use crate::hypervisor::{self, Handover};
use crate::{heap, provoke, stop};

/// ISA interrupt of COM1.
const COM1_IRQ: u8 = 4;

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
        paging::install(&memory.ram, &prepared.sections).and_then(|()| Stack::new(STACK_BYTES))
    };
    match stack {
        Ok(stack) => {
            let crossing = Box::new(Crossing {
                prepared,
                memory,
                stack,
            });
            // SAFETY: the stack is new; nothing on the old one is referred to any more.
            unsafe { stack.run(Box::into_raw(crossing).cast(), arrive) }
        }
        Err(refusal) => stop(&refusal),
    }
}

extern "sysv64" fn arrive(crossing: *mut u8) -> ! {
    // SAFETY: `take_over` passes the box that it has given up.
    let crossing = unsafe { Box::from_raw(crossing.cast::<Crossing>()) };
    match set_up(*crossing) {
        Ok(handover) => hypervisor::run(handover),
        Err(refusal) => stop(&refusal),
    }
}

fn set_up(crossing: Crossing) -> Result<Handover, Refusal> {
    let Crossing {
        prepared,
        memory,
        stack,
    } = crossing;
    let Prepared {
        features,
        files,
        tables,
        clock,
        image,
        trampoline,
        ..
    } = prepared;
    // SAFETY: on the hypervisor's page tables and on `stack`, interrupts off.
    unsafe { smp::init(&features, stack)? };
    let rate = time::init(clock, &apic::free_run())?;
    apic::set_timer_rate(rate);

    let madt = tables
        .madt
        .as_deref()
        .map(firmware_tables::madt)
        .unwrap_or_default();
    if tables.madt.is_none() {
        log::warn!("ACPI: there is no MADT, so only one processor is known; update the firmware");
    } else if madt.damaged {
        log::warn!("ACPI: the MADT is cut off; processors may be missing; update the firmware");
    }
    ioapic::init(&madt.io_apics);
    let found = madt.processors.len().max(1);
    let processors = match trampoline {
        Some(pages) if found > 1 => {
            // SAFETY: the firmware gave these pages for this.
            unsafe { smp::prepare(&madt.processors, pages)? };
            smp::start(if provoke::ON {
                provoke::processor
            } else {
                hypervisor::processor
            })?
        }
        None if found > 1 => {
            log::warn!("processors: no memory below 1 MiB to start them with; only the first one is used");
            1
        }
        _ => 1,
    };
    let apic_ids: Vec<u32> = (0..).map_while(pcpu::apic_id_of).collect();
    let mib = |bytes: u64| bytes >> 20;
    log::info!(
        "processors: {processors} of {found} (APIC IDs {apic_ids:?}), {}, TSC {} MHz, local APIC timer {} MHz, {} address bits",
        cpu::brand(),
        time::tsc_hz() / 1_000_000,
        rate / 1_000_000,
        features.physical_bits
    );
    log::info!(
        "memory: {} MiB, {} MiB of it for guests; hypervisor: heap {} MiB ({} KiB used), image {} KiB at {:#x}",
        mib(memory.ram.iter().map(|(_, length)| length).sum()),
        mib(memory.free.iter().map(|(_, length)| length).sum()),
        mib(heap::HEAP_BYTES as u64),
        heap::used() >> 10,
        image.1 >> 10,
        image.0
    );
    log::info!("ACPI: {}", tables.names());
    let ecams = tables
        .mcfg
        .as_deref()
        .map(firmware_tables::mcfg)
        .unwrap_or_default();
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
    provoke::fail();
    Ok(Handover {
        parsed: files.parsed,
        files: files.guests,
        image_bytes: image.1,
        memory: memory.free,
        physical_bits: features.physical_bits,
        ecams: ecams
            .iter()
            .map(|ecam| (ecam.segment, ecam.base, ecam.start, ecam.end))
            .collect(),
        reset: tables.fadt.as_deref().and_then(firmware_tables::reset_register),
        soft_off: tables
            .fadt
            .as_deref()
            .zip(tables.dsdt.as_deref())
            .and_then(|(fadt, dsdt)| firmware_tables::soft_off(fadt, dsdt)),
        com1_gsi: madt.gsi_of_isa(COM1_IRQ),
        dmar: tables.dmar,
    })
}
