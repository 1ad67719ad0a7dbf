//! The tasks of a Docker Swarm as workers: three real Docker daemons in namespaces, and checked traffic throughout.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    env, fs,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use memlb_tests::{
    Cluster, Namespace, Node, Probe, Process, cluster, command::output, eventually, observe,
    root_test, wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
/// Swarm holds a node for dead after about 12 s, and starts its tasks again some seconds after it is back.
const LATE: Duration = Duration::from_secs(60);
/// `failover.down_after`, with time for the machine that runs all of this.
const DOWN_AFTER: Duration = Duration::from_millis(2_500);
const PORT: u16 = 8085;
/// Names the agent's image.
const AGENT_IMAGE: &str = "MEMLB_AGENT_IMAGE";
/// The address of the second manager.
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 102);

/// A Docker daemon as a machine of its own has it. Its process and all that it starts end with it.
struct Daemon {
    process: Process,
    socket: PathBuf,
    address: String,
}

impl Daemon {
    fn start(node: &Node, name: &str, directory: &Path) -> Self {
        let home = directory.join(name);
        fs::create_dir(&home).unwrap();
        let (socket, log) = (home.join("sock"), home.join("log"));
        let at = |file: &str| home.join(file).display().to_string();
        // Not `ip netns exec`, which hides the control groups.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", node.name()))
            .args(["unshare", "--mount", "--uts", "--pid", "--fork"])
            .args(["--kill-child", "--mount-proc", "sh", "-c"])
            .arg(format!("hostname {name}; exec \"$@\""))
            .args(["sh", "dockerd", "--storage-driver", "vfs"])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--pidfile", &at("pid")])
            .arg("--host")
            .arg(format!("unix://{}", socket.display()));
        let mut process = Process::start(name, &mut command, &log).unwrap();
        process.wait_for_log(LATE, "API listen on").unwrap();
        Self {
            process,
            socket,
            address: node.address().to_string(),
        }
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("docker");
        command
            .arg("--host")
            .arg(format!("unix://{}", self.socket.display()));
        output(command.args(arguments)).unwrap().trim().to_owned()
    }
}

/// An image with busybox alone, which every daemon has.
fn image(directory: &Path) -> PathBuf {
    let root = directory.join("image");
    for folder in ["bin", "www", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let found = output(Command::new("sh").args(["-c", "command -v busybox"])).unwrap();
    fs::copy(found.trim(), root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    let archive = directory.join("image.tar");
    output(
        Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&archive)
            .arg("."),
    )
    .unwrap();
    archive
}

/// The agent's image: that of `cargo xtask image` if it is named; else the same with this machine's memlb, and the
/// libraries of one that is not static.
fn agent_image(directory: &Path, memlb: &Path) -> PathBuf {
    if let Some(made) = env::var_os(AGENT_IMAGE) {
        return made.into();
    }
    let (root, archive) = (directory.join("agent"), directory.join("agent.tar"));
    fs::create_dir(&root).unwrap();
    fs::copy(memlb, root.join("memlb")).unwrap();
    let libraries = output(Command::new("ldd").arg(memlb)).unwrap();
    for library in libraries
        .split_whitespace()
        .filter(|it| it.starts_with('/'))
    {
        let copy = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(library, copy).unwrap();
    }
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".");
    output(&mut tar).unwrap();
    archive
}

/// A second memlb manager, without traffic, that follows the same Swarm.
struct SecondManager {
    control_socket: PathBuf,
    _following: Process,
    _manager: Process,
    _node: Node,
}

impl SecondManager {
    fn start(cluster: &Cluster, daemon: &Daemon, directory: &Path) -> Self {
        let namespace = Namespace::create(format!("{}second", cluster.paths.prefix)).unwrap();
        let node = cluster.topology.join(namespace, SECOND, "second").unwrap();
        let home = directory.join("second");
        fs::create_dir(&home).unwrap();
        let (configuration, control_socket) = (home.join("memlb.toml"), home.join("manager.sock"));
        let text = format!(
            r#"
            manager.interfaces = ["eth1"]
            [[service]]
            name = "web"
            address = "{SECOND}:80"
            fallback = "reject"
            policy = "round_robin"
            worker_sources = ["swarm"]
            "#
        );
        fs::write(&configuration, text).unwrap();
        let mut command = node.command(&cluster.binary);
        command.args(["manager", "--config"]).arg(&configuration);
        command.arg("--control-socket").arg(&control_socket);
        command
            .arg("--pin-path")
            .arg(cluster.paths.pin_path.join("second"));
        command.arg("--state-file").arg(home.join("operator.json"));
        command.arg("--event-log").arg(home.join("events.jsonl"));
        let log = home.join("manager.log");
        let mut manager = Process::start("second memlb manager", &mut command, &log).unwrap();
        manager.wait_for_log(LATE, "ready").unwrap();
        let log = home.join("swarm.log");
        Self {
            _following: start_source(&node, &cluster.binary, daemon, &control_socket, &log),
            control_socket,
            _manager: manager,
            _node: node,
        }
    }
}

