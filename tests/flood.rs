//! Half a million forged SYNs, and forged connections of mode `dsr`, while clients work.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    env, fs, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use memlb_tests::{
    Cluster, ClusterOptions, Connection, Namespace, Node, Probe, Report, Shape,
    cluster_options::{SERVICE_PORT, worker_port},
    eventually,
    load::{self, Ending, Flood, Load, Server, Sources, prepare_flood},
    migration::Application,
    root_test,
    syn::{flood, forge_connections, forge_exchanges},
    transfer::{Download, random_bytes},
};

/// How many connections must begin, and of how many SYNs at most.
const BEGUN: u64 = 500_000;
const SYNS: u32 = 1_000_000;
const WAVE: u32 = 50_000;
/// How many SYNs a second, unless the environment says otherwise.
const RATE: u32 = 60_000;
/// The receive queue of a veth, at the other end of which XDP sends packets back, has 256 entries. At a higher rate,
/// two busy processors do not empty it in time.
const XDP_RATE: u32 = 30_000;
const RATE_VARIABLE: &str = "MEMLB_FLOOD_RATE";

const DOWNLOADS: usize = 20;
const IDLE: usize = 500;
const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(10);
/// As long as people wait for a page: three SYNs, if the first two get lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a download may stand still before it counts as broken.
const STANDSTILL: Duration = Duration::from_secs(30);

#[root_test(tc, xdp)]
fn serves_during_a_flood_of_syns(attach: &str) {
    let cluster = Cluster::with(|it| it.attach = attach.into());
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let blob = random_bytes(1, 64 * MIB);
    for server in &cluster.servers {
        fs::write(server.root().join("blob"), &blob).unwrap();
    }
    let site = cluster.service();
    let open = || Connection::open_here(site, PATIENCE).unwrap();
    let idle = || -> Vec<Connection> { (0..IDLE).map(|_| open()).collect() };
    let mut idle = cluster.topology.client.enter(idle).unwrap();
    let attacker = attacker(&cluster);

    let is_over = AtomicBool::new(false);
    let (downloads, report) = thread::scope(|scope| {
        let download = || download_until(&is_over, site);
        let begin = || (0..DOWNLOADS).map(|_| scope.spawn(download)).collect();
        let threads: Vec<_> = cluster.topology.client.enter(begin).unwrap();
        let every = Duration::from_millis(5);
        let probe = Probe::start(&cluster.topology.client, site, every, PATIENCE);
        let rate = if attach == "xdp" { XDP_RATE } else { RATE };
        let flooded = flood_until_enough(&cluster, &attacker, rate);
        // Before anything can fail, so that the threads come to their end.
        is_over.store(true, Ordering::Relaxed);
        flooded.unwrap();
        let downloads: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        (downloads, probe.unwrap().stop().unwrap())
    });

    println!("{}", describe(&report));
    for download in downloads {
        assert!(download.unwrap() == blob, "a download is broken");
    }
    for connection in &mut idle {
        assert_eq!(connection.get("/").unwrap().first_line(), "Worker1");
    }
    let (requests, failures) = (report.requests.len(), report.failures().count());
    assert!(requests > 1_000, "{requests} asked only");
    assert!(
        failures * 100 <= requests,
        "{failures} of {requests} failed"
    );
}

/// The workers' queues are long, so that they keep the half-open connections of the flood.
#[root_test]
fn clients_with_a_long_delay_connect_during_a_flood() {
    const ROUND_TRIP: Duration = Duration::from_millis(100);
    const IN_TIME: Duration = Duration::from_millis(1_300);
    for (mode, in_time) in [("nat", 95.0), ("routed", 99.0), ("dsr", 99.0)] {
        let mut cluster = Cluster::with(|it| {
            it.direct = mode == "dsr";
            it.routed = mode == "routed";
            it.shape = match mode {
                "routed" => Shape::TwoArm,
                _ => Shape::OneArm,
            };
        });
        cluster.wait_for_page("Worker1", SOON).unwrap();
        cluster.servers.clear();
        let topology = &cluster.topology;
        let attacker = prepare_flood(topology).unwrap();
        let servers: Vec<_> = topology
            .workers
            .iter()
            .enumerate()
            .map(|(index, worker)| Server::start(worker, worker_port(index).unwrap()).unwrap())
            .collect();
        let flood = Flood {
            server: SocketAddrV4::new(topology.manager.address(), SERVICE_PORT),
            syns_per_second: 30_000,
            is_aimed: false,
            clients_per_second: 100,
            duration: Duration::from_secs(4),
            round_trip: ROUND_TRIP,
            stop: &AtomicBool::new(false),
        };
        let (tally, rate) = flood.run(&topology.client, &attacker).unwrap();
        drop(servers);
        let answered = tally.answered_percent(IN_TIME);
        println!("{mode}: {rate:.0} SYNs/s, {answered:.1} % answered in time");
        assert!(answered >= in_time, "{mode}: {answered:.1} %");
    }
}

