//! What a changed configuration asks of a running manager, and what it cannot have.

use std::fmt::{Debug, Display};

use lb_core::SpreadSettings;

use super::values::show_duration;
use super::{Config, Failover, Heartbeats, Limits, Manager, Service, Worker};

/// The differences between two configurations, one sentence each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What a running manager takes over.
    pub accepted: Vec<String>,
    /// What it cannot, with what to do instead.
    pub refused: Vec<String>,
}

const RESTART: &str = "restart the manager; traffic flows on meanwhile";
const UNLOAD: &str = "the maps are made with it: stop the manager, run memlb unload (open \
                      connections end), and start it again";

impl Changes {
    /// Compares a configuration with its successor.
    pub fn between(old: &Config, new: &Config) -> Self {
        // Taken apart by name, so that a new setting must be decided upon here.
        let Config {
            manager,
            heartbeats,
            failover,
            limits,
            services,
        } = new;
        let mut changes = Self::default();
        changes.manager(&old.manager, manager);
        changes.heartbeats(&old.heartbeats, heartbeats);
        changes.failover(&old.failover, failover);
        changes.limits(&old.limits, limits);
        changes.services(&old.services, services);
        changes
    }

    fn manager(&mut self, old: &Manager, new: &Manager) {
        let Manager {
            interfaces,
            attach,
            heartbeat_listen,
            pin_path,
            control_socket,
            state_file,
            event_log,
            legacy_heartbeats,
            http_listen,
            http_names,
            nat_sources,
        } = new;
        self.fixed("manager.interfaces", &old.interfaces, interfaces, RESTART);
        self.fixed("manager.attach", &old.attach, attach, RESTART);
        let sources = (&old.nat_sources, nat_sources);
        self.fixed("manager.nat_sources", sources.0, sources.1, RESTART);
        let listen = (&old.heartbeat_listen, heartbeat_listen);
        self.fixed("manager.heartbeat_listen", listen.0, listen.1, RESTART);
        self.fixed("manager.pin_path", &old.pin_path, pin_path, UNLOAD);
        let socket = (&old.control_socket, control_socket);
        self.fixed("manager.control_socket", socket.0, socket.1, RESTART);
        self.fixed("manager.state_file", &old.state_file, state_file, RESTART);
        self.fixed(
            "manager.http_listen",
            &old.http_listen,
            http_listen,
            RESTART,
        );
        self.fixed("manager.http_names", &old.http_names, http_names, RESTART);
        self.free("manager.event_log", &old.event_log, event_log, debug);
        let legacy = (&old.legacy_heartbeats, legacy_heartbeats);
        self.free(
            "manager.legacy_heartbeats",
            legacy.0,
            legacy.1,
            bool::to_string,
        );
    }

    fn heartbeats(&mut self, old: &Heartbeats, new: &Heartbeats) {
        let Heartbeats {
            authentication,
            keys,
        } = new;
        let authentications = (&old.authentication, authentication);
        let name = |it: &crate::heartbeat::Authentication| it.name().to_owned();
        self.free(
            "heartbeats.authentication",
            authentications.0,
            authentications.1,
            name,
        );
        self.free("heartbeats.keys", &old.keys, keys, debug);
    }

    fn failover(&mut self, old: &Failover, new: &Failover) {
        let Failover {
            heartbeat_interval: interval,
            down_after,
            up_after,
        } = new;
        let duration = |it: &std::time::Duration| show_duration(*it);
        self.free(
            "failover.heartbeat_interval",
            &old.heartbeat_interval,
            interval,
            duration,
        );
        self.free("failover.down_after", &old.down_after, down_after, duration);
        self.free("failover.up_after", &old.up_after, up_after, u32::to_string);
    }

    fn limits(&mut self, old: &Limits, new: &Limits) {
        let Limits {
            services,
            backends,
            flows,
            nat_ports,
            established_idle,
            datagram_idle,
            closing_idle,
            half_open_idle,
        } = new;
        self.fixed("limits.services", &old.services, services, UNLOAD);
        self.fixed("limits.backends", &old.backends, backends, UNLOAD);
        self.fixed("limits.flows", &old.flows, flows, UNLOAD);
        self.fixed("limits.nat_ports", &old.nat_ports, nat_ports, RESTART);
        let idle = (&old.established_idle, established_idle);
        self.fixed("limits.established_idle", idle.0, idle.1, RESTART);
        let idle = (&old.datagram_idle, datagram_idle);
        self.fixed("limits.datagram_idle", idle.0, idle.1, RESTART);
        self.fixed(
            "limits.closing_idle",
            &old.closing_idle,
            closing_idle,
            RESTART,
        );
        let idle = (&old.half_open_idle, half_open_idle);
        self.fixed("limits.half_open_idle", idle.0, idle.1, RESTART);
    }

    fn services(&mut self, old: &[Service], new: &[Service]) {
        for service in new {
            match old.iter().find(|it| it.name == service.name) {
                Some(before) => self.service(before, service),
                None => self.say(format!(
                    "service {} added at {} with {} workers",
                    service.name,
                    service.endpoint(),
                    service.workers.len()
                )),
            }
        }
        for gone in old
            .iter()
            .filter(|it| !new.iter().any(|new| new.name == it.name))
        {
            self.say(format!("service {} removed", gone.name));
        }
    }

