//! Limits on size, number and time, and their effect on an honest sender.

use super::*;

/// The head of a request whose body has not been sent.
fn head(headers: &str) -> String {
    format!(
        "POST {RINGCENTRAL} HTTP/1.1\r\nhost: hooks.example\r\n\
         verification-token: rc-token\r\n{headers}\r\n\r\n"
    )
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    let size = format!("{:x}\r\n", bytes.len());
    [size.as_bytes(), bytes, b"\r\n"].concat()
}

#[tokio::test]
async fn a_body_over_the_limit_is_answered_413_in_every_encoding() {
    let server = TestServer::with(|settings| settings.max_body = 1000);
    let at = |length| {
        post(
            RINGCENTRAL,
            &[("verification-token", "rc-token")],
            &vec![b'x'; length],
        )
    };
    assert_eq!(server.ask(at(1000)).await.status(), 200);
    assert_eq!(server.ask(at(1001)).await.status(), 413);
    // Far more than the socket buffers hold, so the sender is still writing when it is answered.
    assert_eq!(server.ask(at(6 << 20)).await.status(), 413);

    let mut peer = server.connect().await;
    peer.send(head("transfer-encoding: chunked")).await;
    peer.send(chunk(&[b'x'; 600])).await;
    peer.send(chunk(&[b'x'; 600])).await;
    peer.send("0\r\n\r\n").await;
    assert_eq!(peer.answer().await.status(), 413);
    assert_eq!(server.store.kept().len(), 1);
    assert_eq!(
        server.answered("ringcentral-phone-number", "too_large"),
        3.0
    );
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body() {
    let server = TestServer::with(|settings| settings.max_body = 1000);
    let mut peer = server.connect().await;
    peer.send(head("content-length: 2000\r\nexpect: 100-continue"))
        .await;
    assert_eq!(peer.answer().await.status(), 413);

    let mut peer = server.connect().await;
    peer.send(head("content-length: 2\r\nexpect: 100-continue"))
        .await;
    let mut go_ahead = [0; 25];
    timeout(HANG, peer.0.read_exact(&mut go_ahead))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&go_ahead, b"HTTP/1.1 100 Continue\r\n\r\n");
    peer.send("{}").await;
    assert_eq!(peer.answer().await.status(), 200);
}

#[tokio::test]
async fn a_chunked_body_is_reassembled() {
    let server = TestServer::open();
    let mut peer = server.connect().await;
    peer.send(head("transfer-encoding: chunked")).await;
    for piece in [&b"{\"uu"[..], b"id\":", b"\"7\"}"] {
        peer.send(chunk(piece)).await;
        tokio::task::yield_now().await;
    }
    peer.send("0\r\ntrailer: ignored\r\n\r\n").await;
    assert_eq!(peer.answer().await.status(), 200);
    assert_eq!(server.store.kept()[0].body, "{\"uuid\":\"7\"}");
}

#[tokio::test]
async fn a_slow_body_is_answered_503_after_its_timeout() {
    let [server, patient] =
        TestServer::short_and_long(|settings, timeout| settings.body_timeout = timeout);
    let send = async |server: &TestServer| {
        let mut peer = server.connect().await;
        peer.send(head("content-length: 10")).await;
        peer.send("{").await;
        peer
    };
    let waiting = send(&patient).await;
    until(|| patient.metric("hookswitch_in_flight") == 1.0).await;
    let mut peer = send(&server).await;
    assert_eq!(peer.answer().await.status(), 503);
    peer.closed().await;
    assert!(waiting.is_waiting());
    assert_eq!(
        server.answered("ringcentral-phone-number", "slow_body"),
        1.0
    );
}

#[tokio::test]
async fn a_sender_that_disconnects_leaves_nothing_behind() {
    let server = TestServer::open();
    let mut peer = server.connect().await;
    peer.send(head("content-length: 10")).await;
    peer.send("{").await;
    drop(peer);
    let mut peer = server.connect().await;
    peer.send(head("transfer-encoding: chunked")).await;
    peer.send("zz\r\n").await;
    peer.closed().await;
    until(|| server.metric("hookswitch_in_flight") == 0.0).await;
    until(|| server.metric("hookswitch_connections ") == 0.0).await;
    assert!(server.store.kept().is_empty());
}

