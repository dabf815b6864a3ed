// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is expensive to make is kept in the user's cache folder, shared by all clones.
//!
//! Invariant: an entry is complete or not there. It is made in a folder of its own and renamed into place at the end;
//! a file lock (released by the kernel however the process ends) keeps two runs from making the same one.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Hex digits of a key that appear in an entry's name.
const KEY_DIGITS: usize = 16;
/// How many entries of one name are kept: enough for some branches of several clones.
const KEPT: usize = 8;
/// Bytes read at a time when a file is hashed.
const READ_BLOCK: usize = 1 << 20;

/// Everything that went into an entry, hashed.
#[derive(Clone, Default)]
pub struct Key(Sha256);

impl Key {
    /// A key without parts.
    pub fn new() -> Key {
        Key::default()
    }

    /// Adds one input. Parts are length-prefixed, so that no two different lists of parts give the same key.
    pub fn part(mut self, part: impl AsRef<[u8]>) -> Key {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    /// Adds files, by name and content.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn files(mut self, paths: &[PathBuf]) -> Result<Key> {
        for path in paths {
            let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            self = self.part(path.file_name().unwrap_or_default().as_encoded_bytes()).part(text);
        }
        Ok(self)
    }

    /// The first hex digits of the hash: what tells entries of one name apart.
    pub fn digits(&self) -> String {
        hex(&self.0.clone().finalize())[..KEY_DIGITS].to_owned()
    }
}

/// SHA-256 of a file in lower-case hex.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut block = vec![0; READ_BLOCK];
    loop {
        let length = file.read(&mut block).with_context(|| format!("reading {}", path.display()))?;
        if length == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&block[..length]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The cache folder of this project.
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens `$XDG_CACHE_HOME/pasidon`, or `~/.cache/pasidon`, and creates it when missing.
    ///
    /// # Errors
    /// When neither variable is set or the folder cannot be created.
    pub fn open() -> Result<Cache> {
        let base = match std::env::var_os("XDG_CACHE_HOME").filter(|dir| Path::new(dir).is_absolute()) {
            Some(dir) => PathBuf::from(dir),
            None => Path::new(&std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
                .join(".cache"),
        };
        let root = base.join("pasidon");
        for dir in ["locks", "making"] {
            fs::create_dir_all(root.join(dir))
                .with_context(|| format!("creating {}", root.join(dir).display()))?;
        }
        Ok(Cache { root })
    }

    /// The cache folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the lock of that name, waiting for another run that holds it. Dropping the file releases it.
    ///
    /// # Errors
    /// When the lock file cannot be created.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join("locks").join(name);
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("  waiting for another run that is making {name}");
            file.lock().with_context(|| format!("locking {}", path.display()))?;
        }
        Ok(file)
    }

    /// The folder of the entry `name` with that key; made by `make`, which fills the empty folder it is given, when
    /// it is not there yet.
    ///
    /// # Errors
    /// When `make` fails, after which nothing of the attempt is left, or the file system does.
    pub fn entry(&self, name: &str, key: &Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let kind = name;
        let name = format!("{kind}-{}", key.digits());
        let entry = self.root.join(&name);
        if is_there(&entry) {
            return Ok(entry);
        }
        let _lock = self.lock(&name)?;
        if is_there(&entry) {
            return Ok(entry);
        }
        let making = self.root.join("making").join(&name);
        remove_if_there(&making)?;
        fs::create_dir(&making).with_context(|| format!("creating {}", making.display()))?;
        if let Err(error) = make(&making) {
            remove_if_there(&making)?;
            return Err(error);
        }
        fs::rename(&making, &entry).with_context(|| format!("renaming into {}", entry.display()))?;
        self.prune(&self.root, kind, KEPT)?;
        self.sweep()?;
        Ok(entry)
    }

    /// Deletes those folders `kind-KEY` in `dir` that were not used for longest, so that `kept` of them stay; never one
    /// whose lock somebody holds.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn prune(&self, dir: &Path, kind: &str, kept: usize) -> Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.strip_prefix(kind).and_then(|rest| rest.strip_prefix('-')).is_some_and(is_key) {
                found.push((entry.metadata()?.modified()?, name));
            }
        }
        found.sort();
        let surplus = found.len().saturating_sub(kept);
        found[..surplus].iter().try_for_each(|(_, name)| self.remove_if_free(&dir.join(name), name))
    }

    /// Deletes what interrupted runs have left.
    fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(self.root.join("making"))? {
            let entry = entry?;
            self.remove_if_free(&entry.path(), &entry.file_name().to_string_lossy())?;
        }
        Ok(())
    }

    fn remove_if_free(&self, dir: &Path, name: &str) -> Result<()> {
        let lock = File::create(self.root.join("locks").join(name))?;
        if lock.try_lock().is_ok() { remove_if_there(dir) } else { Ok(()) }
    }
}

