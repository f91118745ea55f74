//! Times and sizes as people write them: `"10s"`, `"30d"`, `"1GiB"`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// `#[schemars(with = "quantity::Time")]`: what [`duration`] reads.
#[derive(Debug)]
pub struct Time;

impl JsonSchema for Time {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["250ms", "10s", "30d"] })
    }
}

/// `#[schemars(with = "quantity::Size")]`: what [`bytes`] reads.
#[derive(Debug)]
pub struct Size;

impl JsonSchema for Size {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 0, "examples": ["64MiB", "1GiB"] })
    }
}

/// `#[serde(with = "quantity::duration")]`: a length of time such as `"250ms"`, `"10s"`, `"30d"`.
pub mod duration {
    use std::{fmt, time::Duration};

    use serde::{Deserializer, Serializer, de};

    /// The longest time, 100 years: later ones are mistakes, and clocks cannot add them up.
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

    /// Reads it.
    ///
    /// # Errors
    ///
    /// When it is not a number with a unit, has a unit that is not one of time, or is longer than
    /// 100 years.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_str(Text)
    }

    /// Writes it, with the largest unit of which it is a whole number.
    ///
    /// # Errors
    ///
    /// When `serializer` fails.
    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        const UNITS: [(u128, &str); 4] = [
            (86_400_000, "d"),
            (3_600_000, "h"),
            (60_000, "m"),
            (1000, "s"),
        ];
        let ms = time.as_millis();
        let unit = UNITS
            .iter()
            .find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit));
        let (unit, name) = unit.unwrap_or(&(1, "ms"));
        serializer.collect_str(&format_args!("{}{name}", ms / unit))
    }

    struct Text;

    impl de::Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a length of time such as \"250ms\", \"10s\" or \"30d\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            let duration = humantime::parse_duration(text).map_err(|problem| {
                E::custom(format!(
                    "{text:?} is not a length of time: {problem}; write one such as \"250ms\", \
                     \"10s\" or \"30d\""
                ))
            })?;
            if duration > LONGEST {
                return Err(E::custom(format!(
                    "{text:?} is longer than 100 years; write a shorter time"
                )));
            }
            Ok(duration)
        }
    }
}

/// A time as people write it: `2026-01-31T08:00:00Z`, or an age such as `2h` or `7d`.
pub mod moment {
    use jiff::{SignedDuration, Timestamp};

    /// The times that the API's schema allows. [`parse`] reads more.
    pub const PATTERN: &str = "^(|[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])\
        T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z|[1-9][0-9]{0,3}[smhd])$";

    /// Reads it, at `now`.
    ///
    /// # Errors
    ///
    /// When it is neither a time nor an age.
    pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
        if let Ok(time) = text.parse() {
            return Ok(time);
        }
        // The library reads `0` without a unit, too.
        let age = Some(text).filter(|age| age.ends_with(char::is_alphabetic));
        let ago = age
            .and_then(|age| humantime::parse_duration(age).ok())
            .and_then(|ago| SignedDuration::try_from(ago).ok())
            .and_then(|ago| now.checked_sub(ago).ok());
        ago.ok_or_else(|| {
            "give a time such as 2026-01-31T08:00:00Z, or an age such as 2h or 7d".to_owned()
        })
    }
}

/// `#[serde(with = "quantity::bytes")]`: a size such as `"1MiB"`, `"64 KiB"` or a plain number of
/// bytes.
pub mod bytes {
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "a size such as \"1MiB\", or a whole number of bytes"
    )]
    enum Size {
        Number(u64),
        Text(String),
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// When it is not a whole number with a unit of size.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        match Size::deserialize(deserializer)? {
            Size::Number(bytes) => Ok(bytes),
            Size::Text(text) => parse(&text).ok_or_else(|| {
                let example = "write one such as \"512KiB\", \"64MiB\" or \"1GiB\"";
                de::Error::custom(format!("{text:?} is not a size; {example}"))
            }),
        }
    }

    /// Writes it, with the largest unit of which it is a whole number.
    ///
    /// # Errors
    ///
    /// When `serializer` fails.
    pub fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let unit = UNITS
            .iter()
            .find(|(unit, _)| bytes >= unit && bytes.is_multiple_of(*unit));
        match unit {
            Some((unit, name)) => serializer.collect_str(&format_args!("{}{name}", bytes / unit)),
            None => serializer.serialize_u64(*bytes),
        }
    }

    fn parse(text: &str) -> Option<u64> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits)?;
        let scale: u64 = match unit.trim_start() {
            "" | "B" => 1,
            "kB" | "KB" => 1000,
            "MB" => 1000 * 1000,
            "GB" => 1000 * 1000 * 1000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(scale)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Both {
        #[serde(default, with = "super::duration")]
        time: Duration,
        #[serde(default, with = "super::bytes")]
        size: u64,
    }

    fn read(text: &str) -> Result<Both, String> {
        let value = toml::de::ValueDeserializer::parse(text).unwrap();
        Both::deserialize(value).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn times_are_read_with_their_units() {
        for (text, time) in [
            ("0s", Duration::ZERO),
            ("250ms", Duration::from_millis(250)),
            ("10s", Duration::from_secs(10)),
            ("1h 30m", Duration::from_secs(5400)),
            ("30d", Duration::from_secs(30 * 24 * 3600)),
        ] {
            let read = read(&format!("{{ time = {text:?} }}"));
            assert_eq!(read.map(|both| both.time), Ok(time), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused_with_an_example() {
        for text in [
            "10", "\"10\"", "\"\"", "\"soon\"", "\"-1s\"", "\"101y\"", "1.5",
        ] {
            let refused = read(&format!("{{ time = {text} }}")).map(|both| both.time);
            let refused = refused.unwrap_err();
            let says = ["such as", "shorter"]
                .iter()
                .any(|says| refused.contains(says));
            assert!(says, "{text}: {refused}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("\"4096\"", 4096),
            ("\"512KiB\"", 512 << 10),
            ("\"64 MiB\"", 64 << 20),
            ("\"1GiB\"", 1 << 30),
            ("\"1MB\"", 1_000_000),
        ] {
            let read = read(&format!("{{ size = {text} }}"));
            assert_eq!(read.map(|both| both.size), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in [
            "-1",
            "1.5",
            "\"1.5MiB\"",
            "\"MiB\"",
            "\"\"",
            "\"1 mega\"",
            "\"99999999999TiB\"",
        ] {
            let refused = read(&format!("{{ size = {text} }}")).map(|both| both.size);
            let refused = refused.unwrap_err();
            assert!(refused.contains("such as"), "{text}: {refused}");
        }
    }
}
