//! The differences between two configurations: what a running manager applies, and what it cannot.

use lb_core::counted;

use super::key::ReloadClass;
use super::section::{Difference, Section};
use super::{Config, Peer, Service, Worker};

/// The differences between two configurations, one sentence each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What a running manager applies.
    pub accepted: Vec<String>,
    /// What it cannot apply, with the remedy.
    pub refused: Vec<String>,
}

const RESTART: &str = "restart the manager; traffic continues meanwhile";
const UNLOAD: &str = "it determines the size or place of the maps: stop the manager, run memlb unload (open \
                      connections end), and start it again";

impl Changes {
    /// Compares a configuration with its successor.
    pub fn between(old: &Config, new: &Config) -> Self {
        // Destructured, so that the compiler demands a comparison of each new table.
        let Config {
            manager,
            peers,
            heartbeats,
            failover,
            limits,
            services,
            origins: _,
        } = new;
        let mut changes = Self::default();
        changes.table("manager", old.manager.differences(manager));
        changes.peers(&old.peers, peers);
        changes.table("heartbeats", old.heartbeats.differences(heartbeats));
        changes.table("failover", old.failover.differences(failover));
        changes.table("limits", old.limits.differences(limits));
        changes.services(&old.services, services);
        changes
    }

    fn table(&mut self, table: &str, differences: Vec<Difference>) {
        for difference in differences {
            let name = format!("{table}.{}", difference.key.name);
            self.add(&name, &difference);
        }
    }

    fn add(&mut self, name: &str, difference: &Difference) {
        let Difference { key, old, new } = difference;
        let change = format!("{name}: {} -> {}", plain(old), plain(new));
        match key.reload {
            ReloadClass::Live => self.accepted.push(change),
            ReloadClass::Restart => self.refuse(&change),
            ReloadClass::Unload => self.refused.push(format!("{change}\n  to do: {UNLOAD}")),
        }
    }

    /// The first and the last peer need a restart: without a peer, the map of events is small.
    fn peers(&mut self, old: &[Peer], new: &[Peer]) {
        let is_live = !old.is_empty() && !new.is_empty();
        let mut add = |change: String| match is_live {
            true => self.accepted.push(change),
            false => self.refuse(&change),
        };
        let is_gone = |it: &&Peer| !new.iter().any(|new| new.name == it.name);
        for peer in old.iter().filter(is_gone) {
            add(format!("peer {} removed", peer.name));
        }
        let is_new = |it: &&Peer| !old.iter().any(|old| old.name == it.name);
        for peer in new.iter().filter(is_new) {
            add(format!("peer {} added at {}", peer.name, peer.address));
        }
        for peer in new {
            if let Some(before) = old.iter().find(|it| it.name == peer.name) {
                self.table(&format!("peer {}", peer.name), before.differences(peer));
            }
        }
    }

    fn refuse(&mut self, change: &str) {
        self.refused.push(format!("{change}\n  to do: {RESTART}"));
    }

    fn services(&mut self, old: &[Service], new: &[Service]) {
        for service in new {
            match old.iter().find(|it| it.name == service.name) {
                Some(before) => self.service(before, service),
                None => self.accepted.push(format!(
                    "service {} added at {} with {}",
                    service.name,
                    service.endpoint(),
                    counted(service.workers.len(), "worker")
                )),
            }
        }
        let is_gone = |it: &&Service| !new.iter().any(|new| new.name == it.name);
        for service in old.iter().filter(is_gone) {
            self.accepted
                .push(format!("service {} removed", service.name));
        }
    }

    fn service(&mut self, old: &Service, new: &Service) {
        let name = &new.name;
        let differences = old.differences(new).into_iter();
        for difference in differences.filter(|it| it.key.name != "workers") {
            self.add(
                &format!("service {name}: {}", difference.key.name),
                &difference,
            );
        }
        for worker in &new.workers {
            let Some(before) = old.workers.iter().find(|it| it.name == worker.name) else {
                self.accepted.push(format!(
                    "service {name}: worker {} added at {}",
                    worker.name, worker.address
                ));
                continue;
            };
            for difference in before.differences(worker) {
                let key = difference.key.name;
                self.add(
                    &format!("service {name}: {key} of worker {}", worker.name),
                    &difference,
                );
            }
        }
        let is_gone = |it: &&Worker| !new.workers.iter().any(|new| new.name == it.name);
        for worker in old.workers.iter().filter(is_gone) {
            self.accepted.push(format!(
                "service {name}: worker {} removed; its open connections continue",
                worker.name
            ));
        }
    }
}

/// A value without its quotes, unless it is empty.
fn plain(toml: &str) -> &str {
    let inner = toml.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
    inner.filter(|it| !it.is_empty()).unwrap_or(toml)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn parse(text: &str) -> Config {
        Config::parse(text, "memlb.toml", &Overrides::default(), None).unwrap()
    }

    #[test]
    fn an_unchanged_file_changes_nothing() {
        let config = parse(Config::example_text());
        assert_eq!(Changes::between(&config, &config), Changes::default());
    }

    #[test]
    fn reports_each_difference_once_with_its_key() {
        let old = parse(Config::example_text());
        let mut new = old.clone();
        new.failover.down_after = std::time::Duration::from_secs(3);
        new.services[0].workers[1].address = "192.168.56.105:8082".parse().unwrap();
        new.services[0].workers.remove(0);
        new.services[0].workers.push(Worker {
            name: "worker3".to_owned(),
            address: "192.168.56.106:8083".parse().unwrap(),
            weight_percent: 100,
            backup: false,
            agent: true,
            max_connections: 0,
        });
        let changes = Changes::between(&old, &new);
        assert_eq!(
            changes.accepted,
            [
                "failover.down_after: 1500ms -> 3s",
                "service web: address of worker worker2: 192.168.56.104:8082 -> 192.168.56.105:8082",
                "service web: worker worker3 added at 192.168.56.106:8083",
                "service web: worker worker1 removed; its open connections continue",
            ]
        );
        assert_eq!(changes.refused, [""; 0]);
    }

    #[test]
    fn refuses_by_name_what_cannot_change_with_a_remedy() {
        let old = parse(Config::example_text());
        let mut new = old.clone();
        new.limits.flows *= 2;
        new.manager.interfaces.push("eth7".to_owned());
        let changes = Changes::between(&old, &new);
        assert_eq!(changes.accepted, [""; 0]);
        assert_eq!(changes.refused.len(), 2);
        assert!(changes.refused[0].starts_with("manager.interfaces: "));
        assert!(changes.refused[0].contains("restart the manager"));
        assert!(changes.refused[1].starts_with("limits.flows: 131072 -> 262144"));
        assert!(changes.refused[1].contains("memlb unload"));
    }
}
