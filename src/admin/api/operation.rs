//! One operation of the API: its route, its role, its schemas and its code, in one line of a table.
//! The router and the OpenAPI document are made from the same table, so that neither can lack what
//! the other has.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Method, header};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    super::{
        access::{Caller, Role},
        console::Console,
    },
    problem::Problem,
};
use crate::store::BoxFuture;

/// An operation of the API.
pub(in super::super) struct Operation {
    pub method: Method,
    /// The path below `/api/v1`; `{name}` stands for a parameter.
    pub path: &'static str,
    /// The name of the operation in clients that are generated.
    pub id: &'static str,
    pub summary: &'static str,
    /// The role that a caller needs.
    pub role: Role,
    /// The parameters of path and query.
    pub parameters: fn(&mut SchemaGenerator) -> Schema,
    /// The body of the request, where there is one.
    pub body: Option<fn(&mut SchemaGenerator) -> Schema>,
    pub answer: Answer,
    call: Box<dyn Fn(Request) -> BoxFuture<'static, Result<Response, Problem>> + Send + Sync>,
}

/// What an operation answers.
pub(in super::super) enum Answer {
    /// JSON of this schema.
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// Bytes of this media type.
    Bytes(&'static str),
}

/// A request that has been admitted.
pub(in super::super) struct Request {
    pub context: Context,
    /// The parameters of path and query, as a query has them.
    pub parameters: String,
    pub body: Bytes,
}

/// Who asks, and whom.
#[derive(Clone)]
pub(in super::super) struct Context {
    pub console: Arc<Console>,
    pub caller: Caller,
    /// The server, as the request addresses it: `http://127.0.0.1:9090`.
    pub origin: String,
}

impl Operation {
    /// An operation that changes nothing, and answers JSON.
    pub(super) fn get<P, A, F>(
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        call: fn(Context, P) -> F,
    ) -> Self
    where
        P: DeserializeOwned + JsonSchema + Send + 'static,
        A: Serialize + JsonSchema + 'static,
        F: Future<Output = Result<A, Problem>> + Send + 'static,
    {
        let respond = move |context, parameters| {
            let answer = call(context, parameters);
            async move { Ok(json(&answer.await?)) }
        };
        let answer = Answer::Json(A::json_schema);
        Self::respond(path, id, summary, answer, respond)
    }

    /// An operation that changes nothing, and answers bytes.
    pub(super) fn bytes<P, F>(
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        call: fn(Context, P) -> F,
    ) -> Self
    where
        P: DeserializeOwned + JsonSchema + Send + 'static,
        F: Future<Output = Result<Response, Problem>> + Send + 'static,
    {
        let answer = Answer::Bytes("application/octet-stream");
        Self::respond(path, id, summary, answer, call)
    }

    fn respond<P, F>(
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        answer: Answer,
        call: impl Fn(Context, P) -> F + Send + Sync + 'static,
    ) -> Self
    where
        P: DeserializeOwned + JsonSchema + Send + 'static,
        F: Future<Output = Result<Response, Problem>> + Send + 'static,
    {
        Self {
            method: Method::GET,
            path,
            id,
            summary,
            role: Role::Read,
            parameters: P::json_schema,
            body: None,
            answer,
            call: Box::new(move |request| match parse(&request.parameters) {
                Ok(parameters) => Box::pin(call(request.context, parameters)),
                Err(problem) => Box::pin(async { Err(problem) }),
            }),
        }
    }

    /// An operation that changes something, and answers JSON.
    pub(super) fn post<P, B, A, F>(
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        call: fn(Context, P, B) -> F,
    ) -> Self
    where
        P: DeserializeOwned + JsonSchema + Send + 'static,
        B: DeserializeOwned + JsonSchema + Send + 'static,
        A: Serialize + JsonSchema + 'static,
        F: Future<Output = Result<A, Problem>> + Send + 'static,
    {
        let call = move |request: Request| {
            let body = serde_json::from_slice(&request.body);
            let body = body.map_err(|error| Problem::invalid(error.to_string()));
            Ok(call(request.context, parse(&request.parameters)?, body?))
        };
        Self {
            method: Method::POST,
            path,
            id,
            summary,
            role: Role::Operate,
            parameters: P::json_schema,
            body: Some(B::json_schema),
            answer: Answer::Json(A::json_schema),
            call: Box::new(move |request| match call(request) {
                Ok(answer) => Box::pin(async { Ok(json(&answer.await?)) }),
                Err(problem) => Box::pin(async { Err(problem) }),
            }),
        }
    }

    /// The same operation for callers with `role`.
    pub(super) fn for_role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    /// Answers `request`.
    pub(super) async fn answer(&self, request: Request) -> Response {
        let answered = (self.call)(request).await;
        answered.unwrap_or_else(IntoResponse::into_response)
    }
}

/// The parameters in `query`.
pub(in super::super) fn parse<P: DeserializeOwned>(query: &str) -> Result<P, Problem> {
    serde_urlencoded::from_str(query).map_err(|error| Problem::invalid(error.to_string()))
}

/// `value` as an answer.
fn json<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => Problem::invalid(error.to_string()).into_response(),
    }
}

/// No parameters.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct NoParameters {}
