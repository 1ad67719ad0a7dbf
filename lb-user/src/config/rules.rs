//! Relations between keys.

mod peers;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_core::{Endpoint, Mode, Protocol};

use super::error::ProblemKind;
use super::section::SERVICE;
use super::validator::Validator;
use super::values::{self, PortRange, format_duration};
use super::{Config, Service};
use crate::heartbeat::Authentication;

/// Ports below it are privileged.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// Checks every relation between values that have no problem of their own.
pub(super) fn check(
    validator: &mut Validator<'_>,
    config: &Config,
    kernel_ports: Option<PortRange>,
) {
    manager(validator, config);
    peers::check(validator, config);
    failover(validator, config);
    nat_ports(validator, config, kernel_ports);
    idle_times(validator, config);
    counts(validator, config);
    distinct_services(validator, config);
    for (number, service) in config.services.iter().enumerate() {
        let service = ServiceRules {
            path: format!("service.{number}"),
            service,
        };
        service.auto_join(validator, config);
        service.workers(validator, config);
        service.fallback(validator, config);
        service.not_at_listeners(validator, config);
    }
    unshared_endpoints(validator, config);
}

fn manager(validator: &mut Validator<'_>, config: &Config) {
    let (http, peers) = (config.manager.http_listen, config.manager.peer_listen);
    if let (Some(http), Some(peers)) = (http, peers)
        && listens_at(http, peers)
        && validator.are_valid(&["manager.peer_listen"])
    {
        validator.reject(
            "manager.peer_listen",
            ProblemKind::ManagersOwnAddress,
            format!("at {peers}, the manager itself serves HTTP (http_listen = \"{http}\")"),
            "an address and port at which the manager does not listen",
            "choose another port for one of the two",
        );
    }
    let key = "manager.interfaces";
    if config.manager.interfaces.is_empty() && validator.are_valid(&[key]) {
        validator.reject(
            key,
            ProblemKind::NoInterface,
            "no interface is configured",
            "the interfaces through which clients and workers are reached, as in [\"eth1\"]",
            "add interfaces = [\"eth1\"] to [manager], or start with --interface eth1; \
             `ip -br link` lists the interfaces",
        );
    }
    let enforces = config.heartbeats.authentication == Authentication::Enforce;
    if enforces && config.manager.legacy_heartbeats {
        validator.reject(
            "heartbeats.authentication",
            ProblemKind::LegacyUnsigned,
            "2018 heartbeats cannot be signed, and legacy_heartbeats is on",
            "authentication = \"permissive\" while 2018 workers are left",
            "replace the last 2018 worker, set legacy_heartbeats = false, then enforce",
        );
    }
}

/// Two lost datagrams in a row must not count as a failure. The first pause is not longer than the longest one.
fn failover(validator: &mut Validator<'_>, config: &Config) {
    let (interval, down_after) = (
        config.failover.heartbeat_interval,
        config.failover.down_after,
    );
    let least = interval.saturating_mul(3);
    let keys = ["failover.heartbeat_interval", "failover.down_after"];
    if down_after < least && validator.are_valid(&keys) {
        validator.reject(
            "failover.down_after",
            ProblemKind::DownAfterTooShort,
            format!(
                "{} is shorter than three heartbeat intervals of {}",
                format_duration(down_after),
                format_duration(interval)
            ),
            format!("at least {}", format_duration(least)),
            "raise down_after, or lower heartbeat_interval here and --interval of the agents",
        );
    }
    let (first, longest) = (
        config.failover.failing_pause,
        config.failover.failing_max_pause,
    );
    let keys = ["failover.failing_pause", "failover.failing_max_pause"];
    if longest < first && validator.are_valid(&keys) {
        validator.reject(
            "failover.failing_max_pause",
            ProblemKind::FailingPausesReversed,
            format!(
                "{} is shorter than the first pause, failing_pause, {}",
                format_duration(longest),
                format_duration(first)
            ),
            format!("at least {}", format_duration(first)),
            "raise failing_max_pause, or lower failing_pause",
        );
    }
}

