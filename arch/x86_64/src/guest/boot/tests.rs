// SPDX-License-Identifier: MIT OR Apache-2.0
use pasidon_kernel::base::refusal::Refusal;
use proptest::prelude::*;

use super::*;
use crate::guest::layout::boot;
use pasidon_arch_common::testing::TestMemory;

const RAM: usize = 32 << 20;
const ENTRY: u32 = 0x10_0010;

/// An ELF with one load segment at 1 MiB and the PVH note.
fn vmlinux() -> Vec<u8> {
    let mut elf = vec![0; 0x40];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[0x12] = 62;
    elf[0x20] = 0x40;
    elf[0x36] = 0x38;
    elf[0x38] = 2;
    let note: Vec<u8> = [4u32, 4, 18].iter().flat_map(|w| w.to_le_bytes()).chain(*b"Xen\0").collect();
    let header = |kind: u32, offset: u64, address: u64, file: u64, memory: u64| {
        let mut bytes: Vec<u8> = kind.to_le_bytes().into_iter().chain([0; 4]).collect();
        for field in [offset, 0, address, file, memory, 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes
    };
    elf.extend(header(1, 0xb0, 0x10_0000, 0x20, 0x3000));
    elf.extend(header(4, 0xd0, 0, 20, 20));
    elf.extend([0xcc; 0x20]);
    elf.extend(note);
    elf.extend(ENTRY.to_le_bytes());
    elf
}

/// The same as a 32-bit file for that machine: 3 is i386, 62 x86-64.
fn vmlinux_32(machine: u8) -> Vec<u8> {
    let wide = vmlinux();
    let mut elf = wide[..0x34].to_vec();
    elf[4] = 1;
    elf[0x12] = machine;
    elf[0x1c..0x20].copy_from_slice(&0x34u32.to_le_bytes());
    elf[0x20..0x34].fill(0);
    elf[0x2a] = 0x20;
    elf[0x2c] = 2;
    let header = |kind: u32, offset: u32, address: u32, file: u32, memory: u32| {
        let fields = [kind, offset, 0xc000_0000, address, file, memory, 0, 0];
        fields.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
    };
    elf.extend(header(1, 0x74, 0x10_0000, 0x20, 0x3000));
    elf.extend(header(4, 0x94, 0, 20, 20));
    elf.extend(&wide[0xb0..]);
    elf
}

fn image<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>) -> BootImage<'a> {
    BootImage { kernel, initrd, cmdline: "console=ttyS0", slots: 8, seed: None }
}

fn refusal(kernel: &[u8]) -> Refusal {
    let error = load(&TestMemory::new(0, RAM), &image(kernel, None)).unwrap_err();
    assert!(!error.to_string().contains('\n'));
    error
}

#[test]
fn a_vmlinux_is_loaded_and_told_everything() {
    let memory = TestMemory::new(0, RAM);
    memory.write(GuestPhys(0x10_0020), &[0xff; 0x100]).unwrap();
    let kernel = vmlinux();
    let entry = load(&memory, &image(&kernel, Some(b"initrd"))).unwrap();
    assert_eq!(
        (entry.mode, entry.rip, entry.rbx),
        (EntryMode::Protected32, u64::from(ENTRY), boot::START_INFO)
    );
    assert_eq!(memory.bytes(0x10_0000, 0x20), [0xcc; 0x20]);
    assert_eq!(memory.bytes(0x10_0020, 0x100), [0; 0x100], "what is not in the file is zeroed");
    assert_eq!(memory.u32(boot::START_INFO), 0x336e_c578);
    assert_eq!(memory.u32(boot::START_INFO + 12), 1, "modules");
    let initrd = memory.u64(memory.u64(boot::START_INFO + 16));
    assert_eq!((initrd, memory.bytes(initrd, 6)), (RAM as u64 - 0x1000, b"initrd".to_vec()));
    assert_eq!(memory.bytes(memory.u64(boot::START_INFO + 24), 14), b"console=ttyS0\0");
    assert_eq!(memory.bytes(memory.u64(boot::START_INFO + 32), 8), b"RSD PTR ");
    assert_eq!(memory.u32(boot::START_INFO + 48), 4, "map entries");
    assert_eq!(memory.u64(boot::MEMORY_MAP + 8), 0xa_0000);
}

