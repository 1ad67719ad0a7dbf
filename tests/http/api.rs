//! `/api/v1`.

use std::time::Duration;

use memlb_tests::{ClusterOptions, command::output, eventually, root_test};
use serde_json::Value;

use super::{get, start};

#[root_test]
fn equals_memlb_status() {
    let cluster = start(ClusterOptions::default());
    let printed = output(cluster.memlb("status").arg("--json")).unwrap();
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let status = get(&cluster, "/api/v1/status").json();
    assert_eq!(keys(&status), keys(&printed));
    assert_eq!(
        keys(&status["services"][0]["backends"][0]),
        keys(&printed["services"][0]["backends"][0])
    );
    assert_eq!(status["services"][0]["selected"], "worker1");
    assert_eq!(status["maps"]["flows"]["capacity"], 2 * 131_072);

    let services = get(&cluster, "/api/v1/services").json();
    assert_eq!(services["services"][0]["name"], "web");
    let web = get(&cluster, "/api/v1/services/web").json();
    assert_eq!(web["address"], "192.168.56.101:80");
    for unknown in [
        "/api/v1/services/mail",
        "/api/v1/services/%ff",
        "/api/v1",
        "/api/v2/status",
    ] {
        let answer = get(&cluster, unknown);
        assert_eq!(answer.status, 404, "{unknown}");
        assert!(answer.json()["error"].is_string(), "{unknown}");
    }
    for wrong in ["/api/v1/events?limit=many", "/api/v1/events/stream?after=x"] {
        let answer = get(&cluster, wrong);
        assert_eq!(answer.status, 400, "{wrong}");
        let error = answer.json()["error"].to_string();
        assert!(error.contains("whole number"), "{wrong}: {error}");
    }
    let openapi = get(&cluster, "/api/v1/openapi.json").json();
    assert_eq!(openapi["openapi"], "3.1.0");
}

#[root_test]
fn keeps_the_last_minutes() {
    let cluster = start(ClusterOptions::default());
    cluster.page().unwrap();
    let samples = |timeline: &Value| timeline["at_ms"].as_array().unwrap().len();
    let patience = Duration::from_secs(15);
    eventually(patience, "two samples", || {
        samples(&get(&cluster, "/api/v1/timeline").json()) >= 2
    });
    let timeline = get(&cluster, "/api/v1/timeline").json();
    let times: Vec<u64> = timeline["at_ms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|time| time.as_u64().unwrap())
        .collect();
    let apart = times[1] - times[0];
    assert!((4500..8000).contains(&apart), "{apart} ms");
    assert!(times[1] <= timeline["now_ms"].as_u64().unwrap());
    let track = &timeline["services"]["web"]["worker1"];
    let memory = track["memory_available_bytes"].as_array().unwrap();
    let connections = track["connections"].as_array().unwrap();
    assert_eq!(
        (memory.len(), connections.len()),
        (times.len(), times.len())
    );
    assert_eq!(memory[1], 450 * 1024 * 1024);
    assert_eq!(connections[1], 1);
    assert!(timeline["services"]["web"]["manager"].is_object());
    for figure in ["open", "refused", "bytes"] {
        let known = track[figure].as_array().unwrap();
        assert!(known[1].is_u64(), "{figure}: {known:?}");
    }
    assert_eq!(timeline["interval_ms"], 5000);
    let hour = get(&cluster, "/api/v1/timeline?range=1h&service=web").json();
    assert_eq!(hour["range"], "1h");
    assert!(hour["services"]["web"]["worker1"].is_object());
    let other = get(&cluster, "/api/v1/timeline?range=24h&service=mail").json();
    assert_eq!(other["services"], serde_json::json!({}));
    assert_eq!(get(&cluster, "/api/v1/timeline?range=1y").status, 400);
}

fn keys(object: &Value) -> Vec<&String> {
    object.as_object().unwrap().keys().collect()
}
