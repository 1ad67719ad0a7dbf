//! The manager's configuration file for a topology.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result};

use crate::{
    cluster_options::{ClusterOptions, FALLBACK_PORT, SERVICE_PORT, worker_name, worker_port},
    paths::ClusterPaths,
    topology::{Node, Topology},
};

/// Writes a configuration with a service at [`SERVICE_PORT`], whose fallback is the manager's own server, and with the
/// further ones of `options`.
pub(crate) fn write(
    topology: &Topology,
    paths: &ClusterPaths,
    options: &ClusterOptions,
) -> Result<PathBuf> {
    let interfaces: Vec<&str> = topology.manager.interfaces().collect();
    let mut text = format!("[manager]\ninterfaces = {interfaces:?}\n");
    let families: &[Family] = match options.ipv6 {
        true => &[ipv4, ipv6],
        false => &[ipv4],
    };
    let mode = match (options.direct, options.routed) {
        (true, _) => "dsr",
        (false, true) => "routed",
        (false, false) => "nat",
    };
    let service = |family, port, protocol| service(topology, mode, family, port, protocol);
    for family in families {
        text += &service(*family, SERVICE_PORT, "tcp")?;
        for port in &options.ports {
            text += &service(*family, *port, "tcp")?;
        }
        for port in &options.datagram_ports {
            text += &service(*family, *port, "udp")?;
        }
    }
    if let Some(authentication) = options.authentication {
        let keys = paths.keys();
        text += &format!("\n[heartbeats]\nauthentication = {authentication:?}\nkeys = {keys:?}\n");
    }
    let file = paths.directory.join("memlb.toml");
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

/// Returns the name of the service of that `protocol` at `address`.
pub fn service_name(address: SocketAddr, protocol: &str) -> String {
    let name = match address.port() {
        SERVICE_PORT => "web".to_owned(),
        port => format!("{protocol}-{port}"),
    };
    match address {
        SocketAddr::V4(_) => name,
        SocketAddr::V6(_) => name + "-6",
    }
}

/// Which of a node's addresses to take.
type Family = fn(&Node) -> IpAddr;

fn ipv4(node: &Node) -> IpAddr {
    node.address().into()
}

fn ipv6(node: &Node) -> IpAddr {
    node.address6().into()
}

fn service(
    topology: &Topology,
    mode: &str,
    family: Family,
    port: u16,
    protocol: &str,
) -> Result<String> {
    let manager = family(&topology.manager);
    let address = SocketAddr::new(manager, port);
    let fallback = match port {
        SERVICE_PORT => SocketAddr::new(manager, FALLBACK_PORT).to_string(),
        _ => "reject".to_owned(),
    };
    let mut workers = String::new();
    for (index, worker) in topology.workers.iter().enumerate() {
        let port = match port {
            SERVICE_PORT => worker_port(index)?,
            port => port,
        };
        let name = worker_name(index);
        let address = SocketAddr::new(family(worker), port);
        workers += &format!("    {{ name = \"{name}\", address = \"{address}\" }},\n");
    }
    let name = service_name(address, protocol);
    Ok(format!(
        "
[[service]]
name = \"{name}\"
address = \"{address}\"
protocol = \"{protocol}\"
mode = \"{mode}\"
fallback = \"{fallback}\"
policy = \"memory\"
workers = [
{workers}]
"
    ))
}
