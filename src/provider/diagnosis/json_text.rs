//! JSON as text: the same value written in other forms.
//!
//! A program that parses JSON and writes it again keeps the value, and most often the order of keys. It
//! changes the white space between tokens and the escapes within strings. Numbers keep their text here.

use std::cmp::Ordering;

use serde::de::IgnoredAny;

/// A JSON text, split into its tokens.
#[derive(Debug)]
pub(super) struct JsonText<'a> {
    tokens: Vec<Token<'a>>,
    /// The white space after the last token.
    tail: &'a str,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    /// The white space before the token.
    space: &'a str,
    text: &'a str,
}

/// The white space between tokens.
#[derive(Clone, Copy, Debug)]
enum Layout {
    AsReceived,
    /// None.
    Compact,
    /// One space after each comma and each colon.
    Spaced,
    /// Each member on a line of its own, with this for each level.
    Indented(&'static str),
}

const LAYOUTS: [Layout; 6] = [
    Layout::AsReceived,
    Layout::Compact,
    Layout::Spaced,
    Layout::Indented("  "),
    Layout::Indented("    "),
    Layout::Indented("\t"),
];

/// The escapes within strings.
#[derive(Clone, Copy, Debug)]
enum Escapes {
    AsReceived,
    Rewritten {
        /// Whether `/` is escaped.
        slash: bool,
        /// Whether `<`, `>`, `&` and the line separators of Unicode are escaped.
        html: bool,
        /// Whether all other characters beyond ASCII are escaped.
        unicode: bool,
        /// Whether the hexadecimal digits of escapes are in upper case.
        upper_case: bool,
    },
}

impl Escapes {
    fn all() -> impl Iterator<Item = Self> {
        let rewritten = (0_u8..16).map(|bits| Self::Rewritten {
            slash: bits & 1 != 0,
            html: bits & 2 != 0,
            unicode: bits & 4 != 0,
            upper_case: bits & 8 != 0,
        });
        [Self::AsReceived].into_iter().chain(rewritten)
    }
}

impl<'a> JsonText<'a> {
    /// Splits `text`; `None` when it is not JSON.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str::<IgnoredAny>(text).ok()?;
        let mut tokens = Vec::new();
        let mut rest = text;
        loop {
            let start = rest.trim_start_matches([' ', '\t', '\r', '\n']);
            let (space, _) = rest.split_at_checked(rest.len() - start.len())?;
            if start.is_empty() {
                return Some(Self {
                    tokens,
                    tail: space,
                });
            }
            let (text, after) = start.split_at_checked(token_length(start))?;
            tokens.push(Token { space, text });
            rest = after;
        }
    }

    /// This JSON in every form but its own.
    pub(super) fn forms(&self) -> Vec<String> {
        let mut forms = Vec::new();
        let own = self.write(Layout::AsReceived, Escapes::AsReceived);
        for layout in LAYOUTS {
            for escapes in Escapes::all() {
                let form = self.write(layout, escapes);
                if form != own && !forms.contains(&form) {
                    forms.push(form);
                }
            }
        }
        forms
    }

    fn write(&self, layout: Layout, escapes: Escapes) -> String {
        let mut written = String::new();
        let mut depth = 0_usize;
        let mut previous = "";
        for Token { space, text } in &self.tokens {
            if matches!(*text, "}" | "]") {
                depth = depth.saturating_sub(1);
            }
            match layout {
                Layout::AsReceived => written.push_str(space),
                Layout::Compact => {}
                Layout::Spaced if matches!(previous, "," | ":") => written.push(' '),
                Layout::Spaced => {}
                Layout::Indented(_) if previous == ":" => written.push(' '),
                Layout::Indented(indent) => {
                    let is_end = matches!(*text, "}" | "]");
                    let opens = matches!(previous, "{" | "[");
                    // Nothing stands between the brackets of an empty list or object.
                    if previous == "," || opens != is_end {
                        written.push('\n');
                        written.push_str(&indent.repeat(depth));
                    }
                }
            }
            match text.strip_prefix('"') {
                Some(_) => write_string(text, escapes, &mut written),
                None => written.push_str(text),
            }
            if matches!(*text, "{" | "[") {
                depth += 1;
            }
            previous = text;
        }
        if matches!(layout, Layout::AsReceived) {
            written.push_str(self.tail);
        }
        written
    }

