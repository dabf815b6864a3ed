// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forms of value that TOML has no type for: sizes, PCI addresses and IDs, names, paths.

use alloc::string::String;

use crate::base::addr::{GuestPhys, LARGE_PAGE_SIZE, PAGE_SIZE, Requester};
use crate::base::size::split_unit;
use crate::memory::ram::RamRange;

/// Smallest memory of a VM, in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;
/// Largest memory of a VM, in bytes. What the machine has is checked when the VM is built.
pub const MAX_MEMORY: u64 = 1 << 40;
/// Longest name of a VM or parent.
pub const MAX_NAME: usize = 31;
/// Longest kernel command line in bytes: Linux x86 reads 2048 with the NUL (`COMMAND_LINE_SIZE`).
pub const MAX_CMDLINE: usize = 2047;
/// Longest path on the ESP.
const MAX_PATH: usize = 255;

/// A value that does not fit, with what would.
#[derive(Debug)]
pub(super) struct Misfit {
    pub why: &'static str,
    pub remedy: &'static str,
}

const fn misfit(why: &'static str, remedy: &'static str) -> Misfit {
    Misfit { why, remedy }
}

/// Bytes as a whole number and K, M or G; `Some(None)` where they are too many to count.
fn size(text: &str) -> Option<Option<u64>> {
    let (digits, shift) = split_unit(text)?;
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    number.then(|| digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)))
}

/// `0x8000000+16M`: whole pages of a guest's memory.
pub(super) fn window(text: &str) -> Result<RamRange, Misfit> {
    const FORM: Misfit = misfit("is no range of memory", "write ADDRESS+SIZE, like \"0x8000000+16M\"");
    let parse = || {
        let (start, len) = text.split_once('+')?;
        let digits =
            start.strip_prefix("0x").filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        Some((u64::from_str_radix(digits, 16).ok()?, size(len)??))
    };
    let (start, len) = parse().ok_or(FORM)?;
    if len == 0 || start % PAGE_SIZE != 0 || len % PAGE_SIZE != 0 {
        return Err(misfit("is not whole pages", "use multiples of 4K"));
    }
    let start = GuestPhys(start);
    match start.checked_add(len) {
        Some(_) => Ok(RamRange { start, len }),
        None => Err(FORM),
    }
}

/// `256M` in bytes.
pub(super) fn memory(text: &str) -> Result<u64, Misfit> {
    const FORM: Misfit = misfit("is no size", "write a whole number and K, M or G, like memory = \"256M\"");
    let bytes = size(text).ok_or(FORM)?.filter(|bytes| *bytes <= MAX_MEMORY);
    match bytes {
        None => Err(misfit("is more than a VM can have", "use at most 1024G")),
        Some(bytes) if bytes < MIN_MEMORY => Err(misfit("is too little to run in", "use at least 16M")),
        Some(bytes) if bytes % LARGE_PAGE_SIZE != 0 => Err(misfit(
            "is no multiple of 2M, the size of the pages memory is handed out in",
            "round it to a multiple of 2M",
        )),
        Some(bytes) => Ok(bytes),
    }
}

