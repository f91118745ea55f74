//! That nothing which happens often ever takes longer the more there is.

use tokio_postgres::SimpleQueryMessage;

use super::{postgres::Database, settings};
use crate::store::postgres::{
    append, claim, leases, maintenance, partition, pool::Durability, pool::PgConnection, rows,
    schema, settle, statistics, topics,
};

/// A connection to a database with empty tables, as the service has one.
async fn connection(database: &Database) -> PgConnection {
    let connector = settings(&database.url()).connector(Default::default());
    let connector = connector.unwrap();
    let mut connection = connector.connect(Durability::Lazy).await.unwrap();
    schema::migrate(&mut connection).await.unwrap();
    let days = [rows::day(crate::store::tests::at(0))].into();
    partition::make_on(&mut connection, &days).await.unwrap();
    connection
}

/// How the database goes about `statement`, whatever its parameters are.
async fn plan(connection: &PgConnection, statement: &str) -> String {
    let parameters = connection.client.prepare(statement).await.unwrap();
    let nulls = match parameters.params().len() {
        0 => String::new(),
        number => format!("({})", vec!["NULL"; number].join(", ")),
    };
    let explain =
        format!("PREPARE it AS {statement}; EXPLAIN (COSTS OFF) EXECUTE it{nulls}; DEALLOCATE it");
    let said = connection.client.simple_query(&explain).await.unwrap();
    let lines = said.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    unqualified(&lines.collect::<Vec<_>>().join("\n"))
}

/// `plan` with columns named without their tables: the planner makes names up for some of them.
fn unqualified(plan: &str) -> String {
    let mut parts: Vec<_> = plan.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let without_table = |part: &str| match part.strip_suffix('"') {
        Some(quoted) => quoted[..quoted.rfind('"').unwrap()].to_owned(),
        None => part
            .trim_end_matches(|c: char| c.is_alphanumeric() || c == '_')
            .to_owned(),
    };
    let mut parts: Vec<_> = parts.into_iter().map(without_table).collect();
    parts.push(last.to_owned());
    parts.concat()
}

#[tokio::test]
async fn frequent_statements_use_their_indexes_to_full_depth() {
    let database = Database::new();
    let connection = connection(&database).await;
    for (statement, steps) in [
        (append::ADD, vec!["seen_pkey", "(dedupe = ANY ($1))"]),
        (topics::LEARN, vec!["unlearnt_pkey", "(\"position\" = $1)"]),
        (
            claim::TAKE.as_str(),
            vec![
                "deliveries_ready",
                "((handler = $1) AND (due_at <= $2))",
                "((handler = handler) AND (first = \"position\"))",
                "claims_by_scope",
                "deliveries_by_key",
                "further_keys_pkey",
                "AND (\"position\" = \"position\"))",
                "topics_pkey",
            ],
        ),
        (
            claim::NEXT_DUE,
            vec!["deliveries_ready", "((handler = $1) AND (due_at > $2))"],
        ),
        (
            claim::QUEUE,
            vec![
                "deliveries_by_key",
                "((handler = $1) AND (\"position\" = ANY (",
                "((handler = $1) AND (\"position\" = \"position\"))",
            ],
        ),
        (
            settle::SETTLE,
            vec![
                "((handler = $1) AND (first = ANY ($2)))",
                "((handler = $1) AND (\"position\" = \"position\"))",
                "((handler = $1) AND (\"position\" = \"position\"))",
                "further_keys_pkey",
            ],
        ),
        (
            settle::WAKE,
            vec![
                "((behind = ANY ($2)) AND (handler = $1))",
                "deliveries_by_key",
                "((handler = $1) AND (\"position\" = ANY (",
            ],
        ),
        (leases::GIVE_UP, vec!["deliveries_pkey"]),
        (settle::SETTLE_PARKED, vec!["(\"position\" = ANY ($3))"]),
        (
            leases::RENEW,
            vec!["((handler = $1) AND (first = ANY ($3)))"],
        ),
        (
            statistics::STATISTICS,
            vec![
                "deliveries_pkey",
                "((day = day) AND (\"position\" = \"position\"))",
            ],
        ),
        (
            maintenance::PARK,
            vec!["((handler = $1) AND (\"position\" = \"position\"))"],
        ),
        (
            maintenance::UNQUEUE,
            vec![
                "((handler = $1) AND (\"position\" > $2))",
                "((handler = $1) AND (\"position\" = \"position\"))",
            ],
        ),
        (
            maintenance::FORGET,
            vec![
                "((day = $1) AND (\"position\" > $2))",
                "seen_pkey",
                "topics_pkey",
            ],
        ),
    ] {
        let plan = plan(&connection, statement).await;
        for step in &steps {
            let wanted = steps.iter().filter(|other| *other == step).count();
            let found = plan.matches(step).count();
            assert!(
                found >= wanted,
                "{statement}: {step} {found} times in\n{plan}"
            );
        }
        for table in [
            "deliveries",
            "claims",
            "further_keys",
            "seen",
            "topics",
            "unlearnt",
            "events",
            "ended",
        ] {
            let scan = format!("Seq Scan on {table}");
            assert!(!plan.contains(&scan), "{statement}: {plan}");
        }
    }
}
