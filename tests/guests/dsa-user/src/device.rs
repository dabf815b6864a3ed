// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device and its queue, from reset to enabled.
//!
//! Source: Intel DSA Architecture Specification 341204-006, chapters on registers and commands.

use crate::function::Function;
use crate::portal::Portal;
use anyhow::{Result, bail, ensure};
use pasidon_drivers::accel::dsa::commands::{Command, code, describe};
use pasidon_drivers::accel::dsa::registers::{
    CMD, CMDCAP, CMDSTS, GENCAP, GENSTS, GenCap, OFFSETS, OFFSETS_UNIT, SWERR, VERSION, WQCAP, WqCap, cmd,
    gensts, grpcfg, portal, swerr, wqcfg,
};
use pasidon_drivers::registers::{Mmio, Registers};
use std::time::{Duration, Instant};

/// BAR of the registers, and of the portals.
const BAR_REGISTERS: u8 = 0;
const BAR_PORTALS: u8 = 2;
/// The only queue, group and engine used.
const QUEUE: u8 = 0;
/// The MSI-X entry of that queue's completions.
const QUEUE_VECTOR: u16 = 1;
/// What a command may take at most.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);
/// Fields of OFFSETS.
const OFFSET_FIELD: u64 = 0xffff;
const WQCFG_SHIFT: u32 = 16;
/// Where in SWERR the address is.
const SWERR_ADDRESS: usize = 16;
/// Least log2 of the batch limit that a queue can be enabled with.
const SMALLEST_BATCH_LOG2: u32 = 1;
const PRIORITY: u32 = 10;
const MAJOR_VERSION_SHIFT: u32 = 8;

/// A device that this program owns.
pub struct Device {
    registers: Mmio,
    portals: *mut u8,
    general: GenCap,
    queues: WqCap,
}

/// Its queue, enabled.
pub struct Queue {
    /// Where descriptors go.
    pub portal: Portal,
    /// Descriptors it holds.
    pub entries: u16,
    /// Bytes that one descriptor may move.
    pub largest_transfer: u64,
    /// What descriptors name its interrupt with, where one is wanted.
    pub interrupt: Option<u16>,
}

impl Queue {
    /// Says on a line whose queue it is, what it holds, and how ends are waited for.
    pub fn announce(&self, of: &str, wait: &str) {
        println!(
            "dsa-user: {of} with {} entries, transfers up to {} KiB, {wait}",
            self.entries,
            self.largest_transfer >> 10
        );
    }
}

impl Device {
    /// Resets it and gives its first queue all there is. The function must be enabled.
    pub fn bring_up(function: &Function) -> Result<Self> {
        let (registers, _) = function.map_bar(BAR_REGISTERS)?;
        let (_, portals) = function.map_bar(BAR_PORTALS)?;
        let version = registers.read32(VERSION);
        ensure!(
            version >> MAJOR_VERSION_SHIFT & 0xff == 1,
            "version {version:#x} of the device is none that this program knows"
        );
        let device = Self {
            general: GenCap(registers.read64(GENCAP)),
            queues: WqCap(registers.read64(WQCAP)),
            registers,
            portals,
        };
        device.command(Command::ResetDevice)?;
        let state = device.registers.read32(GENSTS);
        ensure!(
            state & gensts::STATE_MASK == gensts::DISABLED,
            "the device is {} after a reset",
            gensts::state(state)
        );
        ensure!(
            device.general.configurable() && device.queues.dedicated(),
            "the device cannot be configured, or has no dedicated queues"
        );
        device.configure();
        device.command(Command::EnableDevice)?;
        Ok(device)
    }

