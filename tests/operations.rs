//! The operator's commands with a running system: their effects and what remains of them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt},
        net::UnixStream,
    },
    path::Path,
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use memlb_tests::{
    Cluster, ClusterOptions, Connection, Process,
    cli::{assert_failure, memlb, stdout, succeed},
    eventually, observe, root_test, wait_until,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);

/// `down_after` by default, and what a machine that tests beside it may add.
const DOWN_AFTER: Duration = lb_core::DEFAULT_DOWN_AFTER;
const TOLERANCE: Duration = Duration::from_millis(100);

#[root_test]
fn a_drained_worker_keeps_its_connections_and_gets_no_new_one() {
    let mut cluster = start();
    let mut kept = cluster.connection_to("Worker1").unwrap();
    let probe = cluster.probe(Duration::from_millis(10)).unwrap();
    let said = succeed(&cluster, &["drain", "worker1", "--reason", "new disk"]);
    assert!(
        said.contains("worker1 is drained by root: new disk"),
        "{said}"
    );
    let drained_at = Instant::now();
    assert_eq!(cluster.page().unwrap(), "Worker2");
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");

    // Whatever becomes of the manager, the order stands, and is seen to stand.
    for _ in 0..3 {
        cluster.restart_manager().unwrap();
        for worker in ["worker1", "worker2"] {
            let heard =
                |it: &Value| observe::backend(it, worker).is_some_and(|it| it["age_ms"].is_u64());
            cluster.assert_status(SOON, "the worker to be heard", heard);
        }
    }
    let worker1 = cluster.backend("worker1").unwrap();
    assert_eq!(worker1["state"], "draining");
    assert_eq!(worker1["health"], "up");
    assert_eq!(worker1["admin_state"]["value"], "drain");
    assert_eq!(worker1["admin_state"]["by"], "root");
    assert_eq!(worker1["admin_state"]["reason"], "new disk");
    let status = succeed(&cluster, &["status"]);
    assert!(status.contains("drained by root since 20"), "{status}");
    let workers = succeed(&cluster, &["workers", "worker1"]);
    assert!(workers.contains("drained by root since 20"), "{workers}");
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    assert_eq!(cluster.page().unwrap(), "Worker2");

    let undraining_at = Instant::now();
    succeed(&cluster, &["undrain", "worker1"]);
    let undrained_at = Instant::now();
    probe.wait_for_page("Worker1", undrained_at, SOON).unwrap();
    let report = probe.stop().unwrap();
    report.assert_no_failure();
    let astray: Vec<_> = report
        .requests
        .iter()
        .filter(|ask| ask.sent_at > drained_at && ask.ended_at < undraining_at)
        .filter(|ask| ask.page() == Some("Worker1"))
        .collect();
    assert!(astray.is_empty(), "{astray:?}");
}

#[root_test]
fn a_paused_worker_keeps_its_connections_while_it_is_silent() {
    let mut cluster = start();
    let mut kept = cluster.connection_to("Worker1").unwrap();
    let order = ["pause", "worker1", "--for", "1m", "--reason", "moves"];
    let said = succeed(&cluster, &order);
    assert_eq!(said, "worker1 is paused for 1m by root: moves\n");
    assert_eq!(cluster.page().unwrap(), "Worker2");
    let freeze = |cluster: &mut Cluster, signal| {
        let agent = cluster.agents[0].as_mut().unwrap();
        agent.signal(signal).unwrap();
    };
    freeze(&mut cluster, Signal::SIGSTOP);
    let silent = |status: &Value| {
        observe::backend(status, "worker1").is_some_and(|it| it["health"] == "down")
    };
    for _ in 0..2 {
        cluster.assert_status(SOON, "the silence of worker1", silent);
        let worker1 = cluster.backend("worker1").unwrap();
        assert_eq!(worker1["state"], "paused", "{worker1}");
        assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
        assert_eq!(cluster.page().unwrap(), "Worker2");
        // The next manager knows it, too.
        cluster.restart_manager().unwrap();
    }
    let status = succeed(&cluster, &["status"]);
    assert!(
        status.contains("paused for 1m by root since 20"),
        "{status}"
    );
    freeze(&mut cluster, Signal::SIGCONT);
    succeed(&cluster, &["resume", "worker1"]);
    cluster.wait_for_page("Worker1", SOON).unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    let deaths = cluster.wait_for_events("worker_down", 1).unwrap();
    assert!(deaths.iter().all(|it| it["expected"] == true), "{deaths:?}");
}

