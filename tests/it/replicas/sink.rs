//! The sink that every replica delivers to. The sink records each delivery with its replica and time,
//! refuses some of them once, and can withhold the answers to a replica.

use std::{
    collections::BTreeSet,
    io::{BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::read_request;

/// The time that the sink takes for an event, so that a delivery is always in progress.
const TAKES: Duration = Duration::from_millis(5);

/// One event of this many is refused at its first attempt, so that a retry is always pending and
/// other deliveries wait for it.
const ONE_REFUSED_OF: u64 = 10;

/// One attempt at a delivery that was not refused.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    /// The event's serial number in the load.
    pub(super) serial: u64,
    /// The event's id.
    pub(super) id: String,
    /// The replica that made the attempt.
    pub(super) replica: usize,
    /// When the sink answered.
    pub(super) answered_at: Option<Instant>,
}

/// The server that the handlers of all replicas deliver to.
#[derive(Clone, Default)]
pub(super) struct Sink(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// In order of arrival.
    arrivals: Vec<Arrival>,
    /// The serial numbers of refused events.
    refused: BTreeSet<u64>,
    /// The replica whose answers are withheld.
    ignored: Option<usize>,
}

impl Sink {
    /// Listens for `replica` at `ip`, and returns the address.
    pub(super) fn open(&self, replica: usize, ip: IpAddr) -> SocketAddr {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let sink = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let sink = sink.clone();
                thread::spawn(move || sink.serve(replica, stream));
            }
        });
        address
    }

    /// Withholds the answers to `replica` from now on.
    pub(super) fn ignore(&self, replica: usize) {
        self.0.state.lock().unwrap().ignored = Some(replica);
    }

    /// Answers every replica again, pending deliveries included.
    pub(super) fn attend(&self) {
        self.0.state.lock().unwrap().ignored = None;
        self.0.changed.notify_all();
    }

    /// The number of attempts of `replica` without an answer.
    pub(super) fn in_flight(&self, replica: usize) -> usize {
        let waits =
            |arrival: &&Arrival| arrival.replica == replica && arrival.answered_at.is_none();
        self.0
            .state
            .lock()
            .unwrap()
            .arrivals
            .iter()
            .filter(waits)
            .count()
    }

    /// All attempts, in order of arrival.
    pub(super) fn arrivals(&self) -> Vec<Arrival> {
        self.0.state.lock().unwrap().arrivals.clone()
    }

    fn serve(&self, replica: usize, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(body) = read_request(&mut reader) {
            let event: Value = serde_json::from_str(&body).unwrap();
            let place = self.take(replica, &event);
            thread::sleep(TAKES); // The work that a real one would do.
            let status = match place {
                Some(place) => self.until_answered(replica, place),
                None => "503 later",
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    /// Records an attempt and returns its index; `None` when it is refused.
    fn take(&self, replica: usize, event: &Value) -> Option<usize> {
        let serial = serial(&event["data"]);
        let mut state = self.0.state.lock().unwrap();
        if serial.is_multiple_of(ONE_REFUSED_OF) && state.refused.insert(serial) {
            return None;
        }
        state.arrivals.push(Arrival {
            serial,
            id: event["id"].as_str().unwrap().to_owned(),
            replica,
            answered_at: None,
        });
        Some(state.arrivals.len() - 1)
    }

    /// Waits until the attempt may be answered; returns the answer.
    fn until_answered(&self, replica: usize, place: usize) -> &'static str {
        let state = self.0.state.lock().unwrap();
        let ignored = |state: &mut State| state.ignored == Some(replica);
        let mut state = self.0.changed.wait_while(state, ignored).unwrap();
        state.arrivals[place].answered_at = Some(Instant::now());
        "200 taken"
    }
}

/// The serial number of an event.
fn serial(body: &Value) -> u64 {
    let name = &body["payload"]["object"]["cnam"];
    let name = name.as_str().or(body["uuid"].as_str()).unwrap();
    name.strip_prefix("serial ").unwrap().parse().unwrap()
}
