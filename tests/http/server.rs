//! The HTTP server: where it listens, which requests it answers, and its limits.

use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

use memlb_tests::{Cluster, ClusterOptions, Process, command::output, eventually, root_test};

use super::{SOON, curl, get, request, start};

#[root_test]
fn accepts_only_loopback_names_and_changes_nothing() {
    let cluster = start(ClusterOptions::default());
    for host in [
        "localhost",
        "localhost:1234",
        "127.0.0.1:9998",
        "[::1]:9998",
    ] {
        let answer = request(
            &cluster,
            "/healthz",
            &["--header", &format!("Host: {host}")],
        );
        assert_eq!(answer.status, 200, "{host}");
    }
    for host in ["evil.example", "192.168.56.101", "localhost.evil.example"] {
        for path in ["/", "/metrics", "/api/v1/status", "/healthz", "/nowhere"] {
            let answer = request(&cluster, path, &["--header", &format!("Host: {host}")]);
            assert_eq!(answer.status, 421, "{host}{path}");
            assert!(!answer.body.contains("worker1"), "{}", answer.body);
        }
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        for path in ["/metrics", "/api/v1/status", "/healthz"] {
            let answer = request(&cluster, path, &["--request", method]);
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET,HEAD"));
        }
    }
    for path in ["/metrics", "/api/v1/status", "/nowhere"] {
        let answer = get(&cluster, path);
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    // Only loopback: the service's own address has nothing there.
    let mut from_outside = cluster.topology.client.command("curl");
    from_outside.args([
        "--silent",
        "--show-error",
        "http://192.168.56.101:9998/metrics",
    ]);
    let refused = output(&mut from_outside).unwrap_err();
    assert!(format!("{refused:#}").contains("connect"), "{refused:#}");
}

#[root_test]
fn listens_at_the_configured_address() {
    let listen = |address: &str| ClusterOptions {
        manager_arguments: vec!["--http-listen".into(), address.into()],
        ..ClusterOptions::default()
    };
    let everywhere = start(listen("0.0.0.0:9180"));
    let mut from_outside = everywhere.topology.client.command("curl");
    from_outside.args(["--silent", "--fail", "http://192.168.56.101:9180/metrics"]);
    assert!(
        output(&mut from_outside)
            .unwrap()
            .contains("memlb_build_info")
    );
    // Foreign names are refused here, too, but not to health checks.
    for (path, status) in [("/metrics", "421"), ("/healthz", "200")] {
        let mut by_name = everywhere.topology.client.command("curl");
        by_name.args([
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ]);
        by_name.args(["--header", "Host: evil.example"]);
        by_name.arg(format!("http://192.168.56.101:9180{path}"));
        assert_eq!(output(&mut by_name).unwrap(), status, "{path}");
    }
    drop(everywhere);

    let nowhere = start(listen(""));
    let listening = nowhere
        .topology
        .manager
        .run("ss", &["--listening", "--tcp", "--processes"]);
    let listening = listening.unwrap();
    assert!(!listening.contains("memlb"), "{listening}");
}

#[root_test]
fn a_port_in_use_is_reported_and_nothing_remains() {
    let cluster = start(ClusterOptions::default());
    let directory = &cluster.paths.directory;
    let pins = format!("{}-other", cluster.paths.pin_path.display());
    // A service of its own: the cluster's manager serves the other one.
    let configuration = directory.join("other.toml");
    let text = std::fs::read_to_string(directory.join("memlb.toml")).unwrap();
    std::fs::write(&configuration, text.replace(":80\"", ":81\"")).unwrap();
    let mut command = cluster.topology.manager.command(&cluster.binary);
    command
        .args(["manager", "--event-log", "", "--config"])
        .arg(&configuration)
        .args(["--heartbeat-listen", "0.0.0.0:9997", "--pin-path", &pins])
        .args(["--set", "limits.nat_ports=61000-62000"])
        .arg("--control-socket")
        .arg(directory.join("other.sock"));
    let error = format!("{:#}", output(&mut command).unwrap_err());
    for words in ["127.0.0.1:9998", "in use", "--http-listen"] {
        assert!(error.contains(words), "no {words:?} in {error}");
    }
    assert!(!std::path::Path::new(&pins).exists());
    assert!(!directory.join("other.sock").exists());
}

/// Half-sent requests, silent connections and listeners that do not read take no other client's turn, and
/// the manager notices nothing.
#[root_test]
fn idle_clients_delay_no_other_client() {
    let mut cluster = start(ClusterOptions::default());
    let idle: Vec<TcpStream> = cluster
        .topology
        .manager
        .enter(|| {
            let open = |index: usize| {
                let mut stream = TcpStream::connect("127.0.0.1:9998").unwrap();
                let request = match index % 3 {
                    0 => "GET /metrics HTTP/1.1\r\nHo",
                    1 => "GET /api/v1/events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n",
                    _ => "",
                };
                stream.write_all(request.as_bytes()).unwrap();
                stream
            };
            (0..100).map(open).collect()
        })
        .unwrap();
    let started = Instant::now();
    cluster.kill_agent(0).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    let failover = started.elapsed();
    assert!(failover < Duration::from_millis(1500), "{failover:?}");
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(&cluster, path).status, 200, "{path}");
    }
    drop(idle);
}

#[root_test]
fn the_number_of_listeners_is_limited() {
    let cluster = start(ClusterOptions::default());
    let mut listeners: Vec<Process> = (0..32).map(|index| listen(&cluster, index)).collect();
    for listener in &mut listeners {
        listener.wait_for_log(SOON, "listening").unwrap();
    }
    let refused = get(&cluster, "/api/v1/events/stream");
    assert!(refused.body.contains("32 listeners"), "{}", refused.body);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(get(&cluster, "/metrics").status, 200);
    drop(listeners.pop());
    eventually(SOON, "a seat to be free", || seat(&cluster) == "200");
}

/// Returns the status with which one more listener is met.
fn seat(cluster: &Cluster) -> String {
    let mut curl = curl(cluster, "/api/v1/events/stream");
    curl.args(["--max-time", "0.5", "--output", "/dev/null"])
        .args(["--write-out", "%{http_code}"]);
    String::from_utf8(curl.output().unwrap().stdout).unwrap()
}

fn listen(cluster: &Cluster, index: usize) -> Process {
    let mut curl = cluster.topology.manager.command("curl");
    curl.args(["--silent", "--no-buffer"])
        .arg("http://127.0.0.1:9998/api/v1/events/stream");
    let log = cluster.paths.directory.join(format!("listener{index}.log"));
    Process::start("listener", &mut curl, &log).unwrap()
}
