//! The test harness: its networks, servers and clients work, and are removed afterwards.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    net::SocketAddrV4,
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use memlb_tests::{
    Connection, Namespace, Nginx, Node, Probe, Process, Shape, Topology,
    client::get,
    eventually,
    load::{self, Ending, Load, Server, Sources},
    namespace::unique_prefix,
    root_test,
};

const PATIENCE: Duration = Duration::from_secs(2);

#[root_test]
fn serves_pages_between_all_nodes_of_a_one_arm_topology() {
    let files = Files::new();
    let topology = Topology::create(Shape::OneArm, 2).unwrap();
    let _servers = serve(&topology, files.path());
    for (worker, page) in topology.workers.iter().zip(["Worker1", "Worker2"]) {
        assert_eq!(page_of(&topology.client, worker), page);
        assert_eq!(page_of(&topology.manager, worker), page);
    }
}

#[root_test]
fn separates_client_and_workers_in_a_two_arm_topology() {
    let files = Files::new();
    let topology = Topology::create(Shape::TwoArm, 1).unwrap();
    let _servers = serve(&topology, files.path());
    let worker = &topology.workers[0];
    assert_eq!(page_of(&topology.manager, worker), "Worker1");

    let server = SocketAddrV4::new(worker.address(), 8080).into();
    let soon = Duration::from_millis(200);
    assert!(
        get(&topology.client, server, "/", soon).is_err(),
        "the manager forwards by itself"
    );
    topology
        .manager
        .run("sysctl", &["-w", "net.ipv4.ip_forward=1"])
        .unwrap();
    assert_eq!(page_of(&topology.client, worker), "Worker1");
}

#[root_test]
fn takes_uploads() {
    let files = Files::new();
    let topology = Topology::create(Shape::OneArm, 1).unwrap();
    let servers = serve(&topology, files.path());
    let server = SocketAddrV4::new(topology.workers[0].address(), 8080).into();
    let body = b"0123456789abcdef".repeat(1 << 16);

    let mut connection = Connection::open(&topology.client, server, PATIENCE).unwrap();
    assert_eq!(connection.put("/upload/one", &body).unwrap().status, 201);
    assert_eq!(connection.get("/upload/one").unwrap().body, body);
    assert_eq!(
        fs::read(servers[0].root().join("upload/one")).unwrap(),
        body
    );
}

#[root_test]
fn opens_connections_at_a_rate_and_many_at_once() {
    const PORT: u16 = 8081;
    let topology = Topology::create(Shape::OneArm, 1).unwrap();
    load::prepare(&topology).unwrap();
    let targets = [SocketAddrV4::new(topology.workers[0].address(), PORT)];
    let stop = AtomicBool::new(false);
    let load = |sources, ending| Load {
        targets: &targets,
        sources,
        ending,
        stop: &stop,
    };
    let short = |load| {
        let second = Duration::from_secs(1);
        load::open_at_rate(&topology.client, load, 200, second).unwrap()
    };
    let refused = short(load(Sources::EverNew, Ending::ClientFin));
    assert_eq!((refused.refused(), refused.answer_us.len()), (200, 0));

    let _server = Server::start(&topology.workers[0], PORT).unwrap();
    for ending in [
        Ending::ServerFin,
        Ending::ServerReset,
        Ending::ClientFin,
        Ending::ClientReset,
    ] {
        let tally = short(load(Sources::Few(3), ending));
        let counts = (tally.failed(), tally.answer_us.len());
        assert_eq!(counts, (0, 200), "{ending:?}: {:?}", tally.failures);
    }
    let held = load(Sources::One, Ending::ClientReset);
    for tally in load::hold_twice(&topology.client, held, 301).unwrap() {
        assert_eq!((tally.failed(), tally.lost), (0, 0));
        assert_eq!(tally.answer_us.len(), 301);
    }
}

#[root_test]
fn probe_measures_an_interruption() {
    let files = Files::new();
    let topology = Topology::create(Shape::OneArm, 1).unwrap();
    let _servers = serve(&topology, files.path());
    let worker = &topology.workers[0];
    let server = SocketAddrV4::new(worker.address(), 8080).into();
    let every = Duration::from_millis(10);
    let probe = Probe::start(&topology.client, server, every, PATIENCE).unwrap();
    probe
        .wait_for_page("Worker1", Instant::now(), PATIENCE)
        .unwrap();

    let cut_at = Instant::now();
    worker.disconnect().unwrap();
    eventually(PATIENCE, "half a second to pass", || {
        cut_at.elapsed() >= PATIENCE / 4
    });
    worker.reconnect().unwrap();
    let away = cut_at.elapsed();
    probe
        .wait_for_page("Worker1", Instant::now(), PATIENCE)
        .unwrap();

    let outage = probe.stop().unwrap().longest_outage();
    assert!(
        outage >= PATIENCE / 4 && outage < away + PATIENCE,
        "{outage:?} of {away:?}"
    );
}

#[root_test]
fn leaves_nothing_behind_when_a_test_panics() {
    let mut namespaces = Vec::new();
    let mut pid = 0;
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        let topology = Topology::create(Shape::OneArm, 1).unwrap();
        namespaces.extend([&topology.client, &topology.manager].map(|node| node.name().to_owned()));
        let mut sleep = topology.client.command("sleep");
        pid = sleep
            .arg("1000")
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
            .id();
        eventually(PATIENCE, "sleep to run in the namespace", || {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
        });
        panic::resume_unwind(Box::new("the test has failed"));
    }));
    assert!(outcome.is_err());
    for name in namespaces {
        assert!(
            !Path::new("/run/netns").join(&name).exists(),
            "{name} is still there"
        );
    }
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(
        state.is_empty() || state.contains(" Z "),
        "a process goes on: {state}"
    );
}

#[root_test]
fn kills_a_process_with_its_children() {
    let files = Files::new();
    let log = files.path().join("log");
    let mut shell = Command::new("sh");
    shell.args(["-c", "sleep 1000 & echo $!; wait"]);
    let mut process = Process::start("a shell", &mut shell, &log).unwrap();
    process.wait_for_log(PATIENCE, "\n").unwrap();
    let child = Path::new("/proc").join(process.log().trim());
    assert!(child.exists());
    process.kill().unwrap();
    eventually(PATIENCE, "the shell's child to end", || {
        fs::read_to_string(child.join("stat")).is_ok_and(|stat| stat.contains(" Z "))
            || !child.exists()
    });
    assert!(process.kill().is_err());
}

#[root_test]
fn refuses_a_name_in_use() {
    let name = unique_prefix() + "only";
    let namespace = Namespace::create(&name).unwrap();
    assert!(Namespace::create(&name).is_err());
    assert!(
        namespace
            .run("ip", &["-brief", "link"])
            .unwrap()
            .contains("lo")
    );
}

fn serve(topology: &Topology, files: &Path) -> Vec<Nginx> {
    let start = |(index, worker): (usize, &Node)| {
        let page = format!("Worker{}", index + 1);
        Nginx::start(worker, 8080, &page, &files.join(&page)).unwrap()
    };
    topology.workers.iter().enumerate().map(start).collect()
}

fn page_of(client: &Namespace, worker: &Node) -> String {
    let server = SocketAddrV4::new(worker.address(), 8080).into();
    get(client, server, "/", PATIENCE).unwrap().first_line()
}

/// A folder that is gone after the test.
struct Files(std::path::PathBuf);

impl Files {
    fn new() -> Self {
        let path = std::env::temp_dir().join(unique_prefix() + "files");
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}
