// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must hold on every make of IOMMU: who reaches what, and what is left of it afterwards.
//!
//! A new driver implements [`Rig`] for its model, writes `isolation_tests!(Machine)` in its tests, and calls the other
//! functions here for each kind of unit that its make knows.

use pasidon_kernel::base::addr::{HostPhys, Iova, Requester};
use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::dma::fault::{DmaFault, Noted};
use pasidon_kernel::dma::iommu::{Iommu, TableId};
use pasidon_kernel::dma::pasid::Pasid;

use crate::testing::ModelMemory;

/// The device under test, 6a:01.0.
pub const DEVICE: Requester = Requester::new(0, 0x6a, 1, 0);
pub const PAGE: u64 = 4096;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// A fault by the code of its make.
pub type Code = u8;

/// A driver of one make, and the model of a unit that stands in front of every device.
pub trait Rig {
    /// What the unit says of a tag that nobody attached, near to one that is.
    const NOT_ATTACHED: Code;
    /// What it says of one that is far from all that are.
    const FAR_FROM_ATTACHED: Code;
    /// What it says of a write to what may only be read.
    const READ_ONLY: Code;

    /// A unit of the usual kind, taken over, with [`DEVICE`] claimed.
    fn new() -> Self;

    /// The driver.
    fn iommu(&self) -> &dyn Iommu;

    /// What the driver's structures lie in.
    fn memory(&self) -> &ModelMemory;

    /// DMA of a device, with a tag or without: the host address that it reaches.
    fn dma(&self, device: Requester, tag: Option<u32>, iova: u64, write: bool) -> Result<u64, Code>;

    /// The host addresses that the noise of [`DEVICE`] with that tag has reached since the last call.
    fn reached(&self, tag: u32) -> Vec<u64>;

    /// How often the noise of [`DEVICE`] with that tag has reached nothing since the last call.
    fn missed(&self, tag: u32) -> usize;

    /// Has [`DEVICE`] send with these tags all the time, by a unit that forgets their entries at any moment, or not.
    fn send(&self, tags: &[u32], forgetful: bool);

    /// Has the unit refuse the `nth` command from here on, counted from 0, whatever it is.
    fn refuse_nth(&self, nth: usize);

    /// Whether the driver holds that tag of [`DEVICE`] for taken: attached, or ended without confirmation.
    fn is_taken(&self, tag: u32) -> bool;

    /// How many commands the unit has carried out since the last call.
    fn take_executed(&self) -> usize;

    /// Lets the unit announce faults.
    fn announce(&self);

    /// How often it announced something.
    fn announced(&self) -> usize;

    /// A table that maps `len` bytes at IOVA 0 to `host`.
    fn table(&self, host: u64, len: u64) -> TableId {
        let table = self.iommu().create_table().unwrap();
        self.map(table, 0, host, len);
        table
    }

    fn map(&self, table: TableId, iova: u64, host: u64, len: u64) {
        self.iommu().map(table, Iova(iova), HostPhys(host), len, true).unwrap();
    }

    fn unmap(&self, table: TableId, iova: u64, len: u64) {
        self.iommu().unmap(table, Iova(iova), len).unwrap();
    }

    fn attach(&self, pasid: u32, table: TableId) {
        self.iommu().attach(DEVICE, tag(pasid), table).unwrap();
    }

    fn detach(&self, pasid: u32) {
        self.iommu().detach(DEVICE, tag(pasid)).unwrap();
    }

    fn read(&self, pasid: u32, iova: u64) -> Result<u64, Code> {
        self.dma(DEVICE, Some(pasid), iova, false)
    }

    fn write(&self, pasid: u32, iova: u64) -> Result<u64, Code> {
        self.dma(DEVICE, Some(pasid), iova, true)
    }
}

pub fn tag(pasid: u32) -> Pasid {
    Pasid::new(pasid).unwrap()
}

/// What one look at the faults told.
#[derive(PartialEq, Debug)]
pub struct Look {
    pub faults: Vec<DmaFault>,
    /// Numbers on the bus that are no PCI function's.
    pub strangers: Vec<u32>,
    /// Some were lost.
    pub lost: bool,
    pub left: Drained,
}

impl Look {
    /// Everything that was to be read is read, and nothing was lost.
    pub fn complete(self) -> Vec<DmaFault> {
        assert_eq!((self.left, self.lost), (Drained::Empty, false));
        assert!(self.strangers.is_empty());
        self.faults
    }
}

