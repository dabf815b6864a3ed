// SPDX-License-Identifier: MIT OR Apache-2.0
pub(in crate::guest) mod cpu;
mod model;
mod properties;
mod registers;

use super::list_registers::lr;
use super::*;
use crate::guest::layout::MSI_DOORBELL;
use cpu::Cpu;

const SGI: u32 = 1;
const TIMER: u32 = intid::VIRTUAL_TIMER;
const LEVEL: u32 = intid::UART;
const EDGE: u32 = intid::MSI;

/// Writes a 32-bit register of the distributor, or of the first redistributor for private interrupts.
pub(in crate::guest) fn set(gic: &mut Gic, bank: u64, number: u32, value: u32) {
    let offset = bank + u64::from(number / 32 * 4);
    if number < PRIVATE {
        gic.write(0, Window::Redistributors, 0x1_0000 + offset, 4, value.into());
    } else {
        gic.write(0, Window::Distributor, offset, 4, value.into());
    }
}

fn get(gic: &Gic, bank: u64, number: u32) -> bool {
    let offset = bank + u64::from(number / 32 * 4);
    let value = if number < PRIVATE {
        gic.read(0, Window::Redistributors, 0x1_0000 + offset, 4)
    } else {
        gic.read(0, Window::Distributor, offset, 4)
    };
    value & 1 << (number % 32) != 0
}

const GROUP: u64 = 0x80;
const SET_ENABLE: u64 = 0x100;
const CLEAR_ENABLE: u64 = 0x180;
const SET_PENDING: u64 = 0x200;
const CLEAR_PENDING: u64 = 0x280;
const SET_ACTIVE: u64 = 0x300;
const CLEAR_ACTIVE: u64 = 0x380;

fn set_bit(gic: &mut Gic, bank: u64, number: u32) {
    set(gic, bank, number, 1 << (number % 32));
}

fn set_priority(gic: &mut Gic, number: u32, priority: u8) {
    let offset = 0x400 + u64::from(number);
    let (window, offset) = if number < PRIVATE {
        (Window::Redistributors, 0x1_0000 + offset)
    } else {
        (Window::Distributor, offset)
    };
    gic.write(0, window, offset, 1, priority.into());
}

/// A controller as a kernel sets it up: awake, both groups on, these interrupts enabled in group 1.
pub(in crate::guest) fn ready(vcpus: u16, numbers: &[u32]) -> Gic {
    let mut gic = Gic::new(vcpus).unwrap();
    for vcpu in 0..u64::from(vcpus) {
        gic.write(0, Window::Redistributors, vcpu * layout::GICR_STRIDE + 0x14, 4, 0);
    }
    gic.write(0, Window::Distributor, 0, 4, 0x13);
    for number in numbers {
        let group = get_word(&gic, GROUP, *number) | 1 << (number % 32);
        set(&mut gic, GROUP, *number, group);
        set_bit(&mut gic, SET_ENABLE, *number);
        set_priority(&mut gic, *number, 0xa0);
    }
    // EDGE and up to 15 after it.
    gic.write(0, Window::Distributor, 0xc00 + u64::from(EDGE / 4), 4, 0xaaaa_aaaa);
    gic
}

fn get_word(gic: &Gic, bank: u64, number: u32) -> u32 {
    (0..32).fold(0, |word, bit| word | u32::from(get(gic, bank, number / 32 * 32 + bit)) << bit)
}

fn msi(number: u32) -> MsiMessage {
    MsiMessage { address: MSI_DOORBELL, data: number }
}

/// Its list register reads as zero once it has ended.
#[test]
fn interrupt_0_of_group_0_and_of_the_highest_priority_comes_again() {
    let mut gic = ready(1, &[]);
    set_bit(&mut gic, SET_ENABLE, 0);
    let mut cpu = Cpu::new(0, 4);
    for _ in 0..2 {
        gic.send_sgi(0, 1, SgiGroup::Group0);
        cpu.enter(&mut gic);
        assert_eq!(cpu.acknowledge(), Some(0));
        cpu.end(0);
        cpu.exit(&mut gic);
    }
}

