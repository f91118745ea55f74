//! The admin server's API: who may do what, what it answers, and what operators change.

use serde_json::Value;

use crate::harness::{
    ARCHIVE, Answer, ENDPOINTS, Engine, Home, Service, cnam_about, eventually, on_every_engine,
    request,
};

on_every_engine![
    a_paused_handler_begins_no_attempt_over_restarts_until_it_is_resumed,
    an_event_is_found_by_its_number_and_shows_what_became_of_it,
];

const TOKENS: &str = r#"
[admin.tokens.reader]
token = "the reader's token"
roles = ["read"]

[admin.tokens.night]
token = "the night shift's token"
roles = ["operate"]

[admin.tokens.lead]
token = "the lead's token"
roles = ["raw"]
"#;

const READER: (&str, &str) = ("authorization", "Bearer the reader's token");
const NIGHT: (&str, &str) = ("authorization", "Bearer the night shift's token");
const LEAD: (&str, &str) = ("authorization", "Bearer the lead's token");

const PAUSE: &str = "/api/v1/handlers/archive/pause";
const WHY: &str = r#"{ "reason": "a test" }"#;

fn get(service: &Service, path: &str, headers: &[(&str, &str)]) -> Answer {
    request(service.admin, "GET", path, headers, b"").unwrap()
}

