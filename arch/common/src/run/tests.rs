// SPDX-License-Identifier: MIT OR Apache-2.0
//! The loop on a machine whose every step the test chooses.

use super::{Local, Next, World};
use crate::fake::{Fake, MASKS, Rig, Script, VMS};
use crate::hardware::Hardware;
use pasidon_kernel::vm::VmHost;
use pasidon_kernel::vm::sched::SLICE_NS;
use proptest::prelude::*;

/// One pCPU's loop.
pub struct Loop(Local<Fake>);

impl Loop {
    pub fn new(world: &World<Fake>) -> Self {
        Self(Local::new(world).expect("a pCPU"))
    }

    pub fn round(&mut self, world: &World<Fake>) {
        if self.0.round(world) == Next::Wait {
            Fake::wait();
        }
    }
}

/// More than any script needs.
const STEPS: usize = 200_000;

fn start_all() -> Vec<u8> {
    (0..VMS as u8).collect()
}

/// Runs it to its rest; what was wrong.
fn run(script: Script) -> Vec<String> {
    let rig = Rig::new(script);
    let rests = rig.run(STEPS);
    let mut wrong = rig.check();
    if !rests {
        wrong.push(format!("it does not come to rest in {STEPS} steps"));
    }
    wrong.extend(rig.end());
    wrong
}

/// Anything, or much of the same: of one of these.
fn bytes(same: &'static [u8], most: usize) -> impl Strategy<Value = Vec<u8>> {
    let much = proptest::sample::select(same).prop_flat_map(move |same| {
        proptest::collection::vec(prop_oneof![9 => Just(same), 1 => any::<u8>()], 0..most)
    });
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..most), much]
}

/// Guests that compute for long, print much, print and then compute for long, or do anything.
fn programs() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let strides = (0usize..8).prop_map(|count| [vec![5], vec![2; 30]].concat().repeat(count));
    proptest::collection::vec(prop_oneof![2 => bytes(&[0, 2, 5], 200), 1 => strides], VMS)
}