#[test]
fn a_message_is_delivered_once() {
    let mut gic = ready(1, &[EDGE]);
    let mut cpu = Cpu::new(0, 4);
    cpu.enter(&mut gic);
    gic.take_wakes();
    assert!(gic.message(msi(EDGE)));
    assert!(gic.take_wakes().contains(0), "the processor must come out to see it");
    cpu.exit(&mut gic);
    assert!(gic.has_pending(0, cpu.interface()));
    cpu.enter(&mut gic);
    assert_eq!(cpu.acknowledge(), Some(EDGE));
    // A second one while the first is handled is kept for later; a third is the same.
    for _ in 0..2 {
        gic.message(msi(EDGE));
        cpu.exit(&mut gic);
        cpu.enter(&mut gic);
    }
    assert_eq!(cpu.acknowledge(), None);
    cpu.end(EDGE);
    assert_eq!(cpu.acknowledge(), Some(EDGE));
    cpu.end(EDGE);
    assert_eq!(cpu.acknowledge(), None);
    cpu.exit(&mut gic);
    assert!(!gic.has_pending(0, cpu.interface()));
}

#[test]
fn who_enters_need_not_be_woken_for_what_it_takes_along() {
    let mut gic = ready(2, &[EDGE]);
    gic.message(msi(EDGE));
    gic.send_sgi(0, u64::from(SGI) << 24 | 0b10, SgiGroup::Group1);
    gic.write(1, Window::Redistributors, layout::GICR_STRIDE + 0x1_0100, 4, 1 << SGI);
    Cpu::new(0, 4).enter(&mut gic);
    assert_eq!(gic.take_wakes().iter().collect::<Vec<_>>(), [1]);
}

#[test]
fn messages_elsewhere_and_for_private_interrupts_are_nothing() {
    let mut gic = ready(1, &[SGI, EDGE]);
    gic.take_wakes();
    assert!(!gic.message(MsiMessage { address: MSI_DOORBELL + 4, data: EDGE }));
    for number in [SGI, intid::COUNT, 1023, u32::MAX] {
        assert!(!gic.message(msi(number)));
    }
    assert_eq!(gic.take_wakes(), VcpuSet::default());
}

#[test]
fn a_level_interrupt_comes_again_while_its_line_is_high() {
    let mut gic = ready(1, &[TIMER]);
    let mut cpu = Cpu::new(0, 4);
    gic.set_ppi_line(0, TIMER, true);
    for _ in 0..3 {
        cpu.enter(&mut gic);
        assert_eq!(cpu.acknowledge(), Some(TIMER));
        assert!(!cpu.maintenance());
        cpu.end(TIMER);
        assert!(cpu.maintenance(), "its end must be seen");
        cpu.exit(&mut gic);
    }
    cpu.enter(&mut gic);
    assert_eq!(cpu.acknowledge(), Some(TIMER));
    cpu.exit(&mut gic);
    cpu.enter(&mut gic);
    // The line may fall unseen before the end.
    let state = lr::PENDING | lr::ACTIVE | lr::EOI;
    assert_eq!(cpu.registers[0] & state, lr::ACTIVE | lr::EOI);
    gic.set_ppi_line(0, TIMER, false);
    cpu.end(TIMER);
    cpu.exit(&mut gic);
    cpu.enter(&mut gic);
    assert_eq!(cpu.acknowledge(), None);
}

#[test]
fn a_line_that_falls_takes_its_interrupt_back() {
    let mut gic = ready(1, &[LEVEL]);
    let mut cpu = Cpu::new(0, 4);
    gic.set_spi_line(LEVEL, true);
    cpu.enter(&mut gic);
    gic.take_wakes();
    gic.set_spi_line(LEVEL, false);
    assert!(gic.take_wakes().contains(0));
    cpu.exit(&mut gic);
    cpu.enter(&mut gic);
    assert_eq!(cpu.registers, [0; 4]);
}