fn post(service: &Service, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    request(service.admin, "POST", path, headers, body.as_bytes()).unwrap()
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

fn ask(service: &Service, path: &str, headers: &[(&str, &str)]) -> Value {
    let answer = get(service, path, headers);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    json(&answer)
}

#[test]
fn a_token_may_do_what_its_roles_allow() {
    let home = Home::new(&[ENDPOINTS, TOKENS, ARCHIVE]);
    let service = home.start();
    assert_eq!(
        service.zoom(&cnam_about(1, &["+12025550143"], 1)).status,
        200
    );
    let mut id = String::new();
    eventually("the event is listed", || {
        let list = ask(&service, "/api/v1/events", &[READER]);
        let event = list["events"].get(0).cloned().unwrap_or_default();
        event["id"].as_str().unwrap_or_default().clone_into(&mut id);
        !id.is_empty()
    });
    let event = format!("/api/v1/events/{id}");
    let unmasked = format!("{event}?unmasked=true");
    let body = format!("{event}/body");
    let wrong = ("authorization", "Bearer the reader's tokem");
    for (path, nobody, mistaken, reader, night, lead) in [
        ("/api/v1/status", 401, 401, 200, 200, 200),
        ("/api/v1/openapi.json", 401, 401, 200, 200, 200),
        ("/metrics", 401, 401, 200, 200, 200),
        (&event, 401, 401, 200, 200, 200),
        (&unmasked, 401, 401, 403, 403, 200),
        (&body, 401, 401, 403, 403, 200),
        ("/api/v1/nothing", 404, 404, 404, 404, 404),
    ] {
        let status = |headers: &[(&str, &str)]| get(&service, path, headers).status;
        assert_eq!(status(&[]), nobody, "{path}");
        assert_eq!(status(&[wrong]), mistaken, "{path}");
        assert_eq!(status(&[READER]), reader, "{path}");
        assert_eq!(status(&[NIGHT]), night, "{path}");
        assert_eq!(status(&[LEAD]), lead, "{path}");
    }
    let status = |headers: &[(&str, &str)]| post(&service, PAUSE, headers, WHY).status;
    assert_eq!(status(&[]), 401);
    assert_eq!(status(&[READER]), 403);
    assert_eq!(status(&[LEAD]), 403);
    assert_eq!(status(&[NIGHT]), 200);

    let shown = ask(&service, &event, &[LEAD]).to_string();
    assert!(
        !shown.contains("2025550143"),
        "nobody asked for the number: {shown}"
    );
    let shown = ask(&service, &unmasked, &[LEAD]).to_string();
    assert!(shown.contains("2025550143"), "{shown}");
    let sent = cnam_about(1, &["+12025550143"], 1);
    assert_eq!(get(&service, &body, &[LEAD]).body, sent.as_bytes());

    let audit = ask(&service, "/api/v1/audit", &[READER]);
    let told = |entry: &Value| {
        let text = |member: &str| entry[member].as_str().unwrap().to_owned();
        (text("who"), text("action"), text("target"), text("reason"))
    };
    let entries: Vec<_> = audit["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(told)
        .collect();
    let entry = |who: &str, action: &str, target: &str, reason: &str| {
        (
            who.to_owned(),
            action.to_owned(),
            target.to_owned(),
            reason.to_owned(),
        )
    };
    assert_eq!(
        entries,
        [
            entry("lead", "read-body", &id, ""),
            entry("lead", "unmask", &id, ""),
            entry("night", "pause", "archive", "a test"),
            entry("lead", "read-body", &id, ""),
            entry("lead", "unmask", &id, ""),
        ]
    );
    let metrics = String::from_utf8(get(&service, "/metrics", &[READER]).body).unwrap();
    let failures = "hookswitch_admin_login_failures_total 6\n";
    assert!(metrics.contains(failures), "{metrics}");
}

#[test]
fn a_page_of_another_origin_can_neither_read_nor_change_anything() {
    let config = ENDPOINTS.replace("[admin]\n", "[admin]\nhosts = [\"ops.example.com\"]\n");
    let home = Home::new(&[&config, ARCHIVE]);
    let service = home.start();
    let status = |host: &str| get(&service, "/api/v1/status", &[("host", host)]).status;
    assert_eq!(status("ops.example.com"), 200);
    assert_eq!(status("localhost:9090"), 200);
    assert_eq!(status("rebound.example.net"), 421);
    let rebound = ("host", "rebound.example.net");
    assert_eq!(get(&service, "/", &[rebound]).status, 421);
    assert_eq!(get(&service, "/readyz", &[rebound]).status, 200);

    let host = service.admin.to_string();
    let (own, other) = (format!("http://{host}"), "http://127.0.0.1:1");
    let form = "reason=a+test";
    for (headers, allowed) in [
        (vec![], false),
        (vec![("origin", other)], false),
        (vec![("origin", "null")], false),
        (
            vec![("sec-fetch-site", "cross-site"), ("origin", own.as_str())],
            false,
        ),
        (vec![("sec-fetch-site", "same-site")], false),
        (vec![("sec-fetch-site", "none")], false),
        (vec![("origin", own.as_str())], true),
        (vec![("sec-fetch-site", "same-origin")], true),
    ] {
        let api = post(&service, PAUSE, &headers, WHY).status;
        assert_eq!(api, if allowed { 200 } else { 403 }, "{headers:?}");
        let media = ("content-type", "application/x-www-form-urlencoded");
        let headers = [headers.as_slice(), &[media]].concat();
        let page = post(&service, "/handlers/archive/resume", &headers, form).status;
        assert_eq!(page, if allowed { 303 } else { 403 }, "{headers:?}");
    }
    for path in ["/", "/api/v1/status", "/login"] {
        let answer = get(&service, path, &[]);
        let policy = answer.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert_eq!(answer.header("x-frame-options"), Some("DENY"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[test]
fn a_session_ends_when_its_token_changes() {
    let home = Home::new(&[ENDPOINTS, TOKENS]);
    let service = home.start();
    let own = format!("http://{}", service.admin);
    let log_in = |token: &str, origin: &str| {
        let media = ("content-type", "application/x-www-form-urlencoded");
        let form = format!("token={}", token.replace(' ', "+"));
        post(&service, "/login", &[media, ("origin", origin)], &form)
    };
    assert_eq!(
        log_in("the reader's token", "http://127.0.0.1:1").status,
        403
    );
    assert_eq!(log_in("no token", &own).status, 401);
    let answer = log_in("the reader's token", &own);
    assert_eq!(answer.status, 303);
    let cookie = answer.header("set-cookie").unwrap();
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{cookie}"
    );
    let (cookie, _) = cookie.split_once(';').unwrap();
    let status = |cookie: &str| get(&service, "/api/v1/status", &[("cookie", cookie)]).status;
    assert_eq!(status(cookie), 200);
    let of_another = cookie.replace("=reader.", "=night.");
    assert_eq!(status(&of_another), 401, "the name of another token");
    let (name, mac) = cookie.rsplit_once('.').unwrap();
    let (name, expiry) = name.rsplit_once('.').unwrap();
    let later = format!("{name}.{}.{mac}", expiry.parse::<u64>().unwrap() + 1);
    assert_eq!(status(&later), 401, "a later expiry");

    home.configure(&[
        ENDPOINTS,
        &TOKENS.replace("the reader's", "the new reader's"),
    ]);
    service.signal("HUP");
    eventually("the session has ended", || status(cookie) == 401);
    let night = ask(&service, "/api/v1/status", &[NIGHT]);
    assert_eq!(night["level"], "ok", "other tokens stay");
}

#[test]
fn status_asks_the_service_with_a_token_of_the_configuration() {
    let home = Home::new(&[ENDPOINTS, TOKENS, ARCHIVE]);
    let service = home.start();
    let listen = format!("listen = \"{}\"\n\n[store]", service.admin);
    let fixed = ENDPOINTS.replace("listen = \"127.0.0.1:0\"\n\n[store]", &listen);
    home.configure(&[&fixed, TOKENS, ARCHIVE]);
    assert_eq!(home.json(&["status"])["level"], "ok");
    assert_eq!(post(&service, PAUSE, &[NIGHT], WHY).status, 200);
    let told = home.json(&["status"]);
    assert_eq!(told["problems"][0]["code"], "handler-paused", "{told}");
}

fn a_paused_handler_begins_no_attempt_over_restarts_until_it_is_resumed(engine: Engine) {
    let second = ARCHIVE
        .replace("archive", "second")
        .replace("events.nd", "second.nd");
    let home = engine.home(&[ENDPOINTS, TOKENS, ARCHIVE, &second]);
    let mut service = home.start();
    let paused = post(&service, PAUSE, &[NIGHT], WHY);
    assert_eq!(json(&paused)["changed"], true);
    assert_eq!(
        json(&post(&service, PAUSE, &[NIGHT], WHY))["changed"],
        false
    );
    let unknown = post(&service, "/api/v1/handlers/nobody/pause", &[NIGHT], WHY);
    assert_eq!(unknown.status, 404);
    for body in ["", "{}", r#"{ "reason": "a test", "more": 1 }"#] {
        assert_eq!(post(&service, PAUSE, &[NIGHT], body).status, 400, "{body}");
    }
    let second = || std::fs::read_to_string(home.path().join("second.ndjson")).unwrap_or_default();
    let post_event = |service: &Service, serial: u32| {
        let number = format!("+1202555{serial:04}");
        assert_eq!(
            service
                .zoom(&cnam_about(1, &[&number], serial.into()))
                .status,
            200
        );
        let delivered = usize::try_from(serial).unwrap();
        eventually("the other handler gets it", || {
            second().lines().count() == delivered
        });
    };
    post_event(&service, 1);
    let status = ask(&service, "/api/v1/status", &[READER]);
    let message = status["problems"][0]["message"].as_str().unwrap();
    assert!(
        message.contains("archive has been paused") && message.contains("night: a test"),
        "{message}"
    );
    assert_eq!(status["problems"][0]["code"], "handler-paused");

    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let service = home.start();
    post_event(&service, 2);
    assert_eq!(
        home.archived().len(),
        0,
        "nothing is delivered while it is paused"
    );

    let resumed = home.run(&["handlers", "resume", "archive", "--reason", "it is mended"]);
    assert!(resumed.status.success(), "{resumed:?}");
    eventually("what has waited is delivered", || {
        home.archived().len() == 2
    });
    let audit = home.json(&["audit"]);
    let actions = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["action"].clone());
    assert_eq!(actions.collect::<Vec<_>>(), ["resume", "pause"]);
}

fn an_event_is_found_by_its_number_and_shows_what_became_of_it(engine: Engine) {
    let broken =
        "[handlers.crm]\nkind = \"http\"\nevents = [\"*\"]\nurl = \"http://127.0.0.1:9/\"\n";
    let home = engine.home(&[ENDPOINTS, TOKENS, ARCHIVE, broken]);
    let service = home.start();
    for serial in 1..=3 {
        let number = format!("+1202555014{serial}");
        assert_eq!(service.zoom(&cnam_about(1, &[&number], serial)).status, 200);
    }
    let find = |query: &str| ask(&service, &format!("/api/v1/events?{query}"), &[READER]);
    let count = |list: &Value| list["events"].as_array().unwrap().len();
    eventually("all are listed", || count(&find("")) == 3);
    let found = find("about=(202)+555-0142");
    assert_eq!(count(&found), 1, "{found}");
    let found = &found["events"][0];
    assert!(
        found["subjects"][0].as_str().unwrap().ends_with("•42"),
        "{found}"
    );
    let id = found["id"].as_str().unwrap();
    let event = || ask(&service, &format!("/api/v1/events/{id}"), &[READER]);
    eventually(
        "the archive has it, and the other handler has failed",
        || {
            let event = event();
            let deliveries = event["deliveries"].as_array().unwrap();
            deliveries[0]["state"] == "done"
                && !deliveries[1]["failures"].as_array().unwrap().is_empty()
        },
    );
    let event = event();
    let why = event["deliveries"][1]["failures"][0]["why"]
        .as_str()
        .unwrap();
    assert!(why.contains("refused"), "{why}");

    let first = find("limit=2");
    assert_eq!(count(&first), 2);
    let second = find(&format!(
        "limit=2&before={}",
        first["next"].as_str().unwrap()
    ));
    assert_eq!(
        count(&second),
        1,
        "the pages have each event once: {second}"
    );
    assert_eq!(count(&find("state=open&handler=archive")), 0);
    assert_eq!(count(&find("state=open&handler=crm")), 3);
    for (query, status) in [
        ("limit=0", 400),
        ("limit=201", 400),
        ("since=yesterday", 400),
        ("nonsense=1", 400),
        ("state=lost", 400),
        ("before=1", 400),
        ("name=zoon.*", 404),
        ("since=&until=&name=&state=", 200),
    ] {
        let answer = get(&service, &format!("/api/v1/events?{query}"), &[READER]);
        assert_eq!(answer.status, status, "{query}: {answer:?}");
    }
    let absent = "/api/v1/events/01a203eb-0f3f-797b-9600-3580fa44e674";
    assert_eq!(get(&service, absent, &[READER]).status, 404);
}