#[root_test]
fn waits_until_the_drained_workers_connections_are_gone() {
    let cluster = start();
    let open = || Connection::open(&cluster.topology.client, cluster.service(), SOON).unwrap();
    let mut kept = open();
    kept.get("/").unwrap();

    // The deadline passes, and nothing is cut that was not to be.
    let left = memlb(
        &cluster,
        &["drain", "worker1", "--wait", "--deadline", "1s"],
    );
    assert_failure(&left, 1, &["1 connection of worker1 is left"]);
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");

    // It returns as soon as the last connection ends, and not before.
    let mut command = cluster.memlb("drain");
    command.args(["worker1", "--wait", "--deadline", "60s"]);
    let log_file = cluster.paths.directory.join("drain.log");
    let mut draining = Process::start("memlb drain", &mut command, &log_file).unwrap();
    draining.wait_for_log(SOON, "worker1 is drained").unwrap();
    // It counts down, and an interruption ends only the wait.
    let count = "worker1: 1 connection left after 0s, ";
    draining.wait_for_log(SOON, count).unwrap();
    draining.signal(Signal::SIGINT).unwrap();
    assert_eq!(draining.wait(SOON).unwrap().code(), Some(1));
    let log = draining.log();
    let words = "interrupted, with 1 connection of worker1 left; worker1 stays drained";
    assert!(log.contains(words), "{log}");
    let mut draining = Process::start("memlb drain", &mut command, &log_file).unwrap();
    draining.wait_for_log(SOON, count).unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    assert!(draining.is_running());
    drop(kept);
    assert!(draining.wait(SOON).unwrap().success(), "{}", draining.log());
    assert!(draining.log().contains("no connection left"));

    // Reset, as requested.
    succeed(&cluster, &["undrain", "worker1"]);
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let mut kept = open();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    let terminate = [
        "drain",
        "worker1",
        "--wait",
        "--deadline",
        "0s",
        "--terminate",
    ];
    let said = succeed(&cluster, &terminate);
    assert!(said.contains("reset at its next packet"), "{said}");
    let start = Instant::now();
    assert!(kept.get("/").is_err());
    assert!(start.elapsed() < Duration::from_secs(2), "it hung instead");
    assert_eq!(cluster.page().unwrap(), "Worker2");
}

/// The clients have vanished, and the worker has lost its sockets: its end is all that the manager hears, or nothing.
#[root_test]
fn connections_that_no_longer_exist_do_not_delay_a_drain() {
    const CONNECTIONS: usize = 200;
    for (established_idle, is_ended) in [("2h", true), ("4s", false)] {
        let limits = [
            ("closing", "1s"),
            ("half_open", "4s"),
            ("established", established_idle),
        ];
        let set =
            limits.map(|(limit, time)| ["--set".into(), format!("limits.{limit}_idle={time}")]);
        let mut cluster = Cluster::with(|it| it.manager_arguments = set.concat());
        cluster.wait_for_page("Worker1", SOON).unwrap();
        let open = || -> Vec<Connection> {
            let open = |_| Connection::open_here(cluster.service(), SOON).unwrap();
            let mut connections: Vec<_> = (0..CONNECTIONS).map(open).collect();
            for connection in &mut connections {
                assert_eq!(connection.get("/").unwrap().first_line(), "Worker1");
            }
            connections
        };
        let vanished = cluster.topology.client.enter(open).unwrap();
        cluster.topology.client.disconnect().unwrap();
        if is_ended {
            cluster.servers[0].process.kill().unwrap();
        }
        let said = succeed(
            &cluster,
            &["drain", "worker1", "--wait", "--deadline", "30s"],
        );
        assert!(said.contains("no connection left"), "{said}");
        assert_eq!(cluster.backend("worker1").unwrap()["flows"], 0);
        drop(vanished);
    }
}

