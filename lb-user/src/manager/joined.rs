//! Who became a worker by starting an agent: who may, and how that lies over the configuration.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_core::{MANAGER, NO_BACKEND};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Worker};

/// The names of workers that stand in no file, each with the address its heartbeats come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Joined(BTreeMap<String, IpAddr>);

/// Why an agent that may speak does not become a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// No service takes workers from its network.
    NotAllowed,
    /// It would be mistaken for the fallback.
    ReservedName,
    /// Its address means another machine on each link.
    LinkLocal,
    /// A service has that address itself.
    ManagersAddress,
    /// Another worker of that name or at that address is there and heard.
    Occupied {
        by: String,
    },
    NoRoom {
        backends: u32,
    },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllowed => f.write_str("no service takes workers from there"),
            Self::ReservedName => write!(f, "{MANAGER:?} is the name of every service's fallback"),
            Self::LinkLocal => f.write_str(
                "its address is link-local: have it send to an address of the manager that is not",
            ),
            Self::ManagersAddress => f.write_str("that is the manager's own address"),
            Self::Occupied { by } => write!(f, "{by} is there already"),
            Self::NoRoom { backends } => {
                write!(f, "there is no room: raise limits.backends ({backends})")
            }
        }
    }
}

impl Joined {
    pub fn address(&self, worker: &str) -> Option<IpAddr> {
        self.0.get(worker).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.0.iter().map(|(worker, at)| (worker.as_str(), *at))
    }

