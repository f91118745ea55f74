//! Notifications of new work, and gauges.

use super::{Opened, Place, at, clock, event, keyed, on_every_engine, parked, retry};
use crate::{
    event::HandlerName,
    store::{EventFilter, Health, ReplaySelection, Store, Verdict},
    telemetry::MetricsFormat,
};

on_every_engine![
    workers_are_notified_of_a_new_event_and_of_a_freed_key,
    the_gauges_count_the_deliveries,
    counts_are_right_throughout_a_long_run,
];

async fn workers_are_notified_of_a_new_event_and_of_a_freed_key(place: Place) {
    let store = place.subscribed().await;
    let mut work = store.store.work();
    work.mark_unchanged();
    store.append_all([keyed(1, "a"), keyed(2, "a")]).await;
    work.changed().await.unwrap();
    let claims = store.claim("crm", at(10)).await;
    work.mark_unchanged();
    store.settle("crm", &claims[0], Verdict::Done).await;
    work.changed().await.unwrap();
}

async fn the_gauges_count_the_deliveries(place: Place) {
    let store = place.subscribed().await;
    store
        .append_all([keyed(1, "a"), keyed(2, "a"), keyed(3, "b"), keyed(4, "c")])
        .await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], parked()).await;
    store.settle("crm", &claims[1], Verdict::Done).await;
    let later = event(2).received_at + jiff::SignedDuration::from_secs(5);
    store.store.measure(later).await.unwrap();
    let crm = (&HandlerName::from("crm")).into();
    let metrics = &place.metrics;
    assert_eq!(metrics.open_deliveries.get_or_create(&crm).get(), 2);
    assert_eq!(metrics.parked_deliveries.get_or_create(&crm).get(), 1);
    let text = metrics.render(MetricsFormat::OpenMetrics).unwrap();
    let sum = |name: &str| -> f64 {
        let mut lines = text.lines();
        let of = |line: &str| line.strip_prefix(name)?.parse().ok();
        lines.find_map(of).unwrap()
    };
    assert_eq!(sum("hookswitch_journal_batch_sum "), 4.0);
    let bodies = 4 * event(1).body.len();
    assert!(sum("hookswitch_journal_batch_bytes_sum ") >= bodies as f64);
    assert_eq!(metrics.oldest_open_seconds.get_or_create(&crm).get(), 5.0);
    assert_eq!(metrics.store_sound.get(), 1);
    assert_eq!(*store.store.health().borrow(), Health::Sound);
}

async fn counts_are_right_throughout_a_long_run(place: Place) {
    let store = place.subscribed().await;
    let replay = |selection: &ReplaySelection| {
        place.operator(|records| records.replay(selection, "again", at(120), &mut |_| {}))
    };
    let replay = |selection: &ReplaySelection| drop(replay(selection).unwrap());
    let everything = EventFilter {
        limit: 1000,
        ..EventFilter::default()
    };
    let crm = (&HandlerName::from("crm")).into();
    long_run(&store, replay, async || {
        let events = place.operator(|records| records.events(&everything));
        let events = events.unwrap().events;
        let open: u64 = events.iter().map(|event| event.open).sum();
        let parked: u64 = events.iter().map(|event| event.parked).sum();
        store.store.measure(clock()).await.unwrap();
        let metrics = &place.metrics;
        let counted = (
            metrics.open_deliveries.get_or_create(&crm).get(),
            metrics.parked_deliveries.get_or_create(&crm).get(),
        );
        assert_eq!(counted, (open as i64, parked as i64));
    })
    .await;
}

/// Applies random verdicts and replays to the deliveries of `crm`, the same ones in each run. Calls
/// `check` after each round.
pub(in crate::store) async fn long_run<S: Store + ?Sized>(
    store: &Opened<S>,
    replay: impl Fn(&ReplaySelection),
    mut check: impl AsyncFnMut(),
) {
    let mut dice = 1_u64;
    let mut roll = |sides: u64| {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    // Few rounds with many events each, since an engine may take a while to add new events to the
    // ledger.
    for round in 0..60 {
        for n in 0..5 {
            let key = format!("key {}", roll(5));
            store.append(&keyed(round * 5 + n, &key)).await.unwrap();
        }
        for _ in 0..4 {
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
            check().await;
        }
        if round % 3 == 0 {
            replay(&ReplaySelection {
                parked_only: round % 6 == 0,
                ..ReplaySelection::default()
            });
            check().await;
        }
    }
}