/// Starts `memlb swarm`.
fn start_source(node: &Node, memlb: &Path, daemon: &Daemon, manager: &Path, log: &Path) -> Process {
    let mut command = node.command(memlb);
    command
        .args(["swarm", "--docker-socket"])
        .arg(&daemon.socket);
    command.arg("--control-socket").arg(manager);
    Process::start("memlb swarm", &mut command, log).unwrap()
}

/// The name, address and state of each worker, sorted.
fn described(control_socket: &Path) -> Vec<String> {
    let status = cluster::status(control_socket).unwrap();
    let backends = status["services"][0]["backends"].as_array().unwrap();
    let workers = backends.iter().filter(|it| it["source"] == "swarm");
    let mut workers: Vec<String> = workers
        .map(|it| format!("{} {} {}", it["name"], it["address"], it["state"]))
        .collect();
    workers.sort();
    workers
}

struct Swarm {
    second: Option<SecondManager>,
    cluster: Cluster,
    daemons: Vec<Daemon>,
    source: Option<Process>,
    directory: tempfile::TempDir,
}

/// How the workers' agents run.
#[derive(Clone, Copy, PartialEq)]
enum Agents {
    Processes,
    /// As a service of Swarm, each with the key of its node.
    Service,
}

impl Swarm {
    fn start(agents: Agents) -> Self {
        let settings = [
            "service.web.workers=[]",
            r#"service.web.worker_sources=["swarm"]"#,
            r#"service.web.policy="round_robin""#,
            r#"service.web.fallback="reject""#,
        ];
        let mut cluster = Cluster::with(|it| {
            it.agents = false;
            it.available_kb = vec![400 * 1024; 3];
            it.settings = settings.map(str::to_owned).into();
            it.authentication = (agents == Agents::Service).then_some("enforce");
            if agents == Agents::Processes {
                it.agent_arguments = vec!["--manager".to_owned(), format!("{SECOND}:9999")];
            }
        });
        if agents == Agents::Processes {
            for index in 0..3 {
                cluster.start_agent(index).unwrap();
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let archive = image(directory.path());
        let nodes = cluster.topology.workers.iter().zip(1..);
        let daemons: Vec<Daemon> = nodes
            .map(|(node, number)| Daemon::start(node, &format!("worker{number}"), directory.path()))
            .collect();
        for daemon in &daemons {
            daemon.docker(&["import", archive.to_str().unwrap(), "server:1"]);
        }
        daemons[0].docker(&["swarm", "init", "--advertise-addr", &daemons[0].address]);
        let token = daemons[0].docker(&["swarm", "join-token", "--quiet", "worker"]);
        let manager = format!("{}:2377", daemons[0].address);
        for daemon in &daemons[1..] {
            let own = ["swarm", "join", "--advertise-addr", &daemon.address];
            daemon.docker(&[&own[..], &["--token", &token, &manager]].concat());
        }
        let second = (agents == Agents::Processes)
            .then(|| SecondManager::start(&cluster, &daemons[0], directory.path()));
        let mut swarm = Self {
            second,
            cluster,
            daemons,
            source: None,
            directory,
        };
        swarm.start_source();
        swarm
    }

    /// Starts `memlb swarm` for the first manager.
    fn start_source(&mut self) {
        let cluster = &self.cluster;
        self.source = Some(start_source(
            &cluster.topology.manager,
            &cluster.binary,
            &self.daemons[0],
            &cluster.paths.control_socket(),
            &self.directory.path().join("swarm.log"),
        ));
    }

    /// Waits until the second manager has the same workers as the first one, in the same states.
    fn wait_for_second(&self, count: usize) {
        let second = self.second.as_ref().unwrap();
        let both = || {
            let sockets = [&self.cluster.paths.control_socket(), &second.control_socket];
            sockets.map(|it| described(it))
        };
        let result = wait_until(SOON, "both managers to have the same workers", || {
            let [one, other] = both();
            one.len() == count && one == other
        });
        match result {
            Ok(took) => println!("both managers have {count} workers after {took:?}"),
            Err(error) => panic!("{error}: {:?}", both()),
        }
    }

    fn manage(&self, arguments: &[&str]) -> String {
        self.daemons[0].docker(arguments)
    }

    fn create(&self, name: &str, options: &[&str], port: u16) {
        let create = [
            "service",
            "create",
            "--detach",
            "--no-resolve-image",
            "--name",
            name,
        ];
        let server = format!("hostname >/www/index.html; exec busybox httpd -f -p {port} -h /www");
        let image = ["server:1", "/bin/busybox", "sh", "-c", &server];
        self.manage(&[&create[..], options, &image].concat());
    }

    /// Starts the servers of `web`, one on each node.
    fn create_shop(&self) {
        let shop = "--replicas 3 --replicas-max-per-node 1 --network host --stop-grace-period 2s --update-delay 1s \
                    --restart-delay 500ms --health-interval 500ms --label memlb.service=web --label memlb.port=8085";
        let health = [
            "--health-cmd",
            "busybox wget -q -O /dev/null 127.0.0.1:8085",
        ];
        let shop: Vec<&str> = shop.split_whitespace().chain(health).collect();
        self.create("shop", &shop, PORT);
    }

    /// Starts an agent on each node as docs/swarm.md says, with the key of the node.
    fn create_agents(&self) {
        let image = agent_image(self.directory.path(), &self.cluster.binary);
        let image = image.to_str().unwrap();
        for daemon in &self.daemons {
            let entry = "ENTRYPOINT [\"/memlb\"]";
            daemon.docker(&["import", "--change", entry, image, "memlb-agent"]);
        }
        let keys = self.cluster.paths.keys();
        let mount = format!(
            "--mount=type=bind,source={}/{{{{.Node.Hostname}}}}.key,target=/agent.key,readonly",
            keys.display()
        );
        let manager = self.cluster.heartbeat_address().ip().to_string();
        let create = "service create --detach --name memlb-agent --mode global --network host --no-resolve-image";
        let agent = ["memlb-agent", "agent", "--quiet", "--key", "/agent.key"];
        let create: Vec<&str> = create.split(' ').chain([&*mount]).chain(agent).collect();
        self.manage(&[&create[..], &["--manager", &manager]].concat());
    }

    /// The tasks of a service that are not being stopped.
    fn tasks(&self, service: &str) -> String {
        let filter = ["--filter", "desired-state=running"];
        self.manage(&[&["service", "ps", "--quiet"][..], &filter, &[service]].concat())
    }

    /// Has Swarm replace all tasks of a service, and waits until it has.
    fn replace_tasks(&self, service: &str) -> Duration {
        let before = self.tasks(service);
        self.update(&["--force", service]);
        let took = wait_until(LATE, "the update to end", || {
            let now = self.tasks(service);
            let is_new = !before.lines().any(|task| now.contains(task));
            is_new && self.workers("up") == ALL
        });
        took.unwrap()
    }

    fn update(&self, arguments: &[&str]) {
        let update = ["service", "update", "--detach", "--no-resolve-image"];
        self.manage(&[&update[..], arguments].concat());
    }

    /// The names of the workers in this state.
    fn workers(&self, state: &str) -> Vec<String> {
        let status = self.cluster.status().unwrap();
        let backends = status["services"][0]["backends"].as_array().unwrap();
        let in_state = backends.iter().filter(|it| it["state"] == state);
        let mut names: Vec<String> = in_state
            .map(|it| it["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    /// Waits until these are the workers that are up.
    fn wait_for_up(&self, names: &[&str], deadline: Duration) -> Duration {
        let what = format!("{names:?} to be up");
        wait_until(deadline, &what, || self.workers("up") == names).unwrap_or_else(|error| {
            panic!(
                "{error}\n{}\n{}",
                self.cluster.status().unwrap(),
                self.manage(&["node", "ls"])
            )
        })
    }

    fn absent(&self) -> String {
        self.cluster.status().unwrap()["sources"][0]["absent"].to_string()
    }

    fn probe(&self) -> Probe {
        self.cluster.probe(Duration::from_millis(10)).unwrap()
    }
}

/// Stops the client, and says how many of its requests failed.
fn stopped(what: &str, probe: Probe) -> Vec<Instant> {
    let report = probe.stop().unwrap();
    let failures: Vec<Instant> = report.failures().map(|it| it.sent_at).collect();
    println!(
        "{what}: {} of {} new connections failed",
        failures.len(),
        report.requests.len()
    );
    failures
}

const ALL: [&str; 3] = ["worker1", "worker2", "worker3"];

#[root_test]
fn swarm_tasks_are_added_and_removed_without_a_failed_connection() {
    let mut swarm = Swarm::start(Agents::Processes);
    swarm.create_shop();
    println!("created: up after {:?}", swarm.wait_for_up(&ALL, LATE));
    swarm.wait_for_second(3);
    let backend = swarm.cluster.backend("worker2").unwrap();
    assert_eq!(backend["source"], "swarm");
    assert_eq!(
        backend["address"],
        format!("{}:{PORT}", swarm.daemons[1].address)
    );
    // The task of each node answers.
    eventually(SOON, "every task to answer", || {
        swarm.cluster.page().is_ok()
    });

    let probe = swarm.probe();
    swarm.manage(&["service", "scale", "--detach", "shop=2"]);
    let took = eventually(SOON, "one to leave", || swarm.workers("up").len() == 2);
    println!("scaled down: drained after {took:?}");
    eventually(SOON, "one to be removed", || {
        swarm.workers("draining").is_empty()
    });
    swarm.wait_for_second(2);
    swarm.manage(&["service", "scale", "--detach", "shop=3"]);
    println!("scaled up: up after {:?}", swarm.wait_for_up(&ALL, LATE));
    swarm.wait_for_second(3);
    assert!(stopped("scaled down and up", probe).is_empty());

    let probe = swarm.probe();
    println!("updated after {:?}", swarm.replace_tasks("shop"));
    assert!(stopped("updated", probe).is_empty());

    // Swarm sends no event of it.
    let probe = swarm.probe();
    let container = swarm.daemons[2].docker(&["ps", "--quiet"]);
    let killed = Instant::now();
    swarm.daemons[2].docker(&["kill", &container]);
    eventually(SOON, "the killed task to be missed", || {
        swarm.workers("up").len() == 2
    });
    println!(
        "killed: without new connections after {:?}",
        killed.elapsed()
    );
    println!("killed: up again after {:?}", swarm.wait_for_up(&ALL, LATE));
    let failures = stopped("killed", probe);
    assert!(
        failures.iter().all(|at| *at < killed + DOWN_AFTER),
        "{failures:?}"
    );

    let probe = swarm.probe();
    let drained = Instant::now();
    swarm.manage(&["node", "update", "--availability", "drain", "worker2"]);
    swarm.wait_for_up(&["worker1", "worker3"], SOON);
    println!(
        "node drained: without new connections after {:?}",
        drained.elapsed()
    );
    eventually(SOON, "its task to be removed", || {
        swarm.workers("draining").is_empty()
    });
    swarm.manage(&["node", "update", "--availability", "active", "worker2"]);
    println!("node active: up after {:?}", swarm.wait_for_up(&ALL, LATE));
    assert!(stopped("node drained and active", probe).is_empty());

    api_is_silent(&mut swarm);
    refused(&swarm);
    node_is_cut_off(&swarm);
    manager_starts_again(&mut swarm);
    swarm.manage(&["service", "rm", "shop"]);
    let gone = || swarm.workers("up").is_empty() && swarm.workers("draining").is_empty();
    eventually(SOON, "all workers to leave", gone);
    swarm.wait_for_second(0);
}

#[root_test]
fn the_agent_runs_from_its_image_on_every_node() {
    let swarm = Swarm::start(Agents::Service);
    swarm.create_shop();
    let known = |status: &Value| status["services"][0]["backends"].as_array().unwrap().len() == 3;
    let cluster = &swarm.cluster;
    cluster.assert_status(LATE, "the tasks to be workers", known);
    assert!(swarm.workers("up").is_empty(), "no agent runs yet");
    swarm.create_agents();
    println!(
        "agents created: up after {:?}",
        swarm.wait_for_up(&ALL, LATE)
    );
    eventually(SOON, "every task to answer", || cluster.page().is_ok());

    let probe = swarm.probe();
    println!(
        "agents replaced after {:?}",
        swarm.replace_tasks("memlb-agent")
    );
    assert!(stopped("agents replaced", probe).is_empty());

    let probe = swarm.probe();
    let agent = swarm.daemons[2].docker(&[
        "ps",
        "--quiet",
        "--latest",
        "--filter",
        "ancestor=memlb-agent",
    ]);
    swarm.daemons[2].docker(&["kill", &agent]);
    swarm.wait_for_up(&["worker1", "worker2"], SOON);
    println!(
        "agent killed: up again after {:?}",
        swarm.wait_for_up(&ALL, LATE)
    );
    assert!(stopped("agent killed", probe).is_empty());

    // Its agent leaves with the node's other tasks.
    let probe = swarm.probe();
    swarm.manage(&["node", "update", "--availability", "drain", "worker2"]);
    swarm.wait_for_up(&["worker1", "worker3"], SOON);
    swarm.manage(&["node", "update", "--availability", "active", "worker2"]);
    println!("node active: up after {:?}", swarm.wait_for_up(&ALL, LATE));
    assert!(stopped("node drained and active", probe).is_empty());
}

/// The last list stays while the API does not answer, and that is said.
fn api_is_silent(swarm: &mut Swarm) {
    let probe = swarm.probe();
    let pid = fs::read_to_string(swarm.daemons[0].socket.with_file_name("pid")).unwrap();
    assert!(!pid.is_empty());
    // The process group has all of the daemon's processes that are no containers.
    swarm.daemons[0].process.signal(Signal::SIGSTOP).unwrap();
    let problem = |status: &Value| status["sources"][0]["problem"].is_string();
    let cluster = &swarm.cluster;
    let said = cluster.wait_for_status(LATE, "the API to be missed", problem);
    swarm.daemons[0].process.signal(Signal::SIGCONT).unwrap();
    said.unwrap();
    assert_eq!(swarm.workers("up"), ALL);
    cluster.wait_for_events("source_failed", 1).unwrap();
    let good = |status: &Value| !problem(status);
    cluster.assert_status(LATE, "the API to be back", good);
    assert!(stopped("API silent", probe).is_empty());
}

/// What is no worker has its reason.
fn refused(swarm: &Swarm) {
    let web = ["--label", "memlb.service=web"];
    swarm.create("portless", &web, 8086);
    swarm.create("mesh", &[&web[..], &["--publish", "8090:80"]].concat(), 80);
    swarm.update(&["--label-add", "memlb.weigth=5", "mesh"]);
    for says in [
        "it publishes no port: publish one with mode=host",
        "did you mean memlb.weight?",
    ] {
        eventually(SOON, says, || swarm.absent().contains(says));
    }
    swarm.update(&["--label-rm", "memlb.weigth", "mesh"]);
    let says = "its port 8090 is published by the routing mesh";
    eventually(LATE, says, || swarm.absent().contains(says));
    assert_eq!(swarm.workers("up"), ALL);
    wait_until(SOON, "the event about the mesh", || {
        let events = swarm.cluster.events_of("worker_not_admitted");
        events.is_ok_and(|it| it.iter().any(|it| it["what"] == "service mesh"))
    })
    .unwrap();
    swarm.manage(&["service", "rm", "portless", "mesh"]);
    eventually(SOON, "nothing to be left out", || swarm.absent() == "[]");
}

/// The agent says at once what Swarm says late.
fn node_is_cut_off(swarm: &Swarm) {
    let probe = swarm.probe();
    let node = &swarm.cluster.topology.workers[2];
    let cut = Instant::now();
    node.disconnect().unwrap();
    swarm.wait_for_up(&["worker1", "worker2"], SOON);
    println!(
        "node cut off: without new connections after {:?}",
        cut.elapsed()
    );
    eventually(LATE, "Swarm to miss the node", || {
        observe::backend(&swarm.cluster.status().unwrap(), "worker3").is_none()
    });
    println!("node cut off: removed after {:?}", cut.elapsed());
    node.reconnect().unwrap();
    println!("node back: up after {:?}", swarm.wait_for_up(&ALL, LATE));
    let failures = stopped("node cut off", probe);
    assert!(
        failures.iter().all(|at| *at < cut + DOWN_AFTER),
        "{failures:?}"
    );
}

/// Without its source, another manager has the last list.
fn manager_starts_again(swarm: &mut Swarm) {
    drop(swarm.source.take());
    let probe = swarm.probe();
    swarm.cluster.restart_manager().unwrap();
    swarm.wait_for_up(&ALL, SOON);
    assert!(stopped("manager started again", probe).is_empty());
    swarm.start_source();
    let heard = |status: &Value| status["sources"][0]["last_report_ms"].is_u64();
    swarm
        .cluster
        .assert_status(SOON, "the source to be heard", heard);
}
