// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bring-up of the device, and its recovery by a reset.
//!
//! **Order.** Memory decoding; what firmware left is reset; PASID on (behind an IOMMU), ATS and page requests off (a change
//! of these while the device is enabled halts it); groups, engines and queue sizes (writable only while it
//! is disabled); user-mode interrupts allowed; enabled. Recovery is a function-level reset and the same
//! again, and gives present owners their interrupts back.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::vdev::parent::ParentUnreached;
use spin::Mutex;

use super::access::{Closed, Gate, Unreached};
use super::capabilities::{Capabilities, OPCAP_WORDS};
use super::commands::{Command, CommandFailure, code};
use super::device::{Device, OPERATION_BATCH};
use super::pieces;
use super::queue::Queue;
use super::registers::{GENCFG, GENCTRL, GENSTS, gencfg, genctrl, gensts, grpcfg, msix_entry, portal, wqcfg};
use super::share::{Portals, ShareInterrupt, SharedQueue, Trapping};
use super::slot::Slot;
use super::survey::{self, Found, OPERATIONS_1_0};
use super::{Partition, Sending, Setup, Silicon};
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// Most shares of one device.
const MAX_SHARES: usize = 1024;

impl<R: Registers, C: ConfigSpace> Device<R, C> {
    /// Brings the device up. On refusal it is left disabled and without bus mastering.
    pub fn bring_up(setup: Setup<R, C>) -> Result<Self, Refusal> {
        let name = setup.name.clone();
        let function = setup.function.identity();
        Self::new(setup).map_err(|refusal| {
            Refusal { what: String::new(), ..refusal }.within(alloc::format!("parent {name} ({function})"))
        })
    }

    fn new(setup: Setup<R, C>) -> Result<Self, Refusal> {
        let Setup { name, function, registers, host, partition, sending, memory, options } = setup;
        let untranslated = matches!(sending, Sending::Untranslated(_));
        let Found { silicon, msix, pasid } = Found::of(&function)?;
        let bar0 = function.memory_bar(0)?;
        let bar2 = function.memory_bar(2)?;
        function.forbid_dma();
        function.enable_memory();
        let window = usize::try_from(bar0.size).unwrap_or(usize::MAX);
        Capabilities::check_window(window).map_err(survey::unfit)?;
        let capabilities = Capabilities::read(&registers, &msix).map_err(survey::unfit)?;
        survey::check(&capabilities, Some(window), &msix)?;
        let needed = portal::STRIDE * u64::from(capabilities.work_queues.queues());
        if bar2.size < needed {
            return Err(Refusal::new(
                "",
                alloc::format!("BAR2 of {:#x} bytes lacks portals for its queues", bar2.size),
                "name another device",
            ));
        }
        let mut operations = [0; OPCAP_WORDS];
        operations[0] = capabilities.operations[0] & OPERATIONS_1_0;
        if silicon == Silicon::SapphireRapids {
            operations[0] &= !OPERATION_BATCH;
        }
        if untranslated {
            operations[0] &= pieces::OPERATIONS;
        }
        let usable = usable_queues(&capabilities);
        let portals = match sending {
            Sending::Tagged(portals) => portals.filter(|_| capabilities.can_share()).map(Portals::Deferrable),
            Sending::Untranslated(portals) => portals.map(Portals::Posted),
        };
        let can_share = portals.is_some();
        let partition = Partition { shared: if can_share { partition.shared } else { 0 }, ..partition };
        let mut queues = make_queues(usable, &partition, &capabilities);
        let safe = survey::check_portals(silicon, options.allow_unsafe_portals).is_ok();
        if partition.shared > 0 && (untranslated || !safe) {
            // Nobody can have them; so all engines serve the one that is shared.
            queues.iter_mut().filter(|queue| !queue.shared).for_each(|queue| queue.size = 0);
        }
        let shared = queues.iter().find(|queue| queue.shared).zip(portals).map(|(queue, portals)| {
            Arc::new(SharedQueue::new(queue.index, queue.size, Trapping { portals, memory }))
        });
        let device = Self {
            name,
            gate: Gate::new(registers, Slot::new(capabilities.interrupt_entries())),
            function,
            host,
            silicon,
            options,
            capabilities,
            msix,
            pasid,
            untranslated,
            operations,
            portals: bar2.address,
            queues,
            shared,
            share_interrupts: Mutex::new(Vec::new()),
            free_entries: Mutex::new(Vec::new()),
            epoch: AtomicU32::new(0),
            is_down: AtomicBool::new(false),
            resets: AtomicU32::new(0),
            busy: AtomicBool::new(false),
            attended: AtomicU32::new(0),
        };
        let closed = device.close(Unreached::NoVdevYet)?;
        device.reset(&closed)?;
        device.start(&closed)?;
        device.offer_shares(&closed);
        drop(closed);
        Ok(device)
    }

