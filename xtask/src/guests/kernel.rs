// SPDX-License-Identifier: MIT OR Apache-2.0
//! Taking a kernel out of its bzImage, and building one module against Debian's headers without installing them.

use crate::command;
use crate::progress::Step;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::Path;
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

/// Builds Debian's unmodified `dmatest.c` against the headers that were unpacked below `root`.
///
/// `headers` are the package names of the flavour's and of the common headers, `tarball` is the kernel's source.
///
/// # Errors
/// When the build fails.
pub fn build_dmatest(
    root: &Path,
    headers: [&str; 2],
    tarball: &Path,
    module: &Path,
    step: &Step,
) -> Result<()> {
    let [flavour, common] = headers.map(|name| root.join("usr/src").join(name));
    // The one absolute path in the packages: where the flavour's Makefile finds the common one.
    fs::write(
        flavour.join("Makefile"),
        format!("include {}/Makefile\n", common.display()),
    )?;
    let dir = root.join("dmatest");
    fs::create_dir(&dir)?;
    let top = tarball
        .file_stem()
        .and_then(|name| Path::new(name).file_stem())
        .context("a tarball name")?;
    let member = Path::new(top).join("drivers/dma/dmatest.c");
    let mut tar = Command::new("tar");
    tar.arg("-xf")
        .arg(tarball)
        .arg("-C")
        .arg(&dir)
        .arg("--strip-components=3")
        .arg(member);
    command::run(&mut tar, step)?;
    fs::write(dir.join("Makefile"), "obj-m := dmatest.o\n")?;
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(&flavour)
        .arg(format!("M={}", dir.display()))
        .arg("modules");
    // Flags of an outer make (`make test`) are not meant for the kernel's.
    for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"] {
        make.env_remove(variable);
    }
    command::run(&mut make, step).context("building dmatest.ko")?;
    let mut strip = Command::new("strip");
    command::run(
        strip
            .arg("--strip-debug")
            .arg("-o")
            .arg(module)
            .arg(dir.join("dmatest.ko")),
        step,
    )
}
