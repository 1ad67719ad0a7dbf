//! One manager: its controller, its keepalived, and how to look at and hurt them.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Pair, PairOptions,
    keepalived::Keepalived,
    network::{
        APPLICATION_PORT, LOAD_PORT, SERVICE_ADDRESS, Side, WEB_PORT, both_families,
        manager_address, nat_source, worker_address,
    },
};
use crate::{
    cluster::{status, wait_for_status},
    cluster_options::{worker_name, worker_port},
    observe::backend,
    paths::ClusterPaths,
    process::Process,
    topology::ipv6_counterpart,
};

/// As many as can be peers of each other.
pub const MOST: usize = 4;

/// A manager of a [`Pair`].
#[derive(Debug)]
pub struct Manager {
    // In the order in which they end.
    pub keepalived: Option<Keepalived>,
    pub controller: Option<Process>,
    pub name: String,
    pub paths: ClusterPaths,
    index: usize,
    namespace: String,
    binary: PathBuf,
    arguments: Vec<String>,
    /// How long the kernel may take to verify the programs.
    patience: Duration,
    /// Of the whole system.
    directory: PathBuf,
}

impl Manager {
    /// Starts the controller of the manager of that `index`, without waiting for it.
    pub(super) fn start(pair: &Pair, index: usize) -> Result<Self> {
        let name = format!("manager{}", index + 1);
        let paths = ClusterPaths {
            prefix: pair.paths.prefix.clone(),
            directory: pair.paths.directory.join(&name),
            pin_path: pair.paths.pin_path.join(&name),
        };
        fs::create_dir(&paths.directory)
            .with_context(|| format!("make {}", paths.directory.display()))?;
        let configuration = paths.directory.join("memlb.toml");
        fs::write(&configuration, configure(pair, &paths, index))
            .with_context(|| format!("write {}", configuration.display()))?;
        let mut manager = Self {
            keepalived: None,
            controller: None,
            name,
            arguments: arguments(&configuration, &paths, &pair.options),
            patience: pair.options.patience,
            paths,
            index,
            namespace: pair.network.managers[index].name().to_owned(),
            binary: pair.binary.clone(),
            directory: pair.paths.directory.clone(),
        };
        manager.controller = Some(manager.spawn_controller()?);
        if pair.options.keepalived {
            Keepalived::configure(&manager.paths.directory, index, pair.options.managers)?;
        }
        Ok(manager)
    }

    /// Starts the controller, which must not be running, and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready in time; the error carries what it printed.
    pub fn start_controller(&mut self) -> Result<()> {
        self.controller = Some(self.spawn_controller()?);
        self.wait_until_ready()
    }

    fn spawn_controller(&self) -> Result<Process> {
        let mut command = self.command("manager");
        command.args(&self.arguments);
        let log = self.directory.join(format!("{}.log", self.name));
        Process::start(
            &format!("memlb manager of {}", self.name),
            &mut command,
            &log,
        )
    }

    pub(super) fn wait_until_ready(&mut self) -> Result<()> {
        let controller = self.controller.as_mut();
        let controller = controller.context("no controller has been started")?;
        controller.wait_for_log(self.patience, "ready")
    }

