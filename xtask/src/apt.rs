// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages: installing what the tools need, and fetching single packages of another suite.
//!
//! Invariant: no archive host is named here; the machine's own sources say where Debian is. A foreign suite is read
//! through a sources list and a lists folder of our own, so the system's apt is not changed.

use crate::command;
use crate::progress::Step;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const DEB822_SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";
const ONE_LINE_SOURCES: &str = "/etc/apt/sources.list";
/// Another apt may be running (unattended upgrades on a fresh machine): wait up to five minutes for it.
const WAIT_FOR_LOCK: &str = "-oDPkg::Lock::Timeout=300";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A Debian suite that is read beside the system's own sources.
pub struct Suite {
    dir: PathBuf,
    /// Debian's name of the architecture whose packages are read, where it is not this machine's.
    architecture: Option<&'static str>,
}

impl Suite {
    /// Prepares the suite `name` (component main) in the folder `dir` and fetches its lists: those of an architecture,
    /// by Debian's name, or of this machine's.
    ///
    /// # Errors
    /// When the machine's sources name no Debian archive, or that has no such suite.
    pub fn open(name: &str, architecture: Option<&'static str>, dir: &Path, step: &Step) -> Result<Suite> {
        let suite = Suite { dir: dir.to_path_buf(), architecture };
        fs::create_dir_all(suite.lists().join("partial"))?;
        let archive = archive_uri()?;
        let lines =
            ["deb", "deb-src"].map(|kind| format!("{kind} [signed-by={KEYRING}] {archive} {name} main\n"));
        fs::write(suite.sources(), lines.concat())?;
        command::run(suite.apt_get().arg("update"), step)
            .with_context(|| format!("reading Debian's suite {name}"))?;
        Ok(suite)
    }

    /// The versions of a binary package in this suite.
    ///
    /// # Errors
    /// When apt-cache fails.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        self.madison(package, "Packages")
    }

    /// The versions of a source package in this suite.
    ///
    /// # Errors
    /// When apt-cache fails.
    pub fn source_versions(&self, package: &str) -> Result<Vec<String>> {
        self.madison(package, "Sources")
    }

    fn madison(&self, package: &str, kind: &str) -> Result<Vec<String>> {
        let listing =
            command::output(self.with_options(&mut Command::new("apt-cache")).args(["madison", package]))?;
        // " rust-src | 1.95.0+dfsg1-2~bpo13+1 | URI suite/main amd64 Packages"
        let column = |line: &str| line.split('|').nth(1).map(|version| version.trim().to_owned());
        Ok(listing.lines().filter(|line| line.trim_end().ends_with(kind)).filter_map(column).collect())
    }

    /// Downloads the tarballs of a source package into `dir`, and nothing else of it.
    ///
    /// # Errors
    /// When the source cannot be fetched.
    pub fn download_tarball(&self, package: &str, version: &str, dir: &Path, step: &Step) -> Result<()> {
        let mut apt_get = self.apt_get();
        apt_get.current_dir(dir).args([
            "source",
            "--download-only",
            "--tar-only",
            &format!("{package}={version}"),
        ]);
        command::run(&mut apt_get, step)
    }

    /// Downloads one binary package, of exactly that version or else the newest, into `dir`; returns the file.
    ///
    /// # Errors
    /// When the package cannot be fetched.
    pub fn download(&self, package: &str, version: Option<&str>, dir: &Path, step: &Step) -> Result<PathBuf> {
        let wanted = version.map_or(package.to_owned(), |version| format!("{package}={version}"));
        command::run(self.apt_get().current_dir(dir).args(["download", &wanted]), step)?;
        find_by_prefix(dir, &format!("{package}_"))
    }

    /// The first package that `package` depends on whose name starts with `prefix`.
    ///
    /// # Errors
    /// When there is none.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let listing =
            command::output(self.with_options(&mut Command::new("apt-cache")).args(["depends", package]))?;
        // "  Depends: linux-image-6.1.0-50-amd64"
        let mut names = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let found = names.find(|name| name.starts_with(prefix));
        Ok(found.with_context(|| format!("{package} depends on no {prefix}*"))?.to_owned())
    }

    fn sources(&self) -> PathBuf {
        self.dir.join("sources.list")
    }

    fn lists(&self) -> PathBuf {
        self.dir.join("lists")
    }

    fn apt_get(&self) -> Command {
        let mut apt_get = Command::new("apt-get");
        self.with_options(&mut apt_get);
        apt_get
    }

    fn with_options<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let option = |name: &str, value: &Path| format!("-o{name}={}", value.display());
        command.args([
            option("Dir::Etc::SourceList", &self.sources()),
            option("Dir::Etc::SourceParts", Path::new("/dev/null")),
            option("Dir::State::Lists", &self.lists()),
            // What is installed here must not count as a version of the other suite.
            option("Dir::State::status", Path::new("/dev/null")),
            option("Dir::Cache::pkgcache", Path::new("")),
            option("Dir::Cache::srcpkgcache", Path::new("")),
            // Ours is no folder that apt's unprivileged user may write to.
            "-oAPT::Sandbox::User=root".to_owned(),
        ]);
        if let Some(architecture) = self.architecture {
            // As if on such a machine: then a package's name alone means that architecture's.
            command
                .args(["Architecture", "Architectures"].map(|name| format!("-oAPT::{name}={architecture}")));
        }
        command
    }
}