/// Looks at the faults once; `meanwhile` happens after each that is told.
pub fn look_while(iommu: &dyn Iommu, meanwhile: impl Fn()) -> Look {
    let (mut faults, mut strangers, mut lost) = (Vec::new(), Vec::new(), false);
    let left = iommu.drain_faults(&mut |noted| {
        match noted {
            Noted::Fault(fault) => faults.push(fault),
            Noted::Stranger(number) => strangers.push(number),
            Noted::Lost => lost = true,
        }
        meanwhile();
    });
    Look { faults, strangers, lost, left }
}

/// Looks at the faults once.
pub fn look(iommu: &dyn Iommu) -> Look {
    look_while(iommu, || ())
}

/// The tests that need nothing but a unit of the usual kind.
macro_rules! isolation_tests {
    ($rig:ty: $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                $crate::iommu::suite::$test(&<$rig as $crate::iommu::suite::Rig>::new());
            }
        )*
    };
    ($rig:ty) => {
        isolation_tests!($rig:
            an_attached_table_translates
            two_tags_on_one_address_reach_their_own_memory
            one_table_serves_several_tags_and_ends_with_each_alone
            a_tag_that_is_not_attached_is_blocked
            a_detached_tag_faults
            a_reused_tag_reaches_only_its_new_table
            a_replaced_table_is_the_old_or_the_new_one
            a_replacement_that_is_refused_changes_nothing
            a_replacement_that_fails_holds_both_tables
            two_devices_may_send_the_same_tag
            every_large_tag_can_be_attached
            a_read_only_mapping_takes_no_write
            after_a_storm_faults_are_still_announced
            after_an_overflow_faults_are_still_announced
        );
    };
}
pub(crate) use isolation_tests;

pub fn an_attached_table_translates<R: Rig>(rig: &R) {
    let table = rig.table(4 * GIB, 64 * MIB);
    rig.attach(5, table);
    assert_eq!(rig.read(5, 0x1234), Ok(4 * GIB + 0x1234));
    assert_eq!(rig.write(5, 64 * MIB - 1), Ok(4 * GIB + 64 * MIB - 1));
    assert!(rig.read(5, 64 * MIB).is_err());
    assert!(rig.read(5, 1 << 48).is_err());
    // Leaves of every size.
    let large = rig.table(8 * GIB, 2 * GIB + 2 * MIB + PAGE);
    rig.attach(6, large);
    for at in [0, GIB + 5, 2 * GIB + MIB, 2 * GIB + 2 * MIB + 7] {
        assert_eq!(rig.write(6, at), Ok(8 * GIB + at));
    }
}

pub fn two_tags_on_one_address_reach_their_own_memory<R: Rig>(rig: &R) {
    let alpha = rig.table(4 * GIB, 2 * MIB);
    let beta = rig.table(8 * GIB, 2 * MIB);
    rig.attach(1, alpha);
    rig.attach(2, beta);
    for _ in 0..2 {
        assert_eq!(rig.write(1, 0x1000), Ok(4 * GIB + 0x1000));
        assert_eq!(rig.write(2, 0x1000), Ok(8 * GIB + 0x1000));
    }
}

pub fn one_table_serves_several_tags_and_ends_with_each_alone<R: Rig>(rig: &R) {
    let table = rig.table(4 * GIB, 2 * MIB);
    rig.attach(1, table);
    rig.attach(2, table);
    rig.detach(1);
    assert_eq!(rig.write(1, 0), Err(R::NOT_ATTACHED));
    assert_eq!(rig.write(2, 0), Ok(4 * GIB));
    let refusal = rig.iommu().destroy_table(table).unwrap_err();
    assert!(refusal.why.contains("attached 1 times"));
    rig.detach(2);
    rig.iommu().destroy_table(table).unwrap();
}

pub fn a_tag_that_is_not_attached_is_blocked<R: Rig>(rig: &R) {
    let table = rig.table(4 * GIB, 2 * MIB);
    rig.attach(1, table);
    assert_eq!(rig.write(2, 0), Err(R::NOT_ATTACHED));
    assert_eq!(rig.write(0xf_ffff, 0), Err(R::FAR_FROM_ATTACHED));
    // Tag 0 stands for untagged DMA.
    assert!(rig.iommu().attach(DEVICE, tag(0), table).is_err());
    assert!(rig.iommu().detach(DEVICE, tag(0)).is_err());
    for device in [Requester::new(0, 0x6a, 1, 1), Requester::new(0, 0, 4, 0)] {
        assert!(rig.dma(device, Some(1), 0, true).is_err(), "{device} is not claimed");
        assert!(rig.iommu().attach(device, tag(1), table).is_err());
    }
}

