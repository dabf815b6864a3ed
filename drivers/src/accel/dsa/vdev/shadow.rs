// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's registers: a shadow that nothing but the guest's own commands looks at.
//!
//! Registers are kept and served as 32-bit words; accesses of any size and alignment are taken apart into
//! these, so that no access of a guest is special.

use super::super::capabilities::OPCAP_WORDS;
use super::super::commands::code;
use super::super::device::Limits;
use super::super::registers::{
    CMDCAP, CMDSTS, ENGCAP, GENCAP, GENCFG, GENCTRL, GENSTS, GRPCAP, GenCap, GrpCap, INTCAUSE, OFFSETS,
    OFFSETS_UNIT, OPCAP, SWERR, SWERR_WORDS, VERSION, WQCAP, WqCap, gencfg, genctrl, gensts, grpcfg,
    intcause, msixperm, swerr, wqcfg,
};
use super::VECTORS;

/// DSA 1.0.
const VERSION_1_0: u32 = 0x100;
/// Where the guest's tables are, in bytes.
const MSIXPERM: usize = 0x400;
const GRPCFG: usize = 0x600;
const WQCFG: usize = 0x800;
/// Without OPCFG.
const WQCFG_SIZE: usize = 0x20;
const WQCFG_WORDS: usize = WQCFG_SIZE / 4;
const GRPCFG_WORDS: usize = grpcfg::STRIDE / 4;
/// GRPFLAGS bits a guest may set: traffic classes, read buffer use limit, reserved and allowed.
const GRPFLAGS_WRITABLE: u32 = 0x0ff0_ffbf;
const WQ_MODE_WRITABLE: u32 = wqcfg::MODE_DEDICATED
    | wqcfg::BLOCK_ON_FAULT
    | wqcfg::ATS_DISABLE
    | wqcfg::PRIORITY_MASK << wqcfg::PRIORITY_SHIFT
    | 0xf_ffff << wqcfg::PASID_SHIFT
    | wqcfg::PASID_EN
    | wqcfg::PRIV;
const WQ_LIMITS_WRITABLE: u32 = wqcfg::MAX_TRANSFER_MASK | wqcfg::MAX_BATCH_MASK << wqcfg::MAX_BATCH_SHIFT;

/// One access, checked to lie in the BAR.
#[derive(Clone, Copy)]
pub(super) struct Access {
    offset: usize,
    size: usize,
}

impl Access {
    /// `None` where it is no access of 1 to 8 bytes in a BAR of `len` bytes.
    pub fn new(offset: u64, size: u8, len: u64) -> Option<Self> {
        let end = offset.checked_add(u64::from(size))?;
        if !(1..=8).contains(&size) || end > len {
            return None;
        }
        Some(Self { offset: usize::try_from(offset).ok()?, size: usize::from(size) })
    }

    /// The 32-bit registers it touches, each with the mask of the bits written and their value.
    pub fn words(self, value: u64) -> impl Iterator<Item = (usize, u32, u32)> {
        let shift = (self.offset % 4) * 8;
        let ones = u128::MAX >> (128 - self.size * 8);
        let value = (u128::from(value) & ones) << shift;
        let mask = ones << shift;
        let first = self.offset & !3;
        (0..3usize)
            .map(move |word| {
                let down = word * 32;
                (first + word * 4, (mask >> down) as u32, (value >> down) as u32)
            })
            .filter(|&(_, mask, _)| mask != 0)
    }
}

/// The guest's registers.
#[derive(Clone)]
pub(super) struct Shadow {
    size: u16,
    limits: Limits,
    general_capabilities: u64,
    group_capabilities: u64,
    operations: [u64; OPCAP_WORDS],
    pub general_config: u32,
    general_control: u32,
    pub general_status: u32,
    interrupt_cause: u32,
    pub command_status: u32,
    software_error: [u64; SWERR_WORDS],
    msix_permissions: [u32; VECTORS as usize],
    group: [u32; GRPCFG_WORDS],
    work_queue: [u32; WQCFG_WORDS],
    read_buffers: u8,
    /// While bus mastering is off under a device that was enabled: whether its queue was.
    suspended: Option<bool>,
}

fn merge(register: &mut u32, mask: u32, value: u32) {
    *register = *register & !mask | value & mask;
}

fn half(word: u64, offset: usize) -> u32 {
    (word >> (offset % 8 * 8)) as u32
}

