// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands of the guest: each acts on its own queue, whatever it names.
//!
//! **Principle.** Whether the queue runs is what the device says of it, never what a command should have brought
//! about. A command of the guest becomes steps on the queue, each of which stands in line for the device
//! (`slot`). What the device ends at once has ended when the write to CMD returns. For the rest the guest sees
//! CMDSTS.Active, and runs: the steps go on when it reads CMDSTS, and when the hypervisor looks.
//!
//! A command that the device does not finish in time ends with the hardware-error code. One whose turn does not
//! come has not failed: it waits much longer.

use super::super::commands::{CommandFailure, code, error};
use super::super::lease::{Lease, VECTOR_COMPLETION};
use super::super::registers::{CMD, cmd, gensts, intcause, swerr, wqcfg};
use super::super::slot::Progress;
use super::{DsaVdev, VECTOR_MISC};

/// Operand bits of the commands on queues: which 16 of them the bitmap is about.
const BITMAP_GROUP_MASK: u32 = 0xf_0000;
const BITMAP_MASK: u32 = 0xffff;
/// The guest's only queue in such a bitmap.
const OWN_QUEUE: u32 = 1;
/// Operand of the commands on interrupt handles: index of the entry.
const HANDLE_INDEX_MASK: u32 = 0xffff;

/// How often the command deadline a command waits for its turn.
const TURNS: u64 = 10;
/// How long the processor of the guest waits for the end of a command before the guest goes on without, in
/// nanoseconds: what a device needs that has nothing to finish first.
const BRIEFLY_NS: u64 = 50_000;

/// Error code, or result field.
type Outcome = Result<u16, u8>;

/// What a command of the guest asks of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The queue is to be enabled.
    Enable,
    /// To be disabled, what is queued completed first.
    Disable,
    /// To be disabled, what is queued dropped.
    Reset,
}

/// How a command of the guest begins.
enum Begun {
    /// It has ended already.
    Done(u16),
    /// What the device has to do.
    Steps(&'static [Step]),
}

/// Work on the queue that has not ended.
pub(super) struct Pending {
    /// The guest's command as written to CMD; `None` where the queue is enabled again because bus mastering is back.
    value: Option<u32>,
    /// What is left; the device may be at the first.
    steps: &'static [Step],
    /// Whether the command in line is that first one, not an earlier one.
    given: bool,
    /// Whether it makes room for that first one: a queue that is to be enabled is first disabled where it is not.
    clearing: bool,
    since_ns: u64,
}

impl<L: Lease> DsaVdev<L> {
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
        self.proceed();
        self.commands += 1;
        if self.pending.as_ref().is_some_and(|pending| pending.value.is_some()) {
            let record = swerr::VALID | swerr::CODE_COMMAND_BUSY << swerr::CODE_SHIFT;
            self.shadow.record_error([record, 0, 0, 0]);
            if self.shadow.error_interrupts() {
                raise(VECTOR_MISC);
            }
            return;
        }
        match self.command(value) {
            Ok(Begun::Done(result)) => self.answer(value, Ok(result)),
            Err(code) => self.answer(value, Err(code)),
            Ok(Begun::Steps(steps)) => {
                self.shadow.command_status = cmd::ACTIVE;
                self.work(Some(value), steps);
            }
        }
        self.raise_completion(raise);
    }

    /// Enables the queue again, which was enabled when bus mastering went. The guest sees it enabled; a command that it
    /// gives meanwhile takes the place of this. Where the guest has configured the queue so that it cannot be, or the
    /// device refuses, its device halts.
    pub(super) fn enable_again(&mut self) {
        if self.check_queue().is_err() {
            self.shadow.halt();
            return;
        }
        self.shadow.set_queue_enabled(true);
        self.work(None, &[Step::Enable]);
    }

    /// Begins work on the queue, in place of what is under way.
    fn work(&mut self, value: Option<u32>, steps: &'static [Step]) {
        if self.pending.is_some() {
            self.lease.withdraw();
        }
        self.pending = Some(Pending { value, steps, given: false, clearing: false, since_ns: self.now_ns() });
        self.proceed_briefly();
    }

    fn now_ns(&self) -> u64 {
        self.lease.device().host.now_ns()
    }

