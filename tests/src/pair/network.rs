//! The networks of a pair: clients behind a router, the managers between the clients' side and the workers' side, and a
//! network of the managers' own for what they tell each other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::Result;

use crate::{
    command::output,
    namespace::Namespace,
    topology::{self, Node, add_addresses, ipv6_counterpart, prepare_for_xdp, switch},
};

pub const WEB_PORT: u16 = 80;
/// Of servers of downloads, uploads and echoes: [`crate::migration::Application`].
pub const APPLICATION_PORT: u16 = 9000;
/// Of [`crate::load::Server`].
pub const LOAD_PORT: u16 = 7000;

/// Which all services have. It moves between the managers.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 100);
/// What clients and managers use as the way to each other; the first router has both at the start.
pub const CLIENT_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
pub const FRONT_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 10);
const CLIENTS: &str = "10.20.0.0/24";

const HEARTBEAT_PORT: u16 = 9999;
const PEER_PORT: u16 = 9997;

/// A network of the managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Clients,
    Workers,
    /// Between the managers.
    Sync,
}

impl Side {
    pub const ALL: [Self; 3] = [Self::Clients, Self::Workers, Self::Sync];

    /// Returns the name of this side's interface at the manager of that `index`. Only the first one has the usual
    /// names.
    pub fn interface(self, index: usize) -> String {
        match (self, index) {
            (Self::Clients, 0) => "eth1".into(),
            (Self::Workers, 0) => "eth2".into(),
            (Self::Sync, 0) => "eth3".into(),
            (Self::Clients, _) => format!("clients{index}"),
            (Self::Workers, _) => format!("workers{index}"),
            (Self::Sync, _) => format!("sync{index}"),
        }
    }

    fn address(self, host: u8) -> Ipv4Addr {
        match self {
            Self::Clients => Ipv4Addr::new(192, 168, 56, host),
            Self::Workers => Ipv4Addr::new(192, 168, 57, host),
            Self::Sync => Ipv4Addr::new(10, 9, 0, host),
        }
    }
}

/// The namespaces. Dropping it deletes every one.
#[derive(Debug)]
pub struct PairNetwork {
    pub client: Node,
    /// The first one routes at the start; the second one has nothing but its own addresses.
    pub routers: Vec<Node>,
    pub managers: Vec<Node>,
    pub workers: Vec<Node>,
    switches: Vec<Namespace>,
}

impl PairNetwork {
    /// Makes the networks, whose namespaces are `prefix` and `client`, `router1`, `manager1`, `worker1`, …
    ///
    /// # Errors
    /// When a namespace of such a name is there already, or cannot be made.
    pub fn create(prefix: &str, managers: usize, workers: usize) -> Result<Self> {
        let named = |name: &str| Namespace::create(format!("{prefix}{name}"));
        let switches = SWITCHES.map(|name| named(name).and_then(switch));
        let [outer, front, back, sync] = switches;
        let (outer, front, back, sync) = (outer?, front?, back?, sync?);

        let mut client = Node::new(named("client")?);
        client.connect("eth1", CLIENT, Some(&outer), "client")?;
        client.route_by(CLIENT_GATEWAY)?;
        route6(&client, "default", CLIENT_GATEWAY)?;
        let mut routers = Vec::new();
        for host in [2, 3] {
            let name = format!("router{}", host - 1);
            let mut router = Node::new(named(&name)?);
            let [outside, inside] = [Ipv4Addr::new(10, 20, 0, host), Side::Clients.address(host)];
            router.connect("eth1", outside, Some(&outer), &name)?;
            router.connect("eth2", inside, Some(&front), &name)?;
            forward(&router)?;
            routers.push(router);
        }
        let mut nodes = Vec::new();
        for index in 0..managers {
            nodes.push(manager(&named, index, [&front, &back, &sync])?);
        }
        let mut worker_nodes = Vec::new();
        for index in 0..workers {
            let name = format!("worker{}", index + 1);
            let mut worker = Node::new(named(&name)?);
            worker.connect("eth1", worker_address(index), Some(&back), &name)?;
            worker_nodes.push(worker);
        }
        let network = Self {
            client,
            routers,
            managers: nodes,
            workers: worker_nodes,
            switches: vec![outer, front, back, sync],
        };
        network.route_by(0)?;
        Ok(network)
    }

    /// Makes the router of that `index` the one between clients and managers, and announces it to both sides.
    ///
    /// # Errors
    /// When an address cannot be given.
    pub fn route_by(&self, index: usize) -> Result<()> {
        let router = &self.routers[index];
        for (interface, gateway) in [("eth1", CLIENT_GATEWAY), ("eth2", FRONT_GATEWAY)] {
            announce(router, interface, gateway)?;
        }
        Ok(())
    }

    /// Gives the manager of that `index` the service address and `inner` on the workers' side, and announces them, as
    /// keepalived does.
    ///
    /// # Errors
    /// When it has one of them already.
    pub fn take_over(&self, index: usize, inner: &[Ipv4Addr]) -> Result<()> {
        let manager = &self.managers[index];
        announce(manager, &Side::Clients.interface(index), SERVICE_ADDRESS)?;
        let inside = Side::Workers.interface(index);
        inner
            .iter()
            .try_for_each(|it| announce(manager, &inside, *it))
    }

