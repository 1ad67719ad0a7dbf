//! The scenarios of the old system: workers that die, return, and change their memory.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::{Duration, Instant};

use memlb_tests::{Cluster, ClusterOptions, Probe, datagram::Sender, eventually, root_test};

const DOWN_AFTER: Duration = Duration::from_millis(800);
/// Generous, since the machine may be busy; the benchmark measures it exactly.
const DETECTED: Duration = Duration::from_millis(2500);
const SOON: Duration = Duration::from_secs(5);
const MIB: u64 = 1024;

/// The datapath tries the next worker itself: no heartbeat is missed yet, and no manager acts.
#[root_test]
fn a_repeated_syn_reaches_another_worker_without_the_manager() {
    let mut cluster = Cluster::start_serving(&ClusterOptions::default()).unwrap();
    cluster.kill_manager().unwrap();
    cluster.topology.workers[0].disconnect().unwrap();
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(cluster.page().unwrap(), "Worker2");
        // Linux repeats a SYN after a second.
        assert!(begun.elapsed() < Duration::from_secs(3), "{begun:?}");
    }
}

#[root_test(tc, xdp)]
fn sends_clients_to_the_other_worker_when_worker1_dies(attach: &str) {
    dies_and_returns(&start(attach), 0);
}

#[root_test]
fn sends_clients_to_the_other_worker_when_worker2_dies() {
    let cluster = start("tc");
    cluster.memory[1].set_available_kb(600 * MIB).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    // Not so much that it would win clients back by itself.
    cluster.memory[1].set_available_kb(500 * MIB).unwrap();
    cluster.wait_for_memory("worker2", 500 * MIB, SOON).unwrap();
    dies_and_returns(&cluster, 1);
}

/// Cuts off the selected worker without a word, and plugs it in again.
fn dies_and_returns(cluster: &Cluster, index: usize) {
    let (name, page) = names(index);
    let (_, other_page) = names(1 - index);
    let every = Duration::from_millis(20);
    let probe = Probe::start(
        &cluster.topology.client,
        cluster.service(),
        every,
        DOWN_AFTER * 3,
    )
    .unwrap();
    probe.wait_for_page(&page, Instant::now(), SOON).unwrap();

    let cut_at = Instant::now();
    cluster.topology.workers[index].disconnect().unwrap();
    let first = probe.wait_for_page(&other_page, cut_at, SOON).unwrap();
    let took = first.ended_at - cut_at;
    assert!(took >= DOWN_AFTER / 2, "{took:?} is too soon to know");
    assert!(took <= DETECTED, "{took:?} without a page");
    cluster.wait_for_state(&name, "down", SOON).unwrap();

    // Once it is down, no client is sent there.
    let known_at = Instant::now();
    cluster.topology.workers[index].reconnect().unwrap();
    cluster.wait_for_state(&name, "up", SOON).unwrap();
    probe
        .wait_for_page(&other_page, Instant::now(), SOON)
        .unwrap();
    let report = probe.stop().unwrap();
    let report = report.since(known_at);
    assert_eq!(report.failures().count(), 0, "{report:?}");
    let pages: Vec<&str> = report.runs().iter().map(|(page, _)| *page).collect();
    assert_eq!(pages, [other_page.as_str()]);
}

#[root_test]
fn keeps_clients_when_another_worker_dies() {
    let mut cluster = start("tc");
    let probe = cluster.probe(Duration::from_millis(10)).unwrap();
    probe
        .wait_for_page("Worker1", Instant::now(), SOON)
        .unwrap();
    cluster.kill_agent(1).unwrap();
    cluster.topology.workers[1].disconnect().unwrap();
    cluster.wait_for_state("worker2", "down", SOON).unwrap();
    cluster.topology.workers[1].reconnect().unwrap();
    cluster.start_agent(1).unwrap();
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
    let report = probe.stop().unwrap();
    assert_eq!(report.failures().count(), 0);
    assert_eq!(report.runs().len(), 1);
}

#[root_test(tc, xdp)]
fn shows_the_managers_page_while_both_workers_are_down(attach: &str) {
    let mut cluster = start(attach);
    assert_eq!(cluster.page().unwrap(), "Worker1");
    // The agent is all there is to a worker's life: its server may well go on.
    cluster.kill_agent(0).unwrap();
    cluster.wait_for_page("Worker2", DETECTED).unwrap();
    cluster.kill_agent(1).unwrap();
    cluster.wait_for_page("Manager", DETECTED).unwrap();
    for worker in ["worker1", "worker2"] {
        cluster.wait_for_state(worker, "down", SOON).unwrap();
    }
    cluster.require_events("all_workers_down", 1).unwrap();

    cluster.start_agent(1).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    // It has no more than the threshold more than the one that serves.
    cluster.start_agent(0).unwrap();
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    assert_eq!(cluster.page().unwrap(), "Worker2");
    cluster.memory[0].set_available_kb(600 * MIB).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
}

#[root_test]
fn the_manager_serves_until_a_worker_reports() {
    let mut cluster = Cluster::start(&ClusterOptions {
        agents: false,
        ..options("tc")
    })
    .unwrap();
    assert_eq!(cluster.page().unwrap(), "Manager");
    let status = cluster.status().unwrap();
    let service = &status["services"][0];
    assert_eq!(service["selected"], "manager");
    assert!(
        service["reason"]
            .as_str()
            .unwrap()
            .contains("no worker has sent a heartbeat yet")
    );
    cluster.start_agent(1).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    // Its heartbeat only came first; with two to compare, the better one is selected.
    cluster.start_agent(0).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
}

