//! A healthy system is reported as healthy and stays unchanged.

use memlb_tests::{Cluster, Shape, cluster_options::worker_name, root_test};

use crate::{
    SOON,
    diagnosis::{Diagnosis, diagnose, manager},
};

/// Examines a worker's host as its operator would.
pub fn worker(cluster: &Cluster, index: usize) -> Diagnosis {
    let manager = cluster.heartbeat_address().to_string();
    worker_with(cluster, index, &["--manager", &manager])
}

pub fn worker_with(cluster: &Cluster, index: usize, arguments: &[&str]) -> Diagnosis {
    let mut command = cluster.topology.workers[index].command(&cluster.binary);
    command
        .args(["doctor", "--agent", "--name", &worker_name(index)])
        .arg("--check")
        .arg(format!("http://127.0.0.1:{}/", 8081 + index))
        .args(arguments);
    if let Some(key) = cluster.key_file(index) {
        command.arg("--key").arg(key);
    }
    diagnose(command)
}

#[root_test]
fn finds_no_problem_in_a_healthy_system_and_changes_nothing() {
    for (shape, authentication) in [
        (Shape::OneArm, None),
        (Shape::TwoArm, Some("permissive")),
        (Shape::OneArm, Some("enforce")),
    ] {
        let cluster = Cluster::with(|it| {
            it.shape = shape;
            it.authentication = authentication;
        });
        cluster.wait_for_selection("worker1", SOON).unwrap();
        let refused =
            |cluster: &Cluster| cluster.status().unwrap()["heartbeats"]["refused"].clone();
        let before = (refused(&cluster), changes(&cluster));

        let diagnosis = manager(&cluster);
        diagnosis.assert_healthy();
        for check in [
            "config",
            "kernel",
            "btf",
            "capabilities",
            "bpffs",
            "pins",
            "manager",
            "interface",
            "attachment",
            "service",
            "fallback",
            "worker",
            "ports",
            "http",
            "heartbeats",
            "storage",
            "clock",
        ] {
            diagnosis.finding("ok", check, "");
        }
        diagnosis.finding("ok", "attachment", "eth1: tc (a virtual interface (veth)");
        diagnosis.finding("ok", "heartbeats", "worker2 sent a heartbeat");
        for index in 0..2 {
            let diagnosis = worker(&cluster, index);
            diagnosis.assert_healthy();
            diagnosis.finding("ok", "manager", "answers in");
            diagnosis.finding("ok", "server", "it listens at 192.168.5");
            if authentication.is_some() {
                diagnosis.finding("ok", "manager", "and knows the key");
            }
        }
        assert_eq!(before, (refused(&cluster), changes(&cluster)));
        assert_eq!(cluster.page().unwrap(), "Worker1");
    }
}

/// How often a worker's state or a selection was different, by the event log.
fn changes(cluster: &Cluster) -> usize {
    let events = cluster.events().unwrap();
    events
        .iter()
        .filter(|event| event["event"] != "heartbeat")
        .count()
}

#[root_test]
fn prints_the_same_as_text_and_refuses_wrong_usage() {
    let cluster = Cluster::with(|it| it.agents = false);
    // Long enough for a worker's silence to mean something.
    cluster.assert_status(SOON, "it to have waited", |status| {
        status["uptime_ms"].as_u64() > Some(2_000)
    });
    let output = cluster.configured("doctor").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ok       interface     eth1 is up"), "{said}");
    assert!(
        said.contains("problem  heartbeats    worker1 has sent no valid heartbeat"),
        "{said}"
    );
    assert!(
        said.contains("=> on worker1: memlb doctor --agent"),
        "{said}"
    );
    assert!(
        said.contains("problem  selection     web is served by its fallback"),
        "{said}"
    );
    assert!(said.contains("\n3 problems, "), "{said}");

    for wrong in [
        &["doctor", "--agent"][..],
        &["doctor", "--agent", "--manager", "a b"],
        &["doctor", "--manager", "192.168.56.101"],
        &["doctor", "--config", "/nonexistent/memlb.toml"],
    ] {
        let mut command = cluster.topology.manager.command(&cluster.binary);
        let output = command.args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}
