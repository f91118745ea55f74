//! The documents match the code.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::floors::sources;

#[test]
fn every_link_within_the_project_resolves() {
    let documents = documents();
    assert!(documents.len() > 8, "{documents:?}");
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            let from = document.display();
            assert!(
                target.exists(),
                "{from} links to {link}, which is not there"
            );
            assert!(
                heading.is_empty() || has_heading(&target, heading),
                "{from} links to {link}: there is no such heading"
            );
        }
    }
}

/// The reference of each kind and the table of event names are generated. Set `HOOKSWITCH_UPDATE=1` to write it anew, for the kinds of
/// this build; then read what changed.
#[test]
fn generated_documents_match_the_commands() {
    let [mut reference, mut handlers] =
        ["config/hookswitch.toml", "docs/handlers.md"].map(Generated::read);
    for line in hookswitch(&["handlers", "list"]).lines() {
        let (kind, summary) = line.split_once(' ').unwrap();
        let summary = summary.trim();
        if summary.starts_with("Not in this build.") {
            continue;
        }
        let describe = |format| hookswitch(&["handlers", "describe", kind, "--format", format]);
        handlers.replace_row(kind, summary);
        let command = format!("hookswitch handlers describe {kind} --format markdown");
        handlers.replace_part(&command, &describe("markdown"));
        reference.replace_table(kind, &describe("toml"));
    }
    handlers.replace_part("hookswitch events names", &event_names());
    reference.check();
    handlers.check();
}

/// The table of every event name.
fn event_names() -> String {
    let names = hookswitch(&["events", "names", "--json"]);
    let names: Vec<serde_json::Value> = serde_json::from_str(&names).unwrap();
    let text = |name: &serde_json::Value| name.as_str().unwrap().to_owned();
    let rows = names.iter().map(|name| {
        format!(
            "| `{}` | {} |\n",
            text(&name["event"]),
            text(&name["meaning"])
        )
    });
    format!(
        "| event | meaning |\n|---|---|\n{}",
        rows.collect::<String>()
    )
}

#[test]
fn every_recipe_is_a_configuration_that_loads() {
    let mut loaded = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for recipe in text.split("```toml\n").skip(1) {
            let recipe = recipe.split("```").next().unwrap();
            let is_part = ["[handlers.", "[server]"]
                .iter()
                .all(|table| !recipe.starts_with(table));
            if is_part {
                continue;
            }
            let report = check(recipe);
            if !report.contains("was built without") {
                assert_eq!(report, "", "{}:\n{recipe}", document.display());
                loaded += 1;
            }
        }
    }
    assert!(loaded >= 4, "only {loaded} recipes were loaded");
}

#[test]
fn every_warning_and_error_of_the_log_is_explained() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    let page = fs::read_to_string(page).unwrap();
    let mut explained = 0;
    for source in sources().into_values().flatten() {
        for message in log_messages(&fs::read_to_string(&source).unwrap()) {
            assert!(page.contains(&message), "{}: {message:?}", source.display());
            explained += 1;
        }
    }
    assert!(explained > 30, "only {explained} messages were found");
}

/// The first constant part of each message that `source` logs as a warning or an error. A message
/// of values only is left out.
fn log_messages(source: &str) -> Vec<String> {
    let calls = ["tracing::warn!(", "tracing::error!("].map(|call| source.split(call).skip(1));
    let messages = calls.into_iter().flatten().filter_map(|call| {
        let (call, _) = call.split_once(");")?;
        let (rest, _) = call.rsplit_once('"')?;
        let (_, message) = rest.rsplit_once('"')?;
        let lines = message.split("\\\n").map(str::trim_start);
        let message = lines.collect::<String>();
        let mut parts = message.split(['{', '}']).step_by(2).map(str::trim);
        parts.find(|part| part.len() > 8).map(ToOwned::to_owned)
    });
    messages.collect()
}

