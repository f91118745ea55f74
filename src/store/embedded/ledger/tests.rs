//! That nothing which happens often ever takes longer the more there is.

use super::{fill, listing, ordering, parked, retention, sqlite, statistics, subscriptions, terms};

/// How the database goes about `query`.
fn plan(query: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let db = sqlite::open(&dir.path().join("ledger.db"), true).unwrap();
    let mut explain = db.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
    let parameters = vec![1; explain.parameter_count()];
    let rows = explain
        .query_map(rusqlite::params_from_iter(parameters), |row| row.get(3))
        .unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn frequent_statements_use_their_indexes_to_full_depth() {
    for (query, depth) in [
        (
            ordering::BEFORE,
            "INDEX unfinished (handler=? AND state=? AND position<?)",
        ),
        (
            fill::OPEN,
            "INDEX unfinished (handler=? AND state=? AND position>?)",
        ),
        (
            retention::UNFINISHED,
            "INDEX unfinished (handler=? AND state=? AND position>? AND position<?)",
        ),
        (
            statistics::OLDEST,
            "INDEX unfinished (handler=? AND state=?)",
        ),
        (
            listing::ALL,
            "INDEX sqlite_autoindex_events_1 (id>? AND id<?)",
        ),
        (listing::AT, "INTEGER PRIMARY KEY (rowid=?)"),
        (
            listing::UNFINISHED,
            "INDEX unfinished (handler=? AND state=? AND position<?)",
        ),
        (terms::SEGMENT, "PRIMARY KEY (segment<?)"),
        (
            terms::EVENTS,
            "PRIMARY KEY (segment=? AND term=? AND offset<?)",
        ),
        (terms::DELETE, "PRIMARY KEY (segment=? AND term<?)"),
        (
            parked::POSITIONS,
            "INDEX unfinished (handler=? AND state=? AND position>?)",
        ),
        (
            subscriptions::ABANDON,
            "INDEX unfinished (handler=? AND state=?)",
        ),
    ] {
        let plan = plan(query);
        assert!(
            plan.iter().any(|step| step.ends_with(depth)),
            "{query}: {plan:?}"
        );
        for step in plan {
            assert!(!step.contains("TEMP B-TREE"), "{query}: {step}");
            assert!(!step.contains("SCAN deliveries"), "{query}: {step}");
            assert!(!step.contains("SCAN events"), "{query}: {step}");
        }
    }
}
