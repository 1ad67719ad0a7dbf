//! The networks of the tests: a client, a manager and workers, each in its own namespace, connected by a bridge in a
//! further one.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    ops::Deref,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    command::output,
    namespace::{self, Namespace},
    wait::wait_for,
};

/// The flag of an interface that is switched on (netdevice(7)).
const IFF_UP: u32 = 1;

/// The shape of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// All in 192.168.56.0/24, at the manager's `eth1`.
    OneArm,
    /// The client in 192.168.56.0/24 at the manager's `eth1`, the workers in
    /// 192.168.57.0/24 at its `eth2`; either side's default route is the manager.
    TwoArm,
    /// As [`Shape::OneArm`], with unused network cards of this machine that are connected outside of it.
    Cards,
}

/// A namespace and its interfaces.
#[derive(Debug)]
pub struct Node {
    namespace: Namespace,
    interfaces: Vec<Interface>,
}

#[derive(Debug, Clone)]
struct Interface {
    name: String,
    address: Ipv4Addr,
    /// The other end; a card's is outside of this machine.
    port: Option<Port>,
}

#[derive(Debug, Clone)]
struct Port {
    name: String,
    /// The switch's namespace.
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
    /// Makes a network with unique names.
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
    /// When a name is in use, or a namespace cannot be made.
    pub fn create_as(prefix: &str, shape: Shape, workers: usize) -> Result<Self> {
        let named = |name: &str| Namespace::create(format!("{prefix}{name}"));
        let front = match shape {
            Shape::OneArm | Shape::TwoArm => Some(switch(named("switch")?)?),
            Shape::Cards => None,
        };
        let back = match shape {
            Shape::TwoArm => Some(switch(named("switch2")?)?),
            Shape::OneArm | Shape::Cards => None,
        };
        let (at_front, at_back) = (front.as_ref(), back.as_ref());

        let mut client = Node::new(named("client")?);
        client.connect("eth1", Ipv4Addr::new(192, 168, 56, 10), at_front, "client")?;
        let mut manager = Node::new(named("manager")?);
        manager.connect(
            "eth1",
            Ipv4Addr::new(192, 168, 56, 101),
            at_front,
            "manager",
        )?;
        if at_back.is_some() {
            let address = Ipv4Addr::new(192, 168, 57, 101);
            manager.connect("eth2", address, at_back, "manager")?;
            client.route_by(Ipv4Addr::new(192, 168, 56, 101))?;
        }

        let mut nodes = Vec::new();
        for number in 1..=workers {
            let name = format!("worker{number}");
            let host = u8::try_from(102 + number).context("too many workers")?;
            let mut worker = Node::new(named(&name)?);
            if at_back.is_some() {
                let address = Ipv4Addr::new(192, 168, 57, host);
                worker.connect("eth1", address, at_back, &name)?;
                worker.route_by(Ipv4Addr::new(192, 168, 57, 101))?;
            } else {
                let address = Ipv4Addr::new(192, 168, 56, host);
                worker.connect("eth1", address, at_front, &name)?;
            }
            nodes.push(worker);
        }
        let switches = front.into_iter().chain(back).collect();
        Ok(Self {
            client,
            manager,
            workers: nodes,
            switches,
        })
    }

    /// The switch of the clients' network.
    ///
    /// # Panics
    /// When the network uses cards.
    pub fn switch(&self) -> &Namespace {
        self.switches.first().expect("a switch joins the nodes")
    }

