//! The namespaces, their links and addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

use crate::{command::output, namespace::Namespace};

/// The addresses of the service, in the networks that `scripts/ha` announces.
pub const SERVICE4: &str = "203.0.113.80";
pub const SERVICE6: &str = "2001:db8:80::80";

/// The client's interface of the router.
pub(super) const TO_CLIENT: &str = "client";
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 10);

const ROUTER_SETTINGS: &[&str] = &[
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv4.fib_multipath_hash_policy=1",
    "net.ipv6.fib_multipath_hash_policy=1",
    // Managers send replies by addresses for which the router prefers another manager.
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
];

/// The client, the managers and the workers, each in a network of its own at the router.
#[derive(Debug)]
pub struct Network {
    pub client: Namespace,
    pub managers: Vec<ManagerNode>,
    pub workers: Vec<Namespace>,
    pub router: Namespace,
}

/// A manager's namespace.
#[derive(Debug)]
pub struct ManagerNode {
    pub namespace: std::sync::Arc<Namespace>,
    pub number: u8,
    /// The other end of its link, and the namespace of it.
    pub(super) port: String,
    pub(super) router: String,
}

/// Returns the addresses of the manager of that `number`, from 1.
pub(super) fn manager4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 100 + number)
}

pub(super) fn manager6(number: u8) -> Ipv6Addr {
    sixth(1, number, 0x101)
}

/// Returns the manager's NAT addresses.
pub(super) fn nat4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 100 + number)
}

pub(super) fn nat6(number: u8) -> Ipv6Addr {
    sixth(5, number, 0x101)
}

/// Returns the addresses of the worker of that `index`.
pub(super) fn worker(index: usize) -> Result<[IpAddr; 2]> {
    let host = 11 + u8::try_from(index).context("too many workers")?;
    let v4 = Ipv4Addr::new(10, 20, 0, host);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, u16::from(host));
    Ok([v4.into(), v6.into()])
}

fn sixth(network: u16, number: u8, first: u16) -> Ipv6Addr {
    let host = first + u16::from(number) - 1;
    Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host)
}

impl Network {
    /// Makes the namespaces `prefix` and `client`, `router`, `manager1`, …, `worker1`, ….
    ///
    /// # Errors
    /// When a namespace or a link cannot be made, as without root.
    pub(super) fn create(prefix: &str, managers: u8, workers: usize) -> Result<Self> {
        let named = |name: &str| Namespace::create(format!("{prefix}{name}"));
        let router = named("router")?;
        for setting in ROUTER_SETTINGS {
            router.run("sysctl", &["--quiet", "--write", setting])?;
        }
        for (bridge, mac, v4, v6) in [
            (
                "managers",
                "02:00:00:00:01:01",
                "192.0.2.1/24",
                "2001:db8:1::1/64",
            ),
            (
                "workers",
                "02:00:00:00:02:01",
                "10.20.0.1/24",
                "2001:db8:20::1/64",
            ),
        ] {
            // A bridge without an address of its own changes it with its ports.
            ip(
                &router,
                &format!("link add {bridge} address {mac} type bridge"),
            )?;
            ip(&router, &format!("link set {bridge} up"))?;
            address(&router, bridge, v4, v6)?;
        }
        let client = named("client")?;
        link(&client, &router, TO_CLIENT, None)?;
        address(&router, TO_CLIENT, "10.10.0.1/24", "2001:db8:10::1/64")?;
        address(
            &client,
            "eth1",
            &format!("{CLIENT}/24"),
            "2001:db8:10::10/64",
        )?;
        routes(&client, "10.10.0.1", "2001:db8:10::1")?;

        let managers = (1..=managers).map(|number| manager(named, &router, number));
        let managers = managers.collect::<Result<_>>()?;
        let mut nodes = Vec::new();
        for index in 0..workers {
            let name = format!("worker{}", index + 1);
            let node = named(&name)?;
            link(&node, &router, &name, Some("workers"))?;
            let [v4, v6] = worker(index)?;
            address(&node, "eth1", &format!("{v4}/24"), &format!("{v6}/64"))?;
            routes(&node, "10.20.0.1", "2001:db8:20::1")?;
            nodes.push(node);
        }
        Ok(Self {
            client,
            managers,
            workers: nodes,
            router,
        })
    }
}

fn manager(
    named: impl Fn(&str) -> Result<Namespace>,
    router: &Namespace,
    number: u8,
) -> Result<ManagerNode> {
    let port = format!("manager{number}");
    let namespace = named(&port)?;
    // So that no two managers have the same number of an interface.
    for other in 1..number {
        ip(&namespace, &format!("link add other{other} type bridge"))?;
    }
    link(&namespace, router, &port, Some("managers"))?;
    let (v4, v6) = (manager4(number), manager6(number));
    address(&namespace, "eth1", &format!("{v4}/24"), &format!("{v6}/64"))?;
    routes(&namespace, "192.0.2.1", "2001:db8:1::1")?;
    Ok(ManagerNode {
        namespace: namespace.into(),
        number,
        port,
        router: router.name().into(),
    })
}

/// Joins `eth1` of `node` to the port `port` of the router, which belongs to `bridge`.
fn link(node: &Namespace, router: &Namespace, port: &str, bridge: Option<&str>) -> Result<()> {
    let router_name = router.name();
    ip(
        node,
        &format!("link add eth1 type veth peer name {port} netns {router_name}"),
    )?;
    if let Some(bridge) = bridge {
        ip(router, &format!("link set {port} master {bridge}"))?;
    }
    ip(router, &format!("link set {port} up"))?;
    ip(node, "link set eth1 up")
}

fn address(node: &Namespace, interface: &str, v4: &str, v6: &str) -> Result<()> {
    ip(node, &format!("address add {v4} dev {interface}"))?;
    ip(node, &format!("address add {v6} dev {interface} nodad"))
}

fn routes(node: &Namespace, v4: &str, v6: &str) -> Result<()> {
    ip(node, &format!("route add default via {v4}"))?;
    ip(node, &format!("-6 route add default via {v6}"))
}

pub(super) fn ip(node: &Namespace, arguments: &str) -> Result<()> {
    output(node.ip().args(arguments.split(' '))).map(drop)
}
