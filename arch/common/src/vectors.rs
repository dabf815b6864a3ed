// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which interrupt numbers are given out to devices.
//!
//! **Principle.** A number that was given back is given out again only after its pCPU has been round its loop
//! twice: by then every interrupt that the pCPU had accepted with it has been handled. So nobody waits, and a
//! late interrupt of one owner never reaches the next.

use pasidon_kernel::base::id::VmId;
use pasidon_kernel::vm::sched::PcpuId;

use crate::hardware::Hardware;
use crate::run::World;

/// Rounds after which a number may be used again.
const QUARANTINE: u64 = 2;

/// One number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    Free,
    /// Given out, to be raised on that pCPU.
    Used(u32),
    /// Given back when that pCPU had gone round that often.
    Quarantined(u32, u64),
}

/// `N` interrupt numbers, by their place in the range that they are of.
#[derive(Debug)]
pub struct Vectors<const N: usize>([Slot; N]);

/// Why there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoVector {
    /// All are given out.
    Exhausted,
    /// One is free as soon as this pCPU has been round its loop.
    Soon(u32),
}

impl NoVector {
    /// Has `kick` send the pCPU that it waits for round its loop, so that whoever asks again gets one.
    pub fn hurry(self, kick: impl FnOnce(u32)) {
        match self {
            NoVector::Soon(pcpu) => kick(pcpu),
            NoVector::Exhausted => {}
        }
    }
}

impl<const N: usize> Vectors<N> {
    /// All free.
    pub const fn new() -> Self {
        Self([Slot::Free; N])
    }

    /// Takes one, to be raised on a pCPU. `rounds` says how often each pCPU has gone round its loop.
    ///
    /// # Errors
    /// When there is none now.
    pub fn take(&mut self, pcpu: u32, rounds: impl Fn(u32) -> u64) -> Result<usize, NoVector> {
        let Self(slots) = self;
        let mut none = NoVector::Exhausted;
        for (place, slot) in slots.iter_mut().enumerate() {
            match *slot {
                Slot::Used(_) => continue,
                Slot::Quarantined(last, since) if rounds(last).saturating_sub(since) < QUARANTINE => {
                    none = NoVector::Soon(last);
                }
                Slot::Free | Slot::Quarantined(..) => {
                    *slot = Slot::Used(pcpu);
                    return Ok(place);
                }
            }
        }
        Err(none)
    }

    /// Gives one back; which pCPU it was raised on. `None` where it was not given out.
    pub fn give_back(&mut self, place: usize, rounds: impl Fn(u32) -> u64) -> Option<u32> {
        let Self(slots) = self;
        let slot = slots.get_mut(place)?;
        let Slot::Used(pcpu) = *slot else { return None };
        *slot = Slot::Quarantined(pcpu, rounds(pcpu));
        Some(pcpu)
    }

    /// How many are given out to be raised on a pCPU.
    pub fn used_by(&self, pcpu: u32) -> usize {
        let Self(slots) = self;
        slots.iter().filter(|slot| **slot == Slot::Used(pcpu)).count()
    }
}

impl<const N: usize> Default for Vectors<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// The `count` pCPUs in the order in which one is to be looked for: the one that runs the VM, as soon as it is
/// built, or else the one on which the fewest numbers are `used`; then the others. There is no
/// `world` before guests run.
pub fn candidates<H: Hardware>(
    world: Option<&World<H>>,
    vm: Option<VmId>,
    count: u32,
    used: impl Fn(u32) -> usize,
) -> impl Iterator<Item = u32> {
    let home = vm.and_then(|vm| Some(world?.vms.instance(vm)?.vcpu.seat.pcpu.0));
    // What is raised on one that is lost comes to nobody.
    let answers = move |pcpu: &u32| world.is_none_or(|world| !world.vms.scheduler.is_lost(PcpuId(*pcpu)));
    let first = home
        .filter(|pcpu| *pcpu < count)
        .or_else(|| (0..count).filter(answers).min_by_key(|pcpu| used(*pcpu)))
        .unwrap_or(0);
    (first..count).chain(0..first).filter(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_comes_back_after_two_rounds_of_the_pcpu_that_had_it() {
        let mut vectors = Vectors::<2>::new();
        assert_eq!(vectors.take(1, |_| 0), Ok(0));
        assert_eq!(vectors.take(4, |_| 0), Ok(1));
        assert_eq!((vectors.used_by(1), vectors.used_by(2)), (1, 0));
        assert_eq!(vectors.take(1, |_| 0), Err(NoVector::Exhausted));
        assert_eq!(vectors.give_back(1, |pcpu| u64::from(pcpu) + 3), Some(4));
        assert_eq!(vectors.give_back(1, |_| 0), None, "twice");
        assert_eq!(vectors.give_back(2, |_| 0), None, "beyond the last");
        assert_eq!(vectors.take(1, |pcpu| u64::from(pcpu) + 4), Err(NoVector::Soon(4)));
        let of_another = |pcpu| if pcpu == 4 { 8 } else { 100 };
        assert_eq!(vectors.take(1, of_another), Err(NoVector::Soon(4)));
        assert_eq!(vectors.take(1, |pcpu| u64::from(pcpu) + 5), Ok(1));
        assert_eq!(vectors.used_by(1), 2);
    }
}
