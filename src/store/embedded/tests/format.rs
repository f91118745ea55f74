//! The bytes of the journal.

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;

use super::Place;
use crate::{
    event::{DedupeKey, EventId, Key, Notification, Topic},
    store::{
        embedded::{
            reader::{Bodies, Directory, Scan, Step},
            segment::{self, BadHeader, HEADER_BYTES, Header, Invalid, Position, Record},
        },
        tests::{NOON, at, event},
    },
};

fn encode(notification: &Notification, position: Position) -> Bytes {
    let mut bytes = Vec::new();
    let mut record = Record::new(notification).unwrap();
    record.write_to(&mut bytes, position);
    bytes.into()
}

fn times() -> impl Strategy<Value = Timestamp> {
    let seconds = Timestamp::MIN.as_second() + 1..Timestamp::MAX.as_second();
    (seconds, 0..1_000_000_000).prop_map(|(s, ns)| Timestamp::new(s, ns).unwrap())
}

prop_compose! {
    fn notifications()(
        id in any::<[u8; 16]>(),
        (endpoint, name) in ("[a-z-]{0,20}", "[a-z.-]{0,40}"),
        key in proptest::option::of(".{0,40}"),
        subject in proptest::option::of(".{0,40}"),
        occurred_at in proptest::option::of(times()),
        received_at in times(),
        topics in proptest::collection::vec(".{0,20}", 0..4),
        dedupe in proptest::collection::vec(any::<[u8; 16]>(), 0..4),
        body in proptest::collection::vec(any::<u8>(), 0..2000),
    ) -> Notification {
        Notification {
            id: EventId::from_bytes(id),
            endpoint: endpoint.as_str().into(),
            name: name.as_str().into(),
            key: key.map(Key::new),
            subject,
            occurred_at,
            received_at,
            topics: topics.into_iter().map(Topic::new).collect(),
            dedupe: dedupe.into_iter().map(DedupeKey::from_bytes).collect(),
            body: body.into(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_what_is_read(
        notification in notifications(),
        number in 1_u32..1_000_000,
        offset in 64_u64..(1 << 30),
    ) {
        let position = Position::new(number, offset);
        let bytes = encode(&notification, position);
        prop_assert_eq!(segment::length(&bytes), Ok(bytes.len()));
        prop_assert_eq!(segment::notification(&bytes, position), Ok(notification));
    }

    #[test]
    fn a_record_is_valid_in_its_own_place_only(
        notification in notifications(),
        a in any::<u32>(),
        b in any::<u32>(),
    ) {
        prop_assume!(a != b);
        let bytes = encode(&notification, Position::new(7, u64::from(a)));
        prop_assert_eq!(segment::payload(&bytes, Position::new(7, u64::from(b))), Err(Invalid));
        prop_assert_eq!(segment::payload(&bytes, Position::new(8, u64::from(a))), Err(Invalid));
    }

    #[test]
    fn a_header_comes_back_and_shows_damage(
        number in 1_u32..,
        previous in proptest::option::of((1_u32.., any::<u64>())),
        records_before in any::<u64>(),
        begun_at in times(),
        (at, flip) in (0..HEADER_BYTES, 1_u8..),
    ) {
        let header = Header { number, previous, records_before, begun_at };
        let mut bytes = header.encode();
        prop_assert_eq!(Header::decode(&bytes), Ok(header));
        bytes[at] ^= flip;
        prop_assert_eq!(Header::decode(&bytes), Err(BadHeader::Damaged));
    }
}

#[test]
fn any_single_changed_byte_of_a_record_is_noticed() {
    let position = Position::new(3, 64);
    let bytes = encode(&event(1), position);
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= flip;
            assert_eq!(
                segment::payload(&damaged, position),
                Err(Invalid),
                "byte {at}"
            );
        }
    }
}

#[test]
fn a_segment_cut_anywhere_yields_the_whole_records_before_the_cut() {
    let place = Place::new();
    std::fs::create_dir_all(place.journal().path()).unwrap();
    let mut bytes = header(1).encode().to_vec();
    let mut ends = vec![bytes.len()];
    for n in 0..4 {
        let position = Position::new(1, bytes.len() as u64);
        bytes.extend_from_slice(&encode(&event(n), position));
        ends.push(bytes.len());
    }
    for length in HEADER_BYTES..=bytes.len() {
        std::fs::write(place.journal().segment(1), &bytes[..length]).unwrap();
        let whole = ends.iter().filter(|end| **end <= length).count() - 1;
        assert_eq!(count(&place.journal()), whole, "cut at {length}");
    }
}

#[test]
fn a_header_of_a_later_version_says_so() {
    let mut bytes = header(1).encode();
    bytes[8] = 9;
    let checksum = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(Header::decode(&bytes), Err(BadHeader::TooNew(9)));
}

/// The bytes in `fixtures/journal/v1` were written when version 1 was new and are never written
/// again: whoever changes the format must still read them.
#[test]
fn the_frozen_journal_of_version_1_is_still_read() {
    let frozen =
        Directory::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/journal/v1").as_ref());
    assert_eq!(frozen.header(1).unwrap(), Some(header(1)));
    let mut scan = Scan::open(&frozen, Position::new(1, 0)).unwrap();
    let mut bodies = Bodies::new(frozen);
    for expected in frozen_notifications() {
        let Some(Step::Record { position, bytes }) = scan.next().unwrap() else {
            panic!("a record is missing");
        };
        assert_eq!(
            segment::notification(&bytes, position),
            Ok(expected.clone())
        );
        assert_eq!(bodies.read(position).unwrap(), expected);
    }
    assert!(scan.next().unwrap().is_none());
}

#[test]
fn version_1_is_written_as_it_was() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/journal/v1/0000000001.segment"
    );
    let mut bytes = header(1).encode().to_vec();
    for notification in frozen_notifications() {
        let position = Position::new(1, bytes.len() as u64);
        bytes.extend_from_slice(&encode(&notification, position));
    }
    assert_eq!(std::fs::read(path).unwrap(), bytes);
}

