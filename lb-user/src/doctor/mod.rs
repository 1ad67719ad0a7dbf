//! `memlb doctor`: the faults of this host as a manager or worker, and their remedies.
//!
//! Each file has one family of checks: one function gathers facts, another draws findings from them without access to
//! the host. Nothing here changes the host, or disturbs a running manager or agent.

mod agent;
mod configuration;
mod ethtool;
mod finding;
mod firewall;
mod heartbeats;
mod host;
mod interfaces;
mod keys;
mod machine;
mod manager;
mod nat_sources;
mod peers;
mod pins;
mod ports;
mod probe;
mod ruleset;
mod selections;
mod server;
mod services;
mod sources;
mod storage;
mod vrrp;
mod workers;

use std::{collections::BTreeSet, net::SocketAddr, path::Path};

use anyhow::Result;
use lb_core::{Mode, Protocol};

pub use agent::{AgentOrigin, ExaminedAgent};
pub use configuration::{config_file, in_force, in_force_finding};
pub use finding::{Diagnosis, Finding, Severity};

use crate::{
    config::{Config, PortRange},
    datapath::{Netlink, Routes, conflicts, upstream_conflicts},
};
use host::Host;
use machine::Clocks;
use manager::ManagerFacts;

/// The origin of the examined configuration.
#[derive(Debug)]
pub enum Examined<'a> {
    /// This file, or the built-in example.
    File(Option<&'a Path>),
    /// The running manager's values, which the finding reports.
    InForce(Finding),
}

/// Examines a manager's host, whether or not a manager runs.
///
/// # Errors
///
/// Names the facts of this host that cannot be read.
pub async fn examine_manager(
    config: &Config,
    examined: Examined<'_>,
    kernel_ports: Option<PortRange>,
) -> Result<Diagnosis> {
    let clocks = Clocks::now();
    let machine = machine::gather()?;
    let manager = manager::gather(&config.manager).await;
    let config = &configuration::with_joined(config, manager.status());
    let mut findings = vec![match examined {
        Examined::File(file) => configuration::finding(file, manager.status()),
        Examined::InForce(finding) => finding,
    }];
    findings.extend(machine::findings(&machine));
    findings.extend(pins::findings(&pins::gather(
        &config.manager.pin_path,
        machine.privileges,
        manager.pid,
    )));
    findings.extend(manager::findings(&manager));
    findings.extend(network(config, kernel_ports, &manager).await?);
    if let Some(status) = manager.status() {
        findings.extend(selections::findings(status, config.failover.down_after));
        findings.extend(sources::findings(config, status));
        findings.extend(heartbeats::findings(&heartbeats::HeartbeatFacts {
            status,
            down_after: config.failover.down_after,
        }));
    }
    let names: BTreeSet<&str> = config
        .workers()
        .map(|worker| worker.name.as_str())
        .collect();
    let heartbeats = &config.heartbeats;
    findings.extend(keys::findings(&keys::gather(
        heartbeats.authentication,
        &heartbeats.keys,
        &names,
    )));
    findings.extend(storage::findings(&written_files(config)));
    findings.extend(firewall::findings(
        firewall::gather().as_ref(),
        &required_ports(config),
        &config.manager.interfaces,
    ));
    findings.push(machine::clock(clocks, Clocks::now()));
    Ok(findings.into())
}

/// Examines a worker's host, whether or not an agent runs.
///
/// # Errors
///
/// Names the facts of this host that cannot be read.
pub async fn examine_worker(worker: &ExaminedAgent) -> Result<Diagnosis> {
    let clocks = Clocks::now();
    let host = Host::gather().await?;
    let managers = agent::gather(worker).await;
    let mut findings = agent::findings(worker, &managers);
    let server = server::gather(worker.check.as_ref(), &host, agent::own_address(&managers)).await;
    findings.extend(server::findings(server.as_ref()));
    findings.extend(agent::sources(&agent::gather_sources(&worker.sources)));
    findings.push(machine::clock(clocks, Clocks::now()));
    Ok(findings.into())
}

