//! The operator's lists: what they find, and that their pages follow each other.

use tokio::task::JoinSet;

use super::{Opened, Place, at, event, everything, keyed, on_every_engine, parked, retry};
use crate::{
    event::{EventId, HandlerName, Key, Notification, Pattern},
    provider::Verified,
    store::{
        DeliveryState, EventFilter, EventList, HandlerSummary, ParkedFilter, Verdict,
        operator::MOST_LOOKED_AT,
    },
};

on_every_engine![
    events_are_found_by_each_of_their_subjects,
    events_are_found_by_what_became_of_their_deliveries,
    pages_of_events_follow_each_other,
    a_page_looks_at_a_bounded_number_of_events,
    parked_deliveries_are_listed_in_pages_and_counted_by_reason,
    handlers_are_listed_with_their_counts,
];

fn about(subjects: &[&str], n: u64) -> Notification {
    Notification {
        subjects: subjects
            .iter()
            .map(|subject| (*subject).to_owned())
            .collect(),
        ..event(n)
    }
}

fn page(place: &Place, filter: &EventFilter) -> EventList {
    place.operator(|records| records.events(filter)).unwrap()
}

/// The events of all pages, and the number of pages.
fn all_pages(place: &Place, mut filter: EventFilter) -> (Vec<EventId>, usize) {
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = page(place, &filter);
        pages += 1;
        found.extend(page.events.iter().map(|event| event.id));
        if page.next.is_none() {
            return (found, pages);
        }
        filter.before = page.next;
    }
}

/// The events that `filter` selects, newest first.
fn list(place: &Place, filter: EventFilter) -> Vec<EventId> {
    let filter = EventFilter {
        limit: 1000,
        ..filter
    };
    all_pages(place, filter).0
}

fn filter() -> EventFilter {
    EventFilter::default()
}

async fn events_are_found_by_each_of_their_subjects(place: Place) {
    let store = place.subscribed().await;
    let events = [
        about(&["+12025550143", "+12025550144"], 1),
        about(&["77001", "103"], 2),
        about(&["Reception"], 3),
        about(&["+12025550144"], 4),
        about(&[], 5),
    ];
    store.append_all(events.clone()).await;
    store.settle_down().await;
    for (text, numbers) in [
        ("+12025550143", vec![0]),
        ("(202) 555-0143", vec![0]),
        ("12025550144", vec![3, 0]),
        ("77001", vec![1]),
        ("103", vec![1]),
        (" reception", vec![2]),
        ("+77001", vec![]),
        ("+12025550145", vec![]),
        ("", vec![]),
    ] {
        let found = list(
            &place,
            EventFilter {
                about: Some(text.to_owned()),
                ..filter()
            },
        );
        let expected: Vec<_> = numbers.iter().map(|n| events[*n].id).collect();
        assert_eq!(found, expected, "{text:?}");
    }
    let by_number = EventFilter {
        about: Some("+12025550144".to_owned()),
        limit: 10,
        ..filter()
    };
    let page = page(&place, &by_number);
    assert_eq!(page.events[1].subjects, events[0].subjects);
    assert_eq!(page.incomplete_before, None);
    let since = Some(events[3].received_at);
    assert_eq!(
        list(
            &place,
            EventFilter {
                since,
                ..by_number.clone()
            }
        ),
        [events[3].id]
    );
    let until = since;
    assert_eq!(
        list(
            &place,
            EventFilter {
                until,
                ..by_number.clone()
            }
        ),
        [events[0].id]
    );
    let after = Some(events[0].id);
    assert_eq!(
        list(
            &place,
            EventFilter {
                after,
                ..by_number.clone()
            }
        ),
        [events[3].id]
    );
    let key = events[0].key.clone();
    assert_eq!(
        list(
            &place,
            EventFilter {
                key: key.clone(),
                ..by_number
            }
        ),
        [events[0].id]
    );
    assert_eq!(
        list(&place, EventFilter { key, ..filter() }),
        [events[0].id]
    );
}

/// Four events with deliveries to `crm` and `desk`: parked, failed once, skipped and done for `crm`,
/// and open for `desk`.
async fn with_four_states(place: &Place) -> (Opened, Vec<Notification>) {
    let store = place.open().await;
    let desk = super::Subscription {
        ordered: false,
        ..everything("desk")
    };
    store
        .store
        .subscribe(vec![everything("crm"), desk])
        .await
        .unwrap();
    let mut events: Vec<_> = (1..5).map(event).collect();
    events[1].endpoint = "other".into();
    store.append_all(events.clone()).await;
    let skipped = Verdict::Skipped {
        why: "Not of Interest".to_owned(),
    };
    for claim in store.claim("crm", at(10)).await {
        let number = events
            .iter()
            .position(|event| event.id == claim.notification.id);
        let verdict = match number {
            Some(0) => parked(),
            Some(1) => retry(10_000),
            Some(2) => skipped.clone(),
            _ => Verdict::Done,
        };
        store.settle("crm", &claim, verdict).await;
    }
    store.settle_down().await;
    (store, events)
}