/// A crash kernel starts inside the interrupt in which the last one crashed, and nobody ends it.
#[test]
fn an_interrupt_that_a_kernel_left_active_comes_to_the_next_once_it_was_cleared() {
    let mut gic = ready(1, &[LEVEL]);
    let mut crashed = Cpu::new(0, 4);
    gic.set_spi_line(LEVEL, true);
    crashed.enter(&mut gic);
    assert_eq!(crashed.acknowledge(), Some(LEVEL));
    crashed.exit(&mut gic);
    set_bit(&mut gic, CLEAR_ENABLE, LEVEL);
    // The next one's CPU interface has no active priorities: it cleared ICC_AP1R0_EL1.
    let mut next = Cpu::new(0, 4);
    next.enter(&mut gic);
    assert_eq!(next.registers[0] & lr::ACTIVE, lr::ACTIVE, "disabled, and active all the same");
    next.exit(&mut gic);
    set_bit(&mut gic, CLEAR_ACTIVE, LEVEL);
    next.enter(&mut gic);
    assert_eq!(next.registers, [0; 4]);
    next.exit(&mut gic);
    set_bit(&mut gic, SET_ENABLE, LEVEL);
    next.enter(&mut gic);
    assert_eq!(next.acknowledge(), Some(LEVEL), "the line is still high");
}

#[test]
fn a_mapped_interrupt_is_ended_by_the_hardware() {
    const PHYSICAL: u16 = 27;
    let mut gic = ready(1, &[TIMER]);
    let mut cpu = Cpu::new(0, 4);
    gic.map_physical(0, TIMER, Some(PHYSICAL));
    gic.set_ppi_line(0, TIMER, true);
    cpu.enter(&mut gic);
    assert_eq!(
        cpu.registers[0],
        u64::from(TIMER) | 0xa0 << 48 | lr::GROUP1 | lr::HW | lr::PENDING | u64::from(PHYSICAL) << 32
    );
    // Leaving before it is taken loses nothing, taking it and leaving does not repeat it.
    cpu.exit(&mut gic);
    cpu.enter(&mut gic);
    assert_eq!(cpu.acknowledge(), Some(TIMER));
    cpu.exit(&mut gic);
    cpu.enter(&mut gic);
    assert_eq!(cpu.registers[0] & (lr::PENDING | lr::ACTIVE | lr::HW), lr::ACTIVE | lr::HW);
    cpu.end(TIMER);
    assert_eq!((cpu.deactivated.as_slice(), cpu.maintenance()), ([PHYSICAL].as_slice(), false));
    cpu.exit(&mut gic);
    cpu.enter(&mut gic);
    assert_eq!(cpu.registers, [0; 4]);
}

#[test]
fn a_mapped_interrupt_is_never_pending_and_active_at_once() {
    let mut gic = ready(1, &[TIMER]);
    let mut cpu = Cpu::new(0, 4);
    gic.map_physical(0, TIMER, Some(27));
    gic.set_ppi_line(0, TIMER, true);
    cpu.enter(&mut gic);
    cpu.acknowledge();
    cpu.exit(&mut gic);
    set_bit(&mut gic, SET_PENDING, TIMER);
    cpu.enter(&mut gic);
    assert_eq!(cpu.registers[0] & (lr::PENDING | lr::ACTIVE), lr::ACTIVE);
    cpu.end(TIMER);
    cpu.exit(&mut gic);
    cpu.enter(&mut gic);
    assert_eq!(cpu.acknowledge(), Some(TIMER), "set by software, it comes after the end");
}

