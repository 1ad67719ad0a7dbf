//! Counters and histograms of the manager's task, for `/metrics`.

use std::{collections::BTreeSet, time::Duration};

use lb_core::{Event, Health};
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, core::Collector,
    proto::MetricFamily,
};
use serde::Serialize;
use serde_json::Value;

use crate::config::Config;

/// Rules by which a service leaves a worker. Their counters exist from the start, so that the first change is an
/// increase.
const LEAVING_RULES: [&str; 3] = ["failover", "no_worker_up", "more_memory"];
const STATES: [Health; 6] = [
    Health::Up,
    Health::Down,
    Health::Unhealthy,
    Health::Leaving,
    Health::Maintenance,
    Health::Failing,
];

const DETECTION_SECONDS: [f64; 12] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0,
];
const LAG_SECONDS: [f64; 10] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
];

/// Counters since the manager's start. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    selections: IntCounterVec,
    share_changes: IntCounterVec,
    state_changes: IntCounterVec,
    detection: Histogram,
    lag: Histogram,
    map_write_failures: IntCounter,
    programs_restored: IntCounterVec,
    lookups: IntCounterVec,
}

impl Metrics {
    /// Creates counters of 0 for the configured interfaces, services and workers.
    ///
    /// # Errors
    ///
    /// A metric is not valid; never for those of this function.
    pub fn new(config: &Config) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            prometheus::Result::Ok(counters)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone()))?;
            prometheus::Result::Ok(histogram)
        };
        let map_write_failures = IntCounter::new(
            "memlb_map_write_failures_total",
            "Writes to a BPF map that failed; the datapath lacks a decision then.",
        )?;
        registry.register(Box::new(map_write_failures.clone()))?;
        let metrics = Self {
            selections: counters(
                "memlb_selections_total",
                "Changes of a service's selection, by the rule that made them.",
                &["service", "rule"],
            )?,
            share_changes: counters(
                "memlb_share_changes_total",
                "Changes of the shares of a service that spreads connections, by their cause.",
                &["service", "cause"],
            )?,
            state_changes: counters(
                "memlb_worker_state_changes_total",
                "How often a worker came into a state.",
                &["worker", "state"],
            )?,
            detection: histogram(
                "memlb_detection_seconds",
                "Time from a worker's last heartbeat until the manager declared it down.",
                &DETECTION_SECONDS,
            )?,
            lag: histogram(
                "memlb_manager_lag_seconds",
                "How late the manager's loop served a deadline or a tick.",
                &LAG_SECONDS,
            )?,
            programs_restored: counters(
                "memlb_programs_restored_total",
                "How often programs were attached again after another program had detached them.",
                &["interface"],
            )?,
            lookups: counters(
                "memlb_connection_lookups_total",
                "Unknown connections of services of mode dsr that were looked up at the agents, by outcome.",
                &["outcome"],
            )?,
            map_write_failures,
            registry: registry.clone(),
        };
        metrics.count_lookups(0, 0, 0);
        for interface in &config.manager.interfaces {
            metrics
                .programs_restored
                .with_label_values(&[interface.as_str()]);
        }
        for service in &config.services {
            for rule in LEAVING_RULES {
                metrics
                    .selections
                    .with_label_values(&[service.name.as_str(), rule]);
            }
            for worker in &service.workers {
                for state in STATES {
                    let labels = [worker.name.as_str(), state.name()];
                    metrics.state_changes.with_label_values(&labels);
                }
            }
        }
        Ok(metrics)
    }

    /// Counts an event.
    pub fn count(&self, event: &Event) {
        match event {
            Event::SelectionChanged { service, rule, .. } => self
                .selections
                .with_label_values(&[service, &name(*rule)])
                .inc(),
            Event::SharesChanged { service, cause, .. } => self
                .share_changes
                .with_label_values(&[service, &name(*cause)])
                .inc(),
            Event::WorkerUp { worker, .. } => self.count_state(worker, Health::Up),
            Event::WorkerUnhealthy { worker, .. } => self.count_state(worker, Health::Unhealthy),
            Event::WorkerLeaving { worker, .. } => self.count_state(worker, Health::Leaving),
            Event::WorkerMaintenance { worker, .. } => {
                self.count_state(worker, Health::Maintenance);
            }
            Event::WorkerFailing { worker, .. } => self.count_state(worker, Health::Failing),
            // The silence of a paused worker was expected: it is not a time of detection.
            Event::WorkerDown {
                worker,
                was: Health::Paused,
                ..
            } => self.count_state(worker, Health::Down),
            Event::WorkerDown {
                worker, silent_ms, ..
            } => {
                self.count_state(worker, Health::Down);
                let silence = Duration::from_millis(*silent_ms);
                self.detection.observe(silence.as_secs_f64());
            }
            Event::ProgramsRestored { interface, .. } => {
                self.programs_restored.with_label_values(&[interface]).inc();
            }
            _ => {}
        }
    }

    /// Records how late the loop served a deadline.
    pub fn observe_lag(&self, lag: Duration) {
        self.lag.observe(lag.as_secs_f64());
    }

    /// Adds to the numbers of connections that an agent knew, that no agent knew, and that exceeded the limit of
    /// queries.
    pub fn count_lookups(&self, found: u64, not_found: u64, limited: u64) {
        for (outcome, connections) in [
            ("found", found),
            ("not_found", not_found),
            ("limited", limited),
        ] {
            self.lookups
                .with_label_values(&[outcome])
                .inc_by(connections);
        }
    }

    pub fn count_map_write_failure(&self) {
        self.map_write_failures.inc();
    }

    /// Removes the counters of other workers.
    pub fn retain_workers(&self, is_configured: impl Fn(&str) -> bool) {
        for family in self.state_changes.collect() {
            let workers = family.get_metric().iter().flat_map(|it| it.get_label());
            let workers = workers.filter(|it| it.name() == "worker");
            let workers: BTreeSet<&str> = workers.map(|it| it.value()).collect();
            for worker in workers.into_iter().filter(|it| !is_configured(it)) {
                for state in STATES {
                    // It may never have been in this state.
                    _ = self
                        .state_changes
                        .remove_label_values(&[worker, state.name()]);
                }
            }
        }
    }

    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    fn count_state(&self, worker: &str, state: Health) {
        let labels = [worker, state.name()];
        self.state_changes.with_label_values(&labels).inc();
    }
}

