//! The configuration: from a TOML file and the command line to settings that are known to make sense.
//!
//! `memlb.toml`, beside this crate's `Cargo.toml`, documents every setting and is the example built
//! into the program.

mod changes;
mod check;
mod error;
mod file;
mod ids;
mod overrides;
mod set;
mod values;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use lb_core::{DEFAULT_HOLD, Endpoint, Mode, Policy, Protocol, SpreadSettings, Threshold};

pub use changes::Changes;
pub use error::{ConfigError, Origin, Problem, ProblemKind};
pub use ids::{Identity, Pinned, identities};
pub use overrides::Overrides;
pub use values::{PortRange, size};

/// Reads a threshold as the file has it; nothing if it is none.
pub fn threshold(text: &str) -> Option<Threshold> {
    values::threshold(text).ok()
}

use crate::encoding;
use crate::heartbeat::Authentication;

/// A validated configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub manager: Manager,
    pub heartbeats: Heartbeats,
    pub failover: Failover,
    pub limits: Limits,
    pub services: Vec<Service>,
}

/// Where the manager attaches, listens and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manager {
    pub interfaces: Vec<String>,
    pub attach: Attach,
    pub heartbeat_listen: SocketAddr,
    pub pin_path: PathBuf,
    pub control_socket: PathBuf,
    /// Where the operator's orders outlast the manager.
    pub state_file: PathBuf,
    /// Nothing if no event log is kept.
    pub event_log: Option<PathBuf>,
    pub legacy_heartbeats: bool,
    /// Where metrics, API and page are served; nothing if nowhere.
    pub http_listen: Option<SocketAddr>,
    /// By which it is asked there, beside addresses, localhost and the machine's own name.
    pub http_names: Vec<String>,
    /// The manager's addresses from which it connects to workers in mode `nat`; empty for the one that the
    /// route to a worker names.
    pub nat_sources: Vec<IpAddr>,
}

/// Where in the kernel packets are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    Auto,
    Tc,
    Xdp,
}

/// Whose heartbeats are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeats {
    pub authentication: Authentication,
    /// A directory of key files, or one file; read unless authentication is off.
    pub keys: PathBuf,
}

/// When a worker is given up, and taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    pub heartbeat_interval: Duration,
    pub down_after: Duration,
    pub up_after: u32,
}

/// Sizes and times of the tables in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub services: u32,
    pub backends: u32,
    pub flows: u32,
    pub nat_ports: PortRange,
    pub established_idle: Duration,
    pub datagram_idle: Duration,
    pub closing_idle: Duration,
    pub half_open_idle: Duration,
}

/// One address that clients use, and who serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub policy: Policy,
    pub threshold: Threshold,
    pub hold: Duration,
    pub spread: SpreadSettings,
    pub mode: Mode,
    /// The manager's own server: the service's IP address with another port. Nothing if new
    /// connections are refused while no worker is up.
    pub fallback: Option<SocketAddr>,
    pub workers: Vec<Worker>,
    /// Who else may become a worker; nothing if nobody.
    pub auto_join: Option<AutoJoin>,
}

impl Service {
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.address,
            protocol: self.protocol,
        }
    }

    /// Says what is set for another policy than the service's.
    fn idle_settings(&self) -> Option<String> {
        if self.policy == Policy::Memory {
            return None;
        }
        let set = [
            ("threshold", self.threshold != Threshold::Auto),
            ("hold", self.hold != DEFAULT_HOLD),
        ];
        let set: Vec<&str> = set.iter().filter(|it| it.1).map(|it| it.0).collect();
        let verb = match set.len() {
            0 => return None,
            1 => "has",
            _ => "have",
        };
        Some(format!(
            "service {}: {} {verb} no effect under policy \"{}\", only under \"memory\"",
            self.name,
            set.join(" and "),
            self.policy
        ))
    }
}

/// Which agents become workers by starting: those with a key, in these networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoJoin {
    pub networks: Vec<IpNet>,
    /// Where their servers listen; the address is the one their heartbeats come from.
    pub port: u16,
}

impl AutoJoin {
    pub fn allows(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }
}

/// A worker's place in a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    pub name: String,
    pub address: SocketAddr,
    /// What it takes beside others that are as good, in percent.
    pub weight_percent: u32,
}

impl Worker {
    /// Returns a worker that joins by itself, with nothing said about it.
    pub fn joining(name: String, address: SocketAddr) -> Self {
        Self {
            name,
            address,
            weight_percent: 100,
        }
    }
}