/// Makes sure that these Debian packages are installed, through apt when that is possible without asking.
///
/// # Errors
/// When some are missing and cannot be installed; the error is the line to type.
pub fn need(packages: &[impl AsRef<str>]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().map(AsRef::as_ref).filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let prefix: &[&str] = if command::is_root() {
        &[]
    } else if command::output(Command::new("sudo").args(["-n", "true"])).is_ok() {
        &["sudo", "-n"]
    } else {
        bail!("some Debian packages are missing; run: sudo apt-get install {}", missing.join(" "));
    };
    let step = Step::start(format!("installing Debian packages: {}", missing.join(" ")));
    let apt_get = |arguments: &[&str]| {
        let words = [prefix, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", WAIT_FOR_LOCK], arguments]
            .concat();
        command::run(Command::new(words[0]).args(&words[1..]), &step)
    };
    let install = [&["install", "--yes", "--no-install-recommends"], missing.as_slice()].concat();
    if apt_get(&install).is_err() {
        // The lists may never have been fetched, or name files that are gone.
        apt_get(&["update"])?;
        apt_get(&install)?;
    }
    step.done();
    Ok(())
}

fn is_installed(package: &str) -> bool {
    let query = command::output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]));
    query.is_ok_and(|status| status == "installed")
}

/// Unpacks `member` (a path in the package, `.` for all of it) of a .deb into `dir`, leaving out the path `without`.
///
/// # Errors
/// When dpkg-deb or tar fails.
pub fn unpack(deb: &Path, member: &str, without: Option<&str>, dir: &Path, step: &Step) -> Result<()> {
    let script = r#"deb=$1; shift; dpkg-deb --fsys-tarfile "$deb" | tar -x "$@""#;
    let mut shell = Command::new("bash");
    shell.args(["-o", "pipefail", "-c", script, "unpack"]).arg(deb).arg("-C").arg(dir);
    shell.args(without.map(|path| format!("--exclude=./{path}")));
    shell.arg(if member == "." { "./".to_owned() } else { format!("./{member}") });
    command::run(&mut shell, step).with_context(|| format!("unpacking {}", deb.display()))
}

/// The URI of the machine's own Debian archive.
fn archive_uri() -> Result<String> {
    if let Ok(text) = fs::read_to_string(DEB822_SOURCES)
        && let Some(uris) = text.lines().find_map(|line| line.strip_prefix("URIs:"))
        && let Some(uri) = uris.split_whitespace().next()
    {
        return Ok(uri.to_owned());
    }
    let text = fs::read_to_string(ONE_LINE_SOURCES).unwrap_or_default();
    let deb_lines = text.lines().filter(|line| line.trim_start().starts_with("deb "));
    let mut uris = deb_lines.filter_map(|line| line.split_whitespace().find(|word| word.contains("://")));
    match uris.next() {
        Some(uri) => Ok(uri.to_owned()),
        None => bail!(
            "neither {DEB822_SOURCES} nor {ONE_LINE_SOURCES} names a Debian archive; this needs Debian 12"
        ),
    }
}

/// The file in `dir` whose name starts with `prefix`.
fn find_by_prefix(dir: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
            return Ok(path);
        }
    }
    bail!("no {prefix}* in {}", dir.display())
}
