// SPDX-License-Identifier: MIT OR Apache-2.0
//! Code of a test on the processor, without a guest.

use pasidon_cpu::{Cause, Model, Pages, Processor};
use std::arch::asm;
use std::arch::x86_64::__cpuid;
use std::panic::{AssertUnwindSafe, catch_unwind};

const MODELS: [Model; 2] = [Model::Ryzen, Model::SapphireRapids];

/// Privilege level and vendor.
fn who() -> (u16, [u8; 4]) {
    let cs: u16;
    // SAFETY: it reads a register.
    unsafe { asm!("mov {:x}, cs", out(reg) cs, options(nomem, nostack, preserves_flags)) };
    (cs & 3, __cpuid(0).ebx.to_le_bytes())
}

#[test]
fn code_of_the_test_runs_on_the_model_at_privilege_level_0_and_here_before_and_after() {
    assert_eq!(who().0, 3);
    for model in MODELS {
        let vendor = *if model == Model::Ryzen { b"Auth" } else { b"Genu" };
        assert_eq!(Processor::new(model).run(who).unwrap(), (0, vendor));
    }
    assert_eq!(who().0, 3);
}

#[test]
fn what_it_allocates_prints_and_asks_the_kernel_for_it_gets() {
    let mut processor = Processor::new(Model::Ryzen);
    let made = processor.run(|| {
        // Large enough for the allocator to ask the kernel.
        let block = vec![7u8; 4 << 20];
        println!("process {}", std::process::id());
        (block, std::process::id())
    });
    let (block, id) = made.unwrap();
    assert_eq!((block.len(), block[12345], id), (4 << 20, 7, std::process::id()));
}

#[test]
fn what_the_c_library_may_choose_on_newer_processors_runs_on_each_model() {
    for model in MODELS {
        let equal = Processor::new(model).run(|| {
            let bytes = [7u8; 64];
            let equal: u64;
            // SAFETY: it reads the bytes, with the instructions of AVX-512F, BW and VL that string functions use.
            unsafe {
                asm!(
                    "vmovdqu64 ymm16, [{bytes}]",
                    "vpcmpeqb k1, ymm16, [{bytes} + 32]",
                    "vmovdqu64 zmm17, [{bytes}]",
                    "vptestnmb k2, zmm17, zmm17",
                    "kmovq {equal}, k1",
                    bytes = in(reg) &bytes,
                    equal = out(reg) equal,
                    options(nostack),
                );
            }
            equal
        });
        assert_eq!(equal.unwrap(), 0xffff_ffff, "{model:?}");
    }
}

#[test]
fn a_panic_comes_out_of_the_run_and_the_processor_goes_on() {
    let mut processor = Processor::new(Model::Ryzen);
    let panicked = catch_unwind(AssertUnwindSafe(|| processor.run(|| assert_eq!(1, 2, "on the processor"))));
    let message = panicked.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("on the processor"), "{message}");
    assert_eq!(processor.run(|| 3).unwrap(), 3);
}

#[test]
fn code_without_an_end_is_stopped_and_said_to_be_where_it_is() {
    #[unsafe(naked)]
    extern "C" fn turn() {
        std::arch::naked_asm!("2: jmp 2b")
    }
    #[unsafe(naked)]
    extern "C" fn wait() {
        std::arch::naked_asm!("cli", "hlt")
    }
    for (code, at) in
        [(turn as extern "C" fn(), turn as *const () as u64), (wait, wait as *const () as u64 + 2)]
    {
        let mut processor = Processor::new(Model::Ryzen);
        let stop = processor.run_for(10_000, || code()).unwrap_err();
        assert_eq!((stop.cause, stop.rip), (Cause::Limit, at), "{stop}");
        assert_eq!(processor.run(|| ()).unwrap_err().cause, Cause::Unfinished);
    }
}

#[test]
fn an_exception_ends_the_run_with_its_vector_and_place() {
    for model in MODELS {
        let stop = Processor::new(model).run(|| {
            // SAFETY: there is no such MSR, and the processor is one that a test can lose.
            unsafe { asm!("rdmsr", in("ecx") 0x1234_5678, out("eax") _, out("edx") _) };
        });
        let stop = stop.unwrap_err();
        assert_eq!(stop.cause, Cause::Exception(13, 0), "{stop}");
        assert!(stop.to_string().contains("addr2line"), "{stop}");
    }
}

