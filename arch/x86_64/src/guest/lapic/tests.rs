// SPDX-License-Identifier: MIT OR Apache-2.0
use proptest::prelude::*;

use super::*;
use crate::guest::GeneralProtection;

const X2: u64 = 0xfee0_0000 | apic_base::ENABLE | apic_base::X2APIC;
const TPR: u32 = 0x808;
const EOI: u32 = 0x80b;
const SVR: u32 = 0x80f;
const ESR: u32 = 0x828;
const ICR: u32 = 0x830;
const LVT_TIMER: u32 = 0x832;
const LVT_ERROR: u32 = 0x837;
const INITIAL: u32 = 0x838;
const CURRENT: u32 = 0x839;
const DIVIDE: u32 = 0x83e;
const SELF_IPI: u32 = 0x83f;

fn x2apic() -> LocalApic {
    let mut apic = LocalApic::new(0);
    apic.write_msr(MSR_APIC_BASE, X2, 0).unwrap();
    apic.write_msr(SVR, 0x1ff, 0).unwrap();
    apic
}

fn take(apic: &mut LocalApic) -> Option<u8> {
    let vector = apic.pending()?;
    apic.acknowledge(vector);
    Some(vector)
}

#[test]
fn higher_priority_class_interrupts_lower_and_not_the_other_way() {
    let mut apic = x2apic();
    apic.accept(0x41, false);
    apic.accept(0x52, false);
    apic.accept(0x51, false);
    assert_eq!(take(&mut apic), Some(0x52));
    assert_eq!(apic.pending(), None, "0x51 is of the class in service");
    apic.accept(0x60, false);
    assert_eq!(take(&mut apic), Some(0x60));
    for next in [None, Some(0x51), Some(0x41), None] {
        assert_eq!(apic.write_msr(EOI, 0, 0), Ok(None));
        assert_eq!(take(&mut apic), next);
    }
}

#[test]
fn task_priority_holds_back_its_class_and_below() {
    let mut apic = x2apic();
    apic.accept(0x45, false);
    apic.write_msr(TPR, 0x40, 0).unwrap();
    assert_eq!((apic.pending(), apic.highest_requested()), (None, Some(0x45)));
    assert_eq!(apic.cr8(), 4);
    apic.set_cr8(3);
    assert_eq!(apic.pending(), Some(0x45));
    apic.write_msr(TPR, 0x4f, 0).unwrap();
    apic.set_cr8(4);
    assert_eq!(apic.read_msr(TPR, 0), Ok(0x4f), "unchanged: nothing is lost");
}

#[test]
fn end_of_a_level_interrupt_is_told_to_the_io_apic_and_of_an_edge_is_not() {
    let mut apic = x2apic();
    apic.accept(0x45, true);
    take(&mut apic);
    assert_eq!(apic.write_msr(EOI, 0, 0), Ok(Some(ApicEvent::EndOfInterrupt { vector: 0x45 })));
    apic.accept(0x45, false);
    take(&mut apic);
    assert_eq!(apic.write_msr(EOI, 0, 0), Ok(None));
    assert_eq!(apic.write_msr(EOI, 0, 0), Ok(None), "nothing in service");
    assert_eq!(apic.write_msr(EOI, 1, 0), Err(GeneralProtection));
}

#[test]
fn disabled_by_software_takes_nothing_and_masks_the_lvt() {
    let mut apic = x2apic();
    apic.write_msr(LVT_TIMER, 0x30, 0).unwrap();
    apic.write_msr(SVR, 0xff, 0).unwrap();
    apic.accept(0x45, false);
    assert_eq!(apic.highest_requested(), None);
    assert_eq!(apic.read_msr(LVT_TIMER, 0), Ok(0x1_0030));
    apic.write_msr(LVT_TIMER, 0x30, 0).unwrap();
    assert_eq!(apic.read_msr(LVT_TIMER, 0), Ok(0x1_0030));
}

