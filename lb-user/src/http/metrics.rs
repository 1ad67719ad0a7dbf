//! `/metrics`: the manager's counters, and its state at the time of the scrape.
//!
//! Labels are names from the configuration, from the program, and of workers that joined with a key, so their number is
//! bounded.

mod peers;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use prometheus::{CounterVec, GaugeVec, Opts, Registry, TEXT_FORMAT, TextEncoder};

use super::{
    error::HttpError,
    state::{HttpState, MAX_AGE},
};
use crate::status::{BackendStatus, Status};
use lb_common::verdict::Verdict;
use lb_core::{BackendSnapshot, Health, MANAGER, Pressure};

/// Every family, with its help text. A name that ends in `_total` is a counter, every other one a gauge.
const HELP: &str = "\
memlb_backend_bytes_total: Bytes of whole frames to a backend (in) and from it (out) since the maps were made.
memlb_backend_connections_total: Connections sent to a backend since the maps were made.
memlb_backend_failing: 1 for a backend that is up, but whose server refuses or does not answer handshakes.
memlb_backend_flows: Connections open now.
memlb_backend_half_open_flows: Handshakes that are not completed yet.
memlb_backend_handshakes_total: Handshakes by result since the maps were made: answered, refused by the backend, or expired without an answer.
memlb_backend_ineligible: 1 for a backend that is up, but has no route to it or does not answer as its mode asks.
memlb_backend_last_answer_age_seconds: Time since a backend last answered a client, as far as its answers pass the manager; absent before the first.
memlb_backend_nat_ports: Connections that a backend in mode nat can have at once; memlb refuses further ones.
memlb_backend_packets_total: Packets to a backend (in) and from it (out) since the maps were made.
memlb_backend_resets_total: Answered connections that a backend ended with RST since the maps were made.
memlb_backend_retried_total: Refused handshakes whose SYN went to another backend instead, since the maps were made.
memlb_backend_selected: 1 for each backend that a service's new connections may go to, 0 for the others.
memlb_backend_share_ratio: A backend's part of the new connections, as far as the policy fixes it.
memlb_backend_unanswered_total: SYNs that clients repeated because no answer of the backend had passed, since the maps were made.
memlb_backend_weight: Weight of a backend, where connections are spread.
memlb_build_info: Always 1; the label has the running version.
memlb_denied_prefixes: Prefixes of clients that the operator has denied.
memlb_handed_over: 1 while memlb handover keeps this manager's priority low.
memlb_heartbeats_total: Heartbeats received, by outcome.
memlb_heartbeats_unsigned_total: Accepted heartbeats that carried no signature.
memlb_map_capacity: Maximum number of entries of a connection table.
memlb_map_entries: Entries of a connection table; a full one evicts the least recently used.
memlb_peer_acknowledgement_seconds: Time from reading a record to its acknowledgement, of the last frames.
memlb_peer_bytes_total: Bytes exchanged with a peer.
memlb_peer_configuration_matches: 1 if a peer's settings of services, workers, policies and failover equal this manager's, else 0.
memlb_peer_frames_refused_total: Frames in a peer's name that were refused, by reason.
memlb_peer_incomplete: 1 while a peer does not know all connections of this manager (sent), or this one not all of the peer's (received).
memlb_peer_intake_total: A peer's records, by their outcome in the connection tables here.
memlb_peer_lag_seconds: Age of the oldest record that a peer has not acknowledged; if this machine died now, newer connections would be lost.
memlb_peer_lost_records_total: Records that the full queue or the kernel's full ring lost; all connections were then sent again.
memlb_peer_queue_records: Records that wait to be sent to a peer.
memlb_peer_records_total: Records of connections that were exchanged with a peer.
memlb_peer_relayed_packets_total: Packets of connections unknown here that were relayed to a peer.
memlb_peer_resyncs_total: How often all connections were sent to a peer.
memlb_peer_state: 1 for the state that the session with a peer is in, 0 for the others.
memlb_programs_of_other_managers: Programs of another memlb that receive an interface's packets before this manager's.
memlb_service_refused_connections_total: First packets of connections that the manager itself refused, by verdict, since the maps were made.
memlb_verdict_bytes_total: Bytes of whole frames by verdict, since the maps were made.
memlb_verdict_packets_total: Packets by verdict, since the maps were made.
memlb_worker_heartbeat_age_seconds: Time since a worker's last heartbeat.
memlb_worker_heartbeats_missing: 1 while a worker's heartbeats are missing and its packets keep it up.
memlb_worker_held: 1 while an operator's order keeps new connections away from a worker.
memlb_worker_memory_available_bytes: A worker's available memory, from its last heartbeat.
memlb_worker_memory_pressure_ratio: Share of the last ten seconds in which some task of a worker waited for memory.
memlb_worker_memory_total_bytes: A worker's total memory, from its last heartbeat.
memlb_worker_state: 1 for the state that a worker is in, 0 for the others.
process_cpu_seconds_total: Processor time of the manager.
process_open_fds: Open file descriptors of the manager.
process_resident_memory_bytes: Resident memory of the manager.
process_start_time_seconds: Start time of the manager, in seconds since 1970.";

