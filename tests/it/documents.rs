//! The documents match the code.

use std::{
    fs,
    path::{Path, PathBuf},
};

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
fn has_heading(file: &Path, anchor: &str) -> bool {
    let text = fs::read_to_string(file).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let mut anchors = headings.map(|heading| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        words.replace(' ', "-")
    });
    anchors.any(|heading| heading == anchor)
}