#[tokio::test]
async fn a_half_closed_connection_is_still_answered() {
    let server = TestServer::open();
    let mut peer = server.connect().await;
    server.store.set(Behaviour::Stall);
    peer.send(ringcentral_event("{}")).await;
    peer.0.shutdown().await.unwrap();
    server.store.entered().await;
    server.store.set(Behaviour::Keep);
    // Another request is answered first, so the server has seen the end of the first connection.
    assert_eq!(server.ask(ringcentral_event("{}")).await.status(), 200);
    server.store.go_on.notify_one();
    assert_eq!(peer.answer().await.status(), 200);
}

#[tokio::test]
async fn a_silent_connection_is_closed_after_the_timeout_of_its_first_byte() {
    let [server, patient] =
        TestServer::short_and_long(|settings, timeout| settings.first_byte_timeout = timeout);
    let waiting = patient.connect().await;
    until(|| patient.metric("hookswitch_connections ") == 1.0).await;
    server.connect().await.closed().await;
    assert!(waiting.is_waiting());
    assert_eq!(server.metric("hookswitch_connections_refused_total"), 1.0);
}

#[tokio::test]
async fn a_connection_without_a_whole_head_is_closed_after_the_timeout_of_a_head() {
    let [server, patient] =
        TestServer::short_and_long(|settings, timeout| settings.head_timeout = timeout);
    // Half a head; half of the HTTP/2 preface; an HTTP/2 connection without a request.
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut waiting = Vec::new();
    let mut refused = 0.0;
    for sent in ["POST /zoom HTTP/1.1\r\nhost: d", "PRI * HT", preface] {
        waiting.push(patient.connect().await);
        waiting.last_mut().unwrap().send(sent).await;
        until(|| patient.metric("hookswitch_connections ") == refused + 1.0).await;
        let mut peer = server.connect().await;
        peer.send(sent).await;
        peer.closed().await;
        refused += 1.0;
        until(|| server.metric("hookswitch_connections_refused_total") == refused).await;
        assert_eq!(patient.metric("hookswitch_connections "), refused);
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_timeout_of_a_head() {
    let [server, patient] =
        TestServer::short_and_long(|settings, timeout| settings.head_timeout = timeout);
    let answered = async |server: &TestServer| {
        let mut peer = server.connect().await;
        peer.send(ringcentral_event("{}")).await;
        assert_eq!(peer.answer().await.status(), 200);
        peer
    };
    let waiting = answered(&patient).await;
    answered(&server).await.closed().await;
    assert!(waiting.is_waiting());
    assert_eq!(server.metric("hookswitch_connections_refused_total"), 0.0);
}

#[tokio::test]
async fn a_trickle_of_bytes_does_not_extend_a_timeout() {
    let server = TestServer::with(|settings| settings.head_timeout = SHORT);
    let mut peer = server.connect().await;
    peer.send("POST /zoom HTTP/1.1\r\n").await;
    let trickle = async {
        let mut number = 0;
        while peer
            .0
            .write_all(format!("x-{number}: y\r\n").as_bytes())
            .await
            .is_ok()
        {
            number += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(HANG, trickle)
        .await
        .expect("the connection is never closed");
}

#[tokio::test]
async fn an_endless_head_is_cut_off() {
    let server = TestServer::open();
    let mut peer = server.connect().await;
    peer.send(format!("POST {ZOOM} HTTP/1.1\r\n")).await;
    let line = format!("x-filler: {}\r\n", "y".repeat(8000));
    for _ in 0..40 {
        if peer.0.write_all(line.as_bytes()).await.is_err() {
            break;
        }
    }
    peer.closed().await;
}

#[tokio::test]
async fn a_thousand_silent_connections_do_not_stop_an_honest_sender() {
    let server = TestServer::with(|settings| settings.max_connections = 100);
    let mut silent = Vec::new();
    for number in 0..1200 {
        let mut peer = server.connect().await;
        match number % 4 {
            0 => {}
            1 => peer.send("POST /").await,
            2 => peer.send(head("content-length: 10")).await,
            _ => peer.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await,
        }
        silent.push(peer);
    }
    assert_eq!(server.ask(ringcentral_event("{}")).await.status(), 200);
    assert!(server.metric("hookswitch_connections ") <= 100.0);
    drop(silent);
}

#[tokio::test]
async fn a_connection_that_is_answering_is_not_evicted() {
    let server = TestServer::with(|settings| settings.max_connections = 4);
    server.store.set(Behaviour::Stall);
    let mut answering = server.connect().await;
    answering.send(ringcentral_event("{}")).await;
    server.store.entered().await;
    server.store.set(Behaviour::Keep);
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(server.connect().await);
    }
    assert_eq!(server.ask(ringcentral_event("{}")).await.status(), 200);
    server.store.go_on.notify_one();
    assert_eq!(answering.answer().await.status(), 200);
}

#[tokio::test]
async fn slow_bodies_are_evicted_when_requests_or_memory_run_short() {
    let server = TestServer::with(|settings| {
        settings.max_in_flight = 8;
        settings.body_memory = 4000;
    });
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut peer = server.connect().await;
        peer.send(head("content-length: 1000")).await;
        peer.send([b'x'; 999]).await;
        slow.push(peer);
    }
    for _ in 0..10 {
        assert_eq!(
            server
                .ask(ringcentral_event("{\"uuid\":\"1\"}"))
                .await
                .status(),
            200
        );
    }
    assert_eq!(server.store.kept().len(), 10);
    assert_eq!(slow[0].answer().await.status(), 503);
}

#[tokio::test]
async fn a_slow_body_is_evicted_however_many_requests_are_being_answered() {
    const ANSWERING: usize = 100;
    let server = TestServer::with(|settings| settings.max_in_flight = ANSWERING + 1);
    server.store.set(Behaviour::Stall);
    let mut answering = Vec::new();
    for _ in 0..ANSWERING {
        let mut peer = server.connect().await;
        peer.send(ringcentral_event("{}")).await;
        server.store.entered().await;
        answering.push(peer);
    }
    server.store.set(Behaviour::Keep);
    let mut slow = server.connect().await;
    slow.send(head("content-length: 10")).await;
    until(|| server.metric("hookswitch_in_flight") == 101.0).await;
    assert_eq!(server.ask(ringcentral_event("{}")).await.status(), 200);
    assert_eq!(slow.answer().await.status(), 503);
}

#[tokio::test]
async fn one_request_too_many_is_answered_503() {
    let server = TestServer::with(|settings| settings.max_in_flight = 1);
    server.store.set(Behaviour::Stall);
    let mut first = server.connect().await;
    first.send(ringcentral_event("{}")).await;
    server.store.entered().await;
    assert_eq!(server.metric("hookswitch_in_flight"), 1.0);
    assert_eq!(server.ask(ringcentral_event("{}")).await.status(), 503);
    server.store.go_on.notify_one();
    assert_eq!(first.answer().await.status(), 200);
    assert_eq!(
        server.answered("ringcentral-phone-number", "overloaded"),
        1.0
    );
}

#[tokio::test]
async fn a_body_without_memory_left_is_answered_503() {
    let server = TestServer::with(|settings| {
        settings.max_body = 100;
        settings.body_memory = 100;
    });
    let request = post(
        RINGCENTRAL,
        &[("verification-token", "rc-token")],
        &[b'x'; 60],
    );
    server.store.set(Behaviour::Stall);
    let mut answering = server.connect().await;
    answering.send(&request).await;
    server.store.entered().await;
    assert_eq!(server.ask(&request).await.status(), 503);
    server.store.go_on.notify_one();
    assert_eq!(answering.answer().await.status(), 200);
    server.store.set(Behaviour::Keep);
    assert_eq!(server.ask(&request).await.status(), 200);
}

#[tokio::test]
async fn a_thousand_copies_at_once_are_all_answered_200() {
    let server = TestServer::open();
    let mut peers = Vec::new();
    for _ in 0..1000 {
        peers.push(server.connect().await);
    }
    for peer in &mut peers {
        peer.send(zoom_event("{\"event\":\"once\"}", noon())).await;
    }
    for peer in &mut peers {
        assert_eq!(peer.answer().await.status(), 200);
    }
    let kept = server.store.kept();
    assert_eq!(kept.len(), 1000);
    assert!(kept.iter().all(|copy| copy.dedupe == kept[0].dedupe));
}
