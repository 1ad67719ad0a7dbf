//! A running contender in namespaces of its own, so that netfilter rules and connection tracking of one contender do
//! not slow another.

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use memlb_tests::{
    Cluster, ClusterOptions, Nginx, Node, Process, Shape, Topology,
    balancers::haproxy,
    client::get,
    cluster_options::{SERVICE_PORT, worker_name, worker_port},
    wait_for,
};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    balancers::{self, Proxy, Style},
    contender::Contender,
    wrk::BULK_PATH,
};

const WORKERS: usize = 2;
const BULK_BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// A client, a manager and two workers. Every contender sends all connections to the first worker, as policy `memory`
/// would. Dropping it removes it.
#[derive(Debug)]
pub struct Laboratory {
    pub contender: Contender,
    system: System,
    /// Addresses of the workers' web servers.
    workers: Vec<SocketAddrV4>,
}

#[derive(Debug)]
enum System {
    Memlb(Box<Cluster>),
    Other(Box<OtherBalancer>),
}

/// In the order of removal.
#[derive(Debug)]
struct OtherBalancer {
    balancer: Option<Process>,
    proxy: Option<Proxy>,
    servers: Vec<Nginx>,
    topology: Topology,
    /// Removed when it is dropped.
    _files: TempDir,
}

impl Laboratory {
    /// Starts all parts and checks that clients get the first worker's page.
    ///
    /// # Errors
    /// A part does not start.
    pub fn build(contender: Contender) -> Result<Self> {
        let system = match contender {
            Contender::MemlbTc => memlb("tc", Mode::Nat)?,
            Contender::MemlbXdp => memlb("xdp", Mode::Nat)?,
            Contender::MemlbDsr => memlb("tc", Mode::Dsr)?,
            Contender::MemlbRouted => memlb("tc", Mode::Routed)?,
            _ => System::Other(Box::new(OtherBalancer::build(contender)?)),
        };
        let workers = addresses(system.topology())?;
        let laboratory = Self {
            contender,
            system,
            workers,
        };
        laboratory.topology().disable_bridge_netfilter()?;
        for server in laboratory.servers() {
            let body = server.root().join(BULK_PATH.trim_start_matches('/'));
            fs::write(&body, random_bytes(BULK_BYTES))
                .with_context(|| format!("write {}", body.display()))?;
        }
        laboratory.check().with_context(|| {
            let (label, log) = (contender.label(), laboratory.balancer_log());
            format!("check the laboratory of {label}, whose balancer printed: {log}")
        })?;
        Ok(laboratory)
    }

    pub fn client(&self) -> &Node {
        &self.topology().client
    }

    /// Returns the address for clients.
    pub fn target(&self) -> SocketAddr {
        match self.contender {
            Contender::Direct | Contender::Router => self.worker(0).into(),
            _ => SocketAddrV4::new(self.topology().manager.address(), SERVICE_PORT).into(),
        }
    }

    /// Returns the address of the web server of the worker of that `index`.
    pub fn worker(&self, index: usize) -> SocketAddrV4 {
        self.workers[index]
    }

    pub fn servers(&self) -> &[Nginx] {
        match &self.system {
            System::Memlb(cluster) => &cluster.servers,
            System::Other(other) => &other.servers,
        }
    }

    pub fn cluster(&self) -> Option<&Cluster> {
        match &self.system {
            System::Memlb(cluster) => Some(cluster),
            System::Other(_) => None,
        }
    }

    /// Returns where and how memlb is attached, and the reason.
    ///
    /// # Errors
    /// The manager does not answer.
    pub fn attachment(&self) -> Result<Option<Value>> {
        self.cluster()
            .map(|cluster| Ok(cluster.status()?["interfaces"].take()))
            .transpose()
    }

    /// Runs `work`. Meanwhile, the system of 2018 reloads its configuration with the worker that `decide` returns.
    /// Returns the number of reloads, too.
    ///
    /// # Errors
    /// A reload failed.
    pub fn during<T>(
        &self,
        decide: impl Fn(u32) -> SocketAddrV4 + Send,
        work: impl FnOnce() -> T,
    ) -> Result<(T, u32)> {
        match &self.system {
            System::Other(other) if self.contender == Contender::Nginx2018 => {
                let proxy = other.proxy.as_ref().context("the proxy has been started")?;
                proxy.reload_during(decide, work)
            }
            _ => Ok((work(), 0)),
        }
    }

