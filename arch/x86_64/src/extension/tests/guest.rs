// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest of a few bytes in 64-bit mode, entered as the hypervisor enters one, on Bochs's processors.
//!
//! Its linear addresses are guest-physical ones, up to 1 GiB. Each vector has a handler that halts, and returns when it
//! goes on, so that an exit tells by its RIP which one was delivered.

use alloc::boxed::Box;
use alloc::sync::Arc;

use pasidon_arch_common::hardware::Stage2;
use pasidon_cpu::{Model, Pages, Processor};
use pasidon_kernel::base::addr::{GuestPhys, HostPhys, LARGE_PAGE_SIZE, PAGE_SIZE};
use pasidon_kernel::base::id::VmId;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::memory::ram::{GuestRam, RamRange};

use crate::backend::Reason;
use crate::backend::vcpu::Vcpu;
use crate::cpu;
use crate::extension::{ControlBlock, Extension, Pcpu, Stage2 as Table};
use crate::guest::boot::{EntryMode, EntryState};
use crate::guest::control::tests::policy;
use crate::guest::lapic::{LocalApic, MSR_APIC_BASE};

/// Bytes of RAM.
pub const RAM: u64 = LARGE_PAGE_SIZE;
/// First instruction.
pub const CODE: u64 = 0x1000;
/// Handler of vector 0; that of each further one lies [`HANDLER_BYTES`] behind.
const HANDLERS: u64 = 0x2000;
const HANDLER_BYTES: u64 = 16;
/// HLT, IRETQ.
const HANDLER: [u8; 3] = [0xf4, 0x48, 0xcf];
/// Stack pointer at first.
pub const STACK: u64 = 0x8000;
/// Page tables: three levels, whose lowest entries are 2 MiB.
pub const PAGE_TABLES: u64 = 0x1_0000;
pub const IDT: u64 = 0x1_4000;
const GDT: u64 = 0x1_5000;
/// For the tests.
pub const DATA: u64 = 0x1_6000;

pub const CODE_SELECTOR: u16 = 8;
pub const DATA_SELECTOR: u16 = 16;
/// CR0: PG, NE, ET, PE.
pub const CR0: u64 = 0x8000_0031;
/// CR4: OSXSAVE, OSFXSR, PAE.
pub const CR4: u64 = 1 << 18 | 1 << 9 | 1 << 5;
/// EFER: NXE, LMA, LME, SCE.
const EFER: u64 = 0xd01;
/// Present, writable, for users.
const ENTRY: u64 = 7;
/// The same, 2 MiB.
const LARGE_ENTRY: u64 = ENTRY | 1 << 7;

/// A VM with one vCPU.
pub struct Guest {
    pub vcpu: Vcpu<ControlBlock>,
    pub table: Table,
    pub memory: Arc<GuestRam>,
    pub lapic: LocalApic,
    ram: u64,
}

impl Guest {
    pub fn new(extension: Extension, code: &[u8]) -> Guest {
        // One large page for the guest, one for tables, and one that alignment may take. Frames are for ever.
        let pages = Box::leak(Box::new(Pages::new((3 * LARGE_PAGE_SIZE / PAGE_SIZE) as usize)));
        let start = pages.address().next_multiple_of(LARGE_PAGE_SIZE);
        let frames: &'static Frames =
            Box::leak(Box::new(Frames::new([(HostPhys(start), 2 * LARGE_PAGE_SIZE)])));
        let taken = frames.allocate_guest(RAM).unwrap().scrub(&mut |_, _| {});
        let ram = GuestRam::new(VmId(0), taken, &[RamRange { start: GuestPhys(0), len: RAM }]).unwrap();
        let mut table = Table::new(frames, extension.geometry(false)).unwrap();
        table.map_ram(&ram).unwrap();
        let base = ram.translate(GuestPhys(0)).unwrap().0.0;
        let lapic = LocalApic::new(0);
        let block = extension.control_block(table.root(), 0, &policy(true), lapic.page());
        let vcpu = Vcpu::new(block, policy(true));
        let mut guest = Guest { vcpu, table, memory: Arc::new(ram), lapic, ram: base };
        guest.write_tables();
        guest.write_bytes(CODE, code);
        guest.start(CODE);
        guest
    }

