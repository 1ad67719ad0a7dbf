//! Decides which tasks of a Swarm are workers, and why others are not.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::Protocol;

use super::{
    api::{Node, PublishedPort, SwarmService, SwarmState, SwarmTask},
    labels::{Labels, NAME},
};
use crate::{
    heartbeat::check_name,
    membership::{AbsentWorker, ExternalWorker, WorkerList, worker_path},
};

/// The workers of a Swarm.
#[derive(Debug, Clone, Default)]
pub struct SwarmWorkers {
    pub list: WorkerList,
    /// The workers of the list whose nodes are down, as [`ExternalWorker::path`].
    pub on_down_nodes: BTreeSet<String>,
}

/// Returns the workers of all services with labels of memlb.
///
/// `known` has the [`ExternalWorker::path`] of each worker of the former list. A task on a node that is down stays a
/// worker if it was one: Swarm reports a node as down when it has not heard the node, and so also after Swarm's manager
/// stood still.
pub fn workers(state: &SwarmState, known: &BTreeSet<String>) -> SwarmWorkers {
    let mut result = SwarmWorkers::default();
    let nodes = Nodes::new(&state.nodes);
    let mut services: Vec<&SwarmService> = state.services.iter().collect();
    services.sort_by_key(|it| &it.spec.name);
    // A node has at most one worker in each service of memlb, even if tasks of several Swarm services run there.
    let mut taken = BTreeMap::new();
    for service in services {
        let none = BTreeMap::new();
        let labels = service.spec.labels.as_ref().unwrap_or(&none);
        match Labels::parse(labels) {
            None => {}
            Some(Err(reason)) => result.list.absent.push(AbsentWorker {
                what: format!("service {}", service.spec.name),
                service: labels.get("memlb.service").cloned(),
                reason,
            }),
            Some(Ok(labels)) => {
                let tasks = ServiceTasks {
                    service,
                    labels: &labels,
                    nodes: &nodes,
                    known,
                };
                tasks.add(&state.tasks, &mut taken, &mut result);
            }
        }
    }
    result
}

/// The nodes by id, and the names that several have.
struct Nodes<'a> {
    by_id: BTreeMap<&'a str, &'a Node>,
    repeated: BTreeSet<&'a str>,
}

impl<'a> Nodes<'a> {
    fn new(nodes: &'a [Node]) -> Self {
        let mut seen = BTreeSet::new();
        // A node that left Swarm and joined again stays listed as down.
        let present = nodes.iter().filter(|it| !it.is_down());
        Self {
            by_id: nodes.iter().map(|it| (it.id.as_str(), it)).collect(),
            repeated: present
                .map(Node::name)
                .filter(|name| !seen.insert(*name))
                .collect(),
        }
    }
}

impl Node {
    /// The name of its workers.
    fn name(&self) -> &str {
        let labels = self.spec.labels.as_ref();
        let label = labels.and_then(|it| it.get(NAME));
        label.unwrap_or(&self.description.hostname)
    }

    /// Whether Swarm considers it down. After a change of Swarm's leader, all nodes are `unknown` for a while.
    fn is_down(&self) -> bool {
        ["down", "disconnected"].contains(&self.status.state.as_str())
    }

    /// Its address. The status of a Swarm manager may have none.
    fn address(&self) -> Option<&str> {
        let is_one = |address: &&str| !["", "0.0.0.0", "::", "127.0.0.1"].contains(address);
        let own = Some(self.status.addr.as_str()).filter(is_one);
        let manager = || {
            let (host, _) = self.manager_status.as_ref()?.addr.rsplit_once(':')?;
            Some(host.trim_matches(['[', ']'])).filter(is_one)
        };
        own.or_else(manager)
    }
}

struct ServiceTasks<'a> {
    service: &'a SwarmService,
    labels: &'a Labels,
    nodes: &'a Nodes<'a>,
    known: &'a BTreeSet<String>,
}