    /// The white space before each token.
    fn spaces(&self) -> Vec<&'a str> {
        self.tokens.iter().map(|token| token.space).collect()
    }
}

/// The length of the token with which `text` begins.
fn token_length(text: &str) -> usize {
    if text.starts_with('"') {
        let mut is_escaped = false;
        let end = text.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            ends
        });
        return end.map_or(text.len(), |end| end + 2);
    }
    let is_literal = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let length = text.find(|c| !is_literal(c)).unwrap_or(text.len());
    length.max(1)
}

/// Writes the string `token` with its quotes.
fn write_string(token: &str, escapes: Escapes, written: &mut String) {
    let (
        Escapes::Rewritten {
            slash,
            html,
            unicode,
            upper_case,
        },
        Ok(text),
    ) = (escapes, serde_json::from_str::<String>(token))
    else {
        // A lone half of a surrogate pair has no other form.
        written.push_str(token);
        return;
    };
    written.push('"');
    for c in text.chars() {
        let is_for_html = matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        match c {
            '"' => written.push_str("\\\""),
            '\\' => written.push_str("\\\\"),
            '/' if slash => written.push_str("\\/"),
            '\n' => written.push_str("\\n"),
            '\r' => written.push_str("\\r"),
            '\t' => written.push_str("\\t"),
            '\u{8}' => written.push_str("\\b"),
            '\u{c}' => written.push_str("\\f"),
            c if c < ' ' || (is_for_html && html) || (!c.is_ascii() && unicode) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    written.push_str(&match upper_case {
                        true => format!("\\u{unit:04X}"),
                        false => format!("\\u{unit:04x}"),
                    });
                }
            }
            c => written.push(c),
        }
    }
    written.push('"');
}

/// What a program changed that read `sent` and wrote `received`.
pub(super) fn difference(sent: &str, received: &str) -> String {
    let spaces = |text| JsonText::parse(text).map_or_else(Vec::new, |json| json.spaces());
    let (spaces_sent, spaces_received) = (spaces(sent), spaces(received));
    let has_space = |spaces: &[&str]| spaces.iter().any(|space| !space.is_empty());
    let mut changes = Vec::new();
    if spaces_sent != spaces_received {
        changes.push(
            match (has_space(&spaces_sent), has_space(&spaces_received)) {
                (false, _) => "white space was added between its tokens",
                (_, false) => "the white space between its tokens was taken away",
                _ => "the white space between its tokens was changed",
            },
        );
    }
    for (count, fewer, more) in [
        (
            count_slashes as fn(&str) -> usize,
            "`\\/` was written as `/`",
            "`/` was written as `\\/`",
        ),
        (
            count_unicode,
            "characters beyond ASCII were written as `\\u` escapes",
            "`\\u` escapes were written as characters",
        ),
        (
            count_html,
            "`<`, `>` and `&` were written as `\\u` escapes",
            "`\\u` escapes were written as `<`, `>` and `&`",
        ),
    ] {
        match count(received).cmp(&count(sent)) {
            Ordering::Less => changes.push(fewer),
            Ordering::Equal => {}
            Ordering::Greater => changes.push(more),
        }
    }
    let tail = |text: &str| text.len() - text.trim_end().len();
    match tail(received).cmp(&tail(sent)) {
        Ordering::Less => changes.push("white space at its end was taken away"),
        Ordering::Equal => {}
        Ordering::Greater => changes.push("white space was added at its end"),
    }
    if changes.is_empty() {
        changes.push("the escapes in its strings were written in another way");
    }
    format!(
        "its JSON was parsed and written anew ({})",
        changes.join(", ")
    )
}

/// The number of escaped slashes.
fn count_slashes(text: &str) -> usize {
    text.matches("\\/").count()
}

/// The number of characters beyond ASCII.
fn count_unicode(text: &str) -> usize {
    text.chars().filter(|c| !c.is_ascii()).count()
}

fn count_html(text: &str) -> usize {
    text.matches(['<', '>', '&']).count()
}
