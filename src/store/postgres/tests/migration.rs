//! Tables of an older version.

use super::{Replica, connection, postgres::Database, settings};
use crate::{
    event::{EventId, Notification},
    store::{
        EventFilter, Operator, Verdict,
        postgres::{maintenance, operator::OperatorConnection, partition, rows, schema},
        tests::{at, eventually, ids, keyed, numbered},
    },
};

/// Adds `event` to tables of version 2, with a delivery to `crm` that is open.
fn add(position: usize, event: &Notification, state: i16) -> String {
    let Notification {
        id,
        name,
        key,
        body,
        received_at,
        ..
    } = event;
    let (key, body) = (key.as_ref().unwrap(), str::from_utf8(body).unwrap());
    let day = rows::day(*received_at);
    format!(
        "INSERT INTO hookswitch.events (day, position, id, name, endpoint, key, lane, received_at,
             topic_keys, dedupe, body)
         VALUES ('{day}', {position}, '{id}', '{name}', 'desk', '{key}', 7, '{received_at}', '{{}}',
             '{{}}', convert_to('{body}', 'UTF8'));
         INSERT INTO hookswitch.deliveries (handler, position, day, lane, state, due_at)
         VALUES (1, {position}, '{day}', 7, {state}, '{received_at}');"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn open_deliveries_of_version_2_keep_their_order() {
    let database = Database::new();
    let mut connection = connection(&database).await;
    schema::migrate_to(&mut connection, 2).await.unwrap();
    let day = rows::day(at(0));
    for table in ["events", "ended", "attempts"] {
        let name = partition::name(table, day);
        database.sql(&format!(
            "CREATE TABLE hookswitch.{name} PARTITION OF hookswitch.{table} FOR VALUES IN ('{day}')"
        ));
    }
    let (a, b) = ("+12025550100", "+12025550101");
    let old = [
        numbered(1, "acme", &[a]),
        numbered(2, "acme", &[b]),
        keyed(3, "ringcentral.phone-number/9"),
        keyed(4, "ringcentral.phone-number/9"),
    ];
    database.sql("INSERT INTO hookswitch.handlers (name, ordered) VALUES ('crm', true)");
    for (place, event) in old.iter().enumerate() {
        // The second one of each key is queued behind a lane that is gone.
        database.sql(&add(place + 1, event, (place % 2) as i16));
    }
    database.sql(
        "SELECT setval('hookswitch.positions', 10);
         INSERT INTO hookswitch.held (handler, slot, position, ordered, token, until)
         VALUES (1, 7, 1, true, gen_random_uuid(), clock_timestamp() + interval '1 h')",
    );

    let replica = Replica::new(&database).await;
    let new = [
        numbered(5, "acme", &[b]),
        numbered(6, "elsewhere", &[b]),
        keyed(7, "ringcentral.phone-number/9"),
    ];
    replica.store.append_all(new.clone()).await;
    for expected in [
        vec![&old[0], &old[2], &new[1]],
        vec![&old[1], &old[3]],
        vec![&new[0], &new[2]],
    ] {
        let claims = replica.store.claim("crm", at(10)).await;
        let mut got = ids(&claims);
        got.sort_unstable();
        let mut expected: Vec<_> = expected.iter().map(|event| event.id).collect();
        expected.sort_unstable();
        assert_eq!(got, expected);
        for claim in &claims {
            replica.store.settle("crm", claim, Verdict::Done).await;
        }
    }
}

/// Adds `event` to tables of version 6, as a program of that version does.
fn add_6(position: usize, event: &Notification) -> String {
    let Notification {
        id,
        name,
        key,
        body,
        received_at,
        ..
    } = event;
    let (key, body) = (key.as_ref().unwrap(), str::from_utf8(body).unwrap());
    let (day, subject) = (rows::day(*received_at), event.subject().unwrap());
    format!(
        "INSERT INTO hookswitch.events (day, position, id, name, endpoint, key, subject,
             received_at, topic_keys, dedupe, body)
         VALUES ('{day}', {position}, '{id}', '{name}', 'desk', '{key}', '{subject}',
             '{received_at}', '{{}}', '{{}}', convert_to('{body}', 'UTF8'))"
    )
}

/// What is found by `about`, and whether that is all.
async fn look_up(database: &Database, about: &str) -> (Vec<EventId>, bool) {
    let filter = EventFilter {
        about: Some(about.to_owned()),
        limit: 10,
        ..EventFilter::default()
    };
    let settings = settings(&database.url());
    let looked_up = tokio::task::spawn_blocking(move || {
        OperatorConnection::open(&settings).unwrap().events(&filter)
    });
    let list = looked_up.await.unwrap().unwrap();
    let found = list.events.iter().map(|event| event.id).collect();
    (found, list.incomplete_before.is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_version_6_stores_are_indexed_in_the_background() {
    let database = Database::new();
    let mut connection = connection(&database).await;
    schema::migrate_to(&mut connection, 6).await.unwrap();
    let day = rows::day(at(0));
    for table in ["events", "ended", "attempts"] {
        let name = partition::name(table, day);
        database.sql(&format!(
            "CREATE TABLE hookswitch.{name} PARTITION OF hookswitch.{table} FOR VALUES IN ('{day}')"
        ));
    }
    let (a, b) = ("+12025550100", "+12025550101");
    let old = [numbered(1, "acme", &[a, b]), numbered(2, "acme", &[b])];
    database.sql(&add_6(1, &old[0]));
    database.sql("SELECT setval('hookswitch.positions', 10)");
    schema::migrate(&mut connection).await.unwrap();
    database.sql(&add_6(11, &old[1]));
    database.sql("SELECT setval('hookswitch.positions', 11)");
    assert_eq!(look_up(&database, b).await, (vec![], false));

    let replica = Replica::new(&database).await;
    let new = numbered(3, "acme", &[a]);
    replica.store.append(&new).await.unwrap();
    replica.shared().maintenance.notify_one();
    let all = eventually("the events are indexed", async || {
        let (found, is_all) = look_up(&database, b).await;
        is_all.then_some(found)
    });
    assert_eq!(all.await, [old[1].id, old[0].id]);
    assert_eq!(look_up(&database, a).await, (vec![new.id, old[0].id], true));

    // A collision of hashes shows nothing wrong.
    database.sql(
        "INSERT INTO hookswitch.terms SELECT a.day, a.term, b.position
         FROM hookswitch.terms a, hookswitch.terms b ON CONFLICT DO NOTHING",
    );
    assert_eq!(look_up(&database, a).await.0, [new.id, old[0].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn days_that_version_6_creates_and_drops_are_completed() {
    let database = Database::new();
    let replica = Replica::new(&database).await;
    let [first, second] = [1, 2].map(|n| numbered(n, "acme", &["+12025550100"]));
    replica.store.append(&first).await.unwrap();
    let day = rows::day(at(0));
    let terms = partition::name("terms", day);
    let is_there = || {
        database.sql(&format!(
            "SELECT to_regclass('hookswitch.{terms}') IS NOT NULL"
        ))
    };
    database.sql(&format!("DROP TABLE hookswitch.{terms}"));
    replica.store.append(&second).await.unwrap();
    assert_eq!(is_there(), "t");

    for table in ["events", "ended", "attempts"] {
        database.sql(&format!(
            "DROP TABLE hookswitch.{}",
            partition::name(table, day)
        ));
    }
    database.sql("DELETE FROM hookswitch.deliveries");
    let mut connection = connection(&database).await;
    maintenance::retain(replica.shared(), &mut connection, at(10 * 24 * 3600))
        .await
        .unwrap();
    assert_eq!(is_there(), "f");
}
