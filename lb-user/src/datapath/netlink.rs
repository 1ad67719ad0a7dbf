//! The kernel's routes, links and neighbours.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt, future, stream::BoxStream};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
    },
};
use tokio::task::JoinHandle;

use super::{
    interface::{Interface, name_of},
    links::Links,
};

/// A route to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface.
    pub interface: u32,
    /// The interfaces below it, on which its packets arrive, too.
    pub lower_interfaces: BTreeSet<u32>,
    /// The worker, or the router on the route to it, whose address may be of the other family (RFC 8950).
    pub next_hop: IpAddr,
    /// The manager's source address.
    pub source: IpAddr,
    /// The address is one of the manager's own.
    pub is_local: bool,
}

impl Route {
    /// Whether there is a router on the route to `address`.
    pub fn has_router(&self, address: IpAddr) -> bool {
        !self.is_local && self.next_hop != address
    }

    /// Whether replies arrive at one of these interfaces. Local addresses need none.
    pub fn arrives_at(&self, attached: &BTreeSet<u32>) -> bool {
        self.is_local
            || attached.contains(&self.interface)
            || !self.lower_interfaces.is_disjoint(attached)
    }

    /// The interface's present name.
    pub fn interface_name(&self) -> String {
        named(self.interface)
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

/// Returns an interface's present name, or its index if it is gone.
fn named(interface: u32) -> String {
    name_of(interface).unwrap_or_else(|| format!("interface {interface}"))
}

/// A netlink connection.
pub struct Netlink {
    handle: Handle,
    /// Changes that the kernel reports.
    changes: BoxStream<'static, NetlinkChange>,
    connection: JoinHandle<()>,
}

/// A change that the kernel reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetlinkChange {
    /// Links, addresses or routes may have changed.
    Tables,
    /// A neighbour entry, possibly unchanged.
    Neighbour(Neighbour),
}

/// A neighbour's link address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    pub interface: u32,
    pub address: IpAddr,
    pub link_address: Vec<u8>,
}

/// The route to each requested address; `None` if there is none.
pub type Routes = BTreeMap<IpAddr, Option<Route>>;

