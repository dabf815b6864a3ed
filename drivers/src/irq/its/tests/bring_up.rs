// SPDX-License-Identifier: MIT OR Apache-2.0
//! Take-over from the firmware, what units can be, and what the firmware may say.

use super::super::model::{COLLECTIONS, DEVICES, TYPER, TYPER_PTA, VIRTUAL};
use super::*;

#[test]
fn after_take_over_no_message_raises_anything() {
    let machine = Rig::try_found(iort(), &[9], |gic| {
        let mut state = gic.state.lock().unwrap();
        state.units[0].leave(ID, 5, 8200);
        for redistributor in &mut state.redistributors {
            redistributor.ctlr = 1;
            redistributor.pending.insert(8300);
        }
        state.noisy.push((0, ID, 5));
    })
    .unwrap();
    machine.its.take_over().unwrap();
    let ctlr = machine.gic.state.lock().unwrap().units[0].ctlr;
    assert_eq!(ctlr, 0x51, "ITS_Number stays");
    for event in 0..64 {
        assert_eq!(machine.message(ID, event), []);
    }
    let interrupt = machine.map(DEVICE, 8, 0);
    assert_eq!(machine.message(ID, interrupt.message.data), [(0, 8)]);
    let old = machine.map(DEVICE, 108, 0);
    machine.gic.settle();
    assert_eq!(machine.arrived(), [], "what was pending before is not pending now");
    machine.unmap(old);
}

#[test]
fn nothing_is_written_before_take_over() {
    let machine = Rig::try_found(iort(), &[9], |gic| {
        gic.state.lock().unwrap().units[0].leave(ID, 5, 8200);
    })
    .unwrap();
    let state = machine.gic.state.lock().unwrap();
    assert_eq!((state.units[0].ctlr, state.units[0].baser[0]), (0x151, DEVICES));
    drop(state);
    let refusal = machine.its.map_interrupt(DEVICE, vector(0, 0)).unwrap_err();
    assert!(refusal.why.contains("not taken over"), "{refusal}");
}

#[test]
fn doorbells_are_the_translation_pages() {
    let machine = Rig::try_found(iort(), &[9, 7], |_| {}).unwrap();
    assert_eq!(machine.its.doorbells(), [HostPhys(0x809_0000), HostPhys(0x819_0000)]);
    let machine = Rig::new();
    assert_eq!(machine.map(DEVICE, 0, 0).message.address, 0x809_0040);
}

/// Maps, fires and unmaps on every processor, several rounds.
fn works(machine: &Rig) {
    let mut lpi = 0;
    for _ in 0..3 {
        for (requester, id) in [(DEVICE, ID), (OTHER, OTHER_ID)] {
            for processor in 0..PROCESSORS {
                lpi += 1;
                let interrupt = machine.map(requester, lpi, processor);
                assert_eq!(
                    machine.message(id, interrupt.message.data),
                    [(processor, lpi)],
                    "{:?}",
                    machine.its.describe()
                );
                machine.unmap(interrupt);
                assert_eq!(machine.message(id, interrupt.message.data), []);
            }
        }
    }
}

#[test]
fn redistributors_are_named_by_number_or_by_address() {
    for typer in [TYPER, TYPER | TYPER_PTA] {
        works(&Rig::changed(|gic| {
            gic.state.lock().unwrap().units[0].typer = typer;
        }));
    }
}

#[test]
fn memory_is_flushed_for_what_does_not_snoop() {
    works(&Rig::changed(|gic| gic.state.lock().unwrap().snoops = false));
}

#[test]
fn entries_may_have_any_size() {
    for entry in [4u64, 8, 12, 16] {
        works(&Rig::changed(|gic| {
            let its = &mut gic.state.lock().unwrap().units[0];
            its.typer = TYPER & !(0xf << 4) | (entry - 1) << 4;
            its.baser[0] = 1 << 56 | (2 * entry - 1) << 48;
            its.baser[1] = 4 << 56 | (entry - 1) << 48;
        }));
    }
}

#[test]
fn tables_have_any_page_size_and_one_or_two_levels() {
    for fixed_page in [None, Some(0), Some(1), Some(2)] {
        for indirect in [false, true] {
            let machine = Rig::changed(|gic| {
                let its = &mut gic.state.lock().unwrap().units[0];
                its.fixed_page = fixed_page;
                its.indirect = indirect;
            });
            let described = format!("{:?}", machine.its.describe());
            assert_eq!(described.contains("two-level"), indirect, "{described}");
            works(&machine);
            assert_eq!(machine.gic.state.lock().unwrap().units[0].baser[0] >> 62 & 1, u64::from(indirect));
        }
    }
}

