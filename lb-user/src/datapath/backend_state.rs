//! The state of backends, and the values of map `backends` that follow from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::maps::{Backend, mode, state};
use lb_core::{
    BackendId, CoreSettings, Endpoint, Health, Memory, Mode, Protocol, ServiceSettings, WorkerRoute,
};

use super::{
    family::mapped,
    netlink::{Route, Routes},
};
use crate::config::PinnedIds;

/// State of a backend from configuration, core and routing table.
#[derive(Debug, Clone)]
pub(super) struct BackendState {
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub mode: Mode,
    pub service: u32,
    pub is_fallback: bool,
    /// `None` until the core has emitted it. An adopted entry stays unchanged until then.
    pub health: Option<Health>,
    pub memory: Option<Memory>,
    pub weight: u32,
    pub max_connections: u32,
    /// Whether its connections continue before the first heartbeat: the worker was renamed, or removed and added
    /// again.
    pub keeps_flows: bool,
    pub route: Option<Route>,
    /// Whether the route was looked up.
    pub looked_up: bool,
}

/// Whether an entry has this backend's address and port.
pub(super) fn is_at(entry: &Backend, known: &BackendState) -> bool {
    entry.address == mapped(known.address.ip()) && entry.port == known.address.port()
}

pub(super) fn initial_backends(settings: &CoreSettings) -> BTreeMap<BackendId, BackendState> {
    let known = |address, of: &ServiceSettings, is_fallback| BackendState {
        address,
        protocol: of.endpoint().protocol,
        mode: of.mode,
        service: of.id.0,
        is_fallback,
        health: None,
        memory: None,
        weight: 1,
        max_connections: 0,
        keeps_flows: false,
        route: None,
        looked_up: false,
    };
    settings
        .services
        .iter()
        .flat_map(|service| {
            let workers = service.backends.iter().map(move |backend| {
                let worker = BackendState {
                    max_connections: backend.max_connections,
                    ..known(backend.address, service, false)
                };
                (backend.id, worker)
            });
            let fallback = service.fallback.as_ref();
            workers.chain(fallback.map(|it| (it.id, known(it.address, service, true))))
        })
        .collect()
}

/// Returns the backends of a changed configuration, with the state of those that stay.
pub(super) fn replace_backends(
    before: &BTreeMap<BackendId, BackendState>,
    settings: &CoreSettings,
    ids: &PinnedIds,
) -> BTreeMap<BackendId, BackendState> {
    let mut backends = initial_backends(settings);
    let known = before.values();
    let routes: Routes = known
        .filter(|it| !it.is_fallback && it.looked_up)
        .map(|it| (it.address.ip(), it.route.clone()))
        .collect();
    for (id, new) in &mut backends {
        new.keeps_flows = ids.keeps_flows.contains(id);
        // The route to a worker is the same for each of its services.
        if !new.is_fallback
            && let Some(route) = routes.get(&new.address.ip())
        {
            new.route.clone_from(route);
            new.looked_up = true;
        }
        if let Some(old) = before.get(id).filter(|it| it.address == new.address) {
            new.health = old.health;
            new.memory = old.memory;
            new.weight = old.weight;
        }
    }
    backends
}

impl BackendState {
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.address,
            protocol: self.protocol,
        }
    }

    /// Whether the route differs from `found`, or was not looked up yet.
    pub fn differs(&self, found: &Option<Route>) -> bool {
        !self.looked_up || self.route != *found
    }

    pub fn worker_route(&self, attached: &BTreeSet<u32>) -> WorkerRoute {
        match &self.route {
            None => WorkerRoute::Missing,
            Some(route) if !route.arrives_at(attached) => {
                WorkerRoute::Unattached(route.interface_name())
            }
            Some(route) if route.has_router(self.address.ip()) => WorkerRoute::ViaRouter,
            Some(_) => WorkerRoute::Direct,
        }
    }

    /// One of [`state`].
    pub fn state(&self, health: Health) -> u8 {
        match health {
            Health::Up => state::UP,
            Health::Unknown if self.keeps_flows => state::DRAINING,
            Health::Unknown => state::UNKNOWN,
            Health::Down | Health::Unhealthy | Health::Terminated | Health::Ineligible => {
                state::DOWN
            }
            Health::Leaving
            | Health::Maintenance
            | Health::Draining
            | Health::Paused
            | Health::Unreachable
            | Health::Failing => state::DRAINING,
        }
    }

    /// The value of map `backends`.
    pub fn value(&self, health: Health) -> Backend {
        let route = self.route.as_ref();
        let is_local = self.is_fallback || route.is_some_and(|route| route.is_local);
        let hop = |of: fn(&Route) -> IpAddr| route.map_or([0; 16], |route| mapped(of(route)));
        Backend {
            address: mapped(self.address.ip()),
            port: self.address.port(),
            state: self.state(health),
            mode: match self.mode {
                _ if is_local => mode::LOCAL,
                Mode::Nat => mode::NAT,
                Mode::Dsr => mode::DSR,
                Mode::Routed => mode::ROUTED,
            },
            source: hop(|route| route.source),
            next_hop: match route.map(|route| route.next_hop) {
                Some(next_hop) if next_hop.is_ipv4() == self.address.is_ipv4() => mapped(next_hop),
                _ => [0; 16],
            },
            interface: route.map_or(0, |route| route.interface),
            service: self.service,
            weight: self.weight,
            memory_available_bytes: self.memory.map_or(0, |it| it.available_bytes),
            memory_total_bytes: self.memory.and_then(|it| it.total_bytes).unwrap_or(0),
            port_pool: 0,
            reply_interface: 0,
            max_connections: self.max_connections,
            reserved: 0,
        }
    }
}
