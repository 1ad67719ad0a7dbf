//! A complete running system: a network, a web server on every node, the agents and the manager.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, SocketAddrV4},
    os::unix::{fs::DirBuilderExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    cluster_options::{ClusterOptions, FALLBACK_PORT, SERVICE_PORT, worker_name, worker_port},
    command::output,
    configuration,
    memory_file::MemoryFile,
    namespace::{self, Namespace},
    nginx::Nginx,
    paths::{Cleanup, ClusterPaths},
    process::Process,
    topology::{Topology, add_addresses},
    wait::wait_until,
};

/// The variable with the `memlb` binary to test; the default is the one from `cargo xtask build`.
pub const BINARY: &str = "MEMLB_BINARY";

const HEARTBEAT_PORT: u16 = 9999;

/// The running system. Dropping it takes everything down.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they end.
    pub manager: Option<Process>,
    pub agents: Vec<Option<Process>>,
    /// The web server of each worker, page `Worker1` at port 8081 and so on.
    pub servers: Vec<Nginx>,
    /// The manager's own server, page `Manager`.
    pub fallback: Nginx,
    pub memory: Vec<MemoryFile>,
    pub topology: Topology,
    pub paths: ClusterPaths,
    pub binary: PathBuf,
    manager_arguments: Vec<String>,
    agent_arguments: Vec<String>,
    direct: bool,
    patience: Duration,
    /// Where the key of each worker is, if they have keys.
    keys: Option<PathBuf>,
    cleanup: Cleanup,
}

impl Cluster {
    /// Starts a system with unique names.
    ///
    /// # Errors
    /// When a part of it does not start; the error carries what that part printed.
    pub fn start(options: &ClusterOptions) -> Result<Self> {
        namespace::delete_abandoned();
        ClusterPaths::clear_abandoned();
        Self::start_at(ClusterPaths::unique(), options)
    }

    /// Starts a system, and waits until `worker1` serves its clients.
    ///
    /// # Errors
    /// When a part of it does not start, or clients get another page.
    pub fn start_serving(options: &ClusterOptions) -> Result<Self> {
        let cluster = Self::start(options)?;
        cluster.wait_for_page("Worker1", options.patience)?;
        Ok(cluster)
    }