    fn command(&mut self, value: u32) -> Result<Begun, u8> {
        let operand = value & cmd::OPERAND_MASK;
        let code = value >> cmd::CODE_SHIFT & cmd::CODE_MASK;
        if value & cmd::RESERVED != 0 {
            return Err(error::RESERVED_BIT);
        }
        if self.shadow.is_halted() && code != code::RESET_DEVICE {
            return Err(error::HALTED);
        }
        let done = |outcome: Outcome| outcome.map(Begun::Done);
        match code {
            code::ENABLE_DEVICE..=code::RESET_DEVICE if operand != 0 => Err(error::RESERVED_BIT),
            code::ENABLE_DEVICE => done(self.enable_device()),
            code::DISABLE_DEVICE if !self.shadow.is_enabled() => Err(error::DISABLE_NOT_ENABLED),
            code::DISABLE_DEVICE => Ok(Begun::Steps(&[Step::Disable])),
            code::RESET_DEVICE => Ok(Begun::Steps(&[Step::Reset])),
            code::ENABLE_WQ => self.enable_queue(operand),
            code::DISABLE_WQ..=code::RESET_WQ if !own_queue(operand)? => Ok(Begun::Done(0)),
            code::DISABLE_WQ..=code::ABORT_WQ if !self.shadow.queue_is_enabled() => {
                Err(error::WQ_NOT_ENABLED)
            }
            code::DISABLE_WQ => Ok(Begun::Steps(&[Step::Disable])),
            code::RESET_WQ => Ok(Begun::Steps(&[Step::Reset])),
            // Every descriptor in flight is the queue's: the guest has no PASIDs of its own to tell them by.
            code::DRAIN_WQ
            | code::ABORT_WQ
            | code::DRAIN_ALL..=code::ABORT_ALL
            | code::DRAIN_PASID..=code::ABORT_PASID => Ok(self.settle(code)),
            code::REQUEST_HANDLE => done(self.request_handle(operand)),
            code::RELEASE_HANDLE => done(self.release_handle(operand)),
            _ => Err(error::UNSUPPORTED),
        }
    }

    /// Waits until nothing is in flight, with or without completing what is queued.
    fn settle(&self, code: u32) -> Begun {
        if !self.shadow.queue_is_enabled() {
            return Begun::Done(0);
        }
        match code {
            code::ABORT_WQ | code::ABORT_ALL | code::ABORT_PASID => {
                Begun::Steps(&[Step::Reset, Step::Enable])
            }
            _ => Begun::Steps(&[Step::Disable, Step::Enable]),
        }
    }

    /// Goes on with the guest's command for a moment.
    fn proceed_briefly(&mut self) {
        let until = self.now_ns().saturating_add(BRIEFLY_NS);
        loop {
            // Time first: the device had all of it, however long this processor was away.
            let late = self.now_ns() > until;
            self.proceed();
            if self.pending.is_none() || late {
                return;
            }
            core::hint::spin_loop();
        }
    }

    /// Goes on with the guest's command as far as the device is. Waits for nothing.
    pub(super) fn proceed(&mut self) {
        while let Some(pending) = &mut self.pending {
            let waited = self.lease.device().host.now_ns();
            let patience = self.lease.device().options.command_deadline_ns;
            match self.lease.progress() {
                // Others come before it, or the guest keeps its queue full.
                Progress::Waiting(command, since) => {
                    let waited = waited.saturating_sub(since);
                    if waited <= patience.saturating_mul(TURNS) {
                        return;
                    }
                    self.lease.withdraw();
                    self.fail(CommandFailure::Busy(command, waited));
                }
                Progress::Active(command, since) => {
                    let waited = waited.saturating_sub(since.max(pending.since_ns));
                    if waited <= patience {
                        return;
                    }
                    self.fail(CommandFailure::Unfinished(command, waited));
                }
                Progress::Ended(_, end) => {
                    let given = core::mem::take(&mut pending.given);
                    let clearing = core::mem::take(&mut pending.clearing);
                    match end {
                        Ok(()) if given => pending.steps = pending.steps.get(1..).unwrap_or_default(),
                        Err(failure) if given || clearing => self.fail(failure),
                        _ => {}
                    }
                }
                Progress::Idle => match pending.steps.first() {
                    None => self.end(Ok(0)),
                    Some(step) => {
                        let step = *step;
                        self.begin(step);
                    }
                },
                // The vdev hears of the reset as a halt.
                Progress::Lost => return,
            }
        }
    }

