//! `/audit`: what operators have done.

use askama::Template;

use super::{ApiContext, Frame, Problem, Show, filters};
use crate::admin::api::audit::{self, Filter, Page};

#[derive(Template)]
#[template(path = "audit.html", config = "src/admin/page/askama.toml")]
pub(super) struct Audit {
    frame: Frame,
    page: Page,
}

pub(super) async fn show(context: ApiContext, filter: Filter) -> Result<Show<Audit>, Problem> {
    let frame = Frame::new("Audit log", "/audit", Some(&context.caller));
    let page = audit::list(context, filter).await?;
    Ok(Show::Page(Audit { frame, page }))
}