    /// Starts a system for a test, with the default options as changed by `change`.
    ///
    /// # Panics
    /// When a part of it does not start.
    #[track_caller]
    pub fn with(change: impl FnOnce(&mut ClusterOptions)) -> Self {
        let mut options = ClusterOptions::default();
        change(&mut options);
        Self::start(&options).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// Starts a system like [`Self::with`], and waits until `worker1` serves its clients.
    ///
    /// # Panics
    /// When a part of it does not start, or clients get another page.
    #[track_caller]
    pub fn serving_with(change: impl FnOnce(&mut ClusterOptions)) -> Self {
        let mut options = ClusterOptions::default();
        change(&mut options);
        Self::start_serving(&options).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// Starts a system at `paths`, which must be free. Returns when the
    /// manager is ready and has heard every worker.
    ///
    /// # Errors
    /// When a part of it does not start; the error carries what that part printed.
    pub fn start_at(paths: ClusterPaths, options: &ClusterOptions) -> Result<Self> {
        let binary = binary()?;
        // Fails where another system is.
        fs::create_dir(&paths.directory)
            .with_context(|| format!("make {}", paths.directory.display()))?;
        // From here on an error must leave nothing behind. What is declared
        // first is dropped last.
        let cleanup = Cleanup::of(&paths);
        let workers = options.available_kb.len();
        let topology = Topology::create_as(&paths.prefix, options.shape, workers)?;
        if options.attach == "xdp" {
            topology.prepare_for_xdp()?;
        }
        let last = topology.manager.interfaces().last();
        for address in &options.manager_addresses {
            let interface = last.context("the manager has an interface")?;
            add_addresses(&topology.manager, interface, *address)?;
        }
        let fallback = Nginx::start(
            &topology.manager,
            FALLBACK_PORT,
            "Manager",
            &paths.directory.join("manager"),
        )?;
        let started = topology.workers.iter().enumerate();
        let started =
            started.map(|(index, it)| start_server(it, index, &paths, options.available_kb[index]));
        let (servers, memory) = started.collect::<Result<(Vec<_>, Vec<_>)>>()?;
        let configuration = match &options.configuration {
            Some(file) => file.clone(),
            None => configuration::write(&topology, &paths, options)?,
        };
        let manager_arguments = manager_arguments(&configuration, &paths, options);
        let keys = paths.keys();
        if options.authentication.is_some() {
            make_keys(&binary, &keys, workers)?;
        }
        let mut cluster = Self {
            manager: None,
            agents: topology.workers.iter().map(|_| None).collect(),
            servers,
            fallback,
            memory,
            manager_arguments,
            agent_arguments: options.agent_arguments.clone(),
            direct: options.direct,
            patience: options.patience,
            keys: options.authentication.map(|_| keys),
            topology,
            paths,
            binary,
            cleanup,
        };
        cluster.start_manager()?;
        if !options.agents {
            return Ok(cluster);
        }
        for index in 0..workers {
            cluster.start_agent(index)?;
        }
        let names: Vec<String> = (0..workers).map(worker_name).collect();
        cluster.wait_for_status(options.patience, "every worker to be up", |status| {
            all_up(status, &names)
        })?;
        Ok(cluster)
    }

    /// Starts the manager, which must not be running, and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready in time; the error carries what it printed.
    pub fn start_manager(&mut self) -> Result<()> {
        let mut command = self.manager_command();
        self.start_manager_by(&mut command)
    }

    /// Starts the manager by a changed [`Cluster::manager_command`], and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready in time; the error carries what it printed.
    pub fn start_manager_by(&mut self, command: &mut Command) -> Result<()> {
        let log = self.paths.directory.join("manager.log");
        let manager = self
            .manager
            .insert(Process::start("memlb manager", command, &log)?);
        manager.wait_for_log(self.patience, "ready")
    }

    /// Starts the agent of the worker of that `index`, which must not be running.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, index: usize) -> Result<()> {
        let name = worker_name(index);
        let mut command = self.agent_command(index, self.heartbeat_address());
        let log = self.paths.directory.join(format!("{name}.log"));
        let agent = Process::start(&format!("memlb agent of {name}"), &mut command, &log)?;
        self.agents[index] = Some(agent);
        Ok(())
    }

    /// Returns the command that starts the manager; further settings may be appended.
    pub fn manager_command(&self) -> Command {
        self.configured("manager")
    }

    /// Returns a `memlb` command on the manager's node that is told the manager's configuration.
    pub fn configured(&self, verb: &str) -> Command {
        let mut command = self.topology.manager.command(&self.binary);
        command.arg(verb).args(&self.manager_arguments);
        command
    }

    /// Returns the command that starts the agent of the worker of that
    /// `index`, sending to `manager`.
    pub fn agent_command(&self, index: usize, manager: SocketAddr) -> Command {
        let mut command = self.topology.workers[index].command(&self.binary);
        command
            .args(["agent", "--name", &worker_name(index), "--manager"])
            .arg(manager.to_string())
            .arg("--memory-file")
            .arg(self.memory[index].path())
            .args(&self.agent_arguments);
        if let Some(key) = self.key_file(index) {
            command.arg("--key").arg(key);
        }
        if self.direct {
            let (service, server) = (self.service(), self.servers[index].port());
            let pins = self.agent_pins(index);
            command.arg("--dsr").arg(format!("{service}={server}"));
            command.arg("--pin-path").arg(pins);
        }
        command
    }

    /// Returns where the agent of the worker of that `index` pins its DSR translator.
    pub fn agent_pins(&self, index: usize) -> PathBuf {
        self.paths
            .pin_path
            .join(self.topology.workers[index].name())
    }

    /// Returns the file of the key of the worker of that `index`, if the workers have keys.
    pub fn key_file(&self, index: usize) -> Option<PathBuf> {
        let keys = self.keys.as_ref()?;
        Some(keys.join(worker_name(index)).with_extension("key"))
    }

    /// Kills the manager with `SIGKILL`.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill_manager(&mut self) -> Result<()> {
        self.manager
            .take()
            .context("no manager has been started")?
            .kill()
    }

    /// Kills the manager, and starts another.
    ///
    /// # Errors
    /// When none is running, or the other does not start.
    pub fn restart_manager(&mut self) -> Result<()> {
        self.kill_manager()?;
        self.start_manager()
    }