#[test]
fn a_32_bit_file_with_a_pvh_entry_is_a_kernel() {
    for machine in [3, 62] {
        let memory = TestMemory::new(0, RAM);
        memory.write(GuestPhys(0x10_0020), &[0xff; 0x100]).unwrap();
        let kernel = vmlinux_32(machine);
        let entry = load(&memory, &image(&kernel, Some(b"initrd"))).unwrap();
        assert_eq!(
            (entry.mode, entry.rip, entry.rbx),
            (EntryMode::Protected32, u64::from(ENTRY), boot::START_INFO)
        );
        assert_eq!(memory.bytes(0x10_0000, 0x21), [vec![0xcc; 0x20], vec![0]].concat());
    }
    // But not for another processor, nor a 64-bit file for i386.
    assert!(refusal(&vmlinux_32(40)).why.contains("not for x86-64"));
    let mut kernel = vmlinux();
    kernel[0x12] = 3;
    assert!(refusal(&kernel).why.contains("not for x86-64"));
}

/// What comes behind the last segment is neither read nor kept, and nobody misses it.
#[test]
fn debug_information_is_not_needed() {
    for kernel in [vmlinux(), vmlinux_32(3)] {
        let with_debug = [kernel.clone(), vec![0xdd; 1 << 20]].concat();
        assert_eq!(loaded_len(&with_debug[..0x200]), Some(0x200));
        let wanted = kernel.len() as u64;
        assert_eq!(loaded_len(&kernel), Some(wanted));
        // The first bytes tell, also when there are no more of them than the headers.
        let headers = if kernel[4] == 2 { 0xb0 } else { 0x74 };
        assert_eq!(loaded_len(&with_debug[..headers]), Some(wanted));
        assert_eq!(loaded_len(&with_debug[..headers - 1]), None, "the whole file then");
        let (kept, whole) = (TestMemory::new(0, RAM), TestMemory::new(0, RAM));
        assert_eq!(
            load(&kept, &image(&with_debug[..wanted as usize], None)),
            load(&whole, &image(&with_debug, None))
        );
        assert!(kept.bytes(0, RAM) == whole.bytes(0, RAM));
    }
    let mut endless = vmlinux();
    endless[0x40 + 0x20..0x40 + 0x28].fill(0xff);
    assert_eq!(loaded_len(&endless), None);
    assert_eq!(loaded_len(&bz_image()), None, "all of a bzImage is loaded");
    assert_eq!(loaded_len(b""), None);
}

/// Memory as large as it likes, of which only the little is kept that is not zero.
struct Sparse {
    ram: u64,
    written: core::cell::RefCell<Vec<(u64, u64)>>,
}

impl Sparse {
    fn new(ram: u64) -> Self {
        Self { ram, written: core::cell::RefCell::default() }
    }

    /// The ranges of one write each.
    fn has(&self, start: u64, len: u64) -> bool {
        self.written.borrow().contains(&(start, len))
    }
}

impl GuestMemory for Sparse {
    fn read(&self, _: GuestPhys, buffer: &mut [u8]) -> Result<(), pasidon_kernel::memory::BadGuestAddress> {
        buffer.fill(0);
        Ok(())
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), pasidon_kernel::memory::BadGuestAddress> {
        let len = bytes.len() as u64;
        let inside = layout::ram_ranges(self.ram)
            .iter()
            .any(|range| address.0 >= range.start.0 && address.0 + len <= range.start.0 + range.len);
        self.written.borrow_mut().push((address.0, len));
        inside.then_some(()).ok_or(pasidon_kernel::memory::BadGuestAddress { address, len })
    }

