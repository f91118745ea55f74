//! A reader of the whole file, section by section.

use std::{iter, net::SocketAddr, path::PathBuf};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use super::{
    Config, Log, check, content, diagnostics,
    report::{Problem, Report},
    restart_required::RestartRequired,
    section::{Findings, Hints, Section, Value},
    syntax,
};
use crate::{
    admin,
    dispatch::{self, ConfiguredHandler},
    event::{self, EndpointName, Family, HandlerName},
    handler::{self, BuildContext},
    http, provider, secret, spanned, store,
};

/// Every section.
const SECTIONS: &[&str] = &["log", "server", "admin", "store", "endpoints", "handlers"];

const STORE_EXAMPLE: &str = "[store]\nkind = \"embedded\"\npath = \"data\"";

/// Reads `text` with `part`, and returns every problem of that part. The value is `None` when one
/// of the problems is an error.
pub(super) fn read<T>(
    text: &str,
    kinds: &[handler::Kind],
    env: fn(&str) -> Option<String>,
    part: impl FnOnce(&mut Reader<'_, '_>) -> Option<T>,
) -> (Option<T>, Findings) {
    let (document, errors) = DeTable::parse_recoverable(text);
    let table = document.into_inner();
    let mut findings = Findings::default();
    findings.redaction.add_named(&table);
    syntax::report(text, &table, errors, &mut findings);
    let sources = secret::Sources {
        env,
        inline: ["server", "admin"]
            .iter()
            .all(|name| is_local(&table, name)),
    };
    let mut reader = Reader {
        kinds,
        findings,
        root: table.clone(),
    };
    let (value, secrets) = secret::watch(sources, || part(&mut reader));
    let mut findings = reader.findings;
    let inline = secrets.iter();
    let inline = inline.filter(|found| found.source == secret::Source::Inline);
    let inline: Vec<_> = inline.map(|found| found.secret.clone()).collect();
    findings.redaction.add_read(&table, &inline);
    findings.secrets = secrets;
    findings.hash = number(content::digest(&table, &findings.redaction));
    let is_wrong = findings.problems.iter().any(Problem::is_error);
    (value.filter(|_| !is_wrong), findings)
}

