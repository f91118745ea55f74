//! A request as `nc`, a proxy or a web tool saves it: the text of HTTP/1.1.

use std::str::FromStr;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

/// What the file says. Lines of the head may end with LF instead of CRLF. The request line may be missing.
#[derive(Debug)]
pub(super) struct SavedRequest {
    pub(super) method: Method,
    /// The target of the request line.
    pub(super) target: Option<Uri>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// How the length of the body compares with `content-length`.
    pub(super) length: Length,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    AsAnnounced,
    /// The body is shorter than this.
    Short(usize),
    /// So many bytes follow the body in the file. A server would not take them for part of the body.
    Surplus(usize),
}

impl SavedRequest {
    /// Parses the content of a file.
    pub(super) fn parse(file: &[u8]) -> anyhow::Result<Self> {
        let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
        let mut lines = Lines {
            rest: file.trim_ascii_start(),
        };
        let mut saved = Self {
            method: Method::POST,
            target: None,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            length: Length::AsAnnounced,
        };
        let mut number = 0;
        while let Some(line) = lines.next().filter(|line| !line.is_empty()) {
            number += 1;
            let read = match request_line(line).filter(|_| number == 1) {
                Some(words) => saved.read_request_line(words),
                None => saved.read_header(line),
            };
            read.with_context(|| {
                format!(
                    "line {number} is no part of a request; save the request line, the headers, an \
                     empty line and the body, as they came"
                )
            })?;
        }
        if number == 0 {
            bail!("there is no request in it");
        }
        saved.read_body(lines.rest);
        Ok(saved)
    }

    fn read_request_line(&mut self, (method, target): (&str, &str)) -> anyhow::Result<()> {
        self.method = Method::from_str(method)?;
        self.target = Some(Uri::from_str(target)?);
        Ok(())
    }

    fn read_header(&mut self, line: &[u8]) -> anyhow::Result<()> {
        // The first colon of `:path: /` is part of the name, as HTTP/2 has it.
        let is_colon = |(place, byte): (usize, &u8)| (place > 0 && *byte == b':').then_some(place);
        let colon = line.iter().enumerate().find_map(is_colon);
        let colon = colon.context("a header has a colon")?;
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
        match name {
            b":method" => self.method = Method::from_bytes(value)?,
            b":path" => self.target = Some(Uri::try_from(value)?),
            [b':', ..] => {}
            name => {
                let name = HeaderName::from_bytes(name.trim_ascii())?;
                self.headers.append(name, HeaderValue::from_bytes(value)?);
            }
        }
        Ok(())
    }

    fn read_body(&mut self, rest: &[u8]) {
        let encoding = self.headers.get(header::TRANSFER_ENCODING);
        let is_chunked = encoding.is_some_and(|encoding| encoding.as_bytes().ends_with(b"chunked"));
        // Most tools save the body without its chunks, and the header all the same.
        if is_chunked && let Some(body) = unchunked(rest) {
            self.body = body.into();
            return;
        }
        let announced = self.headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.trim().parse().ok());
        let announced = announced.unwrap_or(rest.len());
        let (body, surplus) = rest.split_at(announced.min(rest.len()));
        self.body = Bytes::copy_from_slice(body);
        self.length = match (body.len() < announced, surplus.len()) {
            (true, _) => Length::Short(announced),
            (false, 0) => Length::AsAnnounced,
            (false, surplus) => Length::Surplus(surplus),
        };
    }
}

/// The method and the target, if `line` is a request line.
fn request_line(line: &[u8]) -> Option<(&str, &str)> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (method, target) = (words.next()?, words.next()?);
    let is_method = method.bytes().all(|byte| byte.is_ascii_uppercase());
    let is_target = target.starts_with('/') || target.contains("://");
    (is_method && is_target).then_some((method, target))
}

/// The lines of a head, without their ends.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let (line, rest) = match end {
            Some(end) => self.rest.split_at(end + 1),
            None => (self.rest, &[][..]),
        };
        self.rest = rest;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// The body that `text` is in chunks; `None` when it is not.
fn unchunked(text: &[u8]) -> Option<Vec<u8>> {
    let mut lines = Lines { rest: text };
    let mut body = Vec::new();
    loop {
        let size = str::from_utf8(lines.next()?).ok()?;
        let size = size.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let (chunk, rest) = lines.rest.split_at_checked(size)?;
        body.extend_from_slice(chunk);
        lines.rest = rest;
        lines.next().filter(|end| end.is_empty())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(file: &str) -> (String, Length) {
        let saved = SavedRequest::parse(file.as_bytes()).unwrap();
        let body = String::from_utf8(saved.body.to_vec()).unwrap();
        (body, saved.length)
    }

    #[test]
    fn each_form_of_a_head_is_read() {
        for file in [
            "POST /a?b=c HTTP/1.1\r\nX-Y: z \r\nhost: h\r\n\r\nbody",
            "\u{feff}\nPOST https://h/a?b=c HTTP/1.1\nx-y:z\n\nbody",
            "POST /a?b=c\nx-y: z\n\nbody",
            ":method: POST\n:path: /a?b=c\n:authority: h\nx-y: z\n\nbody",
        ] {
            let saved = SavedRequest::parse(file.as_bytes()).unwrap();
            assert_eq!(saved.method, Method::POST);
            let target = saved.target.unwrap();
            assert_eq!((target.path(), target.query()), ("/a", Some("b=c")));
            assert_eq!(saved.headers["x-y"], "z");
            assert_eq!(saved.body, "body");
        }
        let saved = SavedRequest::parse(b"x-y: z\n\nbody").unwrap();
        assert_eq!((saved.target, &*saved.body), (None, &b"body"[..]));
    }

    #[test]
    fn the_body_ends_where_its_head_says() {
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        for (file, expected) in [
            (
                "POST /\ncontent-length: 4\n\nbody\n",
                ("body", Length::Surplus(1)),
            ),
            (
                "POST /\ncontent-length: 9\n\nbody\n",
                ("body\n", Length::Short(9)),
            ),
            ("POST /\n\nbody\n", ("body\n", Length::AsAnnounced)),
            ("POST /\ncontent-length: 0", ("", Length::AsAnnounced)),
            (
                &format!("{chunked}2;x\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"),
                ("body", Length::AsAnnounced),
            ),
            (&format!("{chunked}body"), ("body", Length::AsAnnounced)),
        ] {
            assert_eq!(body(file), (expected.0.to_owned(), expected.1), "{file}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_its_line() {
        for (file, line) in [
            ("", "there is no request"),
            ("{\"event\": 1}", "line 1 "),
            ("POST / HTTP/1.1\nno header\n\n", "line 2 "),
        ] {
            let refused = SavedRequest::parse(file.as_bytes()).unwrap_err();
            assert!(refused.to_string().contains(line), "{refused}");
        }
    }
}
