//! Shutdown: requests in flight finish, and no acknowledged event is lost.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    sync::{Arc, atomic::AtomicU64},
};

use crate::{
    crash::{Load, archived_serials},
    harness::{
        ARCHIVE, ENDPOINTS, Engine, PATIENCE, ZOOM_SECRET, cnam, eventually, on_every_engine,
        request, unix_now, zoom_headers,
    },
};

on_every_engine![
    a_request_in_flight_is_finished_before_the_service_stops,
    a_shutdown_under_load_loses_nothing,
];

fn a_request_in_flight_is_finished_before_the_service_stops(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let mut service = home.start();
    let body = cnam(1, 1);
    let mut head = format!(
        "POST /zoom/number-management HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in zoom_headers(body.as_bytes(), ZOOM_SECRET, unix_now()) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    stream.write_all(&body.as_bytes()[..20]).unwrap();
    eventually("the request is in flight", || {
        service.metric("hookswitch_in_flight") == 1.0
    });

    service.signal("TERM");
    eventually("no new connection is accepted", || {
        request(service.address, "GET", "/", &[], b"").is_err()
    });
    stream.write_all(&body.as_bytes()[20..]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(service.wait(), Some(0), "{}", service.log());

    let _again = home.start();
    eventually("the event is archived", || {
        archived_serials(&home) == BTreeSet::from([1])
    });
}

fn a_shutdown_under_load_loses_nothing(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let serials = Arc::new(AtomicU64::new(0));
    let mut service = home.start();
    let load = Load::start(&service, &serials);
    eventually("the load is under way", || load.acknowledged().len() > 200);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0), "{}", service.log());
    let acknowledged = load.stop();
    let _again = home.start();
    eventually("everything acknowledged is archived", || {
        archived_serials(&home).is_superset(&acknowledged)
    });
}
