// SPDX-License-Identifier: MIT OR Apache-2.0
//! The judge judges: VMX on `sapphire_rapids`, by a control structure and a guest of this test's own. Encodings: Intel
//! SDM volume 3, appendix B.

use pasidon_cpu::{Model, Pages, Processor};
use std::arch::{asm, naked_asm};

const FEATURE_CONTROL: u32 = 0x3a;
const VMX_BASIC: u32 = 0x480;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;

const EXIT_EPT_VIOLATION: u64 = 48;
const EXIT_CPUID: u64 = 10;
const EXIT_HLT: u64 = 12;
/// VM-entry failure due to invalid guest state.
const ENTRY_FAILURE: u64 = 1 << 31 | 33;

mod field {
    pub const EPT_POINTER: u64 = 0x201a;
    pub const INSTRUCTION_ERROR: u64 = 0x4400;
    pub const EXIT_REASON: u64 = 0x4402;
    pub const GUEST_PHYSICAL: u64 = 0x2400;
    pub const GUEST_RIP: u64 = 0x681e;
    pub const GUEST_RFLAGS: u64 = 0x6820;
    pub const HOST_RSP: u64 = 0x6c14;
    pub const HOST_RIP: u64 = 0x6c16;
}

/// Read, write, execute.
const ENTRY: u64 = 7;
const WRITE_BACK: u64 = 6;
const CODE: u64 = 0x1000;

/// A guest in real mode, with pages of the first 2 MiB.
struct Guest {
    vmxon: Pages,
    vmcs: Pages,
    tables: Pages,
    code: Pages,
    /// Fields that are written besides, or otherwise.
    fields: Vec<(u64, u64)>,
}

impl Guest {
    fn new(code: &[u8]) -> Guest {
        let one = || Pages::new(1);
        let guest =
            Guest { vmxon: one(), vmcs: one(), tables: Pages::new(4), code: one(), fields: Vec::new() };
        for level in 0..3 {
            guest.tables.write(level * 4096, (guest.tables.address() + (level as u64 + 1) * 4096) | ENTRY);
        }
        guest.map(CODE, &guest.code);
        guest.code.fill(0, code);
        guest
    }

    fn map(&self, address: u64, page: &Pages) {
        self.tables.write(3 * 4096 + address as usize / 4096 * 8, page.address() | ENTRY | WRITE_BACK << 3);
    }

    /// Four levels, write-back.
    fn ept_pointer(&self) -> u64 {
        self.tables.address() | 3 << 3 | WRITE_BACK
    }

