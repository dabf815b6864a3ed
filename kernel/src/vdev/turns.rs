// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose turn it is at something that many share: start-time fair queueing.
//!
//! **Principle.** Who asks for a turn gets a start tag, in virtual time; the smallest tag is next. What a turn costs,
//! divided by the weight, moves the member's next tag on. So whoever always asks is served in proportion to its weight,
//! whatever its turns cost and however many it asks for at once. Who asked for nothing begins at the present virtual
//! time: nobody saves turns up, and nobody owes any.
//!
//! **Invariant.** A member is in the line once at most.
//!
//! Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", SIGCOMM 1996. Between two who always ask, what they were
//! served in units of their weights differs by one turn of each at most.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Reverse;

/// What a unit of cost is in virtual time for a member of weight 1. A multiple of every small weight.
const SCALE: u128 = 5040;

/// Who takes part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(pub u16);

#[derive(Clone, Copy, Debug)]
struct Member {
    weight: u8,
    /// Where its next turn begins, unless virtual time has gone on.
    next: u128,
    asks: bool,
}

/// The line. Asking and serving take logarithmic time and allocate nothing; joining and leaving take constant time, but
/// for one who leaves while it asks.
#[derive(Debug, Default)]
pub struct Turns {
    members: Vec<Option<Member>>,
    /// Numbers of members that left.
    left: Vec<u16>,
    /// Start tags of those who ask.
    line: BinaryHeap<Reverse<(u128, MemberId)>>,
    /// Virtual time: the start tag of the last turn.
    now: u128,
}

impl Turns {
    /// Nobody takes part yet.
    pub const fn new() -> Self {
        Self { members: Vec::new(), left: Vec::new(), line: BinaryHeap::new(), now: 0 }
    }

    /// Takes somebody in, with a weight of at least 1; `None` where there are 65,536. May allocate.
    pub fn join(&mut self, weight: u8) -> Option<MemberId> {
        let id = match self.left.pop() {
            Some(id) => id,
            None => {
                let id = u16::try_from(self.members.len()).ok()?;
                self.members.push(None);
                // One entry each.
                self.line.reserve(self.members.len() - self.line.len());
                id
            }
        };
        self.members[usize::from(id)] = Some(Member { weight: weight.max(1), next: self.now, asks: false });
        Some(MemberId(id))
    }

    /// Lets somebody go, in the line or not.
    pub fn leave(&mut self, id: MemberId) {
        let Some(member) = self.members.get_mut(usize::from(id.0)).and_then(Option::take) else { return };
        self.left.push(id.0);
        if member.asks {
            self.line.retain(|Reverse((_, other))| *other != id);
        }
    }

    /// That member wants a turn. Nothing where it asks already.
    pub fn ask(&mut self, id: MemberId) {
        let Some(member) = self.members.get_mut(usize::from(id.0)).and_then(Option::as_mut) else { return };
        if !core::mem::replace(&mut member.asks, true) {
            member.next = member.next.max(self.now);
            self.line.push(Reverse((member.next, id)));
        }
    }

    /// Whose turn it is; it asks no more.
    pub fn take(&mut self) -> Option<MemberId> {
        let Reverse((start, id)) = self.line.pop()?;
        self.now = start;
        if let Some(member) = self.members.get_mut(usize::from(id.0)).and_then(Option::as_mut) {
            member.asks = false;
        }
        Some(id)
    }

    /// That member had a turn, of that cost, in the line or without standing in it.
    pub fn served(&mut self, id: MemberId, cost: u32) {
        if let Some(member) = self.members.get_mut(usize::from(id.0)).and_then(Option::as_mut) {
            let length = u128::from(cost) * SCALE / u128::from(member.weight);
            member.next = member.next.max(self.now) + length;
        }
    }

