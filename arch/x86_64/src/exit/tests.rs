// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU as a whole, on processors that others have written: entries, exits and their answers, as the loop has them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use pasidon_arch_common::board::Board;
use pasidon_arch_common::hardware::{Chipset as _, Core as _};
use pasidon_arch_common::memory::RamView;
use pasidon_arch_common::view::Sink;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::msi::Posting;
use pasidon_kernel::vdev::model::SharedModel;
use pasidon_kernel::vdev::parent::{
    Attached, Bar, DeviceQuiesced, InterruptBinding, PciIdentity, Portal, QuiesceFailed, Remains,
    UntranslatedMemory, VdevModel, VdevRegisters,
};
use pasidon_kernel::vm::exit::{Action, MsiMessage};
use spin::Mutex;

use super::*;
use crate::cpu;
use crate::extension::Extension;
use crate::extension::tests::guest::{
    CODE, CR4, DATA, Guest, IDT, Poke, Rig, STACK, entry, handler_at, poke_at,
};
use crate::extension::tests::on_both;
use crate::guest::chipset::PcChipset;
use crate::guest::layout;
use crate::posted::tests::posted;

on_both! {
    what_a_guest_asks_for_it_gets,
    what_a_guest_must_not_do_is_its_own_exception,
    a_triple_fault_is_a_reset,
    each_debug_exception_lets_the_hosts_interrupts_in,
    int1_returns_behind_itself,
    what_is_not_there_takes_no_interrupt,
    movdir64b_reaches_its_vdev_as_one_store,
    fs_and_gs_have_bases_in_64_bit_code,
}

/// Where the guest sees the I/O APIC: its linear addresses end at 1 GiB.
const IOAPIC: u64 = 100 << 21;

/// STAR, LSTAR, FMASK.
const SYSTEM_CALLS: [u32; 3] = [0xc000_0081, 0xc000_0082, 0xc000_0084];

/// What came of exits.
#[derive(Default)]
struct Seen {
    actions: Mutex<Vec<Action>>,
    end: Mutex<Option<VmEnd>>,
}

impl Sink for Seen {
    fn act(&self, action: Action) {
        self.actions.lock().push(action);
    }

    fn end(&self, end: VmEnd) {
        self.end.lock().get_or_insert(end);
    }
}

/// A VM and a pCPU.
struct Machine {
    rig: Rig,
    guest: Guest,
    core: Core,
    memory: RamView,
    board: Mutex<Board<PcChipset>>,
    seen: Seen,
}

impl Machine {
    fn new(extension: Extension, code: &[u8]) -> Machine {
        let mut rig = Rig::new(extension);
        let guest = Guest::new(extension, code);
        guest.map_linear(IOAPIC >> 21, layout::IOAPIC_BASE);
        let root = guest.table.root();
        let mut core = rig.processor.run(|| Core::new("alpha", extension, root, 48, None)).unwrap();
        core.hardware.start_at(&entry(CODE));
        poke_at(&mut core.hardware, Poke::Idt(IDT, 4095));
        core.hardware.set_gpr(4, STACK);
        // SAFETY: every 64-bit processor has these registers.
        let system_calls =
            rig.processor.run(|| SYSTEM_CALLS.map(|msr| unsafe { cpu::read_msr(msr) })).unwrap();
        poke_at(&mut core.hardware, Poke::SystemCalls(system_calls));
        let memory = RamView::new(&guest.memory);
        let board = Mutex::new(Board::new(PcChipset::new(0, 1).unwrap()));
        Machine { rig, guest, core, memory, board, seen: Seen::default() }
    }

    /// Runs it until it waits for an interrupt, or its life is over. Returns for each exit what it took, in ticks of the
    /// TSC, with its entry, and whether the next entry may follow at once.
    fn run(&mut self) -> Vec<(Reason, u64, bool)> {
        let Machine { rig, core, memory, board, seen, .. } = self;
        let vm = Vm { name: "alpha", memory, board, sink: seen };
        let pcpu = &mut rig.pcpu;
        let mut exits = Vec::with_capacity(4096);
        let run = || {
            // SAFETY: the processor has XSAVE and these registers; what the test itself uses comes back.
            unsafe {
                crate::extended::enable();
                let host = cpu::read_xcr0();
                let everything = crate::extended::ExtendedFeatures::detect().xcr0;
                core.load(&vm, pcpu);
                assert!(core.extended.set_xcr0(everything));
                while !core.is_waiting(&vm) && seen.end.lock().is_none() {
                    let begin = time::tsc();
                    core.prepare(&vm);
                    let reason = core.enter(pcpu, false);
                    core.left(&vm);
                    let goes_on = core.handle(&vm, reason);
                    exits.push((reason, time::tsc() - begin, goes_on));
                    assert!(exits.len() < 4096, "it does not come to an end");
                }
                core.unload(&vm, pcpu);
                cpu::write_xcr0(host);
            }
        };
        rig.processor.run(run).unwrap();
        exits
    }

