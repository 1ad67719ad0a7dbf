//! Links, addresses, neighbours and sockets of this host, gathered once for all checks.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Result;
use rtnetlink::packet_route::{link::LinkFlags, neighbour::NeighbourState};

use super::ethtool;
use crate::{
    addresses::{self, Addresses},
    datapath::Netlink,
    sockets::{self, OpenSocket},
};

#[derive(Debug, Clone, Default)]
pub struct Host {
    /// By name.
    pub links: BTreeMap<String, HostLink>,
    pub addresses: Addresses,
    /// Of TCP, of both families.
    pub sockets: Vec<OpenSocket>,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostLink {
    pub index: u32,
    /// Alternative names.
    pub alternative_names: Vec<String>,
    pub is_ethernet: bool,
    pub is_up: bool,
    /// Whether the other end of the cable is connected.
    pub has_carrier: bool,
    pub mtu: u32,
    /// Kind of a virtual interface; `None` for a physical one.
    pub kind: Option<String>,
    pub driver: Option<String>,
    /// Whether large receive offload is on; `None` if the driver does not report it.
    pub merges_received: Option<bool>,
}

/// Whether the kernel has resolved a neighbour's link address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    Resolved,
    /// The neighbour has not answered.
    Unanswered,
}

impl Host {
    pub async fn gather() -> Result<Self> {
        Ok(Self {
            links: links().await?,
            addresses: addresses::own()?,
            sockets: sockets::tcp()?,
        })
    }

    /// Replaces alternative names of interfaces by their own names.
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

    /// Returns those of these interfaces that exist, and the ones that they carry: bridges and VLANs on top of them.
    pub async fn carried_by(&self, interfaces: &[String]) -> Result<Vec<String>> {
        let there = interfaces.iter().filter_map(|name| self.links.get(name));
        let attached = there.map(|link| link.index).collect();
        let links = Netlink::connect_without_events()?.links().await?;
        let carried = links.carried_by(&attached);
        Ok(carried.into_iter().map(str::to_owned).collect())
    }

    pub fn name_of(&self, index: u32) -> String {
        let mut links = self.links.iter();
        links
            .find(|(_, link)| link.index == index)
            .map_or_else(|| format!("interface {index}"), |(name, _)| name.clone())
    }
}

async fn links() -> Result<BTreeMap<String, HostLink>> {
    let links = Netlink::connect_without_events()?.links().await?;
    let links = links.iter().map(|(index, it)| {
        let link = HostLink {
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

/// Reads the kernel's neighbour entries of all interfaces, by address.
pub async fn neighbours() -> Result<BTreeMap<IpAddr, Resolution>> {
    let neighbours = Netlink::connect_without_events()?.neighbours().await?;
    let state = |state| match state {
        NeighbourState::Incomplete | NeighbourState::Failed => Resolution::Unanswered,
        _ => Resolution::Resolved,
    };
    let known = neighbours.into_iter();
    Ok(known.map(|(address, it)| (address, state(it))).collect())
}
