//! `verify`: saved requests, intact and broken in each of the known ways.

use std::{fs, io::Write as _, process::Stdio};

use serde_json::{Value, json};

use crate::harness::{
    ARCHIVE, ENDPOINTS, Home, RINGCENTRAL_TOKEN, ZOOM_SECRET, cnam, hookswitch, phone_number,
    unix_now, zoom_headers,
};

const ZOOM: &str = "/zoom/number-management";

/// A saved request, with a head of CRLF lines.
fn saved(path: &str, headers: &[(String, String)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: hooks.example.com\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    [
        head.as_bytes(),
        b"content-length: ",
        body.len().to_string().as_bytes(),
        b"\r\n\r\n",
        body,
    ]
    .concat()
}

/// The request of an event that was signed now as `sent`, and came with the body `received`.
fn zoom(sent: &[u8], received: &[u8]) -> Vec<u8> {
    saved(ZOOM, &zoom_headers(sent, ZOOM_SECRET, unix_now()), received)
}

fn ringcentral(token: &str) -> Vec<u8> {
    let headers = [("verification-token".to_owned(), token.to_owned())];
    let body = phone_number("1", "2");
    saved("/ringcentral/phone-number", &headers, body.as_bytes())
}

/// The report about `request`, whose verdict is also in the exit code.
fn verify(home: &Home, request: &[u8], more: &[&str]) -> Value {
    let file = home.path().join("request.txt");
    fs::write(&file, request).unwrap();
    let arguments = [&["verify", file.to_str().unwrap(), "--json"], more].concat();
    let output = home.run(&arguments);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let accepted = report["accepted"].as_bool().unwrap();
    assert_eq!(
        output.status.code(),
        Some(if accepted { 0 } else { 1 }),
        "{report}"
    );
    assert!(!report.to_string().contains(ZOOM_SECRET), "{report}");
    report
}

/// The status, the label, and the messages of the problems.
fn verdict(report: &Value) -> (u64, &str, String) {
    let problems = report["problems"].as_array().unwrap().iter();
    let messages: Vec<_> = problems
        .map(|problem| problem["message"].as_str().unwrap())
        .collect();
    let (status, answer) = (
        report["status"].as_u64().unwrap(),
        report["answer"].as_str().unwrap(),
    );
    (status, answer, messages.join("\n"))
}

#[test]
fn an_authentic_request_is_accepted_and_its_event_described() {
    let other = "[handlers.other]\nkind = \"log\"\nevents = [\"ringcentral.*\"]\n";
    let home = Home::new(&[ENDPOINTS, ARCHIVE, other]);
    let body = cnam(7, 1);
    let report = verify(&home, &zoom(body.as_bytes(), body.as_bytes()), &[]);
    assert_eq!(verdict(&report), (200, "stored", String::new()), "{report}");
    assert_eq!(report["endpoint"], "number-management");
    assert_eq!(report["secret"], json!({ "number": 1, "of": 1 }));
    let event = &report["event"];
    assert_eq!(
        event["name"],
        "zoom.number-management.peering-number-cnam-updated"
    );
    assert_eq!(event["subjects"], json!(["+12025550007"]));
    assert_eq!(event["ordering"], json!({ "keys": 1 }));
    assert_eq!(event["dedupe"], json!(["body"]));
    assert_eq!(event["handlers"], json!(["archive"]));

    let report = verify(&home, &ringcentral(RINGCENTRAL_TOKEN), &[]);
    assert_eq!(verdict(&report), (200, "stored", String::new()), "{report}");
    assert_eq!(report["event"]["dedupe"], json!(["uuid"]));
    assert_eq!(report["event"]["handlers"], json!(["archive", "other"]));

    let handshake = [("validation-token".to_owned(), "opaque".to_owned())];
    let handshake = saved("/ringcentral/phone-number", &handshake, b"");
    let report = verify(&home, &handshake, &[]);
    assert_eq!(
        verdict(&report),
        (200, "handshake", String::new()),
        "{report}"
    );
    assert_eq!(report["event"], Value::Null);
}

#[test]
fn what_is_wrong_with_a_request_is_said() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let body = cnam(1, 1);
    let body = body.as_bytes();
    let sound = zoom(body, body);
    let edited = |from: &str, to: &str| {
        let text = String::from_utf8(sound.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        text.replacen(from, to, 1).into_bytes()
    };
    let unsigned = saved(ZOOM, &[], body);
    let other_app = saved(
        ZOOM,
        &zoom_headers(body, "of-another-app", unix_now()),
        body,
    );
    let old = saved(
        ZOOM,
        &zoom_headers(body, ZOOM_SECRET, unix_now() - 3600),
        body,
    );
    let early = saved(
        ZOOM,
        &zoom_headers(body, ZOOM_SECRET, unix_now() + 3600),
        body,
    );
    let large = vec![b' '; (1 << 20) + 1];
    for (request, status, answer, why) in [
        (
            edited("number-management", "number-managment"),
            404,
            "path",
            "no endpoint has the path",
        ),
        (
            edited("POST", "GET"),
            405,
            "method",
            "the method is GET, and the endpoint takes POST",
        ),
        (
            unsigned,
            401,
            "missing_credential",
            "x-zm-signature and x-zm-request-timestamp is missing",
        ),
        (
            edited("v0=", "v1="),
            401,
            "malformed_credential",
            "not `v0=` and 64 hex",
        ),
        (
            other_app,
            401,
            "wrong_credential",
            "no known change of the bytes explains it",
        ),
        (old, 503, "stale", "the proof was made 1h"),
        (early, 503, "stale", "the proof was made 59m"),
        (
            zoom(&large, &large),
            413,
            "too_large",
            "the body has 1048577 bytes",
        ),
        (
            sound[..sound.len() - 10].to_vec(),
            503,
            "broken_body",
            "the body was cut short",
        ),
        (
            ringcentral("wrong"),
            401,
            "wrong_credential",
            "is none of `verification_tokens`",
        ),
    ] {
        let report = verify(&home, &request, &[]);
        let (has_status, has_answer, messages) = verdict(&report);
        assert_eq!((has_status, has_answer), (status, answer), "{report}");
        assert!(messages.contains(why), "{why}: {report}");
    }
}

#[test]
fn a_change_on_the_way_is_named() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let plain =
        r#"{"event":"x","a":[1.50,{}],"url":"https:\/\/h\/p","name":"Zo\u00eb \ud83d\ude42 <b>"}"#;
    let indented = "{\n  \"event\": \"x\",\n  \"a\": [\n    1.50,\n    {}\n  ]\n}";
    let compact = r#"{"event":"x","a":[1.50,{}]}"#;
    let utf8 = "{\"name\":\"Zoë\"}";
    let utf16: Vec<_> = utf8.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (sent, received, changes) in [
        (
            compact,
            format!("{compact}\n").into(),
            vec!["a line end was added at its end"],
        ),
        (
            &format!("{compact}\n"),
            compact.into(),
            vec!["the line end at its end was taken away"],
        ),
        (
            indented,
            indented.replace('\n', "\r\n").into(),
            vec!["from LF to CRLF"],
        ),
        (
            &indented.replace('\n', "\r\n"),
            indented.into(),
            vec!["from CRLF to LF"],
        ),
        (
            compact,
            format!("\u{feff}{compact}").into(),
            vec!["a byte order mark was added"],
        ),
        (
            &format!("\u{feff}{compact}"),
            compact.into(),
            vec!["a byte order mark was taken away"],
        ),
        (
            indented,
            compact.into(),
            vec!["the white space between its tokens was taken away"],
        ),
        (
            compact,
            indented.into(),
            vec!["white space was added between its tokens"],
        ),
        (
            compact,
            compact.replace(':', ": ").replace(',', ", ").into(),
            vec!["white space was added between its tokens"],
        ),
        (
            &compact.replace(':', ": ").replace(',', ", "),
            indented.into(),
            vec!["the white space between its tokens was changed"],
        ),
        (
            plain,
            plain.replace("\\/", "/").into(),
            vec!["`\\/` was written as `/`"],
        ),
        (
            &plain.replace("\\/", "/"),
            plain.into(),
            vec!["`/` was written as `\\/`"],
        ),
        (
            plain,
            plain.replace("\\u00eb \\ud83d\\ude42", "ë 🙂").into(),
            vec!["`\\u` escapes were written as characters"],
        ),
        (
            &plain.replace("\\u00eb \\ud83d\\ude42", "ë 🙂"),
            plain.into(),
            vec!["characters beyond ASCII were written as `\\u` escapes"],
        ),
        (
            &plain.replace("\\/", "/"),
            plain
                .replace("\\/", "/")
                .replace("<b>", "\\u003cb\\u003e")
                .into(),
            vec!["`<`, `>` and `&` were written as `\\u` escapes"],
        ),
        (
            utf8,
            b"{\"name\":\"Zo\xeb\"}".to_vec(),
            vec!["its UTF-8 was changed to Latin-1"],
        ),
        (
            utf8,
            "{\"name\":\"ZoÃ«\"}".into(),
            vec!["its UTF-8 was taken for Latin-1"],
        ),
        (utf8, utf16, vec!["its UTF-8 was changed to UTF-16"]),
        (
            compact,
            b"eyJldmVudCI6IngiLCJhIjpbMS41MCx7fV19".to_vec(),
            vec!["encoded as base64"],
        ),
        (
            plain,
            format!(
                "{}\r\n",
                plain
                    .replace("\\/", "/")
                    .replace("\\u00eb \\ud83d\\ude42", "ë 🙂")
            )
            .into(),
            vec![
                "`\\/` was written as `/`, `\\u` escapes were written as characters",
                ", white space was added at its end",
            ],
        ),
    ] {
        let report = verify(&home, &zoom(sent.as_bytes(), &received), &[]);
        let (status, answer, messages) = verdict(&report);
        assert_eq!((status, answer), (401, "wrong_credential"), "{report}");
        assert!(
            messages.starts_with("the bytes were changed on the way: "),
            "{report}"
        );
        assert!(!messages.contains('\n'), "{report}");
        for change in changes {
            assert!(messages.contains(change), "{change}: {report}");
        }
        assert_eq!(report["secret"]["number"], 1);
    }
}

