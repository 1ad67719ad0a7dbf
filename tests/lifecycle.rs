//! Start, crash, restart and removal of the manager, and its datapath each time.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use lb_common::{maps::LAYOUT_VERSION, verdict::Verdict};
use memlb_tests::{
    Cluster, ClusterOptions, Connection, Node, Shape, cli::assert_failure, cluster::binary,
    command::output, eventually, observe, root_test, wait_until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
const ACCEPT_LOCAL: &str = "net.ipv4.conf.lo.accept_local";

#[root_test(tc, xdp)]
fn loses_no_request_while_the_manager_is_killed_repeatedly(attach: &str) {
    let mut cluster = start(&ClusterOptions {
        attach: attach.into(),
        ..ClusterOptions::default()
    });
    let mut kept = Connection::open(&cluster.topology.client, cluster.service(), SOON).unwrap();
    let probe = cluster.probe(Duration::from_millis(5)).unwrap();
    let links = cluster.pinned_links().unwrap();
    for _ in 0..10 {
        probe
            .wait_for_page("Worker1", Instant::now(), SOON)
            .unwrap();
        cluster.kill_manager().unwrap();
        assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
        cluster.start_manager().unwrap();
        for worker in ["worker1", "worker2"] {
            cluster.wait_for_state(worker, "up", SOON).unwrap();
        }
    }
    let report = probe.stop().unwrap();
    report.assert_no_failure();
    assert_eq!(report.runs().len(), 1, "{:?}", report.runs());
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    assert_eq!(
        cluster.pinned_links().unwrap(),
        links,
        "programs are replaced in place"
    );
    cluster.require_events("selection_adopted", 10).unwrap();
}

#[root_test]
fn counts_open_connections_correctly_with_evictions() {
    const FLOWS: usize = 512;
    let mut cluster = start(&ClusterOptions {
        settings: vec![format!("limits.flows={FLOWS}")],
        ..ClusterOptions::default()
    });
    let open = |cluster: &Cluster| {
        let client = &cluster.topology.client;
        let mut connection = Connection::open(client, cluster.service(), SOON).ok()?;
        connection.get("/").ok()?;
        Some(connection)
    };
    // Far more than fit, so that the kernel has to evict some, now and then a new one.
    let mut connections: Vec<_> = (0..2 * FLOWS).map(|_| open(&cluster)).collect();
    let worker1 = |cluster: &Cluster| {
        let read = |map: &str| {
            let map = MapData::from_pin(cluster.paths.pin_path.join(map)).unwrap();
            Array::<_, u64>::try_from(Map::Array(map)).unwrap()
        };
        let [active, evicted] = ["active", "evicted"].map(|map| read(map).get(&1, 0).unwrap());
        active.saturating_sub(evicted)
    };
    let is_right = |cluster: &Cluster| {
        let status = cluster.status().unwrap();
        let shown = observe::backend(&status, "worker1").unwrap()["flows"].as_u64();
        let mut flows = cluster.memlb("flows");
        let flows = output(flows.args(["--worker", "worker1", "--json", "--limit", "1"])).unwrap();
        let flows: Value = serde_json::from_str(&flows).unwrap();
        // Those that are in the table.
        let listed = flows["total"].as_u64();
        (shown, listed) == (Some(worker1(cluster)), shown)
    };
    let patience = Duration::from_secs(20);
    eventually(patience, "the count is right", || is_right(&cluster));
    let counted = usize::try_from(worker1(&cluster)).unwrap();
    assert!((1..=FLOWS).contains(&counted), "{counted} are open");

    cluster.kill_manager().unwrap();
    connections.clear();
    cluster.start_manager().unwrap();
    eventually(patience, "nothing is open", || worker1(&cluster) == 0);
    connections.push(open(&cluster));
    assert!(connections[0].is_some());
    eventually(patience, "one is open", || worker1(&cluster) == 1);
}

#[root_test]
fn a_dead_worker_is_detected_although_the_manager_is_killed_repeatedly() {
    /// Less than `down_after`, which is 1.5 s.
    const LIFE: Duration = Duration::from_millis(700);
    let mut cluster = start(&ClusterOptions::default());
    cluster.topology.workers[0].disconnect().unwrap();
    let noticed = |cluster: &Cluster| {
        let down = cluster.events_of("worker_down").unwrap();
        down.iter().any(|event| event["worker"] == "worker1")
    };
    let lives = (1..=5).find(|_| {
        let alive = Instant::now();
        _ = wait_until(LIFE, "the death to be noticed", || noticed(&cluster));
        let noticed = noticed(&cluster);
        assert!(noticed || alive.elapsed() >= LIFE);
        cluster.restart_manager().unwrap();
        noticed
    });
    // Three lives are two seconds of listening; the last moments of each may be forgotten.
    assert!(lives.is_some_and(|lives| lives <= 4), "{lives:?}");
    cluster.require_events("worker_down", 1).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    cluster.topology.workers[0].reconnect().unwrap();
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
}

#[root_test]
fn the_datapath_continues_after_the_manager_stops() {
    let mut cluster = start(&ClusterOptions::default());
    let manager = cluster.manager.as_mut().unwrap();
    assert!(manager.terminate(SOON).unwrap().success());
    assert!(manager.log().contains("the packet programs continue"));
    assert_eq!(cluster.page().unwrap(), "Worker1");
    cluster.require_events("manager_stopped", 1).unwrap();
    assert!(!cluster.paths.control_socket().exists());
    // The worker dies while no manager runs; the next manager detects it.
    cluster.kill_agent(0).unwrap();
    cluster.start_manager().unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
}

#[root_test]
fn adopts_a_selection_made_while_it_was_stopped() {
    let mut cluster = start(&ClusterOptions::default());
    let id = cluster.backend("worker2").unwrap()["backend_id"]
        .as_u64()
        .unwrap();
    cluster.kill_manager().unwrap();
    let hex = |number: u64| u32::try_from(number).unwrap().to_le_bytes();
    update(&cluster.map("selection"), 0, &hex(id));
    assert_eq!(cluster.page().unwrap(), "Worker2");
    cluster.start_manager().unwrap();
    assert_eq!(cluster.page().unwrap(), "Worker2");
    let status = cluster.status().unwrap();
    assert_eq!(status["services"][0]["selected"], "worker2");
}

#[root_test]
fn applies_a_changed_configuration() {
    let mut cluster = start(&ClusterOptions::default());
    let mut kept = Connection::open(&cluster.topology.client, cluster.service(), SOON).unwrap();
    cluster.kill_manager().unwrap();
    // Worker2 goes, another service comes, and the order is another one.
    let file = cluster.paths.directory.join("memlb.toml");
    let text = fs::read_to_string(&file).unwrap();
    let web = text.find("[[service]]").unwrap();
    let worker2 = text
        .lines()
        .find(|line| line.contains("worker2"))
        .unwrap()
        .to_owned();
    let other = text[web..]
        .replace("\"web\"", "\"other\"")
        .replace(":80\"", ":81\"");
    let text = format!(
        "{}{other}\n{}",
        &text[..web],
        text[web..].replace(&worker2, "")
    );
    fs::write(&file, text).unwrap();
    cluster.start_manager().unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    assert_eq!(cluster.page().unwrap(), "Worker1");
    let mut other = cluster.service();
    other.set_port(81);
    eventually(SOON, "the other service to serve", || {
        memlb_tests::client::get(&cluster.topology.client, other, "/", SOON)
            .is_ok_and(|response| response.first_line() == "Worker1")
    });
    cluster.kill_agent(0).unwrap();
    cluster.wait_for_page("Manager", SOON).unwrap();
}

#[root_test]
fn refuses_to_be_the_second_manager() {
    let cluster = start(&ClusterOptions::default());
    let links = cluster.pinned_links().unwrap();
    let manager = &cluster.topology.manager;
    let elsewhere = Elsewhere::new(&cluster);

    // Exactly the same once more.
    let refused = cluster.manager_command().output().unwrap();
    assert_failure(
        &refused,
        1,
        &["0.0.0.0:9999", "in use", "--heartbeat-listen"],
    );
    // Another port, the same pins.
    let mut command = elsewhere.manager(manager);
    command
        .args(["--heartbeat-listen", "0.0.0.0:9998", "--pin-path"])
        .arg(&cluster.paths.pin_path);
    let pins = cluster.paths.pin_path.display().to_string();
    assert_failure(&finish(&mut command), 1, &["another memlb manager", &pins]);
    // Another machine, as far as the network goes, and the same pins.
    let mut command = elsewhere.manager(&cluster.topology.workers[1]);
    command.arg("--pin-path").arg(&cluster.paths.pin_path);
    assert_failure(&finish(&mut command), 1, &["another memlb manager", &pins]);
    // Another port, other pins, the same control socket.
    let mut command = elsewhere.manager_at(manager, &cluster.paths.control_socket());
    command
        .args(["--heartbeat-listen", "0.0.0.0:9998", "--pin-path"])
        .arg(&elsewhere.pins);
    assert_failure(
        &finish(&mut command),
        1,
        &["another manager answers", "--control-socket"],
    );
    assert!(!elsewhere.pins.exists(), "pins are left behind");
    // All of its own but the orders.
    let mut command = elsewhere.manager(manager);
    command
        .args(["--heartbeat-listen", "0.0.0.0:9998", "--http-listen", ""])
        .arg("--pin-path")
        .arg(&elsewhere.pins)
        .arg("--state-file")
        .arg(cluster.paths.state_file());
    let orders = cluster.paths.state_file().display().to_string();
    assert_failure(&finish(&mut command), 1, &[&orders, "manager.state_file"]);
    assert!(!elsewhere.pins.exists(), "pins are left behind");

    // Nor does anybody remove what is in use.
    let refused = finish(&mut cluster.memlb("unload"));
    assert_failure(&refused, 1, &["a running memlb manager", "stop it first"]);
    assert_eq!(cluster.pinned_links().unwrap(), links);
    assert_eq!(cluster.page().unwrap(), "Worker1");
    assert!(cluster.status().is_ok());
}

#[root_test]
fn refuses_pins_of_another_layout_and_suggests_a_solution() {
    let mut cluster = start(&ClusterOptions::default());
    cluster.kill_manager().unwrap();
    let settings = cluster.map("settings");
    let mut value = entry_of(&settings);
    value[0] = 99;
    update(&settings, 0, &value);
    let pins = cluster.paths.pin_path.display().to_string();
    let remedy = format!("memlb unload --pin-path {pins}");
    let refused = finish(&mut cluster.manager_command());
    let own = format!("layout {LAYOUT_VERSION}");
    assert_failure(&refused, 1, &["layout 99", &own, &remedy]);
    // It has touched nothing.
    assert_eq!(cluster.page().unwrap(), "Worker1");

    // The remedy is one.
    let links = cluster.pinned_links().unwrap();
    unload(&cluster);
    assert_gone(&cluster, &links);
    cluster.start_manager().unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
}

#[root_test]
fn refuses_a_foreign_map_at_its_pin() {
    let mut cluster = start(&ClusterOptions::default());
    cluster.kill_manager().unwrap();
    unload(&cluster);
    fs::create_dir(&cluster.paths.pin_path).unwrap();
    let settings = cluster.map("settings");
    let create = [
        "map", "create", &settings, "type", "array", "key", "4", "value", "24", "entries", "1",
        "name", "settings",
    ];
    output(Command::new("bpftool").args(create)).unwrap();
    let refused = finish(&mut cluster.manager_command());
    assert_failure(&refused, 1, &["of another version", "memlb unload"]);
    assert!(cluster.pinned_links().unwrap().is_empty());
    unload(&cluster);
    assert!(!cluster.paths.pin_path.exists());
}

#[root_test]
fn reports_a_map_with_fewer_entries_than_verdicts() {
    let mut cluster = start(&ClusterOptions::default());
    // As an earlier memlb, which counted fewer verdicts, would have left it.
    let verdicts = cluster.map("verdicts");
    fs::remove_file(&verdicts).unwrap();
    let create = [
        "map",
        "create",
        &verdicts,
        "type",
        "percpu_array",
        "key",
        "4",
        "value",
        "16",
        "entries",
        "3",
        "name",
        "verdicts",
    ];
    output(Command::new("bpftool").args(create)).unwrap();
    let difference = format!(
        "map verdicts has number of entries 3, not {}",
        Verdict::COUNT
    );
    let shown = output(&mut cluster.memlb("status")).unwrap();
    assert!(shown.contains("worker1"), "{shown}");
    assert!(shown.contains(&difference), "{shown}");
    assert_eq!(cluster.page().unwrap(), "Worker1");

    cluster.kill_manager().unwrap();
    let refused = finish(&mut cluster.manager_command());
    assert_failure(&refused, 1, &[&difference, "memlb unload --pin-path"]);
    unload(&cluster);
    assert!(!cluster.paths.pin_path.exists());
}

#[root_test]
fn detaches_and_removes_everything() {
    removes_everything("tc", Shape::TwoArm, "--detach");
}

#[root_test]
fn unloads_and_removes_everything_with_xdp() {
    removes_everything("xdp", Shape::OneArm, "unload");
}

fn removes_everything(attach: &str, shape: Shape, way: &str) {
    let mut cluster = start(&ClusterOptions {
        attach: attach.into(),
        shape,
        ..ClusterOptions::default()
    });
    assert_eq!(accept_local(&cluster.topology.manager), "1");
    // Also after an adoption it is known what there was before.
    cluster.restart_manager().unwrap();
    let links = cluster.pinned_links().unwrap();
    let arms = if shape == Shape::TwoArm { 2 } else { 1 };
    let programs = if attach == "xdp" { 3 } else { 2 };
    assert_eq!(links.len(), 1 + arms * programs);
    cluster.kill_manager().unwrap();

    let mut command = match way {
        "unload" => cluster.memlb("unload"),
        _ => {
            let mut command = cluster.manager_command();
            command.arg("--detach");
            command
        }
    };
    let removed = finish(&mut command);
    let said = String::from_utf8_lossy(&removed.stdout);
    assert!(removed.status.success(), "{removed:?}");
    assert!(said.contains("detached"), "{said}");
    assert_gone(&cluster, &links);
    assert_eq!(accept_local(&cluster.topology.manager), "0");
    assert_untouched(&cluster.topology.manager);
    eventually(SOON, "no server to answer", || cluster.page().is_err());

    // Once more does no harm.
    let again = finish(&mut cluster.memlb("unload"));
    assert!(again.status.success());
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(said.contains("nothing was attached"), "{said}");
}

#[root_test]
fn keeps_the_machines_previous_settings() {
    let mut cluster = start(&ClusterOptions::default());
    cluster.kill_manager().unwrap();
    unload(&cluster);
    let manager = &cluster.topology.manager;
    manager
        .run("sysctl", &["-w", &format!("{ACCEPT_LOCAL}=1")])
        .unwrap();
    cluster.start_manager().unwrap();
    cluster.kill_manager().unwrap();
    unload(&cluster);
    assert_eq!(accept_local(&cluster.topology.manager), "1");
}

#[root_test]
fn leaves_nothing_behind_when_it_cannot_start() {
    let mut cluster = start(&ClusterOptions::default());
    cluster.kill_manager().unwrap();
    unload(&cluster);
    let manager = &cluster.topology.manager;
    let bridge = ["link", "add", "bridge0", "type", "bridge"];
    output(manager.ip().args(bridge)).unwrap();
    output(manager.ip().args(["link", "set", "bridge0", "up"])).unwrap();
    let elsewhere = Elsewhere::new(&cluster);
    let cases: [(&[&str], &[&str]); 6] = [
        (
            &["--interface", "nosuch"],
            &["interface nosuch does not exist", "ip link"],
        ),
        (
            &["--interface", "eth1", "--interface", "nosuch"],
            &["interface nosuch does not exist"],
        ),
        (
            &["--interface", "lo"],
            &["interface lo does not carry Ethernet"],
        ),
        (
            &["--interface", "bridge0", "--attach", "xdp"],
            &["bridge0", "cannot run XDP natively", "or \"tc\""],
        ),
        (
            &[
                "--interface",
                "eth1",
                "--interface",
                "bridge0",
                "--attach",
                "xdp",
            ],
            &["bridge0", "cannot run XDP natively"],
        ),
        (
            &["--interface", "eth1", "--event-log", "/proc/nowhere/events"],
            &["event log", "/proc/nowhere/events", "--event-log"],
        ),
    ];
    for (arguments, says) in cases {
        let mut command = elsewhere.manager(manager);
        command.arg("--pin-path").arg(&elsewhere.pins);
        command.args(arguments);
        assert_failure(&finish(&mut command), 1, says);
        assert!(!elsewhere.pins.exists(), "{arguments:?} leaves pins behind");
        assert!(
            !elsewhere.socket.exists(),
            "{arguments:?} leaves its socket behind"
        );
        assert_eq!(accept_local(manager), "0", "{arguments:?}");
        assert_untouched(manager);
    }
}

#[root_test]
fn selects_the_attachment_and_logs_the_reason() {
    let cluster = start(&ClusterOptions::default());
    let status = cluster.status().unwrap();
    let interface = &status["interfaces"][0];
    assert_eq!(interface["name"], "eth1");
    assert_eq!(interface["attachment"], "tc");
    assert!(interface["reason"].as_str().unwrap().contains("virtual"));
}

/// Files and pins of a manager that shall not come to be.
struct Elsewhere {
    directory: PathBuf,
    socket: PathBuf,
    pins: PathBuf,
    configuration: PathBuf,
}

impl Elsewhere {
    fn new(cluster: &Cluster) -> Self {
        let directory = cluster.paths.directory.clone();
        let pins = cluster.paths.pin_path.display();
        let configuration = directory.join("elsewhere.toml");
        // Without interfaces and log, which the command line gives.
        let text = fs::read_to_string(directory.join("memlb.toml")).unwrap();
        let text = text.replace("[manager]\n", "[manager]\nevent_log = \"\"\n");
        // A service of its own: the cluster's manager serves the other one.
        let text = text.replace(":80\"", ":81\"");
        fs::write(&configuration, text).unwrap();
        Self {
            socket: directory.join("elsewhere.sock"),
            pins: format!("{pins}-elsewhere").into(),
            configuration,
            directory,
        }
    }

    fn manager(&self, node: &Node) -> Command {
        self.manager_at(node, &self.socket)
    }

    fn manager_at(&self, node: &Node, socket: &Path) -> Command {
        let mut command = node.command(binary().unwrap());
        command
            .current_dir(&self.directory)
            .args(["manager", "--config"])
            .arg(&self.configuration)
            .args(["--set", "limits.nat_ports=61000-62000", "--control-socket"])
            .arg(socket);
        command
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if self.pins.exists()
            && let Err(error) = fs::remove_dir_all(&self.pins)
        {
            eprintln!("{error}");
        }
    }
}

fn start(options: &ClusterOptions) -> Cluster {
    Cluster::start_serving(options).unwrap()
}

fn unload(cluster: &Cluster) {
    let unloaded = finish(&mut cluster.memlb("unload"));
    assert!(unloaded.status.success(), "{unloaded:?}");
}

/// Runs a command that must end by itself, and soon.
fn finish(command: &mut Command) -> Output {
    let program = command.get_program().to_owned();
    let mut timed = Command::new("timeout");
    timed.arg("20").arg(program).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        timed.current_dir(directory);
    }
    timed.output().unwrap()
}