impl Shadow {
    pub fn new(
        size: u16,
        limits: Limits,
        operations: [u64; OPCAP_WORDS],
        host: GenCap,
        read_buffers: u8,
    ) -> Self {
        // What can be configured without any effect is offered, because programs set all they know, to 0 too, and
        // give up when the kernel says that the device cannot: accel-config does for read buffers, block on fault and
        // ATS. Block on fault is refused when a queue is enabled, as by a device whose page requests are off.
        let general = GenCap::CONFIG_EN
            | GenCap::BLOCK_ON_FAULT
            | GenCap::COMMAND_CAPABILITIES
            | host.0 & GenCap::OVERLAPPING_COPY
            | u64::from(limits.max_transfer_log2) << GenCap::MAX_TRANSFER_SHIFT
            | u64::from(limits.max_batch_log2) << GenCap::MAX_BATCH_SHIFT;
        let mut shadow = Self {
            size,
            limits,
            general_capabilities: general,
            group_capabilities: 1
                | u64::from(read_buffers) << GrpCap::READ_BUFFERS_SHIFT
                | GrpCap::READ_BUFFER_CONTROL
                | GrpCap::READ_BUFFER_LIMIT,
            operations,
            general_config: 0,
            general_control: 0,
            general_status: gensts::DISABLED,
            interrupt_cause: 0,
            command_status: 0,
            software_error: [0; SWERR_WORDS],
            msix_permissions: [0; VECTORS as usize],
            group: [0; GRPCFG_WORDS],
            work_queue: [0; WQCFG_WORDS],
            read_buffers,
            suspended: None,
        };
        shadow.device_reset();
        shadow
    }

    /// As after power-on.
    pub fn function_reset(&mut self) {
        self.device_reset();
        self.command_status = 0;
        self.software_error = [0; SWERR_WORDS];
    }

    /// As after the Reset Device command, which keeps CMDSTS and SWERR.
    pub fn device_reset(&mut self) {
        self.general_config = u32::from(self.read_buffers);
        self.general_control = 0;
        self.general_status = gensts::DISABLED;
        self.interrupt_cause = 0;
        self.msix_permissions = [0; VECTORS as usize];
        self.group = [0; GRPCFG_WORDS];
        self.group[grpcfg::FLAGS / 4] = u32::from(self.read_buffers) << grpcfg::ALLOWED_SHIFT;
        self.work_queue = [0; WQCFG_WORDS];
        self.suspended = None;
    }

    /// As after the Reset WQ command, which keeps the size.
    pub fn work_queue_reset(&mut self) {
        let size = self.work_queue[0];
        self.work_queue = [0; WQCFG_WORDS];
        self.work_queue[0] = size;
    }

    pub fn is_disabled(&self) -> bool {
        self.general_status & gensts::STATE_MASK == gensts::DISABLED
    }

    pub fn is_enabled(&self) -> bool {
        self.general_status & gensts::STATE_MASK == gensts::ENABLED
    }

    pub fn is_halted(&self) -> bool {
        self.general_status & gensts::STATE_MASK == gensts::HALT
    }