    /// Adds a machine to the clients' network, at the switch's port `port`.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub fn join(&self, namespace: Namespace, address: Ipv4Addr, port: &str) -> Result<Node> {
        let front = self
            .switches
            .first()
            .context("cards have no switch to join")?;
        let mut node = Node::new(namespace);
        node.connect("eth1", address, Some(front), port)?;
        Ok(node)
    }

    /// Moves the cable of the worker of that `index` to a second switch, which is connected to the first one.
    ///
    /// # Errors
    /// When the links cannot be made.
    pub fn move_cable(&mut self, index: usize) -> Result<()> {
        let front = self
            .switches
            .first()
            .context("cards have no switch to join")?;
        let further = switch(Namespace::create(format!("{}-further", front.name()))?)?;
        output(
            front
                .ip()
                .args(["link", "add", "further", "type", "veth"])
                .args(["peer", "name", "front", "netns", further.name()]),
        )?;
        for (switch, port) in [(front, "further"), (&further, "front")] {
            output(
                switch
                    .ip()
                    .args(["link", "set", port, "master", "switch", "up"]),
            )?;
        }
        self.workers[index].plug_into(&further)?;
        self.switches.push(further);
        Ok(())
    }

    /// Makes virtual interfaces behave as XDP expects of real ones; cards do by themselves.
    ///
    /// A veth passes frames of XDP to its other end only if that end polls, as it does with GRO. XDP gets frames before
    /// hardware completes their checksums, so the senders must complete them: the nodes, and the switch's ports, which
    /// split merged frames. The queue has 256 entries and, since Linux 6.16, blocks a sender with a queue of its own
    /// instead of dropping frames.
    ///
    /// # Errors
    /// When ethtool or tc is missing or refuses.
    pub fn prepare_for_xdp(&self) -> Result<()> {
        prepare_for_xdp(self.nodes(), &self.switches)
    }

    /// Where br_netfilter is loaded, as by Docker, a bridge passes every frame through netfilter, unlike a
    /// switch, which takes a tenth of the processor time.
    ///
    /// # Errors
    /// When the setting is refused.
    pub fn disable_bridge_netfilter(&self) -> Result<()> {
        if !Path::new("/proc/sys/net/bridge").exists() {
            return Ok(());
        }
        for switch in &self.switches {
            let off = "net.bridge.bridge-nf-call-iptables=0";
            switch.run("sysctl", &["--quiet", "--write", off])?;
        }
        Ok(())
    }

    /// Keeps the network; [`Topology::delete`] removes it.
    pub fn keep(self) {
        let nodes = [self.client, self.manager].into_iter().chain(self.workers);
        nodes
            .map(|node| node.namespace)
            .chain(self.switches)
            .for_each(Namespace::keep);
    }

    /// Deletes the network of that `prefix`, even an incomplete one, with its processes.
    pub fn delete(prefix: &str) {
        let names = ["client", "manager", "switch", "switch2"].map(str::to_owned);
        let workers = (1..=u8::MAX).map(|number| format!("worker{number}"));
        for name in names.into_iter().chain(workers) {
            drop(Namespace::adopt(format!("{prefix}{name}")));
        }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        [&self.client, &self.manager]
            .into_iter()
            .chain(&self.workers)
    }
}

/// A removed interface card.
#[derive(Debug)]
pub struct RemovedInterface {
    interface: Interface,
    mac: String,
}

