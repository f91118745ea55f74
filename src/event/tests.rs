//! The fixtures of every family: how they are read, and which changes of a body a family still reads.

use std::{fs, path::PathBuf};

use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

use super::{
    Family, LenientString, event_names, families, one_or_many, ordering_keys, recognize,
    recognize_slowly,
};

/// A body of a family, from `fixtures/<provider>/<family>/<name>.json`.
struct Fixture {
    family: &'static Family,
    name: String,
    body: Vec<u8>,
}

fn fixtures() -> Vec<Fixture> {
    families().flat_map(fixtures_of).collect()
}

fn fixtures_of(family: &'static Family) -> Vec<Fixture> {
    let folder: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "fixtures",
        family.provider(),
        family.short_name(),
    ]
    .iter()
    .collect();
    let mut paths: Vec<_> = fs::read_dir(folder)
        .expect("every family has a folder of fixtures")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    paths.sort();
    let fixture = |path: &PathBuf| Fixture {
        family,
        name: path
            .file_stem()
            .expect("it is a file")
            .display()
            .to_string(),
        body: fs::read(path).expect("the fixture can be read"),
    };
    paths.iter().map(fixture).collect()
}

#[test]
fn every_family_has_fixtures_and_each_is_recognized_as_its_own() {
    for family in families() {
        let fixtures = fixtures_of(family);
        assert!(fixtures.len() >= 6, "{} has too few", family.name);
        for Fixture { name, body, .. } in fixtures {
            let recognized = recognize(family.provider(), &body);
            let found = Family::of_event(&recognized.name).map(|family| family.name);
            assert_eq!(found, Some(family.name), "{name}");
            assert_eq!(recognized.unreadable, None, "{name}");
        }
    }
}

#[test]
fn every_family_has_fixtures_of_each_of_its_changes() {
    for family in families() {
        let seen: Vec<_> = fixtures_of(family)
            .iter()
            .filter_map(|fixture| family.facts(&fixture.body).expect("it is readable").change)
            .collect();
        for (change, _) in family.changes {
            assert!(seen.contains(change), "{}.{change}", family.name);
        }
    }
}

#[test]
fn no_body_is_claimed_by_two_families() {
    for Fixture { name, body, .. } in fixtures() {
        let body: Value = serde_json::from_slice(&body).expect("a fixture is JSON");
        let event = body["event"].as_str().expect("a fixture has an event");
        let claims = families().filter(|family| (family.claims)(event));
        assert_eq!(claims.count(), 1, "{name}");
    }
}

#[test]
fn the_example_of_a_family_reports_the_first_of_its_changes() {
    for family in families() {
        let recognized = recognize(family.provider(), family.example.as_bytes());
        assert_eq!(recognized.name, family.event_name(family.changes[0].0));
        assert!(recognized.facts.key.is_some(), "{}", family.name);
        assert!(!recognized.facts.subjects.is_empty(), "{}", family.name);
        assert!(recognized.facts.occurred_at.is_some(), "{}", family.name);
    }
}

#[test]
fn every_fixture_reads_as_its_snapshot() {
    for Fixture { family, name, body } in fixtures() {
        let recognized = recognize(family.provider(), &body);
        let facts = recognized.facts;
        let read = json!({
            "name": recognized.name,
            "key": facts.key,
            "subjects": facts.subjects,
            "occurred_at": facts.occurred_at,
            "topics": facts.topics,
            "event": family.value(&body).expect("a fixture is readable"),
        });
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_json_snapshot!(format!("{}.{name}", family.name), read);
        });
    }
}

#[test]
fn a_value_that_is_written_and_read_again_is_the_same() {
    for Fixture { family, name, body } in fixtures() {
        let once = family.value(&body).expect("a fixture is readable");
        let twice = family.value(once.to_string().as_bytes());
        assert_eq!(twice, Ok(once), "{name}");
    }
}