    fn topology(&self) -> &Topology {
        self.system.topology()
    }

    /// Returns the balancer's process, if it has one.
    pub fn balancer(&self) -> Option<&Process> {
        match &self.system {
            System::Memlb(cluster) => cluster.manager.as_ref(),
            System::Other(other) => other.balancer.as_ref(),
        }
    }

    fn balancer_log(&self) -> String {
        self.balancer().map_or("nothing".into(), Process::log)
    }

    fn check(&self) -> Result<()> {
        let page = wait_for(PATIENCE, "the first worker's page", || {
            get(self.client(), self.target(), "/", PATIENCE).ok()
        })?;
        ensure!(
            page.first_line() == "Worker1",
            "the page is {:?}",
            page.first_line()
        );
        if self.contender == Contender::Router {
            ensure!(
                self.forwarded_packets()? > 0,
                "the packets do not pass the router"
            );
        }
        Ok(())
    }

    fn forwarded_packets(&self) -> Result<u64> {
        const COUNTER: &str = "IpForwDatagrams";
        let manager = &self.topology().manager;
        let printed = manager.run("nstat", &["--zeros", "--noupdate", COUNTER])?;
        printed
            .lines()
            .filter_map(|line| line.strip_prefix(COUNTER))
            .find_map(|rest| rest.split_whitespace().next()?.parse().ok())
            .context("nstat prints no number of forwarded packets")
    }
}

impl System {
    fn topology(&self) -> &Topology {
        match self {
            Self::Memlb(cluster) => &cluster.topology,
            Self::Other(other) => &other.topology,
        }
    }
}

impl OtherBalancer {
    fn build(contender: Contender) -> Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("memlb-bench-")
            .tempdir()
            .context("make a directory for the servers' files")?;
        let topology = Topology::create(Shape::OneArm, WORKERS)?;
        let mut servers = Vec::new();
        for (index, worker) in topology.workers.iter().enumerate() {
            servers.push(Nginx::start(
                worker,
                worker_port(index)?,
                &format!("Worker{}", index + 1),
                &files.path().join(worker_name(index)),
            )?);
        }
        let worker = *addresses(&topology)?.first().context("there is a worker")?;
        let mut proxy = None;
        let mut balancer = None;
        let mut start = |style| -> Result<()> {
            let (started, process) = Proxy::start(style, &topology, worker, files.path())?;
            proxy = Some(started);
            balancer = Some(process);
            Ok(())
        };
        match contender {
            Contender::Nginx2018 => start(Style::Of2018)?,
            Contender::NginxKeepalive => start(Style::KeptAlive)?,
            Contender::HaproxyTcp => {
                balancer = Some(haproxy(&topology, &[worker], 4_000, files.path())?);
            }
            Contender::Nftables => balancers::translate(&topology, worker, files.path())?,
            Contender::Ipvs => balancers::balance_by_ipvs(&topology, worker)?,
            Contender::Router => balancers::route_through_manager(&topology)?,
            Contender::Direct
            | Contender::MemlbTc
            | Contender::MemlbXdp
            | Contender::MemlbDsr
            | Contender::MemlbRouted => {}
        }
        Ok(Self {
            balancer,
            proxy,
            servers,
            topology,
            _files: files,
        })
    }
}

/// How packets reach the workers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nat,
    Dsr,
    Routed,
}

fn memlb(attach: &str, mode: Mode) -> Result<System> {
    let cluster = Cluster::start(&ClusterOptions {
        attach: attach.into(),
        direct: mode == Mode::Dsr,
        routed: mode == Mode::Routed,
        ..ClusterOptions::default()
    })?;
    if mode == Mode::Routed {
        balancers::answer_through_manager(&cluster.topology)?;
    }
    Ok(System::Memlb(Box::new(cluster)))
}

fn addresses(topology: &Topology) -> Result<Vec<SocketAddrV4>> {
    let workers = topology.workers.iter().enumerate();
    workers
        .map(|(index, worker)| Ok(SocketAddrV4::new(worker.address(), worker_port(index)?)))
        .collect()
}

/// Bytes that do not repeat, in case anything on the way compresses or caches.
fn random_bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        // xorshift32, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}