#[test]
fn disabling_one_group_lets_the_other_have_its_list_registers() {
    let numbers: Vec<u32> = (EDGE..EDGE + 4).collect();
    let mut gic = ready(1, &numbers);
    // The last of them is in group 0.
    set(&mut gic, GROUP, EDGE, 0b0111);
    gic.write(0, Window::Distributor, 0, 4, 0x13);
    numbers.iter().for_each(|number| assert!(gic.message(msi(*number))));
    let mut cpu = Cpu::new(0, 2);
    cpu.enter(&mut gic);
    assert!(!cpu.maintenance());
    cpu.vmcr &= !2;
    assert!(cpu.maintenance(), "what is left out may be all that can be taken now");
    cpu.exit(&mut gic);
    cpu.enter(&mut gic);
    assert!(!cpu.maintenance());
    assert_eq!(cpu.acknowledge(), Some(EDGE + 3));
}

#[test]
fn a_timer_that_is_rearmed_in_time_is_not_seen() {
    let mut gic = ready(1, &[TIMER]);
    let mut cpu = Cpu::new(0, 4);
    gic.map_physical(0, TIMER, Some(27));
    gic.set_ppi_line(0, TIMER, true);
    cpu.enter(&mut gic);
    gic.set_ppi_line(0, TIMER, false);
    cpu.exit(&mut gic);
    cpu.enter(&mut gic);
    assert_eq!(cpu.registers, [0; 4]);
}

#[test]
fn more_interrupts_than_list_registers_come_in_the_order_of_priority() {
    let numbers: Vec<u32> = (EDGE..EDGE + 12).collect();
    for registers in 1..=4 {
        let mut gic = ready(1, &numbers);
        let mut cpu = Cpu::new(0, registers);
        for (i, number) in numbers.iter().enumerate() {
            set_priority(&mut gic, *number, ((i as u8 * 7) % 12) << 3);
            gic.message(msi(*number));
        }
        cpu.enter(&mut gic);
        let mut seen = Vec::new();
        for _ in 0..numbers.len() {
            let number = cpu.acknowledge().expect("none may be lost");
            cpu.end(number);
            seen.push(number);
            if cpu.maintenance() {
                cpu.exit(&mut gic);
                cpu.enter(&mut gic);
            }
        }
        let mut expected = numbers.clone();
        expected.sort_by_key(|n| (n - EDGE) * 7 % 12);
        assert_eq!(seen, expected, "{registers} list registers");
        assert_eq!(cpu.acknowledge(), None);
    }
}

#[test]
fn deep_nesting_is_ended_right_where_active_ones_have_no_list_register() {
    let numbers: Vec<u32> = (EDGE..EDGE + 8).collect();
    let mut gic = ready(1, &numbers);
    let mut cpu = Cpu::new(0, 2);
    for (i, number) in (0u8..).zip(&numbers) {
        set_priority(&mut gic, *number, (8 - i) << 3);
        gic.message(msi(*number));
        cpu.exit(&mut gic);
        cpu.enter(&mut gic);
        assert_eq!(cpu.acknowledge(), Some(*number));
    }
    // All are ended before the maintenance interrupt is taken.
    for number in numbers.iter().rev() {
        cpu.end(*number);
    }
    assert!(cpu.maintenance());
    cpu.exit(&mut gic);
    assert_eq!(get_word(&gic, SET_ACTIVE, EDGE), 0);
    cpu.enter(&mut gic);
    assert_eq!(cpu.registers, [0; 2]);
}

