// SPDX-License-Identifier: MIT OR Apache-2.0
//! For each control, mask and intercept: what shows that it is on. Each is taken away once, and that has to be noticed.

use super::super::controls::{DELIVERY, ENTRY, EXIT, Entry, Exit, PIN, PRIMARY, Pin, Primary, Secondary};
use super::super::{CR0_OWNED, EXCEPTIONS, Field, SegmentRegister, VmxPcpu};
use super::{block, pcpu, rig};
use crate::backend::{Backend, ControlRegister, Reason};
use crate::cpu::{self, msr};
use crate::extension::tests::guest::{CR0, CR4, DATA, Guest, Poke, Rig, loaded};

/// Something that is taken away.
#[derive(Clone, Copy, Debug)]
enum Without {
    Pin(Pin),
    Primary(Primary),
    Secondary(Secondary),
    Exit(Exit),
    Entry(Entry),
    /// Bits of a field.
    Bits(Field, u64),
}

impl Without {
    fn take_away(self, machine: &mut Rig, guest: &mut Guest) {
        let VmxPcpu { controls, .. } = pcpu(machine);
        match self {
            Self::Pin(bit) => controls.pin &= !bit.bits(),
            Self::Primary(bit) => controls.primary &= !bit.bits(),
            Self::Secondary(bit) => controls.secondary &= !bit.bits(),
            Self::Exit(bit) => controls.exit &= !bit.bits(),
            Self::Entry(bit) => controls.entry &= !bit.bits(),
            Self::Bits(field, bits) => {
                let vmcs = &mut block(&mut guest.vcpu).vmcs;
                let value = vmcs.waiting(field);
                assert_eq!(value & bits, bits, "{field:?}");
                vmcs.write(field, value & !bits);
            }
        }
    }
}

/// Enters the guest; `None` where it never comes back.
fn enter(machine: &mut Rig, guest: &mut Guest) -> Option<Reason> {
    let (vcpu, pcpu) = (&mut guest.vcpu, &mut machine.pcpu);
    let entered =
        machine.processor.run_for(2_000_000, || loaded(vcpu, pcpu, |vcpu, pcpu| vcpu.enter(pcpu, false)));
    entered.ok()
}

/// What is seen of the control: the guest's code, what is set before, and whether all is as it should be.
struct Probe {
    without: Without,
    code: &'static [u8],
    check: fn(&mut Rig, &mut Guest) -> bool,
}

/// The guest comes to `reason`.
macro_rules! comes_to {
    ($reason:pat) => {
        |machine, guest| matches!(enter(machine, guest), Some($reason))
    };
}

const HLT: u8 = 0xf4;
/// inc rax; jmp to it
const COUNTER: &[u8] = &[0x48, 0xff, 0xc0, 0xeb, 0xfb];
const LATER: u64 = 200_000;

