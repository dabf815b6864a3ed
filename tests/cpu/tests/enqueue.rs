// SPDX-License-Identifier: MIT OR Apache-2.0
//! ENQCMD and ENQCMDS, which Bochs has from a patch of ours.

use pasidon_cpu::{Cause, Model, Pages, Processor};
use std::arch::asm;

const IA32_PASID: u32 = 0xd93;
const VALID: u64 = 1 << 31;

/// OF, SF, ZF, AF, PF, CF.
const STATUS_FLAGS: u64 = 0x8d5;
const ZF: u64 = 0x40;

/// Carries the instruction out with all status flags set before, and returns those that are left.
macro_rules! enqueue {
    ($prefix:literal, $to:expr, $command:expr) => {{
        let mut flags = STATUS_FLAGS;
        // SAFETY: it writes to a device or not at all. A fault ends the run.
        unsafe {
            asm!(
                "push {flags}",
                "popfq",
                concat!(".byte ", $prefix, ", 0x0f, 0x38, 0xf8, 0x02"),
                "pushfq",
                "pop {flags}",
                flags = inout(reg) flags,
                in("rax") $to,
                in("rdx") $command,
            );
        }
        flags & STATUS_FLAGS
    }};
}

fn enqcmd(to: u64, command: u64) -> u64 {
    enqueue!("0xf2", to, command)
}

fn enqcmds(to: u64, command: u64) -> u64 {
    enqueue!("0xf3", to, command)
}

fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the model has the register, and reading it changes nothing.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

fn write_ia32_pasid(value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: only ENQCMD looks at its value. A fault ends the run.
    unsafe { asm!("wrmsr", in("ecx") IA32_PASID, in("eax") low, in("edx") high, options(nostack)) };
}

#[test]
fn a_device_gets_one_write_with_the_submitters_pasid_and_memory_takes_none() {
    let mut processor = Processor::new(Model::SapphireRapids);
    let (device, memory, command) = (Pages::new(1), Pages::new(1), Pages::new(1));
    processor.device(&device);
    command.fill(0, &[0xa5; 64]);
    command.write(0, 1u32 << 31 | 0x1_2345);
    let (to, memory_at, from) = (device.address(), memory.address(), command.address());
    let seen = processor.run(|| {
        write_ia32_pasid(VALID | 0xf_edcb);
        let accepted = [enqcmd(to + 0x40, from), enqcmds(to + 0x80, from)];
        // Also where the translation is known from a store before.
        // SAFETY: it is memory of the test's own.
        unsafe { (memory_at as *mut u8).add(64).write_volatile(1) };
        (accepted, [enqcmd(memory_at, from), enqcmds(memory_at, from)], read_msr(IA32_PASID))
    });
    assert_eq!(seen.unwrap(), ([0, 0], [ZF, ZF], VALID | 0xf_edcb));
    let accesses = processor.accesses();
    let brief: Vec<_> = accesses.iter().map(|access| (access.offset, access.size, access.write)).collect();
    assert_eq!(brief, [(0x40, 64, true), (0x80, 64, true)], "{accesses:?}");
    assert_eq!(accesses[0].data[..4], 0xf_edcb_u32.to_le_bytes(), "IA32_PASID's, without privilege");
    assert_eq!(accesses[1].data[..4], (1u32 << 31 | 0x1_2345).to_le_bytes(), "the command's");
    assert!(accesses.iter().all(|access| access.data[4..] == [0xa5; 60]), "{accesses:?}");
    assert_eq!(memory.read::<u64>(0), 0);
}

/// That exception ends the code, which is given a device's address and a command's, and the device sees nothing.
fn refused<T: std::fmt::Debug>(model: Model, vector: u8, first_word: u32, code: impl FnOnce(u64, u64) -> T) {
    let mut processor = Processor::new(model);
    let (device, command) = (Pages::new(1), Pages::new(1));
    processor.device(&device);
    command.write(0, first_word);
    let (to, from) = (device.address(), command.address());
    let stop = processor.run(|| code(to, from)).unwrap_err();
    assert_eq!(stop.cause, Cause::Exception(vector, 0), "{stop}");
    assert!(processor.accesses().is_empty());
}

#[test]
fn what_is_wrong_faults_and_reaches_nobody() {
    const GP: u8 = 13;
    let intel = Model::SapphireRapids;
    refused(intel, GP, 0, |to, from| {
        write_ia32_pasid(0x777);
        enqcmd(to, from)
    });
    refused(intel, GP, 0, |to, from| {
        write_ia32_pasid(VALID);
        enqcmd(to + 32, from)
    });
    refused(intel, GP, 0, |to, from| enqcmds(to + 1, from));
    refused(intel, GP, 0, |_, from| enqcmds(1 << 63, from));
    for bit in 20..31 {
        refused(intel, GP, 1 << bit, enqcmds);
        refused(intel, GP, 0, |_, _| write_ia32_pasid(VALID | 1 << bit));
    }
    refused(intel, GP, 0, |_, _| write_ia32_pasid(VALID | 1 << 32));
}

#[test]
fn a_processor_without_them_has_undefined_opcodes() {
    const UD: u8 = 6;
    refused(Model::Ryzen, UD, 0, enqcmd);
    refused(Model::Ryzen, UD, 0, enqcmds);
}

#[test]
fn vmx_does_not_translate_the_pasids_of_guests() {
    /// IA32_VMX_PROCBASED_CTLS2; which controls may be 1 is in the upper half.
    const CONTROLS: u32 = 0x48b;
    const PASID_TRANSLATION: u64 = 1 << (32 + 21);
    let controls = Processor::new(Model::SapphireRapids).run(|| read_msr(CONTROLS));
    assert_eq!(controls.unwrap() & PASID_TRANSLATION, 0);
}