#[test]
fn tsc_deadline_fires_once_and_reads_as_zero_after() {
    let mut apic = x2apic();
    apic.write_msr(LVT_TIMER, 2 << 17 | 0xec, 0).unwrap();
    apic.write_msr(MSR_TSC_DEADLINE, 1000, 10).unwrap();
    assert_eq!((apic.next_deadline(), apic.read_msr(MSR_TSC_DEADLINE, 10)), (Some(1000), Ok(1000)));
    apic.timer_expired(999);
    assert_eq!(apic.pending(), None);
    apic.timer_expired(1000);
    assert_eq!(take(&mut apic), Some(0xec));
    assert_eq!((apic.next_deadline(), apic.read_msr(MSR_TSC_DEADLINE, 10)), (None, Ok(0)));
    apic.write_msr(EOI, 0, 0).unwrap();
    apic.write_msr(MSR_TSC_DEADLINE, 5, 2000).unwrap();
    assert_eq!(apic.pending(), Some(0xec), "a deadline in the past fires at once");
}

#[test]
fn one_shot_counts_down_at_the_divided_pace() {
    let mut apic = x2apic();
    apic.write_msr(LVT_TIMER, 0xec, 0).unwrap();
    apic.write_msr(DIVIDE, 0x3, 0).unwrap(); // by 16
    apic.write_msr(INITIAL, 100, 1000).unwrap();
    assert_eq!(apic.next_deadline(), Some(1000 + 1600));
    assert_eq!(apic.read_msr(CURRENT, 1800), Ok(50));
    apic.write_msr(DIVIDE, 0xb, 1800).unwrap(); // by 1
    assert_eq!(apic.next_deadline(), Some(1850));
    apic.timer_expired(1850);
    assert_eq!((apic.pending(), apic.next_deadline()), (Some(0xec), None));
    assert_eq!(apic.read_msr(CURRENT, 9999), Ok(0));
}

#[test]
fn periodic_keeps_its_phase_and_skips_what_it_missed() {
    let mut apic = x2apic();
    apic.write_msr(LVT_TIMER, 1 << 17 | 0xec, 0).unwrap();
    apic.write_msr(DIVIDE, 0xb, 0).unwrap();
    apic.write_msr(INITIAL, 200_000, 0).unwrap();
    apic.timer_expired(200_010);
    assert_eq!(apic.next_deadline(), Some(400_000));
    apic.timer_expired(1_250_000);
    assert_eq!(apic.next_deadline(), Some(1_400_000));
    apic.write_msr(INITIAL, 1, 0).unwrap();
    assert_eq!(apic.next_deadline(), Some(timer::MIN_PERIOD));
}

#[test]
fn what_expires_while_masked_is_not_heard_later() {
    let mut apic = x2apic();
    apic.write_msr(LVT_TIMER, 1 << 16 | 0xec, 0).unwrap();
    apic.write_msr(INITIAL, 100, 0).unwrap();
    assert_eq!(apic.next_deadline(), None);
    apic.write_msr(LVT_TIMER, 0xec, 5000).unwrap();
    assert_eq!((apic.pending(), apic.next_deadline()), (None, None));
}

#[test]
fn interrupts_to_oneself_by_every_form() {
    let mut apic = x2apic();
    for (msr, value) in [
        (SELF_IPI, 0x45),
        (ICR, 1 << 18 | 0x45),           // shorthand self
        (ICR, 0x45),                     // physical, ID 0
        (ICR, 1 << 32 | 1 << 11 | 0x45), // logical, cluster 0 member 0
        (ICR, 0xffff_ffff << 32 | 0x45), // everyone
        (ICR, 2 << 18 | 0x45),           // all including self
    ] {
        apic.write_msr(msr, value, 0).unwrap();
        assert_eq!(take(&mut apic), Some(0x45), "{msr:#x} {value:#x}");
        apic.write_msr(EOI, 0, 0).unwrap();
    }
    apic.write_msr(ICR, 1 << 18 | 4 << 8, 0).unwrap();
    assert!(apic.take_nmi() && !apic.take_nmi());
}

