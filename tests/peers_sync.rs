//! Two managers tell each other of their connections and orders.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use memlb_tests::{
    command::output,
    pair::{Idle, Manager, Pair, PairOptions, Turnover},
    root_test,
    wait::wait_until,
};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(20);

fn pair() -> Pair {
    let options = PairOptions {
        peers: true,
        ..PairOptions::default()
    };
    let pair = Pair::start(&options).unwrap();
    pair.wait_until_active(0, SOON).unwrap();
    pair.wait_until_complete(SOON).unwrap();
    pair
}

/// The manager's open connections.
fn connections(manager: &Manager) -> usize {
    let printed = output(manager.memlb("flows").arg("--json")).unwrap();
    let flows: serde_json::Value = serde_json::from_str(&printed).unwrap();
    flows["total"].as_u64().unwrap() as usize
}

fn intake(manager: &Manager, outcome: &str) -> u64 {
    manager.peer("intake").unwrap()[outcome]
        .as_u64()
        .unwrap_or(0)
}

#[root_test]
fn a_connection_is_on_the_other_manager_until_it_ends() {
    let pair = pair();
    let [active, other] = &pair.managers[..] else {
        panic!("two managers");
    };
    let idle = Idle::open(&pair.network.client, 50).unwrap();
    wait_until(SOON, "50 connections on the other manager", || {
        connections(other) == 50
    })
    .unwrap();
    assert!(intake(other, "inserted") >= 50);
    let peer = |name| active.peer(name).unwrap();
    println!(
        "half of the frames within {} µs, 99 % within {} µs",
        peer("lag_p50_us"),
        peer("lag_p99_us")
    );
    drop(idle);
    wait_until(SOON, "none on the other manager", || {
        connections(other) == 0
    })
    .unwrap();
    assert!(intake(other, "removed") >= 50);
}

#[root_test]
fn orders_of_one_manager_are_in_force_on_the_other() {
    let pair = pair();
    let [one, other] = &pair.managers[..] else {
        panic!("two managers");
    };
    let state = |manager: &Manager| {
        let backend = manager.backend("worker1").unwrap();
        backend["state"].as_str().unwrap().to_owned()
    };
    output(one.memlb("drain").arg("worker1")).unwrap();
    wait_until(SOON, "the drain on the other", || {
        state(other) == "draining"
    })
    .unwrap();
    output(other.memlb("undrain").arg("worker1")).unwrap();
    wait_until(SOON, "its end on the one", || state(one) == "up").unwrap();
}

#[root_test]
fn a_stopped_receiver_costs_bounded_memory_and_then_knows_all() {
    let mut pair = pair();
    let load = Turnover::start(&pair.network.client, 300).unwrap();
    thread::sleep(Duration::from_secs(2));
    let before = pair.managers[0].resident_kb().unwrap();
    let resyncs = pair.managers[0].peer("resyncs").unwrap().as_u64().unwrap();
    let receiver = pair.managers[1].controller.as_mut().unwrap();
    receiver.signal(Signal::SIGSTOP).unwrap();
    let stopped = Instant::now();
    pair.managers[0]
        .wait_for_status(SOON, "an incomplete peer", |status| {
            status["peers"][0]["complete"] == false
        })
        .unwrap();
    thread::sleep(Duration::from_secs(10).saturating_sub(stopped.elapsed()));
    let grown = pair.managers[0]
        .resident_kb()
        .unwrap()
        .saturating_sub(before);
    println!("{grown} KiB more");
    assert!(grown < 16 * 1024, "{grown} KiB more");
    let receiver = pair.managers[1].controller.as_mut().unwrap();
    receiver.signal(Signal::SIGCONT).unwrap();
    pair.wait_until_complete(SOON).unwrap();
    let after = pair.managers[0].peer("resyncs").unwrap().as_u64().unwrap();
    assert!(after > resyncs);
    // What has ended meanwhile is forgotten three refreshes later.
    wait_until(SOON, "all connections on the other manager", || {
        connections(&pair.managers[1]) >= connections(&pair.managers[0])
    })
    .unwrap();
    load.finish().unwrap().expect_no_failure();
}

#[root_test]
fn a_strangers_bytes_change_nothing_and_are_counted() {
    let pair = pair();
    let [one, other] = &pair.managers[..] else {
        panic!("two managers");
    };
    let address = other.peer_address();
    let send = |bytes: &'static [u8]| {
        pair.network.managers[0].enter(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(bytes).unwrap();
        })
    };
    send(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // The beginning of a hello.
    send(b"memlbp1\n\x00\x90").unwrap();
    let refused = |reason: &str| {
        let refused = other.peer("refused_frames").unwrap();
        refused[reason].as_u64().unwrap_or(0)
    };
    wait_until(SOON, "two refusals", || {
        refused("not_hello") == 1 && refused("cut") == 1
    })
    .unwrap();
    assert_eq!(one.peer("state").unwrap(), "connected");
    assert_eq!(other.peer("received_complete").unwrap(), true);
}
