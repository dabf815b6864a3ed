// SPDX-License-Identifier: MIT OR Apache-2.0
//! The walk of the guest's page tables, as the processor does it.
//!
//! **Principle.** The guest's tables are input. Each entry is read once, through [`GuestMemory`], and what
//! was read is what is checked. A table outside RAM counts as one whose entry is not present: the guest gets
//! a page fault, and no device is read for a translation.
//!
//! Reserved bits are checked as far as they do not depend on the width of physical addresses. In PAE paging
//! the page-directory-pointer entries are read from memory at each walk, as with AMD's nested paging. 1-GiB
//! pages are taken as supported.
//!
//! Source: Intel SDM volume 3A, chapter 5 "Paging": 5.3–5.5 (formats), 5.6 (access rights), 5.7 (error code),
//! 5.8 (accessed and dirty flags).

use core::ops::RangeInclusive;

use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::GuestMemory;
use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};
use x86_64::registers::rflags::RFlags;
use x86_64::structures::idt::{ExceptionVector, PageFaultErrorCode};
use x86_64::structures::paging::PageTableFlags;

use super::{AccessType, CpuState, Exception};

const PAGE_SHIFT: u32 = 12;
/// The bits of an address within a page.
const OFFSET: u64 = (1 << PAGE_SHIFT) - 1;
/// Bits 51:12 of a 64-bit entry.
const FRAME_64: u64 = 0x000f_ffff_ffff_f000;
/// Bits 31:12 of a 32-bit entry, and of CR3 with 32-bit paging.
const FRAME_32: u64 = 0xffff_f000;
/// CR3 bits 31:5: the page-directory-pointer table of PAE paging.
const PAE_ROOT: u64 = 0xffff_ffe0;
/// Bits 62:52 are reserved in PAE paging.
const PAE_RESERVED: u64 = 0x7ff0_0000_0000_0000;
/// Bits 8:5, 2:1 and 63 of a page-directory-pointer entry in PAE paging.
const PAE_POINTER_RESERVED: u64 = 0x8000_0000_0000_01e6;
/// Bits 20:13 of a 2-MiB entry.
const LARGE_RESERVED: u64 = 0x001f_e000;
/// Bits 29:13 of a 1-GiB entry.
const HUGE_RESERVED: u64 = 0x3fff_e000;
/// Bit 21 of a 4-MiB entry.
const PSE_RESERVED: u64 = 1 << 21;
/// Room for all levels of a walk, from 1 to 5.
const LEVELS: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Two levels of 32-bit entries.
    Legacy,
    /// Three levels of 64-bit entries, 32-bit linear addresses.
    Pae,
    /// Four or five levels of 64-bit entries.
    Long,
}

impl Format {
    const fn entry_size(self) -> u64 {
        match self {
            Self::Legacy => 4,
            Self::Pae | Self::Long => 8,
        }
    }

    /// The physical address in an entry: of a table or small page, or of the large page at `level`.
    #[inline(always)]
    const fn frame(self, entry: u64, level: u32) -> u64 {
        match self {
            // PSE-36: bits 20:13 of the entry are bits 39:32 of the address.
            Self::Legacy if level == 2 => entry & FRAME_32 | ((entry >> 13) & 0xff) << 32,
            Self::Legacy => entry & FRAME_32,
            Self::Pae | Self::Long => entry & FRAME_64,
        }
    }
}

impl CpuState {
    pub(super) fn protected_mode(&self) -> bool {
        self.cr0 & Cr0Flags::PROTECTED_MODE_ENABLE.bits() != 0
    }

    fn cr4_has(&self, flag: Cr4Flags) -> bool {
        self.cr4 & flag.bits() != 0
    }

    pub(super) fn long_mode(&self) -> bool {
        self.efer & EferFlags::LONG_MODE_ACTIVE.bits() != 0
    }

    fn no_execute_enabled(&self) -> bool {
        self.efer & EferFlags::NO_EXECUTE_ENABLE.bits() != 0
    }

    fn user(&self) -> bool {
        self.cpl == 3
    }

    fn format(&self) -> Format {
        if self.long_mode() {
            Format::Long
        } else if self.cr4_has(Cr4Flags::PHYSICAL_ADDRESS_EXTENSION) {
            Format::Pae
        } else {
            Format::Legacy
        }
    }

    /// Whether all bits above the linear address width equal its top bit. Always true outside long mode.
    pub(super) fn is_canonical(&self, linear: u64) -> bool {
        let width = if self.cr4_has(Cr4Flags::L5_PAGING) { 57 } else { 48 };
        let unused = 64 - width;
        !self.long_mode() || ((linear << unused) as i64 >> unused) as u64 == linear
    }
}