/// Both workers' figures in MiB, and whom new connections then go to. The
/// threshold is the difference first seen, 100 MiB.
#[root_test(tc, xdp)]
fn follows_memory_beyond_the_threshold_only(attach: &str) {
    let story = [
        (450, 350, "worker1"),
        (300, 350, "worker1"),
        (300, 400, "worker1"),
        (300, 401, "worker2"),
        (450, 401, "worker2"),
        (501, 401, "worker2"),
        (502, 401, "worker1"),
        (502, 40, "worker1"),
        (50, 40, "worker1"),
        (50, 700, "worker2"),
    ];
    let cluster = start(attach);
    let mut changes = Vec::new();
    for (worker1, worker2, selected) in story {
        cluster.memory[0].set_available_kb(worker1 * MIB).unwrap();
        cluster
            .wait_for_memory("worker1", worker1 * MIB, SOON)
            .unwrap();
        cluster.memory[1].set_available_kb(worker2 * MIB).unwrap();
        cluster
            .wait_for_memory("worker2", worker2 * MIB, SOON)
            .unwrap();
        let status = cluster.status().unwrap();
        let service = &status["services"][0];
        assert_eq!(service["threshold_bytes"], 100 * 1024 * MIB);
        assert_eq!(service["selected"], selected, "{worker1} and {worker2} MiB");
        let page = selected.replace('w', "W");
        assert_eq!(cluster.page().unwrap(), page, "{worker1} and {worker2} MiB");
        if changes.last() != Some(&selected) {
            changes.push(selected);
        }
    }
    // No change in between, either.
    eventually(SOON, "the same changes in the log", || {
        let events = cluster.events_of("selection_changed").unwrap();
        let seen = events.iter().map(|event| event["to"].as_str().unwrap());
        seen.skip_while(|to| *to != "worker1")
            .eq(changes.iter().copied())
    });
}

#[root_test]
fn moves_clients_at_once_when_an_agent_shuts_down() {
    let mut cluster =
        Cluster::with(|it| it.manager_arguments = vec!["--down-after".into(), "30s".into()]);
    let agent = cluster.agents[0].as_mut().unwrap();
    let sent_at = Instant::now();
    assert!(agent.terminate(SOON).unwrap().success());
    cluster.wait_for_page("Worker2", SOON).unwrap();
    assert!(sent_at.elapsed() < SOON);
    cluster.wait_for_state("worker1", "leaving", SOON).unwrap();
    cluster.require_events("worker_leaving", 1).unwrap();
}

#[root_test]
fn accepts_heartbeats_of_2018() {
    let mut options = options("tc");
    options.agents = false;
    options.manager_arguments.push("--legacy-heartbeats".into());
    let cluster = Cluster::start(&options).unwrap();
    let senders: Vec<Sender> = cluster
        .topology
        .workers
        .iter()
        .map(|worker| Sender::open(worker, cluster.heartbeat_address()).unwrap())
        .collect();
    // Worker1's clock goes an hour late, worker2's an hour fast and then backwards.
    let send_reports = |worker1: Option<u64>, worker2: Option<u64>| {
        if let Some(free) = worker1 {
            senders[0]
                .send_legacy("worker1", "2018-06-04 13:00:59", free)
                .unwrap();
        }
        if let Some(free) = worker2 {
            senders[1]
                .send_legacy("worker2", "2018-06-04 15:00:59", free)
                .unwrap();
            senders[1]
                .send_legacy("worker2", "1970-01-01 00:00:00", free)
                .unwrap();
        }
    };
    let shows = |worker1, worker2, page: &str| {
        eventually(SOON, page, || {
            send_reports(worker1, worker2);
            cluster.page().is_ok_and(|got| got == page)
        })
    };

    shows(Some(394), Some(380), "Worker1");
    shows(Some(300), Some(390), "Worker2");
    shows(Some(300), None, "Worker1");
    shows(None, None, "Manager");
    shows(None, Some(380), "Worker2");
    let status = cluster.status().unwrap();
    assert!(status["heartbeats"]["accepted"].as_u64().unwrap() > 0);
    let worker = cluster.backend("worker2").unwrap();
    assert_eq!(worker["memory_available_bytes"], 380 * 1024 * MIB);
    assert!(worker["memory_total_bytes"].is_null());
}

#[root_test]
fn drops_heartbeats_of_2018_by_default() {
    let cluster = Cluster::start(&ClusterOptions {
        agents: false,
        ..options("tc")
    })
    .unwrap();
    let sender = Sender::open(&cluster.topology.workers[0], cluster.heartbeat_address()).unwrap();
    sender
        .send_legacy("worker1", "2018-06-04 14:00:59", 394)
        .unwrap();
    cluster.assert_status(SOON, "the refusals to be counted", |status| {
        status["heartbeats"]["refused"]["legacy_off"] == 2
    });
    assert_eq!(cluster.page().unwrap(), "Manager");
}

fn options(attach: &str) -> ClusterOptions {
    let down_after = format!("{}ms", DOWN_AFTER.as_millis());
    ClusterOptions {
        attach: attach.into(),
        manager_arguments: vec!["--down-after".into(), down_after],
        ..ClusterOptions::default()
    }
}

/// Starts the lab; `worker1` is selected, with 100 MiB more than `worker2`.
fn start(attach: &str) -> Cluster {
    Cluster::start_serving(&options(attach)).unwrap()
}

/// Returns the name and the page of the worker of that `index`.
fn names(index: usize) -> (String, String) {
    let number = index + 1;
    (format!("worker{number}"), format!("Worker{number}"))
}
