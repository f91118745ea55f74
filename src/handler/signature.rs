//! The signature of Standard Webhooks, by which a receiver verifies that a request comes from hookswitch.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::Sha256;

use crate::secret::Secret;

/// The prefix of a secret, which the libraries remove before they decode the rest.
const PREFIX: &str = "whsec_";

/// Signs requests with a key, which the secret has in base64.
#[derive(Clone, Deserialize)]
#[serde(try_from = "Secret")]
pub(super) struct Signer(Hmac<Sha256>);

/// A signing secret contains no key that the libraries of Standard Webhooks can read.
#[derive(Debug, thiserror::Error)]
#[error(
    "the signing secret is not a key in base64, as the libraries of Standard Webhooks read it; copy \
     the receiver's secret whole, or give both sides a new one, made by `openssl rand -base64 24`"
)]
pub(super) struct NotBase64;

impl TryFrom<Secret> for Signer {
    type Error = NotBase64;

    /// The signer for a key in base64, with or without the prefix `whsec_`. Some libraries also accept other
    /// texts, each in its own way; all libraries accept this form.
    fn try_from(secret: Secret) -> Result<Self, NotBase64> {
        let text = secret.expose();
        let encoded = text.strip_prefix(PREFIX).unwrap_or(text);
        let key = BASE64_STANDARD.decode(encoded).map_err(|_| NotBase64)?;
        if key.is_empty() {
            return Err(NotBase64);
        }
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
        let keyed = Hmac::new_from_slice(&key).expect("HMAC takes a key of any length");
        Ok(Self(keyed))
    }
}

impl Signer {
    /// The `webhook-signature` of `body`, sent as `id` at `at`.
    pub(super) fn sign(&self, id: &str, at: Timestamp, body: &[u8]) -> String {
        let mac = self
            .0
            .clone()
            .chain_update(format!("{id}.{}.", at.as_second()))
            .chain_update(body)
            .finalize()
            .into_bytes();
        format!("v1,{}", BASE64_STANDARD.encode(mac))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(secret: &str) -> Result<Signer, NotBase64> {
        Secret::derived(secret.to_owned()).try_into()
    }

    /// The example that Standard Webhooks publishes.
    #[test]
    fn the_published_example_comes_out_with_and_without_the_prefix() {
        for secret in [
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        ] {
            let signature = signer(secret).unwrap().sign(
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                Timestamp::constant(1_614_265_330, 0),
                br#"{"test": 2432232314}"#,
            );
            assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        }
    }

    #[test]
    fn a_secret_that_the_libraries_would_read_differently_is_refused_and_not_shown() {
        for secret in [
            "hunter2",
            "whsec_hunter2!",
            "whsec_MfKQ9r8GKYqr TwjUPD8ILPZI",
            "whsec_whsec_MfKQ9r8GKYqr",
            "MfKQ9r8G-Yqr_wjU",
            "whsec_MfKQ9r8GKY",
            "whsec_",
        ] {
            let problem = signer(secret).unwrap_err().to_string();
            assert!(problem.contains("openssl rand -base64 24"), "{problem}");
            assert!(!problem.contains(secret), "{problem}");
        }
    }
}
