// SPDX-License-Identifier: MIT OR Apache-2.0
//! A queue of Linux's own driver: shared virtual addressing, as any program on a machine with idxd may have it.
//!
//! Opening `/dev/dsa/wqD.N` binds the queue to the page tables of the process that opens it: the queue, which is dedicated, is
//! given a PASID, and that leads the IOMMU to these tables. So a descriptor has no PASID of its own, its addresses are
//! pointers, and no child may use the mapping. Linux has the registers, and gives users no interrupts.
//!
//! The queue is the program's until the mapping and the file are gone, here at its end; then Linux waits for what is under way.
//!
//! Source: Linux, `drivers/dma/idxd/cdev.c` and `Documentation/ABI/stable/sysfs-driver-dma-idxd`.

use crate::device::Queue;
use crate::portal::Portal;
use anyhow::{Context, Result, bail, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const NODES: &str = "/dev/dsa";
const QUEUES: &str = "/sys/bus/dsa/devices";
/// What Linux maps of a queue: one page.
const PORTAL: usize = 4096;

/// Opens the queue with that node, or the first one, and returns its node.
///
/// # Errors
/// When there is none, it is of another kind, or Linux does not give it.
pub fn open(node: Option<&str>) -> Result<(String, Queue)> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "--sva needs a queue of Linux's driver idxd, which no kernel for this processor has; leave --sva out"
    );
    let node = match node {
        Some(node) => PathBuf::from(node),
        None => first(Path::new(NODES))?,
    };
    let name = node.file_name().context("--device names no queue, such as /dev/dsa/wq0.0")?;
    let attributes = Path::new(QUEUES).join(name);
    let read = |attribute: &str| -> Result<String> {
        let path = attributes.join(attribute);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.trim().to_owned())
    };
    for (attribute, wanted) in [("type", "user"), ("mode", "dedicated"), ("state", "enabled")] {
        let found = read(attribute)?;
        ensure!(
            found == wanted,
            "{} has {attribute} {found}, not {wanted}; configure it with accel-config",
            node.display()
        );
    }
    let page = map(&node)?;
    let queue = Queue {
        // SAFETY: the portal of a queue that Linux keeps for this process as long as it is mapped, which it stays, and uncached.
        portal: unsafe { Portal::new(page) },
        entries: read("size")?.parse().context("the queue's size")?,
        largest_transfer: read("max_transfer_size")?.parse().context("the queue's max_transfer_size")?,
        interrupt: None,
    };
    Ok((node.display().to_string(), queue))
}

/// Opens a node and maps its portal.
fn map(node: &Path) -> Result<*mut u8> {
    let file = match OpenOptions::new().read(true).write(true).open(node) {
        Ok(file) => file,
        Err(error) => {
            let help = match error.kind() {
                ErrorKind::NotFound => "no such queue; `accel-config list` shows which there are",
                ErrorKind::PermissionDenied => "run as root",
                ErrorKind::ResourceBusy => {
                    "another program has it: a dedicated queue is one program's at a time"
                }
                _ => "Linux did not bind it to this program's page tables; dmesg says why",
            };
            bail!("opening {}: {error}; {help}", node.display());
        }
    };
    // SAFETY: a new mapping where the kernel chooses; it refuses what is no portal.
    let page = unsafe { mmap(core::ptr::null_mut(), PORTAL, ProtFlags::WRITE, MapFlags::SHARED, &file, 0) };
    let page = page.with_context(|| {
        format!(
            "mapping the portal of {}; for 8086:0b25 Linux demands CAP_SYS_RAWIO: run as root",
            node.display()
        )
    })?;
    // The mapping keeps the queue when the file is closed.
    Ok(page.cast())
}

/// The first node of a queue in a folder.
fn first(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let queues = entries.map(|entry| entry.path()).filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("wq"))
    });
    queues.min().with_context(|| {
        format!(
            "no queue in {}; make one of type user and mode dedicated with accel-config",
            folder.display()
        )
    })
}
