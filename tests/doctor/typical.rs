//! The five typical mistakes: doctor reports each, and so does the affected program.

use std::{fs, net::TcpListener, process::Command, time::Duration};

use memlb_tests::{
    Cluster, ClusterOptions, Process, Shape, cli::assert_failure, command::output, eventually,
    root_test,
};

use crate::{
    SOON,
    diagnosis::{diagnose, manager},
    health::{worker, worker_with},
};

/// A system whose workers run no agents yet.
fn without_agents(authentication: Option<&'static str>) -> Cluster {
    Cluster::start(&ClusterOptions {
        agents: false,
        authentication,
        ..ClusterOptions::default()
    })
    .unwrap()
}

/// Runs a manager that cannot start, and says so.
fn refuses(cluster: &Cluster, arguments: &[&str], says: &[&str]) {
    let mut command = cluster.configured("manager");
    assert_failure(&command.args(arguments).output().unwrap(), 1, says);
}

#[root_test]
fn a_wrong_interface() {
    let mut cluster = Cluster::start(&ClusterOptions {
        shape: Shape::TwoArm,
        agents: false,
        ..ClusterOptions::default()
    })
    .unwrap();
    cluster.kill_manager().unwrap();
    // One that does not exist.
    let mut command = cluster.configured("doctor");
    command.args(["--interface", "eth9"]);
    let diagnosis = diagnose(command);
    let found = diagnosis.problem(
        "interface",
        "eth9 does not exist here; there are eth1, eth2",
    );
    found.assert_remedy("memlb manager --interface eth1");
    let says = ["interface eth9 does not exist here"];
    refuses(&cluster, &["--interface", "eth9"], &says);

    // One that exists, but where no client comes.
    let mut command = cluster.configured("doctor");
    command.args(["--interface", "eth2"]);
    let diagnosis = diagnose(command);
    let found = diagnosis.problem(
        "service",
        "192.168.56.101 is at eth1, but memlb is attached to eth2",
    );
    found.assert_remedy("memlb manager --interface eth1");
    let mut command = cluster.manager_command();
    command.args(["--interface", "eth2"]);
    let log = cluster.paths.directory.join("wrong-interface.log");
    let mut wrong = Process::start("a manager at eth2", &mut command, &log).unwrap();
    wrong
        .wait_for_log(
            SOON,
            "192.168.56.101 is an address of eth1, which is not among",
        )
        .unwrap();
}

#[root_test]
fn a_wrong_key() {
    let cluster = without_agents(Some("enforce"));
    // A key that the manager never saw.
    let other = cluster.paths.directory.join("other.key");
    let mut keygen = cluster.topology.client.command(&cluster.binary);
    keygen.args(["keygen", "--name", "worker1", "--output"]);
    output(keygen.arg(&other)).unwrap();
    // One with the right name and id, but another secret.
    let text = fs::read_to_string(cluster.key_file(1).unwrap()).unwrap();
    let secret = text.split_whitespace().last().unwrap();
    let spoilt = cluster.paths.directory.join("spoilt.key");
    fs::copy(cluster.key_file(1).unwrap(), &spoilt).unwrap();
    fs::write(
        &spoilt,
        text.replace(secret, &secret.chars().rev().collect::<String>()),
    )
    .unwrap();

    let mut agents = Vec::new();
    for (index, file) in [&other, &spoilt].into_iter().enumerate() {
        let mut command = cluster.topology.workers[index].command(&cluster.binary);
        let name = format!("worker{}", index + 1);
        command.args([
            "agent",
            "--quiet",
            "--name",
            &name,
            "--manager",
            "192.168.56.101",
        ]);
        command.arg("--key").arg(file);
        let log = cluster.paths.directory.join(format!("{name}-wrong.log"));
        agents.push(Process::start(&name, &mut command, &log).unwrap());
    }
    for agent in &mut agents {
        agent.wait_for_log(SOON, "does not acknowledge").unwrap();
        agent.wait_for_log(SOON, "does it know key").unwrap();
        agent.wait_for_log(SOON, "memlb doctor --agent").unwrap();
    }
    let diagnosis = manager(&cluster);
    let found = diagnosis.problem(
        "heartbeats",
        "worker1 has sent no valid heartbeat: the manager refuses its datagrams (unknown_key)",
    );
    found.assert_remedy("install -m 600 worker1.key /etc/memlb/keys/worker1.key && memlb reload");
    let found = diagnosis.problem(
        "heartbeats",
        "worker2 has sent no valid heartbeat: the manager refuses its datagrams (bad_signature)",
    );
    found.assert_remedy("memlb keygen --name worker2");

    for (index, file) in [&other, &spoilt].into_iter().enumerate() {
        let mut command = cluster.topology.workers[index].command(&cluster.binary);
        let name = format!("worker{}", index + 1);
        command.args([
            "doctor",
            "--agent",
            "--name",
            &name,
            "--manager",
            "192.168.56.101",
        ]);
        command.arg("--key").arg(file);
        let diagnosis = diagnose(command);
        let found = diagnosis.problem("manager", "does not know key");
        found.assert_remedy("on 192.168.56.101: memlb doctor");
    }
    // The right one for comparison, and that of another worker.
    worker(&cluster, 0).finding("ok", "manager", "and knows the key");
    let mut command = cluster.topology.workers[0].command(&cluster.binary);
    command.args([
        "doctor",
        "--agent",
        "--name",
        "worker1",
        "--manager",
        "192.168.56.101",
    ]);
    command.arg("--key").arg(cluster.key_file(1).unwrap());
    diagnose(command)
        .problem("key", "has a key of worker2, not of worker1")
        .assert_remedy("memlb keygen --name worker1");
}