/// Expects that a system's links, pins and programs are gone.
fn assert_gone(cluster: &Cluster, links: &std::collections::BTreeSet<u64>) {
    assert!(!cluster.paths.pin_path.exists());
    eventually(SOON, "the links to be gone", || {
        observe::links().is_ok_and(|now| now.is_disjoint(links))
    });
}

/// Expects that no interface of `node` has a program, or will have one in a
/// moment: the kernel takes off what has lost its pin a little later.
fn assert_untouched(node: &Node) {
    eventually(SOON, "the interfaces to be free", || {
        let net = node.run("bpftool", &["-j", "net"]).unwrap();
        let net: Value = serde_json::from_str(&net).unwrap();
        ["xdp", "tc"]
            .iter()
            .all(|hook| net[0][hook] == Value::Array(Vec::new()))
    });
}

fn accept_local(node: &Node) -> String {
    let value = node.run("sysctl", &["-n", ACCEPT_LOCAL]).unwrap();
    value.trim().to_owned()
}

/// Returns the bytes of the one entry of a pinned map.
fn entry_of(map: &str) -> Vec<u8> {
    let entry =
        observe::bpftool(&["map", "lookup", "pinned", map, "key", "0", "0", "0", "0"]).unwrap();
    let byte = |byte: &Value| {
        let digits = byte.as_str().unwrap().trim_start_matches("0x");
        u8::from_str_radix(digits, 16).unwrap()
    };
    entry["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(byte)
        .collect()
}

/// Writes an entry of a pinned array, as a person would.
fn update(map: &str, index: u32, value: &[u8]) {
    let hex =
        |bytes: &[u8]| -> Vec<String> { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    output(
        Command::new("bpftool")
            .args(["map", "update", "pinned", map, "key", "hex"])
            .args(hex(&index.to_le_bytes()))
            .args(["value", "hex"])
            .args(hex(value)),
    )
    .unwrap();
}
