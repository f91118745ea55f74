//! What the TOML says of handlers.

use super::*;

#[test]
fn a_timeout_is_some_of_a_day() {
    let read = |timeout: &str| {
        let settings = format!("{{ events = [\"*\"], timeout = {timeout:?} }}");
        Settings::deserialize(toml::de::ValueDeserializer::parse(&settings).unwrap())
    };
    assert_eq!(read("1ms").unwrap().timeout, Duration::from_millis(1));
    assert_eq!(read("24h").unwrap().timeout, Duration::from_secs(86_400));
    for wrong in ["0s", "25h", "500000000000y", "-1s", "soon"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

/// An example is what stands in the help: each one is read as the configuration reads it.
#[tokio::test]
async fn every_kind_of_handler_builds_from_its_example() {
    use crate::{
        handler::{BuildContext, KINDS},
        secret::{self, Sources},
        spanned,
    };
    let sources = Sources {
        // A signing secret must be base64; other secrets may be.
        env: |_| Some("dGhlIHZhbHVl".to_owned()),
        inline: false,
    };
    for kind in KINDS {
        let mut file = toml::de::DeTable::parse(kind.example).unwrap().into_inner();
        let toml::de::DeValue::Table(mut handlers) = file.remove("handlers").unwrap().into_inner()
        else {
            panic!("{} shows no handlers", kind.kind);
        };
        let name = handlers.keys().next().unwrap().get_ref().to_string();
        let entry = handlers.remove(name.as_str()).unwrap();
        let span = entry.span();
        let toml::de::DeValue::Table(mut entry) = entry.into_inner() else {
            panic!("{} is no table", kind.kind);
        };
        let named = entry.remove("kind").unwrap().into_inner();
        assert_eq!(named.as_str(), Some(kind.kind));
        let mut common = toml::de::DeTable::new();
        for key in Settings::KEYS {
            if let Some((key, value)) = entry.remove_entry(*key) {
                common.insert(key, value);
            }
        }
        let table = |table| {
            let value = toml::de::DeValue::Table(table);
            toml::Spanned::new(span.clone(), value)
        };
        let (common, own) = (table(common), table(entry));
        let settings = Settings::deserialize(spanned::Deserializer::new(&common)).unwrap();
        let own = spanned::Deserializer::new(&own);
        let build = secret::with(sources, || kind.read(own)).unwrap();
        let (concurrency, timeout) = (settings.concurrency.get(), settings.timeout);
        build(&mut BuildContext::new(
            name.as_str().into(),
            concurrency,
            timeout,
        ))
        .unwrap();
    }
}
