// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a kernel reads and writes while it starts.

use super::super::registers::gicr;
use super::*;

fn distributor(gic: &Gic, offset: u64, size: u8) -> u64 {
    gic.read(0, Window::Distributor, offset, size)
}

#[test]
fn linux_finds_a_gicv3_with_message_based_interrupts() {
    let gic = Gic::new(1).unwrap();
    assert_eq!(distributor(&gic, 0xffe8, 4) & 0xf0, 0x30, "architecture GICv3");
    let typer = distributor(&gic, 4, 4);
    assert_eq!(((typer & 0x1f) + 1) * 32, u64::from(intid::COUNT));
    assert_eq!(typer >> 16 & 3, 1, "MBIS and no LPIs");
    assert!((typer >> 19 & 0x1f) + 1 >= 9, "interrupt identifier bits");
    assert_eq!((distributor(&gic, 0, 4), distributor(&gic, 0xc, 4)), (0x50, 0));
    assert_eq!(distributor(&gic, 4, 8), 0, "a 32-bit register");
}

#[test]
fn redistributors_are_told_apart_by_affinity_and_end_with_the_last() {
    let gic = Gic::new(3).unwrap();
    let read = |offset, size| gic.read(0, Window::Redistributors, offset, size);
    for vcpu in 0..3u64 {
        let base = vcpu * layout::GICR_STRIDE;
        let typer = read(base + gicr::TYPER, 8);
        assert_eq!((typer >> 32, typer >> 8 & 0xffff), (vcpu, vcpu));
        assert_eq!(typer & 0x10 != 0, vcpu == 2);
        assert_eq!(read(base + gicr::TYPER, 4) | read(base + gicr::TYPER + 4, 4) << 32, typer);
        assert_eq!(read(base + 0xffe8, 4) & 0xf0, 0x30);
        assert_eq!(read(base + gicr::WAKER, 4), 0, "awake");
    }
    assert_eq!(read(3 * layout::GICR_STRIDE + 0xffe8, 4), 0);
}

#[test]
fn private_interrupts_are_not_in_the_distributor() {
    let mut gic = Gic::new(1).unwrap();
    gic.write(0, Window::Distributor, SET_ENABLE, 4, 0xffff_ffff);
    assert_eq!(distributor(&gic, SET_ENABLE, 4), 0);
    assert_eq!(gic.read(0, Window::Redistributors, 0x1_0100, 4), 0);
    gic.write(0, Window::Redistributors, 0x1_0104, 4, 0xffff_ffff);
    assert_eq!(distributor(&gic, SET_ENABLE + 4, 4), 0);
}

#[test]
fn trigger_modes_are_fixed_for_private_interrupts_and_free_for_shared_ones() {
    let mut gic = Gic::new(1).unwrap();
    let base = 0x1_0c00;
    for offset in [base, base + 4] {
        gic.write(0, Window::Redistributors, offset, 4, 0x5555_5555);
    }
    assert_eq!(gic.read(0, Window::Redistributors, base, 4), 0xaaaa_aaaa);
    assert_eq!(gic.read(0, Window::Redistributors, base + 4, 4), 0);
    gic.write(0, Window::Distributor, 0xc08, 4, 0x0000_000b);
    assert_eq!(distributor(&gic, 0xc08, 4), 0x0000_000a);
}

#[test]
fn priorities_have_five_bits_and_take_bytes_and_words() {
    let mut gic = Gic::new(1).unwrap();
    gic.write(0, Window::Distributor, 0x420, 4, 0xff0f_a7a0);
    assert_eq!(distributor(&gic, 0x420, 4), 0xf808_a0a0);
    gic.write(0, Window::Distributor, 0x421, 1, 0x50);
    assert_eq!((distributor(&gic, 0x421, 1), distributor(&gic, 0x420, 4)), (0x50, 0xf808_50a0));
    assert_eq!(distributor(&gic, 0x420, 2), 0);
}

#[test]
fn routes_take_words_and_halves_and_no_1_of_n() {
    let mut gic = Gic::new(1).unwrap();
    let router = 0x6000 + 8 * u64::from(EDGE);
    gic.write(0, Window::Distributor, router, 8, 0x12_8000_0001);
    assert_eq!(distributor(&gic, router, 8), 0x12_0000_0001);
    gic.write(0, Window::Distributor, router + 4, 4, 0);
    gic.write(0, Window::Distributor, router, 4, 0x0203);
    assert_eq!(distributor(&gic, router, 8), 0x203);
    assert_eq!((distributor(&gic, router, 4), distributor(&gic, router + 4, 4)), (0x203, 0));
    gic.write(0, Window::Distributor, 0x6000, 8, 1);
    assert_eq!(distributor(&gic, 0x6000, 8), 0, "private interrupts have no route");
}

#[test]
fn set_and_clear_registers_show_the_same_state() {
    let mut gic = Gic::new(1).unwrap();
    for (set_bank, clear_bank) in
        [(SET_ENABLE, CLEAR_ENABLE), (SET_PENDING, CLEAR_PENDING), (SET_ACTIVE, CLEAR_ACTIVE)]
    {
        set(&mut gic, set_bank, EDGE, 0b111);
        set(&mut gic, clear_bank, EDGE, 0b010);
        assert_eq!((get_word(&gic, set_bank, EDGE), get_word(&gic, clear_bank, EDGE)), (0b101, 0b101));
    }
}

#[test]
fn a_message_may_be_written_by_the_guest_too() {
    let mut gic = ready(1, &[EDGE]);
    for (size, pending) in [(4, true), (2, true), (8, false), (1, false)] {
        gic.write(0, Window::Distributor, 0x40, size, EDGE.into());
        assert_eq!(get(&gic, SET_PENDING, EDGE), pending, "{size} bytes");
        gic.write(0, Window::Distributor, 0x48, 4, EDGE.into());
        assert!(!get(&gic, SET_PENDING, EDGE));
    }
}

#[test]
fn as_many_vcpus_as_have_a_redistributor() {
    assert!(Gic::new(layout::VCPUS_MAX).is_ok());
    for none in [0, layout::VCPUS_MAX + 1] {
        assert!(!Gic::new(none).unwrap_err().to_string().contains('\n'));
    }
}