    /// Kills the agent of the worker of that `index` with `SIGKILL`.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill_agent(&mut self, index: usize) -> Result<()> {
        self.agents[index]
            .take()
            .context("no such agent has been started")?
            .kill()
    }

    /// Returns the address of the service.
    pub fn service(&self) -> SocketAddr {
        SocketAddrV4::new(self.topology.manager.address(), SERVICE_PORT).into()
    }

    /// Returns the address to which the workers send heartbeats.
    pub fn heartbeat_address(&self) -> SocketAddr {
        let manager = &self.topology.manager;
        let address = manager.addresses().last().unwrap_or(manager.address());
        SocketAddrV4::new(address, HEARTBEAT_PORT).into()
    }

    /// Returns a `memlb` command that works on this system's manager from the manager's node.
    pub fn memlb(&self, verb: &str) -> Command {
        let mut command = self.topology.manager.command(&self.binary);
        command.arg(verb);
        match verb {
            "unload" => command.arg("--pin-path").arg(&self.paths.pin_path),
            "manager" | "agent" | "check" | "import" => &mut command,
            _ => command
                .arg("--control-socket")
                .arg(self.paths.control_socket()),
        };
        command
    }

    /// Returns what `memlb status --json` prints.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Value> {
        status(&self.paths.control_socket())
    }

    /// Waits until the manager's status fulfils `condition`, and returns how long that took.
    ///
    /// # Errors
    /// When it does not within `deadline`; the error carries the last status.
    pub fn wait_for_status(
        &self,
        deadline: Duration,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Duration> {
        wait_for_status(&self.paths.control_socket(), deadline, what, condition)
    }

    /// Waits until the manager's status fulfils `condition`, and returns how long that took.
    ///
    /// # Panics
    /// When it does not within `deadline`; the message has the last status.
    #[track_caller]
    pub fn assert_status(
        &self,
        deadline: Duration,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Duration {
        self.wait_for_status(deadline, what, condition)
            .unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// Waits until new connections go to `backend`, and returns how long that took.
    ///
    /// # Errors
    /// When they do not within `deadline`.
    pub fn wait_for_selection(&self, backend: &str, deadline: Duration) -> Result<Duration> {
        self.wait_for_status(deadline, &format!("{backend} to be selected"), |status| {
            status["services"][0]["selected"] == backend
        })
    }

    /// Returns the lines of the event log.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn events(&self) -> Result<Vec<Value>> {
        fs::read_to_string(self.paths.event_log())
            .context("read the event log")?
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// Leaves everything running; [`ClusterPaths::clear`] ends it.
    pub fn keep(self) {
        self.cleanup.keep();
        self.manager.into_iter().for_each(Process::keep);
        self.agents.into_iter().flatten().for_each(Process::keep);
        [self.fallback]
            .into_iter()
            .chain(self.servers)
            .for_each(|server| server.process.keep());
        self.topology.keep();
    }
}

/// Returns what `memlb status --json` prints for the manager at `control_socket`.
///
/// # Errors
/// When it does not answer.
pub fn status(control_socket: &Path) -> Result<Value> {
    let mut socket = UnixStream::connect(control_socket)
        .with_context(|| format!("connect to {}", control_socket.display()))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.write_all(b"{\"verb\":\"status\"}\n")?;
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer)?;
    serde_json::from_str(&answer).with_context(|| format!("the manager's answer {answer:?}"))
}

/// Waits until the status of the manager at `control_socket` fulfils `condition`, and returns how long that took.
///
/// # Errors
/// When it does not within `deadline`; the error carries the last status.
pub fn wait_for_status(
    control_socket: &Path,
    deadline: Duration,
    what: &str,
    condition: impl Fn(&Value) -> bool,
) -> Result<Duration> {
    wait_until(deadline, what, || {
        status(control_socket).is_ok_and(|status| condition(&status))
    })
    .with_context(|| match status(control_socket) {
        Ok(status) => format!("the manager's status is {status:#}"),
        Err(error) => format!("the manager has no status: {error:#}"),
    })
}

/// Starts the web server of the worker of that `index`, and makes the file in which its agent reads its memory.
///
/// # Errors
/// When the server does not start.
pub fn start_server(
    worker: &Namespace,
    index: usize,
    paths: &ClusterPaths,
    available_kb: u64,
) -> Result<(Nginx, MemoryFile)> {
    let directory = paths.directory.join(worker_name(index));
    let page = format!("Worker{}", index + 1);
    let server = Nginx::start(worker, worker_port(index)?, &page, &directory)?;
    let memory = MemoryFile::create(paths.memory_file(index + 1), available_kb)?;
    Ok((server, memory))
}

/// Returns the `memlb` program under test.
///
/// # Errors
/// When it has not been built.
pub fn binary() -> Result<PathBuf> {
    let binary = env::var_os(BINARY).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/memlb"),
        PathBuf::from,
    );
    ensure!(
        binary.is_file(),
        "there is no {}: build it with `cargo xtask build`, or set {BINARY}",
        binary.display()
    );
    Ok(binary)
}

/// Makes a directory with a key for each worker, which the manager and the agents read.
fn make_keys(binary: &Path, directory: &Path, workers: usize) -> Result<()> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("make {}", directory.display()))?;
    for name in (0..workers).map(worker_name) {
        let mut command = Command::new(binary);
        command.args(["keygen", "--name", &name, "--output"]);
        output(command.arg(directory.join(name).with_extension("key")))?;
    }
    Ok(())
}

fn manager_arguments(
    configuration: &Path,
    paths: &ClusterPaths,
    options: &ClusterOptions,
) -> Vec<String> {
    let own = [
        ("--config", configuration.display().to_string()),
        ("--attach", options.attach.clone()),
        ("--pin-path", paths.pin_path.display().to_string()),
        (
            "--control-socket",
            paths.control_socket().display().to_string(),
        ),
        ("--state-file", paths.state_file().display().to_string()),
        ("--event-log", paths.event_log().display().to_string()),
        (
            "--set",
            format!("failover.panic_threshold=\"{}%\"", options.panic_threshold),
        ),
    ];
    let settings = options.settings.iter().cloned();
    own.into_iter()
        .chain(settings.map(|it| ("--set", it)))
        .flat_map(|(name, value)| [name.to_owned(), value])
        .chain(options.manager_arguments.iter().cloned())
        .collect()
}

/// Returns whether those `workers` that a service has are up in each service.
fn all_up(status: &Value, workers: &[String]) -> bool {
    let services = status["services"].as_array().into_iter().flatten();
    let mut backends =
        services.flat_map(|service| service["backends"].as_array().into_iter().flatten());
    backends.all(|backend| {
        let ours = workers.iter().any(|worker| backend["name"] == *worker);
        !ours || backend["state"] == "up"
    })
}
