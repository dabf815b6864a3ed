// SPDX-License-Identifier: MIT OR Apache-2.0
//! The judge judges: SVM on `ryzen`, by a control block and a guest of this test's own. Offsets: AMD APM volume 2,
//! appendix B.

use pasidon_cpu::{Model, Pages, Processor};
use std::arch::asm;

const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_HSAVE_PA: u32 = 0xc001_0117;

const INTERCEPT_CPUID: u32 = 1 << 18;
const INTERCEPT_HLT: u32 = 1 << 24;
const INTERCEPT_NMI: u32 = 1 << 1;
const INTERCEPT_SHUTDOWN: u32 = 1 << 31;
const INTERCEPT_VMRUN: u32 = 1;
const EXIT_NMI: u64 = 0x61;
const EXIT_CPUID: u64 = 0x72;
const EXIT_HLT: u64 = 0x78;
const EXIT_NPF: u64 = 0x400;
const EXIT_INVALID: u64 = u64::MAX;

mod at {
    pub const INTERCEPTS: usize = 0xc;
    pub const ASID: usize = 0x58;
    pub const TLB_CONTROL: usize = 0x5c;
    pub const EXIT_CODE: usize = 0x70;
    pub const EXIT_INFO2: usize = 0x80;
    pub const NESTED: usize = 0x90;
    pub const NESTED_CR3: usize = 0xb0;
    pub const ES: usize = 0x400;
    pub const EFER: usize = 0x4d0;
    pub const CR0: usize = 0x558;
    pub const DR7: usize = 0x560;
    pub const DR6: usize = 0x568;
    pub const RFLAGS: usize = 0x570;
    pub const RIP: usize = 0x578;
    pub const PAT: usize = 0x668;
}

/// Present, writable, for users, as nested walks are.
const ENTRY: u64 = 7;
/// Where in its first 2 MiB the guest has its code.
const CODE: u64 = 0x1000;

/// A guest in real mode, with pages of the first 2 MiB.
struct Guest {
    vmcb: Pages,
    save: Pages,
    /// Four levels of tables, from the top.
    tables: Pages,
    code: Pages,
}

impl Guest {
    fn new(code: &[u8]) -> Guest {
        let guest =
            Guest { vmcb: Pages::new(1), save: Pages::new(1), tables: Pages::new(4), code: Pages::new(1) };
        for level in 0..3 {
            guest.tables.write(level * 4096, (guest.tables.address() + (level as u64 + 1) * 4096) | ENTRY);
        }
        guest.map(CODE, &guest.code);
        guest.code.fill(0, code);
        let vmcb = &guest.vmcb;
        vmcb.write(at::INTERCEPTS, INTERCEPT_CPUID | INTERCEPT_HLT | INTERCEPT_NMI | INTERCEPT_SHUTDOWN);
        vmcb.write(at::INTERCEPTS + 4, INTERCEPT_VMRUN);
        vmcb.write(at::ASID, 1u32);
        vmcb.write(at::NESTED, 1u64);
        vmcb.write(at::NESTED_CR3, guest.tables.address());
        for (segment, attributes) in [0x93u16, 0x9b, 0x93, 0x93].into_iter().enumerate() {
            vmcb.write(at::ES + segment * 16 + 2, attributes);
            vmcb.write(at::ES + segment * 16 + 4, 0xffffu32);
        }
        vmcb.write(at::EFER, EFER_SVME);
        vmcb.write(at::CR0, 0x10u64);
        vmcb.write(at::DR6, 0xffff_0ff0u64);
        vmcb.write(at::DR7, 0x400u64);
        vmcb.write(at::RFLAGS, 2u64);
        vmcb.write(at::RIP, CODE);
        vmcb.write(at::PAT, 0x0007_0406_0007_0406u64);
        guest
    }

    fn map(&self, address: u64, page: &Pages) {
        self.tables.write(3 * 4096 + address as usize / 4096 * 8, page.address() | ENTRY);
    }

    /// Enters it, and returns the exit's code and the guest's RSI. To be called on the processor.
    fn enter(&self) -> (u64, u64) {
        let (efer, save) = (rdmsr(EFER) | EFER_SVME, self.save.address());
        let rsi: u64;
        // SAFETY: the guest reaches its pages only; what it may change is said.
        unsafe {
            wrmsr(EFER, efer);
            wrmsr(VM_HSAVE_PA, save);
            asm!(
                "push rbx", "push rbp",
                "clgi", "vmrun rax", "stgi",
                "pop rbp", "pop rbx",
                inout("rax") self.vmcb.address() => _, out("rcx") _, out("rdx") _, out("rsi") rsi, out("rdi") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _,
                out("r15") _,
            );
        }
        (self.vmcb.read(at::EXIT_CODE), rsi)
    }

    fn skip(&self, length: u64) {
        self.vmcb.write(at::RIP, self.vmcb.read::<u64>(at::RIP) + length);
    }
}

fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only such MSRs are read that there are.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// # Safety
/// As the MSR demands.
unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller's word.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    };
}

#[test]
fn a_guest_runs_from_exit_to_exit() {
    let mut processor = Processor::new(Model::Ryzen);
    // cpuid; hlt; jmp to the start
    let guest = Guest::new(&[0x0f, 0xa2, 0xf4, 0xeb, 0xfb]);
    let rounds = processor.run(|| {
        for round in 0..1000 {
            for (code, length) in [(EXIT_CPUID, 2), (EXIT_HLT, 1)] {
                assert_eq!(guest.enter().0, code, "round {round}");
                guest.skip(length);
            }
        }
    });
    rounds.unwrap();
    assert_eq!(processor.refusal(), None);
    assert_eq!(guest.vmcb.read::<u64>(at::RIP), CODE + 3);
}

#[test]
fn what_the_guest_does_not_have_is_told_with_its_address() {
    let mut processor = Processor::new(Model::Ryzen);
    // mov ax, [5008h]
    let guest = Guest::new(&[0xa1, 0x08, 0x50]);
    assert_eq!(processor.run(|| guest.enter().0).unwrap(), EXIT_NPF);
    assert_eq!(guest.vmcb.read::<u64>(at::EXIT_INFO2), 0x5008);
}

#[test]
fn a_wrong_control_block_is_refused_in_words() {
    let mut processor = Processor::new(Model::Ryzen);
    type Break = fn(&Guest);
    let cases: [(&str, Break); 4] = [
        ("ASID", |guest| guest.vmcb.write(at::ASID, 0u32)),
        ("VMRUN intercept", |guest| guest.vmcb.write(at::INTERCEPTS + 4, 0u32)),
        ("EFER.SVME", |guest| guest.vmcb.write(at::EFER, 0u64)),
        ("DR7", |guest| guest.vmcb.write(at::DR7, 1u64 << 32)),
    ];
    for (word, break_it) in cases {
        let guest = Guest::new(&[0xf4]);
        break_it(&guest);
        assert_eq!(processor.run(|| guest.enter().0).unwrap(), EXIT_INVALID, "{word}");
        let refusal = processor.refusal().unwrap();
        assert!(refusal.contains(word), "{word}: {refusal}");
    }
}

#[test]
fn a_nested_translation_stays_until_its_asid_is_flushed() {
    let mut processor = Processor::new(Model::Ryzen);
    let (old, new) = (Pages::new(1), Pages::new(1));
    old.write(0, 0x0aau16);
    new.write(0, 0x0bbu16);
    let flush = |control: u32| (at::TLB_CONTROL, control);
    for (what, (place, value), seen) in [
        ("nothing", flush(0), 0xaa),
        ("everything", flush(1), 0xbb),
        ("this ASID", flush(3), 0xbb),
        ("another ASID is used", (at::ASID, 2), 0xbb),
    ] {
        // mov si, [5000h]; hlt; jmp to the start
        let guest = Guest::new(&[0x8b, 0x36, 0x00, 0x50, 0xf4, 0xeb, 0xf9]);
        guest.map(0x5000, &old);
        guest.vmcb.write(at::TLB_CONTROL, 1u32);
        let result = processor.run(|| {
            assert_eq!(guest.enter(), (EXIT_HLT, 0xaa), "{what}");
            guest.skip(1);
            guest.map(0x5000, &new);
            guest.vmcb.write(at::TLB_CONTROL, 0u32);
            guest.vmcb.write(place, value);
            guest.enter()
        });
        assert_eq!(result.unwrap(), (EXIT_HLT, seen), "{what}");
    }
}

#[test]
fn a_device_sees_what_the_guest_does() {
    let mut processor = Processor::new(Model::Ryzen);
    let device = Pages::new(1);
    processor.device(&device);
    // mov byte [6003h], 7; mov eax, [6008h]; hlt
    let guest = Guest::new(&[0xc6, 0x06, 0x03, 0x60, 0x07, 0x66, 0xa1, 0x08, 0x60, 0xf4]);
    guest.map(0x6000, &device);
    assert_eq!(processor.run(|| guest.enter().0).unwrap(), EXIT_HLT);
    let seen = processor.accesses();
    let brief: Vec<_> = seen.iter().map(|access| (access.offset, access.size, access.write)).collect();
    assert_eq!(brief, [(3, 1, true), (8, 4, false)], "{seen:?}");
}

#[test]
fn an_nmi_ends_the_guest_and_is_the_hosts() {
    let mut processor = Processor::new(Model::Ryzen);
    let guest = Guest::new(&[0xeb, 0xfe]);
    processor.nmi(10_000);
    assert_eq!(processor.run(|| guest.enter().0).unwrap(), EXIT_NMI);
    assert_eq!(processor.taken(2), 1, "after STGI");
}
