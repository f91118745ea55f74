//! The bytes of the journal.

use std::{fs, os::unix::fs::FileExt, path::Path};

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;

use super::Place;
use crate::{
    event::{DedupeKey, EventId, Key, Notification, Topic},
    store::{
        Attempt, DeliverySnapshot, DeliveryState, Subscription,
        embedded::{
            reader::{Directory, EventReader, ReadError, Scan, ScanItem},
            record::{self, Content, Event, Personal, Record},
            segment::{BadHeader, HEADER_BYTES, Header, Position, VERSION},
        },
        tests::{NOON, at, event, numbered},
    },
};

fn place(record: &Record, position: Position) -> Bytes {
    let mut bytes = Vec::new();
    record.write_to(&mut bytes, position);
    bytes.into()
}

fn encode(notification: &Notification, position: Position) -> Bytes {
    place(
        &Record::event(notification, notification.ordering_keys().as_ref()).unwrap(),
        position,
    )
}

/// A record put together by hand, as the documentation of the format says.
fn frame(kind: u32, public: &[u8], personal: &[u8], position: Position) -> Bytes {
    let mut bytes = vec![0xff, b'h', b'k', 0xfd];
    for field in [public.len() as u32, personal.len() as u32, kind] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    let place = crc32c::crc32c(&position.to_sql().to_le_bytes());
    for checksum in [
        crc32c::crc32c(&[&bytes, public].concat()),
        crc32c::crc32c(personal),
    ] {
        bytes.extend_from_slice(&(checksum ^ place).to_le_bytes());
    }
    [&bytes, public, personal].concat().into()
}

/// The public and the personal part of a record.
fn shared(bytes: &Bytes) -> (Bytes, Bytes) {
    let public = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    (bytes.slice(24..24 + public), bytes.slice(24 + public..))
}

fn read_event(bytes: &Bytes, position: Position) -> Event {
    assert!(record::is_valid(bytes, position));
    match record::content(bytes, position) {
        Some(Content::Event(event)) => *event,
        other => panic!("no event: {other:?}"),
    }
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
        subjects in proptest::collection::vec(".{0,40}", 0..4),
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
            subjects,
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
    fn an_event_is_read_as_it_was_written(
        notification in notifications(),
        number in 1_u32..1_000_000,
        offset in 64_u64..(1 << 30),
    ) {
        let position = Position::new(number, offset);
        let bytes = encode(&notification, position);
        prop_assert_eq!(record::length(&bytes), Some(bytes.len()));
        prop_assert!(record::is_whole(&bytes, position));
        let event = read_event(&bytes, position);
        prop_assert_eq!(event.personal, Personal::Whole);
        prop_assert_eq!(event.keys, notification.ordering_keys());
        prop_assert_eq!(&*event.notification, &notification);
    }

    #[test]
    fn a_record_is_valid_at_its_own_position_only(
        notification in notifications(),
        a in any::<u32>(),
        b in any::<u32>(),
    ) {
        prop_assume!(a != b);
        let bytes = encode(&notification, Position::new(7, u64::from(a)));
        prop_assert!(!record::is_valid(&bytes, Position::new(7, u64::from(b))));
        prop_assert!(!record::is_valid(&bytes, Position::new(8, u64::from(a))));
    }

    #[test]
    fn a_header_is_read_as_it_was_written_and_its_damage_is_noticed(
        number in 1_u32..,
        previous in proptest::option::of((1_u32.., any::<u64>())),
        records_before in any::<u64>(),
        begun_at in times(),
        (at, flip) in (0..HEADER_BYTES, 1_u8..),
    ) {
        let header = Header { version: VERSION, number, previous, records_before, begun_at };
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
            let is_valid = record::is_valid(&damaged, position);
            let is_whole = is_valid && record::is_whole(&damaged, position);
            assert!(!is_whole, "byte {at}");
        }
    }
}

#[test]
fn a_segment_cut_anywhere_yields_the_whole_records_before_the_cut() {
    let place = Place::new();
    std::fs::create_dir_all(place.journal().path()).unwrap();
    let mut bytes = header(VERSION).encode().to_vec();
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
fn an_unsupported_header_is_refused_with_the_reason() {
    for (at, number, expected) in [
        (8, 9, BadHeader::TooNew(9)),
        (20, 5, BadHeader::Encrypted(5)),
    ] {
        let mut bytes = header(VERSION).encode();
        bytes[at] = number;
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Header::decode(&bytes), Err(expected));
    }
}

