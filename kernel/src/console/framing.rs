// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several byte streams on one serial line, for a program at the other end.
//!
//! The encoding is the same in both directions. [`DLE`] and a character `c` of `@` to `_` make `c - '@'`
//! the current channel; `DLE DLE` is the byte 0x10 itself; every other byte belongs to the current
//! channel. A line starts on channel [`MONITOR_CHANNEL`].

use crate::base::id::VmId;

/// ASCII data link escape.
pub const DLE: u8 = 0x10;
/// The channel of monitor and log.
pub const MONITOR_CHANNEL: u8 = 0;
/// How many channels the encoding can name.
pub const CHANNELS: u8 = 32;
/// The channel of the VM at place 0; the others' follow it.
pub const FIRST_VM_CHANNEL: u8 = MONITOR_CHANNEL + 1;
const _: () = assert!(VmId::PLACES + FIRST_VM_CHANNEL as usize <= CHANNELS as usize);
/// The character that selects channel 0; the other channels' follow it.
const FIRST_SELECTOR: u8 = b'@';

/// What to send before text of the monitor's channel when it is not known which channel is current, as
/// in a panic.
pub const SELECT_MONITOR: [u8; 2] = [DLE, FIRST_SELECTOR + MONITOR_CHANNEL];

/// Puts streams onto a line.
#[derive(Debug, Default)]
pub struct Encoder {
    channel: u8,
}

impl Encoder {
    /// Sends `bytes` on `channel`. A channel that cannot be named is not sent at all.
    pub fn send(&mut self, channel: u8, bytes: &[u8], sink: &mut dyn FnMut(u8)) {
        if channel >= CHANNELS || bytes.is_empty() {
            return;
        }
        if channel != self.channel {
            self.channel = channel;
            sink(DLE);
            sink(FIRST_SELECTOR + channel);
        }
        for &byte in bytes {
            if byte == DLE {
                sink(DLE);
            }
            sink(byte);
        }
    }
}

/// Takes a line apart.
#[derive(Debug, Default)]
pub struct Decoder {
    channel: u8,
    escaped: bool,
}

impl Decoder {
    /// The current channel.
    pub fn channel(&self) -> u8 {
        self.channel
    }

    /// Takes the next byte of the line; gives the channel and byte it stands for, if it stands for one.
    /// After an escape that means nothing, the byte stands for itself.
    pub fn receive(&mut self, byte: u8) -> Option<(u8, u8)> {
        if !self.escaped {
            if byte == DLE {
                self.escaped = true;
                return None;
            }
            return Some((self.channel, byte));
        }
        self.escaped = false;
        match byte.checked_sub(FIRST_SELECTOR) {
            Some(channel) if channel < CHANNELS => {
                self.channel = channel;
                None
            }
            _ => Some((self.channel, byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(pieces: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut line = Vec::new();
        let mut encoder = Encoder::default();
        for (channel, bytes) in pieces {
            encoder.send(*channel, bytes, &mut |byte| line.push(byte));
        }
        line
    }

    /// A demultiplexer written from the description alone, whole line at a time.
    fn reference(line: &[u8]) -> Vec<Vec<u8>> {
        let mut streams = vec![Vec::new(); 32];
        let mut current = 0;
        let mut rest = line;
        loop {
            rest = match rest {
                [0x10, 0x10, rest @ ..] => {
                    streams[current].push(0x10);
                    rest
                }
                [0x10, selector @ 0x40..=0x5f, rest @ ..] => {
                    current = usize::from(selector & 0x1f);
                    rest
                }
                [byte, rest @ ..] => {
                    streams[current].push(*byte);
                    rest
                }
                [] => return streams,
            }
        }
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        assert_eq!(
            encoded(&[
                (0, b"hi".to_vec()),
                (1, b"a".to_vec()),
                (1, b"\x10".to_vec()),
                (31, b"@".to_vec()),
                (0, vec![]),
                (32, b"lost".to_vec())
            ]),
            b"hi\x10Aa\x10\x10\x10_@"
        );
        assert_eq!(SELECT_MONITOR, *b"\x10@");
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_mixed(
            pieces in proptest::collection::vec(
                (0..CHANNELS, proptest::collection::vec(prop_oneof![any::<u8>(), Just(DLE), b'@'..=b'_'], 0..20)),
                0..50,
            )
        ) {
            let mut sent = vec![Vec::<u8>::new(); 32];
            for (channel, bytes) in &pieces {
                sent[usize::from(*channel)].extend(bytes);
            }
            let line = encoded(&pieces);
            prop_assert_eq!(&reference(&line), &sent);
            let mut decoder = Decoder::default();
            let mut received = vec![Vec::new(); 32];
            for byte in line {
                if let Some((channel, byte)) = decoder.receive(byte) {
                    received[usize::from(channel)].push(byte);
                }
            }
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn any_line_is_taken(line in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut decoder = Decoder::default();
            for byte in line {
                if let Some((channel, _)) = decoder.receive(byte) {
                    prop_assert!(channel < CHANNELS);
                }
            }
        }
    }
}
