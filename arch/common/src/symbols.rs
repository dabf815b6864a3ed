// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of functions, from `pasidon.sym`: lines of `RVA SIZE NAME` with hexadecimal numbers, sorted by RVA
//! (address relative to the image), which `cargo xtask build` makes beside the image.
//!
//! **Invariant.** The file is searched as it is: no lock, no allocation, so that it serves at the end of the
//! world. A file with anything else in it gives no name, nothing worse.

use core::fmt;

use spin::Once;

/// The text of a symbol file.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a>(&'a [u8]);

/// A line of the file.
struct Line<'a> {
    start: u64,
    size: u64,
    name: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let line = core::str::from_utf8(line).ok()?;
        let mut words = line.trim_end().splitn(3, ' ');
        let mut number = || u64::from_str_radix(words.next()?, 16).ok();
        let (start, size) = (number()?, number()?);
        let name = words.next().filter(|name| !name.is_empty())?;
        Some(Self { start, size, name })
    }
}

impl<'a> Symbols<'a> {
    /// Those in `text`.
    pub fn new(text: &'a [u8]) -> Self {
        Self(text)
    }

    /// The function at an address relative to the image, and how far into it that is.
    pub fn lookup(&self, rva: u64) -> Option<(&'a str, u64)> {
        let Self(text) = *self;
        let (mut low, mut high) = (0, text.len());
        let mut best: Option<Line<'a>> = None;
        // `low` and `high` are always where a line starts, or the end.
        while low < high {
            let middle = low + (high - low) / 2;
            let is_end = |byte: &u8| *byte == b'\n';
            let start = text[low..middle].iter().rposition(is_end).map_or(low, |at| low + at + 1);
            let length = text[start..high].iter().position(is_end);
            let end = length.map_or(high, |length| start + length);
            let line = Line::parse(&text[start..end])?;
            if line.start <= rva {
                best = Some(line);
                low = (end + 1).min(high);
            } else {
                high = start;
            }
        }
        let line = best?;
        let offset = rva - line.start;
        (offset < line.size).then_some((line.name, offset))
    }
}

static INSTALLED: Once<(Symbols<'static>, u64)> = Once::new();

/// Names functions by this file from now on; the image lies at `image_base`. Once.
pub fn install(text: &'static [u8], image_base: u64) {
    INSTALLED.call_once(|| (Symbols::new(text), image_base));
}

/// The function at an address, and how far into it that is.
pub fn lookup(address: u64) -> Option<(&'static str, u64)> {
    let (symbols, base) = INSTALLED.get()?;
    symbols.lookup(address.checked_sub(*base)?)
}

/// A place in the code, printed as `NAME+0xOFFSET`, or as the plain address where it has no name.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The address.
    pub address: u64,
    /// It lies behind a call, which may be the last instruction of its function.
    pub behind_call: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let back = u64::from(self.behind_call);
        match lookup(self.address.wrapping_sub(back)) {
            Some((name, offset)) => write!(f, "{name}+{:#x}", offset + back),
            None => write!(f, "{:#x}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &[u8] = b"1000 10 <t::foo::Bar>::baz\n1010 8 t::foo::quux\n1020 5 efi_main\n";

    #[test]
    fn an_address_has_the_name_of_the_function_around_it() {
        let found = |rva| Symbols::new(FILE).lookup(rva);
        assert_eq!(found(0xfff), None);
        assert_eq!(found(0x1000), Some(("<t::foo::Bar>::baz", 0)));
        assert_eq!(found(0x100f), Some(("<t::foo::Bar>::baz", 0xf)));
        assert_eq!(found(0x1017), Some(("t::foo::quux", 7)));
        assert_eq!(found(0x1018), None);
        assert_eq!(found(0x1024), Some(("efi_main", 4)));
        assert_eq!(found(0x1025), None);
        assert_eq!(Symbols::new(b"").lookup(0), None);
        assert_eq!(Symbols::new(b"10 10 a b").lookup(0x10), Some(("a b", 0)));
    }

    #[test]
    fn every_function_of_a_long_file_is_found() {
        let text: String = (0..1000).map(|n| format!("{:x} 10 f{n}\n", n * 16)).collect();
        for n in 0..1000u64 {
            let name = format!("f{n}");
            assert_eq!(Symbols::new(text.as_bytes()).lookup(n * 16 + 3), Some((&*name, 3)));
        }
    }

    #[test]
    fn a_file_with_something_else_gives_no_name() {
        for text in ["\n\n\n", "x y z", "10", "10 20", "10 20 ", "10 2", "\u{fffd}", "-1 10 f"] {
            assert_eq!(Symbols::new(text.as_bytes()).lookup(0x10), None, "{text}");
        }
        assert_eq!(Symbols::new(b"ffffffffffffffff ffffffffffffffff f").lookup(5), None);
        assert_eq!(Symbols::new(b"10 10 \xff\xff").lookup(0x10), None);
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "[0-9a-f \n]{0,200}", bytes in any::<Vec<u8>>(), rva in any::<u64>()) {
            let _ = Symbols::new(text.as_bytes()).lookup(rva % 0x1_0000);
            let _ = Symbols::new(&bytes).lookup(rva);
        }
    }
}
