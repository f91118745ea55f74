//! The operator's side: lists, the details of an event, replays.

use super::{Opened, Place, at, event, everything, ids, keyed, on_every_engine, parked, retry};
use crate::{
    event::{HandlerName, Key, Pattern},
    store::{
        DeliveryState, EventFilter, ParkedFilter, ReplaySelection, StoreError, Subscription,
        Verdict,
    },
};

on_every_engine![
    events_are_listed_newest_first_and_filtered,
    one_event_is_shown_whole_with_its_deliveries,
    parked_deliveries_are_listed_with_their_reason,
    parked_deliveries_can_be_skipped,
    a_replay_keeps_its_place_in_the_order_and_is_marked,
    a_replay_has_a_number_that_its_attempts_share,
    a_replay_of_a_delivery_in_flight_follows_it,
    a_replay_does_not_wait_for_the_retry_before_it,
    a_replay_never_runs_beside_another_delivery_of_its_key,
    a_replay_to_a_named_handler_needs_no_pattern,
    a_long_replay_is_made_in_slices,
];

pub(in crate::store) fn all_parked() -> ParkedFilter {
    ParkedFilter {
        limit: 1000,
        ..ParkedFilter::default()
    }
}

fn all_events() -> EventFilter {
    EventFilter {
        limit: 1000,
        ..EventFilter::default()
    }
}

fn replay(place: &Place, selection: &ReplaySelection, now: i64) -> u64 {
    place.operator(|records| {
        let planned = records.plan(selection).unwrap();
        let mut reported = 0;
        let made = records
            .replay(selection, "mended", at(now), &mut |n| reported = n)
            .unwrap();
        assert_eq!(made, planned);
        assert_eq!(reported, made.total());
        made.total()
    })
}

async fn with_parked(place: &Place) -> (Opened, Vec<crate::event::Notification>) {
    let store = place.subscribed().await;
    let events = vec![keyed(1, "a"), keyed(2, "a"), keyed(3, "a")];
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], parked()).await;
    (store, events)
}

async fn events_are_listed_newest_first_and_filtered(place: Place) {
    let store = place.subscribed().await;
    let mut events: Vec<_> = (0..5)
        .map(|n| keyed(n, ["a", "b"][n as usize % 2]))
        .collect();
    events[2].name = "zoom.unrecognized".into();
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], parked()).await;
    let list = |filter: EventFilter| -> Vec<_> {
        let found = place
            .operator(|records| records.events(&filter))
            .unwrap()
            .events;
        found.iter().map(|event| event.id).collect()
    };
    let pick = |numbers: &[usize]| -> Vec<_> { numbers.iter().map(|n| events[*n].id).collect() };
    assert_eq!(list(all_events()), pick(&[4, 3, 2, 1, 0]));
    assert_eq!(
        list(EventFilter {
            limit: 2,
            ..all_events()
        }),
        pick(&[4, 3])
    );
    let since = Some(events[1].received_at);
    let until = Some(events[4].received_at);
    assert_eq!(
        list(EventFilter {
            since,
            until,
            ..all_events()
        }),
        pick(&[3, 2, 1])
    );
    let name = Some(Pattern::new("zoom.*").unwrap());
    assert_eq!(
        list(EventFilter {
            name,
            ..all_events()
        }),
        pick(&[2])
    );
    let key = Some(Key::from("b"));
    assert_eq!(
        list(EventFilter {
            key,
            ..all_events()
        }),
        pick(&[3, 1])
    );
    let listed = place.operator(|records| records.events(&all_events()));
    let first = &listed.unwrap().events[4];
    assert_eq!((first.open, first.parked), (0, 1));
    assert_eq!(
        (&first.endpoint, first.occurred_at),
        (&events[0].endpoint, events[0].occurred_at)
    );
}

async fn one_event_is_shown_whole_with_its_deliveries(place: Place) {
    let store = place.subscribed().await;
    store.append(&event(1)).await.unwrap();
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], retry(200)).await;
    let show = |id| place.operator(|records| records.event(id)).unwrap();
    let record = show(claims[0].notification.id).unwrap();
    assert_eq!(&record.notification, &*claims[0].notification);
    let delivery = &record.deliveries[0];
    assert_eq!(
        (delivery.state, delivery.attempts),
        (DeliveryState::Ready, 1)
    );
    assert_eq!((delivery.due_at, delivery.ended_at), (Some(at(200)), None));
    assert_eq!(
        (
            delivery.failures[0].took_ms,
            delivery.failures[0].why.as_str()
        ),
        (1000, "it is busy")
    );
    assert!(show(event(2).id).is_none());
}

