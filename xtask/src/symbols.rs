// SPDX-License-Identifier: MIT OR Apache-2.0
//! `pasidon.sym`: what the hypervisor reads to name the functions in a backtrace.
//!
//! Made from the map that lld-link writes, which also has the functions that no other object sees. Lines are
//! `RVA SIZE NAME` with hexadecimal numbers, sorted by RVA (relative virtual address: offset from the load address).

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The symbol file for the linker map `map`.
///
/// # Errors
/// When the map is not one that lld-link writes.
pub fn from_map(map: &str) -> Result<String> {
    let base = map.lines().find_map(|line| line.trim().strip_prefix("Preferred load address is "));
    let base = u64::from_str_radix(base.context("the linker map names no load address")?.trim(), 16)?;
    let mut functions = BTreeMap::new();
    let mut end_of_code = 0;
    for line in map.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // " 0001:00000000 00000025H .text                   CODE": code is in section 1, from RVA 1000H on.
            [place, length, _, "CODE"] => {
                let hex = |text: &str| u64::from_str_radix(text.trim_end_matches('H'), 16);
                let offset = place.split_once(':').context("a section without offset")?.1;
                end_of_code = end_of_code.max(hex(offset)? + hex(length)?);
            }
            // " 0001:00000020       efi_main                   0000000140001020     pasidon.o"
            [place, name, address, _object] if place.starts_with(CODE_SECTION) => {
                let Ok(address) = u64::from_str_radix(address, 16) else {
                    continue;
                };
                // Functions with equal code share an address; the first name will do.
                functions
                    .entry(address - base)
                    .or_insert_with(|| format!("{:#}", rustc_demangle::demangle(name)));
            }
            _ => {}
        }
    }
    ensure!(!functions.is_empty(), "the linker map names no function");
    let first = functions.keys().next().copied().unwrap_or_default();
    let start_of_code = first / PAGE * PAGE;
    let ends: Vec<u64> = functions.keys().skip(1).copied().chain([start_of_code + end_of_code]).collect();
    let mut text = String::new();
    for ((address, name), end) in functions.iter().zip(ends) {
        let _ = writeln!(text, "{address:x} {:x} {name}", end.saturating_sub(*address));
    }
    Ok(text)
}

/// How places in the code section start in a map.
const CODE_SECTION: &str = "0001:";
/// Sections start on a page.
const PAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_sorted_sized_and_readable() {
        let map = " t\n\n Preferred load address is 0000000140000000\n
 Start         Length     Name                   Class
 0001:00000000 00000025H .text                   CODE
 0002:00000000 00000010H .rdata                  DATA

  Address         Publics by Value              Rva+Base               Lib:Object

 0001:00000020       efi_main                   0000000140001020     t.o
 0002:00000000       TABLE                      0000000140002000     t.o

 entry point at         0001:00000020

 Static symbols

 0001:00000000       _RNvMNtCscp3rh3tfoPb_1t3fooNtB2_3Bar3baz 0000000140001000     t.o
 0001:00000010       _RNvNtCscp3rh3tfoPb_1t3foo4quux 0000000140001010     t.o
";
        assert_eq!(
            from_map(map).unwrap(),
            "1000 10 <t::foo::Bar>::baz\n1010 10 t::foo::quux\n1020 5 efi_main\n"
        );
    }

    #[test]
    fn something_else_is_refused() {
        assert!(from_map("").is_err());
    }
}
