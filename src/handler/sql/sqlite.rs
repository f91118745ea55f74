//! Runs the statement in a SQLite database on this machine.
//!
//! SQLite has one writer at a time, so the handler has one connection. The connection blocks, so it is used
//! on threads for blocking work. An attempt keeps the connection until its statement ends, even after the
//! attempt was given up. The database must exist, since hookswitch does not know the tables to create.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, ToSql, ffi, params_from_iter,
    types::{ToSqlOutput, ValueRef},
};
use tokio::sync::Mutex;

use super::{
    BuildContext, Failure,
    field::{Row, Value},
    statement::SqlStatement,
};

/// The longest wait for another writer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The path of the database.
#[derive(Debug)]
pub(super) struct Config(PathBuf);

impl Config {
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let path = url.strip_prefix("sqlite:").unwrap_or(url);
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path == ":memory:" || path.contains(['?', '#']) {
            return Err(
                "the URL names no file; it looks like \"sqlite:data/events.db\" or \
                 \"sqlite:///var/lib/events.db\", with nothing behind the path"
                    .to_owned(),
            );
        }
        Ok(Self(path.into()))
    }
}

/// The handler's side of a database.
#[derive(Debug)]
pub(in crate::handler) struct Sqlite {
    statement: SqlStatement,
    database: Arc<Mutex<Database>>,
}

impl Sqlite {
    pub(super) fn new(
        Config(path): Config,
        statement: &SqlStatement,
        context: &BuildContext,
    ) -> Self {
        let database = Database {
            path,
            statement: statement.render('?'),
            parameters: statement.fields().len(),
            patience: PATIENCE.min(context.timeout / 2),
            open: None,
        };
        Self {
            statement: statement.clone(),
            database: Arc::new(Mutex::new(database)),
        }
    }

    /// Runs the statement with the fields of `row`.
    pub(super) async fn run(&self, row: &Row<'_>) -> Result<(), Failure> {
        let values = row.values(self.statement.fields());
        let mut database = self.database.clone().lock_owned().await;
        let ran = tokio::task::spawn_blocking(move || database.run(&values)).await;
        ran.unwrap_or_else(|error| Err(Failure::Passing(format!("the writer ended: {error}"))))
    }
}

/// The database, used by one attempt at a time.
#[derive(Debug)]
struct Database {
    path: PathBuf,
    statement: String,
    parameters: usize,
    patience: Duration,
    /// The connection, unless there is none yet or it has failed.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    /// The identity of the file, which may have been renamed.
    identity: (u64, u64),
}

impl Database {
    fn run(&mut self, values: &[Option<Value>]) -> Result<(), Failure> {
        // A file that was renamed is no longer the database.
        let still_there = |open: &Open| identity(&self.path) == Some(open.identity);
        let open = match self.open.take().filter(still_there) {
            Some(open) => open,
            None => self.open()?,
        };
        self.execute(&open.connection, values)?;
        self.open = Some(open);
        Ok(())
    }

    fn open(&self) -> Result<Open, Failure> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connect = || {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(self.patience)?;
            // A commit is on the disk when it returns, in every journal mode.
            connection.pragma_update(None, "synchronous", "full")?;
            Ok(connection)
        };
        let failed = |why: String| {
            let path = self.path.display();
            Failure::Passing(format!(
                "cannot open {path}: {why}; the database must exist"
            ))
        };
        let connection = connect().map_err(|error: rusqlite::Error| failed(error.to_string()))?;
        match identity(&self.path) {
            Some(identity) => Ok(Open {
                connection,
                identity,
            }),
            None => Err(failed("it has gone".to_owned())),
        }
    }

    fn execute(&self, connection: &Connection, values: &[Option<Value>]) -> Result<(), Failure> {
        let mut statement = connection
            .prepare_cached(&self.statement)
            .map_err(|error| unprepared(&error))?;
        if statement.parameter_count() != self.parameters {
            return Err(Failure::Lasting(
                "the statement has parameters of SQLite's own, with `?`, `@` or `$`; name fields \
                 of the event in their place"
                    .to_owned(),
            ));
        }
        let mut run = || {
            let mut rows = statement.query(params_from_iter(values))?;
            while rows.next()?.is_some() {}
            Ok(())
        };
        run().map_err(|error| judge(&error))
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Text(text) => ToSqlOutput::from(text.as_str()),
            Self::Json(json) => ToSqlOutput::from(json.get()),
            Self::Number(number) => ToSqlOutput::from(*number),
            Self::Flag(flag) => ToSqlOutput::from(*flag),
            Self::Bytes(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
            Self::Id(_) | Self::Time(_) => ToSqlOutput::from(self.to_text()),
        })
    }
}

/// Why a statement was not prepared. SQLite has no values yet, so its message can be shown.
fn unprepared(error: &rusqlite::Error) -> Failure {
    let why = format!("the statement cannot be prepared: {error}");
    if is_passing(error) {
        Failure::Passing(why)
    } else {
        Failure::Lasting(why)
    }
}

/// Why a statement was not committed.
fn judge(error: &rusqlite::Error) -> Failure {
    let why = format!("the database refused: {}", explain(error));
    if is_passing(error) {
        Failure::Passing(why)
    } else {
        Failure::Lasting(why)
    }
}

fn is_passing(error: &rusqlite::Error) -> bool {
    let lasting = matches!(
        error.sqlite_error_code(),
        None | Some(
            ErrorCode::Unknown
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::TooBig
                | ErrorCode::PermissionDenied
                | ErrorCode::AuthorizationForStatementDenied
                | ErrorCode::ParameterOutOfRange
        )
    );
    !lasting
}

/// Describes an error without values of the event. SQLite's message is shown if it contains only names of
/// the schema. The message of a trigger is not shown, since its author may put values into it.
fn explain(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(failure, Some(words))
            if failure.code == ErrorCode::ConstraintViolation
                && failure.extended_code != ffi::SQLITE_CONSTRAINT_TRIGGER =>
        {
            words.clone()
        }
        rusqlite::Error::SqliteFailure(failure, _) => failure.to_string(),
        _ => "the statement cannot be run".to_owned(),
    }
}