async fn parked_deliveries_are_listed_with_their_reason(place: Place) {
    let (_store, events) = with_parked(&place).await;
    let list = |filter: ParkedFilter| {
        let listed = place.operator(|records| records.parked(&filter));
        listed.unwrap().deliveries
    };
    let parked = list(all_parked());
    assert_eq!(parked.len(), 1);
    let one = &parked[0];
    assert_eq!(
        (one.id, one.attempts, one.parked_at),
        (events[0].id, 1, at(101))
    );
    assert_eq!(
        (one.why.as_str(), one.key.as_ref()),
        ("it will never do", Some(&Key::from("a")))
    );
    let other = ParkedFilter {
        handler: Some("other".into()),
        ..all_parked()
    };
    assert!(list(other).is_empty());
}

async fn parked_deliveries_can_be_skipped(place: Place) {
    let (store, events) = with_parked(&place).await;
    let skip = |asked: &[(usize, &str)]| {
        let asked = asked.iter();
        let asked: Vec<_> = asked
            .map(|(number, handler)| (events[*number].id, HandlerName::from(*handler)))
            .collect();
        let skipped = place.operator(|records| records.skip(&asked, "it is known there", at(30)));
        skipped.unwrap()
    };
    // A delivery that is not parked, one to an unknown handler, and the parked one twice.
    let all = [(1, "crm"), (0, "nobody"), (0, "crm"), (0, "crm")];
    assert_eq!(skip(&all), 1);
    assert_eq!(skip(&all), 0);
    let listed = place.operator(|records| records.parked(&all_parked()));
    assert!(listed.unwrap().deliveries.is_empty());
    store.store.measure(at(31)).await.unwrap();
    let crm = (&HandlerName::from("crm")).into();
    let counted = place.metrics.parked_deliveries.get_or_create(&crm).get();
    assert_eq!(counted, 0);
    let shown = place.operator(|records| records.event(events[0].id));
    let delivery = &shown.unwrap().unwrap().deliveries[0];
    assert_eq!(delivery.state, DeliveryState::Skipped);
    assert_eq!((delivery.due_at, delivery.ended_at), (None, Some(at(30))));
    assert_eq!(delivery.why.as_deref(), Some("it is known there"));
    assert_eq!(store.drain("crm").await, [events[1].id, events[2].id]);
}

async fn a_replay_keeps_its_place_in_the_order_and_is_marked(place: Place) {
    let (store, events) = with_parked(&place).await;
    let selection = ReplaySelection {
        parked_only: true,
        ..ReplaySelection::default()
    };
    assert_eq!(replay(&place, &selection, 20), 1);
    let claims = store.claim("crm", at(20)).await;
    assert_eq!(ids(&claims), [events[0].id], "the older one goes first");
    assert_eq!(
        (claims[0].attempt, claims[0].replay.as_deref()),
        (1, Some("mended"))
    );
    store.settle("crm", &claims[0], Verdict::Done).await;
    assert_eq!(store.drain("crm").await, [events[1].id, events[2].id]);
}

async fn a_replay_has_a_number_that_its_attempts_share(place: Place) {
    let (store, events) = with_parked(&place).await;
    let selection = ReplaySelection {
        ids: vec![events[0].id],
        ..ReplaySelection::default()
    };
    for number in [1, 2] {
        assert_eq!(replay(&place, &selection, 20), 1);
        for verdict in [retry(20), parked()] {
            let claims = store.claim("crm", at(20)).await;
            let replays: Vec<_> = claims.iter().map(|claim| claim.replays).collect();
            assert_eq!((ids(&claims), replays), (vec![events[0].id], vec![number]));
            store.settle("crm", &claims[0], verdict).await;
        }
    }
    let claims = store.claim("crm", at(20)).await;
    assert_eq!((ids(&claims)[0], claims[0].replays), (events[1].id, 0));
}

