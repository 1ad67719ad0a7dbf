//! The settings that must be equal on all managers of a pair, and their digest.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

use super::{Config, HeartbeatSettings, Limits, ManagerSettings, Service};

impl Config {
    /// Returns the settings that must be equal on all managers of a pair, as TOML without the defaults: those of
    /// services, workers, policies, failover, heartbeats and connections.
    ///
    /// Addresses and files of this machine, sizes of tables, and workers that no file names are not part of them.
    pub fn shared_settings(&self) -> String {
        // Destructured, so that the compiler demands a decision on each new table.
        let Self {
            manager,
            peers: _,
            heartbeats,
            failover,
            limits,
            services,
            origins: _,
        } = self;
        let manager = ManagerSettings {
            legacy_heartbeats: manager.legacy_heartbeats,
            ..ManagerSettings::default()
        };
        let sizes = Limits::default();
        let limits = Limits {
            services: sizes.services,
            backends: sizes.backends,
            flows: sizes.flows,
            ..limits.clone()
        };
        let heartbeats = HeartbeatSettings {
            authentication: heartbeats.authentication,
            ..HeartbeatSettings::default()
        };
        let mut services = services.clone();
        services.sort_by(|one, other| one.name.cmp(&other.name));
        for Service { name, workers, .. } in &mut services {
            workers.retain(|it| self.origin(name, &it.name).is_none());
            workers.sort_by(|one, other| one.name.cmp(&other.name));
        }
        let shared = Self {
            manager,
            peers: Vec::new(),
            heartbeats,
            failover: failover.clone(),
            limits,
            services,
            origins: BTreeMap::new(),
        };
        shared.to_toml()
    }

    /// Returns the SHA-256 of [`Self::shared_settings`]; managers compare it.
    pub fn digest(&self) -> ConfigDigest {
        ConfigDigest(Sha256::digest(self.shared_settings()).into())
    }
}

/// The SHA-256 of a configuration's shared settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigDigest(pub [u8; 32]);

impl fmt::Display for ConfigDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{JOINED, Overrides, Worker, WorkerOrigin};

    fn parse(text: &str) -> Config {
        Config::parse(text, "memlb.toml", &Overrides::default(), None).unwrap()
    }

    #[test]
    fn compares_what_both_managers_have_and_nothing_of_one_machine() {
        let one = parse(Config::example_text());
        let mut other = one.clone();
        other.manager.interfaces = vec!["enp3s0".to_owned()];
        other.manager.nat_sources = vec!["192.168.56.9".parse().unwrap()];
        other.manager.name = Some("manager2".to_owned());
        other.limits.flows *= 2;
        let joined = Worker::joining("worker9".to_owned(), "192.168.56.109:8081".parse().unwrap());
        let origin = WorkerOrigin {
            source: JOINED.to_owned(),
            state: None,
        };
        other.add_worker(0, joined, origin);
        assert_eq!(other.shared_settings(), one.shared_settings());

        let changes: [fn(&mut Config); 5] = [
            |it| it.services[0].workers[0].weight_percent = 50,
            |it| it.services[0].policy = lb_core::Policy::RoundRobin,
            |it| it.failover.up_after = 3,
            |it| it.limits.nat_ports.first = 5000,
            |it| it.manager.legacy_heartbeats = true,
        ];
        for change in changes {
            let mut other = one.clone();
            change(&mut other);
            assert_ne!(other.digest(), one.digest(), "{}", other.shared_settings());
        }
    }

    #[test]
    fn does_not_depend_on_the_order_of_services_and_workers() {
        let mut one = parse(Config::example_text());
        let mut other = one.services[0].clone();
        "web2".clone_into(&mut other.name);
        one.services.push(other);
        let mut reversed = one.clone();
        reversed.services.reverse();
        reversed.services[0].workers.reverse();
        assert_ne!(
            one.services[1].workers[0].name,
            reversed.services[0].workers[0].name
        );
        assert_eq!(one.digest(), reversed.digest());
    }
}