    /// Configures and enables the device after a reset. On refusal it cannot do DMA.
    fn start(&self, closed: &Closed<'_, R>) -> Result<(), Refusal> {
        self.function.disable_ats_and_pri();
        if !self.untranslated {
            self.function.enable_pasid(&self.pasid);
        }
        self.mask_interrupts(closed.registers);
        self.function.enable_msix(&self.msix);
        self.configure(closed.registers);
        self.function.allow_dma()?;
        let started = self
            .execute(closed, Command::EnableDevice)
            .and_then(|_| self.request_handles(closed))
            .and_then(|()| self.request_share_handles(closed))
            .and_then(|()| self.enable_shared(closed));
        started.map_err(|failure| {
            self.function.forbid_dma();
            Refusal::new("", failure.to_string(), "try again after a cold start of the machine")
        })
    }

    /// Resets the whole device and sets it up as it was, all queues disabled. Retired queues can be used
    /// again: nothing survives a function-level reset.
    pub fn recover(&self, unreached: &ParentUnreached) -> Result<(), Refusal> {
        let closed = self.close(Unreached::Withheld(unreached))?;
        self.is_down.store(true, Ordering::Release);
        if let Some(shared) = &self.shared {
            shared.suspend();
        }
        log::warn!("parent {}: resetting the device; every vdev on it stops", self.name);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        // Whatever comes of the reset, no queue sends anything from here on.
        self.function.forbid_dma();
        let recovered = self.function.function_level_reset(&*self.host).and_then(|()| self.start(&closed));
        if recovered.is_ok() {
            self.resets.fetch_add(1, Ordering::AcqRel);
        }
        self.gate.with_slot(Slot::clear);
        self.busy.store(false, Ordering::Release);
        if let Err(refusal) = recovered {
            return Err(
                Refusal { what: String::new(), ..refusal }.within(alloc::format!("parent {}", self.name))
            );
        }
        for queue in &self.queues {
            queue.revive();
            if let Some(pasid) = queue.pasid() {
                self.write_permission(closed.registers, queue.interrupt_entry(), Some(pasid.value()));
            }
        }
        if let Some(shared) = &self.shared {
            shared.for_each(|member| {
                let pasid = member.pasid().map(Pasid::value);
                self.write_permission(closed.registers, member.interrupt.entry, pasid);
            });
            shared.resume();
        }
        let messages = self.gate.with_slot(|slot| slot.messages.clone());
        for (entry, message) in (0u16..).zip(messages) {
            if message.is_some() {
                self.write_msix_entry(closed.registers, entry, message);
            }
        }
        self.is_down.store(false, Ordering::Release);
        Ok(())
    }

    fn close<'a>(&'a self, unreached: Unreached<'a>) -> Result<Closed<'a, R>, Refusal> {
        if let Unreached::Withheld(unreached) = &unreached
            && unreached.parent() != self.name
        {
            return Err(Refusal::new(
                alloc::format!("parent {}", self.name),
                alloc::format!("it was {} that guests were kept from", unreached.parent()),
                "",
            ));
        }
        self.gate.close(unreached).ok_or_else(|| {
            Refusal::new(
                alloc::format!("parent {}", self.name),
                "it is being reset already",
                "wait for the end of that",
            )
        })
    }

    /// Stops whatever firmware may have left running.
    fn reset(&self, closed: &Closed<'_, R>) -> Result<(), Refusal> {
        let status = closed.registers.read32(GENSTS);
        let needs_more = status & gensts::STATE_MASK == gensts::HALT
            && status >> gensts::RESET_TYPE_SHIFT & gensts::RESET_TYPE_MASK != gensts::RESET_SOFTWARE;
        if !needs_more && self.execute(closed, Command::ResetDevice).is_ok() && is_disabled(closed.registers)
        {
            return Ok(());
        }
        self.function.function_level_reset(&*self.host)?;
        if is_disabled(closed.registers) {
            return Ok(());
        }
        Err(Refusal::new(
            "",
            alloc::format!(
                "still {} after a function-level reset",
                gensts::state(closed.registers.read32(GENSTS))
            ),
            "try again after a cold start of the machine",
        ))
    }

    /// Writes everything that can be written only while the device is disabled.
    fn configure(&self, registers: &R) {
        let caps = &self.capabilities;
        for wq in 0..caps.work_queues.queues() {
            let size = self.queues.get(usize::from(wq)).map_or(0, |queue| queue.size);
            registers.write32(caps.wqcfg_of(wq) + wqcfg::SIZE, u32::from(size));
        }
        let used: Vec<u8> =
            self.queues.iter().filter(|queue| queue.size > 0).map(|queue| queue.index).collect();
        // One group and engine for each queue as far as they go, so that queues do not wait for each
        // other; beyond that, queues share round robin.
        let groups = usize::from(caps.groups.groups()).min(usize::from(caps.engines)).min(used.len());
        for group in 0..usize::from(caps.groups.groups()) {
            let at = caps.grpcfg + group * grpcfg::STRIDE;
            let mut wqs = [0u64; 4];
            let mut engines = 0u64;
            if group < groups {
                for &wq in used.iter().skip(group).step_by(groups) {
                    wqs[usize::from(wq / 64)] |= 1 << (wq % 64);
                }
                for engine in (group..usize::from(caps.engines).min(64)).step_by(groups) {
                    engines |= 1 << engine;
                }
            }
            for (word, bits) in wqs.into_iter().enumerate() {
                registers.write64(at + grpcfg::WQS + word * 8, bits);
            }
            registers.write64(at + grpcfg::ENGINES, engines);
            // Read buffers stay as reset left them: all allowed to each group.
            let flags = registers.read64(at + grpcfg::FLAGS) & !grpcfg::TRAFFIC_CLASS_MASK;
            registers.write64(at + grpcfg::FLAGS, flags | grpcfg::TRAFFIC_CLASS_1);
        }
        for entry in 0..caps.msix_entries {
            registers.write32(caps.msixperm_of(entry), 0);
        }
        // Without it a descriptor of an unprivileged queue that asks for an interrupt is refused.
        let general = registers.read32(GENCFG);
        registers.write32(GENCFG, general | gencfg::USER_INT_EN);
        registers.write32(GENCTRL, genctrl::SWERR_INT_EN | genctrl::HALT_INT_EN);
    }