    /// Plugs a vdev and turns its bus mastering, memory decoding and MSI-X on. Returns where BAR 0 is.
    fn plug(&mut self, model: Box<dyn VdevRegisters>) -> u64 {
        const PORT: u64 = layout::ECAM_BASE + (1 << 15);
        const FUNCTION: u64 = layout::ECAM_BASE + (1 << 20);
        self.board.lock().chipset.add_vdev(model, &mut |_| {}).unwrap();
        self.access(PORT + 4, 2, AccessKind::Write(6));
        self.access(FUNCTION + 4, 2, AccessKind::Write(6));
        self.access(FUNCTION + 0x82, 2, AccessKind::Write(0x8000));
        self.access(FUNCTION + 0x10, 8, AccessKind::Read) & !0xf
    }

    /// An access of the vCPU's to a device.
    fn access(&mut self, address: u64, size: u8, kind: AccessKind) -> u64 {
        let exit = Exit::Mmio(Access { address, size, kind });
        let (lapic, now) = (&mut self.core.lapic, || Moment::default());
        let answer = self.board.lock().chipset.exit(&exit, lapic, &now, &mut |_| {});
        answer.unwrap_or_default().value
    }

    /// The words that the guest wrote.
    fn words<const N: usize>(&self) -> [u64; N] {
        core::array::from_fn(|index| self.guest.read(DATA + 8 * index as u64))
    }
}

/// VMMCALL or VMCALL.
fn hypercall(extension: Extension) -> [u8; 3] {
    match extension {
        Extension::Svm => [0x0f, 0x01, 0xd9],
        Extension::Vmx => [0x0f, 0x01, 0xc1],
    }
}

