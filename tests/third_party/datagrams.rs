//! DNS, over both protocols, and QUIC: dig against dnsmasq, and ngtcp2's client against its server.

use std::{fs, net::SocketAddr, path::PathBuf};

use memlb_tests::{
    Cluster, ClusterOptions, Node, Process, command::output, eventually, root_test,
    transfer::random_bytes,
};
use nix::sys::signal::Signal;

use crate::scenario::{
    MIB, PATIENCE, SOON, disturb, make_certificate, program, run_scenario_with, service, service6,
    wait_for_server,
};

const DNS: u16 = 53;
const QUIC: u16 = 443;

#[root_test(tc, xdp)]
fn serves_dns(attach: &str) {
    run_scenario_with(attach, options(), dns);
}

fn options() -> ClusterOptions {
    ClusterOptions {
        ports: vec![DNS],
        datagram_ports: vec![DNS, QUIC],
        ipv6: true,
        ..ClusterOptions::default()
    }
}

fn dns(cluster: &mut Cluster) {
    let workers = cluster.topology.workers.iter();
    let _servers: Vec<Process> = (1..)
        .zip(workers)
        .map(|(number, worker)| serve_dns(cluster, worker, number))
        .collect();
    let sites = [service(cluster, DNS), service6(cluster, DNS)];
    // Two that keep their port, and many that do not.
    let request_from =
        |cluster: &Cluster, port| sites.map(|site| dig(cluster, site, &["-b", &own(site, port)]));
    let request = |cluster: &Cluster| request_from(cluster, 5300);
    assert_eq!(request(cluster), ["10.0.0.1", "10.0.0.1"]);
    for site in sites {
        let many = cluster.paths.directory.join("many");
        fs::write(&many, "who.memlb\n".repeat(200)).unwrap();
        let answers = dig(cluster, site, &["-f", many.to_str().unwrap()]);
        assert_eq!(answers, ["10.0.0.1"; 200].join("\n"));
        assert_eq!(dig(cluster, site, &["+tcp"]), "10.0.0.1");
    }
    disturb(cluster);
    assert_eq!(request(cluster), ["10.0.0.1", "10.0.0.1"]);
    // From a port that no exchange of before can have had: that would go on where it was.
    assert_eq!(request_from(cluster, 5301), ["10.0.0.2", "10.0.0.2"]);
    for site in sites {
        assert_eq!(dig(cluster, site, &["+tcp"]), "10.0.0.2");
    }
    // What has no connection needs no end of one to go elsewhere.
    cluster.kill_agent(0).unwrap();
    cluster.wait_for_state("worker1", "down", SOON).unwrap();
    assert_eq!(request(cluster), ["10.0.0.2", "10.0.0.2"]);
}

/// Starts a name server by whose answers one knows which it is.
fn serve_dns(cluster: &Cluster, worker: &Node, number: u8) -> Process {
    let line = format!(
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file --user=root --no-resolv \
         --no-hosts --port={DNS} --address=/who.memlb/10.0.0.{number}"
    );
    let log = cluster.paths.directory.join(format!("dnsmasq{number}.log"));
    let mut command = worker.command("dnsmasq");
    command.args(line.split_whitespace().skip(1));
    let process = Process::start("dnsmasq", &mut command, &log).unwrap();
    wait_for_server(worker, DNS);
    process
}

/// Returns the answers to the question who `site` is, asked once.
fn dig(cluster: &Cluster, site: SocketAddr, arguments: &[&str]) -> String {
    let line = format!("dig +short +tries=1 +time=3 @{}", site.ip());
    let mut command = program(&cluster.topology.client, &line);
    command.args(arguments);
    if !arguments.contains(&"-f") {
        command.arg("who.memlb");
    }
    output(&mut command).unwrap().trim_end().to_owned()
}

/// A source port of one's own, with the address of the family of `site`.
fn own(site: SocketAddr, port: u16) -> String {
    match site {
        SocketAddr::V4(_) => format!("0.0.0.0#{port}"),
        SocketAddr::V6(_) => format!("::#{port}"),
    }
}

#[root_test(tc, xdp)]
fn keeps_quic_while_the_selection_changes_and_the_manager_dies(attach: &str) {
    run_scenario_with(attach, options(), quic);
}

fn quic(cluster: &mut Cluster) {
    let directory = cluster.paths.directory.join("quic");
    fs::create_dir(&directory).unwrap();
    let at = directory.display();
    make_certificate(&directory);
    let serve = |(index, worker): (usize, &Node)| {
        let root = cluster.servers[index].root().display();
        let line = format!("--quiet --htdocs={root} * {QUIC} {at}/tls.key {at}/tls.pem");
        let mut command = worker.command("gtlsserver");
        let log = directory.join(format!("server{index}.log"));
        Process::start("gtlsserver", command.args(line.split(' ')), &log).unwrap()
    };
    let workers = cluster.topology.workers.iter();
    let _servers: Vec<Process> = workers.enumerate().map(serve).collect();
    let blob = random_bytes(6, 16 * MIB);
    fs::write(cluster.servers[0].root().join("blob"), &blob).unwrap();
    // Each is half-way when it is stopped, and does not notice what happens then.
    let downloads = [service(cluster, QUIC), service6(cluster, QUIC)];
    let mut downloads = downloads.map(|site| begin_download(cluster, site));
    disturb(cluster);
    for (client, file) in &mut downloads {
        let received = fs::metadata(&*file).unwrap().len();
        assert!(received < blob.len() as u64, "nothing was left to disturb");
        client.signal(Signal::SIGCONT).unwrap();
        assert!(client.wait(2 * PATIENCE).unwrap().success());
        assert!(fs::read(file).unwrap() == blob, "not what was sent");
    }
}

/// Starts a download, and stops it when a part has come to the file that is returned, too.
fn begin_download(cluster: &Cluster, site: SocketAddr) -> (Process, PathBuf) {
    let family = if site.is_ipv4() { "4" } else { "6" };
    let directory = cluster.paths.directory.join("quic").join(family);
    fs::create_dir(&directory).unwrap();
    let line = format!(
        "gtlsclient --quiet --no-quic-dump --no-http-dump --exit-on-all-streams-close \
         --download={} {} {QUIC} https://memlb/blob",
        directory.display(),
        site.ip()
    );
    let log = directory.with_extension("log");
    let mut command = program(&cluster.topology.client, &line);
    let mut client = Process::start("gtlsclient", &mut command, &log).unwrap();
    let file = directory.join("blob");
    eventually(PATIENCE, "a part of the file", || {
        fs::metadata(&file).is_ok_and(|file| file.len() > MIB as u64)
    });
    client.signal(Signal::SIGSTOP).unwrap();
    (client, file)
}