#[test]
fn a_schema_has_the_name_of_its_family_and_says_what_each_member_is() {
    for family in families() {
        let schema = family.schema().to_value();
        assert_eq!(schema["title"], family.name);
        let members = schema["properties"].as_object().expect("it is an object");
        for (member, schema) in members {
            assert!(
                !schema["description"].is_null(),
                "{}: {member}",
                family.name
            );
        }
    }
}

#[test]
fn a_body_that_no_family_claims_is_unrecognized_and_one_that_cannot_be_read_is_unreadable() {
    for (provider, body, name) in [
        (
            "zoom",
            r#"{"event": "meeting.started"}"#,
            "zoom.unrecognized",
        ),
        ("zoom", r#"{"event": 7}"#, "zoom.unrecognized"),
        ("zoom", "{}", "zoom.unrecognized"),
        ("zoom", "[]", "zoom.unrecognized"),
        ("zoom", "", "zoom.unrecognized"),
        ("zoom", "\u{feff}{}", "zoom.unrecognized"),
        (
            "zoom",
            r#"{"event": "phone.peering_number_cnam_updated"}"#,
            "zoom.number-management.unreadable",
        ),
        // A family of another provider is not looked at.
        (
            "ringcentral",
            r#"{"event": "phone.peering_number_cnam_updated"}"#,
            "ringcentral.unrecognized",
        ),
        (
            "ringcentral",
            r#"{"event": "/restapi/v1.0/account/~/extension/77001", "body": null}"#,
            "ringcentral.extension-info.unreadable",
        ),
        (
            "ringcentral",
            r#"{"event": "/restapi/v1.0/account/~/phone-number", "body": {}}"#,
            "ringcentral.phone-number.unreadable",
        ),
    ] {
        assert_eq!(
            recognize(provider, body.as_bytes()).name.as_str(),
            name,
            "{body}"
        );
    }
}

#[test]
fn the_error_of_an_unreadable_body_quotes_nothing_of_it() {
    let error = |body: &str| {
        let unreadable = recognize("zoom", body.as_bytes()).unreadable;
        unreadable.expect("it is unreadable").to_string()
    };
    let event = r#""event": "phone.peering_number_cnam_updated""#;
    assert_eq!(
        error(&format!("{{{event}}}")),
        "not a readable zoom.number-management event: missing field `payload` at line 1, column \
         46; the body is kept as it came"
    );
    let error = error(&format!(r#"{{{event}, "payload": "+12025550143"}}"#));
    assert!(error.contains("of another type"), "{error}");
    assert!(!error.contains("2025550143"), "{error}");
}

/// The JSON pointers of the members that the schema of `family` requires: those that it requires of the
/// body, and in turn of each of them.
fn required(family: &Family) -> Vec<String> {
    fn add(schema: &Value, at: &str, root: &Value, paths: &mut Vec<String>) {
        let reference = schema["$ref"]
            .as_str()
            .and_then(|path| path.strip_prefix('#'));
        let schema = match reference {
            Some(path) => root.pointer(path).expect("the reference leads somewhere"),
            None => schema,
        };
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().expect("it is the name of a member");
            let at = format!("{at}/{name}");
            add(&schema["properties"][name], &at, root, paths);
            paths.push(at);
        }
    }
    let root = family.schema().to_value();
    let mut paths = Vec::new();
    add(&root, "", &root, &mut paths);
    paths
}

#[test]
fn a_schema_requires_what_makes_an_event_one_of_its_family() {
    let family = Family::named("ringcentral.phone-number").expect("it is a family");
    let mut required = required(family);
    required.sort();
    assert_eq!(required, ["/body", "/body/phoneNumberInfo", "/event"]);
}

/// Every object in `value`, by its JSON pointer, and every member of one.
fn places(value: &Value, at: &str, objects: &mut Vec<String>, members: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            objects.push(at.to_owned());
            for (name, value) in object {
                let at = format!("{at}/{name}");
                members.push(at.clone());
                places(value, &at, objects, members);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{index}"), objects, members);
            }
        }
        _ => {}
    }
}

/// A change that a provider may make to its bodies without notice.
#[derive(Clone, Debug)]
enum Mutation {
    Drop(Index),
    Null(Index),
    /// A member that is a string, a number or a boolean becomes another one.
    Retype(Index, Value),
    Add(Index, String, Value),
}

