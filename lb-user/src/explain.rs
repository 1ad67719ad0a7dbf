//! `memlb explain`: why a client's connections are on their workers, and where its next one would go.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, time::Duration};

use lb_common::maps::TICK_NS;
use lb_core::{ALL_WORKERS, BackendSnapshot, Bytes, MANAGER, ServiceSnapshot, Share};
use serde::{Deserialize, Serialize};

use crate::{
    flows::{Client, FlowFilter, FlowRow, Flows},
    history::{Decision, History},
    membership::AbsentWorker,
    peer::PeerStatus,
    status::{ServiceStatus, Status, WorkerSource, failures},
};

/// The most connections to explain.
const MAX_CONNECTIONS: usize = 20;

/// The reply to `memlb explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub client: String,
    /// Who denied the client and why, if it is denied.
    pub denied: Option<String>,
    /// The client's connections, the youngest first.
    pub connections: Vec<ExplainedConnection>,
    /// Number of all connections of the client.
    pub total: usize,
    /// Where a new connection would go, for each service.
    pub next: Vec<NextConnection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedConnection {
    pub connection: FlowRow,
    /// When it began, in milliseconds since 1970 by the manager's clock.
    #[serde(default)]
    pub begun_ms: u64,
    /// The decision in force when the connection began; absent if it is older than the history.
    pub decision: Option<Decision>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextConnection {
    pub service: ServiceSnapshot,
    /// Failed connections of clients, by worker.
    #[serde(default)]
    pub failures: BTreeMap<String, String>,
    /// Entries of sources that are not workers of the service, with the reason.
    #[serde(default)]
    pub absent: Vec<AbsentWorker>,
}

/// The precision of a connection's begin, in milliseconds.
const TICK_MS: u64 = TICK_NS.div_ceil(1_000_000);

impl Explanation {
    /// `read_ms`: the time within which the connections were read, in milliseconds since 1970.
    pub fn new(
        client: Client,
        connections: Vec<crate::datapath::Connection>,
        read_ms: &RangeInclusive<u64>,
        services: Vec<ServiceSnapshot>,
        service: Option<&str>,
        history: &History,
    ) -> Self {
        let filter = FlowFilter {
            client: Some(client.into()),
            service: service.map(str::to_owned),
            worker: None,
            ended: true,
        };
        let Flows { total, flows } = Flows::new(connections, &services, &filter, MAX_CONNECTIONS);
        let explained = flows.into_iter().map(|connection| {
            let earliest = read_ms.start().saturating_sub(connection.age_ms + TICK_MS);
            let latest = (read_ms.end() + TICK_MS).saturating_sub(connection.age_ms);
            let worker = connection.worker.as_deref();
            let decision = history.at(&connection.service, &(earliest..=latest), worker);
            let begun_ms = read_ms.end().saturating_sub(connection.age_ms);
            let decided_ms = decision.as_ref().map_or(0, |it| it.at_ms);
            ExplainedConnection {
                begun_ms: begun_ms.max(decided_ms),
                decision,
                connection,
            }
        });
        let wanted = |it: &ServiceSnapshot| service.is_none_or(|service| it.name == service);
        let next = services.into_iter().filter(wanted);
        Self {
            client: client.to_string(),
            denied: None,
            connections: explained.collect(),
            total,
            next: next
                .map(|service| NextConnection {
                    service,
                    failures: BTreeMap::new(),
                    absent: Vec::new(),
                })
                .collect(),
        }
    }

    /// Names the peers that admitted connections.
    #[must_use]
    pub fn with_peers(mut self, peers: &[PeerStatus]) -> Self {
        for explained in &mut self.connections {
            explained.connection.name_peer(peers);
        }
        self
    }

    /// Adds to each service the entries of its sources that are not workers.
    #[must_use]
    pub fn with_absent(mut self, sources: &[WorkerSource]) -> Self {
        for NextConnection {
            service, absent, ..
        } in &mut self.next
        {
            let all = sources.iter().flat_map(|source| &source.absent);
            let of_service = all.filter(|it| it.service.as_ref() == Some(&service.name));
            absent.extend(of_service.cloned());
        }
        self
    }

    /// Adds the failed connections of clients.
    pub fn add_failures(&mut self, status: &Status) {
        for next in &mut self.next {
            let mut services = status.services.iter();
            let service = services.find(|it| it.name == next.service.name);
            next.failures = service.map(failures_of).unwrap_or_default();
        }
    }
}

/// Describes the failed connections of a service's clients, by worker.
pub fn failures_of(service: &ServiceStatus) -> BTreeMap<String, String> {
    let backends = service.backends.iter();
    let failing = backends.filter_map(|it| Some((it.seen.name.clone(), failures(&it.traffic)?)));
    failing.collect()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(denied) = &self.denied {
            return writeln!(f, "{denied}. Its packets are dropped.");
        }
        if self.connections.is_empty() {
            writeln!(f, "{} has no connection here.", self.client)?;
        }
        for explained in &self.connections {
            writeln!(f, "{explained}")?;
        }
        if self.total > self.connections.len() {
            let more = self.total - self.connections.len();
            writeln!(f, "{more} more: memlb flows --client {}\n", self.client)?;
        }
        for NextConnection {
            service,
            failures,
            absent,
        } in &self.next
        {
            writeln!(
                f,
                "A new connection to {} ({}/{}) would go to {}, policy {}, for {}:\n  {}",
                service.name,
                service.address,
                service.protocol,
                chosen(service),
                policy(service),
                duration_text(service.since_ms),
                service.reason
            )?;
            if let Some(waiting) = &service.waiting {
                writeln!(f, "  {waiting}")?;
            }
            write_workers(f, service)?;
            for (worker, failures) in failures {
                writeln!(f, "    {worker}: {failures}")?;
            }
            (absent.iter()).try_for_each(|absent| writeln!(f, "    not a worker: {absent}"))?;
        }
        Ok(())
    }
}

