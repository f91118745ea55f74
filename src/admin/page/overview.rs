//! The first page: what is wrong, and how each endpoint and each handler is.

use askama::Template;

use super::{ApiContext, Frame, Problem, Show, filters};
use crate::admin::{
    access::Role,
    api::{
        NoParameters,
        endpoints::{self, Endpoint},
        handlers::{self, Handler},
        status::{self, Status},
    },
};

#[derive(Template)]
#[template(path = "overview.html", config = "src/admin/page/askama.toml")]
pub(super) struct Overview {
    frame: Frame,
    status: Status,
    endpoints: Vec<Endpoint>,
    handlers: Vec<Handler>,
    may_operate: bool,
}

pub(super) async fn show(context: ApiContext, _: NoParameters) -> Result<Show<Overview>, Problem> {
    let console = &context.console;
    Ok(Show::Page(Overview {
        frame: Frame::new("Overview", "/", Some(&context.caller)),
        status: status::of(console).await,
        endpoints: endpoints::all(console),
        handlers: handlers::all(console),
        may_operate: context.caller.may(Role::Operate),
    }))
}
