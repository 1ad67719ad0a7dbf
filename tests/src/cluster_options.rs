//! The options of a cluster, and the names and ports of its parts.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::Result;

use crate::topology::Shape;

/// The service's port, and the one of the manager's own server.
pub const SERVICE_PORT: u16 = 80;
pub const FALLBACK_PORT: u16 = 8080;

/// The options of a [`Cluster`](crate::Cluster).
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    pub shape: Shape,
    /// Each worker's available memory at the start. The length is the number of workers.
    pub available_kb: Vec<u64>,
    /// `auto`, `tc` or `xdp`.
    pub attach: String,
    /// The manager's configuration file; `None` writes one that fits the topology.
    pub configuration: Option<PathBuf>,
    /// Ports of further services, each for servers at the same port of the workers, which the
    /// cluster does not start.
    pub ports: Vec<u16>,
    /// The same over UDP.
    pub datagram_ports: Vec<u16>,
    /// Whether every service is one over IPv6, too, under its name with `-6`.
    pub ipv6: bool,
    /// Whether the services' mode is `dsr`: the workers' agents then translate, and need root.
    pub direct: bool,
    /// Whether the services' mode is `routed`.
    pub routed: bool,
    /// Further addresses of the manager on its last interface.
    pub manager_addresses: Vec<Ipv4Addr>,
    /// `failover.panic_threshold`, in percent. 0 lets a test silence all workers by ending their agents, while their
    /// servers go on.
    pub panic_threshold: u8,
    /// Settings of the manager beyond those of the configuration, such as `limits.flows=1000`.
    pub settings: Vec<String>,
    /// Further arguments for `memlb manager`.
    pub manager_arguments: Vec<String>,
    /// Whether the workers run agents from the start.
    pub agents: bool,
    /// Further arguments for every `memlb agent`.
    pub agent_arguments: Vec<String>,
    /// How long the manager may take to start, and then to hear every worker.
    pub patience: Duration,
    /// `heartbeats.authentication` in the configuration that the cluster writes; unless it is `None`,
    /// every worker signs with a key of its own.
    pub authentication: Option<&'static str>,
}

impl Default for ClusterOptions {
    /// The three-node lab: `worker1` has clearly more available memory than `worker2`.
    fn default() -> Self {
        Self {
            shape: Shape::OneArm,
            available_kb: vec![450 * 1024, 350 * 1024],
            attach: "auto".into(),
            configuration: None,
            ports: Vec::new(),
            datagram_ports: Vec::new(),
            ipv6: false,
            direct: false,
            routed: false,
            manager_addresses: Vec::new(),
            panic_threshold: 0,
            settings: Vec::new(),
            manager_arguments: Vec::new(),
            agents: true,
            agent_arguments: Vec::new(),
            patience: Duration::from_secs(60),
            authentication: None,
        }
    }
}

/// Returns the name of the worker of that `index`.
pub fn worker_name(index: usize) -> String {
    format!("worker{}", index + 1)
}

/// Returns the port of the web server of the worker of that `index`.
///
/// # Errors
/// When there are no more ports.
pub fn worker_port(index: usize) -> Result<u16> {
    Ok(FALLBACK_PORT + 1 + u16::try_from(index)?)
}