#[test]
fn the_frame_is_as_documented() {
    let position = Position::new(3, 64);
    let bytes = encode(&event(1), position);
    let (public, personal) = shared(&bytes);
    assert_eq!(frame(2, &public, &personal, position), bytes);
}

#[test]
fn an_event_is_read_though_its_personal_part_was_erased() {
    let position = Position::new(3, 64);
    let original = numbered(1, "acme", &["+12025550100"]);
    let (public, personal) = shared(&encode(&original, position));
    let zeros = vec![0; personal.len()];
    let erased = read_event(&frame(2, &public, &zeros, position), position);
    assert_eq!(erased.personal, Personal::Erased);
    let expected = Notification {
        key: None,
        subjects: Vec::new(),
        topics: Vec::new(),
        body: Bytes::new(),
        ..original
    };
    assert_eq!((&*erased.notification, erased.keys), (&expected, None));
}

#[test]
fn partial_zeros_are_damage() {
    let position = Position::new(3, 64);
    let mut bytes = encode(&event(1), position).to_vec();
    let (public, _) = shared(&bytes.clone().into());
    bytes[24 + public.len()..].fill(0);
    assert!(record::is_valid(&bytes, position));
    assert!(!record::is_whole(&bytes, position));
    let event = read_event(&bytes.into(), position);
    assert_eq!(event.personal, Personal::Damaged);
}

#[test]
fn additions_of_a_later_version_are_ignored() {
    let position = Position::new(3, 64);
    let original = numbered(1, "acme", &["+12025550100"]);
    let (public, personal) = shared(&encode(&original, position));
    let (public, personal) = (
        [&public, &b"more"[..]].concat(),
        [&personal, &b"more"[..]].concat(),
    );
    let bytes = frame(2, &public, &personal, position);
    assert_eq!(*read_event(&bytes, position).notification, original);
    let unknown = frame(900, b"who knows", b"what", position);
    assert!(matches!(
        record::content(&unknown, position),
        Some(Content::Other)
    ));
}

fn delivery(state: DeliveryState, attempts: u32, whys: &[&str]) -> DeliverySnapshot {
    DeliverySnapshot {
        handler: "crm".into(),
        ordered: false,
        state,
        attempts,
        replays: 2,
        at: at(70),
        since: (attempts > 0).then(|| at(60)),
        replay: Some("the target was down".to_owned()),
        why: whys.last().map(|why| (*why).to_owned()),
        failures: whys
            .iter()
            .map(|why| Attempt {
                started_at: at(60),
                took_ms: 1500,
                why: (*why).to_owned(),
            })
            .collect(),
    }
}

fn frozen_deliveries() -> Vec<(Position, DeliverySnapshot)> {
    vec![
        (
            Position::new(1, 64),
            delivery(DeliveryState::Ready, 1, &["the server answered 503"]),
        ),
        (
            Position::new(1, 900),
            delivery(DeliveryState::Parked, 2, &["503", "422"]),
        ),
        (Position::new(2, 64), delivery(DeliveryState::Done, 1, &[])),
        (
            Position::new(2, 99),
            delivery(DeliveryState::Skipped, 0, &[]),
        ),
    ]
}

#[test]
fn deliveries_are_read_as_they_were_written() {
    let position = Position::new(3, 64);
    let deliveries = frozen_deliveries();
    let record = Record::of_deliveries(&deliveries).remove(0);
    let bytes = place(&record, position);
    let Some(Content::Deliveries(read)) = record::content(&bytes, position) else {
        panic!("no deliveries");
    };
    assert_eq!(format!("{read:?}"), format!("{deliveries:?}"));

    // How they stand is no secret, and is known when the reasons are gone.
    let (public, personal) = shared(&bytes);
    let erased = frame(3, &public, &vec![0; personal.len()], position);
    let Some(Content::Deliveries(read)) = record::content(&erased, position) else {
        panic!("no deliveries");
    };
    let states = |list: &[(Position, DeliverySnapshot)]| -> Vec<_> {
        list.iter()
            .map(|(position, one)| (*position, one.state, one.attempts))
            .collect()
    };
    assert_eq!(states(&read), states(&deliveries));
    assert!(
        read.iter()
            .all(|(_, one)| one.why.is_none() && one.replay.is_none())
    );
}

fn frozen_subscriptions() -> Vec<Subscription> {
    vec![Subscription {
        handler: "crm".into(),
        patterns: vec![crate::event::Pattern::new("zoom.*").unwrap()],
        ordered: true,
    }]
}