/// Returns the name of a rule or a cause in JSON.
fn name(reason: impl Serialize) -> String {
    match serde_json::to_value(reason) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    #[test]
    fn counts_failures_and_times_their_detection() {
        let config = Config::example(&Overrides::default(), None).unwrap();
        let metrics = Metrics::new(&config).unwrap();
        metrics.count(&Event::WorkerDown {
            worker: "worker1".to_owned(),
            was: Health::Up,
            silent_ms: 1500,
            memory_available_bytes: None,
            expected: false,
        });
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&metrics.gather())
            .unwrap();
        for line in [
            "memlb_worker_state_changes_total{state=\"down\",worker=\"worker1\"} 1",
            "memlb_worker_state_changes_total{state=\"down\",worker=\"worker2\"} 0",
            "memlb_selections_total{rule=\"failover\",service=\"web\"} 0",
            "memlb_detection_seconds_bucket{le=\"1\"} 0",
            "memlb_detection_seconds_bucket{le=\"1.5\"} 1",
            "memlb_detection_seconds_sum 1.5",
        ] {
            assert!(text.lines().any(|seen| seen == line), "no {line} in {text}");
        }
    }

    #[test]
    fn counters_of_removed_workers_are_removed() {
        let config = Config::example(&Overrides::default(), None).unwrap();
        let metrics = Metrics::new(&config).unwrap();
        metrics.count(&Event::WorkerUnhealthy {
            worker: "joined".to_owned(),
            was: Health::Up,
            expected: false,
        });
        metrics.retain_workers(|worker| worker != "worker1");
        let workers = |name: &str| {
            let families = metrics.state_changes.collect();
            let metrics = families.iter().flat_map(|it| it.get_metric());
            let labels = metrics.flat_map(|it| it.get_label());
            labels.filter(|it| it.value() == name).count()
        };
        assert_eq!(workers("worker1"), 0);
        assert_eq!((workers("worker2"), workers("joined")), (STATES.len(), 1));
        metrics.retain_workers(|worker| worker == "worker2");
        assert_eq!((workers("worker2"), workers("joined")), (STATES.len(), 0));
    }
}
