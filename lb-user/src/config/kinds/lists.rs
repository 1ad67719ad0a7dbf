//! Lists of texts: interfaces, host names, addresses, networks.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::maps::MAX_NAT_SOURCES;

use super::{Input, Kind, list};
use crate::config::error::{BadValue, ProblemKind};
use crate::config::origin::check_source;

/// `ALTIFNAMSIZ` of linux/if.h less its final NUL; alternative names may be longer than others.
const LONGEST_INTERFACE_NAME: usize = 127;

impl Input<'_, '_> {
    /// Reads the items of a list of texts; an item that has a problem is left out.
    fn items<T: PartialEq>(
        &mut self,
        parse: impl Fn(&str, &[T]) -> Result<T, BadValue>,
    ) -> Option<Vec<T>> {
        let given = self.check(self.given.list())?;
        let mut items = Vec::new();
        for item in given {
            self.validator.note(self.path, item.source.origin());
            let Some(text) = self.check(item.text()) else {
                continue;
            };
            items.extend(self.check(parse(text.trim(), &items)));
        }
        Some(items)
    }
}

/// The names of interfaces, at least one.
pub struct Interfaces;

impl Kind for Interfaces {
    type Value = Vec<String>;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<Vec<String>> {
        input.items(|name, before: &[String]| {
            let fits = (1..=LONGEST_INTERFACE_NAME).contains(&name.len());
            let allowed = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
            if !fits || !name.chars().all(allowed) {
                return Err(BadValue {
                    kind: ProblemKind::BadInterface,
                    what: format!("{name:?} cannot be an interface's name"),
                    expected: format!(
                        "1 to {LONGEST_INTERFACE_NAME} visible characters without / and :"
                    )
                    .into(),
                    remedy: "`ip -br link` lists the interfaces".to_owned(),
                });
            }
            match before.iter().any(|it| it == name) {
                true => Err(repeated(name, ProblemKind::DuplicateInterface)),
                false => Ok(name.to_owned()),
            }
        })
    }

    fn show(&self, value: &Vec<String>) -> String {
        list(value)
    }
}

fn repeated(item: &str, kind: ProblemKind) -> BadValue {
    BadValue {
        kind,
        what: format!("{item:?} is named twice"),
        expected: "each one once".into(),
        remedy: "remove one of them".to_owned(),
    }
}

/// Host names, as between `//` and the port of a URL.
pub struct HostNames;

impl Kind for HostNames {
    type Value = Vec<String>;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<Vec<String>> {
        let allowed = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '-' | '_');
        input.items(
            |name, _: &[String]| match !name.is_empty() && name.chars().all(allowed) {
                true => Ok(name.to_owned()),
                false => Err(BadValue {
                    kind: ProblemKind::BadName,
                    what: format!("{name:?} cannot be a host name"),
                    expected: "names as in \"lb.example.com\", without scheme, port and path"
                        .into(),
                    remedy: "write only the name; addresses need no entry".to_owned(),
                }),
            },
        )
    }

    fn show(&self, value: &Vec<String>) -> String {
        list(value)
    }
}

/// The addresses from which the manager connects to workers.
pub struct NatSources;

impl Kind for NatSources {
    type Value = Vec<IpAddr>;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<Vec<IpAddr>> {
        let sources = input.items(|text, before: &[IpAddr]| {
            match text.parse().ok().filter(|ip| is_host(*ip)) {
                Some(ip) if before.contains(&ip) => Err(repeated(text, ProblemKind::BadNatSource)),
                Some(ip) => Ok(ip),
                None => Err(BadValue {
                    kind: ProblemKind::BadNatSource,
                    what: format!("{text:?} is no address of one host"),
                    expected: "IP addresses of this manager without ports, as in \
                               [\"192.168.56.101\"]"
                        .into(),
                    remedy: "write the addresses that `ip address` shows at the interface towards \
                             the workers"
                        .to_owned(),
                }),
            }
        })?;
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
        Some(sources)
    }

    fn show(&self, value: &Vec<IpAddr>) -> String {
        list(value)
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

impl Kind for SourceNames {
    type Value = Vec<String>;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<Vec<String>> {
        input.items(|name, before: &[String]| {
            if before.iter().any(|it| it == name) {
                return Err(repeated(name, ProblemKind::BadName));
            }
            let checked = check_source(name).map_err(|what| BadValue {
                kind: ProblemKind::BadName,
                what,
                expected: "names of sources, as in [\"swarm\"]".into(),
                remedy: "write the name that the source uses".to_owned(),
            });
            checked.map(|()| name.to_owned())
        })
    }

    fn show(&self, value: &Vec<String>) -> String {
        list(value)
    }
}

/// Networks of agents that may join.
pub struct Networks;

impl Kind for Networks {
    type Value = Vec<IpNet>;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<Vec<IpNet>> {
        input.items(|text, _: &[IpNet]| {
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
        })
    }

    fn show(&self, value: &Vec<IpNet>) -> String {
        list(value)
    }
}