    /// Enters VMX operation, with this guest as the current one. To be called on the processor.
    fn load(&self) {
        let revision = rdmsr(VMX_BASIC) as u32 & !(1 << 31);
        self.vmxon.write(0, revision);
        self.vmcs.write(0, revision);
        let (vmxon, vmcs) = (self.vmxon.address(), self.vmcs.address());
        let (cr0, cr3, cr4): (u64, u64, u64);
        // SAFETY: both are pages of the guest's own; the processor is one that a test can lose.
        unsafe {
            asm!("wrmsr", in("ecx") FEATURE_CONTROL, in("eax") 5, in("edx") 0);
            asm!("mov {0}, cr4", "bts {0}, 13", "mov cr4, {0}", out(reg) cr4);
            asm!("mov {}, cr0", "mov {}, cr3", out(reg) cr0, out(reg) cr3);
            let failed: u8;
            asm!("vmxon [{}]", "setbe {}", in(reg) &vmxon, out(reg_byte) failed);
            assert_eq!(failed, 0, "VMXON");
            asm!("vmclear [{0}]", "vmptrld [{0}]", in(reg) &vmcs);
        }
        // Host: the state of now. Selectors as this crate has them.
        for (selector, value) in [
            (0xc00, 0x10),
            (0xc02, 8),
            (0xc04, 0x10),
            (0xc06, 0x10),
            (0xc08, 0x10),
            (0xc0a, 0x10),
            (0xc0c, 0x18),
        ] {
            vmwrite(selector, value);
        }
        for (field, value) in
            [(0x6c00, cr0), (0x6c02, cr3), (0x6c04, cr4), (0x2c00, rdmsr(PAT)), (0x2c02, rdmsr(EFER))]
        {
            vmwrite(field, value);
        }
        let (gdt, idt) = descriptor_tables();
        for (field, value) in
            [(0x6c06, rdmsr(FS_BASE)), (0x6c08, rdmsr(GS_BASE)), (0x6c0a, gdt), (0x6c0c, gdt), (0x6c0e, idt)]
        {
            vmwrite(field, value);
        }
        // Controls: HLT exits, EPT, unrestricted guest, EFER and PAT of both sides; a 64-bit host.
        for (field, capability, wanted) in [
            (0x4000, 0x48d, 0),
            (0x4002, 0x48e, 1 << 7 | 1 << 31),
            (0x401e, 0x48b, 1 << 1 | 1 << 7),
            (0x400c, 0x48f, 1 << 9 | 1 << 19 | 1 << 21),
            (0x4012, 0x490, 1 << 14 | 1 << 15),
        ] {
            let allowed = rdmsr(capability);
            vmwrite(field, (wanted | allowed & 0xffff_ffff) & allowed >> 32);
        }
        vmwrite(field::EPT_POINTER, self.ept_pointer());
        vmwrite(0x2800, !0); // VMCS link pointer
        // Guest.
        for segment in 0..6 {
            vmwrite(0x4800 + 2 * segment, 0xffff);
            vmwrite(0x4814 + 2 * segment, if segment == 1 { 0x9b } else { 0x93 });
        }
        for (field, value) in [
            (0x4820, 1 << 16), // no LDT
            (0x480e, 0x67),
            (0x4822, 0x8b), // a busy task
            (0x4812, 0x3ff),
            (0x6800, 0x30),                  // CR0: NE, ET
            (0x6804, 1 << 13),               // CR4: VMXE
            (0x681a, 0x400),                 // DR7
            (0x2804, 0x0007_0406_0007_0406), // PAT
            (field::GUEST_RFLAGS, 2),
            (field::GUEST_RIP, CODE),
        ] {
            vmwrite(field, value);
        }
        for (field, value) in &self.fields {
            vmwrite(*field, *value);
        }
    }

    /// Enters it, and returns the exit's reason and the guest's RSI. Where it is refused, the reason is the
    /// VM-instruction error with bit 63 set.
    fn enter(&self, launched: bool) -> (u64, u64) {
        // SAFETY: the guest reaches its pages only.
        let result = unsafe { enter(launched) };
        match result.refused {
            0 => (vmread(field::EXIT_REASON), result.rsi),
            _ => (vmread(field::INSTRUCTION_ERROR) | 1 << 63, 0),
        }
    }
}

#[repr(C)]
struct Result {
    refused: u64,
    rsi: u64,
}

/// VMLAUNCH, or VMRESUME if `launched`.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(launched: bool) -> Result {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov eax, {rsp}", "vmwrite rax, rsp",
        "mov eax, {rip}", "lea rdx, [rip + 3f]", "vmwrite rax, rdx",
        "test dil, dil",
        "jnz 2f",
        "vmlaunch",
        "jmp 4f",
        "2: vmresume",
        "4: mov eax, 1",
        "jmp 5f",
        "3: xor eax, eax",
        "mov rdx, rsi",
        "5: pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        rsp = const field::HOST_RSP,
        rip = const field::HOST_RIP,
    )
}

fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only such MSRs are read that there are.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

fn vmwrite(field: u64, value: u64) {
    let failed: u8;
    // SAFETY: there is a current VMCS.
    unsafe { asm!("vmwrite {}, {}", "setbe {}", in(reg) field, in(reg) value, out(reg_byte) failed) };
    assert_eq!(failed, 0, "field {field:#x}");
}

