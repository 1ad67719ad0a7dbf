//! Workers that move to another host while they serve: no connection is lost, whatever the duration of the pause.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, SocketAddrV4, TcpStream},
    time::Duration,
};

use memlb_tests::{
    Cluster,
    cli::succeed,
    migration::{Application, DOWNLOAD, PATTERN_BYTES, PATTERN_SEED, add_host, arrive, depart},
    root_test,
    transfer::random_bytes,
};

const SOON: Duration = Duration::from_secs(8);
const PORT: u16 = 9000;
const HELD: usize = 20;
const DOWNLOADS: usize = 5;
/// A move is short for this manager, on a busy machine, too.
const PATIENT: &[&str] = &["--set", "failover.down_after=20s"];
/// Longer than the default of `failover.down_after`.
const LONG: Duration = Duration::from_secs(3);

#[root_test(tc, xdp)]
fn connections_move_to_another_host_with_their_worker(attach: &str) {
    let mut testbed = Testbed::start(attach, Mode::Nat, PATIENT);
    testbed.moves();
}

#[root_test(tc, xdp)]
fn connections_of_mode_dsr_move_to_another_host_with_their_worker(attach: &str) {
    let mut testbed = Testbed::start(attach, Mode::Dsr, PATIENT);
    testbed.moves();
}

#[root_test]
fn a_paused_worker_is_kept_beyond_down_after() {
    let mut testbed = Testbed::start("tc", Mode::Nat, &[]);
    let mut clients = Clients::open(&testbed.cluster, testbed.downloads());
    succeed(&testbed.cluster, &["pause", "worker1", "--for", "1m"]);
    testbed.move_for(LONG);
    // As a hook does, before the worker's first heartbeat.
    succeed(&testbed.cluster, &["resume", "worker1"]);
    clients.check();
    testbed
        .cluster
        .wait_for_state("worker1", "up", SOON)
        .unwrap();
}

#[root_test(tc, xdp)]
fn connections_continue_when_their_worker_moves_to_another_bridge(attach: &str) {
    let mut testbed = Testbed::start(attach, Mode::Nat, PATIENT);
    let mut clients = Clients::open(&testbed.cluster, testbed.downloads());
    testbed.cluster.topology.move_cable(0).unwrap();
    clients.check();
    assert!(testbed.cluster.events_of("worker_down").unwrap().is_empty());
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nat,
    Dsr,
}

/// Two workers with an application each, and a host to which the first one can move.
struct Testbed {
    // In the order in which they end.
    application: Option<Application>,
    _other: Application,
    cluster: Cluster,
    mode: Mode,
}

impl Testbed {
    fn start(attach: &str, mode: Mode, arguments: &[&str]) -> Self {
        let mut cluster = Cluster::serving_with(|it| {
            it.attach = attach.into();
            it.direct = mode == Mode::Dsr;
            it.ports = vec![PORT];
            it.manager_arguments = arguments.iter().map(|&it| it.to_owned()).collect();
            it.agent_arguments = match mode {
                Mode::Nat => Vec::new(),
                Mode::Dsr => translation(),
            };
        });
        let prefix = cluster.paths.prefix.clone();
        let start = |index: usize| Application::start(&cluster.topology.workers[index], PORT);
        let (application, other) = (start(0).unwrap(), start(1).unwrap());
        add_host(&mut cluster.topology, &prefix).unwrap();
        if attach == "xdp" {
            cluster.topology.prepare_for_xdp().unwrap();
        }
        Self {
            application: Some(application),
            _other: other,
            cluster,
            mode,
        }
    }

    /// Moves the first worker with open connections at once, and checks that they and new ones work.
    fn moves(&mut self) {
        let mut clients = Clients::open(&self.cluster, self.downloads());
        self.move_for(Duration::ZERO);
        clients.check();
        let mut opened = connect(&self.cluster);
        echo(&mut opened).unwrap();
    }

    /// The DSR translator of the new host knows no client. It learns one from the client's next packet, and a client
    /// that downloads sends none.
    fn downloads(&self) -> usize {
        match self.mode {
            Mode::Nat => DOWNLOADS,
            Mode::Dsr => 0,
        }
    }

    fn move_for(&mut self, pause: Duration) {
        self.cluster.kill_agent(0).unwrap();
        let application = self.application.take().unwrap();
        let departed = depart(&mut self.cluster.topology, application).unwrap();
        self.cluster.start_agent(0).unwrap();
        if self.mode == Mode::Dsr {
            // A socket that is there before the DSR translator is attached answers from its own address.
            let agent = self.cluster.agents[0].as_mut().unwrap();
            let attached = "the DSR translator is attached";
            agent.wait_for_log(SOON, attached).unwrap();
        }
        let (application, moved) = arrive(&self.cluster.topology, departed, pause).unwrap();
        println!("{moved:?}");
        assert_eq!(moved.connections, HELD + self.downloads());
        self.application = Some(application);
    }
}

fn translation() -> Vec<String> {
    ["--dsr", &format!("192.168.56.101:{PORT}={PORT}")]
        .map(str::to_owned)
        .to_vec()
}

/// Clients of the first worker that expect each byte that it sends.
struct Clients {
    held: Vec<TcpStream>,
    downloads: Vec<(TcpStream, usize)>,
    pattern: Vec<u8>,
}

impl Clients {
    fn open(cluster: &Cluster, downloads: usize) -> Self {
        let held = (0..HELD).map(|_| {
            let mut stream = connect(cluster);
            echo(&mut stream).unwrap();
            stream
        });
        let downloads = (0..downloads).map(|_| {
            let mut stream = connect(cluster);
            stream.write_all(&[DOWNLOAD]).unwrap();
            (stream, 0)
        });
        let mut clients = Self {
            held: held.collect(),
            downloads: downloads.collect(),
            pattern: random_bytes(PATTERN_SEED, PATTERN_BYTES),
        };
        clients.read_on();
        clients
    }

    fn check(&mut self) {
        for held in &mut self.held {
            echo(held).unwrap();
        }
        // More than the buffers of both ends hold.
        for _ in 0..10 {
            self.read_on();
        }
    }

    fn read_on(&mut self) {
        let mut received = vec![0; 1 << 20];
        for (stream, position) in &mut self.downloads {
            stream.read_exact(&mut received).unwrap();
            for byte in &received {
                assert_eq!(*byte, self.pattern[*position]);
                *position = (*position + 1) % PATTERN_BYTES;
            }
        }
    }
}

fn connect(cluster: &Cluster) -> TcpStream {
    let service = SocketAddr::from(SocketAddrV4::new(cluster.topology.manager.address(), PORT));
    let connect = || TcpStream::connect_timeout(&service, SOON);
    let stream = cluster.topology.client.enter(connect).unwrap().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Sends a line, and waits for it to come back.
fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let line = b"still here?\n";
    stream.write_all(line)?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, line);
    Ok(())
}
