//! A changed configuration under load: applied entirely or not at all, without an effect on clients.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    process::Output,
    time::{Duration, Instant},
};

use memlb_tests::{
    Cluster, ClusterOptions, Connection, cli::stdout, client, command::output, eventually,
    root_test,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);

#[root_test]
fn adds_removes_and_changes_without_a_failed_request() {
    let mut cluster = start();
    let mut kept = cluster.connection_to("Worker1").unwrap();
    let probe = cluster.probe(Duration::from_millis(5)).unwrap();

    // Worker1 goes; its connections may stay.
    let original = configuration(&cluster);
    let without_worker1: String = original
        .lines()
        .filter(|line| !line.contains("worker1"))
        .map(|line| format!("{line}\n"))
        .collect();
    write(&cluster, &without_worker1);
    let said = succeed(&cluster);
    assert!(said.contains("worker worker1 removed"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(cluster.page().unwrap(), "Worker2");
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    // Even over a restart.
    cluster.restart_manager().unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");

    // It comes back, and another service with it.
    let other = original[original.find("[[service]]").unwrap()..]
        .replace("\"web\"", "\"other\"")
        .replace(":80\"", ":81\"");
    write(&cluster, &format!("{original}\n{other}"));
    let said = succeed(&cluster);
    assert!(said.contains("worker worker1 added"), "{said}");
    assert!(said.contains("service other added"), "{said}");
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    let mut address = cluster.service();
    address.set_port(81);
    let node = &cluster.topology.client;
    eventually(SOON, "the other service to serve a worker's page", || {
        client::get(node, address, "/", SOON)
            .is_ok_and(|response| response.first_line().starts_with("Worker"))
    });
    write(&cluster, &original);
    let said = succeed(&cluster);
    assert!(said.contains("service other removed"), "{said}");
    assert!(client::get(node, address, "/", SOON).is_err());

    // Once more, in a hurry; under a name that its agent does not have, too.
    let renamed = original.replace("\"worker1\"", "\"worker9\"");
    assert_ne!(renamed, original);
    for _ in 0..5 {
        for text in [&without_worker1, &renamed, &without_worker1, &original] {
            write(&cluster, text);
            succeed(&cluster);
            assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
            // New connections still get to somebody.
            let now = Instant::now();
            probe.wait_for_page("Worker2", now, SOON).unwrap();
        }
    }
    assert_eq!(succeed(&cluster), "nothing has changed\n");
    let report = probe.stop().unwrap();
    report.assert_no_failure();
    assert!(report.requests.len() > 50);
    cluster
        .require_events("configuration_reloaded", 24)
        .unwrap();
}

#[root_test]
fn refuses_an_invalid_configuration_entirely_and_gives_the_reason() {
    let cluster = start();
    let original = configuration(&cluster);
    let before = cluster.status().unwrap()["services"][0]["threshold"].clone();
    let threshold = original.replace("name = \"web\"", "name = \"web\"\nthreshold = \"7MiB\"");
    assert_ne!(threshold, original);
    let cases = [
        // A change that is fine together with one that is not.
        (
            format!("{threshold}\n[limits]\nflows = 1000\n"),
            &["limits.flows: 131072 -> 1000", "memlb unload"],
        ),
        (
            threshold.replace("interfaces = [\"eth1\"]", "interfaces = [\"eth1\", \"lo\"]"),
            &["manager.interfaces", "restart the manager"],
        ),
        (
            threshold.replace("fallback", "fall_back"),
            &["memlb.toml, line", "did you mean \"fallback\"?"],
        ),
        (
            "this is no TOML".to_owned(),
            &["memlb.toml, line 1", "expected"],
        ),
    ];
    for (text, says) in cases {
        write(&cluster, &text);
        let refused = reload(&cluster);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("nothing was changed"), "{said}");
        assert!(says.iter().all(|it| said.contains(it)), "{says:?}: {said}");
        let now = cluster.status().unwrap()["services"][0]["threshold"].clone();
        assert_eq!(now, before);
    }
    assert_eq!(cluster.page().unwrap(), "Worker1");
    write(&cluster, &threshold);
    succeed(&cluster);
    let now = cluster.status().unwrap()["services"][0]["threshold"].clone();
    assert_eq!(now, Value::from("7.0 MiB"));
}

#[root_test]
fn the_first_service_of_another_family_needs_a_restart_that_breaks_no_connection() {
    let mut cluster = start();
    let mut kept = cluster.connection_to("Worker1").unwrap();
    let room = |cluster: &Cluster, map: &str| {
        let info = memlb_tests::observe::bpftool(&["map", "show", "pinned", &cluster.map(map)]);
        info.unwrap()["max_entries"].as_u64().unwrap()
    };
    assert_eq!(
        room(&cluster, "flows6"),
        1,
        "no room is kept for an unused family"
    );
    let both = format!(
        "{}\n[[service]]\nname = \"web6\"\naddress = \"[2001:db8::1]:80\"\nfallback = \"reject\"\n\
         workers = [{{ name = \"worker1\", address = \"[2001:db8::3]:80\" }}]\n",
        configuration(&cluster)
    );
    write(&cluster, &both);
    let refused = reload(&cluster);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("the first one with an IPv6 address"),
        "{said}"
    );
    assert!(said.contains("restart the manager"), "{said}");

    cluster.restart_manager().unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    assert_eq!(room(&cluster, "flows6"), room(&cluster, "flows"));
    assert_eq!(room(&cluster, "half_open6"), room(&cluster, "half_open"));
    // From now on services of both families come and go.
    let web6 = both.replace("\"web6\"", "\"other6\"");
    write(&cluster, &web6);
    assert!(succeed(&cluster).contains("service other6 added"));
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
}

