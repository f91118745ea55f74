//! The operator's pages: HTML made by the server, from what the API answers.
//!
//! Every page works without script; links and forms do everything. `script.js` keeps the parts of a
//! page that are marked `data-live` up to date, over one stream of server-sent events. Templates are
//! checked by the compiler.

mod audit;
mod events;
mod live;
mod overview;
mod parked;

use std::sync::Arc;

use askama::Template;
use axum::{
    Form, Router,
    extract::{FromRequest, Path, Query, RawPathParams, Request, State},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{MethodRouter, get, post},
};
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    AdminState,
    access::{self, Caller, Denied, Role},
    api::{
        self, Context as ApiContext,
        handlers::{self, Changed, Which, Why},
        problem::Problem,
    },
};

/// The pages that the navigation leads to.
const PAGES: &[(&str, &str)] = &[
    ("/", "Overview"),
    ("/events", "Events"),
    ("/parked", "Parked"),
    ("/audit", "Audit"),
];

/// What every page has around its content.
struct Frame {
    title: String,
    /// The page's path, as the navigation has it.
    here: &'static str,
    /// Who looks at it; `None` before the login.
    caller: Option<Arc<str>>,
    has_session: bool,
    /// Changes with the program, so that browsers fetch new assets.
    assets: &'static str,
}

impl Frame {
    fn new(title: impl Into<String>, here: &'static str, caller: Option<&Caller>) -> Self {
        Self {
            title: title.into(),
            here,
            caller: caller.map(|caller| caller.name.clone()),
            has_session: caller.is_some_and(|caller| caller.has_session),
            assets: env!("CARGO_PKG_VERSION"),
        }
    }

    #[expect(clippy::unused_self, reason = "templates call methods of their fields")]
    fn pages(&self) -> &'static [(&'static str, &'static str)] {
        PAGES
    }
}

/// The routes of the pages.
pub(super) fn router() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/", page(overview::show))
        .route("/events", page(events::list))
        .route("/events/{id}", page(events::show))
        .route("/parked", page(parked::show))
        .route("/audit", page(audit::show))
        .route("/handlers/{name}/pause", form(handlers::pause))
        .route("/handlers/{name}/resume", form(handlers::resume))
        .route("/login", get(show_login).post(log_in))
        .route("/logout", post(log_out))
        .route("/live", get(live::stream))
        .route("/style.css", asset("text/css", include_str!("style.css")))
        .route(
            "/script.js",
            asset("text/javascript", include_str!("script.js")),
        )
        .route(
            "/icon.svg",
            asset("image/svg+xml", include_str!("icon.svg")),
        )
        .fallback(async || {
            let frame = Frame::new("Not found", "", None);
            let text = "There is no such page.".to_owned();
            (StatusCode::NOT_FOUND, render(&Message { frame, text }))
        })
}

/// What a request for a page is answered with.
enum Show<T> {
    Page(T),
    /// Another page, by its path.
    Elsewhere(String),
}

/// A page that `show` makes for admitted callers, out of the parameters in its address.
fn page<P, T, F>(show: fn(ApiContext, P) -> F) -> MethodRouter<Arc<AdminState>>
where
    P: DeserializeOwned + Send + 'static,
    T: Template + Send + 'static,
    F: Future<Output = Result<Show<T>, Problem>> + Send + 'static,
{
    let respond =
        async move |State(state): State<Arc<AdminState>>, path: RawPathParams, request: Request| {
            let (head, _) = request.into_parts();
            let caller = match state.admit(&head, Role::Read).await {
                Ok(caller) => caller,
                Err(Denied::Anonymous) => return to_login(&head),
                Err(denied) => return explain(&denied.into(), None),
            };
            let parameters = api::parameters(&path, head.uri.query());
            let shown = match (
                api::parse(&parameters),
                state.context(caller.clone(), &head),
            ) {
                (Ok(parameters), Ok(context)) => show(context, parameters).await,
                (Err(problem), _) | (_, Err(problem)) => Err(problem),
            };
            match shown {
                Ok(Show::Page(page)) => render(&page),
                Ok(Show::Elsewhere(path)) => Redirect::to(&path).into_response(),
                Err(problem) => explain(&problem, Some(&caller)),
            }
        };
    get(respond)
}

