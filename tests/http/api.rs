//! `/api/v1`.

use memlb_tests::{ClusterOptions, command::output, require_root};
use serde_json::Value;

use super::{get, start};

#[test]
fn says_what_memlb_status_says() {
    if !require_root() {
        return;
    }
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
    let openapi = get(&cluster, "/api/v1/openapi.json").json();
    assert_eq!(openapi["openapi"], "3.1.0");
}

fn keys(object: &Value) -> Vec<&String> {
    object.as_object().unwrap().keys().collect()
}
