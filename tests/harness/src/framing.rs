// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several byte streams on one serial line.
//!
//! The encoding is the same in both directions. [`DLE`] followed by a character `c` of `'@'..='_'` makes `c - '@'` the
//! current channel; `DLE DLE` is the byte 0x10 itself; every other byte belongs to the current channel. A line starts
//! on channel [`MONITOR`]; channel n is the console of the n-th VM of the configuration, counted from 1. Pasidon
//! speaks it when its configuration says `[host] console = "framed"`.

/// ASCII data link escape: introduces a change of channel.
pub const DLE: u8 = 0x10;
/// The channel of the monitor and of the log.
pub const MONITOR: usize = 0;
/// How many channels the encoding can name.
pub const CHANNELS: usize = 32;

const FIRST_SELECTOR: u8 = b'@';

/// Takes a framed line apart.
#[derive(Default)]
pub struct Decoder {
    channel: usize,
    escaped: bool,
}

impl Decoder {
    /// Passes each byte of `input` with its channel to `sink`.
    ///
    /// An escape that means nothing is passed on as it stands, so that noise on the line is seen, not lost.
    pub fn decode(&mut self, input: &[u8], mut sink: impl FnMut(usize, u8)) {
        for &byte in input {
            if !self.escaped {
                match byte {
                    DLE => self.escaped = true,
                    _ => sink(self.channel, byte),
                }
                continue;
            }
            self.escaped = false;
            match usize::from(byte.wrapping_sub(FIRST_SELECTOR)) {
                channel if channel < CHANNELS => self.channel = channel,
                _ if byte == DLE => sink(self.channel, DLE),
                _ => [DLE, byte].into_iter().for_each(|byte| sink(self.channel, byte)),
            }
        }
    }
}

/// Puts bytes of several channels onto one line.
#[derive(Default)]
pub struct Encoder {
    channel: usize,
}

impl Encoder {
    /// `bytes` for `channel` as they go onto the line.
    ///
    /// # Panics
    /// When `channel` is not below [`CHANNELS`].
    pub fn encode(&mut self, channel: usize, bytes: &[u8]) -> Vec<u8> {
        assert!(channel < CHANNELS, "channel {channel} of {CHANNELS}");
        let mut line = Vec::with_capacity(bytes.len() + 2);
        if channel != self.channel {
            self.channel = channel;
            line.extend([DLE, FIRST_SELECTOR + channel as u8]);
        }
        for &byte in bytes {
            if byte == DLE {
                line.push(DLE);
            }
            line.push(byte);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_in_pieces(line: &[u8], piece: usize) -> Vec<(usize, u8)> {
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        line.chunks(piece)
            .for_each(|piece| decoder.decode(piece, |channel, byte| seen.push((channel, byte))));
        seen
    }

    #[test]
    fn what_is_encoded_comes_back_on_its_channel_however_it_is_cut() {
        let sent: [(usize, &[u8]); 5] = [
            (0, b"pasidon> "),
            (2, b"a\x10b\x10"),
            (31, b"last"),
            (2, b"@\x10@"),
            (0, b"\x10"),
        ];
        let mut encoder = Encoder::default();
        let line: Vec<u8> = sent
            .iter()
            .flat_map(|(channel, bytes)| encoder.encode(*channel, bytes))
            .collect();
        let expected: Vec<(usize, u8)> = sent
            .iter()
            .flat_map(|(channel, bytes)| bytes.iter().map(|byte| (*channel, *byte)))
            .collect();
        for piece in 1..=line.len() {
            assert_eq!(decode_in_pieces(&line, piece), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn an_unknown_escape_is_shown_as_it_came() {
        assert_eq!(decode_in_pieces(b"\x10a", 1), [(0, DLE), (0, b'a')]);
    }
}
