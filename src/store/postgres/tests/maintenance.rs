//! Partitions, retention, and what cannot be stored.

use jiff::{SignedDuration, Timestamp};

use super::{Replica, postgres::Database, settings};
use crate::{
    event::{Key, Notification},
    store::{
        AppendError, Verdict,
        postgres::{maintenance, pool::Durability, rows, topics},
        tests::{self as suite, at, clock, event, keyed, parked},
    },
};

fn days(database: &Database) -> String {
    database.sql(
        "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
         WHERE relname LIKE 'events\\_2%' AND relkind = 'r'",
    )
}

fn on_day(n: u64, day: i64) -> Notification {
    let received_at = at(day * 24 * 3600);
    Notification {
        received_at,
        ..event(n)
    }
}

/// Noon of a day ten days after the tests take place.
fn later() -> Timestamp {
    clock() + SignedDuration::from_hours(240)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_day_is_dropped_once_nothing_of_it_is_needed() {
    let database = Database::new();
    let replica = Replica::new(&database).await;
    // The last day is not over by the time that is kept, though this event of it is.
    let days_of = [0, 1, 2, 9, 10];
    let events = days_of.map(|day| on_day(day as u64, day));
    replica.store.append_all(events.clone()).await;
    let claims = replica.store.claim("crm", later()).await;
    for (claim, verdict) in claims.iter().zip([Verdict::Done, parked(), Verdict::Done]) {
        replica.store.settle("crm", claim, verdict).await;
    }
    replica.store.settle("crm", &claims[4], Verdict::Done).await;
    let connector = &replica.shared().connector;
    let mut connection = connector.connect(Durability::Lazy).await.unwrap();
    maintenance::retain(replica.shared(), &mut connection, later())
        .await
        .unwrap();
    let kept: Vec<_> = [1, 3, 4]
        .map(|n| {
            format!(
                "events_{}",
                rows::day(events[n].received_at).strftime("%Y%m%d")
            )
        })
        .into();
    let left = days(&database);
    for day in &kept {
        assert!(left.contains(day), "{day} in {left}");
    }
    for dropped in [0, 2] {
        let day = rows::day(events[dropped].received_at).strftime("%Y%m%d");
        assert!(!left.contains(&day.to_string()), "{day} in {left}");
    }
    // Events of dropped days are new again; the others are duplicates.
    replica.store.append_all(events).await;
    let new = replica.store.claim("crm", later()).await;
    assert_eq!(new.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_kept_until_its_last_event_is_dropped() {
    let database = Database::new();
    let replica = Replica::new(&database).await;
    let about_x = |n, day| Notification {
        occurred_at: Some(at(day * 24 * 3600)),
        topics: vec!["x".into()],
        ..on_day(n, day)
    };
    replica.store.append(&about_x(1, 0)).await.unwrap();
    assert_eq!(replica.store.drain("crm").await.len(), 1);
    replica.store.append(&about_x(2, 10)).await.unwrap();
    let connector = &replica.shared().connector;
    let mut connection = connector.connect(Durability::Lazy).await.unwrap();
    maintenance::retain(replica.shared(), &mut connection, later())
        .await
        .unwrap();
    // One of the day between that comes late.
    let late = about_x(3, 9);
    replica.store.append(&late).await.unwrap();
    let claims = replica.store.claim("crm", later()).await;
    let late = claims.iter().find(|claim| claim.notification.id == late.id);
    assert!(late.unwrap().superseded);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_postgresql_refuses_is_stored() {
    let database = Database::new();
    let replica = Replica::new(&database).await;
    let odd = Notification {
        key: Some(Key::from("a\0b")),
        subjects: vec!["\0\\0".to_owned(), "\0".to_owned()],
        topics: vec!["t\0".into()],
        name: "zoom.\0".into(),
        ..event(1)
    };
    replica.store.append(&odd).await.unwrap();
    let claims = replica.store.claim("crm", at(10)).await;
    assert_eq!(*claims[0].notification, odd);
    let long = Notification {
        key: Some(Key::new("k".repeat(1 << 20))),
        topics: vec!["t".repeat(1 << 20).as_str().into()],
        ..event(2)
    };
    replica.store.append(&long).await.unwrap();
    let claims = replica.store.claim("crm", at(10)).await;
    assert_eq!(*claims[0].notification, long);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_stored_fails_alone() {
    let database = Database::new();
    let replica = std::sync::Arc::new(Replica::new(&database).await);
    database.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF NEW.key = 'bad' THEN RAISE SQLSTATE '22000'; END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON hookswitch.events
         FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let appends: Vec<_> = (0..50)
        .map(|n| {
            let replica = replica.clone();
            let key = if n == 20 { "bad" } else { "good" };
            tokio::spawn(async move { replica.store.append(&keyed(n, key)).await })
        })
        .collect();
    let mut stored = 0;
    for append in appends {
        match append.await.unwrap() {
            Ok(()) => stored += 1,
            Err(error) => assert!(matches!(error, AppendError::Unavailable(_)), "{error}"),
        }
    }
    assert_eq!(stored, 49);
    assert_eq!(replica.store.drain("crm").await.len(), 49);
}

#[tokio::test(flavor = "multi_thread")]
async fn problems_at_the_start_are_reported() {
    let database = Database::new();
    drop(Replica::new(&database).await);
    let url = database.url();
    let refused = async |url: &str| {
        let error = Replica::try_open(settings(url), clock).await.err();
        let error = error.expect("it opens").to_string();
        assert!(!error.contains("a-password-for-tests"), "{error}");
        error
    };
    let wrong = url.replace("a-password-for-tests", "another-password");
    assert!(refused(&wrong).await.contains("password"));
    let (base, _) = url.rsplit_once('/').unwrap();
    let absent = refused(&format!("{base}/nowhere?sslmode=disable")).await;
    assert!(absent.contains("nowhere"), "{absent}");
    let tls = url.replace("disable", "require");
    assert!(refused(&tls).await.contains("TLS"));
    database.sql("UPDATE hookswitch.schema_version SET version = 99, needs = 99");
    assert!(refused(&url).await.contains("newer hookswitch"));
    database.sql("UPDATE hookswitch.schema_version SET version = 99, needs = 1");
    drop(Replica::try_open(settings(&url), clock).await.unwrap());
    let name = base_name(&url);
    database.sql(&format!(
        "ALTER DATABASE {name} SET synchronous_commit = off"
    ));
    assert!(refused(&url).await.contains("synchronous_commit"));
}

fn base_name(url: &str) -> &str {
    let (base, _) = url.split_once('?').unwrap();
    base.rsplit_once('/').unwrap().1
}

#[test]
fn a_url_is_parsed_or_refused_with_the_reason() {
    use crate::store::postgres::settings::Tls;
    let read = |url: &str| -> Result<_, String> {
        let address: crate::store::postgres::settings::DatabaseUrl =
            url.parse().map_err(|error| format!("{error}"))?;
        assert!(!format!("{address:?} {address}").contains("hunter2"));
        Ok((address.tls, address.hosts().len()))
    };
    for (url, tls, hosts) in [
        ("postgres://u:hunter2@localhost/d", Tls::Disable, 1),
        ("postgresql://u:hunter2@127.0.0.1:1/d", Tls::Disable, 1),
        ("postgres://u:hunter2@db.example.com/d", Tls::VerifyFull, 1),
        (
            "postgres://u:hunter2@a,b/d?sslmode=require",
            Tls::Require,
            2,
        ),
        (
            "postgres://u@a:1,b:2/d?sslmode=disable&options=x",
            Tls::Disable,
            2,
        ),
        (
            "postgres://u@a/d?options=x&sslmode=verify-full",
            Tls::VerifyFull,
            1,
        ),
    ] {
        assert_eq!(read(url), Ok((tls, hosts)), "{url}");
    }
    for (url, why) in [
        ("mysql://u:hunter2@a/d", "not a URL"),
        ("postgres://u:hunter2@a/", "no database"),
        ("postgres://a/d", "no user"),
        ("postgres:///d?user=u", "no host"),
        ("postgres://u:hunter2@a/d?sslmode=prefer", "sslmode"),
        ("postgres://u:hunter2@a:port/d", "not a URL"),
    ] {
        let refused = read(url).unwrap_err();
        assert!(refused.contains(why), "{url}: {refused}");
        assert!(!refused.contains("hunter2"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_an_unclaimed_event_are_added() {
    let database = Database::new();
    let replica = Replica::new(&database).await;
    let many = topics::MOST_TOPICS + 1;
    let large = Notification {
        occurred_at: Some(at(0)),
        topics: (0..many).map(|n| n.to_string().as_str().into()).collect(),
        ..event(1)
    };
    replica.store.append(&large).await.unwrap();
    replica.shared().maintenance.notify_one();
    suite::eventually("they are added", async || {
        let left = "SELECT count(*) FROM hookswitch.unlearnt";
        (database.sql(left) == "0").then_some(())
    })
    .await;
    let added = database.sql("SELECT count(*) FROM hookswitch.topics");
    assert_eq!(added, many.to_string());
}