/// The guest-physical address that `linear` (segment base included) has for an access of the given kind at
/// the current privilege level. Sets accessed and dirty flags as the processor does. Without paging the
/// address is the linear one, 32 bits wide. The address returned need not be RAM.
///
/// # Errors
/// When the guest may not do it: the page fault with its error code and CR2, or #GP(0) for an address that is not
/// canonical.
pub fn translate<M: GuestMemory + ?Sized>(
    state: &CpuState,
    memory: &M,
    linear: u64,
    access: AccessType,
) -> Result<GuestPhys, Exception> {
    translate_anew(state, memory, linear, access, &mut Seen::new())
}

/// The same, telling what was read.
fn translate_anew<M: GuestMemory + ?Sized>(
    state: &CpuState,
    memory: &M,
    linear: u64,
    access: AccessType,
    seen: &mut Seen,
) -> Result<GuestPhys, Exception> {
    let linear = if state.long_mode() { linear } else { linear & 0xffff_ffff };
    if !state.is_canonical(linear) {
        return Err(Exception::general_protection(state));
    }
    if state.cr0 & Cr0Flags::PAGING.bits() == 0 {
        return Ok(GuestPhys(linear & 0xffff_ffff));
    }
    let walk = Walk { state, memory, linear, access, format: state.format() };
    walk.run(seen).map_err(|cause| walk.page_fault(cause))
}

/// What a walk has read.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Where entries lie, and what they held, by level.
    entries: [(GuestPhys, u64); LEVELS],
    /// The levels that were read, from the last to the first.
    levels: (u32, u32),
    /// It came to its end, through entries of 64 bits.
    comparable: bool,
}

impl Seen {
    const fn new() -> Self {
        Self { entries: [(GuestPhys(0), 0); LEVELS], levels: (0, 0), comparable: false }
    }

    fn still_holds<M: GuestMemory + ?Sized>(&self, memory: &M) -> bool {
        let (last, first) = self.levels;
        let entries = self.entries.get(last as usize..=first as usize).unwrap_or_default();
        for (address, entry) in entries {
            if memory.read_u64(*address) != Some(*entry) {
                return false;
            }
        }
        true
    }
}

/// Walks that were done before: a driver reaches its device through the same few pages all the time. One counts as the
/// same where the registers that it depends on and all entries that it has read are as they were, so there is nothing
/// to invalidate. An entry whose flags were set then is not as it was.
#[derive(Debug)]
pub(super) struct WalkCache([Done; Self::ENTRIES]);

#[derive(Clone, Copy, Debug)]
struct Done {
    question: Question,
    seen: Seen,
    /// The page that it led to.
    frame: u64,
}

/// What a walk depends on besides the entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Question {
    page: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    /// Privilege level, RFLAGS.AC and kind of access.
    rights: u64,
}

impl Question {
    fn new(state: &CpuState, linear: u64, access: AccessType) -> Self {
        let CpuState { cr0, cr3, cr4, efer, cpl, .. } = *state;
        let alignment_check = state.rflags & RFlags::ALIGNMENT_CHECK.bits();
        let rights = alignment_check | u64::from(cpl) << 8 | access as u64;
        Self { page: linear & !OFFSET, cr0, cr3, cr4, efer, rights }
    }
}

impl WalkCache {
    const ENTRIES: usize = 16;

    pub(super) fn new() -> Self {
        // No page begins there.
        let question = Question { page: 1, cr0: 0, cr3: 0, cr4: 0, efer: 0, rights: 0 };
        Self([Done { question, seen: Seen::new(), frame: 0 }; Self::ENTRIES])
    }

    /// [`translate`], where it was not done before.
    ///
    /// # Errors
    /// As [`translate`].
    #[inline]
    pub(super) fn translate<M: GuestMemory + ?Sized>(
        &mut self,
        state: &CpuState,
        memory: &M,
        linear: u64,
        access: AccessType,
    ) -> Result<GuestPhys, Exception> {
        let question = Question::new(state, linear, access);
        let done = &mut self.0[((linear >> PAGE_SHIFT) as usize ^ access as usize) % Self::ENTRIES];
        if done.question == question && done.seen.still_holds(memory) {
            return Ok(GuestPhys(done.frame | linear & OFFSET));
        }
        done.renew(question, state, memory, linear, access)
    }
}

