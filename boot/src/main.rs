// SPDX-License-Identifier: MIT OR Apache-2.0
//! The EFI application: from the firmware to [`hypervisor::run`].
//!
//! **Principle.** Everything that the firmware is needed for comes first: the configuration is parsed, and
//! every file it names read, before boot services end. What can be refused there is refused by returning to
//! the firmware. After that there is nothing to return to: what fails is said in one line, and the machine
//! stands still.
//! **Invariant.** From its first line on the program uses its own heap, so that what was allocated before
//! boot services ended stays valid.
//!
//! Order: [`tables`] (ACPI or a device tree) → [`files`] (ESP: the configuration, later the guests) → [`output`] (serial
//! line) → [`firmware`] (wall clock, memory map, the end of boot services) → [`machine`] (page tables, stack, clock,
//! interrupts, processors) → [`hypervisor`]. Where the configuration asks for it, [`inventory`] takes the place of all
//! that touches anything.
#![no_std]
#![no_main]

extern crate alloc;

// The two have the same modules, so that nothing else here needs to know which it is.
#[cfg(target_arch = "aarch64")]
extern crate pasidon_arch_aarch64 as pasidon_arch;
#[cfg(target_arch = "x86_64")]
extern crate pasidon_arch_x86_64 as pasidon_arch;

mod files;
mod firmware;
mod heap;
mod hypervisor;
mod inventory;
mod machine;
mod output;
mod provoke;
mod registers;
mod tables;

use core::panic::PanicInfo;

use files::BootDisk;
use pasidon_arch::{cpu, fault};
use pasidon_kernel::base::refusal::Refusal;
use tables::Tables;
use uefi::Status;

/// What the firmware calls.
#[uefi::entry]
fn main() -> Status {
    output::collect();
    let heap = heap::begin();
    // Without a heap there is no place for tables, and the firmware's console shows why.
    let tables = if heap { Tables::find() } else { Tables::default() };
    let disk = if heap { BootDisk::open() } else { Err(no_heap()) };
    let disk = match disk {
        Ok(disk) if disk.wants_inventory() => {
            inventory::run(disk, &tables);
            return Status::SUCCESS;
        }
        other => other,
    };
    output::init(&tables);
    if !heap {
        log::error!("{}", no_heap());
        return Status::OUT_OF_RESOURCES;
    }
    match prepare(tables, disk) {
        // SAFETY: `prepare` gives what `machine` asks for, and no protocol of the firmware's is open any more.
        Ok(prepared) => unsafe { machine::take_over(prepared) },
        Err(refusal) => {
            log::error!("{refusal}");
            log::info!("[host] mode = \"inventory\" in pasidon.toml lists what this machine has and lacks");
            log::error!("nothing was started; back to the firmware");
            Status::UNSUPPORTED
        }
    }
}

/// What the firmware is needed for, but for its end.
fn prepare(tables: Tables, disk: Result<BootDisk, Refusal>) -> Result<firmware::Prepared, Refusal> {
    firmware::prepare(cpu::check()?, tables, disk?)
}

fn no_heap() -> Refusal {
    Refusal::new("memory", "the firmware has not even 2 MiB in one piece", "give the machine more")
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fault::panic(info)
}

/// Ends the program where there is no firmware to return to.
fn stop(refusal: &Refusal) -> ! {
    log::error!("{refusal}");
    log::error!("nothing was started; the machine stands still until it is reset");
    cpu::halt()
}
