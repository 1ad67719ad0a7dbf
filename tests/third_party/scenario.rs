//! The cluster of the third-party programs, and the changes during their connections.

use std::{
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use memlb_tests::{
    Cluster, ClusterOptions, Namespace, command::output, configuration::service_name, eventually,
    wait_for,
};
use socket2::SockRef;

pub const SOON: Duration = Duration::from_secs(10);
/// How long a single step of a peer may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// How long a peer may hear nothing: the other one waits while [`disturb`] restarts the manager.
const SILENCE: Duration = Duration::from_secs(90);
pub const MIB: usize = 1 << 20;

/// The most that any program may take.
const LIMIT: &str = "90";

/// Runs `scenario` with services at 80 and at `ports`.
pub fn run_scenario(attach: &str, ports: &[u16], scenario: impl FnOnce(&mut Cluster)) {
    let ports = ports.into();
    run_scenario_with(
        attach,
        ClusterOptions {
            ports,
            ..ClusterOptions::default()
        },
        scenario,
    );
}

/// Runs `scenario` in a cluster with those `options`.
pub fn run_scenario_with(
    attach: &str,
    options: ClusterOptions,
    scenario: impl FnOnce(&mut Cluster),
) {
    let mut cluster = Cluster::start(&ClusterOptions {
        attach: attach.into(),
        // An automatic one would be learnt again at each restart.
        manager_arguments: vec!["--threshold".into(), "90MiB".into()],
        ..options
    })
    .unwrap();
    wait_for_selection(&cluster, "worker1");
    scenario(&mut cluster);
}

/// Moves every service to `worker2`, kills the manager, and starts it again.
pub fn disturb(cluster: &mut Cluster) {
    cluster.memory[1].set_available_kb(650 * 1024).unwrap();
    wait_for_selection(cluster, "worker2");
    cluster.restart_manager().unwrap();
    wait_for_selection(cluster, "worker2");
}

/// Makes `tls.key` and, for it, `tls.pem` in a directory.
pub fn make_certificate(directory: &Path) {
    let at = directory.display();
    let certificate = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=memlb \
         -keyout {at}/tls.key -out {at}/tls.pem"
    );
    output(Command::new("openssl").args(certificate.split_whitespace())).unwrap();
}

/// Waits until every service's new connections go to `worker`.
pub fn wait_for_selection(cluster: &Cluster, worker: &str) {
    cluster.assert_status(SOON, &format!("{worker} to be selected"), |status| {
        let mut services = status["services"].as_array().into_iter().flatten();
        services.all(|service| service["selected"] == worker)
    });
}

/// Returns the address at which clients find the service at `port`.
pub fn service(cluster: &Cluster, port: u16) -> SocketAddr {
    SocketAddrV4::new(cluster.topology.manager.address(), port).into()
}

/// Returns the address at which clients find that service over IPv6.
pub fn service6(cluster: &Cluster, port: u16) -> SocketAddr {
    (cluster.topology.manager.address6(), port).into()
}

/// Returns `worker1`'s `counter` for the TCP service at `port`.
pub fn worker1(cluster: &Cluster, port: u16, counter: &str) -> u64 {
    let name = service_name(service(cluster, port), "tcp");
    let status = cluster.status().unwrap();
    let services = status["services"].as_array().unwrap();
    let service = services.iter().find(|service| service["name"] == *name);
    let backends = service.unwrap()["backends"].as_array().unwrap();
    let worker = backends
        .iter()
        .find(|backend| backend["name"] == "worker1")
        .unwrap();
    worker[counter].as_u64().unwrap()
}

/// Waits until `worker1` has that many open connections of the service at `port`.
pub fn wait_for_flows(cluster: &Cluster, port: u16, flows: u64) {
    eventually(PATIENCE, &format!("{flows} open connections"), || {
        worker1(cluster, port, "flows") == flows
    });
}

/// Returns a command line that works in `namespace`, for a while at most.
pub fn program(namespace: &Namespace, line: &str) -> Command {
    let mut command = namespace.command("timeout");
    command.arg(LIMIT).args(line.split_whitespace());
    command
}

/// Listens in `namespace`; a client must come within [`PATIENCE`].
pub fn listen(namespace: &Namespace, port: u16) -> TcpListener {
    let listener = namespace
        .enter(|| TcpListener::bind(("0.0.0.0", port)))
        .unwrap()
        .unwrap();
    // Of a listening socket, it bounds how long it waits for a client.
    SockRef::from(&listener)
        .set_read_timeout(Some(PATIENCE))
        .unwrap();
    listener
}

/// Takes a client in.
pub fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    with_patience(stream)
}

/// Connects from `namespace`.
pub fn connect(namespace: &Namespace, server: SocketAddr) -> TcpStream {
    let connect = || TcpStream::connect_timeout(&server, PATIENCE);
    with_patience(namespace.enter(connect).unwrap().unwrap())
}

fn with_patience(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Waits until something listens at `port` in `namespace`.
pub fn wait_for_server(namespace: &Namespace, port: u16) {
    wait_for(PATIENCE, &format!("a server at port {port}"), || {
        let connect = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        namespace.enter(connect).unwrap().then_some(())
    })
    .unwrap();
}
