// SPDX-License-Identifier: MIT OR Apache-2.0
pub(in crate::guest) mod cpu;
mod model;
mod registers;

use proptest::prelude::*;

use super::list_registers::{hcr, lr};
use super::*;
use crate::guest::layout::MSI_DOORBELL;
use cpu::Cpu;
use model::{Interrupt, Model};

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
    gic.write(
        0,
        Window::Distributor,
        0xc00 + u64::from(EDGE / 4),
        4,
        0xaaaa_aaaa,
    );
    gic
}

fn get_word(gic: &Gic, bank: u64, number: u32) -> u32 {
    (0..32).fold(0, |word, bit| {
        word | u32::from(get(gic, bank, number / 32 * 32 + bit)) << bit
    })
}

fn msi(number: u32) -> MsiMessage {
    MsiMessage {
        address: MSI_DOORBELL,
        data: number,
    }
}

#[test]
fn a_message_is_delivered_once() {
    let mut gic = ready(1, &[EDGE]);
    let mut cpu = Cpu::new(0, 4);
    cpu.enter(&mut gic);
    gic.take_wakes();
    assert!(gic.message(msi(EDGE)));
    assert!(
        gic.take_wakes().contains(0),
        "the processor must come out to see it"
    );
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
    gic.write(
        1,
        Window::Redistributors,
        layout::GICR_STRIDE + 0x1_0100,
        4,
        1 << SGI,
    );
    Cpu::new(0, 4).enter(&mut gic);
    assert_eq!(gic.take_wakes().iter().collect::<Vec<_>>(), [1]);
}

#[test]
fn messages_elsewhere_and_for_private_interrupts_are_nothing() {
    let mut gic = ready(1, &[SGI, EDGE]);
    gic.take_wakes();
    assert!(!gic.message(MsiMessage {
        address: MSI_DOORBELL + 4,
        data: EDGE
    }));
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
    assert_eq!(
        cpu.registers[0] & (lr::PENDING | lr::ACTIVE | lr::HW),
        lr::ACTIVE | lr::HW
    );
    cpu.end(TIMER);
    assert_eq!(
        (cpu.deactivated.as_slice(), cpu.maintenance()),
        ([PHYSICAL].as_slice(), false)
    );
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
    assert_eq!(
        cpu.acknowledge(),
        Some(TIMER),
        "set by software, it comes after the end"
    );
}

#[test]
fn disabling_one_group_lets_the_other_have_its_list_registers() {
    let numbers: Vec<u32> = (EDGE..EDGE + 4).collect();
    let mut gic = ready(1, &numbers);
    // The last of them is in group 0.
    set(&mut gic, GROUP, EDGE, 0b0111);
    gic.write(0, Window::Distributor, 0, 4, 0x13);
    numbers
        .iter()
        .for_each(|number| assert!(gic.message(msi(*number))));
    let mut cpu = Cpu::new(0, 2);
    cpu.enter(&mut gic);
    assert!(!cpu.maintenance());
    cpu.vmcr &= !2;
    assert!(
        cpu.maintenance(),
        "what is left out may be all that can be taken now"
    );
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
    assert_eq!(
        gic.read(0, others, 0x1_0000 + SET_PENDING, 4),
        1 << SGI | 1 << (SGI + 1)
    );
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
    assert!(
        !gic.has_pending(0, cpu.interface()),
        "the distributor has group 1 disabled"
    );
}

#[test]
fn reset_forgets_all_but_the_lines() {
    let mut gic = ready(1, &[LEVEL, EDGE]);
    let mut cpu = Cpu::new(0, 4);
    gic.set_spi_line(LEVEL, true);
    gic.message(msi(EDGE));
    cpu.enter(&mut gic);
    cpu.acknowledge();
    gic.reset();
    cpu.exit(&mut gic);
    assert_eq!(
        get_word(&gic, SET_ACTIVE, LEVEL) | get_word(&gic, SET_ACTIVE, EDGE),
        0
    );
    assert_eq!(
        (get(&gic, SET_PENDING, LEVEL), get(&gic, SET_PENDING, EDGE)),
        (true, false)
    );
    assert_eq!(gic.read(0, Window::Distributor, 0, 4), 0x50);
    cpu.enter(&mut gic);
    assert_eq!(cpu.registers, [0; 4]);
}

