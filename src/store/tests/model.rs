//! A comparison of the store with a simple reference. For any sequence of appends, claims,
//! settlements and restarts by several services, the store hands out exactly the deliveries that
//! the reference allows.

use std::collections::BTreeMap;

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::runtime::Runtime;

use super::{Opened, Place, at, loose, numbered, parked, retry};
use crate::{
    event::{EventId, HandlerName, Notification, OrderingKeys},
    store::{Claim, ReplaySelection, Verdict},
};

/// How many seconds a retry waits.
const RETRY_SECONDS: i64 = 10;

/// The most services on one store.
const SERVICES: usize = 3;

const NUMBERS: [&str; 3] = ["+12025550100", "+12025550101", "+12025550102"];

/// One step of a test.
#[derive(Clone, Debug)]
enum Step {
    /// An event arrives. It is about the numbers of an account whose bit is set, or without a bit
    /// about the whole account.
    Append { account: bool, numbers: u8 },
    /// An event without a key arrives.
    AppendLoose,
    /// A service claims a few deliveries.
    Claim { service: usize, at_most: usize },
    /// A service claims all deliveries that it can get.
    ClaimAll { service: usize },
    /// The claim with this index, among those in flight, is settled.
    Settle { which: usize, verdict: Kind },
    /// A finished delivery is replayed.
    Replay { which: usize },
    /// Time passes.
    Pass { seconds: i64 },
    /// A service is stopped and started again.
    Restart { service: usize },
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Done,
    Skipped,
    Parked,
    Retry,
    Released,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => Just(Kind::Done),
        1 => Just(Kind::Skipped),
        1 => Just(Kind::Parked),
        2 => Just(Kind::Retry),
        1 => Just(Kind::Released),
    ];
    prop_oneof![
        8 => (any::<bool>(), 0_u8..8)
            .prop_map(|(account, numbers)| Step::Append { account, numbers }),
        1 => Just(Step::AppendLoose),
        3 => (0..SERVICES, 1_usize..4)
            .prop_map(|(service, at_most)| Step::Claim { service, at_most }),
        2 => (0..SERVICES).prop_map(|service| Step::ClaimAll { service }),
        8 => (any::<prop::sample::Index>(), kind)
            .prop_map(|(which, verdict)| Step::Settle { which: which.index(1 << 16), verdict }),
        2 => any::<prop::sample::Index>()
            .prop_map(|which| Step::Replay { which: which.index(1 << 16) }),
        1 => (1_i64..2 * RETRY_SECONDS).prop_map(|seconds| Step::Pass { seconds }),
        1 => (0..SERVICES).prop_map(|service| Step::Restart { service }),
    ]
}

/// The promise of order, in its simplest form.
#[derive(Default)]
struct Reference {
    /// The deliveries, in the order of their events' appends.
    deliveries: Vec<Delivery>,
}

struct Delivery {
    id: EventId,
    keys: Option<OrderingKeys>,
    state: State,
    /// Whether the delivery is a replay.
    is_replay: bool,
}

/// How a delivery was handed out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// The service claimed the delivery.
    Claimed,
    /// A settlement returned the delivery. Its claim was made together with the settled one, so it
    /// does not wait for replays that were requested since.
    Returned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open { due: i64 },
    InFlight,
    Over,
}

impl Reference {
    fn append(&mut self, event: &Notification) {
        self.deliveries.push(Delivery {
            id: event.id,
            keys: event.ordering_keys(),
            state: State::Open { due: 0 },
            is_replay: false,
        });
    }