/// Interrupts come one after the other, or now and then.
fn schedules() -> impl Strategy<Value = Vec<u8>> {
    bytes(&[192], 600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_late_whatever_comes_between(
        schedule in schedules(),
        commands in bytes(&[4, 128, 136], 24),
        guests in programs(),
        posts: bool,
    ) {
        let commands = [start_all(), commands].concat();
        let wrong = run(Script { schedule, commands, guests, busy: false, share: VMS as u64, posts });
        prop_assert!(wrong.is_empty(), "{:#?}", wrong);
    }

    /// Nobody's interrupt has to wait for another's turn.
    #[test]
    fn a_guest_alone_on_its_pcpu_is_interrupted_at_once(
        schedule in schedules(),
        commands in bytes(&[4, 5, 28, 29], 24),
        guests in programs(),
        posts: bool,
    ) {
        let only_two = commands.into_iter().map(|byte| byte & !2);
        let commands = [0, 1].into_iter().chain(only_two).collect();
        let wrong = run(Script { schedule, commands, guests, busy: false, share: 1, posts });
        prop_assert!(wrong.is_empty(), "{:#?}", wrong);
    }
}

#[test]
fn guests_that_never_wait_share_their_pcpu() {
    let computes = vec![2; 1000];
    let rig = Rig::new(Script { commands: start_all(), guests: vec![computes; VMS], ..Script::default() });
    rig.run(20_000);
    let state = rig.sim.lock();
    let turns: Vec<usize> = state.turns.values().copied().collect();
    assert_eq!(turns.len(), VMS);
    let (least, most) = (turns.iter().min().unwrap(), turns.iter().max().unwrap());
    assert!(*least > 10 && most - least <= most / 20, "{turns:?} turns of {SLICE_NS} ns");
}

#[test]
fn guests_go_on_beside_work_that_never_ends() {
    let computes = vec![0; 1000];
    let rig = Rig::new(Script {
        commands: start_all(),
        guests: vec![computes; VMS],
        busy: true,
        ..Script::default()
    });
    rig.run(20_000);
    let state = rig.sim.lock();
    assert!(state.turns.len() == VMS && state.turns.values().all(|turns| *turns > 10), "{:?}", state.turns);
}

#[test]
fn what_the_next_vm_of_a_place_prints_is_on_the_channel_of_the_place() {
    // Removed, defined again, so with another number, and started: it prints.
    let commands = vec![32, 36, 0];
    let rig = Rig::new(Script { commands, guests: vec![vec![5; 20]], share: 1, ..Script::default() });
    rig.run(20_000);
    let printed = rig.sim.lock().printed.clone();
    assert!(printed.iter().any(|(vm, count)| usize::from(vm.0) != vm.place() && *count > 0), "{printed:?}");
    let wrong = [rig.check(), rig.end()].concat();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// An interrupt of `vm1`, whose pCPU is the second one, comes on the first; wherever both are, in every order of the
/// next steps.
#[test]
fn an_interrupt_comes_through_in_every_order_of_steps() {
    const ORDERED: u32 = 7;
    /// Has the second vdev raise its interrupt.
    const RAISE: u8 = 193;
    let starts = (16..48).step_by(2).map(|before| (before, false));
    for (before, posts) in starts.chain((16..48).step_by(4).map(|before| (before, true))) {
        for order in 0..1u8 << ORDERED {
            let turns = (0..ORDERED).map(|step| order >> step & 1);
            let schedule = (0..before).map(|step| step % 2).chain([RAISE]).chain(turns).collect();
            let guests = vec![vec![5], [vec![5; 3], vec![2; 40]].concat()];
            let wrong =
                run(Script { schedule, commands: vec![0, 1], guests, share: 1, posts, ..Script::default() });
            assert!(
                wrong.is_empty(),
                "after {before} steps, in order {order:#09b}, posted {posts}: {wrong:#?}"
            );
        }
    }
}

/// A guest on the second pCPU asks for its end, prints and logs; the first pCPU gets any number of steps at any moment
/// of that, so that it may go round its loop and sleep in between.
#[test]
fn the_first_pcpu_is_woken_wherever_it_is() {
    for before in 10..70 {
        for between in (2..60).step_by(2) {
            let schedule =
                (0..before).map(|step| step % 2).chain([1; 4]).chain(core::iter::repeat_n(0, between));
            let guests = vec![vec![], vec![5, 247]];
            let schedule = schedule.collect();
            let wrong = run(Script { schedule, commands: vec![0, 1], guests, share: 1, ..Script::default() });
            assert!(wrong.is_empty(), "after {before} steps, {between} of the first pCPU: {wrong:#?}");
        }
    }
}

/// Interrupts of `vm0` come at every step while the host masks them, lets them through, and lets one through at a time.
#[test]
fn what_the_host_masks_is_kept_and_comes_when_it_lets_go() {
    const RAISE: u8 = 192;
    let of_vm0 = |what: u8| MASKS + what * VMS as u8;
    let [mask, unmask, automask] = [0, 1, 2].map(of_vm0);
    for (commands, masked) in [
        (vec![mask], true),
        (vec![mask, unmask], false),
        (vec![automask], true),
        (vec![automask, unmask, unmask], true),
        (vec![mask, mask, unmask, unmask], false),
    ] {
        let mut pended = 0;
        for gap in 1..24 {
            let schedule =
                (0..3000).map(|step| if step % gap == 0 { RAISE } else { step as u8 % 2 }).collect();
            let all = [vec![0], commands.clone()].concat();
            let guests = vec![vec![0; 20]];
            let rig = Rig::new(Script { schedule, commands: all, guests, share: 1, ..Script::default() });
            let rests = rig.run(STEPS);
            let vm = &rig.world.system.vms()[0];
            let info = rig.world.vms.vectors(vm, vm.vdevs()[0].id())[0].clone();
            let wrong = [rig.check(), rig.end()].concat();
            assert!(rests && wrong.is_empty(), "{wrong:#?}");
            assert_eq!((info.masked, info.pending), (masked, masked), "{info:?}");
            assert!(commands.len() == 1 || info.delivered > 0, "{info:?}");
            pended += info.pended;
        }
        assert!(pended > 0, "{commands:?}");
    }
}
