//! The statement in PostgreSQL, or what speaks its protocol.
//!
//! Each of the handler's deliveries at once has a connection of its own, on which the statement has
//! been prepared. One on which anything went wrong, or whose attempt was given up, is not used again:
//! so no attempt waits behind another one's statement, and what changed in the schema is seen.
//!
//! `sslmode` is `verify-full` or `disable`; where the URL does not say, it is the former, but for hosts
//! on this machine. TLS that believes whoever answers, libpq's `require`, would protect nothing.
//!
//! A time limit goes to the server as the start-up option
//! `statement_timeout`, so that a statement that waits for a lock does not outlive its attempt by
//! much; `PgBouncer` wants `ignore_startup_parameters = options` for it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use tokio_postgres::{
    Client, NoTls, Socket, Statement,
    config::{SslMode, TargetSessionAttrs},
    error::{DbError, SqlState},
    tls::{MakeTlsConnect, TlsConnect},
    types::{IsNull, Json, Kind, ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use super::{
    BuildContext, BuildError, Failure,
    field::{Field, Row, Value},
    template::Template,
};
use crate::{
    client_tls::ClientTls,
    handler::with_causes,
    postgres_url::{self, beyond, split_ssl_mode},
    secret::Secret,
    wire::Exposure,
};

/// After how much silence the server is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The longest `statement_timeout`, in milliseconds.
const LONGEST_TIMEOUT: u128 = 2_147_483_647;

/// Where the server is, and as whom to call on it.
#[derive(Debug)]
pub(super) struct Config(tokio_postgres::Config);

impl Config {
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let (url, mode) = split_ssl_mode(url);
        let mut config: tokio_postgres::Config = url.parse().map_err(|error| {
            format!(
                "{}; a URL looks like \"postgres://user:password@db.example.com/warehouse\"",
                describe(&error)
            )
        })?;
        if config.get_hosts().is_empty() {
            return Err("the URL names no host".to_owned());
        }
        config.ssl_mode(match mode {
            Some("disable") => SslMode::Disable,
            Some("verify-full") => SslMode::Require,
            None if beyond(&config).is_empty() => SslMode::Disable,
            None => SslMode::Require,
            Some(_) => {
                return Err(
                    "the URL's `sslmode` is neither \"verify-full\", which holds where \
                     nothing is said but for hosts on this machine, nor \"disable\""
                        .to_owned(),
                );
            }
        });
        // Of several servers, the one that takes writes.
        if config.get_target_session_attrs() == TargetSessionAttrs::Any {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if config.get_application_name().is_none() {
            config.application_name("hookswitch");
        }
        config.keepalives_idle(KEEPALIVE);
        Ok(Self(config))
    }

    /// What there is to tell of its password, or of one `beside` it, on its way.
    pub(super) fn exposure(&self, beside: Option<&Secret>) -> Option<Exposure> {
        let has_password = self.0.get_password().is_some() || beside.is_some();
        let is_clear = self.0.get_ssl_mode() == SslMode::Disable;
        (has_password && is_clear).then(|| postgres_url::exposure(&self.0))?
    }

    pub(super) fn set_password(&mut self, password: &Secret) -> Result<(), BuildError> {
        if self.0.get_password().is_some() {
            return Err(BuildError(
                "the password stands in `url` and in `password` as well; keep one of them"
                    .to_owned(),
            ));
        }
        self.0.password(password.expose());
        Ok(())
    }
}

/// The handler's side of a server.
pub(in crate::handler) struct Postgres {
    config: tokio_postgres::Config,
    /// `None` where there is to be no TLS.
    tls: Option<MakeRustlsConnect>,
    statement: String,
    fields: Vec<Field>,
    /// Connections that nobody uses. At most as many as there are deliveries at once, since each
    /// delivery takes one before it makes one.
    idle: Mutex<Vec<Session>>,
}

impl Postgres {
    pub(super) fn new(
        Config(mut config): Config,
        statement: &Template,
        tls: &ClientTls,
        context: &BuildContext,
    ) -> Result<Self, BuildError> {
        let limit = context.timeout.as_millis().clamp(1, LONGEST_TIMEOUT);
        let limit = format!("-c statement_timeout={limit}");
        let options = match config.get_options() {
            Some(options) => format!("{limit} {options}"),
            None => limit,
        };
        config.options(options);
        config.tcp_user_timeout(context.timeout);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(context.timeout);
        }
        let tls = match config.get_ssl_mode() {
            SslMode::Disable => {
                tls.forgo(postgres_url::TLS).map_err(BuildError)?;
                None
            }
            _ => Some(tls.config().map_err(BuildError)?),
        };
        Ok(Self {
            tls: tls.map(MakeRustlsConnect::new),
            config,
            statement: statement.render('$'),
            fields: statement.fields().to_vec(),
            idle: Mutex::default(),
        })
    }

    /// Runs the statement with the fields of `row`.
    pub(super) async fn run(&self, row: &Row<'_>) -> Result<(), Failure> {
        let idle = self.take_idle();
        let was_idle = idle.is_some();
        let session = match idle {
            Some(session) => session,
            None => self.open().await?,
        };
        let values = row.values(&self.fields);
        let ran = session.client.execute_raw(&session.statement, values);
        match ran.await {
            Ok(_) => {
                self.idle().push(session);
                Ok(())
            }
            Err(error) => Err(judge(&error, was_idle)),
        }
    }

    fn take_idle(&self) -> Option<Session> {
        let mut idle = self.idle();
        idle.retain(|session| !session.client.is_closed());
        idle.pop()
    }

    /// A panic while the list was locked leaves it as sound as it was.
    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self) -> Result<Session, Failure> {
        match &self.tls {
            Some(tls) => self.open_with(tls.clone()).await,
            None => self.open_with(NoTls).await,
        }
    }

    async fn open_with<T>(&self, tls: T) -> Result<Session, Failure>
    where
        T: MakeTlsConnect<Socket, Stream: Send + 'static, TlsConnect: Send>,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let no_connection = |error: tokio_postgres::Error| {
            Failure::Passing(format!("cannot connect: {}", describe(&error)))
        };
        let connected = self.config.connect(tls).await;
        let (client, mut connection) = connected.map_err(no_connection)?;
        // What the server says by the way is not heard: it may be about the event.
        let listening = tokio::spawn(async move {
            while let Some(Ok(_)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {}
        });
        let listening = AbortOnDropHandle::new(listening);
        let prepared = client.prepare(&self.statement).await;
        let statement = prepared.map_err(|error| unprepared(&error))?;
        for (field, wanted) in self.fields.iter().zip(statement.params()) {
            if !fits(*field, wanted) {
                return Err(Failure::Lasting(unfit(*field, wanted)));
            }
        }
        Ok(Session {
            client,
            statement,
            _listening: listening,
        })
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts = self.config.get_hosts();
        f.debug_struct("Postgres")
            .field("hosts", &hosts)
            .finish_non_exhaustive()
    }
}

