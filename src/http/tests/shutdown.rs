//! How the server shuts down.

use super::*;

#[tokio::test]
async fn a_request_in_flight_is_answered_and_idle_connections_are_closed() {
    let server = TestServer::open();
    let mut idle = server.connect().await;
    idle.send(ringcentral_event("{}")).await;
    assert_eq!(idle.answer().await.status(), 200);
    let mut silent = server.connect().await;
    server.store.set(Behaviour::Stall);
    server.store.entered().await;
    let mut busy = server.connect().await;
    busy.send(ringcentral_event("{}")).await;
    server.store.entered().await;

    server.shutdown.cancel();
    assert!(idle.closed().await.is_empty());
    assert!(silent.closed().await.is_empty());
    assert!(TcpStream::connect(server.address).await.is_err());
    server.store.go_on.notify_one();
    let answer = busy.answer().await;
    assert_eq!(answer.status(), 200);
    assert!(answer.text().contains("connection: close\r\n"));
    assert_eq!(server.drain().await, Drained { complete: true });
}

#[tokio::test]
async fn a_request_that_comes_during_the_drain_is_answered_503() {
    let server = TestServer::open();
    let mut late = server.connect().await;
    let request = ringcentral_event("{}");
    let (begun, rest) = request.split_at(20);
    late.send(begun).await;
    // This request is served after the late connection was accepted.
    assert_eq!(server.ask(ringcentral_event("{}")).await.status(), 200);
    server.shutdown.cancel();
    while TcpStream::connect(server.address).await.is_ok() {}
    late.send(rest).await;
    assert_eq!(
        late.answer().await.text(),
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\
         date: -\r\n\r\n"
    );
    late.closed().await;
    assert_eq!(server.store.kept().len(), 1);
    assert_eq!(server.answered("ringcentral-phone-number", "draining"), 1.0);
    assert_eq!(server.drain().await, Drained { complete: true });
}

#[tokio::test]
async fn a_drain_that_exceeds_its_deadline_is_incomplete() {
    let [server, patient] =
        TestServer::short_and_long(|settings, timeout| settings.drain_timeout = timeout);
    let stall = async |server: &TestServer| {
        server.store.set(Behaviour::Stall);
        let mut stuck = server.connect().await;
        stuck.send(ringcentral_event("{}")).await;
        server.store.entered().await;
        stuck
    };
    let waiting = stall(&patient).await;
    let mut stuck = stall(&server).await;
    patient.shutdown.cancel();
    assert_eq!(server.drain().await, Drained { complete: false });
    assert!(waiting.is_waiting() && !patient.served.is_finished());
    assert!(stuck.closed().await.is_empty(), "cut off without an answer");
}
