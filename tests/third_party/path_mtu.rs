//! Path-MTU discovery (RFC 1191, RFC 8201) through memlb, with a link of a small MTU on the path.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
};

use memlb_tests::{
    Cluster, ClusterOptions, Namespace, Nginx, Process,
    narrow_path::NarrowPath,
    root_test,
    topology::ipv6_counterpart,
    transfer::{Download, Upload, random_bytes},
};

use crate::ipv6::both_families;
use crate::scenario::{MIB, PATIENCE, run_scenario_with, service, service6, wait_for_selection};

#[root_test(tc, xdp)]
fn the_path_mtu_of_one_client_affects_no_other(attach: &str) {
    run_scenario_with(attach, both_families(), narrow_client);
}

fn narrow_client(cluster: &mut Cluster) {
    let narrow = NarrowPath::create(&cluster.topology, &cluster.paths.prefix).unwrap();
    let worker = &cluster.topology.workers[0];
    for site in [service(cluster, 80), service6(cluster, 80)] {
        transfer(&narrow.far, site, &cluster.servers[0]);
        // The worker knows all clients by the manager's address.
        assert!(!has_narrow_route(worker, site.ip()));
    }
}

#[root_test(tc, xdp)]
fn a_client_learns_the_path_mtu_to_a_worker(attach: &str) {
    let far = |service: &str, address: IpAddr| {
        let address = SocketAddr::new(address, 8081);
        let workers = format!("[{{ name = \"far\", address = \"{address}\" }}]");
        format!("service.{service}.workers={workers}")
    };
    let cluster = Cluster::start(&ClusterOptions {
        attach: attach.into(),
        agents: false,
        settings: vec![
            far("web", NarrowPath::FAR.into()),
            far("web-6", ipv6_counterpart(NarrowPath::FAR).into()),
        ],
        ..both_families()
    })
    .unwrap();
    let narrow = NarrowPath::create(&cluster.topology, &cluster.paths.prefix).unwrap();
    let directory = cluster.paths.directory.join("far");
    let server = Nginx::start(&narrow.far, 8081, "Far", &directory).unwrap();
    let mut agent = narrow.far.command(&cluster.binary);
    agent
        .args(["agent", "--name", "far", "--manager"])
        .arg(cluster.heartbeat_address().to_string());
    let log = cluster.paths.directory.join("far.log");
    let _agent = Process::start("memlb agent of far", &mut agent, &log).unwrap();
    wait_for_selection(&cluster, "far");
    let client = &cluster.topology.client;
    for site in [service(&cluster, 80), service6(&cluster, 80)] {
        transfer(client, site, &server);
        assert!(has_narrow_route(client, site.ip()));
    }
}

/// Carries much both ways, and looks at each byte. Both connections begin before anybody is told
/// anything, since who knows how narrow a way is asks for small packets from the start.
fn transfer(client: &Namespace, site: SocketAddr, server: &Nginx) {
    let blob = random_bytes(5, 4 * MIB);
    fs::write(server.root().join("blob"), &blob).unwrap();
    let transfer = || {
        let upload = Upload::begin(site, "/upload/narrow", &blob, PATIENCE)?;
        let download = Download::begin(site, "/blob", PATIENCE)?;
        Ok::<_, io::Error>((download.finish()?, upload.finish()?))
    };
    let (download, upload) = client.enter(transfer).unwrap().unwrap();
    assert!(download == blob, "the download is broken");
    assert!(upload.starts_with("HTTP/1.1 201"), "{upload}");
    let uploaded = server.root().join("upload/narrow");
    assert!(fs::read(&uploaded).unwrap() == blob, "the upload is broken");
    fs::remove_file(uploaded).unwrap();
}

/// Whether `node` has been told how much the way to `other` takes.
fn has_narrow_route(node: &Namespace, other: impl ToString) -> bool {
    let route = node.run("ip", &["route", "get", &other.to_string()]);
    route.unwrap().contains("mtu 1280")
}