    fn write_tables(&self) {
        for level in 0..2 {
            let table = PAGE_TABLES + level * PAGE_SIZE;
            self.write(table, (table + PAGE_SIZE) | ENTRY);
        }
        for index in 0..512 {
            self.map_linear(index, index * LARGE_PAGE_SIZE);
        }
        for vector in 0..256 {
            let handler = HANDLERS + vector * HANDLER_BYTES;
            self.write_bytes(handler, &HANDLER);
            // A 64-bit interrupt gate.
            self.write(IDT + 16 * vector, handler & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e << 40);
        }
        self.write(GDT + u64::from(CODE_SELECTOR), 0x00af_9b00_0000_ffff_u64);
        self.write(GDT + u64::from(DATA_SELECTOR), 0x00cf_9300_0000_ffff_u64);
    }

    /// Lets that 2 MiB page of linear addresses be `to`.
    pub fn map_linear(&self, page: u64, to: u64) {
        self.write(PAGE_TABLES + 2 * PAGE_SIZE + 8 * page, to | LARGE_ENTRY);
    }

    /// Has it begin at `rip`, with all registers of a start.
    pub fn start(&mut self, rip: u64) {
        self.vcpu.start_at(&entry(rip));
        self.poke(Poke::Idt(IDT, 4095));
        self.vcpu.set_gpr(4, STACK);
    }

    /// Its local APIC is on, in x2APIC mode.
    pub fn enable_apic(&mut self) {
        self.lapic.write_msr(MSR_APIC_BASE, 0xfee0_0000 | 3 << 10, 0).unwrap();
        self.lapic.write_msr(0x80f, 0x1ff, 0).unwrap();
    }

    /// Has it go on at `rip`.
    pub fn jump(&mut self, rip: u64) {
        self.vcpu.parts().1.rip = rip;
    }

    /// Sets its RFLAGS.
    pub fn set_rflags(&mut self, rflags: u64) {
        self.vcpu.parts().1.rflags = rflags;
    }

    /// Its RFLAGS.
    pub fn rflags(&mut self) -> u64 {
        self.vcpu.parts().1.rflags
    }

    /// Changes what only code of the guest could.
    pub fn poke(&mut self, poke: Poke) {
        poke_at(&mut self.vcpu, poke);
    }

    /// Writes a value into its RAM.
    pub fn write<T>(&self, address: u64, value: T) {
        assert!(address + size_of::<T>() as u64 <= RAM);
        // SAFETY: within its RAM, which is memory of this test's. The guest does not run.
        unsafe { ((self.ram + address) as *mut T).write_unaligned(value) };
    }

    /// Reads a word of its RAM.
    pub fn read(&self, address: u64) -> u64 {
        assert!(address + 8 <= RAM);
        // SAFETY: as in `write`.
        unsafe { ((self.ram + address) as *const u64).read_unaligned() }
    }

    pub fn write_bytes(&self, address: u64, bytes: &[u8]) {
        for (offset, byte) in (0..).zip(bytes) {
            self.write(address + offset, *byte);
        }
    }

    /// The vector whose handler it stands in, at the HLT.
    pub fn handling(&self) -> Option<u8> {
        handler_at(self.vcpu.rip())
    }

    /// The words on its stack: from the last one pushed on.
    pub fn stack<const N: usize>(&self) -> [u64; N] {
        core::array::from_fn(|index| self.read(self.vcpu.gpr(4) + 8 * index as u64))
    }
}

/// How a guest begins at `rip`.
pub fn entry(rip: u64) -> EntryState {
    EntryState {
        mode: EntryMode::Long64,
        rip,
        rbx: 0,
        rsi: 0,
        cr0: CR0,
        cr3: PAGE_TABLES,
        cr4: CR4,
        efer: EFER,
        gdt: Some((GDT, 23)),
        cs: CODE_SELECTOR,
        ds: DATA_SELECTOR,
    }
}

/// The vector whose handler's HLT is there.
pub fn handler_at(rip: u64) -> Option<u8> {
    let offset = rip.checked_sub(HANDLERS)?;
    (offset < 256 * HANDLER_BYTES && offset % HANDLER_BYTES == 0).then_some((offset / HANDLER_BYTES) as u8)
}