async fn a_replay_of_a_delivery_in_flight_follows_it(place: Place) {
    let (store, events) = with_parked(&place).await;
    let in_flight = store.claim("crm", at(20)).await;
    let selection = ReplaySelection {
        ids: vec![events[1].id],
        ..ReplaySelection::default()
    };
    assert_eq!(replay(&place, &selection, 20), 1);
    assert!(store.claim("crm", at(20)).await.is_empty());
    store.settle("crm", &in_flight[0], Verdict::Done).await;
    let claims = store.claim("crm", at(20)).await;
    assert_eq!(ids(&claims), [events[1].id]);
    assert_eq!(claims[0].replay.as_deref(), Some("mended"));
}

async fn a_replay_does_not_wait_for_the_retry_before_it(place: Place) {
    let (store, events) = with_parked(&place).await;
    let in_flight = store.claim("crm", at(20)).await;
    assert_eq!(ids(&in_flight), [events[1].id]);
    let selection = ReplaySelection {
        ids: vec![events[1].id],
        ..ReplaySelection::default()
    };
    assert_eq!(replay(&place, &selection, 20), 1);
    store.settle("crm", &in_flight[0], retry(1000)).await;
    let claims = store.claim("crm", at(21)).await;
    assert_eq!(ids(&claims), [events[1].id]);
    assert_eq!(
        (claims[0].attempt, claims[0].replay.as_deref()),
        (1, Some("mended"))
    );
}

async fn a_replay_never_runs_beside_another_delivery_of_its_key(place: Place) {
    let (store, events) = with_parked(&place).await;
    let in_flight = store.claim("crm", at(20)).await;
    assert_eq!(ids(&in_flight), [events[1].id]);
    let selection = ReplaySelection {
        ids: vec![events[0].id],
        ..ReplaySelection::default()
    };
    assert_eq!(replay(&place, &selection, 20), 1);
    assert!(store.claim("crm", at(20)).await.is_empty());
    store.settle("crm", &in_flight[0], retry(30)).await;
    let claims = store.claim("crm", at(40)).await;
    assert_eq!(
        ids(&claims),
        [events[0].id],
        "the older one, though the other is due as well"
    );
    store.settle("crm", &claims[0], Verdict::Done).await;
    assert_eq!(store.drain("crm").await, [events[1].id, events[2].id]);
}

async fn a_replay_to_a_named_handler_needs_no_pattern(place: Place) {
    let store = place.open().await;
    let none = Subscription {
        patterns: vec![Pattern::new("zoom.*").unwrap()],
        ..everything("late")
    };
    store
        .store
        .subscribe(vec![everything("crm"), none])
        .await
        .unwrap();
    store.append_all((0..3).map(event)).await;
    assert_eq!(store.drain("crm").await.len(), 3);
    assert!(store.claim("late", at(10)).await.is_empty());
    let late = ReplaySelection {
        handlers: vec!["late".into()],
        since: Some(event(1).received_at),
        ..ReplaySelection::default()
    };
    assert_eq!(replay(&place, &late, 20), 2);
    store.settle_down().await;
    let open = &place.metrics.open_deliveries;
    let late = (&HandlerName::from("late")).into();
    assert_eq!(open.get_or_create(&late).get(), 2);
    assert_eq!(store.drain("late").await.len(), 2);
    store.settle_down().await;
    assert_eq!(open.get_or_create(&late).get(), 0);
    let everyone = ReplaySelection::default();
    let planned = place.operator(|records| records.plan(&everyone)).unwrap();
    assert_eq!(
        planned.deliveries,
        [
            (HandlerName::from("crm"), 3),
            (HandlerName::from("late"), 2)
        ]
    );
    let unknown = ReplaySelection {
        handlers: vec!["nobody".into()],
        ..ReplaySelection::default()
    };
    assert!(matches!(
        place.operator(|records| records.plan(&unknown)),
        Err(StoreError::UnknownHandler(_))
    ));
}

async fn a_long_replay_is_made_in_slices(place: Place) {
    let store = place.subscribed().await;
    store.append_all((0..700).map(event)).await;
    assert_eq!(store.drain("crm").await.len(), 700);
    let mut reported = Vec::new();
    let selection = ReplaySelection::default();
    let made = place
        .operator(|records| records.replay(&selection, "again", at(20), &mut |n| reported.push(n)))
        .unwrap();
    assert_eq!(made.total(), 700);
    assert!(reported.len() > 2 && reported.is_sorted(), "{reported:?}");
    assert_eq!(store.drain("crm").await.len(), 700);
}