#[test]
fn interrupts_for_others_are_handed_out() {
    let mut apic = x2apic();
    let event = apic.write_msr(ICR, 7 << 32 | 0x45, 0).unwrap();
    let ipi = Ipi { vector: 0x45, delivery_mode: 0, logical: false, destination: 7, all: false };
    assert_eq!(event, Some(ApicEvent::Ipi(ipi)));
    assert_eq!(apic.pending(), None);
    let event = apic.write_msr(ICR, 3 << 18 | 0x45, 0).unwrap();
    assert!(matches!(event, Some(ApicEvent::Ipi(Ipi { all: true, .. }))));
    assert_eq!(apic.pending(), None);
}

#[test]
fn illegal_vectors_raise_the_error_interrupt_once() {
    let mut apic = x2apic();
    apic.write_msr(LVT_ERROR, 0xfe, 0).unwrap();
    apic.write_msr(SELF_IPI, 3, 0).unwrap();
    apic.accept(2, false);
    assert_eq!(take(&mut apic), Some(0xfe));
    apic.write_msr(ESR, 0, 0).unwrap();
    assert_eq!(apic.read_msr(ESR, 0), Ok(0x60));
    apic.write_msr(ESR, 0, 0).unwrap();
    assert_eq!(apic.read_msr(ESR, 0), Ok(0));
}

#[test]
fn messages_find_their_destination() {
    let mut apic = x2apic();
    let msi = |address, data| MsiMessage { address, data };
    assert!(apic.accept_message(msi(0xfee0_0000, 0x45)));
    assert_eq!(take(&mut apic), Some(0x45));
    assert!(!apic.accept_message(msi(0xfee0_1000, 0x46)), "APIC ID 1");
    assert!(!apic.accept_message(msi(0x1_fee0_0000, 0x46)), "not an interrupt address");
    assert!(apic.accept_message(msi(0xfeef_f000, 0xc0_47)), "everyone, level");
    apic.write_msr(EOI, 0, 0).unwrap();
    assert_eq!(take(&mut apic), Some(0x47));
    assert_eq!(apic.write_msr(EOI, 0, 0), Ok(Some(ApicEvent::EndOfInterrupt { vector: 0x47 })));
}

#[test]
fn modes_change_only_along_the_permitted_ways() {
    let mut apic = LocalApic::new(0);
    const OFF: u64 = 0xfee0_0000;
    assert_eq!(apic.read_msr(MSR_APIC_BASE, 0), Ok(OFF | apic_base::ENABLE | apic_base::BSP));
    assert_eq!(apic.read_msr(SVR, 0), Err(GeneralProtection), "xAPIC mode has no MSRs");
    assert_eq!(apic.mmio_read(0x30, 4, 0), Some(0x5_0014));
    assert_eq!(apic.write_msr(MSR_APIC_BASE, 0xfed0_0000 | apic_base::ENABLE, 0), Err(GeneralProtection));
    assert_eq!(apic.write_msr(MSR_APIC_BASE, OFF | apic_base::X2APIC, 0), Err(GeneralProtection));
    apic.write_msr(MSR_APIC_BASE, X2, 0).unwrap();
    assert_eq!(apic.mmio_read(0x30, 4, 0), None);
    assert_eq!(apic.write_msr(MSR_APIC_BASE, OFF | apic_base::ENABLE, 0), Err(GeneralProtection));
    apic.write_msr(MSR_APIC_BASE, OFF, 0).unwrap();
    assert_eq!(apic.mode(), ApicMode::Disabled);
    assert_eq!(apic.write_msr(MSR_APIC_BASE, X2, 0), Err(GeneralProtection));
    apic.write_msr(MSR_APIC_BASE, OFF | apic_base::ENABLE, 0).unwrap();
    assert_eq!(apic.mode(), ApicMode::XApic);
}