/// A forger can imitate every packet of a client of mode `dsr` that passes the manager.
#[root_test]
fn a_flood_of_forged_connections_breaks_no_open_one_in_mode_dsr() {
    const FLOWS: u32 = 4_096;
    const TRUE: usize = 200;
    let cluster = Cluster::with(|it| {
        it.direct = true;
        it.settings = vec![format!("limits.flows={FLOWS}")];
    });
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let begin = || -> Vec<Connection> {
        let mut connections: Vec<_> = (0..TRUE)
            .map(|_| Connection::open_here(cluster.service(), PATIENCE).unwrap())
            .collect();
        for connection in &mut connections {
            connection.get("/").unwrap();
        }
        connections
    };
    let mut connections = cluster.topology.client.enter(begin).unwrap();
    let attacker = attacker(&cluster);
    let target = SocketAddrV4::new(cluster.topology.manager.address(), SERVICE_PORT);
    forge_connections(&attacker, target, 0..4 * FLOWS, 4_000).unwrap();
    let is_lost = |connection: &mut Connection| {
        let page = connection.get("/");
        !page.is_ok_and(|page| page.first_line() == "Worker1")
    };
    let lost = connections.iter_mut().map(is_lost).filter(|it| *it).count();
    println!(
        "{} forged connections, {lost} of {TRUE} true ones lost",
        4 * FLOWS
    );
    assert_eq!(lost, 0);
    // New connections succeed.
    assert_eq!(cluster.page().unwrap(), "Worker1");
}

/// One address takes ports as fast as they become free: it resets each connection as soon as it is established.
#[root_test]
fn six_thousand_resets_a_second_from_one_address_break_no_other_connection() {
    const DURATION: Duration = Duration::from_secs(6);
    let mut cluster = Cluster::start(&ClusterOptions::default()).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    cluster.servers.clear();
    let topology = &cluster.topology;
    load::prepare(topology).unwrap();
    load::raise_open_files().unwrap();
    let _servers: Vec<_> = topology
        .workers
        .iter()
        .enumerate()
        .map(|(index, worker)| Server::start(worker, worker_port(index).unwrap()).unwrap())
        .collect();
    let targets = [SocketAddrV4::new(topology.manager.address(), SERVICE_PORT)];
    let stop = AtomicBool::new(false);
    let open = |sources, ending, per_second| {
        let load = Load {
            targets: &targets,
            sources,
            ending,
            stop: &stop,
        };
        load::open_at_rate(&topology.client, load, per_second, DURATION).unwrap()
    };
    let (hurried, others) = thread::scope(|scope| {
        let hurried = scope.spawn(|| open(Sources::One, Ending::ClientResetAtOnce, 6_000));
        let others = open(Sources::EverNew, Ending::ServerFin, 300);
        (hurried.join().unwrap(), others)
    });
    println!(
        "{} connections of one address, {} failed; {} of others, failed: {:?}",
        hurried.attempts,
        hurried.failed(),
        others.attempts,
        others.failures
    );
    assert!(hurried.attempts > 6_000, "{}", hurried.attempts);
    assert!(others.attempts > 1_000, "{}", others.attempts);
    assert_eq!(others.failed(), 0);
}

