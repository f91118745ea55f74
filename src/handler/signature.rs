//! Standard Webhooks: how a receiver of ours knows that a request is ours.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;

use crate::secret::Secret;

/// What a signing secret begins with that stands for other bytes than its own.
const PREFIX: &str = "whsec_";

/// Signs requests.
#[derive(Clone)]
pub(super) struct Signer(Hmac<Sha256>);

/// A signing secret begins as if it were in base64 and is not.
#[derive(Debug, thiserror::Error)]
#[error("the signing secret begins with {PREFIX:?} and does not go on in base64; copy it whole")]
pub(super) struct NotBase64;

impl Signer {
    /// The signer for `secret`: `whsec_` and a key in base64, or a key as plain text.
    pub(super) fn new(secret: &Secret) -> Result<Self, NotBase64> {
        let text = secret.expose();
        let key = match text.strip_prefix(PREFIX) {
            Some(encoded) => BASE64_STANDARD.decode(encoded).map_err(|_| NotBase64)?,
            None => text.as_bytes().to_vec(),
        };
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
        let keyed = Hmac::new_from_slice(&key).expect("HMAC takes a key of any length");
        Ok(Self(keyed))
    }

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
        Signer::new(&Secret::derived(secret.to_owned()))
    }

    #[test]
    fn the_published_example_comes_out() {
        let signature = signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
            .unwrap()
            .sign(
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                Timestamp::constant(1_614_265_330, 0),
                br#"{"test": 2432232314}"#,
            );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_plain_secret_is_its_own_key() {
        let sign = |secret: &str| {
            signer(secret)
                .unwrap()
                .sign("id", Timestamp::UNIX_EPOCH, b"{}")
        };
        // "plain" in base64.
        assert_eq!(sign("plain"), sign("whsec_cGxhaW4="));
        assert_ne!(sign("plain"), sign("plainer"));
    }

    #[test]
    fn a_secret_that_was_cut_off_is_refused_and_not_shown() {
        let problem = signer("whsec_MfKQ9r8GK!").unwrap_err().to_string();
        assert!(!problem.contains("MfKQ9r8GK"), "{problem}");
    }
}