#[test]
fn software_generated_interrupts_reach_whom_they_name() {
    const IRM: u64 = 1 << 40;
    let mut gic = ready(3, &[SGI]);
    for vcpu in 1..3 {
        let base = vcpu * layout::GICR_STRIDE + 0x1_0000;
        gic.write(0, Window::Redistributors, base + GROUP, 4, 0xffff_ffff);
        gic.write(0, Window::Redistributors, base + SET_ENABLE, 4, 0xffff);
    }
    gic.take_wakes();
    let woken = |gic: &mut Gic| gic.take_wakes().iter().collect::<Vec<_>>();
    gic.send_sgi(0, u64::from(SGI) << 24 | 0b101, SgiGroup::Group1);
    assert_eq!(woken(&mut gic), [0, 2]);
    gic.send_sgi(1, u64::from(SGI) << 24 | IRM, SgiGroup::Group1);
    assert_eq!(woken(&mut gic), [0, 2]);
    // Nobody has affinity 1.0, nobody has number 16, and group 0 has no such interrupt.
    for value in [1 << 16 | 1, 1 << 44 | 1, 1 << 32 | 1, 1 << 48 | 1, 0xfff8] {
        gic.send_sgi(0, u64::from(SGI + 1) << 24 | value, SgiGroup::Group1);
    }
    gic.send_sgi(0, u64::from(SGI + 1) << 24 | 1, SgiGroup::Group0);
    let mut cpu = Cpu::new(2, 4);
    cpu.enter(&mut gic);
    assert_eq!(cpu.acknowledge(), Some(SGI));
    cpu.end(SGI);
    assert_eq!(cpu.acknowledge(), None);
    let others = Window::Redistributors;
    assert_eq!(gic.read(0, others, 0x1_0000 + SET_PENDING, 4), 1 << SGI | 1 << (SGI + 1));
}

#[test]
fn a_shared_interrupt_is_with_one_vcpu_at_a_time() {
    let mut gic = ready(2, &[EDGE]);
    let (mut first, mut second) = (Cpu::new(0, 4), Cpu::new(1, 4));
    gic.message(msi(EDGE));
    first.enter(&mut gic);
    gic.message(msi(EDGE));
    let router = 0x6000 + 8 * u64::from(EDGE);
    gic.take_wakes();
    gic.write(1, Window::Distributor, router, 8, 1);
    assert!(gic.take_wakes().contains(0), "it is to give it back");
    second.enter(&mut gic);
    assert_eq!(second.acknowledge(), None);
    first.exit(&mut gic);
    assert!(gic.take_wakes().contains(1));
    first.enter(&mut gic);
    assert_eq!(first.acknowledge(), None);
    second.exit(&mut gic);
    second.enter(&mut gic);
    assert_eq!(second.acknowledge(), Some(EDGE));
    gic.write(1, Window::Distributor, router, 8, 0x100);
    second.end(EDGE);
    second.exit(&mut gic);
    gic.message(msi(EDGE));
    for cpu in [&mut first, &mut second] {
        cpu.exit(&mut gic);
        cpu.enter(&mut gic);
        assert_eq!(cpu.acknowledge(), None, "nobody has that affinity");
    }
}

#[test]
fn only_what_could_be_taken_ends_a_wait() {
    let mut gic = ready(1, &[EDGE]);
    let mut cpu = Cpu::new(0, 4);
    gic.message(msi(EDGE));
    assert!(gic.has_pending(0, cpu.interface()));
    cpu.vmcr = cpu::OPEN & !(0xff << 24) | 0xa0 << 24;
    assert!(!gic.has_pending(0, cpu.interface()), "masked by its priority");
    cpu.vmcr = cpu::OPEN & !2;
    assert!(!gic.has_pending(0, cpu.interface()), "group 1 is disabled");
    cpu.enter(&mut gic);
    cpu.vmcr |= 2;
    assert!(cpu.maintenance(), "enabling it brings the processor back");
    cpu.exit(&mut gic);
    gic.write(0, Window::Redistributors, 0x14, 4, 2);
    assert!(!gic.has_pending(0, cpu.interface()), "the redistributor sleeps");
    gic.write(0, Window::Redistributors, 0x14, 4, 0);
    gic.write(0, Window::Distributor, 0, 4, 0x11);
    assert!(!gic.has_pending(0, cpu.interface()), "the distributor has group 1 disabled");
}
