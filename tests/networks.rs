//! Locations of clients and workers: on the manager itself, behind other interfaces, behind routers, at unknown link
//! addresses.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs, io,
    net::{SocketAddr, SocketAddrV4},
    process::Command,
    thread,
    time::Duration,
};

use memlb_tests::{
    Cluster, ClusterOptions, Connection, Namespace, Nginx, Node, Shape,
    command::output,
    datagram::Sender,
    eventually, nginx, root_test,
    transfer::{Download, random_bytes, transfer_both_ways},
};

const SOON: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(15);
const MIB: usize = 1 << 20;

#[root_test(tc, xdp)]
fn serves_the_manager_itself(attach: &str) {
    let mut cluster = start(attach, Shape::OneArm);
    let page = |cluster: &Cluster| cluster.page_at(&cluster.topology.manager).unwrap();
    assert_eq!(page(&cluster), "Worker1");
    bulk(&cluster, &cluster.topology.manager, 32 * MIB);
    // Whatever the machine's stance on packets from unexpected places.
    for strictness in ["1", "2"] {
        let setting = format!("net.ipv4.conf.all.rp_filter={strictness}");
        cluster
            .topology
            .manager
            .run("sysctl", &["-w", &setting])
            .unwrap();
        assert_eq!(page(&cluster), "Worker1");
    }
    // Its connections move and stay as any other's.
    let mut kept = connect(&cluster, &cluster.topology.manager);
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    cluster.memory[1].set_available_kb(650 * 1024).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    assert_eq!(page(&cluster), "Worker2");
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    cluster.kill_agent(0).unwrap();
    cluster.kill_agent(1).unwrap();
    cluster.wait_for_page("Manager", SOON).unwrap();
    assert_eq!(page(&cluster), "Manager");
    assert!(
        kept.get("/").is_err(),
        "a connection goes on with a dead worker"
    );
    cluster.start_agent(1).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    assert_eq!(page(&cluster), "Worker2");
}

/// The manager's own server stands in a network of its own, and the manager publishes its port, as
/// container engines do.
#[root_test(tc, xdp)]
fn falls_back_to_a_server_behind_nat(attach: &str) {
    let mut cluster = start(attach, Shape::OneArm);
    let manager = &cluster.topology.manager;
    let container = Namespace::create(format!("{}-c", manager.name())).unwrap();
    let ip = |arguments: &str| {
        let arguments: Vec<_> = arguments.split(' ').collect();
        manager.run("ip", &arguments).unwrap()
    };
    ip(&format!(
        "link add docker0 type veth peer name eth0 netns {}",
        container.name()
    ));
    ip("address add 172.17.0.1/24 dev docker0");
    ip("link set docker0 up");
    for arguments in [
        "address add 172.17.0.2/24 dev eth0",
        "link set eth0 up",
        "route add default via 172.17.0.1",
    ] {
        let arguments: Vec<_> = arguments.split(' ').collect();
        container.run("ip", &arguments).unwrap();
    }
    manager
        .run("sysctl", &["-w", "net.ipv4.ip_forward=1"])
        .unwrap();
    let rules = "table ip nat {
        chain prerouting {
            type nat hook prerouting priority dstnat;
            fib daddr type local tcp dport 8080 dnat to 172.17.0.2:80
        }
    }";
    manager.run("nft", &[rules]).unwrap();
    let directory = cluster.paths.directory.join("container");
    fs::create_dir_all(&directory).unwrap();
    let _server = Nginx::start(&container, 80, "Container", &directory).unwrap();

    cluster.kill_agent(0).unwrap();
    cluster.kill_agent(1).unwrap();
    cluster.wait_for_page("Container", SOON).unwrap();
    let client = &cluster.topology.client;
    assert_eq!(cluster.page_at(client).unwrap(), "Container");
    let mut kept = connect(&cluster, client);
    cluster.start_agent(1).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Container");
}

#[root_test]
fn balances_between_two_networks() {
    two_arm("tc", 64 * MIB);
}

#[root_test]
fn balances_between_two_networks_with_xdp() {
    two_arm("xdp", 16 * MIB);
}

