//! The workers that joined and those of sources; how long workers have been silent; the ejected workers.

mod changes;
mod ejections;
mod external;
mod liveness;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{Config, JOINED, Worker, WorkerOrigin};
pub use changes::WorkerChanges;
pub use ejections::EjectionRecord;
pub use external::{
    AbsentWorker, ComposedConfig, ExternalWorker, ExternalWorkers, WorkerList, parse_weight,
    worker_path,
};
use lb_core::{MANAGER, NO_BACKEND};
pub use liveness::LivenessRecord;

/// The workers that joined, with the addresses from which their heartbeats come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Membership(BTreeMap<String, IpAddr>);

/// Why an authenticated agent cannot become a worker.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinError {
    #[error("no service has auto_join for its address")]
    NotAllowed,
    #[error("{MANAGER:?} is the name of every service's fallback")]
    ReservedName,
    #[error(
        "its address is link-local: let the agent send to an address of the manager that is not link-local"
    )]
    LinkLocal,
    #[error("its address is the manager's")]
    ManagersAddress,
    /// By a worker that is present.
    #[error("{by} has its name or address")]
    Occupied { by: String },
    #[error("there are no more backends: raise limits.backends ({backends})")]
    NoRoom { backends: u32 },
}

impl Membership {
    pub fn address(&self, worker: &str) -> Option<IpAddr> {
        self.0.get(worker).copied()
    }

    /// Whether a heartbeat counts. A heartbeat of a worker that joined must be signed and come from the address at
    /// which the worker joined.
    pub fn accepts(&self, worker: &str, from: IpAddr, is_signed: bool) -> bool {
        self.address(worker)
            .is_none_or(|address| address == from && is_signed)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.0.iter().map(|(worker, at)| (worker.as_str(), *at))
    }

    /// Returns the members with another worker, or with a worker at another address, if `file` allows that.
    ///
    /// It replaces a member with the same name or address that is not present. `retiring` is the number of backend ids
    /// that removed workers with open connections still hold.
    ///
    /// # Errors
    ///
    /// Returns why it cannot be a worker.
    pub fn admit(
        &self,
        file: &Config,
        worker: &str,
        address: IpAddr,
        retiring: usize,
        is_present: impl Fn(&str) -> bool,
    ) -> Result<Self, JoinError> {
        if [MANAGER, NO_BACKEND].contains(&worker) {
            return Err(JoinError::ReservedName);
        }
        if matches!(address, IpAddr::V6(it) if it.is_unicast_link_local()) {
            return Err(JoinError::LinkLocal);
        }
        if file.services.iter().any(|it| it.address.ip() == address) {
            return Err(JoinError::ManagersAddress);
        }
        let mut next = self.clone();
        next.0
            .retain(|other, at| is_present(other) || other != worker && *at != address);
        if next.0.insert(worker.to_owned(), address).is_some() {
            return Err(JoinError::Occupied {
                by: worker.to_owned(),
            });
        }
        let candidates = next.candidates(file);
        let has_name = |(_, candidate): &&(usize, Worker)| candidate.name == worker;
        if !candidates.iter().any(|it| has_name(&it)) {
            return Err(JoinError::NotAllowed);
        }
        let other_at = |(service, candidate): &(usize, Worker)| {
            let joined = candidates.iter().filter(|it| it.0 == *service);
            let mut workers =
                (file.services[*service].workers.iter()).chain(joined.map(|it| &it.1));
            workers.find(|it| it.address == candidate.address && it.name != worker)
        };
        if let Some(other) = candidates.iter().filter(has_name).find_map(other_at) {
            return Err(JoinError::Occupied {
                by: other.name.clone(),
            });
        }
        if candidates.len() > room(file).saturating_sub(retiring) {
            return Err(JoinError::NoRoom {
                backends: file.limits.backends,
            });
        }
        Ok(next)
    }

    pub fn remove(&mut self, worker: &str) {
        self.0.remove(worker);
    }

    /// Removes those that no service has as a worker.
    pub fn retain_workers_of(&mut self, config: &Config) {
        self.0.retain(|worker, _| named(config, worker));
    }

    /// Returns the configuration with the members added.
    pub fn apply_to(&self, file: &Config) -> Config {
        let mut config = file.clone();
        for (service, worker) in self.candidates(file).into_iter().take(room(file)) {
            let mut workers = config.services[service].workers.iter();
            if !workers.any(|it| it.address == worker.address) {
                let origin = WorkerOrigin {
                    source: JOINED.to_owned(),
                    state: None,
                };
                config.add_worker(service, worker, origin);
            }
        }
        config
    }

    /// Returns the members that the file does not name, once for each service that they may join, with its index.
    fn candidates(&self, file: &Config) -> Vec<(usize, Worker)> {
        let members = self.0.iter();
        let unnamed = members.filter(|(worker, _)| !named_by_file(file, worker));
        let candidates = unnamed.flat_map(|(name, address)| {
            let services = file.services.iter().enumerate();
            services.filter_map(move |(index, service)| {
                let auto_join = service.auto_join.as_ref()?;
                let has_name = service.workers.iter().any(|it| it.name == *name);
                let address = SocketAddr::new(*address, auto_join.port);
                let may_join = auto_join.allows(address.ip()) && !has_name;
                may_join.then(|| (index, Worker::joining(name.clone(), address)))
            })
        });
        candidates.collect()
    }
}

