//! A statement that names fields of an event.
//!
//! `:name` is a field, except within quotes, comments and dollar quotes; `::` is a cast. Each field becomes a
//! parameter, so no value of an event becomes part of the statement.

use serde::Deserialize;

use super::field::Field;

/// One statement, read from the TOML.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct SqlStatement {
    /// The texts before each field, and behind the last one.
    texts: Vec<String>,
    /// The fields, in order. A field that is named twice is here twice, since the database may choose
    /// another type each time.
    fields: Vec<Field>,
}

impl SqlStatement {
    /// The fields, in the order of their parameters.
    pub(super) fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The statement with the parameters `marker` and 1, 2, 3 and so on in place of the fields.
    pub(super) fn render(&self, marker: char) -> String {
        let numbered = |(number, text): (usize, &String)| match number {
            0 => text.clone(),
            number => format!("{marker}{number}{text}"),
        };
        self.texts.iter().enumerate().map(numbered).collect()
    }
}

impl TryFrom<String> for SqlStatement {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Reader::new(&text).read()
    }
}

/// Reads a statement from its beginning to its end. It knows the quotes of PostgreSQL and of SQLite: a
/// character that only one of them takes for a quote means nothing to the other.
struct Reader<'a> {
    rest: &'a str,
    /// The last character before `rest`; white space if there is none.
    before: char,
    texts: Vec<String>,
    fields: Vec<Field>,
    /// The text since the last field.
    text: String,
    has_words: bool,
    has_ended: bool,
}

impl<'a> Reader<'a> {
    const fn new(text: &'a str) -> Self {
        Self {
            rest: text,
            before: ' ',
            texts: Vec::new(),
            fields: Vec::new(),
            text: String::new(),
            has_words: false,
            has_ended: false,
        }
    }

    fn read(mut self) -> Result<SqlStatement, String> {
        while let Some(next) = self.rest.chars().next() {
            self.read_one(next)?;
        }
        if !self.has_words {
            return Err(
                "the statement is empty; write one, such as \"INSERT INTO events (id, data) \
                 VALUES (:id, :data)\""
                    .to_owned(),
            );
        }
        self.texts.push(self.text);
        Ok(SqlStatement {
            texts: self.texts,
            fields: self.fields,
        })
    }

    /// Reads a character, or the token that it begins.
    fn read_one(&mut self, next: char) -> Result<(), String> {
        let rest = self.rest;
        if let Some(length) = comment(rest)? {
            return self.take(length);
        }
        if next.is_whitespace() {
            return self.take(next.len_utf8());
        }
        if self.has_ended {
            return Err(
                "the statement goes on behind its semicolon; a handler runs one \
                 statement, so keep one"
                    .to_owned(),
            );
        }
        match next {
            ';' => {
                self.has_ended = true;
                self.take(1)
            }
            _ => {
                self.has_words = true;
                self.read_word(next)
            }
        }
    }

    fn read_word(&mut self, next: char) -> Result<(), String> {
        let rest = self.rest;
        let in_word = is_word(self.before);
        match next {
            '\'' => {
                let escapes = matches!(self.before, 'e' | 'E') && !is_word(self.before_last());
                self.take(quoted(rest, next, escapes)?)
            }
            '"' | '`' => self.take(quoted(rest, next, false)?),
            '$' if !in_word => match dollar_quoted(rest)? {
                Some(length) => self.take(length),
                None => Err(format!(
                    "{} is a parameter of the database's own; name a field in its place: {}",
                    rest.split(|c| !is_word(c) && c != '$')
                        .next()
                        .unwrap_or(rest),
                    Field::list()
                )),
            },
            ':' if rest.starts_with("::") => self.take(2),
            ':' => match rest.get(1..).map(leading_word) {
                Some(name) if name.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                    self.read_field(name)
                }
                _ => self.take(1),
            },
            next => self.take(next.len_utf8()),
        }
    }

    fn read_field(&mut self, name: &'a str) -> Result<(), String> {
        let Some(field) = Field::named(name) else {
            return Err(format!(
                "an event has no field :{name}; its fields are {}. A colon that begins no field is \
                 followed by a space",
                Field::list()
            ));
        };
        self.fields.push(field);
        self.texts.push(std::mem::take(&mut self.text));
        self.rest = self.rest.get(1 + name.len()..).unwrap_or_default();
        self.before = 'x';
        Ok(())
    }

    /// Takes the next `length` bytes as they are.
    fn take(&mut self, length: usize) -> Result<(), String> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .unwrap_or((self.rest, ""));
        self.text.push_str(taken);
        self.before = taken.chars().next_back().unwrap_or(' ');
        self.rest = rest;
        Ok(())
    }

    /// The last character but one before `rest`.
    fn before_last(&self) -> char {
        self.text.chars().rev().nth(1).unwrap_or(' ')
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn leading_word(text: &str) -> &str {
    let end = text.find(|character| !is_word(character));
    text.get(..end.unwrap_or(text.len())).unwrap_or_default()
}

/// The length of the comment at the beginning of `text`, if there is one.
fn comment(text: &str) -> Result<Option<usize>, String> {
    if text.starts_with("--") {
        return Ok(Some(text.find('\n').unwrap_or(text.len())));
    }
    if !text.starts_with("/*") {
        return Ok(None);
    }
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Ok(Some(at));
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    Err("a comment in the statement has no end; close it with */".to_owned())
}

/// The length of the quoted text or name at the beginning of `text`. A doubled quote does not end it. With
/// `escapes`, a quote behind a backslash does not either.
fn quoted(text: &str, quote: char, escapes: bool) -> Result<usize, String> {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character == '\\' && escapes {
            characters.next();
        } else if character == quote && characters.next_if(|(_, next)| *next == quote).is_none() {
            return Ok(at + quote.len_utf8());
        }
    }
    Err(format!(
        "a quote in the statement has no end; close it with {quote}"
    ))
}

