//! Half-closed connections.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
};

use memlb_tests::{Cluster, root_test, transfer::random_bytes};

use crate::scenario::{
    MIB, accept, connect, disturb, listen, run_scenario, service, wait_for_flows, worker1,
};

const PORT: u16 = 7;

#[root_test(tc, xdp)]
fn keeps_half_closed_connections_while_the_selection_moves_and_the_manager_dies(attach: &str) {
    run_scenario(attach, &[PORT], half_closed);
}

/// On one connection the client has said all, on the other one the worker has.
fn half_closed(cluster: &mut Cluster) {
    let listener = listen(&cluster.topology.workers[0], PORT);
    let meet = || {
        let client = connect(&cluster.topology.client, service(cluster, PORT));
        (client, accept(&listener))
    };
    let ((listens, talks), (talks_too, listens_too)) = (meet(), meet());
    let mut conversations = [(talks, listens), (talks_too, listens_too)];
    for (talks, listens) in &mut conversations {
        end_side(listens, b"go on");
        assert_eq!(read_to_end(talks), b"go on");
    }
    wait_for_flows(cluster, PORT, 2);

    let speech = random_bytes(4, 16 * MIB);
    let (first, second) = speech.split_at(MIB / 8);
    for (talks, _) in &mut conversations {
        talks.write_all(first).unwrap();
    }
    disturb(cluster);
    assert_eq!(worker1(cluster, PORT, "flows"), 2);
    for (mut talks, mut listens) in conversations {
        let received = thread::scope(|scope| {
            let hears = scope.spawn(|| read_to_end(&mut listens));
            end_side(&mut talks, second);
            hears.join().unwrap()
        });
        assert!(received == speech, "{} bytes were received", received.len());
    }
    wait_for_flows(cluster, PORT, 0);
}

/// Says `last` and then nothing any more.
fn end_side(stream: &mut TcpStream, last: &[u8]) {
    stream.write_all(last).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Returns everything up to the end of the stream.
fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    received
}
