//! The output for operators: logs of agents and manager, events, status, maps.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{fs, io::ErrorKind, process::Command, time::Duration};

use memlb_tests::{Cluster, Connection, Process, command::output, eventually, observe, root_test};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
const MIB: u64 = 1024 * 1024;

#[root_test]
fn agents_print_what_they_send() {
    let mut cluster = start();
    let agent = cluster.agents[0].as_mut().unwrap();
    agent.wait_for_log(SOON, "sent worker1 #3: ").unwrap();
    assert!(
        agent.log().contains("#3: 450.0 MiB available of 700.0 MiB"),
        "{}",
        agent.log()
    );
    assert!(agent.log().contains("every 100ms to 192.168.56.101:9999"));
    assert!(agent.terminate(SOON).unwrap().success());
    assert!(agent.log().contains("worker1 is leaving"));

    let mut command = cluster.agent_command(0, cluster.heartbeat_address());
    command.arg("--quiet");
    let log = cluster.paths.directory.join("quiet.log");
    cluster.agents[0] = Some(Process::start("quiet agent", &mut command, &log).unwrap());
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    let quiet = cluster.agents[0].as_ref().unwrap();
    assert!(!quiet.log().contains("sent"), "{}", quiet.log());
}

#[root_test]
fn an_agent_without_privileges_reads_the_machines_memory() {
    let mut cluster = start();
    cluster.kill_agent(0).unwrap();
    let program = cluster.paths.directory.join("memlb");
    fs::copy(memlb_tests::cluster::binary().unwrap(), &program).unwrap();
    let mut command = cluster.topology.workers[0].command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["agent", "--name", "worker1", "--manager", "192.168.56.101"]);
    let log = cluster.paths.directory.join("unknown.log");
    cluster.agents[0] =
        Some(Process::start("agent of an unknown worker", &mut command, &log).unwrap());
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"));
    let total_kb: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    cluster.assert_status(SOON, "this machine's memory", |status| {
        let worker = observe::backend(status, "worker1").unwrap();
        worker["memory_total_bytes"] == total_kb * 1024
            && worker["memory_available_bytes"].as_u64() < Some(total_kb * 1024)
    });
}