/// A connection with the statement prepared on it.
struct Session {
    client: Client,
    statement: Statement,
    /// Closes the connection with the session, whatever is still under way on it.
    _listening: AbortOnDropHandle<()>,
}

/// What a domain stands on, or the type itself.
fn base(wanted: &Type) -> &Type {
    match wanted.kind() {
        Kind::Domain(of) => base(of),
        _ => wanted,
    }
}

fn is_text(wanted: &Type) -> bool {
    let texts = [
        Type::TEXT,
        Type::VARCHAR,
        Type::BPCHAR,
        Type::NAME,
        Type::UNKNOWN,
    ];
    texts.contains(wanted) || wanted.name() == "citext" || matches!(wanted.kind(), Kind::Enum(_))
}

/// Whether `field` can be had as `wanted`. See the module's table of fields.
fn fits(field: Field, wanted: &Type) -> bool {
    let wanted = base(wanted);
    if is_text(wanted) {
        return field != Field::Body;
    }
    let types: &[Type] = match field {
        Field::Id => &[Type::UUID],
        Field::Time | Field::ReceivedTime => &[Type::TIMESTAMPTZ],
        Field::Data | Field::Event => &[Type::JSON, Type::JSONB],
        Field::Attempt => &[Type::INT4, Type::INT8],
        Field::Superseded => &[Type::BOOL],
        Field::Body => &[Type::BYTEA],
        Field::Source
        | Field::Type
        | Field::Subject
        | Field::Key
        | Field::ReplayReason
        | Field::DataContentType => &[],
    };
    types.contains(wanted)
}

