//! The workers of sources, such as a file or Docker Swarm. Each source gives its whole list at once, which replaces its
//! former list.

use std::{collections::BTreeMap, fmt, net::SocketAddr, ops::RangeInclusive};

use lb_core::{AdminState, Audited, MANAGER, NO_BACKEND, unknown_name};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Membership, room};
use crate::{
    config::{Config, JOINED, Service, Worker, WorkerOrigin, worker_address},
    heartbeat::check_name,
};

/// The weights that a source may give, in percent.
const WEIGHTS: RangeInclusive<u32> = 1..=1_000;

/// One worker of one service, as its source gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalWorker {
    pub service: String,
    /// The name in its agent's heartbeats.
    pub name: String,
    /// The address and port of its server.
    pub address: String,
    /// In percent.
    #[serde(
        default = "full_weight",
        deserialize_with = "percent",
        skip_serializing_if = "is_full"
    )]
    pub weight: u32,
    /// The reason for a drain; `None` without a drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<String>,
}

impl ExternalWorker {
    /// Its name with that of its service, as in reports.
    pub fn path(&self) -> String {
        worker_path(&self.service, &self.name)
    }
}

/// Returns `service/worker`.
pub fn worker_path(service: &str, worker: &str) -> String {
    format!("{service}/{worker}")
}

fn full_weight() -> u32 {
    100
}

/// Deserializes a weight as a number, or as a text as in the configuration file, `"50%"`.
fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Weight {
        Number(u32),
        Text(String),
    }
    match Weight::deserialize(deserializer) {
        Ok(Weight::Number(percent)) => Ok(percent),
        Ok(Weight::Text(text)) => parse_weight(&text).map_err(de::Error::custom),
        Err(_) => Err(de::Error::custom(WEIGHT_FORMAT)),
    }
}

const WEIGHT_FORMAT: &str = "a weight is a whole number of percent, as in 50 or \"50%\"";

/// Parses a weight in percent, with or without a percent sign.
///
/// # Errors
///
/// Returns the expected format.
pub fn parse_weight(text: &str) -> Result<u32, String> {
    let number = text.trim().strip_suffix('%').unwrap_or(text).trim();
    number
        .parse()
        .map_err(|_| format!("{WEIGHT_FORMAT}, and not {text:?}"))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_full(weight: &u32) -> bool {
    *weight == full_weight()
}

/// Something that a source gives or knows, and why it is not a worker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct AbsentWorker {
    /// The source's name for it: `web/node2`, or a task or service of Swarm.
    pub what: String,
    /// The service that it would serve, if that is known.
    pub service: Option<String>,
    pub reason: String,
}

impl fmt::Display for AbsentWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

/// All workers of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerList {
    pub workers: Vec<ExternalWorker>,
    /// The entries that the source itself left out.
    #[serde(default)]
    pub absent: Vec<AbsentWorker>,
}

/// The last list of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct StoredList {
    #[serde(flatten)]
    list: WorkerList,
    /// Service, name and begin of each drain, in milliseconds since 1970.
    #[serde(default)]
    drained_at_ms: Vec<(String, String, u64)>,
}

/// The lists of all sources, by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExternalWorkers(BTreeMap<String, StoredList>);

/// A configuration with the workers of the sources, and the entries that are not workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposedConfig {
    pub config: Config,
    /// By source.
    pub absent: BTreeMap<String, Vec<AbsentWorker>>,
}

impl ExternalWorkers {
    /// Replaces the list of a source. A drain of the former list keeps its beginning.
    pub fn set(&mut self, source: &str, list: WorkerList, now_ms: u64) {
        let before = self.0.remove(source).unwrap_or_default();
        let drained = list.workers.iter().filter(|it| it.drain.is_some());
        let drained_at_ms = drained
            .map(|it| {
                let at_ms = before.drained_at_ms(&it.service, &it.name);
                (it.service.clone(), it.name.clone(), at_ms.unwrap_or(now_ms))
            })
            .collect();
        let stored = StoredList {
            list,
            drained_at_ms,
        };
        self.0.insert(source.to_owned(), stored);
    }

    pub fn remove(&mut self, source: &str) -> bool {
        self.0.remove(source).is_some()
    }

    pub fn list(&self, source: &str) -> Option<&WorkerList> {
        self.0.get(source).map(|it| &it.list)
    }

    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns the configuration with the workers of all sources. `joined` are the workers that joined by themselves.
    ///
    /// It leaves out a worker that is not valid, and one whose name or address the file, a joined worker or an earlier
    /// source has in the service.
    pub fn apply_to(&self, file: &Config, joined: &Membership) -> ComposedConfig {
        let mut config = file.clone();
        let joins = joined.apply_to(file);
        let taken = joins.services.iter().zip(&file.services);
        let taken: usize = taken
            .map(|(with, without)| with.workers.len() - without.workers.len())
            .sum();
        let room = room(file).saturating_sub(taken);
        let mut added = 0;
        let mut absent: BTreeMap<String, Vec<AbsentWorker>> = BTreeMap::new();
        for (name, source) in &self.0 {
            let left_out = absent.entry(name.clone()).or_default();
            left_out.extend(source.list.absent.iter().cloned());
            for given in &source.list.workers {
                let worker = match added < room || Self::is_repeated(&config, given) {
                    true => validate(&config, &joins, name, source, given),
                    false => Err(format!(
                        "there are no more backends: raise limits.backends ({})",
                        file.limits.backends
                    )),
                };
                match worker {
                    Ok((service, worker, origin)) => {
                        config.add_worker(service, worker, origin);
                        added += 1;
                    }
                    Err(reason) => left_out.push(AbsentWorker {
                        what: given.path(),
                        service: Some(given.service.clone()),
                        reason,
                    }),
                }
            }
        }
        ComposedConfig { config, absent }
    }

