//! One manager of several: memlb, BIRD, and the program that puts the addresses on the bridge.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    network::{self, ManagerNode, SERVICE4, SERVICE6, ip, manager4, nat4, nat6},
    router::{bird, shipped},
};
use crate::{
    cluster,
    cluster_options::{SERVICE_PORT, worker_name, worker_port},
    command::output,
    namespace::Namespace,
    paths::ClusterPaths,
    process::Process,
    wait::wait_until,
};

/// The kernel checks the programs of several managers at the same time.
const PATIENCE: Duration = Duration::from_secs(60);
const BRIDGE: &str = "memlb0";
const PEER_PORT: u16 = 9997;

/// A manager's machine.
#[derive(Debug)]
pub struct EcmpManager {
    announce: Option<Process>,
    bird: Option<Process>,
    memlb: Option<Process>,
    pub namespace: Arc<Namespace>,
    number: u8,
    /// What `memlb-announce` announces.
    addresses: String,
    port: String,
    router: String,
    binary: PathBuf,
    directory: PathBuf,
    pins: PathBuf,
}

impl EcmpManager {
    /// Writes the files of the manager of `node`, one of so many.
    pub(super) fn new(
        node: &ManagerNode,
        managers: u8,
        workers: usize,
        binary: &Path,
        key: &Path,
        paths: &ClusterPaths,
    ) -> Result<Self> {
        let number = node.number;
        let directory = paths.directory.join(format!("manager{number}"));
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let text = configuration(number, managers, workers, key)?;
        write(&directory.join("memlb.toml"), &text)?;
        let bird = fs::read_to_string(shipped("bird-manager.conf")).context("read BIRD's file")?;
        // The lines that differ from manager to manager.
        let bird = bird
            .replace("192.0.2.101", &manager4(number).to_string())
            .replace("198.51.100.101", &nat4(number).to_string())
            .replace("2001:db8:5::101", &nat6(number).to_string());
        write(&directory.join("bird.conf"), &bird)?;
        let mut addresses = format!("{SERVICE4}/32 {SERVICE6}/128");
        for number in 1..=managers {
            addresses += &format!(" {}/32 {}/128", nat4(number), nat6(number));
        }
        Ok(Self {
            announce: None,
            bird: None,
            memlb: None,
            namespace: Arc::clone(&node.namespace),
            number,
            addresses,
            port: node.port.clone(),
            router: node.router.clone(),
            binary: binary.into(),
            directory,
            pins: paths.pin_path.join(format!("manager{number}")),
        })
    }

    pub fn address4(&self) -> Ipv4Addr {
        manager4(self.number)
    }

    /// Returns the IPv4 address from which it connects to workers.
    pub fn nat4(&self) -> IpAddr {
        nat4(self.number).into()
    }

