//! What the kernel's tables of routes and links say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use nix::net::if_::if_indextoname;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_route::{
        link::{LinkAttribute, LinkInfo, LinkLayerType},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use tokio::task::JoinHandle;

/// Where packets to a worker go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface.
    pub interface: u32,
    /// The worker itself, or the router on the way to it.
    pub next_hop: IpAddr,
    /// The manager's own address on that way.
    pub source: IpAddr,
    /// The address is one of the manager's own.
    pub is_local: bool,
}

impl Route {
    /// Whether a router is on the way to `address`.
    pub fn has_router(&self, address: IpAddr) -> bool {
        !self.is_local && self.next_hop != address
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_local {
            return write!(f, "on this machine");
        }
        let Self {
            interface,
            next_hop,
            source,
            ..
        } = self;
        write!(
            f,
            "through {}, next hop {next_hop}, from {source}",
            named(*interface)
        )
    }
}

/// Returns an interface's name as it is now, or its number if it has gone.
fn named(interface: u32) -> String {
    let name = if_indextoname(interface).ok();
    let name = name.and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {interface}"))
}

/// One of this machine's interfaces, fit for memlb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// What a virtual interface is (`veth`, `bridge`, …); nothing for a physical one.
    pub kind: Option<String>,
}

/// A connection to the kernel's tables.
pub struct Netlink {
    handle: Handle,
    /// One for each change that the kernel tells of.
    changes: BoxStream<'static, ()>,
    connection: JoinHandle<()>,
}

/// The way to each address that was asked for; nothing where there is none.
pub type Routes = BTreeMap<IpAddr, Option<Route>>;

impl Netlink {
    pub fn connect() -> Result<Self> {
        Self::listening_to(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
        ])
    }

    /// Connects without being told of changes, which would pile up where nobody waits for them.
    pub fn connect_to_ask() -> Result<Self> {
        Self::listening_to(&[])
    }

    fn listening_to(groups: &[MulticastGroup]) -> Result<Self> {
        let (connection, handle, changes) =
            new_multicast_connection(groups).context("open a netlink socket")?;
        Ok(Self {
            handle,
            changes: changes.map(drop).boxed(),
            connection: tokio::spawn(connection),
        })
    }

    /// Looks up an interface.
    ///
    /// # Errors
    ///
    /// Says that it does not exist or does not carry Ethernet.
    pub async fn interface(&self, name: &str) -> Result<Interface> {
        let request = self.handle.link().get().match_name(name.to_owned());
        let found = request.execute().try_next().await.ok().flatten();
        let Some(link) = found else {
            bail!(
                "interface {name} does not exist here: `ip link` lists those that do; name the \
                 right one with --interface or manager.interfaces"
            );
        };
        if link.header.link_layer_type != LinkLayerType::Ether {
            bail!(
                "interface {name} does not carry Ethernet ({:?}): memlb steers Ethernet frames only",
                link.header.link_layer_type
            );
        }
        let mut infos = link
            .attributes
            .iter()
            .filter_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => Some(infos),
                _ => None,
            });
        let kind = infos.next().and_then(|infos| {
            infos.iter().find_map(|info| match info {
                LinkInfo::Kind(kind) => Some(kind.to_string()),
                _ => None,
            })
        });
        Ok(Interface {
            name: name.to_owned(),
            kind,
        })
    }

    /// Waits until links, addresses or routes change; nothing if the connection is over.
    pub async fn change(&mut self) -> Option<()> {
        self.changes.next().await
    }

    /// Looks up the routes to all `addresses`.
    ///
    /// # Errors
    ///
    /// Says that the kernel gave no answer.
    pub async fn routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Routes> {
        let mut routes = Routes::new();
        for &address in addresses {
            routes.insert(address, self.route(address).await?);
        }
        Ok(routes)
    }

    /// Breaks the connection.
    #[cfg(test)]
    pub fn sever(&mut self) {
        self.connection.abort();
    }

    /// Looks up the route to `address`; nothing if there is none.
    async fn route(&mut self, address: IpAddr) -> Result<Option<Route>> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let question = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, length)
            .with_context(|| format!("ask for the route to {address}"))?
            .build();
        let mut answers = self.handle.route().get(question).execute();
        match answers.try_next().await {
            Ok(Some(message)) => Ok(route_of(&message, address)),
            // The kernel answers "network unreachable" as an error.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Ok(None) => {
                bail!("look up the route to {address}: the connection to the kernel is over")
            }
            Err(error) => Err(error).with_context(|| format!("look up the route to {address}")),
        }
    }
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn route_of(message: &RouteMessage, address: IpAddr) -> Option<Route> {
    let is_local = match message.header.kind {
        RouteType::Unicast => false,
        RouteType::Local => true,
        _ => return None,
    };
    let mut route = Route {
        interface: 0,
        next_hop: address,
        source: match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        },
        is_local,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.interface = *index,
            RouteAttribute::Gateway(gateway) => {
                route.next_hop = ip(gateway).unwrap_or(route.next_hop);
            }
            RouteAttribute::PrefSource(source) => {
                route.source = ip(source).unwrap_or(route.source);
            }
            _ => {}
        }
    }
    (route.interface != 0).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn knows_the_ways_to_itself_in_both_families() {
        let loopbacks = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ];
        let mut netlink = Netlink::connect().unwrap();
        let routes = netlink.routes(&loopbacks.into()).await.unwrap();
        for address in loopbacks {
            let route = routes[&address].as_ref().expect("a way to itself");
            assert!(route.is_local, "{address}");
            assert_eq!(route.interface, lb_common::maps::LOOPBACK, "{address}");
            assert_eq!(route.source, address);
        }
    }

    #[test]
    fn a_link_local_gateway_is_the_next_hop() {
        let worker: IpAddr = "2001:db8::3".parse().unwrap();
        let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
        let source: Ipv6Addr = "2001:db8:1::1".parse().unwrap();
        let message = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix("2001:db8::3".parse().unwrap(), 128)
            .gateway(gateway)
            .pref_source(source)
            .output_interface(7)
            .build();
        let route = route_of(&message, worker).unwrap();
        assert_eq!(route.next_hop, IpAddr::from(gateway));
        assert_eq!(route.source, IpAddr::from(source));
        assert_eq!(route.interface, 7);
        assert!(route.has_router(worker));
    }
}
