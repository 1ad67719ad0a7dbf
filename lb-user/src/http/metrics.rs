//! `/metrics`: the manager's counters, and its state at the time of the scrape.
//!
//! Labels are the names of services, workers, rules and verdicts: they come from the configuration,
//! from the program, or from workers that joined with a key, so that their number is bounded.

mod peers;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use prometheus::{
    Counter, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TEXT_FORMAT, TextEncoder,
};

use super::{MAX_AGE, Shared, error::Error};
use crate::status::Status;
use lb_common::verdict::Verdict;
use lb_core::{BackendSnapshot, Health, MANAGER, Pressure};

const STATES: [Health; 10] = [
    Health::Unknown,
    Health::Up,
    Health::Down,
    Health::Unhealthy,
    Health::Leaving,
    Health::Maintenance,
    Health::Draining,
    Health::Terminated,
    Health::Paused,
    Health::Failing,
];

pub async fn metrics(State(shared): State<Shared>) -> Result<Response, Error> {
    let status = shared.manager.status(MAX_AGE).await?;
    let mut families = shared.manager.metrics().gather();
    let scrape = Scrape::default();
    scrape.manager(&status)?;
    scrape.workers(&status)?;
    scrape.services(&status)?;
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

/// One scrape's figures.
#[derive(Default)]
struct Scrape {
    registry: Registry,
}

impl Scrape {
    fn manager(&self, status: &Status) -> Result<()> {
        self.gauges("memlb_build_info", "Always 1; what runs.", &["version"])?
            .with_label_values(&[&status.version])
            .set(1);
        let heartbeats = self.counters(
            "memlb_heartbeats_total",
            "Heartbeats received, by what became of them.",
            &["outcome"],
        )?;
        heartbeats
            .with_label_values(&["accepted"])
            .inc_by(status.heartbeats.accepted);
        for (reason, count) in &status.heartbeats.refused {
            heartbeats
                .with_label_values(&[reason.as_str()])
                .inc_by(*count);
        }
        let preceding = self.gauges(
            "memlb_programs_of_other_managers",
            "Programs of another memlb that receive an interface's packets before this manager's.",
            &["interface"],
        )?;
        for interface in &status.interfaces {
            let programs = interface.preceded_by.len();
            preceding
                .with_label_values(&[interface.name.as_str()])
                .set(i64::try_from(programs)?);
        }
        let unsigned = self.counters(
            "memlb_heartbeats_unsigned_total",
            "Accepted heartbeats that carried no signature.",
            &["worker"],
        )?;
        for (worker, count) in &status.heartbeats.unsigned {
            unsigned
                .with_label_values(&[worker.as_str()])
                .inc_by(*count);
        }
        Ok(())
    }

    fn workers(&self, status: &Status) -> Result<()> {
        let states = self.gauges(
            "memlb_worker_state",
            "1 for the state that a worker is in, 0 for the others.",
            &["worker", "state"],
        )?;
        let ages = self.fractions(
            "memlb_worker_heartbeat_age_seconds",
            "Time since a worker's last heartbeat.",
            &["worker"],
        )?;
        let available = self.gauges(
            "memlb_worker_memory_available_bytes",
            "A worker's available memory, as last heard.",
            &["worker"],
        )?;
        let total = self.gauges(
            "memlb_worker_memory_total_bytes",
            "A worker's memory, as last heard.",
            &["worker"],
        )?;
        let pressure = self.fractions(
            "memlb_worker_memory_pressure_ratio",
            "Share of the last ten seconds in which some task of a worker waited for memory.",
            &["worker"],
        )?;
        let held = self.gauges(
            "memlb_worker_held",
            "1 while an operator lets a worker have no new connections.",
            &["worker"],
        )?;
        let missing = self.gauges(
            "memlb_worker_heartbeats_missing",
            "1 while a worker's heartbeats are missing and its packets keep it up.",
            &["worker"],
        )?;
        for worker in workers(status).values() {
            let name = worker.name.as_str();
            // Ineligible in one service, a worker may serve another.
            let treated = match worker.state {
                Health::Ineligible | Health::Unreachable => worker.health,
                treated => treated,
            };
            for state in STATES {
                let is_in = i64::from(treated == state);
                states.with_label_values(&[name, state.name()]).set(is_in);
            }
            missing
                .with_label_values(&[name])
                .set(worker.heartbeats_missing.into());
            held.with_label_values(&[name])
                .set((worker.admin_state.is_some() || worker.pause.is_some()).into());
            if let Some(age) = worker.age_ms {
                let age = std::time::Duration::from_millis(age);
                ages.with_label_values(&[name]).set(age.as_secs_f64());
            }
            if let Some(bytes) = worker.memory_available_bytes {
                available.with_label_values(&[name]).set(whole(bytes));
            }
            if let Some(bytes) = worker.memory_total_bytes {
                total.with_label_values(&[name]).set(whole(bytes));
            }
            if let Some(Pressure(share)) = worker.memory_pressure {
                let ratio = f64::from(share) / f64::from(Pressure::MOST.0);
                pressure.with_label_values(&[name]).set(ratio);
            }
        }
        Ok(())
    }

    fn services(&self, status: &Status) -> Result<()> {
        let by_backend = ["service", "backend"];
        let by_direction = ["service", "backend", "direction"];
        let selected = self.gauges(
            "memlb_backend_selected",
            "1 for each backend that a service's new connections may go to, 0 for the others.",
            &by_backend,
        )?;
        let shares = self.fractions(
            "memlb_backend_share_ratio",
            "A backend's part of the new connections, as far as the policy fixes it.",
            &by_backend,
        )?;
        let ineligible = self.gauges(
            "memlb_backend_ineligible",
            "1 for a backend that is up, but has no route to it or does not answer as its mode asks.",
            &by_backend,
        )?;
        let failing = self.gauges(
            "memlb_backend_failing",
            "1 for a backend that is up, but whose server refuses or does not answer handshakes.",
            &by_backend,
        )?;
        let weights = self.gauges(
            "memlb_backend_weight",
            "What a backend weighs against the others, where connections are spread.",
            &by_backend,
        )?;
        let flows = self.gauges("memlb_backend_flows", "Connections open now.", &by_backend)?;
        let half_open = self.gauges(
            "memlb_backend_half_open_flows",
            "Handshakes begun and not completed yet.",
            &by_backend,
        )?;
        let nat_ports = self.gauges(
            "memlb_backend_nat_ports",
            "Connections that a backend in mode nat can have at once; memlb refuses further ones.",
            &by_backend,
        )?;
        let connections = self.counters(
            "memlb_backend_connections_total",
            "Connections sent to a backend since the maps were made.",
            &by_backend,
        )?;
        let unanswered = self.counters(
            "memlb_backend_unanswered_total",
            "SYNs that clients repeated because no answer of the backend had passed, since the maps were made.",
            &by_backend,
        )?;
        let handshakes = self.counters(
            "memlb_backend_handshakes_total",
            "Handshakes by result since the maps were made: answered, refused by the backend, or expired without an \
             answer.",
            &["service", "backend", "result"],
        )?;
        let retried = self.counters(
            "memlb_backend_retried_total",
            "Refused handshakes whose SYN went to another backend instead, since the maps were made.",
            &by_backend,
        )?;
        let resets = self.counters(
            "memlb_backend_resets_total",
            "Answered connections that a backend ended with RST since the maps were made.",
            &by_backend,
        )?;
        let packets = self.counters(
            "memlb_backend_packets_total",
            "Packets to a backend (in) and from it (out) since the maps were made.",
            &by_direction,
        )?;
        let bytes = self.counters(
            "memlb_backend_bytes_total",
            "Bytes of whole frames to a backend (in) and from it (out) since the maps were made.",
            &by_direction,
        )?;
        let refusals = self.counters(
            "memlb_service_refused_connections_total",
            "First packets of connections that the manager itself refused, by verdict, since the maps were made.",
            &["service", "verdict"],
        )?;
        for (service, counts) in &status.refusals {
            for (verdict, count) in counts {
                let labels = [service.as_str(), verdict.as_str()];
                refusals.with_label_values(&labels).inc_by(*count);
            }
        }
        for service in &status.services {
            for backend in &service.backends {
                let (service_name, name) = (service.name.as_str(), backend.seen.name.as_str());
                let labels = [service_name, name];
                let traffic = &backend.traffic;
                let BackendSnapshot { share, weight, .. } = backend.seen;
                selected.with_label_values(&labels).set((share > 0).into());
                shares
                    .with_label_values(&labels)
                    .set(f64::from(share) / 10_000.0);
                ineligible
                    .with_label_values(&labels)
                    .set(backend.seen.ineligible_reason.is_some().into());
                failing
                    .with_label_values(&labels)
                    .set((backend.seen.state == Health::Failing).into());
                weights.with_label_values(&labels).set(weight.into());
                flows.with_label_values(&labels).set(whole(traffic.flows));
                half_open
                    .with_label_values(&labels)
                    .set(whole(traffic.half_open));
                if traffic.nat_ports != 0 {
                    nat_ports
                        .with_label_values(&labels)
                        .set(whole(traffic.nat_ports));
                }
                connections
                    .with_label_values(&labels)
                    .inc_by(traffic.connections);
                unanswered
                    .with_label_values(&labels)
                    .inc_by(traffic.unanswered);
                retried.with_label_values(&labels).inc_by(traffic.retried);
                resets.with_label_values(&labels).inc_by(traffic.resets);
                for (result, count) in [
                    ("answered", traffic.answered),
                    ("refused", traffic.refused),
                    ("expired", traffic.expired),
                ] {
                    let labels = [service_name, name, result];
                    handshakes.with_label_values(&labels).inc_by(count);
                }
                for (direction, packet_count, byte_count) in [
                    ("in", traffic.packets_in, traffic.bytes_in),
                    ("out", traffic.packets_out, traffic.bytes_out),
                ] {
                    let labels = [service_name, name, direction];
                    packets.with_label_values(&labels).inc_by(packet_count);
                    bytes.with_label_values(&labels).inc_by(byte_count);
                }
            }
        }
        Ok(())
    }

    fn datapath(&self, status: &Status) -> Result<()> {
        let packets = self.counters(
            "memlb_verdict_packets_total",
            "Packets by what became of them, since the maps were made.",
            &["verdict", "class"],
        )?;
        let bytes = self.counters(
            "memlb_verdict_bytes_total",
            "Bytes of whole frames by what became of them, since the maps were made.",
            &["verdict", "class"],
        )?;
        let denied = self.gauges(
            "memlb_denied_prefixes",
            "Prefixes of clients that the operator has denied.",
            &[],
        )?;
        let no_labels: [&str; 0] = [];
        denied
            .with_label_values(&no_labels)
            .set(i64::try_from(status.denied_prefixes)?);
        for (verdict, count) in &status.verdicts {
            let class = Verdict::from_name(verdict).map_or("", |it| it.class().name());
            let labels = [verdict.as_str(), class];
            packets.with_label_values(&labels).inc_by(count.packets);
            bytes.with_label_values(&labels).inc_by(count.bytes);
        }
        let entries = self.gauges(
            "memlb_map_entries",
            "Entries of a connection table; a full one forgets the longest unused.",
            &["map"],
        )?;
        let capacity = self.gauges(
            "memlb_map_capacity",
            "Entries that a connection table has room for.",
            &["map"],
        )?;
        for (map, fill) in &status.maps {
            let labels = [map.as_str()];
            entries.with_label_values(&labels).set(whole(fill.entries));
            capacity
                .with_label_values(&labels)
                .set(whole(fill.capacity));
        }
        Ok(())
    }

    /// The names that every Prometheus client gives to its own process.
    fn process(&self) -> Result<()> {
        let me = procfs::process::Process::myself().context("read /proc/self")?;
        let stat = me.stat().context("read /proc/self/stat")?;
        let ticks = procfs::ticks_per_second() as f64;
        let seconds = |ticks_since: u64| ticks_since as f64 / ticks;
        let booted = procfs::boot_time_secs().context("read the time of boot")? as f64;
        self.fractions(
            "process_start_time_seconds",
            "When the manager started, in seconds since 1970.",
            &[],
        )?
        .with_label_values::<&str>(&[])
        .set(booted + seconds(stat.starttime));
        let cpu = Counter::new(
            "process_cpu_seconds_total",
            "Processor time that the manager has used.",
        )?;
        cpu.inc_by(seconds(stat.utime + stat.stime));
        self.registry.register(Box::new(cpu))?;
        self.gauges(
            "process_resident_memory_bytes",
            "Memory of the manager itself.",
            &[],
        )?
        .with_label_values::<&str>(&[])
        .set(whole(stat.rss * procfs::page_size()));
        let descriptors = me.fd_count().context("count /proc/self/fd")?;
        self.gauges("process_open_fds", "Open file descriptors.", &[])?
            .with_label_values::<&str>(&[])
            .set(i64::try_from(descriptors)?);
        Ok(())
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.registry.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn fractions(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
        self.registry.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.registry.register(Box::new(counters.clone()))?;
        Ok(counters)
    }
}

/// Each worker once, even if it serves several services.
fn workers(status: &Status) -> BTreeMap<&str, &BackendSnapshot> {
    let backends = status.services.iter().flat_map(|service| &service.backends);
    backends
        .map(|backend| (backend.seen.name.as_str(), &backend.seen))
        .filter(|(name, _)| *name != MANAGER)
        .fold(BTreeMap::new(), |mut workers, (name, seen)| {
            // Failing in one service goes before up in another.
            let known = workers.entry(name).or_insert(seen);
            if known.state != Health::Failing {
                *known = seen;
            }
            workers
        })
}

fn whole(figure: u64) -> i64 {
    i64::try_from(figure).unwrap_or(i64::MAX)
}