    /// Whether a delivery is due, and no delivery with a shared key is in flight, or older and
    /// unfinished.
    fn may_begin(&self, place: usize, now: i64, how: How) -> bool {
        let wanted = &self.deliveries[place];
        let is_due = matches!(wanted.state, State::Open { due } if due <= now);
        let mut others = self.deliveries.iter().enumerate();
        is_due
            && !others.any(|(other_place, other)| {
                let is_in_the_way = match other.state {
                    State::Open { .. } if how == How::Returned && other.is_replay => false,
                    State::Open { .. } => other_place < place,
                    State::InFlight => true,
                    State::Over => false,
                };
                let share = |(a, b): (&OrderingKeys, &OrderingKeys)| a.share_a_key_with(b);
                is_in_the_way
                    && wanted
                        .keys
                        .as_ref()
                        .zip(other.keys.as_ref())
                        .is_some_and(share)
            })
    }

    fn place(&self, id: EventId) -> usize {
        let found = self
            .deliveries
            .iter()
            .position(|delivery| delivery.id == id);
        found.expect("what is claimed was stored")
    }

    fn set(&mut self, id: EventId, state: State) {
        let place = self.place(id);
        self.deliveries[place].state = state;
    }

    fn take(&mut self, id: EventId, now: i64, how: How) {
        let place = self.place(id);
        assert!(
            self.may_begin(place, now, how),
            "delivery {place} was handed out too early"
        );
        self.deliveries[place].state = State::InFlight;
    }

    fn waiting(&self, now: i64) -> Vec<usize> {
        (0..self.deliveries.len())
            .filter(|place| self.may_begin(*place, now, How::Claimed))
            .collect()
    }

    fn is_over(&self) -> bool {
        self.deliveries
            .iter()
            .all(|delivery| delivery.state == State::Over)
    }
}

/// The services on one store, and the reference.
struct Run {
    place: Place,
    services: Vec<Option<Opened>>,
    /// The claims of each service that are in flight.
    in_flight: BTreeMap<usize, Vec<Claim>>,
    reference: Reference,
    now: i64,
    events: u64,
}

impl Run {
    async fn start(place: Place) -> Self {
        let mut services = Vec::new();
        for _ in 0..place.services.min(SERVICES) {
            services.push(Some(place.subscribed().await));
        }
        Self {
            place,
            services,
            in_flight: BTreeMap::new(),
            reference: Reference::default(),
            now: 1000,
            events: 0,
        }
    }

