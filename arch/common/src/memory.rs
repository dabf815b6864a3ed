// SPDX-License-Identifier: MIT OR Apache-2.0
//! Access to physical memory: guest RAM through its checked view, frames for tables.
//!
//! **Principle.** The hypervisor's own page tables map RAM at its physical address. Guest RAM is touched
//! through raw pointers only, never through references, because the guest writes to it at the same time.

use alloc::sync::Arc;

use pasidon_kernel::base::addr::{GuestPhys, HostPhys};
use pasidon_kernel::memory::ram::GuestRam;
use pasidon_kernel::memory::{BadGuestAddress, GuestMemory};

/// The RAM of one VM, as loaders, device models and the emulator see it.
#[derive(Debug)]
pub struct RamView(Arc<GuestRam>);

impl RamView {
    /// A view of `ram`, whose host memory is mapped at its physical address and belongs to that VM alone.
    pub fn new(ram: &Arc<GuestRam>) -> Self {
        Self(Arc::clone(ram))
    }

    /// The RAM itself.
    pub fn ram(&self) -> &GuestRam {
        &self.0
    }

    /// Where `len` bytes from `address` are, if they lie in one piece.
    #[inline]
    fn whole(&self, address: GuestPhys, len: u64) -> Option<*mut u8> {
        let (host, run) = self.0.translate(address)?;
        (len <= run).then_some(host.0 as *mut u8)
    }

    /// Calls `piece` with each contiguous piece of `len` bytes from `address`: host pointer, offset and
    /// length. Calls nothing unless all of it is RAM.
    fn pieces(
        &self,
        address: GuestPhys,
        len: usize,
        mut piece: impl FnMut(*mut u8, usize, usize),
    ) -> Result<(), BadGuestAddress> {
        if let Some(host) = self.whole(address, len as u64) {
            piece(host, 0, len);
            return Ok(());
        }
        let bad = BadGuestAddress { address, len: len as u64 };
        let contiguous = |done: usize| {
            let at = address.checked_add(done as u64)?;
            let (host, run) = self.0.translate(at)?;
            Some((host, usize::try_from(run).unwrap_or(usize::MAX).min(len - done)))
        };
        // All or nothing: look at everything before the first byte is touched.
        for act in [false, true] {
            let mut done = 0;
            while done < len {
                let (host, run) = contiguous(done).ok_or(bad)?;
                if act {
                    piece(host.0 as *mut u8, done, run);
                }
                done += run;
            }
        }
        Ok(())
    }
}

impl GuestMemory for RamView {
    #[inline]
    fn read(&self, address: GuestPhys, buffer: &mut [u8]) -> Result<(), BadGuestAddress> {
        let to = buffer.as_mut_ptr();
        if let Some(host) = self.whole(address, buffer.len() as u64) {
            // SAFETY: `whole` gives host memory of this VM's RAM, mapped, as long as the buffer, which is the hypervisor's.
            unsafe {
                match buffer.len() {
                    // What the emulator reads, without a call: code, and a descriptor.
                    16 => to.cast::<[u8; 16]>().write_unaligned(host.cast::<[u8; 16]>().read_unaligned()),
                    64 => to.cast::<[u8; 64]>().write_unaligned(host.cast::<[u8; 64]>().read_unaligned()),
                    len => core::ptr::copy_nonoverlapping(host.cast_const(), to, len),
                }
            }
            return Ok(());
        }
        self.pieces(address, buffer.len(), |host, offset, len| {
            // SAFETY: `pieces` gives host memory of this VM's RAM, mapped, and `offset + len` lies within the
            // buffer. The two do not overlap: the buffer is the hypervisor's.
            unsafe { core::ptr::copy_nonoverlapping(host.cast_const(), to.add(offset), len) }
        })
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), BadGuestAddress> {
        self.pieces(address, bytes.len(), |host, offset, len| {
            // SAFETY: as in `read`, the other way round.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr().add(offset), host, len) }
        })
    }

    #[inline]
    fn read_u64(&self, address: GuestPhys) -> Option<u64> {
        if !address.is_aligned(size_of::<u64>() as u64) {
            return None;
        }
        // Pieces are whole pages, so what is aligned lies in one.
        let host = self.whole(address, size_of::<u64>() as u64)?.cast::<u64>();
        // SAFETY: 8 bytes of this VM's RAM, mapped, and aligned, since pieces begin at pages on both sides. The guest
        // may write to it meanwhile.
        Some(u64::from_le(unsafe { host.read_volatile() }))
    }