impl Done {
    #[cold]
    fn renew<M: GuestMemory + ?Sized>(
        &mut self,
        question: Question,
        state: &CpuState,
        memory: &M,
        linear: u64,
        access: AccessType,
    ) -> Result<GuestPhys, Exception> {
        let mut seen = Seen::new();
        let address = translate_anew(state, memory, linear, access, &mut seen)?;
        if seen.comparable {
            *self = Self { question, seen, frame: address.0 & !OFFSET };
        }
        Ok(address)
    }
}

struct Walk<'a, M: ?Sized> {
    state: &'a CpuState,
    memory: &'a M,
    linear: u64,
    access: AccessType,
    format: Format,
}

/// Rights that the entries of a walk grant together.
struct Rights {
    writable: bool,
    user: bool,
    execute: bool,
}

impl<M: GuestMemory + ?Sized> Walk<'_, M> {
    /// `Err` holds the bits of the error code that tell the cause.
    fn run(&self, seen: &mut Seen) -> Result<GuestPhys, PageFaultErrorCode> {
        let cr3 = self.state.cr3;
        match self.format {
            Format::Legacy => self.descend(seen, Format::Legacy, 2, 10, cr3 & FRAME_32),
            Format::Pae => self.descend(seen, Format::Pae, 3, 9, cr3 & PAE_ROOT),
            Format::Long if self.state.cr4_has(Cr4Flags::L5_PAGING) => {
                self.descend(seen, Format::Long, 5, 9, cr3 & FRAME_64)
            }
            Format::Long => self.descend(seen, Format::Long, 4, 9, cr3 & FRAME_64),
        }
    }

    /// From the table at `root` down. A copy for each format, whose questions have their answers when it is compiled:
    /// each access to a device walks, for the fetch at least.
    #[inline(always)]
    fn descend(
        &self,
        seen: &mut Seen,
        format: Format,
        levels: u32,
        index_bits: u32,
        root: u64,
    ) -> Result<GuestPhys, PageFaultErrorCode> {
        // The bits that all entries have, and those that one of them has.
        let (mut all, mut any) = (u64::MAX, 0);
        let mut table = root;
        let mut level = levels;
        loop {
            let shift = PAGE_SHIFT + index_bits * (level - 1);
            let index = (self.linear >> shift) & ((1 << index_bits) - 1);
            let address = GuestPhys(table | (index * format.entry_size()));
            let entry = self.read_entry(format, address).ok_or(PageFaultErrorCode::empty())?;
            seen.entries[level as usize % LEVELS] = (address, entry);
            if entry & PageTableFlags::PRESENT.bits() == 0 {
                return Err(PageFaultErrorCode::empty());
            }
            let large = level > 1 && entry & PageTableFlags::HUGE_PAGE.bits() != 0;
            let leaf = level == 1 || (large && self.large_allowed(format, level));
            let mut reserved = self.reserved(format, level);
            if large {
                reserved |= self.reserved_where_large(format, level);
            }
            if entry & reserved != 0 {
                return Err(PageFaultErrorCode::PROTECTION_VIOLATION | PageFaultErrorCode::MALFORMED_TABLE);
            }
            // The pointer entries of PAE paging carry neither rights nor an accessed flag.
            if !(format == Format::Pae && level == 3) {
                all &= entry;
                any |= entry;
            }
            if leaf {
                let (all, any) =
                    (PageTableFlags::from_bits_retain(all), PageTableFlags::from_bits_retain(any));
                let rights = Rights {
                    writable: all.contains(PageTableFlags::WRITABLE),
                    user: all.contains(PageTableFlags::USER_ACCESSIBLE),
                    // A 32-bit entry has no such flag.
                    execute: !any.contains(PageTableFlags::NO_EXECUTE),
                };
                if !self.permitted(&rights) {
                    return Err(PageFaultErrorCode::PROTECTION_VIOLATION);
                }
                let dirty = self.access != AccessType::Write || entry & PageTableFlags::DIRTY.bits() != 0;
                seen.levels = (level, levels);
                seen.comparable = format != Format::Legacy;
                if !(dirty && all.contains(PageTableFlags::ACCESSED)) {
                    self.set_flags(level..=if format == Format::Pae { 2 } else { levels }, seen);
                }
                let offset = (1u64 << shift) - 1;
                return Ok(GuestPhys(format.frame(entry, level) & !offset | self.linear & offset));
            }
            table = format.frame(entry, 1);
            level -= 1;
        }
    }

    #[inline(always)]
    fn read_entry(&self, format: Format, address: GuestPhys) -> Option<u64> {
        if format != Format::Legacy {
            return self.memory.read_u64(address);
        }
        let mut bytes = [0; 4];
        self.memory.read(address, &mut bytes).ok()?;
        Some(u32::from_le_bytes(bytes).into())
    }

    /// Whether an entry of this level with its page-size bit set maps a page.
    #[inline(always)]
    fn large_allowed(&self, format: Format, level: u32) -> bool {
        match format {
            Format::Legacy => level == 2 && self.state.cr4_has(Cr4Flags::PAGE_SIZE_EXTENSION),
            Format::Pae => level == 2,
            Format::Long => level == 2 || level == 3,
        }
    }

    /// The bits that must be zero in a present entry.
    #[inline(always)]
    fn reserved(&self, format: Format, level: u32) -> u64 {
        if format == Format::Legacy {
            return 0;
        }
        let mut reserved = 0;
        if !self.state.no_execute_enabled() {
            reserved |= PageTableFlags::NO_EXECUTE.bits();
        }
        if format == Format::Pae {
            reserved |= PAE_RESERVED;
            if level == 3 {
                reserved |= PAE_POINTER_RESERVED;
            }
        }
        reserved
    }

    /// Those that must be zero, too, where its page-size bit is set. Without large pages of 4 MiB that is ignored, and so
    /// is what they reserve.
    fn reserved_where_large(&self, format: Format, level: u32) -> u64 {
        match (format, level) {
            (Format::Legacy, _) if self.large_allowed(format, level) => PSE_RESERVED,
            (Format::Legacy, _) => 0,
            (_, 2) => LARGE_RESERVED,
            (Format::Long, 3) => HUGE_RESERVED,
            // A pointer entry of PAE paging reserves the bit itself.
            (Format::Pae, _) => 0,
            (Format::Long, _) => PageTableFlags::HUGE_PAGE.bits(),
        }
    }

    fn permitted(&self, rights: &Rights) -> bool {
        let state = self.state;
        let alignment_check = state.rflags & RFlags::ALIGNMENT_CHECK.bits() != 0;
        let smap = state.cr4_has(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION) && !alignment_check;
        let smep = state.cr4_has(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION);
        let write_protect = state.cr0 & Cr0Flags::WRITE_PROTECT.bits() != 0;
        match (self.access, state.user()) {
            (AccessType::Read, true) => rights.user,
            (AccessType::Read, false) => !(smap && rights.user),
            (AccessType::Write, true) => rights.user && rights.writable,
            (AccessType::Write, false) => (rights.writable || !write_protect) && !(smap && rights.user),
            (AccessType::Execute, true) => rights.user && rights.execute,
            (AccessType::Execute, false) => rights.execute && !(smep && rights.user),
        }
    }

    /// Sets the accessed flags, and the dirty flag of the last entry, that of the lowest level, for a write. The processor
    /// did so before it found no RAM, so hardly ever is anything to do. Where there is, only the byte with the flags is
    /// written, to keep what another vCPU may be changing in the entry.
    #[cold]
    fn set_flags(&self, levels: RangeInclusive<u32>, seen: &Seen) {
        let leaf = *levels.start();
        for level in levels {
            let (address, _) = seen.entries[level as usize % LEVELS];
            let mut wanted = PageTableFlags::ACCESSED;
            if level == leaf && self.access == AccessType::Write {
                wanted |= PageTableFlags::DIRTY;
            }
            let mut low = [0];
            if self.memory.read(address, &mut low).is_err() {
                continue;
            }
            let flags = PageTableFlags::from_bits_retain(low[0].into());
            if flags.contains(PageTableFlags::PRESENT) && !flags.contains(wanted) {
                // Tables in memory that refuses writes keep their flags clear, as in a ROM.
                let _ = self.memory.write(address, &[(flags | wanted).bits() as u8]);
            }
        }
    }

    fn page_fault(&self, cause: PageFaultErrorCode) -> Exception {
        let state = self.state;
        let mut code = cause;
        code.set(PageFaultErrorCode::CAUSED_BY_WRITE, self.access == AccessType::Write);
        code.set(PageFaultErrorCode::USER_MODE, state.user());
        let no_execute = self.format != Format::Legacy && state.no_execute_enabled();
        let fetches_told = no_execute || state.cr4_has(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION);
        code.set(PageFaultErrorCode::INSTRUCTION_FETCH, self.access == AccessType::Execute && fetches_told);
        Exception {
            vector: ExceptionVector::Page as u8,
            error_code: Some(code.bits() as u32),
            cr2: Some(self.linear),
        }
    }
}
