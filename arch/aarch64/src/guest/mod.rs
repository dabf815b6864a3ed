// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Arm machine that a guest sees: chipset devices, firmware calls, system registers and the loader.
//!
//! **Principle.** Safe code without registers: everything here is a value that the vCPU loop calls with what
//! the guest did, and that answers with values and [`Action`](pasidon_kernel::vm::exit::Action)s. What belongs to
//! one vCPU ([`sysreg::SystemRegisters`]) needs no lock; what belongs to the VM ([`chipset::ArmChipset`], the
//! interrupt controller included) lives behind the VM's. `docs/src/guest.md` describes the machine on one page.
//!
//! # What the vCPU loop calls
//!
//! **Building a VM.** [`layout::ram_ranges`] says where RAM is; [`boot::load`] fills it and returns the first
//! vCPU's registers; [`chipset::ArmChipset::new`] makes the devices; each vCPU has [`layout::mpidr`] as
//! VMPIDR_EL2. Stage 2 maps RAM and, at [`Action::MapPortal`](pasidon_kernel::vm::exit::Action::MapPortal),
//! portals; all else is unmapped. It translates [`layout::IPA_BITS`] bits.
//!
//! **Entering.** With the VM's lock held: [`gic::Gic::fill`] of [`chipset::ArmChipset::gic`] gives all list
//! registers and ICH_HCR_EL2, from ICH_VMCR_EL2 as it was at the last exit (0 after reset; ICH_AP0R/AP1R are
//! the vCPU's own and are switched with it). The lock is released, the vCPU says that it is in the guest, looks
//! whether somebody woke it since, and enters. Debug registers are [`sysreg::SystemRegisters::debug`].
//!
//! **Leaving.** [`gic::Gic::sync`] takes list registers and ICH_HCR_EL2 back before anything else looks at the
//! interrupt controller; ICH_HCR_EL2 is then 0 until the next entry. A maintenance interrupt needs nothing more:
//! the next fill answers it, and its acknowledgement may already read as spurious.
//!
//! | exit (ESR_EL2.EC) | call | then |
//! |---|---|---|
//! | WFI, WFE (0x01) | [`gic::Gic::has_pending`], [`timer::deadline`] | WFI: wait unless it is true or that has come; skip the instruction either way |
//! | HVC (0x16), SMC (0x17) | [`chipset::ArmChipset::call`] | X0; do as [`chipset::AfterCall`] says; skip the instruction for SMC only |
//! | system register (0x18) | [`sysreg::Trap::from_iss`], [`sysreg::SystemRegisters::access`] | do as [`sysreg::Outcome`] says; skip unless undefined |
//! | data abort (0x24) | [`mmio::perform`], whose device is [`chipset::ArmChipset::exit`], and whose instruction [`walk::instruction`] finds | skip; or [`exception::Exception::DataAbort`] and the line of [`mmio::Refused`], within an [`Allowance`](pasidon_kernel::base::allowance::Allowance) |
//! | instruction abort (0x20) | none | at EL0 [`exception::Exception::InstructionAbort`]; at EL1 the VM ends: its kernel executed where there is no RAM |
//! | SVE, SME, pointer authentication, AArch32, … | none | [`exception::Exception::Undefined`] |
//! | IRQ | none | the host's; the virtual timer's goes to [`timer::VirtualTimer::taken`] |
//!
//! After *every* call to the chipset, also from other processors (typing, a vdev's interrupt, SGIs), and
//! before the lock is released: [`chipset::ArmChipset::take_wakes`]. Those vCPUs are made to leave the guest,
//! or to stop waiting. An exception is given with [`exception::enter`].
//!
//! **The virtual timer** (CNTV, PPI 27) is the hardware's: its registers are switched with the vCPU, and its
//! physical interrupt is mapped to the guest's. [`timer::VirtualTimer`] says what to do to the physical one:
//! [`load`](timer::VirtualTimer::load) when the vCPU comes to a processor,
//! [`taken`](timer::VirtualTimer::taken) when the physical interrupt was acknowledged there (its priority
//! dropped, not deactivated: EOImode 1), [`check`](timer::VirtualTimer::check) before each fill,
//! [`unload`](timer::VirtualTimer::unload) when the vCPU leaves. A vCPU that waits is woken at
//! [`timer::deadline`], and goes on waiting only if that has not come either.
#![forbid(unsafe_code)]

pub mod boot;
pub mod chipset;
pub mod exception;
pub mod gic;
pub mod layout;
pub mod mmio;
pub mod psci;
pub mod smccc;
pub mod sysreg;
pub mod timer;
pub mod walk;
