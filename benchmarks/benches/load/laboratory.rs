//! A running balancer in namespaces of its own, so that connection tracking and TIME_WAIT of one balancer do not affect
//! another.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use memlb_tests::{
    Cluster, ClusterOptions, Connection, Node, Process, Shape, Topology, balancers,
    cluster_options::{SERVICE_PORT, worker_port},
    load::{self, Server},
    wait_for,
};
use serde::Serialize;
use tempfile::TempDir;

use crate::scenario::{Kind, Scenario};

/// The manager's address, and a second one for NAT.
const MANAGER: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 101);
const SECOND_SOURCE: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 102);
/// Open files of HAProxy's own, and the connections for which one process of it is made ready at most.
const HAPROXY_FILES: u64 = 500;
const MOST_AT_HAPROXY: u64 = 50_000;
const PATIENCE: Duration = Duration::from_secs(10);
const ONE_TRY: Duration = Duration::from_secs(1);

/// The compared balancers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Balancer {
    /// No balancer at all: the client connects to the workers in turn
    Direct,
    /// nftables: DNAT and masquerade
    Nftables,
    /// HAProxy in TCP mode
    HaproxyTcp,
    /// IPVS: NAT, the workers in a network behind it; few kernels have it
    Ipvs,
    /// memlb, attached by TC
    MemlbTc,
    /// memlb, attached by XDP
    MemlbXdp,
    /// memlb in mode dsr
    MemlbDsr,
    /// memlb in mode routed, the workers in a network behind it
    MemlbRouted,
    /// memlb, attached by TC, with two addresses for NAT
    MemlbTwoSources,
}

impl Balancer {
    pub const USUAL: [Self; 4] = [
        Self::Direct,
        Self::Nftables,
        Self::HaproxyTcp,
        Self::MemlbTc,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::Direct => "no balancer",
            Self::Nftables => "nftables, DNAT",
            Self::HaproxyTcp => "HAProxy, TCP mode",
            Self::Ipvs => "IPVS, NAT",
            Self::MemlbTc => "memlb, TC",
            Self::MemlbXdp => "memlb, XDP",
            Self::MemlbDsr => "memlb, dsr",
            Self::MemlbRouted => "memlb, routed",
            Self::MemlbTwoSources => "memlb, two sources",
        }
    }
}

/// A client, a manager and workers with servers. Dropping it removes it.
#[derive(Debug)]
pub struct Laboratory {
    /// The destinations of clients.
    pub targets: Vec<SocketAddrV4>,
    /// The sender of a flood, if the scenario has one.
    pub attacker: Option<Node>,
    // In the order of their end.
    _servers: Vec<Server>,
    system: System,
}

#[derive(Debug)]
enum System {
    Memlb(Box<Cluster>),
    Other {
        _balancer: Vec<Process>,
        topology: Box<Topology>,
        _files: TempDir,
    },
}

impl Laboratory {
    /// Starts all parts for a `scenario`, memlb at its defaults with these `settings`, and checks that a server
    /// answers. A process may have `open_files`.
    ///
    /// # Errors
    /// A part does not start.
    pub fn build(
        balancer: Balancer,
        scenario: &Scenario,
        settings: &[String],
        open_files: u64,
    ) -> Result<Self> {
        let workers = scenario.workers;
        let system = match balancer {
            Balancer::Direct | Balancer::Nftables | Balancer::HaproxyTcp | Balancer::Ipvs => {
                other_balancer(balancer, scenario, open_files)?
            }
            Balancer::MemlbTc
            | Balancer::MemlbXdp
            | Balancer::MemlbDsr
            | Balancer::MemlbRouted
            | Balancer::MemlbTwoSources => memlb(balancer, workers, settings)?,
        };
        let topology = system.topology();
        topology.disable_bridge_netfilter()?;
        let attacker = match scenario.kind {
            Kind::Flood { .. } => Some(load::prepare_flood(topology)?),
            Kind::Rate { .. } | Kind::AtOnce { .. } => {
                load::prepare(topology)?;
                None
            }
        };
        let mut servers = Vec::new();
        for (index, worker) in topology.workers.iter().enumerate() {
            servers.push(Server::start(worker, worker_port(index)?)?);
        }
        let targets = match balancer {
            Balancer::Direct => addresses(topology)?,
            _ => vec![SocketAddrV4::new(topology.manager.address(), SERVICE_PORT)],
        };
        let laboratory = Self {
            targets,
            attacker,
            _servers: servers,
            system,
        };
        laboratory
            .check()
            .with_context(|| format!("check the laboratory of {}", balancer.label()))?;
        Ok(laboratory)
    }

