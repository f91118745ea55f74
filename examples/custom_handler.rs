//! A program that embeds hookswitch and brings a kind of handler of its own.
//!
//! The TOML names it like any other kind:
//!
//! ```toml
//! [handlers.carrier-desk]
//! kind = "emergency-desk"
//! events = ["zoom.number-management.peering-number-emergency-address-updated"]
//! ledger = "data/emergency-addresses.txt"
//! ```
//!
//! `cargo run --example custom_handler -- serve --config examples/custom_handler.toml`

use std::{io::Write, path::PathBuf, process::ExitCode};

use hookswitch::{
    app::Hookswitch,
    cli,
    event::zoom::number_management,
    handler::{BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome},
};
use serde::Deserialize;

/// What the TOML says of a handler of this kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmergencyDesk {
    /// Where each change is noted, one line a number.
    ledger: PathBuf,
}

impl HandlerKind for EmergencyDesk {
    const KIND: &'static str = "emergency-desk";
    const EXAMPLE: &'static str = r#"
        kind = "emergency-desk"
        events = ["zoom.number-management.*"]
        ledger = "data/emergency-addresses.txt"
    "#;
    type Handler = Self;

    fn build(self, _context: &BuildContext) -> Result<Self, BuildError> {
        Ok(self)
    }
}

impl Handler for EmergencyDesk {
    type Event = number_management::Event;

    async fn handle(&self, delivery: Delivery<'_, Self::Event>) -> Outcome {
        // Zoom's retries arrive up to 85 minutes late: an old address must not undo a newer one.
        if delivery.context.superseded {
            return Outcome::Skip {
                why: "a newer address is known".to_owned(),
            };
        }
        let numbers = delivery.event.payload.object.e164();
        let lines: String = numbers
            .map(|number| format!("{number} has a new emergency address\n"))
            .collect();
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.ledger);
        match file.and_then(|mut file| file.write_all(lines.as_bytes())) {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::retry(error),
        }
    }
}

fn main() -> ExitCode {
    cli::main(&Hookswitch::builder().handler_kind::<EmergencyDesk>())
}