    fn write_u64(&self, address: GuestPhys, value: u64) -> bool {
        let host = self.whole(address, size_of::<u64>() as u64).filter(|_| address.is_aligned(8));
        let Some(host) = host else { return false };
        // SAFETY: as in `read_u64`.
        unsafe { host.cast::<u64>().write_volatile(value.to_le()) };
        true
    }

    #[inline]
    fn is_ram(&self, address: GuestPhys, len: usize) -> bool {
        let (mut address, mut left) = (address, len as u64);
        while left > 0 {
            let Some((_, run)) = self.0.translate(address) else { return false };
            let Some(next) = address.checked_add(run) else { return left <= run };
            (address, left) = (next, left.saturating_sub(run));
        }
        true
    }

    fn ram_size(&self) -> u64 {
        self.0.bytes()
    }
}

/// Fills host memory with zeroes.
///
/// # Safety
/// `start .. start + len` must be mapped RAM that nobody else uses.
pub unsafe fn zero(start: HostPhys, len: u64) {
    // SAFETY: by the contract of this function.
    unsafe { core::ptr::write_bytes(start.0 as *mut u8, 0, len as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_kernel::base::addr::LARGE_PAGE_SIZE;
    use pasidon_kernel::base::id::VmId;
    use pasidon_kernel::memory::frames::{Frames, GuestGone};
    use pasidon_kernel::memory::ram::RamRange;

    #[test]
    fn reads_and_writes_reach_ram_and_nothing_else() {
        let len = 4 * LARGE_PAGE_SIZE;
        let backing = vec![0u8; (len + LARGE_PAGE_SIZE) as usize].leak();
        let start = (backing.as_ptr() as u64).next_multiple_of(LARGE_PAGE_SIZE);
        let frames = Frames::new([(HostPhys(start), len)]);
        let taken = frames.allocate_guest(len).unwrap().scrub(&mut |start, len| {
            // SAFETY: the frames lie in `backing`.
            unsafe { zero(start, len) }
        });
        let ranges = [(0, 2), (0x4000_0000, 2)]
            .map(|(start, pages)| RamRange { start: GuestPhys(start), len: pages * LARGE_PAGE_SIZE });
        let ram = Arc::new(GuestRam::new(VmId(0), taken, &ranges).unwrap());
        let view = RamView::new(&ram);
        let end = 2 * LARGE_PAGE_SIZE;
        view.write(GuestPhys(end - 3), &[1, 2, 3]).unwrap();
        let mut read = [0; 3];
        view.read(GuestPhys(end - 3), &mut read).unwrap();
        assert_eq!(read, [1, 2, 3]);
        assert!(view.write(GuestPhys(end - 3), &[9; 4]).is_err());
        for len in [8, 16, 64, 65] {
            let mut read = [7; 66];
            view.read(GuestPhys(end - len), &mut read[..len as usize]).unwrap();
            assert_eq!(read[len as usize - 4..=len as usize], [0, 1, 2, 3, 7]);
            assert!(view.read(GuestPhys(end - len + 1), &mut read[..len as usize]).is_err());
        }
        view.read(GuestPhys(end - 3), &mut read).unwrap();
        assert_eq!(read, [1, 2, 3], "a refused write changes nothing");
        assert!(view.read(GuestPhys(u64::MAX), &mut read).is_err());
        assert!(view.write_u64(GuestPhys(end - 8), 0x0807_0605_0403_0201));
        assert_eq!(view.read_u64(GuestPhys(end - 8)), Some(0x0807_0605_0403_0201));
        for bad in [end - 4, end, 0x1004, u64::MAX - 7] {
            assert!(!view.write_u64(GuestPhys(bad), 1), "{bad:#x}");
        }
        view.write(GuestPhys(end - 3), &[1, 2, 3]).unwrap();
        view.write(GuestPhys(0x4000_0000), &[7]).unwrap();
        drop(view);
        let unscrubbed = ram_frames(ram).end(GuestGone::confirmed_by_arch());
        frames.give_back(unscrubbed.scrub(&mut |_, _| {}));
    }

    fn ram_frames(ram: Arc<GuestRam>) -> pasidon_kernel::memory::frames::GuestFrames {
        GuestRam::into_frames(ram).unwrap()
    }
}
