//! `log`: writes a line to the log of hookswitch for each event.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    cloud_event::CloudEvent,
};

/// Writes a line to the log of hookswitch for each event.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Whether keys and subjects are masked: they are phone numbers, or have phone numbers in them.
    #[serde(default = "masked")]
    mask: bool,
}

const fn masked() -> bool {
    true
}

impl HandlerKind for Settings {
    const KIND: &'static str = "log";
    const EXAMPLE: &'static str = r#"
[handlers.log]
kind = "log"
events = ["*"]
order = "key"
concurrency = 8
timeout = "10s"
retry = { attempts = 16, first = "1s", ceiling = "1h", age = "1d" }
mask = true
"#;
    type Handler = Log;

    fn build(self, _context: &mut BuildContext) -> Result<Log, BuildError> {
        Ok(Log { mask: self.mask })
    }
}

#[derive(Debug)]
pub(super) struct Log {
    mask: bool,
}

impl Handler for Log {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let event = CloudEvent::new(delivery.notification, delivery.context);
        let show = |text: &str| {
            if self.mask {
                mask(text)
            } else {
                text.to_owned()
            }
        };
        tracing::info!(
            handler = %delivery.context.handler,
            event.id = %delivery.notification.id,
            event.name = %delivery.notification.name,
            event.key = event.key().map(|key| show(&key)),
            event.subject = event.subject().map(|subject| show(&subject)),
            attempt = delivery.context.attempt,
            superseded = delivery.context.superseded,
            "received {}",
            delivery.notification.name,
        );
        Outcome::Done
    }
}

/// Masks `text` but for its last two characters, by which a few can be distinguished. Masks all of a text so
/// short that two characters would reveal much of it.
fn mask(text: &str) -> String {
    let length = text.chars().count();
    let shown = if length < 8 { 0 } else { 2 };
    let end: String = text.chars().skip(length - shown).collect();
    format!("***{end}")
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::handler::sample;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    async fn logged(mask: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(move || writer.clone())
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        let notification = sample::notification(r#"{"name":"Ada"}"#);
        let context = sample::context();
        let outcome = Log { mask }
            .handle(Delivery {
                event: AnyEvent,
                notification: &notification,
                context: &context,
            })
            .await;
        drop(guard);
        assert!(matches!(outcome, Outcome::Done));
        let text = lines.0.lock().unwrap().clone();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn a_line_names_the_event_and_masks_whom_it_is_about() {
        let line = logged(true).await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let fields = &line["fields"];
        assert_eq!(fields["event.name"], "zoom.number-management.unrecognized");
        assert_eq!(fields["event.id"], "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5");
        assert_eq!(fields["event.subject"], "***43");
        assert_eq!(fields["event.key"], "***17");
        assert_eq!(
            fields["message"],
            "received zoom.number-management.unrecognized"
        );
    }

    #[tokio::test]
    async fn nothing_is_masked_where_that_is_asked_for_and_the_body_is_never_shown() {
        let line = logged(false).await;
        assert!(line.contains("+12025550143"), "{line}");
        assert!(line.contains("zoom.number-management:acme:17"), "{line}");
        assert!(!line.contains("Ada"), "{line}");
    }

    #[test]
    fn short_texts_are_masked_whole() {
        assert_eq!(mask("1234567"), "***");
        assert_eq!(mask("12345678"), "***78");
        assert_eq!(mask("éééééééé"), "***éé");
        assert_eq!(mask(""), "***");
    }
}
