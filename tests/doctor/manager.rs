//! Problems on a manager's host, apart from the typical ones.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    process::Command,
};

use memlb_tests::{
    Cluster, Shape,
    cli::assert_failure,
    command::output,
    observe::{self, bpftool},
    root_test,
};

use crate::{
    SOON,
    diagnosis::{Diagnosis, diagnose, manager},
};

fn start(shape: Shape) -> Cluster {
    Cluster::with(|it| it.shape = shape)
}

/// Finds the problem, types its remedy, and finds nothing more.
fn finds_and_mends(cluster: &Cluster, check: &str, says: &str, remedy: &str) {
    let diagnosis = manager(cluster);
    let found = diagnosis.problem(check, says);
    found.assert_remedy(remedy);
    found.run_remedies(&cluster.topology.manager);
    let diagnosis = manager(cluster);
    let left = diagnosis.findings.iter();
    let left: Vec<_> = left
        .filter(|it| it.check == check && it.severity == "problem")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Replaces `from` with `to` in the configuration; the running manager does not read it.
fn reword(cluster: &Cluster, from: &str, to: &str) {
    let file = cluster.paths.directory.join("memlb.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&file, text.replace(from, to)).unwrap();
}

#[root_test]
fn an_interface_that_is_down_or_cut_off() {
    let cluster = start(Shape::OneArm);
    let node = &cluster.topology.manager;
    node.run("ip", &["link", "set", "eth1", "down"]).unwrap();
    let diagnosis = manager(&cluster);
    diagnosis.problem("worker", "there is no route to 192.168.56.103");
    finds_and_mends(&cluster, "interface", "eth1 is down", "ip link set eth1 up");
    node.disconnect().unwrap();
    manager(&cluster)
        .problem("interface", "eth1 is up but has no carrier")
        .assert_remedy("ethtool eth1");
    node.reconnect().unwrap();
}

#[root_test]
fn different_mtus() {
    let cluster = start(Shape::TwoArm);
    let node = &cluster.topology.manager;
    node.run("ip", &["link", "set", "eth2", "mtu", "1400"])
        .unwrap();
    let diagnosis = manager(&cluster);
    let found = diagnosis.finding("warning", "mtu", "eth1 1500, eth2 1400");
    found.assert_remedy("ip link set eth1 mtu 1400");
    found.run_remedies(node);
    assert!(
        manager(&cluster)
            .findings
            .iter()
            .all(|it| it.check != "mtu")
    );
}

#[root_test]
fn ports_in_the_kernels_range() {
    let cluster = start(Shape::OneArm);
    let node = &cluster.topology.manager;
    node.run("sysctl", &["-w", "net.ipv4.ip_local_port_range=1024 60999"])
        .unwrap();
    finds_and_mends(
        &cluster,
        "ports",
        "nat_ports 4096-32767 overlap 1024-60999",
        "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"",
    );
    manager(&cluster).assert_healthy();
}

#[root_test]
fn a_service_address_that_is_not_local() {
    let cluster = start(Shape::OneArm);
    reword(&cluster, "192.168.56.101", "192.168.56.150");
    finds_and_mends(
        &cluster,
        "service",
        "web: 192.168.56.150 is not an address of this host",
        "ip address add 192.168.56.150/24 dev eth1",
    );
    manager(&cluster).assert_healthy();
}

#[root_test]
fn a_fallback_without_a_server() {
    let mut cluster = start(Shape::OneArm);
    cluster.fallback.process.kill().unwrap();
    manager(&cluster)
        .problem("fallback", "web: no server listens at 192.168.56.101:8080")
        .assert_remedy("--set service.web.fallback=reject");
}

#[root_test]
fn a_worker_without_a_route_or_on_the_wrong_side() {
    let mut cluster = start(Shape::TwoArm);
    reword(&cluster, "192.168.57.103", "10.9.9.9");
    manager(&cluster)
        .problem("worker", "worker1: there is no route to 10.9.9.9")
        .assert_remedy("ip route add 10.9.9.9 via ROUTER dev eth1");
    reword(&cluster, "10.9.9.9", "192.168.57.99");
    manager(&cluster)
        .problem("worker", "worker1: 192.168.57.99 does not answer on eth2")
        .assert_remedy("ip neighbour show 192.168.57.99 dev eth2");
    // Where a manager runs, it is attached to both.
    cluster.kill_manager().unwrap();
    let mut command = cluster.configured("doctor");
    command.args(["--interface", "eth1"]);
    diagnose(command)
        .problem(
            "worker",
            "the route to 192.168.57.99 is through eth2, to which memlb is not attached",
        )
        .assert_remedy("memlb manager --interface eth1 --interface eth2");
}

#[root_test]
fn keys_that_others_can_read() {
    let cluster = Cluster::with(|it| it.authentication = Some("enforce"));
    let key = cluster.key_file(1).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let remedy = format!("chmod 600 {}", key.display());
    finds_and_mends(
        &cluster,
        "keys",
        "can be used by others than its owner",
        &remedy,
    );
    fs::remove_file(&key).unwrap();
    manager(&cluster)
        .problem("keys", "there is no key of worker2")
        .assert_remedy("memlb keygen --name worker2 --output");
}

#[root_test]
fn leftover_pins() {
    let mut cluster = start(Shape::OneArm);
    cluster.kill_manager().unwrap();
    let diagnosis = manager(&cluster);
    diagnosis.assert_healthy();
    let found = diagnosis.finding("warning", "pins", "left of a manager that no longer runs");
    found.assert_remedy("memlb unload --pin-path");
    diagnosis.finding("warning", "manager", "none runs");

    // As another version of memlb would have left them.
    let settings = cluster.map("settings");
    let entry = bpftool(&[
        "map", "lookup", "pinned", &settings, "key", "0", "0", "0", "0",
    ])
    .unwrap();
    let bytes = entry["value"].as_array().unwrap().iter();
    let mut bytes: Vec<String> = bytes.map(|it| it.as_str().unwrap().to_owned()).collect();
    bytes[0] = "0x63".to_owned();
    let key = [
        "map", "update", "pinned", &settings, "key", "0", "0", "0", "0", "value",
    ];
    output(Command::new("bpftool").args(key).args(bytes)).unwrap();
    let diagnosis = manager(&cluster);
    let found = diagnosis.problem("pins", "have layout 99");
    let unload = format!(
        "memlb unload --pin-path {}",
        cluster.paths.pin_path.display()
    );
    found.assert_remedy(&unload);
    // Typed with this memlb and no other that may be installed.
    let directory = cluster.binary.parent().unwrap().display();
    let mut command = cluster.topology.manager.command("sh");
    let typed = found.remedy.split("    (").next().unwrap();
    output(command.args(["-ec", &format!("PATH={directory}:$PATH; {typed}")])).unwrap();
    let diagnosis = manager(&cluster);
    diagnosis.finding("ok", "pins", "nothing is pinned");
    cluster.start_manager().unwrap();
    manager(&cluster).finding("ok", "pins", "is held by memlb");
}

#[root_test]
fn a_bpf_file_system_that_is_not_mounted() {
    let mut cluster = start(Shape::OneArm);
    cluster.kill_manager().unwrap();
    let inside = |script: &str| {
        let doctor = cluster.configured("doctor");
        let mut command = cluster.topology.manager.command("unshare");
        command.args(["--mount", "sh", "-ec", script, "sh"]);
        // Behind the way into the network, which is behind already.
        command.args(doctor.get_args().skip(2));
        diagnose(command)
    };
    let unmount = "while umount /sys/fs/bpf 2>&-; do :; done";
    let diagnosis = inside(&format!("{unmount}; exec \"$@\""));
    let found = diagnosis.finding("warning", "bpffs", "no BPF file system is mounted");
    assert_eq!(found.remedy, "mount -t bpf bpf /sys/fs/bpf");
    // Who may load programs, but not mount, does not get by.
    let poor = "--inh-caps=-all,+bpf,+net_admin,+perfmon --bounding-set=-sys_admin";
    let diagnosis = inside(&format!("{unmount}; exec setpriv {poor} -- \"$@\""));
    diagnosis.problem("bpffs", "this user may not mount it");
    // The remedy is one.
    let diagnosis = inside(&format!("{unmount}; {}; exec \"$@\"", found.remedy));
    diagnosis.finding("ok", "bpffs", "writable");
    let mut elsewhere = cluster.topology.manager.command(&cluster.binary);
    elsewhere.args(["doctor", "--interface", "eth1", "--pin-path", "/tmp/memlb"]);
    diagnose(elsewhere)
        .problem("bpffs", "/tmp/memlb is not in a BPF file system")
        .assert_remedy("--pin-path /sys/fs/bpf/memlb");
}

#[root_test]
fn capabilities_that_are_missing() {
    let cluster = start(Shape::OneArm);
    let with = |capabilities: &str| -> Diagnosis {
        let doctor = cluster.configured("doctor");
        let mut command = Command::new("setpriv");
        command.args([
            format!("--inh-caps={capabilities}"),
            format!("--bounding-set={capabilities}"),
        ]);
        // Entering the network takes privileges that are gone afterwards.
        let arguments: Vec<_> = doctor.get_args().collect();
        let (network, rest) = arguments.split_first().unwrap();
        let mut inside = Command::new("nsenter");
        inside.arg(network).arg("--").arg("setpriv");
        inside.args(command.get_args()).args(rest);
        diagnose(inside)
    };
    let diagnosis = with("-all");
    let found = diagnosis.problem("capabilities", "lacks CAP_BPF CAP_NET_ADMIN CAP_PERFMON");
    found.assert_remedy("AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON");
    let diagnosis = with("-sys_admin,-perfmon");
    let found = diagnosis.problem("capabilities", "lacks CAP_PERFMON:");
    found.assert_remedy("AmbientCapabilities=CAP_PERFMON");
}

#[root_test]
fn another_program_at_the_heartbeats_port() {
    let mut cluster = start(Shape::OneArm);
    cluster.kill_manager().unwrap();
    let _stranger = cluster
        .topology
        .manager
        .enter(|| UdpSocket::bind("0.0.0.0:9999"))
        .unwrap()
        .unwrap();
    let own = std::process::id();
    let diagnosis = manager(&cluster);
    let found = diagnosis.problem("heartbeats", &format!("(process {own})"));
    found.assert_remedy(&format!("kill {own}"));
    let refused = cluster.manager_command().output().unwrap();
    assert_failure(&refused, 1, &[&format!("(process {own})")]);
}

#[root_test]
fn a_firewall_that_lets_no_heartbeat_in() {
    let cluster = start(Shape::OneArm);
    let node = &cluster.topology.manager;
    let ruleset = "add table inet filter; add chain inet filter input \
                   { type filter hook input priority 0; policy drop; }; \
                   add rule inet filter input ct state established accept; \
                   add rule inet filter input iif lo accept";
    node.run("nft", &[ruleset]).unwrap();
    cluster.wait_for_state("worker1", "down", SOON).unwrap();
    let diagnosis = manager(&cluster);
    diagnosis.problem("heartbeats", "worker1 sent its last heartbeat");
    let found = diagnosis.finding("warning", "firewall", "no rule accepts udp 9999");
    found.assert_remedy("nft insert rule inet filter input udp dport 9999 accept");
    found.run_remedies(node);
    for port in [
        "tcp 8080: clients do not reach the fallback",
        "tcp 80: clients of web time out",
    ] {
        let found = diagnosis.finding("warning", "firewall", port);
        found.run_remedies(node);
    }
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    manager(&cluster).finding("ok", "firewall", "accepts the packets that memlb needs");
}

#[root_test]
fn an_unwritable_directory() {
    let cluster = start(Shape::OneArm);
    let place = cluster.paths.directory.join("mounted");
    fs::create_dir(&place).unwrap();
    let shown = place.display().to_string();
    let inside = |options: &str| {
        let mut command = cluster.topology.manager.command("unshare");
        let script = format!("mount -t tmpfs -o {options} none {shown}; exec \"$@\"");
        command.args(["--mount", "sh", "-ec", &script, "sh"]);
        command
            .arg(&cluster.binary)
            .args(["doctor", "--interface", "eth1"]);
        command.args(["--event-log", &format!("{shown}/memlb/events.jsonl")]);
        diagnose(command)
    };
    let diagnosis = inside("ro");
    let found = diagnosis.problem("storage", "memlb/events.jsonl cannot be written");
    found.assert_remedy("mount -o remount,rw");
    let diagnosis = inside("size=1m");
    let found = diagnosis.finding("warning", "storage", "1.0 MiB are left for the event log");
    found.assert_remedy(&format!("df -h {shown}"));
}

#[root_test]
fn a_worker_that_is_not_in_the_configuration() {
    let cluster = Cluster::with(|it| {
        it.agents = false;
        it.agent_arguments = Vec::new();
    });
    let mut command = cluster.topology.workers[0].command(&cluster.binary);
    command.args([
        "agent",
        "--quiet",
        "--name",
        "wroker1",
        "--manager",
        "192.168.56.101",
    ]);
    let log = cluster.paths.directory.join("misnamed.log");
    let mut agent = memlb_tests::Process::start("misnamed", &mut command, &log).unwrap();
    cluster.assert_status(SOON, "it to be refused", |status| {
        status["heartbeats"]["refused"]["unknown_worker"].is_number()
    });
    let diagnosis = manager(&cluster);
    let found = diagnosis.problem(
        "heartbeats",
        "worker1 has sent no valid heartbeat: the manager refuses its datagrams (unknown_worker)",
    );
    found.assert_remedy("memlb agent --name NAME, with a NAME that `memlb workers` lists");
    // It is told so itself.
    agent
        .wait_for_log(SOON, "has no worker named wroker1")
        .unwrap();
    let mut command = cluster.topology.workers[0].command(&cluster.binary);
    command.args(["doctor", "--agent", "--name", "wroker1"]);
    command.args(["--manager", "192.168.56.101"]);
    let diagnosis = diagnose(command);
    let found = diagnosis.problem("manager", "answers, but has no worker named wroker1");
    found.assert_remedy("memlb agent --name NAME");
}

#[root_test]
fn a_manager_in_another_network_is_found_by_the_variable() {
    let cluster = start(Shape::OneArm);
    let run = |at: &memlb_tests::Namespace| {
        let mut command = at.command(&cluster.binary);
        command.arg("doctor");
        command.env("MEMLB_CONTROL_SOCKET", cluster.paths.control_socket());
        diagnose(command)
    };
    let elsewhere = run(&cluster.topology.client);
    elsewhere
        .problem("manager", "runs in another network namespace")
        .assert_remedy("--net --mount memlb doctor");
    // There, the values in force count, which options of the command line gave.
    let here = run(&cluster.topology.manager);
    here.assert_healthy();
    here.finding("ok", "config", "the values that the running manager uses");

    let mut status = cluster.topology.client.command(&cluster.binary);
    status.arg("status");
    status.env("MEMLB_CONTROL_SOCKET", cluster.paths.control_socket());
    assert!(output(&mut status).unwrap().contains("service web"));
}

#[root_test]
fn a_page_port_in_use() {
    let mut cluster = start(Shape::OneArm);
    cluster.kill_manager().unwrap();
    manager(&cluster).finding("ok", "http", "is free for a manager");
    let _stranger = cluster
        .topology
        .manager
        .enter(|| TcpListener::bind("127.0.0.1:9998"))
        .unwrap()
        .unwrap();
    let own = std::process::id();
    let diagnosis = manager(&cluster);
    let found = diagnosis.problem("http", &format!("(process {own}): no manager starts"));
    found.assert_remedy(&format!("kill {own}"));
    let refused = cluster.manager_command().output().unwrap();
    let process = format!("(process {own})");
    assert_failure(&refused, 1, &["serve HTTP at 127.0.0.1:9998", &process]);
}

#[root_test]
fn a_worker_that_joined_and_serves_itself_only() {
    let settings = [
        r#"service.web.workers=[{ name = "worker1", address = "192.168.56.103:8081" }]"#,
        r#"service.web.auto_join={ networks = ["192.168.56.0/24"], port = 8082 }"#,
    ];
    let mut cluster = Cluster::with(|it| {
        it.authentication = Some("enforce");
        it.settings = settings.map(str::to_owned).into();
    });
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
    manager(&cluster).finding("ok", "worker", "worker2: 192.168.56.104:8082 answers");
    cluster.servers[1].process.kill().unwrap();
    let diagnosis = manager(&cluster);
    let found = diagnosis.problem(
        "worker",
        "worker2: 192.168.56.104 refuses connections to port 8082",
    );
    found.assert_remedy("on worker2: ss -ltn");
}

#[root_test]
fn a_silent_worker_in_maintenance_is_no_problem() {
    let mut cluster = start(Shape::OneArm);
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
    output(cluster.memlb("maintenance").arg("worker1")).unwrap();
    cluster.kill_agent(0).unwrap();
    cluster.servers[0].process.kill().unwrap();
    cluster.assert_status(SOON, "worker1 to be silent", |status| {
        observe::backend(status, "worker1").is_some_and(|it| it["health"] == "down")
    });
    let diagnosis = manager(&cluster);
    diagnosis.assert_healthy();
    diagnosis.finding("warning", "heartbeats", "worker1 is in maintenance");
    diagnosis.finding("warning", "worker", "worker1: 192.168.56.103 refuses");

    // The other one leaves by itself: no manager serves any more.
    cluster.agents[1].as_mut().unwrap().terminate(SOON).unwrap();
    cluster.wait_for_state("worker2", "leaving", SOON).unwrap();
    let diagnosis = manager(&cluster);
    let because = "because worker1 is in maintenance, worker2 is leaving";
    diagnosis.problem("selection", because);
    diagnosis.finding("warning", "heartbeats", "worker2 left (state leaving)");
}

#[root_test]
fn a_configuration_that_is_not_the_managers() {
    let cluster = start(Shape::OneArm);
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    let file = cluster.paths.directory.join("memlb.toml");
    let runs_with = format!("{}, which the manager runs with", file.display());
    manager(&cluster).finding("ok", "config", &runs_with);
    // Without --config, the manager's is taken.
    let diagnosis = diagnose(cluster.memlb("doctor"));
    diagnosis.finding("ok", "config", &runs_with);

    let other = cluster.paths.directory.join("other.toml");
    fs::copy(&file, &other).unwrap();
    let mut command = cluster.memlb("doctor");
    command.arg("--config").arg(&other);
    let diagnosis = diagnose(command);
    let found = diagnosis.finding("warning", "config", "but the manager runs with");
    assert_eq!(
        found.remedy,
        format!("memlb doctor --config {}", file.display())
    );
}

#[root_test]
fn an_interval_that_is_longer_than_down_after() {
    let cluster =
        Cluster::with(|it| it.agent_arguments = vec!["--interval".to_owned(), "5s".to_owned()]);
    cluster.wait_for_state("worker1", "down", SOON).unwrap();
    let found = manager(&cluster);
    let found = found.problem("heartbeats", "sends a heartbeat only every 5000 ms");
    found.assert_remedy("memlb agent --interval 500ms");
}
