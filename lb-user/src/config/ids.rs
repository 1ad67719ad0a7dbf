//! Numbers for services and backends that stay the same over restarts and changed files.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;

use lb_core::{
    BackendId, BackendSettings, CoreSettings, Endpoint, FallbackSettings, MemorySettings, Mode,
    ServiceId, ServiceSettings,
};

use super::Config;

/// The numbers in use in the pinned maps, where flows refer to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PinnedIds {
    pub services: Vec<(ServiceId, Endpoint)>,
    pub backends: Vec<(BackendId, Identity)>,
    /// The backends whose flows continue: they are up or draining.
    pub keeps_flows: BTreeSet<BackendId>,
}

/// What identifies a backend to its flows: if one value differs, it is another backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub endpoint: Endpoint,
    /// The service's mode for a worker, [`Mode::Nat`] for a fallback.
    pub mode: Mode,
    /// The service's own endpoint; `None` if the maps no longer have it.
    pub service: Option<Endpoint>,
}

impl Identity {
    /// Whether flows of `other` may continue with this backend. Packets of mode `dsr` carry the service's
    /// address to the worker, so that flows of another service need another backend.
    pub(crate) fn continues(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint
            && self.mode == other.mode
            && (self.mode != Mode::Dsr || self.service == other.service)
    }
}

/// Returns the identity of every backend in `settings`.
pub fn identities(settings: &CoreSettings) -> impl Iterator<Item = (BackendId, Identity)> {
    settings.services.iter().flat_map(|service| {
        let (workers, fallback) = (&service.backends, &service.fallback);
        let ids = workers.iter().map(|it| it.id);
        let ids = ids.chain(fallback.iter().map(|it| it.id));
        let addresses = workers.iter().map(|it| it.address);
        let fallback = fallback.as_ref().map(|it| it.address);
        ids.zip(of_service(
            service.endpoint(),
            service.mode,
            addresses,
            fallback,
        ))
    })
}

/// Returns the identities of a service's backends: its workers, then its fallback.
fn of_service(
    service: Endpoint,
    mode: Mode,
    workers: impl Iterator<Item = SocketAddr>,
    fallback: Option<SocketAddr>,
) -> impl Iterator<Item = Identity> {
    let identity = move |(address, mode)| Identity {
        endpoint: Endpoint { address, ..service },
        mode,
        service: Some(service),
    };
    let workers = workers.map(move |address| (address, mode));
    let fallback = fallback.map(|address| (address, Mode::Nat));
    workers.chain(fallback).map(identity)
}

impl PinnedIds {
    /// Returns how many backends of `settings` have a number that flows of another backend refer to.
    pub fn reused_by(&self, settings: &CoreSettings) -> usize {
        let reused = |(id, identity): &(BackendId, Identity)| {
            let pinned = self.backends.iter().find(|(pinned, _)| pinned == id);
            pinned.is_some_and(|(_, before)| !identity.continues(before))
        };
        identities(settings).filter(reused).count()
    }
}

impl Config {
    /// Returns the core's settings, with an id for every service and backend.
    ///
    /// A service or backend that is pinned under the same address, protocol and mode keeps its number, and so its
    /// flows. Flows may still refer to a number that is pinned for another one: it is assigned only when no other is
    /// left, see [`PinnedIds::reused_by`]. Otherwise services count from 0 and backends from 1, in the order of the
    /// file, each service's fallback after its workers.
    pub fn settings(&self, pinned: &PinnedIds) -> CoreSettings {
        let mut services = IdAllocator::new(
            0..self.limits.services,
            pinned.services.iter().map(|(id, at)| (id.0, *at)),
            self.services.iter().map(super::Service::endpoint),
            PartialEq::eq,
        );
        let mut backends = IdAllocator::new(
            1..self.limits.backends,
            pinned.backends.iter().map(|(id, at)| (id.0, *at)),
            self.services.iter().flat_map(|service| {
                let addresses = service.workers.iter().map(|it| it.address);
                of_service(
                    service.endpoint(),
                    service.mode,
                    addresses,
                    service.fallback,
                )
            }),
            Identity::continues,
        );
        let mut settings = |service: &super::Service| ServiceSettings {
            id: ServiceId(services.allocate()),
            name: service.name.clone(),
            address: service.address,
            protocol: service.protocol,
            mode: service.mode,
            policy: service.policy,
            memory: MemorySettings {
                threshold: service.threshold,
                hold: service.hold,
            },
            spread: service.spread(),
            passive_checks: service.passive_checks,
            retry_refused: service.retry_refused,
            backends: (service.workers.iter())
                .map(|worker| {
                    let origin = self.origin(&service.name, &worker.name);
                    BackendSettings {
                        id: BackendId(backends.allocate()),
                        worker: worker.name.clone(),
                        address: worker.address,
                        weight_percent: worker.weight_percent,
                        source: origin.map(|it| it.source.clone()),
                        source_state: origin.and_then(|it| it.state.clone()),
                        backup: worker.backup,
                        agent: worker.agent,
                        max_connections: worker.max_connections,
                    }
                })
                .collect(),
            fallback: service.fallback.map(|address| FallbackSettings {
                id: BackendId(backends.allocate()),
                address,
            }),
        };
        CoreSettings {
            down_after: self.failover.down_after,
            up_after: self.failover.up_after,
            failing: self.failover.failing(),
            panic_percent: Some(self.failover.panic_threshold).filter(|percent| *percent > 0),
            services: self.services.iter().map(&mut settings).collect(),
        }
    }
}

/// The numbers of all services, or of all backends, in the order of the file.
struct IdAllocator(std::vec::IntoIter<u32>);

impl IdAllocator {
    fn new<T: PartialEq>(
        range: Range<u32>,
        pinned: impl Iterator<Item = (u32, T)>,
        wanted: impl Iterator<Item = T>,
        continues: impl Fn(&T, &T) -> bool,
    ) -> Self {
        let mut stale: Vec<(u32, T)> = pinned
            .filter(|(number, _)| range.contains(number))
            .collect();
        let pinned: BTreeSet<u32> = stale.iter().map(|(number, _)| *number).collect();
        let wanted: Vec<T> = wanted.collect();
        let mut claims = vec![None; wanted.len()];
        // Two services may share a worker's address: each first keeps the number of its own backend, then the others
        // are assigned in order.
        for exactly in [true, false] {
            for (claim, wanted) in claims
                .iter_mut()
                .zip(&wanted)
                .filter(|(it, _)| it.is_none())
            {
                let is_mine = |(_, at): &(u32, T)| match exactly {
                    true => wanted == at,
                    false => continues(wanted, at),
                };
                let index = stale.iter().position(is_mine);
                *claim = index.map(|index| stale.remove(index).0);
            }
        }
        let mut spare = range
            .filter(|number| !pinned.contains(number))
            .chain(stale.into_iter().map(|(number, _)| number));
        let numbers: Vec<u32> = claims
            .into_iter()
            // `rules` has checked that the range has room for all.
            .map(|claim| claim.or_else(|| spare.next()).unwrap_or(0))
            .collect();
        Self(numbers.into_iter())
    }

    fn allocate(&mut self) -> u32 {
        self.0.next().unwrap_or(0)
    }
}