async fn events_are_found_by_what_became_of_their_deliveries(place: Place) {
    let (_store, events) = with_four_states(&place).await;
    let crm = || EventFilter {
        handler: Some("crm".into()),
        ..filter()
    };
    let state = |state| Some(state);
    let why = |why: &str| Some(why.to_owned());
    for (filter, numbers) in [
        (crm(), vec![3, 2, 1, 0]),
        (
            EventFilter {
                handler: Some("nobody".into()),
                ..filter()
            },
            vec![],
        ),
        (
            EventFilter {
                endpoint: Some("other".into()),
                ..filter()
            },
            vec![1],
        ),
        (
            EventFilter {
                state: state(DeliveryState::Parked),
                ..filter()
            },
            vec![0],
        ),
        (
            EventFilter {
                state: state(DeliveryState::Skipped),
                ..filter()
            },
            vec![2],
        ),
        (
            EventFilter {
                state: state(DeliveryState::Done),
                ..crm()
            },
            vec![3],
        ),
        (
            EventFilter {
                state: state(DeliveryState::Queued),
                ..crm()
            },
            vec![1],
        ),
        (
            EventFilter {
                state: state(DeliveryState::Ready),
                ..filter()
            },
            vec![3, 2, 1, 0],
        ),
        (
            EventFilter {
                why: why("WILL NEVER"),
                ..filter()
            },
            vec![0],
        ),
        (
            EventFilter {
                why: why("busy"),
                ..filter()
            },
            vec![1],
        ),
        (
            EventFilter {
                why: why("of interest"),
                ..crm()
            },
            vec![2],
        ),
        (
            EventFilter {
                why: why("busy"),
                state: state(DeliveryState::Ready),
                ..filter()
            },
            vec![1],
        ),
        (
            EventFilter {
                why: why("busy"),
                state: state(DeliveryState::Parked),
                ..filter()
            },
            vec![],
        ),
        (
            EventFilter {
                why: why("busy"),
                handler: Some("desk".into()),
                ..filter()
            },
            vec![],
        ),
        (
            EventFilter {
                why: why("100%"),
                ..filter()
            },
            vec![],
        ),
    ] {
        let expected: Vec<_> = numbers.iter().map(|n| events[*n].id).collect();
        assert_eq!(list(&place, filter.clone()), expected, "{filter:?}");
    }
    let all = page(
        &place,
        &EventFilter {
            limit: 10,
            ..filter()
        },
    );
    let counts: Vec<_> = all
        .events
        .iter()
        .map(|event| (event.open, event.parked))
        .collect();
    assert_eq!(counts, [(1, 0), (1, 0), (2, 0), (1, 1)]);
}

async fn pages_of_events_follow_each_other(place: Place) {
    let store = place.subscribed().await;
    let events: Vec<_> = (0..24)
        .map(|n| Notification {
            key: Some(Key::from(["a", "b"][n as usize % 2])),
            ..about(
                &[["+12025550143", "+12025550144", "77001"][n as usize % 3]],
                n,
            )
        })
        .collect();
    store.append_all(events.clone()).await;
    // An ordered handler parks the first of each key, then the next.
    for _ in 0..4 {
        for claim in store.claim("crm", at(10)).await {
            store.settle("crm", &claim, parked()).await;
        }
    }
    store.settle_down().await;
    let newest_first = |is_wanted: &dyn Fn(usize) -> bool| -> Vec<_> {
        let wanted = (0..24).rev().filter(|n| is_wanted(*n));
        wanted.map(|n| events[n].id).collect()
    };
    let is_parked = |n: usize| {
        let shown = place.operator(|records| records.event(events[n].id));
        let deliveries = shown.unwrap().unwrap().deliveries;
        deliveries[0].state == DeliveryState::Parked
    };
    let about = |text: &str| EventFilter {
        about: Some(text.to_owned()),
        ..filter()
    };
    let in_state = |state| EventFilter {
        state: Some(state),
        ..filter()
    };
    for (filter, expected) in [
        (filter(), newest_first(&|_| true)),
        (about("+12025550143"), newest_first(&|n| n % 3 == 0)),
        (
            EventFilter {
                key: Some("b".into()),
                ..filter()
            },
            newest_first(&|n| n % 2 == 1),
        ),
        (in_state(DeliveryState::Parked), newest_first(&is_parked)),
        (
            in_state(DeliveryState::Ready),
            newest_first(&|n| !is_parked(n)),
        ),
    ] {
        assert!(!expected.is_empty());
        let (found, pages) = all_pages(
            &place,
            EventFilter {
                limit: 3,
                ..filter.clone()
            },
        );
        assert_eq!(found, expected, "{filter:?}");
        assert_eq!(
            pages,
            expected.len().div_ceil(3),
            "the last page says that it is: {filter:?}"
        );
    }
}

