//! Providers, as their contracts describe them, behind a load balancer.
//!
//! Zoom signs, waits 3 seconds, and sends again what was answered with 500 and up or not at all:
//! three times, after 5, 20 and 60 minutes, which are a thousand times shorter here. RingCentral
//! promises no second try at all, so here there is none.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::harness::{
    RINGCENTRAL_TOKEN, ZOOM_SECRET, as_pairs, phone_number, request_within, unix_now, zoom_headers,
};

/// How long both providers wait for an answer.
pub(super) const PROVIDERS_WAIT: Duration = Duration::from_secs(3);

/// When Zoom tries again.
const ZOOM_RETRIES: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_millis(1200),
    Duration::from_millis(3600),
];

/// Senders at once, half of them Zoom's and half RingCentral's.
const SENDERS: u32 = 8;

/// How many keys each of RingCentral's has to itself.
const KEYS_EACH: u32 = 2;

/// Accounts of Zoom's customers: each has two senders.
const ACCOUNTS: u32 = 2;

/// How many numbers each has.
const NUMBERS: u64 = 4;

/// From one new event of a sender to its next, so that a machine with two processors keeps up.
const PACE: Duration = Duration::from_millis(25);

/// How long the balancer keeps away from a replica that did not answer.
const OUT: Duration = Duration::from_secs(1);

/// What an event keeps its order by: numbers of an account, by their bits, or all of it; or a key of
/// RingCentral's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    Account { account: u32, numbers: u64 },
    Key(u32),
}

impl Keys {
    pub(super) fn meet(self, other: Self) -> bool {
        match (self, other) {
            (
                Self::Account { account, numbers },
                Self::Account {
                    account: theirs,
                    numbers: others,
                },
            ) => account == theirs && (numbers & others != 0 || numbers == 0 || others == 0),
            _ => self == other,
        }
    }
}

/// One event, as its provider knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) keys: Keys,
    /// When it was sent for the first time.
    pub(super) sent_at: Instant,
    /// When it was answered with 200.
    pub(super) acknowledged_at: Option<Instant>,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    pub(super) replica: usize,
    pub(super) began_at: Instant,
    pub(super) took: Duration,
    /// `None` when no answer came in time.
    pub(super) status: Option<u16>,
}

/// What has been sent, and what came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    /// By serial number.
    pub(super) events: BTreeMap<u64, Sent>,
    pub(super) exchanges: Vec<Exchange>,
}

impl Log {
    pub(super) fn acknowledged(&self) -> impl Iterator<Item = (u64, Sent)> {
        let events = self.events.iter().map(|(serial, sent)| (*serial, *sent));
        events.filter(|(_, sent)| sent.acknowledged_at.is_some())
    }

    /// How many requests that began after `since` were answered with `status`.
    pub(super) fn answered(&self, status: u16, since: Instant) -> usize {
        let such =
            |exchange: &&Exchange| exchange.began_at > since && exchange.status == Some(status);
        self.exchanges.iter().filter(such).count()
    }
}

/// Spreads requests over the replicas that are in, one after the other. One that does not answer is
/// left out for a while.
#[derive(Default)]
pub(super) struct Balancer {
    members: Mutex<Vec<Member>>,
    turn: AtomicUsize,
}

struct Member {
    address: SocketAddr,
    is_in: bool,
    out_until: Instant,
}

impl Balancer {
    /// Sends to `replica` from now on, at `address`.
    pub(super) fn put_in(&self, replica: usize, address: SocketAddr) {
        let member = Member {
            address,
            is_in: true,
            out_until: Instant::now(),
        };
        let mut members = self.members.lock().unwrap();
        if replica < members.len() {
            members[replica] = member;
        } else {
            members.push(member);
        }
    }

    /// Sends nothing to `replica` any more, as a balancer does that has seen that it is not ready.
    pub(super) fn take_out(&self, replica: usize) {
        self.members.lock().unwrap()[replica].is_in = false;
    }

    fn pick(&self) -> (usize, SocketAddr) {
        let members = self.members.lock().unwrap();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..members.len()).map(|step| (turn + step) % members.len());
        let serves = |replica: &usize| {
            let member = &members[*replica];
            member.is_in && member.out_until <= Instant::now()
        };
        // Where all are out, one has to be tried all the same.
        let replica = in_turn.clone().find(serves);
        let replica = replica.or_else(|| in_turn.clone().find(|replica| members[*replica].is_in));
        let replica = replica.unwrap_or(turn % members.len());
        (replica, members[replica].address)
    }

    fn leave_out(&self, replica: usize) {
        self.members.lock().unwrap()[replica].out_until = Instant::now() + OUT;
    }
}

/// The body of a caller-name change of those numbers of `account` whose bit is set.
fn names(account: u32, numbers: u64, name: &str) -> String {
    let set = (0..NUMBERS).filter(|number| numbers & (1 << number) != 0);
    let numbers: Vec<_> = set.map(|number| format!("+1202555010{number}")).collect();
    serde_json::json!({
        "event": "number_management.peering_number_cnam_updated",
        "event_ts": 1_700_000_000_000_u64,
        "payload": {
            "account_id": format!("account-{account}"),
            "object": { "carrier_code": 17, "phone_numbers": numbers, "cnam": name },
        },
    })
    .to_string()
}

/// Providers that send until they are stopped.
pub(super) struct Load {
    shared: Arc<Shared>,
    senders: Vec<JoinHandle<()>>,
}

