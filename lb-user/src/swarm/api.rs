//! The parts of Docker's API responses that are used.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The result of one poll.
#[derive(Debug, Clone, Default)]
pub struct SwarmState {
    pub services: Vec<SwarmService>,
    pub nodes: Vec<Node>,
    pub tasks: Vec<SwarmTask>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SwarmService {
    #[serde(rename = "ID")]
    pub id: String,
    pub spec: ServiceSpec,
    #[serde(default)]
    pub endpoint: PortList,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceSpec {
    pub name: String,
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortList {
    pub ports: Option<Vec<PublishedPort>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PublishedPort {
    pub protocol: String,
    /// The container's port.
    #[serde(default)]
    pub target_port: u16,
    /// The node's port.
    #[serde(default)]
    pub published_port: u16,
    /// `host` or `ingress`.
    #[serde(default)]
    pub publish_mode: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    #[serde(rename = "ID")]
    pub id: String,
    pub spec: NodeSpec,
    #[serde(default)]
    pub description: NodeDescription,
    #[serde(default)]
    pub status: NodeStatus,
    pub manager_status: Option<ManagerStatus>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeSpec {
    pub labels: Option<BTreeMap<String, String>>,
    /// `active`, `pause` or `drain`.
    pub availability: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeDescription {
    pub hostname: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeStatus {
    /// `ready`, `down`, `disconnected`, or `unknown` after a change of Swarm's leader.
    pub state: String,
    pub addr: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ManagerStatus {
    #[serde(default)]
    pub addr: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SwarmTask {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(rename = "ServiceID", default)]
    pub service_id: String,
    /// Empty until the task has a node.
    #[serde(rename = "NodeID", default)]
    pub node_id: String,
    /// Of replicated services.
    pub slot: Option<u64>,
    #[serde(default)]
    pub created_at: String,
    pub desired_state: String,
    pub status: TaskStatus,
    pub networks_attachments: Option<Vec<NetworkAttachment>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskStatus {
    pub state: String,
    pub err: Option<String>,
    pub port_status: Option<PortList>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkAttachment {
    pub network: Network,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    pub spec: NetworkSpec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkSpec {
    #[serde(default)]
    pub name: String,
}

impl SwarmTask {
    /// Whether it uses the node's network, and so the node's ports.
    pub fn is_on_host_network(&self) -> bool {
        let networks = self.networks_attachments.iter().flatten();
        networks
            .map(|it| it.network.spec.name.as_str())
            .any(|name| name == "host")
    }
}
