// SPDX-License-Identifier: MIT OR Apache-2.0
//! The boot disk: one FAT file system, as the firmware reads it from removable media, with Pasidon, its configuration
//! and its guests. Written directly, without mounting anything and without any right.

use crate::workshop::{Application, Linux};
use anyhow::{Context, Result};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Room beside the files, for directories, allocation tables and cluster slack.
const SPARE_BYTES: u64 = 8 << 20;
/// FAT32 needs at least 65525 clusters; below this size the choice of FAT type would depend on the content.
const MINIMUM_BYTES: u64 = 64 << 20;
/// Bytes carried at a time.
const BLOCK: usize = 1 << 20;

/// A boot disk in the making.
pub struct Image {
    files: Vec<(String, Content)>,
}

enum Content {
    Path(PathBuf),
    Text(String),
}

impl Image {
    /// A disk that starts `application`, with that `pasidon.toml`.
    pub fn new(application: &Application, configuration: &str) -> Image {
        Image { files: Vec::new() }
            .file(application.removable_path, &application.efi)
            .file("pasidon.sym", &application.symbols)
            .text("pasidon.toml", configuration)
    }

    /// Adds the Linux guest as `guests/vmlinux`, `guests/vmlinuz` and `guests/initrd.img`.
    pub fn linux(self, linux: &Linux) -> Image {
        self.file("guests/vmlinux", &linux.vmlinux)
            .file("guests/vmlinuz", &linux.vmlinuz)
            .file("guests/initrd.img", &linux.initrd)
    }

    /// Adds a file under the path `name` (with `/`, from the top of the disk).
    pub fn file(mut self, name: &str, path: &Path) -> Image {
        self.files.push((name.to_owned(), Content::Path(path.to_path_buf())));
        self
    }

    /// Adds a file with that content.
    pub fn text(mut self, name: &str, text: &str) -> Image {
        self.files.push((name.to_owned(), Content::Text(text.to_owned())));
        self
    }

    /// Writes the disk to `path`, over what was there.
    ///
    /// # Errors
    /// When a file cannot be read, or `path` cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.write_disk(path).with_context(|| format!("making the disk image {}", path.display()))
    }

    fn write_disk(&self, path: &Path) -> Result<()> {
        let mut size = SPARE_BYTES;
        for (_, content) in &self.files {
            size += match content {
                Content::Path(path) => {
                    fs::metadata(path).with_context(|| format!("{}", path.display()))?.len()
                }
                Content::Text(text) => text.len() as u64,
            };
        }
        let mut disk = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        disk.set_len(size.max(MINIMUM_BYTES).next_multiple_of(BLOCK as u64))?;
        fatfs::format_volume(&mut disk, FormatVolumeOptions::new().volume_label(*b"PASIDON    "))?;
        disk.seek(SeekFrom::Start(0))?;
        let disk = FileSystem::new(disk, FsOptions::new())?;
        for (name, content) in &self.files {
            let (folders, file) = name.rsplit_once('/').unwrap_or(("", name));
            let mut folder = disk.root_dir();
            for part in folders.split('/').filter(|part| !part.is_empty()) {
                folder = folder.create_dir(part)?;
            }
            let mut target = BufWriter::with_capacity(BLOCK, folder.create_file(file)?);
            match content {
                Content::Path(path) => {
                    std::io::copy(&mut File::open(path)?, &mut target).map(drop)?;
                }
                Content::Text(text) => target.write_all(text.as_bytes())?,
            }
            target.flush()?;
        }
        disk.unmount()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn files_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let efi = dir.path().join("application");
        fs::write(&efi, vec![7; 3_000_000]).unwrap();
        let application =
            Application { efi: efi.clone(), symbols: efi, removable_path: "EFI/BOOT/BOOTX64.EFI" };
        let path = dir.path().join("disk");
        Image::new(&application, "[host]\n").text("guests/note.txt", "hello").write(&path).unwrap();
        let disk = FileSystem::new(File::open(&path).map(fatfs_reader).unwrap(), FsOptions::new()).unwrap();
        let read = |name: &str| {
            let mut bytes = Vec::new();
            disk.root_dir().open_file(name).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(read("EFI/BOOT/BOOTX64.EFI"), vec![7; 3_000_000]);
        assert_eq!(read("pasidon.toml"), b"[host]\n");
        assert_eq!(read("guests/note.txt"), b"hello");
    }

    /// fatfs wants a writable medium even for reading.
    fn fatfs_reader(mut file: File) -> std::io::Cursor<Vec<u8>> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        std::io::Cursor::new(bytes)
    }
}
