// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files on the disk that the image was loaded from (its EFI system partition).
//!
//! **Invariant.** A file lies in pages of its own, not in the heap, and stays there for ever. Of a kernel that is what
//! is loaded: the debug information behind it, which can be ten times as much, is not even read.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use pasidon_arch::guest::boot::loaded_len;
use pasidon_arch_common::guest_files::{self, Part};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::config::{self, ConfigError, Definition, Mode, Parsed};
use uefi::boot::{self, AllocateType, MemoryType, PAGE_SIZE, ScopedProtocol};
use uefi::proto::media::file::{Directory, File, FileAttribute, FileInfo, FileMode, FileType, RegularFile};
use uefi::proto::media::fs::SimpleFileSystem;
use uefi::{CString16, Status};

/// The symbols for backtraces, which `cargo xtask build` makes beside the image.
const SYMBOLS: &str = "pasidon.sym";
/// From this size on a file is announced before it is read.
const LARGE: usize = 4 << 20;
/// Bytes asked for at a time: some firmware cannot do a whole file at once.
const BLOCK: usize = 1 << 20;

/// The disk that the image was loaded from, and what its `pasidon.toml` says.
pub struct BootDisk {
    disk: Disk,
    /// `pasidon.toml`, parsed.
    pub parsed: Result<Parsed, Vec<ConfigError>>,
    /// The files of VMs that may be defined later.
    pub definitions: Vec<Definition>,
}

impl BootDisk {
    /// Reads `pasidon.toml` and the definitions that it names, and nothing else.
    ///
    /// # Errors
    /// When there is no such disk, or no `pasidon.toml` on it.
    pub fn open() -> Result<Self, Refusal> {
        let mut disk = Disk::open()?;
        let toml = disk.read(config::FILE_NAME, &whole).map_err(|why| {
            Refusal::new(
                format!("\\{}", config::FILE_NAME),
                why,
                "put it in the top folder of the disk that Pasidon is started from",
            )
        })?;
        let parsed = config::parse(toml);
        let mut read = |path: &str| disk.read(path, &whole);
        let definitions = parsed.as_ref().map_or_else(|_| Vec::new(), |parsed| parsed.definitions(&mut read));
        Ok(Self { disk, parsed, definitions })
    }

    /// Whether the inventory is asked for.
    pub fn wants_inventory(&self) -> bool {
        let mode = self.parsed.as_ref().map(|parsed| parsed.config.host.mode.value);
        mode == Ok(Mode::Inventory)
    }

    /// Reads every kernel and initrd that a VM names, also one that may be defined later.
    pub fn guests(&mut self) -> guest_files::Files {
        let vms = self.parsed.as_ref().map_or(&[][..], |parsed| &parsed.config.vms);
        let later = self.definitions.iter().flat_map(|definition| &definition.vms);
        guest_files::Files::read(vms.iter().chain(later), &mut |path, part| match part {
            Part::Whole => self.disk.read(path, &whole),
            Part::Loaded => self.disk.read(path, &loaded_len),
        })
    }
}

/// What is on the disk, as far as it is asked for.
pub struct Files {
    /// `pasidon.toml`, parsed.
    pub parsed: Result<Parsed, Vec<ConfigError>>,
    /// The files of VMs that may be defined later.
    pub definitions: Vec<Definition>,
    /// Every kernel and initrd that a VM names.
    pub guests: guest_files::Files,
    /// `pasidon.sym`.
    pub symbols: Option<&'static [u8]>,
}

impl Files {
    /// Reads all of them.
    pub fn read(mut boot: BootDisk) -> Self {
        let guests = boot.guests();
        let BootDisk { mut disk, parsed, definitions } = boot;
        let symbols = disk
            .read(SYMBOLS, &whole)
            .inspect_err(|why| log::warn!("\\{SYMBOLS}: {why}; backtraces will show addresses only"))
            .ok();
        Self { parsed, definitions, guests, symbols }
    }
}

/// How many bytes of a file are needed, by its first [`BLOCK`] at most; `None` for all.
type Needed<'a> = &'a dyn Fn(&[u8]) -> Option<u64>;