    /// Takes a worker in, or takes note that it has moved, if `file` lets it.
    ///
    /// Who is at its name or its address but is not `present` any more gives way. There are numbers for
    /// as many backends as `limits.backends` without `parting` ones, which still have connections.
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
    ) -> Result<(), Unfit> {
        if [MANAGER, NO_BACKEND].contains(&worker) {
            return Err(Unfit::ReservedName);
        }
        if matches!(address, IpAddr::V6(it) if it.is_unicast_link_local()) {
            return Err(Unfit::LinkLocal);
        }
        if file.services.iter().any(|it| it.address.ip() == address) {
            return Err(Unfit::ManagersAddress);
        }
        let mut next = self.clone();
        next.0
            .retain(|other, at| present(other) || other != worker && *at != address);
        if next.0.insert(worker.to_owned(), address).is_some() {
            return Err(Unfit::Occupied {
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
            return Err(Unfit::NotAllowed);
        }
        if let Some(other) = occupied {
            return Err(Unfit::Occupied {
                by: other.name.clone(),
            });
        }
        if candidates.len() > room(file).saturating_sub(parting) {
            return Err(Unfit::NoRoom {
                backends: file.limits.backends,
            });
        }
        *self = next;
        Ok(())
    }

    pub fn forget(&mut self, worker: &str) {
        self.0.remove(worker);
    }

    /// Forgets those who are a worker of no service any more.
    pub fn retain_workers_of(&mut self, config: &Config) {
        self.0.retain(|worker, _| named(config, worker));
    }

    /// Returns the configuration with those in it who have joined.
    pub fn added_to(&self, file: &Config) -> Config {
        let mut config = file.clone();
        for (service, worker) in self.candidates(file).into_iter().take(room(file)) {
            let workers = &mut config.services[service].workers;
            if !workers.iter().any(|it| it.address == worker.address) {
                workers.push(worker);
            }
        }
        config
    }

    /// Who would serve where, of those that the file does not name.
    fn candidates(&self, file: &Config) -> Vec<(usize, Worker)> {
        let unnamed = self.0.iter().filter(|(worker, _)| !named(file, worker));
        let mut candidates = Vec::new();
        for (name, address) in unnamed {
            for (place, service) in file.services.iter().enumerate() {
                let Some(auto_join) = &service.auto_join else {
                    continue;
                };
                if auto_join.allows(*address) {
                    candidates.push((
                        place,
                        Worker::joining(name.clone(), SocketAddr::new(*address, auto_join.port)),
                    ));
                }
            }
        }
        candidates
    }
}

fn named(config: &Config, worker: &str) -> bool {
    let mut workers = config.services.iter().flat_map(|service| &service.workers);
    workers.any(|it| it.name == worker)
}

/// How many more backends there can be than the file names; entry 0 means "none".
fn room(file: &Config) -> usize {
    // Each service has a fallback, too.
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
    fn a_worker_joins_every_service_that_takes_it() {
        let file = file(256);
        let mut joined = Joined::default();
        joined.admit(&file, "new1", at(110), 0, |_| true).unwrap();
        joined.admit(&file, "new2", at(200), 0, |_| true).unwrap();
        let config = joined.added_to(&file);
        assert_eq!(
            workers(&config, 0),
            [
                "worker1 192.168.56.103:8081",
                "new1 192.168.56.110:8081",
                "new2 192.168.56.200:8081"
            ]
        );
        assert_eq!(workers(&config, 1), ["new2 192.168.56.200:9000"]);

        // Who is named in the file from now on is no matter of this.
        let mut named = file.clone();
        named.services[1].workers = config.services[1].workers.clone();
        assert_eq!(workers(&joined.added_to(&named), 0).len(), 2);
        joined.retain_workers_of(&joined.added_to(&file));
        assert_eq!(joined.iter().count(), 2);
        let mut closed = file.clone();
        closed.services[0].auto_join = None;
        joined.retain_workers_of(&joined.added_to(&closed));
        assert_eq!(joined.address("new1"), None);
    }

    #[test]
    fn who_cannot_be_one_is_told_why() {
        let file = file(256);
        let mut joined = Joined::default();
        joined.admit(&file, "new", at(110), 0, |_| true).unwrap();
        let before = joined.clone();
        let mut refused = |worker: &str, address: IpAddr| {
            let result = joined.admit(&file, worker, address, 0, |_| true);
            assert_eq!(joined, before);
            result.expect_err("unfit")
        };
        let occupied = |by: &str| Unfit::Occupied { by: by.to_owned() };
        assert_eq!(refused("manager", at(111)), Unfit::ReservedName);
        assert_eq!(refused("a", [10, 0, 0, 1].into()), Unfit::NotAllowed);
        assert_eq!(refused("a", "fe80::1".parse().unwrap()), Unfit::LinkLocal);
        assert_eq!(refused("a", at(101)), Unfit::ManagersAddress);
        assert_eq!(refused("a", at(103)), occupied("worker1"));
        assert_eq!(refused("a", at(110)), occupied("new"));
        // It is heard where it was.
        assert_eq!(refused("new", at(111)), occupied("new"));
    }

    #[test]
    fn who_is_gone_gives_way() {
        let file = file(256);
        let mut joined = Joined::default();
        joined.admit(&file, "old", at(110), 0, |_| true).unwrap();
        joined.admit(&file, "moving", at(111), 0, |_| true).unwrap();
        joined.admit(&file, "new", at(110), 0, |_| false).unwrap();
        assert_eq!(joined.address("old"), None);
        joined
            .admit(&file, "moving", at(112), 0, |_| false)
            .unwrap();
        assert_eq!(joined.address("moving"), Some(at(112)));
        joined.forget("moving");
        assert_eq!(joined.iter().collect::<Vec<_>>(), [("new", at(110))]);
    }

    #[test]
    fn nobody_joins_where_there_is_no_room() {
        // "none", two fallbacks and worker1 leave room for two.
        let file = file(6);
        let mut joined = Joined::default();
        joined.admit(&file, "b", at(110), 0, |_| true).unwrap();
        let no_room = Err(Unfit::NoRoom { backends: 6 });
        assert_eq!(joined.admit(&file, "a", at(200), 0, |_| true), no_room);
        // What a removed worker's connections still need is nobody else's.
        assert_eq!(joined.admit(&file, "c", at(111), 1, |_| true), no_room);
        joined.admit(&file, "c", at(111), 0, |_| true).unwrap();
        assert_eq!(joined.admit(&file, "a", at(112), 0, |_| true), no_room);
        assert_eq!(workers(&joined.added_to(&file), 0).len(), 3);
    }
}