/// The text of `value`; `None` for null.
fn text(value: &Value) -> Option<LenientString> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.as_str().into()),
        other => Some(other.to_string().as_str().into()),
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,4}", inner, 0..4)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        any::<Index>().prop_map(Mutation::Drop),
        any::<Index>().prop_map(Mutation::Null),
        (any::<Index>(), any_json()).prop_map(|(at, value)| Mutation::Retype(at, value)),
        (any::<Index>(), "added_[a-zA-Z_]{0,8}", any_json())
            .prop_map(|(at, name, value)| Mutation::Add(at, name, value)),
    ]
}

impl Mutation {
    fn apply(&self, required: &[String], body: &mut Value) {
        let (mut objects, mut members) = (Vec::new(), Vec::new());
        places(body, "", &mut objects, &mut members);
        members.retain(|path| !required.contains(path));
        if let Self::Add(at, name, value) = self {
            let object = choose(body, &objects, at).expect("the body itself is one");
            object[name.as_str()] = value.clone();
            return;
        }
        match self {
            Self::Drop(at) if !members.is_empty() => {
                let (parent, name) = pick(&members, at).rsplit_once('/').expect("it is a member");
                let parent = body.pointer_mut(parent).and_then(Value::as_object_mut);
                parent.expect("it is an object").remove(name);
            }
            Self::Null(at) => {
                if let Some(member) = choose(body, &members, at) {
                    member.take();
                }
            }
            Self::Retype(at, value) => match choose(body, &members, at) {
                Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => {}
                Some(member) => *member = value.clone(),
            },
            Self::Drop(_) | Self::Add(..) => {}
        }
    }
}

fn pick<'a>(paths: &'a [String], at: &Index) -> &'a str {
    &paths[at.index(paths.len())]
}

fn choose<'a>(body: &'a mut Value, paths: &[String], at: &Index) -> Option<&'a mut Value> {
    if paths.is_empty() {
        return None;
    }
    body.pointer_mut(pick(paths, at))
}

/// A change of a body's bytes.
#[derive(Clone, Debug)]
struct Cut {
    from: Index,
    to: Index,
    put: Vec<u8>,
    copies: usize,
}

