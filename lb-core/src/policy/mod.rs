//! Policies that spread connections: what each worker of a service weighs, and which places it takes.
//!
//! The kernel chooses among the places at each connection, see `lb_common::maps::policy`. Workers are
//! named here by their places in the service's settings.

mod appetite;
mod places;
mod rendezvous;
mod weights;

use std::time::{Duration, Instant};

pub use appetite::Appetite;
pub use weights::{Standing, is_hot};

use super::settings::{Kind, ServiceSettings, SpreadSettings};
use rendezvous::Rendezvous;
use weights::Headrooms;

/// How a service's connections are spread.
#[derive(Debug)]
pub struct Spread {
    kind: Kind,
    settings: SpreadSettings,
    headrooms: Headrooms,
    rendezvous: Rendezvous,
    /// In force; 0 for a worker that takes nothing.
    weights: Vec<u32>,
    /// In force: the workers at the service's places.
    places: Vec<usize>,
    /// When to look at the weights again.
    due: Option<Instant>,
}

/// What is to be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    pub weights: bool,
    pub places: bool,
}

impl Spread {
    pub fn new(kind: Kind, settings: &ServiceSettings) -> Self {
        let workers = settings.backends.len();
        Self {
            kind,
            settings: settings.spread,
            headrooms: Headrooms::new(workers),
            rendezvous: Rendezvous::new(settings.backends.iter().map(|backend| backend.address)),
            weights: vec![0; workers],
            places: Vec::new(),
            due: None,
        }
    }

    /// Begins with the weights that were in force before a restart.
    pub fn adopt(&mut self, weights: Vec<u32>) {
        self.weights = weights;
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn places(&self) -> &[usize] {
        &self.places
    }

    pub fn weight(&self, worker: usize) -> u32 {
        self.weights[worker]
    }

    /// Returns a worker's part of all new connections, in hundredths of a percent.
    pub fn share(&self, worker: usize) -> u16 {
        let sum: u64 = self.weights.iter().map(|weight| u64::from(*weight)).sum();
        let part = u64::from(self.weights[worker]) * 10_000 + sum / 2;
        u16::try_from(part.checked_div(sum).unwrap_or(0)).unwrap_or(10_000)
    }

    /// Whether all of the workers that are up lack memory.
    pub fn is_hot(&self, standings: &[Option<Standing>]) -> bool {
        let mut up = (0..standings.len()).filter(|worker| standings[*worker].is_some());
        self.follows_memory() && up.all(|worker| self.headrooms.is_hot(worker))
    }

    /// Whether weights change by themselves, as reports come and age.
    pub fn follows_memory(&self) -> bool {
        self.kind == Kind::Balanced
    }

    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Asks to be looked at by then.
    pub fn look_by(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Has nothing to do until it is asked again.
    pub fn rest(&mut self) {
        self.due = None;
    }

    /// Weighs the workers anew; nothing stands for one that is not up. Unless `at_once` is asked for,
    /// weights that have hardly moved stay as they are.
    pub fn rebalance(
        &mut self,
        standings: &[Option<Standing>],
        down_after: Duration,
        at_once: bool,
    ) -> Changes {
        let weights = self.weigh(standings, down_after);
        let joined_or_lost = |(before, after): (&u32, &u32)| (*before == 0) != (*after == 0);
        let changed = at_once
            || self.places.is_empty()
            || self.weights.iter().zip(&weights).any(joined_or_lost)
            || weights::moved(&self.weights, &weights);
        if !changed || (weights == self.weights && !self.places.is_empty()) {
            return Changes::default();
        }
        let places = match self.kind {
            Kind::Balanced => places::proportional(&self.places, &weights),
            Kind::RoundRobin => places::turns(&self.places, &weights),
            Kind::LeastConnections | Kind::Ranked => places::one_each(&self.places, &weights),
            Kind::SourceHash => self.rendezvous.meet(&weights),
        };
        let changes = Changes {
            weights: weights != self.weights,
            places: places != self.places,
        };
        self.weights = weights;
        self.places = places;
        changes
    }

    fn weigh(&mut self, standings: &[Option<Standing>], down_after: Duration) -> Vec<u32> {
        if self.follows_memory() {
            if let Some(weights) = self.headrooms.weigh(standings, &self.settings, down_after) {
                return weights;
            }
            // Nobody was heard since the restart: what was in force stays, as far as it goes.
            let kept: Vec<u32> = standings
                .iter()
                .zip(&self.weights)
                .map(|(standing, weight)| standing.map_or(0, |_| *weight))
                .collect();
            if kept.iter().any(|weight| *weight > 0) {
                return kept;
            }
        }
        weights::weigh_equally(standings, self.settings.max_share)
    }
}