    pub fn topology(&self) -> &Topology {
        self.system.topology()
    }

    /// Returns memlb's count of `ports_exhausted`; `None` for other balancers.
    ///
    /// # Errors
    /// The manager does not answer.
    pub fn ports_exhausted(&self) -> Result<Option<u64>> {
        match &self.system {
            System::Memlb(cluster) => {
                let status = cluster.status()?;
                Ok(status["verdicts"]["ports_exhausted"]["packets"]
                    .as_u64()
                    .or(Some(0)))
            }
            System::Other { .. } => Ok(None),
        }
    }

    fn check(&self) -> Result<()> {
        let client = &self.topology().client;
        for target in &self.targets {
            wait_for(PATIENCE, "a server's answer", || {
                let connection = Connection::open(client, (*target).into(), ONE_TRY).ok()?;
                load::answers(connection.stream()).then_some(())
            })?;
        }
        Ok(())
    }
}

impl System {
    fn topology(&self) -> &Topology {
        match self {
            Self::Memlb(cluster) => &cluster.topology,
            Self::Other { topology, .. } => topology,
        }
    }
}

fn memlb(balancer: Balancer, workers: usize, settings: &[String]) -> Result<System> {
    // The other balancers use round robin, too.
    let mut own = vec!["service.web.policy=round_robin".to_owned()];
    let mut manager_addresses = Vec::new();
    if balancer == Balancer::MemlbTwoSources {
        own.push(format!(
            "manager.nat_sources=[\"{MANAGER}\", \"{SECOND_SOURCE}\"]"
        ));
        manager_addresses.push(SECOND_SOURCE);
    }
    let settings = own.into_iter().chain(settings.iter().cloned());
    let attach = match balancer {
        Balancer::MemlbXdp => "xdp",
        _ => "tc",
    };
    let is_routed = balancer == Balancer::MemlbRouted;
    let mut cluster = Cluster::start(&ClusterOptions {
        shape: match is_routed {
            true => Shape::TwoArm,
            false => Shape::OneArm,
        },
        available_kb: vec![400 * 1024; workers],
        attach: attach.into(),
        direct: balancer == Balancer::MemlbDsr,
        routed: is_routed,
        manager_addresses,
        manager_arguments: settings
            .flat_map(|setting| ["--set".to_owned(), setting])
            .collect(),
        ..ClusterOptions::default()
    })?;
    // The load's own servers need their ports.
    cluster.servers.clear();
    Ok(System::Memlb(Box::new(cluster)))
}

fn other_balancer(balancer: Balancer, scenario: &Scenario, open_files: u64) -> Result<System> {
    let files = tempfile::Builder::new()
        .prefix("memlb-bench-")
        .tempdir()
        .context("make a directory for the balancer's files")?;
    let shape = match balancer {
        Balancer::Ipvs => Shape::TwoArm,
        _ => Shape::OneArm,
    };
    let topology = Topology::create(shape, scenario.workers)?;
    let workers = addresses(&topology)?;
    let mut processes = Vec::new();
    match balancer {
        Balancer::Nftables => balancers::translate(&topology, &workers, files.path())?,
        Balancer::HaproxyTcp => {
            processes = haproxies(scenario, &topology, &workers, open_files, files.path())?;
        }
        Balancer::Ipvs => {
            balancers::forward(&topology)?;
            let service = SocketAddrV4::new(topology.manager.address(), SERVICE_PORT);
            balancers::balance_by_ipvs(&topology.manager, service, &workers)?;
        }
        _ => {}
    }
    Ok(System::Other {
        _balancer: processes,
        topology: Box::new(topology),
        _files: files,
    })
}

/// Starts enough HAProxy processes at one port: each connection needs two open files.
fn haproxies(
    scenario: &Scenario,
    topology: &Topology,
    workers: &[SocketAddrV4],
    open_files: u64,
    directory: &Path,
) -> Result<Vec<Process>> {
    let each = ((open_files - HAPROXY_FILES) / 2).min(MOST_AT_HAPROXY);
    // The kernel does not distribute connections evenly.
    let wanted = scenario.connections() * 5 / 4;
    let start = |number: u64| {
        let directory = directory.join(number.to_string());
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        balancers::haproxy(topology, workers, each, &directory)
    };
    (0..=wanted / each).map(start).collect()
}

fn addresses(topology: &Topology) -> Result<Vec<SocketAddrV4>> {
    let workers = topology.workers.iter().enumerate();
    workers
        .map(|(index, worker)| Ok(SocketAddrV4::new(worker.address(), worker_port(index)?)))
        .collect()
}
