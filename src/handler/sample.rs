//! One event and one attempt for the tests of this floor.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{BuildContext, DeliveryContext};
use crate::event::{EventId, EventName, Key, Notification};

/// An event with `body` and with all of its facts.
pub(super) fn notification(body: &str) -> Notification {
    Notification {
        id: EventId::from_bytes([
            0x01, 0x92, 0xf0, 0xc1, 0x2a, 0x3b, 0x7c, 0x4d, 0x8e, 0x5f, 0x60, 0x71, 0x82, 0x93,
            0xa4, 0xb5,
        ]),
        endpoint: "front door".into(),
        name: EventName::new("zoom.number-management.unrecognized"),
        key: Some(Key::new("zoom.number-management:acme:17")),
        subjects: vec!["+12025550143".to_owned()],
        occurred_at: "2026-03-04T05:06:07Z".parse().ok(),
        received_at: "2026-03-04T05:06:08.25Z".parse().unwrap_or_default(),
        topics: Vec::new(),
        dedupe: Vec::new(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

/// The context in which a handler is built.
pub(super) fn build_context() -> BuildContext {
    BuildContext::new("sample".into(), 8, Duration::from_secs(10))
}

/// The context of its third attempt.
pub(super) fn context() -> DeliveryContext {
    DeliveryContext {
        handler: "sample".into(),
        attempt: 3,
        deadline: Instant::now() + Duration::from_secs(10),
        started_at: "2026-03-04T06:00:00Z".parse().unwrap_or_default(),
        replay: None,
        replays: 0,
        superseded: true,
    }
}