#[root_test]
fn draining_the_last_worker_warns_and_uses_the_fallback() {
    let cluster = start();
    succeed(&cluster, &["drain", "worker1"]);
    let said = succeed(&cluster, &["maintenance", "worker2"]);
    assert!(
        said.contains("warning: web has no worker now: the fallback on the manager serves"),
        "{said}"
    );
    assert_eq!(cluster.page().unwrap(), "Manager");
    let json = succeed(&cluster, &["weight", "worker1", "50", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["without_worker"][0], "web");
    assert_eq!(json["not_saved"], Value::Null);
    let worker1 = cluster.backend("worker1").unwrap();
    assert_eq!(worker1["weight_percent"]["value"], 50);
    succeed(&cluster, &["undrain", "worker2"]);
    cluster.wait_for_page("Worker2", SOON).unwrap();
}

#[root_test]
fn an_invalid_order_is_refused_with_the_valid_values() {
    let cluster = start();
    let long = "s".repeat(5000);
    let cases: [(&[&str], &str); 12] = [
        (&["drain", "worker3"], "did you mean worker"),
        (&["drain", "worker1", "--service", &long], ", only web"),
        (&["drain", "unknown"], ", only worker1, worker2"),
        (
            &["drain", "worker1", "--service", "wep"],
            "did you mean web?",
        ),
        (&["weight", "worker1", "1001"], "expected 0 to 1000"),
        (&["drain", "worker1", "--terminate"], "--deadline"),
        (&["drain", "worker1", "--deadline", "5m"], "--wait"),
        (&["pause", "worker1", "--for", "2h"], "expected 1s to 1h"),
        (&["pause", "worker3", "--for", "5s"], "did you mean worker"),
        (&["pause", "worker1"], "--for <DURATION>"),
        (&["workers", "unknown"], ", only worker1, worker2"),
        (&["services", "nothing"], "only web"),
    ];
    for (arguments, says) in cases {
        assert_failure(&memlb(&cluster, arguments), 2, &[says]);
    }
    assert_eq!(
        cluster.backend("worker1").unwrap()["admin_state"],
        Value::Null
    );
    assert!(!cluster.paths.state_file().exists());
}

#[root_test]
fn only_owner_and_group_can_use_the_control_socket() {
    let cluster = start();
    let socket = cluster.paths.control_socket();
    let mode = socket.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[root_test]
fn shows_and_follows_events() {
    let cluster = start();
    let mut command = cluster.memlb("events");
    let log = cluster.paths.directory.join("follow.log");
    let command = command.args(["--follow", "--json"]);
    let mut following = Process::start("memlb events", command, &log).unwrap();
    following.wait_for_log(SOON, "selection_changed").unwrap();
    succeed(&cluster, &["drain", "worker1"]);
    following
        .wait_for_log(SOON, "admin_command_applied")
        .unwrap();
    following
        .wait_for_log(SOON, "worker1 is drained by root")
        .unwrap();
    for line in following.log().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(
            event["event"].is_string() && event["message"].is_string(),
            "{event}"
        );
    }
    let last = succeed(&cluster, &["events", "--limit", "1"]);
    assert_eq!(last.lines().count(), 1);
    assert!(last.contains("worker1 -> worker2"), "{last}");
}

#[root_test]
fn an_order_that_cannot_be_stored_applies_with_a_warning() {
    let cluster = start();
    // What stands in the way of the new file.
    let draft = cluster.paths.state_file().with_added_extension("draft");
    std::fs::create_dir(&draft).unwrap();
    let said = succeed(&cluster, &["drain", "worker1"]);
    assert!(
        said.contains("is lost at a restart of the manager"),
        "{said}"
    );
    assert_eq!(cluster.page().unwrap(), "Worker2");
    std::fs::remove_dir(&draft).unwrap();
    let written = || cluster.paths.state_file().exists();
    eventually(Duration::from_secs(10), "the order to be kept", written);
}

#[root_test]
fn lists_connections_and_explains_them() {
    let cluster = start();
    let node = &cluster.topology.client;
    let mut kept = Connection::open(node, cluster.service(), SOON).unwrap();
    kept.get("/").unwrap();
    cluster.memory[1].set_available_kb(600 * 1024).unwrap();
    cluster.wait_for_selection("worker2", SOON).unwrap();
    let _other = cluster.connection_to("Worker2").unwrap();

    let of_worker1 = ["flows", "--worker", "worker1", "--json"];
    let flows: Value = serde_json::from_str(&succeed(&cluster, &of_worker1)).unwrap();
    assert_eq!(flows["total"], 1, "{flows}");
    let flow = &flows["flows"][0];
    assert_eq!(flow["worker"], "worker1");
    assert_eq!(flow["service"], "web");
    assert_eq!(flow["state"], "open");
    assert!(flow["bytes_out"].as_u64() > Some(100), "{flow}");
    let client = flow["client"].as_str().unwrap();
    let address = client.split(':').next().unwrap();
    for clients in [address, "192.168.56.0/24"] {
        let all = succeed(&cluster, &["flows", "--client", clients]);
        assert!(all.contains("worker1") && all.contains("worker2"), "{all}");
    }
    assert_eq!(
        succeed(&cluster, &["flows", "--client", "10.9.8.7"])
            .lines()
            .count(),
        1
    );

    // Each connection has its own reason: what was decided when it was made.
    let one = succeed(&cluster, &["explain", client]);
    assert!(one.contains("went to worker1"), "{one}");
    assert!(one.contains("450.0 MiB available, heartbeat"), "{one}");
    assert!(one.contains("would go to worker2"), "{one}");
    let both = succeed(&cluster, &["explain", address, "--json"]);
    let both: Value = serde_json::from_str(&both).unwrap();
    let workers: Vec<&Value> = both["connections"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["connection"]["state"] == "open")
        .map(|it| &it["decision"]["service"]["selected"])
        .collect();
    assert_eq!(workers, ["worker2", "worker1"], "{both}");
    let stranger = succeed(&cluster, &["explain", "10.9.8.7"]);
    assert!(stranger.contains("has no connection here"), "{stranger}");
    assert!(stranger.contains("would go to worker2"), "{stranger}");

    assert_failure(
        &memlb(&cluster, &["explain", "worker1"]),
        2,
        &["expected ADDRESS"],
    );
    assert_failure(
        &memlb(&cluster, &["flows", "--worker", "unknown"]),
        2,
        &["only manager"],
    );
}

#[root_test]
fn refuses_new_connections_at_once_without_a_fallback() {
    let cluster = start();
    let file = cluster.paths.directory.join("memlb.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let line = text.lines().find(|it| it.starts_with("fallback")).unwrap();
    std::fs::write(&file, text.replace(line, "fallback = \"reject\"")).unwrap();
    let said = succeed(&cluster, &["reload"]);
    assert!(
        said.contains("fallback: 192.168.56.101:8080 -> reject"),
        "{said}"
    );
    assert_eq!(cluster.page().unwrap(), "Worker1");
    succeed(&cluster, &["drain", "worker1"]);
    let said = succeed(&cluster, &["drain", "worker2"]);
    assert!(
        said.contains("web has no worker now: new connections are refused"),
        "{said}"
    );
    let before = cluster.verdict("no_backend").unwrap();
    let start = Instant::now();
    let refused = format!("{:#}", cluster.page().unwrap_err());
    assert!(refused.contains("refused"), "{refused}");
    assert!(start.elapsed() < Duration::from_secs(1), "it hung");
    assert_eq!(cluster.verdict("no_backend").unwrap(), before + 1);
    let status = succeed(&cluster, &["status"]);
    assert!(status.contains("new connections are refused"), "{status}");
    succeed(&cluster, &["undrain", "worker1"]);
    cluster.wait_for_page("Worker1", SOON).unwrap();
}

#[root_test]
fn no_verb_delays_a_deadline() {
    let mut cluster = start();
    let socket = cluster.paths.control_socket();
    let silent: Vec<_> = (0..56)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    let verbs = [
        r#"{"verb":"status"}"#,
        r#"{"verb":"flows","limit":100}"#,
        r#"{"verb":"explain","client":{"address":"10.9.8.7","port":null}}"#,
        r#"{"verb":"events"}"#,
        r#"{"verb":"reload"}"#,
    ];
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = verbs.map(|verb| {
            let (socket, over) = (&socket, &over);
            scope.spawn(move || {
                let mut answers = 0;
                while !over.load(Ordering::Relaxed) {
                    let answer = request(socket, verb);
                    assert!(
                        !answer.is_empty() && !answer.contains("\"error\""),
                        "{answer}"
                    );
                    answers += 1;
                }
                answers
            })
        });
        let killed = SystemTime::now();
        cluster.kill_agent(0).unwrap();
        let log = cluster.paths.event_log();
        let mut down = None;
        let waited = wait_until(SOON, "the death to be noticed", || {
            down = File::open(&log)
                .ok()
                .and_then(|log| time_of_death(log, "worker1"));
            down.is_some()
        });
        over.store(true, Ordering::Relaxed);
        let answers = asking.map(|thread| thread.join().unwrap());
        println!("answers: {answers:?}");
        waited.unwrap();
        assert_in_time(killed, down.unwrap());
        assert!(answers.iter().all(|answers| *answers > 5), "{answers:?}");
    });
    drop(silent);
}

