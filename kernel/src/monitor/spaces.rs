// SPDX-License-Identifier: MIT OR Apache-2.0
//! I/O address spaces as objects: made, mapped, put behind vdevs, destroyed, by number.

use alloc::format;
use alloc::string::String;

use serde::Serialize;

use super::{Command, MonitorHost, answer, done, find_vdev, find_vm};
use crate::base::refusal::Refusal;
use crate::base::size::split_unit;

/// `ioas …`
pub(super) fn ioas(
    host: &mut dyn MonitorHost,
    arguments: &[&str],
    command: &Command,
    as_json: bool,
) -> Result<String, Refusal> {
    #[derive(Serialize)]
    struct Created<'a> {
        ioas: u32,
        done: &'a str,
    }
    Ok(match *arguments {
        ["create", vm] => {
            let vm = find_vm(host, vm)?;
            let ioas = host.create_space(&vm.name)?;
            let text = format!("I/O address space {ioas} created for vm {}, empty", vm.name);
            answer(as_json, &Created { ioas, done: &text }, || format!("{text}\n"))
        }
        ["map", ioas, guest, iova, size] => {
            let (ioas, guest, iova, len) = (space(ioas)?, address(guest)?, address(iova)?, size_of(size)?);
            host.map_space(ioas, guest, iova, len)?;
            done(as_json, &format!("I/O address space {ioas}: {size} from {guest:#x} on mapped at {iova:#x}"))
        }
        ["unmap", ioas, iova, size] => {
            let (ioas, iova, len) = (space(ioas)?, address(iova)?, size_of(size)?);
            host.unmap_space(ioas, iova, len)?;
            done(as_json, &format!("I/O address space {ioas}: {size} at {iova:#x} unmapped"))
        }
        ["attach", ioas, vdev] => {
            let (ioas, vdev) = (space(ioas)?, find_vdev(host, vdev)?);
            host.attach_space(ioas, vdev.info.id)?;
            done(as_json, &format!("I/O address space {ioas} is behind vdev {} now", vdev.name))
        }
        ["destroy", ioas] => {
            let ioas = space(ioas)?;
            host.destroy_space(ioas)?;
            done(as_json, &format!("I/O address space {ioas} destroyed"))
        }
        _ => return Err(command.misused()),
    })
}

/// The number of an I/O address space.
pub(super) fn space(word: &str) -> Result<u32, Refusal> {
    let number = word.strip_prefix('#').unwrap_or(word).parse().ok();
    number.ok_or_else(|| bad(word, "is no number of an I/O address space", "`iommu` lists them"))
}

fn address(word: &str) -> Result<u64, Refusal> {
    number(word).ok_or_else(|| bad(word, "is no address", "write it like 0x8000000"))
}

/// Bytes: a number, or one and K, M or G.
fn size_of(word: &str) -> Result<u64, Refusal> {
    let (digits, shift) = split_unit(word).unwrap_or((word, 0));
    let bytes = number(digits).and_then(|count| count.checked_mul(1 << shift));
    bytes.ok_or_else(|| bad(word, "is no size", "write bytes, or a number and K, M or G, like 2M"))
}

/// Decimal, or hexadecimal with 0x.
fn number(word: &str) -> Option<u64> {
    // What Rust also takes for numbers.
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match word.strip_prefix("0x") {
        Some(hex) if digits(hex) => u64::from_str_radix(hex, 16).ok(),
        None if digits(word) => word.parse().ok(),
        _ => None,
    }
}

fn bad(word: &str, why: &str, remedy: &str) -> Refusal {
    let shown: String = word.chars().take(40).collect();
    Refusal::new("monitor", format!("{shown} {why}"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_addresses_are_read_as_people_write_them() {
        for (word, value) in
            [("4096", 4096), ("0x1000", 4096), ("4K", 4096), ("2M", 2 << 20), ("0x1G", 1 << 30)]
        {
            assert_eq!(size_of(word).unwrap(), value, "{word}");
        }
        for word in ["", "K", "+4K", "-1", "0x", "4k", "1.5M", "17179869184G", "0x+1"] {
            assert!(size_of(word).is_err(), "{word}");
        }
        assert_eq!(address("0xfee00000").unwrap(), 0xfee0_0000);
        assert!(address("2M").is_err());
        assert_eq!((space("#3").unwrap(), space("3").unwrap()), (3, 3));
        assert!(space("three").is_err());
    }
}
