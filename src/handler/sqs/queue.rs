//! A queue, and the address of its server.

use reqwest::Url;
use serde::Deserialize;

use crate::handler::broker::url;

const EXAMPLE: &str = "https://sqs.eu-west-1.amazonaws.com/111122223333/telephony";

/// A queue, identified by its URL.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Queue {
    /// The URL, as SQS identifies the queue.
    pub(super) url: String,
    /// The URL of requests: the root of the queue's host.
    pub(super) endpoint: Url,
    /// Whether it is a FIFO queue, by its name: it keeps the order of each group and drops duplicates.
    pub(super) is_fifo: bool,
}

impl TryFrom<String> for Queue {
    type Error = String;

    fn try_from(url: String) -> Result<Self, String> {
        let mut endpoint = url::read(&url, &["https", "http"], EXAMPLE)?;
        let name = endpoint.path().rsplit('/').next().unwrap_or_default();
        if name.is_empty() {
            return Err(format!(
                "the URL names no queue; a URL looks like {EXAMPLE:?}"
            ));
        }
        let is_fifo = name.ends_with(".fifo");
        endpoint.set_path("/");
        Ok(Self {
            url,
            endpoint,
            is_fifo,
        })
    }
}

impl Queue {
    /// Whether requests use TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.endpoint.scheme() == "https"
    }

    /// The region in the name of the URL's host: the label after `sqs`, as in
    /// `sqs.eu-west-1.amazonaws.com` and in the names of VPC endpoints, or the label before `queue`, as in
    /// the older `eu-west-1.queue.amazonaws.com`.
    pub(super) fn region(&self) -> Option<&str> {
        let labels: Vec<_> = self.endpoint.host_str()?.split('.').collect();
        let mut pairs = labels.windows(2).filter_map(|pair| match pair {
            ["sqs" | "sqs-fips", region] | [region, "queue"] => Some(*region),
            _ => None,
        });
        pairs.find(|region| is_region(region))
    }
}

/// Whether a label has the form of a region's name: words and then a number, with hyphens between.
fn is_region(label: &str) -> bool {
    let is_word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    match label.rsplit_once('-') {
        Some((words, number)) => {
            words.contains('-') && words.split('-').all(is_word) && number.parse::<u8>().is_ok()
        }
        None => false,
    }
}

/// The name of a region, which is part of a signature.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Region(pub(super) String);

impl TryFrom<String> for Region {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=64).contains(&name.len()) && name.bytes().all(fits) {
            return Ok(Self(name));
        }
        Err(format!(
            "{name:?} is not the name of a region; one looks like \"eu-west-1\""
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(url: &str) -> Result<Queue, String> {
        Queue::try_from(url.to_owned())
    }

    #[test]
    fn the_region_is_in_the_names_of_amazons_hosts() {
        for (host, region) in [
            ("sqs.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("sqs.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("sqs.eusc-de-east-1.amazonaws.eu", Some("eusc-de-east-1")),
            (
                "sqs-fips.us-gov-west-1.amazonaws.com",
                Some("us-gov-west-1"),
            ),
            ("sqs.ap-southeast-2.api.aws", Some("ap-southeast-2")),
            ("eu-west-1.queue.amazonaws.com", Some("eu-west-1")),
            (
                "vpce-0a1b2c-abc.sqs.us-east-1.vpce.amazonaws.com",
                Some("us-east-1"),
            ),
            (
                "sqs.us-east-1.localhost.localstack.cloud",
                Some("us-east-1"),
            ),
            ("queue.amazonaws.com", None),
            ("sqs.internal.example.com", None),
            ("127.0.0.1", None),
            ("localhost", None),
        ] {
            let queue = queue(&format!("https://{host}/111122223333/telephony")).unwrap();
            assert_eq!(queue.region(), region, "{host}");
        }
    }

    #[test]
    fn requests_are_posted_to_the_root_and_the_name_says_whether_it_is_fifo() {
        let standard = queue("http://127.0.0.1:9324/queue/telephony").unwrap();
        assert_eq!(standard.endpoint.as_str(), "http://127.0.0.1:9324/");
        assert_eq!(standard.url, "http://127.0.0.1:9324/queue/telephony");
        assert!(!standard.is_fifo && !standard.is_tls());
        let fifo = queue("https://sqs.eu-west-1.amazonaws.com/1/telephony.fifo").unwrap();
        assert!(fifo.is_fifo && fifo.is_tls());
    }

    #[test]
    fn what_names_no_queue_is_refused() {
        for (url, why) in [
            ("telephony", "is not a URL"),
            ("sqs://telephony", "is not \"https\" or \"http\""),
            ("https://sqs.eu-west-1.amazonaws.com", "names no queue"),
            ("https://sqs.eu-west-1.amazonaws.com/1/", "names no queue"),
            (
                "https://hush@example.com/1/telephony",
                "settings of their own",
            ),
        ] {
            let refused = queue(url).unwrap_err();
            assert!(refused.contains(why), "{url}: {refused}");
            assert!(refused.contains(EXAMPLE), "{url}: {refused}");
        }
        for name in ["", "EU-WEST-1", "eu west 1", "eu-west-1/sqs"] {
            assert!(Region::try_from(name.to_owned()).is_err(), "{name:?}");
        }
    }
}