impl Netlink {
    pub fn connect() -> Result<Self> {
        Self::subscribe(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
        ])
    }

    /// Connects without subscribing to changes, which would queue up if not read.
    pub fn connect_without_events() -> Result<Self> {
        Self::subscribe(&[])
    }

    fn subscribe(groups: &[MulticastGroup]) -> Result<Self> {
        let (connection, handle, changes) =
            new_multicast_connection(groups).context("open a netlink socket")?;
        Ok(Self {
            handle,
            changes: changes
                .filter_map(|(message, _)| future::ready(change_of(&message.payload)))
                .boxed(),
            connection: tokio::spawn(connection),
        })
    }

    /// Lists all interfaces.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub async fn links(&mut self) -> Result<Links> {
        let messages = self.handle.link().get().execute();
        let links = messages.try_collect::<Vec<_>>().await;
        Ok(links.context("list the interfaces")?.into_iter().collect())
    }

    /// Lists the neighbour entries of all interfaces.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub async fn neighbours(&mut self) -> Result<Vec<(IpAddr, NeighbourState)>> {
        let messages = self.handle.neighbours().get().execute();
        let messages: Vec<_> = messages
            .try_collect()
            .await
            .context("list the neighbours")?;
        let known = messages.iter();
        let known = known.filter_map(|it| Some((address_of(&it.attributes)?, it.header.state)));
        Ok(known.collect())
    }

    /// Looks up interfaces by own or alternative names.
    ///
    /// # Errors
    ///
    /// Names the interface that does not exist, does not carry Ethernet, or is named twice.
    pub async fn interfaces(&mut self, names: &[String]) -> Result<Vec<Interface>> {
        let links = self.links().await?;
        let mut interfaces = Vec::<Interface>::new();
        for name in names {
            let interface = links.interface(name)?;
            if interfaces.contains(&interface) {
                let own = &interface.name;
                bail!(
                    "{name} is another name of interface {own}, which manager.interfaces names \
                     already: remove one of them"
                );
            }
            interfaces.push(interface);
        }
        Ok(interfaces)
    }

    /// Waits for a change; `None` if the connection is closed.
    pub async fn next_change(&mut self) -> Option<NetlinkChange> {
        self.changes.next().await
    }

    /// Looks up the routes to all `addresses`.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub async fn routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Routes> {
        Ok(self.routes_and_links(addresses).await?.0)
    }

    /// Looks up the routes to all `addresses`, and lists the interfaces.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub async fn routes_and_links(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(Routes, Links)> {
        let links = self.links().await?;
        let mut routes = Routes::new();
        for &address in addresses {
            let route = self.route(address).await?.map(|route| Route {
                lower_interfaces: links.lower_interfaces(route.interface),
                ..route
            });
            routes.insert(address, route);
        }
        Ok((routes, links))
    }

    /// Makes the kernel send a request for the link address of a neighbour without a valid one. The neighbour learns
    /// this machine's link address from the request.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn request_neighbour(&mut self, interface: u32, address: IpAddr) -> Result<()> {
        let request = self.handle.neighbours().add(interface, address).replace();
        let request = request
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use);
        let context = || format!("request the link address of {address}");
        request.execute().await.with_context(context)
    }

    /// Closes the connection.
    #[cfg(test)]
    pub fn sever(&mut self) {
        self.connection.abort();
    }

    /// Looks up the route to `address`; `None` if there is none. Like `connect()`, it first looks up the source
    /// address, and then the route of packets from that address, for which routing rules may choose another.
    async fn route(&mut self, address: IpAddr) -> Result<Option<Route>> {
        let Some(first) = self.route_from(None, address).await? else {
            return Ok(None);
        };
        if first.is_local || first.source.is_unspecified() {
            return Ok(Some(first));
        }
        let source = first.source;
        let route = self.route_from(Some(source), address).await?;
        Ok(route.map(|route| Route { source, ..route }))
    }

    async fn route_from(
        &mut self,
        source: Option<IpAddr>,
        address: IpAddr,
    ) -> Result<Option<Route>> {
        let length = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let context = || format!("look up the route to {address}");
        let mut request = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, length(address))
            .with_context(context)?;
        if let Some(source) = source {
            let from = request.source_prefix(source, length(source));
            request = from.with_context(context)?;
        }
        let mut replies = self.handle.route().get(request.build()).execute();
        match replies.try_next().await {
            Ok(Some(message)) => Ok(route_of(&message, address)),
            // The kernel reports unreachable networks, blackholes and prohibited routes as errors.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Ok(None) => bail!("{}: the netlink connection is closed", context()),
            Err(error) => Err(error).with_context(context),
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

/// Returns the change that a kernel message reports, if any.
fn change_of(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<NetlinkChange> {
    let NetlinkPayload::InnerMessage(message) = payload else {
        return Some(NetlinkChange::Tables);
    };
    let message = match message {
        RouteNetlinkMessage::NewNeighbour(message) => message,
        // The kernel resolves a removed neighbour again when it sends to it.
        RouteNetlinkMessage::DelNeighbour(_) => return None,
        _ => return Some(NetlinkChange::Tables),
    };
    let address = address_of(&message.attributes)?;
    let link_address = message.attributes.iter().find_map(|it| match it {
        NeighbourAttribute::LinkLayerAddress(link_address) => Some(link_address.clone()),
        _ => None,
    })?;
    Some(NetlinkChange::Neighbour(Neighbour {
        interface: message.header.ifindex,
        address,
        link_address,
    }))
}

/// Returns a neighbour's address.
fn address_of(attributes: &[NeighbourAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|it| match it {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

fn route_of(message: &RouteMessage, address: IpAddr) -> Option<Route> {
    let is_local = match message.header.kind {
        RouteType::Unicast => false,
        RouteType::Local => true,
        _ => return None,
    };
    let mut route = Route {
        interface: 0,
        lower_interfaces: BTreeSet::new(),
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
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => route.next_hop = (*gateway).into(),
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
    async fn finds_the_routes_to_itself_in_both_families() {
        let loopbacks = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ];
        let mut netlink = Netlink::connect().unwrap();
        let routes = netlink.routes(&loopbacks.into()).await.unwrap();
        for address in loopbacks {
            let route = routes[&address].as_ref().expect("a route to itself");
            assert!(route.is_local, "{address}");
            assert_eq!(route.interface, lb_common::maps::LOOPBACK, "{address}");
            assert_eq!(route.source, address);
        }
    }

    #[test]
    fn the_next_hop_of_an_ipv4_route_may_have_an_ipv6_address() {
        let worker: IpAddr = "192.0.2.3".parse().unwrap();
        let router: Ipv6Addr = "fe80::1".parse().unwrap();
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix("192.0.2.3".parse().unwrap(), 32)
            .via(router)
            .output_interface(7)
            .build();
        let route = route_of(&message, worker).unwrap();
        assert_eq!(route.next_hop, IpAddr::from(router));
        assert!(route.has_router(worker));
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
