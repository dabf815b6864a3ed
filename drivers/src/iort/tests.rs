// SPDX-License-Identifier: MIT OR Apache-2.0
//! The parser on well-formed tables, on each way to be malformed, and on anything.

use proptest::prelude::*;

use super::*;

/// Offset of the first node of [`table`].
const FIRST: usize = 48;

/// A table with these nodes, length and checksum right.
fn table(nodes: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"IORT".to_vec();
    bytes.resize(48, 0);
    bytes[36..40].copy_from_slice(&(nodes.len() as u32).to_le_bytes());
    bytes[40..44].copy_from_slice(&(FIRST as u32).to_le_bytes());
    bytes.extend(nodes.concat());
    seal(bytes)
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[9] = bytes[9].wrapping_sub(sum);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A node of a type, with the words after its header and its mappings (first, count, output, reference,
/// flags).
fn node(kind: u8, body: &[u32], mappings: &[[u32; 5]]) -> Vec<u8> {
    let at = 16 + 4 * body.len();
    let len = at + 20 * mappings.len();
    let mut bytes = vec![kind];
    bytes.extend((len as u16).to_le_bytes());
    bytes.push(3);
    bytes.extend(words(&[0, mappings.len() as u32, at as u32]));
    bytes.extend(words(body));
    for &[first, count, output, reference, flags] in mappings {
        bytes.extend(words(&[first, count - 1, output, reference, flags]));
    }
    bytes
}

fn its() -> Vec<u8> {
    node(0, &[2, 7, 9], &[])
}

/// Coherent whatever IDR0 says where `flags` has bit 0.
fn smmu(base: u32, flags: u32, mappings: &[[u32; 5]]) -> Vec<u8> {
    let body = [base, 0, flags, 0, 0, 0, 0, 106, 107, 109, 108, 0, 1];
    node(4, &body, mappings)
}

fn root_complex(segment: u32, mappings: &[[u32; 5]]) -> Vec<u8> {
    node(2, &[1, 0, 1, segment, 64], mappings)
}

const SMMU_AT: u32 = FIRST as u32 + 28;
const REST_AT: u32 = SMMU_AT + 68 + 40;

/// ITS group, an SMMU, and a root complex with a hole that goes past the SMMU.
fn whole() -> Vec<Vec<u8>> {
    let its_at = FIRST as u32;
    vec![
        its(),
        smmu(0x905_0000, 1, &[[0, 1, 0x77, its_at, 1], [0x10_0000, 0x1_0000, 0x20_0000, its_at, 0]]),
        root_complex(
            2,
            &[
                [0, 0x100, 0x10_0000, SMMU_AT, 0],
                [0x100, 8, 0x5100, its_at, 0],
                [0x200, 0xfe00, 0x10_0200, SMMU_AT, 0],
            ],
        ),
    ]
}

/// A machine whose only SMMU serves segment 0, StreamIDs being requester IDs.
pub fn machine() -> Iort {
    let its_at = FIRST as u32;
    let nodes = [
        its(),
        smmu(0x905_0000, 0, &[[0, 0x1_0000, 0, its_at, 0]]),
        root_complex(0, &[[0, 0x1_0000, 0, SMMU_AT, 0]]),
    ];
    parse(&table(&nodes)).unwrap()
}

/// A machine with two SMMUs in segment 0: the second serves buses 40h to 4fh.
pub fn machine_with_two_units() -> Iort {
    let its_at = FIRST as u32;
    let to_its = [[0, 0x1_0000, 0, its_at, 0]];
    let second_at = SMMU_AT + 68 + 20;
    let mappings = [
        [0, 0x4000, 0, SMMU_AT, 0],
        [0x4000, 0x1000, 0x4000, second_at, 0],
        [0x5000, 0xb000, 0x5000, SMMU_AT, 0],
    ];
    let nodes =
        [its(), smmu(0x905_0000, 0, &to_its), smmu(0xc00_0000, 0, &to_its), root_complex(0, &mappings)];
    parse(&table(&nodes)).unwrap()
}

/// The same as [`machine`], with memory that the firmware uses through one stream.
pub fn machine_with_reserved(stream: u32) -> Iort {
    let its_at = FIRST as u32;
    let nodes = [
        its(),
        smmu(0x905_0000, 0, &[[0, 0x1_0000, 0, its_at, 0]]),
        root_complex(0, &[[0, 0x1_0000, 0, SMMU_AT, 0]]),
        node(6, &[0, 1, 28, 0x8000_0000, 0, 0x1_0000, 0, 0], &[[0, 1, stream, SMMU_AT, 0]]),
    ];
    parse(&table(&nodes)).unwrap()
}

/// A machine without SMMU and with three ITS groups, of segments 0, 1 and 2: in segment 2 all have DeviceID 0x77.
pub fn machine_with_its_groups() -> Iort {
    let first = FIRST as u32;
    let nodes = [
        its(),
        node(0, &[1, 3], &[]),
        root_complex(0, &[[0, 0x1_0000, 0, first, 0]]),
        root_complex(1, &[[0, 0x8000, 0x8000, first + 28, 0]]),
        root_complex(2, &[[0, 1, 0x77, first, 1]]),
    ];
    parse(&table(&nodes)).unwrap()
}

fn requester(rid: u16) -> Requester {
    Requester { segment: 2, rid }
}

#[test]
fn a_requester_is_followed_to_smmu_and_its() {
    let iort = parse(&table(&whole())).unwrap();
    let unit = &iort.units[0];
    assert_eq!(unit.registers, HostPhys(0x905_0000));
    assert!(unit.coherent_override);
    assert_eq!(unit.interrupts, Gsivs { event: 106, page_request: 107, global_error: 109, sync: 108 });
    assert_eq!(iort.its_groups[0].identifiers, [7, 9]);
    assert!(iort.root_complexes[0].ats);
    for (rid, id) in [(0, 0x10_0000), (0xff, 0x10_00ff), (0x200, 0x10_0200), (0xffff, 0x10_ffff)] {
        let stream = Stream { unit: 0, id };
        assert_eq!(iort.stream(requester(rid)), Some(stream));
        assert_eq!(iort.requester(stream), Some(requester(rid)));
        assert_eq!(
            iort.message_source(requester(rid)),
            Some(MessageSource { group: 0, device: id + 0x10_0000 })
        );
    }
}

#[test]
fn what_goes_past_the_smmu_has_no_stream() {
    let iort = parse(&table(&whole())).unwrap();
    assert_eq!(iort.stream(requester(0x103)), None);
    let past = MessageSource { group: 0, device: 0x5103 };
    assert_eq!(iort.message_source(requester(0x103)), Some(past));
    assert_eq!(iort.message_source(requester(0x108)), None);
    let elsewhere = Requester { segment: 0, rid: 0 };
    assert_eq!(iort.stream(elsewhere), None);
    assert_eq!(iort.message_source(elsewhere), None);
    assert_eq!(iort.requester(Stream { unit: 0, id: 0x10_0100 }), None);
    assert_eq!(iort.requester(Stream { unit: 0, id: 5 }), None);
}

#[test]
fn reserved_memory_concerns_its_streams() {
    let mut nodes = whole();
    nodes.truncate(2);
    // One range of 64 KiB after three words of body, used by two streams.
    let rmr = node(6, &[0, 1, 28, 0x8000_0000, 1, 0x1_0000, 0, 0], &[[0, 2, 0x10_0010, SMMU_AT, 0]]);
    nodes.push(rmr);
    nodes.push(node(3, &[0; 15], &[]));
    nodes.push(node(0x42, &[1, 2, 3], &[]));
    let iort = parse(&table(&nodes)).unwrap();
    assert_eq!(iort.older_units, 1);
    let reserved = &iort.reserved[0];
    assert_eq!(reserved.ranges, [(HostPhys(0x1_8000_0000), 0x1_0000)]);
    let concerns = |id| reserved.concerns(Stream { unit: 0, id });
    assert!(!concerns(0x10_000f) && concerns(0x10_0010) && concerns(0x10_0011) && !concerns(0x10_0012));
    assert!(!reserved.concerns(Stream { unit: 1, id: 0x10_0010 }));
}

#[test]
fn what_does_not_fit_is_refused_with_its_place() {
    let cut = |mut node: Vec<u8>, len: u16| {
        node[1..3].copy_from_slice(&len.to_le_bytes());
        node
    };
    let root = |mapping| root_complex(0, &[mapping]);
    let broken = [
        // Lengths: none, shorter than the header, past the table, shorter than the type needs.
        cut(its(), 0),
        cut(its(), 15),
        cut(its(), 0xffff),
        cut(root_complex(0, &[]), 20),
        node(0, &[3, 7, 9], &[]),
        node(0, &[u32::MAX, 7, 9], &[]),
        // An SMMU at 0, and one inside a page.
        smmu(0, 0, &[]),
        smmu(0x905_0010, 0, &[]),
        // A segment that is none; mappings that overflow, lead nowhere, or into the middle of a node.
        root_complex(0x1_0000, &[]),
        root([2, u32::MAX, 0, SMMU_AT, 0]),
        root([0, 1, 0, 0, 0]),
        root([0, 1, 0, SMMU_AT + 1, 0]),
        root([0, 1, 0, u32::MAX, 0]),
        // Mappings and memory ranges past the end of their node.
        node(2, &[1, 0, 1, 0], &[])
            .into_iter()
            .enumerate()
            .map(|(at, byte)| if at == 8 { 1 } else { byte })
            .collect(),
        node(6, &[0, 2, 28, 0, 0, 0, 0, 0], &[]),
    ];
    for bad in broken {
        let mut nodes = whole();
        nodes[2] = bad;
        let refusal = parse(&table(&nodes)).unwrap_err();
        assert!(refusal.why.contains(&format!("offset {REST_AT} ")), "{:x?}: {refusal}", nodes[2]);
    }
    // More nodes than there are, and nodes that start in the header or past the end.
    let mut more = table(&whole());
    more[36] = 4;
    assert!(parse(&seal(more)).is_err());
    for start in [0u32, 47, 0x7fff_ffff, u32::MAX] {
        let mut bytes = table(&whole());
        bytes[40..44].copy_from_slice(&start.to_le_bytes());
        assert!(parse(&seal(bytes)).is_err());
    }
    let whole = table(&whole());
    let mut wrong = whole.clone();
    wrong[60] ^= 1;
    assert!(parse(&wrong).unwrap_err().why.contains("checksum"));
    let short = &whole[..whole.len() - 1];
    assert!(parse(short).unwrap_err().why.contains("length"));
    assert!(parse(b"APIC").unwrap_err().why.contains("signature"));
    assert!(parse(&[]).is_err());
}

/// Asks everything that can be asked, of what may be any table.
fn ask(iort: &Iort) {
    for rid in [0, 1, 0xff, 0x100, 0xffff] {
        for segment in [0, 2, 0xffff] {
            let requester = Requester { segment, rid };
            let _ = iort.message_source(requester);
            if let Some(stream) = iort.stream(requester) {
                assert!(stream.unit < iort.units.len());
                let _ = iort.reserved.iter().filter(|memory| memory.concerns(stream)).count();
            }
        }
    }
    for id in [0, 1, 0x10_0000, u32::MAX] {
        let _ = iort.requester(Stream { unit: 0, id });
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = parse(&bytes);
    }

    /// Nodes of every type with any contents, behind a header that is right.
    #[test]
    fn no_nodes_panic(
        nodes in proptest::collection::vec(
            (0u8..8, proptest::collection::vec(prop_oneof![0u32..80, any::<u32>()], 0..20)), 0..6),
    ) {
        let nodes: Vec<_> = nodes.iter().map(|(kind, body)| {
            let mut bytes = node(*kind, &[], &[]);
            let len = (16 + 4 * body.len()) as u16;
            bytes[1..3].copy_from_slice(&len.to_le_bytes());
            bytes.extend(words(body));
            bytes
        }).collect();
        if let Ok(iort) = parse(&table(&nodes)) {
            ask(&iort);
        }
    }

    /// A whole table with some bytes changed and the checksum made right again.
    #[test]
    fn no_damage_panics(damage in proptest::collection::vec((36usize..284, any::<u8>()), 0..6)) {
        let mut bytes = table(&whole());
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(iort) = parse(&seal(bytes)) {
            ask(&iort);
        }
    }
}
