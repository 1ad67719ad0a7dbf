//! `memlb trace` with a running system: its output, refused requests, and its end with the reader.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use lb_common::maps::{TraceConfig, name};
use memlb_tests::{
    Cluster, ClusterOptions, Connection, Process,
    cli::{assert_failure, memlb},
    eventually, root_test,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// In which some heartbeats arrive.
const HEARTBEATS: Duration = Duration::from_millis(300);

/// Of a service whose new connections are refused while no worker is up.
const REFUSING_PORT: u16 = 4000;

#[root_test]
fn shows_how_a_connection_begins_and_its_worker() {
    let cluster = start();
    let client = cluster.topology.client.address().to_string();
    let carried = ["--verdict", "to_backend", "--verdict", "to_client"];
    let mut arguments = vec!["--json", "--client", &client, "--count", "3"];
    arguments.extend(carried);
    let mut trace = tracing(&cluster, &arguments);
    assert_eq!(cluster.page().unwrap(), "Worker1");
    assert!(trace.wait(SOON).unwrap().success(), "{}", trace.log());
    let lines: Vec<Value> = trace
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let seen: Vec<_> = lines
        .iter()
        .map(|line| {
            let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            [word("event"), word("kind"), word("verdict")]
        })
        .collect();
    assert_eq!(
        seen,
        [
            ["begun", "", ""],
            ["packet", "SYN", "to_backend"],
            ["packet", "SYN ACK", "to_client"],
            ["packet", "ACK", "to_backend"],
            ["end", "", ""]
        ]
    );
    for packet in &lines[1..4] {
        assert_eq!(packet["edge"], "tc_in");
        assert_eq!(packet["service"], "web");
        assert_eq!(packet["service_address"], cluster.service().to_string());
        assert_eq!(packet["worker"], "worker1");
        let from = packet["client"].as_str().unwrap();
        assert!(from.starts_with(&format!("{client}:")), "{packet}");
    }
    assert_eq!(
        lines[1]["leaves"]["destination"],
        lines[1]["worker_address"]
    );
    assert_eq!(lines[4]["packets"], 3);
}

#[root_test]
fn shows_only_refused_connections_of_its_service() {
    let cluster = start();
    for worker in ["worker1", "worker2"] {
        let drained = memlb(&cluster, &["drain", worker]);
        assert!(drained.status.success(), "{drained:?}");
    }
    let service = format!("tcp-{REFUSING_PORT}");
    let mut trace = tracing(&cluster, &["--service", &service, "--count", "1"]);
    // Of another service.
    assert_eq!(cluster.page().unwrap(), "Manager");
    let mut address = cluster.service();
    address.set_port(REFUSING_PORT);
    assert!(Connection::open(&cluster.topology.client, address, SOON).is_err());
    assert!(trace.wait(SOON).unwrap().success(), "{}", trace.log());
    let log = trace.log();
    let shown: Vec<&str> = log.lines().filter(|it| it.contains(" > ")).collect();
    let [line] = shown[..] else {
        panic!("one packet: {log}");
    };
    let words = format!("> {service} {address}  tcp SYN  no_backend  ");
    assert!(line.contains(&words), "{line}");
    assert!(
        log.contains("1 packet; not shown: 0 over the rate"),
        "{log}"
    );
}

/// Heartbeats pass untouched, ten times a second from each worker.
#[root_test]
fn shows_only_packets_of_services_by_default() {
    let cluster = start();
    let mut trace = tracing(&cluster, &["--count", "4"]);
    let since = Instant::now();
    eventually(SOON, "heartbeats", || since.elapsed() > HEARTBEATS);
    cluster.page().unwrap();
    assert!(trace.wait(SOON).unwrap().success(), "{}", trace.log());
    let log = trace.log();
    assert!(
        log.contains("only packets of services (--all: of others, too)"),
        "{log}"
    );
    assert!(
        log.contains("to_backend") && !log.contains("not_ours"),
        "{log}"
    );

    let mut trace = tracing(&cluster, &["--all", "--count", "20"]);
    assert!(trace.wait(SOON).unwrap().success(), "{}", trace.log());
    assert!(trace.log().contains("not_ours"), "{}", trace.log());
}

#[root_test]
fn ends_with_its_reader_or_the_manager() {
    let mut cluster = start();
    assert_eq!(expires_ns(&cluster), 0);
    let mut trace = tracing(&cluster, &[]);
    assert_ne!(expires_ns(&cluster), 0);
    // One at a time.
    let second = memlb(&cluster, &["trace", "--for", "1s"]);
    assert_failure(&second, 1, &["a trace of root is running"]);
    trace.kill().unwrap();
    eventually(SOON, "the trace to end", || expires_ns(&cluster) == 0);

    let mut trace = tracing(&cluster, &[]);
    cluster.kill_manager().unwrap();
    assert_eq!(trace.wait(SOON).unwrap().code(), Some(1));
    assert!(
        trace.log().contains("the manager closed the connection"),
        "{}",
        trace.log()
    );
    assert_ne!(expires_ns(&cluster), 0);
    eventually(SOON, "the order to lapse", || {
        cluster.page().unwrap();
        expires_ns(&cluster) == 0
    });

    cluster.start_manager().unwrap();
    let mut trace = tracing(&cluster, &["--count", "1"]);
    cluster.page().unwrap();
    assert!(trace.wait(SOON).unwrap().success(), "{}", trace.log());
    eventually(SOON, "the trace to end", || expires_ns(&cluster) == 0);
}

#[root_test]
fn prints_a_summary_even_if_interrupted() {
    let cluster = start();
    let mut trace = tracing(&cluster, &["--verdict", "to_backend"]);
    cluster.page().unwrap();
    trace.wait_for_log(SOON, "to_backend").unwrap();
    trace.signal(Signal::SIGINT).unwrap();
    assert!(trace.wait(SOON).unwrap().success());
    trace
        .wait_for_log(SOON, "packets; not shown: 0 over the rate")
        .unwrap();
}

/// A reader that reads no more is not waited for: neither the manager nor packets are held up.
#[root_test]
fn a_reader_that_stops_reading_delays_nothing() {
    let cluster = start();
    let mut trace = tracing(&cluster, &["--rate", "10000"]);
    trace.signal(Signal::SIGSTOP).unwrap();
    eventually(Duration::from_secs(60), "the trace to end", || {
        let asked = Instant::now();
        cluster.page().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1));
        cluster.status().unwrap();
        expires_ns(&cluster) == 0
    });
    trace.signal(Signal::SIGCONT).unwrap();
}