#[test]
fn xapic_page_works_like_the_msrs() {
    let mut apic = LocalApic::new(0);
    apic.mmio_write(0xf0, 4, 0x1ff, 0);
    apic.mmio_write(0xd0, 4, 0x0100_0000, 0); // logical ID 1, flat
    apic.mmio_write(0x310, 4, 0x0100_0000, 0);
    apic.mmio_write(0x300, 4, 1 << 11 | 0x45, 0);
    assert_eq!(take(&mut apic), Some(0x45));
    apic.mmio_write(0xb0, 4, 0, 0);
    assert_eq!(apic.mmio_read(0xf1, 4, 0), Some(0));
    assert_eq!(apic.mmio_read(0x20, 4, 0), Some(0));
    assert_eq!(apic.mmio_read(0x3a0, 4, 0), Some(0), "no such register");
    apic.mmio_write(0x280, 4, 0, 0);
    assert_eq!(apic.mmio_read(0x280, 4, 0), Some(0x80));
}

proptest! {
    #[test]
    fn no_access_panics_and_priorities_always_hold(
        ops in proptest::collection::vec((0u8..7, any::<u32>(), any::<u64>(), any::<u64>()), 0..300),
        in_x2apic in any::<bool>(),
    ) {
        let mut apic = if in_x2apic { x2apic() } else { LocalApic::new(0) };
        for (op, select, value, now) in ops {
            let msr = match select % 20 { 0 => MSR_APIC_BASE, 1 => MSR_TSC_DEADLINE, _ => 0x800 + select % 0x50 };
            let value = if select & 0x100 != 0 { value & 0xfff } else { value };
            match op {
                0 => { let _ = apic.read_msr(msr, now); }
                1 => { let _ = apic.write_msr(msr, value, now); }
                2 => { let _ = apic.mmio_read(u64::from(select & 0xfff), 4, now); }
                3 => { let _ = apic.mmio_write(u64::from(select & 0xff0), 4, value, now); }
                4 => apic.accept(select as u8, value & 1 != 0),
                5 => { apic.accept_message(MsiMessage { address: 0xfee0_0000 | value & 0xf_ffff, data: select }); }
                _ => apic.timer_expired(now),
            }
            if let Some(vector) = apic.pending() {
                prop_assert!(vector >= FIRST_VECTOR);
                prop_assert!(vector >> 4 > apic.cr8());
                let in_service = apic.sets.highest(Vectors::InService);
                prop_assert!(in_service.is_none_or(|s| vector >> 4 > s >> 4));
                if value & 2 != 0 { apic.acknowledge(vector); }
            }
        }
    }
}

#[test]
fn a_count_goes_on_when_the_tsc_is_written_and_a_deadline_is_one_of_the_tsc() {
    const DELTA: u64 = 1_000_000_u64.wrapping_neg();
    const ONE_SHOT: u64 = 0x40;
    const TSC_DEADLINE: u64 = 2 << 17 | 0x40;
    let mut apic = x2apic();
    apic.write_msr(LVT_TIMER, ONE_SHOT, 0).unwrap();
    apic.write_msr(DIVIDE, 0xb, 0).unwrap();
    apic.write_msr(INITIAL, 500_000, 2_000_000).unwrap();
    apic.tsc_moved(DELTA);
    assert_eq!(apic.read_msr(CURRENT, 1_000_000), Ok(500_000));
    assert_eq!(apic.next_deadline(), Some(1_500_000));

    apic.write_msr(LVT_TIMER, TSC_DEADLINE, 0).unwrap();
    apic.write_msr(MSR_TSC_DEADLINE, 3_000_000, 0).unwrap();
    apic.tsc_moved(DELTA);
    assert_eq!(apic.next_deadline(), Some(3_000_000));
}