/// Changes of a vCPU what only code of the guest could.
pub fn poke_at(vcpu: &mut Vcpu<ControlBlock>, poke: Poke) {
    match vcpu.parts().0 {
        ControlBlock::Svm(block) => block.poke(poke),
        ControlBlock::Vmx(block) => block.poke(poke),
    }
}

/// What the tests change of a guest behind its back.
#[derive(Clone, Copy, Debug)]
pub enum Poke {
    /// IDTR: base and limit.
    Idt(u64, u16),
    /// CR3.
    Cr3(u64),
    /// CPL 3, and CR0.AM.
    User,
    /// Where they stay in the processor: the guest's STAR, LSTAR and FMASK are the test's own, which can then allocate
    /// memory while the guest is loaded.
    SystemCalls([u64; 3]),
}

/// A pCPU that has the extension, turned on.
pub struct Rig {
    pub processor: Processor,
    pub pcpu: Pcpu,
}

impl Rig {
    pub fn new(extension: Extension) -> Rig {
        let mut processor = Processor::new(model(extension));
        let pcpu = processor.run(|| Pcpu::enable(0, frames())).unwrap().unwrap();
        Rig { processor, pcpu }
    }

    /// Loads the guest's vCPU and does something with it.
    pub fn on<T>(
        &mut self,
        guest: &mut Guest,
        act: impl FnOnce(&mut Vcpu<ControlBlock>, &mut Pcpu) -> T,
    ) -> T {
        let (vcpu, pcpu) = (&mut guest.vcpu, &mut self.pcpu);
        self.processor.run(|| loaded(vcpu, pcpu, act)).unwrap()
    }

    /// Loads the guest's vCPU, and enters it until something happens.
    pub fn enter(&mut self, guest: &mut Guest) -> Reason {
        self.enter_flushed(guest, false)
    }

    /// The same; `flush` drops its translations first.
    pub fn enter_flushed(&mut self, guest: &mut Guest, flush: bool) -> Reason {
        let reason = self.on(guest, |vcpu, pcpu| vcpu.enter(pcpu, flush));
        if let Reason::Failed(_) | Reason::HostFault { .. } = reason {
            panic!("{reason:x?}: {:?}", self.processor.refusal());
        }
        reason
    }

    /// Enters the guest until it halts in a handler, and returns the vector.
    pub fn delivered(&mut self, guest: &mut Guest) -> Option<u8> {
        assert_eq!(self.enter(guest), Reason::Halt, "at {:#x}", guest.vcpu.rip());
        guest.handling()
    }
}

/// A processor that has it.
pub fn model(extension: Extension) -> Model {
    match extension {
        Extension::Svm => Model::Ryzen,
        Extension::Vmx => Model::SapphireRapids,
    }
}

/// Does something with a vCPU while it is loaded. The test itself uses system calls.
pub fn loaded<T>(
    vcpu: &mut Vcpu<ControlBlock>,
    pcpu: &mut Pcpu,
    act: impl FnOnce(&mut Vcpu<ControlBlock>, &mut Pcpu) -> T,
) -> T {
    const SYSTEM_CALLS: [u32; 3] = [0xc000_0081, 0xc000_0082, 0xc000_0084];
    // SAFETY: every 64-bit processor has STAR, LSTAR and FMASK.
    let own = SYSTEM_CALLS.map(|msr| unsafe { cpu::read_msr(msr) });
    vcpu.load(pcpu);
    let result = act(vcpu, pcpu);
    vcpu.unload(pcpu);
    for (msr, value) in SYSTEM_CALLS.into_iter().zip(own) {
        // SAFETY: what it was before.
        unsafe { cpu::write_msr(msr, value) };
    }
    result
}

/// Memory for what belongs to a pCPU.
pub fn frames() -> &'static Frames {
    let pages = Box::leak(Box::new(Pages::new((2 * LARGE_PAGE_SIZE / PAGE_SIZE) as usize)));
    let start = pages.address().next_multiple_of(LARGE_PAGE_SIZE);
    Box::leak(Box::new(Frames::new([(HostPhys(start), LARGE_PAGE_SIZE)])))
}