fn two_arm(attach: &str, size: usize) {
    let mut cluster = start(attach, Shape::TwoArm);
    assert_eq!(cluster.page().unwrap(), "Worker1");
    bulk(&cluster, &cluster.topology.client, size);
    assert_eq!(
        cluster.page_at(&cluster.topology.manager).unwrap(),
        "Worker1"
    );
    // From behind, too: a worker is a client like any other.
    for worker in &cluster.topology.workers {
        assert_eq!(cluster.page_at(worker).unwrap(), "Worker1");
    }
    cluster.topology.workers[0].disconnect().unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    cluster.kill_agent(1).unwrap();
    cluster.wait_for_page("Manager", SOON).unwrap();
}

/// The one that serves asks, too: its request comes back to it.
#[root_test(tc, xdp)]
fn serves_a_worker_as_a_client(attach: &str) {
    let cluster = start(attach, Shape::OneArm);
    for worker in &cluster.topology.workers {
        assert_eq!(cluster.page_at(worker).unwrap(), "Worker1");
        bulk(&cluster, worker, 4 * MIB);
    }
}

/// A switch sends frames to all ports if it does not know their station, such as a peer that was disconnected just now.
#[root_test(tc, xdp)]
fn ignores_frames_to_another_station(attach: &str) {
    let cluster = start(attach, Shape::OneArm);
    let client = &cluster.topology.client;
    let manager = cluster.topology.manager.address().to_string();
    let neighbour = |arguments: &[&str]| {
        let arguments = [&["neigh"], arguments, &["dev", "eth1"]].concat();
        client.run("ip", &arguments).unwrap()
    };
    neighbour(&["replace", &manager, "lladdr", "02:00:00:00:00:99"]);
    let refused = Connection::open(client, cluster.service(), Duration::from_millis(500));
    assert!(refused.is_err());
    neighbour(&["delete", &manager]);
    assert_eq!(cluster.page_at(client).unwrap(), "Worker1");
}

#[root_test(tc, xdp)]
fn resolves_unknown_link_addresses_of_workers(attach: &str) {
    let cluster = start(attach, Shape::OneArm);
    let flush = || {
        let manager = &cluster.topology.manager;
        output(manager.ip().args(["neigh", "flush", "all"])).unwrap();
    };
    let mut kept = connect(&cluster, &cluster.topology.client);
    for _ in 0..10 {
        flush();
        assert_eq!(cluster.page().unwrap(), "Worker1");
        flush();
        assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    }
}

/// As when an address moves to a stand-in, sooner than a heartbeat is missed.
#[root_test(tc, xdp)]
fn detects_a_changed_link_address_of_a_worker(attach: &str) {
    let cluster = start(attach, Shape::OneArm);
    assert_eq!(cluster.page().unwrap(), "Worker1");
    let worker = &cluster.topology.workers[0];
    output(
        worker
            .ip()
            .args(["link", "set", "eth1", "address", "02:00:00:00:99:01"]),
    )
    .unwrap();
    let took = cluster.wait_for_page("Worker1", 2 * SOON).unwrap();
    println!("found again after {took:?}");
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    assert!(cluster.events_of("worker_down").unwrap().is_empty());
}

#[root_test]
fn serves_clients_behind_a_router() {
    behind_a_router("tc", 64 * MIB);
}

#[root_test]
fn serves_clients_behind_a_router_with_xdp() {
    behind_a_router("xdp", 16 * MIB);
}

fn behind_a_router(attach: &str, size: usize) {
    let mut cluster = start(attach, Shape::OneArm);
    let far = far_client(&cluster, attach);
    assert_eq!(cluster.page_at(&far).unwrap(), "Worker1");
    bulk(&cluster, &far, size);
    cluster.kill_agent(0).unwrap();
    cluster.kill_agent(1).unwrap();
    cluster.wait_for_page("Manager", SOON).unwrap();
    assert_eq!(cluster.page_at(&far).unwrap(), "Manager");
}

