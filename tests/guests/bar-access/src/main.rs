// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accesses of a process to the registers of a PCI function that are more than a plain load or store: what `memcpy` and
//! `memset` are made of, and what device memory does not take.
//!
//! `bar-access [FUNCTION]` carries out each access in a process of its own and prints a line for each,
//! `PASIDON bar-access NAME done`, `wrong` or `signal=N`. The accesses go to the MSI-X table, which is memory like any
//! other while no interrupt uses it, and to the first and the portal BAR.
//!
//! Source: PCI Express Base Specification 6.0, 7.7.2 "MSI-X Capability"; Linux,
//! `Documentation/ABI/testing/sysfs-bus-pci`.

#[cfg(target_arch = "x86_64")]
mod x86_64;

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};

#[cfg(target_arch = "x86_64")]
use x86_64::ACCESSES;

/// None are written for this architecture yet.
#[cfg(not(target_arch = "x86_64"))]
const ACCESSES: &[Access] = &[];

/// The vdev that is plugged first.
const FIRST: &str = "0000:01:00.0";
/// `O_SYNC`, with which the kernel maps a BAR uncached even where it is prefetchable.
const UNCACHED: i32 = rustix::fs::OFlags::SYNC.bits() as i32;
/// The BAR of the registers.
const REGISTER_BAR: u8 = 0;
/// The BAR of the portals.
const PORTAL_BAR: u8 = 2;
const PAGE: usize = 4096;

/// One access.
struct Access {
    name: &'static str,
    /// Returns whether it did what it should.
    run: fn(&Windows) -> bool,
}

/// What of the function is mapped.
struct Windows {
    /// Two entries of the MSI-X table, masked.
    table: *mut u8,
    /// The first page of the BAR with the registers.
    registers: *mut u8,
    /// The same, executable.
    registers_as_code: *mut u8,
    /// The first page of the BAR with the portals, executable.
    portals_as_code: *mut u8,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bar-access: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut arguments = std::env::args().skip(1);
    let function = arguments.next().unwrap_or_else(|| FIRST.to_string());
    let path = Path::new("/sys/bus/pci/devices").join(&function);
    if let Some(name) = arguments.next() {
        let access = ACCESSES
            .iter()
            .find(|access| access.name == name)
            .with_context(|| format!("no access {name}"))?;
        return Ok((access.run)(&map(&path)?));
    }
    fs::write(path.join("enable"), "1").with_context(|| format!("enabling {function}"))?;
    for access in ACCESSES {
        let status = Command::new("/proc/self/exe").args([&function, access.name]).status()?;
        let outcome = match (status.signal(), status.success()) {
            (Some(signal), _) => format!("signal={signal}"),
            (None, true) => "done".to_string(),
            (None, false) => "wrong".to_string(),
        };
        println!("PASIDON bar-access {} {outcome}", access.name);
    }
    fs::write(path.join("enable"), "0")?;
    Ok(true)
}

/// Maps the function's BARs, its MSI-X table masked.
fn map(path: &Path) -> Result<Windows> {
    let (bar, offset) = msix_table(&fs::read(path.join("config"))?).context("the function has no MSI-X")?;
    let (table, len) = map_bar(path, bar)?;
    ensure!(offset + 32 <= len, "the MSI-X table does not lie in its BAR");
    // SAFETY: the table lies within the BAR that was mapped.
    let table = unsafe { table.add(offset) };
    Ok(Windows {
        table,
        registers: map_bar(path, REGISTER_BAR)?.0,
        registers_as_code: map_code(path, REGISTER_BAR)?,
        portals_as_code: map_code(path, PORTAL_BAR)?,
    })
}

/// BAR and offset of the MSI-X table.
fn msix_table(config: &[u8]) -> Option<(u8, usize)> {
    const CAPABILITIES: usize = 0x34;
    const MSIX: u8 = 0x11;
    const MOST: usize = 48;
    let mut at = usize::from(*config.get(CAPABILITIES)?);
    for _ in 0..MOST {
        let [id, next] = *config.get(at..)?.first_chunk()?;
        if id == MSIX {
            let table = u32::from_le_bytes(*config.get(at + 4..)?.first_chunk()?);
            return Some(((table & 7) as u8, (table & !7) as usize));
        }
        at = usize::from(next);
    }
    None
}

/// Maps a BAR, uncached, readable and writable. It stays mapped until the process ends.
fn map_bar(path: &Path, bar: u8) -> Result<(*mut u8, usize)> {
    let path = path.join(format!("resource{bar}"));
    let file = open(&path)?;
    let len = usize::try_from(file.metadata()?.len())?;
    let base = map_shared(&file, len, ProtFlags::READ | ProtFlags::WRITE, 0)
        .with_context(|| format!("mapping {}", path.display()))?;
    Ok((base, len))
}

/// Maps the first page of a BAR, executable: by its address, as sysfs lets nobody execute.
fn map_code(path: &Path, bar: u8) -> Result<*mut u8> {
    let resources = fs::read_to_string(path.join("resource"))?;
    let address = resources
        .lines()
        .nth(bar.into())
        .and_then(|line| line.split_whitespace().next()?.strip_prefix("0x"))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .with_context(|| format!("no BAR {bar}"))?;
    let memory = open(Path::new("/dev/mem"))?;
    map_shared(&memory, PAGE, ProtFlags::READ | ProtFlags::EXEC, address)
        .with_context(|| format!("mapping BAR {bar} by its address {address:#x}"))
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(UNCACHED)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

fn map_shared(file: &File, len: usize, protection: ProtFlags, offset: u64) -> rustix::io::Result<*mut u8> {
    // SAFETY: a new mapping where the kernel chooses.
    let base = unsafe { mmap(core::ptr::null_mut(), len, protection, MapFlags::SHARED, file, offset) }?;
    Ok(base.cast())
}
