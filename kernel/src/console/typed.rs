// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was typed for guests that had no room for it yet.
//!
//! **Principle.** A guest that reads gets every byte: while its queue here is full, the line is not read
//! ([`Typed::hold`]), so that whoever sends has to wait. A guest that does not read must not keep people from the
//! monitor, whose key comes on the same line: when it takes too little, the line is read on, and what does not
//! fit is counted as lost and said ([`Typed::take_news`]). On a framed line nothing is held back, since the
//! bytes behind may be for others: a program asks the monitor how much room there is.
//!
//! **Invariant.** A byte is handed out once and in order, or counted as lost.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use serde::Serialize;

use crate::base::allowance::Allowance;
use crate::dev::Received;

/// What is kept per guest.
pub const TYPED_MAX: usize = 64 << 10;
/// The line waits for a guest that takes at least [`TAKEN_MIN`] bytes in this time.
const PATIENCE_NS: u64 = 1_000_000_000;
/// What a guest takes that reads: a fraction of the slowest usual line.
const TAKEN_MIN: u64 = 512;

/// How full a guest's queue is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct TypedInfo {
    /// Bytes that wait for the guest.
    pub waiting: usize,
    /// Bytes that can be sent to it now.
    pub room: usize,
    /// Bytes that it never got, since boot.
    pub lost: u64,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<Received>,
    /// What the guest has taken since boot.
    taken: u64,
    lost: u64,
    /// How many of the lost have been told.
    told: u64,
    lines: Allowance,
    /// Since the queue was full: when its guest was last seen to read, and what it had taken by then.
    watched: Option<(u64, u64)>,
    /// The guest does not read: the line does not wait for it.
    given_up: bool,
}

impl Queue {
    fn new(now_ns: u64) -> Self {
        Self {
            waiting: VecDeque::new(),
            taken: 0,
            lost: 0,
            told: 0,
            lines: Allowance::new(now_ns),
            watched: None,
            given_up: false,
        }
    }

    fn room(&self) -> usize {
        TYPED_MAX.saturating_sub(self.waiting.len())
    }
}

/// The queues of all guests.
#[derive(Debug, Default)]
pub struct Typed(Vec<Queue>);

impl Typed {
    fn queue(&mut self, vm: usize, now_ns: u64) -> &mut Queue {
        if self.0.len() <= vm {
            self.0.resize_with(vm + 1, || Queue::new(now_ns));
        }
        &mut self.0[vm]
    }

    /// Nothing waits for the guest at this place, and none of what it never got is counted: another one comes.
    pub fn forget(&mut self, vm: usize, now_ns: u64) {
        if let Some(queue) = self.0.get_mut(vm) {
            *queue = Queue::new(now_ns);
        }
    }

    /// Something for the guest with this index. What is damaged, or finds no room, is counted as lost.
    pub fn push(&mut self, vm: usize, received: Received, now_ns: u64) {
        let queue = self.queue(vm, now_ns);
        if received == Received::Damaged || queue.room() == 0 {
            queue.lost = queue.lost.saturating_add(1);
        } else {
            queue.waiting.push_back(received);
        }
    }

    /// Whether the line is to be left unread for now, because what comes next is for this guest, which reads but
    /// has no room yet.
    pub fn hold(&mut self, vm: usize, now_ns: u64) -> bool {
        let queue = self.queue(vm, now_ns);
        if queue.waiting.len() <= TYPED_MAX / 2 {
            queue.watched = None;
            queue.given_up = false;
        }
        if queue.given_up || queue.room() > 0 {
            return false;
        }
        let (since, had) = *queue.watched.get_or_insert((now_ns, queue.taken));
        if now_ns.saturating_sub(since) >= PATIENCE_NS {
            queue.given_up = queue.taken - had < TAKEN_MIN;
            queue.watched = Some((now_ns, queue.taken));
        }
        !queue.given_up
    }

    /// Calls `offer` with what waits for each guest, until it says that there is no room.
    pub fn hand_out(&mut self, offer: &mut dyn FnMut(usize, Received) -> bool) {
        for (vm, queue) in self.0.iter_mut().enumerate() {
            while let Some(received) = queue.waiting.front() {
                if !offer(vm, *received) {
                    break;
                }
                queue.waiting.pop_front();
                queue.taken += 1;
            }
        }
    }

    /// Whether there is something to come back for: bytes that wait, or losses that were not told.
    pub fn is_idle(&self) -> bool {
        let idle = |queue: &Queue| queue.waiting.is_empty() && queue.lost == queue.told;
        self.0.iter().all(idle)
    }

    /// Guests of which more is lost than was said: index and all that was lost since boot. Each a few times at
    /// once, then once a second.
    pub fn take_news(&mut self, now_ns: u64, tell: &mut dyn FnMut(usize, u64)) {
        for (vm, queue) in self.0.iter_mut().enumerate() {
            if queue.lost > queue.told && queue.lines.take(now_ns).is_some() {
                queue.told = queue.lost;
                tell(vm, queue.lost);
            }
        }
    }