    /// Gives the device the first step of the guest's command, unless the queue is there already.
    fn begin(&mut self, step: Step) {
        let Some(pending) = &mut self.pending else { return };
        // Not known: the device does not answer, and so has not failed either.
        let enabled = self.lease.is_enabled().unwrap_or(step != Step::Enable);
        pending.given = true;
        match (step, enabled) {
            (Step::Disable | Step::Reset, false) => {
                pending.given = false;
                pending.steps = pending.steps.get(1..).unwrap_or_default();
            }
            (Step::Disable, true) => self.lease.disable(),
            (Step::Reset, true) => self.lease.reset(),
            // An earlier Enable ended late: what it enabled is not what the guest asks for now.
            (Step::Enable, true) => {
                pending.given = false;
                pending.clearing = true;
                self.lease.reset();
            }
            (Step::Enable, false) => {
                let limits = self.shadow.configured_limits();
                let entries = self.shadow.configured_size() as u16;
                if !self.lease.enable(limits, entries) {
                    let name = self.lease.name();
                    self.tell(format_args!("{name} enabled by its guest before a PASID was attached"));
                    self.end(Err(error::HARDWARE));
                }
            }
        }
    }

    /// The guest's command fails for a reason that is not its own.
    fn fail(&mut self, failure: CommandFailure) {
        let code = self.report(failure);
        self.end(Err(code));
    }

    /// What was under way has ended: what the guest sees of that, and of its queue.
    fn end(&mut self, outcome: Outcome) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        // What is not known stays as it was shown.
        if let Some(enabled) = self.lease.is_enabled() {
            self.shadow.set_queue_enabled(enabled && !self.shadow.is_halted());
        }
        let Some(value) = pending.value else {
            if outcome.is_err() {
                self.shadow.halt();
            }
            return;
        };
        match value >> cmd::CODE_SHIFT & cmd::CODE_MASK {
            _ if outcome.is_err() => {}
            code::DISABLE_DEVICE => self.shadow.general_status = gensts::DISABLED,
            code::RESET_DEVICE => self.shadow.device_reset(),
            code::RESET_WQ => self.shadow.work_queue_reset(),
            _ => {}
        }
        self.answer(value, outcome);
    }

    /// Shows the guest how its command ended.
    fn answer(&mut self, value: u32, outcome: Outcome) {
        self.shadow.command_status = match outcome {
            Ok(result) => u32::from(result) << cmd::RESULT_SHIFT,
            Err(code) => u32::from(code),
        };
        self.completion_due |= value & cmd::REQUEST_INTERRUPT != 0;
    }

    /// The interrupt that the guest asked for with a command that has ended.
    pub(super) fn raise_completion(&mut self, raise: &mut dyn FnMut(u16)) {
        if core::mem::take(&mut self.completion_due) {
            self.shadow.add_cause(intcause::CMD);
            raise(VECTOR_MISC);
        }
        self.note_attention();
    }

    /// A halt or a reset of the function ends the guest's command, whatever the device makes of it.
    pub(super) fn abandon(&mut self, outcome: Outcome) {
        let Some(pending) = &self.pending else { return };
        self.lease.withdraw();
        if pending.value.is_some() {
            self.end(outcome);
        }
        self.pending = None;
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

    fn enable_queue(&self, operand: u32) -> Result<Begun, u8> {
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
        Ok(Begun::Steps(&[Step::Enable]))
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

    fn request_handle(&self, operand: u32) -> Outcome {
        // Also refused: the bit that asks for an IMS handle. The device's own vector 0 is not the guest's.
        if operand != u32::from(VECTOR_COMPLETION) {
            return Err(error::HANDLE_INDEX);
        }
        Ok(self.lease.handle())
    }

    fn release_handle(&self, operand: u32) -> Outcome {
        // The specification wants the index, Linux gives the handle.
        let named = operand & HANDLE_INDEX_MASK;
        let known = [u32::from(VECTOR_COMPLETION), u32::from(self.lease.handle())];
        if named != operand || !known.contains(&named) {
            return Err(error::HANDLE_INDEX);
        }
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