async fn a_page_looks_at_a_bounded_number_of_events(place: Place) {
    const EVENTS: usize = MOST_LOOKED_AT + 500;
    let store = place.subscribed().await;
    let events: Vec<_> = (0..EVENTS as u64).map(|n| keyed(n, "a")).collect();
    for some in events.chunks(500) {
        let mut appends = JoinSet::new();
        for event in some {
            let (store, event) = (store.store.clone(), Verified::unproven(event.clone()));
            appends.spawn(async move { store.append(event).await });
        }
        let appended = appends.join_all().await;
        assert!(appended.iter().all(Result::is_ok));
    }
    store.settle_down().await;
    let oldest = list(
        &place,
        EventFilter {
            until: Some(events[1].received_at),
            ..filter()
        },
    );
    assert_eq!(oldest, [events[0].id]);
    for none in [
        EventFilter {
            name: Some(Pattern::new("zoom.*").unwrap()),
            ..filter()
        },
        EventFilter {
            endpoint: Some("other".into()),
            key: Some("a".into()),
            ..filter()
        },
        EventFilter {
            why: Some("busy".to_owned()),
            ..filter()
        },
        EventFilter {
            state: Some(DeliveryState::Ready),
            endpoint: Some("other".into()),
            ..filter()
        },
    ] {
        let first = EventFilter {
            limit: 10,
            ..none.clone()
        };
        let first = page(&place, &first);
        assert!(first.events.is_empty());
        assert!(first.next.is_some(), "{none:?}");
        let (found, pages) = all_pages(
            &place,
            EventFilter {
                limit: 10,
                ..none.clone()
            },
        );
        assert_eq!((found.len(), pages), (0, 2), "{none:?}");
    }
}

async fn parked_deliveries_are_listed_in_pages_and_counted_by_reason(place: Place) {
    let store = place.open().await;
    store.subscribe(&["crm", "desk"]).await;
    let events: Vec<_> = (0..5).map(event).collect();
    store.append_all(events.clone()).await;
    for handler in ["crm", "desk"] {
        for claim in store.claim(handler, at(10)).await {
            let number = events
                .iter()
                .position(|event| event.id == claim.notification.id);
            let verdict = match (handler, number) {
                ("crm", Some(1)) => Verdict::Parked {
                    why: "Other".to_owned(),
                },
                ("desk", Some(1..)) => Verdict::Done,
                _ => parked(),
            };
            store.settle(handler, &claim, verdict).await;
        }
    }
    store.settle_down().await;
    let pages = |filter: ParkedFilter| {
        let (mut filter, mut found, mut pages) = (filter, Vec::new(), 0);
        loop {
            let page = place.operator(|records| records.parked(&filter)).unwrap();
            pages += 1;
            for parked in page.deliveries {
                let number = events
                    .iter()
                    .position(|event| event.id == parked.id)
                    .unwrap();
                found.push((number, parked.handler.to_string()));
            }
            let Some(next) = page.next else {
                return (found, pages);
            };
            filter.after = Some(next.to_string().parse().unwrap());
        }
    };
    let crm = |n: usize| (n, "crm".to_owned());
    let all = ParkedFilter {
        limit: 2,
        ..ParkedFilter::default()
    };
    let expected = vec![
        crm(0),
        (0, "desk".to_owned()),
        crm(1),
        crm(2),
        crm(3),
        crm(4),
    ];
    assert_eq!(pages(all.clone()), (expected, 3));
    let of_desk = ParkedFilter {
        handler: Some("desk".into()),
        ..all.clone()
    };
    assert_eq!(pages(of_desk), (vec![(0, "desk".to_owned())], 1));
    let other = ParkedFilter {
        why: Some("oTHER".to_owned()),
        ..all
    };
    assert_eq!(pages(other), (vec![crm(1)], 1));
    assert!("crm".parse::<crate::store::ParkedCursor>().is_err());

    let reasons = place.operator(|records| records.parked_reasons()).unwrap();
    let counts: Vec<_> = reasons
        .iter()
        .map(|reason| (reason.handler.as_str(), reason.why.as_str(), reason.count))
        .collect();
    assert_eq!(counts[0], ("crm", "it will never do", 4));
    assert!(counts.contains(&("desk", "it will never do", 1)));
    assert!(counts.contains(&("crm", "Other", 1)));
    assert_eq!(counts.len(), 3);
    assert_eq!(reasons[0].oldest, events[0].received_at);
    assert!(reasons.iter().all(|reason| !reason.at_least));
}

async fn handlers_are_listed_with_their_counts(place: Place) {
    let (_store, events) = with_four_states(&place).await;
    let expected = |handler: &str, open, parked, oldest: usize| HandlerSummary {
        handler: HandlerName::from(handler),
        configured: true,
        open,
        parked,
        oldest_open: Some(events[oldest].received_at),
    };
    let handlers = place.operator(|records| records.handlers()).unwrap();
    assert_eq!(
        handlers,
        [expected("crm", 1, 1, 1), expected("desk", 4, 0, 0)]
    );
}
