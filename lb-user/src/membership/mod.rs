//! The workers that joined by starting an agent, those that other sources gave, and how long workers have been
//! silent.

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
    AbsentWorker, Applied, ExternalWorker, ExternalWorkers, WorkerList, parse_weight,
};
use lb_core::{MANAGER, NO_BACKEND};
pub use liveness::LivenessRecord;

/// The workers that joined and are not in the configuration file, each with the address that its
/// heartbeats come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Membership(BTreeMap<String, IpAddr>);

/// Why an authenticated agent does not become a worker.
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
    /// A live worker.
    #[error("{by} has its name or address")]
    Occupied { by: String },
    #[error("there are no more backends: raise limits.backends ({backends})")]
    NoRoom { backends: u32 },
}

impl Membership {
    pub fn address(&self, worker: &str) -> Option<IpAddr> {
        self.0.get(worker).copied()
    }

    /// Whether a heartbeat of `worker` counts. One of a worker that joined must be signed and come from
    /// the address at which the worker joined.
    pub fn accepts(&self, worker: &str, from: IpAddr, is_signed: bool) -> bool {
        self.address(worker)
            .is_none_or(|address| address == from && is_signed)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.0.iter().map(|(worker, at)| (worker.as_str(), *at))
    }

    /// Adds a worker, or moves it to another address, if `file` allows that.
    ///
    /// A member with the same name or address is replaced if it is not `present`. `parting` is the number
    /// of backend ids that removed workers with open connections still hold.
    ///
    /// # Errors
    ///
    /// Returns why it cannot be a worker; nothing has changed then.
    pub fn admit(
        &mut self,
        file: &Config,
        worker: &str,
        address: IpAddr,
        parting: usize,
        present: impl Fn(&str) -> bool,
    ) -> Result<(), JoinError> {
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
            .retain(|other, at| present(other) || other != worker && *at != address);
        if next.0.insert(worker.to_owned(), address).is_some() {
            return Err(JoinError::Occupied {
                by: worker.to_owned(),
            });
        }
        let candidates = next.candidates(file);
        let mine = candidates
            .iter()
            .filter(|(_, candidate)| candidate.name == worker);
        let (mut may, mut occupied) = (false, None);
        for (service, candidate) in mine {
            may = true;
            occupied = file.services[*service]
                .workers
                .iter()
                .chain(
                    candidates
                        .iter()
                        .filter(|it| it.0 == *service)
                        .map(|it| &it.1),
                )
                .find(|other| other.address == candidate.address && other.name != worker)
                .or(occupied);
        }
        if !may {
            return Err(JoinError::NotAllowed);
        }
        if let Some(other) = occupied {
            return Err(JoinError::Occupied {
                by: other.name.clone(),
            });
        }
        if candidates.len() > room(file).saturating_sub(parting) {
            return Err(JoinError::NoRoom {
                backends: file.limits.backends,
            });
        }
        *self = next;
        Ok(())
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

    /// The members that the file does not name, each with the index of a service that it may join.
    fn candidates(&self, file: &Config) -> Vec<(usize, Worker)> {
        let unnamed = self.0.iter();
        let unnamed = unnamed.filter(|(worker, _)| !named_by_file(file, worker));
        let mut candidates = Vec::new();
        for (name, address) in unnamed {
            for (index, service) in file.services.iter().enumerate() {
                let Some(auto_join) = &service.auto_join else {
                    continue;
                };
                let is_there = service.workers.iter().any(|it| it.name == *name);
                if auto_join.allows(*address) && !is_there {
                    candidates.push((
                        index,
                        Worker::joining(name.clone(), SocketAddr::new(*address, auto_join.port)),
                    ));
                }
            }
        }
        candidates
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

/// How many backends there can be in addition to those of the file; id 0 means "none".
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
        membership
            .admit(&file, "new1", at(110), 0, |_| true)
            .unwrap();
        membership
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
        let mut closed = file.clone();
        closed.services[0].auto_join = None;
        membership.retain_workers_of(&membership.apply_to(&closed));
        assert_eq!(membership.address("new1"), None);
    }

    #[test]
    fn refusals_have_a_reason() {
        let file = file(256);
        let mut membership = Membership::default();
        membership
            .admit(&file, "new", at(110), 0, |_| true)
            .unwrap();
        let before = membership.clone();
        let mut refused = |worker: &str, address: IpAddr| {
            let result = membership.admit(&file, worker, address, 0, |_| true);
            assert_eq!(membership, before);
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
        membership
            .admit(&file, "old", at(110), 0, |_| true)
            .unwrap();
        membership
            .admit(&file, "moving", at(111), 0, |_| true)
            .unwrap();
        membership
            .admit(&file, "new", at(110), 0, |_| false)
            .unwrap();
        assert_eq!(membership.address("old"), None);
        membership
            .admit(&file, "moving", at(112), 0, |_| false)
            .unwrap();
        assert_eq!(membership.address("moving"), Some(at(112)));
        membership.remove("moving");
        assert_eq!(membership.iter().collect::<Vec<_>>(), [("new", at(110))]);
    }

    #[test]
    fn none_joins_without_a_free_backend() {
        // "none", two fallbacks and worker1 leave room for two.
        let file = file(6);
        let mut membership = Membership::default();
        membership.admit(&file, "b", at(110), 0, |_| true).unwrap();
        let no_room = Err(JoinError::NoRoom { backends: 6 });
        assert_eq!(membership.admit(&file, "a", at(200), 0, |_| true), no_room);
        // Ids of removed workers with open connections are not free.
        assert_eq!(membership.admit(&file, "c", at(111), 1, |_| true), no_room);
        membership.admit(&file, "c", at(111), 0, |_| true).unwrap();
        assert_eq!(membership.admit(&file, "a", at(112), 0, |_| true), no_room);
        assert_eq!(workers(&membership.apply_to(&file), 0).len(), 3);
    }
}