    fn ram_size(&self) -> u64 {
        self.ram
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn memory_of_every_size_is_laid_out() {
    for mib in [3070, 3072, 3074, 3076, 4094, 4096, 4098, 5122, 8192] {
        for kernel in [vmlinux(), bz_image()] {
            load(&Sparse::new(mib * MIB), &image(&kernel, Some(b"initrd"))).unwrap();
        }
    }
}

#[test]
fn an_initrd_of_1_gib_is_loaded() {
    let initrd = vec![0; 1 << 30];
    for kernel in [vmlinux(), bz_image()] {
        for mib in [1200, 3074, 4096] {
            let memory = Sparse::new(mib * MIB);
            load(&memory, &image(&kernel, Some(&initrd))).unwrap();
            // Below 2 GiB for a bzImage that says so, below the hole for the other.
            let top = (mib * MIB).min(if kernel[0] == 0x7f { 3 << 30 } else { 2 << 30 });
            assert!(memory.has(top - (1 << 30), 1 << 30), "{mib} MiB");
        }
    }
}

/// Does what a refusal says, and comes through.
#[test]
fn the_remedy_of_a_refusal_helps() {
    let advised = |refusal: &Refusal| {
        let words = refusal.remedy.split_whitespace();
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        numbers[0]
    };
    let initrd = vec![0; 3 << 30];
    for kernel in [vmlinux(), bz_image()] {
        // More memory.
        let small = image(&kernel, Some(&initrd[..100 << 20]));
        let error = load(&Sparse::new(64 * MIB), &small).unwrap_err();
        assert!(error.remedy.contains("more memory"), "{error}");
        let enough = advised(&error);
        load(&Sparse::new(enough * MIB), &small).unwrap();
        load(&Sparse::new((enough - 2) * MIB), &small).unwrap_err();
        // No memory is enough: a smaller one.
        let error = load(&Sparse::new(8192 * MIB), &image(&kernel, Some(&initrd))).unwrap_err();
        assert!(error.remedy.contains("use one of at most"), "{error}");
        let smaller = &initrd[..(advised(&error) * MIB) as usize];
        load(&Sparse::new(8192 * MIB), &image(&kernel, Some(smaller))).unwrap();
    }
    // A kernel that needs more, and one that no memory helps.
    let mut kernel = bz_image();
    kernel[0x260..0x264].copy_from_slice(&(100u32 << 20).to_le_bytes());
    let error = load(&Sparse::new(64 * MIB), &image(&kernel, None)).unwrap_err();
    load(&Sparse::new(advised(&error) * MIB), &image(&kernel, None)).unwrap();
    kernel[0x260..0x264].copy_from_slice(&(0xf000_0000u32).to_le_bytes());
    let error = load(&Sparse::new(64 * MIB), &image(&kernel, None)).unwrap_err();
    assert!(!error.remedy.contains("more memory"), "{error}");
    let mut kernel = vmlinux();
    kernel[0x40 + 0x18..0x40 + 0x20].copy_from_slice(&(100 * MIB).to_le_bytes());
    let error = load(&Sparse::new(64 * MIB), &image(&kernel, None)).unwrap_err();
    assert_eq!(advised(&error), 102);
    kernel[0x40 + 0x18..0x40 + 0x20].copy_from_slice(&(3u64 << 30).to_le_bytes());
    let error = load(&Sparse::new(8192 * MIB), &image(&kernel, None)).unwrap_err();
    assert!(error.remedy.contains("between 1 MiB and 3 GiB"), "{error}");
}

#[test]
fn the_reset_vector_holds_code_that_writes_the_reset_register() {
    let memory = TestMemory::new(0, RAM);
    load(&memory, &image(&vmlinux(), None)).unwrap();
    // mov dx, 0x602; mov al, 1; out dx, al; hlt; jmp to the hlt
    assert_eq!(memory.bytes(0xf_fff0, 9), [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd]);
}

#[test]
fn damaged_images_are_refused_in_one_line() {
    let good = vmlinux();
    let broken = |at: usize, value: u8| {
        let mut kernel = good.clone();
        kernel[at] = value;
        refusal(&kernel).why
    };
    assert!(refusal(b"").why.contains("neither"));
    assert!(refusal(b"\x7fELF").why.contains("ends inside"));
    assert!(broken(0x12, 40).contains("not for x86-64"));
    assert!(broken(0x36, 8).contains("wrong size"));
    assert!(broken(0x3a - 2, 200).contains("beyond its end"));
    assert!(broken(0xd0 + 8, 17).contains("PVH"));
    assert!(broken(0xd0 + 16 + 3, 0xff).contains("outside"));
    assert!(broken(0x40 + 0x18 + 2, 0).contains("1 MiB"));
    assert!(broken(0x40 + 0x28 + 4, 1).contains("low RAM"));
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let kernel = vmlinux();
    let initrd = vec![1; RAM];
    let error = load(&TestMemory::new(0, RAM), &image(&kernel, Some(&initrd))).unwrap_err();
    assert_eq!(error.what, "initrd");
}

#[test]
fn memory_and_command_line_have_limits() {
    let kernel = vmlinux();
    let error = load(&TestMemory::new(0, 1 << 20), &image(&kernel, None)).unwrap_err();
    assert_eq!(error.what, "memory");
    let long = "x".repeat(boot::CMDLINE_LEN as usize);
    let boot_image = BootImage { kernel: &kernel, initrd: None, cmdline: &long, slots: 8, seed: None };
    assert_eq!(load(&TestMemory::new(0, RAM), &boot_image).unwrap_err().what, "command line");
}

/// A bzImage of protocol 2.15 that prefers 16 MiB and needs 4 MiB.
fn bz_image() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x1f1, &[1]);
    set(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    set(0x202, b"HdrS");
    set(0x206, &0x020fu16.to_le_bytes());
    set(0x22c, &0x7fff_ffffu32.to_le_bytes());
    set(0x230, &0x20_0000u32.to_le_bytes());
    set(0x234, &[1]);
    set(0x236, &1u16.to_le_bytes());
    set(0x238, &2047u32.to_le_bytes());
    set(0x258, &(16u64 << 20).to_le_bytes());
    set(0x260, &(4u32 << 20).to_le_bytes());
    image.extend([0xcc; 0x300]);
    image
}

#[test]
fn a_bzimage_starts_in_long_mode_with_its_parameters() {
    let memory = TestMemory::new(0, RAM);
    let kernel = bz_image();
    let entry = load(&memory, &image(&kernel, Some(b"initrd"))).unwrap();
    assert_eq!((entry.mode, entry.rip, entry.rsi), (EntryMode::Long64, (16 << 20) + 0x200, boot::START_INFO));
    assert_eq!((entry.cr0, entry.cr4, entry.efer), (0x8000_0011, 0x20, 0x500));
    assert_eq!(memory.bytes(16 << 20, 0x301), [vec![0xcc; 0x300], vec![0]].concat());
    let zero_page = boot::START_INFO;
    assert_eq!(memory.bytes(zero_page + 0x202, 4), b"HdrS");
    assert_eq!(memory.bytes(zero_page + 0x1e8, 1), [4]);
    assert_eq!(memory.u64(zero_page + 0x2d0 + 8), 0xa_0000);
    assert_eq!(memory.bytes(memory.u64(zero_page + 0x70), 8), b"RSD PTR ");
    assert_eq!(memory.bytes(u64::from(memory.u32(zero_page + 0x228)), 14), b"console=ttyS0\0");
    assert_eq!(memory.bytes(u64::from(memory.u32(zero_page + 0x218)), 6), b"initrd");
    assert_eq!(memory.u32(zero_page + 0x21c), 6);
    // Walk the page tables to the last byte below 4 GiB.
    let address = 0xffff_ffffu64;
    let pdpt = memory.u64(entry.cr3) & !0xfff;
    let directory = memory.u64(pdpt + (address >> 30) * 8) & !0xfff;
    let page = memory.u64(directory + (address >> 21 & 511) * 8);
    assert_eq!((page & !0x1f_ffff, page & 0x83), (address & !0x1f_ffff, 0x83));
    let (gdt, _) = entry.gdt.unwrap();
    assert_eq!(memory.u64(gdt + u64::from(entry.cs)) >> 53 & 1, 1, "64-bit code");
}

#[test]
fn a_bzimage_goes_lower_if_it_must_and_can() {
    let mut kernel = bz_image();
    kernel[0x258..0x260].copy_from_slice(&(30u64 << 20).to_le_bytes());
    let entry = load(&TestMemory::new(0, RAM), &image(&kernel, None)).unwrap();
    assert_eq!(entry.rip, (2 << 20) + 0x200);
    kernel[0x234] = 0;
    assert!(refusal(&kernel).remedy.contains("more memory: 34 MiB"));
}

#[test]
fn damaged_bzimages_are_refused_in_one_line() {
    let broken = |at: usize, bytes: &[u8]| {
        let mut kernel = bz_image();
        kernel[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(&kernel).why
    };
    assert!(broken(0x202, b"XdrS").contains("neither"));
    assert!(broken(0x206, &[0x0b, 2]).contains("2.11"));
    assert!(broken(0x236, &[0]).contains("64-bit"));
    assert!(broken(0x230, &[3, 0, 0, 0]).contains("power of two"));
    assert!(broken(0x260, &[0xff; 4]).contains("needs 4096 MiB"));
    assert!(broken(0x1f1, &[200]).contains("ends inside"));
    assert!(broken(0x238, &[1, 0, 0, 0]).contains("takes 1"));
    assert!(refusal(&bz_image()[..0x220]).why.contains("ends inside"));
}

/// Changes bytes, and shortens.
fn damage(image: &mut Vec<u8>, edits: Vec<(prop::sample::Index, u8)>, cut: Option<prop::sample::Index>) {
    for (at, value) in edits {
        let at = at.index(image.len());
        image[at] = value;
    }
    if let Some(cut) = cut {
        image.truncate(cut.index(image.len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn no_damage_panics_the_loaders(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        header_edits in proptest::collection::vec((0x1f1usize..0x268, any::<u8>()), 0..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        elf in any::<bool>(),
    ) {
        let memory = TestMemory::new(0, RAM);
        let mut kernel = if elf { vmlinux() } else { bz_image() };
        for (at, value) in header_edits.into_iter().filter(|_| !elf) {
            kernel[at] = value;
        }
        damage(&mut kernel, edits, cut);
        let _ = load(&memory, &image(&kernel, Some(&[7; 100])));
    }

    #[test]
    fn random_bytes_are_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000), elf in any::<bool>()) {
        if elf {
            bytes.splice(..bytes.len().min(4), *b"\x7fELF");
        }
        prop_assert!(load(&TestMemory::new(0, RAM), &image(&bytes, None)).is_err());
    }
}
