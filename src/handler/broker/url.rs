//! The URL of a server in the settings.

use reqwest::Url;

/// Reads the URL of a server, which has one of `schemes`. The URL has no credentials, so it can be
/// shown.
///
/// # Errors
///
/// Says what is wrong. The text itself is left out, since it may have a password after all.
pub(in crate::handler) fn read(text: &str, schemes: &[&str], example: &str) -> Result<Url, String> {
    let looks = format!("a URL looks like {example:?}");
    let url =
        Url::parse(text).map_err(|problem| format!("the text is not a URL: {problem}; {looks}"))?;
    if !schemes.contains(&url.scheme()) {
        let schemes = schemes.join("\" or \"");
        return Err(format!("the URL's scheme is not \"{schemes}\"; {looks}"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("the URL names no host; {looks}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!(
            "the URL holds a user's name or password, which have settings of their own; {looks}"
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!(
            "the URL holds more than where the server is; {looks}"
        ));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_url_is_one_of_a_known_scheme_with_a_host_and_without_credentials() {
        let read = |text| super::read(text, &["nats", "tls"], "tls://nats.example.com");
        for good in [
            "nats://127.0.0.1:4222",
            "tls://[::1]",
            "tls://nats.example.com",
        ] {
            assert_eq!(read(good).map(|url| url.to_string()).as_deref(), Ok(good));
        }
        for (bad, why) in [
            ("hush", "is not a URL"),
            ("redis://hush", "is not \"nats\" or \"tls\""),
            ("nats://", "names no host"),
            ("nats:///hush", "names no host"),
            ("nats://hush@example.com", "settings of their own"),
            ("nats://:hush@example.com", "settings of their own"),
            ("nats://example.com?hush", "more than where"),
            ("nats://example.com#hush", "more than where"),
        ] {
            let refused = read(bad).unwrap_err();
            assert!(refused.contains(why), "{bad}: {refused}");
            assert!(
                refused.contains("tls://nats.example.com"),
                "{bad}: {refused}"
            );
            assert!(!refused.contains("hush"), "{refused}");
        }
    }
}