fn what_a_guest_asks_for_it_gets(extension: Extension) {
    let [call @ .., last] = hypercall(extension);
    let code = [
        0xb8, 0x00, 0x00, 0x00, 0x40, // mov eax, 40000000h
        0x0f, 0xa2, // cpuid
        0x89, 0x1f, // mov [rdi], ebx
        0xb9, 0x1b, 0x00, 0x00, 0x00, // mov ecx, IA32_APIC_BASE
        0x0f, 0x32, // rdmsr
        0x89, 0x47, 0x08, // mov [rdi + 8], eax
        0x0d, 0x00, 0x0c, 0x00, 0x00, // or eax, x2APIC
        0x0f, 0x30, // wrmsr
        0xba, 0xfd, 0x03, 0x00, 0x00, // mov edx, 3fdh
        0xec, // in al, dx
        0x88, 0x47, 0x10, // mov [rdi + 16], al
        0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 3f8h
        0xb0, 0x41, // mov al, 'A'
        0xee, // out dx, al
        0xbb, 0x00, 0x00, 0x80, 0x0c, // mov ebx, I/O APIC
        0xc7, 0x03, 0x01, 0x00, 0x00, 0x00, // mov dword [rbx], 1
        0x8b, 0x43, 0x10, // mov eax, [rbx + 16]
        0x89, 0x47, 0x18, // mov [rdi + 24], eax
        call[0], call[1], last, // the hypervisor
        0x48, 0x89, 0x47, 0x20, // mov [rdi + 32], rax
        0x0f, 0x20, 0xe0, // mov rax, cr4
        0x48, 0x83, 0xc8, 0x40, // or rax, MCE
        0x0f, 0x22, 0xe0, // mov cr4, rax
        0x0f, 0x20, 0xe0, // mov rax, cr4
        0x48, 0x89, 0x47, 0x28, // mov [rdi + 40], rax
        0xb9, 0x80, 0x00, 0x00, 0xc0, // mov ecx, EFER
        0x0f, 0x32, // rdmsr
        0x0f, 0x30, // wrmsr
        0xb9, 0x77, 0x02, 0x00, 0x00, // mov ecx, IA32_PAT
        0x0f, 0x32, // rdmsr
        0x0f, 0x30, // wrmsr
        0xb9, 0x0f, 0x08, 0x00, 0x00, // mov ecx, SVR
        0xb8, 0xff, 0x01, 0x00, 0x00, // mov eax, enabled
        0x31, 0xd2, // xor edx, edx
        0x0f, 0x30, // wrmsr
        0xb9, 0x3f, 0x08, 0x00, 0x00, // mov ecx, SELF IPI
        0xb8, 0x41, 0x00, 0x00, 0x00, // mov eax, 41h
        0x0f, 0x30, // wrmsr
        0xfb, // sti
        0x90, // nop
        0xfa, // cli
        0xf4, // hlt
    ];
    let mut machine = Machine::new(extension, &code);
    machine.core.hardware.set_gpr(7, DATA);
    machine.run();
    assert_eq!(machine.seen.end.lock().take(), None);
    let rip = machine.core.hardware.rip();
    assert_eq!(handler_at(rip.wrapping_sub(1)), Some(0x41), "the interrupt's handler, behind its HLT");
    assert_eq!(
        machine.words(),
        [
            u32::from_le_bytes(*b"KVMK").into(),
            0xfee0_0900,
            0x60,
            machine.guest.read(DATA + 24),
            NO_SUCH_HYPERCALL,
            CR4 | 0x40,
        ]
    );
    const ENTRIES: u64 = 0xff << 16;
    assert_ne!(machine.guest.read(DATA + 24) & ENTRIES, 0, "the I/O APIC says how many pins it has");
    let printed: Vec<u8> = machine
        .seen
        .actions
        .lock()
        .iter()
        .filter_map(|action| match action {
            Action::Console(byte) => Some(*byte),
            _ => None,
        })
        .collect();
    assert_eq!(printed, b"A");
}

fn what_a_guest_must_not_do_is_its_own_exception(extension: Extension) {
    for (name, code, vector) in [
        ("an MSR that is not there", &[0xb9_u8, 0x34, 0x12, 0, 0, 0x0f, 0x32] as &[u8], 13),
        ("CR4.VMXE", &[0x0f, 0x20, 0xe0, 0x48, 0x0f, 0xba, 0xe8, 0x0d, 0x0f, 0x22, 0xe0], 13),
        ("CR4.PKE", &[0x0f, 0x20, 0xe0, 0x48, 0x0f, 0xba, 0xe8, 0x16, 0x0f, 0x22, 0xe0], 13),
        ("EFER.SVME", &[0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0xba, 0xe8, 0x0c, 0x0f, 0x30], 13),
        ("XCR0 without x87", &[0x31, 0xc9, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x01, 0xd1], 13),
        ("RDPMC", &[0x0f, 0x33], 13),
        ("MWAIT", &[0x0f, 0x01, 0xc9], 6),
        (
            "VMXON, or VMRUN",
            if extension == Extension::Vmx { &[0xf3, 0x0f, 0xc7, 0x37] } else { &[0x0f, 0x01, 0xd8] },
            6,
        ),
        ("code where a device is", &[0xbb, 0x00, 0x00, 0x80, 0x0c, 0xff, 0xe3], 6),
    ] {
        let mut machine = Machine::new(extension, code);
        machine.core.hardware.set_gpr(7, DATA);
        machine.run();
        let rip = machine.core.hardware.rip();
        assert_eq!(machine.seen.end.lock().take(), None, "{name}");
        assert_eq!(handler_at(rip.wrapping_sub(1)), Some(vector), "{name}: at {rip:#x}");
    }
}

fn a_triple_fault_is_a_reset(extension: Extension) {
    let mut machine = Machine::new(extension, &[0x0f, 0x0b]);
    poke_at(&mut machine.core.hardware, Poke::Idt(0, 0));
    machine.run();
    let end = machine.seen.end.lock().take();
    assert!(matches!(end, Some(VmEnd::FaultReset(ref why)) if why.contains("RIP 0x1000")), "{end:?}");
}