fn nat_ports(validator: &mut Validator<'_>, config: &Config, kernel_ports: Option<PortRange>) {
    let (key, range) = ("limits.nat_ports", config.limits.nat_ports);
    if range.first > range.last {
        return validator.reject(
            key,
            ProblemKind::NatPortsReversed,
            format!("the range {range} ends before it begins"),
            "FIRST-LAST with FIRST not above LAST",
            format!("write \"{}-{}\"", range.last, range.first),
        );
    }
    if range.first < FIRST_UNPRIVILEGED_PORT {
        validator.reject(
            key,
            ProblemKind::NatPortsPrivileged,
            format!("the range {range} contains privileged ports"),
            format!("a range from {FIRST_UNPRIVILEGED_PORT} upwards"),
            format!("begin it at {FIRST_UNPRIVILEGED_PORT} or later"),
        );
    }
    let Some(kernel) = kernel_ports.filter(|kernel| range.overlaps(*kernel)) else {
        return;
    };
    let outside = match kernel.first > FIRST_UNPRIVILEGED_PORT {
        true => format!("end nat_ports at {}", kernel.first - 1),
        false => format!("begin nat_ports at {}", kernel.last.saturating_add(1)),
    };
    // A port in both ranges could belong to two connections.
    validator.reject(
        key,
        ProblemKind::NatPortsOverlapKernel,
        format!(
            "the range {range} overlaps {kernel}, from which the kernel takes the manager's own \
             ports (net.ipv4.ip_local_port_range)"
        ),
        format!("a range without any of {kernel}"),
        format!(
            "{outside}, or move the kernel's range with `sysctl -w \
             net.ipv4.ip_local_port_range=\"FIRST LAST\"`"
        ),
    );
}

/// An unfinished connection must not outlive an established one.
fn idle_times(validator: &mut Validator<'_>, config: &Config) {
    let limits = &config.limits;
    for (key, time) in [
        ("limits.closing_idle", limits.closing_idle),
        ("limits.half_open_idle", limits.half_open_idle),
    ] {
        let most = limits.established_idle;
        if time > most && validator.are_valid(&[key, "limits.established_idle"]) {
            validator.reject(
                key,
                ProblemKind::IdleTimesReversed,
                format!(
                    "{} is longer than established_idle, {}",
                    format_duration(time),
                    format_duration(most)
                ),
                format!("at most {}", format_duration(most)),
                "lower it, or raise established_idle: an unfinished connection must not outlive \
                 an established one",
            );
        }
    }
}

/// The maps have room for every service and backend.
fn counts(validator: &mut Validator<'_>, config: &Config) {
    let services = &config.services;
    if services.is_empty() && validator.are_valid(&["service"]) {
        validator.reject(
            "service",
            ProblemKind::NoService,
            "no service is configured",
            "at least one [[service]] table",
            "copy that of `memlb check --example`, and replace its addresses by yours",
        );
    }
    let most = config.limits.services;
    if services.len() > most as usize {
        validator.reject(
            &format!("service.{most}"),
            ProblemKind::TooManyServices,
            format!("{} services are configured", services.len()),
            format!("at most {most}"),
            "raise services in [limits], or serve the rest from another manager",
        );
    }
    // One more for each service's fallback.
    let needed: usize = services.iter().map(|it| 1 + it.workers.len()).sum();
    // Entry 0 of the kernel's table means "none".
    let room = config.limits.backends.saturating_sub(1) as usize;
    if needed > room {
        validator.reject(
            "limits.backends",
            ProblemKind::TooManyBackends,
            format!(
                "{needed} backends are configured (the workers of every service and a fallback \
                 each), but there is room for {room}"
            ),
            format!("backends = {} or more", needed + 1),
            "raise backends in [limits], or remove workers",
        );
    }
}

fn distinct_services(validator: &mut Validator<'_>, config: &Config) {
    let (services, owner) = (&config.services, "a service");
    let kind = ProblemKind::DuplicateServiceName;
    validator.reject_duplicates(
        (SERVICE, "name"),
        services,
        |it| it.name.clone(),
        kind,
        owner,
    );
    let kind = ProblemKind::DuplicateServiceAddress;
    let endpoint = |it: &Service| it.endpoint().to_string();
    validator.reject_duplicates((SERVICE, "address"), services, endpoint, kind, owner);
}

/// A service, and the path of its values.
struct ServiceRules<'a> {
    path: String,
    service: &'a Service,
}

