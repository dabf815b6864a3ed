// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any order of mapping and unmapping, with noise and errors, against a map of what should be.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const DEVICES: [(Requester, u32); 3] =
    [(DEVICE, ID), (OTHER, OTHER_ID), (Requester::new(0, 0x6a, 1, 1), 0x6a09)];
/// Events of a device.
const EVENTS: u32 = 8;

#[derive(Clone, Debug)]
enum Step {
    Map {
        device: usize,
        lpi: u32,
        processor: u32,
    },
    /// Of those that are mapped, one.
    Unmap(usize),
    /// All EventIDs of a device are sent, and take their time.
    Noise(usize),
    /// A command of this number stalls.
    Stall(u64),
    /// The unit stops after so many commands.
    Stop(usize),
    /// It goes on.
    Go,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3usize, 0..12u32, 0..PROCESSORS)
            .prop_map(|(device, lpi, processor)| Step::Map { device, lpi, processor }),
        5 => any::<prop::sample::Index>().prop_map(|index| Step::Unmap(index.index(64))),
        2 => (0..3usize).prop_map(Step::Noise),
        1 => prop::sample::select(vec![0x05, 0x08, 0x0a, 0x0c, 0x0f]).prop_map(Step::Stall),
        1 => (0..4usize).prop_map(Step::Stop),
        3 => Just(Step::Go),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn only_what_is_mapped_is_raised(steps in prop::collection::vec(step(), 1..60), snoops: bool) {
        let machine = Rig::changed(|gic| {
            let mut state = gic.state.lock().unwrap();
            state.snoops = snoops;
            let its = &mut state.units[0];
            its.typer = its.typer & !(31 << 8) | 2 << 8;
        });
        // Handle to device, EventID and what is raised; and those whose end was begun and not confirmed.
        let mut ending = BTreeSet::new();
        let mut truth: BTreeMap<u32, (usize, u32, (u32, u32))> = BTreeMap::new();
        let mut well = true;
        for step in steps {
            match step {
                Step::Map { device, lpi, processor } => {
                    let mapped = machine.its.map_interrupt(DEVICES[device].0, vector(lpi, processor));
                    let full = truth.values().filter(|(other, ..)| *other == device).count() == EVENTS as usize;
                    match mapped {
                        Ok(interrupt) => {
                            let new = (device, interrupt.message.data, (processor, lpi));
                            prop_assert!(truth.values().all(|other| (other.0, other.1) != (new.0, new.1)));
                            prop_assert!(truth.insert(interrupt.handle, new).is_none());
                        }
                        Err(refusal) => prop_assert!(
                            !well || full || truth.contains_key(&(8192 + lpi)),
                            "{}", refusal
                        ),
                    }
                }
                Step::Unmap(index) => {
                    let Some(&handle) = truth.keys().nth(index % truth.len().max(1)) else { continue };
                    match machine.its.unmap_interrupt(handle) {
                        Ok(()) => {
                            truth.remove(&handle);
                            ending.remove(&handle);
                        }
                        Err(refusal) => {
                            prop_assert!(!well, "{}", refusal);
                            ending.insert(handle);
                        }
                    }
                }
                Step::Noise(device) => {
                    let mut state = machine.gic.state.lock().unwrap();
                    state.noisy = (0..EVENTS).map(|event| (0, DEVICES[device].1, event)).collect();
                }
                Step::Stall(number) => {
                    machine.unit(|its| its.refuse = Some((number, 0)));
                    well = false;
                }
                Step::Stop(after) => {
                    machine.unit(|its| its.stop_after = Some(after));
                    well = false;
                }
                Step::Go => {
                    machine.unit(|its| {
                        its.stuck = false;
                        its.refuse = None;
                        its.stop_after = None;
                    });
                    // What was left in the queue may hold a stall, which one call is told of.
                    let _ = machine.its.map_interrupt(DEVICE, vector(50, 0)).map(|interrupt| {
                        let _ = machine.its.unmap_interrupt(interrupt.handle);
                    });
                    well = true;
                }
            }
            machine.gic.state.lock().unwrap().noisy.truncate(8);
            machine.gic.settle();
            let _ = machine.arrived();
            for (device, &(_, id)) in DEVICES.iter().enumerate() {
                for event in 0..EVENTS {
                    let mapped = truth
                        .iter()
                        .find(|(_, mapped)| (mapped.0, mapped.1) == (device, event));
                    let arrived = machine.message(id, event);
                    match mapped {
                        None => prop_assert_eq!(arrived, [], "{:#x} {}", id, event),
                        Some((handle, mapped)) if arrived.is_empty() => prop_assert!(
                            ending.contains(handle), "{:?} does not arrive", mapped
                        ),
                        Some((_, mapped)) => prop_assert_eq!(arrived, [mapped.2]),
                    }
                }
            }
        }
    }
}