#[root_test]
fn ends_after_its_duration_and_counts_packets_beyond_the_rate() {
    let cluster = start();
    let started = Instant::now();
    let mut trace = tracing(&cluster, &["--for", "2s", "--rate", "1", "--json"]);
    while trace.is_running() {
        cluster.page().unwrap();
    }
    assert!(started.elapsed() >= Duration::from_secs(2));
    let log = trace.log();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "end");
    let packets = last["packets"].as_u64().unwrap();
    assert!((1..=3).contains(&packets), "{last}");
    assert!(last["dropped"]["over_rate"].as_u64() > Some(10), "{last}");
}

#[root_test]
fn an_invalid_filter_is_refused_with_the_valid_values() {
    let cluster = start();
    let cases: [(&[&str], &str); 8] = [
        (&["--worker", "unknown"], "only manager, worker1, worker2"),
        (&["--service", "wep"], "did you mean web?"),
        (
            &["--worker", "manager", "--service", "tcp-4000"],
            "does not serve",
        ),
        (&["--verdict", "no_bakend"], "'no_backend'"),
        (&["--client", "10.0.0.0/33"], "ADDRESS/LENGTH"),
        (&["--rate", "0"], "1..=10000"),
        (&["--count", "0"], "--count"),
        (&["--for", "soon"], "--for"),
    ];
    for (arguments, says) in cases {
        assert_failure(
            &memlb(&cluster, &[&["trace"], arguments].concat()),
            2,
            &[says],
        );
    }
    assert_eq!(expires_ns(&cluster), 0);
}

fn start() -> Cluster {
    let options = ClusterOptions {
        ports: vec![REFUSING_PORT],
        ..ClusterOptions::default()
    };
    Cluster::start_serving(&options).unwrap()
}

/// A trace that has begun.
fn tracing(cluster: &Cluster, arguments: &[&str]) -> Process {
    let mut command = cluster.memlb("trace");
    let log = cluster.paths.directory.join("trace.log");
    let mut trace = Process::start("memlb trace", command.args(arguments), &log).unwrap();
    let begun = match arguments.contains(&"--json") {
        true => "begun",
        false => "tracing;",
    };
    trace.wait_for_log(SOON, begun).unwrap();
    trace
}

/// Until when packets are told; 0 for not at all.
fn expires_ns(cluster: &Cluster) -> u64 {
    let data = MapData::from_pin(cluster.paths.pin_path.join(name::TRACE)).unwrap();
    let order: Array<_, TraceConfig> = Array::try_from(Map::Array(data)).unwrap();
    order.get(&0, 0).unwrap().expires_ns
}
