//! The last ten minutes, sampled every five seconds, so that a page opened after an incident shows it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::{history::now_ms, manager::ManagerHandle, status::Status};

const INTERVAL: Duration = Duration::from_secs(5);
const MAX_SAMPLES: usize = 120;

/// Figures over time, one for each time of `at_ms`; null where one was unknown.
#[derive(Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Timeline {
    /// Now, in milliseconds since 1970 by the manager's clock.
    pub now_ms: u64,
    /// When the samples were taken, by the same clock; the oldest first.
    pub at_ms: Vec<u64>,
    /// By service, then by backend.
    pub services: BTreeMap<String, BTreeMap<String, Track>>,
}

/// The figures of one backend.
#[derive(Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Track {
    pub memory_available_bytes: Vec<Option<u64>>,
    /// Connections begun since the maps were made.
    pub connections: Vec<Option<u64>>,
}

/// The samples; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Arc<Mutex<VecDeque<Sample>>>);

#[derive(Debug)]
struct Sample {
    at_ms: u64,
    figures: Vec<Figures>,
}

#[derive(Debug)]
struct Figures {
    service: String,
    backend: String,
    memory_available_bytes: Option<u64>,
    connections: u64,
}

impl Recorder {
    /// Takes samples until this future is dropped.
    pub async fn record(&self, manager: ManagerHandle) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match manager.totals().await {
                Ok(status) => self.sample(&status, now_ms()),
                // The timeline has a gap then.
                Err(error) => debug!("no sample for the timeline: {error:#}"),
            }
        }
    }

    pub fn timeline(&self) -> Timeline {
        let samples = self.samples();
        let mut timeline = Timeline {
            now_ms: now_ms(),
            at_ms: samples.iter().map(|sample| sample.at_ms).collect(),
            services: BTreeMap::new(),
        };
        for (index, sample) in samples.iter().enumerate() {
            for figures in &sample.figures {
                let service = timeline.services.entry(figures.service.clone());
                let track = service.or_default().entry(figures.backend.clone());
                let track = track.or_insert_with(|| Track {
                    memory_available_bytes: vec![None; samples.len()],
                    connections: vec![None; samples.len()],
                });
                track.memory_available_bytes[index] = figures.memory_available_bytes;
                track.connections[index] = Some(figures.connections);
            }
        }
        timeline
    }

    fn sample(&self, status: &Status, at_ms: u64) {
        let figures = status.services.iter().flat_map(|service| {
            service.backends.iter().map(|backend| Figures {
                service: service.name.clone(),
                backend: backend.seen.name.clone(),
                memory_available_bytes: backend.seen.memory_available_bytes,
                connections: backend.traffic.connections,
            })
        });
        let sample = Sample {
            at_ms,
            figures: figures.collect(),
        };
        let mut samples = self.samples();
        if samples.len() == MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// Never held over an `await`.
    fn samples(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