pub async fn metrics(State(shared): State<HttpState>) -> Result<Response, HttpError> {
    let status = shared.manager.status(MAX_AGE).await?;
    let mut families = shared.manager.metrics().gather();
    let mut scrape = Scrape::default();
    scrape.manager(&status)?;
    for worker in workers(&status).values() {
        scrape.worker(worker)?;
    }
    for service in &status.services {
        for backend in &service.backends {
            scrape.backend(&service.name, backend)?;
        }
    }
    scrape.datapath(&status)?;
    scrape.peers(&status)?;
    scrape.process()?;
    families.extend(scrape.registry.gather());
    families.sort_by(|one, other| one.name().cmp(other.name()));
    let text = TextEncoder::new()
        .encode_to_string(&families)
        .context("write the metrics")?;
    Ok(([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
}

/// The figures of one scrape. The first figure of a family registers it.
#[derive(Default)]
struct Scrape {
    registry: Registry,
    families: BTreeMap<&'static str, LabelledMetric>,
}

enum LabelledMetric {
    Gauge(GaugeVec),
    Counter(CounterVec),
}

impl LabelledMetric {
    fn new(name: &'static str, labels: &[&str], registry: &Registry) -> Result<Self> {
        let mut texts = HELP.lines().filter_map(|line| line.split_once(": "));
        let (_, help) = texts
            .find(|it| it.0 == name)
            .with_context(|| format!("{name} has no help text"))?;
        let options = Opts::new(name, help);
        Ok(match name.ends_with("_total") {
            true => {
                let counters = CounterVec::new(options, labels)?;
                registry.register(Box::new(counters.clone()))?;
                Self::Counter(counters)
            }
            false => {
                let gauges = GaugeVec::new(options, labels)?;
                registry.register(Box::new(gauges.clone()))?;
                Self::Gauge(gauges)
            }
        })
    }
}

impl Scrape {
    /// Adds a figure of a family in [`HELP`]; `labels` are names and values.
    fn add(&mut self, name: &'static str, labels: &[(&str, &str)], figure: f64) -> Result<()> {
        let family = match self.families.entry(name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let names: Vec<&str> = labels.iter().map(|it| it.0).collect();
                new.insert(LabelledMetric::new(name, &names, &self.registry)?)
            }
        };
        let values: Vec<&str> = labels.iter().map(|it| it.1).collect();
        match family {
            LabelledMetric::Gauge(it) => it.get_metric_with_label_values(&values)?.set(figure),
            LabelledMetric::Counter(it) => it.get_metric_with_label_values(&values)?.inc_by(figure),
        }
        Ok(())
    }

    fn manager(&mut self, status: &Status) -> Result<()> {
        self.add("memlb_build_info", &[("version", &status.version)], 1.0)?;
        let heartbeats = &status.heartbeats;
        let accepted = ("accepted", heartbeats.accepted);
        let refused = heartbeats.refused.iter();
        let refused = refused.map(|(reason, count)| (reason.as_str(), *count));
        for (outcome, count) in refused.chain([accepted]) {
            self.add(
                "memlb_heartbeats_total",
                &[("outcome", outcome)],
                whole(count),
            )?;
        }
        for interface in &status.interfaces {
            let labels = [("interface", interface.name.as_str())];
            let programs = interface.preceded_by.len();
            self.add("memlb_programs_of_other_managers", &labels, programs as f64)?;
        }
        for (worker, count) in &heartbeats.unsigned {
            let labels = [("worker", worker.as_str())];
            self.add("memlb_heartbeats_unsigned_total", &labels, whole(*count))?;
        }
        Ok(())
    }

    fn worker(&mut self, worker: &BackendSnapshot) -> Result<()> {
        let name = ("worker", worker.name.as_str());
        // These states belong to one service: the worker may serve another.
        let is_of_service = |it: &Health| matches!(it, Health::Ineligible | Health::Unreachable);
        let treated = match is_of_service(&worker.state) {
            true => worker.health,
            false => worker.state,
        };
        for state in Health::ALL.into_iter().filter(|it| !is_of_service(it)) {
            let labels = [name, ("state", state.name())];
            self.add("memlb_worker_state", &labels, (treated == state).into())?;
        }
        let is_held = worker.admin_state.is_some() || worker.pause.is_some();
        let is_missing = worker.heartbeats_missing;
        let pressure = |Pressure(share)| f64::from(share) / f64::from(Pressure::MOST.0);
        let seconds = |ms| Duration::from_millis(ms).as_secs_f64();
        for (family, figure) in [
            ("memlb_worker_heartbeats_missing", Some(is_missing.into())),
            ("memlb_worker_held", Some(is_held.into())),
            (
                "memlb_worker_heartbeat_age_seconds",
                worker.age_ms.map(seconds),
            ),
            (
                "memlb_worker_memory_available_bytes",
                worker.memory_available_bytes.map(whole),
            ),
            (
                "memlb_worker_memory_total_bytes",
                worker.memory_total_bytes.map(whole),
            ),
            (
                "memlb_worker_memory_pressure_ratio",
                worker.memory_pressure.map(pressure),
            ),
        ] {
            if let Some(figure) = figure {
                self.add(family, &[name], figure)?;
            }
        }
        Ok(())
    }

    fn backend(
        &mut self,
        service: &str,
        BackendStatus { seen, traffic }: &BackendStatus,
    ) -> Result<()> {
        let labels = [("service", service), ("backend", &seen.name)];
        let [service, backend] = labels;
        let is_ineligible = seen.ineligible_reason.is_some();
        for (family, figure) in [
            ("memlb_backend_selected", (seen.share > 0).into()),
            (
                "memlb_backend_share_ratio",
                f64::from(seen.share) / 10_000.0,
            ),
            ("memlb_backend_ineligible", is_ineligible.into()),
            (
                "memlb_backend_failing",
                (seen.state == Health::Failing).into(),
            ),
            ("memlb_backend_weight", seen.weight.into()),
            ("memlb_backend_flows", whole(traffic.flows)),
            ("memlb_backend_half_open_flows", whole(traffic.half_open)),
            (
                "memlb_backend_connections_total",
                whole(traffic.connections),
            ),
            ("memlb_backend_unanswered_total", whole(traffic.unanswered)),
            ("memlb_backend_retried_total", whole(traffic.retried)),
            ("memlb_backend_resets_total", whole(traffic.resets)),
        ] {
            self.add(family, &labels, figure)?;
        }
        if let Some(age) = traffic.last_answer_ms {
            let age = Duration::from_millis(age).as_secs_f64();
            self.add("memlb_backend_last_answer_age_seconds", &labels, age)?;
        }
        if traffic.nat_ports != 0 {
            self.add("memlb_backend_nat_ports", &labels, whole(traffic.nat_ports))?;
        }
        for (result, count) in [
            ("answered", traffic.answered),
            ("refused", traffic.refused),
            ("expired", traffic.expired),
        ] {
            let labels = [service, backend, ("result", result)];
            self.add("memlb_backend_handshakes_total", &labels, whole(count))?;
        }
        for (direction, packets, bytes) in [
            ("in", traffic.packets_in, traffic.bytes_in),
            ("out", traffic.packets_out, traffic.bytes_out),
        ] {
            let labels = [service, backend, ("direction", direction)];
            self.add("memlb_backend_packets_total", &labels, whole(packets))?;
            self.add("memlb_backend_bytes_total", &labels, whole(bytes))?;
        }
        Ok(())
    }

    fn datapath(&mut self, status: &Status) -> Result<()> {
        for (service, counts) in &status.refusals {
            for (verdict, count) in counts {
                let labels = [("service", service.as_str()), ("verdict", verdict)];
                self.add(
                    "memlb_service_refused_connections_total",
                    &labels,
                    whole(*count),
                )?;
            }
        }
        self.add("memlb_denied_prefixes", &[], status.denied_prefixes as f64)?;
        for (verdict, count) in &status.verdicts {
            let class = Verdict::from_name(verdict).map_or("", |it| it.class().name());
            let labels = [("verdict", verdict.as_str()), ("class", class)];
            self.add("memlb_verdict_packets_total", &labels, whole(count.packets))?;
            self.add("memlb_verdict_bytes_total", &labels, whole(count.bytes))?;
        }
        for (map, fill) in &status.maps {
            let labels = [("map", map.as_str())];
            self.add("memlb_map_entries", &labels, whole(fill.entries))?;
            self.add("memlb_map_capacity", &labels, whole(fill.capacity))?;
        }
        Ok(())
    }

    /// The process metrics that every Prometheus client library has.
    fn process(&mut self) -> Result<()> {
        let me = procfs::process::Process::myself().context("read /proc/self")?;
        let stat = me.stat().context("read /proc/self/stat")?;
        let descriptors = me.fd_count().context("count /proc/self/fd")?;
        let booted = procfs::boot_time_secs().context("read the time of boot")?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        let started = whole(booted) + seconds(stat.starttime);
        let memory = whole(stat.rss * procfs::page_size());
        self.add("process_start_time_seconds", &[], started)?;
        self.add(
            "process_cpu_seconds_total",
            &[],
            seconds(stat.utime + stat.stime),
        )?;
        self.add("process_resident_memory_bytes", &[], memory)?;
        self.add("process_open_fds", &[], descriptors as f64)
    }
}

/// Each worker once, also if it serves several services.
fn workers(status: &Status) -> BTreeMap<&str, &BackendSnapshot> {
    (status.backends())
        .map(|backend| (backend.seen.name.as_str(), &backend.seen))
        .filter(|(name, _)| *name != MANAGER)
        .fold(BTreeMap::new(), |mut workers, (name, seen)| {
            // A failing state in one service takes precedence over "up" in another.
            let known = workers.entry(name).or_insert(seen);
            if known.state != Health::Failing {
                *known = seen;
            }
            workers
        })
}

fn whole(figure: u64) -> f64 {
    figure as f64
}