pub fn a_detached_tag_faults<R: Rig>(rig: &R) {
    let table = rig.table(4 * GIB, 2 * MIB);
    rig.attach(7, table);
    assert!(rig.write(7, 0).is_ok());
    assert!(rig.is_taken(7));
    rig.detach(7);
    assert_eq!(rig.write(7, 0), Err(R::NOT_ATTACHED));
    assert!(!rig.is_taken(7));
    assert!(rig.iommu().detach(DEVICE, tag(7)).is_err());
}

/// The reuse test: fails where what the unit remembers of a tag is not invalidated.
pub fn a_reused_tag_reaches_only_its_new_table<R: Rig>(rig: &R) {
    let old = rig.table(4 * GIB, 2 * MIB);
    rig.attach(7, old);
    assert_eq!(rig.write(7, 0), Ok(4 * GIB));
    rig.detach(7);
    let new = rig.table(8 * GIB, 2 * MIB);
    rig.attach(7, new);
    assert_eq!(rig.write(7, 0), Ok(8 * GIB), "the old owner's memory");
    rig.iommu().destroy_table(old).unwrap();
}

/// A device that never stops sending meets the old table or the new one, and then the new one only. Whoever else is on the
/// old one stays there.
pub fn a_replaced_table_is_the_old_or_the_new_one<R: Rig>(rig: &R) {
    for forgetful in [false, true] {
        let tables = [4 * GIB, 8 * GIB].map(|host| (host, rig.table(host, 2 * MIB)));
        let [(old, first), (new, second)] = tables;
        for tag in [1, 2] {
            rig.attach(tag, first);
        }
        rig.send(&[1, 2], forgetful);
        for (from, to, table) in [(old, new, second), (new, old, first), (old, new, second)] {
            rig.write(1, 0).unwrap();
            let _before = (rig.reached(1), rig.reached(2), rig.missed(1), rig.missed(2));
            rig.iommu().replace(DEVICE, tag(1), table).unwrap();
            let reached = rig.reached(1);
            assert!(
                reached.contains(&to) && reached.iter().all(|at| [from, to].contains(at)),
                "{reached:x?}"
            );
            assert_eq!(rig.reached(2), [old], "the neighbour never noticed");
            assert_eq!((rig.missed(1), rig.missed(2)), (0, 0), "a moment with neither");
            assert_eq!(rig.write(1, 0), Ok(to));
            assert_eq!(rig.write(2, 0), Ok(old));
        }
        rig.send(&[], false);
        // Neither is freed before its time, and both in the end.
        assert!(rig.iommu().destroy_table(second).is_err());
        rig.detach(1);
        rig.iommu().destroy_table(second).unwrap();
        rig.detach(2);
        rig.iommu().destroy_table(first).unwrap();
    }
}

pub fn a_replacement_that_is_refused_changes_nothing<R: Rig>(rig: &R) {
    let table = rig.table(4 * GIB, 2 * MIB);
    rig.attach(1, table);
    let other = rig.table(8 * GIB, 2 * MIB);
    let refused = |requester, pasid, table| {
        let failed = rig.iommu().replace(requester, tag(pasid), table).unwrap_err();
        assert!(!failed.tag_kept, "{failed:?}");
    };
    refused(DEVICE, 1, table);
    refused(DEVICE, 2, other);
    refused(DEVICE, 1, TableId(99));
    refused(Requester::new(0, 0, 4, 0), 1, other);
    assert_eq!(rig.write(1, 0), Ok(4 * GIB));
    rig.detach(1);
    for table in [table, other] {
        rig.iommu().destroy_table(table).unwrap();
    }
}