#[test]
fn a_second_level_costs_memory_once_a_device_needs_it() {
    let flat = Rig::changed(|gic| gic.state.lock().unwrap().units[0].indirect = false);
    let machine = Rig::new();
    assert!(machine.memory.used() + 100 < flat.memory.used());
    let before = machine.memory.used();
    let interrupt = machine.map(DEVICE, 0, 0);
    let with_one = machine.memory.used();
    assert_eq!(with_one - before, 1 + 6, "a second level and a translation table");
    for lpi in 1..100 {
        let _ = machine.map(DEVICE, lpi, lpi % PROCESSORS);
    }
    machine.unmap(interrupt);
    let _ = machine.map(DEVICE, 0, 1);
    assert_eq!(machine.memory.used(), with_one, "nothing more once a device is known");
    // 6a:00.0 is in the same second level.
    let _ = machine.map(Requester::new(0, 0x6a, 0, 0), 200, 0);
    assert_eq!(machine.memory.used(), with_one + 6);
}

#[test]
fn a_table_that_cannot_be_large_enough_holds_the_first_devices() {
    let machine = Rig::changed(|gic| {
        let its = &mut gic.state.lock().unwrap().units[0];
        its.indirect = false;
        its.fixed_page = Some(0);
        // 32-byte entries: 256 pages of 128.
        its.baser[0] = 1 << 56 | 31 << 48;
    });
    let last = Requester { segment: 0, rid: 0x7fff };
    let interrupt = machine.map(last, 0, 0);
    assert_eq!(machine.message(0x7fff, interrupt.message.data), [(0, 0)]);
    let beyond = Requester { segment: 0, rid: 0x8000 };
    let refusal = machine.its.map_interrupt(beyond, vector(1, 0)).unwrap_err();
    assert!(refusal.why.contains("place for 0x8000 devices"), "{refusal}");
    assert_eq!(machine.map(DEVICE, 1, 0).message.data, 0, "the LPI is still free");
}

#[test]
fn wide_identifiers_are_no_trouble() {
    // 32-bit DeviceIDs and EventIDs.
    works(&Rig::changed(|gic| {
        gic.state.lock().unwrap().units[0].typer = TYPER | 31 << 8 | 31 << 13;
    }));
    // One bit of each.
    let refusal = Rig::changed(|gic| {
        gic.state.lock().unwrap().units[0].typer = TYPER & !(31 << 8 | 31 << 13);
    })
    .its
    .map_interrupt(DEVICE, vector(0, 0))
    .unwrap_err();
    assert!(refusal.why.contains("place for 0x2 devices"), "{refusal}");
}

#[test]
fn collections_may_be_held_in_hardware() {
    works(&Rig::changed(|gic| {
        let its = &mut gic.state.lock().unwrap().units[0];
        its.typer = TYPER | 4 << 24;
        its.baser[1] = 0;
    }));
    let refused = Rig::try_changed(|gic| {
        let its = &mut gic.state.lock().unwrap().units[0];
        its.typer = TYPER | 3 << 24;
        its.baser[1] = 0;
    });
    let refusal = refused.err().unwrap();
    assert!(refusal.why.contains("place for 3 of 4 processors"), "{refusal}");
}

#[test]
fn tables_of_virtual_processors_get_their_memory() {
    works(&Rig::changed(|gic| {
        let its = &mut gic.state.lock().unwrap().units[0];
        its.pidr2 = 0x4b;
        its.baser = [VIRTUAL, 0, COLLECTIONS, 0, 0, DEVICES, 0, 0];
    }));
}