/// More exchanges of datagrams than the worker has ports, from sources that do not exist and seem to go on.
#[root_test]
fn forged_datagram_exchanges_break_no_real_one() {
    const PORT: u16 = 5300;
    const EXCHANGES: u32 = 10_000;
    const IN_TIME: Duration = Duration::from_secs(1);
    let cluster = Cluster::with(|it| {
        it.datagram_ports = vec![PORT];
        it.settings = vec!["limits.nat_ports=10000-13999".to_owned()];
    });
    let _servers: Vec<_> = cluster
        .topology
        .workers
        .iter()
        .map(|worker| Application::start(worker, PORT).unwrap())
        .collect();
    let target = SocketAddrV4::new(cluster.topology.manager.address(), PORT);
    let request = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(IN_TIME))?;
        socket.send(b"true?")?;
        socket.recv(&mut [0; 16])
    };
    let client = &cluster.topology.client;
    eventually(SOON, "an answer", || client.enter(request).unwrap().is_ok());
    let attacker = attacker(&cluster);

    let is_over = AtomicBool::new(false);
    let ask_until_over = || -> (u32, u32) {
        let (mut asked, mut answered) = (0, 0);
        while !is_over.load(Ordering::Relaxed) {
            asked += 1;
            answered += u32::from(request().is_ok());
            thread::sleep(Duration::from_millis(10));
        }
        (asked, answered)
    };
    let (asked, answered) = thread::scope(|scope| {
        let true_client = scope.spawn(|| client.enter(ask_until_over).unwrap());
        let forged = forge_exchanges(&attacker, target, 0..EXCHANGES, 2_500);
        is_over.store(true, Ordering::Relaxed);
        forged.unwrap();
        true_client.join().unwrap()
    });
    println!("{EXCHANGES} forged exchanges; {answered} of {asked} questions answered");
    assert!(asked >= 100, "{asked}");
    assert!(answered * 100 >= asked * 99, "{answered} of {asked}");
    let begun = connections(&cluster, "udp-5300").unwrap();
    assert!(begun >= u64::from(EXCHANGES) * 9 / 10, "{begun}");
}

/// A host in the clients' network.
fn attacker(cluster: &Cluster) -> Node {
    let attacker = Namespace::create(format!("{}attacker", cluster.paths.prefix)).unwrap();
    let address = Ipv4Addr::new(192, 168, 56, 66);
    cluster
        .topology
        .join(attacker, address, "attacker")
        .unwrap()
}

/// Floods until the datapath has seen enough: where it is more than the network takes, some get lost.
fn flood_until_enough(cluster: &Cluster, attacker: &Namespace, rate: u32) -> Result<()> {
    let rate = env::var(RATE_VARIABLE).map_or(rate, |rate| rate.parse().unwrap());
    let target = SocketAddrV4::new(cluster.topology.manager.address(), SERVICE_PORT);
    let before = connections(cluster, "web")?;
    let started = Instant::now();
    for wave in 0..SYNS / WAVE {
        let sent = (wave + 1) * WAVE;
        flood(attacker, target, sent - WAVE..sent, rate)?;
        let begun = connections(cluster, "web")? - before;
        if begun >= BEGUN {
            let took = started.elapsed();
            println!("{sent} SYNs in {took:?}, {begun} connections begun");
            return Ok(());
        }
    }
    bail!("of {SYNS} SYNs, fewer than {BEGUN} were seen")
}

/// Returns how many connections to a service have begun.
fn connections(cluster: &Cluster, service: &str) -> Result<u64> {
    let status = cluster.status()?;
    let mut services = status["services"].as_array().into_iter().flatten();
    let service = services.find(|it| it["name"] == service);
    let backends = service.and_then(|it| it["backends"].as_array());
    let counts = backends.into_iter().flatten();
    Ok(counts
        .filter_map(|backend| backend["connections"].as_u64())
        .sum())
}

/// Takes a part of the file now and then until the flood is over, and then all the rest.
fn download_until(is_over: &AtomicBool, site: SocketAddr) -> io::Result<Vec<u8>> {
    const PART: usize = MIB / 64;
    let mut download = Download::begin(site, "/blob", STANDSTILL)?;
    let mut received = 0;
    while !is_over.load(Ordering::Relaxed) && received < 32 * MIB {
        received += PART;
        download.go_on_to(received)?;
        thread::sleep(Duration::from_millis(10));
    }
    download.finish()
}

/// How many asked, and how soon they got what they wanted.
fn describe(report: &Report) -> String {
    let requests = report.requests.iter();
    let mut times: Vec<Duration> = requests
        .map(|request| request.ended_at - request.sent_at)
        .collect();
    times.sort_unstable();
    let within = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!(
        "{} asked, {} failed; 50 % within {:?}, 90 % {:?}, 95 % {:?}, 99 % {:?}, all {:?}",
        times.len(),
        report.failures().count(),
        within(50),
        within(90),
        within(95),
        within(99),
        within(100)
    )
}