impl Node {
    pub(crate) fn new(namespace: Namespace) -> Self {
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

    /// Returns the IPv6 address of `eth1`.
    pub fn address6(&self) -> Ipv6Addr {
        ipv6_counterpart(self.address())
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

    /// Disconnects the node, as when its cables are unplugged at the switch.
    ///
    /// # Errors
    /// When the links cannot be changed.
    pub fn disconnect(&self) -> Result<()> {
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
        for interface in &self.interfaces {
            let Port { name, switch } = interface.port()?;
            output(Command::new("ip").args(["-netns", switch, "link", "set", name, state]))?;
        }
        Ok(())
    }

    /// Blocks packets at the switch's ports, whose links remain up.
    ///
    /// # Errors
    /// When the ports cannot be changed.
    pub fn block(&self) -> Result<()> {
        self.set_forwarding("0")
    }

    /// Unblocks packets.
    ///
    /// # Errors
    /// When the ports cannot be changed.
    pub fn unblock(&self) -> Result<()> {
        self.set_forwarding("3")
    }

    fn set_forwarding(&self, state: &str) -> Result<()> {
        for interface in &self.interfaces {
            let Port { name, switch } = interface.port()?;
            let mut bridge = Command::new("bridge");
            bridge.args(["-netns", switch, "link", "set", "dev", name, "state", state]);
            output(&mut bridge)?;
        }
        Ok(())
    }

    /// Replaces the address of `eth1`.
    ///
    /// # Errors
    /// When there is no such interface, or the address is refused.
    pub fn replace_address(&mut self, address: Ipv4Addr) -> Result<()> {
        self.drop_address()?;
        add_addresses(&self.namespace, "eth1", address)?;
        let first = self.interfaces.first_mut();
        first.context("the node has no interface")?.address = address;
        Ok(())
    }

    /// Removes the address of `eth1`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn drop_address(&self) -> Result<()> {
        let address = self.address();
        for address in [
            format!("{address}/24"),
            format!("{}/120", ipv6_counterpart(address)),
        ] {
            output(
                self.ip()
                    .args(["address", "delete", &address, "dev", "eth1"]),
            )?;
        }
        Ok(())
    }

    /// Moves the cable of `eth1` to a port of another switch.
    fn plug_into(&mut self, switch: &Namespace) -> Result<()> {
        let interface = self.interfaces.first_mut();
        let port = interface.and_then(|it| it.port.as_mut());
        let port = port.context("the node has no cable")?;
        let moved = ["link", "set", &port.name, "netns", switch.name()];
        output(
            Command::new("ip")
                .args(["-netns", &port.switch])
                .args(moved),
        )?;
        let up = ["link", "set", &port.name, "master", "switch", "up"];
        output(switch.ip().args(up))?;
        port.switch = switch.name().into();
        Ok(())
    }

    /// Connects the node to a port of a switch or, without one, by a card of this machine.
    pub(crate) fn connect(
        &mut self,
        interface: &str,
        address: Ipv4Addr,
        switch: Option<&Namespace>,
        port: &str,
    ) -> Result<()> {
        let port = switch.map(|switch| Port {
            name: port.into(),
            switch: switch.name().into(),
        });
        let interface = Interface {
            name: interface.into(),
            address,
            port,
        };
        match &interface.port {
            Some(port) => self.plug_in(&interface.name, port, None)?,
            None => self.move_network_card(&interface.name)?,
        }
        self.bring_up(&interface)?;
        self.interfaces.push(interface);
        Ok(())
    }

    /// Removes the interface card from the machine and returns it.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn remove_interface(&self, interface: &str) -> Result<RemovedInterface> {
        let mut interfaces = self.interfaces.iter();
        let found = interfaces.find(|it| it.name == interface);
        let interface = found.context("no such interface")?.clone();
        let link = output(self.ip().args(["-json", "link", "show", &interface.name]))?;
        let link: serde_json::Value = serde_json::from_str(&link)?;
        let mac = link[0]["address"].as_str().context("no link address")?;
        let mac = mac.to_owned();
        output(self.ip().args(["link", "delete", &interface.name]))?;
        Ok(RemovedInterface { interface, mac })
    }

