//! hookswitch with a handler of its own: it keeps a list of emergency addresses.
//!
//!     cargo run --example custom_handler -- serve --config examples/custom_handler.toml
//!     cargo run --example custom_handler -- send --all --config examples/custom_handler.toml
//!     cat data/addresses.txt

use std::{path::PathBuf, process::ExitCode};

use hookswitch::{
    App, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome, zoom::number_management,
};
use tokio::{fs::OpenOptions, io::AsyncWriteExt};

/// The settings in the TOML, and the handler that they build: here they are one.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct AddressList {
    path: PathBuf,
}

impl HandlerKind for AddressList {
    const KIND: &'static str = "address-list";
    const EXAMPLE: &'static str =
        "kind = 'address-list'\nevents = ['zoom.*']\npath = 'addresses.txt'";
    type Handler = Self;

    fn build(self, _: &mut BuildContext) -> Result<Self, BuildError> {
        Ok(self)
    }
}

impl Handler for AddressList {
    type Event = number_management::Event;

    async fn handle(&self, delivery: Delivery<'_, Self::Event>) -> Outcome {
        if delivery.context.superseded {
            let why = "a newer address of this number is known".to_owned();
            return Outcome::Skip { why }; // Zoom's retries are up to 85 minutes late.
        }
        let change = &delivery.event.payload.object;
        let Some(address) = change.emergency_address.value() else {
            return Outcome::Done; // Another change of the number.
        };
        let street = address.address_line1.as_deref().unwrap_or("unknown");
        let lines: String = change
            .e164()
            .map(|number| format!("{number} {street}\n"))
            .collect();
        match append(&self.path, &lines).await {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::retry(error), // Later and later, then it is parked.
        }
    }
}

async fn append(path: &PathBuf, lines: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .await?;
    file.write_all(lines.as_bytes()).await?;
    file.sync_data().await
}

fn main() -> ExitCode {
    let builder = App::builder().program("address-list", env!("CARGO_PKG_VERSION"));
    hookswitch::main(&builder.handler_kind::<AddressList>())
}
