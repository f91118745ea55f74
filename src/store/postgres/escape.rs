//! Escapes text for PostgreSQL, which cannot store NUL: NUL is written `\0`, and a backslash `\\`.
//! So no authentic event is refused for a character.

use std::borrow::Cow;

use tokio_postgres::Row;

/// Escapes `text`.
pub(super) fn to_sql(text: &str) -> Cow<'_, str> {
    if text.contains(['\0', '\\']) {
        Cow::Owned(text.replace('\\', r"\\").replace('\0', r"\0"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Reverses [`to_sql`].
pub(super) fn from_sql(text: String) -> String {
    if !text.contains('\\') {
        return text;
    }
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next() {
                Some('0') => '\0',
                Some(escaped) => escaped,
                None => '\\',
            },
            other => other,
        });
    }
    plain
}

/// Reads a text column of `row`.
pub(super) fn get(row: &Row, column: usize) -> Result<String, tokio_postgres::Error> {
    row.try_get(column).map(from_sql)
}

/// Reads a nullable text column of `row`.
pub(super) fn find(row: &Row, column: usize) -> Result<Option<String>, tokio_postgres::Error> {
    let found: Option<String> = row.try_get(column)?;
    Ok(found.map(from_sql))
}

#[cfg(test)]
mod tests {
    use super::{from_sql, to_sql};

    #[test]
    fn every_text_comes_back_and_none_holds_a_nul_meanwhile() {
        for text in ["", "plain", "\0", r"\0", r"\\0", "a\0\\b\\", "ü\0ü"] {
            let escaped = to_sql(text);
            assert!(!escaped.contains('\0'), "{text:?}");
            assert_eq!(from_sql(escaped.into_owned()), text);
        }
    }
}
