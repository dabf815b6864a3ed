// SPDX-License-Identifier: MIT OR Apache-2.0
//! List registers against a controller that has none, and garbage against everything.

use proptest::prelude::*;

use super::super::list_registers::hcr;
use super::model::{Interrupt, Model};
use super::*;

const NUMBERS: [u32; 10] = [0, SGI, 20, TIMER, LEVEL, LEVEL + 1, LEVEL + 2, EDGE, EDGE + 1, EDGE + 2];

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
            assert_eq!(get(&self.gic, SET_PENDING, *number), interrupt.pending(), "pending {number}");
            assert_eq!(get(&self.gic, SET_ACTIVE, *number), interrupt.active, "active {number}");
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
        assert_eq!(taken.map(|number| self.model.get(number).priority), best, "{taken:?}");
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
                self.gic.send_sgi(0, u64::from(number) << 24 | 1, SgiGroup::Group1);
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
                    let Control { hcr, used } = gic.fill(vcpu, &mut registers, interface);
                    prop_assert!(hcr & hcr::EN != 0 && used <= registers.len());
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
