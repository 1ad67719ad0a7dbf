//! Lost, repeated, late and forged heartbeats.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use memlb_tests::{
    Cluster, ClusterOptions, Namespace, Process, datagram,
    datagram::{Sender, heartbeat},
    eventually, root_test,
    transfer::random_bytes,
};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(5);

#[root_test]
fn lost_repeated_and_late_heartbeats_mark_no_worker_as_down() {
    let mut cluster = Cluster::with(|it| it.agents = false);
    let mut relays = Vec::new();
    for index in [0, 1] {
        let worker = &cluster.topology.workers[index];
        let relay = Relay::start(worker, cluster.heartbeat_address(), index as u64);
        let name = format!("agent {index}");
        let log = cluster.paths.directory.join(&name).with_extension("log");
        let mut command = cluster.agent_command(index, relay.address);
        cluster.agents[index] = Some(Process::start(&name, &mut command, &log).unwrap());
        relays.push(relay);
    }
    for worker in ["worker1", "worker2"] {
        cluster.wait_for_state(worker, "up", SOON).unwrap();
    }
    cluster.wait_for_page("Worker1", SOON).unwrap();

    let begun = Instant::now();
    let probe = cluster.probe(Duration::from_millis(20)).unwrap();
    let enough = |status: &serde_json::Value| {
        let refused = &status["heartbeats"]["refused"];
        [
            "duplicate",
            "reordered",
            "not_json",
            "oversized",
            "other_version",
        ]
        .iter()
        .all(|reason| refused[*reason].as_u64().is_some_and(|count| count >= 5))
            && begun.elapsed() > SOON
    };
    cluster.assert_status(4 * SOON, "enough to have gone wrong", enough);
    let report = probe.stop().unwrap();
    assert_eq!(report.failures().count(), 0);
    assert_eq!(report.runs().len(), 1, "{:?}", report.runs());
    for alarm in ["worker_down", "all_workers_down", "agent_restarted"] {
        assert!(cluster.events_of(alarm).unwrap().is_empty(), "{alarm}");
    }
    // Memory is followed nevertheless.
    cluster.memory[1].set_available_kb(650 * 1024).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
}

#[root_test]
fn only_counts_datagrams_of_unknown_senders() {
    let cluster = Cluster::start_serving(&ClusterOptions::default()).unwrap();
    let stranger = Sender::open(&cluster.topology.client, cluster.heartbeat_address()).unwrap();
    let good = heartbeat("worker2", 1, 1, 600 * 1024);
    let forged: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("not_json", random_bytes(1, 200)),
        ("not_json", good.as_bytes()[..good.len() - 1].to_vec()),
        ("oversized", vec![b' '; 1400]),
        ("no_version", b"{}".to_vec()),
        (
            "other_version",
            good.replace("\"memlb\":1", "\"memlb\":2").into(),
        ),
        ("malformed", good.replace("\"seq\":1", "\"seq\":-1").into()),
        ("bad_boot", good.replace("0000000000000001", "xyz").into()),
        ("empty_worker_name", good.replace("worker2", "").into()),
        (
            "overlong_worker_name",
            good.replace("worker2", &"w".repeat(65)).into(),
        ),
        (
            "bad_worker_name",
            good.replace("worker2", "wor\\nker2").into(),
        ),
        ("unknown_worker", good.replace("worker2", "worker3").into()),
        (
            "available_exceeds_total",
            heartbeat("worker2", 1, 1, 701 * 1024).into(),
        ),
        ("zero_total_memory", good.replace("734003200", "0").into()),
        ("absurd_interval", good.replace(":100", ":0").into()),
        ("legacy_off", b"worker1_memory.json".to_vec()),
    ];
    for (_, datagram) in &forged {
        stranger.send(datagram).unwrap();
    }
    let mut expected = std::collections::BTreeMap::new();
    for (reason, _) in &forged {
        *expected.entry(*reason).or_insert(0) += 1;
    }
    cluster.assert_status(SOON, "every reason to be counted", |status| {
        let refused = &status["heartbeats"]["refused"];
        expected
            .iter()
            .all(|(reason, count)| refused[*reason] == *count)
    });
    assert_eq!(cluster.page().unwrap(), "Worker1");
    let events = cluster
        .wait_for_events("heartbeat_refused", expected.len())
        .unwrap();
    for (reason, _) in expected {
        let of_this_reason = events.iter().filter(|event| event["reason"] == reason);
        assert_eq!(of_this_reason.count(), 1, "{reason}");
    }
}

