//! `/live`: a stream of server-sent events that tells a page when to refresh its live parts.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::header;
use tokio::time::sleep;

use super::{AdminState, Problem, Role};
use crate::http::InFlight;

/// How often a page is refreshed.
const INTERVAL: Duration = Duration::from_secs(2);

/// One refresh.
const REFRESH: Bytes = Bytes::from_static(b"data: refresh\n\n");

pub(super) async fn stream(State(state): State<Arc<AdminState>>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    if let Err(denied) = state.admit(&head, Role::Read).await {
        return Problem::from(denied).into_response();
    }
    let place = match state.streams.take() {
        Ok(place) => place,
        Err(problem) => return problem.into_response(),
    };
    // The connection is closed for being idle when the request is no longer in flight.
    let in_flight = head.extensions.get::<Arc<InFlight>>().cloned();
    let refreshes = stream::unfold((place, in_flight), async |state| {
        let draining = async {
            match &state.1 {
                Some(in_flight) => in_flight.draining().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep(INTERVAL) => Some((Ok::<_, Infallible>(REFRESH), state)),
            () = draining => None,
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream")];
    (headers, Body::from_stream(refreshes)).into_response()
}
