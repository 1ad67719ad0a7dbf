//! How agents join as workers, and how absent members are removed.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use tracing::warn;

use super::{Configuration, Manager, background::BackgroundResult, route_monitor::look_up_routes};
use crate::{
    datapath::Routes,
    heartbeat_receiver::ReceivedHeartbeat,
    membership::{ComposedConfig, JoinError},
};
use lb_core::Event;

/// How long a member may be silent before it is removed.
const REMOVED_AFTER: Duration = Duration::from_secs(3_600);

/// The most join requests that wait. Further agents try again with their next heartbeat.
const MAX_JOIN_REQUESTS: usize = 1_024;

/// The signed heartbeats of agents that want to join: no service has such a worker, or the worker has
/// another address.
#[derive(Debug, Default)]
pub(super) struct JoinRequests {
    waiting: Vec<ReceivedHeartbeat>,
    /// Whether a background task looks up the routes to some of the agents.
    is_looking_up: bool,
}

impl JoinRequests {
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Adds a request, unless one of this worker and address waits. Returns the request if it is refused.
    fn add(&mut self, heartbeat: ReceivedHeartbeat) -> Option<ReceivedHeartbeat> {
        let worker = &heartbeat.report.worker;
        let waiting = self.waiting.iter().find(|it| it.report.worker == *worker);
        match waiting.map(ReceivedHeartbeat::address) {
            Some(address) if address == heartbeat.address() => None,
            None if self.waiting.len() < MAX_JOIN_REQUESTS => {
                self.waiting.push(heartbeat);
                None
            }
            _ => Some(heartbeat),
        }
    }

    fn remove(&mut self, addresses: &BTreeSet<IpAddr>) -> Vec<ReceivedHeartbeat> {
        let is_there = |it: &mut ReceivedHeartbeat| addresses.contains(&it.address());
        self.waiting.extract_if(.., is_there).collect()
    }
}

impl Configuration {
    /// Whether a service accepts agents from this address.
    pub fn may_join(&self, address: IpAddr) -> bool {
        let services = self.file.services.iter();
        let mut auto_join = services.filter_map(|service| service.auto_join.as_ref());
        auto_join.any(|it| it.allows(address))
    }
}

impl Manager {
    /// Adds a join request, or refuses the heartbeat if it is unsigned or no service accepts its address.
    pub(super) fn request_join(&mut self, heartbeat: ReceivedHeartbeat) {
        let may_join = heartbeat.report.signed && self.configuration.may_join(heartbeat.address());
        let refused = match may_join {
            true => self.join_requests.add(heartbeat),
            false => Some(heartbeat),
        };
        if let Some(heartbeat) = refused {
            self.receiver.refuse_unknown(&heartbeat);
        }
    }

    /// Starts to look up the routes to agents that want to join.
    pub(super) fn look_up_join_routes(&mut self) {
        let JoinRequests {
            waiting,
            is_looking_up,
        } = &mut self.join_requests;
        if *is_looking_up || waiting.is_empty() {
            return;
        }
        *is_looking_up = true;
        let addresses: BTreeSet<IpAddr> = waiting.iter().map(ReceivedHeartbeat::address).collect();
        let results = self.background.results.clone();
        tokio::spawn(async move {
            let routes = look_up_routes(&addresses).await;
            // Fails only when the manager ends.
            _ = results
                .send(BackgroundResult::JoinRoutes(addresses, routes))
                .await;
        });
    }

    /// Admits or refuses the agents at these addresses, whose routes are known now.
    pub(super) fn handle_join_routes(&mut self, addresses: &BTreeSet<IpAddr>, routes: &Routes) {
        self.join_requests.is_looking_up = false;
        let mut admitted = Vec::new();
        for heartbeat in self.join_requests.remove(addresses) {
            match self.admit(&heartbeat.report.worker, heartbeat.address()) {
                Ok(()) => admitted.push(heartbeat),
                Err(error) => self.receiver.refuse_join(&heartbeat, &error),
            }
        }
        if admitted.is_empty() {
            return self.emit_received();
        }
        self.apply_membership(routes);
        for mut heartbeat in admitted {
            heartbeat.at = Instant::now();
            self.handle_heartbeat(heartbeat);
        }
        self.emit_received();
        self.apply_outputs();
    }

    /// Adds a worker that joined a peer, or removes one that a peer has removed.
    pub(super) fn apply_peer_member(
        &mut self,
        worker: String,
        address: Option<IpAddr>,
        routes: &Routes,
    ) -> Result<(), JoinError> {
        match address {
            Some(address) => self.admit(&worker, address)?,
            None => {
                if self.is_present(&worker, Instant::now()) {
                    return Err(JoinError::Occupied { by: worker });
                }
                self.membership.remove(&worker);
                self.emitter.emit(&Event::WorkerRemoved { worker });
            }
        }
        self.apply_membership(routes);
        Ok(())
    }

    fn admit(&mut self, worker: &str, address: IpAddr) -> Result<(), JoinError> {
        let now = Instant::now();
        let base = self.with_sources(&self.configuration.file).config;
        let retiring = self.datapath.retiring();
        let is_present = |worker: &str| self.is_present(worker, now);
        self.membership = (self.membership).admit(&base, worker, address, retiring, is_present)?;
        self.emitter.emit(&Event::WorkerJoined {
            worker: worker.to_owned(),
            address,
        });
        Ok(())
    }

    /// Whether a worker has sent a heartbeat within `down_after`.
    fn is_present(&self, worker: &str, now: Instant) -> bool {
        let silence = self.core.silent_for(worker, now);
        silence.is_some_and(|it| it <= self.configuration.file.failover.down_after)
    }

    /// Removes the members that have been silent for [`REMOVED_AFTER`].
    pub(super) fn remove_absent_members(&mut self) {
        let now = Instant::now();
        let is_absent = |worker: &&str| {
            self.core
                .silent_for(worker, now)
                .is_none_or(|silence| silence > REMOVED_AFTER)
        };
        let workers = self.membership.iter().map(|(worker, _)| worker);
        let absent: Vec<String> = workers.filter(is_absent).map(str::to_owned).collect();
        if absent.is_empty() {
            return;
        }
        for worker in absent {
            self.membership.remove(&worker);
            self.emitter.emit(&Event::WorkerRemoved { worker });
        }
        self.apply_membership(&Routes::new());
    }

    /// Brings core and datapath in line with the members, and saves them.
    fn apply_membership(&mut self, routes: &Routes) {
        self.state_files.membership.save(self.membership.clone());
        match self.datapath.pinned_ids() {
            Ok(numbers) => {
                let ComposedConfig { config, absent } = self.compose(&self.configuration.file);
                self.apply_config(config, &numbers, routes);
                self.record_absent(absent);
            }
            Err(error) => warn!("backend ids for the workers that joined: {error:#}"),
        }
    }
}
