// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for a completion.
//!
//! By interrupt a UIO driver is needed that gives MSI-X vectors to user space. Linux's own cannot: uio_pci_generic
//! knows INTx only, which a DSA does not have, and VFIO wants an IOMMU in the guest (Debian's kernels leave its
//! no-IOMMU mode out). `tests/guests/linux/modules/uio_msix.c` is such a driver.
//!
//! Source: Linux, `Documentation/driver-api/uio-howto.rst`.

use crate::function::Function;
use crate::memory::Memory;
use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cell::Cell;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// The driver for waiting by interrupt.
const DRIVER: &str = "uio_msix";
/// What an operation may take at most.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// How to wait.
pub enum Wait {
    /// Looking at the record.
    Polling,
    /// Sleeping until the vector is raised.
    Interrupt(Interrupts),
}

/// The queue's vector, through UIO.
pub struct Interrupts {
    file: File,
    /// The count at the last read.
    last: Cell<u32>,
    seen: Cell<u64>,
}

impl Wait {
    /// Gives the function to the UIO driver, which must be loaded, and opens its vector.
    pub fn interrupt(function: &Function) -> Result<Self> {
        if function.driver().is_none() {
            ensure!(
                Path::new("/sys/bus/pci/drivers").join(DRIVER).exists(),
                "no driver {DRIVER}; load it first: insmod /lib/modules/{DRIVER}.ko"
            );
            put(&function.path.join("driver_override"), DRIVER)?;
            put(Path::new("/sys/bus/pci/drivers_probe"), &function.address)?;
        }
        let uio = function.path.join("uio");
        let entry = fs::read_dir(&uio)
            .with_context(|| format!("{DRIVER} did not take {}; see dmesg", function.address))?
            .next()
            .context("UIO shows no device")??;
        let path = Path::new("/dev").join(entry.file_name());
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self::Interrupt(Interrupts { file, last: Cell::new(0), seen: Cell::new(0) }))
    }

    /// In words.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Polling => "waiting by polling",
            Self::Interrupt(_) => "waiting by interrupt",
        }
    }

    /// Whether the device is to send interrupts.
    pub fn by_interrupt(&self) -> bool {
        matches!(self, Self::Interrupt(_))
    }

    /// Interrupts seen so far.
    pub fn interrupts(&self) -> u64 {
        match self {
            Self::Polling => 0,
            Self::Interrupt(interrupts) => interrupts.seen.get(),
        }
    }

    /// Returns once the completion record at `record` has a status.
    pub fn complete(&self, memory: &Memory, record: usize) -> Result<()> {
        self.complete_or(memory, record, || None::<()>).map(drop)
    }

    /// The same, or once there is something else instead of a status. By interrupt nobody looks for that.
    pub fn complete_or<T>(
        &self,
        memory: &Memory,
        record: usize,
        mut instead: impl FnMut() -> Option<T>,
    ) -> Result<Option<T>> {
        let start = Instant::now();
        if let Self::Interrupt(interrupts) = self {
            interrupts.wait()?;
            // The record is written before the interrupt is sent.
            ensure!(memory.status(record) != 0, "an interrupt came without a completion record");
            return Ok(None);
        }
        while memory.status(record) == 0 {
            if let Some(found) = instead() {
                return Ok(Some(found));
            }
            if start.elapsed() > DEADLINE {
                bail!(
                    "no completion record after {} s; `dmesg` and the hypervisor's log may say why",
                    DEADLINE.as_secs()
                );
            }
            std::hint::spin_loop();
        }
        Ok(None)
    }
}

impl Wait {
    /// Returns where something may have completed by now: at once by polling, after an interrupt else. `oldest`: how long
    /// the operation waits that was submitted first.
    ///
    /// # Errors
    /// When nothing completes any more.
    pub fn any(&self, oldest: Duration) -> Result<()> {
        ensure!(oldest < DEADLINE, "no completion record after {} s", DEADLINE.as_secs());
        match self {
            Self::Polling => std::thread::yield_now(),
            Self::Interrupt(interrupts) => interrupts.wait()?,
        }
        Ok(())
    }
}

impl Interrupts {
    /// Waits for at least one more than were seen.
    fn wait(&self) -> Result<()> {
        let deadline = Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        if poll(&mut fds, Some(&deadline))? == 0 {
            bail!("no interrupt after {} s", DEADLINE.as_secs());
        }
        let mut count = [0; 4];
        (&self.file).read_exact(&mut count)?;
        let count = u32::from_ne_bytes(count);
        let new = count.wrapping_sub(self.last.replace(count));
        self.seen.set(self.seen.get() + u64::from(new));
        Ok(())
    }
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {text} to {}", path.display()))
}
