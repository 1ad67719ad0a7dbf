//! The programs' count of open connections stays exact: however connections end, with evictions, and with killed
//! managers.
//!
//! `MEMLB_FLOWS` (40,000) says how many connections there are in all.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    env,
    io::{self, Read, Write},
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use aya::maps::{Array, Map, MapData};
use memlb_tests::{Cluster, Connection, command::output, eventually, root_test, wait_until};
use serde_json::Value;
use socket2::SockRef;

const SOON: Duration = Duration::from_secs(10);
const CLIENTS: usize = 8;
const BETWEEN_KILLS: Duration = Duration::from_secs(2);

/// The manager compares the counts rarely, on a busy machine very rarely.
const RECOUNTED: Duration = Duration::from_secs(90);

#[root_test]
fn the_count_stays_exact_however_connections_end() {
    let mut cluster = start(&[]);
    let flows = flows() / 2;
    let (kills, failed) = open_and_close_connections(&mut cluster, flows);
    assert_eq!(failed, 0, "no connection breaks");
    // The programs alone have counted right: nothing had to be put right.
    eventually(SOON, "the last to end", || {
        counts(&cluster, "active") == [0, 0]
    });
    // A recount in the midst of them may have taken one for lost; it is the next one's to see.
    eventually(RECOUNTED, "nothing to be lost", || {
        counts(&cluster, "evicted") == [0, 0]
    });
    println!("{flows} flows, {kills} managers killed: the count is exact");
    assert_exact(&cluster, 60);
}

#[root_test]
fn the_count_stays_exact_with_evictions() {
    const TABLE: usize = 2_048;
    let mut cluster = start(&["--set", &format!("limits.flows={TABLE}")]);
    // More than fit, and silent from now on.
    let mut held: Vec<_> = (0..2 * TABLE).filter_map(|_| open(&cluster)).collect();
    let flows = flows() / 2;
    let (kills, failed) = open_and_close_connections(&mut cluster, flows);
    // The kernel evicts a connection that is in use now and then.
    assert!(failed * 50 <= flows, "{failed} of {flows} failed");
    // These have room, but find those of before in their places.
    held.extend((0..TABLE / 4).filter_map(|_| open(&cluster)));
    let (mut present, mut asked) = ([0, 0], None::<Instant>);
    wait_until(RECOUNTED, "the count to be right", || {
        // Who was evicted is answered with a reset; who was so by half is made whole, which may be at
        // the cost of one that has answered.
        if asked.is_none_or(|at| at.elapsed() > RECOUNTED / 5) {
            held.retain_mut(|(connection, _)| connection.get("/").is_ok());
            present = of_each_worker(&held);
            asked = Some(Instant::now());
        }
        open_connections(&cluster) == present
    })
    .with_context(|| format!("{:?}, not {present:?}", open_connections(&cluster)))
    .unwrap();
    assert!(present.iter().sum::<u64>() > 100, "{present:?}");
    assert_shown(&cluster, present);
    let evicted: u64 = counts(&cluster, "evicted").iter().sum();
    assert!(evicted as usize >= TABLE, "only {evicted} were evicted");
    drop(held);
    eventually(RECOUNTED, "nothing to be open", || {
        open_connections(&cluster) == [0, 0]
    });
    assert_shown(&cluster, [0, 0]);
    println!(
        "{flows} flows, {failed} failed, {evicted} evicted, {present:?} left, {kills} managers killed: the count is exact"
    );
    // In a small table the kernel evicts a newcomer now and then.
    assert_exact(&cluster, 120);
}

fn flows() -> usize {
    env::var("MEMLB_FLOWS").map_or(40_000, |flows| flows.parse().unwrap())
}

fn start(settings: &[&str]) -> Cluster {
    let arguments = ["--policy", "round_robin"].iter().chain(settings);
    let cluster =
        Cluster::with(|it| it.manager_arguments = arguments.map(|it| (*it).to_owned()).collect());
    eventually(SOON, "a worker to serve", || {
        cluster.page().is_ok_and(|page| page.starts_with("Worker"))
    });
    let reuse = ["-qw", "net.ipv4.tcp_tw_reuse=1"];
    cluster.topology.client.run("sysctl", &reuse).unwrap();
    cluster
}

