//! Lists of texts: interfaces, host names, addresses, networks.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::maps::MAX_NAT_SOURCES;

use super::{Input, Kind, list};
use crate::config::error::{BadValue, ProblemKind};
use crate::config::origin::check_source;

/// `ALTIFNAMSIZ` of linux/if.h less its final NUL; alternative names may be longer than others.
const MAX_INTERFACE_NAME: usize = 127;

/// A kind whose values are lists of texts.
pub trait TextList {
    type Item: PartialEq + ToString;

    /// The problem of an item that the list has twice; `None` if it may.
    const DUPLICATE: Option<ProblemKind> = None;

    fn parse(item: &str) -> Result<Self::Item, BadValue>;

    /// Reports problems of the list as a whole.
    fn check(_items: &[Self::Item], _input: &mut Input<'_, '_>) {}
}

impl<L: TextList> Kind for L {
    type Value = Vec<L::Item>;

    /// Leaves out an item that has a problem.
    fn read(&self, input: &mut Input<'_, '_>) -> Option<Vec<L::Item>> {
        let given = input.check(input.given.list())?;
        let mut items = Vec::new();
        for item in given {
            input
                .validator
                .record_origin(input.path, item.source.origin());
            let Some(text) = input.check(item.text()) else {
                continue;
            };
            let text = text.trim();
            let parsed = L::parse(text).and_then(|item| match L::DUPLICATE {
                Some(kind) if items.contains(&item) => Err(duplicate(text, kind)),
                _ => Ok(item),
            });
            items.extend(input.check(parsed));
        }
        L::check(&items, input);
        Some(items)
    }

    fn to_toml(&self, value: &Vec<L::Item>) -> String {
        list(value)
    }
}

fn duplicate(item: &str, kind: ProblemKind) -> BadValue {
    BadValue {
        kind,
        what: format!("{item:?} is named twice"),
        expected: "each one once".into(),
        remedy: "remove one of them".to_owned(),
    }
}

/// The names of interfaces.
pub struct Interfaces;

impl TextList for Interfaces {
    type Item = String;

    const DUPLICATE: Option<ProblemKind> = Some(ProblemKind::DuplicateInterface);

    fn parse(name: &str) -> Result<String, BadValue> {
        let fits = (1..=MAX_INTERFACE_NAME).contains(&name.len());
        let allowed = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        match fits && name.chars().all(allowed) {
            true => Ok(name.to_owned()),
            false => Err(BadValue {
                kind: ProblemKind::BadInterface,
                what: format!("{name:?} cannot be an interface's name"),
                expected: format!("1 to {MAX_INTERFACE_NAME} visible characters without / and :")
                    .into(),
                remedy: "`ip -br link` lists the interfaces".to_owned(),
            }),
        }
    }
}

/// Host names, as between `//` and the port of a URL.
pub struct HostNames;

impl TextList for HostNames {
    type Item = String;

    fn parse(name: &str) -> Result<String, BadValue> {
        let allowed = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '-' | '_');
        match !name.is_empty() && name.chars().all(allowed) {
            true => Ok(name.to_owned()),
            false => Err(BadValue {
                kind: ProblemKind::BadName,
                what: format!("{name:?} cannot be a host name"),
                expected: "names as in \"lb.example.com\", without scheme, port and path".into(),
                remedy: "write only the name; addresses need no entry".to_owned(),
            }),
        }
    }
}

/// The addresses from which the manager connects to workers.
pub struct NatSources;

impl TextList for NatSources {
    type Item = IpAddr;

    const DUPLICATE: Option<ProblemKind> = Some(ProblemKind::BadNatSource);

    fn parse(text: &str) -> Result<IpAddr, BadValue> {
        let host = text.parse().ok().filter(|ip| is_host(*ip));
        host.ok_or_else(|| BadValue {
            kind: ProblemKind::BadNatSource,
            what: format!("{text:?} is not the address of one host"),
            expected: "IP addresses of this manager without ports, as in [\"192.168.56.101\"]"
                .into(),
            remedy: "write the addresses that `ip address` shows at the interface towards the \
                     workers"
                .to_owned(),
        })
    }

    fn check(sources: &[IpAddr], input: &mut Input<'_, '_>) {
        for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
            let count = sources.iter().filter(|ip| ip.is_ipv4() == is_v4).count();
            if count > MAX_NAT_SOURCES as usize {
                input.reject(
                    ProblemKind::BadNatSource,
                    format!("{count} {family} addresses are named"),
                    format!("at most {MAX_NAT_SOURCES} of each family"),
                    "leave some of them out, or use mode = \"routed\", which needs no ports",
                );
            }
        }
    }
}

/// Whether the address can be one of this machine's on a network.
fn is_host(ip: IpAddr) -> bool {
    let is_special = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    !(is_special || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

/// Names of sources of workers.
pub struct SourceNames;

impl TextList for SourceNames {
    type Item = String;

    const DUPLICATE: Option<ProblemKind> = Some(ProblemKind::BadName);

    fn parse(name: &str) -> Result<String, BadValue> {
        let checked = check_source(name).map_err(|what| BadValue {
            kind: ProblemKind::BadName,
            what,
            expected: "names of sources, as in [\"swarm\"]".into(),
            remedy: "write the name that the source uses".to_owned(),
        });
        checked.map(|()| name.to_owned())
    }
}

/// Networks of agents that may join.
pub struct Networks;

impl TextList for Networks {
    type Item = IpNet;

    fn parse(text: &str) -> Result<IpNet, BadValue> {
        let (what, remedy) = match text.parse::<IpNet>() {
            Ok(network) if network == network.trunc() => return Ok(network),
            Ok(network) => (
                format!("{text:?} is an address in a network, not a network"),
                format!("write \"{}\"", network.trunc()),
            ),
            Err(_) => (
                format!("{text:?} is not a network"),
                match text.parse::<IpAddr>() {
                    Ok(ip) => format!("write \"{}\" for this one address", IpNet::from(ip)),
                    Err(_) => "write for instance \"192.168.56.0/24\"".to_owned(),
                },
            ),
        };
        Err(BadValue {
            kind: ProblemKind::BadNetwork,
            what,
            expected: "a network with its length, as \"192.168.56.0/24\" or \"2001:db8::/64\""
                .into(),
            remedy,
        })
    }
}
