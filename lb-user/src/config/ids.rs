//! Numbers for services and backends that stay the same over restarts and changed files.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::ops::Range;

use super::Config;
use crate::core::{
    BackendId, BackendSettings, FallbackSettings, ServiceId, ServiceSettings, Settings,
};

/// The numbers in use in the pinned maps, where flows refer to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pinned {
    pub services: Vec<(ServiceId, SocketAddrV4)>,
    pub backends: Vec<(BackendId, SocketAddrV4)>,
}

impl Config {
    /// Returns what the core is told, with every service and backend numbered.
    ///
    /// What is pinned under the same address keeps its number, and flows with it. A number that is
    /// pinned for anything else is given away only when no other is left, since flows may still
    /// refer to it. Otherwise services count from 0, backends from 1, in the order of the file, each
    /// service's fallback after its workers.
    pub fn settings(&self, pinned: &Pinned) -> Settings {
        let mut services = Numbers::new(
            0..lb_common::maps::MAX_SERVICES,
            pinned.services.iter().map(|(id, address)| (id.0, *address)),
            self.services.iter().map(|service| service.address),
        );
        let mut backends = Numbers::new(
            1..self.limits.backends,
            pinned.backends.iter().map(|(id, address)| (id.0, *address)),
            self.services.iter().flat_map(|service| {
                let workers = service.workers.iter().map(|worker| worker.address);
                workers.chain(service.fallback)
            }),
        );
        let mut settings = |service: &super::Service| ServiceSettings {
            id: ServiceId(services.take()),
            name: service.name.clone(),
            address: service.address,
            policy: service.policy,
            threshold: service.threshold,
            spread: service.spread,
            backends: service
                .workers
                .iter()
                .map(|worker| BackendSettings {
                    id: BackendId(backends.take()),
                    worker: worker.name.clone(),
                    address: worker.address,
                    weight_percent: worker.weight_percent,
                })
                .collect(),
            fallback: service.fallback.map(|address| FallbackSettings {
                id: BackendId(backends.take()),
                address,
            }),
        };
        Settings {
            down_after: self.failover.down_after,
            up_after: self.failover.up_after,
            services: self.services.iter().map(&mut settings).collect(),
        }
    }
}

/// One number for each address, taken in the order of the addresses.
struct Numbers(std::vec::IntoIter<u32>);

impl Numbers {
    fn new(
        range: Range<u32>,
        pinned: impl Iterator<Item = (u32, SocketAddrV4)>,
        addresses: impl Iterator<Item = SocketAddrV4>,
    ) -> Self {
        let mut stale: Vec<(u32, SocketAddrV4)> = pinned
            .filter(|(number, _)| range.contains(number))
            .collect();
        let pinned: BTreeSet<u32> = stale.iter().map(|(number, _)| *number).collect();
        // Two services may share a worker's address: each claims one of its numbers, in order.
        let claims: Vec<Option<u32>> = addresses
            .map(|address| {
                let place = stale.iter().position(|(_, at)| *at == address)?;
                Some(stale.remove(place).0)
            })
            .collect();
        let mut spare = range
            .filter(|number| !pinned.contains(number))
            .chain(stale.into_iter().map(|(number, _)| number));
        let numbers: Vec<u32> = claims
            .into_iter()
            // The configuration's check left room for all.
            .map(|claim| claim.or_else(|| spare.next()).unwrap_or(0))
            .collect();
        Self(numbers.into_iter())
    }

    fn take(&mut self) -> u32 {
        self.0.next().unwrap_or(0)
    }
}
