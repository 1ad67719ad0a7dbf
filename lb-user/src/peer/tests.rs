//! Two replications over loopback, each with tables in memory: different ids, interfaces and clocks.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_common::maps::{FlowRecord, PeerLink, record_kind};
use lb_core::{Endpoint, Mode, Protocol};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use zeroize::Zeroizing;

use super::{
    hub::{Hub, LocalManager},
    orders::OrderExchange,
    wire::{Hello, Message, Role, SessionKeys},
    *,
};
use crate::{
    config::Identity,
    datapath::mapped,
    keys::{KeyId, PeerKeys, SigningKey},
};

/// A client's address and port.
type ClientSocket = (IpAddr, u16);

#[derive(Debug, Default)]
struct Memory {
    flows: BTreeMap<ClientSocket, FlowRecord>,
    links: Vec<(u32, PeerLink)>,
    incomplete: bool,
    addresses: Vec<IpAddr>,
    /// No worker is in the tables yet.
    lacks_workers: bool,
}

/// A kernel whose clock reads `ticks`.
#[derive(Debug, Clone)]
struct TestKernel {
    memory: Arc<Mutex<Memory>>,
    ticks: u32,
}

fn client_of(record: &FlowRecord) -> ClientSocket {
    let client = crate::datapath::from_mapped(record.client);
    (client, u16::from_be_bytes(record.client_port))
}

