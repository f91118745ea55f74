//! The API does what its OpenAPI document says: Schemathesis sends what the document allows and what
//! it forbids, and compares each answer with it.

use std::process::Command;

use serde_json::Value;

use crate::{
    harness::{ARCHIVE, ENDPOINTS, Home, cnam_about, eventually, request},
    verifiers::libraries,
};

const TOKENS: &str = r#"
[admin.tokens.everything]
token = "sesame"
roles = ["operate", "raw"]
"#;

#[test]
fn the_api_keeps_to_its_document() {
    let home = Home::new(&[ENDPOINTS, TOKENS, ARCHIVE]);
    let service = home.start();
    for serial in 1..=3 {
        let number = format!("+1202555014{serial}");
        assert_eq!(service.zoom(&cnam_about(1, &[&number], serial)).status, 200);
    }
    eventually("the events are delivered", || home.archived().len() == 3);
    let folder = libraries("schemathesis");
    let run = Command::new("python3")
        .arg("-B")
        .arg(folder.join("bin/schemathesis"))
        .arg("run")
        .arg(format!("http://{}/api/v1/openapi.json", service.admin))
        .args(["--header", "authorization: Bearer sesame"])
        .args(["--checks", "all", "--phases", "coverage,fuzzing"])
        .args(["--max-examples", "20", "--seed", "1", "--no-color"])
        .env("PYTHONPATH", &folder)
        .current_dir(home.path())
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "{report}\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
    assert!(!report.contains("Tested: 0"), "{report}");
}

#[test]
fn the_document_names_every_family() {
    let home = Home::new(&[ENDPOINTS]);
    let service = home.start();
    let answer = request(service.admin, "GET", "/api/v1/openapi.json", &[], b"").unwrap();
    let document: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    for family in ["ringcentral.phone-number", "zoom.number-management"] {
        let schema = &document["components"]["schemas"][family];
        let reference = schema["$ref"].as_str().unwrap();
        let (_, path) = reference.split_once('#').unwrap();
        let schema = document.pointer(path).unwrap();
        assert!(schema["properties"].is_object(), "{family}: {schema}");
    }
}
