//! The failures of a statement: whether a retry may succeed, and a text without the event's values.

use tokio_postgres::error::{DbError, SqlState};

use crate::handler::{sql::Failure, with_causes};

/// Why a statement was not prepared. The server has no values yet, so its message can be shown.
pub(super) fn unprepared(error: &tokio_postgres::Error) -> Failure {
    let why = format!("the statement cannot be prepared: {}", describe(error));
    match error.code() {
        Some(code) if !is_passing(code) => Failure::Lasting(why),
        _ => Failure::Passing(why),
    }
}

/// Why a statement was not committed. A statement that `was_prepared` for an earlier event may contradict a
/// schema that has changed since: such a failure counts only after the statement was prepared again.
pub(super) fn judge(error: &tokio_postgres::Error, was_prepared: bool) -> Failure {
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

/// Whether a retry after `code` may succeed: problems of connections, conflicts of transactions, resources,
/// locks, operators, and the system. A pooler before the server causes a missing prepared statement.
fn is_passing(code: &SqlState) -> bool {
    let passing = ["08", "26", "28", "40", "53", "55", "57", "58", "F0", "XX"];
    passing.contains(&class(code)) || *code == SqlState::READ_ONLY_SQL_TRANSACTION
}

/// Describes an error without values of the event: its code, the meaning of the code, and the part of the
/// schema that it concerns.
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

/// The text of `error` with those of its causes. Only for errors before values are sent.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", error.message(), error.code().code());
    }
    with_causes(error)
}

#[cfg(test)]
mod tests {
    use super::*;

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