/// The worker answers no ARP, so that only its IPv6 address leads to it.
#[root_test(tc, xdp)]
fn finds_a_worker_by_every_kind_of_route(attach: &str) {
    let cluster = start(attach, Shape::OneArm);
    // So that it is chosen again whenever it can be.
    cluster.memory[0].set_available_kb(690 * 1024).unwrap();
    let manager = &cluster.topology.manager;
    let worker = &cluster.topology.workers[0];
    let ip = |line: &str| {
        let line = line.replace("WORKER", &worker.address().to_string());
        let line = line.replace("ROUTER", &worker.address6().to_string());
        manager
            .run("ip", &line.split(' ').collect::<Vec<_>>())
            .unwrap();
    };
    worker
        .run("sysctl", &["-w", "net.ipv4.conf.eth1.arp_ignore=8"])
        .unwrap();
    for way in [
        &["route replace WORKER/32 via inet6 ROUTER dev eth1"][..],
        &[
            "nexthop add id 7 via ROUTER dev eth1",
            "route replace WORKER/32 nhid 7",
        ],
        &["nexthop add id 8 group 7", "route replace WORKER/32 nhid 8"],
        &["route replace WORKER/32 nexthop via inet6 ROUTER dev eth1 weight 1 onlink"],
    ] {
        way.iter().for_each(|line| ip(line));
        ip("neigh flush dev eth1");
        cluster.wait_for_page("Worker1", SOON).unwrap();
        bulk(&cluster, &cluster.topology.client, MIB);
    }
    let router = format!("next hop {}", worker.address6());
    eventually(SOON, "the next hop in the log", || {
        fs::read_to_string(cluster.paths.directory.join("manager.log"))
            .unwrap()
            .contains(&router)
    });

    ip("link add eth9 type veth peer name far9");
    ip("link set eth9 up");
    for (lines, why, undo) in [
        (
            &["route replace blackhole WORKER/32"][..],
            "no route",
            "route replace WORKER/32 nhid 7",
        ),
        (
            &["route replace prohibit WORKER/32"],
            "no route",
            "route replace WORKER/32 nhid 7",
        ),
        (
            &["route replace unreachable WORKER/32"],
            "no route",
            "route replace WORKER/32 nhid 7",
        ),
        (
            &["route replace WORKER/32 dev eth9"],
            "leads through eth9, to which memlb is not attached",
            "route replace WORKER/32 nhid 7",
        ),
        // What a source address is sent by goes before.
        (
            &[
                "route add blackhole WORKER/32 table 100",
                "rule add from 192.168.56.101 lookup 100",
            ],
            "no route",
            "rule delete from 192.168.56.101 lookup 100",
        ),
    ] {
        lines.iter().for_each(|line| ip(line));
        cluster
            .wait_for_state("worker1", "unreachable", SOON)
            .unwrap();
        cluster.wait_for_page("Worker2", SOON).unwrap();
        let backend = cluster.backend("worker1").unwrap().to_string();
        assert!(backend.contains(why), "{backend}");
        ip(undo);
        cluster.wait_for_state("worker1", "up", SOON).unwrap();
        cluster.wait_for_page("Worker1", SOON).unwrap();
    }
}

#[root_test]
fn a_listening_client_is_found_behind_another_router() {
    listens_behind_another_router(ClusterOptions::default());
}

#[root_test]
fn a_listening_client_of_mode_routed_is_found_behind_another_router() {
    listens_behind_another_router(ClusterOptions {
        shape: Shape::TwoArm,
        routed: true,
        ..ClusterOptions::default()
    });
}

fn listens_behind_another_router(options: ClusterOptions) {
    let cluster = Cluster::start(&ClusterOptions {
        ports: vec![9_000],
        ..options
    })
    .unwrap();
    let far = far_client(&cluster, "tc");
    let blob = random_bytes(3, 512 * 1024);
    let servers: Vec<_> = (cluster.topology.workers.iter().enumerate())
        .map(|(index, worker)| {
            let directory = cluster.paths.directory.join(format!("slow{index}"));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("blob"), &blob).unwrap();
            let root = directory.display();
            let http = format!("server {{ listen 9000; limit_rate 128k; root {root}; }}\n");
            nginx::start(worker, &http, &directory).unwrap()
        })
        .collect();
    let router = &cluster.topology.client;
    let server = SocketAddrV4::new(cluster.topology.manager.address(), 9_000).into();
    let begin = || Download::begin(server, "/blob", 2 * PATIENCE);
    eventually(SOON, "the slow servers", || {
        far.enter(|| begin().and_then(|mut it| it.go_on_to(1)))
            .unwrap()
            .is_ok()
    });
    let mut download = far.enter(begin).unwrap().unwrap();
    download.go_on_to(64 * 1024).unwrap();
    // Another router takes over: the same address at another link address, which says nothing by itself.
    router.disconnect().unwrap();
    router
        .run(
            "ip",
            &["link", "set", "eth1", "address", "02:00:00:00:99:03"],
        )
        .unwrap();
    cluster
        .topology
        .manager
        .run("ip", &["neigh", "flush", "dev", "eth1"])
        .unwrap();
    router.reconnect().unwrap();
    assert!(download.finish().unwrap() == blob, "the download is broken");
    drop(servers);
}