    fn service(&self, number: usize) -> (usize, &Opened) {
        let number = number % self.services.len();
        (number, self.services[number].as_ref().unwrap())
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Append { account, numbers } => {
                let account = if account { "first" } else { "second" };
                let wanted = NUMBERS.iter().enumerate();
                let wanted = wanted.filter(|(bit, _)| numbers & (1 << bit) != 0);
                let numbers: Vec<_> = wanted.map(|(_, number)| *number).collect();
                let event = numbered(self.events, account, &numbers);
                self.append(&event).await;
            }
            Step::AppendLoose => {
                let event = loose(self.events);
                self.append(&event).await;
            }
            Step::Claim { service, at_most } => {
                self.claim(service, at_most).await;
            }
            Step::ClaimAll { service } => self.claim_all(service).await,
            Step::Settle { which, verdict } => self.settle(which, verdict).await,
            Step::Replay { which } => self.replay(which),
            Step::Pass { seconds } => self.now += seconds,
            Step::Restart { service } => self.restart(service).await,
        }
    }

    async fn append(&mut self, event: &Notification) {
        self.events += 1;
        let (_, service) = self.service(self.events as usize);
        service.append(event).await.unwrap();
        self.reference.append(event);
    }

    /// Claims deliveries. Returns whether there may be more.
    async fn claim(&mut self, service: usize, at_most: usize) -> bool {
        let (number, opened) = self.service(service);
        opened.settle_down().await;
        let crm = HandlerName::from("crm");
        let claimed = opened
            .store
            .claim(&crm, at_most, at(self.now))
            .await
            .unwrap();
        let again = claimed.next_due.is_some_and(|due| due <= at(self.now));
        let some = !claimed.claims.is_empty();
        assert!(claimed.claims.len() <= at_most);
        self.begin(number, claimed.claims, How::Claimed);
        some || again
    }

    async fn claim_all(&mut self, service: usize) {
        for _ in 0..1000 {
            if !self.claim(service, 100).await {
                let waiting = self.reference.waiting(self.now);
                assert!(
                    waiting.is_empty(),
                    "deliveries {waiting:?} are not handed out"
                );
                return;
            }
        }
        panic!("there is always more to claim");
    }

    fn begin(&mut self, service: usize, claims: Vec<Claim>, how: How) {
        for claim in &claims {
            self.reference.take(claim.notification.id, self.now, how);
        }
        self.in_flight.entry(service).or_default().extend(claims);
    }

    async fn settle(&mut self, which: usize, kind: Kind) {
        let count: usize = self.in_flight.values().map(Vec::len).sum();
        if count == 0 {
            return;
        }
        let mut which = which % count;
        for service in 0..self.services.len() {
            let claims = self.in_flight.entry(service).or_default();
            if which >= claims.len() {
                which -= claims.len();
                continue;
            }
            let claim = claims.remove(which);
            let id = claim.notification.id;
            let due = self.now + RETRY_SECONDS;
            let (verdict, state) = match kind {
                Kind::Done => (Verdict::Done, State::Over),
                Kind::Skipped => (Verdict::Skipped { why: String::new() }, State::Over),
                Kind::Parked => (parked(), State::Over),
                Kind::Retry => (retry(due), State::Open { due }),
                Kind::Released => (Verdict::Released, State::Open { due: 0 }),
            };
            self.reference.set(id, state);
            let (_, opened) = self.service(service);
            let next = opened.settle_all("crm", &[claim], verdict).await;
            self.begin(service, next, How::Returned);
            return;
        }
    }

    fn replay(&mut self, which: usize) {
        let over = self.reference.deliveries.iter_mut();
        let mut over: Vec<_> = over
            .filter(|delivery| delivery.state == State::Over)
            .collect();
        if over.is_empty() {
            return;
        }
        let which = which % over.len();
        let selection = ReplaySelection {
            ids: vec![over[which].id],
            ..ReplaySelection::default()
        };
        over[which].state = State::Open { due: self.now };
        over[which].is_replay = true;
        let now = at(self.now);
        let made = self
            .place
            .operator(|records| records.replay(&selection, "again", now, &mut |_| {}));
        assert_eq!(made.unwrap().total(), 1);
    }

    async fn restart(&mut self, service: usize) {
        let number = service % self.services.len();
        let stopped = self.services[number].take().unwrap();
        stopped.close().await;
        for claim in self.in_flight.remove(&number).unwrap_or_default() {
            let id = claim.notification.id;
            self.reference.set(id, State::Open { due: 0 });
        }
        self.services[number] = Some(self.place.subscribed().await);
    }

    /// Finishes all deliveries, and closes the services.
    async fn finish(mut self) {
        self.now += RETRY_SECONDS;
        while !self.reference.is_over() {
            self.claim_all(0).await;
            while self.in_flight.values().any(|claims| !claims.is_empty()) {
                self.settle(0, Kind::Done).await;
            }
        }
        for service in self.services.drain(..).flatten() {
            service.close().await;
        }
    }
}

fn check(place: fn() -> Place, cases: u32) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let steps = vec(step(), 1..60);
    let outcome = TestRunner::new(config).run(&steps, |steps| {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let mut run = Box::pin(Run::start(place())).await;
            for step in steps {
                run.take(step).await;
            }
            run.finish().await;
        });
        Ok(())
    });
    outcome.unwrap();
}

mod embedded {
    #[test]
    fn any_sequence_of_steps_agrees_with_the_reference() {
        super::check(crate::store::embedded::tests::place, 60);
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    #[test]
    fn any_sequence_of_steps_agrees_with_the_reference() {
        super::check(crate::store::postgres::tests::place, 60);
    }
}