impl ServiceTasks<'_> {
    fn add(
        &self,
        tasks: &[SwarmTask],
        taken: &mut BTreeMap<(String, String), String>,
        result: &mut SwarmWorkers,
    ) {
        let list = &mut result.list;
        let mut tasks: Vec<&SwarmTask> = tasks
            .iter()
            .filter(|it| it.service_id == self.service.id)
            .collect();
        // Of two tasks of a node's name, one that stays comes before one that leaves, one of a present node before one
        // of a node that is down, and an older one before a newer one.
        tasks.sort_by_key(|it| {
            (
                it.is_leaving(),
                self.is_on_down_node(it),
                &it.created_at,
                &it.id,
            )
        });
        for task in tasks {
            let worker = match self.worker(task) {
                Ok(Some(worker)) => worker,
                Ok(None) => continue,
                Err(reason) => {
                    list.absent.push(self.absent(task, reason));
                    continue;
                }
            };
            let key = (worker.service.clone(), worker.name.clone());
            match taken.get(&key) {
                None => {
                    taken.insert(key, self.name_of(task));
                    if self.is_on_down_node(task) {
                        result.on_down_nodes.insert(worker.path());
                    }
                    list.workers.push(worker);
                }
                // The other task replaces it.
                Some(_) if task.is_leaving() || self.is_on_down_node(task) => {}
                Some(other) => list.absent.push(self.absent(
                    task,
                    format!(
                        "{} is already the worker of {} on this node, and a node has one worker of a service: start \
                         the service with --replicas-max-per-node 1",
                        other, key.0
                    ),
                )),
            }
        }
    }

    /// Returns the worker of a task; `None` if the task does not run yet, or has ended.
    fn worker(&self, task: &SwarmTask) -> Result<Option<ExternalWorker>, String> {
        match (task.status.state.as_str(), &task.status.err) {
            ("running", _) => {}
            ("pending", Some(error)) if !task.is_leaving() && !error.is_empty() => {
                return Err(format!("Swarm has no node for it: {error}"));
            }
            _ => return Ok(None),
        }
        let node = self.nodes.by_id.get(task.node_id.as_str());
        let node = node.ok_or("its node is no longer among Swarm's nodes")?;
        let name = node.name();
        if node.is_down() && !self.is_kept(task, node) {
            return Err(format!(
                "Swarm reports its node {name} as {}",
                node.status.state
            ));
        }
        check_name(name).map_err(|problem| {
            format!(
                "its node's host name {name:?} cannot name a worker: {problem}; name it with docker node update \
                 --label-add {NAME}=NAME"
            )
        })?;
        if self.nodes.repeated.contains(name) {
            return Err(format!(
                "several nodes have the name {name}: name them with docker node update --label-add {NAME}=NAME, \
                 and their agents with --name"
            ));
        }
        let address = node.address().ok_or_else(|| {
            format!("its node {name} has no address in Swarm: join it with --advertise-addr")
        })?;
        let port = match self.port(task) {
            Ok(port) => port,
            // Docker has closed its ports already.
            Err(_) if task.is_leaving() => return Ok(None),
            Err(reason) => return Err(reason),
        };
        let address = match address.contains(':') {
            true => format!("[{address}]:{port}"),
            false => format!("{address}:{port}"),
        };
        let drain = match node.spec.availability.as_str() {
            "drain" => Some(format!("node {name} is drained in Swarm")),
            _ => task.is_leaving().then(|| "Swarm stops its task".to_owned()),
        };
        Ok(Some(ExternalWorker {
            service: self.labels.service.clone(),
            name: name.to_owned(),
            address,
            weight: self.labels.weight,
            drain,
        }))
    }

    fn is_on_down_node(&self, task: &SwarmTask) -> bool {
        let node = self.nodes.by_id.get(task.node_id.as_str());
        node.is_some_and(|it| it.is_down())
    }

    /// Whether the task stays a worker while its node is down. Swarm stops the tasks of a node after it reports the
    /// node as down; until then only the agent decides.
    fn is_kept(&self, task: &SwarmTask, node: &Node) -> bool {
        let path = worker_path(&self.labels.service, node.name());
        !task.is_leaving() && node.spec.availability != "drain" && self.known.contains(&path)
    }

    /// Returns the node's port at which the task serves.
    fn port(&self, task: &SwarmTask) -> Result<u16, String> {
        if task.is_on_host_network() {
            return self.labels.port.map(|(port, _)| port).ok_or_else(|| {
                "it uses the node's network, so its port is not known: set the label memlb.port"
                    .to_owned()
            });
        }
        let published = self.service.endpoint.ports.as_deref().unwrap_or_default();
        let opened = task.status.port_status.as_ref();
        let opened = opened.and_then(|it| it.ports.as_deref());
        let mut opened: Vec<&PublishedPort> = opened.unwrap_or_default().iter().collect();
        opened.retain(|it| it.is_of_host());
        // Docker lists each port once for each address family.
        opened.sort();
        opened.dedup();
        match opened.is_empty() {
            false => self.choose(&opened, published),
            true => Err(match published.iter().find(|it| !it.is_of_host()) {
                Some(port) => ingress(port),
                None if published.is_empty() => {
                    "it publishes no port: publish one with mode=host, or use the network host"
                        .to_owned()
                }
                None => "Docker has opened no port for it: its daemon may run with --bridge=none"
                    .to_owned(),
            }),
        }
    }

    fn choose(
        &self,
        opened: &[&PublishedPort],
        published: &[PublishedPort],
    ) -> Result<u16, String> {
        let Some((wanted, protocol)) = self.labels.port else {
            return match opened {
                [one] => Ok(one.published_port),
                several => Err(format!(
                    "it publishes {} ports: choose the container's port with the label memlb.port",
                    several.len()
                )),
            };
        };
        let name = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let of_protocol = || opened.iter().filter(|it| it.protocol == name);
        if let Some(port) = of_protocol().find(|it| it.target_port == wanted) {
            return Ok(port.published_port);
        }
        if let Some(port) = of_protocol().find(|it| it.published_port == wanted) {
            return Err(format!(
                "memlb.port is {wanted}, the port of the node: set it to the container's port, {}",
                port.target_port
            ));
        }
        let mut ports = published.iter();
        let meshed = ports.find(|it| !it.is_of_host() && it.target_port == wanted);
        Err(meshed.map_or_else(
            || format!("it publishes no port {wanted}/{name} with mode=host"),
            ingress,
        ))
    }

    fn absent(&self, task: &SwarmTask, reason: String) -> AbsentWorker {
        AbsentWorker {
            what: self.name_of(task),
            service: Some(self.labels.service.clone()),
            reason,
        }
    }

    /// The name as in `docker service ps`, with the node instead of an id.
    fn name_of(&self, task: &SwarmTask) -> String {
        let name = &self.service.spec.name;
        let node = self.nodes.by_id.get(task.node_id.as_str());
        let slot = task
            .slot
            .map_or_else(String::new, |slot| format!(".{slot}"));
        match node {
            Some(node) => format!("task {name}{slot} on {}", node.name()),
            None => format!("task {name}{slot}"),
        }
    }
}

fn ingress(port: &PublishedPort) -> String {
    format!(
        "its port {} is published by the routing mesh, in which other nodes also answer: publish it with mode=host",
        port.published_port
    )
}

impl PublishedPort {
    fn is_of_host(&self) -> bool {
        self.publish_mode == "host"
    }
}

impl SwarmTask {
    /// Whether Swarm wants it to end.
    fn is_leaving(&self) -> bool {
        self.desired_state != "running"
    }
}

#[cfg(test)]
mod tests;
