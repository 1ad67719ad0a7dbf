//! Two managers exchange their connections and orders.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Mutex,
    time::Duration,
};

use memlb::{
    keys::{KeyId, SigningKey, read_peer_keys},
    peer::wire::{Advertisement, FrameSigner, Hello, Role, SessionKeys},
};
use memlb_tests::{
    command::output,
    pair::{Idle, Manager, Pair, PairOptions},
    root_test,
    wait::eventually,
};
use zeroize::Zeroizing;

const SOON: Duration = Duration::from_secs(20);

fn pair() -> Pair {
    let options = PairOptions {
        peers: true,
        ..PairOptions::default()
    };
    let pair = Pair::start(&options).unwrap();
    pair.wait_until_active(0, SOON).unwrap();
    pair.wait_until_complete(SOON).unwrap();
    pair
}

/// The manager's open connections.
fn connections(manager: &Manager) -> usize {
    let printed = output(manager.memlb("flows").arg("--json")).unwrap();
    let flows: serde_json::Value = serde_json::from_str(&printed).unwrap();
    flows["total"].as_u64().unwrap() as usize
}

fn intake(manager: &Manager, outcome: &str) -> u64 {
    manager.peer("intake").unwrap()[outcome]
        .as_u64()
        .unwrap_or(0)
}

#[root_test]
fn a_connection_is_on_both_managers_until_it_ends() {
    let pair = pair();
    let [active, other] = &pair.managers[..] else {
        panic!("two managers");
    };
    let idle = Idle::open(&pair.network.client, 50).unwrap();
    eventually(SOON, "50 connections on the other manager", || {
        connections(other) == 50
    });
    assert!(intake(other, "inserted") >= 50);
    let peer = |name| active.peer(name).unwrap();
    println!(
        "half of the frames within {} µs, 99 % within {} µs",
        peer("lag_p50_us"),
        peer("lag_p99_us")
    );
    drop(idle);
    eventually(SOON, "none on the other manager", || {
        connections(other) == 0
    });
    assert!(intake(other, "removed") >= 50);
}

#[root_test]
fn orders_apply_on_both_managers() {
    let pair = pair();
    let [one, other] = &pair.managers[..] else {
        panic!("two managers");
    };
    let state = |manager: &Manager| {
        let backend = manager.backend("worker1").unwrap();
        backend["state"].as_str().unwrap().to_owned()
    };
    output(one.memlb("drain").arg("worker1")).unwrap();
    eventually(SOON, "the drain on the other", || {
        state(other) == "draining"
    });
    output(other.memlb("undrain").arg("worker1")).unwrap();
    eventually(SOON, "its end on the one", || state(one) == "up");

    let denied = |manager: &Manager| {
        let listed = output(manager.memlb("deny list").arg("--json")).unwrap();
        listed.contains("203.0.113.0/24")
    };
    let deny = |manager: &Manager, verb| {
        output(manager.memlb(verb).arg("203.0.113.0/24")).unwrap();
    };
    deny(one, "deny add");
    eventually(SOON, "the denied prefix on the other", || denied(other));
    deny(other, "deny remove");
    eventually(SOON, "its removal on the one", || !denied(one));
}

/// What a stranger sends a manager, in the name of its peer.
struct UnknownHost {
    address: SocketAddr,
    hello: Hello,
    key: SigningKey,
}

impl UnknownHost {
    /// Says hello. Returns the connection and both hellos; the answer is empty if there is none.
    fn hello(&self, hello: &Hello, key: &SigningKey) -> (TcpStream, Vec<u8>, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let sent = hello.sign(Role::Connector, key);
        stream.write_all(&sent).unwrap();
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).unwrap_or(0);
        answer.truncate(length);
        (stream, sent, answer)
    }

    /// Says hello with the right key; `frames` makes the frames that follow.
    fn session(&self, frames: impl Fn(&mut FrameSigner) -> Vec<u8>) -> Vec<u8> {
        let (mut stream, sent, answer) = self.hello(&self.hello, &self.key);
        let keys = SessionKeys::derive(&self.key, &sent, &answer);
        let frames = frames(&mut keys.of(Role::Connector).0);
        // The manager may have closed the connection.
        _ = stream.write_all(&frames);
        frames
    }
}

/// A frame of a type that this memlb does not know.
fn unknown(signer: &mut FrameSigner) -> Vec<u8> {
    let mut out = Vec::new();
    signer.sign(99, 1, &mut out, |out| out.extend_from_slice(&[7; 40]));
    out
}

#[root_test]
fn input_of_unknown_senders_is_only_counted() {
    let pair = pair();
    let mut idle = Idle::open(&pair.network.client, 20).unwrap();
    let [one, other] = &pair.managers[..] else {
        panic!("two managers");
    };
    let knows_all = || connections(other) == 20;
    eventually(SOON, "20 connections on the other manager", knows_all);
    let stranger = UnknownHost {
        address: other.peer_address(),
        hello: Hello {
            protocols: (1, 1),
            nonce: [3; 16],
            echoed_nonce: [0; 16],
            epoch: 1,
            name: "manager1".to_owned(),
            version: "0.1.0".to_owned(),
            advertisement: Advertisement::default(),
        },
        key: read_peer_keys(&pair.key_file()).unwrap().signing().clone(),
    };
    let refused = |reason: &str| {
        let refused = other.peer("refused_frames").unwrap();
        refused[reason].as_u64().unwrap_or(0)
    };
    let send = |reason: &str, action: &(dyn Fn() + Sync)| {
        let before = refused(reason);
        pair.network.managers[0].enter(action).unwrap();
        eventually(SOON, &format!("one more {reason}"), || {
            refused(reason) == before + 1
        });
        assert!(knows_all(), "{} after {reason}", connections(other));
    };
    let raw = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(stranger.address).unwrap();
        stream.write_all(bytes).unwrap();
    };
    send("not_hello", &|| raw(b"GET / HTTP/1.1\r\n\r\n"));
    // The beginning of a hello.
    send("cut", &|| raw(b"memlbp1\n\x00\x90"));
    send("other_key", &|| {
        let key = SigningKey::new(KeyId(9), &Zeroizing::new([9; 32]));
        let (_, _, answer) = stranger.hello(&stranger.hello, &key);
        assert!(answer.is_empty(), "another key was answered");
    });
    send("bad_signature", &|| {
        let key = SigningKey::new(stranger.key.id(), &Zeroizing::new([9; 32]));
        stranger.hello(&stranger.hello, &key);
    });
    send("protocol", &|| {
        let hello = Hello {
            protocols: (7, 9),
            ..stranger.hello.clone()
        };
        stranger.hello(&hello, &stranger.key);
    });
    // Without the key, a recorded hello begins no session, and the frames of its session are no use.
    send("bad_signature", &|| {
        stranger.session(|signer| {
            let mut forged = unknown(signer);
            forged[20] ^= 1;
            forged
        });
    });
    assert_eq!(other.peer("received_complete").unwrap(), true);
    // With the key: skipped, then repeated or cut.
    let recorded = Mutex::default();
    send("replayed", &|| {
        *recorded.lock().unwrap() = stranger.session(|signer| unknown(signer).repeat(2));
    });
    send("bad_signature", &|| {
        stranger.session(|_| recorded.lock().unwrap().clone());
    });
    send("cut", &|| {
        stranger.session(|signer| {
            let mut cut = unknown(signer);
            cut.pop();
            cut
        });
    });
    pair.wait_until_complete(SOON).unwrap();
    assert!(knows_all());
    assert_eq!(one.peer("state").unwrap(), "connected");
    assert_eq!(idle.check(), 0);
}
