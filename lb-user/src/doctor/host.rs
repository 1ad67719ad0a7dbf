//! What this host has, gathered once for all checks: links, addresses, neighbours, sockets.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Result;
use rtnetlink::packet_route::{link::LinkFlags, neighbour::NeighbourState};

use super::ethtool;
use crate::{
    addresses::{self, Addresses},
    datapath::Netlink,
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
    let links = Netlink::connect_without_events()?.links().await?;
    let links = links.iter().map(|(index, it)| {
        let link = Link {
            index,
            alternative_names: it.alternative_names.clone(),
            is_ethernet: it.is_ethernet(),
            is_up: it.flags.contains(LinkFlags::Up),
            has_carrier: it.flags.contains(LinkFlags::LowerUp),
            mtu: it.mtu,
            kind: it.kind.clone(),
            driver: ethtool::driver(&it.name),
            merges_received: ethtool::large_receive_offload(&it.name),
        };
        (it.name.clone(), link)
    });
    Ok(links.collect())
}

/// What the kernel knows now of the neighbours at all interfaces, by address.
pub async fn neighbours() -> Result<BTreeMap<IpAddr, Neighbour>> {
    let neighbours = Netlink::connect_without_events()?.neighbours().await?;
    let state = |state| match state {
        NeighbourState::Incomplete | NeighbourState::Failed => Neighbour::Silent,
        _ => Neighbour::Known,
    };
    let known = neighbours.into_iter();
    Ok(known.map(|(address, it)| (address, state(it))).collect())
}
