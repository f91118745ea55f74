//! The contents of records about deliveries, and of subscriptions.

use jiff::Timestamp;

use super::Personal;
use crate::{
    event::{HandlerName, Pattern},
    store::{
        Attempt, DeliverySnapshot, DeliveryState, Subscription,
        embedded::{
            codec::{
                put_integer, put_list, put_option, put_text, take_array, take_integer, take_list,
                take_option, take_text, take_u32,
            },
            segment::Position,
        },
    },
};

pub(super) fn put_delivery(out: &mut Vec<u8>, (position, delivery): &(Position, DeliverySnapshot)) {
    put_integer(out, position.to_sql());
    out.push(match delivery.state {
        DeliveryState::Ready | DeliveryState::Queued => 1,
        DeliveryState::Parked => 2,
        DeliveryState::Done => 3,
        DeliveryState::Skipped => 4,
    });
    out.extend_from_slice(&delivery.replays.to_le_bytes());
    out.extend_from_slice(&delivery.attempts.to_le_bytes());
    put_integer(out, delivery.at.as_microsecond());
    put_option(out, delivery.since, |out, since| {
        put_integer(out, since.as_microsecond());
    });
    put_list(out, &delivery.failures, |out, failure| {
        put_integer(out, failure.started_at.as_microsecond());
        put_integer(out, failure.took_ms.cast_signed());
    });
}

pub(super) fn put_reasons(out: &mut Vec<u8>, delivery: &DeliverySnapshot) {
    put_option(out, delivery.replay.as_deref(), put_text);
    put_option(out, delivery.why.as_deref(), put_text);
    put_list(out, &delivery.failures, |out, failure| {
        put_text(out, &failure.why)
    });
}

pub(super) fn take_deliveries(
    public: &mut &[u8],
    personal: &mut &[u8],
    state: Personal,
) -> Option<Vec<(Position, DeliverySnapshot)>> {
    let handler = HandlerName::from(take_text(public)?);
    let mut deliveries = take_list(public, |bytes| take_delivery(bytes, &handler))?;
    if state == Personal::Whole {
        for (_, delivery) in &mut deliveries {
            take_reasons(personal, delivery)?;
        }
    }
    Some(deliveries)
}

pub(super) fn take_delivery(
    bytes: &mut &[u8],
    handler: &HandlerName,
) -> Option<(Position, DeliverySnapshot)> {
    let position = Position::from_sql(take_integer(bytes)?);
    let state = match take_array(bytes)? {
        [1] => DeliveryState::Ready,
        [2] => DeliveryState::Parked,
        [3] => DeliveryState::Done,
        [4] => DeliveryState::Skipped,
        _ => return None,
    };
    let delivery = DeliverySnapshot {
        handler: handler.clone(),
        ordered: false,
        state,
        replays: take_u32(bytes)?,
        attempts: take_u32(bytes)?,
        at: take_micros(bytes)?,
        since: take_option(bytes, take_micros)?,
        replay: None,
        why: None,
        failures: take_list(bytes, |bytes| {
            Some(Attempt {
                started_at: take_micros(bytes)?,
                took_ms: take_integer(bytes)?.cast_unsigned(),
                why: String::new(),
            })
        })?,
    };
    Some((position, delivery))
}

pub(super) fn take_reasons(bytes: &mut &[u8], delivery: &mut DeliverySnapshot) -> Option<()> {
    delivery.replay = take_option(bytes, take_text)?.map(str::to_owned);
    delivery.why = take_option(bytes, take_text)?.map(str::to_owned);
    let reasons = take_list(bytes, take_text)?;
    for (failure, why) in delivery.failures.iter_mut().zip(reasons) {
        why.clone_into(&mut failure.why);
    }
    Some(())
}

pub(super) fn take_micros(bytes: &mut &[u8]) -> Option<Timestamp> {
    Timestamp::from_microsecond(take_integer(bytes)?).ok()
}

/// Encodes subscriptions, for records and for the ledger.
pub(in super::super) fn put_subscriptions(out: &mut Vec<u8>, subscriptions: &[Subscription]) {
    put_list(out, subscriptions, |out, subscription| {
        put_text(out, subscription.handler.as_str());
        out.push(u8::from(subscription.ordered));
        put_list(out, &subscription.patterns, |out, pattern| {
            put_text(out, &pattern.to_string());
        });
    });
}

/// Reverses [`put_subscriptions`].
pub(in super::super) fn take_subscriptions(bytes: &mut &[u8]) -> Option<Vec<Subscription>> {
    take_list(bytes, |bytes| {
        let handler = HandlerName::from(take_text(bytes)?);
        let [ordered] = take_array(bytes)?;
        // A pattern that this version cannot parse matches nothing.
        let patterns = take_list(bytes, take_text)?.into_iter();
        Some(Subscription {
            handler,
            patterns: patterns
                .filter_map(|text| Pattern::new(text).ok())
                .collect(),
            ordered: ordered == 1,
        })
    })
}