/// The report of `check` on `recipe`: a whole configuration, or its handlers.
fn check(recipe: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hookswitch.toml");
    let rest = "[store]\nkind = \"embedded\"\npath = \"data\"\n[endpoints.zoom]\nfamily = \
                \"zoom.number-management\"\npath = \"/zoom\"\nsecret_tokens = [\"secret\"]\n";
    let rest = if recipe.starts_with("[handlers.") {
        rest
    } else {
        ""
    };
    fs::write(&path, format!("{recipe}\n{rest}")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookswitch"));
    command
        .args(["check", "--without-secrets", "--config"])
        .arg(path);
    let output = command.output().unwrap();
    match output.status.success() {
        true => String::new(),
        false => String::from_utf8(output.stderr).unwrap(),
    }
}

fn hookswitch(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookswitch"));
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A file with generated parts.
struct Generated {
    path: PathBuf,
    before: String,
    text: String,
}

impl Generated {
    fn read(path: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let before = fs::read_to_string(&path).unwrap();
        let text = before.clone();
        Self { path, before, text }
    }

    /// Replaces the row of `kind` in the table of kinds.
    fn replace_row(&mut self, kind: &str, summary: &str) {
        let start = format!("| [`{kind}`](#{kind}) |");
        let lines = self
            .text
            .lines()
            .map(|line| match line.starts_with(&start) {
                true => format!("{start} {summary} |\n"),
                false => format!("{line}\n"),
            });
        self.text = lines.collect();
        assert!(self.text.contains(&start), "there is no row for {kind}");
    }

    /// Replaces the part between the comment with `command` and the next one.
    fn replace_part(&mut self, command: &str, part: &str) {
        let start = format!("<!-- {command} -->\n");
        let (before, rest) = self.text.split_once(&start).expect(command);
        let (_, after) = rest.split_once("<!-- end -->").expect(command);
        self.text = format!("{before}{start}{part}<!-- end -->{after}");
    }

    /// Replaces the paragraph of TOML with the table of `kind`. It stays a comment if it is one.
    fn replace_table(&mut self, kind: &str, table: &str) {
        let (plain, comment) = (format!("kind = {kind:?}"), format!("# kind = {kind:?}"));
        let has = |paragraph: &str, wanted: &str| paragraph.lines().any(|line| line == wanted);
        let is_handler = |paragraph: &str| paragraph.contains("[handlers.");
        let paragraphs = self.text.trim_end().split("\n\n").map(|paragraph| {
            if is_handler(paragraph) && has(paragraph, &plain) {
                table.trim_end().to_owned()
            } else if is_handler(paragraph) && has(paragraph, &comment) {
                let lines = table.trim_end().lines().map(|line| format!("# {line}"));
                lines.collect::<Vec<_>>().join("\n")
            } else {
                paragraph.to_owned()
            }
        });
        self.text = paragraphs.collect::<Vec<_>>().join("\n\n") + "\n";
        assert!(self.text.contains(&plain), "there is no table for {kind}");
    }

    fn check(self) {
        if env::var_os("HOOKSWITCH_UPDATE").is_some() {
            fs::write(self.path, self.text).unwrap();
            return;
        }
        let path = self.path.display();
        assert!(
            self.before == self.text,
            "{path} is stale; `HOOKSWITCH_UPDATE=1 cargo test --features full --test it -- documents` \
             writes it anew"
        );
    }
}

/// The Markdown files of the project.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of_folder = |folder: PathBuf| fs::read_dir(folder).unwrap();
    let files = of_folder(root.to_owned()).chain(of_folder(root.join("docs")));
    let paths = files.map(|entry| entry.unwrap().path());
    let is_document = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    paths.filter(is_document).collect()
}

/// The targets of links in Markdown `text`, except external ones.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://"))
}

/// Whether a Markdown file has a heading with the anchor `anchor`.
pub(crate) fn has_heading(file: &Path, anchor: &str) -> bool {
    let text = fs::read_to_string(file).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let mut anchors = headings.map(|heading| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        words.replace([',', '.'], "").replace(' ', "-")
    });
    anchors.any(|heading| heading == anchor)
}
