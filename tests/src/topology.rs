//! The networks memlb is tried in: a client, a manager and workers, each in a
//! namespace of its own, joined by a switch in a further one.

use std::{net::Ipv4Addr, ops::Deref, process::Command};

use anyhow::{Context, Result};

use crate::{
    command::output,
    namespace::{self, Namespace},
};

/// Who shares a network with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// All in 192.168.56.0/24, at the manager's `eth1`.
    OneArm,
    /// The client in 192.168.56.0/24 at the manager's `eth1`, the workers in
    /// 192.168.57.0/24 at its `eth2`; either side's default route is the manager.
    TwoArm,
}

/// A namespace with its place in the network.
#[derive(Debug)]
pub struct Node {
    namespace: Namespace,
    interfaces: Vec<Interface>,
}

#[derive(Debug, Clone)]
struct Interface {
    name: String,
    address: Ipv4Addr,
    /// The other end, in the switch's namespace.
    port: String,
    switch: String,
}

/// The whole network. Dropping it deletes every namespace of it.
#[derive(Debug)]
pub struct Topology {
    pub client: Node,
    pub manager: Node,
    pub workers: Vec<Node>,
    switches: Vec<Namespace>,
}

impl Topology {
    /// Makes a network under names that nothing else has.
    ///
    /// # Errors
    /// When a namespace or a link cannot be made, as without root.
    pub fn create(shape: Shape, workers: usize) -> Result<Self> {
        namespace::delete_abandoned();
        Self::create_as(&namespace::unique_prefix(), shape, workers)
    }

    /// Makes a network whose namespaces are `prefix` and `client`, `manager`,
    /// `worker1`, …, `switch`.
    ///
    /// # Errors
    /// When a namespace of such a name is there already, or cannot be made.
    pub fn create_as(prefix: &str, shape: Shape, workers: usize) -> Result<Self> {
        let named = |name: &str| Namespace::create(format!("{prefix}{name}"));
        let front = switch(named("switch")?)?;
        let back = match shape {
            Shape::OneArm => None,
            Shape::TwoArm => Some(switch(named("switch2")?)?),
        };

        let mut client = Node::new(named("client")?);
        client.connect("eth1", Ipv4Addr::new(192, 168, 56, 10), &front, "client")?;
        let mut manager = Node::new(named("manager")?);
        manager.connect("eth1", Ipv4Addr::new(192, 168, 56, 101), &front, "manager")?;
        if let Some(back) = &back {
            manager.connect("eth2", Ipv4Addr::new(192, 168, 57, 101), back, "manager")?;
            client.route_by(Ipv4Addr::new(192, 168, 56, 101))?;
        }

        let mut nodes = Vec::new();
        for number in 1..=workers {
            let name = format!("worker{number}");
            let host = u8::try_from(102 + number).context("too many workers")?;
            let mut worker = Node::new(named(&name)?);
            match &back {
                None => {
                    let address = Ipv4Addr::new(192, 168, 56, host);
                    worker.connect("eth1", address, &front, &name)?;
                }
                Some(back) => {
                    let address = Ipv4Addr::new(192, 168, 57, host);
                    worker.connect("eth1", address, back, &name)?;
                    worker.route_by(Ipv4Addr::new(192, 168, 57, 101))?;
                }
            }
            nodes.push(worker);
        }
        let switches = [front].into_iter().chain(back).collect();
        Ok(Self {
            client,
            manager,
            workers: nodes,
            switches,
        })
    }

    /// Makes virtual interfaces behave as XDP expects of real ones.
    ///
    /// A veth hands what XDP sends to its other end only if that end polls, as
    /// it does with GRO on; and XDP sees frames before any hardware would have
    /// completed their checksums, so whoever sends them must: the nodes, and
    /// the switch's ports, where merged frames are split again.
    ///
    /// # Errors
    /// When ethtool is missing or refuses.
    pub fn prepare_for_xdp(&self) -> Result<()> {
        for node in self.nodes() {
            for interface in &node.interfaces {
                node.run("ethtool", &["--offload", &interface.name, "tx", "off"])?;
                let port = [
                    "--offload",
                    interface.port.as_str(),
                    "gro",
                    "on",
                    "tx",
                    "off",
                ];
                let switch = self
                    .switches
                    .iter()
                    .find(|switch| switch.name() == interface.switch);
                switch
                    .context("every interface has its switch")?
                    .run("ethtool", &port)?;
            }
        }
        Ok(())
    }

    /// Leaves the network in place; [`Topology::delete`] removes it.
    pub fn keep(self) {
        let nodes = [self.client, self.manager].into_iter().chain(self.workers);
        nodes
            .map(|node| node.namespace)
            .chain(self.switches)
            .for_each(Namespace::keep);
    }

