//! The way to a worker, as the kernel's routing table has it.

use std::{fmt, net::Ipv4Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, RouteMessageBuilder, new_connection,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use tokio::task::JoinHandle;

/// Where packets to a worker go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface.
    pub interface: u32,
    /// The worker itself, or the router on the way to it.
    pub next_hop: Ipv4Addr,
    /// The manager's own address on that way.
    pub source: Ipv4Addr,
    /// The address is one of the manager's own.
    pub is_local: bool,
}

impl Default for Route {
    fn default() -> Self {
        Self {
            interface: 0,
            next_hop: Ipv4Addr::UNSPECIFIED,
            source: Ipv4Addr::UNSPECIFIED,
            is_local: false,
        }
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
            "through interface {interface}, next hop {next_hop}, from {source}"
        )
    }
}

/// A connection to the kernel's routing table.
#[derive(Debug)]
pub struct Routes {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Routes {
    pub fn connect() -> Result<Self> {
        let (connection, handle, _) = new_connection().context("open a netlink socket")?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Looks up the route to `address`; nothing if there is none.
    pub async fn to(&self, address: Ipv4Addr) -> Option<Route> {
        let question = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .build();
        let mut answers = self.handle.route().get(question).execute();
        match answers.try_next().await {
            Ok(Some(message)) => route(&message, address),
            // The kernel answers "network unreachable" as an error.
            Ok(None) | Err(_) => None,
        }
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn route(message: &RouteMessage, address: Ipv4Addr) -> Option<Route> {
    let is_local = match message.header.kind {
        RouteType::Unicast => false,
        RouteType::Local => true,
        _ => return None,
    };
    let mut route = Route {
        next_hop: address,
        is_local,
        ..Route::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.interface = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => route.next_hop = *gateway,
            RouteAttribute::PrefSource(RouteAddress::Inet(source)) => route.source = *source,
            _ => {}
        }
    }
    (route.interface != 0).then_some(route)
}
