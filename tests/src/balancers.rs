//! Other load balancers, configured on the manager's node as their manuals recommend.

use std::{
    fmt::Write,
    fs,
    net::SocketAddrV4,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    cluster_options::SERVICE_PORT,
    command::output,
    process::Process,
    topology::{Node, Topology},
};

/// Makes the manager's node a plain router.
///
/// # Errors
/// When a setting is refused.
pub fn forward(topology: &Topology) -> Result<()> {
    let settings = [
        "net.ipv4.ip_forward=1",
        // The nodes share a network, and the manager would tell them so.
        "net.ipv4.conf.all.send_redirects=0",
        "net.ipv4.conf.eth1.send_redirects=0",
    ];
    for setting in settings {
        topology
            .manager
            .run("sysctl", &["--quiet", "--write", setting])?;
    }
    Ok(())
}

/// Configures netfilter: DNAT to the `workers` in round-robin order, and masquerading.
///
/// # Errors
/// When a setting or a rule is refused.
pub fn translate(topology: &Topology, workers: &[SocketAddrV4], directory: &Path) -> Result<()> {
    forward(topology)?;
    let service = topology.manager.address();
    let (mut towards, mut from) = (String::new(), String::new());
    for (index, worker) in workers.iter().enumerate() {
        // Each rule takes its share of what the rules before it have left.
        let share = match workers.len() - index {
            1 => String::new(),
            left => format!("numgen inc mod {left} 0 "),
        };
        writeln!(
            towards,
            "        ip daddr {service} tcp dport {SERVICE_PORT} {share}dnat to {worker}"
        )?;
        let (address, port) = (worker.ip(), worker.port());
        writeln!(
            from,
            "        ip daddr {address} tcp dport {port} masquerade"
        )?;
    }
    let rules = format!(
        "table ip nat {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
{towards}    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
{from}    }}
}}
"
    );
    let file = write(directory, "nat.nft", &rules)?;
    output(topology.manager.command("nft").arg("--file").arg(&file)).context("load the rules")?;
    Ok(())
}

/// Configures IPVS of `node` in NAT mode with round robin over the `workers`, without connection tracking, as its
/// manual recommends. The node must forward, and must be the workers' route to the clients.
///
/// # Errors
/// When the kernel has no IPVS, or refuses a setting.
pub fn balance_by_ipvs(node: &Node, service: SocketAddrV4, workers: &[SocketAddrV4]) -> Result<()> {
    node.run("sysctl", &["--quiet", "--write", "net.ipv4.vs.conntrack=0"])?;
    let service = service.to_string();
    let of_service = ["--tcp-service", &service];
    let add = ["--add-service", "--scheduler", "rr"];
    node.run("ipvsadm", &[&add[..], &of_service].concat())?;
    for worker in workers {
        let worker = worker.to_string();
        let add = ["--add-server", "--masquerading", "--real-server", &worker];
        node.run("ipvsadm", &[&add[..], &of_service].concat())?;
    }
    Ok(())
}

/// Starts HAProxy in TCP mode for the `workers`, with a limit of concurrent connections.
///
/// # Errors
/// When it does not start.
pub fn haproxy(
    topology: &Topology,
    workers: &[SocketAddrV4],
    connections: u64,
    directory: &Path,
) -> Result<Process> {
    let mut servers = String::new();
    for (number, worker) in (1..).zip(workers) {
        writeln!(servers, "    server worker{number} {worker}")?;
    }
    let configuration = format!(
        "global
    maxconn {connections}
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend web
    bind {}:{SERVICE_PORT}
    default_backend workers
backend workers
{servers}",
        topology.manager.address()
    );
    let file = write(directory, "haproxy.cfg", &configuration)?;
    let mut command = topology.manager.command("haproxy");
    command.arg("-db").arg("-f").arg(&file);
    Process::start("haproxy", &mut command, &directory.join("haproxy.log"))
}

fn write(directory: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let file = directory.join(name);
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}