#[root_test]
fn accepts_heartbeats_during_a_flood_of_garbage() {
    let cluster = Cluster::start_serving(&ClusterOptions::default()).unwrap();
    let stranger = Sender::open(&cluster.topology.client, cluster.heartbeat_address()).unwrap();
    let garbage = random_bytes(1, 300);
    let begun = Instant::now();
    let mut sent = 0;
    // More than twice as long as it takes to be counted as down.
    while begun.elapsed() < Duration::from_millis(3500) {
        for _ in 0..100 {
            stranger.send(&garbage).unwrap();
            sent += 1;
        }
        thread::sleep(Duration::from_millis(2));
    }
    println!("{sent} datagrams in {:?}", begun.elapsed());
    assert!(cluster.events_of("worker_down").unwrap().is_empty());
    let status = cluster.status().unwrap();
    assert_eq!(status["services"][0]["selected"], "worker1");
    // The event log tells of it twice: that it is garbage, and that no more of it is looked at.
    let events = cluster.wait_for_events("heartbeat_refused", 2).unwrap();
    let reasons: Vec<&str> = events
        .iter()
        .filter_map(|event| event["reason"].as_str())
        .collect();
    assert_eq!(reasons, ["not_json", "rate_limited"]);
}

#[root_test]
fn a_pause_of_the_manager_marks_no_worker_as_down() {
    let mut cluster =
        Cluster::with(|it| it.manager_arguments = vec!["--down-after".into(), "500ms".into()]);
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let manager = cluster.manager.as_mut().unwrap();
    manager.signal(Signal::SIGSTOP).unwrap();
    let stopped = Instant::now();
    eventually(SOON, "the pause to be long", || {
        stopped.elapsed() > Duration::from_millis(1500)
    });
    assert_eq!(cluster.page().unwrap(), "Worker1");
    let manager = cluster.manager.as_mut().unwrap();
    manager.signal(Signal::SIGCONT).unwrap();
    for worker in ["worker1", "worker2"] {
        cluster.wait_for_state(worker, "up", SOON).unwrap();
    }
    let continued = Instant::now();
    eventually(SOON, "any deadline to pass", || {
        continued.elapsed() > Duration::from_secs(1)
    });
    assert!(cluster.events_of("worker_down").unwrap().is_empty());
    assert_eq!(cluster.page().unwrap(), "Worker1");
}

#[root_test]
fn accepts_a_restarted_agent() {
    let mut cluster = Cluster::start_serving(&ClusterOptions::default()).unwrap();
    cluster.kill_agent(0).unwrap();
    cluster.memory[0].set_available_kb(440 * 1024).unwrap();
    cluster.start_agent(0).unwrap();
    cluster
        .wait_for_memory("worker1", 440 * 1024, SOON)
        .unwrap();
    cluster.require_events("agent_restarted", 1).unwrap();
    assert!(cluster.events_of("worker_down").unwrap().is_empty());
    assert_eq!(cluster.page().unwrap(), "Worker1");
}

/// Stands between an agent and the manager, and treats every datagram badly.
struct Relay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    fn start(worker: &Namespace, manager: SocketAddr, seed: u64) -> Self {
        let manager = Sender::open(worker, manager).unwrap();
        let socket = worker
            .enter(|| UdpSocket::bind("127.0.0.1:0"))
            .unwrap()
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // Chances in percent, one byte each.
        let mut dice = random_bytes(seed, 1 << 16)
            .into_iter()
            .cycle()
            .map(|byte| u32::from(byte) * 100 / 256);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            let mut held: Option<Vec<u8>> = None;
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = socket.recv(&mut buffer) else {
                    continue;
                };
                let datagram = &buffer[..length];
                let mut happens = |percent| dice.next().is_some_and(|chance| chance < percent);
                if happens(30) {
                    continue;
                }
                if held.is_none() && happens(25) {
                    held = Some(datagram.to_vec());
                    continue;
                }
                send(&manager, datagram);
                if happens(30) {
                    send(&manager, datagram);
                }
                if happens(30) {
                    held.take().iter().for_each(|late| send(&manager, late));
                }
                if happens(30) {
                    send(&manager, &random_bytes(length as u64, 100));
                    send(&manager, &datagram[..length / 2]);
                    send(&manager, &[b'{'; 1300]);
                    let other = String::from_utf8_lossy(datagram);
                    send(
                        &manager,
                        other.replace("\"memlb\":1", "\"memlb\":9").as_bytes(),
                    );
                }
            }
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }
}

/// While the manager is not there, the kernel says so; that is no matter here.
fn send(manager: &datagram::Sender, datagram: &[u8]) {
    if let Err(error) = manager.send(datagram) {
        eprintln!("{error:#}");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the relay panicked");
        }
    }
}
