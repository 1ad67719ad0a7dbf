//! Clients that take their time: to ask, or to listen.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use memlb_tests::{Cluster, transfer::noise, wait_until};
use socket2::SockRef;

use crate::scene::{MIB, PATIENCE, SOON, connect, disturb, play, service, wait_for_flows, worker1};

const CLIENTS: usize = 100;

#[test]
fn serves_clients_that_trickle() {
    play("tc", &[], trickle);
}

#[test]
fn serves_clients_that_trickle_with_xdp() {
    play("xdp", &[], trickle);
}

/// A byte at a time, each client at its own pace, and the selection moves half-way.
fn trickle(cluster: &mut Cluster) {
    let request = b"GET / HTTP/1.1\r\nHost: memlb\r\nConnection: close\r\n\r\n";
    let site = service(cluster, 80);
    let mut clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| connect(&cluster.topology.client, site))
        .collect();
    let (first, second) = request.split_at(request.len() / 2);
    send_slowly(&mut clients, first);
    wait_for_flows(cluster, 80, CLIENTS as u64);
    disturb(cluster);
    send_slowly(&mut clients, second);
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nWorker1\n"), "{answer}");
    }
    wait_for_flows(cluster, 80, 0);
}

fn send_slowly(clients: &mut [TcpStream], bytes: &[u8]) {
    for byte in bytes {
        for client in &mut *clients {
            client.write_all(&[*byte]).unwrap();
        }
        // Pace, not a wait for anything.
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn serves_a_client_that_does_not_listen_for_a_while() {
    play("tc", &[], deaf);
}

#[test]
fn serves_a_client_that_does_not_listen_for_a_while_with_xdp() {
    play("xdp", &[], deaf);
}

/// The worker fills what room there is, and then asks now and then whether there is more.
fn deaf(cluster: &mut Cluster) {
    let blob = noise(3, 8 * MIB);
    fs::write(cluster.servers[0].root().join("blob"), &blob).unwrap();
    let mut client = connect(&cluster.topology.client, service(cluster, 80));
    SockRef::from(&client)
        .set_recv_buffer_size(16 << 10)
        .unwrap();
    write!(
        client,
        "GET /blob HTTP/1.1\r\nHost: memlb\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let packets = |cluster: &Cluster| worker1(cluster, 80, "packets_out");
    wait_until(SOON, "the answer to begin", || packets(cluster) > 2).unwrap();
    disturb(cluster);
    let before = packets(cluster);
    wait_until(PATIENCE, "one more question for room", || {
        packets(cluster) > before
    })
    .unwrap();
    let sent = worker1(cluster, 80, "bytes_out");
    assert!(sent < MIB as u64, "{sent} bytes have gone somewhere");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&blob), "not what was sent");
}
