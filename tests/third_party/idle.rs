//! Ten thousand idle connections.

use memlb_tests::{Cluster, Connection, root_test};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::scenario::{PATIENCE, disturb, run_scenario, service, wait_for_flows};

const CONNECTIONS: usize = 10_000;

#[root_test(tc, xdp)]
fn keeps_10_000_idle_connections_while_the_selection_moves_and_the_manager_dies(attach: &str) {
    run_scenario(attach, &[], idle);
}

fn idle(cluster: &mut Cluster) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    assert!(most > CONNECTIONS as u64 + 100, "{most} files may be open");
    let site = service(cluster, 80);
    let open = || -> Vec<Connection> {
        (0..CONNECTIONS)
            .map(|_| Connection::open_here(site, PATIENCE).unwrap())
            .collect()
    };
    let mut connections = cluster.topology.client.enter(open).unwrap();
    request(&mut connections);
    wait_for_flows(cluster, 80, CONNECTIONS as u64);
    disturb(cluster);
    wait_for_flows(cluster, 80, CONNECTIONS as u64);
    assert_eq!(cluster.page().unwrap(), "Worker2");
    request(&mut connections);
    drop(connections);
    wait_for_flows(cluster, 80, 0);
}

/// Each gets an answer, from the worker that it began with.
fn request(connections: &mut [Connection]) {
    for connection in connections {
        assert_eq!(connection.get("/").unwrap().first_line(), "Worker1");
    }
}
