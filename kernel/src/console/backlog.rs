// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest printed while nobody looked.

use alloc::collections::VecDeque;

/// Bytes kept per guest.
pub(super) const CAPACITY: usize = 16 << 10;
/// How much of a line that was shown in part is repeated before its rest.
const CONTEXT: usize = 256;

/// The last output of one guest.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: VecDeque<u8>,
    /// How many of them, at the end, have not been shown.
    unseen: usize,
    /// Unseen bytes that were pushed out since the last replay.
    dropped: u64,
}

impl Backlog {
    /// Keeps bytes that have been shown, for context, or not.
    pub fn keep(&mut self, bytes: &[u8], shown: bool) {
        for &byte in bytes {
            if self.bytes.len() == CAPACITY {
                self.bytes.pop_front();
                if self.unseen == CAPACITY {
                    self.unseen -= 1;
                    self.dropped += 1;
                }
            }
            self.bytes.push_back(byte);
            self.unseen = if shown { 0 } else { self.unseen + 1 };
        }
    }

    /// How many bytes wait to be shown.
    pub fn unseen(&self) -> usize {
        self.unseen
    }

    /// How many unseen bytes were lost since this was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        core::mem::take(&mut self.dropped)
    }

    /// Shows what was not shown yet, from the start of its line.
    pub fn replay(&mut self, sink: &mut dyn FnMut(u8)) {
        let unseen_from = self.bytes.len() - self.unseen;
        let line_from =
            self.bytes.range(..unseen_from).rev().take(CONTEXT).take_while(|byte| **byte != b'\n').count();
        self.bytes.range(unseen_from - line_from..).for_each(|byte| sink(*byte));
        self.unseen = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replayed(backlog: &mut Backlog) -> (u64, Vec<u8>) {
        let mut shown = Vec::new();
        backlog.replay(&mut |byte| shown.push(byte));
        (backlog.take_dropped(), shown)
    }

    #[test]
    fn the_unseen_part_comes_with_the_start_of_its_line() {
        let mut backlog = Backlog::default();
        backlog.keep(b"old\nguest# ", true);
        backlog.keep(b"ls\nfile\n", false);
        assert_eq!(backlog.unseen(), 8);
        assert_eq!(replayed(&mut backlog), (0, b"guest# ls\nfile\n".to_vec()));
        assert_eq!(replayed(&mut backlog), (0, vec![]));
        backlog.keep(b"guest# ", true);
        assert_eq!(replayed(&mut backlog), (0, b"guest# ".to_vec()), "the prompt it waits at");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut backlog = Backlog::default();
        backlog.keep(&vec![b'x'; CAPACITY], true);
        backlog.keep(&vec![b'y'; CAPACITY + 7], false);
        let (lost, shown) = replayed(&mut backlog);
        assert_eq!((lost, shown.len()), (7, CAPACITY));
        assert!(shown.iter().all(|byte| *byte == b'y'));
        assert_eq!(replayed(&mut backlog).0, 0);
    }
}
