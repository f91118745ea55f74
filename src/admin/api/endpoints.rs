//! `/endpoints`: who posts, and how that goes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Context, NoParameters, Problem};
use crate::{admin::console::Console, http::EndpointStatus};

/// An endpoint. Counts and times begin with the process.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Endpoint {
    /// Its name in the TOML.
    pub name: String,
    /// The family of events that it is for.
    pub family: &'static str,
    /// The company that posts to it.
    pub provider: &'static str,
    /// The path that the provider posts to.
    pub path: String,
    /// When it last stored an event.
    pub last_event: Option<Timestamp>,
    /// When the provider last made a handshake.
    pub last_handshake: Option<Timestamp>,
    /// The number of requests by answer: `stored`, `handshake`, or why the request was refused.
    pub answers: BTreeMap<&'static str, u64>,
}

impl From<EndpointStatus> for Endpoint {
    fn from(endpoint: EndpointStatus) -> Self {
        Self {
            name: endpoint.name.to_string(),
            family: endpoint.family,
            provider: endpoint.family.split('.').next().unwrap_or_default(),
            path: endpoint.path,
            last_event: endpoint.last_event,
            last_handshake: endpoint.last_handshake,
            answers: endpoint.answers.into_iter().collect(),
        }
    }
}

impl Endpoint {
    /// The number of requests whose event was stored.
    pub fn stored(&self) -> u64 {
        self.answers.get(STORED).copied().unwrap_or(0)
    }

    /// The number of requests that were neither stored nor handshakes.
    pub fn refused(&self) -> u64 {
        let refused = self
            .answers
            .iter()
            .filter(|(answer, _)| ![STORED, HANDSHAKE].contains(answer));
        refused.map(|(_, count)| count).sum()
    }
}

/// The answers to requests that are all right.
const STORED: &str = "stored";
const HANDSHAKE: &str = "handshake";

pub(super) async fn list(context: Context, _: NoParameters) -> Result<Vec<Endpoint>, Problem> {
    Ok(all(&context.console))
}

/// The endpoints by name.
pub(in super::super) fn all(console: &Console) -> Vec<Endpoint> {
    let endpoints = console.webhook.endpoints();
    endpoints.into_iter().map(Endpoint::from).collect()
}
