//! Managers behind a router that spreads connections over them (ECMP) by BIRD, and workers behind the same router.
//!
//! ```text
//! client ── router ── managers: 192.0.2.101, .102, … announce 203.0.113.80 and 198.51.100.101, .102, …
//!              └───── workers: 10.20.0.11, .12, …
//! ```
//! The configurations of BIRD and the program that puts addresses on the bridge are those of `scripts/ha`.

mod held;
mod manager;
mod network;
mod router;

use std::{fs, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

pub use self::{
    held::Held,
    manager::EcmpManager,
    network::{Network, SERVICE4, SERVICE6},
};
use crate::{
    client::Connection,
    cluster::{self, start_server},
    cluster_options::{SERVICE_PORT, worker_name},
    memory_file::MemoryFile,
    namespace,
    nginx::Nginx,
    paths::{Cleanup, ClusterPaths},
    process::Process,
    wait::wait_until,
};

const WORKERS: usize = 2;
const AVAILABLE_KB: u64 = 450 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

/// The running system. Dropping it takes everything down.
#[derive(Debug)]
pub struct Laboratory {
    // In the order in which they end.
    pub managers: Vec<EcmpManager>,
    _agents: Vec<Process>,
    _router: Process,
    pub servers: Vec<Nginx>,
    _memory: Vec<MemoryFile>,
    pub network: Network,
    pub directory: PathBuf,
    _cleanup: Cleanup,
}

impl Laboratory {
    /// Starts so many managers. Returns when the router spreads connections over all of them.
    ///
    /// # Errors
    /// When a part does not start; the error carries what that part printed.
    pub fn start(managers: u8) -> Result<Self> {
        namespace::delete_abandoned();
        ClusterPaths::clear_abandoned();
        let binary = cluster::binary()?;
        let paths = ClusterPaths::unique();
        fs::create_dir(&paths.directory)
            .with_context(|| format!("make {}", paths.directory.display()))?;
        let cleanup = Cleanup::of(&paths);
        let network = Network::create(&paths.prefix, managers, WORKERS)?;
        let router = router::start(&network.router, &paths.directory)?;
        let started = network.workers.iter().enumerate();
        let started = started.map(|(index, it)| start_server(it, index, &paths, AVAILABLE_KB));
        let (servers, memory) = started.collect::<Result<(Vec<_>, Vec<_>)>>()?;
        let key = manager::make_peer_key(&binary, &paths.directory)?;
        let started = network.managers.iter().map(|node| {
            let mut manager = EcmpManager::new(node, managers, WORKERS, &binary, &key, &paths)?;
            manager.start()?;
            Ok(manager)
        });
        let mut managers = started.collect::<Result<Vec<_>>>()?;
        for manager in &mut managers {
            manager.wait_until_ready()?;
        }
        let mut agents = Vec::new();
        for (index, worker) in network.workers.iter().enumerate() {
            let mut command = worker.command(&binary);
            command.args(["agent", "--name", &worker_name(index), "--memory-file"]);
            command.arg(memory[index].path());
            for manager in &managers {
                command.arg("--manager").arg(manager.address4().to_string());
            }
            let log = paths.directory.join(format!("agent{index}.log"));
            agents.push(Process::start("memlb agent", &mut command, &log)?);
        }
        let laboratory = Self {
            managers,
            _agents: agents,
            _router: router,
            servers,
            _memory: memory,
            network,
            directory: paths.directory,
            _cleanup: cleanup,
        };
        for address in [SERVICE4, SERVICE6] {
            laboratory.wait_for_routes(address.parse()?, laboratory.managers.len(), PATIENCE)?;
        }
        for manager in &laboratory.managers {
            manager.wait_for_peers(PATIENCE)?;
        }
        Ok(laboratory)
    }

    /// Returns where clients ask.
    pub fn service(&self) -> Result<std::net::SocketAddr> {
        Ok((SERVICE4.parse::<IpAddr>()?, SERVICE_PORT).into())
    }

    /// Opens a connection from the client.
    ///
    /// # Errors
    /// When the service does not answer.
    pub fn connect(&self, address: &str, patience: Duration) -> Result<Connection> {
        let service = (address.parse::<IpAddr>()?, SERVICE_PORT).into();
        Connection::open(&self.network.client, service, patience)
    }

    /// Waits until the router sends packets for `address` to so many managers, and returns how long that took.
    ///
    /// # Errors
    /// When it does not within `deadline`; the error has the routes and what the managers printed.
    pub fn wait_for_routes(
        &self,
        address: IpAddr,
        managers: usize,
        deadline: Duration,
    ) -> Result<Duration> {
        let what = format!("{managers} routes to {address}");
        wait_until(deadline, &what, || {
            router::next_hops(&self.network.router, address).is_ok_and(|it| it.len() == managers)
        })
        .with_context(|| format!("{:?}", router::next_hops(&self.network.router, address)))
    }

    /// Returns the managers to which the router sends packets for `address`.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn next_hops(&self, address: &str) -> Result<Vec<IpAddr>> {
        router::next_hops(&self.network.router, address.parse()?)
    }

    /// Returns the manager to which the router sends each of `connections` TCP connections of the client, by the
    /// client's port, as its routes are now.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn spread(&self, connections: u16) -> Result<Vec<IpAddr>> {
        router::spread(&self.network.router, connections)
    }
}