/// Each command of a replacement is refused in turn: the tag may reach either table, so both are held until its end.
pub fn a_replacement_that_fails_holds_both_tables<R: Rig>(rig: &R) {
    for nth in 0.. {
        let (old, new) = (rig.table(4 * GIB, 2 * MIB), rig.table(8 * GIB, 2 * MIB));
        rig.attach(1, old);
        rig.attach(2, old);
        rig.write(1, 0).unwrap();
        rig.refuse_nth(nth);
        let replaced = rig.iommu().replace(DEVICE, tag(1), new);
        rig.refuse_nth(usize::MAX);
        let ended = replaced.is_ok();
        if let Err(failed) = replaced {
            assert!(failed.tag_kept, "command {nth}: {failed:?}");
            for table in [old, new] {
                assert!(rig.iommu().destroy_table(table).is_err(), "command {nth}");
                assert!(rig.iommu().replace(DEVICE, tag(1), table).is_err(), "command {nth}");
            }
        }
        rig.detach(1);
        assert_eq!(rig.write(1, 0), Err(R::NOT_ATTACHED));
        rig.iommu().destroy_table(new).unwrap();
        assert_eq!(rig.write(2, 0), Ok(4 * GIB));
        // The way is free again.
        let next = rig.table(12 * GIB, 2 * MIB);
        rig.iommu().replace(DEVICE, tag(2), next).unwrap();
        assert_eq!(rig.write(2, 0), Ok(12 * GIB));
        rig.detach(2);
        for table in [old, next] {
            rig.iommu().destroy_table(table).unwrap();
        }
        if ended {
            assert!(nth > 1, "it took a command");
            break;
        }
    }
}

/// Also where both had it on the same table, and one of them gets another.
pub fn two_devices_may_send_the_same_tag<R: Rig>(rig: &R) {
    let other = Requester { rid: DEVICE.rid + 1, ..DEVICE };
    rig.iommu().claim(other).unwrap();
    let write = |device| rig.dma(device, Some(3), 0x1000, true);
    let (alpha, beta) = (rig.table(4 * GIB, 2 * MIB), rig.table(8 * GIB, 2 * MIB));
    rig.attach(3, alpha);
    assert!(write(other).is_err());
    rig.iommu().attach(other, tag(3), beta).unwrap();
    for _ in 0..2 {
        assert_eq!((write(DEVICE), write(other)), (Ok(4 * GIB + 0x1000), Ok(8 * GIB + 0x1000)));
    }
    rig.iommu().replace(other, tag(3), alpha).unwrap();
    assert_eq!((write(DEVICE), write(other)), (Ok(4 * GIB + 0x1000), Ok(4 * GIB + 0x1000)));
    rig.detach(3);
    assert_eq!((write(DEVICE), write(other)), (Err(R::NOT_ATTACHED), Ok(4 * GIB + 0x1000)));
    rig.attach(3, beta);
    assert_eq!((write(DEVICE), write(other)), (Ok(8 * GIB + 0x1000), Ok(4 * GIB + 0x1000)));
    rig.iommu().detach(other, tag(3)).unwrap();
    assert_eq!((write(DEVICE), write(other)), (Ok(8 * GIB + 0x1000), Err(R::NOT_ATTACHED)));
    rig.iommu().destroy_table(alpha).unwrap();
}

pub fn every_large_tag_can_be_attached<R: Rig>(rig: &R) {
    let table = rig.table(4 * GIB, 2 * MIB);
    let tags = [1, 63, 64, 8191, 8192, 0xf_ffff];
    for pasid in tags {
        rig.attach(pasid, table);
        assert_eq!(rig.write(pasid, 8), Ok(4 * GIB + 8));
    }
    for pasid in tags {
        rig.detach(pasid);
        assert_eq!(rig.write(pasid, 8), Err(R::NOT_ATTACHED));
    }
}

pub fn a_read_only_mapping_takes_no_write<R: Rig>(rig: &R) {
    let table = rig.iommu().create_table().unwrap();
    rig.iommu().map(table, Iova(0), HostPhys(4 * GIB), PAGE, false).unwrap();
    rig.attach(1, table);
    assert_eq!(rig.read(1, 0), Ok(4 * GIB));
    assert_eq!(rig.write(1, 0), Err(R::READ_ONLY));
}

/// A device that faults as fast as it is read does not hold the reader, who is told to come again, and when it stops,
/// others are heard.
pub fn after_a_storm_faults_are_still_announced<R: Rig>(rig: &R) {
    rig.announce();
    // Two, so that the reader never finds nothing at the end of a pass.
    rig.read(3, 0).unwrap_err();
    rig.read(3, 0).unwrap_err();
    assert_eq!(rig.announced(), 1);
    for _ in 0..3 {
        let storm = look_while(rig.iommu(), || {
            let _ = rig.read(3, 0);
        });
        assert_eq!(storm.left, Drained::Again);
        assert!(storm.faults.len() <= 128, "{} in one look", storm.faults.len());
    }
    let mut looks = 0;
    while look(rig.iommu()).left == Drained::Again {
        looks += 1;
        assert!(looks < 10, "nothing new comes, and it never ends");
    }
    for _ in 0..10 {
        let before = rig.announced();
        rig.write(7, PAGE).unwrap_err();
        assert_eq!(rig.announced(), before + 1, "a bystander's fault is announced");
        assert_eq!(look(rig.iommu()).complete()[0].pasid, Some(tag(7)));
    }
}

