//! Which tasks of a Swarm are workers, and why others are not.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::Protocol;

use super::{
    api::{Node, Port, Service, State, Task},
    labels::{Labels, NAME},
};
use crate::{
    heartbeat::check_name,
    membership::{AbsentWorker, ExternalWorker, WorkerList},
};

/// Returns the workers of all services with labels of memlb.
pub fn workers(state: &State) -> WorkerList {
    let mut list = WorkerList::default();
    let nodes = Nodes::new(&state.nodes);
    let mut services: Vec<&Service> = state.services.iter().collect();
    services.sort_by_key(|it| &it.spec.name);
    // A node has one worker of a service of memlb, whichever services of Swarm run there.
    let mut taken = BTreeMap::new();
    for service in services {
        let none = BTreeMap::new();
        let labels = service.spec.labels.as_ref().unwrap_or(&none);
        match Labels::parse(labels) {
            None => {}
            Some(Err(reason)) => list.absent.push(AbsentWorker {
                what: format!("service {}", service.spec.name),
                service: labels.get("memlb.service").cloned(),
                reason,
            }),
            Some(Ok(labels)) => {
                let of_service = OfService {
                    service,
                    labels: &labels,
                    nodes: &nodes,
                };
                of_service.add(&state.tasks, &mut taken, &mut list);
            }
        }
    }
    list
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

    /// Whether Swarm holds it for dead. After a change of Swarm's leader, all nodes are `unknown` for a while.
    fn is_down(&self) -> bool {
        ["down", "disconnected"].contains(&self.status.state.as_str())
    }

    /// Its address; of a manager, the status may have none.
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

struct OfService<'a> {
    service: &'a Service,
    labels: &'a Labels,
    nodes: &'a Nodes<'a>,
}

impl OfService<'_> {
    fn add(
        &self,
        tasks: &[Task],
        taken: &mut BTreeMap<(String, String), String>,
        list: &mut WorkerList,
    ) {
        let mut tasks: Vec<&Task> = tasks
            .iter()
            .filter(|it| it.service_id == self.service.id)
            .collect();
        // Of two tasks on a node, the one that stays goes before the one that leaves, then the older one.
        tasks.sort_by_key(|it| (it.is_leaving(), &it.created_at, &it.id));
        for task in tasks {
            let worker = match self.worker(task) {
                Ok(Some(worker)) => worker,
                Ok(None) => continue,
                Err(reason) => {
                    list.absent.push(self.absent(task, reason));
                    continue;
                }
            };
            let place = (worker.service.clone(), worker.name.clone());
            match taken.get(&place) {
                None => {
                    taken.insert(place, self.name_of(task));
                    list.workers.push(worker);
                }
                // It is replaced by the other one.
                Some(_) if task.is_leaving() => {}
                Some(other) => list.absent.push(self.absent(
                    task,
                    format!(
                        "{} is the worker of {} there already, and a node has one of a service: start the \
                         service with --replicas-max-per-node 1",
                        other, place.0
                    ),
                )),
            }
        }
    }

    /// Returns the worker that a task is; nothing while it does not run yet, or not any more.
    fn worker(&self, task: &Task) -> Result<Option<ExternalWorker>, String> {
        match (task.status.state.as_str(), &task.status.err) {
            ("running", _) => {}
            ("pending", Some(error)) if !task.is_leaving() && !error.is_empty() => {
                return Err(format!("Swarm has no node for it: {error}"));
            }
            _ => return Ok(None),
        }
        let node = self.nodes.by_id.get(task.node_id.as_str());
        let node = node.ok_or("its node is not among Swarm's nodes any more")?;
        let name = node.name();
        if node.is_down() {
            return Err(format!(
                "its node {name} is {} for Swarm",
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
                "several nodes are called {name}: name them with docker node update --label-add {NAME}=NAME, \
                 and their agents with --name"
            ));
        }
        let address = node.address().ok_or_else(|| {
            format!("its node {name} has no address in Swarm: join it with --advertise-addr")
        })?;
        let port = self.port(task)?;
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

    /// Returns the node's port at which the task serves.
    fn port(&self, task: &Task) -> Result<u16, String> {
        if task.is_on_host_network() {
            return self.labels.port.map(|(port, _)| port).ok_or_else(|| {
                "it has the node's network, which tells no port: set the label memlb.port"
                    .to_owned()
            });
        }
        let asked = self.service.endpoint.ports.as_deref().unwrap_or_default();
        let opened = task.status.port_status.as_ref();
        let opened = opened.and_then(|it| it.ports.as_deref());
        let mut opened: Vec<&Port> = opened.unwrap_or_default().iter().collect();
        opened.retain(|it| it.is_of_host());
        // Docker names each once for each family of addresses.
        opened.sort();
        opened.dedup();
        match opened.is_empty() {
            false => self.choose(&opened, asked),
            true => Err(match asked.iter().find(|it| !it.is_of_host()) {
                Some(port) => ingress(port),
                None if asked.is_empty() => {
                    "it publishes no port: publish one with mode=host, or use the network host"
                        .to_owned()
                }
                None => "Docker has opened no port for it: does its daemon run with --bridge=none?"
                    .to_owned(),
            }),
        }
    }

    fn choose(&self, opened: &[&Port], asked: &[Port]) -> Result<u16, String> {
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
                "memlb.port is {wanted}, the port of the node; set it to the container's port, {}",
                port.target_port
            ));
        }
        let meshed = asked.iter();
        let meshed = (meshed.filter(|it| !it.is_of_host())).find(|it| it.target_port == wanted);
        Err(meshed.map_or_else(
            || format!("it publishes no port {wanted}/{name} with mode=host"),
            ingress,
        ))
    }

    fn absent(&self, task: &Task, reason: String) -> AbsentWorker {
        AbsentWorker {
            what: self.name_of(task),
            service: Some(self.labels.service.clone()),
            reason,
        }
    }

    /// As `docker service ps` calls it, with its node instead of an id.
    fn name_of(&self, task: &Task) -> String {
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

fn ingress(port: &Port) -> String {
    format!(
        "its port {} is published by the routing mesh, where other nodes answer, too: publish it with mode=host",
        port.published_port
    )
}

impl Port {
    fn is_of_host(&self) -> bool {
        self.publish_mode == "host"
    }
}

impl Task {
    /// Whether Swarm wants it to end.
    fn is_leaving(&self) -> bool {
        self.desired_state != "running"
    }
}

#[cfg(test)]
mod tests;