fn probes() -> alloc::vec::Vec<Probe> {
    let probe = |without, code, check| Probe { without, code, check };
    alloc::vec![
        probe(Without::Pin(Pin::EXTERNAL_INTERRUPT), COUNTER, |machine, guest| {
            machine.processor.interrupt(0x51, LATER);
            enter(machine, guest) == Some(Reason::HostInterrupt)
        }),
        probe(Without::Pin(Pin::NMI), COUNTER, |machine, guest| {
            machine.processor.nmi(LATER);
            enter(machine, guest) == Some(Reason::HostInterrupt) && machine.processor.taken(2) == 1
        }),
        probe(Without::Pin(Pin::VIRTUAL_NMIS), &[0x90, HLT], |machine, guest| {
            machine.on(guest, |vcpu, _| vcpu.hasten_nmi());
            enter(machine, guest) == Some(Reason::InterruptWindow)
        }),
        probe(Without::Primary(Primary::TSC_OFFSET), &[0x0f, 0x31, HLT], |machine, guest| {
            machine.on(guest, |vcpu, _| vcpu.set_tsc_offset(1 << 60));
            enter(machine, guest) == Some(Reason::Halt) && guest.vcpu.gpr(2) >> 28 == 1
        }),
        probe(Without::Primary(Primary::HLT), &[HLT], comes_to!(Reason::Halt)),
        probe(Without::Primary(Primary::MWAIT), &[0x0f, 0x01, 0xc9, HLT], comes_to!(Reason::Undefined)),
        probe(Without::Primary(Primary::MONITOR), &[0x0f, 0x01, 0xc8, HLT], |machine, guest| {
            guest.vcpu.set_gpr(0, DATA);
            enter(machine, guest) == Some(Reason::Undefined)
        }),
        probe(Without::Primary(Primary::RDPMC), &[0x0f, 0x33, HLT], comes_to!(Reason::Forbidden)),
        // mov cr8, rax
        probe(Without::Primary(Primary::TPR_SHADOW), &[0x44, 0x0f, 0x22, 0xc0, HLT], |machine, guest| {
            guest.vcpu.set_gpr(0, 5);
            enter(machine, guest) == Some(Reason::Halt) && machine.on(guest, |vcpu, _| vcpu.cr8()) == 5
        }),
        probe(Without::Primary(Primary::IO), &[0xe6, 0x80, HLT], comes_to!(Reason::Io(_))),
        // rdmsr of STAR
        probe(Without::Primary(Primary::MSR_BITMAP), &[0x0f, 0x32, HLT], |machine, guest| {
            guest.vcpu.set_gpr(1, 0xc000_0081);
            enter(machine, guest) == Some(Reason::Halt)
        }),
        probe(Without::Primary(Primary::SECONDARY), &[HLT], comes_to!(Reason::Halt)),
        probe(Without::Secondary(Secondary::EPT), &[HLT], comes_to!(Reason::Halt)),
        probe(Without::Secondary(Secondary::UNRESTRICTED), &[HLT], |machine, guest| {
            block(&mut guest.vcpu).vmcs.write(Field::GuestCr0, 0x30);
            block(&mut guest.vcpu).vmcs.write(Field::GuestEfer, 0);
            enter(machine, guest) == Some(Reason::Halt)
        }),
        probe(Without::Secondary(Secondary::RDTSCP), &[0x0f, 0x01, 0xf9, HLT], |machine, guest| {
            enter(machine, guest) == Some(Reason::Halt) && guest.handling().is_none()
        }),
        probe(Without::Secondary(Secondary::WBINVD), &[0x0f, 0x09, HLT], comes_to!(Reason::Ignored)),
        // invpcid rax, [rsi]
        probe(
            Without::Secondary(Secondary::INVPCID),
            &[0x66, 0x0f, 0x38, 0x82, 0x06, HLT],
            |machine, guest| {
                guest.vcpu.set_gpr(0, 2);
                guest.vcpu.set_gpr(6, DATA);
                enter(machine, guest) == Some(Reason::Halt) && guest.handling().is_none()
            }
        ),
        // mov dr7, rax
        probe(Without::Exit(Exit::SAVE_DEBUG), &[0x0f, 0x23, 0xf8, HLT], |machine, guest| {
            guest.vcpu.set_gpr(0, 0x401);
            enter(machine, guest) == Some(Reason::Halt)
                && machine.on(guest, |vcpu, _| vcpu.parts().0.dr7()) == 0x401
        }),
        probe(Without::Exit(Exit::HOST_64BIT), &[HLT], comes_to!(Reason::Halt)),
        probe(Without::Exit(Exit::ACKNOWLEDGE), COUNTER, |machine, guest| {
            machine.processor.interrupt(0x51, LATER);
            enter(machine, guest) == Some(Reason::HostInterrupt) && machine.processor.taken(0x51) == 1
        }),
        probe(Without::Exit(Exit::LOAD_PAT), &[HLT], |machine, guest| {
            machine.on(guest, |vcpu, _| vcpu.set_pat(0));
            // SAFETY: the register exists.
            let pat = || unsafe { cpu::read_msr(msr::IA32_PAT) };
            let before = machine.processor.run(pat).unwrap();
            enter(machine, guest) == Some(Reason::Halt) && machine.processor.run(pat).unwrap() == before
        }),
        // A kernel turns long mode on: mov cr0, rax.
        probe(Without::Exit(Exit::SAVE_EFER), &[0x0f, 0x22, 0xc0, HLT], |machine, guest| {
            let vmcs = &mut block(&mut guest.vcpu).vmcs;
            vmcs.write(Field::GuestCr0, 0x31);
            vmcs.write(Field::Cr0Shadow, 0x31);
            vmcs.write(Field::GuestEfer, 0x901);
            vmcs.write_segment(SegmentRegister::Cs, 8, u32::MAX, 0xc09b, 0);
            guest.vcpu.set_gpr(0, CR0);
            enter(machine, guest) == Some(Reason::Halt) && machine.on(guest, |vcpu, _| vcpu.efer()) == 0xd01
        }),
        probe(Without::Exit(Exit::LOAD_EFER), &[HLT], |machine, guest| {
            machine.on(guest, |vcpu, _| vcpu.set_efer(0x500));
            // SAFETY: the register exists.
            let efer = || unsafe { cpu::read_msr(msr::EFER) };
            let before = machine.processor.run(efer).unwrap();
            enter(machine, guest) == Some(Reason::Halt)
                && machine.processor.run(efer).is_ok_and(|now| now == before)
        }),
        // mov rax, dr7
        probe(Without::Entry(Entry::LOAD_DEBUG), &[0x0f, 0x21, 0xf8, HLT], |machine, guest| {
            machine.on(guest, |vcpu, _| vcpu.parts().0.set_dr7(0x402));
            enter(machine, guest) == Some(Reason::Halt) && guest.vcpu.gpr(0) == 0x402
        }),
        // syscall, which is not on
        probe(Without::Entry(Entry::LOAD_EFER), &[0x0f, 0x05, HLT], |machine, guest| {
            machine.on(guest, |vcpu, _| vcpu.set_efer(0xd00));
            enter(machine, guest) == Some(Reason::Halt) && guest.handling() == Some(6)
        }),
        probe(Without::Bits(Field::ExceptionBitmap, 1 << 1), &[0x90, HLT], |machine, guest| {
            guest.set_rflags(0x102);
            matches!(enter(machine, guest), Some(Reason::Exception(_)))
        }),
        // mov eax, [rsp + 1]
        probe(
            Without::Bits(Field::ExceptionBitmap, 1 << 17),
            &[0x8b, 0x44, 0x24, 0x01, HLT],
            |machine, guest| {
                guest.set_rflags(2 | 1 << 18);
                guest.poke(Poke::User);
                matches!(enter(machine, guest), Some(Reason::Exception(_)))
            }
        ),
        // mov cr0, rax: without NE, and with caches off
        probe(Without::Bits(Field::Cr0Mask, 1 << 5), &[0x0f, 0x22, 0xc0, HLT], |machine, guest| {
            guest.vcpu.set_gpr(0, CR0 & !(1 << 5));
            matches!(enter(machine, guest), Some(Reason::Control { register: ControlRegister::Cr0, .. }))
        }),
        probe(Without::Bits(Field::Cr0Mask, 1 << 30), &[0x0f, 0x22, 0xc0, HLT], |machine, guest| {
            guest.vcpu.set_gpr(0, CR0 | 1 << 30);
            matches!(enter(machine, guest), Some(Reason::Control { register: ControlRegister::Cr0, .. }))
        }),
        probe(Without::Bits(Field::Cr0Mask, 1 << 29), &[0x0f, 0x22, 0xc0, HLT], |machine, guest| {
            // It sees both as clear; the processor would let it set this one with the other.
            block(&mut guest.vcpu).vmcs.write(Field::Cr0Shadow, CR0 | 1 << 30);
            guest.vcpu.set_gpr(0, CR0 | 3 << 29);
            matches!(enter(machine, guest), Some(Reason::Control { register: ControlRegister::Cr0, .. }))
        }),
        // mov cr4, rax
        probe(Without::Bits(Field::Cr4Mask, 1 << 6), &[0x0f, 0x22, 0xe0, HLT], writes_cr4::<6>),
        probe(Without::Bits(Field::Cr4Mask, 1 << 13), &[0x0f, 0x22, 0xe0, HLT], writes_cr4::<13>),
        probe(Without::Bits(Field::Cr4Mask, 1 << 22), &[0x0f, 0x22, 0xe0, HLT], writes_cr4::<22>),
        probe(Without::Bits(Field::Cr4Mask, 1 << 24), &[0x0f, 0x22, 0xe0, HLT], writes_cr4::<24>),
        probe(Without::Bits(Field::Cr4Mask, 1 << 25), &[0x0f, 0x22, 0xe0, HLT], writes_cr4::<25>),
    ]
}