    /// Inserts a card again. For the kernel, it is a new interface.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn insert_interface(&self, card: &RemovedInterface) -> Result<()> {
        let interface = &card.interface;
        self.plug_in(&interface.name, interface.port()?, Some(&card.mac))?;
        self.bring_up(interface)
    }

    fn plug_in(&self, interface: &str, port: &Port, mac: Option<&str>) -> Result<()> {
        let Port { name, switch } = port;
        let mac = mac.map(|mac| ["address", mac]);
        output(
            // From in here, because older kernels refuse the name of an interface outside.
            self.ip()
                .args(["link", "add", interface])
                .args(mac.iter().flatten())
                .args(["type", "veth", "peer", "name", name, "netns", switch]),
        )?;
        let port_up = ["link", "set", name, "master", "switch", "up"];
        output(Command::new("ip").args(["-netns", switch]).args(port_up))?;
        Ok(())
    }

    /// Moves an unused card of this machine to the node. It returns some time after the namespace is removed.
    fn move_network_card(&self, interface: &str) -> Result<()> {
        let card = wait_for(Duration::from_secs(10), "a free network card", free_card)?;
        let into = ["netns", self.name(), "name", interface];
        output(Command::new("ip").args(["link", "set", &card]).args(into))?;
        Ok(())
    }

    fn bring_up(&self, Interface { name, address, .. }: &Interface) -> Result<()> {
        add_addresses(self, name, *address)?;
        output(self.ip().args(["link", "set", name, "up"]))?;
        Ok(())
    }

    pub(crate) fn route_by(&self, gateway: Ipv4Addr) -> Result<()> {
        let gateway = gateway.to_string();
        output(self.ip().args(["route", "add", "default", "via", &gateway]))?;
        Ok(())
    }
}

/// Does what [`Topology::prepare_for_xdp`] does at the ports of those `nodes`.
pub(crate) fn prepare_for_xdp<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    switches: &[Namespace],
) -> Result<()> {
    for node in nodes {
        for interface in &node.interfaces {
            let Some(port) = &interface.port else {
                continue;
            };
            let switch = switches
                .iter()
                .find(|switch| switch.name() == port.switch)
                .context("every port has its switch")?;
            for (end, name) in [(&node.namespace, &interface.name), (switch, &port.name)] {
                end.run("ethtool", &["--offload", name, "gro", "on", "tx", "off"])?;
                let queue = ["root", "pfifo", "limit", "10000"];
                end.run(
                    "tc",
                    &[&["qdisc", "replace", "dev", name], &queue[..]].concat(),
                )?;
            }
        }
    }
    Ok(())
}

impl Interface {
    fn port(&self) -> Result<&Port> {
        self.port
            .as_ref()
            .with_context(|| format!("the other end of {} is outside of this machine", self.name))
    }
}

/// Returns an unused network card: an interface of a device that is switched off.
fn free_card() -> Option<String> {
    let interfaces = fs::read_dir("/sys/class/net").ok()?.flatten();
    let mut cards = interfaces.filter(|it| it.path().join("device").exists());
    let is_off = |flags: &str| {
        u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16)
            .is_ok_and(|flags| flags & IFF_UP == 0)
    };
    let free = cards.find(|it| {
        let flags = fs::read_to_string(it.path().join("flags"));
        flags.is_ok_and(|flags| is_off(&flags))
    });
    free?.file_name().into_string().ok()
}

impl From<Node> for Namespace {
    fn from(node: Node) -> Self {
        node.namespace
    }
}

impl Deref for Node {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// Returns the IPv6 address, in fd00::/96, of the machine whose IPv4 address is `address`.
pub fn ipv6_counterpart(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(0xfd00 << 112 | u128::from(u32::from(address)))
}

/// Adds an IPv4 address with prefix length 24 and its IPv6 counterpart to an interface of `node`, usable at once.
pub(crate) fn add_addresses(node: &Namespace, interface: &str, address: Ipv4Addr) -> Result<()> {
    let add = |address: String| {
        let mut ip = node.ip();
        ip.args(["address", "add", &address, "dev", interface]);
        ip
    };
    output(&mut add(format!("{address}/24")))?;
    output(add(format!("{}/120", ipv6_counterpart(address))).arg("nodad"))?;
    Ok(())
}

/// Makes `namespace` a switch. It has its own namespace, because the host's firewall could
/// filter the bridge's traffic.
pub(crate) fn switch(namespace: Namespace) -> Result<Namespace> {
    output(
        namespace
            .ip()
            .args(["link", "add", "switch", "type", "bridge"]),
    )?;
    output(namespace.ip().args(["link", "set", "switch", "up"]))?;
    Ok(namespace)
}
