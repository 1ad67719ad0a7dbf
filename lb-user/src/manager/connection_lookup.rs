//! Queries the agents about clients of services of mode `dsr` whose connections the manager does not know.
//!
//! The packet programs drop such a client's packets for a second and report the client. If an agent has the connection,
//! the manager writes its flow, and the client's repeated packet continues it.

use std::{
    collections::BTreeMap,
    future::pending,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::FutureExt as _;
use lb_common::maps::{FlowRecord, elapsed_ns, ended, record_kind};
use lb_core::{BackendId, Endpoint, Event, Mode, Sequence};
use tokio::time::sleep_until;
use tracing::{debug, warn};

use super::{
    Manager,
    pending_lookups::{Candidate, LOOKUP_TIMEOUT, LookupClient, LookupCounts, PendingLookups},
};
use crate::{
    datapath::{Datapath, Intake, UnknownClients, from_mapped, monotonic_ns, protocol_of},
    heartbeat::ConnectionQuery,
    heartbeat_receiver::{AgentAddress, ReceivedConnectionReply, ReceivedHeartbeat},
};

/// How often queries without a reply, and workers that come up, are checked.
const TICK: Duration = Duration::from_millis(20);

/// The least time between two events about lookups.
const EVENT_INTERVAL: Duration = Duration::from_secs(10);

/// The lookups, with the ring of unknown clients and the agents.
#[derive(Debug)]
pub(super) struct ConnectionLookup {
    /// `None` if the map can no longer be read.
    events: Option<UnknownClients>,
    /// Loaded when a service of mode `dsr` needs it, because the verifier takes a while.
    intake: Option<Intake>,
    pending: PendingLookups,
    /// When pending lookups are checked next; `None` if no client waits.
    next_check: Option<Instant>,
    /// Unknown clients that were read from the ring.
    unknown: Vec<FlowRecord>,
    /// The agents with a DSR translator, by worker.
    agents: BTreeMap<String, (AgentAddress, Sequence)>,
    /// The outcomes that no event has reported yet.
    counts: LookupCounts,
    emitted: Option<Instant>,
}

impl ConnectionLookup {
    /// Opens the ring of unknown clients. If a service has mode `dsr`, it also loads the intake.
    ///
    /// # Errors
    ///
    /// Names the map or the program that cannot be opened.
    pub fn open(datapath: &mut Datapath, has_dsr: bool) -> Result<Self> {
        Ok(Self {
            events: Some(UnknownClients::open(datapath.pin_path())?),
            intake: has_dsr.then(|| datapath.intake()).transpose()?,
            pending: PendingLookups::new(Instant::now()),
            next_check: None,
            unknown: Vec::new(),
            agents: BTreeMap::new(),
            counts: LookupCounts::default(),
            emitted: None,
        })
    }

    /// Waits until there are unknown clients, or until the next check of pending lookups. Cancel safe.
    pub async fn due(&mut self) {
        let Some(events) = &mut self.events else {
            return pending().await;
        };
        let read = match self.next_check {
            // A flood wakes the manager no more often than this.
            Some(next) => {
                sleep_until(next.into()).await;
                let batch = events.next_batch(&mut self.unknown);
                batch.now_or_never().unwrap_or(Ok(()))
            }
            None => events.next_batch(&mut self.unknown).await,
        };
        if let Err(error) = read {
            warn!("agents are no longer queried about unknown connections: {error}");
            self.events = None;
        }
    }

    /// Removes the agents of workers that are no longer configured.
    pub fn retain_agents(&mut self, is_configured: impl Fn(&str) -> bool) {
        self.agents.retain(|worker, _| is_configured(worker));
    }

    /// Records the address of an agent with a DSR translator.
    pub fn record_agent(&mut self, heartbeat: &ReceivedHeartbeat) {
        let report = &heartbeat.report;
        let Some(sequence) = report.sequence.filter(|_| !report.translates.is_empty()) else {
            return;
        };
        let agent = (heartbeat.agent(), sequence);
        match self.agents.get_mut(&report.worker) {
            Some(known) => *known = agent,
            None => {
                self.agents.insert(report.worker.clone(), agent);
            }
        }
    }
}

impl Manager {
    /// Reads the unknown clients, and queries the agents.
    pub(super) fn query_agents(&mut self) {
        let now = Instant::now();
        let clock = monotonic_ns().unwrap_or(0);
        // The kernel has reset the connections of older records, which a former manager left.
        let is_recent = |record: &FlowRecord| {
            u128::from(elapsed_ns(clock, record.created_ticks)) < LOOKUP_TIMEOUT.as_nanos()
        };
        for record in self.connection_lookup.unknown.drain(..).filter(is_recent) {
            if let Some(client) = client_of(&record) {
                let pending = &mut self.connection_lookup.pending;
                pending.add(client, present(record), now);
            }
        }
        for candidate in self.candidates() {
            while self.query_agent(candidate, now) {}
        }
        self.connection_lookup.pending.expire(now);
        let is_waiting = self.connection_lookup.pending.is_waiting();
        self.connection_lookup.next_check = is_waiting.then(|| now + TICK);
        self.report_lookups(now);
    }

    /// Queries one agent about as many clients as one datagram holds; returns whether there may be more.
    fn query_agent(&mut self, candidate: Candidate, now: Instant) -> bool {
        let clients = self.connection_lookup.pending.due(&candidate, now);
        if clients.is_empty() {
            return false;
        }
        let nonce = match getrandom::u64() {
            Ok(nonce) => nonce,
            Err(error) => {
                warn!("query the agents: {error}");
                return false;
            }
        };
        let mut query = ConnectionQuery {
            heartbeat: candidate.heartbeat,
            nonce,
            service: candidate.service,
            clients,
        };
        if let Err(refusal) = self.receiver.send_query(candidate.agent, &mut query) {
            debug!("query an agent: {refusal}");
            return false;
        }
        let pending = &mut self.connection_lookup.pending;
        pending.record_query(nonce, candidate, query.clients, now);
        true
    }

    /// Returns the workers of the services with pending lookups whose agents are known.
    fn candidates(&self) -> Vec<Candidate> {
        let pending = self.connection_lookup.pending.services();
        let services = self.configuration.settings.services.iter();
        let services =
            services.filter(|it| it.mode == Mode::Dsr && pending.contains(&it.endpoint()));
        let of = |service: Endpoint, backend: BackendId, worker: &str| {
            let (agent, heartbeat) = *self.connection_lookup.agents.get(worker)?;
            self.datapath.keeps_flows(backend).then_some(Candidate {
                service,
                backend,
                agent,
                heartbeat,
            })
        };
        services
            .flat_map(|service| {
                let backends = service.backends.iter();
                backends.filter_map(move |it| of(service.endpoint(), it.id, &it.worker))
            })
            .collect()
    }

    /// Writes the flows of an agent's reply.
    pub(super) fn handle_connection_reply(&mut self, received: &ReceivedConnectionReply) {
        let pending = &mut self.connection_lookup.pending;
        let Some(found) = pending.handle_reply(received.reply, &received.agent, Instant::now())
        else {
            return self.receiver.refuse_connection_reply(received);
        };
        if !found.is_empty()
            && let Err(error) = self.admit_found(&found)
        {
            self.map_write_failed(&error);
        }
    }

    fn admit_found(&mut self, found: &[FlowRecord]) -> Result<()> {
        let intake = match &mut self.connection_lookup.intake {
            Some(intake) => intake,
            unloaded => unloaded.insert(self.datapath.intake()?),
        };
        let outcome = intake.admit(found)?;
        debug!("admitted connections that agents have: {outcome:?}");
        Ok(())
    }

    /// Counts the outcomes of lookups, and emits an event from time to time.
    pub(super) fn report_lookups(&mut self, now: Instant) {
        let ConnectionLookup {
            pending,
            counts,
            emitted,
            ..
        } = &mut self.connection_lookup;
        let new = pending.drain_counts();
        self.emitter
            .metrics
            .count_lookups(new.found, new.not_found, new.limited);
        counts.found += new.found;
        counts.not_found += new.not_found;
        counts.limited += new.limited;
        let is_recent = |at| now.saturating_duration_since(at) < EVENT_INTERVAL;
        if *counts == LookupCounts::default()
            || pending.is_waiting() && counts.limited == 0
            || emitted.is_some_and(is_recent)
        {
            return;
        }
        *emitted = Some(now);
        let LookupCounts {
            found,
            not_found,
            limited,
        } = std::mem::take(counts);
        self.emitter.emit(&Event::ConnectionsLookedUp {
            found,
            not_found,
            limited,
        });
    }
}

/// Returns the service and the client of a record.
fn client_of(record: &FlowRecord) -> Option<LookupClient> {
    let socket = |address, port| SocketAddr::new(from_mapped(address), u16::from_be_bytes(port));
    let service = Endpoint {
        address: socket(record.service_address, record.service_port),
        protocol: protocol_of(record.protocol)?,
    };
    Some((service, socket(record.client, record.client_port)))
}

/// Returns the record of the connection for the intake, without its backend. In mode `dsr`, a worker sees the client's
/// own address, and its replies do not pass the manager.
fn present(record: FlowRecord) -> FlowRecord {
    FlowRecord {
        kind: record_kind::PRESENT,
        source: record.client,
        source_port: record.client_port,
        ended: [0, ended::FIN],
        ..record
    }
}