/// A write of CR4 with that bit comes to the hypervisor, and not to the guest's handler of #GP or into the register.
fn writes_cr4<const BIT: u32>(machine: &mut Rig, guest: &mut Guest) -> bool {
    guest.vcpu.set_gpr(0, CR4 | 1 << BIT);
    matches!(enter(machine, guest), Some(Reason::Control { register: ControlRegister::Cr4, .. }))
}

/// What no emulator shows, and why.
const UNSEEN: [(Without, &str); 5] = [
    (Without::Secondary(Secondary::VPID), "without it translations are dropped at each entry and exit"),
    (Without::Secondary(Secondary::ENCLS), "Bochs has no SGX"),
    (Without::Entry(Entry::LOAD_PAT), "Bochs has no caches that would tell memory types"),
    (Without::Bits(Field::ExceptionBitmap, 1 << 18), "Bochs raises no machine checks"),
    (Without::Bits(Field::Cr4Mask, u64::MAX), "reserved bits raise #GP by themselves"),
];

#[test]
fn what_is_taken_away_is_noticed() {
    for Probe { without, code, check } in probes() {
        let (mut machine, mut guest) = rig(code);
        assert!(check(&mut machine, &mut guest), "{without:?}, which is there");
        drop(machine);
        let (mut machine, mut guest) = rig(code);
        without.take_away(&mut machine, &mut guest);
        let still =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mut machine, &mut guest)));
        assert!(!still.unwrap_or(false), "{without:?} is taken away, and nobody notices");
    }
}

