// SPDX-License-Identifier: MIT OR Apache-2.0
//! Taking a kernel out of its bzImage, and building modules against Debian's headers without installing them.

use crate::command;
use crate::progress::Step;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

// Fields of the setup header (Linux x86 boot protocol 2.08, "The Real-Mode Kernel Header").
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// Compressors that Debian's kernels have used: the first bytes of a stream, and the program that undoes it.
const COMPRESSORS: [(&[u8], &[&str]); 3] = [
    (b"\xfd7zXZ\0", &["xz", "-dc", "--single-stream"]),
    (b"\x28\xb5\x2f\xfd", &["zstd", "-dc"]),
    (b"\x1f\x8b", &["gzip", "-dc"]),
];

/// Writes the ELF kernel inside the bzImage `vmlinuz` to `vmlinux`.
///
/// # Errors
/// When `vmlinuz` is no bzImage of protocol 2.08 or later, or its compressor is unknown.
pub fn unpack_vmlinux(vmlinuz: &Path, vmlinux: &Path) -> Result<()> {
    let image = fs::read(vmlinuz).with_context(|| format!("reading {}", vmlinuz.display()))?;
    ensure!(
        image.get(HEADER_MAGIC..HEADER_MAGIC + 4) == Some(b"HdrS"),
        "{} is no bzImage",
        vmlinuz.display()
    );
    let field = |offset: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| image[offset + byte])) as usize;
    // Zero means four setup sectors; the boot sector comes on top.
    let setup_sectors = match image[SETUP_SECTS] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (1 + setup_sectors) * SECTOR + field(PAYLOAD_OFFSET);
    let payload = image
        .get(start..start + field(PAYLOAD_LENGTH))
        .context("the bzImage is cut off")?;
    let Some((_, words)) = COMPRESSORS.iter().find(|(magic, _)| payload.starts_with(magic)) else {
        bail!(
            "unknown compressor of {}: its stream starts with {:02x?}",
            vmlinuz.display(),
            &payload[..6]
        );
    };
    // Behind the stream the payload ends with the unpacked size, as 32 bits.
    let (stream, size) = payload.split_at(payload.len() - 4);
    let size = u32::from_le_bytes(size.try_into().expect("four bytes"));
    let packed = vmlinux.with_extension("packed");
    fs::write(&packed, stream)?;
    let mut unpack = Command::new(words[0]);
    unpack
        .args(&words[1..])
        .stdin(File::open(&packed)?)
        .stdout(File::create(vmlinux)?)
        .stderr(Stdio::inherit());
    command::run_visible(&mut unpack)?;
    fs::remove_file(&packed)?;
    let found = fs::metadata(vmlinux)?.len();
    ensure!(
        found == u64::from(size),
        "the unpacked kernel has {found} bytes, its bzImage says {size}"
    );
    Ok(())
}

/// Where modules are built: Debian's headers, unpacked below a folder instead of installed.
pub struct Kbuild<'p> {
    /// The folder that the header packages were unpacked to; the work is done there too.
    pub root: &'p Path,
    /// Package name of the flavour's headers.
    pub flavour: &'p str,
    /// Package name of the headers that all flavours share.
    pub common: &'p str,
}

impl Kbuild<'_> {
    /// The folder in which module sources are collected, empty at first.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn prepare(&self) -> Result<PathBuf> {
        let dir = self.root.join("build");
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }

    /// Builds every C file in `dir` as a module of its own, and puts the modules into `output`.
    ///
    /// # Errors
    /// When the build fails.
    pub fn build(&self, dir: &Path, output: &Path, step: &Step) -> Result<()> {
        let sources = self.root.join("usr/src");
        let flavour = sources.join(self.flavour);
        // The one absolute path in the packages: where the flavour's Makefile finds the common one.
        fs::write(
            flavour.join("Makefile"),
            format!("include {}/Makefile\n", sources.join(self.common).display()),
        )?;
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path
                .file_stem()
                .with_context(|| format!("no file name: {}", path.display()))?;
            names.push(name.to_string_lossy().into_owned());
        }
        let objects: Vec<String> = names.iter().map(|name| format!("{name}.o")).collect();
        fs::write(dir.join("Makefile"), format!("obj-m := {}\n", objects.join(" ")))?;
        let mut make = Command::new("make");
        make.arg("-C")
            .arg(&flavour)
            .arg(format!("M={}", dir.display()))
            .arg("modules");
        // Flags of an outer make (`make test`) are not meant for the kernel's.
        for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"] {
            make.env_remove(variable);
        }
        command::run(&mut make, step).context("building modules")?;
        for name in names.iter().map(|name| format!("{name}.ko")) {
            let mut strip = Command::new("strip");
            command::run(
                strip
                    .arg("--strip-debug")
                    .arg("-o")
                    .arg(output.join(&name))
                    .arg(dir.join(&name)),
                step,
            )?;
        }
        Ok(())
    }
}

/// Takes files of a kernel's source out of its tarball and puts them side by side into `dir`.
///
/// # Errors
/// When the tarball has no such file.
pub fn extract(tarball: &Path, files: &[PathBuf], dir: &Path, step: &Step) -> Result<()> {
    let name = tarball
        .file_name()
        .context("a tarball without a name")?
        .to_string_lossy();
    let top = name.split(".tar").next().unwrap_or_default();
    let mut tar = Command::new("tar");
    tar.arg("-xf")
        .arg(tarball)
        .arg("-C")
        .arg(dir)
        .arg("--transform=s,.*/,,");
    command::run(tar.args(files.iter().map(|file| Path::new(top).join(file))), step)
}