fn header(number: u32) -> Header {
    Header {
        number,
        previous: None,
        records_before: 0,
        begun_at: at(0),
    }
}

fn frozen_notifications() -> Vec<Notification> {
    let full = Notification {
        id: EventId::from_bytes([7; 16]),
        endpoint: "front-desk".into(),
        name: "zoom.number-management.peering-number-cnam-updated".into(),
        key: Some("zoom.number-management/acme/42".into()),
        subject: Some("+15550123".to_owned()),
        occurred_at: Some(Timestamp::new(NOON, 250_000_000).unwrap()),
        received_at: Timestamp::new(NOON + 1, 1).unwrap(),
        topics: vec!["cnam/+15550123".into(), "cnam/+15550124".into()],
        dedupe: vec![
            DedupeKey::from_bytes([1; 16]),
            DedupeKey::from_bytes([2; 16]),
        ],
        body: Bytes::from_static(br#"{"event":"number_management.peering_number_cnam_updated"}"#),
    };
    let bare = Notification {
        id: EventId::from_bytes([8; 16]),
        name: "ringcentral.unrecognized".into(),
        key: None,
        subject: None,
        occurred_at: None,
        received_at: Timestamp::new(-1, -1).unwrap(),
        topics: Vec::new(),
        dedupe: Vec::new(),
        body: Bytes::from_static(b"\xff\xfe not text \x00"),
        ..full.clone()
    };
    let empty = Notification {
        id: EventId::from_bytes([9; 16]),
        body: Bytes::new(),
        ..full.clone()
    };
    vec![full, bare, empty]
}

fn count(directory: &Directory) -> usize {
    let mut scan = Scan::open(directory, Position::new(1, 0)).unwrap();
    let mut records = 0;
    while let Some(step) = scan.next().unwrap() {
        records += usize::from(matches!(step, Step::Record { .. }));
    }
    records
}
