//! Agents that join as workers, and those that are refused.

use std::{fs, time::Duration};

use memlb_tests::{
    Cluster, Process, command::output, datagram::Sender, eventually, observe, root_test,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);

/// Only worker1 stands in the configuration; who comes from `network` may join.
fn start_with_network(network: &str) -> Cluster {
    start_with("enforce", network)
}

fn start_with(authentication: &'static str, network: &str) -> Cluster {
    let settings = [
        r#"service.web.workers=[{ name = "worker1", address = "192.168.56.103:8081" }]"#.to_owned(),
        format!(r#"service.web.auto_join={{ networks = ["{network}"], port = 8082 }}"#),
    ];
    Cluster::with(|it| {
        it.authentication = Some(authentication);
        it.agents = false;
        it.settings = settings.into();
    })
}

fn is_worker(status: &Value, name: &str) -> bool {
    observe::backend(status, name).is_some()
}

#[root_test]
fn a_started_agent_with_a_key_becomes_a_worker_and_remains_one() {
    let mut cluster = start_with_network("192.168.56.104/32");
    cluster.start_agent(0).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    assert!(!is_worker(&cluster.status().unwrap(), "worker2"));

    cluster.memory[1].set_available_kb(690 * 1024).unwrap();
    cluster.start_agent(1).unwrap();
    let took = cluster.wait_for_state("worker2", "up", SOON).unwrap();
    println!("up {took:?} after its start");
    let backend = cluster.backend("worker2").unwrap();
    // The address is the one it speaks from, the port the one configured.
    assert_eq!(backend["address"], "192.168.56.104:8082");
    let joined = cluster.require_events("worker_joined", 1).unwrap();
    assert_eq!(joined[0]["worker"], "worker2");
    cluster.wait_for_page("Worker2", SOON).unwrap();

    // It outlives a reload and a manager, and so do its connections.
    let mut kept = cluster.connection_to("Worker2").unwrap();
    let reload = ["reload", "--control-socket"];
    let socket = cluster.paths.control_socket();
    let mut command = cluster.topology.manager.command(&cluster.binary);
    output(command.args(reload).arg(socket)).unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker2");
    assert!(is_worker(&cluster.status().unwrap(), "worker2"));
    cluster.kill_manager().unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker2");
    cluster.start_manager().unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker2");
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker2");
    assert_eq!(cluster.page().unwrap(), "Worker2");
    cluster.require_events("worker_joined", 1).unwrap();

    // It goes down and comes back like any other.
    cluster.kill_agent(1).unwrap();
    cluster.wait_for_state("worker2", "down", SOON).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    cluster.start_agent(1).unwrap();
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
}

#[root_test]
fn no_other_agent_joins() {
    let mut cluster = start_with_network("192.168.56.104/32");
    cluster.start_agent(0).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let refused = |cluster: &Cluster, reason: &str| {
        let what = format!("somebody to be refused as {reason}");
        cluster.assert_status(SOON, &what, |status| {
            status["heartbeats"]["refused"][reason].as_u64() > Some(0)
        });
        assert!(!is_worker(&cluster.status().unwrap(), "worker2"));
        assert!(!is_worker(&cluster.status().unwrap(), "worker9"));
    };
    let start = |cluster: &Cluster, node: &memlb_tests::Node, name: &str, key: Option<&str>| {
        let mut command = node.command(&cluster.binary);
        command.args(["agent", "--name", name, "--manager"]);
        command.arg(cluster.heartbeat_address().to_string());
        if let Some(key) = key {
            command.arg("--key").arg(key);
        }
        let log = cluster.paths.directory.join(format!("{name}.stranger.log"));
        Process::start("stranger", &mut command, &log).unwrap()
    };
    let key = cluster.key_file(1).unwrap().display().to_string();

    // Without a key, from where others may.
    let workers = &cluster.topology.workers;
    drop(start(&cluster, &workers[1], "worker2", None));
    let stranger = Sender::open(&workers[1], cluster.heartbeat_address()).unwrap();
    for seq in 1..10 {
        let datagram = memlb_tests::datagram::heartbeat("worker2", 1, seq, 690 * 1024);
        stranger.send(datagram).unwrap();
    }
    refused(&cluster, "unsigned");
    // With a key that the manager does not know.
    let unknown = cluster.paths.directory.join("worker9.key");
    let mut keygen = cluster.topology.manager.command(&cluster.binary);
    output(
        keygen
            .args(["keygen", "--name", "worker9", "--output"])
            .arg(&unknown),
    )
    .unwrap();
    let agent = start(&cluster, &workers[1], "worker9", unknown.to_str());
    refused(&cluster, "unknown_key");
    drop(agent);
    // With the right key, from elsewhere.
    let agent = start(&cluster, &workers[0], "worker2", Some(&key));
    refused(&cluster, "unknown_worker");
    drop(agent);
    assert!(cluster.events_of("worker_joined").unwrap().is_empty());

    // Who has joined is not heard from elsewhere, either.
    cluster.start_agent(1).unwrap();
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
    cluster.kill_agent(1).unwrap();
    let workers = &cluster.topology.workers;
    let agent = start(&cluster, &workers[0], "worker2", Some(&key));
    cluster.wait_for_state("worker2", "down", SOON).unwrap();
    assert_eq!(
        cluster.backend("worker2").unwrap()["address"],
        "192.168.56.104:8082"
    );
    drop(agent);
}

#[root_test]
fn unsigned_agents_do_not_join_even_if_accepted() {
    let mut cluster = start_with("permissive", "192.168.56.104/32");
    let stranger = Sender::open(&cluster.topology.workers[1], cluster.heartbeat_address()).unwrap();
    for seq in 1..10 {
        let datagram = memlb_tests::datagram::heartbeat("worker2", 1, seq, 690 * 1024);
        stranger.send(datagram).unwrap();
    }
    cluster.assert_status(SOON, "the unsigned to be refused", |status| {
        status["heartbeats"]["refused"]["unknown_worker"].as_u64() == Some(9)
    });
    assert!(!is_worker(&cluster.status().unwrap(), "worker2"));
    assert!(cluster.events_of("worker_joined").unwrap().is_empty());
    // From the same address, signed.
    cluster.start_agent(1).unwrap();
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
}

#[root_test]
fn a_worker_joins_when_a_reload_finds_its_key() {
    let mut cluster = start_with_network("192.168.56.0/24");
    let key = cluster.key_file(1).unwrap();
    let elsewhere = cluster.paths.directory.join("later.key");
    fs::rename(&key, &elsewhere).unwrap();
    cluster.restart_manager().unwrap();
    let mut command = cluster.topology.workers[1].command(&cluster.binary);
    command.args(["agent", "--name", "worker2", "--manager"]);
    command.arg(cluster.heartbeat_address().to_string());
    command.arg("--key").arg(&elsewhere);
    let log = cluster.paths.directory.join("later.log");
    let agent = Process::start("agent", &mut command, &log).unwrap();
    eventually(SOON, "the key to be unknown", || {
        cluster
            .status()
            .is_ok_and(|status| status["heartbeats"]["refused"]["unknown_key"].as_u64() > Some(3))
    });
    assert!(!is_worker(&cluster.status().unwrap(), "worker2"));
    fs::copy(&elsewhere, &key).unwrap();
    let manager = cluster.manager.as_mut().unwrap();
    manager.signal(nix::sys::signal::Signal::SIGHUP).unwrap();
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
    drop(agent);
}
