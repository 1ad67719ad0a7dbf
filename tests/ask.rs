//! Mode `dsr`: a manager that does not know a connection asks the agents whose it is.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use memlb_tests::{
    Cluster, ClusterOptions,
    client::Connection,
    command::output,
    root_test,
    transfer::{Download, random_bytes},
    wait_until,
};

const SOON: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(20);
const CONNECTIONS: usize = 100;
const MIB: usize = 1 << 20;

fn start(attach: &str) -> Cluster {
    Cluster::start_serving(&ClusterOptions {
        attach: attach.into(),
        direct: true,
        authentication: Some("enforce"),
        ..ClusterOptions::default()
    })
    .unwrap()
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
fn connections_outlive_the_maps(attach: &str) {
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
    let mut download = cluster.topology.client.enter(begin).unwrap().unwrap();
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
    assert!(cluster.verdict("asked").unwrap() >= CONNECTIONS as u64);
    wait_until(PATIENCE, "the event", || {
        let events = cluster.events_of("agents_asked").unwrap();
        let found: u64 = events.iter().filter_map(|it| it["found"].as_u64()).sum();
        found > CONNECTIONS as u64
    })
    .unwrap();
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
