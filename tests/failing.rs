//! Passive health checks: a failed server beside a running agent, and heartbeats that do not arrive.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use memlb_tests::{
    Cluster, Nginx, Process,
    cli::succeed,
    command::{line, output},
    eventually, root_test,
};

const SOON: Duration = Duration::from_secs(5);
const NOTICED: Duration = Duration::from_secs(1);

fn fetch(cluster: &Cluster, path: &str) -> String {
    let mut curl = cluster.topology.manager.command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "5"]);
    output(curl.arg(format!("http://127.0.0.1:9998{path}"))).unwrap()
}

/// Starts `memlb top` on a terminal of its own.
fn top(cluster: &Cluster) -> Process {
    let inside = format!(
        "stty rows 24 columns 100; exec {}",
        line(&cluster.memlb("top"))
    );
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--flush", "--command", &inside, "/dev/null"]);
    let log = cluster.paths.directory.join("top.log");
    let mut top = Process::start("memlb top", terminal.env("TERM", "xterm"), &log).unwrap();
    top.wait_for_log(SOON, "worker2").unwrap();
    top
}

/// 200 requests a second while the server of the selected worker dies and returns; its agent checks nothing.
#[root_test(tc, xdp)]
fn a_dead_server_gets_no_connection_until_a_trial_is_answered(attach: &str) {
    let mut cluster = Cluster::serving_with(|it| it.attach = attach.into());
    let probe = cluster.probe(Duration::from_millis(5)).unwrap();
    probe
        .wait_for_page("Worker1", Instant::now(), SOON)
        .unwrap();
    assert_eq!(cluster.backend("worker1").unwrap()["unchecked"], true);

    let mut top = top(&cluster);
    let killed_at = Instant::now();
    cluster.servers[0].process.kill().unwrap();
    let dead_at = Instant::now();
    let noticed = cluster.wait_for_state("worker1", "failing", SOON).unwrap();
    assert!(noticed <= NOTICED, "{noticed:?}");
    let failing = "memlb_backend_failing{backend=\"worker1\",service=\"web\"} 1";
    eventually(NOTICED, failing, || {
        fetch(&cluster, "/metrics").contains(failing)
    });
    top.wait_for_log(NOTICED, "failing").unwrap();
    drop(top);
    let events = cluster.require_events("worker_failing", 1).unwrap();
    let refused = events[0]["evidence"]["refused"].as_u64();
    assert!(refused >= Some(3), "{events:?}");
    let client = cluster.topology.client.address().to_string();
    for verb in [&["status"][..], &["workers"], &["explain", &client]] {
        let shown = succeed(&cluster, verb);
        assert!(shown.contains("failing"), "{verb:?}: {shown}");
    }
    let reason = &cluster.backend("worker1").unwrap()["reason"];
    assert_eq!(reason["kind"], "failing", "{reason}");
    println!("noticed after {noticed:?}: {}", events[0]);

    let since = Instant::now();
    probe.wait_for_page("Worker2", since, SOON).unwrap();
    // A trial is a connection of the manager: it delays no client.
    eventually(SOON, "a failed trial", || {
        cluster.backend("worker1").unwrap()["failing"]["trials"]
            .as_u64()
            .is_some_and(|trials| trials >= 2)
    });
    let server = Nginx::start(
        &cluster.topology.workers[0],
        cluster.servers[0].port(),
        "Worker1",
        &cluster.paths.directory.join("worker1-again"),
    )
    .unwrap();
    cluster.wait_for_state("worker1", "up", SOON * 2).unwrap();
    // It is selected again if it has more memory by more than the threshold.
    cluster.memory[0].set_available_kb(650 * 1024).unwrap();
    probe
        .wait_for_page("Worker1", Instant::now(), SOON)
        .unwrap();
    cluster.require_events("worker_recovered", 1).unwrap();
    // Only requests that were under way at its death fail: the SYNs of later ones went to the other worker.
    let report = probe.stop().unwrap();
    let is_open = |sent_at: Instant, ended_at: Instant| sent_at < dead_at && ended_at >= killed_at;
    let failed: Vec<_> = report.failures().collect();
    let open = report.requests.iter();
    let open = open.filter(|it| is_open(it.sent_at, it.ended_at)).count();
    println!("{} of {open} open requests failed", failed.len());
    let all_open = failed.iter().all(|it| is_open(it.sent_at, it.ended_at));
    let answers = failed.iter().filter_map(|it| it.answer.as_ref().err());
    let refused = answers.filter(|it| it.contains("refused")).count();
    assert!(all_open && refused == 0, "{failed:?}");
    let answered = "memlb_backend_last_answer_age_seconds{backend=\"worker1\",service=\"web\"}";
    let metrics = fetch(&cluster, "/metrics");
    assert!(metrics.contains(answered), "{metrics}");
    cluster.servers[0] = server;
}