#[root_test]
fn a_reload_that_waits_for_the_disk_delays_no_deadline() {
    let mut cluster = start();
    let socket = cluster.paths.control_socket();
    let (path, moved) = (
        cluster.paths.event_log(),
        cluster.paths.directory.join("moved"),
    );
    fs::rename(&path, &moved).unwrap();
    // A reload opens it again without help.
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    thread::scope(|scope| {
        let reloading = scope.spawn(|| request(&socket, r#"{"verb":"reload"}"#));
        let killed = SystemTime::now();
        cluster.kill_agent(0).unwrap();
        let mut down = None;
        let waited = wait_until(SOON, "the death to be noticed", || {
            down = time_of_death(File::open(&moved).unwrap(), "worker1");
            down.is_some()
        });
        let waits = !reloading.is_finished();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&path)
            .unwrap();
        let answer = reloading.join().unwrap();
        waited.unwrap();
        assert!(waits, "the reload was to wait for the log: {answer}");
        assert_eq!(answer, "{\"changes\":[]}\n");
        assert_in_time(killed, down.unwrap());
        drop(opened);
    });
}

#[root_test]
fn a_blocked_log_delays_nothing() {
    let mut cluster = start();
    cluster.kill_manager().unwrap();
    let path = cluster.paths.event_log();
    fs::remove_file(&path).unwrap();
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(&path)
        .unwrap();
    fcntl(&reader, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    cluster.start_manager().unwrap();
    for worker in ["worker1", "worker2"] {
        cluster.wait_for_state(worker, "up", SOON).unwrap();
    }
    // Some hundred bytes each.
    for _ in 0..20 {
        for verb in ["drain", "undrain"] {
            succeed(&cluster, &[verb, "worker2"]);
        }
    }
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let killed = SystemTime::now();
    cluster.kill_agent(0).unwrap();
    cluster.wait_for_selection("worker2", SOON).unwrap();
    assert_eq!(cluster.page().unwrap(), "Worker2");

    // Now somebody reads, and nothing is missing.
    let reading = OpenOptions::new().read(true).open(&path).unwrap();
    drop(reader);
    let mut lines = BufReader::new(reading).lines();
    let mut orders = 0;
    let down = loop {
        let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if event["event"] == "admin_command_applied" {
            orders += 1;
        } else if event["event"] == "worker_down" {
            break humantime::parse_rfc3339(event["time"].as_str().unwrap()).unwrap();
        }
    };
    assert_eq!(orders, 40);
    assert_in_time(killed, down);
}

/// Sends a request to the control socket and returns all that is answered.
fn request(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn time_of_death(log: File, worker: &str) -> Option<SystemTime> {
    let lines = BufReader::new(log).lines().map_while(Result::ok);
    let mut events = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let down = events.find(|it| it["event"] == "worker_down" && it["worker"] == worker)?;
    humantime::parse_rfc3339(down["time"].as_str()?).ok()
}

fn assert_in_time(killed: SystemTime, down: SystemTime) {
    let took = down.duration_since(killed).unwrap();
    let late = took.saturating_sub(DOWN_AFTER);
    println!("noticed after {took:?}");
    assert!(late <= TOLERANCE, "{late:?} late");
}

/// A ban on the manager's own firewall does not bind what memlb forwards: this one does, for open connections
/// and new ones, over a restart, and until it is taken back.
#[root_test]
fn a_denied_client_is_cut_off_until_it_is_allowed_again() {
    let mut cluster = start();
    let mut open = cluster.connection_to("Worker1").unwrap();

    let said = deny(
        &cluster,
        &[
            "add",
            "192.168.56.0/28",
            "2001:db8::/32",
            "--reason",
            "scans",
        ],
    );
    for words in [
        "192.168.56.0/28 is denied by root: scans",
        "2001:db8::/32 is denied by root: scans",
        "ended 1 open connection",
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert!(open.get("/").is_err(), "the open connection goes on");
    let connect = |cluster: &Cluster| {
        Connection::open(
            &cluster.topology.client,
            cluster.service(),
            Duration::from_secs(1),
        )
    };
    assert!(connect(&cluster).is_err(), "a new one is let in");
    let status = cluster.status().unwrap();
    assert_eq!(status["denied_prefixes"], 2);
    assert!(status["verdicts"]["denied"]["packets"].as_u64().unwrap() > 1);
    assert_eq!(cluster.backend("worker1").unwrap()["flows"], 0);
    let explained = succeed(&cluster, &["explain", "192.168.56.10"]);
    assert!(
        explained.contains("192.168.56.0/28 is denied by root: scans"),
        "{explained}"
    );

    cluster.restart_manager().unwrap();
    assert!(connect(&cluster).is_err(), "a restart has forgotten it");
    let listed = deny(&cluster, &["list"]);
    assert!(
        listed.contains("192.168.56.0/28") && listed.contains("scans"),
        "{listed}"
    );

    let within = denying(&cluster, &["remove", "192.168.56.10"]);
    assert_failure(&within, 2, &["as part of 192.168.56.0/28"]);
    let everybody = denying(&cluster, &["add", "0.0.0.0/0"]);
    assert_failure(&everybody, 2, &["every client"]);
    deny(&cluster, &["remove", "192.168.56.0/28", "2001:db8::/32"]);
    cluster.wait_for_page("Worker1", SOON).unwrap();
    assert_eq!(deny(&cluster, &["list"]), "no client is denied\n");
    let events = succeed(&cluster, &["events"]);
    assert!(
        events.contains("192.168.56.0/28 is no longer denied, by root"),
        "{events}"
    );
}

/// Runs `memlb deny`, whose options stand behind the action.
fn denying(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = cluster.topology.manager.command(&cluster.binary);
    command.arg("deny").args(arguments);
    let socket = cluster.paths.control_socket();
    command
        .arg("--control-socket")
        .arg(socket)
        .output()
        .unwrap()
}

fn deny(cluster: &Cluster, arguments: &[&str]) -> String {
    stdout(&denying(cluster, arguments))
}

fn start() -> Cluster {
    let options = ClusterOptions {
        // Who is undrained comes back by its memory.
        manager_arguments: vec!["--threshold".into(), "10MiB".into()],
        ..ClusterOptions::default()
    };
    Cluster::start_serving(&options).unwrap()
}