#[test]
fn the_secret_that_fits_is_named_by_its_number() {
    let tokens = "verification_tokens = [\"new\", \"a-token-for-tests\"]";
    let secrets = "secret_tokens = [\"new\", \"a-secret-for-tests\"]";
    let swapped = "[endpoints.swapped]\nfamily = \"zoom.number-management\"\npath = \"/other\"\nsecret_tokens = [\"of-the-other\"]\n";
    let home = Home::new(&[
        &ENDPOINTS
            .replace("verification_tokens = [\"a-token-for-tests\"]", tokens)
            .replace("secret_tokens = [\"a-secret-for-tests\"]", secrets),
        swapped,
    ]);
    let body = cnam(1, 1);
    let body = body.as_bytes();
    for request in [zoom(body, body), ringcentral(RINGCENTRAL_TOKEN)] {
        let report = verify(&home, &request, &[]);
        assert_eq!(
            report["secret"],
            json!({ "number": 2, "of": 2 }),
            "{report}"
        );
    }
    let strayed = saved("/other", &zoom_headers(body, ZOOM_SECRET, unix_now()), body);
    let report = verify(&home, &strayed, &[]);
    let (_, answer, messages) = verdict(&report);
    assert_eq!(answer, "wrong_credential");
    assert!(
        messages.contains("a secret of the endpoint \"number-management\" fits"),
        "{report}"
    );
    let report = verify(&home, &strayed, &["--endpoint", "number-management"]);
    assert_eq!(report["accepted"], true, "{report}");
    assert!(
        report["notes"][0].as_str().unwrap().contains("/other"),
        "{report}"
    );
}