#[test]
fn each_control_has_its_probe_or_its_reason() {
    let (mut pin, mut primary, mut secondary) = (Pin::empty(), Primary::empty(), Secondary::empty());
    let (mut exit, mut entry) = (Exit::empty(), Entry::empty());
    let (mut exceptions, mut cr0) = (0, 0);
    let seen = probes().into_iter().map(|probe| probe.without);
    for without in seen.chain(UNSEEN.into_iter().map(|(without, _)| without)) {
        match without {
            Without::Pin(bit) => pin |= bit,
            Without::Primary(bit) => primary |= bit,
            Without::Secondary(bit) => secondary |= bit,
            Without::Exit(bit) => exit |= bit,
            Without::Entry(bit) => entry |= bit,
            Without::Bits(Field::ExceptionBitmap, bits) => exceptions |= bits,
            Without::Bits(Field::Cr0Mask, bits) => cr0 |= bits,
            Without::Bits(..) => {}
        }
    }
    // Those of interrupt delivery have tests of their own.
    assert_eq!((pin, primary, secondary), (PIN, PRIMARY, Secondary::all() - DELIVERY));
    assert_eq!((exit, entry), (EXIT, ENTRY));
    assert_eq!((exceptions, cr0), (EXCEPTIONS, CR0_OWNED));
}
