//! Managers that share service addresses: each in a namespace of its own, with keepalived, and deliberately unlike the
//! other in all that must not matter to their peers: numbers of services, workers and interfaces, names, MACs.

mod keepalived;
mod manager;
mod network;
mod traffic;

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

pub use self::{
    keepalived::{Keepalived, Transition},
    manager::Manager,
    network::{
        APPLICATION_PORT, CLIENT_GATEWAY, LOAD_PORT, PairNetwork, SERVICE_ADDRESS, Side, WEB_PORT,
        manager_ip, nat_source, worker_address,
    },
    traffic::{
        Idle, Listener, Record, StreamCounts, Streams, StreamsReport, Turnover, TurnoverReport,
    },
};
use crate::{
    cluster::binary,
    cluster_options::{worker_name, worker_port},
    command::output,
    load,
    memory_file::MemoryFile,
    migration::Application,
    namespace,
    nginx::Nginx,
    paths::{Cleanup, ClusterPaths},
    process::Process,
    wait::wait_until,
};

const AVAILABLE_KB: u64 = 400 * 1024;

/// What a [`Pair`] is made like.
#[derive(Debug, Clone)]
pub struct PairOptions {
    pub managers: usize,
    pub workers: usize,
    /// `auto`, `tc` or `xdp`.
    pub attach: String,
    /// The mode of all services.
    pub mode: String,
    /// Whether the web service is one over IPv6, too.
    pub ipv6: bool,
    /// Whether keepalived decides who has the addresses; else the test does.
    pub keepalived: bool,
    /// Whether the managers are peers of each other.
    pub peers: bool,
    /// Further arguments for `memlb manager`.
    pub manager_arguments: Vec<String>,
    /// How long a part may take to start.
    pub patience: Duration,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            managers: 2,
            workers: 2,
            attach: "tc".into(),
            mode: "nat".into(),
            ipv6: false,
            keepalived: true,
            peers: false,
            manager_arguments: Vec::new(),
            patience: Duration::from_secs(60),
        }
    }
}

/// The running system. Dropping it takes everything down.
#[derive(Debug)]
pub struct Pair {
    // In the order in which they end.
    pub managers: Vec<Manager>,
    pub agents: Vec<Option<Process>>,
    /// The web server of each worker, page `Worker1` and so on.
    pub webs: Vec<Nginx>,
    /// Servers of downloads, uploads and echoes, one on each worker.
    pub applications: Vec<Application>,
    /// Servers of short and of idle connections, one on each worker.
    pub loads: Vec<load::Server>,
    pub memory: Vec<MemoryFile>,
    pub network: PairNetwork,
    pub paths: ClusterPaths,
    pub binary: PathBuf,
    options: PairOptions,
    cleanup: Cleanup,
}

impl Pair {
    /// Starts a system under names that nothing else has, and waits until one manager is active and all have heard
    /// every worker.
    ///
    /// # Errors
    /// When a part of it does not start; the error carries what that part printed.
    pub fn start(options: &PairOptions) -> Result<Self> {
        namespace::delete_abandoned();
        ClusterPaths::clear_abandoned();
        Self::start_at(ClusterPaths::unique(), options)
    }

    /// Starts a system at `paths`, which must be free.
    ///
    /// # Errors
    /// When a part of it does not start; the error carries what that part printed.
    pub fn start_at(paths: ClusterPaths, options: &PairOptions) -> Result<Self> {
        ensure!(
            (1..=manager::MOST).contains(&options.managers),
            "from 1 to {} managers",
            manager::MOST
        );
        let binary = binary()?;
        fs::create_dir(&paths.directory)
            .with_context(|| format!("make {}", paths.directory.display()))?;
        // From here on an error must leave nothing behind. What is declared first is dropped last.
        let cleanup = Cleanup::of(&paths);
        let network = PairNetwork::create(&paths.prefix, options.managers, options.workers)?;
        if options.attach == "xdp" {
            network.prepare_for_xdp()?;
        }
        let mut pair = Self {
            managers: Vec::new(),
            agents: Vec::new(),
            webs: Vec::new(),
            applications: Vec::new(),
            loads: Vec::new(),
            memory: Vec::new(),
            network,
            paths,
            binary,
            options: options.clone(),
            cleanup,
        };
        pair.start_servers()?;
        if options.peers {
            pair.make_key()?;
        }
        for index in 0..options.managers {
            let manager = Manager::start(&pair, index)?;
            pair.managers.push(manager);
        }
        for manager in &mut pair.managers {
            manager.wait_until_ready()?;
        }
        if options.keepalived {
            pair.start_keepalived()?;
        }
        for index in 0..options.workers {
            let agent = pair.start_agent(index)?;
            pair.agents.push(Some(agent));
        }
        pair.wait_until_ready()?;
        Ok(pair)
    }

