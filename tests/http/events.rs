//! The event stream.

use std::time::{Duration, Instant};

use memlb_tests::{Cluster, ClusterOptions, Process, root_test};
use serde_json::Value;

use super::{ORIGIN, SOON, get, request, start};

#[root_test]
fn shows_a_failover_within_a_second() {
    let mut cluster = start(ClusterOptions::default());
    let mut listener = listen(&cluster, "listener.log", &[]);
    cluster.kill_agent(0).unwrap();
    cluster.wait_for_selection("worker2", SOON).unwrap();
    let decided = Instant::now();
    listener
        .wait_for_log(SOON, "\"event\":\"selection_changed\"")
        .unwrap();
    let told = decided.elapsed();
    assert!(told < Duration::from_millis(500), "{told:?}");

    let entries = entries(&listener.log());
    let kinds: Vec<&Value> = entries.iter().map(|entry| &entry["event"]).collect();
    assert_eq!(kinds, ["worker_down", "selection_changed"]);
    let [down, moved] = &entries[..] else {
        panic!("{entries:?}")
    };
    assert_eq!(down["severity"], "warn");
    assert_eq!(down["worker"], "worker1");
    assert!(
        down["message"]
            .as_str()
            .unwrap()
            .starts_with("worker1 is down")
    );
    assert_eq!(
        (&moved["from"], &moved["to"]),
        (&"worker1".into(), &"worker2".into())
    );
    assert_eq!(moved["id"], down["id"].as_u64().unwrap() + 1);
}

#[root_test]
fn a_reconnecting_listener_misses_no_event() {
    let mut cluster = start(ClusterOptions::default());
    let events = get(&cluster, "/api/v1/events").json();
    let events = events["events"].as_array().unwrap();
    assert_eq!(events[0]["event"], "manager_started");
    let last = events.last().unwrap()["id"].as_u64().unwrap();

    cluster.kill_agent(0).unwrap();
    cluster.wait_for_selection("worker2", SOON).unwrap();
    let id = format!("Last-Event-ID: {last}");
    for arguments in [
        vec!["--header", &id],
        vec!["--url-query", &format!("after={last}")],
    ] {
        let mut back = listen(&cluster, "back.log", &arguments);
        back.wait_for_log(SOON, "\"event\":\"selection_changed\"")
            .unwrap();
        assert_eq!(entries(&back.log())[0]["event"], "worker_down");
    }
    let later = get(&cluster, &format!("/api/v1/events?after={last}")).json();
    assert_eq!(later["events"].as_array().unwrap().len(), 2);
    let newest = get(&cluster, "/api/v1/events?limit=1").json();
    assert_eq!(newest["events"][0]["event"], "selection_changed");
    for wrong in [
        "after=-1",
        "limit=0",
        "limit=257",
        "after=x",
        "limit=1&limit=2",
    ] {
        let refused = get(&cluster, &format!("/api/v1/events?{wrong}"));
        assert_eq!(refused.status, 400, "{wrong}");
        assert!(refused.json()["error"].is_string());
    }
    assert_eq!(
        request(&cluster, "/api/v1/events/stream?after=x", &[]).status,
        400
    );
}

fn listen(cluster: &Cluster, log: &str, arguments: &[&str]) -> Process {
    let mut curl = cluster.topology.manager.command("curl");
    curl.args(["--silent", "--no-buffer", "--include"])
        .arg(format!("{ORIGIN}/api/v1/events/stream"))
        .args(arguments);
    let log = cluster.paths.directory.join(log);
    let mut listener = Process::start("listener", &mut curl, &log).unwrap();
    listener.wait_for_log(SOON, "text/event-stream").unwrap();
    listener
}

fn entries(log: &str) -> Vec<Value> {
    let data = log.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|entry| serde_json::from_str(entry).unwrap())
        .collect()
}
