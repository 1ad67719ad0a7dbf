//! The configuration: from a TOML file and the command line to validated settings.
//!
//! `keys` declares every key once. `document` has the values as written, `section` reads them, `kinds` parses
//! them and checks their bounds, and `rules` checks the relations between them.

mod changes;
mod digest;
mod document;
mod error;
mod example;
mod ids;
mod key;
mod keys;
mod kinds;
mod manual;
mod nested;
mod options;
mod origin;
mod overrides;
mod retired;
mod rules;
mod section;
mod validator;
mod values;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use lb_core::{DEFAULT_HOLD, Endpoint, FailingSettings, Policy, SpreadSettings, Threshold};

use crate::encoding;
use crate::heartbeat::check_name;

pub use changes::Changes;
pub use digest::ConfigDigest;
pub use error::{ConfigError, Origin, Problem, ProblemKind};
pub use ids::{Identity, PinnedIds, identities};
pub use keys::{FailoverSettings, HeartbeatSettings, Limits, ManagerSettings, Peer, Service};
pub use nested::{AutoJoin, Worker};
pub use origin::{JOINED, WorkerOrigin, check_source};
pub use overrides::Overrides;
pub use values::{Attach, PortRange, size};

use document::{RawTable, RawValue};
use section::{PEER, REPEATED, REWRITE, SERVICE, Section, TABLES, read_table, read_tables};
use validator::Validator;

/// Parses the address of a worker's server.
///
/// # Errors
///
/// Says what is wrong, and what to write.
pub fn worker_address(text: &str) -> Result<SocketAddr, String> {
    values::host_address(text).map_err(|bad| format!("{}; {}", bad.what, bad.remedy))
}

/// Parses a threshold in the form of the file: `auto`, `64MiB` or `10%`.
pub fn threshold(text: &str) -> Option<Threshold> {
    values::threshold(text).ok()
}

/// A validated configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub manager: ManagerSettings,
    /// The other managers of the same services.
    pub peers: Vec<Peer>,
    pub heartbeats: HeartbeatSettings,
    pub failover: FailoverSettings,
    pub limits: Limits,
    pub services: Vec<Service>,
    /// The sources of the workers that the file does not name, by service and worker.
    pub origins: BTreeMap<(String, String), WorkerOrigin>,
}

impl FailoverSettings {
    /// The settings of passive ejection.
    pub fn failing(&self) -> FailingSettings {
        FailingSettings {
            after: self.failing_after,
            window: self.failing_window,
            pause: self.failing_pause,
            max_pause: self.failing_max_pause,
            max_percent: self.max_failing,
        }
    }
}

impl ManagerSettings {
    /// Returns the name by which peers know this manager.
    ///
    /// # Errors
    ///
    /// Without `manager.name`: the host name cannot be read, or is not a valid name.
    pub fn own_name(&self) -> anyhow::Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let host = nix::unistd::gethostname().context("read the host name")?;
        let host = host.to_string_lossy();
        check_name(&host).with_context(|| {
            format!("the host name {host:?} cannot name a manager: set manager.name")
        })?;
        Ok(host.into_owned())
    }
}