    /// One group of one queue and one engine; the queue dedicated and as large as can be.
    fn configure(&self) {
        let offsets = self.registers.read64(OFFSETS);
        let group = (offsets & OFFSET_FIELD) as usize * OFFSETS_UNIT;
        let queue = (offsets >> WQCFG_SHIFT & OFFSET_FIELD) as usize * OFFSETS_UNIT;
        let priority = if self.queues.priority() { PRIORITY } else { 0 };
        let transfer = u32::from(self.general.max_transfer_log2());
        let write = |offset, value| self.registers.write32(queue + offset, value);
        write(wqcfg::SIZE, u32::from(self.queues.total_size()));
        write(wqcfg::THRESHOLD, 0);
        write(wqcfg::MODE, wqcfg::MODE_DEDICATED | priority << wqcfg::PRIORITY_SHIFT);
        write(wqcfg::LIMITS, transfer | SMALLEST_BATCH_LOG2 << wqcfg::MAX_BATCH_SHIFT);
        self.registers.write64(group + grpcfg::WQS, 1 << QUEUE);
        self.registers.write64(group + grpcfg::ENGINES, 1);
        // The reset left the read buffers as the device is best used; without any it cannot be enabled.
        let flags = self.registers.read64(group + grpcfg::FLAGS);
        self.registers.write64(group + grpcfg::FLAGS, flags | grpcfg::TRAFFIC_CLASS_1);
    }

    /// Enables the queue. `interrupt`: completions are to raise the queue's vector.
    pub fn enable_queue(&self, interrupt: bool) -> Result<Queue> {
        self.command(Command::EnableWq(QUEUE))?;
        let handle = match interrupt {
            true if self.has_command(code::REQUEST_HANDLE) => {
                Some(self.command(Command::RequestHandle(QUEUE_VECTOR))?)
            }
            true => Some(QUEUE_VECTOR),
            false => None,
        };
        let page =
            self.portals.wrapping_add((u64::from(QUEUE) * portal::STRIDE + portal::LIMITED_MSIX) as usize);
        Ok(Queue {
            // SAFETY: the queue's limited portal lies in the BAR, which stays mapped.
            portal: unsafe { Portal::new(page) },
            entries: self.queues.total_size(),
            largest_transfer: 1 << self.general.max_transfer_log2(),
            interrupt: handle,
        })
    }

    /// Disables the queue, until it is enabled again.
    pub fn close_queue(&self) -> Result<()> {
        self.command(Command::DisableWq(QUEUE)).map(drop)
    }

    /// Takes the error that the device has recorded, if there is one: its code, and the address in it.
    pub fn take_error(&self) -> Option<(u8, u64)> {
        let first = self.registers.read64(SWERR);
        if first & swerr::VALID == 0 {
            return None;
        }
        let address = self.registers.read64(SWERR + SWERR_ADDRESS);
        self.registers.write64(SWERR, swerr::VALID | swerr::OVERFLOW);
        Some(((first >> swerr::CODE_SHIFT) as u8, address))
    }

    /// Waits for what is queued and switches the device off.
    pub fn disable(&self) -> Result<()> {
        self.command(Command::DisableWq(QUEUE))?;
        self.command(Command::ResetDevice)?;
        Ok(())
    }

    fn has_command(&self, code: u32) -> bool {
        self.general.command_capabilities() && self.registers.read32(CMDCAP) >> code & 1 != 0
    }

    /// Gives a command, waits for its end, and returns its result.
    fn command(&self, command: Command) -> Result<u16> {
        self.registers.write32(CMD, command.encode());
        let start = Instant::now();
        loop {
            let status = self.registers.read32(CMDSTS);
            if status & cmd::ACTIVE == 0 {
                let error = (status & cmd::ERROR_MASK) as u8;
                ensure!(error == 0, "{command}: {} (CMDSTS error {error:#04x})", describe(error));
                return Ok((status >> cmd::RESULT_SHIFT) as u16);
            }
            if start.elapsed() > COMMAND_DEADLINE {
                bail!("{command}: not finished after {} s", COMMAND_DEADLINE.as_secs());
            }
            std::thread::yield_now();
        }
    }
}
