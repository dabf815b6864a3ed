// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine as the housekeeping needs it.

use core::sync::atomic::{AtomicU64, Ordering};

use pasidon_arch::host::MachineHost;
use pasidon_arch::{power, serial};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::console::line::SerialPort;
use pasidon_kernel::dev::Received;
use pasidon_kernel::housekeeping::{HostMachine, Power};
use pasidon_kernel::monitor::HostPower;
use pasidon_kernel::monitor::info::HypervisorMemory;

use crate::heap;
use crate::output::LOGGER;

/// Size of the loaded image.
static IMAGE_BYTES: AtomicU64 = AtomicU64::new(0);

/// All of it; the loaded image has that size.
pub fn host_machine(image_bytes: u64) -> HostMachine {
    IMAGE_BYTES.store(image_bytes, Ordering::Relaxed);
    HostMachine { host: &MachineHost, port: &Port, logger: &LOGGER, power: &Switch, memory, tend: heap::tend }
}

struct Port;

impl SerialPort for Port {
    fn read(&self) -> Option<Received> {
        serial::read()
    }

    fn write(&self, byte: u8) {
        serial::write(&[byte]);
    }
}

struct Switch;

impl Power for Switch {
    fn check(&self, power: HostPower) -> Result<(), Refusal> {
        power::check(power)
    }

    fn carry_out(&self, power: HostPower) {
        power::carry_out(power);
    }
}

fn memory() -> HypervisorMemory {
    let (heap, heap_used) = heap::counts();
    HypervisorMemory { image: IMAGE_BYTES.load(Ordering::Relaxed), heap, heap_used }
}