struct Shared {
    balancer: Arc<Balancer>,
    /// Hands out serial numbers, over all loads of one test.
    serials: Arc<AtomicU64>,
    /// How many bytes an event has besides what it needs.
    padding: usize,
    log: Mutex<Log>,
    stop: AtomicBool,
}

impl Load {
    pub(super) fn start(
        balancer: &Arc<Balancer>,
        serials: &Arc<AtomicU64>,
        padding: usize,
    ) -> Self {
        let shared = Arc::new(Shared {
            balancer: balancer.clone(),
            serials: serials.clone(),
            padding,
            log: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let sender = |number| {
            let sender = Sender {
                number,
                shared: shared.clone(),
                retries: VecDeque::new(),
            };
            thread::spawn(|| sender.run())
        };
        let senders = (0..SENDERS).map(sender).collect();
        Self { shared, senders }
    }

    /// What there is so far.
    pub(super) fn log(&self) -> Log {
        self.shared.log.lock().unwrap().clone()
    }

    /// Ends it once Zoom has made the last of its retries.
    pub(super) fn stop(self) -> Log {
        self.shared.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.join().unwrap();
        }
        let mut log = self.shared.log.lock().unwrap();
        std::mem::take(&mut log)
    }
}

/// One sender: it waits for each answer before it sends again.
struct Sender {
    number: u32,
    shared: Arc<Shared>,
    /// What Zoom sends again: when, which event, and how often it has been sent by then.
    retries: VecDeque<(Instant, u64, usize)>,
}

impl Sender {
    fn run(mut self) {
        let mut turn = 0;
        loop {
            let stopping = self.shared.stop.load(Ordering::Relaxed);
            let due = self
                .retries
                .iter()
                .position(|retry| retry.0 <= Instant::now());
            if let Some((_, serial, tries)) = due.and_then(|place| self.retries.remove(place)) {
                self.send(serial, tries);
            } else if !stopping {
                let serial = self.shared.serials.fetch_add(1, Ordering::Relaxed);
                turn += 1;
                let sent = Sent {
                    keys: self.keys(serial, turn),
                    sent_at: Instant::now(),
                    acknowledged_at: None,
                };
                self.shared.log.lock().unwrap().events.insert(serial, sent);
                self.send(serial, 0);
            } else if self.retries.is_empty() {
                return;
            }
            thread::sleep(PACE); // The pace of the load itself.
        }
    }

    /// Sends the event `serial`, which has been sent `tries` times before.
    fn send(&mut self, serial: u64, tries: usize) {
        let keys = self.shared.log.lock().unwrap().events[&serial].keys;
        let (replica, address) = self.shared.balancer.pick();
        let began_at = Instant::now();
        let answer = self.post(address, keys, serial);
        let took = began_at.elapsed();
        let status = answer.ok().filter(|_| took < PROVIDERS_WAIT);
        if status.is_none() {
            self.shared.balancer.leave_out(replica);
        }
        let mut log = self.shared.log.lock().unwrap();
        log.exchanges.push(Exchange {
            replica,
            began_at,
            took,
            status,
        });
        if status == Some(200) {
            let sent = log.events.get_mut(&serial).unwrap();
            sent.acknowledged_at.get_or_insert_with(Instant::now);
        } else if self.is_zoom()
            && status.is_none_or(|status| status >= 500)
            && let Some(pause) = ZOOM_RETRIES.get(tries)
        {
            let due = Instant::now() + *pause;
            self.retries.push_back((due, serial, tries + 1));
        }
    }

    fn is_zoom(&self) -> bool {
        self.number.is_multiple_of(2)
    }

    /// Those of the event `serial`: of Zoom's one or two numbers, and now and then the whole account.
    fn keys(&self, serial: u64, turn: u32) -> Keys {
        if !self.is_zoom() {
            return Keys::Key(self.number + SENDERS * (turn % KEYS_EACH));
        }
        let bit = |number: u64| 1 << (number % NUMBERS);
        Keys::Account {
            account: self.number / 2 % ACCOUNTS,
            numbers: match turn % 16 {
                0 => 0,
                _ => bit(serial) | bit(serial / NUMBERS),
            },
        }
    }

    fn post(&self, to: SocketAddr, keys: Keys, serial: u64) -> io::Result<u16> {
        let name = format!("serial {serial}");
        let (path, headers, body) = match keys {
            Keys::Account { account, numbers } => {
                let body = self.padded(serial, &names(account, numbers, &name));
                let mut headers = zoom_headers(body.as_bytes(), ZOOM_SECRET, unix_now());
                headers.push(("x-zm-request-id".to_owned(), format!("request_{serial}")));
                ("/zoom/number-management", headers, body)
            }
            Keys::Key(key) => {
                let token = (
                    "verification-token".to_owned(),
                    RINGCENTRAL_TOKEN.to_owned(),
                );
                let body = self.padded(serial, &phone_number(&name, &key.to_string()));
                ("/ringcentral/phone-number", vec![token], body)
            }
        };
        let answer = request_within(
            PROVIDERS_WAIT,
            to,
            "POST",
            path,
            &as_pairs(&headers),
            body.as_bytes(),
        )?;
        Ok(answer.status)
    }

    /// `body` with a member of digits that no compression makes much smaller.
    fn padded(&self, serial: u64, body: &str) -> String {
        if self.shared.padding == 0 {
            return body.to_owned();
        }
        let mut dice = serial + 1;
        let digits: String = (0..self.shared.padding / 16)
            .map(|_| {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                format!("{dice:016x}")
            })
            .collect();
        body.replacen('{', &format!("{{\"padding\":\"{digits}\","), 1)
    }
}