    /// Starts keepalived, which must not be running.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_keepalived(&mut self) -> Result<()> {
        let log = self
            .directory
            .join(format!("keepalived{}.log", self.index + 1));
        let command = self.in_namespace("keepalived");
        self.keepalived = Some(Keepalived::start(command, &self.paths.directory, &log)?);
        Ok(())
    }

    /// Kills the controller with `SIGKILL`.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill_controller(&mut self) -> Result<()> {
        let controller = self.controller.take();
        controller.context("no controller has been started")?.kill()
    }

    /// Kills keepalived with `SIGKILL`: its addresses stay where they are.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill_keepalived(&mut self) -> Result<()> {
        let keepalived = self.keepalived.take();
        keepalived.context("no keepalived has been started")?.kill()
    }

    /// Returns a `memlb` command on this manager's node that works on this manager; `verb` may have two words, such as
    /// `deny add`.
    pub fn memlb(&self, verb: &str) -> Command {
        let mut command = self.command(verb);
        match verb {
            "unload" => command.arg("--pin-path").arg(&self.paths.pin_path),
            "manager" | "check" | "keygen" => &mut command,
            _ => command
                .arg("--control-socket")
                .arg(self.paths.control_socket()),
        };
        command
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = self.in_namespace(&self.binary.display().to_string());
        command.args(verb.split(' '));
        command
    }

    fn in_namespace(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let network = format!("--net=/run/netns/{}", self.namespace);
        command.args([&network, "--", program]);
        command
    }

    /// Returns the file with the weight that keepalived adds to this manager's priority.
    pub fn weight_file(&self) -> PathBuf {
        Keepalived::weight_file(&self.paths.directory)
    }

    /// Returns where this manager receives its peers.
    pub fn peer_address(&self) -> std::net::SocketAddr {
        manager_address(Side::Sync, self.index)
    }

    /// Returns the name of its interface on that side.
    pub fn interface(&self, side: Side) -> String {
        side.interface(self.index)
    }

    /// Asks the controller for what `memlb status --json` prints.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Value> {
        status(&self.paths.control_socket())
    }

    /// Waits until the status fulfils `condition`, and returns how long that took.
    ///
    /// # Errors
    /// When it does not within `deadline`; the error carries the last status.
    pub fn wait_for_status(
        &self,
        deadline: Duration,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Duration> {
        let what = format!("{} to have {what}", self.name);
        wait_for_status(&self.paths.control_socket(), deadline, &what, condition)
    }

    /// Waits until every worker is up.
    ///
    /// # Errors
    /// When that does not come to pass within `deadline`.
    pub fn wait_until_workers_are_up(&self, deadline: Duration) -> Result<Duration> {
        self.wait_for_status(deadline, "every worker up", |status| {
            let services = status["services"].as_array().into_iter().flatten();
            let mut backends =
                services.flat_map(|service| service["backends"].as_array().into_iter().flatten());
            backends.all(|backend| backend["state"] == "up")
        })
    }

    /// Waits until every peer is connected, knows all that this manager knows, and has told all that it knows.
    ///
    /// # Errors
    /// When that does not come to pass within `deadline`; the error carries the last status.
    pub fn wait_until_complete(&self, deadline: Duration) -> Result<Duration> {
        self.wait_for_status(deadline, "complete peers", |status| {
            let peers = status["peers"].as_array().into_iter().flatten();
            let is_complete = |peer: &Value| {
                peer["state"] == "connected"
                    && peer["complete"] == true
                    && peer["received_complete"] == true
            };
            let complete: Vec<bool> = peers.map(is_complete).collect();
            !complete.is_empty() && complete.iter().all(|it| *it)
        })
    }

    /// Returns a figure of the first peer's status.
    ///
    /// # Errors
    /// When there is no such figure.
    pub fn peer(&self, name: &str) -> Result<Value> {
        let status = self.status()?;
        let value = status["peers"][0].get(name).cloned();
        value.with_context(|| format!("no {name} in {:#}", status["peers"]))
    }

    /// Returns the packets that had that verdict.
    ///
    /// # Errors
    /// When the controller does not answer, or knows no such verdict.
    pub fn verdict(&self, name: &str) -> Result<u64> {
        self.status()?["verdicts"][name]["packets"]
            .as_u64()
            .with_context(|| format!("no verdict {name}"))
    }

    /// Returns the status of the backend `name` of the first service.
    ///
    /// # Errors
    /// When the controller does not answer, or has no such backend.
    pub fn backend(&self, name: &str) -> Result<Value> {
        let status = self.status()?;
        backend(&status, name)
            .cloned()
            .with_context(|| format!("no backend {name} in {status:#}"))
    }

    /// Returns the memory of the controller that is resident, in KiB.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident_kb(&self) -> Result<u64> {
        let controller = self.controller.as_ref().context("no controller runs")?;
        let text = fs::read_to_string(format!("/proc/{}/status", controller.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let figure = line.and_then(|line| line.split_whitespace().next());
        figure
            .context("no VmRSS")?
            .parse()
            .context("VmRSS is a number")
    }

    pub(super) fn keep(self) {
        self.controller.into_iter().for_each(Process::keep);
        self.keepalived.into_iter().for_each(Keepalived::keep);
    }
}

/// Writes the configuration. Each manager has the services and their workers in another order, so that the numbers by
/// which its programs know them are its own.
fn configure(pair: &Pair, paths: &ClusterPaths, index: usize) -> String {
    let options = &pair.options;
    let interfaces = [Side::Clients, Side::Workers].map(|side| side.interface(index));
    let mut sources: Vec<String> = Vec::new();
    if options.mode == "nat" {
        sources.extend(both_families(nat_source(index)).map(|it| it.to_string()));
    }
    let mut text = format!("[manager]\ninterfaces = {interfaces:?}\nnat_sources = {sources:?}\n");
    if options.peers {
        let own = manager_address(Side::Sync, index).to_string();
        text += &format!("name = \"manager{}\"\npeer_listen = {own:?}\n", index + 1);
        text += &format!(
            "track_file = {:?}\n",
            Keepalived::weight_file(&paths.directory)
        );
    }
    for peer in (0..options.managers).filter(|peer| options.peers && *peer != index) {
        let address = manager_address(Side::Sync, peer).to_string();
        let key = pair.key_file();
        text += &format!(
            "\n[[peer]]\nname = \"manager{}\"\naddress = {address:?}\nkey = {key:?}\n",
            peer + 1
        );
    }
    let mut services = vec![
        service(options, index, "web", WEB_PORT, false),
        service(options, index, "application", APPLICATION_PORT, false),
        service(options, index, "load", LOAD_PORT, false),
    ];
    if options.ipv6 {
        services.push(service(options, index, "web-6", WEB_PORT, true));
    }
    let places = services.len();
    // The web service is the first one everywhere, as `status` shows them.
    services[1..].rotate_left(index % (places - 1));
    text + &services.concat()
}

fn service(options: &PairOptions, index: usize, name: &str, port: u16, is_ipv6: bool) -> String {
    let written = |address: std::net::Ipv4Addr, port: u16| match is_ipv6 {
        false => format!("{address}:{port}"),
        true => format!("[{}]:{port}", ipv6_counterpart(address)),
    };
    let mut workers: Vec<String> = (0..options.workers)
        .map(|worker| {
            let server = match port {
                WEB_PORT => worker_port(worker).unwrap_or(port),
                other => other,
            };
            let address = written(worker_address(worker), server);
            let name = worker_name(worker);
            format!("    {{ name = \"{name}\", address = \"{address}\" }},\n")
        })
        .collect();
    if index % 2 == 1 {
        workers.reverse();
    }
    format!(
        "
[[service]]
name = \"{name}\"
address = \"{}\"
mode = \"{}\"
fallback = \"reject\"
policy = \"round_robin\"
workers = [
{}]
",
        written(SERVICE_ADDRESS, port),
        options.mode,
        workers.concat()
    )
}

fn arguments(
    configuration: &std::path::Path,
    paths: &ClusterPaths,
    options: &PairOptions,
) -> Vec<String> {
    let settings = [
        ("--config", configuration.display().to_string()),
        ("--attach", options.attach.clone()),
        ("--pin-path", paths.pin_path.display().to_string()),
        (
            "--control-socket",
            paths.control_socket().display().to_string(),
        ),
        ("--state-file", paths.state_file().display().to_string()),
        ("--event-log", paths.event_log().display().to_string()),
    ];
    settings
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .chain(options.manager_arguments.iter().cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::network, PairOptions, WEB_PORT, service};

    #[test]
    fn managers_have_their_workers_in_different_orders() {
        let options = PairOptions::default();
        let first = service(&options, 0, "web", WEB_PORT, false);
        let second = service(&options, 1, "web", WEB_PORT, false);
        assert_ne!(first, second);
        for worker in 0..options.workers {
            let address = network::worker_address(worker).to_string();
            assert!(first.contains(&address) && second.contains(&address));
        }
    }
}
