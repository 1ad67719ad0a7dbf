//! Mode `dsr`: a manager finds the worker of an unknown connection by a query to the agents.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use lb_core::{BootId, Sequence};
use memlb::{
    heartbeat::{ConnectionQuery, ConnectionReply},
    keys::{self, Key},
};
use memlb_tests::{
    Cluster,
    client::Connection,
    command::output,
    datagram::Sender,
    eventually, root_test,
    syn::{ACK, Segment, anywhere, raw_socket},
    transfer::{Download, random_bytes},
};
use socket2::SockAddr;
use zeroize::Zeroizing;

const SOON: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(20);
const CONNECTIONS: usize = 100;
const MIB: usize = 1 << 20;

fn start(attach: &str) -> Cluster {
    Cluster::serving_with(|it| {
        it.attach = attach.into();
        it.direct = true;
        it.authentication = Some("enforce");
    })
}

/// As many idle connections to one worker, each of which has loaded its page.
fn idle_connections(cluster: &Cluster) -> Vec<Connection> {
    let open = || {
        let mut connection = Connection::open_here(cluster.service(), PATIENCE)?;
        connection.get("/")?;
        Ok::<_, std::io::Error>(connection)
    };
    let begin = || {
        (0..CONNECTIONS / 2)
            .map(|_| open())
            .collect::<Result<_, _>>()
    };
    cluster.topology.client.enter(begin).unwrap().unwrap()
}

#[root_test(tc, xdp)]
fn connections_continue_without_the_maps(attach: &str) {
    let mut cluster = start(attach);
    let blob = random_bytes(1, 16 * MIB);
    for index in [0, 1] {
        let root = cluster.servers[index].root();
        fs::write(root.join("blob"), &blob).unwrap();
    }
    let mut connections = idle_connections(&cluster);
    let begin = || {
        let mut download = Download::begin(cluster.service(), "/blob", PATIENCE)?;
        download.go_on_to(MIB)?;
        Ok::<_, std::io::Error>(download)
    };
    let download = cluster.topology.client.enter(begin).unwrap().unwrap();
    cluster.memory[0].set_available_kb(100 * 1024).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    connections.extend(idle_connections(&cluster));

    let stopped = cluster.manager.take().unwrap().terminate(SOON).unwrap();
    assert!(stopped.success());
    drop_packets(&cluster, true);
    output(&mut cluster.memlb("unload")).unwrap();
    // This one does not wait for the next manager. TCP repeats its packet ever later.
    let impatient = thread::spawn({
        let mut connection = connections.pop().unwrap();
        let patience = Some(4 * PATIENCE);
        connection.stream().set_read_timeout(patience).unwrap();
        move || connection.get("/").map(|page| page.first_line())
    });
    cluster.start_manager().unwrap();
    drop_packets(&cluster, false);
    let pages = thread::scope(|scope| {
        let load = |connection: &mut Connection| {
            let begun = Instant::now();
            let page = connection.get("/").map(|page| page.first_line());
            (page, begun.elapsed())
        };
        let threads: Vec<_> = connections
            .iter_mut()
            .map(|connection| scope.spawn(move || load(connection)))
            .collect();
        threads
            .into_iter()
            .map(|it| it.join().unwrap())
            .collect::<Vec<_>>()
    });
    let slowest = pages.iter().map(|(_, took)| *took).max().unwrap();
    println!(
        "{attach}: the slowest of {} after {slowest:.3?}",
        pages.len()
    );
    for (number, (page, _)) in pages.iter().enumerate() {
        let worker = format!("Worker{}", 1 + number / (CONNECTIONS / 2));
        assert_eq!(page.as_deref().ok(), Some(worker.as_str()), "{page:?}");
    }
    assert_eq!(impatient.join().unwrap().unwrap(), "Worker2");
    assert!(
        download
            .finish()
            .unwrap()
            .ends_with(&blob[blob.len() - MIB..])
    );
    // Linux repeats a packet after 200 ms; some need a second repetition on a busy machine.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(cluster.verdict("lookup_pending").unwrap() >= CONNECTIONS as u64);
    eventually(PATIENCE, "the event", || {
        let events = cluster.events_of("connections_looked_up").unwrap();
        let found: u64 = events.iter().filter_map(|it| it["found"].as_u64()).sum();
        found > CONNECTIONS as u64
    });
}

/// Drops what arrives for the service while no program is attached, or no longer.
fn drop_packets(cluster: &Cluster, drops: bool) {
    let nft = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        cluster.topology.manager.run("nft", &words).unwrap();
    };
    if drops {
        nft("add table inet memlb-gap");
        nft("add chain inet memlb-gap in { type filter hook input priority -10; }");
        let address = cluster.topology.manager.address();
        nft(&format!(
            "add rule inet memlb-gap in ip daddr {address} tcp dport 80 drop"
        ));
    } else {
        nft("delete table inet memlb-gap");
    }
}

