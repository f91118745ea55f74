//! Providers that behave as their documentation says, behind a load balancer.
//!
//! Zoom signs its requests, waits 3 seconds for an answer, and repeats a request that was answered
//! with 500 or more, or not at all: three times, after 5, 20 and 60 minutes, which are a thousand
//! times shorter here. RingCentral promises no repetition, so there is none here.

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

/// The time that both providers wait for an answer.
pub(super) const PROVIDERS_WAIT: Duration = Duration::from_secs(3);

/// The times at which Zoom repeats a request.
const ZOOM_RETRIES: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_millis(1200),
    Duration::from_millis(3600),
];

/// The number of concurrent senders: half of them are Zoom's, half RingCentral's.
const SENDERS: u32 = 8;

/// The number of ordering keys of each RingCentral sender.
const KEYS_EACH: u32 = 2;

/// The number of accounts at Zoom. Each has two senders.
const ACCOUNTS: u32 = 2;

/// The number of phone numbers of each account.
const NUMBERS: u64 = 4;

/// The interval of a sender's new events, at which a machine with two processors keeps up.
const PACE: Duration = Duration::from_millis(25);

/// The time for which the balancer avoids a replica that did not answer.
const OUT: Duration = Duration::from_secs(1);

/// The ordering keys of an event: the numbers of an account whose bit is set, or the whole account;
/// or a key of RingCentral.
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

/// An event, as its provider knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) keys: Keys,
    /// The time of the first request.
    pub(super) sent_at: Instant,
    /// The time of the answer 200.
    pub(super) acknowledged_at: Option<Instant>,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    pub(super) replica: usize,
    pub(super) began_at: Instant,
    pub(super) took: Duration,
    /// The status; `None` without an answer in time.
    pub(super) status: Option<u16>,
}

/// The events that were sent, and the requests with their answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    /// The events by serial number.
    pub(super) events: BTreeMap<u64, Sent>,
    pub(super) exchanges: Vec<Exchange>,
}

impl Log {
    pub(super) fn acknowledged(&self) -> impl Iterator<Item = (u64, Sent)> {
        let events = self.events.iter().map(|(serial, sent)| (*serial, *sent));
        events.filter(|(_, sent)| sent.acknowledged_at.is_some())
    }

    /// The number of requests that began after `since` and were answered with `status`.
    pub(super) fn answered(&self, status: u16, since: Instant) -> usize {
        let such =
            |exchange: &&Exchange| exchange.began_at > since && exchange.status == Some(status);
        self.exchanges.iter().filter(such).count()
    }
}

/// Distributes requests in turn over the registered replicas. A replica that did not answer is
/// avoided for a while.
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
    /// Registers `replica` at `address`.
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

    /// Removes `replica`, as a balancer does when the replica is not ready.
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
        // If all replicas are avoided, one of them is used all the same.
        let replica = in_turn.clone().find(serves);
        let replica = replica.or_else(|| in_turn.clone().find(|replica| members[*replica].is_in));
        let replica = replica.unwrap_or(turn % members.len());
        (replica, members[replica].address)
    }

    fn leave_out(&self, replica: usize) {
        self.members.lock().unwrap()[replica].out_until = Instant::now() + OUT;
    }
}

/// The body of a caller-name change of the numbers of `account` whose bit is set.
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
    /// The source of serial numbers for all loads of one test.
    serials: Arc<AtomicU64>,
    /// The number of additional bytes of an event.
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

    /// The log so far.
    pub(super) fn log(&self) -> Log {
        self.shared.log.lock().unwrap().clone()
    }

    /// Ends the load after Zoom's last repetition.
    pub(super) fn stop(self) -> Log {
        self.shared.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.join().unwrap();
        }
        let mut log = self.shared.log.lock().unwrap();
        std::mem::take(&mut log)
    }
}

/// A sender, which waits for each answer before its next request.
struct Sender {
    number: u32,
    shared: Arc<Shared>,
    /// The requests that Zoom repeats: the time, the event, and the number of requests so far.
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

    /// Sends the event `serial`, after `tries` earlier requests.
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

    /// The ordering keys of the event `serial`. Zoom's events have one or two numbers, and now and
    /// then the whole account.
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

    /// `body` with an additional member of digits that can hardly be compressed.
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