impl Service {
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.address,
            protocol: self.protocol,
        }
    }

    /// The settings of the policies that spread connections.
    pub fn spread(&self) -> SpreadSettings {
        SpreadSettings {
            rebalance_interval: self.rebalance_interval,
            reserve_percent: self.reserve_percent,
            pressure_limit: self.pressure_limit,
            ramp_up: self.ramp_up,
            max_share: self.max_share,
        }
    }

    /// Returns a warning of the settings that have no effect under the service's policy.
    fn unused_settings(&self) -> Option<String> {
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

impl AutoJoin {
    pub fn allows(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }
}

impl Worker {
    /// Returns a worker that joins by itself, with the default settings.
    pub fn joining(name: String, address: SocketAddr) -> Self {
        Self {
            name,
            address,
            ..Self::default()
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
    /// Adds a worker that the file does not name to the service with this index.
    pub fn add_worker(&mut self, service: usize, worker: Worker, origin: WorkerOrigin) {
        let service = &mut self.services[service];
        let key = (service.name.clone(), worker.name.clone());
        self.origins.insert(key, origin);
        service.workers.push(worker);
    }

    /// The workers of all services; a worker of several services appears once for each.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.services.iter().flat_map(|service| &service.workers)
    }

    /// The source of a worker; `None` if the file names it.
    pub fn origin(&self, service: &str, worker: &str) -> Option<&WorkerOrigin> {
        self.origins.get(&(service.to_owned(), worker.to_owned()))
    }

    /// Returns the documented example, the three-node lab, which a manager without a file uses.
    pub fn example_text() -> &'static str {
        static TEXT: LazyLock<String> = LazyLock::new(example::render);
        &TEXT
    }

    /// Returns the manual page of the file, in roff.
    pub fn manual() -> String {
        manual::render()
    }

    /// Returns the configuration as a file: every value that is not its default.
    pub fn to_toml(&self) -> String {
        example::render_values(self)
    }

    /// Reads and validates a configuration file. Settings of the command line override the file's.
    ///
    /// `kernel_ports` is the kernel's `net.ipv4.ip_local_port_range`; `None` skips the comparison with it.
    ///
    /// # Errors
    ///
    /// Returns every problem with its location and a remedy.
    pub fn read(
        path: &Path,
        overrides: &Overrides,
        kernel_ports: Option<PortRange>,
    ) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let bytes = encoding::read(path).map_err(|error| ConfigError::unreadable(&name, &error))?;
        let text = encoding::check(&bytes).map_err(|found| ConfigError::not_utf8(&name, found))?;
        Self::parse(text, &name, overrides, kernel_ports)
    }

    /// Validates a configuration given as text, like [`Self::read`]; errors have `name` for the file.
    ///
    /// # Errors
    ///
    /// Returns every problem with its location and a remedy.
    pub fn parse(
        text: &str,
        name: &str,
        overrides: &Overrides,
        kernel_ports: Option<PortRange>,
    ) -> Result<Self, ConfigError> {
        let (document, syntax) = document::parse(text, name);
        let values = RawValue::file(&document, name, text);
        let assignments = overrides.assignments(|table| match table.split_once('.') {
            Some((list, name)) => REPEATED.contains(&list) && has_table(&values, list, name),
            None => !REPEATED.contains(&table) && TABLES.contains(&table),
        })?;
        let mut validator = Validator::new(name, overrides, &assignments, syntax);
        let config = Self::assemble(&mut validator, &values);
        rules::check(&mut validator, &config, kernel_ports);
        validator.finish(config)
    }

    fn assemble<'a>(validator: &mut Validator<'a>, values: &RawTable<'a>) -> Self {
        validator.report_unknown("", values, &TABLES);
        let table = |name| values.get(name).copied();
        Self {
            manager: read_table(validator, "manager", table("manager")),
            peers: read_repeated(validator, PEER, table(PEER)),
            heartbeats: read_table(validator, "heartbeats", table("heartbeats")),
            failover: read_table(validator, "failover", table("failover")),
            limits: read_table(validator, "limits", table("limits")),
            services: read_repeated(validator, SERVICE, table(SERVICE)),
            origins: BTreeMap::new(),
        }
    }

    /// Validates the built-in example, like [`Self::read`].
    ///
    /// # Errors
    ///
    /// Returns the problems of the command line's settings.
    pub fn example(
        overrides: &Overrides,
        kernel_ports: Option<PortRange>,
    ) -> Result<Self, ConfigError> {
        Self::parse(
            Self::example_text(),
            "the built-in example configuration",
            overrides,
            kernel_ports,
        )
    }

    /// Returns settings that are valid but probably not intended, as sentences for the log.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let legacy_interval = Duration::from_secs(5);
        if self.manager.legacy_heartbeats && self.failover.down_after < legacy_interval * 3 {
            warnings.push(format!(
                "legacy_heartbeats is on, and 2018 workers send every 5 s; with down_after = {} \
                 they count as down between any two heartbeats. Set heartbeat_interval = \"5s\" and \
                 down_after = \"15s\" or more until all workers run memlb agent",
                values::format_duration(self.failover.down_after)
            ));
        }
        if let Some(listen) = self.manager.peer_listen.filter(|_| self.peers.is_empty()) {
            warnings.push(format!(
                "manager.peer_listen = \"{listen}\" has no effect without a [[peer]]"
            ));
        }
        for service in &self.services {
            warnings.extend(service.unused_settings());
        }
        warnings
    }
}

/// Whether a list of tables has a table of that name.
fn has_table(values: &RawTable<'_>, list: &str, name: &str) -> bool {
    let tables = values.get(list).and_then(|it| it.list().ok());
    tables.unwrap_or_default().iter().any(|table| {
        let table = table.table().unwrap_or_default();
        let found = table.get("name").and_then(|it| it.text().ok());
        found.is_some_and(|found| found == name)
    })
}

/// Reads a list of tables; an absent one is empty.
fn read_repeated<'a, T: Section>(
    validator: &mut Validator<'a>,
    name: &'static str,
    given: Option<RawValue<'a>>,
) -> Vec<T> {
    validator.record_given(name, given);
    let Some(given) = given else {
        return Vec::new();
    };
    read_tables(validator, name, given).unwrap_or_else(|| {
        validator.reject(
            name,
            ProblemKind::WrongType,
            format!("each {name} needs a table with double brackets"),
            format!("[[{name}]]"),
            REWRITE,
        );
        Vec::new()
    })
}

#[cfg(test)]
mod tests;
