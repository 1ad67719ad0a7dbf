//! Policies with real servers: the distribution of connections, and changes of policy without an effect on clients.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    process::Stdio,
    time::{Duration, Instant},
};

use memlb_tests::{Cluster, ClusterOptions, Connection, observe, root_test};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);

/// By page.
type Counts = BTreeMap<String, usize>;

#[root_test]
fn round_robin_distributes_evenly() {
    let cluster = start("round_robin", &[600, 100, 300]);
    let counts = pages(&cluster, 60);
    // Each processor takes turns of its own.
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(
        counts.values().all(|count| (18..=22).contains(count)),
        "{counts:?}"
    );

    let status = cluster.status().unwrap();
    let service = &status["services"][0];
    assert_eq!(service["policy"], "round_robin");
    assert_eq!(service["selected"], "*");
    assert_eq!(
        observe::backend(&status, "worker2").unwrap()["share"],
        3_333
    );
    let shown = cluster.memlb("status").output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("policy round_robin"), "{shown}");
    assert!(shown.contains("selected: all that are up"), "{shown}");
    assert!(shown.contains("33.3%"), "{shown}");
}

#[root_test]
fn least_connections_equalizes_open_connections() {
    let cluster = start("least_connections", &[600, 100, 300]);
    let mut held = hold(&cluster, 30);
    for (page, count) in counted(&held) {
        assert!((9..=11).contains(&count), "{page}: {count} of 30");
    }
    // Who has closed his connections gets the next ones.
    held.retain(|(page, _)| page != "Worker1");
    let worker1 = |status: &Value| observe::backend(status, "worker1").unwrap()["flows"] == 0;
    cluster.assert_status(SOON, "worker1's connections to end", worker1);
    let next = counted(&hold(&cluster, 8));
    assert_eq!(next["Worker1"], 8, "{next:?}");
}

#[root_test]
fn balanced_distributes_by_memory_and_avoids_a_full_worker() {
    // Of 700 MiB each keeps 5%: 600 and 300 MiB are left to weigh.
    let cluster = start("balanced", &[635, 335]);
    let share =
        |name: &str| observe::backend(&cluster.status().unwrap(), name).unwrap()["share"].clone();
    let settled = |status: &Value| {
        let share = observe::backend(status, "worker1").unwrap()["share"].as_u64();
        share.is_some_and(|share| (6_400..=6_900).contains(&share))
    };
    cluster.assert_status(SOON, "two thirds for worker1", settled);
    let held = hold(&cluster, 90);
    let counts = counted(&held);
    assert!((54..=66).contains(&counts["Worker1"]), "{counts:?}");

    cluster.memory[0].set_available_kb(20 * 1024).unwrap();
    let left = |status: &Value| observe::backend(status, "worker1").unwrap()["share"] == 0;
    cluster.assert_status(SOON, "the full worker to be left", left);
    assert_eq!(pages(&cluster, 20), only("Worker2"));
    cluster.memory[1].set_available_kb(20 * 1024).unwrap();
    let alike = |status: &Value| observe::backend(status, "worker1").unwrap()["share"] == 5_000;
    cluster.assert_status(SOON, "two full workers to be treated alike", alike);
    assert_eq!(share("worker2"), 5_000);
    cluster.require_events("all_workers_hot", 1).unwrap();
}

#[root_test]
fn every_policy_avoids_a_dead_worker_and_falls_back_to_the_manager() {
    for policy in [
        "balanced",
        "round_robin",
        "least_connections",
        "source_hash",
    ] {
        let mut cluster = start(policy, &[300, 300]);
        cluster.kill_agent(0).unwrap();
        cluster.wait_for_state("worker1", "down", SOON).unwrap();
        assert_eq!(pages(&cluster, 20), only("Worker2"), "{policy}");
        cluster.kill_agent(1).unwrap();
        cluster.wait_for_state("worker2", "down", SOON).unwrap();
        assert_eq!(pages(&cluster, 20), only("Manager"), "{policy}");
        cluster.start_agent(0).unwrap();
        cluster.wait_for_state("worker1", "up", SOON).unwrap();
        assert_eq!(pages(&cluster, 20), only("Worker1"), "{policy}");
    }
}

