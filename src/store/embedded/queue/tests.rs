//! A window against a plain reference: however little room it has, it hands out what the promise allows, and
//! nothing else.

use std::{collections::BTreeMap, sync::Arc};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{open_delivery::OpenDelivery, topic_cache::TopicCache, window::Window};
use crate::{
    event::{Notification, OrderingKeys},
    store::{
        Claim, Settlement, Verdict,
        embedded::segment::Position,
        tests::{at, keyed, loose, numbered, parked, retry},
    },
};

const CAPACITY: usize = 5;

const NUMBERS: [&str; 3] = ["+12025550100", "+12025550101", "+12025550102"];

#[derive(Clone, Debug)]
enum Step {
    /// An event comes: of one of two accounts, about the numbers whose bit is set, or about the whole account.
    Come { account: bool, numbers: u8 },
    /// An event without a key comes.
    ComeLoose,
    /// A few deliveries are claimed.
    Claim { at_most: usize },
    /// One that is being attempted ends.
    Settle { which: u8, verdict: Kind },
    /// One that is not being attempted is made again.
    Replay { which: u8 },
    /// The window is emptied, as where its handler's order has changed.
    Reset,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Done,
    Parked,
    Retry,
    Released,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => Just(Kind::Done),
        1 => Just(Kind::Parked),
        4 => Just(Kind::Retry),
        1 => Just(Kind::Released),
    ];
    prop_oneof![
        10 => (any::<bool>(), 0_u8..8)
            .prop_map(|(account, numbers)| Step::Come { account, numbers }),
        1 => Just(Step::ComeLoose),
        4 => (1_usize..4).prop_map(|at_most| Step::Claim { at_most }),
        6 => (any::<u8>(), kind).prop_map(|(which, verdict)| Step::Settle { which, verdict }),
        1 => any::<u8>().prop_map(|which| Step::Replay { which }),
        1 => Just(Step::Reset),
    ]
}

/// A window, and all that is open as the ledger has it.
struct World {
    window: Window,
    ledger: BTreeMap<Position, (OpenDelivery, Arc<Notification>)>,
    over: BTreeMap<Position, (OpenDelivery, Arc<Notification>)>,
    in_flight: Vec<Claim>,
    topic_cache: TopicCache,
    last_lease: u64,
    count: u64,
    /// How many deliveries are read of the ledger at once, and how many were.
    slice: usize,
    read: usize,
    seconds: i64,
}

impl World {
    fn new(capacity: usize, slice: usize) -> Self {
        let mut window = Window::new("crm".into(), capacity);
        window.activate(true);
        window.is_live = true;
        Self {
            window,
            ledger: BTreeMap::new(),
            over: BTreeMap::new(),
            in_flight: Vec::new(),
            topic_cache: TopicCache::default(),
            last_lease: 0,
            count: 0,
            slice,
            read: 0,
            seconds: 100,
        }
    }

    fn come(&mut self, event: impl FnOnce(u64) -> Notification) {
        self.count += 1;
        let event = Arc::new(event(self.count));
        let (position, keys) = (Position::new(1, self.count), event.ordering_keys());
        if self.window.is_live {
            self.window.push(position, keys.as_ref(), &event, true);
        }
        let open = OpenDelivery::new(keys, event.received_at);
        self.ledger.insert(position, (open, event));
    }

    fn is_in_flight(&self, position: Position) -> bool {
        let event = self.ledger.get(&position).map(|(_, event)| event.id);
        self.in_flight
            .iter()
            .any(|claim| Some(claim.notification.id) == event)
    }

    /// What may be attempted.
    fn allowed(&self) -> Vec<Position> {
        let share = |a: &Option<OrderingKeys>, b: &Option<OrderingKeys>| {
            a.as_ref()
                .zip(b.as_ref())
                .is_some_and(|(a, b)| a.share_a_key_with(b))
        };
        let is_allowed = |position: Position, open: &OpenDelivery| {
            open.due_at <= at(self.seconds)
                && !self.is_in_flight(position)
                && !self.ledger.iter().any(|(other, (before, _))| {
                    (*other < position || self.is_in_flight(*other))
                        && share(&before.keys, &open.keys)
                })
        };
        let open = self.ledger.iter();
        open.filter(|(position, (open, _))| is_allowed(**position, open))
            .map(|(position, _)| *position)
            .collect()
    }

    /// What the ledger's thread does when the window is short of something.
    fn fill(&mut self) {
        while let Some(from) = self.window.refill_from(at(self.seconds)) {
            let rows: Vec<_> = self.ledger.range(from..).take(self.slice).collect();
            for (position, (open, _)) in &rows {
                self.window.offer(**position, open.clone());
            }
            self.window.is_live = rows.len() < self.slice;
            self.read += rows.len();
        }
        for position in self.window.unloaded(at(self.seconds)) {
            let (_, event) = &self.ledger[&position];
            self.window.load(position, event.clone());
        }
    }

