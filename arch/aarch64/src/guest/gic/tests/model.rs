// SPDX-License-Identifier: MIT OR Apache-2.0
//! An interrupt controller without list registers: each interrupt is a few booleans, and the processor looks at
//! all of them. Source: Arm IHI 0069, section 4.1 (the states of an interrupt).

use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Interrupt {
    pub edge: bool,
    pub group1: bool,
    pub enabled: bool,
    pub priority: u8,
    pub latch: bool,
    pub line: bool,
    pub active: bool,
}

impl Interrupt {
    pub fn pending(&self) -> bool {
        self.latch || !self.edge && self.line
    }
}

#[derive(Default)]
pub(super) struct Model {
    pub interrupts: BTreeMap<u32, Interrupt>,
    /// Acknowledged and not ended, the last one last.
    pub running: Vec<u32>,
}

impl Model {
    pub fn get(&mut self, number: u32) -> &mut Interrupt {
        self.interrupts.get_mut(&number).unwrap()
    }

    pub fn line(&mut self, number: u32, level: bool) {
        let interrupt = self.get(number);
        interrupt.latch |= interrupt.edge && level && !interrupt.line;
        interrupt.line = level;
    }

    pub fn message(&mut self, number: u32, pending: bool) {
        let interrupt = self.get(number);
        if interrupt.edge {
            interrupt.latch = pending;
        } else {
            interrupt.line = pending;
        }
    }

    /// The highest priority that could be acknowledged while `running` is the priority that runs.
    pub fn best(&self, running: u16, enables: impl Fn(bool) -> bool) -> Option<u8> {
        self.interrupts
            .values()
            .filter(|i| i.pending() && !i.active && i.enabled && enables(i.group1))
            .map(|i| i.priority)
            .min()
            .filter(|priority| u16::from(*priority) < running)
    }

    pub fn acknowledge(&mut self, number: u32) {
        let interrupt = self.get(number);
        interrupt.latch = false;
        interrupt.active = true;
        self.running.push(number);
    }

    pub fn end(&mut self) -> Option<u32> {
        let number = self.running.pop()?;
        self.get(number).active = false;
        Some(number)
    }
}
