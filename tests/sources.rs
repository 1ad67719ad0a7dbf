//! Workers from a source: a file, read once or watched, and lists that the manager refuses.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{fs, path::Path, process::Command, time::Duration};

use memlb_tests::{Cluster, Process, command::output, eventually, root_test, wait::wait_for};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);

/// Two agents of which the file names worker1 only.
fn start() -> Cluster {
    let settings = [
        r#"service.web.workers=[{ name = "worker1", address = "192.168.56.103:8081" }]"#,
        r#"service.web.worker_sources=["file", "other"]"#,
        r#"service.web.policy="round_robin""#,
    ];
    let mut cluster = Cluster::with(|it| {
        it.agents = false;
        it.settings = settings.map(str::to_owned).into();
    });
    cluster.start_agent(0).unwrap();
    cluster.start_agent(1).unwrap();
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    cluster
}

fn sources(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = cluster.topology.manager.command(&cluster.binary);
    command.arg("sources").args(arguments);
    command
        .arg("--control-socket")
        .arg(cluster.paths.control_socket());
    command
}

fn worker(name: &str, address: &str) -> Value {
    json!({"service": "web", "name": name, "address": address})
}

fn write(path: &Path, workers: &[Value]) {
    let draft = path.with_extension("new");
    fs::write(&draft, json!({ "workers": workers }).to_string()).unwrap();
    fs::rename(&draft, path).unwrap();
}

fn names(cluster: &Cluster) -> Vec<String> {
    let status = cluster.status().unwrap();
    let backends = status["services"][0]["backends"].as_array().unwrap();
    let names = backends
        .iter()
        .map(|it| it["name"].as_str().unwrap().to_owned());
    names.filter(|it| it != "manager").collect()
}

#[root_test]
fn a_list_applies_entirely_or_not_at_all_and_survives_a_restart() {
    let mut cluster = start();
    let file = cluster.paths.directory.join("list.json");
    let path = file.to_str().unwrap().to_owned();
    let apply = |cluster: &Cluster| output(&mut sources(cluster, &["apply", &path]));
    let second = || worker("worker2", "192.168.56.104:8082");

    write(
        &file,
        &[
            second(),
            worker("worker1", "192.168.56.105:80"),
            worker("a", "192.168.56.101:80"),
        ],
    );
    let refused = format!("{:#}", apply(&cluster).unwrap_err());
    for says in [
        "nothing was changed",
        "web/worker1: there is a worker worker1 already, of the configuration file",
        "web/a: 192.168.56.101 is the manager's own address",
    ] {
        assert!(refused.contains(says), "{refused}");
    }
    assert_eq!(names(&cluster), ["worker1"]);
    cluster.require_events("worker_list_refused", 1).unwrap();

    write(&file, &[second()]);
    assert_eq!(
        apply(&cluster).unwrap(),
        "added web/worker2 at 192.168.56.104:8082\n"
    );
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
    assert_eq!(cluster.backend("worker2").unwrap()["source"], "file");
    let mut kept = wait_for(SOON, "a connection to worker2", || {
        cluster.connection_to("Worker2").ok()
    })
    .unwrap();
    assert_eq!(apply(&cluster).unwrap(), "nothing has changed\n");
    cluster.require_events("workers_changed", 1).unwrap();

    // Another source cannot have it; a reload and another manager keep it.
    let refused = output(&mut sources(
        &cluster,
        &["apply", &path, "--source", "other"],
    ));
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(
        refused.contains("worker2 already, of source \"file\""),
        "{refused}"
    );
    let mut reload = cluster.topology.manager.command(&cluster.binary);
    output(
        reload
            .args(["reload", "--control-socket"])
            .arg(cluster.paths.control_socket()),
    )
    .unwrap();
    assert_eq!(names(&cluster), ["worker1", "worker2"]);
    cluster.restart_manager().unwrap();
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker2");
    let shown = output(&mut sources(&cluster, &[])).unwrap();
    assert!(
        shown.contains("source file: 1 worker (web/worker2), no list since this manager started"),
        "{shown}"
    );

    // It is drained at once, and leaves with its open connections kept.
    let mut drained = second();
    drained["drain"] = "new disk".into();
    write(&file, &[drained]);
    let said = apply(&cluster).unwrap();
    assert_eq!(said, "changed web/worker2 (drained: new disk)\n");
    let backend = cluster.backend("worker2").unwrap();
    assert_eq!(backend["state"], "draining");
    assert_eq!(backend["admin_state"]["by"], "file");
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker2");
    output(&mut sources(&cluster, &["remove", "file"])).unwrap();
    assert_eq!(names(&cluster), ["worker1"]);
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker2");
    let refused = output(&mut sources(&cluster, &["remove", "file"])).unwrap_err();
    let says = "there is no source \"file\", and no other source";
    assert!(format!("{refused:#}").contains(says), "{refused:#}");
}

#[root_test]
fn changes_of_a_watched_file_apply_and_its_last_list_remains() {
    let cluster = start();
    let file = cluster.paths.directory.join("list.json");
    let second = worker("worker2", "192.168.56.104:8082");
    write(&file, std::slice::from_ref(&second));
    let mut command = sources(&cluster, &["apply", file.to_str().unwrap(), "--watch"]);
    let log = cluster.paths.directory.join("sources.log");
    let mut watching = Process::start("memlb sources", &mut command, &log).unwrap();
    cluster.wait_for_state("worker2", "up", SOON).unwrap();

    fs::write(&file, "{\"workers\": [").unwrap();
    let problem = |status: &Value| status["sources"][0]["problem"].is_string();
    cluster.assert_status(SOON, "the bad file to be known", problem);
    watching.wait_for_log(SOON, "EOF while parsing").unwrap();
    assert_eq!(names(&cluster), ["worker1", "worker2"]);
    cluster.require_events("source_failed", 1).unwrap();

    write(&file, &[]);
    eventually(SOON, "the worker to leave", || {
        names(&cluster) == ["worker1"]
    });
    cluster.assert_status(SOON, "the file to be good", |status| !problem(status));
    cluster.require_events("source_recovered", 1).unwrap();
    fs::remove_file(&file).unwrap();
    cluster.assert_status(SOON, "the file to be missed", problem);
    write(&file, &[second]);
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
}
