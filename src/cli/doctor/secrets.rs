//! The secrets: their length, whether they are made up for documents, and who can read their files.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, path::Path};

use super::finding::Finding;
use crate::{
    cli::output::count,
    config::Config,
    secret::{Found, Source},
};

const CHECK: &str = "secrets";

/// A secret of fewer characters can be guessed. Zoom's own have 22.
const SHORTEST: usize = 16;

/// Parts of the secrets that stand in the documents of this project and of the providers.
const EXAMPLES: &[&str] = &[
    "local-and-not-secret",
    "the token of step 1",
    "changeme",
    "change-me",
    "your-secret",
    "example",
];

pub(super) fn check(config: &Config, file: &Path, findings: &mut Vec<Finding>) {
    let before = findings.len();
    let mut seen = BTreeSet::new();
    for found in &config.secrets {
        let name = name(found);
        if !seen.insert((name.clone(), found.secret.expose())) {
            continue;
        }
        // Those in the configuration itself have one name.
        let weakness = check_text(&name, found);
        let is_new = |finding: &Finding| !findings.iter().any(|one| one.message == finding.message);
        if let Some(finding) = weakness.filter(is_new) {
            findings.push(finding);
        }
        if let Source::File(path) = &found.source
            && is_readable_by_all(Path::new(path))
        {
            findings.push(Finding::warning(
                CHECK,
                format!("{name} can be read by every user of this machine"),
                format!(
                    "chmod o-r {path}, unless nobody else sees the file system, as in a container"
                ),
            ));
        }
    }
    if config.has_inline_secrets() && is_readable_by_all(file) {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "secrets stand in {}, which every user of this machine can read",
                file.display()
            ),
            "refer to them with { env = \"NAME\" } or { file = \"/path\" }",
        ));
    }
    if findings.len() == before {
        let secrets = count(seen.len() as u64, "secret");
        findings.push(Finding::fine(
            CHECK,
            format!("{secrets}, present and long enough"),
        ));
    }
}

/// What to call a secret.
fn name(found: &Found) -> String {
    match &found.source {
        Source::Inline => "a secret in the configuration itself".to_owned(),
        Source::Env(name) => format!("the secret in the environment variable {name}"),
        Source::File(path) => format!("the secret in {path}"),
    }
}

fn check_text(name: &str, found: &Found) -> Option<Finding> {
    let text = found.secret.expose();
    let lower = text.to_ascii_lowercase();
    if EXAMPLES.iter().any(|example| lower.contains(example)) {
        return Some(Finding::warning(
            CHECK,
            format!("{name} looks like one of a document, which everyone can read"),
            "use the provider's own, or make one with `openssl rand -hex 24`",
        ));
    }
    (text.chars().count() < SHORTEST).then(|| {
        Finding::warning(
            CHECK,
            format!("{name} has fewer than {SHORTEST} characters"),
            "if it is yours to choose, make one with `openssl rand -hex 24`",
        )
    })
}

fn is_readable_by_all(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
}
