// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands of the guest: each acts on its own queue, whatever it names.
//!
//! Commands are finished when the write to CMD returns, so a guest never sees one active. A command that
//! the device does not finish in time ends with the hardware-error code.

use super::super::commands::{CommandFailure, code, error};
use super::super::registers::{CMD, cmd, gensts, intcause, wqcfg};
use super::{DsaVdev, VECTOR_COMPLETION, VECTOR_MISC};
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// Operand bits of the commands on queues: which 16 of them the bitmap is about.
const BITMAP_GROUP_MASK: u32 = 0xf_0000;
const BITMAP_MASK: u32 = 0xffff;
/// The guest's only queue in such a bitmap.
const OWN_QUEUE: u32 = 1;
/// Operand of the commands on interrupt handles: index of the entry.
const HANDLE_INDEX_MASK: u32 = 0xffff;

/// Error code, or result field.
type Outcome = Result<u16, u8>;

impl<R: Registers, C: ConfigSpace> DsaVdev<R, C> {
    pub(super) fn write_register(
        &mut self,
        offset: usize,
        mask: u32,
        value: u32,
        raise: &mut dyn FnMut(u16),
    ) {
        if offset != CMD {
            self.shadow.write(offset, mask, value);
            return;
        }
        // CMD takes whole 32-bit writes only.
        if mask != u32::MAX {
            return;
        }
        self.notice_halt(raise);
        self.commands += 1;
        self.shadow.command_status = match self.command(value) {
            Ok(result) => u32::from(result) << cmd::RESULT_SHIFT,
            Err(code) => u32::from(code),
        };
        if value & cmd::REQUEST_INTERRUPT != 0 {
            self.shadow.add_cause(intcause::CMD);
            raise(VECTOR_MISC);
        }
    }

    fn command(&mut self, value: u32) -> Outcome {
        let operand = value & cmd::OPERAND_MASK;
        let code = value >> cmd::CODE_SHIFT & cmd::CODE_MASK;
        if value & cmd::RESERVED != 0 {
            return Err(error::RESERVED_BIT);
        }
        if self.shadow.is_halted() && code != code::RESET_DEVICE {
            return Err(error::HALTED);
        }
        match code {
            code::ENABLE_DEVICE..=code::RESET_DEVICE if operand != 0 => Err(error::RESERVED_BIT),
            code::ENABLE_DEVICE => self.enable_device(),
            code::DISABLE_DEVICE => self.disable_device(),
            code::RESET_DEVICE => self.reset_device(),
            code::ENABLE_WQ => self.enable_queue(operand),
            code::DISABLE_WQ => self.disable_queue(operand),
            code::DRAIN_WQ | code::ABORT_WQ => {
                if !own_queue(operand)? {
                    return Ok(0);
                }
                if !self.shadow.queue_is_enabled() {
                    return Err(error::WQ_NOT_ENABLED);
                }
                self.settle(code == code::ABORT_WQ)
            }
            code::RESET_WQ => self.reset_queue(operand),
            // Every descriptor in flight is the queue's: the guest has no PASIDs of its own to tell them by.
            code::DRAIN_ALL | code::DRAIN_PASID => self.settle(false),
            code::ABORT_ALL | code::ABORT_PASID => self.settle(true),
            code::REQUEST_HANDLE => self.request_handle(operand),
            code::RELEASE_HANDLE => self.release_handle(operand),
            _ => Err(error::UNSUPPORTED),
        }
    }

    fn enable_device(&mut self) -> Outcome {
        if !self.shadow.is_disabled() {
            return Err(error::DEVICE_NOT_DISABLED);
        }
        if !self.bus_master {
            return Err(error::BUS_MASTER_OFF);
        }
        let size = self.shadow.configured_size();
        if size > u32::from(self.shadow.size()) {
            return Err(error::TOTAL_SIZE);
        }
        let (has_queue, has_engine) = self.shadow.group_members();
        if has_queue != (size > 0) {
            return Err(error::WQ_GROUP);
        }
        if has_queue != has_engine {
            return Err(error::GROUP_INCOMPLETE);
        }
        if !self.shadow.read_buffers_fit() {
            return Err(error::READ_BUFFERS);
        }
        self.shadow.general_status = gensts::ENABLED;
        Ok(0)
    }

    fn disable_device(&mut self) -> Outcome {
        if !self.shadow.is_enabled() {
            return Err(error::DISABLE_NOT_ENABLED);
        }
        self.finish_queue()?;
        self.shadow.general_status = gensts::DISABLED;
        Ok(0)
    }

    fn reset_device(&mut self) -> Outcome {
        self.stop_or_report()?;
        self.shadow.device_reset();
        Ok(0)
    }

