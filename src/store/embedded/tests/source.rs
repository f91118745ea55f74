//! Events on their way out, to another store.

use bytes::Bytes;

use super::Place;
use crate::{
    event::{EventId, Notification},
    store::{
        Context, Engine,
        tests::{event, everything},
    },
};

/// An event of 1 MiB.
fn large(n: u64) -> Notification {
    Notification {
        body: Bytes::from(vec![b'x'; 1 << 20]),
        ..event(n)
    }
}

/// The ids of all events, by the slices in which they are read.
fn slices(place: &Place) -> Vec<Vec<EventId>> {
    let context = Context {
        metrics: place.metrics.clone(),
        clock: place.clock,
        rebuild: std::sync::Arc::new(|_, _| {}),
    };
    let source = place.settings.source(context, vec![everything("crm")]);
    let (source, mut watermark, mut slices) = (source.unwrap(), i64::MIN, Vec::new());
    while let Some(slice) = source.read(watermark, 500).unwrap() {
        watermark = slice.last.place;
        let stored = slice.stored.iter();
        slices.push(stored.map(|stored| stored.notification.id).collect());
    }
    slices
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_are_read_in_small_slices() {
    let place = Place::new();
    let store = place.open();
    let events: Vec<_> = (0..10).map(large).collect();
    store.append_all(events.clone()).await;
    store.close().await;
    let slices = tokio::task::block_in_place(|| slices(&place));
    let sizes: Vec<_> = slices.iter().map(Vec::len).collect();
    assert_eq!(sizes, [4, 4, 2]);
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(slices.concat(), ids);
}