/// Memory shifts, one worker dies, the other one dies, both come back.
#[root_test]
fn the_manager_logs_heartbeats_decisions_and_reasons() {
    let mut cluster = start();
    cluster.memory[1].set_available_kb(600 * 1024).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    cluster.kill_agent(1).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    cluster.kill_agent(0).unwrap();
    cluster.wait_for_page("Manager", SOON).unwrap();
    cluster.start_agent(0).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();

    eventually(SOON, "the last change in the log", || {
        let changes = cluster.events_of("selection_changed").unwrap();
        let mut changes = changes.iter();
        changes.any(|it| it["from"] == "worker1" && it["to"] == "manager")
            && changes.any(|it| it["to"] == "worker1")
    });
    let log = cluster.manager.as_ref().unwrap().log();
    for line in [
        "INFO heartbeat of worker1: 450.0 MiB available",
        "INFO worker1 is up (was unknown), 450.0 MiB available of 700.0 MiB",
        "INFO web: the automatic threshold is 100.0 MiB",
        "INFO web: worker1 -> worker2: worker2 has 600.0 MiB available, 150.0 MiB more than \
         worker1 (450.0 MiB available), above the threshold of 100.0 MiB",
        "WARN worker2 is down: no heartbeat for 5",
        "INFO web: worker2 -> worker1: worker2 is down",
        "WARN worker1 is down: no heartbeat for 5",
        "WARN web: no worker is up any more; the fallback on the manager serves",
        "INFO web: worker1 -> manager: worker1 is down and no other worker is up",
        "INFO worker1 is up (was down)",
        "INFO web: manager -> worker1: worker1 is up with 450.0 MiB available",
    ] {
        assert!(log.contains(line), "no {line:?} in:\n{log}");
    }
    assert!(!log.contains('\u{1b}'), "colours in a file");

    let events = cluster.events().unwrap();
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .filter(|kind| *kind != "heartbeat")
        .collect();
    let story = [
        "manager_started",
        "selection_changed",
        "worker_up",
        "threshold_learned",
        "worker_down",
        "selection_changed",
        "worker_down",
        "all_workers_down",
        "worker_up",
        "selection_changed",
    ];
    let mut rest = kinds.iter();
    for kind in story {
        assert!(rest.any(|seen| *seen == kind), "no {kind} in {kinds:?}");
    }
    for event in &events {
        let time = event["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
    }
    let moved = cluster.events_of("selection_changed").unwrap();
    let moved = moved
        .iter()
        .find(|event| event["from"] == "worker1" && event["to"] == "worker2")
        .unwrap();
    assert_eq!(moved["service"], "web");
    assert_eq!(moved["rule"], "more_memory");
    assert_eq!(moved["from_memory_available_bytes"], 450 * MIB);
    assert_eq!(moved["to_memory_available_bytes"], 600 * MIB);
    assert_eq!(moved["threshold_bytes"], 100 * MIB);
    assert!(
        moved["reason"]
            .as_str()
            .unwrap()
            .contains("above the threshold")
    );
}

#[root_test]
fn status_shows_workers_selection_and_counters() {
    let cluster = start();
    let before = cluster.backend("worker1").unwrap();
    let mut kept = Connection::open(&cluster.topology.client, cluster.service(), SOON).unwrap();
    kept.get("/").unwrap();
    for _ in 0..4 {
        assert_eq!(cluster.page().unwrap(), "Worker1");
    }
    cluster.assert_status(SOON, "the closed connections to be gone", |status| {
        observe::backend(status, "worker1").unwrap()["flows"] == 1
    });

    let json = output(cluster.memlb("status").arg("--json")).unwrap();
    let status: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["uptime_ms"].as_u64().unwrap() > 0);
    let service = &status["services"][0];
    assert_eq!(service["name"], "web");
    assert_eq!(service["address"], "192.168.56.101:80");
    assert_eq!(service["protocol"], "tcp");
    assert_eq!(service["policy"], "memory");
    assert_eq!(service["threshold_bytes"], 100 * MIB);
    assert_eq!(service["selected"], "worker1");
    assert!(!service["reason"].as_str().unwrap().is_empty());
    assert!(service["since_ms"].is_u64());
    let backends = service["backends"].as_array().unwrap();
    let names: Vec<&Value> = backends.iter().map(|backend| &backend["name"]).collect();
    assert_eq!(names, ["worker1", "worker2", "manager"]);
    let worker = &backends[0];
    assert_eq!(worker["address"], "192.168.56.103:8081");
    assert_eq!(worker["state"], "up");
    assert!(worker["backend_id"].as_u64().unwrap() >= 1);
    assert!(worker["age_ms"].as_u64().unwrap() < 500);
    assert_eq!(worker["memory_available_bytes"], 450 * MIB);
    assert_eq!(worker["memory_total_bytes"], 700 * MIB);
    let more =
        |counter: &str| worker[counter].as_u64().unwrap() - before[counter].as_u64().unwrap();
    assert_eq!(more("connections"), 5);
    // Each has a handshake, a request with its answer, and, but for one, an end.
    for counter in ["packets_in", "packets_out"] {
        assert!((10..60).contains(&more(counter)), "{worker}");
    }
    for counter in ["bytes_in", "bytes_out"] {
        assert!((1000..10_000).contains(&more(counter)), "{worker}");
    }
    assert!(backends[2]["age_ms"].is_null());
    assert_eq!(backends[1]["connections"], 0);
    assert!(status["heartbeats"]["accepted"].as_u64() >= Some(2));
    assert!(status["heartbeats"]["refused"].is_object());
    for verdict in ["to_backend", "to_client"] {
        let verdict = &status["verdicts"][verdict];
        assert!(verdict["packets"].as_u64() >= Some(10));
        assert!(verdict["bytes"].as_u64() >= Some(1000));
    }

    let text = output(&mut cluster.memlb("status")).unwrap();
    for words in [
        "interface eth1: tc",
        "service web 192.168.56.101:80/tcp  policy memory, threshold auto = 100.0 MiB",
        "selected: worker1",
        "192.168.56.104:8082",
        "450.0 MiB of 700.0 MiB",
        "other packets: ",
    ] {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
}

#[root_test]
fn counts_what_is_refused() {
    let cluster = start();
    let mut kept = Connection::open(&cluster.topology.client, cluster.service(), SOON).unwrap();
    kept.get("/").unwrap();
    // As if memlb had never seen the connection.
    clear(&cluster.map("flows"));
    let error = kept.get("/").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(cluster.verdict("no_flow").unwrap() >= 1);
}

#[root_test]
fn maps_are_printed_readably() {
    let cluster = start();
    cluster.page().unwrap();
    let dump = |map: &str| {
        let path = cluster.map(map);
        output(Command::new("bpftool").args(["map", "dump", "pinned", &path])).unwrap()
    };
    let fields: [(&str, &[&str]); 9] = [
        ("settings", &["layout_version", "nat_port_first"]),
        ("services", &["address", "port", "protocol", "id"]),
        ("selection", &["key", "value"]),
        (
            "backends",
            &["address", "port", "state", "mode", "memory_available_bytes"],
        ),
        ("neighbours", &["worker", "manager"]),
        ("flows", &["translated", "backend", "bytes"]),
        ("half_open", &[]),
        ("verdicts", &["packets", "bytes"]),
        ("traffic", &["connections", "bytes_in"]),
    ];
    for (map, names) in fields {
        let text = dump(map);
        for name in names {
            assert!(
                text.contains(&format!("\"{name}\": ")),
                "{map} has no {name}:\n{text:.2000}"
            );
        }
    }
    assert!(dump("backends").contains(&format!("\"memory_available_bytes\": {}", 450 * MIB)));
}

#[root_test]
fn the_kernel_applies_a_selection_written_to_its_map() {
    let cluster = start();
    let mut kept = cluster.connection_to("Worker1").unwrap();
    for (name, page) in [
        ("worker2", "Worker2"),
        ("manager", "Manager"),
        ("worker1", "Worker1"),
    ] {
        let id = cluster.backend(name).unwrap()["backend_id"]
            .as_u64()
            .unwrap();
        let id = u8::try_from(id).unwrap().to_string();
        let selection = cluster.map("selection");
        let update = ["map", "update", "pinned", &selection];
        output(
            Command::new("bpftool")
                .args(update)
                .args(["key", "0", "0", "0", "0"])
                .args(["value", &id, "0", "0", "0"]),
        )
        .unwrap();
        assert_eq!(cluster.page().unwrap(), page);
        assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
        let shown = output(&mut cluster.memlb("status")).unwrap();
        let moved = format!("kernel: map selection says {name} for ");
        assert_eq!(shown.contains(&moved), name != "worker1", "{shown}");
    }
}

#[root_test]
fn status_reads_the_pins_without_a_manager() {
    let mut cluster = start();
    cluster.page().unwrap();
    cluster.kill_manager().unwrap();
    let pins = cluster.map("selection");
    let pins = pins.strip_suffix("/selection").unwrap();
    let shown = cluster.memlb("status").args(["--pin-path", pins]).output();
    let shown = shown.unwrap();
    assert_eq!(shown.status.code(), Some(1), "{shown:?}");
    let text = String::from_utf8(shown.stdout).unwrap();
    for words in [
        "no manager answers: this is the content of the maps in ",
        "service 192.168.56.101:80/tcp",
        "selected: 192.168.56.103:8081",
    ] {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
    let failure = String::from_utf8(shown.stderr).unwrap();
    assert!(failure.contains("no manager answers at "), "{failure}");
}

#[root_test]
fn events_are_filtered_by_their_subject() {
    let cluster = start();
    let events = |arguments: &[&str]| {
        let mut command = cluster.memlb("events");
        output(command.args(arguments)).unwrap()
    };
    let of_worker2 = events(&["--worker", "worker2"]);
    assert!(of_worker2.contains("worker2 is up"), "{of_worker2}");
    assert!(!of_worker2.contains("worker1 is up"), "{of_worker2}");
    let of_web = events(&["--service", "web", "--limit", "1"]);
    assert_eq!(of_web.lines().count(), 1, "{of_web}");
    assert_eq!(events(&["--severity", "warn", "--worker", "worker1"]), "");
}

fn start() -> Cluster {
    let cluster =
        Cluster::with(|it| it.manager_arguments = vec!["--down-after".into(), "500ms".into()]);
    cluster.wait_for_page("Worker1", SOON).unwrap();
    cluster
}

/// Removes every entry of a pinned map.
fn clear(map: &str) {
    let entries = observe::bpftool(&["map", "dump", "pinned", map]).unwrap();
    for entry in entries.as_array().unwrap() {
        let bytes = entry["key"].as_array().unwrap();
        let bytes = bytes
            .iter()
            .map(|byte| byte.as_str().unwrap().trim_start_matches("0x"));
        output(
            Command::new("bpftool")
                .args(["map", "delete", "pinned", map, "key", "hex"])
                .args(bytes),
        )
        .unwrap();
    }
}