fn refused(change: impl FnOnce(&Gic)) -> String {
    let refusal = Rig::try_changed(change).err().unwrap();
    assert!(!refusal.remedy.is_empty(), "{refusal}");
    let line = refusal.to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

#[test]
fn what_a_unit_lacks_is_said() {
    let changed = |change: fn(&mut ItsModel)| refused(|gic| change(&mut gic.state.lock().unwrap().units[0]));
    for (change, why) in [
        ((|its| its.pidr2 = 0x2b) as fn(&mut ItsModel), "architecture version 2 is unknown"),
        (|its| its.typer &= !1, "no physical LPIs"),
        (|its| its.typer &= !(15 << 32), "4 processors are more"),
        (|its| its.baser[0] = 0, "no device table"),
        (|its| its.fixed_page = Some(3), "takes no size of page"),
        (|its| its.forgetful = true, "does not keep"),
        (|its| its.busy = usize::MAX, "does not go quiet"),
    ] {
        let line = changed(change);
        assert!(line.contains(why) && line.contains("its 0x8080000"), "{line}");
    }
    // Two collection bits are enough for four processors.
    works(&Rig::changed(|gic| {
        gic.state.lock().unwrap().units[0].typer = TYPER & !(15 << 32) | 1 << 32;
    }));
}

#[test]
fn redistributors_that_cannot_be_used_are_refused() {
    let line = refused(|gic| gic.state.lock().unwrap().redistributors[2].no_lpis = true);
    assert!(line.contains("redistributor 0x80e0000: it has no LPIs"), "{line}");
    let line = refused(|gic| {
        let redistributor = &mut gic.state.lock().unwrap().redistributors[1];
        redistributor.ctlr = 1;
        redistributor.sticky = true;
    });
    assert!(line.contains("redistributor 0x80c0000") && line.contains("do not go off"), "{line}");
}

#[test]
fn bad_firmware_values_are_refused_in_one_line() {
    let memory = Arc::new(ModelMemory::new());
    let host: &'static ModelHost = Box::leak(Box::new(ModelHost::default()));
    let gic = Gic::new(&memory, vec![ItsModel::new()], 1);
    let attempt = |registers: Option<u64>, redistributor: Option<u64>| {
        let nodes: Vec<_> = registers
            .map(|registers| ItsNode { identifier: 0, registers: HostPhys(registers) })
            .into_iter()
            .collect();
        let redistributors = redistributor
            .map(|base| Redistributor {
                registers: ModelRegisters::Redistributor(Arc::clone(&gic), 0),
                base: HostPhys(base),
            })
            .into_iter()
            .collect();
        Its::new(&nodes, iort(), redistributors, Arc::clone(&memory), host, &mut |_, _| {
            Ok(ModelRegisters::Its(Arc::clone(&gic), 0))
        })
    };
    assert!(attempt(Some(ITS), Some(REDISTRIBUTORS)).is_ok());
    for registers in [0, ITS + 0x1000, u64::MAX, !0xffff, 1 << 52] {
        let refusal = attempt(Some(registers), Some(REDISTRIBUTORS)).err().unwrap();
        assert!(refusal.why.contains("cannot be there"), "{refusal}");
    }
    assert!(attempt(None, Some(REDISTRIBUTORS)).is_err());
    assert!(attempt(Some(ITS), None).is_err());
    // Where redistributors are matters only to what names them so.
    assert!(attempt(Some(ITS), Some(1)).is_ok());
    gic.state.lock().unwrap().units[0].typer |= TYPER_PTA;
    for base in [1, u64::MAX, 1 << 52] {
        let refusal = attempt(Some(ITS), Some(base)).err().unwrap();
        assert!(refusal.why.contains("cannot name the redistributor"), "{refusal}");
    }
}

#[test]
fn memory_that_is_short_is_said() {
    let pages = {
        let machine = Rig::new();
        let _ = machine.map(DEVICE, 0, 0);
        machine.memory.used()
    };
    let memory = Arc::new(ModelMemory::new());
    let host: &'static ModelHost = Box::leak(Box::new(ModelHost::default()));
    let gic = Gic::new(&memory, vec![ItsModel::new()], 1);
    for limit in 0..pages {
        memory.limit(limit);
        let node = ItsNode { identifier: 9, registers: HostPhys(ITS) };
        let redistributors = vec![Redistributor {
            registers: ModelRegisters::Redistributor(Arc::clone(&gic), 0),
            base: HostPhys(REDISTRIBUTORS),
        }];
        let made = Its::new(&[node], iort(), redistributors, Arc::clone(&memory), host, &mut |_, _| {
            Ok(ModelRegisters::Its(Arc::clone(&gic), 0))
        });
        let mapped = made.and_then(|its| {
            its.take_over()?;
            its.map_interrupt(DEVICE, vector(0, 0))
        });
        if let Err(refusal) = mapped {
            assert!(refusal.why.contains("pages of memory left"), "{refusal}");
        }
    }
}