const NUMBERS: [u32; 10] = [
    0,
    SGI,
    20,
    TIMER,
    LEVEL,
    LEVEL + 1,
    LEVEL + 2,
    EDGE,
    EDGE + 1,
    EDGE + 2,
];

#[derive(Clone, Debug)]
enum Op {
    Line(u32, bool),
    Message(u32, bool),
    Sgi(u32),
    Write(u64, u32),
    Priority(u32, u8),
    Group(bool, bool),
    Acknowledge,
    End,
    Leave,
}

fn op() -> impl Strategy<Value = Op> {
    let number = || proptest::sample::select(NUMBERS.to_vec());
    let banks = vec![SET_ENABLE, CLEAR_ENABLE, SET_PENDING, CLEAR_PENDING];
    prop_oneof![
        3 => (number(), any::<bool>()).prop_map(|(n, level)| Op::Line(n, level)),
        3 => (number(), any::<bool>()).prop_map(|(n, on)| Op::Message(n, on)),
        1 => (0u32..2).prop_map(Op::Sgi),
        3 => (proptest::sample::select(banks), number()).prop_map(|(bank, n)| Op::Write(bank, n)),
        1 => (number(), 0u8..4).prop_map(|(n, p)| Op::Priority(n, p << 6)),
        1 => (any::<bool>(), proptest::bool::weighted(0.7)).prop_map(|(group1, on)| Op::Group(group1, on)),
        5 => Just(Op::Acknowledge),
        4 => Just(Op::End),
        1 => Just(Op::Leave),
    ]
}

/// The controller with a processor, and the model beside it.
struct Rig {
    gic: Gic,
    cpu: Cpu,
    model: Model,
}

impl Rig {
    fn new(registers: usize, group0: u32) -> Self {
        let mut gic = ready(1, &NUMBERS);
        let mut model = Model::default();
        for (i, number) in NUMBERS.iter().enumerate() {
            let group1 = group0 & 1 << i == 0;
            let word = get_word(&gic, GROUP, *number) & !(u32::from(!group1) << (number % 32));
            set(&mut gic, GROUP, *number, word);
            let interrupt = Interrupt {
                edge: *number < SGIS || *number >= EDGE,
                group1,
                enabled: true,
                priority: 0xa0,
                ..Interrupt::default()
            };
            model.interrupts.insert(*number, interrupt);
        }
        let mut cpu = Cpu::new(0, registers);
        cpu.enter(&mut gic);
        gic.take_wakes();
        Self { gic, cpu, model }
    }

    /// The processor leaves the guest: whatever software can read agrees with the model.
    fn leave(&mut self) {
        self.cpu.exit(&mut self.gic);
        for (number, interrupt) in &self.model.interrupts {
            assert_eq!(
                get(&self.gic, SET_PENDING, *number),
                interrupt.pending(),
                "pending {number}"
            );
            assert_eq!(
                get(&self.gic, SET_ACTIVE, *number),
                interrupt.active,
                "active {number}"
            );
        }
        let best = self.model.best(0x100, |group1| self.cpu.enables(group1));
        assert_eq!(self.gic.has_pending(0, self.cpu.interface()), best.is_some());
    }

    fn turn(&mut self) {
        self.leave();
        self.cpu.enter(&mut self.gic);
        self.gic.take_wakes();
    }

    fn acknowledge(&mut self) -> Option<u32> {
        let running = self.cpu.running_priority();
        let best = self.model.best(running, |group1| self.cpu.enables(group1));
        let taken = self.cpu.acknowledge();
        assert_eq!(
            taken.map(|number| self.model.get(number).priority),
            best,
            "{taken:?}"
        );
        let number = taken?;
        let interrupt = *self.model.get(number);
        assert!(interrupt.pending() && interrupt.enabled && !interrupt.active);
        self.model.acknowledge(number);
        Some(number)
    }