#[root_test]
fn a_manager_refuses_maps_that_are_too_small() {
    let mut cluster = start();
    cluster.kill_manager().unwrap();
    let original = configuration(&cluster);
    write(&cluster, &format!("{original}\n[limits]\nservices = 100\n"));
    let refused = cluster.manager_command().output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for words in ["limits.services is 100", "room for 64", "memlb unload"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // What was pinned is as it was, and clients are served all the time.
    assert_eq!(cluster.page().unwrap(), "Worker1");
    write(&cluster, &original);
    cluster.start_manager().unwrap();
    assert_eq!(cluster.page().unwrap(), "Worker1");
}

#[root_test]
fn a_worker_without_a_route_gets_no_connection_until_there_is_one() {
    const AWAY: &str = "10.99.0.12";
    let mut cluster = start();
    let worker1 = cluster.topology.workers[0].address();
    let original = configuration(&cluster);
    let moved = original.replace(&format!("{worker1}:"), &format!("{AWAY}:"));
    write(&cluster, &moved);
    succeed(&cluster);
    let warning = format!("no route to {AWAY}");
    for restart in [false, true] {
        if restart {
            cluster.restart_manager().unwrap();
        }
        let manager = cluster.manager.as_mut().unwrap();
        manager.wait_for_log(SOON, &warning).unwrap();
        cluster
            .wait_for_state("worker1", "unreachable", SOON)
            .unwrap();
        cluster.wait_for_page("Worker2", SOON).unwrap();
        let said = output(&mut cluster.memlb("status")).unwrap();
        let why = format!("no route to worker1 at {AWAY}");
        assert!(said.contains(&why), "{said}");
    }

    let away = format!("{AWAY}/32");
    let settled = ["address", "add", &away, "dev", "eth1"];
    cluster.topology.workers[0].run("ip", &settled).unwrap();
    let manager = &cluster.topology.manager;
    let route = ["route", "add", &away, "dev", "eth1"];
    manager.run("ip", &route).unwrap();
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    cluster.memory[1].set_available_kb(100 * 1024).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let log = cluster.manager.as_ref().unwrap().log();
    let reached = format!("{AWAY} is reached through eth1");
    assert!(log.contains(&reached), "{log}");
}

#[root_test]
fn sighup_reloads_and_is_logged() {
    let mut cluster = start();
    let original = configuration(&cluster);
    write(&cluster, &format!("{original}\n[failover]\nup_after = 3\n"));
    let manager = cluster.manager.as_mut().unwrap();
    manager.signal(Signal::SIGHUP).unwrap();
    manager
        .wait_for_log(SOON, "failover.up_after: 2 -> 3")
        .unwrap();
    write(&cluster, "this is no TOML");
    let manager = cluster.manager.as_mut().unwrap();
    manager.signal(Signal::SIGHUP).unwrap();
    manager.wait_for_log(SOON, "nothing was changed").unwrap();
    assert_eq!(cluster.page().unwrap(), "Worker1");
    cluster.require_events("reload_refused", 1).unwrap();
}

#[root_test]
fn hold_applies_until_a_reload_removes_it() {
    let cluster = start();
    cluster.memory[1].set_available_kb(600 * 1024).unwrap();
    cluster.wait_for_selection("worker2", SOON).unwrap();
    let original = configuration(&cluster);
    let policy = "policy = \"memory\"";
    write(
        &cluster,
        &original.replace(policy, &format!("{policy}\nhold = \"1h\"")),
    );
    let said = succeed(&cluster);
    assert!(said.contains("service web: hold: 250ms -> 1h"), "{said}");
    cluster.memory[1].set_available_kb(100 * 1024).unwrap();
    let waits = |status: &Value| status["services"][0]["waiting"]["worker"] == "worker1";
    cluster.assert_status(SOON, "worker1 to wait", waits);
    for arguments in [vec!["status"], vec!["explain", "192.168.56.10"]] {
        let mut verb = cluster.memlb(arguments[0]);
        let said = output(verb.args(&arguments[1..])).unwrap();
        assert!(
            said.contains("worker1 has more memory and waits for the hold"),
            "{said}"
        );
        assert!(said.contains("worker2"), "{said}");
    }
    // A failover does not wait.
    let drain = |verb| output(cluster.memlb(verb).arg("worker2")).unwrap();
    drain("drain");
    cluster.wait_for_selection("worker1", SOON).unwrap();
    drain("undrain");
    cluster.memory[1].set_available_kb(690 * 1024).unwrap();
    let waits = |status: &Value| status["services"][0]["waiting"]["worker"] == "worker2";
    cluster.assert_status(SOON, "worker2 to wait", waits);
    write(&cluster, &original);
    let said = succeed(&cluster);
    assert!(said.contains("service web: hold: 1h -> 250ms"), "{said}");
    cluster.wait_for_selection("worker2", SOON).unwrap();
}

#[root_test]
fn a_removed_workers_number_is_free_once_its_connections_have_ended() {
    let cluster = start();
    let node = &cluster.topology.client;
    let mut kept = Connection::open(node, cluster.service(), SOON).unwrap();
    kept.get("/").unwrap();
    let without_worker1: String = configuration(&cluster)
        .lines()
        .filter(|line| !line.contains("worker1"))
        .map(|line| format!("{line}\n"))
        .collect();
    write(&cluster, &without_worker1);
    succeed(&cluster);
    let id = |value: &Value| value["formatted"]["key"].as_u64();
    let occupied = || -> Vec<u64> {
        let dump =
            memlb_tests::observe::bpftool(&["map", "dump", "pinned", &cluster.map("backends")]);
        let dump = dump.unwrap();
        let entries = dump.as_array().unwrap().iter();
        entries
            .filter(|it| it["formatted"]["value"]["port"] != 0)
            .filter_map(id)
            .collect()
    };
    assert!(occupied().contains(&1), "{:?}", occupied());
    drop(kept);
    let start = Instant::now();
    eventually(Duration::from_secs(30), "the number to be free", || {
        !occupied().contains(&1)
    });
    assert!(start.elapsed() < Duration::from_secs(30));
}

fn start() -> Cluster {
    Cluster::start_serving(&ClusterOptions::default()).unwrap()
}

fn configuration(cluster: &Cluster) -> String {
    fs::read_to_string(cluster.paths.directory.join("memlb.toml")).unwrap()
}

fn write(cluster: &Cluster, text: &str) {
    fs::write(cluster.paths.directory.join("memlb.toml"), text).unwrap();
}

fn reload(cluster: &Cluster) -> Output {
    cluster.memlb("reload").output().unwrap()
}

fn succeed(cluster: &Cluster) -> String {
    stdout(&reload(cluster))
}
