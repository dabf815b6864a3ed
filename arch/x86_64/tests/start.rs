// SPDX-License-Identifier: MIT OR Apache-2.0
//! The start of the first pCPU, on Bochs's processor: page tables, control registers, descriptors, local APIC. In a
//! program of its own, since it happens once in a program.

use pasidon_arch_x86_64::cpu::{self, Features, msr};
use pasidon_arch_x86_64::descriptors::{CODE_SELECTOR, DATA_SELECTOR, TSS_SELECTOR};
use pasidon_arch_x86_64::paging::{Kind, Section};
use pasidon_arch_x86_64::{apic, interrupts, paging, pcpu, smp, stack, vector};
use pasidon_cpu::{Model, Pages, Processor};
use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use std::alloc::{GlobalAlloc, Layout};
use std::arch::asm;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes of this program's heap.
const HEAP: usize = 64 << 20;
const STACK_PAGES: usize = 128;

/// Memory that is handed out once. The C library's allocator finds its own by FS, which a pCPU does not have.
#[repr(C, align(4096))]
struct Heap(UnsafeCell<[u8; HEAP]>, AtomicUsize);

// SAFETY: no byte is handed out twice.
unsafe impl Sync for Heap {}

// SAFETY: each piece is within the array, aligned, and nobody else's.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let place = |next: usize| next.next_multiple_of(layout.align());
        let take = |next| Some(place(next) + layout.size()).filter(|end| *end <= HEAP);
        match self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(before) => self.0.get().cast::<u8>().wrapping_add(place(before)),
            Err(_) => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static THE_HEAP: Heap = Heap(UnsafeCell::new([0; HEAP]), AtomicUsize::new(0));

static KICKS: AtomicU64 = AtomicU64::new(0);

/// This program's memory as a machine's: all but `device` is RAM, and what is not writable is the image.
fn memory(device: u64) -> (Vec<(HostPhys, u64)>, Vec<Section>) {
    let (mut ram, mut image) = (Vec::new(), Vec::new());
    for line in std::fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        if end >= 1 << 47 {
            continue;
        }
        match &rest.as_bytes()[..3] {
            b"r-x" => image.push(Section { start, end, kind: Kind::Code }),
            b"r--" => image.push(Section { start, end, kind: Kind::Constants }),
            _ if (start..end).contains(&device) => {
                ram.push((HostPhys(start), device - start));
                ram.push((HostPhys(device + PAGE_SIZE), end - device - PAGE_SIZE));
            }
            _ => ram.push((HostPhys(start), end - start)),
        }
    }
    ram.retain(|(_, length)| *length > 0);
    (ram, image)
}

/// What a processor that runs the hypervisor has.
#[derive(Debug, PartialEq)]
struct State {
    cr3: u64,
    selectors: [u16; 3],
    /// The type of the task state segment in the table that is loaded: LTR makes it busy.
    task: u8,
    pcpu: u32,
    apic_id: u32,
}

fn state() -> State {
    let (cr3, cs, ss, tr): (u64, u16, u16, u16);
    // SAFETY: it reads registers, at privilege level 0.
    unsafe {
        asm!("mov {}, cr3", "mov {:x}, cs", "mov {:x}, ss", "str {:x}",
            out(reg) cr3, out(reg) cs, out(reg) ss, out(reg) tr, options(nomem, nostack, preserves_flags));
    }
    let mut gdtr = [0u16; 5];
    // SAFETY: room for limit and base; of the table that this tells, the entry of a selector that is loaded is read.
    let task = unsafe {
        asm!("sgdt [{}]", in(reg) &mut gdtr, options(nostack, preserves_flags));
        let base = (1..5).rev().fold(0, |base, word| base << 16 | u64::from(gdtr[word]));
        (base as *const u8).add(usize::from(tr) + 5).read() & 0xf
    };
    let pcpu = pcpu::current();
    State { cr3, selectors: [cs, ss, tr], task, pcpu: pcpu.index, apic_id: pcpu.apic_id }
}

#[test]
fn the_first_pcpu_has_its_own_tables_takes_interrupts_and_reaches_devices() {
    let mut processor = Processor::new(Model::Ryzen);
    let (device, stacks) = (Pages::new(1), Pages::new(STACK_PAGES));
    processor.device(&device);
    let (ram, image) = memory(device.address());
    let guarded = (HostPhys(stacks.address()), stacks.len() as u64);

    let started = processor.run(|| {
        let features = Features::read();
        // SAFETY: the processor runs on an identity map, interrupts are off, and all memory there is is in `ram` and
        // `image`, but for the device. What the program itself needs, FS and SYSCALL, comes back at once.
        unsafe {
            let (fs, efer) = (cpu::read_msr(msr::FS_BASE), cpu::read_msr(msr::EFER));
            stack::give(guarded.0, guarded.1);
            paging::install(&ram, guarded, &image)?;
            let stack = stack::new(stack::STACK_BYTES)?;
            cpu::set_up(&features);
            let started = smp::init(&features, stack);
            cpu::write_msr(msr::FS_BASE, fs);
            cpu::write_msr(msr::EFER, efer);
            started.map(|()| stack)
        }
    });
    let stack = started.unwrap().unwrap();

    let found = processor.run(state).unwrap();
    let selectors = [CODE_SELECTOR, DATA_SELECTOR, TSS_SELECTOR];
    const BUSY: u8 = 0xb;
    assert_eq!(found, State { cr3: paging::root(), selectors, task: BUSY, pcpu: 0, apic_id: 0 });

    assert!(paging::is_mapped(stack.bottom) && !paging::is_mapped(stack.bottom - 1), "a guard page");
    assert!(!paging::is_mapped(device.address()), "nobody has asked for it yet");
    let registers = processor.run(|| paging::map_device(HostPhys(device.address()), 8).map(|at| at as u64));
    let registers = registers.unwrap().unwrap();
    // SAFETY: mapped just now.
    processor.run(|| unsafe { (registers as *mut u32).write_volatile(7) }).unwrap();
    let seen: Vec<_> = processor.accesses().iter().map(|access| (access.size, access.write)).collect();
    assert_eq!(seen, [(4, true)]);

    interrupts::install(vector::KICK, |_| {
        KICKS.fetch_add(1, Ordering::Relaxed);
    });
    for round in 1..=3 {
        processor.run(|| apic::send(apic::id(), vector::KICK)).unwrap();
        assert_eq!(KICKS.load(Ordering::Relaxed), round - 1, "interrupts are off");
        processor.run(interrupts::window).unwrap();
        assert_eq!(KICKS.load(Ordering::Relaxed), round, "each is ended");
    }
    assert_eq!(interrupts::unexpected(), 0);
}
