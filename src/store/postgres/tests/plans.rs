//! That nothing which happens often ever takes longer the more there is.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{postgres::Database, settings};
use crate::store::postgres::{
    append, claim, leases, listing, maintenance, parked, partition, pool::Durability,
    pool::PgConnection, rows, schema, settle, statistics, terms, topics,
};

/// The further keys of some events with many numbers. While this table is empty, the planner does not know that
/// a scope has many keys, and searches for a key by its scope alone.
const FILL: &str = "INSERT INTO further_keys (handler, scope, key, position)
    SELECT 1, 1, n % 1000, n FROM generate_series(1, 20000) AS n;
    ANALYZE further_keys";

/// A connection to a database with tables that have been created just now, as the service has one.
async fn connection(database: &Database) -> PgConnection {
    let connector = settings(&database.url()).connector(Default::default());
    let connector = connector.unwrap();
    let mut connection = connector.connect(Durability::Lazy).await.unwrap();
    schema::migrate(&mut connection).await.unwrap();
    let days = [rows::day(crate::store::tests::at(0))].into();
    partition::make_on(&mut connection, &days).await.unwrap();
    connection.client.batch_execute(FILL).await.unwrap();
    connection
}

/// The plan of `statement`, whatever its parameters are.
async fn plan(connection: &PgConnection, statement: &str) -> Value {
    let client = &connection.client;
    let parameters = client.prepare(statement).await.unwrap().params().len();
    let nulls = vec!["NULL"; parameters].join(", ");
    let nulls = match parameters {
        0 => String::new(),
        _ => format!("({nulls})"),
    };
    let prepare = format!("PREPARE it AS {statement}");
    client.batch_execute(&prepare).await.unwrap();
    let explain = format!("EXPLAIN (FORMAT JSON, COSTS OFF) EXECUTE it{nulls}");
    let plan = client.query_one(&explain, &[]).await.unwrap().get(0);
    client.batch_execute("DEALLOCATE it").await.unwrap();
    plan
}

/// The tables that have few rows, however much there is to deliver.
const SMALL: [&str; 2] = ["handlers", "tally"];

/// Adds each access of `plan` to a table that may be large: the index with the columns by which it is
/// searched, or the table that is read as a whole.
fn add_accesses(plan: &Value, found: &mut BTreeSet<String>) {
    match plan {
        Value::Array(plans) => plans.iter().for_each(|plan| add_accesses(plan, found)),
        Value::Object(node) => {
            node.values().for_each(|value| add_accesses(value, found));
            let text = |name| node.get(name).and_then(Value::as_str).unwrap_or_default();
            let (table, index) = (text("Relation Name"), text("Index Name"));
            if !index.is_empty() && !SMALL.contains(&table) {
                let columns = columns(text("Index Cond")).join(", ");
                found.insert(format!("{} ({columns})", unpartitioned(index)));
            }
            if text("Node Type") == "Seq Scan" && !SMALL.contains(&table) {
                found.insert(format!("all of {}", unpartitioned(table)));
            }
        }
        _ => {}
    }
}

/// A name without the day of its partition.
fn unpartitioned(name: &str) -> String {
    let is_day = |part: &&str| part.len() == 8 && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.split('_').filter(|part| !is_day(part));
    parts.collect::<Vec<_>>().join("_")
}

/// The columns in the condition of an index, such as `((handler = $1) AND (d."position" = o."position"))`,
/// whatever the planner calls the tables.
fn columns(condition: &str) -> Vec<&str> {
    let terms = condition.split(" AND ");
    let left = terms.filter_map(|term| {
        term.trim_start_matches(['(', 'R', 'O', 'W'])
            .split(' ')
            .next()
    });
    let columns = left.filter_map(|left| left.rsplit('.').next());
    let mut columns: Vec<_> = columns
        .map(|column| column.trim_matches(['"', ',']))
        .collect();
    columns.sort_unstable();
    columns
}

