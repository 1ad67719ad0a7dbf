//! curl, wrk and h2load against nginx, in HTTP/1.1 and HTTP/2.

use std::{fs, thread};

use memlb_tests::{
    Cluster, Node, Process, command::output, eventually, nginx, root_test, transfer::random_bytes,
};
use nix::sys::signal::Signal;

use crate::scenario::{
    MIB, PATIENCE, SOON, disturb, make_certificate, program, run_scenario, service, wait_for_flows,
    wait_for_server, worker1,
};

const HTTPS: u16 = 443;

#[root_test(tc, xdp)]
fn serves_curl_all_at_once(attach: &str) {
    run_scenario(attach, &[], curl);
}

/// curl asks before it sends much (`Expect: 100-continue`), and nginx permits it.
fn curl(cluster: &mut Cluster) {
    let body = random_bytes(1, 2 * MIB);
    let source = cluster.paths.directory.join("body");
    fs::write(&source, &body).unwrap();
    let site = service(cluster, 80);
    let put = |number: usize| {
        let line = format!(
            "curl --silent --show-error --fail --upload-file {} http://{site}/upload/{number}",
            source.display()
        );
        output(&mut program(&cluster.topology.client, &line)).unwrap();
    };
    thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || put(number));
        }
    });
    for number in 0..4 {
        let upload = cluster.servers[0].root().join(format!("upload/{number}"));
        assert!(fs::read(upload).unwrap() == body, "{number} is broken");
    }
    // Ranges, each on a connection of its own, and together the whole.
    let directory = cluster.paths.directory.join("parts");
    fs::create_dir(&directory).unwrap();
    let line = format!(
        "curl --silent --show-error --fail --parallel --parallel-max 50 --parallel-immediate \
         --range {}- --output {}/#1 --write-out %{{http_code}}\\n \
         http://{site}/upload/[0-3]?[1-100]",
        MIB,
        directory.display(),
    );
    let codes = output(&mut program(&cluster.topology.client, &line)).unwrap();
    assert_eq!(codes.lines().filter(|code| *code == "206").count(), 400);
    for number in 0..4 {
        let part = fs::read(directory.join(number.to_string())).unwrap();
        assert!(part == body[MIB..], "a part of {number} is broken");
    }
}

#[root_test(tc, xdp)]
fn serves_wrk_while_the_selection_moves_and_the_manager_dies(attach: &str) {
    run_scenario(attach, &[], wrk);
}

/// One wrk keeps its connections, the other one makes a new one for each request.
fn wrk(cluster: &mut Cluster) {
    const KEPT: u64 = 32;
    let line = format!(
        "wrk --threads 1 --connections {KEPT} --duration 60s http://{}/",
        service(cluster, 80)
    );
    let mut keeps = start(cluster, &line, &[]);
    wait_for_flows(cluster, 80, KEPT);
    let mut renews = start(cluster, &line, &["--header", "Connection: close"]);
    eventually(SOON, "many connections", || {
        worker1(cluster, 80, "connections") > 500
    });
    disturb(cluster);
    assert_no_errors(&mut keeps);
    assert_no_errors(&mut renews);
}

/// Stops wrk, which tells how it was.
fn assert_no_errors(wrk: &mut Process) {
    wrk.signal(Signal::SIGINT).unwrap();
    assert!(wrk.wait(SOON).unwrap().success());
    let report = wrk.log();
    println!("{report}");
    assert!(report.contains("Requests/sec"), "{report}");
    for complaint in ["Socket errors", "Non-2xx"] {
        assert!(!report.contains(complaint), "{report}");
    }
}

/// Starts a client that goes on while other things happen.
fn start(cluster: &Cluster, line: &str, arguments: &[&str]) -> Process {
    let name = line.split(' ').next().unwrap();
    let log = format!("{name}{}.log", arguments.concat());
    let log = cluster.paths.directory.join(log);
    let mut command = program(&cluster.topology.client, line);
    Process::start(name, command.args(arguments), &log).unwrap()
}

#[root_test(tc, xdp)]
fn serves_http2_while_the_selection_moves_and_the_manager_dies(attach: &str) {
    run_scenario(attach, &[HTTPS], http2);
}

fn http2(cluster: &mut Cluster) {
    const CONNECTIONS: u64 = 20;
    let _servers = serve_https(cluster);
    let site = service(cluster, HTTPS);
    let line = format!(
        "curl --silent --show-error --insecure --http2 --write-out %{{http_version}} https://{site}/"
    );
    let page = output(&mut program(&cluster.topology.client, &line)).unwrap();
    assert_eq!(page, "Worker1\n2");

    // At a pace that leaves the manager some of the processors.
    let line = format!(
        "h2load --clients {CONNECTIONS} --max-concurrent-streams 10 --rps 20 --duration 12 \
         https://{site}/blob"
    );
    let mut load = start(cluster, &line, &[]);
    wait_for_flows(cluster, HTTPS, CONNECTIONS);
    disturb(cluster);
    assert!(load.is_running(), "nothing was left to disturb");
    assert!(load.wait(PATIENCE).unwrap().success());
    let report = load.log();
    println!("{report}");
    assert!(report.contains("Application protocol: h2"), "{report}");
    let requests = report
        .lines()
        .find_map(|line| line.strip_prefix("requests: "))
        .unwrap();
    let count = |what: &str| -> u64 {
        let field = requests.split(", ").find(|field| field.ends_with(what));
        let number = field.and_then(|field| field.split(' ').next());
        number.unwrap().parse().unwrap()
    };
    assert!(count("succeeded") > 100, "{requests}");
    for trouble in ["failed", "errored", "timeout"] {
        assert_eq!(count(trouble), 0, "{requests}");
    }
    // None of them was on the other worker, except by a new connection.
    assert_eq!(worker1(cluster, HTTPS, "connections"), CONNECTIONS + 1);
}

/// Starts a web server on each worker that speaks HTTP/2 over TLS.
fn serve_https(cluster: &Cluster) -> Vec<Process> {
    let directory = &cluster.paths.directory;
    let at = directory.display();
    make_certificate(directory);
    let serve = |(index, worker): (usize, &Node)| {
        let root = cluster.servers[index].root();
        fs::write(root.join("blob"), random_bytes(2, MIB / 8)).unwrap();
        let server = format!(
            "    server {{
        listen {HTTPS} ssl http2;
        ssl_certificate {at}/tls.pem;
        ssl_certificate_key {at}/tls.key;
        root {};
    }}
",
            root.display()
        );
        let process =
            nginx::start(worker, &server, &directory.join(format!("https{index}"))).unwrap();
        wait_for_server(worker, HTTPS);
        process
    };
    let workers = cluster.topology.workers.iter();
    workers.enumerate().map(serve).collect()
}