impl fmt::Display for AutoJoin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<String> = self.networks.iter().map(IpNet::to_string).collect();
        write!(f, "{} at port {}", networks.join(" and "), self.port)
    }
}

impl Config {
    /// The documented example, the three-node lab: what runs when no file is given.
    pub const EXAMPLE: &str = include_str!("../../memlb.toml");

    /// Reads and checks a configuration file, with the command line's settings laid over it.
    ///
    /// `kernel_ports` is the kernel's `net.ipv4.ip_local_port_range`; without it, nothing is
    /// compared with that range.
    ///
    /// # Errors
    ///
    /// Returns everything that is wrong with it, each with its place and a remedy.
    pub fn read(
        path: &Path,
        overrides: &Overrides,
        kernel_ports: Option<PortRange>,
    ) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| ConfigError::unreadable(&name, &error))?;
        let text = encoding::check(&bytes).map_err(|found| ConfigError::not_utf8(&name, found))?;
        Self::parse(text, &name, overrides, kernel_ports)
    }

    /// Checks a configuration given as text, like [`Self::read`]; `name` stands for it in errors.
    ///
    /// # Errors
    ///
    /// Returns everything that is wrong with it, each with its place and a remedy.
    pub fn parse(
        text: &str,
        name: &str,
        overrides: &Overrides,
        kernel_ports: Option<PortRange>,
    ) -> Result<Self, ConfigError> {
        let laid = set::apply(text, &overrides.set)?;
        file::parse(&laid.text, name)
            .and_then(|file| check::check(file, &laid.text, name, overrides, kernel_ports))
            .map_err(|error| laid.blame(error))
    }

    /// Checks the built-in example, like [`Self::read`].
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the command line's settings.
    pub fn example(
        overrides: &Overrides,
        kernel_ports: Option<PortRange>,
    ) -> Result<Self, ConfigError> {
        Self::parse(
            Self::EXAMPLE,
            "the built-in example configuration",
            overrides,
            kernel_ports,
        )
    }

    /// Returns what is allowed but probably not meant, as sentences for the log.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let old_interval = Duration::from_secs(5);
        if self.manager.legacy_heartbeats && self.failover.down_after < old_interval * 3 {
            warnings.push(format!(
                "legacy_heartbeats is on, and 2018 workers send every 5 s; with down_after = {} \
                 they count as down between any two heartbeats. Set heartbeat_interval = \"5s\" and \
                 down_after = \"15s\" or more until all workers run memlb agent",
                values::show_duration(self.failover.down_after)
            ));
        }
        for service in &self.services {
            warnings.extend(service.idle_settings());
        }
        warnings
    }
}

impl Default for Manager {
    /// Returns what holds where the file says nothing; an interface must be named.
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            attach: Attach::Auto,
            heartbeat_listen: (Ipv4Addr::UNSPECIFIED, 9999).into(),
            pin_path: PathBuf::from("/sys/fs/bpf/memlb"),
            control_socket: PathBuf::from("/run/memlb/manager.sock"),
            state_file: PathBuf::from("/var/lib/memlb/operator.json"),
            event_log: Some(PathBuf::from("/var/log/memlb/events.jsonl")),
            legacy_heartbeats: false,
            http_listen: Some((Ipv4Addr::LOCALHOST, 9998).into()),
            http_names: Vec::new(),
            nat_sources: Vec::new(),
        }
    }
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self {
            authentication: Authentication::Off,
            keys: PathBuf::from("/etc/memlb/keys"),
        }
    }
}

impl Default for Failover {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(100),
            down_after: Duration::from_millis(1500),
            up_after: 2,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: lb_common::maps::DEFAULT_SERVICES,
            backends: lb_common::maps::DEFAULT_BACKENDS,
            flows: 131_072,
            nat_ports: PortRange {
                first: 4096,
                last: 32_767,
            },
            // As long as RFC 5382 wants at least: longer than the keep-alives of common stacks wait (2 h).
            established_idle: Duration::from_secs(2 * 3600 + 4 * 60),
            datagram_idle: Duration::from_secs(60),
            closing_idle: Duration::from_secs(10),
            half_open_idle: Duration::from_secs(30),
        }
    }
}

impl Attach {
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tc => "tc",
            Self::Xdp => "xdp",
        }
    }
}

#[cfg(test)]
mod tests;
