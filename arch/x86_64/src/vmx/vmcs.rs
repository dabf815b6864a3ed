// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual machine control structure: memory whose layout only the processor knows, with fields that have numbers.
//!
//! **Principle.** A VMCS is current on one pCPU at most, and only there its fields can be reached. What is written while
//! it is not current is kept, and written when it becomes so.
//!
//! Source: Intel SDM volume 3, chapter 25 "Virtual Machine Control Structures", appendix B (field numbers).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;

/// Numbers of fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Field {
    Vpid = 0x0000,
    PostedVector = 0x0002,
    GuestEsSelector = 0x0800,
    InterruptStatus = 0x0810,
    HostEsSelector = 0x0c00,
    HostCsSelector = 0x0c02,
    HostSsSelector = 0x0c04,
    HostDsSelector = 0x0c06,
    HostFsSelector = 0x0c08,
    HostGsSelector = 0x0c0a,
    HostTrSelector = 0x0c0c,
    MsrBitmap = 0x2004,
    TscOffset = 0x2010,
    VirtualApic = 0x2012,
    PostedDescriptor = 0x2016,
    Eptp = 0x201a,
    EoiExit0 = 0x201c,
    EoiExit1 = 0x201e,
    EoiExit2 = 0x2020,
    EoiExit3 = 0x2022,
    EnclsBitmap = 0x202e,
    GuestPhysicalAddress = 0x2400,
    LinkPointer = 0x2800,
    GuestDebugCtl = 0x2802,
    GuestPat = 0x2804,
    GuestEfer = 0x2806,
    GuestPdpte0 = 0x280a,
    GuestPdpte1 = 0x280c,
    GuestPdpte2 = 0x280e,
    GuestPdpte3 = 0x2810,
    HostPat = 0x2c00,
    HostEfer = 0x2c02,
    PinControls = 0x4000,
    ProcessorControls = 0x4002,
    ExceptionBitmap = 0x4004,
    PageFaultMask = 0x4006,
    PageFaultMatch = 0x4008,
    Cr3TargetCount = 0x400a,
    ExitControls = 0x400c,
    ExitMsrStoreCount = 0x400e,
    ExitMsrLoadCount = 0x4010,
    EntryControls = 0x4012,
    EntryMsrLoadCount = 0x4014,
    EntryInterruption = 0x4016,
    EntryErrorCode = 0x4018,
    TprThreshold = 0x401c,
    SecondaryControls = 0x401e,
    InstructionError = 0x4400,
    ExitReason = 0x4402,
    ExitInterruption = 0x4404,
    IdtVectoring = 0x4408,
    IdtVectoringErrorCode = 0x440a,
    InstructionLength = 0x440c,
    GuestEsLimit = 0x4800,
    GuestGdtrLimit = 0x4810,
    GuestIdtrLimit = 0x4812,
    GuestEsAccess = 0x4814,
    GuestCsAccess = 0x4816,
    GuestSsAccess = 0x4818,
    Interruptibility = 0x4824,
    Activity = 0x4826,
    GuestSysenterCs = 0x482a,
    HostSysenterCs = 0x4c00,
    Cr0Mask = 0x6000,
    Cr4Mask = 0x6002,
    Cr0Shadow = 0x6004,
    Cr4Shadow = 0x6006,
    Qualification = 0x6400,
    GuestCr0 = 0x6800,
    GuestCr3 = 0x6802,
    GuestCr4 = 0x6804,
    GuestEsBase = 0x6806,
    GuestFsBase = 0x680e,
    GuestGsBase = 0x6810,
    GuestGdtrBase = 0x6816,
    GuestIdtrBase = 0x6818,
    GuestDr7 = 0x681a,
    GuestRsp = 0x681c,
    GuestRip = 0x681e,
    GuestRflags = 0x6820,
    PendingDebug = 0x6822,
    GuestSysenterEsp = 0x6824,
    GuestSysenterEip = 0x6826,
    HostCr0 = 0x6c00,
    HostCr3 = 0x6c02,
    HostCr4 = 0x6c04,
    HostFsBase = 0x6c06,
    HostGsBase = 0x6c08,
    HostTrBase = 0x6c0a,
    HostGdtrBase = 0x6c0c,
    HostIdtrBase = 0x6c0e,
    HostSysenterEsp = 0x6c10,
    HostSysenterEip = 0x6c12,
    HostRip = 0x6c16,
}

/// Number of the field that holds RSP of the host, which only the way into the guest writes.
pub const HOST_RSP: u32 = 0x6c14;

/// Segment registers, in the order of their fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// A page that the processor is given.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; 4096]);