fn vmread(field: u64) -> u64 {
    let value;
    // SAFETY: there is a current VMCS.
    unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) field) };
    value
}

/// Bases of the global and the interrupt descriptor table.
fn descriptor_tables() -> (u64, u64) {
    let (mut gdt, mut idt) = ([0u16; 5], [0u16; 5]);
    // SAFETY: room for both.
    unsafe { asm!("sgdt [{}]", "sidt [{}]", in(reg) &mut gdt, in(reg) &mut idt) };
    let base = |table: [u16; 5]| (0..4).map(|word| u64::from(table[1 + word]) << (16 * word)).sum();
    (base(gdt), base(idt))
}

#[test]
fn a_guest_runs_from_exit_to_exit() {
    let mut processor = Processor::new(Model::SapphireRapids);
    // cpuid; hlt; jmp to the start
    let guest = Guest::new(&[0x0f, 0xa2, 0xf4, 0xeb, 0xfb]);
    let rounds = processor.run(|| {
        guest.load();
        for round in 0..1000 {
            for (reason, length) in [(EXIT_CPUID, 2), (EXIT_HLT, 1)] {
                assert_eq!(guest.enter(round > 0 || reason == EXIT_HLT).0, reason, "round {round}");
                vmwrite(field::GUEST_RIP, vmread(field::GUEST_RIP) + length);
            }
        }
        vmread(field::GUEST_RIP)
    });
    assert_eq!(rounds.unwrap(), CODE + 3);
    assert_eq!(processor.refusal(), None);
}

#[test]
fn what_the_guest_does_not_have_is_told_with_its_address() {
    let mut processor = Processor::new(Model::SapphireRapids);
    // mov ax, [5008h]
    let guest = Guest::new(&[0xa1, 0x08, 0x50]);
    let told = processor.run(|| {
        guest.load();
        (guest.enter(false).0, vmread(field::GUEST_PHYSICAL))
    });
    assert_eq!(told.unwrap(), (EXIT_EPT_VIOLATION, 0x5008));
}

#[test]
fn a_wrong_guest_state_is_refused_in_words() {
    let mut processor = Processor::new(Model::SapphireRapids);
    let mut guest = Guest::new(&[0xf4]);
    guest.fields.push((field::GUEST_RFLAGS, 2 | 1 << 3));
    let told = processor.run(|| {
        guest.load();
        guest.enter(false).0
    });
    assert_eq!(told.unwrap(), ENTRY_FAILURE);
    let refusal = processor.refusal().unwrap();
    assert!(refusal.contains("RFLAGS reserved bits"), "{refusal}");
}

#[test]
fn an_ept_translation_stays_until_invept() {
    let (old, new) = (Pages::new(1), Pages::new(1));
    old.write(0, 0x0aau16);
    new.write(0, 0x0bbu16);
    for (what, kind, seen) in [("nothing", 0u64, 0xaa), ("this table", 1, 0xbb), ("everything", 2, 0xbb)] {
        let mut processor = Processor::new(Model::SapphireRapids);
        // mov si, [5000h]; hlt; jmp to the start
        let guest = Guest::new(&[0x8b, 0x36, 0x00, 0x50, 0xf4, 0xeb, 0xf9]);
        guest.map(0x5000, &old);
        let result = processor.run(|| {
            guest.load();
            assert_eq!(guest.enter(false), (EXIT_HLT, 0xaa), "{what}");
            vmwrite(field::GUEST_RIP, vmread(field::GUEST_RIP) + 1);
            guest.map(0x5000, &new);
            if kind != 0 {
                let descriptor = [guest.ept_pointer(), 0];
                // SAFETY: it drops translations.
                unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) &descriptor) };
            }
            guest.enter(true)
        });
        assert_eq!(result.unwrap(), (EXIT_HLT, seen), "{what}");
    }
}
