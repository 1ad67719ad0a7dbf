//! `/healthz`, `/readyz` and `/syncz`.

use memlb_tests::{ClusterOptions, eventually, root_test};

use super::{SOON, get, start};

#[root_test]
fn ready_once_a_worker_reports_and_while_all_are_down() {
    let mut cluster = start(ClusterOptions {
        agents: false,
        ..ClusterOptions::default()
    });
    let early = get(&cluster, "/readyz");
    assert_eq!(early.status, 503);
    assert_eq!(
        early.body,
        "not ready: no worker has sent a heartbeat yet for web\n"
    );
    assert_eq!(get(&cluster, "/healthz").body, "ok\n");
    let alone = get(&cluster, "/syncz");
    assert_eq!(
        (alone.status, alone.body.as_str()),
        (200, "complete: no peer is configured\n")
    );
    assert_eq!(get(&cluster, "/syncz?weight").body, "0\n");

    cluster.start_agent(0).unwrap();
    eventually(SOON, "readiness", || get(&cluster, "/readyz").status == 200);

    cluster.kill_agent(0).unwrap();
    cluster.wait_for_selection("manager", SOON).unwrap();
    assert_eq!(get(&cluster, "/readyz").status, 200);
}