impl Page {
    /// All zeros.
    pub fn zeroed() -> Box<Page> {
        // SAFETY: it is made of bytes, for which zero is a value.
        unsafe { Box::<Page>::new_zeroed().assume_init() }
    }

    /// Its physical address: memory is mapped there.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }
}

/// The structure of one vCPU.
#[derive(Debug)]
pub struct Vmcs {
    region: Box<Page>,
    /// It was never given to a processor.
    fresh: bool,
    current: bool,
    /// Numbers and values to be written once it is current.
    waiting: Vec<(u32, u64)>,
}

impl Vmcs {
    /// One that was never current.
    pub fn new() -> Self {
        Self { region: Page::zeroed(), fresh: true, current: false, waiting: Vec::new() }
    }

    /// Makes it the current one of this pCPU. `revision` is what this pCPU wants its first word to be.
    ///
    /// # Safety
    /// VMX is on here, and no other VMCS is current. It is current nowhere else.
    pub unsafe fn load(&mut self, revision: u32) {
        let address = self.region.address();
        // SAFETY: the page has room for a word; the processor does not use it now. By the contract VMX is on.
        unsafe {
            if core::mem::take(&mut self.fresh) {
                self.region.0.as_mut_ptr().cast::<u32>().write_volatile(revision);
                // The processor may hold something of who had the memory before.
                vmclear(address);
            }
            asm!("vmptrld [{}]", in(reg) &address, options(nostack));
        }
        self.current = true;
        for (field, value) in core::mem::take(&mut self.waiting) {
            // SAFETY: just made current.
            unsafe { vmwrite(field, value) };
        }
    }

    /// Writes what the processor holds of it back to memory, so that another pCPU can have it.
    ///
    /// # Safety
    /// It is the current one of this pCPU.
    pub unsafe fn unload(&mut self) {
        // SAFETY: by the contract.
        unsafe { vmclear(self.region.address()) };
        self.current = false;
    }

    /// What a field holds. Only while it is current.
    pub fn read(&self, field: Field) -> u64 {
        self.read_at(field as u32)
    }

    /// Sets a field.
    pub fn write(&mut self, field: Field, value: u64) {
        self.write_at(field as u32, value);
    }

    /// The value of a field that waits to be written.
    #[cfg(test)]
    pub fn waiting(&self, field: Field) -> u64 {
        self.waiting.iter().rfind(|(number, _)| *number == field as u32).unwrap().1
    }

    fn read_at(&self, field: u32) -> u64 {
        debug_assert!(self.current, "VMCS field {field:#x} is read while it is not current");
        let value;
        // SAFETY: it is current, by the contract of `Backend`, which all callers serve.
        unsafe {
            asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field), options(nostack, nomem));
        }
        value
    }

    fn write_at(&mut self, field: u32, value: u64) {
        if self.current {
            // SAFETY: it is current.
            unsafe { vmwrite(field, value) };
        } else {
            self.waiting.push((field, value));
        }
    }

    /// Sets selector, limit, access rights and base of a segment register.
    pub fn write_segment(
        &mut self,
        register: SegmentRegister,
        selector: u16,
        limit: u32,
        access: u32,
        base: u64,
    ) {
        let step = 2 * register as u32;
        self.write_at(Field::GuestEsSelector as u32 + step, selector.into());
        self.write_at(Field::GuestEsLimit as u32 + step, limit.into());
        self.write_at(Field::GuestEsAccess as u32 + step, access.into());
        self.write_at(Field::GuestEsBase as u32 + step, base);
    }

    /// Limit, access rights and base of a segment register.
    pub fn read_segment(&self, register: SegmentRegister) -> (u32, u32, u64) {
        let step = 2 * register as u32;
        (
            self.read_at(Field::GuestEsLimit as u32 + step) as u32,
            self.read_at(Field::GuestEsAccess as u32 + step) as u32,
            self.read_at(Field::GuestEsBase as u32 + step),
        )
    }
}

/// # Safety
/// A VMCS is current.
unsafe fn vmwrite(field: u32, value: u64) {
    let failed: u8;
    // SAFETY: by the contract.
    unsafe {
        asm!("vmwrite {}, {}", "setbe {}", in(reg) u64::from(field), in(reg) value, out(reg_byte) failed,
            options(nostack));
    }
    debug_assert!(failed == 0, "VMCS field {field:#x} does not exist");
}

/// # Safety
/// VMX is on, and `region` is a page that was a VMCS, or is to be one.
unsafe fn vmclear(region: u64) {
    // SAFETY: by the contract.
    unsafe { asm!("vmclear [{}]", in(reg) &region, options(nostack)) };
}