    fn claim(&mut self, at_most: usize) -> usize {
        if self.window.needs_fill(at_most, at(self.seconds)) {
            self.fill();
        }
        let (now, allowed) = (at(self.seconds), self.allowed());
        let claims = self
            .window
            .claim(at_most, now, &mut self.last_lease, &self.topic_cache);
        for claim in &claims {
            let id = claim.notification.id;
            let (position, _) = self
                .ledger
                .iter()
                .find(|(_, (_, event))| event.id == id)
                .unwrap();
            assert!(allowed.contains(position), "{position:?} of {allowed:?}");
        }
        self.in_flight.extend(claims.iter().cloned());
        claims.len()
    }

    fn settle(&mut self, claim: &Claim, verdict: Verdict) {
        let settlement = Settlement {
            handler: "crm".into(),
            lease: claim.lease,
            verdict,
            started_at: at(self.seconds),
            finished_at: at(self.seconds),
        };
        let Some((position, snapshot)) = self.window.settle(&settlement) else {
            return;
        };
        let (open, event) = self.ledger.remove(&position).unwrap();
        match open.clone().after(&snapshot) {
            Some(open) => drop(self.ledger.insert(position, (open, event))),
            None => drop(self.over.insert(position, (open, event))),
        }
    }

    fn replay(&mut self, which: u8) {
        let all: Vec<_> = self
            .over
            .keys()
            .chain(self.ledger.keys())
            .copied()
            .collect();
        if all.is_empty() {
            return;
        }
        let position = all[usize::from(which) % all.len()];
        let over = self.over.remove(&position);
        let (open, event) = over.or_else(|| self.ledger.remove(&position)).unwrap();
        let open = OpenDelivery {
            keys: open.keys,
            replays: open.replays + 1,
            ..OpenDelivery::new(None, at(self.seconds))
        };
        self.window.replay(position, open.clone());
        self.ledger.insert(position, (open, event));
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Come { account, numbers } => {
                let some: Vec<_> = (0..3)
                    .filter(|n| numbers >> n & 1 == 1)
                    .map(|n| NUMBERS[n])
                    .collect();
                let account = if *account { "acme" } else { "zenith" };
                self.come(|n| numbered(n, account, &some));
            }
            Step::ComeLoose => self.come(loose),
            Step::Claim { at_most } => drop(self.claim(*at_most)),
            Step::Settle { which, verdict } if !self.in_flight.is_empty() => {
                let claim = self
                    .in_flight
                    .swap_remove(usize::from(*which) % self.in_flight.len());
                let verdict = match verdict {
                    Kind::Done => Verdict::Done,
                    Kind::Parked => parked(),
                    Kind::Retry => retry(self.seconds + 10),
                    Kind::Released => Verdict::Released,
                };
                self.settle(&claim, verdict);
            }
            Step::Settle { .. } => {}
            Step::Replay { which } => self.replay(*which),
            Step::Reset => self.window.reset(),
        }
    }
}

#[test]
fn a_small_window_hands_out_exactly_the_deliveries_that_may_be_attempted() {
    let mut runner = TestRunner::new(Config {
        cases: 4000,
        failure_persistence: None,
        ..Config::default()
    });
    // Most of them come before most is attempted: fewer than all that may wait for their next attempts.
    let steps = vec![vec(step(), 1..18), vec(step(), 1..18)];
    let run = |steps: Vec<Vec<Step>>| {
        let mut world = World::new(CAPACITY, 3);
        for step in steps.iter().flatten() {
            world.step(step);
        }
        // All that may be attempted comes, however much else waits.
        while world.claim(2) > 0 {}
        prop_assert_eq!(world.allowed(), []);
        world.seconds += 1000;
        while !world.ledger.is_empty() {
            prop_assert!(
                world.claim(2) + world.in_flight.len() > 0,
                "it stands still"
            );
            for claim in std::mem::take(&mut world.in_flight) {
                world.settle(&claim, Verdict::Done);
            }
        }
        Ok(())
    };
    runner.run(&steps, run).unwrap();
}

#[test]
fn a_backlog_mostly_of_one_key_is_read_less_than_twice() {
    let mut world = World::new(40, 30);
    for n in 0..2000 {
        world.window.is_live = false;
        world.come(|count| keyed(count, &format!("number {}", (n % 16).max(7))));
    }
    while world.claim(8) > 0 {
        for claim in std::mem::take(&mut world.in_flight) {
            world.settle(&claim, Verdict::Done);
        }
    }
    assert!(world.ledger.is_empty());
    assert!(world.read < 4000, "{} were read for 2000", world.read);
}
