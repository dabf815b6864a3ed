// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guests: Debian's kernel and user space, taken apart on the host without installing anything.
//!
//! Principle: what runs in a guest is what Debian ships. The `vmlinux` inside the `bzImage` is unpacked here once,
//! since doing that under TCG takes longer than the rest of the boot; both forms are kept.

mod initrd;
mod kernel;

use crate::apt::{self, Suite};
use crate::cache::{Cache, Key};
use crate::progress::Step;
use crate::workspace;

use anyhow::{Context, Result};
use kernel::Kbuild;
use pasidon_harness::Linux;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Part of every key here: changes when this folder makes something different from the same inputs.
const RECIPE_VERSION: &str = "1";

/// `tests/guests/linux/guest.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    suite: String,
    kernel: String,
    headers: String,
    kbuild: String,
    source: String,
    busybox: String,
    modules: Vec<PathBuf>,
    built_from_source: Vec<PathBuf>,
    built_from_here: Vec<PathBuf>,
    host_packages: Vec<String>,
    scripts: BTreeMap<String, PathBuf>,
}

/// The Linux guest for x86_64, made when it is not in the cache.
///
/// # Errors
/// When the recipe is wrong, a package cannot be had, or a module does not build.
pub fn linux() -> Result<Linux> {
    let dir = workspace::root().join("tests/guests/linux");
    let recipe_path = dir.join("guest.toml");
    let text =
        fs::read_to_string(&recipe_path).with_context(|| format!("reading {}", recipe_path.display()))?;
    let recipe: Recipe = toml::from_str(&text).with_context(|| format!("in {}", recipe_path.display()))?;
    let cache = Cache::open()?;
    let own: Vec<PathBuf> = recipe.built_from_here.iter().map(|path| dir.join(path)).collect();
    let mut key = Key::new().part(RECIPE_VERSION).part(&text);
    for path in &own {
        key = key.part(fs::read(path).with_context(|| format!("reading {}", path.display()))?);
    }
    let files = cache.entry("guest-linux-x86_64", &key, |entry| recipe.fetch(&own, entry))?;
    let scripts = recipe.scripts.iter().map(|(name, target)| {
        let path = dir.join(name);
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok((target.as_path(), text))
    });
    let scripts: Vec<(&Path, Vec<u8>)> = scripts.collect::<Result<_>>()?;
    let key = scripts.iter().fold(key, |key, (target, text)| {
        key.part(target.as_os_str().as_encoded_bytes()).part(text)
    });
    let initrd = cache.entry("guest-linux-initrd", &key, |entry| {
        let archive = initrd::build(&files, &scripts)?;
        fs::write(entry.join("initrd.img"), archive).context("writing the initrd")
    })?;
    Ok(Linux {
        vmlinux: files.join("vmlinux"),
        vmlinuz: files.join("vmlinuz"),
        initrd: initrd.join("initrd.img"),
    })
}

impl Recipe {
    /// Fills `entry` with `vmlinuz`, `vmlinux`, `busybox` and `modules/`; `own` are module sources of this checkout.
    fn fetch(&self, own: &[PathBuf], entry: &Path) -> Result<()> {
        apt::need(&self.host_packages)?;
        let work = entry.join("work");
        let root = work.join("root");
        fs::create_dir_all(&root)?;
        let step = Step::start("fetching Debian's kernel for the guests (220 MB)");
        let suite = Suite::open(&self.suite, &work, &step)?;
        let image = suite.dependency(&self.kernel, "linux-image-")?;
        let headers = suite.dependency(&self.headers, "linux-headers-")?;
        let common = suite.dependency(&headers, "linux-headers-")?;
        let release = image.trim_start_matches("linux-image-").to_owned();
        let packages = [&image, &headers, &common, &self.kbuild, &self.busybox];
        for package in packages {
            let deb = suite.download(package, None, &work, &step)?;
            apt::unpack(&deb, ".", None, &root, &step)?;
        }
        let source = suite.download(&self.source, None, &work, &step)?;
        apt::unpack(&source, "usr/src", None, &root, &step)?;
        step.done();

        let step = Step::start(format!("unpacking Linux {release} and building modules"));
        let vmlinuz = entry.join("vmlinuz");
        fs::rename(root.join(format!("boot/vmlinuz-{release}")), &vmlinuz).context("taking the kernel")?;
        kernel::unpack_vmlinux(&vmlinuz, &entry.join("vmlinux"))?;
        let modules = entry.join("modules");
        fs::create_dir(&modules)?;
        for module in &self.modules {
            let name = module.file_name().context("a module path without a file name")?;
            let path = root.join("lib/modules").join(&release).join(module);
            fs::rename(&path, modules.join(name)).with_context(|| format!("taking {}", path.display()))?;
        }
        let tarball = root.join("usr/src").join(format!("{}.tar.xz", self.source));
        let kbuild = Kbuild {
            root: &root,
            flavour: &headers,
            common: &common,
        };
        let sources = kbuild.prepare()?;
        kernel::extract(&tarball, &self.built_from_source, &sources, &step)?;
        for source in own {
            let name = source
                .file_name()
                .context("a module source without a file name")?;
            fs::copy(source, sources.join(name)).with_context(|| format!("copying {}", source.display()))?;
        }
        kbuild.build(&sources, &modules, &step)?;
        fs::rename(root.join("bin/busybox"), entry.join("busybox")).context("taking busybox")?;
        fs::remove_dir_all(&work).context("deleting what is no longer needed")?;
        step.done();
        Ok(())
    }
}