/// `0000:00:04.0`.
pub(super) fn pci_address(text: &str) -> Result<Requester, Misfit> {
    const FORM: Misfit = misfit(
        "is no PCI address",
        "write SEGMENT:BUS:DEVICE.FUNCTION in hexadecimal, like pci = \"0000:00:04.0\"",
    );
    let parse = || {
        let (segment, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let device = hex(device, 2)? as u8;
        let function = hex(function, 1)? as u8;
        (device < 32 && function < 8).then_some(())?;
        Some(Requester::new(hex(segment, 4)?, hex(bus, 2)? as u8, device, function))
    };
    parse().ok_or(FORM)
}

/// `8086:11fb`.
pub(super) fn pci_ids(text: &str) -> Result<(u16, u16), Misfit> {
    const FORM: Misfit =
        misfit("is no pair of PCI IDs", "write VENDOR:DEVICE in hexadecimal, like match = \"8086:11fb\"");
    let parse = || {
        let (vendor, device) = text.split_once(':')?;
        Some((hex(vendor, 4)?, hex(device, 4)?))
    };
    parse().ok_or(FORM)
}

/// Exactly `digits` hexadecimal digits, at most 4.
fn hex(text: &str, digits: usize) -> Option<u16> {
    (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u16::from_str_radix(text, 16).ok())
        .flatten()
}

/// A name of a VM or parent, as the monitor takes it.
pub(super) fn name(text: &str) -> Result<(), Misfit> {
    let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if letters && text.len() <= MAX_NAME && text.starts_with(|first: char| first.is_ascii_alphabetic()) {
        Ok(())
    } else {
        Err(misfit("is no name", "use 1 to 31 letters, digits, - or _, the first one a letter"))
    }
}

/// A name of a VM: no word that the monitor takes in its place.
pub(super) fn vm_name(text: &str) -> Result<String, Misfit> {
    name(text)?;
    match text {
        "define" => Err(misfit("is a word of the monitor (`vm define`)", "choose another")),
        _ => Ok(String::from(text)),
    }
}

/// A path on the ESP that can be a word of a command.
pub(super) fn definition_path(text: &str) -> Result<String, Misfit> {
    let path = path(text)?;
    match path.contains(char::is_whitespace) {
        true => Err(misfit("has blanks, so the monitor cannot take it", "rename the file")),
        false => Ok(path),
    }
}

/// A file on the ESP, with the separators made alike.
pub(super) fn path(text: &str) -> Result<String, Misfit> {
    let path = text.replace('\\', "/");
    let path = path.trim_start_matches('/');
    let components = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if components && path.len() <= MAX_PATH && !path.contains(|c: char| c.is_control() || c == ':') {
        Ok(String::from(path))
    } else {
        Err(misfit(
            "is no path of a file on the ESP",
            "write it from the ESP's root, like \"guests/vmlinuz\"",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(memory("256M").ok(), Some(256 << 20));
        assert_eq!(memory("16384K").ok(), Some(16 << 20));
        assert_eq!(memory("1024G").ok(), Some(1 << 40));
        for (bad, why) in [
            ("", "no size"),
            ("M", "no size"),
            ("256", "no size"),
            ("256m", "no size"),
            ("-1M", "no size"),
            ("+1M", "no size"),
            ("1.5G", "no size"),
            ("256MiB", "no size"),
            ("256\u{e4}", "no size"),
            ("1025G", "more than"),
            ("99999999999999999999G", "more than"),
            ("15M", "too little"),
            ("0G", "too little"),
            ("17M", "multiple of 2M"),
        ] {
            let error = memory(bad).expect_err(bad);
            assert!(error.why.contains(why), "{bad}: {}", error.why);
        }
    }

    #[test]
    fn pci_selectors() {
        assert_eq!(pci_address("0001:6a:1f.7").ok(), Some(Requester::new(1, 0x6a, 31, 7)));
        for bad in ["", "00:04.0", "0000:00:20.0", "0000:00:04.8", "0000:00:04", "0000:0:4.0", "+000:00:04.0"]
        {
            assert!(pci_address(bad).is_err(), "{bad}");
        }
        assert_eq!(pci_ids("8086:11FB").ok(), Some((0x8086, 0x11fb)));
        for bad in ["", "8086", "8086:", "0x8086:11fb", "8086:11fb:0"] {
            assert!(pci_ids(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_paths() {
        assert!(name("dsa0").is_ok() && name("a").is_ok() && name("web-1_b").is_ok());
        for bad in ["", "0dsa", "-a", "a b", "\u{e4}", &"a".repeat(32)] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert_eq!(path("\\guests\\vmlinuz").ok().as_deref(), Some("guests/vmlinuz"));
        for bad in ["", "/", "a//b", "../a", "a/.", "fs0:a", "a\nb"] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