/// A rule drops all heartbeats under load; then a worker dies.
#[root_test]
fn a_firewall_rule_against_heartbeats_breaks_no_request() {
    let mut cluster = Cluster::serving_with(|it| {
        it.manager_arguments = vec!["--policy".into(), "balanced".into()];
        it.panic_threshold = 60;
    });
    let probe = cluster.probe(Duration::from_millis(5)).unwrap();
    probe
        .wait_for_page("Worker2", Instant::now(), SOON)
        .unwrap();
    let node = &cluster.topology.manager;
    let rules = "add table inet slip; add chain inet slip input { type filter hook input priority 0; }; \
                 add rule inet slip input udp dport 9999 drop";
    node.run("nft", &[rules]).unwrap();
    eventually(SOON, "the event", || {
        !cluster.events_of("heartbeats_missing").unwrap().is_empty()
    });
    // Twice as long as a worker may be silent.
    let until = Instant::now() + Duration::from_secs(3);
    eventually(SOON, "more requests", || Instant::now() >= until);
    for worker in ["worker1", "worker2"] {
        let backend = cluster.backend(worker).unwrap();
        assert_eq!(backend["state"], "up", "{backend}");
        assert_eq!(backend["heartbeats_missing"], true, "{backend}");
    }
    assert!(cluster.events_of("worker_down").unwrap().is_empty());
    let ready = fetch(&cluster, "/readyz");
    assert!(
        ready.contains("web: the heartbeats of most workers are missing"),
        "{ready}"
    );
    let report = probe.report();
    report.assert_no_failure();
    println!(
        "{} requests without heartbeats, none failed",
        report.runs().iter().map(|it| it.1).sum::<usize>()
    );
    let mut doctor = cluster.configured("doctor");
    let said = doctor.output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.contains("has a rule that drops or rejects udp 9999"),
        "{said}"
    );

    // One worker's true death is seen in the packets.
    cluster.servers[0].process.kill().unwrap();
    cluster.wait_for_state("worker1", "failing", SOON).unwrap();

    output(
        node.command("nft")
            .args(["delete", "table", "inet", "slip"]),
    )
    .unwrap();
    eventually(SOON, "the heartbeats to be back", || {
        !cluster.events_of("heartbeats_back").unwrap().is_empty()
    });
}

/// A sorry server without an agent, on another machine.
#[root_test]
fn a_backup_without_an_agent_serves_while_no_primary_can() {
    let mut cluster = Cluster::with(|it| {
        it.available_kb = vec![450 * 1024, 350 * 1024, 350 * 1024];
        it.agents = false;
    });
    let file = cluster.paths.directory.join("memlb.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let sorry = text.replace(
        "name = \"worker3\"",
        "backup = true, agent = false, name = \"worker3\"",
    );
    assert_ne!(text, sorry, "{text}");
    std::fs::write(&file, sorry).unwrap();
    output(&mut cluster.memlb("reload")).unwrap();
    cluster.wait_for_page("Worker3", SOON).unwrap();
    cluster.start_agent(0).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let reason = &cluster.backend("worker3").unwrap()["reason"];
    assert_eq!(reason["kind"], "backup", "{reason}");
    cluster.kill_agent(0).unwrap();
    cluster.wait_for_page("Worker3", SOON).unwrap();
    cluster.wait_for_events("backups_serve", 1).unwrap();
    assert!(fetch(&cluster, "/readyz").contains("no primary worker can serve"));
}