fn each_debug_exception_lets_the_hosts_interrupts_in(extension: Extension) {
    // One whose frame meets a breakpoint comes again behind each delivery, for ever.
    let mut machine = Machine::new(extension, &[0x90, 0xf4]);
    machine.core.hardware.parts().1.rflags = 0x102;
    let exits = machine.run();
    assert!(matches!(exits[0], (Reason::Exception(_), _, false)), "{exits:?}");
    assert!(matches!(exits[1], (Reason::Halt, _, true)), "{exits:?}");
    assert_eq!(handler_at(machine.core.hardware.rip() - 1), Some(1));
}

fn int1_returns_behind_itself(extension: Extension) {
    let mut machine = Machine::new(extension, &[0xf1, 0x90, 0xf4]);
    machine.run();
    assert_eq!(handler_at(machine.core.hardware.rip() - 1), Some(1));
    assert_eq!(machine.guest.read(machine.core.hardware.gpr(4)), CODE + 1);
}

/// What a [`Slice`] was told.
#[derive(Default)]
struct Told {
    /// Where its interrupt was routed.
    routed: Vec<Option<Posting>>,
    /// BAR, offset and what was stored there.
    submitted: Vec<(u8, u64, [u8; 64])>,
}

/// A slice with one interrupt.
struct Slice(Arc<Mutex<Told>>);

/// Where BAR 2 of a [`Slice`] is from BAR 0 after a reset, and its length.
const SECOND_BAR: u64 = 0x1_0000;
const SECOND_BAR_LEN: u64 = 0x4000;

impl VdevRegisters for Slice {
    fn identity(&self) -> PciIdentity {
        PciIdentity {
            vendor: 0x8086,
            device: 0x0b25,
            subsystem: (0x8086, 0),
            revision: 0,
            class: 0x08_8000,
            bars: vec![
                Bar { index: 0, size: SECOND_BAR, prefetchable: true },
                Bar { index: 2, size: SECOND_BAR_LEN, prefetchable: true },
            ],
            msix_vectors: 1,
            msix_bar: 0,
            msix_table: 0x2000,
            msix_pba: 0x3000,
        }
    }

    fn portals(&self) -> Vec<Portal> {
        Vec::new()
    }

    fn read(&mut self, _bar: u8, _offset: u64, _size: u8) -> u64 {
        0
    }

    fn write(&mut self, _bar: u8, _offset: u64, _size: u8, _value: u64, _raise: &mut dyn FnMut(u16)) {}

    fn submit(&mut self, bar: u8, offset: u64, descriptor: &[u8; 64], _raise: &mut dyn FnMut(u16)) {
        self.0.lock().submitted.push((bar, offset, *descriptor));
    }

    fn set_bus_master(&mut self, _enabled: bool, _raise: &mut dyn FnMut(u16)) {}

    fn reset(&mut self) -> Result<(), QuiesceFailed> {
        Ok(())
    }

    fn route_interrupt(&mut self, _vector: u16, to: Option<&Posting>) {
        self.0.lock().routed.push(to.cloned());
    }

    fn remains(&mut self, _raise: &mut dyn FnMut(u16)) -> Box<dyn Remains> {
        panic!("it does not end")
    }
}

impl VdevModel for Slice {
    fn interrupts(&self) -> Vec<InterruptBinding> {
        Vec::new()
    }

    fn attach(&mut self, _to: Attached) -> Result<(), Refusal> {
        Ok(())
    }

    fn attach_untranslated(&mut self, _to: Arc<dyn UntranslatedMemory>) -> Result<(), Refusal> {
        Ok(())
    }

    fn quiesce(&mut self) -> Result<DeviceQuiesced, QuiesceFailed> {
        Ok(DeviceQuiesced::confirmed_by_device())
    }

    fn describe(&self) -> Vec<(&'static str, alloc::string::String)> {
        Vec::new()
    }
}

/// Turns the local APIC on, as x2APIC: IA32_APIC_BASE, then SVR.
const X2APIC_ON: [u8; 31] = [
    0xb9, 0x1b, 0x00, 0x00, 0x00, // mov ecx, IA32_APIC_BASE
    0xb8, 0x00, 0x0d, 0xe0, 0xfe, // mov eax, on, x2APIC, first processor
    0x31, 0xd2, // xor edx, edx
    0x0f, 0x30, // wrmsr
    0xb9, 0x0f, 0x08, 0x00, 0x00, // mov ecx, SVR
    0xb8, 0xff, 0x01, 0x00, 0x00, // mov eax, enabled
    0x0f, 0x30, // wrmsr
    0xfb, // sti
    0x90, // nop
    0xf4, // hlt
    0x90, 0x90,
];

