//! `/metrics`.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use memlb_tests::{Cluster, ClusterOptions, Connection, eventually, root_test};

use super::{SOON, get, start};

const MIB: f64 = 1024.0 * 1024.0;

#[root_test]
fn shows_the_lab_and_its_failovers() {
    let mut cluster = start(ClusterOptions::default());
    let mut kept = Connection::open(&cluster.topology.client, cluster.service(), SOON).unwrap();
    kept.get("/").unwrap();
    // Counters may be half a second old.
    let flow = "memlb_backend_flows{backend=\"worker1\",service=\"web\"}";
    eventually(SOON, "the connection", || {
        Metrics::of(&cluster).value(flow) == 1.0
    });
    let before = Metrics::of(&cluster);
    for (series, value) in [
        ("memlb_build_info{version=\"0.1.0\"}", 1.0),
        ("memlb_worker_state{state=\"up\",worker=\"worker1\"}", 1.0),
        ("memlb_worker_state{state=\"down\",worker=\"worker1\"}", 0.0),
        (
            "memlb_worker_memory_available_bytes{worker=\"worker1\"}",
            450.0 * MIB,
        ),
        (
            "memlb_worker_memory_total_bytes{worker=\"worker2\"}",
            700.0 * MIB,
        ),
        (
            "memlb_backend_selected{backend=\"worker1\",service=\"web\"}",
            1.0,
        ),
        (
            "memlb_backend_selected{backend=\"manager\",service=\"web\"}",
            0.0,
        ),
        (
            "memlb_backend_flows{backend=\"worker1\",service=\"web\"}",
            1.0,
        ),
        (
            "memlb_backend_connections_total{backend=\"worker1\",service=\"web\"}",
            1.0,
        ),
        ("memlb_map_capacity{map=\"flows\"}", 262_144.0),
        ("memlb_map_entries{map=\"flows\"}", 2.0),
        (
            "memlb_worker_state_changes_total{state=\"down\",worker=\"worker1\"}",
            0.0,
        ),
        (
            "memlb_selections_total{rule=\"failover\",service=\"web\"}",
            0.0,
        ),
        ("memlb_detection_seconds_count", 0.0),
        ("memlb_map_write_failures_total", 0.0),
        ("memlb_programs_restored_total{interface=\"eth1\"}", 0.0),
        ("memlb_connection_lookups_total{outcome=\"found\"}", 0.0),
        ("memlb_programs_of_other_managers{interface=\"eth1\"}", 0.0),
    ] {
        assert_eq!(before.value(series), value, "{series}");
    }
    assert!(before.value("memlb_heartbeats_total{outcome=\"accepted\"}") >= 2.0);
    assert!(before.value("memlb_worker_heartbeat_age_seconds{worker=\"worker1\"}") < 0.5);
    assert!(
        before.value(
            "memlb_backend_bytes_total{backend=\"worker1\",direction=\"out\",service=\"web\"}"
        ) > 200.0
    );
    assert!(
        before.value("memlb_verdict_packets_total{class=\"forwarded\",verdict=\"to_backend\"}")
            > 3.0
    );
    assert!(before.value("memlb_manager_lag_seconds_count") >= 1.0);
    assert!(before.value("process_resident_memory_bytes") > MIB);
    let age = now() - before.value("process_start_time_seconds");
    assert!((0.0..60.0).contains(&age), "{age}");

    cluster.kill_agent(0).unwrap();
    cluster.wait_for_selection("worker2", SOON).unwrap();
    let after = Metrics::of(&cluster);
    for (series, value) in [
        ("memlb_worker_state{state=\"up\",worker=\"worker1\"}", 0.0),
        ("memlb_worker_state{state=\"down\",worker=\"worker1\"}", 1.0),
        (
            "memlb_backend_selected{backend=\"worker2\",service=\"web\"}",
            1.0,
        ),
        (
            "memlb_worker_state_changes_total{state=\"down\",worker=\"worker1\"}",
            1.0,
        ),
        (
            "memlb_selections_total{rule=\"failover\",service=\"web\"}",
            1.0,
        ),
        ("memlb_detection_seconds_count", 1.0),
        ("memlb_detection_seconds_bucket{le=\"0.25\"}", 0.0),
        ("memlb_detection_seconds_bucket{le=\"1\"}", 1.0),
    ] {
        assert_eq!(after.value(series), value, "{series}");
    }
}

/// `promtool` knows the format and the conventions.
#[root_test]
fn promtool_accepts_the_metrics() {
    let cluster = start(ClusterOptions::default());
    let metrics = get(&cluster, "/metrics");
    assert_eq!(
        metrics.header("content-type"),
        Some("text/plain; version=0.0.4")
    );
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Debian's package prometheus has promtool");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.body.as_bytes())
        .unwrap();
    let verdict = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[verdict.stdout, verdict.stderr].concat()).into_owned();
    assert!(
        verdict.status.success() && said.is_empty(),
        "{said}\n{}",
        metrics.body
    );
}

struct Metrics(String);

impl Metrics {
    fn of(cluster: &Cluster) -> Self {
        Self(get(cluster, "/metrics").body)
    }

    fn value(&self, series: &str) -> f64 {
        let line = self
            .0
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("no {series} in:\n{}", self.0));
        value.parse().unwrap()
    }
}

fn now() -> f64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.unwrap().as_secs_f64()
}
