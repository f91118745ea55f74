//! Claims, settlements, order and copies.

use std::{collections::BTreeSet, sync::Arc};

use super::{Opened, Place, at, event, everything, ids, keyed, parked, retry};
use crate::{
    event::{DedupeKey, HandlerName, Notification, Pattern},
    store::{Store, Subscription, Verdict},
};

async fn subscribed(place: &Place) -> Opened {
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_copies_at_once_one_is_delivered() {
    let place = Place::new();
    let store = Arc::new(subscribed(&place).await);
    let copies: Vec<_> = (0..1000)
        .map(|_| {
            let store = store.clone();
            // Each copy is an event of its own to everything but its dedupe key.
            tokio::spawn(async move { store.append(&event(1)).await })
        })
        .collect();
    for copy in copies {
        copy.await.unwrap().unwrap();
    }
    assert_eq!(store.drain("crm").await.len(), 1);
    assert_eq!(place.metrics.duplicates.get(), 999);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_known_key_makes_a_copy_and_its_other_keys_are_not_learnt() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let key = |what: &str| DedupeKey::new("zoom", what, b"");
    let with = |n, dedupe: Vec<DedupeKey>| Notification { dedupe, ..event(n) };
    store
        .append_all([
            with(1, vec![key("a"), key("b")]),
            with(2, vec![key("c"), key("b")]),
            with(3, vec![key("c")]),
            with(4, vec![]),
            with(5, vec![]),
        ])
        .await;
    let got: Vec<_> = store
        .claim("crm", at(10))
        .await
        .iter()
        .map(|c| c.notification.received_at)
        .collect();
    assert_eq!(got, [1, 3, 4, 5].map(|n| event(n).received_at));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_key_come_one_at_a_time_in_order() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let (a, b) = ([keyed(1, "a"), keyed(2, "a"), keyed(3, "a")], keyed(4, "b"));
    store.append_all(a.clone()).await;
    store.append(&b).await.unwrap();
    let first = store.claim("crm", at(10)).await;
    assert_eq!(ids(&first), [a[0].id, b.id]);
    assert!(store.claim("crm", at(10)).await.is_empty());
    store.settle("crm", &first[0], Verdict::Done).await;
    let second = store.claim("crm", at(10)).await;
    assert_eq!(ids(&second), [a[1].id]);
    store
        .settle(
            "crm",
            &second[0],
            Verdict::Skipped {
                why: "old".to_owned(),
            },
        )
        .await;
    assert_eq!(ids(&store.claim("crm", at(10)).await), [a[2].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_waits_for_its_retry_holds_up_its_key() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let events = [keyed(1, "a"), keyed(2, "a")];
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], retry(60)).await;
    let handler = HandlerName::from("crm");
    let waiting = store.store.claim(&handler, 10, at(59)).await.unwrap();
    assert!(waiting.claims.is_empty());
    assert_eq!(waiting.next_due, Some(at(60)));
    let again = store.claim("crm", at(60)).await;
    assert_eq!(ids(&again), [events[0].id]);
    assert_eq!(again[0].attempt, 2);
    store.settle("crm", &again[0], Verdict::Done).await;
    assert_eq!(ids(&store.claim("crm", at(60)).await), [events[1].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_delivery_holds_up_nobody() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let events = [keyed(1, "a"), keyed(2, "a")];
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], parked()).await;
    assert_eq!(store.drain("crm").await, [events[1].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_claim_is_as_if_it_had_not_been_made() {
    let place = Place::new();
    let store = subscribed(&place).await;
    store.append_all([keyed(1, "a"), keyed(2, "a")]).await;
    let first = store.claim("crm", at(10)).await;
    store.settle("crm", &first[0], Verdict::Released).await;
    let again = store.claim("crm", at(10)).await;
    assert_eq!(ids(&again), ids(&first));
    assert_eq!(again[0].attempt, 1);
    // The old lease is nobody's.
    store.settle("crm", &first[0], Verdict::Done).await;
    assert!(store.claim("crm", at(10)).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_order_everything_comes_at_once() {
    let place = Place::new();
    let store = place.open();
    let unordered = Subscription {
        ordered: false,
        ..everything("crm")
    };
    store.store.subscribe(vec![unordered]).await.unwrap();
    store.append_all([keyed(1, "a"), keyed(2, "a")]).await;
    assert_eq!(store.claim("crm", at(10)).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_whose_order_changes_keeps_to_the_new_one() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let unordered = Subscription {
        ordered: false,
        ..everything("crm")
    };
    let events = [keyed(1, "a"), keyed(2, "a"), keyed(3, "a")];
    store.append_all(events.clone()).await;
    let held = store.claim("crm", at(10)).await;
    assert_eq!(held.len(), 1);
    store.store.subscribe(vec![unordered]).await.unwrap();
    assert_eq!(store.claim_once("crm", 1, at(10)).await.len(), 1);
    store.subscribe(&["crm"]).await;
    assert!(
        store.claim("crm", at(10)).await.is_empty(),
        "one of the key is being attempted"
    );
    store.settle("crm", &held[0], Verdict::Released).await;
    assert!(
        store.claim("crm", at(10)).await.is_empty(),
        "another one still is"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_handed_out_than_was_asked_for_and_oldest_first() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let events: Vec<_> = (0..10).map(event).collect();
    store.append_all(events.clone()).await;
    store.settle_down().await;
    assert_eq!(
        ids(&store.claim_once("crm", 3, at(10)).await),
        [events[0].id, events[1].id, events[2].id]
    );
    assert_eq!(
        ids(&store.claim_once("crm", 1, at(10)).await),
        [events[3].id]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_get_what_their_patterns_take_and_do_not_wait_for_each_other() {
    let place = Place::new();
    let store = place.open();
    let zoom = Subscription {
        patterns: vec![Pattern::new("zoom.*").unwrap()],
        ..everything("zoom-only")
    };
    store
        .store
        .subscribe(vec![everything("all"), zoom])
        .await
        .unwrap();
    let other = Notification {
        name: "zoom.unrecognized".into(),
        ..keyed(2, "a")
    };
    store.append_all([keyed(1, "a"), other.clone()]).await;
    assert_eq!(store.claim("all", at(10)).await.len(), 1);
    assert_eq!(ids(&store.claim("zoom-only", at(10)).await), [other.id]);
    assert!(store.claim("nobody", at(10)).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_superseded_when_all_its_topics_are() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let about = |n: u64, time: i64, topics: &[&str]| Notification {
        occurred_at: Some(at(time)),
        topics: topics.iter().map(|topic| (*topic).into()).collect(),
        ..event(n)
    };
    store
        .append_all([
            about(1, 50, &["x", "y"]),
            about(2, 60, &["x"]),
            about(3, 40, &["x"]),
            about(4, 40, &[]),
            about(5, 60, &["x"]),
        ])
        .await;
    let superseded = |claims: Vec<crate::store::Claim>| -> Vec<bool> {
        claims.iter().map(|c| c.superseded).collect()
    };
    let claims = store.claim("crm", at(10)).await;
    assert_eq!(
        superseded(claims.clone()),
        [false, false, true, false, false]
    );
    store.append(&about(6, 51, &["y"])).await.unwrap();
    for claim in &claims {
        store.settle("crm", claim, Verdict::Released).await;
    }
    assert_eq!(
        superseded(store.claim("crm", at(10)).await),
        [true, false, true, false, false, false]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_of_a_handler_that_is_gone_are_parked() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["old", "crm"]).await;
    store.append_all([keyed(1, "a"), keyed(2, "a")]).await;
    let held = store.claim("old", at(10)).await;
    store.subscribe(&["crm", "new"]).await;
    let parked = place
        .records()
        .parked(&super::operator::all_parked())
        .unwrap();
    assert_eq!(parked.len(), 2);
    assert_eq!(parked[0].why, "no handler of this name is configured");
    // What was under way may still end well.
    store.settle("old", &held[0], Verdict::Done).await;
    assert_eq!(
        place
            .records()
            .parked(&super::operator::all_parked())
            .unwrap()
            .len(),
        1
    );
    store.append(&event(3)).await.unwrap();
    assert_eq!(
        store.drain("new").await.len(),
        1,
        "a new handler gets what comes from then on"
    );
    assert_eq!(store.drain("crm").await.len(), 3);
    assert!(store.claim("old", at(10)).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_its_checksum_is_parked_and_the_next_goes_on() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let events = [keyed(1, "a"), keyed(2, "a")];
    store.append_all(events.clone()).await;
    store.settle_down().await;
    place.damage(1, |bytes| bytes[64 + 100] ^= 1);
    assert!(store.claim("crm", at(10)).await.is_empty());
    assert_eq!(ids(&store.claim("crm", at(10)).await), [events[1].id]);
    let parked = place
        .records()
        .parked(&super::operator::all_parked())
        .unwrap();
    assert_eq!(parked[0].why, "the event fails its checksum in the journal");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_announced_when_an_event_comes_and_when_a_key_is_free_again() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let mut work = store.store.work();
    work.mark_unchanged();
    store.append_all([keyed(1, "a"), keyed(2, "a")]).await;
    work.changed().await.unwrap();
    let claims = store.claim("crm", at(10)).await;
    work.mark_unchanged();
    store.settle("crm", &claims[0], Verdict::Done).await;
    work.changed().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gauges_say_what_there_is() {
    let place = Place::new();
    let store = subscribed(&place).await;
    store
        .append_all([keyed(1, "a"), keyed(2, "a"), keyed(3, "b"), keyed(4, "c")])
        .await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], parked()).await;
    store.settle("crm", &claims[1], Verdict::Done).await;
    store
        .store
        .measure(event(2).received_at + jiff::SignedDuration::from_secs(5))
        .await
        .unwrap();
    let crm = (&HandlerName::from("crm")).into();
    let metrics = &place.metrics;
    assert_eq!(metrics.open_deliveries.get_or_create(&crm).get(), 2);
    assert_eq!(metrics.parked_deliveries.get_or_create(&crm).get(), 1);
    assert_eq!(metrics.oldest_open_seconds.get_or_create(&crm).get(), 5.0);
    assert_eq!(
        (metrics.ledger_lag.get(), metrics.store_sound.get()),
        (0, 1)
    );
    let bytes = std::fs::metadata(place.journal().segment(1)).unwrap().len();
    assert_eq!(metrics.journal_bytes.get(), bytes as i64);
    assert!(metrics.disk_free_bytes.get() > 0);
}

/// The counts in `handlers` follow `deliveries` through everything that can happen to them, and
/// each lane has one ready delivery: its oldest.
#[tokio::test(flavor = "multi_thread")]
async fn counts_and_lanes_hold_through_a_long_run() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let mut dice = 1_u64;
    let mut roll = |sides: u64| {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    for n in 0..300 {
        store
            .append(&keyed(n, &format!("key {}", roll(5))))
            .await
            .unwrap();
        for claim in store.claim("crm", at(200)).await {
            let verdict = match roll(5) {
                0 => Verdict::Done,
                1 => parked(),
                2 => retry(150),
                3 => Verdict::Skipped { why: String::new() },
                _ => Verdict::Released,
            };
            store.settle("crm", &claim, verdict).await;
        }
        if n % 10 == 0 {
            let selection = crate::store::ReplaySelection {
                parked_only: n % 20 == 0,
                ..Default::default()
            };
            place
                .records()
                .replay(&selection, "again", at(120), &mut |_| {})
                .unwrap();
        }
        check_rules(&place);
    }
}

fn check_rules(place: &Place) {
    let db = rusqlite::Connection::open(place.settings.ledger()).unwrap();
    let counted: (i64, i64) = db
        .query_row(
            "SELECT count(*) FILTER (WHERE state < 2), count(*) FILTER (WHERE state = 2) FROM deliveries",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    let kept: (i64, i64) = db
        .query_row("SELECT open, parked FROM handlers", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(kept, counted);
    let broken: i64 = db
        .query_row(
            "SELECT count(*) FROM (
                 SELECT lane, min(position) AS oldest FROM deliveries WHERE state < 2 GROUP BY lane
             ) JOIN deliveries USING (lane)
             WHERE state < 2 AND (position = oldest) <> (state = 0)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(broken, 0, "lanes whose ready delivery is not their oldest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_head_loses_nothing_and_breaks_no_order() {
    let place = Place::new();
    let store = subscribed(&place).await;
    let events: Vec<_> = (0..40)
        .map(|n| keyed(n, ["a", "b"][n as usize % 2]))
        .collect();
    store.append_all(events.clone()).await;
    let mut got = Vec::new();
    let mut failed = BTreeSet::new();
    while got.len() < events.len() {
        for claim in store.claim("crm", at(1000)).await {
            let id = claim.notification.id;
            if failed.insert(id) {
                store.settle("crm", &claim, retry(900)).await;
            } else {
                got.push(claim.notification.clone());
                store.settle("crm", &claim, Verdict::Done).await;
            }
        }
    }
    for key in ["a", "b"] {
        let of = |list: Vec<&Notification>| -> Vec<_> {
            list.iter()
                .filter(|n| n.key.as_ref().unwrap().as_str() == key)
                .map(|n| n.id)
                .collect()
        };
        assert_eq!(
            of(got.iter().map(|n| &**n).collect()),
            of(events.iter().collect())
        );
    }
}