/// A form that changes a handler, and leads back to the first page.
fn form<F>(change: fn(ApiContext, Which, Why) -> F) -> MethodRouter<Arc<AdminState>>
where
    F: Future<Output = Result<Changed, Problem>> + Send + 'static,
{
    let respond = async move |State(state): State<Arc<AdminState>>,
                              Path(name): Path<String>,
                              request: Request| {
        let (head, body) = request.into_parts();
        let caller = match state.admit(&head, Role::Operate).await {
            Ok(caller) => caller,
            Err(Denied::Anonymous) => return Redirect::to("/login").into_response(),
            Err(denied) => return explain(&denied.into(), None),
        };
        let request = Request::from_parts(head.clone(), body);
        let why = Form::<Why>::from_request(request, &()).await;
        let why = why.map_err(|error| Problem::invalid(error.body_text()));
        let changed = match (why, state.context(caller.clone(), &head)) {
            (Ok(Form(why)), Ok(context)) => change(context, Which { name }, why).await,
            (Err(problem), _) | (_, Err(problem)) => Err(problem),
        };
        match changed {
            Ok(_) => Redirect::to("/").into_response(),
            Err(problem) => explain(&problem, Some(&caller)),
        }
    };
    post(respond)
}

/// A page that says what `problem` says.
fn explain(problem: &Problem, caller: Option<&Caller>) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let frame = Frame::new(problem.title, "", caller);
    let text = problem.detail.clone();
    (status, render(&Message { frame, text })).into_response()
}

fn render(page: &impl Template) -> Response {
    match page.render() {
        Ok(html) => Html(html).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn asset(media_type: &'static str, text: &'static str) -> MethodRouter<Arc<AdminState>> {
    let media_type = HeaderValue::from_static(media_type);
    let cached = HeaderValue::from_static("max-age=3600");
    get(async move || {
        let headers = [
            (header::CONTENT_TYPE, media_type),
            (header::CACHE_CONTROL, cached),
        ];
        (headers, text)
    })
}

/// A text in place of a page.
#[derive(Template)]
#[template(path = "message.html", config = "src/admin/page/askama.toml")]
struct Message {
    frame: Frame,
    text: String,
}

#[derive(Template)]
#[template(path = "login.html", config = "src/admin/page/askama.toml")]
struct Login {
    frame: Frame,
    /// Where to go afterwards.
    next: String,
    problem: Option<String>,
}

/// Where to go after the login.
#[derive(Deserialize)]
struct Next {
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
struct Credentials {
    token: String,
    #[serde(default)]
    next: String,
}

fn to_login(head: &Parts) -> Response {
    let here = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("next", here)
        .finish();
    Redirect::to(&format!("/login?{query}")).into_response()
}

async fn show_login(Query(Next { next }): Query<Next>) -> Response {
    let frame = Frame::new("Log in", "", None);
    render(&Login {
        frame,
        next,
        problem: None,
    })
}

async fn log_in(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    Form(Credentials { token, next }): Form<Credentials>,
) -> Response {
    match state.access.log_in(&headers, &token, (state.clock)()).await {
        Ok(session) => {
            let cookie = session.cookie(state.access.needs_tls());
            (
                [(header::SET_COOKIE, cookie)],
                Redirect::to(own_path(&next)),
            )
                .into_response()
        }
        Err(denied) => {
            let problem = Problem::from(denied);
            let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::UNAUTHORIZED);
            let frame = Frame::new("Log in", "", None);
            let problem = Some(format!("{} {}", problem.title, problem.detail));
            (
                status,
                render(&Login {
                    frame,
                    next,
                    problem,
                }),
            )
                .into_response()
        }
    }
}

async fn log_out(State(state): State<Arc<AdminState>>) -> Response {
    let cookie = access::end_session(state.access.needs_tls());
    ([(header::SET_COOKIE, cookie)], Redirect::to("/login")).into_response()
}

/// `next` if it is a path of this server. `//host` and `/\host` are addresses of others.
fn own_path(next: &str) -> &str {
    let rest = next.strip_prefix('/');
    match rest.is_some_and(|rest| !rest.starts_with(['/', '\\'])) {
        true => next,
        false => "/",
    }
}

/// Filters of the templates.
mod filters {
    use std::{borrow::Borrow, convert::Infallible};

    use jiff::Timestamp;

    use super::super::text;

    #[askama::filter_fn]
    pub fn moment(time: &Timestamp, _: &dyn askama::Values) -> Result<String, Infallible> {
        Ok(text::moment(*time))
    }

    #[askama::filter_fn]
    pub fn moment_or_never(
        time: &Option<Timestamp>,
        _: &dyn askama::Values,
    ) -> Result<String, Infallible> {
        Ok(time.map_or_else(|| "never".to_owned(), text::moment))
    }

    #[askama::filter_fn]
    pub fn grouped(number: impl Borrow<u64>, _: &dyn askama::Values) -> Result<String, Infallible> {
        Ok(text::grouped(*number.borrow()))
    }
}