    /// Returns whether the manager of that `index` has `address`.
    ///
    /// # Errors
    /// When its addresses cannot be read.
    pub fn has_address(&self, index: usize, address: Ipv4Addr) -> Result<bool> {
        let mut ip = self.managers[index].ip();
        let to = address.to_string();
        let found = output(ip.args(["-oneline", "address", "show", "to", &to]))?;
        Ok(!found.is_empty())
    }

    /// Cuts the manager of that `index` off from everything, as when its machine dies.
    ///
    /// # Errors
    /// When the links cannot be changed.
    pub fn disconnect(&self, index: usize) -> Result<()> {
        self.managers[index].disconnect()
    }

    /// Does what [`crate::Topology::prepare_for_xdp`] does.
    ///
    /// # Errors
    /// When ethtool or tc is missing or refuses.
    pub fn prepare_for_xdp(&self) -> Result<()> {
        let nodes = [&self.client]
            .into_iter()
            .chain(&self.routers)
            .chain(&self.managers)
            .chain(&self.workers);
        prepare_for_xdp(nodes, &self.switches)
    }

    /// Leaves the networks in place; [`PairNetwork::delete`] removes them.
    pub fn keep(self) {
        let nodes = [self.client]
            .into_iter()
            .chain(self.routers)
            .chain(self.managers)
            .chain(self.workers);
        nodes
            .map(Namespace::from)
            .chain(self.switches)
            .for_each(Namespace::keep);
    }

    /// Deletes what there is of networks of that `prefix`, with all that runs in them.
    pub fn delete(prefix: &str) {
        let names = ["client"].into_iter().chain(SWITCHES).map(str::to_owned);
        let numbered = |kind: &'static str| (1..=9).map(move |number| format!("{kind}{number}"));
        let kinds = ["router", "manager", "worker"];
        for name in names.chain(kinds.into_iter().flat_map(numbered)) {
            drop(Namespace::adopt(format!("{prefix}{name}")));
        }
    }
}

const SWITCHES: [&str; 4] = ["outer", "front", "back", "sync"];

/// Returns the address of the manager of that `index` on one of its networks.
pub fn manager_ip(side: Side, index: usize) -> Ipv4Addr {
    side.address(101 + index as u8)
}

/// Returns where the manager of that `index` receives: heartbeats, or on [`Side::Sync`] its peers.
pub fn manager_address(side: Side, index: usize) -> SocketAddr {
    let port = match side {
        Side::Sync => PEER_PORT,
        Side::Clients | Side::Workers => HEARTBEAT_PORT,
    };
    SocketAddrV4::new(manager_ip(side, index), port).into()
}

/// Returns the address by which the manager of that `index` connects to workers. It moves with the service address.
pub fn nat_source(index: usize) -> Ipv4Addr {
    Side::Workers.address(201 + index as u8)
}

pub fn worker_address(index: usize) -> Ipv4Addr {
    Side::Workers.address(111 + index as u8)
}

/// Returns the address, and its ipv6_counterpart of IPv6.
pub fn both_families(address: Ipv4Addr) -> [IpAddr; 2] {
    [address.into(), ipv6_counterpart(address).into()]
}

fn manager(
    named: &impl Fn(&str) -> Result<Namespace>,
    index: usize,
    switches: [&Namespace; 3],
) -> Result<Node> {
    let name = format!("manager{}", index + 1);
    let mut manager = Node::new(named(&name)?);
    for _ in 0..7 * index {
        skip_interface_index(&manager)?;
    }
    // Their interfaces come in another order, too.
    let mut sides: Vec<_> = Side::ALL.into_iter().zip(switches).collect();
    if index % 2 == 1 {
        sides.reverse();
    }
    for (side, switch) in sides {
        let interface = side.interface(index);
        manager.connect(&interface, manager_ip(side, index), Some(switch), &name)?;
    }
    let gateway = FRONT_GATEWAY.to_string();
    output(
        manager
            .ip()
            .args(["route", "add", CLIENTS, "via", &gateway]),
    )?;
    route6(
        &manager,
        &format!("{}/120", topology::ipv6_counterpart(CLIENT_GATEWAY)),
        FRONT_GATEWAY,
    )?;
    Ok(manager)
}

/// Interfaces get ascending numbers, and no number twice.
fn skip_interface_index(node: &Node) -> Result<()> {
    output(node.ip().args(["link", "add", "filler", "type", "bridge"]))?;
    output(node.ip().args(["link", "delete", "filler"])).map(drop)
}

/// Gives an interface an address, and tells its network.
fn announce(node: &Node, interface: &str, address: Ipv4Addr) -> Result<()> {
    add_addresses(node, interface, address)?;
    let address = address.to_string();
    node.run(
        "busybox",
        &["arping", "-U", "-c", "1", "-I", interface, &address],
    )?;
    Ok(())
}

fn route6(node: &Node, to: &str, by: Ipv4Addr) -> Result<()> {
    let by = ipv6_counterpart(by).to_string();
    output(node.ip().args(["-6", "route", "replace", to, "via", &by])).map(drop)
}

fn forward(router: &Node) -> Result<()> {
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        router.run("sysctl", &["--quiet", "--write", setting])?;
    }
    Ok(())
}
