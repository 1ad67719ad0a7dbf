//! Mode `dsr`: the workers' own web servers answer the clients directly.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use lb_common::maps::{DsrClient, FlowKey, dsr_name};
use memlb_tests::{
    Cluster, ClusterOptions, Namespace, Process, client,
    command::output,
    eventually, namespace, nginx,
    observe::{backend, bpftool},
    root_test,
    transfer::{Download, Upload, random_bytes},
};

const SOON: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(15);
const MIB: usize = 1 << 20;

const SERVICE: &str = "192.168.56.101:80";
const SERVICE6: &str = "[fd00:56::101]:80";
const ECHO: &str = "192.168.56.101:5300";
const BOTH: [&str; 2] = [SERVICE, SERVICE6];
const CLIENT: [&str; 2] = ["192.168.56.10", "fd00:56::10"];
const SERVER_PORT: u16 = 8091;

#[root_test(tc, xdp)]
fn the_server_sees_the_client_and_answers_directly(attach: &str) {
    let mut lab = Lab::start_with(attach, "20s");
    lab.start_agents();
    let blob = random_bytes(1, 16 * MIB);
    fs::write(lab.root(0).join("blob"), &blob).unwrap();
    for (service, address) in BOTH.into_iter().zip(CLIENT) {
        assert_eq!(lab.page(service), "Worker1");
        let log = lab.directory(0).join("access.log");
        eventually(SOON, "the request in the access log", || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            log.lines()
                .any(|line| line.starts_with(&format!("{address} ")))
        });

        let before = lab.bytes_at_the_manager();
        assert!(lab.download(service) == blob, "the download is broken");
        let passed = lab.bytes_at_the_manager() - before;
        assert!(
            passed < blob.len() as u64 / 8,
            "{passed} bytes passed the manager"
        );
        let upload =
            || Upload::begin(service.parse().unwrap(), "/upload/it", &blob, PATIENCE)?.finish();
        let answer = lab.topology.client.enter(upload).unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        let uploaded = lab.root(0).join("upload/it");
        assert!(fs::read(&uploaded).unwrap() == blob, "the upload is broken");
        fs::remove_file(uploaded).unwrap();
    }
    // The server's own port is as it was.
    for own in ["192.168.56.103:8091", "[fd00:56::103]:8091"] {
        assert_eq!(lab.page(own), "Worker1");
    }
}

#[root_test]
fn datagrams_are_answered_directly() {
    let mut lab = Lab::start(true);
    lab.start_agents();
    let server = lab.topology.workers[0]
        .enter(|| UdpSocket::bind("0.0.0.0:5300"))
        .unwrap()
        .unwrap();
    let client = lab
        .topology
        .client
        .enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(ECHO)?;
            Ok::<_, io::Error>(socket)
        })
        .unwrap()
        .unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut buffer = [0; 64];
    for question in [b"one", b"two"] {
        client.send(question).unwrap();
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(from.ip().to_string(), CLIENT[0]);
        assert_eq!(from.port(), client.local_addr().unwrap().port());
        server.send_to(&buffer[..length], from).unwrap();
        // The socket takes answers of the service's own address only.
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], question);
    }
}

/// The server speaks first after the eviction: it closes the connection.
#[root_test]
fn a_connection_without_an_entry_is_answered_as_the_service() {
    let mut lab = Lab::start(true);
    lab.start_agents();
    let connect = || TcpStream::connect_timeout(&SERVICE.parse().unwrap(), PATIENCE);
    let mut connection = lab.topology.client.enter(connect).unwrap().unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: memlb\r\n\r\n";
    connection.write_all(request).unwrap();
    let mut page = Vec::new();
    while !String::from_utf8_lossy(&page).contains("Worker1\n") {
        let mut buffer = [0; 4_096];
        let length = connection.read(&mut buffer).unwrap();
        assert_ne!(length, 0, "{}", String::from_utf8_lossy(&page));
        page.extend(&buffer[..length]);
    }
    for map in [dsr_name::CLIENTS, dsr_name::NEW_CLIENTS] {
        let data = MapData::from_pin(lab.pins(0).join(map)).unwrap();
        let mut clients: HashMap<_, FlowKey, DsrClient> = Map::LruHashMap(data).try_into().unwrap();
        let keys: Vec<FlowKey> = clients.keys().filter_map(Result::ok).collect();
        for key in keys {
            clients.remove(&key).unwrap();
        }
    }
    lab.servers.clear();
    let mut rest = [0; 16];
    let ended = connection.read(&mut rest);
    let is_over = match &ended {
        Ok(length) => *length == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    };
    assert!(is_over, "{ended:?}");
}

