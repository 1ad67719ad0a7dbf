//! This machine's network interfaces: names and stacking.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, Prop,
};

use super::interface::Interface;

/// By index.
#[derive(Debug, Clone, Default)]
pub struct Links(BTreeMap<u32, Link>);

#[derive(Debug, Clone)]
pub struct Link {
    pub name: String,
    /// Alternative names.
    pub alternative_names: Vec<String>,
    /// Kind of a virtual interface; `None` for a physical one.
    pub kind: Option<String>,
    pub flags: LinkFlags,
    pub mtu: u32,
    layer: LinkLayerType,
    address: Vec<u8>,
    /// The lower interface of a virtual one, or a veth's other end.
    below: Option<u32>,
    /// The bridge or bond that this is a port of.
    master: Option<u32>,
    /// Id, in this network namespace, of the network namespace with the interface below or the other end.
    namespace: Option<i32>,
}

/// Where packets pass before they arrive at an interface.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UpstreamLocations {
    /// Interfaces of this network namespace.
    pub interfaces: BTreeSet<u32>,
    /// Ids of other network namespaces.
    pub namespaces: BTreeSet<i32>,
}

impl Link {
    pub fn is_ethernet(&self) -> bool {
        self.layer == LinkLayerType::Ether
    }
}

impl Links {
    /// Returns all, with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Link)> {
        self.0.iter().map(|(index, link)| (*index, link))
    }

    /// Looks up an interface that carries Ethernet, by its own or an alternative name.
    ///
    /// # Errors
    ///
    /// The interface does not exist, or does not carry Ethernet.
    pub fn interface(&self, name: &str) -> Result<Interface> {
        let Some((&index, link)) = self.by_name(name) else {
            let others = self.0.values().map(|link| link.name.as_str());
            let others: Vec<&str> = others.filter(|name| *name != "lo").collect();
            bail!(
                "interface {name} does not exist here, only {}: name the right one with --interface \
                 or manager.interfaces (`ip link` shows them with their alternative names)",
                others.join(", ")
            );
        };
        if !link.is_ethernet() {
            bail!(
                "interface {name} does not carry Ethernet ({:?}), and memlb steers Ethernet frames only: \
                 name an Ethernet interface with --interface or manager.interfaces (`ip -br link`)",
                link.layer
            );
        }
        Ok(Interface {
            index,
            name: link.name.clone(),
            kind: link.kind.clone(),
        })
    }

    fn by_name(&self, name: &str) -> Option<(&u32, &Link)> {
        let own = self.0.iter().find(|(_, link)| link.name == name);
        let is_alternative = |link: &Link| link.alternative_names.iter().any(|it| it == name);
        own.or_else(|| self.0.iter().find(|(_, link)| is_alternative(link)))
    }

    /// The interfaces below `interface` with its link address: parents of VLANs, ports of bridges and bonds. Packets
    /// to `interface` arrive at them, too.
    pub fn lower_interfaces(&self, interface: u32) -> BTreeSet<u32> {
        // Below a veth is its other end.
        let is_lower = |upper: &Link, lower: &Link| {
            upper.kind.as_deref() != Some("veth") && lower.address == upper.address
        };
        self.below(interface, is_lower)
    }

    /// The link address of an interface; `None` if it is gone.
    pub fn link_address(&self, interface: u32) -> Option<&[u8]> {
        self.0.get(&interface).map(|link| link.address.as_slice())
    }

    /// The names of the interfaces whose packets arrive at one of `attached`: these, and those that they carry.
    pub fn carried_by(&self, attached: &BTreeSet<u32>) -> Vec<&str> {
        let is_carried = |index: &u32| {
            attached.contains(index) || !self.lower_interfaces(*index).is_disjoint(attached)
        };
        let carried = self.0.iter().filter(|(index, _)| is_carried(index));
        carried.map(|(_, link)| link.name.as_str()).collect()
    }

    /// Where packets pass before they arrive at `interface`: ports of bridges and bonds, parents of VLANs, other ends
    /// of veths.
    pub fn upstream_of(&self, interface: u32) -> UpstreamLocations {
        let interfaces = self.below(interface, |_, _| true);
        let all = interfaces.iter().chain([&interface]);
        let links = all.filter_map(|index| self.0.get(index));
        UpstreamLocations {
            namespaces: links.filter_map(|link| link.namespace).collect(),
            interfaces,
        }
    }

    /// The interfaces of this network namespace below `interface`, direct and indirect, as far as `is_included` accepts
    /// each with the one above.
    fn below(&self, interface: u32, is_included: impl Fn(&Link, &Link) -> bool) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        let mut pending = vec![interface];
        while let Some(index) = pending.pop() {
            let Some(upper) = self.0.get(&index) else {
                continue;
            };
            // The link of a tunnel is the outgoing interface.
            let is_stacked = matches!(
                upper.kind.as_deref(),
                Some("vlan" | "ipvlan" | "macvlan" | "veth")
            );
            let parent = upper
                .below
                .filter(|_| is_stacked && upper.namespace.is_none());
            for (lower_index, lower) in &self.0 {
                let is_below = parent == Some(*lower_index) || lower.master == Some(index);
                if is_below
                    && is_included(upper, lower)
                    && *lower_index != interface
                    && found.insert(*lower_index)
                {
                    pending.push(*lower_index);
                }
            }
        }
        found
    }
}