impl Kernel for TestKernel {
    fn admit(&mut self, records: &[FlowRecord], outcomes: &mut Outcomes) -> Result<()> {
        let mut memory = self.memory.lock().unwrap();
        for record in records {
            let outcome = match record.kind {
                _ if memory.lacks_workers => "unknown_backend",
                record_kind::ENDED | record_kind::FORGOTTEN => {
                    memory.flows.remove(&client_of(record));
                    "removed"
                }
                _ => {
                    // No packet has passed here.
                    let carried = 0;
                    let record = FlowRecord { carried, ..*record };
                    memory.flows.insert(client_of(&record), record);
                    "inserted"
                }
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
        Ok(())
    }

    fn scan(&mut self) -> Result<Box<dyn Scan>> {
        let memory = self.memory.lock().unwrap();
        let present = |flow: &FlowRecord| FlowRecord {
            kind: record_kind::PRESENT,
            ..*flow
        };
        Ok(Box::new(Rest(memory.flows.values().map(present).collect())))
    }

    fn set_links(&mut self, links: &[(u32, PeerLink)], incomplete: bool) -> Result<()> {
        let mut memory = self.memory.lock().unwrap();
        memory.links = links.to_vec();
        memory.incomplete = incomplete;
        Ok(())
    }

    fn set_addresses(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.memory.lock().unwrap().addresses = addresses.to_vec();
        Ok(())
    }

    fn now_ticks(&self) -> Result<u32> {
        Ok(self.ticks)
    }
}

struct Rest(Vec<FlowRecord>);

impl Scan for Rest {
    fn next(&mut self, into: &mut Vec<FlowRecord>) -> Result<bool> {
        let part = self.0.len().min(100);
        into.extend(self.0.drain(..part));
        Ok(!self.0.is_empty())
    }
}

/// One manager's replication.
struct Side {
    hub: Arc<Hub>,
    memory: Arc<Mutex<Memory>>,
    topology: watch::Sender<Topology>,
    tasks: JoinSet<()>,
}

const WORKER: &str = "10.0.1.3:8081";
const SERVICE: &str = "192.0.2.1:80";

fn topology(backend: u32, interface: u32) -> Topology {
    let endpoint = |address: &str| Endpoint {
        address: address.parse().unwrap(),
        protocol: Protocol::Tcp,
    };
    let identity = Identity {
        endpoint: endpoint(WORKER),
        mode: Mode::Nat,
        service: Some(endpoint(SERVICE)),
    };
    let mac = [2, 0, 0, 0, 0, interface as u8].into();
    Topology {
        backends: vec![(backend, identity)],
        interfaces: vec![OwnInterface {
            index: interface,
            mac,
        }],
        nat_sources: vec![[10, 0, 1, interface as u8].into()],
        digest: [7; 32],
        serving: 1,
    }
}

fn keys(secret: u8) -> PeerKeys {
    PeerKeys::single(SigningKey::new(
        KeyId(u32::from(secret)),
        &Zeroizing::new([secret; 32]),
    ))
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

impl Side {
    /// Manager `number` of two, whose peer is at `peer`.
    fn start(number: u32, listener: TcpListener, peer: SocketAddr, secret: u8) -> Self {
        let memory = Arc::<Mutex<Memory>>::default();
        let (topology, receiver) = watch::channel(topology(number * 10, number * 3));
        let tables = TestKernel {
            memory: memory.clone(),
            ticks: number * 1_000,
        };
        let own = LocalManager {
            name: format!("manager{number}"),
            epoch: 1,
            refresh: Duration::from_millis(100),
        };
        let settings = PeerSettings {
            name: format!("manager{}", 3 - number),
            address: peer,
            keys: keys(secret),
        };
        let peers = Peers::new([settings]);
        let hub = Arc::new(Hub::new(own, peers.remotes(), receiver, Box::new(tables)));
        let mut tasks = JoinSet::new();
        let exchange = OrderExchange::new(Registers::default());
        tasks.spawn(sender::run(hub.clone(), 0, exchange.outbox(0)));
        let (orders, mut received) = mpsc::channel(1);
        tasks.spawn(receiver::serve(hub.clone(), listener, orders));
        tasks.spawn(async move { while received.recv().await.is_some() {} });
        Self {
            hub,
            memory,
            topology,
            tasks,
        }
    }

    fn status(&self) -> PeerStatus {
        self.hub.remote(0).status()
    }

    fn refused(&self, reason: &str) -> u64 {
        let refused = self.status().refused_frames;
        refused.get(reason).copied().unwrap_or_default()
    }

    fn flow(&self, port: u16) -> Option<FlowRecord> {
        let flows = &self.memory.lock().unwrap().flows;
        flows.get(&([192, 0, 2, 9].into(), port)).copied()
    }

    /// A client connects through this manager, or its connection ends.
    fn happens(&self, kind: u8, port: u16) {
        let record = self.record(kind, port);
        let flows = &mut self.memory.lock().unwrap().flows;
        match kind {
            record_kind::ENDED => flows.remove(&client_of(&record)),
            _ => flows.insert(client_of(&record), record),
        };
        self.hub.publish(&[record], Instant::now());
    }

    fn record(&self, kind: u8, port: u16) -> FlowRecord {
        let topology = self.topology.borrow();
        let service: SocketAddr = SERVICE.parse().unwrap();
        FlowRecord {
            client: mapped([192, 0, 2, 9].into()),
            client_port: port.to_be_bytes(),
            service_address: mapped(service.ip()),
            service_port: service.port().to_be_bytes(),
            source: mapped(topology.nat_sources[0]),
            source_port: (2_000 + port).to_be_bytes(),
            client_mac: [2, 9, 9, 9, 9, 9].into(),
            backend: topology.backends[0].0,
            client_interface: topology.interfaces[0].index,
            created_ticks: self.hub.now_ticks().unwrap() - 30,
            last_seen_ticks: self.hub.now_ticks().unwrap() - 4,
            sequences: [11, 22],
            protocol: 6,
            kind,
            carried: 1,
            ..FlowRecord::default()
        }
    }
}

async fn pair() -> (Side, Side) {
    let (one, other) = (listen().await, listen().await);
    let (first, second) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    let pair = (
        Side::start(1, one, second, 5),
        Side::start(2, other, first, 5),
    );
    until("both are complete", || {
        [&pair.0, &pair.1].iter().all(|side| {
            let status = side.status();
            status.complete && status.received_complete
        })
    })
    .await;
    pair
}

async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let waits = async {
        while !is_true() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(20), waits).await.expect(what);
}

#[tokio::test]
async fn a_connection_is_known_to_the_peer_by_its_own_ids() {
    let (one, other) = pair().await;
    one.happens(record_kind::OPENED, 1);
    until("the peer knows it", || other.flow(1).is_some()).await;
    let known = other.flow(1).unwrap();
    let expected = FlowRecord {
        backend: 20,
        client_interface: 6,
        manager_mac: [2, 0, 0, 0, 0, 6].into(),
        created_ticks: 2_000 - 30,
        last_seen_ticks: 2_000 - 4,
        carried: 0,
        ..one.record(record_kind::OPENED, 1)
    };
    assert_eq!(known, expected);
    until("it is acknowledged", || one.status().lag_us == Some(0)).await;
    let status = one.status();
    assert_eq!(
        (status.name.as_str(), status.protocol, status.records_sent),
        ("manager2", Some(1), 1)
    );
    one.hub.update_tables(Instant::now());
    let status = one.status();
    assert_eq!(status.configuration_matches, Some(true));
    assert_eq!(status.nat_sources, [IpAddr::from([10, 0, 1, 6])]);
    assert_eq!(other.status().records_received, 1);
    assert_eq!(other.status().intake["inserted"], 1);

    one.happens(record_kind::ENDED, 1);
    until("its end removes it", || other.flow(1).is_none()).await;
}

#[tokio::test]
async fn a_peer_that_was_away_gets_what_happened_meanwhile() {
    let (one, mut other) = pair().await;
    for port in 0..300 {
        one.happens(record_kind::OPENED, port);
    }
    until("all are known", || other.flow(299).is_some()).await;
    let address = one.hub.remote(0).settings.address;
    other.tasks.shutdown().await;
    until("its death is seen", || !one.status().complete).await;
    one.happens(record_kind::ENDED, 7);
    one.happens(record_kind::OPENED, 300);
    let again = TcpListener::bind(address).await.unwrap();
    let first = other.hub.remote(0).settings.address;
    let returned = Side::start(2, again, first, 5);
    until("it is complete again", || one.status().complete).await;
    assert_eq!(returned.memory.lock().unwrap().flows.len(), 300);
    assert!(returned.flow(7).is_none() && returned.flow(300).is_some());
}

#[tokio::test]
async fn connection_that_the_peer_no_longer_forwards_is_removed() {
    let (one, other) = pair().await;
    one.happens(record_kind::OPENED, 1);
    one.happens(record_kind::OPENED, 2);
    until("both are known", || other.flow(2).is_some()).await;
    // Its end is lost.
    let client = ([192, 0, 2, 9].into(), 1);
    one.memory.lock().unwrap().flows.remove(&client);
    until("it is forgotten", || other.flow(1).is_none()).await;
    assert!(other.flow(2).is_some());
}

#[tokio::test]
async fn flood_uses_bounded_memory_and_a_resync_follows() {
    let (one, other) = pair().await;
    let records: Vec<_> = (0..60_000)
        .map(|port| one.record(record_kind::OPENED, port))
        .collect();
    {
        let mut memory = one.memory.lock().unwrap();
        let flows = records.iter().map(|it| (client_of(it), *it));
        memory.flows.extend(flows);
    }
    one.hub.publish(&records, Instant::now());
    let status = one.status();
    assert_eq!(status.queue_records, QUEUE_RECORDS as u64);
    assert_eq!(status.lost_records, 60_000 - QUEUE_RECORDS as u64);
    assert!(!status.complete);
    until("it is complete again", || one.status().complete).await;
    assert_eq!(other.memory.lock().unwrap().flows.len(), 60_000);
    assert!(one.status().resyncs >= 2);
}

#[tokio::test]
async fn changed_configuration_requests_unknown_connections() {
    let (one, other) = pair().await;
    other.topology.send_modify(|it| it.backends.clear());
    one.happens(record_kind::OPENED, 1);
    until("it is counted", || {
        other.status().intake.contains_key("unknown_backend")
    })
    .await;
    let before = topology(21, 6);
    other.topology.send_replace(Topology {
        digest: [8; 32],
        ..before
    });
    until("it is known", || other.flow(1).is_some()).await;
    assert_eq!(other.flow(1).unwrap().backend, 21);
    until("the difference is seen", || {
        one.hub.update_tables(Instant::now());
        one.status().configuration_matches == Some(false)
    })
    .await;
}

#[tokio::test]
async fn connections_of_a_worker_without_heartbeats_are_requested_again() {
    let (one, other) = pair().await;
    other.memory.lock().unwrap().lacks_workers = true;
    one.happens(record_kind::OPENED, 1);
    until("the lack is seen", || !other.status().received_complete).await;
    other.memory.lock().unwrap().lacks_workers = false;
    until("it is complete again", || {
        other.status().received_complete && one.status().complete
    })
    .await;
    assert!(other.flow(1).is_some());
}

#[tokio::test]
async fn packets_go_to_living_peers_only() {
    let (one, mut other) = pair().await;
    let links = || one.memory.lock().unwrap().links.clone();
    let link = PeerLink {
        mac: [2, 0, 0, 0, 0, 6].into(),
        own_mac: [2, 0, 0, 0, 0, 3].into(),
    };
    until("it lives", || links() == [(3, link)]).await;
    let addresses = one.memory.lock().unwrap().addresses.clone();
    assert_eq!(addresses, [[10, 0, 1, 3], [10, 0, 1, 6]].map(IpAddr::from));
    // Its manager is gone, and its kernel refuses connections: the machine lives.
    other.tasks.shutdown().await;
    until("the session is over", || {
        one.status().state != PeerState::Connected
    })
    .await;
    sleep(Duration::from_millis(600)).await;
    one.hub.update_tables(Instant::now());
    assert_eq!(links(), [(3, link)]);
    assert!(one.memory.lock().unwrap().incomplete);
    // Nothing answers.
    one.hub.remote(0).lock().set_unresponsive();
    one.hub.update_tables(Instant::now());
    assert_eq!(links(), []);
}

/// Opens a session with the manager at `address` as `name`, and returns what goes over it.
async fn hello_to(address: SocketAddr, name: &str, secret: u8) -> (TcpStream, Vec<u8>, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let hello = Hello {
        protocols: (1, 1),
        nonce: [3; 16],
        echoed_nonce: [0; 16],
        epoch: 1,
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        advertisement: topology(20, 6).advertisement(),
    };
    let sent = hello.sign(Role::Connector, keys(secret).signing());
    stream.write_all(&sent).await.unwrap();
    let mut answer = vec![0; 4_096];
    let length = stream.read(&mut answer).await.unwrap();
    answer.truncate(length);
    (stream, sent, answer)
}

/// Opens a session as the second manager; returns its first frame, which holds an empty list of records.
async fn first_frame(address: SocketAddr) -> (TcpStream, Vec<u8>) {
    let (stream, sent, answer) = hello_to(address, "manager2", 5).await;
    let keys = SessionKeys::derive(keys(5).signing(), &sent, &answer);
    let mut frame = Vec::new();
    Message::Records(Vec::new()).sign(&mut keys.of(Role::Connector).0, &mut frame);
    (stream, frame)
}

#[tokio::test]
async fn forged_repeated_and_cut_frames_change_nothing_and_are_counted() {
    let (one, other) = pair().await;
    let address = other.hub.remote(0).settings.address;
    let flows = || one.memory.lock().unwrap().flows.len();

    let (_, _, answer) = hello_to(address, "manager2", 6).await;
    assert!(answer.is_empty(), "another key was answered");
    until("it is counted", || one.refused("other_key") == 1).await;
    let (_, _, answer) = hello_to(address, "manager3", 5).await;
    assert!(answer.is_empty());
    until("it is counted", || one.refused("unknown_peer") == 1).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    until("it is counted", || one.refused("not_hello") == 1).await;

    // A hello that was recorded brings an answer, but no session.
    let (mut stream, mut frame) = first_frame(address).await;
    frame[20] ^= 1;
    stream.write_all(&frame).await.unwrap();
    until("it is counted", || one.refused("bad_signature") == 1).await;
    assert_eq!(one.status().state, PeerState::Connected);
    assert!(one.status().received_complete, "the session was disturbed");

    // With the key, but twice the same frame.
    let (mut stream, frame) = first_frame(address).await;
    stream.write_all(&frame.repeat(2)).await.unwrap();
    until("it is counted", || one.refused("replayed") == 1).await;

    let (mut stream, mut frame) = first_frame(address).await;
    frame.pop();
    stream.write_all(&frame).await.unwrap();
    drop(stream);
    until("it is counted", || one.refused("cut") == 1).await;
    assert_eq!(flows(), 0);
}

#[tokio::test]
async fn connections_without_hello_keep_no_peer_out() {
    let (one, other) = pair().await;
    let address = other.hub.remote(0).settings.address;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let (_, _, answer) = hello_to(address, "manager2", 5).await;
    assert!(!answer.is_empty(), "the peer is refused");
    assert!(one.refused("too_many") > 0);
}

#[tokio::test]
async fn a_manager_of_another_protocol_gets_the_reason_of_no_session() {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let one = Side::start(1, listen().await, address, 5);
    let (stream, _) = listener.accept().await.unwrap();
    let own = Hello {
        protocols: (2, 4),
        name: "manager2".to_owned(),
        ..one.hub.hello().unwrap()
    };
    let keys = keys(5);
    let refused = session::accept(stream, &own, |_| Ok(&keys)).await;
    // This test speaks only the first version.
    assert!(refused.is_ok());
    until("it is refused", || one.status().state == PeerState::Refused).await;
    let reason = one.status().reason.unwrap();
    assert!(reason.contains("versions 2 to 4"), "{reason}");
    assert_eq!(one.refused("protocol"), 1);
}

#[tokio::test]
async fn sessions_that_end_at_once_begin_again_after_a_pause() {
    let listener = listen().await;
    let one = Side::start(1, listen().await, listener.local_addr().unwrap(), 5);
    let own = Hello {
        name: "manager2".to_owned(),
        ..one.hub.hello().unwrap()
    };
    let keys = keys(5);
    let mut sessions = 0;
    let accepted = async {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if session::accept(stream, &own, |_| Ok(&keys)).await.is_ok() {
                sessions += 1;
            }
        }
    };
    assert!(timeout(Duration::from_secs(1), accepted).await.is_err());
    assert!(
        (1..=6).contains(&sessions),
        "{sessions} sessions in a second"
    );
}