    fn service(&mut self, old: &Service, new: &Service) {
        let Service {
            name,
            address,
            protocol,
            policy,
            threshold,
            hold,
            spread,
            mode,
            fallback,
            workers,
            auto_join,
        } = new;
        let key = |setting: &str| format!("service {name}: {setting}");
        self.free(&key("address"), &old.address, address, text);
        self.free(&key("protocol"), &old.protocol, protocol, debug);
        self.free(&key("policy"), &old.policy, policy, text);
        self.free(&key("threshold"), &old.threshold, threshold, text);
        self.free(&key("hold"), &old.hold, hold, |it| show_duration(*it));
        self.spread(name, &old.spread, spread);
        self.free(&key("mode"), &old.mode, mode, debug);
        self.free(&key("fallback"), &old.fallback, fallback, |it| {
            it.map_or("reject".to_owned(), |address| address.to_string())
        });
        self.free(
            &key("auto_join"),
            &old.auto_join,
            auto_join,
            |it| match it {
                Some(auto_join) => auto_join.to_string(),
                None => "nobody".to_owned(),
            },
        );
        for worker in workers {
            match old.workers.iter().find(|it| it.name == worker.name) {
                Some(before) => self.worker(name, before, worker),
                None => self.say(format!(
                    "service {name}: worker {} added at {}",
                    worker.name, worker.address
                )),
            }
        }
        let gone = |it: &&Worker| !workers.iter().any(|new| new.name == it.name);
        for worker in old.workers.iter().filter(gone) {
            self.say(format!(
                "service {name}: worker {} removed; its connections may end in peace",
                worker.name
            ));
        }
    }

    fn spread(&mut self, service: &str, old: &SpreadSettings, new: &SpreadSettings) {
        let SpreadSettings {
            rebalance_interval,
            reserve_percent,
            pressure_limit,
            ramp_up,
            max_share,
        } = new;
        let key = |setting: &str| format!("service {service}: {setting}");
        let interval = (&old.rebalance_interval, rebalance_interval);
        self.free(&key("rebalance_interval"), interval.0, interval.1, debug);
        let percent = |percent: &u32| format!("{percent}%");
        let reserve = (&old.reserve_percent, reserve_percent);
        self.free(&key("reserve"), reserve.0, reserve.1, percent);
        let limit = (&old.pressure_limit, pressure_limit);
        self.free(&key("pressure_limit"), limit.0, limit.1, text);
        self.free(&key("ramp_up"), &old.ramp_up, ramp_up, debug);
        self.free(&key("max_share"), &old.max_share, max_share, text);
    }

    fn worker(&mut self, service: &str, old: &Worker, new: &Worker) {
        let Worker {
            name,
            address,
            weight_percent,
        } = new;
        let key = |setting: &str| format!("service {service}: {setting} of worker {name}");
        self.free(&key("address"), &old.address, address, text);
        let weight = (&old.weight_percent, weight_percent);
        self.free(&key("weight"), weight.0, weight.1, |it| format!("{it}%"));
    }

    fn say(&mut self, sentence: String) {
        self.accepted.push(sentence);
    }

    fn free<T: PartialEq>(&mut self, key: &str, old: &T, new: &T, show: impl Fn(&T) -> String) {
        if old != new {
            self.say(format!("{key}: {} -> {}", show(old), show(new)));
        }
    }

    fn fixed<T: PartialEq + Debug>(&mut self, key: &str, old: &T, new: &T, to_do: &str) {
        if old != new {
            self.refused
                .push(format!("{key}: {old:?} -> {new:?}\n  to do: {to_do}"));
        }
    }
}

fn text(value: &impl Display) -> String {
    value.to_string()
}

fn debug(value: &impl Debug) -> String {
    format!("{value:?}").to_lowercase()
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
        let config = parse(Config::EXAMPLE);
        assert_eq!(Changes::between(&config, &config), Changes::default());
    }

    #[test]
    fn says_each_difference_once_and_where_it_is() {
        let old = parse(Config::EXAMPLE);
        let mut new = old.clone();
        new.failover.down_after = std::time::Duration::from_secs(3);
        new.services[0].workers[1].address = "192.168.56.105:8082".parse().unwrap();
        new.services[0].workers.remove(0);
        new.services[0].workers.push(Worker {
            name: "worker3".to_owned(),
            address: "192.168.56.106:8083".parse().unwrap(),
            weight_percent: 100,
        });
        let changes = Changes::between(&old, &new);
        assert_eq!(
            changes.accepted,
            [
                "failover.down_after: 1500ms -> 3s",
                "service web: address of worker worker2: 192.168.56.104:8082 -> 192.168.56.105:8082",
                "service web: worker worker3 added at 192.168.56.106:8083",
                "service web: worker worker1 removed; its connections may end in peace",
            ]
        );
        assert_eq!(changes.refused, [""; 0]);
    }

    #[test]
    fn refuses_by_name_what_cannot_change_and_says_what_to_do() {
        let old = parse(Config::EXAMPLE);
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
