//! A path with a smaller MTU than the networks at its ends.

use std::{net::Ipv4Addr, process::Command};

use anyhow::Result;

use crate::{
    command::output,
    namespace::Namespace,
    topology::{Topology, add_addresses, ipv6_counterpart},
};

/// The smallest MTU of IPv6.
const NARROW: &str = "1280";

/// A machine behind two routers whose link has a small MTU, while its own link and the cluster's network have 1500
/// bytes, so that senders at both ends need ICMP errors.
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

    /// Makes the path from the clients' network, and the routes of every node, for both families.
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

/// Connects two machines by a link with complete checksums, as XDP needs them.
fn link(one: (&Namespace, &str, Ipv4Addr), other: (&Namespace, &str, Ipv4Addr)) -> Result<()> {
    output(
        Command::new("ip")
            .args(["link", "add", one.1, "netns", one.0.name()])
            .args(["type", "veth", "peer", "name", other.1])
            .args(["netns", other.0.name()]),
    )?;
    for (node, name, address) in [one, other] {
        node.run("ethtool", &["--offload", name, "tx", "off"])?;
        add_addresses(node, name, address)?;
        output(node.ip().args(["link", "set", name, "up"]))?;
    }
    Ok(())
}

/// Adds a route to the far machine's network by `router`.
fn route(node: &Namespace, router: Ipv4Addr) -> Result<()> {
    let network = Ipv4Addr::new(192, 168, 58, 0);
    add_route(node, &format!("{network}/24"), &router.to_string())?;
    let network = format!("{}/120", ipv6_counterpart(network));
    add_route(node, &network, &ipv6_counterpart(router).to_string())
}

/// Adds a default route by `router`.
fn route_all(node: &Namespace, router: Ipv4Addr) -> Result<()> {
    add_route(node, "0.0.0.0/0", &router.to_string())?;
    add_route(node, "::/0", &ipv6_counterpart(router).to_string())
}

fn add_route(node: &Namespace, network: &str, router: &str) -> Result<()> {
    output(node.ip().args(["route", "add", network, "via", router]))?;
    Ok(())
}
