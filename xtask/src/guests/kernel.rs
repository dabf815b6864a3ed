// SPDX-License-Identifier: MIT OR Apache-2.0
//! Taking a kernel out of its bzImage, and building modules against Debian's headers without installing them.

use crate::command;
use crate::progress::Step;
use crate::workspace;
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
    let payload = image.get(start..start + field(PAYLOAD_LENGTH)).context("the bzImage is cut off")?;
    let Some((_, words)) = COMPRESSORS.iter().find(|(magic, _)| payload.starts_with(magic)) else {
        bail!("unknown compressor of {}: its stream starts with {:02x?}", vmlinuz.display(), &payload[..6]);
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
    ensure!(found == u64::from(size), "the unpacked kernel has {found} bytes, its bzImage says {size}");
    Ok(())
}

/// Builds every C file of Debian's `sources/` and of `own` (file, text) as a module, with the headers of `own` beside
/// them, and returns the modules. `files` is what [`super::debian`] makes, and says which processor they are for; the
/// names of compiler and binutils start with `cross_compile`. `work` is a folder that is created for it.
///
/// # Errors
/// When the build fails.
pub fn build_modules(
    files: &Path,
    cross_compile: &str,
    own: &[(PathBuf, Vec<u8>)],
    work: &Path,
    step: &Step,
) -> Result<Vec<PathBuf>> {
    let stripped = work.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("creating {}", stripped.display()))?;
    let mut modules = Vec::new();
    let mut sources = Vec::new();
    for source in workspace::list(&files.join("sources"))? {
        let text = fs::read(&source)?;
        sources.push((source, text));
    }
    let mut names = Vec::new();
    for (path, text) in sources.iter().chain(own) {
        let name = path.file_name().with_context(|| format!("no file name: {}", path.display()))?;
        fs::write(work.join(name), text)?;
        if path.extension().is_some_and(|extension| extension == "c") {
            names.push(Path::new(name).with_extension("o").to_string_lossy().into_owned());
        }
    }
    fs::write(work.join("Makefile"), format!("obj-m := {}\n", names.join(" ")))?;
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(files.join("kbuild/flavour"))
        .arg(format!("M={}", work.display()))
        .arg(format!("CROSS_COMPILE={cross_compile}"))
        .arg("modules");
    // Flags of an outer make (`make test`) are not meant for the kernel's.
    for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"] {
        make.env_remove(variable);
    }
    command::run(&mut make, step).context("building the guests' modules")?;
    for name in &names {
        let name = Path::new(name).with_extension("ko");
        let module = stripped.join(&name);
        let mut strip = Command::new(format!("{cross_compile}strip"));
        command::run(strip.arg("--strip-debug").arg("-o").arg(&module).arg(work.join(&name)), step)?;
        modules.push(module);
    }
    Ok(modules)
}

/// Takes files of a kernel's source out of its tarball and puts them side by side into `dir`.
///
/// # Errors
/// When the tarball has no such file.
pub fn extract(tarball: &Path, files: &[PathBuf], dir: &Path, step: &Step) -> Result<()> {
    let name = tarball.file_name().context("a tarball without a name")?.to_string_lossy();
    let top = name.split(".tar").next().unwrap_or_default();
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(tarball).arg("-C").arg(dir).arg("--transform=s,.*/,,");
    command::run(tar.args(files.iter().map(|file| Path::new(top).join(file))), step)
}