/// So do more faults than the unit has room for.
pub fn after_an_overflow_faults_are_still_announced<R: Rig>(rig: &R) {
    rig.announce();
    for _ in 0..3 {
        for at in 0..1000 {
            rig.read(3, at * PAGE).unwrap_err();
        }
        let mut lost = false;
        loop {
            let seen = look(rig.iommu());
            lost |= seen.lost;
            if seen.left == Drained::Empty {
                break;
            }
        }
        assert!(lost);
        let before = rig.announced();
        rig.write(7, PAGE).unwrap_err();
        assert_eq!(rig.announced(), before + 1);
        assert_eq!(look(rig.iommu()).complete().len(), 1);
    }
}

/// Three owners of one tag of a claimed `device`, each with a table that grows and shrinks: nobody reaches more than is
/// mapped for him at that time. Returns how many pages stay for good, for tables of the device.
pub fn one_life<R: Rig>(rig: &R, device: Requester) -> usize {
    let write = |at| rig.dma(device, Some(3), at, true);
    let before = rig.memory().used();
    let mut stay = None;
    for round in 0..3 {
        let host = (4 + 4 * round) * GIB;
        assert!(write(0).is_err());
        let table = rig.table(host, 4 * MIB);
        rig.iommu().attach(device, tag(3), table).unwrap();
        assert_eq!(write(0), Ok(host));
        assert!(write(4 * MIB).is_err());
        rig.map(table, 4 * MIB, host + GIB, 2 * PAGE);
        assert_eq!(write(4 * MIB), Ok(host + GIB));
        rig.unmap(table, 4 * MIB, 2 * PAGE);
        assert!(write(4 * MIB).is_err());
        rig.iommu().detach(device, tag(3)).unwrap();
        rig.iommu().destroy_table(table).unwrap();
        let more = rig.memory().used() - before;
        assert_eq!(*stay.get_or_insert(more), more, "in round {round}");
    }
    assert!(write(0).is_err());
    stay.unwrap_or_default()
}

/// A device that never stops sending, with tags 1 and 2, meets the old table, the new table, or a fault: at no moment an
/// entry that is half written, and nothing of the old once its end was confirmed. `ranges` (start, length) are what each
/// table maps; the one at 1 MiB is unmapped on the way.
pub fn a_device_that_keeps_sending_sees_whole_entries_only<R: Rig>(rig: &R, ranges: &[(u64, u64)]) {
    let beta = rig.table(64 * GIB, 2 * MIB);
    rig.attach(2, beta);
    for round in 1..4 {
        let host = round * 4 * GIB;
        let table = rig.iommu().create_table().unwrap();
        for &(at, len) in ranges {
            rig.map(table, at, host + at, len);
        }
        assert_eq!(rig.reached(1), [0; 0]);
        rig.attach(1, table);
        rig.unmap(table, MIB, PAGE);
        assert_eq!(rig.reached(1), [host]);
        rig.detach(1);
        rig.reached(1);
        rig.iommu().destroy_table(table).unwrap();
        assert_eq!(rig.write(1, 0), Err(R::NOT_ATTACHED));
        assert_eq!(rig.reached(2), [64 * GIB], "the neighbour never noticed");
    }
}

/// Attaching and ending costs the same beside a thousand others. Returns what it costs, in commands.
pub fn the_cost_of_an_attachment_does_not_depend_on_the_others<R: Rig>(rig: &R) -> (usize, usize) {
    let table = rig.table(4 * GIB, 2 * MIB);
    let cost = |pasid| {
        rig.take_executed();
        rig.attach(pasid, table);
        let attach = rig.take_executed();
        rig.detach(pasid);
        (attach, rig.take_executed())
    };
    let alone = cost(1);
    for pasid in 1..=1000 {
        rig.attach(pasid, table);
    }
    assert_eq!(cost(1001), alone);
    let before = rig.iommu().commands_issued();
    rig.detach(500);
    assert_eq!(rig.iommu().commands_issued() - before, alone.1 as u64);
    alone
}