#[root_test]
fn queries_and_replies_with_a_wrong_key_are_ignored() {
    let mut cluster = start("tc");
    let key = keys::read_key(&cluster.key_file(0).unwrap(), "worker1").unwrap();
    let forged = Key::new("worker1".to_owned(), key.id(), &Zeroizing::new([7; 32]));
    let to_manager = Sender::open(&cluster.topology.client, cluster.heartbeat_address()).unwrap();
    let reply = ConnectionReply {
        nonce: 1,
        known_clients: 1,
    };
    for (key, reason) in [
        (None, "unsigned"),
        (Some(&forged), "bad_signature"),
        (Some(&key), "unsolicited"),
    ] {
        to_manager.send(reply.encode(key).unwrap()).unwrap();
        eventually(SOON, reason, || refused(&cluster, reason) == 1);
    }
    let mut query = ConnectionQuery {
        heartbeat: Sequence {
            boot: BootId(1),
            number: 1,
        },
        nonce: 1,
        service: "192.168.56.101:80".parse().unwrap(),
        clients: vec!["192.168.56.10:40000".parse().unwrap()],
    };
    let to_agent = Sender::open(&cluster.topology.client, agent_socket(&cluster)).unwrap();
    to_agent.send(query.encode(Some(&forged)).unwrap()).unwrap();
    let agent = cluster.agents[0].as_mut().unwrap();
    agent
        .wait_for_log(SOON, "was refused (bad_signature 1)")
        .unwrap();
    // The right key, but a recording.
    to_agent.send(query.encode(Some(&key)).unwrap()).unwrap();
    assert_eq!(cluster.page().unwrap(), "Worker1");
    assert_eq!(refused(&cluster, "unsolicited"), 1, "the agent has replied");
}

fn refused(cluster: &Cluster, reason: &str) -> u64 {
    let status = cluster.status().unwrap();
    status["heartbeats"]["refused"][reason]
        .as_u64()
        .unwrap_or(0)
}

/// Where the first worker's agent receives what managers send.
fn agent_socket(cluster: &Cluster) -> SocketAddr {
    let pid = cluster.agents[0].as_ref().unwrap().pid();
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/udp6")).unwrap();
    let line = sockets.lines().nth(1).unwrap();
    let local = line.split_whitespace().nth(1).unwrap();
    let port = u16::from_str_radix(local.rsplit_once(':').unwrap().1, 16).unwrap();
    SocketAddrV4::new(cluster.topology.workers[0].address(), port).into()
}

#[root_test(tc, xdp)]
fn queries_about_a_flood_of_unknown_packets_are_limited(attach: &str) {
    const PACKETS: u32 = 10_000;
    let cluster = start(attach);
    let target = SocketAddrV4::new(cluster.topology.manager.address(), 80);
    let begun = Instant::now();
    send_unknown(&cluster, target, 0..PACKETS);
    eventually(SOON, "the flood to be over", || {
        lookups(&cluster).iter().sum::<u64>() >= u64::from(PACKETS) * 9 / 10
    });
    let [found, not_found, limited] = lookups(&cluster);
    let elapsed = begun.elapsed();
    println!("{attach}: {not_found} looked up, {limited} not, in {elapsed:.1?}");
    assert_eq!(found, 0);
    assert!(limited > 0);
    let most = 2_000 + (2_000.0 * elapsed.as_secs_f64()) as u64;
    assert!(not_found <= most, "{not_found} > {most}");
    // After a second, the kernel answers as for any unknown connection.
    let (resets, late) = (no_flow(&cluster), PACKETS - 100..PACKETS);
    thread::sleep(Duration::from_millis(1_100));
    send_unknown(&cluster, target, late);
    eventually(SOON, "resets", || no_flow(&cluster) >= resets + 100);
    // Others are served meanwhile.
    assert_eq!(cluster.page().unwrap(), "Worker1");
}

fn no_flow(cluster: &Cluster) -> u64 {
    cluster.verdict("no_flow").unwrap()
}

/// The numbers of lookups so far: found, not found, limited.
fn lookups(cluster: &Cluster) -> [u64; 3] {
    let mut curl = cluster.topology.manager.command("curl");
    curl.args(["--silent", "--show-error", "http://127.0.0.1:9998/metrics"]);
    let metrics = output(&mut curl).unwrap();
    ["found", "not_found", "limited"].map(|outcome| {
        let series = format!("memlb_connection_lookups_total{{outcome=\"{outcome}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
        value.unwrap().parse().unwrap()
    })
}

/// Sends an acknowledgement of a connection that does not exist, for each of `numbers`.
fn send_unknown(cluster: &Cluster, target: SocketAddrV4, numbers: std::ops::Range<u32>) {
    let socket = cluster.topology.client.enter(raw_socket).unwrap().unwrap();
    for number in numbers {
        let segment = Segment {
            source: anywhere(number),
            destination: target,
            sequence: number,
            acknowledged: 1,
            flags: ACK,
            data: &[],
        };
        socket
            .send_to(&segment.packet(), &SockAddr::from(target))
            .unwrap();
        if number % 50 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }
}
