//! The settlement of claims.

use super::{Place, at, event, ids, keyed, on_every_engine, parked, retry};
use crate::{
    event::EventId,
    store::{DeliveryDetails, DeliveryState, Settlement, Verdict},
};

on_every_engine![
    a_released_claim_leaves_no_trace,
    a_second_settlement_of_a_claim_changes_nothing,
    every_verdict_is_on_record,
    a_retry_counts_from_the_first_attempt,
];

async fn a_released_claim_leaves_no_trace(place: Place) {
    let store = place.subscribed().await;
    store.append_all([keyed(1, "a"), keyed(2, "a")]).await;
    let first = store.claim("crm", at(10)).await;
    store.settle("crm", &first[0], Verdict::Released).await;
    let again = store.claim("crm", at(10)).await;
    assert_eq!(ids(&again), ids(&first));
    assert_eq!(again[0].attempt, 1);
    // The old lease is invalid.
    store.settle("crm", &first[0], Verdict::Done).await;
    assert!(store.claim("crm", at(10)).await.is_empty());
}

async fn a_second_settlement_of_a_claim_changes_nothing(place: Place) {
    let store = place.subscribed().await;
    store.append_all([keyed(1, "a"), keyed(2, "a")]).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], Verdict::Done).await;
    for late in [Verdict::Done, retry(0), parked(), Verdict::Released] {
        store.settle("crm", &claims[0], late).await;
    }
    assert_eq!(store.drain("crm").await.len(), 1, "the other one");
    let id = claims[0].notification.id;
    let delivery = delivery(&place, id);
    assert_eq!(
        (delivery.state, delivery.attempts),
        (DeliveryState::Done, 1)
    );
}

async fn every_verdict_is_on_record(place: Place) {
    let store = place.subscribed().await;
    store.append_all((1..=5).map(event)).await;
    let claims = store.claim("crm", at(10)).await;
    let skipped = Verdict::Skipped {
        why: "of no use".to_owned(),
    };
    let verdicts = [
        (Verdict::Done, DeliveryState::Done, 1),
        (skipped, DeliveryState::Skipped, 1),
        (retry(200), DeliveryState::Ready, 1),
        (parked(), DeliveryState::Parked, 1),
        (Verdict::Released, DeliveryState::Ready, 0),
    ];
    for (claim, (verdict, state, attempts)) in claims.iter().zip(verdicts) {
        store.settle("crm", claim, verdict.clone()).await;
        let id = claim.notification.id;
        let delivery = delivery(&place, id);
        assert_eq!(
            (delivery.state, delivery.attempts),
            (state, attempts),
            "{verdict:?}"
        );
        let why = delivery
            .failures
            .first()
            .map(|failure| failure.why.as_str());
        let expected = match &verdict {
            Verdict::Retry { why, .. } | Verdict::Parked { why } => Some(why.as_str()),
            Verdict::Done | Verdict::Skipped { .. } | Verdict::Released => None,
        };
        assert_eq!(why, expected, "{verdict:?}");
    }
}

/// The delivery of an event to the only handler.
fn delivery(place: &Place, event: EventId) -> DeliveryDetails {
    let details = place.operator(|records| records.event(event)).unwrap();
    details.unwrap().deliveries.remove(0)
}

async fn a_retry_counts_from_the_first_attempt(place: Place) {
    let store = place.subscribed().await;
    store.append(&event(1)).await.unwrap();
    for attempt in 1..=3 {
        let now = at(1000 * i64::from(attempt));
        let claims = store.claim("crm", now).await;
        assert_eq!((claims[0].attempt, claims[0].since), (attempt, at(1000)));
        let settlement = Settlement {
            handler: "crm".into(),
            lease: claims[0].lease,
            verdict: retry(200),
            started_at: now,
            finished_at: now,
        };
        store.store.settle([settlement].into()).await.unwrap();
    }
}
