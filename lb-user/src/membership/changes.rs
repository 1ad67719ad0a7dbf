//! The changes by a source's new list.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::worker_path;
use crate::config::{Config, Worker, WorkerOrigin};

/// The changes, each as `service/worker`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerChanges {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl WorkerChanges {
    /// Compares the workers of a source in two configurations.
    pub fn between(source: &str, old: &Config, new: &Config) -> Self {
        let workers = |config: &Config| -> BTreeMap<String, (Worker, WorkerOrigin)> {
            let services = config.services.iter();
            services
                .flat_map(|service| service.workers.iter().map(move |it| (service, it)))
                .filter_map(|(service, worker)| {
                    let origin = config.origin(&service.name, &worker.name)?;
                    let name = worker_path(&service.name, &worker.name);
                    let is_its = origin.source == source;
                    is_its.then(|| (name, (worker.clone(), origin.clone())))
                })
                .collect()
        };
        let (old, new) = (workers(old), workers(new));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let mut changes = Self::default();
        for name in names {
            match (old.get(name), new.get(name)) {
                (None, Some((worker, _))) => {
                    changes.added.push(format!("{name} at {}", worker.address));
                }
                (Some(_), None) => changes.removed.push(name.clone()),
                (Some(before), Some(after)) if before != after => {
                    changes
                        .changed
                        .push(format!("{name} ({})", difference(before, after)));
                }
                _ => {}
            }
        }
        changes
    }

    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

fn difference(before: &(Worker, WorkerOrigin), after: &(Worker, WorkerOrigin)) -> String {
    let ((old, was), (new, is)) = (before, after);
    let address =
        (old.address != new.address).then(|| format!("address {} -> {}", old.address, new.address));
    let (before, now) = (old.weight_percent, new.weight_percent);
    let weight = (before != now).then(|| format!("weight {before}% -> {now}%"));
    let reason = |origin: &WorkerOrigin| origin.state.as_ref().and_then(|it| it.reason.clone());
    let drain = match (reason(was), reason(is)) {
        (before, now) if before == now => None,
        (_, Some(reason)) => Some(format!("drained: {reason}")),
        (_, None) => Some("no longer drained".to_owned()),
    };
    let changes: Vec<String> = address.into_iter().chain(weight).chain(drain).collect();
    changes.join(", ")
}
