//! Clients that send or receive slowly.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use memlb_tests::{Cluster, root_test, transfer::random_bytes};
use socket2::SockRef;

use crate::scenario::{MIB, connect, disturb, run_scenario, service, wait_for_flows, worker1};

const CLIENTS: usize = 100;

#[root_test(tc, xdp)]
fn serves_slow_clients_while_the_selection_moves_and_the_manager_dies(attach: &str) {
    run_scenario(attach, &[], slow);
}

fn slow(cluster: &mut Cluster) {
    let site = service(cluster, 80);
    let connections = (0..CLIENTS).map(|_| connect(&cluster.topology.client, site));
    let mut tricklers: Vec<TcpStream> = connections.collect();
    let request = b"GET / HTTP/1.1\r\nHost: memlb\r\nConnection: close\r\n\r\n";
    let (first, second) = request.split_at(request.len() / 2);
    trickle(&mut tricklers, first);
    let (mut deaf, blob) = begin_deaf(cluster);
    wait_for_flows(cluster, 80, CLIENTS as u64 + 1);
    disturb(cluster);
    trickle(&mut tricklers, second);
    for mut client in tricklers {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nWorker1\n"), "{answer}");
    }
    // The worker has filled what room there was, and waits.
    let sent = worker1(cluster, 80, "bytes_out");
    assert!(sent < MIB as u64, "{sent} bytes have gone somewhere");
    let mut answer = Vec::new();
    deaf.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&blob), "not what was sent");
}

/// Sends a byte of each client's at a time.
fn trickle(clients: &mut [TcpStream], bytes: &[u8]) {
    for byte in bytes {
        for client in &mut *clients {
            client.write_all(&[*byte]).unwrap();
        }
        // Pace, not a wait for anything.
        thread::sleep(Duration::from_millis(10));
    }
}

/// Asks for a file, which is returned too, on a connection with little room for it.
fn begin_deaf(cluster: &Cluster) -> (TcpStream, Vec<u8>) {
    let blob = random_bytes(3, 8 * MIB);
    fs::write(cluster.servers[0].root().join("blob"), &blob).unwrap();
    let mut client = connect(&cluster.topology.client, service(cluster, 80));
    SockRef::from(&client)
        .set_recv_buffer_size(16 << 10)
        .unwrap();
    let request = b"GET /blob HTTP/1.1\r\nHost: memlb\r\nConnection: close\r\n\r\n";
    client.write_all(request).unwrap();
    (client, blob)
}