/// Whether the folder exists; if so it is marked as used now.
pub fn is_there(entry: &Path) -> bool {
    let Ok(dir) = File::open(entry) else { return false };
    // Only the order of deletion depends on it.
    let _ = dir.set_modified(SystemTime::now());
    true
}

fn is_key(text: &str) -> bool {
    text.len() == KEY_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Deletes a folder that may not exist.
///
/// # Errors
/// When it exists and cannot be deleted.
pub fn remove_if_there(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("deleting {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn scratch(name: &str) -> Cache {
        let root = std::env::temp_dir().join(format!("pasidon-cache-test-{name}-{}", std::process::id()));
        remove_if_there(&root).unwrap();
        for dir in ["locks", "making"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        Cache { root }
    }

    #[test]
    fn a_failed_step_leaves_nothing_and_a_complete_one_is_made_once() {
        let cache = scratch("entry");
        let key = Key::new().part("a");
        let failed = cache.entry("thing", &key, |dir| {
            fs::write(dir.join("half"), "half")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert!(fs::read_dir(cache.root().join("making")).unwrap().next().is_none());
        let made = cache.entry("thing", &key, |dir| Ok(fs::write(dir.join("whole"), "whole")?)).unwrap();
        assert!(made.join("whole").exists() && !made.join("half").exists());
        let again = cache.entry("thing", &key, |_| bail!("made twice")).unwrap();
        assert_eq!(made, again);
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn what_interrupted_runs_left_is_swept_away() {
        let cache = scratch("sweep");
        let making = |name: &str| cache.root().join("making").join(name);
        fs::create_dir(making("dead-0123456789abcdef")).unwrap();
        fs::create_dir(making("live-0123456789abcdef")).unwrap();
        let lock = cache.lock("live-0123456789abcdef").unwrap();
        cache.entry("thing", &Key::new(), |_| Ok(())).unwrap();
        assert!(!making("dead-0123456789abcdef").exists());
        assert!(making("live-0123456789abcdef").exists());
        drop(lock);
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn the_entries_used_last_are_kept() {
        let cache = scratch("prune");
        let make = |part: &str| cache.entry("thing", &Key::new().part(part), |_| Ok(())).unwrap();
        let other = cache.entry("thing-else", &Key::new(), |_| Ok(())).unwrap();
        let first = make("0");
        for number in 1..=KEPT {
            // The clock may stand still between two entries; give the older one a time that is surely older.
            File::open(make(&number.to_string())).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            assert_eq!(first, make("0"));
        }
        assert!(first.is_dir() && other.is_dir());
        let left = fs::read_dir(cache.root()).unwrap().count();
        assert_eq!(left, KEPT + 3, "entries of the name, the other name's, locks and making");
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn keys_tell_apart_how_parts_are_cut() {
        assert_ne!(Key::new().part("ab").part("c").digits(), Key::new().part("a").part("bc").digits());
    }
}
