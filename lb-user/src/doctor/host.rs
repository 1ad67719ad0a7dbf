//! What this host has, gathered once for all checks: links, addresses, neighbours, sockets.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::{
    new_connection,
    packet_route::{
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState},
    },
};

use super::ethtool;
use crate::{
    addresses::{self, Addresses},
    datapath::alternative,
    sockets::{self, Socket},
};

#[derive(Debug, Clone, Default)]
pub struct Host {
    /// By name.
    pub links: BTreeMap<String, Link>,
    pub addresses: Addresses,
    /// Of TCP, of both families.
    pub sockets: Vec<Socket>,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    /// Further names that it can be called by.
    pub alternative_names: Vec<String>,
    pub is_ethernet: bool,
    pub is_up: bool,
    /// Whether there is something at the other end of the cable.
    pub has_carrier: bool,
    pub mtu: u32,
    /// What a virtual interface is; nothing for a physical one.
    pub kind: Option<String>,
    pub driver: Option<String>,
    pub merges_received: Option<bool>,
}

/// What is known of the link address of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    Known,
    /// It was asked for without an answer.
    Silent,
}

impl Host {
    pub async fn gather() -> Result<Self> {
        Ok(Self {
            links: links().await?,
            addresses: addresses::own()?,
            sockets: sockets::tcp()?,
        })
    }

    /// The own names of interfaces that the configuration may call otherwise.
    pub fn own_names(&self, names: &[String]) -> Vec<String> {
        let own_name = |name: &String| {
            let mut links = self.links.iter();
            let found = match self.links.contains_key(name) {
                true => None,
                false => links.find(|(_, link)| link.alternative_names.contains(name)),
            };
            found.map_or_else(|| name.clone(), |(own, _)| own.clone())
        };
        names.iter().map(own_name).collect()
    }

    pub fn name_of(&self, index: u32) -> String {
        let mut links = self.links.iter();
        links
            .find(|(_, link)| link.index == index)
            .map_or_else(|| format!("interface {index}"), |(name, _)| name.clone())
    }
}

async fn links() -> Result<BTreeMap<String, Link>> {
    let (connection, handle, _) = new_connection().context("open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let links: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .context("list the interfaces")?;
    connection.abort();
    Ok(links.iter().filter_map(link).collect())
}

fn link(message: &LinkMessage) -> Option<(String, Link)> {
    let mut name = None;
    let mut link = Link {
        index: message.header.index,
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        is_up: message.header.flags.contains(LinkFlags::Up),
        has_carrier: message.header.flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(it) => name = Some(it.clone()),
            LinkAttribute::PropList(properties) => {
                link.alternative_names = properties.iter().filter_map(alternative).collect();
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => link.kind = infos.iter().find_map(kind),
            _ => {}
        }
    }
    let name = name?;
    link.driver = ethtool::driver(&name);
    link.merges_received = ethtool::large_receive_offload(&name);
    Some((name, link))
}

fn kind(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

/// What the kernel knows now of the neighbours at all interfaces, by address.
pub async fn neighbours() -> Result<BTreeMap<IpAddr, Neighbour>> {
    let (connection, handle, _) = new_connection().context("open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let messages: Vec<_> = handle
        .neighbours()
        .get()
        .execute()
        .try_collect()
        .await
        .context("list the neighbours")?;
    connection.abort();
    let known = messages.iter().filter_map(|message| {
        let address = message.attributes.iter().find_map(|it| match it {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
            _ => None,
        })?;
        let state = match message.header.state {
            NeighbourState::Incomplete | NeighbourState::Failed => Neighbour::Silent,
            _ => Neighbour::Known,
        };
        Some((address, state))
    });
    Ok(known.collect())
}