/// Opens and ends so many connections while managers are killed; returns how many managers, and how many
/// connections failed.
fn open_and_close_connections(cluster: &mut Cluster, flows: usize) -> (usize, usize) {
    let done = AtomicUsize::new(0);
    let server = cluster.service();
    let client = || {
        let mut failed = 0;
        loop {
            let number = done.fetch_add(1, Ordering::Relaxed);
            if number >= flows {
                return failed;
            }
            failed += usize::from(live(server, number).is_err());
        }
    };
    let (mut kills, mut failed) = (0, 0);
    thread::scope(|scope| {
        let entered = &cluster.topology.client;
        let start = || (0..CLIENTS).map(|_| scope.spawn(client));
        let clients: Vec<_> = entered.enter(|| start().collect()).unwrap();
        while done.load(Ordering::Relaxed) < flows {
            let since = Instant::now();
            eventually(SOON, "the next kill", || {
                since.elapsed() > BETWEEN_KILLS || done.load(Ordering::Relaxed) >= flows
            });
            cluster.restart_manager().unwrap();
            kills += 1;
        }
        failed = clients.into_iter().map(|it| it.join().unwrap()).sum();
    });
    (kills, failed)
}

/// One connection; each ends otherwise than the one before.
fn live(server: SocketAddr, number: usize) -> io::Result<()> {
    let mut connection = Connection::open_here(server, SOON)?;
    match number % 4 {
        0 => {
            // The server closes first.
            let mut stream = connection.stream();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: memlb\r\nConnection: close\r\n\r\n")?;
            stream.read_to_end(&mut Vec::new())?;
        }
        1 => _ = connection.get("/")?,
        2 => {
            connection.get("/")?;
            // Closing sends a reset then.
            SockRef::from(connection.stream()).set_linger(Some(Duration::ZERO))?;
        }
        // Closed without a word.
        _ => {}
    }
    Ok(())
}

fn open(cluster: &Cluster) -> Option<(Connection, String)> {
    let mut connection =
        Connection::open(&cluster.topology.client, cluster.service(), SOON).ok()?;
    let page = connection.get("/").ok()?.first_line();
    Some((connection, page))
}

/// Opens 60 connections in at most so many attempts, and expects that the programs count just these.
fn assert_exact(cluster: &Cluster, attempts: usize) {
    let opened = (0..attempts).filter_map(|_| open(cluster));
    let held: Vec<_> = opened.take(60).collect();
    let seen = of_each_worker(&held);
    assert_eq!(seen.iter().sum::<u64>(), 60, "they are open");
    // A recount meanwhile takes those that came while it read for lost, until the next.
    eventually(RECOUNTED, "them to be counted", || {
        open_connections(cluster) == seen
    });
    drop(held);
    eventually(SOON, "them to end", || open_connections(cluster) == [0, 0]);
}

/// Expects that `memlb status` and `memlb flows` show what the programs count.
fn assert_shown(cluster: &Cluster, open: [u64; 2]) {
    let status = |name: &str| cluster.backend(name).unwrap()["flows"].as_u64().unwrap();
    let listed = |name: &str| {
        let mut flows = cluster.memlb("flows");
        let flows = output(flows.args(["--worker", name, "--json"])).unwrap();
        let flows: Value = serde_json::from_str(&flows).unwrap();
        flows["total"].as_u64().unwrap()
    };
    let names = ["worker1", "worker2"];
    assert_eq!((names.map(status), names.map(listed)), (open, open));
}

fn of_each_worker(held: &[(Connection, String)]) -> [u64; 2] {
    ["Worker1", "Worker2"].map(|name| held.iter().filter(|(_, page)| page == name).count() as u64)
}

/// What the programs go by.
fn open_connections(cluster: &Cluster) -> [u64; 2] {
    let (active, evicted) = (counts(cluster, "active"), counts(cluster, "evicted"));
    [0, 1].map(|worker| active[worker].saturating_sub(evicted[worker]))
}

fn counts(cluster: &Cluster, map: &str) -> [u64; 2] {
    let map = MapData::from_pin(cluster.paths.pin_path.join(map)).unwrap();
    let map = Array::<_, u64>::try_from(Map::Array(map)).unwrap();
    [1, 2].map(|backend| map.get(&backend, 0).unwrap())
}