    /// How full the queue of a guest is.
    pub fn info(&self, vm: usize) -> TypedInfo {
        self.0.get(vm).map_or(TypedInfo { waiting: 0, room: TYPED_MAX, lost: 0 }, |queue| TypedInfo {
            waiting: queue.waiting.len(),
            room: queue.room(),
            lost: queue.lost,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::pl011::Pl011;
    use crate::dev::uart16550::Uart16550;
    use crate::vm::exit::Device;

    /// Milliseconds.
    const MS: u64 = 1_000_000;

    /// A line with `sent` bytes for a guest, which is looked at every 10 ms; `read` makes the guest take what it
    /// likes of one look. What the guest got, what the monitor says is lost, and whether a key behind came through.
    fn run(
        sent: usize,
        mut offer: impl FnMut(u8) -> bool,
        mut between: impl FnMut() -> Vec<u8>,
    ) -> (Vec<u8>, u64, bool) {
        let mut line = (0..sent).map(|at| (at % 251) as u8);
        let (mut typed, mut got, mut told) = (Typed::default(), Vec::new(), 0);
        let mut key = false;
        for look in 0..60_000 {
            let now = look * 10 * MS;
            while !typed.hold(0, now) {
                let Some(byte) = line.next() else {
                    key = true;
                    break;
                };
                typed.push(0, Received::Byte(byte), now);
            }
            typed.hand_out(&mut |vm, received| {
                assert_eq!(vm, 0);
                matches!(received, Received::Byte(byte) if offer(byte))
            });
            typed.take_news(now, &mut |_, lost| told = lost);
            let more = between();
            let done = key && typed.is_idle() && more.is_empty();
            got.extend(more);
            if done {
                break;
            }
        }
        (got, told, key)
    }

    fn expected(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn a_guest_that_reads_gets_100_kib_on_both_ports() {
        let port = core::cell::RefCell::new(Uart16550::new(4));
        let (got, lost, key) = run(
            100 << 10,
            |byte| port.borrow_mut().push_input(Received::Byte(byte), &mut |_| {}),
            || {
                (0..100)
                    .filter_map(|_| {
                        let mut port = port.borrow_mut();
                        (port.read(5, 1, &mut |_| {}) & 1 != 0).then(|| port.read(0, 1, &mut |_| {}) as u8)
                    })
                    .collect()
            },
        );
        assert_eq!((got.len(), lost, key), (100 << 10, 0, true));
        assert!(got == expected(100 << 10), "in order");

        let port = core::cell::RefCell::new(Pl011::new(33));
        let (got, lost, key) = run(
            100 << 10,
            |byte| port.borrow_mut().push_input(Received::Byte(byte), &mut |_| {}),
            || {
                (0..100)
                    .filter_map(|_| {
                        let mut port = port.borrow_mut();
                        (port.read(0x18, 4, &mut |_| {}) & 0x10 == 0)
                            .then(|| port.read(0, 4, &mut |_| {}) as u8)
                    })
                    .collect()
            },
        );
        assert_eq!((got.len(), lost, key), (100 << 10, 0, true));
        assert!(got == expected(100 << 10), "in order");
    }

    #[test]
    fn a_guest_that_does_not_read_keeps_nobody_from_the_monitor() {
        let (_, lost, key) = run(100 << 10, |_| false, Vec::new);
        assert!(key, "what comes behind is read");
        assert_eq!(lost, (100 << 10) - TYPED_MAX as u64, "and the loss is told to the last byte");
        // Nor does one that takes a byte now and then.
        let mut count = 0;
        let (_, lost, key) = run(
            100 << 10,
            |_| {
                count += 1;
                count % 50 == 0
            },
            Vec::new,
        );
        assert!(key && lost > 0, "{lost}");
    }

    #[test]
    fn what_is_damaged_is_lost_and_the_room_is_told() {
        let mut typed = Typed::default();
        assert_eq!(typed.info(3).room, TYPED_MAX);
        typed.push(1, Received::Damaged, 0);
        typed.push(1, Received::Break, 0);
        let info = TypedInfo { waiting: 1, room: TYPED_MAX - 1, lost: 1 };
        assert_eq!(typed.info(1), info);
        let mut handed = Vec::new();
        typed.hand_out(&mut |vm, received| {
            handed.push((vm, received));
            true
        });
        assert_eq!(handed, [(1, Received::Break)]);
        assert!(!typed.is_idle());
        typed.take_news(0, &mut |vm, lost| handed.push((vm, Received::Byte(lost as u8))));
        assert_eq!(handed[1], (1, Received::Byte(1)));
        assert!(typed.is_idle());
    }
}
