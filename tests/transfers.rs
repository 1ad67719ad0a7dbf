//! Connections and transfers that continue during changes, with every byte checked.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    env, fs, io,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use memlb_tests::{
    Cluster, ClusterOptions, Connection, eventually, root_test,
    transfer::{Download, Upload, random_bytes, transfer_both_ways},
};

const SOON: Duration = Duration::from_secs(5);
/// How long a single step of a transfer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
const MIB: usize = 1 << 20;
const PARALLEL: usize = 200;

/// How long the idle connection is held, in seconds; 10 unless given.
const IDLE_SECONDS: &str = "MEMLB_IDLE_SECONDS";

#[root_test(tc, xdp)]
fn finishes_200_downloads_over_a_selection_change_and_a_manager_killed(attach: &str) {
    let mut cluster = start(attach);
    let [blob, other] = put_blobs(&cluster, MIB);
    let server = cluster.service();
    let begun = Barrier::new(PARALLEL + 1);
    let changed = Barrier::new(PARALLEL + 1);
    let download = || -> io::Result<Vec<u8>> {
        // Both barriers must be passed, whatever happens.
        let download = Download::begin(server, "/blob", PATIENCE).and_then(|mut download| {
            download.go_on_to(MIB / 16)?;
            Ok(download)
        });
        begun.wait();
        changed.wait();
        download?.finish()
    };
    let outcomes: Vec<io::Result<Vec<u8>>> = thread::scope(|scope| {
        let begin = || (0..PARALLEL).map(|_| scope.spawn(download)).collect();
        let threads: Vec<_> = cluster.topology.client.enter(begin).unwrap();
        begun.wait();
        let released = Release(&changed);
        let held = traffic(&cluster, "worker1", "bytes_out");
        cluster.memory[1].set_available_kb(650 * 1024).unwrap();
        cluster.wait_for_page("Worker2", SOON).unwrap();
        cluster.kill_manager().unwrap();
        assert_eq!(cluster.page().unwrap(), "Worker2");
        cluster.start_manager().unwrap();
        // A SYN that the network lost goes to the other worker when it is repeated.
        let open = |worker| traffic(&cluster, worker, "flows");
        eventually(SOON, "all downloads to be open", || {
            open("worker1") + open("worker2") == PARALLEL as u64
        });
        let kept = open("worker1");
        assert!(
            kept >= PARALLEL as u64 * 9 / 10,
            "{kept} of {PARALLEL} only"
        );
        drop(released);
        let outcomes = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        // Much was still under way.
        let after = traffic(&cluster, "worker1", "bytes_out") - held;
        assert!(after > (PARALLEL * MIB / 4) as u64, "{after} bytes only");
        outcomes
    });
    for outcome in outcomes {
        let received = outcome.unwrap();
        assert!(received == blob || received == other, "not what was sent");
    }
    eventually(SOON, "every flow to end", || {
        traffic(&cluster, "worker1", "flows") == 0
    });
}

