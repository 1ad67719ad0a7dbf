//! The route to every worker and back: interface, neighbour, and whether the worker's server answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    Finding, Severity,
    host::{Host, Resolution},
    probe::Attempt,
};
use crate::datapath::{Route, Routes};

#[derive(Debug, Clone)]
pub struct WorkerFacts<'a> {
    pub workers: &'a BTreeSet<ExaminedWorker>,
    pub interfaces: &'a [String],
    pub host: &'a Host,
    pub routes: &'a Routes,
    pub neighbours: &'a BTreeMap<IpAddr, Resolution>,
    pub attempts: &'a BTreeMap<SocketAddr, Attempt>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExaminedWorker {
    pub name: String,
    pub address: SocketAddr,
    /// Whether it can be probed by a connection.
    pub is_tcp: bool,
    /// Whether it answers clients directly (mode dsr).
    pub is_direct: bool,
    /// Whether the operator has it in maintenance, so that its faults raise no alarm.
    pub in_maintenance: bool,
}

pub fn findings(facts: &WorkerFacts<'_>) -> Vec<Finding> {
    let workers = facts.workers.iter();
    workers
        .map(|worker| {
            let found = finding(facts, worker);
            match worker.in_maintenance && found.severity == Severity::Problem {
                true => Finding {
                    severity: Severity::Warning,
                    ..found
                },
                false => found,
            }
        })
        .collect()
}

fn finding(facts: &WorkerFacts<'_>, worker: &ExaminedWorker) -> Finding {
    let ExaminedWorker { name, address, .. } = worker;
    let ip = address.ip();
    let Some(Some(route)) = facts.routes.get(&ip) else {
        return Finding::problem(
            "worker",
            format!("{name}: there is no route to {ip}"),
            format!(
                "ip route add {ip} via ROUTER dev {}    (ip route get {ip} shows when it works)",
                existing(facts).next().unwrap_or("INTERFACE")
            ),
        );
    };
    let interface = facts.host.name_of(route.interface);
    let attached = facts.interfaces.iter();
    let attached = attached.filter_map(|name| Some(facts.host.links.get(name)?.index));
    if !route.arrives_at(&attached.collect()) {
        return Finding::problem(
            "worker",
            format!(
                "{name}: the route to {ip} is through {interface}, to which memlb is not attached: the \
                 worker's replies would not reach clients"
            ),
            format!("memlb manager {}", options(facts, &interface)),
        );
    }
    let next_hop = route.next_hop;
    if worker.is_direct && route.has_router(ip) {
        return Finding::problem(
            "worker",
            format!(
                "{name}: {next_hop} routes to {ip}, but mode dsr needs a worker on the same link as the \
                 manager"
            ),
            "set mode = \"nat\" for its service, and memlb reload; or move it to that link",
        );
    }
    match facts.attempts.get(address) {
        Some(Attempt::Connected(time)) => Finding::ok(
            "worker",
            format!(
                "{name}: {address} answers in {:.1} ms, {}",
                time.as_secs_f64() * 1000.0,
                path(route, &interface, ip, next_hop)
            ),
        ),
        Some(Attempt::Refused) => Finding::problem(
            "worker",
            format!(
                "{name}: {ip} refuses connections to port {}: its server does not run, or listens on \
                 127.0.0.1 only",
                address.port()
            ),
            format!(
                "on {name}: ss -ltn 'sport = :{}'    (and let the server listen on 0.0.0.0:{})",
                address.port(),
                address.port()
            ),
        ),
        Some(Attempt::Failed(why)) => Finding::problem(
            "worker",
            format!("{name}: {address} cannot be probed: {why}"),
            format!("ip route get {ip}"),
        ),
        None if !worker.is_tcp => Finding::ok(
            "worker",
            format!(
                "{name}: {} (from here, memlb cannot check whether a server receives UDP at {address})",
                path(route, &interface, ip, next_hop)
            ),
        ),
        Some(Attempt::Silent) | None => silent(facts, worker, route, &interface, next_hop),
    }
}

fn path(route: &Route, interface: &str, ip: IpAddr, next_hop: IpAddr) -> String {
    if route.is_local {
        return "on this machine".to_owned();
    }
    let through = match next_hop == ip {
        true => String::new(),
        false => format!(" by {next_hop}"),
    };
    format!("through {interface}{through}, and back to {}", route.source)
}

fn silent(
    facts: &WorkerFacts<'_>,
    worker: &ExaminedWorker,
    route: &Route,
    interface: &str,
    next_hop: IpAddr,
) -> Finding {
    let ExaminedWorker { name, address, .. } = worker;
    let unresolved = facts.neighbours.get(&next_hop) == Some(&Resolution::Unanswered);
    if unresolved {
        let who = match next_hop == address.ip() {
            true => format!("{name}: {next_hop}"),
            false => format!(
                "{name}: the router {next_hop} on the route to {}",
                address.ip()
            ),
        };
        return Finding::problem(
            "worker",
            format!("{who} does not answer on {interface}: it is off, or on another network"),
            format!("ip neighbour show {next_hop} dev {interface}; on {name}: ip -br address"),
        );
    }
    Finding::problem(
        "worker",
        format!(
            "{name}: connections from {} to {address} are not answered: a firewall drops them, or {name} \
             has no route back",
            route.source
        ),
        format!(
            "on {name}: ip route get {}; nft list ruleset; iptables -S",
            route.source
        ),
    )
}