fn whole(_head: &[u8]) -> Option<u64> {
    None
}

struct Disk {
    // The order matters: the folder is closed before the file system.
    root: Directory,
    _file_system: ScopedProtocol<SimpleFileSystem>,
}

impl Disk {
    fn open() -> Result<Self, Refusal> {
        let refuse = |error: uefi::Error| {
            Refusal::new(
                "boot disk",
                words(error.status()),
                "start Pasidon from a FAT file system that the firmware can read",
            )
        };
        let mut file_system = boot::get_image_file_system(boot::image_handle()).map_err(refuse)?;
        let root = file_system.open_volume().map_err(refuse)?;
        Ok(Self { root, _file_system: file_system })
    }

    /// What is `needed` of a file, by its path from the top with `/` between components; or why not, in words.
    fn read(&mut self, path: &str, needed: Needed<'_>) -> Result<&'static [u8], String> {
        let name = CString16::try_from(path.replace('/', "\\").as_str())
            .map_err(|_| "the firmware cannot express this path".to_string())?;
        let in_words = |error: uefi::Error| words(error.status());
        let handle = self.root.open(&name, FileMode::Read, FileAttribute::empty()).map_err(in_words)?;
        let mut file = match handle.into_type().map_err(in_words)? {
            FileType::Regular(file) => file,
            FileType::Dir(_) => return Err("it is a folder".to_string()),
        };
        let info = file.get_boxed_info::<FileInfo>().map_err(in_words)?;
        let size = usize::try_from(info.file_size()).map_err(|_| "it is too large".to_string())?;
        if size == 0 {
            return Err("it is empty".to_string());
        }
        let mut head = vec![0; size.min(BLOCK)];
        fill(&mut file, &mut head, 0, size)?;
        let needed = needed(&head).and_then(|length| usize::try_from(length).ok());
        let length = needed.map_or(size, |length| length.clamp(head.len(), size));
        if length < size {
            log::info!("reading {path}, {} of {} MiB", length >> 20, size >> 20);
        } else if length >= LARGE {
            log::info!("reading {path}, {} MiB", length >> 20);
        }
        let buffer = pages(length)?;
        let (start, rest) = buffer.split_at_mut(head.len());
        start.copy_from_slice(&head);
        fill(&mut file, rest, head.len(), size)?;
        Ok(buffer)
    }
}

/// Reads on, from byte `at` of `size`, until the buffer is full.
fn fill(file: &mut RegularFile, buffer: &mut [u8], at: usize, size: usize) -> Result<(), String> {
    let mut done = 0;
    while done < buffer.len() {
        let end = buffer.len().min(done + BLOCK);
        let read = file
            .read(&mut buffer[done..end])
            .map_err(|error| format!("it cannot be read at byte {}: {}", at + done, words(error.status())))?;
        if read == 0 {
            return Err(format!("it ends at byte {} of {size}", at + done));
        }
        done += read;
    }
    Ok(())
}

/// Memory for a file, zeroed.
fn pages(length: usize) -> Result<&'static mut [u8], String> {
    let count = length.div_ceil(PAGE_SIZE);
    let start = boot::allocate_pages(AllocateType::AnyPages, MemoryType::LOADER_DATA, count)
        .map_err(|_| format!("there is no memory for its {} KiB", length >> 10))?;
    // SAFETY: the pages are ours for ever, and hold `length` bytes.
    unsafe {
        start.write_bytes(0, count * PAGE_SIZE);
        Ok(core::slice::from_raw_parts_mut(start.as_ptr(), length))
    }
}

/// A status of the firmware's in words.
fn words(status: Status) -> String {
    match status {
        Status::NOT_FOUND => "it is not there".to_string(),
        Status::INVALID_PARAMETER => "it is no path that the file system can have".to_string(),
        Status::VOLUME_CORRUPTED => "the file system is damaged".to_string(),
        Status::DEVICE_ERROR => "the disk reports an error".to_string(),
        Status::NO_MEDIA | Status::MEDIA_CHANGED => "the disk is gone".to_string(),
        Status::ACCESS_DENIED => "the firmware denies access".to_string(),
        other => format!("the firmware says {other}"),
    }
}
