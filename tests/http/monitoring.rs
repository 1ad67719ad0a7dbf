//! `scripts/monitoring`: its queries use existing metrics, and a real Prometheus scrapes them.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, time::Duration};

use memlb_tests::{Cluster, ClusterOptions, Process, command::output, eventually, root_test};
use serde_json::Value;

use super::{SOON, get, start};

const PROMETHEUS: &str = "http://127.0.0.1:9090/api/v1";

#[root_test]
fn rules_and_dashboard_use_metrics_that_the_manager_has() {
    let cluster = start(ClusterOptions::default());
    let metrics = get(&cluster, "/metrics").body;
    let known: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    // A manager has these with its first peer, and with its first refusal.
    let documented = include_str!("../../docs/monitoring.md");
    let comes_later = |name: &str| {
        let is_named = [
            "memlb_handed_over",
            "memlb_service_refused_connections_total",
        ]
        .contains(&name)
            || name.starts_with("memlb_peer_");
        is_named && documented.contains(&format!("`{name}"))
    };
    for file in ["memlb.rules.yml", "grafana.json"] {
        let text = fs::read_to_string(monitoring().join(file)).unwrap();
        let used = names(&text);
        assert!(used.len() > 5, "{file} uses only {used:?}");
        for name in used {
            let histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            assert!(
                known.contains(name)
                    || histogram.is_some_and(|name| known.contains(name))
                    || comes_later(name),
                "{file} uses {name}, which the manager does not have"
            );
        }
    }
}

/// Grafana's own variables stand for a duration or a name; the rest must be `PromQL`.
#[test]
fn the_queries_of_the_dashboard_are_valid() {
    let text = fs::read_to_string(monitoring().join("grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    let mut questions = 0;
    for target in panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
    {
        let question = target["expr"].as_str().unwrap();
        let question = question
            .replace("$__rate_interval", "1m")
            .replace("$__range", "1h");
        questions += 1;
        rules += &format!("      - record: question{questions}\n        expr: {question:?}\n");
    }
    assert!(questions > 10);
    let file = std::env::temp_dir().join(format!("memlb-questions-{}.yml", std::process::id()));
    fs::write(&file, rules).unwrap();
    let checked = output(Command::new("promtool").args(["check", "rules"]).arg(&file));
    fs::remove_file(&file).unwrap();
    let checked = checked.unwrap();
    assert!(
        checked.contains(&format!("{questions} rules found")),
        "{checked}"
    );
}

#[root_test]
fn a_real_prometheus_scrapes_the_manager_and_raises_an_alert() {
    let mut cluster = start(ClusterOptions::default());
    let directory = cluster.paths.directory.join("prometheus");
    fs::create_dir(&directory).unwrap();
    fs::copy(
        monitoring().join("memlb.rules.yml"),
        directory.join("memlb.rules.yml"),
    )
    .unwrap();
    // As it stands, but in a hurry.
    let configuration = fs::read_to_string(monitoring().join("prometheus.yml")).unwrap();
    let hurried = configuration.replace("interval: 5s", "interval: 200ms");
    assert_ne!(configuration, hurried);
    fs::write(directory.join("prometheus.yml"), hurried).unwrap();
    let mut command = cluster.topology.manager.command("prometheus");
    command
        .current_dir(&directory)
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
        .arg("--web.listen-address=127.0.0.1:9090");
    let log = cluster.paths.directory.join("prometheus.log");
    let mut prometheus = Process::start("prometheus", &mut command, &log).unwrap();
    prometheus
        .wait_for_log(Duration::from_secs(30), "ready to receive")
        .unwrap();

    let patience = Duration::from_secs(15);
    eventually(patience, "the scrape", || {
        value(&cluster, "up{job=\"memlb\"}") == Some(1.0)
    });
    let up = "memlb_worker_state{state=\"up\",worker=\"worker1\"}";
    eventually(SOON, "the state of worker1", || {
        value(&cluster, up) == Some(1.0)
    });
    let available = "memlb_worker_memory_available_bytes{worker=\"worker2\"}";
    assert_eq!(value(&cluster, available), Some(350.0 * 1024.0 * 1024.0));

    for worker in [0, 1] {
        cluster.kill_agent(worker).unwrap();
    }
    eventually(Duration::from_secs(30), "the alert", || {
        let alerts = request(&cluster, "/alerts");
        let alerts = alerts["data"]["alerts"].as_array().unwrap();
        alerts.iter().any(|alert| {
            alert["labels"]["alertname"] == "MemlbNoWorker" && alert["state"] == "firing"
        })
    });
}

/// Returns the first value of an instant query.
fn value(cluster: &Cluster, query: &str) -> Option<f64> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let answer = request(cluster, &format!("/query?query={encoded}"));
    answer["data"]["result"][0]["value"][1]
        .as_str()?
        .parse()
        .ok()
}

fn request(cluster: &Cluster, path: &str) -> Value {
    let mut curl = cluster.topology.manager.command("curl");
    curl.args(["--silent", "--show-error", &format!("{PROMETHEUS}{path}")]);
    serde_json::from_str(&output(&mut curl).unwrap()).unwrap()
}

/// Returns the names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("memlb_") || word.starts_with("process_"))
        .collect()
}

fn monitoring() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/monitoring")
}