#[test]
fn memory_that_is_not_there_ends_the_run_and_not_the_test() {
    // By assembly, as the compiler takes such an access to be impossible.
    #[unsafe(naked)]
    extern "C" fn read() {
        std::arch::naked_asm!("mov rax, [0x1000]", "ret")
    }
    #[unsafe(naked)]
    extern "C" fn write() {
        std::arch::naked_asm!("mov dword ptr [0x2008], 1", "ret")
    }
    #[unsafe(naked)]
    extern "C" fn fetch() {
        std::arch::naked_asm!("mov eax, 0x3000", "jmp rax")
    }
    for (access, address, code) in
        [("read", 0x1000, read as extern "C" fn()), ("write", 0x2008, write), ("fetch", 0x3000, fetch)]
    {
        let stop = Processor::new(Model::Ryzen).run(|| code()).unwrap_err();
        assert_eq!(stop.cause, Cause::NoMemory(access, address), "{stop}");
    }
}

#[test]
fn a_device_sees_each_access_with_its_size() {
    let mut processor = Processor::new(Model::SapphireRapids);
    let (device, source) = (Pages::new(1), Pages::new(1));
    processor.device(&device);
    source.fill(0, &[0x5a; 64]);
    let (to, from) = (device.address(), source.address());
    let read = processor.run(|| {
        // SAFETY: both are memory of the test's own.
        unsafe {
            (to as *mut u8).add(3).write_volatile(1);
            (to as *mut u32).add(2).write_volatile(0x0403_0201);
            asm!("movdir64b rdi, [rsi]", in("rdi") to + 0x40, in("rsi") from, options(nostack, preserves_flags));
            (to as *const u64).add(1).read_volatile()
        }
    });
    assert_eq!(read.unwrap(), 0x0403_0201);
    let seen = processor.accesses();
    let brief: Vec<_> = seen.iter().map(|access| (access.offset, access.size, access.write)).collect();
    assert_eq!(brief, [(3, 1, true), (8, 4, true), (0x40, 64, true), (8, 8, false)], "{seen:?}");
    assert_eq!((seen[1].data[..4].to_vec(), seen[2].data), (vec![1, 2, 3, 4], [0x5a; 64]));
    assert_eq!(device.read::<u64>(0x78), 0x5a5a_5a5a_5a5a_5a5a, "the test finds it there, too");
    assert!(processor.accesses().is_empty());
}

#[test]
fn interrupts_wait_until_they_are_let_in_and_nmis_do_not() {
    let mut processor = Processor::new(Model::Ryzen);
    processor.interrupt(0x31, 0);
    processor.nmi(0);
    processor.run(|| ()).unwrap();
    assert_eq!((processor.taken(0x31), processor.taken(2), processor.waiting()), (0, 1, (true, false)));
    // SAFETY: handlers of both are there.
    processor.run(|| unsafe { asm!("sti", "nop", "cli", options(nostack)) }).unwrap();
    assert_eq!((processor.taken(0x31), processor.waiting()), (1, (false, false)));
}

#[test]
fn an_interrupt_comes_where_the_test_wants_it() {
    // SAFETY: the handler is there; a wait without end is stopped.
    let wait = || unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
    let mut processor = Processor::new(Model::Ryzen);
    processor.interrupt(0x40, 1000);
    processor.run(wait).unwrap();
    assert_eq!(processor.taken(0x40), 1);
    assert_eq!(processor.run_for(5000, wait).unwrap_err().cause, Cause::Limit, "nothing comes twice");
}

#[test]
fn there_is_one_processor_at_a_time() {
    let first = Processor::new(Model::Ryzen);
    assert!(catch_unwind(|| Processor::new(Model::Ryzen)).is_err(), "the same test would wait for itself");
    let other = std::thread::spawn(|| Processor::new(Model::SapphireRapids).run(who).unwrap().1);
    assert!(!other.is_finished());
    drop(first);
    assert_eq!(other.join().unwrap(), *b"Genu");
}
