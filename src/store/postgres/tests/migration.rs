//! Tables of an older version.

use super::{Replica, connection, postgres::Database};
use crate::{
    event::Notification,
    store::{
        Verdict,
        postgres::{partition, rows, schema},
        tests::{at, ids, keyed, numbered},
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
    let days = [rows::day(at(0))].into();
    partition::make_on(&mut connection, &days).await.unwrap();
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