    /// Whether a worker has another problem than missing room: its service is unknown, or its name exists.
    fn is_repeated(config: &Config, given: &ExternalWorker) -> bool {
        let mut services = config.services.iter();
        let service = services.find(|it| it.name == given.service);
        service.is_none_or(|it| it.workers.iter().any(|worker| worker.name == given.name))
    }
}

impl StoredList {
    fn drained_at_ms(&self, service: &str, worker: &str) -> Option<u64> {
        let mut drained = self.drained_at_ms.iter();
        let found = drained.find(|it| it.0 == service && it.1 == worker)?;
        Some(found.2)
    }
}

/// Returns the worker with the index of its service, or why it is not valid.
fn validate(
    config: &Config,
    joins: &Config,
    source_name: &str,
    source: &StoredList,
    given: &ExternalWorker,
) -> Result<(usize, Worker, WorkerOrigin), String> {
    let services = &config.services;
    let Some(index) = services.iter().position(|it| it.name == given.service) else {
        let known: Vec<&str> = services.iter().map(|it| it.name.as_str()).collect();
        return Err(unknown_name("service", &given.service, &known));
    };
    let service = &services[index];
    if !service.worker_sources.iter().any(|it| it == source_name) {
        return Err(format!(
            "service {} accepts no workers of source {source_name:?}: add it to the service's \
             worker_sources",
            service.name
        ));
    }
    check_worker_name(&given.name)?;
    let address = check_address(given, service, config)?;
    if !WEIGHTS.contains(&given.weight) {
        return Err(format!(
            "its weight is {}, and must be from {} to {} percent",
            given.weight,
            WEIGHTS.start(),
            WEIGHTS.end()
        ));
    }
    let occupied = |at: &Config| {
        let mut others = at.services[index].workers.iter();
        let other = others.find(|it| it.name == given.name || it.address == address)?;
        let origin = at.origin(&service.name, &other.name);
        Some(occupied(
            other,
            origin.map(|it| it.source.as_str()),
            given,
            source_name,
        ))
    };
    if let Some(problem) = occupied(config).or_else(|| occupied(joins)) {
        return Err(problem);
    }
    let state = given.drain.clone().map(|reason| Audited {
        value: AdminState::Drain,
        by: source_name.to_owned(),
        at_ms: source
            .drained_at_ms(&given.service, &given.name)
            .unwrap_or_default(),
        reason: Some(reason),
    });
    let worker = Worker {
        name: given.name.clone(),
        address,
        weight_percent: given.weight,
        backup: false,
        agent: true,
        max_connections: 0,
    };
    let origin = WorkerOrigin {
        source: source_name.to_owned(),
        state,
    };
    Ok((index, worker, origin))
}

fn check_worker_name(name: &str) -> Result<(), String> {
    check_name(name).map_err(|problem| format!("{name:?} cannot name a worker: {problem}"))?;
    match [MANAGER, NO_BACKEND].contains(&name) {
        true => Err(format!("{name:?} is the name of every service's fallback")),
        false => Ok(()),
    }
}

fn check_address(
    given: &ExternalWorker,
    service: &Service,
    config: &Config,
) -> Result<SocketAddr, String> {
    let address = worker_address(&given.address)?;
    let (ip, own) = (address.ip(), service.address.ip());
    if config.services.iter().any(|it| it.address.ip() == ip) {
        return Err(format!(
            "{ip} is the manager's own address, and a worker is another machine"
        ));
    }
    let family = |is_ipv4| if is_ipv4 { "IPv4" } else { "IPv6" };
    match ip.is_ipv4() == own.is_ipv4() {
        true => Ok(address),
        false => Err(format!(
            "{ip} is an {} address, and the service's, {own}, an {} one",
            family(ip.is_ipv4()),
            family(own.is_ipv4())
        )),
    }
}

fn occupied(other: &Worker, owner: Option<&str>, given: &ExternalWorker, source: &str) -> String {
    let has = match other.name == given.name {
        true => format!("there is a worker {} already", other.name),
        false => format!(
            "worker {} has its address {} already",
            other.name, other.address
        ),
    };
    let owner = match owner {
        None => "of the configuration file".to_owned(),
        Some(JOINED) => "that joined by auto_join".to_owned(),
        Some(own) if own == source => "of this list".to_owned(),
        Some(other) => format!("of source {other:?}"),
    };
    format!("{has}, {owner}")
}

#[cfg(test)]
mod tests;
