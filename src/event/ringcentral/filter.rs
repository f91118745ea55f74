//! RingCentral's event filters, which its notifications repeat in their `event` member.

/// An event filter below `/restapi/v1.0/account/`, parsed into the account, the other segments of its path,
/// and its query.
///
/// Nothing is decoded. In a query a `+` is a plus sign, as in `to=+12025550143`. A path with an escape is
/// not known to occur.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter<'a> {
    /// The account's id: digits, `~` or a placeholder.
    pub(super) account: &'a str,
    /// The segments after the account's id.
    pub(super) path: Vec<&'a str>,
    /// The query without the `?`.
    query: Option<&'a str>,
}

impl<'a> Filter<'a> {
    /// Parses `event`; `None` for a filter that is not about an account.
    pub(super) fn parse(event: &'a str) -> Option<Self> {
        let (path, query) = match event.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (event, None),
        };
        let (account, path) = path
            .strip_prefix("/restapi/v1.0/account/")?
            .split_once('/')?;
        is_id(account).then(|| Self {
            account,
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

/// Whether a segment is in the place of an id: digits; `~`, the subscriber's own id; or a placeholder such
/// as `{accountId}`, which older filters keep.
pub(super) fn is_id(segment: &str) -> bool {
    segment == "~" || is_number(segment) || (segment.starts_with('{') && segment.ends_with('}'))
}

/// Whether a segment is the id of one thing.
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
            let filter = Filter::parse(&event).expect("it is about an account");
            assert_eq!((filter.account, filter.path), (account, vec!["presence"]));
        }
    }

    #[test]
    fn a_filter_that_is_not_about_an_account_is_none() {
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
            assert_eq!(Filter::parse(event), None, "{event:?}");
        }
    }

    #[test]
    fn the_query_is_separated_and_its_plus_signs_stay() {
        let event = "/restapi/v1.0/account/~/a2p-sms/messages?direction=Inbound&to=+12025550143";
        let filter = Filter::parse(event).expect("it is about an account");
        assert_eq!(filter.path, ["a2p-sms", "messages"]);
        assert_eq!(filter.values("to").collect::<Vec<_>>(), ["+12025550143"]);
        assert_eq!(filter.values("direction").count(), 1);
        assert_eq!(filter.values("from").count(), 0);
    }
}
