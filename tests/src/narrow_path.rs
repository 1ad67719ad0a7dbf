//! A way that takes smaller packets than the networks at its two ends.

use std::{net::Ipv4Addr, process::Command};

use anyhow::Result;

use crate::{
    command::output,
    namespace::Namespace,
    topology::{Topology, give_addresses, sister},
};

/// The least that IPv6 permits; IPv4 would permit less.
const NARROW: &str = "1280";

/// A machine behind two routers that are joined by a link for narrow packets, while its own link
/// and the cluster's network take 1500 bytes: senders at both ends need ICMP errors.
#[derive(Debug)]
pub struct NarrowPath {
    pub far: Namespace,
    _routers: [Namespace; 2],
}

impl NarrowPath {
    /// The address of the machine.
    pub const FAR: Ipv4Addr = Ipv4Addr::new(192, 168, 58, 10);
    /// Its router's, and those of the narrow link, from far to near.
    const MIDDLE: [Ipv4Addr; 2] = [
        Ipv4Addr::new(192, 168, 58, 1),
        Ipv4Addr::new(192, 168, 59, 2),
    ];
    /// The near router's; the second one is in the cluster's network.
    const NEAR: [Ipv4Addr; 2] = [
        Ipv4Addr::new(192, 168, 59, 1),
        Ipv4Addr::new(192, 168, 56, 20),
    ];

    /// Lays the way from the clients' network, and tells every node of it, over both families.
    ///
    /// # Errors
    /// When a namespace or a link cannot be made.
    pub fn create(topology: &Topology, prefix: &str) -> Result<Self> {
        let named = |name: &str| Namespace::create(format!("{prefix}{name}"));
        let (near, middle, far) = (named("near")?, named("middle")?, named("far")?);
        let near = topology.join(near, Self::NEAR[1], "near")?;
        link(
            (&near, "narrow", Self::NEAR[0]),
            (&middle, "narrow", Self::MIDDLE[1]),
        )?;
        link((&middle, "far", Self::MIDDLE[0]), (&far, "eth1", Self::FAR))?;
        for router in [&*near, &middle] {
            output(router.ip().args(["link", "set", "narrow", "mtu", NARROW]))?;
            for forwarding in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
                router.run("sysctl", &["-qw", &format!("net.{forwarding}=1")])?;
            }
        }
        for node in topology.nodes() {
            route(node, Self::NEAR[1])?;
        }
        route(&near, Self::MIDDLE[1])?;
        route_all(&middle, Self::NEAR[0])?;
        route_all(&far, Self::MIDDLE[0])?;
        Ok(Self {
            far,
            _routers: [near.into(), middle],
        })
    }
}

/// Joins two machines by a link of their own, in which checksums are complete for XDP's sake.
fn link(one: (&Namespace, &str, Ipv4Addr), other: (&Namespace, &str, Ipv4Addr)) -> Result<()> {
    output(
        Command::new("ip")
            .args(["link", "add", one.1, "netns", one.0.name()])
            .args(["type", "veth", "peer", "name", other.1])
            .args(["netns", other.0.name()]),
    )?;
    for (node, name, address) in [one, other] {
        node.run("ethtool", &["--offload", name, "tx", "off"])?;
        give_addresses(node, name, address)?;
        output(node.ip().args(["link", "set", name, "up"]))?;
    }
    Ok(())
}

/// Tells `node` that the way to the far machine's network is by `router`.
fn route(node: &Namespace, router: Ipv4Addr) -> Result<()> {
    let network = Ipv4Addr::new(192, 168, 58, 0);
    add_route(node, &format!("{network}/24"), &router.to_string())?;
    let network = format!("{}/120", sister(network));
    add_route(node, &network, &sister(router).to_string())
}

/// Tells `node` that the way to everywhere is by `router`.
fn route_all(node: &Namespace, router: Ipv4Addr) -> Result<()> {
    add_route(node, "0.0.0.0/0", &router.to_string())?;
    add_route(node, "::/0", &sister(router).to_string())
}

fn add_route(node: &Namespace, network: &str, router: &str) -> Result<()> {
    output(node.ip().args(["route", "add", network, "via", router]))?;
    Ok(())
}