    /// Enables the queue that is shared, which stays so.
    fn enable_shared(&self, closed: &Closed<'_, R>) -> Result<(), CommandFailure> {
        let Some(shared) = &self.shared else { return Ok(()) };
        self.program_shared(closed.registers, shared.index(), shared.size());
        self.execute(closed, Command::EnableWq(shared.index())).map(drop)
    }

    /// Offers shares, as many as the device has interrupt entries for: those of the MSI-X table that no queue has, and the
    /// IMS; and handles.
    fn offer_shares(&self, closed: &Closed<'_, R>) {
        let Some(shared) = &self.shared else { return };
        let own = self.queues.iter().filter(|queue| queue.is_offered());
        let own: Vec<u16> = own.map(Queue::interrupt_entry).collect();
        let entries = (1..self.capabilities.interrupt_entries()).filter(|entry| !own.contains(entry));
        let mut interrupts = Vec::new();
        for entry in entries.take(MAX_SHARES) {
            match self.request_handle(closed, entry) {
                Ok(handle) => {
                    let ims = self.capabilities.ims_index(entry).is_some();
                    let page = if ims { portal::UNLIMITED_IMS } else { portal::UNLIMITED_MSIX };
                    interrupts.push(ShareInterrupt {
                        entry,
                        handle: Arc::new(AtomicU16::new(handle)),
                        portal: u64::from(shared.index()) * portal::STRIDE + page,
                    });
                }
                Err(failure) => {
                    log::warn!(
                        "parent {}: {} shares are offered, no more: {failure}",
                        self.name,
                        interrupts.len()
                    );
                    break;
                }
            }
        }
        *self.share_interrupts.lock() = interrupts.clone();
        // The first one is given out first.
        interrupts.reverse();
        *self.free_entries.lock() = interrupts;
    }

    /// The handles of shares that were offered before: a reset took them away.
    fn request_share_handles(&self, closed: &Closed<'_, R>) -> Result<(), CommandFailure> {
        for interrupt in &*self.share_interrupts.lock() {
            let handle = self.request_handle(closed, interrupt.entry)?;
            interrupt.handle.store(handle, Ordering::Release);
        }
        Ok(())
    }

    /// What descriptors name an interrupt entry with, on the portal that is for its table.
    fn request_handle(&self, closed: &Closed<'_, R>, entry: u16) -> Result<u16, CommandFailure> {
        let (command, index) = match self.capabilities.ims_index(entry) {
            Some(index) => (Command::RequestImsHandle(index), index),
            None => (Command::RequestHandle(entry), entry),
        };
        if self.capabilities.has_command(code::REQUEST_HANDLE) {
            self.execute(closed, command)
        } else {
            Ok(index)
        }
    }

    /// The number by which descriptors name each queue's interrupt.
    fn request_handles(&self, closed: &Closed<'_, R>) -> Result<(), CommandFailure> {
        for queue in &self.queues {
            queue.set_handle(self.request_handle(closed, queue.interrupt_entry())?);
        }
        Ok(())
    }

    fn mask_interrupts(&self, registers: &R) {
        for entry in 0..self.capabilities.interrupt_entries() {
            let at = self.msix_entry(entry);
            registers.write32(at + msix_entry::CONTROL, msix_entry::MASKED);
        }
    }
}

fn is_disabled<R: Registers>(registers: &R) -> bool {
    registers.read32(GENSTS) & gensts::STATE_MASK == gensts::DISABLED
}

/// MSI-X entry 0 carries the device's own events; each queue needs one more.
fn usable_queues(capabilities: &Capabilities) -> usize {
    let entries = usize::from(capabilities.msix_entries.saturating_sub(1));
    usize::from(capabilities.work_queues.queues()).min(entries)
}

fn make_queues(count: usize, partition: &Partition, capabilities: &Capabilities) -> Vec<Queue> {
    let sizes = partition.sizes(count, capabilities.work_queues.total_size());
    (0u8..).zip(sizes).map(|(index, size)| Queue::new(index, size)).collect()
}
