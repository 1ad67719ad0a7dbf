//! How agents join as workers, and how absent members are removed.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use tracing::warn;

use super::{Configuration, Manager};
use crate::{
    datapath::Routes,
    heartbeat_receiver::ReceivedHeartbeat,
    membership::{Applied, JoinError},
};
use lb_core::Event;

/// How long a member may be silent before it is removed.
const REMOVED_AFTER: Duration = Duration::from_secs(3_600);

/// The most join requests that wait; further agents try again with their next heartbeat.
const MAX_JOIN_REQUESTS: usize = 1_024;

/// The signed heartbeats of agents that want to join: no service has such a worker, or the worker has
/// another address.
#[derive(Debug, Default)]
pub(super) struct JoinRequests(Vec<ReceivedHeartbeat>);

impl JoinRequests {
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.0.iter().map(ReceivedHeartbeat::address).collect()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds a request if none of this worker waits. Returns it if it cannot wait.
    fn add(&mut self, heartbeat: ReceivedHeartbeat) -> Option<ReceivedHeartbeat> {
        let worker = &heartbeat.report.worker;
        let waiting = self.0.iter().find(|it| it.report.worker == *worker);
        match waiting.map(ReceivedHeartbeat::address) {
            Some(address) if address == heartbeat.address() => None,
            None if self.0.len() < MAX_JOIN_REQUESTS => {
                self.0.push(heartbeat);
                None
            }
            _ => Some(heartbeat),
        }
    }

    fn remove(&mut self, addresses: &BTreeSet<IpAddr>) -> Vec<ReceivedHeartbeat> {
        let is_there = |it: &mut ReceivedHeartbeat| addresses.contains(&it.address());
        self.0.extract_if(.., is_there).collect()
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

    /// Admits or refuses the agents at these addresses, whose routes are known now.
    pub(super) fn handle_join_routes(&mut self, addresses: &BTreeSet<IpAddr>, routes: &Routes) {
        self.background.looking_up_joins = false;
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

    /// Adds or removes a worker as a peer did.
    pub(super) fn join_as_told(
        &mut self,
        worker: String,
        address: Option<IpAddr>,
        routes: &Routes,
    ) -> Result<(), JoinError> {
        match address {
            Some(address) => self.admit(&worker, address)?,
            None => {
                let silence = self.core.silent_for(&worker, Instant::now());
                let down_after = self.configuration.file.failover.down_after;
                if silence.is_some_and(|silence| silence <= down_after) {
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
        let (core, down_after) = (&self.core, self.configuration.file.failover.down_after);
        let present = |worker: &str| {
            core.silent_for(worker, now)
                .is_some_and(|silence| silence <= down_after)
        };
        let parting = self.datapath.retiring();
        let base = self.with_sources(&self.configuration.file).config;
        self.membership
            .admit(&base, worker, address, parting, present)?;
        self.emitter.emit(&Event::WorkerJoined {
            worker: worker.to_owned(),
            address,
        });
        Ok(())
    }

    /// Removes the members that have been silent for long.
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
                let Applied { config, absent } = self.compose(&self.configuration.file);
                self.apply_config(config, &numbers, routes);
                self.note_absent(absent);
            }
            Err(error) => warn!("backend ids for the workers that joined: {error:#}"),
        }
    }
}
