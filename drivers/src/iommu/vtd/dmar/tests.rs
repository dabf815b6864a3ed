// SPDX-License-Identifier: MIT OR Apache-2.0
//! The parser on well-formed tables, on each way to be malformed, and on anything.

use proptest::prelude::*;

use super::*;

/// A table with this body, length and checksum right.
fn table(body: &[u8]) -> Vec<u8> {
    let mut bytes = b"DMAR".to_vec();
    bytes.extend(((48 + body.len()) as u32).to_le_bytes());
    bytes.resize(48, 0);
    bytes[36] = 47;
    bytes[37] = 0b11;
    bytes.extend(body);
    bytes[9] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    bytes
}

/// A structure with type and length filled in.
fn structure(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((4 + body.len() as u16).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn drhd(flags: u8, size: u8, base: u64, scopes: &[u8]) -> Vec<u8> {
    let mut body = vec![flags, size, 2, 0];
    body.extend(base.to_le_bytes());
    body.extend(scopes);
    structure(0, &body)
}

#[test]
fn a_table_with_everything() {
    let scopes = [1, 8, 0, 0, 0, 0x6a, 1, 0, 2, 10, 0, 0, 0, 0, 3, 0, 4, 1, 3, 8, 0, 0, 7, 0xff, 0, 0];
    let mut body = drhd(1, 0, 0xfed9_0000, &scopes);
    let mut rmrr = vec![0, 0, 2, 0];
    rmrr.extend(0x7000_0000u64.to_le_bytes());
    rmrr.extend(0x7000_ffffu64.to_le_bytes());
    rmrr.extend(&scopes[..8]);
    body.extend(structure(1, &rmrr));
    body.extend(structure(2, &[1, 0, 2, 0]));
    body.extend(structure(3, &[0; 16]));
    body.extend(structure(5, &[1, 0, 2, 0, 1, 8, 0, 0, 0, 0x6a, 1, 0]));
    body.extend(structure(5, &[0, 0, 2, 0, 1, 8, 0, 0, 0, 0x6b, 1, 0]));
    body.extend(structure(0x1234, &[1, 2, 3]));
    body.extend(drhd(0, 1, 0xfed9_2000, &[]));
    let dmar = parse(&table(&body)).unwrap();

    assert_eq!(dmar.host_address_bits, 48);
    assert!(dmar.interrupt_remapping && dmar.x2apic_opt_out);
    let unit = &dmar.units[0];
    assert_eq!((unit.registers, unit.registers_len, unit.segment), (HostPhys(0xfed9_0000), 0x1000, 2));
    assert!(unit.include_all);
    let seen: Vec<_> = unit
        .scopes
        .iter()
        .map(|scope| (scope.kind, scope.enumeration, scope.start_bus, scope.path.as_slice()))
        .collect();
    assert_eq!(
        seen,
        [
            (ScopeKind::Endpoint, 0, 0x6a, &[(1, 0)][..]),
            (ScopeKind::Bridge, 0, 0, &[(3, 0), (4, 1)]),
            (ScopeKind::IoApic, 7, 0xff, &[(0, 0)]),
        ]
    );
    assert_eq!((dmar.units[1].registers_len, dmar.units[1].include_all), (0x2000, false));
    assert_eq!(dmar.reserved[0].limit, HostPhys(0x7000_ffff));
    assert_eq!(dmar.reserved[0].scopes.len(), 1);
    assert!(dmar.ats_roots[0].all && dmar.ats_roots[0].scopes.is_empty());
    assert!(!dmar.ats_devices[0].all && dmar.ats_devices[0].scopes.len() == 1);
    let required = |list: &[DeviceList]| list.iter().map(|list| list.ats_required).collect::<Vec<_>>();
    assert_eq!(required(&dmar.ats_devices), [true, false]);
    assert_eq!(required(&dmar.ats_roots), [false], "its flag is another");
}

#[test]
fn what_does_not_fit_is_refused_with_its_place() {
    let fine = drhd(1, 0, 0xfed9_0000, &[]);
    let broken = [
        // Structures: empty, shorter than its header, longer than the table, cut off.
        vec![0, 0, 0, 0],
        vec![0, 0, 3, 0],
        vec![0, 0, 0xff, 0],
        vec![0],
        // A DRHD without a base, with base 0, with a base inside a page.
        structure(0, &[1, 0, 0, 0]),
        drhd(1, 0, 0, &[]),
        drhd(1, 0, 0xfed9_0004, &[]),
        // Scopes: empty, without a path, with half a step, longer than the structure.
        drhd(1, 0, 0xfed9_0000, &[1, 0, 0, 0, 0, 0, 0, 0]),
        drhd(1, 0, 0xfed9_0000, &[1, 6, 0, 0, 0, 0]),
        drhd(1, 0, 0xfed9_0000, &[1, 7, 0, 0, 0, 0, 1]),
        drhd(1, 0, 0xfed9_0000, &[1, 10, 0, 0, 0, 0, 1, 0]),
        drhd(1, 0, 0xfed9_0000, &[1]),
    ];
    for bad in broken {
        let mut body = fine.clone();
        body.extend(&bad);
        let refusal = parse(&table(&body)).unwrap_err();
        assert!(refusal.why.contains("offset 64"), "{bad:x?}: {refusal}");
    }
    let whole = table(&fine);
    let mut wrong = whole.clone();
    wrong[50] ^= 1;
    assert!(parse(&wrong).unwrap_err().why.contains("checksum"));
    assert!(parse(&whole[..whole.len() - 1]).unwrap_err().why.contains("length"));
    assert!(parse(b"APIC").unwrap_err().why.contains("signature"));
    assert!(parse(&[]).is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = parse(&bytes);
    }

    /// Bytes that pass the header's checks, so that the structures are reached.
    #[test]
    fn no_structures_panic(
        structures in proptest::collection::vec(
            (0u16..7, proptest::collection::vec(0u8..12, 0..40), 0u16..50), 0..8),
    ) {
        let mut body = Vec::new();
        for (kind, bytes, len) in structures {
            body.extend(kind.to_le_bytes());
            body.extend(len.to_le_bytes());
            body.extend(bytes);
        }
        if let Ok(dmar) = parse(&table(&body)) {
            let scopes = dmar.units.iter().flat_map(|unit| &unit.scopes);
            prop_assert!(scopes.into_iter().all(|scope| !scope.path.is_empty()));
        }
    }

    /// A whole table with some bytes changed and the checksum made right again.
    #[test]
    fn no_damage_panics(damage in proptest::collection::vec((48usize..84, any::<u8>()), 0..6)) {
        let scopes = [1, 8, 0, 0, 0, 0x6a, 1, 0, 2, 10, 0, 0, 0, 0, 3, 0, 4, 1];
        let mut bytes = table(&drhd(1, 0, 0xfed9_0000, &scopes));
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[9] = bytes[9].wrapping_sub(sum);
        let _ = parse(&bytes);
    }
}
