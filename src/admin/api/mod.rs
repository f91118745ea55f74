//! The API of the admin server, below `/api/v1`.
//!
//! [`operations`] is the table of all operations. The router and the OpenAPI document, which is served
//! as `/api/v1/openapi.json`, are made from it. Errors are problem details: see [`problem`].
//!
//! # How to add an operation
//!
//! Write one function beside the others of its subject, and add one line to [`operations`].

pub(super) mod audit;
pub(super) mod endpoints;
pub(super) mod events;
pub(super) mod handlers;
mod openapi;
mod operation;
pub(super) mod parked;
pub(super) mod problem;
pub(super) mod status;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::to_bytes,
    extract::{RawPathParams, Request, State},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, on},
};
use http::{Method, header};

use self::{operation::Operation, problem::Problem};
use super::{AdminState, access::Role};

pub(super) use operation::{Context, NoParameters, parse};

/// Where the API is.
pub(super) const PREFIX: &str = "/api/v1";

/// The largest body of a request, in bytes.
const MAX_BODY: usize = 64 << 10;

/// Every operation of the API.
fn operations() -> Vec<Operation> {
    vec![
        Operation::get(
            "/status",
            "status",
            "What is wrong, and what to do",
            status::get,
        ),
        Operation::get("/endpoints", "endpoints", "The endpoints", endpoints::list),
        Operation::get("/handlers", "handlers", "The handlers", handlers::list),
        Operation::post(
            "/handlers/{name}/pause",
            "pause",
            "Have a handler begin no attempt",
            handlers::pause,
        ),
        Operation::post(
            "/handlers/{name}/resume",
            "resume",
            "Have a handler go on",
            handlers::resume,
        ),
        Operation::get(
            "/audit",
            "audit",
            "What operators have done, newest first",
            audit::list,
        ),
        Operation::get(
            "/events",
            "events",
            "Stored events, newest first",
            events::list,
        ),
        Operation::get(
            "/events/{id}",
            "event",
            "One event with its deliveries",
            events::show,
        ),
        Operation::bytes(
            "/events/{id}/body",
            "body",
            "The body, byte for byte",
            events::body,
        )
        .for_role(Role::Raw),
        Operation::get(
            "/parked",
            "parked",
            "Parked deliveries, oldest first",
            parked::list,
        ),
        Operation::get(
            "/parked/reasons",
            "reasons",
            "Why deliveries are parked",
            parked::reasons,
        ),
    ]
}

/// The routes of the API.
pub(super) fn router() -> Router<Arc<AdminState>> {
    let operations = operations();
    let document = openapi::document(&operations).to_string();
    let mut by_path: BTreeMap<&'static str, MethodRouter<Arc<AdminState>>> = BTreeMap::new();
    for operation in operations {
        let (path, method) = (operation.path, filter(&operation.method));
        let operation = Arc::new(operation);
        let route = move |state: State<Arc<AdminState>>, path: RawPathParams, request: Request| {
            let operation = Arc::clone(&operation);
            async move { answer(&operation, &state, &path, request).await }
        };
        let methods = by_path.remove(path).unwrap_or_default();
        by_path.insert(path, methods.on(method, route));
    }
    let mut router = Router::new();
    for (path, methods) in by_path {
        router = router.route(path, methods);
    }
    let serve_document = async move |State(state): State<Arc<AdminState>>, request: Request| {
        let (head, _) = request.into_parts();
        let admitted = state.admit(&head, Role::Read).await;
        admitted
            .map(|_| ([(header::CONTENT_TYPE, "application/json")], document))
            .map_err(Problem::from)
    };
    router
        .route("/openapi.json", on(MethodFilter::GET, serve_document))
        .fallback(async || Problem::absent("the paths are in /api/v1/openapi.json"))
}

fn filter(method: &Method) -> MethodFilter {
    match *method {
        Method::POST => MethodFilter::POST,
        _ => MethodFilter::GET,
    }
}

/// Admits `request`, and has `operation` answer it.
async fn answer(
    operation: &Operation,
    state: &AdminState,
    path: &RawPathParams,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let caller = match state.admit(&head, operation.role).await {
        Ok(caller) => caller,
        Err(denied) => return Problem::from(denied).into_response(),
    };
    let context = match state.context(caller, &head) {
        Ok(context) => context,
        Err(problem) => return problem.into_response(),
    };
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return Problem::invalid("the body is too long, or broke off").into_response();
    };
    let request = operation::Request {
        context,
        body,
        parameters: parameters(path, head.uri.query()),
    };
    operation.answer(request).await
}

/// The parameters of path and query, as a query has them.
pub(super) fn parameters(path: &RawPathParams, query: Option<&str>) -> String {
    let query = query.unwrap_or_default();
    let mut parameters = form_urlencoded::Serializer::new(query.to_owned());
    parameters.extend_pairs(path).finish()
}