#[test]
fn subscriptions_and_inventories_are_read_as_they_were_written() {
    let position = Position::new(3, 64);
    let record = Record::subscriptions(at(9), &frozen_subscriptions()).unwrap();
    match record::content(&place(&record, position), position) {
        Some(Content::Subscriptions(since, read)) => {
            assert_eq!(since, at(9));
            assert_eq!(format!("{read:?}"), format!("{:?}", frozen_subscriptions()));
        }
        other => panic!("{other:?}"),
    }
    let (from, to) = (Position::new(1, 64), Position::new(2, 0));
    match record::content(&place(&Record::inventory(from, to), position), position) {
        Some(Content::Inventory(a, b)) => assert_eq!((a, b), (from, to)),
        other => panic!("{other:?}"),
    }
}

/// The bytes in `fixtures/journal` were written when their version was new and are never written
/// again: whoever changes the format must still read them.
#[test]
fn the_frozen_journals_are_still_read() {
    for version in [1, 2] {
        let frozen = Directory::new(&frozen(version));
        assert_eq!(frozen.header(1).unwrap(), Some(header(version)));
        let mut scan = Scan::open(&frozen, Position::new(1, 0)).unwrap();
        let mut event_reader = EventReader::new(frozen);
        for expected in frozen_notifications() {
            let Some(ScanItem::Record { position, bytes }) = scan.next().unwrap() else {
                panic!("a record is missing");
            };
            assert_eq!(*read_event(&bytes, position).notification, expected);
            assert_eq!(*event_reader.read(position).unwrap().notification, expected);
        }
        let rest = if version == 1 { 0 } else { 3 };
        for _ in 0..rest {
            let Some(ScanItem::Record { position, bytes }) = scan.next().unwrap() else {
                panic!("a record is missing");
            };
            assert!(!matches!(
                record::content(&bytes, position),
                None | Some(Content::Other)
            ));
            assert!(
                matches!(event_reader.read(position), Err(ReadError::Damaged)),
                "it is no event"
            );
        }
        assert!(scan.next().unwrap().is_none());
    }
}

/// A reader reads ahead, and so may have read a record before all of it was written.
#[test]
fn an_event_completed_after_a_read_ahead_is_read_whole() {
    let place = tempfile::tempdir().unwrap();
    let journal = Directory::new(place.path());
    let [first, second, ..] = &frozen_notifications()[..] else {
        panic!("too few events");
    };
    let begin = Position::new(1, HEADER_BYTES as u64);
    let first_bytes = encode(first, begin);
    let next = Position::new(1, begin.offset() + first_bytes.len() as u64);
    let second_bytes = encode(second, next);
    let segment = fs::File::create(journal.segment(1)).unwrap();
    segment.set_len(1 << 20).unwrap();
    segment.write_all_at(&first_bytes, begin.offset()).unwrap();
    let mut event_reader = EventReader::new(journal);
    for so_far in [0, second_bytes.len() - 8] {
        let mut bytes = second_bytes.to_vec();
        bytes[so_far..].fill(0);
        segment.write_all_at(&bytes, next.offset()).unwrap();
        assert_eq!(*event_reader.read(begin).unwrap().notification, *first);
        segment.write_all_at(&second_bytes, next.offset()).unwrap();
        assert_eq!(*event_reader.read(next).unwrap().notification, *second);
    }
}

#[test]
fn version_2_is_written_as_it_was() {
    let mut records: Vec<_> = frozen_notifications()
        .iter()
        .map(|notification| {
            Record::event(notification, notification.ordering_keys().as_ref()).unwrap()
        })
        .collect();
    records.push(Record::subscriptions(at(9), &frozen_subscriptions()).unwrap());
    records.push(Record::inventory(Position::new(1, 64), Position::new(2, 0)));
    records.append(&mut Record::of_deliveries(&frozen_deliveries()));
    let mut bytes = header(2).encode().to_vec();
    for record in records {
        let position = Position::new(1, bytes.len() as u64);
        record.write_to(&mut bytes, position);
    }
    let path = frozen(2).join("0000000001.segment");
    assert_eq!(std::fs::read(path).unwrap(), bytes);
}

fn frozen(version: u32) -> std::path::PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journal");
    fixtures.join(format!("v{version}"))
}

fn header(version: u32) -> Header {
    Header {
        version,
        number: 1,
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
        subjects: vec!["+15550123".to_owned()],
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
        subjects: Vec::new(),
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
        records += usize::from(matches!(step, ScanItem::Record { .. }));
    }
    records
}
