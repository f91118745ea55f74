//! Chromium without a screen, driven over the `WebDriver` protocol (W3C).

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use super::server::Server;

/// A browser with a window of its own. It ends with the test.
pub(crate) struct Browser {
    driver: Server,
    session: String,
}

/// How a browser shows pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) width: u32,
    pub(crate) dark: bool,
    pub(crate) script: bool,
}

impl Look {
    pub(crate) const DESK: Self = Self {
        width: 1200,
        dark: false,
        script: true,
    };
}

impl Browser {
    /// Starts Debian's `chromium` with its driver.
    pub(crate) fn start(look: Look) -> Self {
        let driver = Server::start(|dir, port| {
            let mut command = Command::new("chromedriver");
            command.arg(format!("--port={port}")).env("HOME", dir);
            command
        });
        let mut arguments = vec![
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            format!("--window-size={},1000", look.width),
            format!("--user-data-dir={}", driver.dir().join("profile").display()),
        ];
        if look.dark {
            arguments.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        let scripts = if look.script { 1 } else { 2 };
        let options = json!({
            "args": arguments,
            "prefs": { "profile.managed_default_content_settings.javascript": scripts },
        });
        let capabilities = json!({
            "capabilities": { "alwaysMatch": {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": { "browser": "ALL" },
            } },
        });
        let mut browser = Self {
            driver,
            session: String::new(),
        };
        let session = browser.call("POST", "", &capabilities);
        session["sessionId"]
            .as_str()
            .unwrap()
            .clone_into(&mut browser.session);
        // A phone is narrower than the least window of a desktop.
        let metrics = json!({ "width": look.width, "height": 1000, "deviceScaleFactor": 1,
            "mobile": look.width < 500 });
        browser.devtools("Emulation.setDeviceMetricsOverride", &metrics);
        browser
    }

    /// Goes to `url`.
    pub(crate) fn open(&self, url: &str) {
        self.post("url", &json!({ "url": url }));
    }

    /// The address of the page.
    pub(crate) fn address(&self) -> String {
        let url = self.call("GET", &format!("/{}/url", self.session), &Value::Null);
        url.as_str().unwrap().to_owned()
    }

    /// The text of the first element that `selector` selects, as a person sees it.
    pub(crate) fn text(&self, selector: &str) -> String {
        let path = format!("/{}/element/{}/text", self.session, self.find(selector));
        let text = self.call("GET", &path, &Value::Null);
        text.as_str().unwrap().to_owned()
    }

    /// Whether `selector` selects anything.
    pub(crate) fn has(&self, selector: &str) -> bool {
        let query = json!({ "using": "css selector", "value": selector });
        let found = self.post("elements", &query);
        !found.as_array().unwrap().is_empty()
    }

    /// Types `text` into the field that `selector` selects.
    pub(crate) fn fill(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.post(&format!("element/{element}/clear"), &json!({}));
        self.post(
            &format!("element/{element}/value"),
            &json!({ "text": text }),
        );
    }

    /// Clicks what `selector` selects.
    pub(crate) fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.post(&format!("element/{element}/click"), &json!({}));
    }

    /// Runs `script` in the page, as the body of a function, and returns what it returns or resolves to.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.post("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Runs a command of Chromium's own protocol.
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.post("goog/cdp/execute", &body)
    }

    /// What the page has logged, errors of the content security policy included.
    pub(crate) fn console(&self) -> Vec<String> {
        let logged = self.post("se/log", &json!({ "type": "browser" }));
        let lines = logged.as_array().unwrap().iter();
        lines
            .map(|line| line["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Writes a picture of the whole page to `path`.
    pub(crate) fn picture(&self, path: &Path) {
        let whole = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.devtools("Page.captureScreenshot", &whole);
        let picture = picture["data"].as_str().unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, decode(picture)).unwrap();
    }

    fn find(&self, selector: &str) -> String {
        let found = self.post(
            "element",
            &json!({ "using": "css selector", "value": selector }),
        );
        let mut references = found.as_object().unwrap().values();
        references.next().unwrap().as_str().unwrap().to_owned()
    }

    fn post(&self, command: &str, body: &Value) -> Value {
        self.call("POST", &format!("/{}/{command}", self.session), body)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("http://{}/session{path}", self.driver.address());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let answer = runtime.unwrap().block_on(async {
            let client = reqwest::Client::builder()
                .timeout(Duration::from_secs(120))
                .build();
            let request = client.unwrap().request(method.parse().unwrap(), url);
            let request = match body {
                Value::Null => request,
                body => request.body(body.to_string()),
            };
            request.send().await.unwrap().text().await.unwrap()
        });
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let value = &answer["value"];
        assert!(value.get("error").is_none(), "{method} {path}: {value:#}");
        value.clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver would leave the browser behind. A test that has failed needs no second reason.
        let end = || self.call("DELETE", &format!("/{}", self.session), &Value::Null);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(end));
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "the browser has not ended"
        );
    }
}

fn decode(base64: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD
        .decode(base64)
        .unwrap()
}