impl ServiceRules<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    fn auto_join(&self, validator: &mut Validator<'_>, config: &Config) {
        let Some(auto_join) = &self.service.auto_join else {
            return;
        };
        let key = self.key("auto_join");
        if config.heartbeats.authentication == Authentication::Off && validator.are_valid(&[&key]) {
            validator.reject(
                &key,
                ProblemKind::AutoJoinUnauthenticated,
                "agents may join, but heartbeats.authentication is \"off\"",
                "\"enforce\" or \"permissive\": only agents with a key that the manager knows join",
                "make keys with `memlb keygen` and set heartbeats.authentication = \"enforce\"",
            );
        }
        let address = self.service.address.ip();
        if !validator.are_valid(&[&self.key("address")]) {
            return;
        }
        for network in &auto_join.networks {
            let (is, needed) = (values::family(network.addr()), values::family(address));
            if is != needed {
                validator.reject(
                    &self.key("auto_join.networks"),
                    ProblemKind::FamiliesMixed,
                    format!("{network} is an {is} network, and the service's address an {needed} one"),
                    format!("{needed} networks"),
                    format!(
                        "name {needed} networks here, and this one at a service with an {is} address"
                    ),
                );
            }
        }
    }

    fn workers(&self, validator: &mut Validator<'_>, config: &Config) {
        let service = self.service;
        let key = self.key("workers");
        let is_empty = service.workers.is_empty()
            && service.auto_join.is_none()
            && service.worker_sources.is_empty();
        let keys = [&key, &self.key("auto_join"), &self.key("worker_sources")];
        if is_empty && validator.are_valid(&keys.map(String::as_str)) {
            validator.reject(
                &key,
                ProblemKind::NoWorker,
                "the service has no workers",
                "workers = [{ name = \"worker1\", address = \"192.168.56.103:8081\" }]",
                "name at least one worker",
            );
        }
        let (workers, owner) = (&service.workers, "a worker of this service");
        let kind = ProblemKind::DuplicateWorkerName;
        validator.reject_duplicates(
            (key.as_str(), "name"),
            workers,
            |it| it.name.clone(),
            kind,
            owner,
        );
        let kind = ProblemKind::DuplicateBackendAddress;
        validator.reject_duplicates(
            (key.as_str(), "address"),
            workers,
            |it| it.address.to_string(),
            kind,
            owner,
        );
        for (number, worker) in service.workers.iter().enumerate() {
            let path = self.key(&format!("workers.{number}.agent"));
            if !worker.agent && service.mode == Mode::Dsr && validator.are_valid(&[&path]) {
                validator.reject(
                    &path,
                    ProblemKind::DsrNeedsAgent,
                    format!("mode \"dsr\" needs an agent on {}", worker.name),
                    "agent = true, or another mode",
                    "start `memlb agent --dsr` there, or set mode = \"nat\" for the service",
                );
            }
        }
        for (number, worker) in workers.iter().enumerate() {
            let path = self.key(&format!("workers.{number}.address"));
            self.family(validator, &path, worker.address);
            self.not_on_manager(validator, &path, worker.address, config);
        }
    }

    /// Packets are not translated from one family to the other.
    fn family(&self, validator: &mut Validator<'_>, path: &str, worker: SocketAddr) {
        let (ip, service) = (worker.ip(), self.service.address.ip());
        let is_same = ip.is_ipv4() == service.is_ipv4();
        if is_same || !validator.are_valid(&[path, &self.key("address")]) {
            return;
        }
        let (is, needed) = (values::family(ip), values::family(service));
        validator.reject(
            path,
            ProblemKind::FamiliesMixed,
            format!("{ip} is an {is} address, and the service's, {service}, an {needed} one"),
            format!("the worker's {needed} address"),
            format!(
                "write its {needed} address, or add a service with an {is} address for the same \
                 workers"
            ),
        );
    }

    /// Packets to a worker must leave the manager, so a worker cannot have one of its addresses.
    fn not_on_manager(
        &self,
        validator: &mut Validator<'_>,
        path: &str,
        worker: SocketAddr,
        config: &Config,
    ) {
        let ip = worker.ip();
        let mut services = config.services.iter();
        if services.any(|it| it.address.ip() == ip) && validator.are_valid(&[path]) {
            validator.reject(
                path,
                ProblemKind::WorkerOnManager,
                format!("{ip} is the manager's own address"),
                "the address of another machine",
                "a server on the manager can only be the fallback",
            );
        }
    }

    /// memlb translates only the port of packets to the fallback.
    fn fallback(&self, validator: &mut Validator<'_>, config: &Config) {
        let key = self.key("fallback");
        let Some(fallback) = self.service.fallback else {
            return;
        };
        if !validator.are_valid(&[&key, &self.key("address")]) {
            return;
        }
        let service = self.service.address;
        let own = Endpoint {
            address: fallback,
            protocol: self.service.protocol,
        };
        if config.services.iter().any(|other| other.endpoint() == own) {
            validator.reject(
                &key,
                ProblemKind::FallbackIsService,
                format!("{fallback} is itself a service's address"),
                "the port at which the manager's own server listens",
                "give that server another port, such as 8080, and write it here",
            );
        } else if fallback.ip() != service.ip() {
            validator.reject(
                &key,
                ProblemKind::FallbackElsewhere,
                format!(
                    "{fallback} is not on the service's address, {}",
                    service.ip()
                ),
                "the service's own address with another port",
                format!(
                    "write \"{}\"; a server elsewhere is a worker with backup = true, and with agent = false where \
                     no agent runs",
                    SocketAddr::new(service.ip(), fallback.port())
                ),
            );
        }
    }

    /// A service cannot have an address at which the manager listens: it would take the manager's own packets.
    fn not_at_listeners(&self, validator: &mut Validator<'_>, config: &Config) {
        let manager = &config.manager;
        let (own, what, setting) = match self.service.protocol {
            Protocol::Udp => (
                Some(manager.heartbeat_listen),
                "receives heartbeats",
                "heartbeat_listen",
            ),
            Protocol::Tcp => (manager.http_listen, "serves HTTP", "http_listen"),
        };
        let Some(own) = own else {
            return;
        };
        let address = ("address", Some(self.service.address));
        for (name, address) in [address, ("fallback", self.service.fallback)] {
            let key = self.key(name);
            let Some(address) = address.filter(|it| listens_at(own, *it)) else {
                continue;
            };
            if !validator.are_valid(&[&key]) {
                continue;
            }
            let wildcard = match own.ip().is_unspecified() {
                true => ", which is every address",
                false => "",
            };
            validator.reject(
                &key,
                ProblemKind::ManagersOwnAddress,
                format!(
                    "at {address}, the manager itself {what} ({setting} = \"{own}\"{wildcard})"
                ),
                "an address and port at which the manager does not listen",
                format!(
                    "choose another port here, or set {setting} to another port or another address of \
                     the manager"
                ),
            );
        }
    }
}