/// Whether the file itself names the worker in a service.
fn named_by_file(config: &Config, worker: &str) -> bool {
    let mut services = config.services.iter();
    services.any(|service| {
        let mut workers = service.workers.iter();
        workers.any(|it| it.name == worker) && config.origin(&service.name, worker).is_none()
    })
}

fn named(config: &Config, worker: &str) -> bool {
    config.workers().any(|it| it.name == worker)
}

/// Returns the number of backends that are possible in addition to those of the file. Id 0 means "none".
fn room(file: &Config) -> usize {
    // Each service has a fallback.
    let services = file.services.iter();
    let taken: usize = services.map(|service| service.workers.len() + 1).sum();
    (file.limits.backends as usize).saturating_sub(taken + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn file(backends: u32) -> Config {
        let text = format!(
            r#"
            manager.interfaces = ["eth1"]
            heartbeats.authentication = "enforce"
            limits.backends = {backends}
            [[service]]
            name = "web"
            address = "192.168.56.101:80"
            fallback = "192.168.56.101:8080"
            workers = [{{ name = "worker1", address = "192.168.56.103:8081" }}]
            auto_join = {{ networks = ["192.168.56.0/24"], port = 8081 }}
            [[service]]
            name = "api"
            address = "192.168.56.101:81"
            fallback = "192.168.56.101:8080"
            auto_join = {{ networks = ["192.168.56.128/25"], port = 9000 }}
            "#
        );
        Config::parse(&text, "memlb.toml", &Overrides::default(), None).unwrap()
    }

    fn at(last: u8) -> IpAddr {
        [192, 168, 56, last].into()
    }

    fn workers(config: &Config, service: usize) -> Vec<String> {
        let workers = config.services[service].workers.iter();
        workers
            .map(|it| format!("{} {}", it.name, it.address))
            .collect()
    }

    #[test]
    fn a_worker_joins_every_service_that_allows_it() {
        let file = file(256);
        let mut membership = Membership::default();
        membership = membership
            .admit(&file, "new1", at(110), 0, |_| true)
            .unwrap();
        membership = membership
            .admit(&file, "new2", at(200), 0, |_| true)
            .unwrap();
        let config = membership.apply_to(&file);
        assert_eq!(
            workers(&config, 0),
            [
                "worker1 192.168.56.103:8081",
                "new1 192.168.56.110:8081",
                "new2 192.168.56.200:8081"
            ]
        );
        assert_eq!(workers(&config, 1), ["new2 192.168.56.200:9000"]);

        // A worker that the file names is not added twice.
        let mut named = file.clone();
        named.services[1].workers = config.services[1].workers.clone();
        assert_eq!(workers(&membership.apply_to(&named), 0).len(), 2);
        membership.retain_workers_of(&membership.apply_to(&file));
        assert_eq!(membership.iter().count(), 2);
        let mut closed = file;
        closed.services[0].auto_join = None;
        membership.retain_workers_of(&membership.apply_to(&closed));
        assert_eq!(membership.address("new1"), None);
    }

    #[test]
    fn refusals_have_a_reason() {
        let file = file(256);
        let mut membership = Membership::default();
        membership = membership
            .admit(&file, "new", at(110), 0, |_| true)
            .unwrap();
        let refused = |worker: &str, address: IpAddr| {
            let result = membership.admit(&file, worker, address, 0, |_| true);
            result.expect_err("error")
        };
        let occupied = |by: &str| JoinError::Occupied { by: by.to_owned() };
        assert_eq!(refused("manager", at(111)), JoinError::ReservedName);
        assert_eq!(refused("a", [10, 0, 0, 1].into()), JoinError::NotAllowed);
        assert_eq!(
            refused("a", "fe80::1".parse().unwrap()),
            JoinError::LinkLocal
        );
        assert_eq!(refused("a", at(101)), JoinError::ManagersAddress);
        assert_eq!(refused("a", at(103)), occupied("worker1"));
        assert_eq!(refused("a", at(110)), occupied("new"));
        // It is alive at its former address.
        assert_eq!(refused("new", at(111)), occupied("new"));
    }

    #[test]
    fn absent_members_are_replaced() {
        let file = file(256);
        let mut membership = Membership::default();
        membership = membership
            .admit(&file, "old", at(110), 0, |_| true)
            .unwrap();
        membership = membership
            .admit(&file, "moving", at(111), 0, |_| true)
            .unwrap();
        membership = membership
            .admit(&file, "new", at(110), 0, |_| false)
            .unwrap();
        assert_eq!(membership.address("old"), None);
        membership = membership
            .admit(&file, "moving", at(112), 0, |_| false)
            .unwrap();
        assert_eq!(membership.address("moving"), Some(at(112)));
        membership.remove("moving");
        assert_eq!(membership.iter().collect::<Vec<_>>(), [("new", at(110))]);
    }

    #[test]
    fn joining_needs_a_free_backend_id() {
        // "none", two fallbacks and worker1 leave room for two.
        let file = file(6);
        let mut membership = Membership::default();
        membership = membership.admit(&file, "b", at(110), 0, |_| true).unwrap();
        let no_room = Err(JoinError::NoRoom { backends: 6 });
        assert_eq!(membership.admit(&file, "a", at(200), 0, |_| true), no_room);
        // Ids of removed workers with open connections are not free.
        assert_eq!(membership.admit(&file, "c", at(111), 1, |_| true), no_room);
        membership = membership.admit(&file, "c", at(111), 0, |_| true).unwrap();
        assert_eq!(membership.admit(&file, "a", at(112), 0, |_| true), no_room);
        assert_eq!(workers(&membership.apply_to(&file), 0).len(), 3);
    }
}
