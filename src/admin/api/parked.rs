//! `/parked`: deliveries that wait for a person.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, NoParameters, Problem,
    events::{limit, unless_empty},
};
use crate::{
    admin::mask,
    event::HandlerName,
    store::{ParkedDelivery, ParkedFilter, ParkedReason},
};

/// Which parked deliveries to list. All conditions must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in super::super) struct Filter {
    /// The handler.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 256))]
    pub handler: Option<String>,
    /// A part of the reason.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 256))]
    pub why: Option<String>,
    /// The `next` of the page before. Any other text is answered 404.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 256))]
    pub after: Option<String>,
    /// The most deliveries of a page.
    #[schemars(range(min = 1, max = 200))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// One page of parked deliveries, oldest first.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Page {
    /// The deliveries. There may be fewer than the limit, or none, though later ones match.
    pub deliveries: Vec<Parked>,
    /// The `after` of the next page; null when there is nothing behind.
    pub next: Option<String>,
}

/// A parked delivery.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Parked {
    /// The event's id.
    pub id: String,
    /// The event's name.
    pub name: String,
    pub handler: String,
    /// When the event was received.
    pub received_at: Timestamp,
    pub parked_at: Timestamp,
    pub attempts: u32,
    /// Why it is parked. Long numbers are masked.
    pub why: String,
}

/// The parked deliveries of one handler that have the same reason.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Reason {
    pub handler: String,
    /// The reason. Long numbers are masked.
    pub why: String,
    pub count: u64,
    /// Whether there may be more.
    pub at_least: bool,
    /// When the oldest of their events was received.
    pub oldest: Timestamp,
}

/// One page of parked deliveries.
pub(in super::super) async fn list(context: Context, filter: Filter) -> Result<Page, Problem> {
    let after = filter.after.map(|cursor| cursor.parse()).transpose();
    let filter = ParkedFilter {
        handler: filter.handler.as_deref().map(HandlerName::from),
        why: filter.why,
        after: after.map_err(|_| Problem::absent("`after` is the `next` of a page"))?,
        limit: limit(filter.limit)?,
    };
    let listed = context
        .console
        .ask(move |operator| operator.parked(&filter))
        .await?;
    Ok(Page {
        deliveries: listed.deliveries.into_iter().map(Parked::from).collect(),
        next: listed.next.map(|cursor| cursor.to_string()),
    })
}

/// The reasons, most frequent first.
pub(in super::super) async fn reasons(
    context: Context,
    _: NoParameters,
) -> Result<Vec<Reason>, Problem> {
    let reasons = context
        .console
        .ask(|operator| operator.parked_reasons())
        .await?;
    Ok(reasons.into_iter().map(Reason::from).collect())
}

impl From<ParkedDelivery> for Parked {
    fn from(parked: ParkedDelivery) -> Self {
        Self {
            id: parked.id.to_string(),
            name: parked.name.to_string(),
            handler: parked.handler.to_string(),
            received_at: parked.received_at,
            parked_at: parked.parked_at,
            attempts: parked.attempts,
            why: mask::text(&parked.why),
        }
    }
}

impl From<ParkedReason> for Reason {
    fn from(reason: ParkedReason) -> Self {
        Self {
            handler: reason.handler.to_string(),
            why: mask::text(&reason.why),
            count: reason.count,
            at_least: reason.at_least,
            oldest: reason.oldest,
        }
    }
}
