//! Mode `routed`: workers see their clients' addresses and answer by way of the manager.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use memlb_tests::{
    Cluster, Connection, Shape, client, command::output, eventually, root_test,
    topology::ipv6_counterpart, transfer::transfer_both_ways,
};

const SOON: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(15);
/// As long as a worker is left alone at first, and some more.
const TRIED_AGAIN: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;
const ECHO_PORT: u16 = 5300;

#[root_test(tc, xdp)]
fn a_worker_behind_the_manager_sees_its_clients(attach: &str) {
    let cluster = start(attach, Shape::TwoArm);
    let gateway = cluster.topology.manager.addresses().last().unwrap();
    for worker in &cluster.topology.workers {
        let by_the_manager = ipv6_counterpart(gateway).to_string();
        let mut route = worker.ip();
        output(route.args(["-6", "route", "add", "default", "via", &by_the_manager])).unwrap();
    }
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let [node, manager] = [&cluster.topology.client, &cluster.topology.manager];
    let services = [
        (cluster.service(), IpAddr::from(node.address())),
        (
            SocketAddr::new(manager.address6().into(), cluster.service().port()),
            node.address6().into(),
        ),
    ];
    for (service, address) in services {
        eventually(SOON, "worker1 to be selected", || {
            client::get(node, service, "/", SOON).is_ok_and(|page| page.first_line() == "Worker1")
        });
        let mut kept = Connection::open(node, service, SOON).unwrap();
        assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
        let connections = cluster.topology.workers[0]
            .run("ss", &["-Htn", "state", "established"])
            .unwrap();
        assert!(connections.contains(&address.to_string()), "{connections}");
        let root = cluster.servers[0].root();
        transfer_both_ways(&cluster.topology.client, service, root, 8 * MIB).unwrap();
    }
    // The manager is a client, too.
    assert_eq!(cluster.page_at(manager).unwrap(), "Worker1");
    datagrams(&cluster);
    let status = cluster.status().unwrap();
    assert_eq!(status["services"][0]["mode"], "routed");

    cluster.topology.workers[0].disconnect().unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
}

/// A worker on its clients' own link answers them directly, from an address that they did not ask.
#[root_test]
fn a_worker_that_bypasses_the_manager_is_reported_and_tried_again() {
    let cluster = start("tc", Shape::OneArm);
    let client = &cluster.topology.client;
    let page = || client::get(client, cluster.service(), "/", Duration::from_secs(3));
    eventually(TRIED_AGAIN, "both workers to be found out", || {
        page().is_ok_and(|page| page.first_line() == "Manager")
    });
    let worker1 = cluster.backend("worker1").unwrap();
    assert_eq!(worker1["state"], "unreachable", "{worker1}");
    let why = worker1["ineligible_reason"].as_str().unwrap();
    assert!(
        why.starts_with("no answer of worker1 passes the manager"),
        "{why}"
    );
    assert!(worker1["unanswered"].as_u64().unwrap() >= 3, "{worker1}");
    let told = cluster.wait_for_events("worker_ineligible", 1).unwrap();
    assert_eq!(told[0]["ineligibility"], "no_return_path", "{told:?}");
    let doctor = cluster.configured("doctor").output().unwrap();
    let found = String::from_utf8_lossy(&doctor.stdout);
    assert!(
        found.contains("no answer of worker1 passes the manager"),
        "{found}"
    );
    let mut explain = cluster.memlb("explain");
    let explained = output(explain.arg(client.address().to_string())).unwrap();
    assert!(explained.contains(why), "{explained}");

    let [to, by] = [client, &cluster.topology.manager].map(|node| node.address().to_string());
    let mut route = cluster.topology.workers[0].ip();
    output(route.args(["route", "add", &to, "via", &by])).unwrap();
    eventually(TRIED_AGAIN, "worker1 to be tried again", || {
        page().is_ok_and(|page| page.first_line() == "Worker1")
    });
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
}

fn start(attach: &str, shape: Shape) -> Cluster {
    Cluster::with(|it| {
        it.shape = shape;
        it.attach = attach.into();
        it.routed = true;
        it.ipv6 = shape == Shape::TwoArm;
        it.datagram_ports = vec![ECHO_PORT];
    })
}

/// Questions and answers whose worker sees the client's own port.
fn datagrams(cluster: &Cluster) {
    let server = cluster.topology.workers[0]
        .enter(|| UdpSocket::bind(("0.0.0.0", ECHO_PORT)))
        .unwrap()
        .unwrap();
    let service = SocketAddr::new(cluster.topology.manager.address().into(), ECHO_PORT);
    let client = cluster
        .topology
        .client
        .enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(service)?;
            Ok::<_, io::Error>(socket)
        })
        .unwrap()
        .unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let own = client.local_addr().unwrap();
    let mut buffer = [0; 64];
    for question in [b"one", b"two"] {
        client.send(question).unwrap();
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(from, own);
        server.send_to(&buffer[..length], from).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], question);
    }
}
