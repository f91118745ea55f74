//! Signature Version 4 by AWS's documentation: verifies the sender of a request.

use hmac::{Hmac, KeyInit, Mac};
use jiff::{civil::DateTime, tz::TimeZone};
use sha2::{Digest, Sha256};

/// The largest difference between a request's time and the server's, in seconds.
const LENIENCY: i64 = 300;

/// A request as it was received.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The value of the header with the lower-case name `name`.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    /// The signer that the request names.
    pub(super) fn authorization(&self) -> Option<Authorization<'_>> {
        let rest = self.header("authorization")?;
        let rest = rest.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let part = |name: &str| {
            let mut parts = rest
                .split(',')
                .filter_map(|part| part.trim().split_once('='));
            parts.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let (id, scope) = part("Credential")?.split_once('/')?;
        Some(Authorization {
            id,
            scope,
            signed: part("SignedHeaders")?,
            signature: part("Signature")?,
        })
    }
}

pub(super) struct Authorization<'a> {
    pub(super) id: &'a str,
    scope: &'a str,
    signed: &'a str,
    signature: &'a str,
}

impl Authorization<'_> {
    /// Whether `request` is signed with `secret` for `service` in `region` at `now`, in Unix
    /// seconds.
    pub(super) fn verify(
        &self,
        request: &Request,
        secret: &str,
        (region, service): (&str, &str),
        now: i64,
    ) -> Result<(), String> {
        let date = request.header("x-amz-date").ok_or("no date")?;
        let at = DateTime::strptime("%Y%m%dT%H%M%SZ", date).map_err(|error| error.to_string())?;
        let at = at.to_zoned(TimeZone::UTC).unwrap().timestamp();
        if (at.as_second() - now).abs() > LENIENCY {
            return Err(format!("{date} is not now"));
        }
        let day = &date[..8];
        if self.scope != format!("{day}/{region}/{service}/aws4_request") {
            return Err(format!("the scope is {}", self.scope));
        }
        let digest = hex(&Sha256::digest(&request.body));
        if request
            .header("x-amz-content-sha256")
            .is_some_and(|said| said != digest)
        {
            return Err("the body has another digest".to_owned());
        }
        let canonical = self.canonical(request, &digest)?;
        let canonical = hex(&Sha256::digest(canonical));
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{}\n{canonical}", self.scope);
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [day, region, service, "aws4_request"] {
            key = mac(&key, part);
        }
        if hex(&mac(&key, &to_sign)) != self.signature {
            return Err("the signature is another".to_owned());
        }
        Ok(())
    }

    fn canonical(&self, request: &Request, digest: &str) -> Result<String, String> {
        let (path, query) = request
            .target
            .split_once('?')
            .unwrap_or((&request.target, ""));
        let signed: Vec<_> = self.signed.split(';').collect();
        let must_be = |name: &str| name == "host" || name.starts_with("x-amz-");
        for (name, _) in &request.headers {
            let name = name.to_ascii_lowercase();
            if must_be(&name) && !signed.contains(&name.as_str()) {
                return Err(format!("{name} is not signed"));
            }
        }
        if !signed.is_sorted() || !signed.contains(&"host") {
            return Err(format!("what is signed is {}", self.signed));
        }
        let mut text = format!("{}\n{path}\n{query}\n", request.method);
        for name in &signed {
            let value = request.header(name).ok_or_else(|| format!("no {name}"))?;
            let words: Vec<_> = value.split_whitespace().collect();
            text += &format!("{name}:{}\n", words.join(" "));
        }
        Ok(text + &format!("\n{}\n{digest}", self.signed))
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `get-vanilla` of the test suite that AWS has published for Signature Version 4.
#[test]
fn the_stand_in_agrees_with_the_published_example() {
    let signature = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature={signature}"
    );
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let request = Request {
        method: "GET".to_owned(),
        target: "/".to_owned(),
        headers: vec![
            header("Host", "example.amazonaws.com"),
            header("X-Amz-Date", "20150830T123600Z"),
            header("Authorization", &authorization),
        ],
        body: Vec::new(),
    };
    let now = 1_440_938_160; // 2015-08-30T12:36:00Z
    let verify = |secret: &str| {
        let authorization = request.authorization().unwrap();
        authorization.verify(&request, secret, ("us-east-1", "service"), now)
    };
    assert_eq!(verify("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), Ok(()));
    assert!(verify("another").is_err());
}
