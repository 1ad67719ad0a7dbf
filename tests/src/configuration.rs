//! The manager's configuration file, as it fits a topology.

use std::{fs, net::SocketAddrV4, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    cluster::{FALLBACK_PORT, SERVICE_PORT, worker_name, worker_port},
    place::Place,
    topology::Topology,
};

/// Writes a configuration in which the workers serve clients at [`SERVICE_PORT`], and at each of
/// `ports`; the manager's own server stands in at the former.
pub(crate) fn write(topology: &Topology, place: &Place, ports: &[u16]) -> Result<PathBuf> {
    let interfaces: Vec<&str> = topology.manager.interfaces().collect();
    let manager = topology.manager.address();
    let fallback = SocketAddrV4::new(manager, FALLBACK_PORT).to_string();
    let mut text = format!("[manager]\ninterfaces = {interfaces:?}\n");
    text += &service(topology, "web", SERVICE_PORT, &fallback, worker_port)?;
    for port in ports {
        text += &service(topology, &service_name(*port), *port, "reject", |_| {
            Ok(*port)
        })?;
    }
    let file = place.directory.join("memlb.toml");
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

/// Returns the name of the service that [`ClusterOptions::ports`] makes at `port`.
pub fn service_name(port: u16) -> String {
    format!("port-{port}")
}

fn service(
    topology: &Topology,
    name: &str,
    port: u16,
    fallback: &str,
    worker_port: impl Fn(usize) -> Result<u16>,
) -> Result<String> {
    let mut workers = String::new();
    for (index, worker) in topology.workers.iter().enumerate() {
        let name = worker_name(index);
        let address = SocketAddrV4::new(worker.address(), worker_port(index)?);
        workers += &format!("    {{ name = \"{name}\", address = \"{address}\" }},\n");
    }
    let manager = topology.manager.address();
    Ok(format!(
        "
[[service]]
name = \"{name}\"
address = \"{manager}:{port}\"
fallback = \"{fallback}\"
policy = \"memory\"
workers = [
{workers}]
"
    ))
}