    pub fn state(&self) -> &'static str {
        gensts::state(self.general_status)
    }

    pub fn queue_is_enabled(&self) -> bool {
        self.work_queue[wqcfg::STATE / 4] >> wqcfg::STATE_SHIFT != 0
    }

    pub fn set_queue_enabled(&mut self, enabled: bool) {
        self.work_queue[wqcfg::STATE / 4] = u32::from(enabled) << wqcfg::STATE_SHIFT;
    }

    /// Operations that the guest may use, as in OPCAP.
    pub fn operations(&self) -> &[u64; OPCAP_WORDS] {
        &self.operations
    }

    /// Entries of the allotment.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The most the guest may ask for.
    pub fn ceiling(&self) -> Limits {
        self.limits
    }

    /// Entries the guest gave its queue.
    pub fn configured_size(&self) -> u32 {
        self.work_queue[wqcfg::SIZE / 4]
    }

    /// Mode word of the guest's queue.
    pub fn mode(&self) -> u32 {
        self.work_queue[wqcfg::MODE / 4]
    }

    /// Limits the guest gave its queue.
    pub fn configured_limits(&self) -> Limits {
        let limits = self.work_queue[wqcfg::LIMITS / 4];
        Limits {
            max_transfer_log2: (limits & wqcfg::MAX_TRANSFER_MASK) as u8,
            max_batch_log2: (limits >> wqcfg::MAX_BATCH_SHIFT & wqcfg::MAX_BATCH_MASK) as u8,
        }
    }

    /// Whether the group has the queue, and whether it has the engine.
    pub fn group_members(&self) -> (bool, bool) {
        let word = |at: usize| self.group[at / 4] & 1 != 0;
        (word(grpcfg::WQS), word(grpcfg::ENGINES))
    }

    /// Whether the device has the read buffers that the guest shares out.
    pub fn read_buffers_fit(&self) -> bool {
        let field = |shift: u32| self.group[grpcfg::FLAGS / 4] >> shift & 0xff;
        let (reserved, allowed) = (field(grpcfg::RESERVED_SHIFT), field(grpcfg::ALLOWED_SHIFT));
        let total = u32::from(self.read_buffers);
        let (_, has_engine) = self.group_members();
        let least = u32::from(has_engine) * grpcfg::ALLOWED_PER_ENGINE.min(total);
        self.general_config & gencfg::GLOBAL_READ_BUFFER_LIMIT_MASK <= total
            && (reserved.max(least)..=total).contains(&allowed)
    }

    /// Notes a cause of the misc vector.
    pub fn add_cause(&mut self, cause: u32) {
        self.interrupt_cause |= cause;
    }

    /// Whether halts interrupt.
    pub fn halt_interrupts(&self) -> bool {
        self.general_control & genctrl::HALT_INT_EN != 0
    }

    /// Whether software errors interrupt.
    pub fn error_interrupts(&self) -> bool {
        self.general_control & genctrl::SWERR_INT_EN != 0
    }

    /// Notes an error; the first one stays until the guest has acknowledged it.
    pub fn record_error(&mut self, words: [u64; SWERR_WORDS]) {
        if self.software_error[0] & swerr::VALID == 0 {
            let lost = self.software_error[0] & swerr::OVERFLOW;
            self.software_error = words;
            self.software_error[0] |= lost;
        } else {
            self.software_error[0] |= swerr::OVERFLOW;
        }
        self.interrupt_cause |= intcause::SWERR;
    }

    /// Errors may have been lost: shown in SWERR, beside whatever record is there. No interrupt, or a neighbour that
    /// floods the device with errors could interrupt this guest at will.
    pub fn note_lost_errors(&mut self) {
        self.software_error[0] |= swerr::OVERFLOW;
    }

    /// The device halts; a software reset ends that.
    pub fn halt(&mut self) {
        self.general_status = gensts::HALT | gensts::RESET_SOFTWARE << gensts::RESET_TYPE_SHIFT;
        self.set_queue_enabled(false);
        self.interrupt_cause |= intcause::HALT;
        self.suspended = None;
    }

    /// Bus mastering went away under an enabled device: halted, with an error that says so.
    pub fn suspend(&mut self) {
        let queue = self.queue_is_enabled();
        self.halt();
        let record = swerr::VALID | swerr::CODE_PCI_CONFIG << swerr::CODE_SHIFT;
        self.record_error([record, 0, 0, 0]);
        self.suspended = Some(queue);
    }

    /// Whether it is halted only until bus mastering is back.
    pub fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// Bus mastering is back: ends the halt of [`Shadow::suspend`]. Says whether the queue was enabled; it is not yet.
    pub fn resume(&mut self) -> bool {
        let Some(queue) = self.suspended.take() else {
            return false;
        };
        self.general_status = gensts::ENABLED;
        self.interrupt_cause &= !intcause::HALT;
        queue
    }

    /// The device halts, and nothing the guest does ends that.
    pub fn halt_for_good(&mut self) {
        self.general_status = gensts::HALT | gensts::RESET_COLD << gensts::RESET_TYPE_SHIFT;
        self.set_queue_enabled(false);
        self.suspended = None;
    }

    pub fn read(&self, access: Access) -> u64 {
        // What drivers do.
        match (access.offset % 4, access.size) {
            (0, 4) => return self.word(access.offset).into(),
            (0, 8) => {
                let half = |offset| u64::from(self.word(offset));
                return half(access.offset) | half(access.offset + 4) << 32;
            }
            _ => {}
        }
        let mut value = 0u128;
        let first = access.offset & !3;
        for (offset, _, _) in access.words(0) {
            value |= u128::from(self.word(offset)) << ((offset - first) * 8);
        }
        let ones = u128::MAX >> (128 - access.size * 8);
        (value >> (access.offset % 4 * 8) & ones) as u64
    }

    fn word(&self, offset: usize) -> u32 {
        const fn units(offset: usize) -> u64 {
            (offset / OFFSETS_UNIT) as u64
        }
        const TABLES: u64 = units(GRPCFG) | units(WQCFG) << 16 | units(MSIXPERM) << 32;
        // All of 1.0: bits 1 to 14.
        const COMMANDS: u32 = (2 << code::RELEASE_HANDLE) - 2;
        let work_queues =
            WqCap::DEDICATED | WqCap::ATS_CONTROL | 1 << WqCap::QUEUES_SHIFT | u64::from(self.size);
        match offset & !7 {
            VERSION => half(VERSION_1_0.into(), offset),
            GENCAP => half(self.general_capabilities, offset),
            WQCAP => half(work_queues, offset),
            GRPCAP => half(self.group_capabilities, offset),
            ENGCAP => half(1, offset),
            at @ OPCAP..OFFSETS => half(self.operations[(at - OPCAP) / 8], offset),
            OFFSETS => half(TABLES, offset),
            GENCFG => half(self.general_config.into(), offset),
            GENCTRL => half(self.general_control.into(), offset),
            GENSTS => half(self.general_status.into(), offset),
            INTCAUSE => half(self.interrupt_cause.into(), offset),
            CMDSTS => half(self.command_status.into(), offset),
            CMDCAP => half(COMMANDS.into(), offset),
            at if (SWERR..SWERR + SWERR_WORDS * 8).contains(&at) => {
                half(self.software_error[(at - SWERR) / 8], offset)
            }
            _ => self.table_word(offset),
        }
    }

    fn table_word(&self, offset: usize) -> u32 {
        if let Some(vector) = permission_index(offset) {
            return self.msix_permissions[vector];
        }
        let at = |base: usize| offset.checked_sub(base).map(|bytes| bytes / 4);
        if let Some(&word) = at(WQCFG).and_then(|word| self.work_queue.get(word)) {
            return word;
        }
        at(GRPCFG).and_then(|word| self.group.get(word)).copied().unwrap_or(0)
    }

    /// Writes a register that has no effect outside the shadow. CMD is not one of them.
    pub fn write(&mut self, offset: usize, mask: u32, value: u32) {
        let disabled = self.is_disabled();
        match offset {
            GENCFG if disabled => {
                let writable = gencfg::USER_INT_EN | gencfg::GLOBAL_READ_BUFFER_LIMIT_MASK;
                merge(&mut self.general_config, mask & writable, value);
            }
            GENCTRL => {
                let writable = genctrl::SWERR_INT_EN | genctrl::HALT_INT_EN;
                merge(&mut self.general_control, mask & writable, value);
            }
            INTCAUSE => self.interrupt_cause &= !(value & mask),
            SWERR => {
                let clear = u64::from(value & mask) & (swerr::VALID | swerr::OVERFLOW);
                self.software_error[0] &= !clear;
            }
            _ => self.write_table(offset, mask, value, disabled),
        }
    }

    fn write_table(&mut self, offset: usize, mask: u32, value: u32, disabled: bool) {
        if let Some(vector) = permission_index(offset) {
            merge(&mut self.msix_permissions[vector], mask & msixperm::WRITABLE, value);
        } else if (GRPCFG..GRPCFG + grpcfg::STRIDE).contains(&offset) && disabled {
            let writable = match offset - GRPCFG {
                grpcfg::WQS | grpcfg::ENGINES => 1,
                grpcfg::FLAGS => GRPFLAGS_WRITABLE,
                _ => 0,
            };
            merge(&mut self.group[(offset - GRPCFG) / 4], mask & writable, value);
        } else if (WQCFG..WQCFG + WQCFG_SIZE).contains(&offset) {
            let stopped = !self.queue_is_enabled();
            let writable = match offset - WQCFG {
                wqcfg::SIZE if disabled => wqcfg::SIZE_MASK,
                wqcfg::THRESHOLD => wqcfg::SIZE_MASK,
                wqcfg::MODE if stopped => WQ_MODE_WRITABLE,
                wqcfg::LIMITS if stopped => WQ_LIMITS_WRITABLE,
                _ => 0,
            };
            merge(&mut self.work_queue[(offset - WQCFG) / 4], mask & writable, value);
        }
    }
}

/// Which entry's permission register this is.
fn permission_index(offset: usize) -> Option<usize> {
    let bytes = offset.checked_sub(MSIXPERM)?;
    let index = bytes / msixperm::STRIDE;
    (index < usize::from(VECTORS) && bytes % msixperm::STRIDE == 0).then_some(index)
}