    pub(super) fn enable_queue(&mut self, operand: u32) -> Outcome {
        if operand != 0 {
            return Err(error::BAD_WQ);
        }
        if !self.shadow.is_enabled() {
            return Err(error::DEVICE_NOT_ENABLED);
        }
        if self.shadow.queue_is_enabled() {
            return Err(error::WQ_NOT_DISABLED);
        }
        self.check_queue()?;
        let limits = self.shadow.configured_limits();
        match self.lease.enable(limits) {
            Some(Ok(())) => {
                self.running = true;
                self.shadow.set_queue_enabled(true);
                Ok(0)
            }
            Some(Err(failure)) => {
                // It may be enabled in the end, or not.
                self.running = matches!(failure, CommandFailure::Unfinished(..));
                Err(self.report(failure))
            }
            None => {
                let queue = self.lease.queue().index;
                self.tell(format_args!(
                    "WQ {queue} enabled by its guest before a PASID was attached"
                ));
                Err(error::HARDWARE)
            }
        }
    }

    /// The rules of Enable WQ for a queue as the guest configured it.
    fn check_queue(&self) -> Result<(), u8> {
        let mode = self.shadow.mode();
        let limits = self.shadow.configured_limits();
        let ceiling = self.shadow.ceiling();
        if self.shadow.configured_size() == 0 {
            Err(error::WQ_SIZE_ZERO)
        } else if mode & wqcfg::MODE_DEDICATED == 0 {
            Err(error::WQ_MODE)
        } else if mode & wqcfg::BLOCK_ON_FAULT != 0 {
            Err(error::WQ_BLOCK_ON_FAULT)
        } else if mode & wqcfg::PASID_EN != 0 {
            Err(error::WQ_PASID_EN)
        } else if !(1..=ceiling.max_batch_log2).contains(&limits.max_batch_log2) {
            Err(error::WQ_MAX_BATCH)
        } else if limits.max_transfer_log2 > ceiling.max_transfer_log2 {
            Err(error::WQ_MAX_TRANSFER)
        } else {
            Ok(())
        }
    }

    fn disable_queue(&mut self, operand: u32) -> Outcome {
        if !own_queue(operand)? {
            return Ok(0);
        }
        if !self.shadow.queue_is_enabled() {
            return Err(error::WQ_NOT_ENABLED);
        }
        self.finish_queue()
    }

    /// Completes queued work, then disables the queue.
    fn finish_queue(&mut self) -> Outcome {
        if self.running {
            self.lease.disable().map_err(|failure| self.report(failure))?;
            self.running = false;
        }
        self.shadow.set_queue_enabled(false);
        Ok(0)
    }

    fn reset_queue(&mut self, operand: u32) -> Outcome {
        if own_queue(operand)? {
            self.stop_or_report()?;
            self.shadow.work_queue_reset();
        }
        Ok(0)
    }

    /// Waits until nothing is in flight, with or without completing what is queued.
    fn settle(&mut self, abort: bool) -> Outcome {
        if self.running {
            let settled = if abort {
                self.lease.abort()
            } else {
                self.lease.drain()
            };
            settled.map_err(|failure| self.report(failure))?;
        }
        Ok(0)
    }

    fn request_handle(&self, operand: u32) -> Outcome {
        // Also refused: the bit that asks for an IMS handle. The device's own vector 0 is not the guest's.
        if operand != u32::from(VECTOR_COMPLETION) {
            return Err(error::HANDLE_INDEX);
        }
        Ok(self.lease.queue().handle())
    }

    fn release_handle(&self, operand: u32) -> Outcome {
        // The specification wants the index, Linux gives the handle.
        let named = operand & HANDLE_INDEX_MASK;
        let known = [
            u32::from(VECTOR_COMPLETION),
            u32::from(self.lease.queue().handle()),
        ];
        if named != operand || !known.contains(&named) {
            return Err(error::HANDLE_INDEX);
        }
        Ok(0)
    }

    fn stop_or_report(&mut self) -> Outcome {
        self.stop().map_err(|why| {
            self.tell(format_args!("{why}"));
            error::HARDWARE
        })?;
        Ok(0)
    }

    /// The guest configured its queue right, so a refusal of the device is not its doing.
    fn report(&mut self, failure: CommandFailure) -> u8 {
        self.tell(format_args!("{failure}"));
        match failure {
            CommandFailure::Refused(_, error::HALTED) => error::HALTED,
            _ => error::HARDWARE,
        }
    }
}

/// Whether a bitmap operand names the guest's queue; refused where it names another.
fn own_queue(operand: u32) -> Result<bool, u8> {
    if operand & BITMAP_GROUP_MASK != 0 || operand & BITMAP_MASK & !OWN_QUEUE != 0 {
        return Err(error::BAD_WQ);
    }
    Ok(operand & OWN_QUEUE != 0)
}