/// The configured interfaces that exist.
fn existing<'a>(facts: &WorkerFacts<'a>) -> impl Iterator<Item = &'a str> {
    let links = &facts.host.links;
    let configured = facts.interfaces.iter().map(String::as_str);
    configured.filter(|name| links.contains_key(*name))
}

fn options(facts: &WorkerFacts<'_>, further: &str) -> String {
    let all = existing(facts).chain([further]);
    let all: Vec<String> = all.map(|name| format!("--interface {name}")).collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;
    use crate::doctor::host::HostLink;

    const IP: Ipv4Addr = Ipv4Addr::new(192, 168, 57, 103);

    fn examine(
        route: Option<Route>,
        attempt: Attempt,
        neighbours: &[(Ipv4Addr, Resolution)],
    ) -> Finding {
        examine_at(&["eth1"], false, route, attempt, neighbours)
    }

    fn examine_at(
        interfaces: &[&str],
        in_maintenance: bool,
        route: Option<Route>,
        attempt: Attempt,
        neighbours: &[(Ipv4Addr, Resolution)],
    ) -> Finding {
        let interfaces: Vec<String> = interfaces.iter().map(|it| (*it).to_owned()).collect();
        let address = SocketAddr::from((IP, 8081));
        let link = |index| HostLink {
            index,
            ..HostLink::default()
        };
        let host = Host {
            links: [("eth1".to_owned(), link(2)), ("eth9".to_owned(), link(9))].into(),
            ..Host::default()
        };
        let worker = ExaminedWorker {
            name: "worker1".to_owned(),
            address,
            is_tcp: true,
            is_direct: false,
            in_maintenance,
        };
        let neighbours = neighbours.iter().map(|(ip, it)| (IpAddr::V4(*ip), *it));
        let found = findings(&WorkerFacts {
            workers: &BTreeSet::from([worker]),
            interfaces: &interfaces,
            host: &host,
            routes: &BTreeMap::from([(IP.into(), route)]),
            neighbours: &neighbours.collect(),
            attempts: &BTreeMap::from([(address, attempt)]),
        });
        found[0].clone()
    }

    fn route(interface: u32, next_hop: Ipv4Addr) -> Option<Route> {
        Some(Route {
            lower_interfaces: BTreeSet::new(),
            interface,
            next_hop: next_hop.into(),
            source: Ipv4Addr::new(192, 168, 56, 101).into(),
            is_local: false,
        })
    }

    #[test]
    fn names_no_interface_that_does_not_exist() {
        let found = examine_at(&["eth7"], false, route(9, IP), Attempt::Silent, &[]);
        let remedy = "memlb manager --interface eth9";
        assert_eq!(found.remedy.as_deref(), Some(remedy));
        let found = examine_at(&["eth7"], false, None, Attempt::Silent, &[]);
        assert!(found.remedy.unwrap().contains("via ROUTER dev INTERFACE"));
    }

    #[test]
    fn fault_of_a_worker_in_maintenance_is_no_problem() {
        let found = examine_at(&["eth1"], true, route(2, IP), Attempt::Refused, &[]);
        assert_eq!(found.severity, Severity::Warning);
    }

    #[test]
    fn checks_the_route_to_a_worker_step_by_step() {
        let router = Ipv4Addr::new(192, 168, 56, 1);
        let connected = Attempt::Connected(Duration::from_micros(300));
        let fine = examine(route(2, router), connected.clone(), &[]);
        fine.assert(Severity::Ok, "through eth1 by 192.168.56.1", "");

        let problem = |found: Finding, says, remedy| found.assert(Severity::Problem, says, remedy);
        problem(
            examine(None, Attempt::Silent, &[]),
            "no route to 192.168.57.103",
            "ip route add 192.168.57.103 via ROUTER dev eth1",
        );
        problem(
            examine(route(9, IP), connected, &[]),
            "through eth9, to which memlb is not attached",
            "--interface eth1 --interface eth9",
        );
        problem(
            examine(route(2, IP), Attempt::Refused, &[]),
            "listens on 127.0.0.1 only",
            "on worker1: ss -ltn 'sport = :8081'",
        );
        let silent =
            |next_hop, neighbour| examine(route(2, next_hop), Attempt::Silent, &[neighbour]);
        problem(
            silent(IP, (IP, Resolution::Unanswered)),
            "does not answer on eth1",
            "ip neighbour show 192.168.57.103 dev eth1",
        );
        problem(
            silent(router, (router, Resolution::Unanswered)),
            "the router 192.168.56.1",
            "ip neighbour show 192.168.56.1 dev eth1",
        );
        problem(
            silent(IP, (IP, Resolution::Resolved)),
            "a firewall drops them",
            "ip route get 192.168.56.101",
        );
    }
}