fn unfit(field: Field, wanted: &Type) -> String {
    let name = field.name();
    let cast = match field {
        Field::Time | Field::ReceivedTime => "timestamptz",
        Field::Body => "bytea",
        _ => "text",
    };
    format!("the field :{name} cannot be had as {wanted}; cast it, as in :{name}::{cast}")
}

impl ToSql for Value {
    fn to_sql(
        &self,
        wanted: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let wanted = base(wanted);
        if is_text(wanted) {
            return self.to_text().to_sql(&Type::TEXT, out);
        }
        match self {
            Self::Text(text) => text.to_sql(wanted, out),
            Self::Id(id) => id.to_sql(wanted, out),
            Self::Time(time) => time.to_sql(wanted, out),
            Self::Json(json) => Json(json).to_sql(wanted, out),
            Self::Number(number) if *wanted == Type::INT8 => i64::from(*number).to_sql(wanted, out),
            Self::Number(number) => i32::try_from(*number)?.to_sql(wanted, out),
            Self::Flag(flag) => flag.to_sql(wanted, out),
            Self::Bytes(bytes) => bytes.as_ref().to_sql(wanted, out),
        }
    }

    /// Whether it fits was asked when the statement was prepared.
    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

/// Why a statement was not prepared. The server has been told nothing of any event yet, so that its
/// own words can be shown.
fn unprepared(error: &tokio_postgres::Error) -> Failure {
    let why = format!("the statement cannot be prepared: {}", describe(error));
    match error.code() {
        Some(code) if !is_passing(code) => Failure::Lasting(why),
        _ => Failure::Passing(why),
    }
}

/// Why a statement was not committed. One that `was_prepared` for an earlier event may not fit a
/// schema that has changed since: it is prepared anew before that is believed.
fn judge(error: &tokio_postgres::Error, was_prepared: bool) -> Failure {
    let Some(error) = error.as_db_error() else {
        let why = format!("got no answer: {}", describe(error));
        return Failure::Passing(why);
    };
    let code = error.code();
    let why = format!("the database refused: {}", explain(error));
    let may_be_stale = was_prepared && matches!(class(code), "0A" | "42");
    if may_be_stale || is_passing(code) {
        Failure::Passing(why)
    } else {
        Failure::Lasting(why)
    }
}

fn class(code: &SqlState) -> &str {
    code.code().get(..2).unwrap_or_default()
}

/// Whether what `code` says may be over soon: of connections, transactions that were in each other's
/// way, resources, locks, operators, and the system. A prepared statement that is not there is the
/// doing of a pooler between us and the server.
fn is_passing(code: &SqlState) -> bool {
    let passing = ["08", "26", "28", "40", "53", "55", "57", "58", "F0", "XX"];
    passing.contains(&class(code)) || *code == SqlState::READ_ONLY_SQL_TRANSACTION
}

/// What an error is about, without what it says of values: its code, what the code means, and what
/// it is about in the schema.
fn explain(error: &DbError) -> String {
    let code = error.code();
    let meaning = match (code.code(), class(code)) {
        ("23505", _) => "a value that must be unique is there already",
        ("42501", _) => "permission denied",
        ("42P01", _) => "no such table",
        ("25006", _) => "it takes no writes now",
        ("57014", _) => "it took too long",
        (_, "22") => "the event does not fit",
        (_, "23") => "a constraint does not hold",
        (_, "40") => "it was in another transaction's way",
        (_, "42") => "the statement does not fit the schema",
        (_, "53") => "it has too little of something",
        (_, "55") => "something is locked or not ready",
        (_, "57") => "it was stopped by an operator or is starting",
        _ => "see its own log",
    };
    let mut text = format!("{meaning} (SQLSTATE {}", code.code());
    for (what, name) in [
        ("constraint", error.constraint()),
        ("table", error.table()),
        ("column", error.column()),
    ] {
        if let Some(name) = name {
            text += &format!(", {what} {name:?}");
        }
    }
    text + ")"
}

/// What went wrong, down to its first cause. Only for what happens before values are sent.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", error.message(), error.code().code());
    }
    with_causes(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<tokio_postgres::Config, String> {
        Config::parse(url).map(|Config(config)| config)
    }

    #[test]
    fn tls_is_wanted_of_other_machines_where_nothing_is_said() {
        for (url, expected) in [
            ("postgres://db.example.com/x", SslMode::Require),
            ("postgres://10.0.0.1,localhost/x", SslMode::Require),
            ("postgres://localhost/x", SslMode::Disable),
            ("postgres://127.0.0.1:5433/x", SslMode::Disable),
            ("postgres://[::1]/x", SslMode::Disable),
            ("postgres://%2Frun%2Fpostgresql/x", SslMode::Disable),
            (
                "postgres://localhost/x?hostaddr=127.0.0.1",
                SslMode::Disable,
            ),
            ("postgres://localhost/x?hostaddr=10.0.0.1", SslMode::Require),
            (
                "postgres://db.example.com/x?sslmode=disable",
                SslMode::Disable,
            ),
            (
                "postgres://localhost/x?connect_timeout=1&sslmode=verify-full",
                SslMode::Require,
            ),
        ] {
            assert_eq!(parse(url).unwrap().get_ssl_mode(), expected, "{url}");
        }
    }

    #[test]
    fn a_url_that_cannot_work_is_refused_without_its_password() {
        for (url, why) in [
            ("postgres://u:hush@db/x?sslmode=require", "`sslmode` is"),
            ("postgres://u:hush@db/x?wrong=1", "wrong"),
            ("postgres:///x", "names no host"),
        ] {
            let refusal = parse(url).unwrap_err();
            assert!(refusal.contains(why), "{url}: {refusal}");
            assert!(!refusal.contains("hush"), "{refusal}");
        }
    }

    #[test]
    fn each_field_fits_the_types_of_the_table() {
        for (field, wanted, expected) in [
            (Field::Id, Type::UUID, true),
            (Field::Id, Type::VARCHAR, true),
            (Field::Id, Type::INT8, false),
            (Field::Time, Type::TIMESTAMPTZ, true),
            (Field::Time, Type::TIMESTAMP, false),
            (Field::Data, Type::JSONB, true),
            (Field::Data, Type::BYTEA, false),
            (Field::Body, Type::BYTEA, true),
            (Field::Body, Type::TEXT, false),
            (Field::Attempt, Type::INT4, true),
            (Field::Attempt, Type::NUMERIC, false),
            (Field::Superseded, Type::BOOL, true),
            (Field::Subject, Type::JSON, false),
        ] {
            assert_eq!(fits(field, &wanted), expected, "{field:?} as {wanted}");
        }
        let domain = |of| Type::new("d".to_owned(), 1 << 20, Kind::Domain(of), "s".to_owned());
        assert!(fits(Field::Data, &domain(domain(Type::JSONB))));
        assert!(!fits(Field::Data, &domain(Type::BYTEA)));
    }

    #[test]
    fn what_may_be_over_soon_is_told_from_what_lasts() {
        for code in [
            "08006", "40001", "40P01", "53300", "55P03", "57014", "57P01", "25006",
        ] {
            assert!(is_passing(&SqlState::from_code(code)), "{code}");
        }
        for code in [
            "22001", "22P02", "23505", "23514", "42501", "42P01", "25001", "P0001",
        ] {
            assert!(!is_passing(&SqlState::from_code(code)), "{code}");
        }
    }
}