    fn run(&mut self, op: &Op) {
        let Self { gic, cpu, model } = self;
        match *op {
            // From outside, while the guest runs.
            Op::Line(number, level) => match number {
                TIMER | 20 => {
                    gic.set_ppi_line(0, number, level);
                    model.line(number, level);
                }
                _ if number >= intid::SPI => {
                    gic.set_spi_line(number, level);
                    model.line(number, level);
                }
                _ => gic.set_spi_line(number, level),
            },
            Op::Message(number, true) => {
                if gic.message(msi(number)) {
                    model.message(number, true);
                }
            }
            // By the guest, which exits.
            Op::Message(number, false) => {
                self.leave();
                self.gic.write(0, Window::Distributor, 0x48, 4, number.into());
                if number >= intid::SPI {
                    self.model.message(number, false);
                }
                return self.enter();
            }
            Op::Sgi(number) => {
                self.leave();
                self.gic
                    .send_sgi(0, u64::from(number) << 24 | 1, SgiGroup::Group1);
                self.model.get(number).latch = true;
                return self.enter();
            }
            Op::Write(bank, number) => {
                self.leave();
                set_bit(&mut self.gic, bank, number);
                let interrupt = self.model.get(number);
                match bank {
                    SET_ENABLE => interrupt.enabled = true,
                    CLEAR_ENABLE => interrupt.enabled = false,
                    SET_PENDING => interrupt.latch = true,
                    _ => interrupt.latch = false,
                }
                return self.enter();
            }
            Op::Priority(number, priority) => {
                // Of an active one it is unpredictable.
                if model.get(number).active {
                    return;
                }
                self.leave();
                set_priority(&mut self.gic, number, priority);
                self.model.get(number).priority = priority;
                return self.enter();
            }
            // In the guest, unseen.
            Op::Group(group1, on) => {
                let bit = if group1 { 2 } else { 1 };
                cpu.vmcr = cpu.vmcr & !bit | if on { bit } else { 0 };
            }
            Op::Acknowledge => {
                self.acknowledge();
            }
            Op::End => {
                if let Some(number) = model.end() {
                    cpu.end(number);
                }
            }
            Op::Leave => return self.turn(),
        }
        if self.gic.take_wakes().contains(0) || self.cpu.maintenance() {
            self.turn();
        }
    }

    fn enter(&mut self) {
        self.cpu.enter(&mut self.gic);
        self.gic.take_wakes();
    }

    /// Takes and ends everything that can be taken.
    fn drain(&mut self) {
        for (number, _) in self.model.interrupts.clone() {
            self.run(&Op::Line(number, false));
            if self.model.get(number).line {
                self.run(&Op::Message(number, false));
            }
            self.run(&Op::Write(SET_ENABLE, number));
        }
        self.run(&Op::Group(false, true));
        self.run(&Op::Group(true, true));
        for _ in 0..2 * NUMBERS.len() {
            self.run(&Op::Acknowledge);
            self.run(&Op::End);
        }
        while !self.model.running.is_empty() {
            self.run(&Op::End);
            self.run(&Op::Acknowledge);
            self.run(&Op::End);
        }
        self.leave();
        assert!(self.model.interrupts.values().all(|i| !i.pending() && !i.active));
        assert!(self.gic.busy.iter().all(|word| *word == 0) && self.gic.vcpus[0].busy == 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn list_registers_and_the_model_agree_on_every_acknowledgement(
        registers in 1usize..6,
        group0 in any::<u32>(),
        ops in proptest::collection::vec(op(), 0..200),
    ) {
        let mut rig = Rig::new(registers, group0 & 0b10_1001_0100);
        for op in &ops {
            rig.run(op);
        }
        rig.drain();
    }

    #[test]
    fn no_access_and_no_garbage_in_list_registers_panics(
        ops in proptest::collection::vec((0u8..6, any::<u64>(), any::<u64>(), 0u8..9, 0u16..4), 0..200),
    ) {
        let mut gic = ready(2, &NUMBERS);
        let mut registers = [0; 4];
        for (kind, offset, value, size, vcpu) in ops {
            match kind {
                0 => gic.write(vcpu, Window::Distributor, offset % layout::GICD_LEN, size, value),
                1 => gic.write(vcpu, Window::Redistributors, offset % layout::GICR_LEN, size, value),
                2 => {
                    gic.read(vcpu, Window::Distributor, offset % layout::GICD_LEN, size);
                    gic.read(vcpu, Window::Redistributors, offset % layout::GICR_LEN, size);
                }
                3 => gic.send_sgi(vcpu, value, SgiGroup::Group1),
                4 => {
                    let interface = VCpuInterface { vmcr: value };
                    let Control(control) = gic.fill(vcpu, &mut registers, interface);
                    prop_assert!(control & hcr::EN != 0);
                }
                _ => {
                    registers[0] ^= value;
                    gic.sync(vcpu, &registers, offset);
                    gic.deactivate(vcpu, value as u32);
                }
            }
        }
    }
}