impl FromIterator<LinkMessage> for Links {
    fn from_iter<I: IntoIterator<Item = LinkMessage>>(messages: I) -> Self {
        let messages = messages.into_iter();
        Self(
            messages
                .map(|it| (it.header.index, Link::from(&it)))
                .collect(),
        )
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Self {
            name: String::new(),
            alternative_names: Vec::new(),
            kind: None,
            flags: message.header.flags,
            mtu: 0,
            layer: message.header.link_layer_type,
            address: Vec::new(),
            below: None,
            master: None,
            namespace: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::PropList(properties) => {
                    link.alternative_names = properties.iter().filter_map(alternative).collect();
                }
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::LinkInfo(infos) => link.kind = infos.iter().find_map(kind),
                LinkAttribute::Address(address) => link.address.clone_from(address),
                LinkAttribute::Link(index) => link.below = Some(*index),
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::LinkNetNsId(number) => link.namespace = Some(*number),
                _ => {}
            }
        }
        link
    }
}

/// Returns the alternative name in a property of an interface.
fn alternative(property: &Prop) -> Option<String> {
    match property {
        Prop::AltIfName(name) => Some(name.clone()),
        _ => None,
    }
}

fn kind(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn link(name: &str, kind: &str, address: [u8; 6]) -> Link {
        Link {
            name: name.to_owned(),
            alternative_names: vec![format!("enp-{name}")],
            kind: (!kind.is_empty()).then(|| kind.to_owned()),
            flags: LinkFlags::empty(),
            mtu: 1_500,
            layer: LinkLayerType::Ether,
            address: address.to_vec(),
            below: None,
            master: None,
            namespace: None,
        }
    }

    #[test]
    fn an_alternative_name_finds_the_interface_under_its_own() {
        let links = Links([(2, link("eth1", "", MAC)), (3, link("enp-eth1", "", MAC))].into());
        assert_eq!(links.interface("enp-enp-eth1").unwrap().name, "enp-eth1");
        // An own name goes before.
        assert_eq!(links.interface("enp-eth1").unwrap().index, 3);
        let error = links.interface("eth7").unwrap_err().to_string();
        assert!(error.contains("only eth1, enp-eth1"), "{error}");
    }

    #[test]
    fn packets_of_a_vlan_or_a_bridge_arrive_at_its_lower_interface() {
        let port = Link {
            master: Some(4),
            ..link("eth1", "", MAC)
        };
        let other_port = Link {
            master: Some(4),
            ..link("eth2", "", OTHER_MAC)
        };
        let vlan = Link {
            below: Some(4),
            ..link("br0.7", "vlan", MAC)
        };
        let veth = Link {
            below: Some(2),
            ..link("veth0", "veth", MAC)
        };
        // What arrives for a link address of its own, the interface beneath takes for another host's.
        let macvlan = Link {
            below: Some(2),
            ..link("mv0", "macvlan", OTHER_MAC)
        };
        let bridge = link("br0", "bridge", MAC);
        let all = [
            (2, port),
            (3, other_port),
            (4, bridge),
            (5, vlan),
            (6, veth),
            (7, macvlan),
        ];
        let links = Links(all.into());
        for (interface, lower, before) in [
            (2, &[][..], &[][..]),
            (4, &[2], &[2, 3]),
            (5, &[2, 4], &[2, 3, 4]),
            (6, &[], &[2]),
            (7, &[], &[2]),
            (99, &[], &[]),
        ] {
            let set = |indices: &[u32]| indices.iter().copied().collect();
            assert_eq!(links.lower_interfaces(interface), set(lower), "{interface}");
            let locations = links.upstream_of(interface);
            assert_eq!(locations.interfaces, set(before), "{interface}");
            assert_eq!(locations.namespaces, BTreeSet::new(), "{interface}");
        }
        for (attached, carried) in [
            (2, &["eth1", "br0", "br0.7"][..]),
            (3, &["eth2"]),
            (5, &["br0.7"]),
            (99, &[]),
        ] {
            assert_eq!(links.carried_by(&[attached].into()), carried, "{attached}");
        }
    }

    #[test]
    fn the_other_end_of_a_veth_may_be_in_another_network_namespace() {
        let veth = |index, namespace| Link {
            below: Some(index),
            namespace,
            ..link("eth1", "veth", MAC)
        };
        // Two ends of one veth, and one whose other end has there the number that an interface here has.
        let links = Links(
            [
                (2, veth(3, None)),
                (3, veth(2, None)),
                (4, veth(2, Some(7))),
            ]
            .into(),
        );
        assert_eq!(links.upstream_of(2).interfaces, [3].into());
        let outside = UpstreamLocations {
            interfaces: BTreeSet::new(),
            namespaces: [7].into(),
        };
        assert_eq!(links.upstream_of(4), outside);
    }
}