/// The first 48 bits of a digest. A metric is a float, which holds as many exactly.
fn number(digest: [u8; 32]) -> i64 {
    let [a, b, c, d, e, f, ..] = digest;
    i64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// Whether the listener of `section` is on loopback. An address that cannot be read counts as
/// loopback: the address is a problem already, and the inline secrets are none.
fn is_local(table: &DeTable<'_>, section: &str) -> bool {
    let section = table
        .get(section)
        .and_then(|value| value.get_ref().as_table());
    let listen = section.and_then(|section| section.get("listen"));
    let listen = listen.and_then(|value| value.get_ref().as_str());
    let listen = listen.and_then(|text| text.parse::<SocketAddr>().ok());
    listen.is_none_or(check::is_loopback)
}

pub(super) struct Reader<'a, 'i> {
    kinds: &'a [handler::Kind],
    findings: Findings,
    /// The sections that are still to be read.
    root: DeTable<'i>,
}

impl<'a, 'i> Reader<'a, 'i> {
    /// The whole file.
    pub(super) fn config(&mut self) -> Option<Config> {
        let restart_required = RestartRequired::of(&self.root);
        let meant = self.unknown_sections();
        let log = self.log();
        let servers = self.servers();
        let store = self.store();
        let endpoints = self.endpoints(meant.contains(&"endpoints"));
        let handlers = self.handlers();
        let (server, admin) = servers?;
        Some(Config {
            log: log?,
            server,
            admin,
            store: store?,
            endpoints,
            handlers,
            restart_required,
            // These are known once everything has been read.
            secrets: Vec::new(),
            hash: 0,
            warnings: Report::default(),
        })
    }

    /// Reports the sections that do not exist, and returns the sections that were meant.
    fn unknown_sections(&mut self) -> Vec<&'static str> {
        let keys = self.root.keys().cloned();
        let unknown: Vec<_> = keys
            .filter(|key| !SECTIONS.contains(&key.get_ref().as_ref()))
            .collect();
        let mut meant = Vec::new();
        for key in unknown {
            let place = key.span();
            let Some(value) = self.root.remove(key.get_ref().as_ref()) else {
                continue;
            };
            self.findings.redaction.add_unread(&value);
            let name = key.get_ref();
            let what = match value.get_ref() {
                DeValue::Table(_) => format!("unknown section [{name}]"),
                _ => format!("unknown key `{name}` before the first section"),
            };
            let help = match diagnostics::nearest(name, SECTIONS.iter().copied()) {
                Some(near) => {
                    meant.extend(SECTIONS.iter().find(|section| **section == near));
                    format!("did you mean [{near}]?")
                }
                None => format!(
                    "the sections are {}",
                    diagnostics::list(SECTIONS.iter().copied())
                ),
            };
            self.findings.add(Problem::new(what).at(place).help(help));
        }
        meant
    }

    /// Takes the section `name` out. A section that is not in the file is empty.
    fn section(&mut self, name: &str) -> Option<Section<'i>> {
        match self.root.remove(name) {
            Some(value) => Section::new(name, value, &mut self.findings),
            None => Some(Section::absent(name)),
        }
    }

    fn log(&mut self) -> Option<Log> {
        let mut section = self.section("log")?;
        let log = section.read(Hints::default(), &mut self.findings, deserialize::<Log>)?;
        check::log(&log, &section, &mut self.findings);
        Some(log)
    }

    fn servers(&mut self) -> Option<(http::Settings, admin::Settings)> {
        let server = self.section("server").and_then(|mut section| {
            let hints = Hints::default();
            let server = section.read(hints, &mut self.findings, deserialize::<http::Settings>)?;
            check::server(&server, &section, &mut self.findings);
            Some((server, section))
        });
        let admin = self.admin();
        let ((server, server_section), (admin, admin_section)) = (server?, admin?);
        let (here, there) = (
            (&server_section, server.listen),
            (&admin_section, admin.listen),
        );
        check::listeners(here, there, &mut self.findings);
        Some((server, admin))
    }

    /// The admin server, with the section that it was read from.
    pub(super) fn admin(&mut self) -> Option<(admin::Settings, Section<'i>)> {
        let mut section = self.section("admin")?;
        let hints = Hints::default();
        let admin = section.read(hints, &mut self.findings, deserialize::<admin::Settings>)?;
        check::admin(&admin, &section, &mut self.findings);
        Some((admin, section))
    }

    /// The store.
    pub(super) fn store(&mut self) -> Option<Box<dyn store::Engine>> {
        let hints = Hints {
            keys: &["kind"],
            example: STORE_EXAMPLE,
        };
        let Some(value) = self.root.remove("store") else {
            let problem = Problem::new("there is no [store], so events could not be kept");
            let problem = problem.help(format!("for example:\n{STORE_EXAMPLE}"));
            self.findings.add_missing(problem);
            return None;
        };
        let mut section = Section::new("store", value, &mut self.findings)?;
        let kind = section.take_text("kind", hints, &mut self.findings);
        let kind = kind.and_then(|kind| {
            let (name, place) = (kind.get_ref(), kind.span());
            let known = store::ENGINES.iter().map(|kind| kind.kind);
            let problem = || match store::LEFT_OUT.contains(&name.as_ref()) {
                true => diagnostics::left_out("kind of store", name, place),
                false => diagnostics::unknown("kind of store", name, known, place),
            };
            self.found(store::Kind::named(name), problem)
        });
        let Some(kind) = kind else {
            section.redact(&mut self.findings);
            return None;
        };
        let store = section.read(hints, &mut self.findings, kind.read)?;
        check::cleartext_warnings(store.cleartext_warning(), &section, &mut self.findings);
        Some(store)
    }

    /// Reports `problem` when a lookup has found no entry.
    fn found<T>(&mut self, entry: Option<T>, problem: impl FnOnce() -> Problem) -> Option<T> {
        if entry.is_none() {
            self.findings.add(problem());
        }
        entry
    }

    /// The tables inside the section `name`, in the order of the file.
    fn named(&mut self, name: &str) -> Option<Vec<Section<'i>>> {
        let section = self.section(name)?;
        let mut entries: Vec<_> = section.table.into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let sections = entries
            .into_iter()
            .filter_map(|(key, value): (_, Value<'i>)| {
                check::name(name, key.get_ref(), key.span(), &mut self.findings);
                let full = format!("{name}.{}", key.get_ref());
                Section::new(&full, value, &mut self.findings)
            });
        Some(sections.collect())
    }

    fn endpoints(&mut self, is_mistyped: bool) -> Vec<http::Endpoint> {
        let value = self.root.get("endpoints");
        let header = value.map(toml::Spanned::span);
        let is_empty = value.is_none_or(|value| {
            let table = value.get_ref().as_table();
            table.is_some_and(|table| table.is_empty())
        });
        let sections = self.named("endpoints").unwrap_or_default();
        if is_empty && !is_mistyped {
            let problem = Problem::new("there are no endpoints, so nothing could be received");
            let problem = problem.help(format!("for example:\n{}", endpoint_example()));
            self.findings.add_missing(match header {
                Some(place) => problem.at(place),
                None => problem,
            });
        }
        let mut paths = check::Taken::default();
        let endpoints = sections
            .into_iter()
            .filter_map(|section| self.endpoint(section, &mut paths));
        endpoints.collect()
    }

    fn endpoint(
        &mut self,
        mut section: Section<'i>,
        paths: &mut check::Taken<String>,
    ) -> Option<http::Endpoint> {
        let hints = Hints {
            keys: &["family", "path"],
            example: endpoint_example(),
        };
        let family = section.take_text("family", hints, &mut self.findings);
        let family = family.and_then(|family| {
            let (name, place) = (family.get_ref(), family.span());
            let known = event::families().map(|family| family.name);
            let problem = || diagnostics::unknown("family", name, known, place);
            self.found(Family::named(name), problem)
        });
        let path = section.take_text("path", hints, &mut self.findings);
        if let Some(path) = &path {
            check::path(path.get_ref(), path.span(), paths, &mut self.findings);
        }
        let Some((family, kind)) = family.and_then(|family| Some((family, self.provider(family)?)))
        else {
            section.redact(&mut self.findings);
            return None;
        };
        let hints = Hints {
            example: kind.example,
            ..hints
        };
        let provider = section.read(hints, &mut self.findings, kind.read)?;
        Some(http::Endpoint {
            name: EndpointName::new(own_name(&section.name)),
            family,
            path: path?.into_inner().into_owned(),
            provider,
        })
    }

    fn provider(&mut self, family: &Family) -> Option<&'static provider::Kind> {
        let problem = || Problem::new(format!("nobody provides the family {:?}", family.name));
        self.found(provider::Kind::named(family.provider()), problem)
    }

    fn handlers(&mut self) -> Vec<ConfiguredHandler> {
        let sections = self.named("handlers").unwrap_or_default();
        let mut files = check::Taken::default();
        let handlers = sections
            .into_iter()
            .filter_map(|section| self.handler(section, &mut files));
        handlers.collect()
    }

    fn handler(
        &mut self,
        mut section: Section<'i>,
        files: &mut check::Taken<PathBuf>,
    ) -> Option<ConfiguredHandler> {
        // The kind's settings come first: a mistyped key among them may be one of the others.
        let mut kinds_own = section.clone();
        section = kinds_own.split_off(dispatch::Settings::KEYS);
        let kind = self.handler_kind(&mut kinds_own);
        section.excuse(&kinds_own);
        let hints = Hints {
            keys: &[],
            example: "events = [\"*\"]",
        };
        let settings =
            section.read(hints, &mut self.findings, deserialize::<dispatch::Settings>)?;
        let concurrency = match (&kind, section.place_at(&["concurrency"])) {
            (Some((kind, _)), None) => kind.concurrency,
            _ => settings.concurrency,
        };
        let settings = dispatch::Settings {
            concurrency,
            ..settings
        };
        check::dispatch(&settings, &section, &mut self.findings);
        check::tenses(&settings.events, &section, &mut self.findings);
        let name = HandlerName::new(own_name(&section.name));
        let mut context = BuildContext::new(name, concurrency.get(), settings.timeout);
        let (kind, build) = kind?;
        let handler = build(&mut context);
        check::cleartext_warnings(context.warnings, &kinds_own, &mut self.findings);
        for file in &context.files {
            check::own_file(file, &kinds_own, files, &mut self.findings);
        }
        match handler {
            Ok(handler) => Some(ConfiguredHandler {
                name: context.name,
                kind: kind.kind,
                settings,
                implementation: handler,
                servers: context.servers,
            }),
            Err(error) => {
                let what = format!("[{}] cannot work: {error}", section.name);
                check::add(
                    &section,
                    &[],
                    diagnostics::problem(&what),
                    &mut self.findings,
                );
                None
            }
        }
    }

    /// Looks the kind of a handler up. The kind reads its own settings.
    fn handler_kind(
        &mut self,
        section: &mut Section<'i>,
    ) -> Option<(&'a handler::Kind, handler::Build)> {
        let kinds = self.kinds;
        let names = kinds.iter().map(|kind| kind.kind);
        let example = format!(
            "kind = \"log\"\nthe kinds are {}",
            diagnostics::list(names.clone())
        );
        let keys = iter::once("kind").chain(dispatch::Settings::KEYS.iter().copied());
        let keys: Vec<_> = keys.collect();
        let hints = Hints {
            keys: &keys,
            example: &example,
        };
        let kind = section.take_text("kind", hints, &mut self.findings);
        let kind = kind.and_then(|kind| {
            let (name, place) = (kind.get_ref(), kind.span());
            let problem = || match handler::LEFT_OUT.contains(&name.as_ref()) {
                true => diagnostics::left_out("kind of handler", name, place),
                false => diagnostics::unknown("kind of handler", name, names, place),
            };
            self.found(kinds.iter().find(|kind| kind.kind == *name), problem)
        });
        let Some(kind) = kind else {
            section.redact(&mut self.findings);
            return None;
        };
        let hints = Hints {
            example: kind.example,
            ..hints
        };
        let build = section.read(hints, &mut self.findings, |settings| kind.read(settings))?;
        Some((kind, build))
    }
}

fn deserialize<T: DeserializeOwned>(value: spanned::Deserializer<'_>) -> Result<T, spanned::Error> {
    T::deserialize(value)
}

/// An example of an endpoint, for any provider.
fn endpoint_example() -> &'static str {
    provider::PROVIDERS
        .first()
        .map_or("", |kind| kind.example.trim())
}

/// The part of a section's name that the user has chosen.
fn own_name(section: &str) -> &str {
    section.split_once('.').map_or(section, |(_, name)| name)
}