fn any_cut() -> impl Strategy<Value = Cut> {
    let put = prop_oneof![
        Just(Vec::new()),
        Just(br#""event":"#.to_vec()),
        Just(br#""event": "phone.peering_number_cnam_updated", "#.to_vec()),
        proptest::collection::vec(any::<u8>(), 0..3),
    ];
    (any::<Index>(), any::<Index>(), put, 0..3_usize).prop_map(|(from, to, put, copies)| Cut {
        from,
        to,
        put,
        copies,
    })
}

impl Cut {
    /// Replaces a part of `body` by `put` and by some copies of the part.
    fn apply(&self, body: &mut Vec<u8>) {
        let ends = [&self.from, &self.to].map(|at| at.index(body.len() + 1));
        let part = ends[0].min(ends[1])..ends[0].max(ends[1]);
        let copies = body[part.clone()].repeat(self.copies);
        body.splice(part, self.put.iter().copied().chain(copies));
    }
}

fn assert_both_ways_agree(provider: &str, body: &[u8]) {
    let [fast, slow] = [recognize, recognize_slowly].map(|way| way(provider, body));
    assert_eq!(
        format!("{fast:?}"),
        format!("{slow:?}"),
        "{}",
        body.escape_ascii()
    );
    let from_body = ordering_keys(&fast.name, fast.facts.key.as_ref(), body);
    assert_eq!(fast.facts.ordering_keys, from_body);
}

#[test]
fn a_body_that_starts_like_an_event_is_still_read_to_its_end() {
    let event = r#""event": "phone.peering_number_cnam_updated""#;
    let payload =
        r#""payload": {"account_id": "a", "object": {"carrier_code": 1, "phone_numbers": []}}"#;
    for (body, name) in [
        (
            format!("{{{event}, {payload}}}"),
            "zoom.number-management.peering-number-cnam-updated",
        ),
        (
            format!("{{{payload}, {event}}}"),
            "zoom.number-management.peering-number-cnam-updated",
        ),
        (
            format!("{{{event}, {payload}, {event}}}"),
            "zoom.unrecognized",
        ),
        (format!("{{{event}, {payload}}} {{"), "zoom.unrecognized"),
        (format!("{{{event}, {payload}"), "zoom.unrecognized"),
        (
            format!(r#"{{"event": null, {event}, {payload}}}"#),
            "zoom.unrecognized",
        ),
        (
            r#"["phone.peering_number_cnam_updated"]"#.to_owned(),
            "zoom.number-management.unreadable",
        ),
    ] {
        let recognized = recognize("zoom", body.as_bytes());
        assert_eq!(recognized.name.as_str(), name, "{body}");
        assert_both_ways_agree("zoom", body.as_bytes());
    }
}

proptest! {
    #[test]
    fn a_body_is_readable_whatever_its_optional_members_are(
        fixture in any::<Index>(),
        mutations in proptest::collection::vec(any_mutation(), 1..12),
    ) {
        let fixtures = fixtures();
        let Fixture { family, body, .. } = fixture.get(&fixtures);
        let mut body: Value = serde_json::from_slice(body).expect("a fixture is JSON");
        let required = required(family);
        for mutation in &mutations {
            mutation.apply(&required, &mut body);
        }
        let recognized = recognize(family.provider(), body.to_string().as_bytes());
        let found = Family::of_event(&recognized.name);
        prop_assert_eq!(found.map(|family| family.name), Some(family.name));
        prop_assert_eq!(recognized.unreadable, None, "{}", body);
        prop_assert!(family.value(body.to_string().as_bytes()).is_ok());
    }

    #[test]
    fn the_fast_way_and_the_slow_way_agree(
        fixture in any::<Index>(),
        cuts in proptest::collection::vec(any_cut(), 0..3),
    ) {
        let fixtures = fixtures();
        let Fixture { family, body, .. } = fixture.get(&fixtures);
        let mut body = body.clone();
        for cut in &cuts {
            cut.apply(&mut body);
        }
        assert_both_ways_agree(family.provider(), &body);
    }

    #[test]
    fn any_bytes_have_a_name(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let recognized = recognize("zoom", &body);
        prop_assert_eq!(recognized.name.as_str(), "zoom.unrecognized");
    }

    #[test]
    fn a_lenient_string_is_a_string_or_the_json_of_any_other_value_but_null(value in any_json()) {
        let json = value.to_string();
        let value = serde_json::from_str(&json).expect("it is JSON");
        let read: Option<LenientString> = serde_json::from_str(&json).expect("it is read");
        prop_assert_eq!(read, text(&value));
    }

    #[test]
    fn one_or_many_is_an_array_without_its_nulls_or_any_other_value_alone(value in any_json()) {
        let json = value.to_string();
        let value: Value = serde_json::from_str(&json).expect("it is JSON");
        let items = value.as_array().map_or(std::slice::from_ref(&value), Vec::as_slice);
        let expected: Vec<_> = items.iter().filter_map(text).collect();
        let read: Result<Vec<LenientString>, _> =
            one_or_many::deserialize(&mut serde_json::Deserializer::from_str(&json));
        prop_assert_eq!(read.expect("it is read"), expected);
    }

    #[test]
    fn a_body_with_any_json_as_a_member_has_a_known_name(
        fixture in any::<Index>(),
        place in any::<Index>(),
        value in any_json(),
    ) {
        let fixtures = fixtures();
        let Fixture { family, body, .. } = fixture.get(&fixtures);
        let mut body: Value = serde_json::from_slice(body).expect("a fixture is JSON");
        let mut members = Vec::new();
        places(&body, "", &mut Vec::new(), &mut members);
        *choose(&mut body, &members, &place).expect("it is there") = value;
        let recognized = recognize(family.provider(), body.to_string().as_bytes());
        prop_assert!(event_names().any(|name| name == recognized.name), "{}", recognized.name);
    }
}