#[root_test]
fn only_workers_with_a_dsr_translator_serve() {
    let mut lab = Lab::start(false);
    // The one with more memory to spare has none.
    lab.start_agent(0, false);
    lab.start_agent(1, true);
    lab.wait_until_up("worker2");
    assert_eq!(lab.page(SERVICE), "Worker2");
    let status = lab.status().unwrap();
    let worker1 = backend(&status, "worker1").unwrap();
    let why = worker1.to_string();
    assert_eq!(worker1["state"], "ineligible", "{why}");
    assert!(
        why.contains("has no DSR translator for 192.168.56.101:80/tcp"),
        "{why}"
    );

    // And one that gets a DSR translator does.
    lab.agents[0].take().unwrap().kill().unwrap();
    lab.start_agent(0, true);
    lab.wait_until_up("worker1");
    lab.wait_for_page("Worker1");
    // One that fails gives way.
    lab.agents[0].take().unwrap().kill().unwrap();
    lab.wait_for_page("Worker2");
    assert_eq!(lab.page(SERVICE6), "Worker2");
    lab.agents[1].take().unwrap().kill().unwrap();
    lab.wait_for_page("Manager");
}

#[root_test]
fn a_detached_or_unpinned_dsr_translator_is_restored() {
    let mut lab = Lab::start(true);
    lab.start_agents();
    let pin = lab.pins(0).join("links/memlb_dsr_in@eth1");
    bpftool(&["link", "detach", "pinned", pin.to_str().unwrap()]).unwrap();
    let mut said = |text: &str| {
        let agent = lab.agents[0].as_mut().unwrap();
        agent.wait_for_log(SOON, text).unwrap();
    };
    said("another program detached memlb_dsr_in from interface eth1");
    fs::remove_file(&pin).unwrap();
    said("another program removed the pins of links/memlb_dsr_in@eth1");
    lab.wait_until_up("worker1");
    lab.wait_for_page("Worker1");
}

#[root_test]
fn the_dsr_translator_stays_until_its_last_connection_ends() {
    let mut lab = Lab::start(true);
    lab.start_agents();
    let blob = random_bytes(2, 16 * MIB);
    fs::write(lab.root(0).join("blob"), &blob).unwrap();
    let begin = || {
        let mut download = Download::begin(SERVICE.parse().unwrap(), "/blob", PATIENCE)?;
        download.go_on_to(MIB / 16)?;
        Ok::<_, io::Error>(download)
    };
    let mut download = lab.topology.client.enter(begin).unwrap().unwrap();

    let mut killed = lab.agents[0].take().unwrap();
    killed.kill().unwrap();
    download.go_on_to(4 * MIB).unwrap();
    lab.start_agent(0, true);
    lab.wait_until_up("worker1");
    download.go_on_to(8 * MIB).unwrap();

    let mut stopped = lab.agents[0].take().unwrap();
    assert!(stopped.terminate(SOON).unwrap().success());
    assert!(
        stopped
            .log()
            .contains("the DSR translator stays for 1 open"),
        "{}",
        stopped.log()
    );
    download.go_on_to(12 * MIB).unwrap();
    lab.start_agent(0, true);
    lab.wait_until_up("worker1");
    assert!(download.finish().unwrap() == blob, "the download is broken");

    // With no connection open, nothing is left of it.
    let mut last = lab.agents[0].take().unwrap();
    assert!(last.terminate(SOON).unwrap().success());
    assert!(
        last.log().contains("the DSR translator is removed"),
        "{}",
        last.log()
    );
    assert!(!lab.pins(0).exists());
    let programs = lab.topology.workers[0]
        .run("bpftool", &["net", "show"])
        .unwrap();
    assert!(!programs.contains("memlb"), "{programs}");
}

#[root_test]
fn removal_is_refused_while_an_agent_runs() {
    let mut lab = Lab::start(true);
    lab.start_agents();
    let unload = |lab: &Lab| {
        let mut command = lab.topology.workers[0].command(&lab.binary);
        command
            .args(["unload", "--agent", "--pin-path"])
            .arg(lab.pins(0));
        output(&mut command)
    };
    let refused = format!("{:#}", unload(&lab).unwrap_err());
    assert!(refused.contains("stop the agent first"), "{refused}");
    // A second agent does not get in its way either.
    let mut second = lab.agent_command(0, true);
    let refused = format!("{:#}", output(&mut second).unwrap_err());
    assert!(refused.contains("another memlb agent"), "{refused}");
    assert_eq!(lab.page(SERVICE), "Worker1");
    lab.agents[0].take().unwrap().kill().unwrap();
    assert!(lab.pins(0).exists());
    unload(&lab).unwrap();
    assert!(!lab.pins(0).exists());
}