#[root_test(tc, xdp)]
fn ignores_the_managers_own_connections(attach: &str) {
    let cluster = start(attach, Shape::OneArm);
    let manager = &cluster.topology.manager;
    let worker = SocketAddrV4::new(cluster.topology.workers[0].address(), 8081).into();
    let fallback = SocketAddrV4::new(manager.address(), 8080).into();
    let request = |node: &Node, server: SocketAddr, page: &str| {
        node.enter(|| {
            for _ in 0..300 {
                let mut connection = Connection::open_here(server, SOON)?;
                assert_eq!(connection.get("/")?.first_line(), page);
            }
            Ok::<_, io::Error>(())
        })
        .unwrap()
        .unwrap();
    };
    thread::scope(|scope| {
        scope.spawn(|| request(&cluster.topology.client, cluster.service(), "Worker1"));
        scope.spawn(|| request(manager, cluster.service(), "Worker1"));
        scope.spawn(|| request(manager, worker, "Worker1"));
        scope.spawn(|| request(&cluster.topology.client, fallback, "Manager"));
    });
    // What is no TCP passes, too: the refusal is an ICMP message.
    let unused = SocketAddrV4::new(manager.address(), 80).into();
    let sender = Sender::open(&cluster.topology.client, unused).unwrap();
    eventually(SOON, "UDP to be refused", || sender.send("hello").is_err());
}

fn start(attach: &str, shape: Shape) -> Cluster {
    let cluster = Cluster::with(|it| {
        it.shape = shape;
        it.attach = attach.into();
        it.manager_arguments = vec!["--down-after".into(), "1s".into()];
    });
    cluster.wait_for_page("Worker1", SOON).unwrap();
    cluster
}

fn connect(cluster: &Cluster, node: &Namespace) -> Connection {
    Connection::open(node, cluster.service(), SOON).unwrap()
}

/// Carries `size` bytes from and to `worker1`, and looks at each of them.
fn bulk(cluster: &Cluster, client: &Namespace, size: usize) {
    transfer_both_ways(client, cluster.service(), cluster.servers[0].root(), size).unwrap();
}

/// Makes a client in a network of its own, 192.168.58.0/24, to which the usual
/// client is the router.
fn far_client(cluster: &Cluster, attach: &str) -> Namespace {
    let router = &cluster.topology.client;
    let far = Namespace::create(format!("{}far", cluster.paths.prefix)).unwrap();
    let link = |arguments: &[&str]| output(Command::new("ip").args(arguments)).unwrap();
    link(&[
        "link",
        "add",
        "eth1",
        "netns",
        far.name(),
        "type",
        "veth",
        "peer",
        "name",
        "far",
        "netns",
        router.name(),
    ]);
    for (node, interface, address) in [
        (&far, "eth1", "192.168.58.10/24"),
        (router, "far", "192.168.58.1/24"),
    ] {
        let at = ["-netns", node.name()];
        link(&[&at[..], &["address", "add", address, "dev", interface]].concat());
        link(&[&at[..], &["link", "set", interface, "up"]].concat());
        if attach == "xdp" {
            node.run("ethtool", &["--offload", interface, "tx", "off"])
                .unwrap();
        }
    }
    let at = ["-netns", far.name()];
    link(&[&at[..], &["route", "add", "default", "via", "192.168.58.1"]].concat());
    router
        .run("sysctl", &["-w", "net.ipv4.ip_forward=1"])
        .unwrap();
    let at = ["-netns", cluster.topology.manager.name()];
    let via = router.address().to_string();
    link(&[&at[..], &["route", "add", "192.168.58.0/24", "via", &via]].concat());
    far
}