/// The length of the dollar-quoted text at the beginning of `text`, if there is one.
fn dollar_quoted(text: &str) -> Result<Option<usize>, String> {
    let tag = leading_word(text.get(1..).unwrap_or_default());
    let opening = format!("${tag}$");
    if tag.starts_with(|c: char| c.is_ascii_digit()) || !text.starts_with(&opening) {
        return Ok(None);
    }
    let inside = text.get(opening.len()..).unwrap_or_default();
    match inside.find(&opening) {
        Some(end) => Ok(Some(end + 2 * opening.len())),
        None => Err(format!(
            "a text in the statement has no end; close it with {opening}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<SqlStatement, String> {
        SqlStatement::try_from(text.to_owned())
    }

    fn rendered(text: &str) -> String {
        read(text).unwrap().render('$')
    }

    #[test]
    fn fields_become_numbered_parameters() {
        let statement =
            read("INSERT INTO e VALUES (:id,:data, :id) ON CONFLICT DO NOTHING; -- :id").unwrap();
        assert_eq!(statement.fields(), [Field::Id, Field::Data, Field::Id]);
        assert_eq!(
            statement.render('?'),
            "INSERT INTO e VALUES (?1,?2, ?3) ON CONFLICT DO NOTHING; -- :id"
        );
        assert_eq!(rendered(":id"), "$1");
        assert_eq!(rendered("SELECT 1"), "SELECT 1");
    }

    #[test]
    fn what_is_quoted_and_what_is_no_field_stays() {
        for text in [
            "SELECT ':id'",
            "SELECT 'it''s :id'",
            r"SELECT E'it\'s :id'",
            r"SELECT e'\\', ':id'",
            "SELECT \":id\" FROM \"a\"\"b :id\"",
            "SELECT `:id`",
            "SELECT 1 -- :nonsense\n + 1",
            "SELECT /* :id /* nested ' */ :nonsense */ 1",
            "SELECT $$ it's :id $$",
            "SELECT $a$ $$ :id $b$ $a$",
            "SELECT a[1:2]",
            "SELECT a[x : y]",
            "SELECT x::int, '1'::int",
            "SELECT a ? 'b', a$b, x := 1, ünïcode",
            "SELECT f(x => 1); /* done */ ",
        ] {
            assert_eq!(rendered(text), text);
        }
    }

    #[test]
    fn fields_next_to_quotes_casts_and_comments_are_found() {
        for (text, expected) in [
            ("SELECT :time::text", "SELECT $1::text"),
            ("SELECT 'a'||:id||'b'", "SELECT 'a'||$1||'b'"),
            (r"SELECT '\', :id, ''", r"SELECT '\', $1, ''"),
            (r"SELECT name'\', :id", r"SELECT name'\', $1"),
            ("SELECT E'\\\\':id", "SELECT E'\\\\'$1"),
            ("SELECT --'\n:id", "SELECT --'\n$1"),
            ("SELECT /*'*/:id/*'*/", "SELECT /*'*/$1/*'*/"),
            ("SELECT $$'$$:id", "SELECT $$'$$$1"),
            ("SELECT ARRAY[:id]", "SELECT ARRAY[$1]"),
        ] {
            assert_eq!(rendered(text), expected);
        }
    }

    #[test]
    fn what_cannot_be_a_statement_is_refused_with_what_to_do() {
        for (text, why) in [
            ("", "is empty"),
            (" ; -- nothing", "is empty"),
            ("SELECT :nmae", ":nmae; its fields are :id, "),
            ("SELECT a[x:y]", "no field :y"),
            ("SELECT :ID", "no field :ID"),
            ("SELECT $1", "$1 is a parameter of the database's own"),
            ("SELECT $name", "$name is a parameter"),
            ("SELECT 1; SELECT 2", "behind its semicolon"),
            ("SELECT 'a", "close it with '"),
            ("SELECT \"a", "close it with \""),
            ("SELECT /* /* */ 1", "close it with */"),
            ("SELECT $a$ $b$", "close it with $a$"),
        ] {
            let refusal = read(text).unwrap_err();
            assert!(refusal.contains(why), "{text}: {refusal}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_kept_but_for_its_fields(text in "[-a-zE:;$'\"`/*\\\\ \n1é]{0,40}") {
            if let Ok(statement) = read(&text) {
                let fields = statement.fields().iter();
                let names = fields.map(|field| format!(":{}", field.name()));
                let mut names = names.chain([String::new()]);
                let back: String = statement
                    .texts
                    .iter()
                    .map(|between| between.clone() + &names.next().unwrap())
                    .collect();
                prop_assert_eq!(back, text);
            }
        }
    }
}