#[root_test]
fn operators_set_weights() {
    let cluster = start("round_robin", &[300, 300, 300]);
    let mut weight = cluster.memlb("weight");
    let output = weight.args(["worker1", "50"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let counts = pages(&cluster, 100);
    assert!((16..=24).contains(&counts["Worker1"]), "{counts:?}");
    assert!((36..=44).contains(&counts["Worker2"]), "{counts:?}");
}

/// A dead worker that is not detected yet has nearly all slots: a second draw would draw it again.
#[root_test]
fn a_repeated_syn_reaches_another_worker_than_the_one_that_was_drawn() {
    for attach in ["tc", "xdp"] {
        let mut cluster = start_with("balanced", &[640, 80], attach);
        cluster.kill_manager().unwrap();
        cluster.topology.workers[0].disconnect().unwrap();
        let mut repeated = 0;
        for _ in 0..8 {
            let begun = Instant::now();
            assert_eq!(cluster.page().unwrap(), "Worker2", "{attach}");
            // Linux repeats a SYN after a second, and once more after two others.
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(3), "{attach}: {took:?}");
            repeated += u32::from(took > Duration::from_millis(900));
        }
        assert!(repeated > 2, "{attach}: worker1 was drawn {repeated} times");
    }
}

#[root_test]
fn the_policy_changes_under_load_without_an_effect_on_clients() {
    let mut cluster = start("memory", &[600, 300, 300]);
    let node = &cluster.topology.client;
    let mut kept = Connection::open(node, cluster.service(), SOON).unwrap();
    let first = kept.get("/").unwrap().first_line();
    assert_eq!(first, "Worker1");
    let probe = cluster.probe(Duration::from_millis(5)).unwrap();
    let mut all = vec![kept];
    for policy in [
        "balanced",
        "source_hash",
        "round_robin",
        "least_connections",
        "memory",
        "round_robin",
        "balanced",
    ] {
        switch(&cluster, policy);
        let status = cluster.status().unwrap();
        assert_eq!(status["services"][0]["policy"], policy);
        let expected = if policy == "memory" { "worker1" } else { "*" };
        assert_eq!(status["services"][0]["selected"], expected);
        let node = &cluster.topology.client;
        all.push(Connection::open(node, cluster.service(), SOON).unwrap());
        for connection in &mut all {
            assert_eq!(connection.get("/").unwrap().status, 200);
        }
    }
    // A crash changes nothing either: places and weights are adopted.
    cluster.kill_manager().unwrap();
    assert_eq!(pages(&cluster, 30).values().sum::<usize>(), 30);
    cluster.start_manager().unwrap();
    let adopted = cluster.wait_for_events("selection_adopted", 1).unwrap();
    assert_eq!(adopted.last().unwrap()["to"], "*");
    for connection in &mut all {
        assert_eq!(connection.get("/").unwrap().status, 200);
    }
    assert_eq!(all[0].get("/").unwrap().first_line(), first);
    let report = probe.stop().unwrap();
    assert_eq!(
        report.failures().count(),
        0,
        "{:?}",
        report.failures().next()
    );
}

#[root_test]
fn source_hash_moves_as_few_clients_as_possible() {
    const SOURCES: usize = 240;
    let mut cluster = start("source_hash", &[300, 300, 300, 300]);
    let sources = make_sources(&cluster, SOURCES);
    let before = homes(&cluster, &sources);
    assert_eq!(homes(&cluster, &sources), before, "each stays where it is");
    let mut counts = Counts::new();
    for page in &before {
        *counts.entry(page.clone()).or_default() += 1;
    }
    assert_eq!(counts.len(), 4, "{counts:?}");

    cluster.kill_agent(2).unwrap();
    cluster.wait_for_state("worker3", "down", SOON).unwrap();
    let without = homes(&cluster, &sources);
    for (old, new) in before.iter().zip(&without) {
        assert!(old == new || old == "Worker3", "{old} -> {new}");
    }
    let moved = counts["Worker3"];
    let bound = SOURCES / 4 + SOURCES / 20;
    assert!(moved <= bound, "{moved} of {SOURCES} moved, not {bound}");
}

/// As many workers as figures, in MiB available.
fn start(policy: &str, available_mib: &[u64]) -> Cluster {
    start_with(policy, available_mib, "tc")
}

fn start_with(policy: &str, available_mib: &[u64], attach: &str) -> Cluster {
    let options = ClusterOptions {
        attach: attach.into(),
        available_kb: available_mib.iter().map(|mib| mib * 1024).collect(),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(&options).unwrap();
    switch(&cluster, policy);
    let taken_in = |status: &Value| {
        let backends = status["services"][0]["backends"].as_array().unwrap();
        let mut workers = backends.iter().filter(|it| it["name"] != "manager");
        policy == "memory" || workers.all(|it| it["share"] != 0)
    };
    cluster.assert_status(SOON, "every worker to have its share", taken_in);
    cluster
}

/// Changes the file and has the manager take it over.
fn switch(cluster: &Cluster, policy: &str) {
    let file = cluster.paths.directory.join("memlb.toml");
    let text = fs::read_to_string(&file).unwrap();
    let lines = text.lines().map(|line| {
        if line.starts_with("policy = ") {
            format!("policy = \"{policy}\"\n")
        } else {
            format!("{line}\n")
        }
    });
    fs::write(&file, lines.collect::<String>()).unwrap();
    let output = cluster.memlb("reload").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Whose page `count` clients get, one after the other.
fn pages(cluster: &Cluster, count: usize) -> Counts {
    let mut counts = Counts::new();
    for _ in 0..count {
        *counts.entry(cluster.page().unwrap()).or_default() += 1;
    }
    counts
}

/// Opens connections, one after the other, that stay open; each with the page it got.
fn hold(cluster: &Cluster, count: usize) -> Vec<(String, Connection)> {
    let open = |_| {
        let mut connection = Connection::open(&cluster.topology.client, cluster.service(), SOON)?;
        let page = connection.get("/")?.first_line();
        anyhow::Ok((page, connection))
    };
    (0..count).map(open).collect::<Result<_, _>>().unwrap()
}

fn counted(held: &[(String, Connection)]) -> Counts {
    let mut counts = Counts::new();
    for (page, _) in held {
        *counts.entry(page.clone()).or_default() += 1;
    }
    counts
}

fn only(page: &str) -> Counts {
    [(page.to_owned(), 20)].into()
}

/// Gives the client more addresses, of a network that only it knows.
fn make_sources(cluster: &Cluster, count: usize) -> Vec<Ipv4Addr> {
    let first = u32::from(Ipv4Addr::new(10, 77, 0, 1));
    let addresses: Vec<Ipv4Addr> = (first..).take(count).map(Ipv4Addr::from).collect();
    let mut ip = cluster.topology.client.ip();
    let mut batch = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let script: String = addresses
        .iter()
        .map(|address| format!("address add {address}/32 dev lo\n"))
        .collect();
    let mut input = batch.stdin.take().unwrap();
    input.write_all(script.as_bytes()).unwrap();
    drop(input);
    assert!(batch.wait().unwrap().success());
    // Makes the two known to each other by their usual addresses.
    cluster.page().unwrap();
    addresses
}

/// Whose page a client of each address gets.
fn homes(cluster: &Cluster, sources: &[Ipv4Addr]) -> Vec<String> {
    let server = cluster.service();
    let page = |source: &Ipv4Addr| {
        let source = SocketAddrV4::new(*source, 0);
        let mut connection = Connection::open_here_as(source, server, SOON)?;
        Ok(connection.get("/")?.first_line())
    };
    let all = || sources.iter().map(page).collect::<std::io::Result<_>>();
    cluster.topology.client.enter(all).unwrap().unwrap()
}
