//! Compares the acknowledged with the delivered events.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use super::{
    load::{Exchange, Log, Sent},
    sink::{Arrival, Sink},
};
use crate::harness::eventually;

/// The result of one scenario: a line of a table.
pub(super) struct Figures {
    pub(super) acknowledged: usize,
    pub(super) delivered: usize,
    pub(super) duplicates: usize,
    /// The number of answers 503.
    pub(super) refused: usize,
    /// The number of requests without an answer in time, by replica.
    pub(super) unanswered: BTreeMap<usize, usize>,
    /// The longest time until an answer.
    pub(super) longest: Duration,
    /// The number of deliveries that ended in the second before the failure. Their results are
    /// recorded with less durability than events, and may be lost with the primary.
    pub(super) just_ended: usize,
    /// The time from the failure to the first answer 200 to a later request.
    pub(super) accepted_after: Duration,
    /// The time from the failure to the last delivery of an event that was acknowledged before it.
    pub(super) caught_up_after: Duration,
}

impl Figures {
    /// Waits until all acknowledged events are delivered, and checks what must hold in any case: no
    /// event is stored twice, every answer is a 200 or a 503, and order.
    ///
    /// Order means: an event that was acknowledged before the first request of another event with a
    /// shared key is delivered before that event. Repeated deliveries are counted, and have no
    /// order.
    pub(super) fn of(log: &Log, sink: &Sink, failed_at: Instant) -> Self {
        let acknowledged: BTreeSet<_> = log.acknowledged().map(|(serial, _)| serial).collect();
        eventually("everything acknowledged is delivered", || {
            let arrived = sink.arrivals();
            let arrived = arrived
                .iter()
                .filter(|arrival| arrival.answered_at.is_some());
            let arrived: BTreeSet<_> = arrived.map(|arrival| arrival.serial).collect();
            arrived.is_superset(&acknowledged)
        });
        let arrivals: Vec<_> = sink
            .arrivals()
            .into_iter()
            .filter(|arrival| log.events.contains_key(&arrival.serial))
            .collect();
        each_event_is_one(&arrivals);
        order_is_kept(log, &arrivals);
        let statuses: BTreeSet<_> = log.exchanges.iter().filter_map(|e| e.status).collect();
        assert!(statuses.is_subset(&[200, 503].into()), "{statuses:?}");

        let delivered: BTreeSet<_> = arrivals.iter().map(|arrival| arrival.serial).collect();
        let mut unanswered = BTreeMap::new();
        for exchange in log.exchanges.iter().filter(|e| e.status.is_none()) {
            *unanswered.entry(exchange.replica).or_default() += 1;
        }
        let answered = log.exchanges.iter().filter(|e| e.status.is_some());
        Self {
            acknowledged: acknowledged.len(),
            delivered: delivered.len(),
            duplicates: arrivals.len() - delivered.len(),
            refused: answered.clone().filter(|e| e.status == Some(503)).count(),
            unanswered,
            longest: answered.map(|e| e.took).max().unwrap_or_default(),
            just_ended: just_ended(&arrivals, failed_at),
            accepted_after: until_accepted(log, failed_at),
            caught_up_after: until_caught_up(log, &arrivals, failed_at),
        }
    }

    /// Prints the result as a line of a table.
    pub(super) fn show(&self, scenario: &str) {
        eprintln!("| {scenario} {self}");
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} ms | {:.1} s | {:.1} s |",
            self.acknowledged,
            self.delivered,
            self.duplicates,
            self.refused,
            self.unanswered.values().sum::<usize>(),
            self.longest.as_millis(),
            self.accepted_after.as_secs_f64(),
            self.caught_up_after.as_secs_f64(),
        )
    }
}

fn each_event_is_one(arrivals: &[Arrival]) {
    let mut ids = BTreeMap::new();
    for Arrival { serial, id, .. } in arrivals {
        let first = ids.entry(serial).or_insert(id);
        assert_eq!(*first, id, "event {serial} was stored twice");
    }
}

fn order_is_kept(log: &Log, arrivals: &[Arrival]) {
    let mut first = BTreeMap::new();
    for (place, arrival) in arrivals.iter().enumerate() {
        first.entry(arrival.serial).or_insert(place);
    }
    for (later, later_sent) in &log.events {
        let Some(later_place) = first.get(later) else {
            continue; // Never acknowledged, and never stored.
        };
        let is_before = |(_, sent): &(&u64, &Sent)| {
            let acknowledged = sent.acknowledged_at;
            acknowledged.is_some_and(|at| at < later_sent.sent_at)
        };
        let shares_a_key = |(_, sent): &(&u64, &Sent)| sent.keys.meet(later_sent.keys);
        for (earlier, _) in log.events.iter().filter(is_before).filter(shares_a_key) {
            assert!(
                first[earlier] < *later_place,
                "{earlier} was acknowledged before {later} was sent, and delivered after it"
            );
        }
    }
}

fn just_ended(arrivals: &[Arrival], failed_at: Instant) -> usize {
    let last_second = failed_at - Duration::from_secs(1)..failed_at;
    let ended = arrivals.iter().filter_map(|arrival| arrival.answered_at);
    ended.filter(|at| last_second.contains(at)).count()
}

fn until_accepted(log: &Log, failed_at: Instant) -> Duration {
    let accepted =
        |exchange: &&Exchange| exchange.began_at > failed_at && exchange.status == Some(200);
    let ends = log.exchanges.iter().filter(accepted);
    let first = ends.map(|exchange| exchange.began_at + exchange.took).min();
    first.unwrap().duration_since(failed_at)
}

/// The first answered delivery of each event counts, since deliveries in flight at the failed
/// replica are answered late or never.
fn until_caught_up(log: &Log, arrivals: &[Arrival], failed_at: Instant) -> Duration {
    let mut answered: BTreeMap<u64, Instant> = BTreeMap::new();
    for arrival in arrivals {
        let Some(at) = arrival.answered_at else {
            continue;
        };
        let first = answered.entry(arrival.serial).or_insert(at);
        *first = at.min(*first);
    }
    let before = log
        .acknowledged()
        .filter(|(_, sent)| sent.acknowledged_at.is_some_and(|at| at < failed_at));
    let last = before.map(|(serial, _)| answered[&serial]).max();
    last.unwrap_or(failed_at)
        .saturating_duration_since(failed_at)
}
