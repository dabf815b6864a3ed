// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random numbers for guests to begin with.
//!
//! **Principle.** One generator for the whole machine, keyed once at boot from what firmware and processor have. Each
//! [`Seed`] is the next part of its stream, so no two are the same, and none says anything about another.
//! **Invariant.** Without a source there are no seeds: one that can be guessed would be worse than none.
//!
//! Source: ChaCha20 as a generator: RFC 8439, section 2.6.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use spin::Mutex;

/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// Bytes of a seed: 64 bits for addresses, 256 for random numbers.
pub const SEED_LEN: usize = 40;

/// The key of the generator.
pub type Key = [u8; KEY_LEN];
/// What one start of one VM begins with.
pub type Seed = [u8; SEED_LEN];

/// The generator.
#[derive(Debug)]
struct Generator(Option<ChaCha20Rng>);

impl Generator {
    fn draw(&mut self) -> Option<Seed> {
        let Self(generator) = self;
        let mut seed = [0; SEED_LEN];
        generator.as_mut()?.fill_bytes(&mut seed);
        Some(seed)
    }
}

static GENERATOR: Mutex<Generator> = Mutex::new(Generator(None));

/// A key out of independent sources, which is as good as the best of them; `None` without any.
pub fn key_of(sources: &[Option<Key>]) -> Option<Key> {
    let there = sources.iter().flatten();
    there.copied().reduce(|one, other| core::array::from_fn(|i| one[i] ^ other[i]))
}

/// Begins with this key. Once, before the first VM starts.
pub fn install(key: Key) {
    *GENERATOR.lock() = Generator(Some(ChaCha20Rng::from_seed(key)));
}

/// The next seed; `None` where there is no source of random numbers.
pub fn seed() -> Option<Seed> {
    GENERATOR.lock().draw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn no_seed_comes_twice_and_without_a_key_there_is_none() {
        assert_eq!(Generator(None).draw(), None);
        let mut generator = Generator(Some(ChaCha20Rng::from_seed([7; KEY_LEN])));
        let seeds: BTreeSet<Seed> = (0..1000).map(|_| generator.draw().unwrap()).collect();
        assert_eq!(seeds.len(), 1000);
        let mut other = Generator(Some(ChaCha20Rng::from_seed([8; KEY_LEN])));
        assert!(!seeds.contains(&other.draw().unwrap()));
    }

    #[test]
    fn the_stream_is_that_of_chacha20() {
        // RFC 8439, A.1, test vector 1: key, nonce and counter are zero.
        let mut generator = Generator(Some(ChaCha20Rng::from_seed([0; KEY_LEN])));
        let seed = generator.draw().unwrap();
        assert_eq!(seed[..8], [0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]);
    }

    #[test]
    fn each_source_counts() {
        assert_eq!(key_of(&[None, None]), None);
        assert_eq!(key_of(&[None, Some([5; KEY_LEN])]), Some([5; KEY_LEN]));
        assert_eq!(key_of(&[Some([1; KEY_LEN]), Some([3; KEY_LEN])]), Some([2; KEY_LEN]));
    }
}