/// Names the backend of a service's new connections, or the number of those among which one is chosen.
fn chosen(service: &ServiceSnapshot) -> String {
    if service.selected != ALL_WORKERS {
        return service.selected.clone();
    }
    let may_be = |it: &&BackendSnapshot| it.share > 0;
    let mut backends = service.backends.iter().filter(may_be);
    match (backends.next(), backends.count()) {
        (Some(only), 0) => only.name.clone(),
        (_, others) => format!("one of {} workers", others + 1),
    }
}

impl fmt::Display for ExplainedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FlowRow {
            protocol,
            client,
            service,
            service_address,
            worker,
            worker_address,
            state,
            age_ms,
            idle_ms,
            bytes_in,
            bytes_out,
            admitted_by,
            ..
        } = &self.connection;
        let worker = worker.as_deref().unwrap_or("a worker no longer configured");
        writeln!(
            f,
            "{client} to {service} ({service_address}/{protocol}) went to {worker} ({worker_address}) {} ago: {}, \
             last packet {} ago, {} in, {} out",
            duration_text(*age_ms),
            state.name(),
            duration_text(*idle_ms),
            Bytes(*bytes_in),
            Bytes(*bytes_out)
        )?;
        if let Some(peer) = admitted_by {
            let passed = match self.connection.is_carried() {
                true => "packets of it have passed here, too",
                false => "no packet of it has passed here",
            };
            return writeln!(
                f,
                "  because peer {peer} admitted it ({passed}); memlb explain there says why"
            );
        }
        let Some(decision) = &self.decision else {
            return writeln!(
                f,
                "  because of a decision that is older than this manager's history; see the event log"
            );
        };
        writeln!(
            f,
            "  because, {} before: {}",
            duration_text(self.begun_ms.saturating_sub(decision.at_ms)),
            decision.message
        )?;
        write_workers(f, &decision.service)
    }
}

/// Writes the state of a service's workers.
fn write_workers(f: &mut fmt::Formatter<'_>, service: &ServiceSnapshot) -> fmt::Result {
    let workers = service.backends.iter().filter(|it| it.name != MANAGER);
    for worker in workers {
        let BackendSnapshot {
            name,
            source,
            age_ms,
            memory_available_bytes,
            share,
            weight_percent,
            reason,
            ..
        } = worker;
        let memory = memory_available_bytes.map_or("memory unknown".to_owned(), |bytes| {
            format!("{} available", Bytes(bytes))
        });
        let age = age_ms.map_or("no heartbeat".to_owned(), |age| {
            format!("heartbeat {age} ms before")
        });
        write!(
            f,
            "    {name:<12} {:<12} {memory}, {age}, share {}",
            worker.state_text(),
            Share(*share)
        )?;
        if let Some(weight) = weight_percent {
            write!(f, ", weight {}% by {}", weight.value, weight.by)?;
        }
        match source {
            Some(source) => writeln!(f, ", from source {source}")?,
            None => writeln!(f)?,
        }
        if let Some(reason) = reason {
            writeln!(f, "      {}", reason.text)?;
        }
    }
    Ok(())
}

fn policy(service: &ServiceSnapshot) -> String {
    let policy = serde_json::to_value(service.policy).unwrap_or_default();
    policy.as_str().unwrap_or("unknown").to_owned()
}

/// Formats a duration; milliseconds only below one second.
fn duration_text(milliseconds: u64) -> String {
    let rounded = match milliseconds {
        0..1000 => milliseconds,
        _ => milliseconds / 1000 * 1000,
    };
    humantime::format_duration(Duration::from_millis(rounded)).to_string()
}