#[root_test]
fn a_manager_that_the_agent_cannot_reach() {
    let cluster = without_agents(None);
    // No host has the address; a host without a manager has it; no such name.
    for (address, says, remedy) in [
        (
            "192.168.56.222",
            "cannot be reached: No route to host",
            "ip route get 192.168.56.222",
        ),
        (
            "192.168.56.10",
            "its UDP port 9999 is closed",
            "systemctl start memlb-manager",
        ),
        (
            "10.9.9.9",
            "cannot be reached: Network is unreachable",
            "ip route get 10.9.9.9",
        ),
        (
            "manager.invalid",
            "manager.invalid:9999 is not found",
            "getent ahosts manager.invalid",
        ),
    ] {
        let diagnosis = worker_with(&cluster, 0, &["--manager", address]);
        diagnosis.problem("manager", says).assert_remedy(remedy);
    }
    // A firewall drops what is sent to it.
    let drop = "add table inet test; add chain inet test input { type filter hook input priority 0; }; \
                add rule inet test input udp dport 9999 drop";
    cluster.topology.manager.run("nft", &[drop]).unwrap();
    let found = worker(&cluster, 0);
    let found = found.problem(
        "manager",
        "datagrams to its UDP port 9999 are lost on the way",
    );
    found.assert_remedy("on 192.168.56.101: memlb doctor, nft list ruleset");
    let mut command = cluster.agent_command(0, cluster.heartbeat_address());
    let log = cluster.paths.directory.join("unheard.log");
    let mut agent = Process::start("unheard agent", command.arg("--quiet"), &log).unwrap();
    agent
        .wait_for_log(
            SOON,
            "192.168.56.101:9999 does not answer: is the address right",
        )
        .unwrap();
    let diagnosis = manager(&cluster);
    let found = diagnosis.problem(
        "heartbeats",
        "worker1 has sent no valid heartbeat, and nothing was refused",
    );
    found.assert_remedy("on worker1: memlb doctor --agent");

    // Let through, it is heard, and says so.
    cluster
        .topology
        .manager
        .run("nft", &["delete table inet test"])
        .unwrap();
    agent
        .wait_for_log(SOON, "192.168.56.101:9999 answers")
        .unwrap();
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    worker(&cluster, 0).assert_healthy();
}