/// Examines interfaces, addresses, ports, and the routes to the workers.
async fn network(
    config: &Config,
    kernel_ports: Option<PortRange>,
    manager: &ManagerFacts,
) -> Result<Vec<Finding>> {
    let host = Host::gather().await?;
    let workers: BTreeSet<workers::ExaminedWorker> = config
        .services
        .iter()
        .flat_map(|service| service.workers.iter().map(move |worker| (service, worker)))
        .map(|(service, worker)| workers::ExaminedWorker {
            name: worker.name.clone(),
            address: worker.address,
            is_tcp: service.protocol == Protocol::Tcp,
            is_direct: service.mode == Mode::Dsr,
            in_maintenance: manager
                .status()
                .is_some_and(|status| heartbeats::may_be_silent(status, &worker.name)),
        })
        .collect();
    let routes = routes(config).await?;
    let attempts = probe::connect(probe_targets(&host, config, &workers, &routes)).await;
    // After the attempts, which have made the kernel resolve them.
    let neighbours = host::neighbours().await?;

    let interfaces = &host.own_names(&config.manager.interfaces);
    let mut services = config.services.iter();
    let mut findings = interfaces::findings(&interfaces::InterfaceFacts {
        interfaces,
        attach: config.manager.attach,
        links: &host.links,
        likely: services.find_map(|service| host.addresses.interface_of(service.address.ip())),
        attached: manager.status().map_or(&[], |status| &status.interfaces),
    });
    // A running manager stays attached to a renamed interface.
    let status = manager.status();
    let attached = status.into_iter().flat_map(|status| &status.interfaces);
    let attached = attached.filter(|it| it.is_attached() && !interfaces.contains(&it.name));
    let attached = attached.map(|it| it.name.clone());
    let interfaces = &interfaces
        .iter()
        .cloned()
        .chain(attached)
        .collect::<Vec<_>>();
    let carried = host.carried_by(interfaces).await?;
    let there = interfaces.iter().map(String::as_str);
    findings.extend(services::findings(&services::ServiceFacts {
        services: &config.services,
        interfaces: there
            .filter(|name| host.links.contains_key(*name))
            .collect(),
        carried: &carried,
        host: &host,
        attempts: &attempts,
        has_peers: !config.peers.is_empty(),
    }));
    findings.extend(workers::findings(&workers::WorkerFacts {
        workers: &workers,
        interfaces,
        host: &host,
        routes: &routes,
        neighbours: &neighbours,
        attempts: &attempts,
    }));
    findings.extend(nat_sources::findings(
        &config.manager.nat_sources,
        &host.addresses,
        interfaces.last().map_or("NAME", String::as_str),
        !config.peers.is_empty(),
    ));
    findings.extend(peers::findings(
        &peers::gather(config, &host.addresses, manager.status()).await?,
    ));
    findings.extend(ports::findings(&ports::PortFacts {
        nat_ports: config.limits.nat_ports,
        kernel_ports,
        sockets: &host.sockets,
        workers: &workers.iter().map(|worker| worker.address).collect(),
    }));
    let conflicts = conflicts(config).into_iter();
    let conflicts = conflicts.chain(upstream_conflicts(config));
    findings.extend(conflicts.map(|it| Finding::problem(it.check, it.found, it.remedy)));
    Ok(findings)
}

/// Looks up the routes to all workers as the manager does.
async fn routes(config: &Config) -> Result<Routes> {
    let addresses = config.workers().map(|worker| worker.address.ip()).collect();
    Netlink::connect()?.routes(&addresses).await
}

/// The addresses to probe by a TCP connection: servers on this host, and workers with a route.
fn probe_targets(
    host: &Host,
    config: &Config,
    workers: &BTreeSet<workers::ExaminedWorker>,
    routes: &Routes,
) -> BTreeSet<SocketAddr> {
    let services = config.services.iter();
    let services = services.filter(|it| it.protocol == Protocol::Tcp);
    let fallbacks = services.filter_map(|service| service.fallback);
    let here = fallbacks.filter(|address| host.addresses.interface_of(address.ip()).is_some());
    let workers = workers.iter().filter(|worker| worker.is_tcp);
    let workers = workers.map(|worker| worker.address);
    let has_route = |it: &SocketAddr| routes.get(&it.ip()).is_some_and(Option::is_some);
    here.chain(workers.filter(has_route)).collect()
}

fn written_files(config: &Config) -> Vec<storage::FileFacts> {
    let manager = &config.manager;
    let event_log = manager.event_log.as_deref();
    let files = [
        event_log.map(|path| ("event log", "--event-log", path)),
        Some(("state file", "--state-file", manager.state_file.as_path())),
        Some((
            "control socket",
            "--control-socket",
            manager.control_socket.as_path(),
        )),
    ];
    let files = files.into_iter().flatten();
    files
        .map(|(what, option, path)| storage::gather(what, option, path))
        .collect()
}

/// The ports that a firewall on this host must accept.
fn required_ports(config: &Config) -> Vec<firewall::RequiredPort> {
    let families: BTreeSet<bool> = config
        .services
        .iter()
        .map(|it| it.address.is_ipv6())
        .collect();
    let heartbeats = families.into_iter().map(|is_ipv6| firewall::RequiredPort {
        protocol: "udp",
        port: config.manager.heartbeat_listen.port(),
        is_ipv6,
        what: "no heartbeat arrives".to_owned(),
    });
    let services = config.services.iter().flat_map(|service| {
        let name = &service.name;
        let (protocol, reply) = match service.protocol {
            Protocol::Tcp => ("tcp", "RST"),
            Protocol::Udp => ("udp", "ICMP error (port unreachable)"),
        };
        let needed = |port, what| firewall::RequiredPort {
            protocol,
            port,
            is_ipv6: service.address.is_ipv6(),
            what,
        };
        // Packets that memlb forwards do not pass the firewall; those that it leaves to the kernel do.
        let refused = format!(
            "clients of {name} time out instead of being refused, also when their worker is down: no {reply} \
             reaches them"
        );
        let unserved = format!("clients do not reach the fallback of {name}");
        let fallback = service.fallback.map(|it| needed(it.port(), unserved));
        [needed(service.address.port(), refused)]
            .into_iter()
            .chain(fallback)
    });
    let peers = config
        .manager
        .peer_listen
        .map(|listen| firewall::RequiredPort {
            protocol: "tcp",
            port: listen.port(),
            is_ipv6: listen.is_ipv6(),
            what: "no peer can connect to this manager".to_owned(),
        });
    heartbeats.chain(services).chain(peers).collect()
}