#[test]
fn a_devices_interrupt_is_posted_where_the_guest_can_take_it_as_it_is() {
    const TABLE: u64 = 0x2000;
    let mut machine = Machine::new(Extension::Vmx, &X2APIC_ON);
    let descriptor = Arc::new(posted(0x51, 0));
    let told = Arc::new(Mutex::new(Told::default()));
    machine.board.lock().chipset.post_to(descriptor.clone());
    let base = machine.plug(Box::new(Slice(told.clone())));
    machine.core.post_to(descriptor.clone());
    machine.run();
    let mut program = |message: MsiMessage| {
        for (offset, size, value) in
            [(12, 4, 1), (0, 8, message.address), (8, 4, message.data.into()), (12, 4, 0)]
        {
            machine.access(base + TABLE + offset, size, AccessKind::Write(value));
        }
        let routed = core::mem::take(&mut told.lock().routed);
        routed.last().unwrap().as_ref().map(|posting| posting.vector)
    };
    // Physical and logical, everybody; another processor, another address, NMI, level, an exception's vector.
    for (address, data, posted) in [
        (0xfee0_0000, 0x41, Some(0x41)),
        (0xfee0_1004, 0x42, Some(0x42)),
        (0xfeef_f000, 0x43, Some(0x43)),
        (0xfee0_1000, 0x41, None),
        (0xfee0_2004, 0x41, None),
        (0xfed0_0000, 0x41, None),
        (0xfee0_0000, 0x441, None),
        (0xfee0_0000, 0xc041, None),
        (0xfee0_0000, 0x0f, None),
        (0xfee0_0000, 0x141, Some(0x41)),
    ] {
        assert_eq!(program(MsiMessage { address, data }), posted, "{data:#x} to {address:#x}");
    }

    // Posted while it waits: it goes on, without a window or an injection.
    descriptor.post(0x41);
    machine.core.tick();
    let exits = machine.run();
    assert!(exits.iter().all(|(reason, ..)| *reason == Reason::Halt), "{exits:?}");
    assert_eq!(handler_at(machine.core.hardware.rip() - 1), Some(0x41));
    assert!(machine.core.delivers);
}

fn what_is_not_there_takes_no_interrupt(extension: Extension) {
    // ud2, with a stack where the I/O APIC is.
    let mut machine = Machine::new(extension, &[0x0f, 0x0b]);
    machine.core.hardware.set_gpr(4, IOAPIC + 0x100);
    machine.run();
    let end = machine.seen.end.lock().take();
    assert!(matches!(end, Some(VmEnd::Crashed(ref why)) if why.contains("which is not RAM")), "{end:?}");
}

/// Where the guest sees the page with a vdev's BAR 2.
const VDEV: u64 = 101 << 21;

/// A guest with that vdev behind [`VDEV`], and where it sees BAR 2.
fn with_vdev(extension: Extension, code: &[u8], model: Box<dyn VdevRegisters>) -> (Machine, u64) {
    let mut machine = Machine::new(extension, code);
    let bar = machine.plug(model) + SECOND_BAR;
    machine.guest.map_linear(VDEV >> 21, bar & !0x1f_ffff);
    (machine, VDEV + bar % 0x20_0000)
}

fn movdir64b_reaches_its_vdev_as_one_store(extension: Extension) {
    // movdir64b rbx, [rdi]
    const STORE: [u8; 5] = [0x66, 0x0f, 0x38, 0xf8, 0x1f];
    let code: [&[u8]; 4] = [
        &STORE,
        &[0x48, 0x83, 0xc3, 0x40], // add rbx, 64
        &STORE,
        &[0xf4], // hlt
    ];
    let told = Arc::new(Mutex::new(Told::default()));
    let (mut machine, bar) = with_vdev(extension, &code.concat(), Box::new(Slice(told.clone())));
    let descriptor: [u8; 64] = core::array::from_fn(|i| i as u8);
    machine.guest.write_bytes(DATA, &descriptor);
    // The first is the BAR's last, the second behind it.
    machine.core.hardware.set_gpr(3, bar + SECOND_BAR_LEN - 64);
    machine.core.hardware.set_gpr(7, DATA);
    let exits = machine.run();
    assert_eq!(machine.seen.end.lock().take(), None);
    assert_eq!(exits.len(), 3, "{exits:?}");
    assert_eq!(told.lock().submitted, [(2, SECOND_BAR_LEN - 64, descriptor)]);
    assert_eq!(machine.board.lock().chipset.unclaimed(), (1, 0));
}