#[root_test]
fn path_mtu_discovery_toward_the_client_works() {
    let mut lab = Lab::start(true);
    lab.start_agents();
    let far = lab.far_client();
    let blob = random_bytes(3, 2 * MIB);
    fs::write(lab.root(0).join("blob"), &blob).unwrap();
    for service in BOTH {
        let download = || Download::begin(service.parse().unwrap(), "/blob", PATIENCE)?.finish();
        let received = far.enter(download).unwrap().unwrap();
        assert!(received == blob, "the download from {service} is broken");
    }
    // It was really narrow: the worker's kernel has learnt so.
    for address in FAR {
        let route = lab.topology.workers[0]
            .run("ip", &["route", "get", address])
            .unwrap();
        assert!(route.contains("mtu 1280"), "{route}");
    }
}

const FAR: [&str; 2] = ["192.168.58.10", "fd00:58::10"];

/// The three-node lab with web servers that log, over both families.
struct Lab {
    agents: [Option<Process>; 2],
    servers: Vec<Process>,
    pins: [Pins; 2],
    cluster: Cluster,
    /// The configuration, which is there before the cluster.
    _file: Pins,
}

/// A path that is removed when dropped.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let path = &self.0;
        _ = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
    }
}

impl Deref for Lab {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Lab {
    /// No worker may go down while agents are restarted or much is transferred.
    fn start(patient: bool) -> Self {
        Self::start_with("tc", if patient { "20s" } else { "1500ms" })
    }

    fn start_with(attach: &str, down_after: &str) -> Self {
        let prefix = namespace::unique_prefix();
        let file = std::env::temp_dir().join(format!("{prefix}dsr"));
        fs::write(&file, configuration(down_after)).unwrap();
        let options = ClusterOptions {
            attach: attach.into(),
            configuration: Some(file.clone()),
            agents: false,
            ..ClusterOptions::default()
        };
        let cluster = Cluster::start(&options).unwrap();
        let mut servers = Vec::new();
        add_address(&cluster.topology.manager, "fd00:56::101/64");
        add_address(&cluster.topology.client, "fd00:56::10/64");
        for (index, worker) in cluster.topology.workers.iter().enumerate() {
            add_address(worker, &format!("fd00:56::{}/64", 103 + index));
            let directory = directory(&cluster, index);
            servers.push(serve(worker, &directory, &format!("Worker{}", index + 1)));
        }
        let pins =
            [1, 2].map(|number| Pins(Path::new("/sys/fs/bpf").join(format!("{prefix}{number}"))));
        Self {
            agents: [None, None],
            servers,
            pins,
            cluster,
            _file: Pins(file),
        }
    }

    fn start_agents(&mut self) {
        for index in [0, 1] {
            self.start_agent(index, true);
        }
        for worker in ["worker1", "worker2"] {
            self.wait_until_up(worker);
        }
        self.wait_for_page("Worker1");
    }

    fn start_agent(&mut self, index: usize, equipped: bool) {
        let name = format!("dsr-agent{}", index + 1);
        let log = self.paths.directory.join(format!("{name}.log"));
        let mut command = self.agent_command(index, equipped);
        self.agents[index] = Some(Process::start(&name, &mut command, &log).unwrap());
    }

    fn agent_command(&self, index: usize, equipped: bool) -> Command {
        let mut command = self.cluster.agent_command(index, self.heartbeat_address());
        if equipped {
            command.arg("--pin-path").arg(self.pins(index));
            for wish in [
                format!("{SERVICE}={SERVER_PORT}"),
                format!("{SERVICE6}={SERVER_PORT}"),
                format!("{ECHO}/udp=5300"),
            ] {
                command.args(["--dsr", &wish]);
            }
        }
        command
    }

    fn pins(&self, index: usize) -> &Path {
        &self.pins[index].0
    }

    /// Waits until a worker is up in all services.
    fn wait_until_up(&self, worker: &str) {
        let is_up = |status: &serde_json::Value| {
            let services = status["services"].as_array().unwrap();
            services.iter().all(|service| {
                let mut backends = service["backends"].as_array().unwrap().iter();
                backends.any(|it| it["name"] == worker && it["state"] == "up")
            })
        };
        self.assert_status(SOON, &format!("{worker} to be up"), is_up);
    }

    fn wait_for_page(&self, page: &str) {
        self.cluster.wait_for_page(page, SOON).unwrap();
    }

    fn page(&self, server: &str) -> String {
        let server: SocketAddr = server.parse().unwrap();
        client::get(&self.topology.client, server, "/", PATIENCE)
            .unwrap()
            .first_line()
    }

    fn download(&self, service: &str) -> Vec<u8> {
        let download = || Download::begin(service.parse().unwrap(), "/blob", PATIENCE)?.finish();
        self.topology.client.enter(download).unwrap().unwrap()
    }

