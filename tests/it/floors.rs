//! The code keeps the order of the floors in `lib.rs`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The floors from top to bottom. A floor may use the floors after it in this list; floors on one
/// line do not use each other.
const FLOORS: &[&[&str]] = &[
    &["cli"],
    &["app"],
    &["config"],
    &["http", "admin"],
    &["dispatch"],
    &["handler"],
    &["store"],
    &["provider"],
    &["event"],
    &["client_tls"],
    &["ca_bundle"],
    &["pem"],
    &["secret", "postgres_url", "quantity"],
    &["cleartext", "entries", "spanned"],
    &["telemetry"],
];

/// Permitted uses of a floor beside or above, each with its reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "admin",
        "http",
        "the admin server is built with the same accept loop",
    ),
    (
        "telemetry",
        "event",
        "labels are made from the names that `event` defines",
    ),
];

fn height(floor: &str) -> Option<usize> {
    FLOORS.iter().position(|level| level.contains(&floor))
}

/// Source files by floor.
pub(crate) fn sources() -> BTreeMap<String, Vec<PathBuf>> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut floors = BTreeMap::<_, Vec<_>>::new();
    let mut files = Vec::new();
    walk(&root, &mut files);
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let floor = inside.iter().next().unwrap().to_string_lossy();
        let floor = floor.trim_end_matches(".rs").to_owned();
        if floor != "lib" && floor != "main" {
            floors.entry(floor).or_default().push(file);
        }
    }
    floors
}

/// The floors that `source` names: `crate::x`, and each `x` of `crate::{x, y::Z}`.
fn uses(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut floors = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => floors.extend(members(group).iter().map(|path| first_word(path))),
            None => floors.push(first_word(rest)),
        }
    }
    floors.retain(|floor| height(floor).is_some());
    floors
}

/// The comma-separated members of a group of uses, up to its closing brace.
fn members(group: &str) -> Vec<&str> {
    let mut depth = 0;
    let mut start = 0;
    let mut members = Vec::new();
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            ',' if depth == 0 => {
                members.push(&group[start..at]);
                start = at + 1;
            }
            '}' if depth == 0 => {
                members.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    members
}

fn first_word(path: &str) -> String {
    let word = |c: &char| c.is_alphanumeric() || *c == '_';
    path.trim_start().chars().take_while(word).collect()
}

#[test]
fn every_module_is_on_a_floor() {
    for floor in sources().keys() {
        assert!(
            height(floor).is_some(),
            "src/{floor} is on no floor: add it to FLOORS and to lib.rs"
        );
    }
}

#[test]
fn no_floor_uses_a_floor_above_it() {
    let mut wrong = Vec::new();
    for (floor, files) in sources() {
        for file in files {
            for used in uses(&fs::read_to_string(&file).unwrap()) {
                let below = height(&used) > height(&floor);
                let meant = EXCEPTIONS
                    .iter()
                    .any(|(from, to, _)| *from == floor && *to == used);
                if used != floor && !below && !meant {
                    wrong.push(format!("{} uses crate::{used}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_form_of_use_is_recognized() {
    assert_eq!(uses("use crate::http::Server;"), ["http"]);
    assert_eq!(
        uses("use crate::{\n    app, event::{self, Key},\n    store::Store,\n};"),
        ["app", "event", "store"]
    );
    assert_eq!(
        uses("let x = crate::dispatch::Order::Key; // crate::cli"),
        ["dispatch", "cli"]
    );
    assert!(uses("// use crate::cli;").is_empty());
}