    /// Starts everything on this machine, and waits for nothing.
    ///
    /// # Errors
    /// When a part cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.start_bird()?;
        self.announce()
    }

    /// Waits until the manager process is ready.
    ///
    /// # Errors
    /// When it is not in time; the error carries what it printed.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let memlb = self.memlb.as_mut().context("no manager runs")?;
        memlb.wait_for_log(PATIENCE, "ready: ")
    }

    /// Starts the manager process, which must not be running.
    ///
    /// # Errors
    /// When it is not ready in time; the error carries what it printed.
    pub fn start_memlb(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_until_ready()
    }

    fn launch(&mut self) -> Result<()> {
        let mut command = self.namespace.command(&self.binary);
        command.arg("manager");
        command
            .arg("--config")
            .arg(self.directory.join("memlb.toml"));
        command.args(["--attach", "tc"]);
        command.arg("--pin-path").arg(&self.pins);
        command.arg("--control-socket").arg(self.socket());
        command
            .arg("--state-file")
            .arg(self.directory.join("operator.json"));
        command
            .arg("--event-log")
            .arg(self.directory.join("events.jsonl"));
        let log = self.directory.with_extension("log");
        self.memlb = Some(Process::start("memlb manager", &mut command, &log)?);
        Ok(())
    }

    /// Starts BIRD, which must not be running.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_bird(&mut self) -> Result<()> {
        let files = self.directory.join("bird");
        self.bird = Some(bird(
            &self.namespace,
            &self.directory.join("bird.conf"),
            &files,
        )?);
        Ok(())
    }

    /// Starts the program that puts the addresses on the bridge.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn announce(&mut self) -> Result<()> {
        let mut command = self.namespace.command(shipped("memlb-announce"));
        command
            .env("ADDRESSES", &self.addresses)
            .env("BRIDGE", BRIDGE)
            .env("PIN_PATH", &self.pins)
            .env("START_WAIT", "60")
            .env("WITHDRAW_AFTER", "3")
            .env("LINGER", "0");
        let log = self.directory.with_extension("announce.log");
        self.announce = Some(Process::start("memlb-announce", &mut command, &log)?);
        Ok(())
    }

    /// Withdraws the addresses, as before planned work on this machine.
    ///
    /// # Errors
    /// When nothing is announced.
    pub fn withdraw(&mut self) -> Result<()> {
        let announce = self.announce.take().context("nothing is announced");
        announce?.terminate(Duration::from_secs(5)).map(drop)
    }

    /// Kills the manager process with `SIGKILL`.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill_memlb(&mut self) -> Result<()> {
        self.memlb.take().context("no manager runs")?.kill()
    }

    /// Kills BIRD with `SIGKILL`.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill_bird(&mut self) -> Result<()> {
        self.bird.take().context("no BIRD runs")?.kill()
    }

    /// Cuts the machine off without a word.
    ///
    /// # Errors
    /// When the link cannot be changed.
    pub fn disconnect(&self) -> Result<()> {
        self.set_port("down")
    }

    /// Brings a machine that was cut off to the state after its boot, and connects it again: nothing runs there,
    /// the kernel has no programs of memlb's, and the bridge is gone.
    ///
    /// # Errors
    /// When something is left.
    pub fn boot(&mut self) -> Result<()> {
        (self.announce, self.bird, self.memlb) = (None, None, None);
        let mut unload = self.namespace.command(&self.binary);
        output(unload.arg("unload").arg("--pin-path").arg(&self.pins))?;
        ip(&self.namespace, &format!("link delete {BRIDGE}"))?;
        self.set_port("up")
    }

    /// Returns what `memlb status --json` prints.
    ///
    /// # Errors
    /// When the manager does not answer.
    pub fn status(&self) -> Result<Value> {
        cluster::status(&self.socket())
    }

    /// Waits until every peer is connected and complete.
    ///
    /// # Errors
    /// When they are not within `deadline`; the error has their status.
    pub fn wait_for_peers(&self, deadline: Duration) -> Result<Duration> {
        let complete = |status: Value| {
            let mut peers = status["peers"].as_array().into_iter().flatten().peekable();
            peers.peek().is_some()
                && peers.all(|peer| peer["state"] == "connected" && peer["complete"] == true)
        };
        let what = format!("the peers of manager{} to be complete", self.number);
        wait_until(deadline, &what, || self.status().is_ok_and(complete))
            .with_context(|| format!("{:#}", self.status().unwrap_or_default()["peers"]))
    }

    fn set_port(&self, state: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        output(ip.args(["-netns", &self.router, "link", "set", &self.port, state])).map(drop)
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("manager.sock")
    }
}

/// Each manager names the workers in another order, so that the numbers of its backends differ from its peers'.
fn configuration(number: u8, managers: u8, workers: usize, key: &Path) -> Result<String> {
    let mut text = format!(
        "[manager]\nname = \"manager{number}\"\ninterfaces = [\"eth1\"]\nnat_sources = [\"{}\", \"{}\"]\n\
         peer_listen = \"{}:{PEER_PORT}\"\n",
        nat4(number),
        nat6(number),
        manager4(number),
    );
    for peer in (1..=managers).filter(|peer| *peer != number) {
        let (address, key) = (manager4(peer), key.display());
        text += &format!(
            "\n[[peer]]\nname = \"manager{peer}\"\naddress = \"{address}:{PEER_PORT}\"\nkey = \"{key}\"\n"
        );
    }
    for (name, service, family) in [("web", SERVICE4, 0), ("web-6", SERVICE6, 1)] {
        let address = std::net::SocketAddr::new(service.parse()?, SERVICE_PORT);
        text += &format!(
            "\n[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nfallback = \"reject\"\n\
             policy = \"round_robin\"\nworkers = [\n"
        );
        for place in 0..workers {
            let index = (place + usize::from(number)) % workers;
            let worker = network::worker(index)?[family];
            let address = std::net::SocketAddr::new(worker, worker_port(index)?);
            let name = worker_name(index);
            text += &format!("    {{ name = \"{name}\", address = \"{address}\" }},\n");
        }
        text += "]\n";
    }
    Ok(text)
}

/// Makes the key that all managers have, and returns its file.
pub(super) fn make_peer_key(binary: &Path, directory: &Path) -> Result<PathBuf> {
    let file = directory.join("peer.key");
    let mut command = Command::new(binary);
    output(command.args(["keygen", "--peer", "--output"]).arg(&file))?;
    Ok(file)
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
