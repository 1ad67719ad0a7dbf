//! A worker whose server is dead while its agent lives: its refusals do not reach the clients.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use memlb_tests::{Cluster, Shape, client, command::output, root_test, topology::ipv6_counterpart};

const SOON: Duration = Duration::from_secs(8);
const CONNECTIONS: u32 = 200;
/// Less than a client waits until it repeats its SYN.
const AT_ONCE: Duration = Duration::from_millis(500);

#[root_test(tc, xdp)]
fn a_dead_server_refuses_no_client(attach: &str) {
    let mut cluster = start(attach, Shape::OneArm, &[]);
    drop(cluster.servers.remove(0));
    let service = cluster.service();
    all_connect(&cluster, service);
    let worker1 = cluster.backend("worker1").unwrap();
    assert!(worker1["retried"].as_u64().unwrap() > 0, "{worker1}");
    assert_eq!(worker1["retried"], worker1["refused"], "{worker1}");
    // The manager is a client, too.
    assert_eq!(
        cluster.page_at(&cluster.topology.manager).unwrap(),
        "Worker2"
    );
}

/// Over IPv6, a worker's RST comes with a checksum that its card was to complete.
#[root_test(tc, xdp)]
fn a_dead_server_refuses_no_client_of_a_routed_worker(attach: &str) {
    let mut cluster = start(attach, Shape::TwoArm, &[]);
    let gateway = cluster.topology.manager.addresses().last().unwrap();
    for worker in &cluster.topology.workers {
        let by_the_manager = ipv6_counterpart(gateway).to_string();
        let mut route = worker.ip();
        output(route.args(["-6", "route", "add", "default", "via", &by_the_manager])).unwrap();
    }
    drop(cluster.servers.remove(0));
    let manager = &cluster.topology.manager;
    let service6 = SocketAddr::new(manager.address6().into(), cluster.service().port());
    for service in [cluster.service(), service6] {
        all_connect(&cluster, service);
    }
}

#[root_test]
fn without_the_setting_clients_are_refused() {
    let arguments = ["--set", "service.web.retry_refused=false"];
    let mut cluster = start("tc", Shape::OneArm, &arguments);
    drop(cluster.servers.remove(0));
    let node = &cluster.topology.client;
    let refused = client::get(node, cluster.service(), "/", SOON).unwrap_err();
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
    assert_eq!(cluster.backend("worker1").unwrap()["retried"], 0);
}

fn start(attach: &str, shape: Shape, arguments: &[&str]) -> Cluster {
    Cluster::serving_with(|it| {
        it.shape = shape;
        it.attach = attach.into();
        it.routed = shape == Shape::TwoArm;
        it.ipv6 = shape == Shape::TwoArm;
        it.manager_arguments = arguments.iter().map(ToString::to_string).collect();
    })
}

#[track_caller]
fn all_connect(cluster: &Cluster, service: SocketAddr) {
    let node = &cluster.topology.client;
    for number in 0..CONNECTIONS {
        let begin = Instant::now();
        let page = client::get(node, service, "/", SOON).unwrap();
        let elapsed = begin.elapsed();
        assert_eq!(page.first_line(), "Worker2");
        assert!(
            elapsed < AT_ONCE,
            "connection {number} to {service} took {elapsed:?}"
        );
    }
}
