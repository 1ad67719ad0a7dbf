//! The agent on each worker: reads the memory, sends heartbeats to every manager.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use procfs::{Current, Meminfo};
use tokio::{
    net::{UdpSocket, lookup_host},
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{debug, info, warn};

use crate::{
    core::{BootId, WorkerState},
    heartbeat::{Heartbeat, MemoryReport, check_name},
};

/// UDP port of the manager, unless given.
pub const PORT: u16 = 9999;

/// How often names of managers are looked up again.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(30);

/// What an agent is told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses or names, with or without a port.
    pub managers: Vec<String>,
    pub name: String,
    pub interval: Duration,
    /// Read instead of `/proc/meminfo`, in its form.
    pub memory_file: Option<PathBuf>,
    /// Do not print each heartbeat.
    pub quiet: bool,
}

/// Sends heartbeats until SIGTERM or SIGINT, then says once that the worker leaves.
///
/// A manager that cannot be reached, or whose name cannot be resolved, is tried again at each
/// heartbeat, or each lookup; it holds up no other.
///
/// # Errors
///
/// Says which setting is wrong, or why no socket can be opened or signal be caught.
pub async fn run(settings: Settings) -> Result<()> {
    check_name(&settings.name).map_err(|problem| {
        anyhow::anyhow!("--name {:?} cannot name a worker: {problem}", settings.name)
    })?;
    read_memory(settings.memory_file.as_deref())?;
    let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))
        .await
        .context("open a UDP socket")?;
    let mut managers: Vec<Manager> = settings
        .managers
        .iter()
        .map(|name| Manager::new(name))
        .collect();
    let mut sender = Sender {
        socket,
        boot: BootId(getrandom::u64().context("draw a boot id")?),
        seq: 0,
        settings: &settings,
    };
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let mut ticks = interval(settings.interval);
    // After a suspension one heartbeat is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    info!(
        "agent of {} sends a heartbeat every {} to {} (boot {})",
        settings.name,
        humantime::format_duration(settings.interval),
        settings.managers.join(", "),
        sender.boot,
    );
    loop {
        tokio::select! {
            _ = ticks.tick() => sender.send(WorkerState::Ready, &mut managers).await,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    info!("{} is leaving", settings.name);
    sender.send(WorkerState::Leaving, &mut managers).await;
    Ok(())
}

struct Sender<'a> {
    socket: UdpSocket,
    boot: BootId,
    seq: u64,
    settings: &'a Settings,
}

impl Sender<'_> {
    async fn send(&mut self, state: WorkerState, managers: &mut [Manager]) {
        let memory = match read_memory(self.settings.memory_file.as_deref()) {
            Ok(memory) => memory,
            Err(error) => {
                warn!("no heartbeat is sent: {error:#}");
                return;
            }
        };
        self.seq += 1;
        let heartbeat = Heartbeat {
            worker: self.settings.name.clone(),
            boot: self.boot,
            seq: self.seq,
            interval: self.settings.interval,
            memory,
            load: None,
            state,
            healthy: true,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nonce: None,
        };
        let datagram = match heartbeat.encode() {
            Ok(datagram) => datagram,
            Err(refusal) => {
                warn!("no heartbeat is sent: {refusal}");
                return;
            }
        };
        if !self.settings.quiet {
            info!("sent {heartbeat}");
        }
        for manager in managers {
            manager.send(&self.socket, &datagram).await;
        }
    }
}

/// One receiver of heartbeats.
struct Manager {
    name: String,
    address: Option<SocketAddr>,
    looked_up: Option<Instant>,
    failing: bool,
}

impl Manager {
    fn new(name: &str) -> Self {
        Self {
            name: with_port(name),
            address: None,
            looked_up: None,
            failing: false,
        }
    }

    async fn send(&mut self, socket: &UdpSocket, datagram: &[u8]) {
        match (self.try_send(socket, datagram).await, self.failing) {
            (Ok(()), true) => {
                self.failing = false;
                info!("heartbeats to {} go out again", self.name);
            }
            (Err(error), false) => {
                self.failing = true;
                warn!(
                    "heartbeats to {} cannot be sent, trying on: {error:#}",
                    self.name
                );
            }
            (Err(error), true) => debug!("heartbeat to {}: {error:#}", self.name),
            (Ok(()), false) => {}
        }
    }

    async fn try_send(&mut self, socket: &UdpSocket, datagram: &[u8]) -> Result<()> {
        let address = self.resolve().await?;
        socket.send_to(datagram, address).await?;
        Ok(())
    }

    async fn resolve(&mut self) -> Result<SocketAddr> {
        if let Ok(address) = self.name.parse() {
            return Ok(address);
        }
        let due = self
            .looked_up
            .is_none_or(|then| then.elapsed() > LOOKUP_INTERVAL);
        if due {
            self.looked_up = Some(Instant::now());
            let mut found = lookup_host(&self.name).await.context("look up its name")?;
            self.address = found.find(SocketAddr::is_ipv4).or(self.address);
        }
        self.address.context("its name has no IPv4 address")
    }
}

fn with_port(name: &str) -> String {
    if name.contains(':') {
        name.to_owned()
    } else {
        format!("{name}:{PORT}")
    }
}

/// Reads available and total memory from `/proc/meminfo`, or from a file of the same form.
fn read_memory(file: Option<&Path>) -> Result<MemoryReport> {
    let (available, total) = match file {
        None => {
            let meminfo = Meminfo::current().context("read /proc/meminfo")?;
            (meminfo.mem_available, Some(meminfo.mem_total))
        }
        Some(path) => {
            let text = fs::read_to_string(path)
                .with_context(|| format!("read --memory-file {}", path.display()))?;
            (line(&text, "MemAvailable:"), line(&text, "MemTotal:"))
        }
    };
    let source = file.unwrap_or(Path::new("/proc/meminfo")).display();
    let (Some(available), Some(total)) = (available, total) else {
        bail!(
            "{source} needs the lines \"MemTotal: N kB\" and \"MemAvailable: N kB\" (Linux 3.14)"
        );
    };
    Ok(MemoryReport {
        available_bytes: available.min(total),
        total_bytes: total,
        cgroup: None,
        pressure: None,
    })
}

/// The bytes that a line such as `MemTotal:  716800 kB` states.
fn line(text: &str, key: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(key))?;
    let mut words = rest.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    match words.next() {
        None => Some(number),
        Some("kB") => number.checked_mul(1024),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_machines_memory() {
        let memory = read_memory(None).unwrap();
        assert!(memory.available_bytes > 0 && memory.available_bytes <= memory.total_bytes);
    }

    #[test]
    fn reads_a_file_in_the_form_of_meminfo() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meminfo");
        fs::write(&path, "MemTotal:  716800 kB\nMemAvailable:   403456 kB\n").unwrap();
        let memory = read_memory(Some(&path)).unwrap();
        assert_eq!(memory.total_bytes, 700 << 20);
        assert_eq!(memory.available_bytes, 394 << 20);
        fs::write(&path, "MemTotal: many kB\n").unwrap();
        assert!(read_memory(Some(&path)).is_err());
    }

    #[test]
    fn adds_the_port_where_none_is_given() {
        assert_eq!(with_port("192.168.56.101"), "192.168.56.101:9999");
        assert_eq!(with_port("manager:1234"), "manager:1234");
    }
}
