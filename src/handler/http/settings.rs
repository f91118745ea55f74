//! What the TOML says of an `http` handler.

use std::{collections::HashMap, fmt, iter, time::Duration};

use http::{HeaderName, HeaderValue, header};
use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    cleartext::CleartextWarning,
    client_tls::ClientTls,
    handler::{self, message::Format, signature::Signer, text_or_secret::TextOrSecret},
    quantity,
    secret::Secret,
};

/// How to have TLS.
const TLS: &str = "begin `url` with \"https://\"";

/// Posts each event to a URL.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::handler) struct Settings {
    /// The URL that events are posted to. A URL with a token in it can be a secret.
    #[schemars(with = "TextOrSecret")]
    pub(super) url: Destination,
    /// The form of the body: `structured` is a CloudEvent as JSON, `binary` is its data with the
    /// attributes as headers, `raw` is the provider's own body.
    #[serde(default)]
    pub(super) format: Format,
    /// The secret that requests are signed with, as Standard Webhooks describes: a key in base64, with
    /// or without `whsec_` before it. `openssl rand -base64 24` makes one. Without it, requests are not
    /// signed.
    #[schemars(with = "Option<Secret>")]
    pub(super) signing_secret: Option<Signer>,
    /// Headers of each request. A value is a text or a secret.
    #[serde(default)]
    #[schemars(with = "HashMap<String, TextOrSecret>")]
    pub(super) headers: HashMap<Name, Value>,
    /// The CA bundle and the client certificate, for the receiver and for the proxy.
    #[serde(default)]
    tls: ClientTls,
    /// The time limit for a new connection, within `timeout`.
    #[serde(default = "handler::connect_timeout", with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub(super) connect_timeout: Duration,
    /// The URL of a proxy. The proxies of the environment are never used.
    #[schemars(with = "Option<TextOrSecret>")]
    pub(super) proxy: Option<Destination>,
}

impl Settings {
    /// The setting `tls`.
    ///
    /// # Errors
    ///
    /// When `tls` is set, and neither the receiver nor the proxy uses TLS.
    pub(super) fn tls(&self) -> Result<&ClientTls, String> {
        let mut hops = iter::once(&self.url).chain(&self.proxy);
        if !hops.any(|Destination(url)| url.scheme() == "https") {
            self.tls.require_unset(TLS)?;
        }
        Ok(&self.tls)
    }

    /// The warnings about credentials that are sent to the receiver or the proxy without TLS.
    pub(super) fn cleartext_warnings(&self) -> Vec<CleartextWarning> {
        let Destination(url) = &self.url;
        let proxy = self.proxy.as_ref().map(|Destination(proxy)| proxy);
        let clear_proxy = proxy.filter(|proxy| proxy.scheme() == "http");
        let mut warnings = Vec::new();
        if let Some(credentials) = self.credentials().filter(|_| url.scheme() == "http") {
            let hops = [Some(url), clear_proxy].into_iter().flatten();
            let hops = hops.filter_map(Url::host_str);
            warnings.extend(CleartextWarning::new("url", &credentials, hops, TLS));
        }
        if let Some(proxy) = clear_proxy.filter(|proxy| has_user(proxy)) {
            let cure = "begin `proxy` with \"https://\"";
            let user = "the user in `proxy`";
            warnings.extend(CleartextWarning::new("proxy", user, proxy.host_str(), cure));
        }
        warnings
    }

    /// What is sent that proves who we are, in words: headers that are secrets or meant for this, and
    /// the user in the URL. The signing secret is not sent, and what it signs is there to be read.
    fn credentials(&self) -> Option<String> {
        let meant = [
            header::AUTHORIZATION,
            header::COOKIE,
            header::PROXY_AUTHORIZATION,
        ];
        let headers = self
            .headers
            .iter()
            .filter(|(Name(name), value)| value.is_reference || meant.contains(name));
        let mut names: Vec<_> = headers.map(|(Name(name), _)| format!("`{name}`")).collect();
        names.sort();
        if has_user(&self.url.0) {
            names.push("the user in `url`".to_owned());
        }
        (!names.is_empty()).then(|| names.join(", "))
    }
}

fn has_user(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// A URL, which may hold a token.
#[derive(Clone, Deserialize)]
#[serde(try_from = "TextOrSecret")]
pub(super) struct Destination(pub(super) Url);

impl TryFrom<TextOrSecret> for Destination {
    type Error = String;

    fn try_from(text: TextOrSecret) -> Result<Self, String> {
        let example = "a URL looks like \"https://crm.example.com/hooks\"";
        let url = Url::parse(text.expose())
            .map_err(|problem| format!("the text is not a URL: {problem}; {example}"))?;
        match url.scheme() {
            "http" | "https" => Ok(Self(url)),
            _ => Err(format!(
                "the URL's scheme is neither \"https\" nor \"http\"; {example}"
            )),
        }
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Destination")
            .field(&self.0.host_str().unwrap_or_default())
            .finish()
    }
}

/// The name of a header that is not hookswitch's own to set.
#[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Name(pub(super) HeaderName);

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let header = HeaderName::try_from(&name)
            .map_err(|_| format!("{name:?} is not the name of a header"))?;
        let own = [
            header::CONTENT_TYPE,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::CONNECTION,
        ];
        let prefixes = ["ce-", "webhook-"];
        if own.contains(&header) || prefixes.iter().any(|own| header.as_str().starts_with(own)) {
            return Err(format!(
                "{name:?} is set by hookswitch itself; leave it out"
            ));
        }
        Ok(Self(header))
    }
}

/// The value of a header, treated as a secret.
#[derive(Debug, Deserialize)]
#[serde(try_from = "TextOrSecret")]
pub(super) struct Value {
    pub(super) header: HeaderValue,
    is_reference: bool,
}

impl TryFrom<TextOrSecret> for Value {
    type Error = &'static str;

    fn try_from(text: TextOrSecret) -> Result<Self, Self::Error> {
        let mut value = HeaderValue::from_str(text.expose())
            .map_err(|_| "the text holds a character that no header can hold")?;
        value.set_sensitive(true);
        Ok(Self {
            header: value,
            is_reference: text.is_reference(),
        })
    }
}