    fn directory(&self, index: usize) -> PathBuf {
        directory(&self.cluster, index)
    }

    fn root(&self, index: usize) -> PathBuf {
        self.directory(index).join("www")
    }

    /// What the manager has received and sent so far.
    fn bytes_at_the_manager(&self) -> u64 {
        let mut ip = self.topology.manager.ip();
        let links = output(ip.args(["-json", "-stats", "link", "show", "eth1"])).unwrap();
        let links: serde_json::Value = serde_json::from_str(&links).unwrap();
        let bytes = |way: &str| links[0]["stats64"][way]["bytes"].as_u64().unwrap();
        bytes("rx") + bytes("tx")
    }

    /// A client behind the usual one, which is its router; the link between them is narrow on one side.
    fn far_client(&self) -> Namespace {
        let router = &self.topology.client;
        let far = Namespace::create(format!("{}-far", router.name())).unwrap();
        let run = |namespace: &Namespace, line: &str| {
            let mut words = line.split(' ');
            let program = words.next().unwrap();
            let arguments: Vec<_> = words.collect();
            namespace.run(program, &arguments).unwrap();
        };
        run(
            router,
            &format!(
                "ip link add far type veth peer name eth1 netns {}",
                far.name()
            ),
        );
        for (node, link, addresses) in [
            (&**router, "far", ["192.168.58.1/24", "fd00:58::1/64"]),
            (&far, "eth1", ["192.168.58.10/24", "fd00:58::10/64"]),
        ] {
            run(node, &format!("ip link set {link} up"));
            for address in addresses {
                run(node, &format!("ip address add {address} dev {link}"));
            }
        }
        run(router, "ip link set far mtu 1280");
        run(router, "sysctl -w net.ipv4.ip_forward=1");
        run(router, "sysctl -w net.ipv6.conf.all.forwarding=1");
        run(&far, "ip route add default via 192.168.58.1");
        run(&far, "ip route add default via fd00:58::1");
        for node in self.topology.workers.iter().chain([&self.topology.manager]) {
            run(node, "ip route add 192.168.58.0/24 via 192.168.56.10");
            run(node, "ip route add fd00:58::/64 via fd00:56::10");
        }
        // Addresses of IPv6 are not usable at once.
        for service in BOTH {
            let server = service.parse().unwrap();
            eventually(SOON, "the far client to be served", || {
                client::get(&far, server, "/", Duration::from_secs(1)).is_ok()
            });
        }
        far
    }
}

fn directory(cluster: &Cluster, index: usize) -> PathBuf {
    cluster.paths.directory.join(format!("dsr{}", index + 1))
}

fn add_address(node: &Namespace, address: &str) {
    let arguments = ["address", "add", address, "dev", "eth1", "nodad"];
    node.run("ip", &arguments).unwrap();
}

/// An nginx as a distribution installs it, that notes who asks.
fn serve(node: &Namespace, directory: &Path, page: &str) -> Process {
    let root = directory.join("www");
    fs::create_dir_all(root.join("upload")).unwrap();
    fs::write(root.join("index.html"), format!("{page}\n")).unwrap();
    let at = directory.display();
    let server = format!(
        "    server {{
        listen {SERVER_PORT};
        listen [::]:{SERVER_PORT};
        root {at}/www;
        access_log {at}/access.log;
        location /upload/ {{ dav_methods PUT; }}
    }}
"
    );
    nginx::start(node, &server, directory).unwrap()
}

fn configuration(down_after: &str) -> String {
    let service =
        |name: &str, address: &str, protocol: &str, fallback: &str, workers: [&str; 2]| {
            let [one, two] = workers;
            format!(
                "[[service]]
name = \"{name}\"
address = \"{address}\"
protocol = \"{protocol}\"
mode = \"dsr\"
fallback = \"{fallback}\"
policy = \"memory\"
workers = [
    {{ name = \"worker1\", address = \"{one}\" }},
    {{ name = \"worker2\", address = \"{two}\" }},
]
"
            )
        };
    let web = ["192.168.56.103:8091", "192.168.56.104:8091"];
    let web6 = ["[fd00:56::103]:8091", "[fd00:56::104]:8091"];
    let echo = ["192.168.56.103:5300", "192.168.56.104:5300"];
    let services = [
        service("web", SERVICE, "tcp", "192.168.56.101:8080", web),
        service("web6", SERVICE6, "tcp", "reject", web6),
        service("echo", ECHO, "udp", "reject", echo),
    ];
    format!(
        "[manager]\ninterfaces = [\"eth1\"]\n\n[failover]\ndown_after = \"{down_after}\"\n\n{}",
        services.join("\n")
    )
}