#[root_test]
fn a_server_that_listens_on_127_0_0_1_only() {
    let mut cluster = Cluster::start(&ClusterOptions::default()).unwrap();
    cluster.servers[0].process.kill().unwrap();
    let diagnosis = manager(&cluster);
    diagnosis.problem(
        "worker",
        "worker1: 192.168.56.103 refuses connections to port 8081",
    );
    let diagnosis = worker(&cluster, 0);
    diagnosis.problem("server", "no server listens at port 8081");

    let _server = cluster.topology.workers[0]
        .enter(|| TcpListener::bind("127.0.0.1:8081"))
        .unwrap()
        .unwrap();
    let diagnosis = manager(&cluster);
    let found = diagnosis.problem("worker", "listens on 127.0.0.1 only");
    found.assert_remedy("on worker1: ss -ltn 'sport = :8081'");
    let mut command = cluster.topology.workers[0].command(&cluster.binary);
    command.args([
        "doctor",
        "--agent",
        "--name",
        "worker1",
        "--manager",
        "192.168.56.101",
    ]);
    command.args(["--check", "tcp://127.0.0.1:8081"]);
    let diagnosis = diagnose(command);
    diagnosis.finding("ok", "server", "tcp://127.0.0.1:8081 answers");
    let found = diagnosis.problem(
        "server",
        "it listens on 127.0.0.1 only: connections that the manager sends to 192.168.56.103:8081",
    );
    found.assert_remedy("let it listen on 0.0.0.0:8081");

    // Its agent, told to ask there, says it by itself.
    let mut command = cluster.agent_command(0, cluster.heartbeat_address());
    command.args(["--quiet", "--check", "tcp://127.0.0.1:8081"]);
    let log = cluster.paths.directory.join("local-server.log");
    let mut agent = Process::start("agent of a local server", &mut command, &log).unwrap();
    agent
        .wait_for_log(SOON, "the server at port 8081 listens on 127.0.0.1 only")
        .unwrap();
}

