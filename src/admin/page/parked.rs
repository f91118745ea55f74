//! `/parked`: deliveries that wait for a person, by handler and reason.

use askama::Template;

use super::{ApiContext, Frame, Problem, Show, filters};
use crate::admin::api::{
    NoParameters,
    parked::{self, Filter, Page, Reason},
};

#[derive(Template)]
#[template(path = "parked.html", config = "src/admin/page/askama.toml")]
pub(super) struct Parked {
    frame: Frame,
    filter: Filter,
    reasons: Vec<Reason>,
    page: Page,
    /// The query of the next page.
    next: Option<String>,
    handlers: Vec<String>,
}

pub(super) async fn show(context: ApiContext, filter: Filter) -> Result<Show<Parked>, Problem> {
    let page = parked::list(context.clone(), filter.clone()).await?;
    let next = page.next.clone().map(|next| Filter {
        after: Some(next),
        ..filter.clone()
    });
    Ok(Show::Page(Parked {
        frame: Frame::new("Parked deliveries", "/parked", Some(&context.caller)),
        reasons: parked::reasons(context.clone(), NoParameters {}).await?,
        handlers: context.console.handler_names(),
        next: next.and_then(|next| serde_urlencoded::to_string(next).ok()),
        filter,
        page,
    }))
}
