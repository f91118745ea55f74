//! The answers of SQS and their outcomes.

use http::StatusCode;
use md5::{Digest, Md5};
use serde::Deserialize;

use super::hex;
use crate::handler::Outcome;

/// Codes about the credentials or the signature: other credentials may succeed.
const OF_CREDENTIALS: &[&str] = &[
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidSignatureException",
    "InvalidToken",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];

/// The most characters of a code. The longest code of SQS has fewer.
const LONGEST_CODE: usize = 64;

/// SQS's answer to a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The queue has the message. The MD5 of its body, in hexadecimal digits.
    Taken { md5: Option<String> },
    /// The answer is not one of SQS.
    Foreign { status: StatusCode },
    /// The queue does not have the message.
    Refused(Refusal),
}

/// Why the queue does not have a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    /// The code of SQS without its namespace; empty if there is none.
    code: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Taken {
    message_id: String,
    #[serde(rename = "MD5OfMessageBody")]
    md5_of_message_body: Option<String>,
}

#[derive(Deserialize)]
struct Refused {
    #[serde(rename = "__type")]
    code: String,
}

impl Answer {
    /// Reads an answer.
    pub(super) fn read(status: StatusCode, body: &[u8]) -> Self {
        if !status.is_success() {
            let refused = serde_json::from_slice(body).map(|refused: Refused| refused.code);
            let code = refused.as_deref().map(code).unwrap_or_default().to_owned();
            return Self::Refused(Refusal { status, code });
        }
        match serde_json::from_slice(body) {
            Ok(Taken {
                message_id,
                md5_of_message_body: md5,
            }) if !message_id.is_empty() => Self::Taken { md5 },
            Ok(_) | Err(_) => Self::Foreign { status },
        }
    }

    /// Whether other credentials may succeed.
    pub(super) fn is_of_credentials(&self) -> bool {
        match self {
            Self::Refused(refusal) => OF_CREDENTIALS.contains(&refusal.code.as_str()),
            Self::Taken { .. } | Self::Foreign { .. } => false,
        }
    }

    /// The outcome for a message with `body`. See the kind's table.
    pub(super) fn outcome(&self, body: &str) -> Outcome {
        match self {
            Self::Taken { md5: Some(theirs) } if *theirs != md5(body) => {
                Outcome::retry("the queue says that it has another body than the one that was sent")
            }
            Self::Taken { .. } => Outcome::Done,
            Self::Foreign { status } => Outcome::retry(format!(
                "the answer was {status}, and not SQS's; see where `queue_url` leads"
            )),
            Self::Refused(refusal) => refusal.outcome(body.len()),
        }
    }
}

impl Refusal {
    fn outcome(&self, length: usize) -> Outcome {
        let Self { status, code } = self;
        let refused = match code.as_str() {
            "" => format!("the answer was {status}"),
            code => format!(
                "the queue refused the message: {code} ({})",
                status.as_u16()
            ),
        };
        match code.as_str() {
            "InvalidParameterValue" | "MessageTooLong" => Outcome::park(format!(
                "{refused}; its body is of {length} bytes, which may be more than the queue's \
                 MaximumMessageSize"
            )),
            "InvalidMessageContents" => Outcome::park(format!(
                "{refused}; its body holds a character that SQS does not take, which \
                 `format = \"structured\"` escapes"
            )),
            _ if *status == StatusCode::PAYLOAD_TOO_LARGE => Outcome::park(refused),
            _ => match self.cure() {
                Some(cure) => Outcome::retry(format!("{refused}; {cure}")),
                None => Outcome::retry(refused),
            },
        }
    }

    /// Advice for the operator.
    fn cure(&self) -> Option<&'static str> {
        Some(match self.code.as_str() {
            "QueueDoesNotExist" | "NonExistentQueue" | "InvalidAddress" => {
                "make the queue, or see `queue_url` and `region`"
            }
            "AccessDenied" | "AccessDeniedException" | "KmsAccessDenied" => {
                "allow sqs:SendMessage on the queue and, where a key of KMS encrypts it, \
                 kms:GenerateDataKey and kms:Decrypt on that"
            }
            "InvalidSignatureException" | "SignatureDoesNotMatch" => {
                "see whether `secret_access_key` and `region` are right, and this machine's clock"
            }
            "RequestExpired" => "see whether this machine's clock is right",
            "ExpiredToken" | "ExpiredTokenException" => "the session is over; see what renews it",
            code if OF_CREDENTIALS.contains(&code) => {
                "see whether `access_key_id` and `session_token` are right"
            }
            _ => return None,
        })
    }
}