#[root_test]
fn two_managers() {
    let cluster = Cluster::start(&ClusterOptions::default()).unwrap();
    let first = cluster.manager.as_ref().unwrap().pid();
    let elsewhere = |name: &str| cluster.paths.directory.join(name).display().to_string();
    let pins_beside = cluster.paths.pin_path.display();
    let pins = format!("{pins_beside}/second");
    let socket = elsewhere("second.sock");
    // The same settings but for the socket: the first one's port and pins are named as its.
    let process = format!("memlb (process {first})");
    refuses(&cluster, &[], &[&process, "another manager"]);
    let mut command = cluster.topology.manager.command(&cluster.binary);
    let file = elsewhere("memlb.toml");
    command.args(["doctor", "--config", &file, "--control-socket", &socket]);
    command.args(["--pin-path", &pins]);
    let diagnosis = diagnose(command);
    let belongs = format!("UDP 0.0.0.0:9999 belongs to memlb (process {first}), a second manager");
    let found = diagnosis.problem("heartbeats", &belongs);
    found.assert_remedy("choose another: --heartbeat-listen");
    diagnosis.problem("manager", "is a manager, but not with the control socket");

    // The same service, and the same workers from the same ports.
    let fill_in = |mut command: Command, file: &str| {
        command.args(["manager", "--config", file, "--control-socket", &socket]);
        command.args(["--pin-path", &format!("{pins_beside}-second")]);
        command.args(["--heartbeat-listen", "0.0.0.0:9990"]);
        command.args(["--http-listen", "127.0.0.1:9991", "--event-log", ""]);
        command.args(["--state-file", &elsewhere("second.json")]);
        command
    };
    let second_command =
        |file: &str| fill_in(cluster.topology.manager.command(&cluster.binary), file);
    let expect_refusal = |mut command: Command, parts: &[&str]| {
        assert_failure(&command.output().unwrap(), 1, parts);
    };
    let served =
        format!("192.168.56.101:80/tcp at eth1 is served by memlb (process {first}), for ");
    expect_refusal(
        second_command(&file),
        &[
            "service web: ",
            &served,
            "another address or port than 192.168.56.101:80",
        ],
    );
    // A user who may not see the first one's pins.
    let mut blind = cluster.topology.manager.command("unshare");
    let script = "mount -t bpf bpf /sys/fs/bpf && exec \"$@\"";
    blind.args(["--mount", "sh", "-c", script, "sh"]);
    blind.arg(second_command(&file).get_program());
    blind.args(second_command(&file).get_args());
    expect_refusal(
        blind,
        &[&format!("service {served}"), "stop the other manager"],
    );
    let other = elsewhere("second.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &other,
        text.replace("192.168.56.101:80\"", "192.168.56.101:81\""),
    )
    .unwrap();
    expect_refusal(
        second_command(&other),
        &[
            "limits.nat_ports: 4096-32767 overlap 4096-32767 of memlb",
            "192.168.56.103:8081",
            "--set limits.nat_ports=",
        ],
    );

    // Nothing in common but the packets.
    let mut command = second_command(&other);
    command.args(["--set", "limits.nat_ports=61000-62000"]);
    let log = cluster.paths.directory.join("second.log");
    let mut second = Process::start("a second manager", &mut command, &log).unwrap();
    second
        .wait_for_log(Duration::from_secs(60), "ready")
        .unwrap();
    second
        .wait_for_log(SOON, "another memlb's programs are attached to eth1")
        .unwrap();
    let unload = format!(
        "memlb unload --pin-path {}-second",
        cluster.paths.pin_path.display()
    );
    let diagnosis = manager(&cluster);
    let held = diagnosis.problem("pins", &format!("held by memlb (process {})", second.pid()));
    assert!(
        held.found.contains("serving 192.168.56.101:81/tcp"),
        "{held:?}"
    );
    let remedy = format!("if one manager is enough, stop the other one and {unload}");
    assert_eq!(held.remedy, remedy);
    let found = diagnosis.problem(
        "manager",
        &format!("2 managers run here, the oldest first: memlb (process {first}), for "),
    );
    assert!(
        found
            .found
            .contains(&format!("and memlb (process {}), for ", second.pid())),
        "{found:?}"
    );
    let serves = "(serves 192.168.56.101:81/tcp)";
    assert!(found.found.contains(serves), "{found:?}");
    assert!(!found.remedy.contains("kill"), "{found:?}");
    // It leaves the first one's service alone.
    assert_eq!(cluster.events_of("other_manager_first").unwrap().len(), 0);
    second.terminate(SOON).unwrap();
    // What it serves cannot be read any more, as with an older version: perhaps the same.
    let services = format!("{}-second/services", cluster.paths.pin_path.display());
    fs::remove_file(services).unwrap();
    cluster
        .wait_for_status(SOON, "the first one to notice", |status| {
            status["interfaces"][0]["preceded_by"][0].is_string()
        })
        .unwrap();
    let noticed = cluster.require_events("other_manager_first", 1).unwrap();
    assert_eq!(noticed[0]["interface"], "eth1");
    let metric = "memlb_programs_of_other_managers{interface=\"eth1\"} 1";
    eventually(SOON, metric, || {
        let metrics = ["--silent", "http://127.0.0.1:9998/metrics"];
        let metrics = cluster.topology.manager.run("curl", &metrics);
        metrics.is_ok_and(|it| it.contains(metric))
    });
    // Its programs go on without it.
    let diagnosis = manager(&cluster);
    let left = diagnosis.problem("pins", "another memlb's programs are attached to eth1");
    assert!(left.found.contains("no longer runs"), "{left:?}");
    assert_eq!(left.remedy, unload);
    let mut unload = cluster.topology.manager.command(&cluster.binary);
    unload.args(["unload", "--pin-path"]);
    unload.arg(format!("{}-second", cluster.paths.pin_path.display()));
    output(&mut unload).unwrap();
    manager(&cluster).assert_healthy();
    cluster.require_events("other_manager_gone", 1).unwrap();

    // No interface in common, but the packets come by the other one's.
    let mut command = fill_in(cluster.topology.switch().command(&cluster.binary), &file);
    command.args(["--interface", "switch"]);
    let log = cluster.paths.directory.join("outer.log");
    let mut outer = Process::start("a manager at the switch", &mut command, &log).unwrap();
    outer
        .wait_for_log(Duration::from_secs(60), "ready")
        .unwrap();
    let noticed = cluster.require_events("other_manager_first", 2).unwrap();
    let programs = "ingress in the network namespace at its other end";
    assert_eq!(noticed[1]["programs"][0], programs);
    let diagnosis = manager(&cluster);
    let found = diagnosis.problem("manager", "another memlb also serves 192.168.56.101:80/tcp");
    let held = format!("held by memlb (process {})", outer.pid());
    assert!(found.found.contains(&held), "{found:?}");
    // A third one at a port of the switch would take the packets from that one.
    let mut command = cluster.topology.switch().command(&cluster.binary);
    command.args(["manager", "--config", &file, "--interface", "manager"]);
    command.args(["--control-socket", &elsewhere("third.sock")]);
    command.args(["--pin-path", &format!("{pins_beside}-third")]);
    let outer_serves = format!(
        "at manager is served by memlb (process {}), for ",
        outer.pid()
    );
    expect_refusal(command, &["service web: ", &outer_serves]);
    outer.terminate(SOON).unwrap();
    cluster.require_events("other_manager_gone", 2).unwrap();
}
