//! A transfer of a large store that is interrupted, by a kill and by a crash of the database.

use std::thread;

use super::{begin, crm, gate::Gated, listed, migrate, said, stop};
use crate::{
    harness::{ARCHIVE, ENDPOINTS, Home, Receiver, Service, cnam, eventually, serials},
    postgres::home_with,
};

/// The number of carriers, and so of ordering keys, in a large store.
const CARRIERS: u32 = 8;

/// The number of events of each carrier.
const OF_EACH: u64 = 400;

/// The carrier whose events the receiver refuses.
const REFUSED: u32 = 3;

/// A large store without a running service. All events are archived, and all are delivered to
/// `receiver`, except for the refused ones and one parked event.
fn large(receiver: &Receiver) -> Home {
    receiver.answer(&refused(), 503);
    receiver.answer("serial 804\"", 410);
    let home = Home::new(&[ENDPOINTS, ARCHIVE, &crm(receiver)]);
    let service = home.start();
    fill(&service);
    #[expect(clippy::cast_precision_loss, reason = "there are a few hundred")]
    eventually("deliveries have got as far as they can", || {
        service.metric("hookswitch_ledger_lag") == 0.0
            && service.metric("hookswitch_open_deliveries{handler=\"archive\"}") == 0.0
            && service.metric("hookswitch_open_deliveries{handler=\"crm\"}") == OF_EACH as f64
    });
    stop(service);
    home
}

/// The text in the bodies of the refused events.
fn refused() -> String {
    format!("\"carrier_code\":{REFUSED},")
}

/// Kills a transfer in the middle. Returns the number of moved events.
fn kill_a_move(gated: &Gated, old: &Home, new: &Home) -> u64 {
    gated.set(1200);
    let mut moving = begin(old, new);
    gated.wait_until_blocked(1);
    moving.kill().unwrap();
    moving.wait().unwrap();
    let moved = gated.events();
    assert!((1..=1200).contains(&moved), "{moved} were moved");
    moved
}

/// Kills the database during a transfer that has moved more than `moved` events, and restarts it.
fn crash_the_database(gated: &mut Gated, old: &Home, new: &Home, moved: u64) {
    let moving = begin(old, new);
    // The server may still be working for the killed transfer.
    gated.wait_until_connected(2);
    gated.set(2200);
    gated.wait_until_blocked(moved + 1);
    gated.postgres.server().stop("QUIT");
    let output = moving.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    for wanted in ["run it again", "adding events to the database: "] {
        assert!(said(&output).contains(wanted), "{output:?}");
    }
    gated.postgres.restart(&[]);
    let more = gated.events();
    assert!((moved + 1..=2200).contains(&more), "{more} were moved");
}

/// Posts the events of a large store, one after the other for each carrier.
fn fill(service: &Service) {
    thread::scope(|scope| {
        for carrier in 0..CARRIERS {
            scope.spawn(move || {
                for serial in serials_of(carrier) {
                    assert_eq!(service.zoom(&cnam(carrier, serial)).status, 200);
                }
            });
        }
    });
}

fn serials_of(carrier: u32) -> impl Iterator<Item = u64> {
    (0..OF_EACH).map(move |turn| turn * u64::from(CARRIERS) + u64::from(carrier))
}

fn sayings_of(carrier: u32) -> Vec<String> {
    serials_of(carrier)
        .map(|serial| format!("serial {serial}"))
        .collect()
}

#[test]
fn a_transfer_that_is_killed_and_loses_its_database_is_finished_by_a_second_run() {
    let receiver = Receiver::start();
    let old = large(&receiver);
    let (before, parked, delivered) = (listed(&old), old.parked(), receiver.received().len());
    assert_eq!(before.len() as u64, u64::from(CARRIERS) * OF_EACH);
    assert_eq!(delivered as u64, u64::from(CARRIERS - 1) * OF_EACH - 1);
    assert_eq!(parked.len(), 1);
    let mut gated = Gated::new();
    let new = home_with(&gated.url(), &crm(&receiver));
    stop(new.start()); // The tables are there.
    gated.put_up();
    let moved = kill_a_move(&gated, &old, &new);
    crash_the_database(&mut gated, &old, &new, moved);
    let service = new.start();
    eventually("the log gives the reason", || {
        let log = service.log();
        log.contains("was cut short; run `hookswitch migrate` again")
    });
    assert_eq!(service.zoom(&cnam(REFUSED, 1_000_000)).status, 503);
    stop(service);
    assert_eq!(receiver.received().len(), delivered);

    gated.set(u64::from(CARRIERS) * OF_EACH);
    let whole = migrate(&old, &new);
    assert!(whole.status.success(), "{whole:?}");
    let all = "3200 events with 6400 deliveries moved and compared";
    assert!(said(&whole).starts_with(all), "{whole:?}");
    for line in ["3200 of 3200 events moved", "3200 of 3200 events compared"] {
        assert!(said(&whole).contains(line), "{whole:?}");
    }
    assert!(listed(&new) == before, "the lists of events differ");
    assert_eq!(new.parked(), parked);

    receiver.answer(&refused(), 200);
    let service = new.start();
    eventually("the open deliveries are made", || {
        service.metric("hookswitch_open_deliveries{handler=\"crm\"}") == 0.0
            && receiver.received().len() as u64 >= delivered as u64 + OF_EACH
    });
    stop(service);
    // All events arrive in order, and no others.
    let received = receiver.received().split_off(delivered);
    assert_eq!(serials(&received, REFUSED), sayings_of(REFUSED));
    assert_eq!(received.len() as u64, OF_EACH);
    assert!(new.archived().is_empty());
    assert_eq!(new.parked(), parked);
}