/// `QueueDoesNotExist` for `com.amazonaws.sqs#QueueDoesNotExist` and for
/// `AWS.SimpleQueueService.NonExistentQueue`. Empty if it is no code: another server may have answered.
fn code(text: &str) -> &str {
    let last = text.rsplit(['#', '.']).next().unwrap_or_default();
    if last.len() <= LONGEST_CODE && last.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        last
    } else {
        ""
    }
}

fn md5(body: &str) -> String {
    hex(&Md5::digest(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outcome of an answer to a message with the body `sent`, as a text.
    fn outcome(status: u16, answer: &str) -> String {
        let status = StatusCode::from_u16(status).unwrap();
        match Answer::read(status, answer.as_bytes()).outcome("sent") {
            Outcome::Done => "done".to_owned(),
            Outcome::Retry { after: None, why } => format!("retry: {why}"),
            Outcome::Park { why } => format!("park: {why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn done_takes_a_message_id_and_the_right_body() {
        for (answer, expected) in [
            // The MD5 of "sent".
            (
                r#"{"MessageId":"1","MD5OfMessageBody":"789183b7e98646c11d5f0544c8f3c4c9"}"#,
                "done",
            ),
            (r#"{"MessageId":"1"}"#, "done"),
            (
                r#"{"MessageId":"1","MD5OfMessageBody":"d41d8cd98f00b204e9800998ecf8427e"}"#,
                "retry: the queue says that it has another body",
            ),
            (
                r#"{"MessageId":""}"#,
                "retry: the answer was 200 OK, and not SQS's",
            ),
            ("{}", "retry: the answer was 200 OK, and not SQS's"),
            ("<html>", "retry: the answer was 200 OK, and not SQS's"),
            ("", "retry: the answer was 200 OK, and not SQS's"),
        ] {
            let outcome = outcome(200, answer);
            assert!(outcome.starts_with(expected), "{answer}: {outcome}");
        }
    }

    #[test]
    fn what_an_event_is_parks_it_and_what_an_operator_can_mend_does_not() {
        for (status, code, expected) in [
            (
                400,
                "InvalidParameterValue",
                "park: the queue refused the message: Inv",
            ),
            (
                400,
                "InvalidMessageContents",
                "park: the queue refused the message: Inv",
            ),
            (413, "", "park: the answer was 413"),
            (
                400,
                "QueueDoesNotExist",
                "retry: the queue refused the message: Que",
            ),
            (
                400,
                "RequestThrottled",
                "retry: the queue refused the message: Req",
            ),
            (
                403,
                "AccessDenied",
                "retry: the queue refused the message: Acc",
            ),
            (
                403,
                "InvalidSignatureException",
                "retry: the queue refused the message: Inv",
            ),
            (
                400,
                "KmsDisabled",
                "retry: the queue refused the message: Kms",
            ),
            (403, "", "retry: the answer was 403"),
            (301, "", "retry: the answer was 301"),
            (
                503,
                "ServiceUnavailable",
                "retry: the queue refused the message: Ser",
            ),
            (500, "", "retry: the answer was 500"),
        ] {
            let answer = format!(r#"{{"__type":"com.amazonaws.sqs#{code}","message":"hush"}}"#);
            let outcome = outcome(status, &answer);
            assert!(outcome.starts_with(expected), "{answer}: {outcome}");
            assert!(!outcome.contains("hush"), "{outcome}");
        }
    }

    #[test]
    fn a_code_is_a_word_wherever_it_comes_from() {
        for (text, expected) in [
            ("com.amazonaws.sqs#QueueDoesNotExist", "QueueDoesNotExist"),
            (
                "com.amazon.coral.service#ExpiredTokenException",
                "ExpiredTokenException",
            ),
            (
                "AWS.SimpleQueueService.NonExistentQueue",
                "NonExistentQueue",
            ),
            ("RequestThrottled", "RequestThrottled"),
            ("+12025550143", ""),
            ("<script>", ""),
        ] {
            assert_eq!(code(text), expected);
        }
    }

    #[test]
    fn other_credentials_may_do_where_these_are_what_was_refused() {
        let read = |code: &str| {
            let answer = format!(r#"{{"__type":"{code}"}}"#);
            Answer::read(StatusCode::FORBIDDEN, answer.as_bytes())
        };
        assert!(read("com.amazon.coral.service#ExpiredTokenException").is_of_credentials());
        assert!(!read("com.amazon.coral.service#AccessDeniedException").is_of_credentials());
    }
}