fn fs_and_gs_have_bases_in_64_bit_code(extension: Extension) {
    const WINDOW: u8 = 0x10;
    let read = |msr: u8, prefix: u8, at: u8| {
        [
            &[0xb9, msr, 0x01, 0x00, 0xc0][..], // mov ecx, FS.base or GS.base
            &[0xb8, WINDOW, 0x00, 0x00, 0x00],  // mov eax, 10h
            &[0x31, 0xd2],                      // xor edx, edx
            &[0x0f, 0x30],                      // wrmsr
            &[prefix, 0x8b, 0x03],              // mov eax, fs:[rbx] or gs:[rbx]
            &[0x89, 0x47, at],                  // mov [rdi + at], eax
            &[0xb8, 0x00, 0x00, 0x00, 0x00],    // mov eax, 0
            &[0x0f, 0x30],                      // wrmsr
        ]
        .concat()
    };
    let code = [
        &[0xc7, 0x03, 0x01, 0x00, 0x00, 0x00][..], // mov dword [rbx], 1
        &read(0x00, 0x64, 0),
        &read(0x01, 0x65, 8),
        &[0xf4], // hlt
    ];
    let mut machine = Machine::new(extension, &code.concat());
    machine.core.hardware.set_gpr(3, IOAPIC);
    machine.core.hardware.set_gpr(7, DATA);
    machine.run();
    let version = machine.access(layout::IOAPIC_BASE + u64::from(WINDOW), 4, AccessKind::Read);
    assert!(version > 1);
    assert_eq!(machine.words(), [version; 2], "the I/O APIC's window, not its index");
}

/// How many instructions exits take, with the entry: the processor's TSC counts them. To be run in a release build.
#[test]
#[ignore = "prints figures; `cargo xtask bench processors` runs it"]
fn instructions_per_exit() {
    for extension in [Extension::Svm, Extension::Vmx] {
        let [first, second, third] = hypercall(extension);
        for (name, code) in [
            ("CPUID", &[0x0f_u8, 0xa2, 0xff, 0xce, 0x75, 0xfa, 0xf4] as &[u8]),
            ("null hypercall", &[first, second, third, 0xff, 0xce, 0x75, 0xf9, 0xf4]),
            ("port read", &[0xec, 0xff, 0xce, 0x75, 0xfb, 0xf4]),
            ("trapped MMIO read", &[0x8b, 0x03, 0xff, 0xce, 0x75, 0xfa, 0xf4]),
            ("RDMSR", &[0x0f, 0x32, 0xff, 0xce, 0x75, 0xfa, 0xf4]),
            ("MOVDIR64B to a vdev", &[0x66, 0x0f, 0x38, 0xf8, 0x2f, 0xff, 0xce, 0x75, 0xf7, 0xf4]),
        ] {
            let model = SharedModel::new(Box::new(Slice(Arc::default())));
            let (mut machine, bar) = with_vdev(extension, code, model.guest_side());
            // RCX: IA32_APIC_BASE; RDX: COM1's line status; RBX: the I/O APIC; RBP: a vdev; RSI: how often.
            for (register, value) in [(1, 0x1b), (2, 0x3fd), (3, IOAPIC + 0x10), (5, bar), (6, 64), (7, DATA)]
            {
                machine.core.hardware.set_gpr(register, value);
            }
            let exits = machine.run();
            let mut ticks: Vec<u64> = exits[..exits.len() - 1].iter().map(|(_, ticks, _)| *ticks).collect();
            ticks.sort_unstable();
            let median = ticks[ticks.len() / 2];
            let extension = format!("{extension:?}").to_uppercase();
            std::println!("instructions per {name}, {extension}: {median}");
        }
    }
}
