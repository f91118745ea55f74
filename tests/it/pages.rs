//! The operator's pages in a real browser.

use std::path::{Path, PathBuf};

use crate::{
    harness::{ARCHIVE, ENDPOINTS, Home, Service, cnam_about, eventually, phone_number},
    support::browser::{Browser, Look},
};

/// Two tokens, one of which may see everything.
const TOKENS: &str = r#"
[admin.tokens.night]
token = "the night shift's token"
roles = ["read", "operate"]

[admin.tokens.lead]
token = "the lead's token"
roles = ["operate", "raw"]
"#;

/// A handler whose receiver does not exist.
const BROKEN: &str = r#"
[handlers.crm]
kind = "http"
events = ["zoom.*"]
url = "http://127.0.0.1:9/"
"#;

fn url(service: &Service, path: &str) -> String {
    format!("http://{}{path}", service.admin)
}

/// Where the pictures of a run are kept.
fn pictures() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages")
}

fn log_in(browser: &Browser, service: &Service, token: &str) {
    browser.open(&url(service, "/login"));
    browser.fill("#token", token);
    browser.click("main button");
}

/// Nothing was refused by the content security policy, and no script failed.
fn is_quiet(browser: &Browser) {
    let logged = browser.console();
    assert!(logged.is_empty(), "{logged:#?}");
}

#[test]
fn an_operator_logs_in_finds_a_number_and_sees_what_became_of_its_events() {
    let home = Home::new(&[ENDPOINTS, TOKENS, ARCHIVE, BROKEN]);
    let service = home.start();
    assert_eq!(
        service.zoom(&cnam_about(1, &["+12025550143"], 1)).status,
        200
    );
    let other = phone_number("u-1", "77");
    assert_eq!(
        service
            .ringcentral("/ringcentral/phone-number", &other)
            .status,
        200
    );

    let browser = Browser::start(Look::DESK);
    browser.open(&url(&service, "/events"));
    assert!(
        browser.address().contains("/login"),
        "{}",
        browser.address()
    );
    browser.fill("#token", "a wrong token");
    browser.click("main button");
    assert!(browser.text("[role=alert]").contains("The token is wrong"));
    browser.fill("#token", "the night shift's token");
    browser.click("main button");
    assert_eq!(
        browser.address(),
        url(&service, "/events"),
        "where the operator wanted to go"
    );

    eventually("both events are listed", || {
        browser.open(&url(&service, "/events"));
        browser.text("#list").matches("finished").count()
            + browser.text("#list").matches("open").count()
            == 2
    });
    browser.fill("#find", "(202) 555-0143");
    browser.run("document.querySelector('.find').requestSubmit()");
    eventually("the number's events are found", || {
        browser.text("h1").contains("(202) 555-0143")
    });
    let found = browser.text("#list");
    assert!(found.contains("zoom.number-management"), "{found}");
    assert!(!found.contains("ringcentral"), "{found}");
    assert!(
        found.contains("•43") && !found.contains("0143"),
        "numbers are masked: {found}"
    );

    browser.click("#list tbody a");
    eventually("the failed attempt is shown", || {
        browser.open(&browser.address());
        browser.text("#deliveries").contains("refused")
    });
    assert!(
        browser
            .text("#deliveries")
            .contains("delivered with attempt 1")
    );
    assert!(browser.has("#typed") && !browser.text("main").contains("5550143"));
    browser.open(&format!("{}?unmasked=true", browser.address()));
    assert!(
        browser.text("main").contains("`raw`"),
        "the night shift may not see numbers"
    );
    browser.click(".session button");
    assert!(browser.address().ends_with("/login"));

    log_in(&browser, &service, "the lead's token");
    browser.open(&url(&service, "/events?name=zoom.*"));
    browser.click("#list tbody a");
    browser.open(&format!("{}?unmasked=true", browser.address()));
    assert!(
        browser.text("#typed").contains("12025550143"),
        "{}",
        browser.text("#typed")
    );
    let logged = browser.console();
    let others: Vec<_> = logged
        .iter()
        .filter(|line| !line.contains("status of 40"))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn the_overview_says_what_is_wrong_and_keeps_itself_up_to_date() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE, BROKEN]);
    let service = home.start();
    let browser = Browser::start(Look::DESK);
    browser.open(&url(&service, "/"));
    assert_eq!(browser.text("#status"), "Everything is all right.");
    browser.run("window.same = true");
    assert_eq!(
        service.zoom(&cnam_about(1, &["+12025550143"], 1)).status,
        200
    );
    eventually("the page says that the handler fails", || {
        browser.text("#status").contains("crm has failed for")
    });
    assert_eq!(
        browser.run("return window.same"),
        true,
        "without being loaded again"
    );
    assert!(browser.text("#handlers").contains("failing"));
    let crm = "form[action='/handlers/crm/pause']";
    browser.run(&format!(
        "document.querySelector(\"{crm}\").parentElement.open = true"
    ));
    browser.fill(&format!("{crm} input"), "until it is mended");
    browser.click(&format!("{crm} button"));
    assert!(browser.text("#status").contains("crm has been paused"));
    browser.open(&url(&service, "/audit"));
    let entry = browser.text("tbody tr");
    assert!(
        entry.contains("local pause crm until it is mended"),
        "{entry}"
    );
    browser.open(&url(&service, "/"));
    browser.picture(&pictures().join("overview.png"));
    is_quiet(&browser);
}

#[test]
fn the_first_event_appears_on_an_empty_page() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    let browser = Browser::start(Look::DESK);
    browser.open(&url(&service, "/events"));
    assert!(browser.text("#list").contains("hookswitch send"));
    assert_eq!(
        service.zoom(&cnam_about(1, &["+12025550143"], 1)).status,
        200
    );
    eventually("the event appears", || {
        browser.text("#list").contains("zoom.number-management")
    });
    is_quiet(&browser);
}

#[test]
fn every_page_works_without_script_on_a_phone_and_in_the_dark() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE, BROKEN]);
    let service = home.start();
    assert_eq!(
        service.zoom(&cnam_about(1, &["+12025550143"], 1)).status,
        200
    );
    let look = Look {
        width: 390,
        dark: true,
        script: false,
    };
    let browser = Browser::start(look);
    eventually("the event is listed", || {
        browser.open(&url(&service, "/events"));
        browser.has("#list tbody a")
    });
    browser.fill("[name=name]", "zoom.*");
    browser.click(".filters button");
    assert!(
        browser.address().contains("name=zoom"),
        "{}",
        browser.address()
    );
    browser.click("#list tbody a");
    assert!(browser.text("h1").starts_with("Event "));
    for (path, name) in [
        ("/", "overview"),
        ("/events", "events"),
        ("/parked", "parked"),
    ] {
        browser.open(&url(&service, path));
        let layout = browser.devtools("Page.getLayoutMetrics", &serde_json::json!({}));
        let width = layout["cssContentSize"]["width"].as_f64().unwrap();
        assert!(width <= 390.0, "{path} is {width} wide");
        browser.picture(&pictures().join(format!("{name}-phone-dark.png")));
    }
    is_quiet(&browser);
}