    /// Deletes what there is of a network of that `prefix`, with all that runs in it.
    pub fn delete(prefix: &str) {
        let names = ["client", "manager", "switch", "switch2"].map(str::to_owned);
        let workers = (1..=u8::MAX).map(|number| format!("worker{number}"));
        for name in names.into_iter().chain(workers) {
            drop(Namespace::adopt(format!("{prefix}{name}")));
        }
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        [&self.client, &self.manager]
            .into_iter()
            .chain(&self.workers)
    }
}

/// An interface card that was taken out.
#[derive(Debug)]
pub struct Card {
    interface: Interface,
    mac: String,
}

impl Node {
    fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            interfaces: Vec::new(),
        }
    }

    /// Returns the address of `eth1`.
    pub fn address(&self) -> Ipv4Addr {
        self.interfaces
            .first()
            .map_or(Ipv4Addr::UNSPECIFIED, |interface| interface.address)
    }

    /// Returns the addresses of all interfaces, `eth1` first.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.interfaces.iter().map(|interface| interface.address)
    }

    /// Returns the names of all interfaces, `eth1` first.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        self.interfaces
            .iter()
            .map(|interface| interface.name.as_str())
    }

    /// Cuts the node off without a word, as when the cables are pulled at the switch.
    ///
    /// # Errors
    /// When the links cannot be changed.
    pub fn cut_off(&self) -> Result<()> {
        self.set_ports("down")
    }

    /// Plugs the cables back in.
    ///
    /// # Errors
    /// When the links cannot be changed.
    pub fn reconnect(&self) -> Result<()> {
        self.set_ports("up")
    }

    fn set_ports(&self, state: &str) -> Result<()> {
        for Interface { port, switch, .. } in &self.interfaces {
            output(Command::new("ip").args(["-netns", switch, "link", "set", port, state]))?;
        }
        Ok(())
    }

    fn connect(
        &mut self,
        interface: &str,
        address: Ipv4Addr,
        switch: &Namespace,
        port: &str,
    ) -> Result<()> {
        let interface = Interface {
            name: interface.into(),
            address,
            port: port.into(),
            switch: switch.name().into(),
        };
        self.plug_in(&interface, None)?;
        self.interfaces.push(interface);
        Ok(())
    }

    /// Takes the interface card out of the machine, and returns it.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn pull_out(&self, interface: &str) -> Result<Card> {
        let mut interfaces = self.interfaces.iter();
        let found = interfaces.find(|it| it.name == interface);
        let interface = found.context("no such interface")?.clone();
        let link = output(self.ip().args(["-json", "link", "show", &interface.name]))?;
        let link: serde_json::Value = serde_json::from_str(&link)?;
        let mac = link[0]["address"].as_str().context("no link address")?;
        let mac = mac.to_owned();
        output(self.ip().args(["link", "delete", &interface.name]))?;
        Ok(Card { interface, mac })
    }

    /// Puts a card back in: to the kernel an interface that it has never seen.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn put_back(&self, card: &Card) -> Result<()> {
        self.plug_in(&card.interface, Some(&card.mac))
    }

    fn plug_in(&self, interface: &Interface, mac: Option<&str>) -> Result<()> {
        let Interface {
            name,
            address,
            port,
            switch,
        } = interface;
        let mac = mac.map(|mac| ["address", mac]);
        output(
            Command::new("ip")
                .args(["link", "add", name])
                .args(mac.iter().flatten())
                .args(["netns", self.name()])
                .args(["type", "veth", "peer", "name", port, "netns", switch]),
        )?;
        let port_up = ["link", "set", port, "master", "switch", "up"];
        output(Command::new("ip").args(["-netns", switch]).args(port_up))?;
        let address = format!("{address}/24");
        output(self.ip().args(["address", "add", &address, "dev", name]))?;
        output(self.ip().args(["link", "set", name, "up"]))?;
        Ok(())
    }

    fn route_by(&self, gateway: Ipv4Addr) -> Result<()> {
        let gateway = gateway.to_string();
        output(self.ip().args(["route", "add", "default", "via", &gateway]))?;
        Ok(())
    }
}

impl Deref for Node {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// Makes `namespace` a switch. It is a namespace of its own because on the
/// host the bridge's traffic could pass the host's firewall.
fn switch(namespace: Namespace) -> Result<Namespace> {
    output(
        namespace
            .ip()
            .args(["link", "add", "switch", "type", "bridge"]),
    )?;
    output(namespace.ip().args(["link", "set", "switch", "up"]))?;
    Ok(namespace)
}