#[test]
fn the_time_of_the_check_is_that_of_the_file_or_is_given() {
    let home = Home::new(&[ENDPOINTS]);
    let body = cnam(1, 1);
    let body = body.as_bytes();
    let old = saved(ZOOM, &zoom_headers(body, ZOOM_SECRET, 1_772_637_667), body);
    assert_eq!(verify(&home, &old, &[])["answer"], "stale");
    let at = ["--at", "2026-03-04T15:21:08Z"];
    assert_eq!(verify(&home, &old, &at)["accepted"], true);

    // A file of that time, and a change on the way besides.
    let file = home.path().join("request.txt");
    let changed = [&old[..], b" "].concat();
    let changed = String::from_utf8(changed).unwrap();
    let length = body.len();
    let changed = changed.replace(
        &format!("content-length: {length}"),
        &format!("content-length: {}", length + 1),
    );
    fs::write(&file, changed).unwrap();
    let written = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_772_637_670);
    fs::File::options()
        .append(true)
        .open(&file)
        .unwrap()
        .set_modified(written)
        .unwrap();
    let output = home.run(&["verify", file.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("white space was added around it"), "{text}");
    assert!(
        text.contains("2026-03-04T15:21:10Z, when the file was last written"),
        "{text}"
    );
    assert!(!text.contains("the proof was made"), "{text}");
}

#[test]
fn a_request_can_have_lf_lines_and_no_request_line_and_come_from_a_pipe() {
    let home = Home::new(&[ENDPOINTS]);
    let body = cnam(1, 1);
    let mut text = String::from_utf8(zoom(body.as_bytes(), body.as_bytes())).unwrap();
    text = text.replace("\r\n", "\n") + "\n";
    let report = verify(&home, text.as_bytes(), &[]);
    assert_eq!(report["accepted"], true, "{report}");
    assert!(
        report["notes"][0]
            .as_str()
            .unwrap()
            .contains("1 byte after the body"),
        "{report}"
    );

    let (_, headless) = text.split_once('\n').unwrap();
    let run = |more: &[&str]| {
        let mut command = hookswitch();
        command
            .args(["verify", "-", "--config"])
            .arg(home.config())
            .args(more);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(headless.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    };
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("name its endpoint with --endpoint"),
        "{stderr}"
    );
    let output = run(&["--endpoint", "number-management"]);
    assert!(output.status.success(), "{output:?}");
}