/// Whether a socket that is bound to `own` receives packets to `address`; `[::]` also receives IPv4.
fn listens_at(own: SocketAddr, address: SocketAddr) -> bool {
    let is_any = own.ip().is_unspecified() && (own.is_ipv6() || address.is_ipv4());
    address.port() == own.port() && (is_any || address.ip() == own.ip())
}

/// In mode "nat", the manager's source port tells which service an answer of a shared endpoint belongs to. Mode
/// "routed" keeps the client's port, so its endpoints cannot be shared.
fn unshared_endpoints(validator: &mut Validator<'_>, config: &Config) {
    let mut seen: BTreeMap<(Protocol, SocketAddr), (Mode, &str)> = BTreeMap::new();
    for (number, service) in config.services.iter().enumerate() {
        if service.mode == Mode::Nat {
            continue;
        }
        for (worker, it) in service.workers.iter().enumerate() {
            let path = format!("service.{number}.workers.{worker}.address");
            if !validator.are_valid(&[&path]) {
                continue;
            }
            let of_this = (service.mode, service.name.as_str());
            let endpoint = (service.protocol, it.address);
            let (other_mode, other) = *seen.entry(endpoint).or_insert(of_this);
            let is_routed = [other_mode, service.mode].contains(&Mode::Routed);
            if other != service.name && is_routed {
                validator.reject(
                    &path,
                    ProblemKind::SharedEndpoint,
                    format!(
                        "{} already serves service {other}, and mode \"routed\" cannot distinguish the two",
                        it.address
                    ),
                    "another port of the worker for each service of mode \"routed\"",
                    "let the worker's server also listen on another port, and write that port here; or set mode = \
                     \"nat\" for one of the services",
                );
            }
        }
    }
}
