//! What only the task of a connection can get wrong.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::coop,
};

use super::{Desk, Driver, Mailbox, Message, Upstream};
use crate::{
    core::id::ConnectionId,
    proxy::providers::tests::{Taxiway, rules},
    transport::Stream,
};

/// The task of a new connection, and its client.
async fn connection(taxiway: &Taxiway) -> (Driver, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let client = client.await.unwrap();
    let (server, peer) = listener.accept().await.unwrap();
    let (shared, id) = (Arc::new(taxiway.shared.clone()), ConnectionId(4711));
    let driver = Driver::new(shared, id, peer, Stream::from(server), None);
    (driver, client)
}

/// Whether a client that says nothing is given up in time, if the task has used up its budget in one
/// of its turns at the processor, as busy sockets do.
async fn ends_in_time(tired: Option<usize>) -> bool {
    let taxiway = Taxiway::alone();
    let mut rules = rules();
    rules.mux.handshake_timeout = Duration::from_millis(300);
    taxiway.shared.rules.store(Arc::new(rules));
    let (mut driver, _client) = connection(&taxiway).await;
    let mut polls = 0;
    let task = tokio::spawn(std::future::poll_fn(move |task| {
        if tired == Some(polls) {
            while coop::has_budget_remaining() {
                let _spent = pin!(coop::consume_budget()).poll(task);
            }
        }
        polls += 1;
        driver.poll(task)
    }));
    tokio::time::timeout(Duration::from_secs(10), task)
        .await
        .is_ok()
}

#[tokio::test]
async fn a_timer_that_was_set_without_budget_is_met_all_the_same() {
    assert!(ends_in_time(None).await);
    for tired in 0..2 {
        assert!(ends_in_time(Some(tired)).await, "turn {tired}");
    }
}

/// Whoever replaces the rules tells so at any moment of a connection's turn at the processor.
#[tokio::test]
async fn rules_that_come_in_the_middle_of_a_turn_are_followed() {
    let taxiway = Taxiway::alone();
    let (mut driver, _client) = connection(&taxiway).await;
    let new = Arc::new(rules());
    driver.shared.rules.store(new.clone());
    driver.shared.hub.publish(&Message::Rules);
    std::future::poll_fn(|task| {
        driver.poll_mailbox(Instant::now(), task);
        Poll::Ready(())
    })
    .await;
    assert!(driver.mailbox.is_quiet(), "the news is read");
    assert!(Arc::ptr_eq(&driver.rules, &new));
}

/// Thousands of connections that do nothing each take this (docs/performance.md). What is needed for
/// a while only stands behind a pointer, or is lent by the thread.
#[tokio::test]
async fn an_idle_connection_takes_no_more_than_it_did() {
    let (driver, _client) = connection(&Taxiway::alone()).await;
    assert!(size_of::<Driver>() <= 1184, "{}", size_of::<Driver>());
    assert!(size_of::<Upstream>() <= 128, "{}", size_of::<Upstream>());
    assert!(size_of::<Mailbox>() <= 88, "{}", size_of::<Mailbox>());
    assert!(size_of::<Desk>() <= 88, "{}", size_of::<Desk>());
    let task = size_of_val(&driver.run());
    assert!(task <= size_of::<Driver>() + 16, "its state twice? {task}");
}
