//! Diagnosis: why a request is refused, for an operator who has the request in a file.
//!
//! The verdict is that of [`Provider::admit`]. A proof that is over the body says nothing of what is wrong
//! with the body. So the changes that proxies are known to make are undone one after the other, until the
//! proof fits.

mod change;
mod json_text;

use std::fmt;

use http::header;
use jiff::{SignedDuration, Timestamp};

use super::{Admission, Examination, Freshness, Provider, Reason, Refusal, Request};

/// The verdict on a request, and the reasons for the verdict.
#[derive(Debug)]
pub struct Diagnosis {
    /// The provider's refusal; `None` for a request that is admitted.
    pub refusal: Option<Refusal>,
    /// What is admitted, or would be if the request had come in time and unchanged; `None` where the proof
    /// is not good even then.
    pub admission: Option<Admission>,
    /// What the request shows of its sender. Where the body was changed on the way, this is of the body as it
    /// was sent.
    pub examination: Examination,
    /// Why the request is refused; empty for a request that is admitted.
    pub causes: Vec<Cause>,
}

/// One reason of a refusal. Its text says what is wrong, and after a semicolon what to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Cause {
    /// The proof fits the body without these changes.
    Changed(Vec<String>),
    /// The proof was made too long before the request arrived, or after.
    Stale {
        /// The time from the proof to the arrival; negative if the proof is from the future.
        age: SignedDuration,
        /// The largest difference either way.
        window: SignedDuration,
    },
    /// Anything else, as the provider explains it.
    Credential(String),
    /// What may be wrong besides, and cannot be proved.
    Suspicion(&'static str),
}

/// Diagnoses `request`, received at `now`.
pub fn diagnose(provider: &dyn Provider, request: &Request<'_>, now: Timestamp) -> Diagnosis {
    let mut diagnosis = Diagnosis {
        refusal: None,
        admission: None,
        examination: provider.examine(request),
        causes: Vec::new(),
    };
    let refusal = match provider.admit(request.clone(), now) {
        Ok(admission) => {
            diagnosis.admission = Some(admission);
            return diagnosis;
        }
        Err(refusal) => refusal,
    };
    diagnosis.refusal = Some(refusal);
    let covers_body = diagnosis.examination.covers_body;
    let is_wrong = refusal.reason == Reason::WrongCredential && covers_body;
    let undone = is_wrong.then(|| undo_changes(provider, request)).flatten();
    let (original, reason) = match undone {
        Some((original, changes)) => {
            diagnosis.causes.push(Cause::Changed(changes));
            diagnosis.examination = provider.examine(&original);
            let refusal = provider.admit(original.clone(), now).err();
            (original, refusal.map(|refusal| refusal.reason))
        }
        None => (request.clone(), Some(refusal.reason)),
    };
    let cause = reason.map(|reason| Cause::of(reason, provider, request, now));
    diagnosis.causes.extend(cause);
    if is_wrong && diagnosis.examination.secret.is_none() {
        diagnosis.causes.extend(suspicions(request));
    }
    let signed_at = diagnosis.examination.freshness.map(|fresh| fresh.signed_at);
    diagnosis.admission = provider.admit(original, signed_at.unwrap_or(now)).ok();
    diagnosis
}

/// The request as it was sent, and what was changed on the way; `None` when no known changes explain it.
fn undo_changes<'a>(
    provider: &dyn Provider,
    request: &Request<'a>,
) -> Option<(Request<'a>, Vec<String>)> {
    change::candidates(&request.body).find_map(|candidate| {
        let original = Request {
            body: candidate.body.into(),
            ..request.clone()
        };
        let is_original = provider.examine(&original).secret.is_some();
        is_original.then_some((original, candidate.changes))
    })
}

/// What may have spoiled the proof over the body, and cannot be undone.
fn suspicions(request: &Request<'_>) -> Vec<Cause> {
    let mut suspicions = Vec::new();
    if request.headers.contains_key(header::CONTENT_ENCODING) {
        suspicions.push(
            "the request has a `content-encoding`, and a compression or decompression on the way cannot be \
             undone here; let the proxy pass the body on as it came",
        );
    }
    if String::from_utf8_lossy(&request.body).contains(char::REPLACEMENT_CHARACTER) {
        suspicions.push(
            "the body has bytes that are no text, or the mark that replaces them, so characters may have \
             been lost on the way; let nothing change its encoding",
        );
    }
    suspicions.push(
        "no known change of the bytes explains it, though a change of the order of keys, of numbers or of \
         texts cannot be undone here; compare the secret first, and then look at what the proxy received",
    );
    suspicions.into_iter().map(Cause::Suspicion).collect()
}

impl Cause {
    fn of(reason: Reason, provider: &dyn Provider, request: &Request<'_>, now: Timestamp) -> Self {
        match provider.examine(request).freshness {
            Some(Freshness { signed_at, window }) if reason == Reason::Stale => Self::Stale {
                age: now.duration_since(signed_at),
                window,
            },
            _ => Self::Credential(provider.explain(request, reason)),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed(changes) => write!(
                f,
                "the bytes were changed on the way: {}; look at the proxy, which must pass the body on \
                 untouched",
                changes.join("; then ")
            ),
            Self::Stale { age, window } => {
                let (direction, remedy) = match age.is_negative() {
                    false => ("before", "ahead, or the request was delayed"),
                    true => ("after", "behind"),
                };
                write!(
                    f,
                    "the proof was made {} {direction} the time of the check, and {} are allowed; if that is \
                     the time of arrival, the clock of this machine is {remedy}",
                    in_words(*age),
                    in_words(*window)
                )
            }
            Self::Credential(text) => f.write_str(text),
            Self::Suspicion(text) => f.write_str(text),
        }
    }
}

/// `duration` without its sign, in whole seconds where it has some.
fn in_words(duration: SignedDuration) -> impl fmt::Display {
    let duration = duration.unsigned_abs();
    humantime::format_duration(match duration.as_secs() {
        0 => duration,
        seconds => std::time::Duration::from_secs(seconds),
    })
}
