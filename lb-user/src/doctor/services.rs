//! Whether this host has the services' addresses, and whether the fallbacks' servers listen.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_core::Protocol;

use super::{Finding, host::Host, probe::Attempt};
use crate::{addresses::absent, config::Service, sockets};

#[derive(Debug, Clone)]
pub struct ServiceFacts<'a> {
    pub services: &'a [Service],
    /// The configured interfaces that exist.
    pub interfaces: Vec<&'a str>,
    /// These, and the interfaces that they carry.
    pub carried: &'a [String],
    pub host: &'a Host,
    pub attempts: &'a BTreeMap<SocketAddr, Attempt>,
    /// With peers, a standby lacks the addresses until it takes over.
    pub has_peers: bool,
}

pub fn findings(facts: &ServiceFacts<'_>) -> Vec<Finding> {
    let services = facts.services.iter();
    services
        .flat_map(|service| [Some(address(facts, service)), fallback(facts, service)])
        .flatten()
        .collect()
}

fn address(facts: &ServiceFacts<'_>, service: &Service) -> Finding {
    let Service { name, address, .. } = service;
    let ip = address.ip();
    let listed = facts.interfaces.join(", ");
    let addresses = &facts.host.addresses;
    let carried: Vec<&str> = facts.carried.iter().map(String::as_str).collect();
    let is_elsewhere = !carried.is_empty() && addresses.elsewhere(ip, &carried).is_some();
    match addresses.interface_of(ip) {
        None if facts.has_peers => Finding::ok(
            "service",
            format!("{name}: this machine does not have {ip}, as on a standby"),
        ),
        None => {
            let interface = facts.interfaces.first().unwrap_or(&"INTERFACE");
            let (found, remedy) = absent(name, ip, interface);
            Finding::problem("service", found, remedy)
        }
        Some(own) if is_elsewhere => Finding::problem(
            "service",
            format!(
                "{name}: {ip} is at {own}, but memlb is attached to {listed}: clients' packets bypass it"
            ),
            format!("memlb manager --interface {own}    (or several: --interface A --interface B)"),
        ),
        Some(own) => Finding::ok("service", format!("{name}: {address} is at {own}")),
    }
}

fn fallback(facts: &ServiceFacts<'_>, service: &Service) -> Option<Finding> {
    let Service { name, fallback, .. } = service;
    let fallback = (*fallback)?;
    let port = fallback.port();
    let listeners = sockets::listeners(&facts.host.sockets, port);
    let only_loopback = sockets::is_only_local(&listeners);
    let reject = format!("memlb manager --set service.{name}.fallback=reject");
    let is_standby = facts.has_peers && service.protocol == Protocol::Tcp;
    Some(match facts.attempts.get(&fallback) {
        None if is_standby && listeners.is_empty() => Finding::warning(
            "fallback",
            format!(
                "{name}: no server listens at port {port} here: after a take-over with all workers down, clients are \
                 refused"
            ),
            format!(
                "start the server; let it listen at all addresses, or set net.ipv4.ip_nonlocal_bind=1 (sysctl) so \
                 that it can listen at {fallback} before the address is here"
            ),
        ),
        // Without its address here, or with UDP, the server cannot be probed.
        None => return None,
        Some(Attempt::Connected(_)) => Finding::ok(
            "fallback",
            format!("{name}: a server listens at {fallback}"),
        ),
        Some(_) if only_loopback => Finding::problem(
            "fallback",
            format!(
                "{name}: the server at port {port} listens on {} only, not on {}: with all workers \
                 down, clients are refused",
                list(&listeners),
                fallback.ip()
            ),
            format!("let it listen on {fallback} (ss -ltnp 'sport = :{port}' shows which it is)"),
        ),
        Some(_) => Finding::problem(
            "fallback",
            format!(
                "{name}: no server listens at {fallback}: with all workers down, clients are refused"
            ),
            format!("start the server there; or, if that is intended: {reject}"),
        ),
    })
}

pub fn list(addresses: &[IpAddr]) -> String {
    let all: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    all.join(", ")
}

