//! A WebSocket that stays open during changes of the manager.

use std::{net::TcpStream, thread};

use memlb_tests::{Cluster, root_test, transfer::random_bytes};
use tungstenite::{Message, WebSocket, accept, client};

use crate::scenario::{self, MIB, connect, disturb, listen, run_scenario, service, wait_for_flows};

const PORT: u16 = 8443;
/// Of messages: one byte, and around each of the lengths at which the frame's header grows.
const LENGTHS: [usize; 7] = [1, 125, 126, 65_535, 65_536, 100_000, MIB];

#[root_test(tc, xdp)]
fn keeps_a_websocket_while_the_selection_moves_and_the_manager_dies(attach: &str) {
    run_scenario(attach, &[PORT], websocket);
}

fn websocket(cluster: &mut Cluster) {
    let listener = listen(&cluster.topology.workers[0], PORT);
    thread::scope(|scope| {
        let server = scope.spawn(|| echo(accept(scenario::accept(&listener)).unwrap()));
        let stream = connect(&cluster.topology.client, service(cluster, PORT));
        let (mut socket, _) = client(format!("ws://memlb:{PORT}/"), stream).unwrap();
        converse(&mut socket);
        wait_for_flows(cluster, PORT, 1);
        disturb(cluster);
        converse(&mut socket);
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
        let echoed = server.join().unwrap();
        assert_eq!(echoed, 2 * LENGTHS.len());
    });
    wait_for_flows(cluster, PORT, 0);
}

/// Says each message and hears it again.
fn converse(socket: &mut WebSocket<TcpStream>) {
    for (seed, length) in (1..).zip(LENGTHS) {
        let message = Message::binary(random_bytes(seed, length));
        socket.send(Message::Ping("still there?".into())).unwrap();
        socket.send(message.clone()).unwrap();
        assert_eq!(socket.read().unwrap(), Message::Pong("still there?".into()));
        assert!(socket.read().unwrap() == message, "{length} bytes differ");
    }
}

/// Says everything again until the client takes its leave; returns how many messages that were.
fn echo(mut socket: WebSocket<TcpStream>) -> usize {
    let mut echoed = 0;
    loop {
        match socket.read().unwrap() {
            Message::Close(_) => break,
            message if message.is_binary() => {
                socket.send(message).unwrap();
                echoed += 1;
            }
            _ => {}
        }
    }
    assert!(matches!(
        socket.flush(),
        Ok(()) | Err(tungstenite::Error::ConnectionClosed)
    ));
    echoed
}
