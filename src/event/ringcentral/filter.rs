//! The `event` member of a RingCentral notification: the event filter that it was sent for.

/// An event filter, cut into its parts: the segments of its path below `/restapi/v1.0/account/`,
/// and its query.
///
/// The account's id, which comes first, has been looked at and left out. Nothing is decoded: in a
/// query a `+` is a plus sign, as in `to=+12025550143`, and no path has been seen with an escape.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter<'a> {
    /// What follows the account's id.
    pub(super) path: Vec<&'a str>,
    /// What follows the `?`, if there is one.
    query: Option<&'a str>,
}

impl<'a> Filter<'a> {
    /// Takes `event` apart; `None` for a filter that is not about an account.
    pub(super) fn read(event: &'a str) -> Option<Self> {
        let (path, query) = match event.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (event, None),
        };
        let (account, path) = path
            .strip_prefix("/restapi/v1.0/account/")?
            .split_once('/')?;
        is_id(account).then(|| Self {
            path: path.split('/').collect(),
            query,
        })
    }

    /// The values of the query's `name` parameters.
    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &'a str> {
        let pairs = self.query.into_iter().flat_map(|query| query.split('&'));
        pairs
            .filter_map(|pair| pair.split_once('='))
            .filter(move |(key, _)| *key == name)
            .map(|(_, value)| value)
    }
}

/// Whether a segment stands for an id: digits; `~`, which is the subscriber's own; or a
/// placeholder such as `{accountId}`, which older filters keep.
pub(super) fn is_id(segment: &str) -> bool {
    segment == "~" || is_number(segment) || (segment.starts_with('{') && segment.ends_with('}'))
}

/// Whether a segment is an id that names one thing.
pub(super) fn is_number(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::Filter;

    #[test]
    fn the_account_may_be_a_number_a_tilde_or_a_placeholder() {
        for account in ["4051563", "~", "{accountId}"] {
            let event = format!("/restapi/v1.0/account/{account}/presence");
            let filter = Filter::read(&event).expect("it is about an account");
            assert_eq!(filter.path, ["presence"]);
        }
    }

    #[test]
    fn what_is_not_about_an_account_is_no_filter() {
        for event in [
            "",
            "/restapi/v1.0/account/",
            "/restapi/v1.0/account/~",
            "/restapi/v1.0/account//extension",
            "/restapi/v1.0/account/a b/extension",
            "/restapi/v1.0/subscription/~?threshold=60&interval=15",
            "/restapi/v1.0/glip/posts",
            "/restapi/v2/account/~/phone-number",
            "restapi/v1.0/account/~/extension",
        ] {
            assert_eq!(Filter::read(event), None, "{event:?}");
        }
    }

    #[test]
    fn the_query_is_cut_off_and_its_plus_signs_stay() {
        let event = "/restapi/v1.0/account/~/a2p-sms/messages?direction=Inbound&to=+12025550143";
        let filter = Filter::read(event).expect("it is about an account");
        assert_eq!(filter.path, ["a2p-sms", "messages"]);
        assert_eq!(filter.values("to").collect::<Vec<_>>(), ["+12025550143"]);
        assert_eq!(filter.values("direction").count(), 1);
        assert_eq!(filter.values("from").count(), 0);
    }
}