    /// Whether somebody asks.
    pub fn is_asked(&self) -> bool {
        !self.line.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Serves as many turns, each member asking again at once; what each was served.
    fn serve(turns: &mut Turns, ids: &[MemberId], costs: &[u32], count: usize) -> Vec<u64> {
        let mut served = vec![0; ids.len()];
        for id in ids {
            turns.ask(*id);
        }
        for _ in 0..count {
            let id = turns.take().unwrap();
            let place = ids.iter().position(|other| *other == id).unwrap();
            turns.served(id, costs[place]);
            served[place] += u64::from(costs[place]);
            turns.ask(id);
        }
        served
    }

    #[test]
    fn turns_follow_the_weights_whatever_they_cost() {
        let mut turns = Turns::new();
        let ids: Vec<MemberId> = [1, 2, 5].iter().map(|weight| turns.join(*weight).unwrap()).collect();
        let served = serve(&mut turns, &ids, &[2 << 20, 4096, 65536], 100_000);
        let total: u64 = served.iter().sum();
        for (share, weight) in served.iter().zip([1, 2, 5]) {
            let parts = *share as f64 / total as f64 * 8.0;
            assert!((parts - f64::from(weight)).abs() < 0.1 * f64::from(weight), "{served:?}");
        }
    }

    #[test]
    fn who_asked_for_nothing_saved_nothing_up_and_waits_for_one_turn_of_each() {
        let mut turns = Turns::new();
        let (greedy, modest) = (turns.join(1).unwrap(), turns.join(1).unwrap());
        serve(&mut turns, &[greedy], &[100], 1000);
        turns.ask(modest);
        let order: Vec<MemberId> = (0..6)
            .map(|_| {
                let id = turns.take().unwrap();
                turns.served(id, 100);
                turns.ask(id);
                id
            })
            .collect();
        assert!(order[..2].contains(&modest), "it does not wait for what others had before: {order:?}");
        assert_eq!(order.iter().filter(|id| **id == modest).count(), 3, "nor is it served alone: {order:?}");
    }

    #[test]
    fn who_leaves_is_not_served_and_its_place_is_the_next_ones() {
        let mut turns = Turns::new();
        let ids: Vec<MemberId> = (0..3).map(|_| turns.join(1).unwrap()).collect();
        ids.iter().for_each(|id| turns.ask(*id));
        turns.leave(ids[1]);
        let next = turns.join(7).unwrap();
        assert_eq!(next, ids[1]);
        assert_eq!([turns.take(), turns.take(), turns.take()], [Some(ids[0]), Some(ids[2]), None]);
        turns.ask(next);
        turns.ask(next);
        assert_eq!([turns.take(), turns.take()], [Some(next), None], "in the line once");
        turns.ask(MemberId(99));
        turns.served(MemberId(99), 1);
        assert!(!turns.is_asked());
    }

    proptest! {
        /// What two who always ask were served differs, in units of their weights, by one turn of each at most.
        #[test]
        fn nobody_is_ahead_by_more_than_a_turn(
            members in proptest::collection::vec((1u8..=255, 1u32..=1 << 21), 2..8),
            count in 1usize..500,
        ) {
            let mut turns = Turns::new();
            let ids: Vec<MemberId> = members.iter().map(|(weight, _)| turns.join(*weight).unwrap()).collect();
            let costs: Vec<u32> = members.iter().map(|(_, cost)| *cost).collect();
            let served = serve(&mut turns, &ids, &costs, count);
            let part = |at: usize| served[at] as f64 / f64::from(members[at].0);
            let turn = |at: usize| f64::from(members[at].1) / f64::from(members[at].0);
            for one in 0..members.len() {
                for other in 0..members.len() {
                    let limit = turn(one) + turn(other) + 1.0;
                    prop_assert!((part(one) - part(other)).abs() <= limit, "{:?} {:?}", members, served);
                }
            }
        }

        /// No act of a member panics, or has the line longer than its members.
        #[test]
        fn the_line_holds_each_member_once(steps in proptest::collection::vec((0u8..5, 0u16..6), 0..200)) {
            let mut turns = Turns::new();
            for (step, id) in steps {
                let id = MemberId(id);
                match step {
                    0 => { turns.join(id.0 as u8); }
                    1 => turns.leave(id),
                    2 => turns.ask(id),
                    3 => turns.served(id, u32::MAX),
                    _ => { turns.take(); }
                }
                let present = turns.members.iter().flatten().count();
                prop_assert!(turns.line.len() <= present);
            }
        }
    }
}