#[tokio::test]
async fn frequent_statements_use_their_indexes_to_full_depth() {
    let database = Database::new();
    let connection = connection(&database).await;
    for (statement, accesses) in [
        (append::ADD, &["seen_pkey (dedupe)"][..]),
        (
            topics::LEARN,
            &["events_pkey (day, position)", "unlearnt_pkey (position)"],
        ),
        (
            claim::TAKE.as_str(),
            &[
                "claims_by_scope (handler, scope)",
                "claims_pkey (first, handler)",
                "deliveries_by_key (handler, key, position, scope)",
                "deliveries_by_key (handler, key, scope)",
                "deliveries_pkey (handler, position)",
                "deliveries_ready (due_at, handler)",
                "events_pkey (day, position)",
                "further_keys_pkey (handler, key, position, scope)",
                "topics_pkey (topic)",
            ],
        ),
        (claim::NEXT_DUE, &["deliveries_ready (due_at, handler)"]),
        (
            claim::QUEUE,
            &[
                "claims_pkey (first, handler)",
                "deliveries_by_key (handler, key, position, scope)",
                "deliveries_pkey (handler, position)",
            ],
        ),
        (
            settle::SETTLE,
            &[
                "claims_pkey (first, handler)",
                "deliveries_pkey (handler, position)",
                "further_keys_pkey (handler, key, position, scope)",
            ],
        ),
        (
            settle::WAKE,
            &[
                "deliveries_by_key (handler, key, scope)",
                "deliveries_pkey (handler, position)",
                "deliveries_waiting (behind, handler)",
            ],
        ),
        (
            leases::GIVE_UP,
            &[
                "claims_pkey (handler)",
                "deliveries_pkey (handler, position)",
            ],
        ),
        (settle::SETTLE_PARKED, &["ended_position_idx (position)"]),
        (leases::RENEW, &["claims_pkey (first, handler)"]),
        (
            statistics::STATISTICS,
            &["deliveries_pkey (handler)", "events_pkey (day, position)"],
        ),
        (
            maintenance::PARK,
            &[
                "deliveries_pkey (handler)",
                "deliveries_pkey (handler, position)",
                "further_keys_pkey (handler, key, position, scope)",
            ],
        ),
        (
            maintenance::UNQUEUE,
            &["deliveries_pkey (handler, position)"],
        ),
        (listing::ALL, &["events_id_idx (id, id)"]),
        (listing::LATEST, &["events_id_idx (id)"]),
        (
            listing::WITH_TERM,
            &[
                "events_pkey (day, position)",
                "terms_pkey (day, day, day, day, term)",
            ],
        ),
        (
            listing::OPEN,
            &[
                "deliveries_pkey (handler, position, position)",
                "events_pkey (day, position)",
            ],
        ),
        (
            listing::PARKED,
            &[
                "ended_position_idx (position, position)",
                "events_pkey (day, position)",
            ],
        ),
        (
            listing::WITH_DELIVERY,
            &[
                "attempts_pkey (day, position)",
                "deliveries_pkey (handler, position)",
                "ended_pkey (day, position)",
            ],
        ),
        (
            listing::DETAILS,
            &[
                "deliveries_pkey (handler, position)",
                "ended_position_idx (position)",
                "events_pkey (day, position)",
            ],
        ),
        (
            parked::WALK,
            &[
                "ended_position_idx (position)",
                "events_pkey (day, position)",
            ],
        ),
        (
            parked::REASONS,
            &["ended_position_idx ()", "events_pkey (day, position)"],
        ),
        (
            terms::EVENTS.as_str(),
            &["events_pkey (day, position, position)"],
        ),
        (
            maintenance::FORGET,
            &[
                "events_pkey (day, position)",
                "seen_pkey (dedupe)",
                "topics_pkey (topic)",
            ],
        ),
    ] {
        let plan = plan(&connection, statement).await;
        let mut found = BTreeSet::new();
        add_accesses(&plan, &mut found);
        let found: Vec<_> = found.iter().map(String::as_str).collect();
        assert_eq!(found, accesses, "{statement}: {plan:#}");
    }
}
