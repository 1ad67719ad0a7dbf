//! A thousand workers that sign: are they all heard, and what does it cost?

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, Instant},
};

use memlb::{
    core::{BootId, WorkerState},
    heartbeat::{Acknowledgement, Heartbeat, MemoryReport, Nonce},
    keys::{self, Key},
};
use memlb_tests::{Cluster, ClusterOptions, require_root};
use serde_json::Value;

const WORKERS: usize = 1_000;
const INTERVAL: Duration = Duration::from_millis(100);
const ROUNDS: u64 = 60;

/// A machine with other work falls behind, so that the death waits in the queue with the rest.
const MOST_ROUNDS: u64 = 200;

/// From this round on the last worker is silent.
const DEATH: u64 = 30;

/// What the issue allows, and what a machine that builds and tests beside it may add.
const LATE: Duration = Duration::from_millis(20);
const TOLERANCE: Duration = Duration::from_millis(180);

#[test]
fn a_thousand_signed_workers_are_heard_and_one_death_among_them_is_noticed() {
    if !require_root() {
        return;
    }
    let cluster = cluster();
    let all = keys::read_keys(&cluster.place.directory.join("crowd.key")).unwrap();
    let mut crowd: Vec<Key> = (0..WORKERS)
        .map(|number| all.of_worker(&name(number)).next().unwrap().clone())
        .collect();
    let host = &cluster.topology.workers[0];
    let socket = host
        .enter(|| std::net::UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    socket.connect(cluster.heartbeat_address()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut nonce = None;
    let started = Instant::now();
    let (mut cpu, mut begun) = (0, Instant::now());
    let mut sent = 0;
    for round in 0..MOST_ROUNDS {
        let noticed = || !cluster.events_of("worker_down").unwrap().is_empty();
        if round >= ROUNDS && noticed() {
            break;
        }
        let due = Instant::now() + INTERVAL;
        if round == 5 {
            (cpu, begun) = (cpu_ticks(&cluster), Instant::now());
        }
        if round == DEATH {
            crowd.pop();
        }
        for (number, key) in crowd.iter().enumerate() {
            // Spread over the interval, as agents that started at any time are.
            if number % 50 == 0 {
                thread::sleep(Duration::from_millis(1));
                nonce = last_nonce(&socket, &all).or(nonce);
            }
            let datagram = heartbeat(key, round, nonce).encode_signed(key).unwrap();
            // What the kernel has no room for is lost, as on a network.
            sent += u64::from(socket.send(&datagram).is_ok());
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let share = (cpu_ticks(&cluster) - cpu) as f64 / 100.0 / seconds;
    let status = cluster.status().unwrap();
    let accepted = status["heartbeats"]["accepted"].as_u64().unwrap();
    println!(
        "{:.0} signed heartbeats/s cost {:.0} % of a core; {}",
        accepted as f64 / started.elapsed().as_secs_f64(),
        share * 100.0,
        status["heartbeats"]
    );
    // A machine with other work loses some, which must be no death.
    assert!(
        accepted > sent / 4,
        "{accepted} of {sent}: {}",
        status["heartbeats"]
    );
    let refused = status["heartbeats"]["refused"].as_object().unwrap();
    assert_eq!(refused.keys().collect::<Vec<_>>(), ["not_fresh"]);
    let down = cluster.events_of("worker_down").unwrap();
    assert_eq!(down.len(), 1, "{down:?}");
    assert_eq!(down[0]["worker"], Value::from(name(WORKERS - 1)));
    let silent = Duration::from_millis(down[0]["silent_ms"].as_u64().unwrap());
    let late = silent.saturating_sub(Duration::from_millis(1500));
    println!("noticed {late:?} after its deadline");
    assert!(late <= LATE + TOLERANCE, "{late:?}");
}

fn name(number: usize) -> String {
    format!("w{number:04}")
}

/// One service of all of them, each with a key.
fn cluster() -> Cluster {
    let (mut workers, mut lines) = (String::new(), String::new());
    for number in 0..WORKERS {
        let (name, network, host) = (name(number), number / 200, number % 200 + 1);
        write!(
            workers,
            "{{ name = \"{name}\", address = \"192.168.{}.{host}:8081\" }},",
            60 + network
        )
        .unwrap();
        let secret: String = (0..32)
            .map(|byte| format!("{:02x}", (number + byte) % 256))
            .collect();
        writeln!(lines, "memlb-key-1 {name} {number:08x} {secret}").unwrap();
    }
    let keys = std::env::temp_dir().join(format!("memlb-crowd-{}.key", std::process::id()));
    fs::write(&keys, lines).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    let settings = [
        format!("service.web.workers=[{workers}]"),
        "limits.backends=2048".to_owned(),
        "heartbeats.authentication=enforce".to_owned(),
        format!("heartbeats.keys={}", keys.display()),
    ];
    let cluster = Cluster::start(&ClusterOptions {
        agents: false,
        manager_arguments: settings
            .into_iter()
            .flat_map(|setting| ["--set".to_owned(), setting])
            .collect(),
        ..ClusterOptions::default()
    });
    let cluster = cluster.unwrap();
    // It goes with the cluster from here on.
    fs::copy(&keys, cluster.place.directory.join("crowd.key")).unwrap();
    fs::remove_file(&keys).unwrap();
    cluster
}

fn heartbeat(key: &Key, round: u64, nonce: Option<Nonce>) -> Heartbeat {
    Heartbeat {
        worker: key.worker().to_owned(),
        boot: BootId(1),
        seq: round + 1,
        interval: INTERVAL,
        memory: MemoryReport {
            available_bytes: (400 << 20) - (round << 12),
            total_bytes: 700 << 20,
            cgroup: None,
            pressure: None,
        },
        load: None,
        state: WorkerState::Ready,
        healthy: true,
        translates: Vec::new(),
        version: "0.1.0".to_owned(),
        nonce,
    }
}

/// One address, one nonce: whichever worker is answered.
fn last_nonce(socket: &std::net::UdpSocket, keys: &keys::KeyRing) -> Option<Nonce> {
    let mut buffer = [0; 1200];
    let mut last = None;
    while let Ok(length) = socket.recv(&mut buffer) {
        let id = buffer.get(11..19).and_then(keys::KeyId::parse);
        let key = id.and_then(|id| keys.find(id));
        let answer = key.and_then(|key| Acknowledgement::decode(&buffer[..length], key).ok());
        last = answer.map(|answer| answer.nonce).or(last);
    }
    last
}

/// What the manager has used of processors so far, in hundredths of a second.
fn cpu_ticks(cluster: &Cluster) -> u64 {
    let pid = cluster.manager.as_ref().unwrap().pid();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