    /// The first manager is active: its keepalived hears no other when it starts.
    fn start_keepalived(&mut self) -> Result<()> {
        for (index, manager) in self.managers.iter_mut().enumerate() {
            manager.start_keepalived()?;
            let network = &self.network;
            let is_active = || network.has_address(0, SERVICE_ADDRESS).unwrap_or_default();
            if index == 0 {
                wait_until(self.options.patience, "manager1 to be active", is_active)?;
            }
        }
        Ok(())
    }

    fn start_servers(&mut self) -> Result<()> {
        for (index, worker) in self.network.workers.iter().enumerate() {
            let (name, number) = (worker_name(index), index + 1);
            let directory = self.paths.directory.join(&name);
            let page = format!("Worker{number}");
            let web = Nginx::start(worker, worker_port(index)?, &page, &directory)?;
            self.webs.push(web);
            let application = Application::start(worker, APPLICATION_PORT)?;
            self.applications.push(application);
            self.loads.push(load::Server::start(worker, LOAD_PORT)?);
            let memory = MemoryFile::create(self.paths.memory_file(number), AVAILABLE_KB)?;
            self.memory.push(memory);
        }
        Ok(())
    }

    fn make_key(&self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.args(["keygen", "--peer", "--output"]);
        output(command.arg(self.key_file())).map(drop)
    }

    /// Returns the file of the key that the managers share.
    pub fn key_file(&self) -> PathBuf {
        self.paths.directory.join("peer.key")
    }

    /// Starts the agent of the worker of that `index`, which reports to all managers.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&self, index: usize) -> Result<Process> {
        let name = worker_name(index);
        let mut command = self.network.workers[index].command(&self.binary);
        command
            .args(["agent", "--name", &name, "--memory-file"])
            .arg(self.memory[index].path());
        for manager in 0..self.options.managers {
            let address = network::manager_address(network::Side::Workers, manager);
            command.args(["--manager", &address.to_string()]);
        }
        let log = self.paths.directory.join(format!("{name}.log"));
        Process::start(&format!("memlb agent of {name}"), &mut command, &log)
    }

    fn wait_until_ready(&self) -> Result<()> {
        for manager in &self.managers {
            manager.wait_until_workers_are_up(self.options.patience)?;
        }
        if self.options.keepalived {
            self.wait_for_active(self.options.patience)?;
        }
        Ok(())
    }

    /// Returns what the system was made like.
    pub fn options(&self) -> &PairOptions {
        &self.options
    }

    /// Returns the indices of the managers that have the service address.
    pub fn active(&self) -> Vec<usize> {
        let holds = |index: &usize| {
            let held = self.network.has_address(*index, SERVICE_ADDRESS);
            held.unwrap_or_default()
        };
        (0..self.managers.len()).filter(holds).collect()
    }

    /// Waits until exactly one manager has the service address, and returns its index.
    ///
    /// # Errors
    /// When that does not come to pass within `deadline`.
    pub fn wait_for_active(&self, deadline: Duration) -> Result<usize> {
        wait_until(deadline, "one active manager", || self.active().len() == 1)?;
        let active = self.active();
        active.first().copied().context("no manager is active")
    }

    /// Waits until the manager of that `index`, and no other, has the service address.
    ///
    /// # Errors
    /// When that does not come to pass within `deadline`.
    pub fn wait_until_active(&self, index: usize, deadline: Duration) -> Result<Duration> {
        let what = format!("manager{} to be active alone", index + 1);
        wait_until(deadline, &what, || self.active() == [index])
            .with_context(|| format!("active: {:?}", self.active()))
    }

    /// Waits until every manager knows all that the others know.
    ///
    /// # Errors
    /// When that does not come to pass within `deadline`.
    pub fn wait_until_complete(&self, deadline: Duration) -> Result<()> {
        let mut managers = self.managers.iter();
        managers.try_for_each(|manager| manager.wait_until_complete(deadline).map(drop))
    }

    /// Returns the service of that `port`.
    pub fn service(port: u16) -> SocketAddr {
        SocketAddrV4::new(SERVICE_ADDRESS, port).into()
    }

    /// Leaves everything running; [`Pair::clear`] ends it.
    pub fn keep(self) {
        self.cleanup.keep();
        self.managers.into_iter().for_each(Manager::keep);
        self.agents.into_iter().flatten().for_each(Process::keep);
        self.webs.into_iter().for_each(|web| web.process.keep());
        self.network.keep();
    }

    /// Ends the system at `paths` that was kept, or what one has left that ended badly.
    ///
    /// # Errors
    /// When files or pins cannot be removed.
    pub fn clear(paths: &ClusterPaths) -> Result<()> {
        PairNetwork::delete(&paths.prefix);
        paths.clear()
    }
}