#[root_test]
fn breaks_no_download_while_the_selection_changes_constantly() {
    let mut cluster = start("tc");
    let blobs = put_blobs(&cluster, MIB);
    let server = cluster.service();
    let stop = AtomicBool::new(false);
    let download_on_and_on = || {
        let mut served = [0, 0];
        while !stop.load(Ordering::Relaxed) {
            let body = Download::begin(server, "/blob", PATIENCE)
                .and_then(Download::finish)
                .unwrap();
            let by = blobs.iter().position(|blob| *blob == body);
            served[by.expect("what one of the workers has sent")] += 1;
        }
        served
    };
    let served: Vec<[u32; 2]> = thread::scope(|scope| {
        let begin = || (0..8).map(|_| scope.spawn(download_on_and_on)).collect();
        let threads: Vec<_> = cluster.topology.client.enter(begin).unwrap();
        let stopped = Stop(&stop);
        for round in 0..10 {
            let (memory, page) = match round % 2 {
                0 => (650, "Worker2"),
                _ => (50, "Worker1"),
            };
            cluster.memory[1].set_available_kb(memory * 1024).unwrap();
            cluster.wait_for_page(page, SOON).unwrap();
            if round % 5 == 3 {
                cluster.restart_manager().unwrap();
            }
        }
        drop(stopped);
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    for worker in [0, 1] {
        let sum: u32 = served.iter().map(|served| served[worker]).sum();
        assert!(sum >= 8, "worker{} has served {sum} only", worker + 1);
    }
}

#[root_test(tc, xdp)]
fn takes_uploads_over_a_selection_change_and_a_manager_killed(attach: &str) {
    const UPLOADS: usize = 50;
    let mut cluster = start(attach);
    let server = cluster.service();
    let bodies: Vec<Vec<u8>> = (1..=UPLOADS as u64)
        .map(|seed| random_bytes(seed, MIB))
        .collect();
    let mut uploads: Vec<Upload> = cluster
        .topology
        .client
        .enter(|| {
            let mut uploads = Vec::new();
            for (number, body) in bodies.iter().enumerate() {
                let path = format!("/upload/{number}");
                uploads.push(Upload::begin(server, &path, body, PATIENCE).unwrap());
            }
            uploads
        })
        .unwrap();
    for upload in &mut uploads {
        upload.send(MIB / 2).unwrap();
    }
    cluster.memory[1].set_available_kb(650 * 1024).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    cluster.restart_manager().unwrap();
    let answers: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = uploads
            .into_iter()
            .map(|upload| scope.spawn(|| upload.finish().unwrap()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    for (number, (body, answer)) in bodies.iter().zip(answers).enumerate() {
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        let file = cluster.servers[0].root().join(format!("upload/{number}"));
        assert!(
            fs::read(file).unwrap() == *body,
            "upload {number} is broken"
        );
    }
}

#[root_test(tc, xdp)]
fn transfers_64_mib_in_both_directions(attach: &str) {
    bulk(attach, 64 * MIB);
}

fn bulk(attach: &str, size: usize) {
    let cluster = start(attach);
    let root = cluster.servers[0].root();
    transfer_both_ways(&cluster.topology.client, cluster.service(), root, size).unwrap();
    for counter in ["bytes_in", "bytes_out"] {
        assert!(traffic(&cluster, "worker1", counter) > size as u64);
    }
}

#[root_test(tc, xdp)]
fn keeps_a_connection_on_its_worker_when_the_selection_changes(attach: &str) {
    let mut cluster = start(attach);
    let mut first = connect(&cluster);
    assert_eq!(page(&mut first), "Worker1");
    cluster.memory[1].set_available_kb(650 * 1024).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    let mut second = connect(&cluster);
    // Nothing happens to either while the manager is dead, or when it is back.
    cluster.kill_manager().unwrap();
    assert_eq!(page(&mut first), "Worker1");
    assert_eq!(page(&mut second), "Worker2");
    cluster.start_manager().unwrap();
    // A worker that takes its leave keeps what it has, too.
    let agent = cluster.agents[0].as_mut().unwrap();
    assert!(agent.terminate(SOON).unwrap().success());
    cluster.wait_for_state("worker1", "leaving", SOON).unwrap();
    for _ in 0..3 {
        assert_eq!(page(&mut first), "Worker1");
        assert_eq!(page(&mut second), "Worker2");
        assert_eq!(cluster.page().unwrap(), "Worker2");
    }
}

#[root_test]
fn keeps_a_connection_to_the_manager_when_the_workers_return() {
    let mut cluster = Cluster::start(&ClusterOptions {
        agents: false,
        ..options("tc")
    })
    .unwrap();
    let mut first = connect(&cluster);
    assert_eq!(page(&mut first), "Manager");
    cluster.start_agent(0).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    assert_eq!(page(&mut first), "Manager");
}

#[root_test(tc, xdp)]
fn keeps_an_idle_connection(attach: &str) {
    let seconds = env::var(IDLE_SECONDS).map_or(10, |seconds| seconds.parse().unwrap());
    let cluster = start(attach);
    let mut idle = connect(&cluster);
    assert_eq!(page(&mut idle), "Worker1");
    let begun = Instant::now();
    // Others come and go meanwhile.
    while begun.elapsed() < Duration::from_secs(seconds) {
        cluster.page().unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(page(&mut idle), "Worker1");
}

#[root_test(tc, xdp)]
fn resets_a_connection_at_once_when_its_worker_is_down(attach: &str) {
    let cluster = start(attach);
    let mut connection = connect(&cluster);
    assert_eq!(page(&mut connection), "Worker1");
    cluster.topology.workers[0].disconnect().unwrap();
    // Repeated SYNs bring new connections to the other worker before it is known.
    cluster.wait_for_state("worker1", "down", SOON).unwrap();

    let sent_at = Instant::now();
    let error = connection.get("/").unwrap_err();
    let took = sent_at.elapsed();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    println!("reset after {took:?}");
    assert!(took < Duration::from_millis(100), "reset after {took:?}");
    assert!(cluster.verdict("backend_down").unwrap() >= 1);
}

fn options(attach: &str) -> ClusterOptions {
    ClusterOptions {
        attach: attach.into(),
        // An automatic one would be learnt again at each restart.
        manager_arguments: vec!["--threshold".into(), "90MiB".into()],
        ..ClusterOptions::default()
    }
}

fn start(attach: &str) -> Cluster {
    Cluster::start_serving(&options(attach)).unwrap()
}

/// Sets the flag when dropped, so that a failed test does not wait for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Passes the barrier when dropped, for the same reason.
struct Release<'a>(&'a Barrier);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.wait();
    }
}

/// Gives each worker a file `blob` of its own.
fn put_blobs(cluster: &Cluster, size: usize) -> [Vec<u8>; 2] {
    [0, 1].map(|index| {
        let blob = random_bytes(100 + index as u64, size);
        fs::write(cluster.servers[index].root().join("blob"), &blob).unwrap();
        blob
    })
}

fn connect(cluster: &Cluster) -> Connection {
    Connection::open(&cluster.topology.client, cluster.service(), PATIENCE).unwrap()
}

fn page(connection: &mut Connection) -> String {
    connection.get("/").unwrap().first_line()
}

fn traffic(cluster: &Cluster, worker: &str, counter: &str) -> u64 {
    cluster.backend(worker).unwrap()[counter].as_u64().unwrap()
}