#[cfg(test)]
pub mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{addresses::Addresses, doctor::Severity, sockets::OpenSocket};

    /// A host with 192.168.56.101 at `eth1` and a server that listens at 127.0.0.1:8080.
    pub fn host() -> Host {
        Host {
            addresses: Addresses(vec![
                ([127, 0, 0, 1].into(), "lo".to_owned()),
                ([192, 168, 56, 101].into(), "eth1".to_owned()),
            ]),
            sockets: vec![OpenSocket {
                local: ([127, 0, 0, 1], 8080).into(),
                remote: ([0, 0, 0, 0], 0).into(),
                is_listening: true,
            }],
            ..Host::default()
        }
    }

    fn service(address: SocketAddr, fallback: SocketAddr) -> Service {
        Service {
            name: "web".to_owned(),
            address,
            fallback: Some(fallback),
            ..Service::default()
        }
    }

    fn examine(address: &str, interfaces: &[&str], attempt: Attempt) -> Vec<Finding> {
        examine_carried(address, interfaces, interfaces, attempt)
    }

    fn examine_carried(
        address: &str,
        interfaces: &[&str],
        carried: &[&str],
        attempt: Attempt,
    ) -> Vec<Finding> {
        let address: SocketAddr = address.parse().unwrap();
        let fallback = SocketAddr::new(address.ip(), 8080);
        findings(&ServiceFacts {
            services: &[service(address, fallback)],
            interfaces: interfaces.to_vec(),
            carried: &carried
                .iter()
                .map(|it| (*it).to_owned())
                .collect::<Vec<_>>(),
            host: &host(),
            attempts: &BTreeMap::from([(fallback, attempt)]),
            has_peers: false,
        })
    }

    #[test]
    fn reports_where_the_address_is_not() {
        let good = Attempt::Connected(Duration::from_millis(1));
        let fine = examine("192.168.56.101:80", &["eth1"], good.clone());
        assert!(
            fine.iter().all(|it| it.severity == Severity::Ok),
            "{fine:?}"
        );
        let absent = &examine("192.168.56.102:80", &["eth1"], good.clone())[0];
        let remedy = "ip address add 192.168.56.102/24 dev eth1";
        absent.assert(Severity::Problem, "", remedy);
        let elsewhere = &examine("192.168.56.101:80", &["eth2"], good.clone())[0];
        let says = "is at eth1, but memlb is attached to eth2";
        elsewhere.assert(Severity::Problem, says, "--interface eth1");
        // A bridge over eth2 has the address.
        let bridge = &examine_carried("192.168.56.101:80", &["eth2"], &["eth1", "eth2"], good)[0];
        bridge.assert(Severity::Ok, "is at eth1", "");
    }

    #[test]
    fn reports_a_fallback_that_no_host_or_only_this_host_reaches() {
        let found = examine("192.168.56.101:80", &["eth1"], Attempt::Refused).remove(1);
        found.assert(Severity::Problem, "listens on 127.0.0.1 only", "");
        let mut without_server = host();
        without_server.sockets.clear();
        let service = service(
            "192.168.56.101:80".parse().unwrap(),
            "192.168.56.101:8080".parse().unwrap(),
        );
        let attempts = BTreeMap::from([(service.fallback.unwrap(), Attempt::Refused)]);
        let found = fallback(
            &ServiceFacts {
                services: &[],
                interfaces: vec!["eth1"],
                carried: &[],
                host: &without_server,
                attempts: &attempts,
                has_peers: false,
            },
            &service,
        )
        .unwrap();
        let remedy = "service.web.fallback=reject";
        found.assert(Severity::Problem, "no server listens", remedy);
    }

    #[test]
    fn a_standby_lacks_the_address_and_needs_the_fallbacks_server_all_the_same() {
        let service = service(
            "192.168.56.102:80".parse().unwrap(),
            "192.168.56.102:8082".parse().unwrap(),
        );
        let found = findings(&ServiceFacts {
            services: &[service],
            interfaces: vec!["eth1"],
            carried: &[],
            host: &host(),
            attempts: &BTreeMap::new(),
            has_peers: true,
        });
        assert_eq!(found[0].severity, Severity::Ok, "{found:?}");
        found[1].assert(Severity::Warning, "", "ip_nonlocal_bind");
    }
}
